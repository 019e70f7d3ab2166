//! `curve`: trace in, hit rates at the capacities that matter out.

mod buys;
mod room;

use kvwise_core::{Error, Result};
use kvwise_io::trace::Loaded;
use kvwise_sim::curve::{
    self, Curve, Knee, KneeKind, Point, Semantics, Source, belady_hit_blocks, knees, log_capacities,
    tier_hits,
};
use kvwise_sim::trace::TraceSize;
use rayon::prelude::*;

pub use buys::Held;
pub use room::Room;

use crate::report::curve::{CurveReport, Ideal, KneeRow, PointRow, Quantiles, TierRow};

/// What to compute.
#[derive(Debug, Clone)]
pub struct CurveQuestion {
    /// Whose rules.
    pub semantics: Semantics,
    /// Blocks of so many tokens; the trace's own if `None`.
    pub block_tokens: Option<u32>,
    /// Capacities in usable blocks; a spread of them if empty.
    pub capacities: Vec<Room>,
    /// All capacities at which the rate changes.
    pub every_step: bool,
    /// Room of each tier, fastest first, with its name.
    pub tiers: Vec<(String, Room)>,
    /// KV-cache bytes of one token on a GPU, for figures in bytes.
    pub kv_bytes_per_token: Option<u64>,
    /// The same on all GPUs together, where that is more: what tiers behind the GPUs store.
    pub kv_bytes_per_token_total: Option<u64>,
    /// The cache that there is: marked on the plot, and compared with more.
    pub held: Option<Held>,
    /// Compute Belady's bound at each point.
    pub belady: bool,
}

/// Bytes that [`answer`] holds beside the trace: the curve, and the runs at single capacities, one a core.
pub fn working_bytes(size: &TraceSize, belady: bool, vllm: bool) -> u64 {
    let cores = rayon::current_num_threads() as u64;
    let run = if belady {
        curve::belady_working_bytes(size)
    } else {
        0
    } + if vllm {
        curve::vllm_serial_working_bytes(size)
    } else {
        0
    };
    curve::working_bytes(size).saturating_add(cores.saturating_mul(run))
}

/// Name of the tier whose bytes are those of one GPU.
const GPU: &str = "gpu";

fn is_gpu(tier: &str) -> bool {
    tier.eq_ignore_ascii_case(GPU)
}

/// Points per factor of ten when no capacity is asked for.
const PER_DECADE: u32 = 8;

/// Computes the report.
///
/// # Errors
/// If the trace has no content, a capacity is 0 or given in bytes without the bytes of a token.
pub fn answer(loaded: &Loaded, question: &CurveQuestion) -> Result<CurveReport> {
    let trace = &loaded.trace;
    let paths = trace.to_blocks(question.block_tokens)?;
    let lens = trace.input_lens();
    let curve = Curve::of_paths(&paths, lens, |i| trace.arrival(i), question.semantics);
    let blocks = |room: &Room| room.blocks(curve.block_tokens, question.kv_bytes_per_token);

    let mut capacities = if question.every_step {
        curve.steps().collect()
    } else if question.capacities.is_empty() {
        default_capacities(&curve)
    } else {
        question
            .capacities
            .iter()
            .map(blocks)
            .collect::<Result<Vec<u64>>>()?
    };
    if question.capacities.is_empty() {
        capacities.sort_unstable();
        capacities.dedup();
    }
    let row = |&capacity: &u64| {
        let point = curve.point(&paths, lens, capacity)?;
        let bound = question.belady.then(|| belady_hit_blocks(&paths, capacity));
        Ok(point_row(&curve, &point, question.kv_bytes_per_token, bound))
    };
    // points that are read off the curve cost less than starting threads for them
    let runs = question.belady || capacities.iter().any(|&capacity| capacity < curve.exact_from());
    let points: Vec<PointRow> = if runs {
        capacities.par_iter().map(row).collect::<Result<_>>()?
    } else {
        capacities.iter().map(row).collect::<Result<_>>()?
    };

    if question.semantics == Semantics::Vllm && !question.tiers.is_empty() {
        return Err(Error::input(
            "--tiers needs --semantics prefix-lru: vLLM's pool alone has no tiers",
        ));
    }
    let held_blocks = question
        .held
        .as_ref()
        .map(|held| held.blocks(&curve, question.kv_bytes_per_token))
        .transpose()?;
    let mut named_tiers: Vec<(String, u64)> = Vec::new();
    if let Some(blocks) = held_blocks
        && question.tiers.first().is_some_and(|(name, _)| !is_gpu(name))
    {
        named_tiers.push((GPU.to_owned(), blocks));
    }
    for (name, room) in &question.tiers {
        let bytes = if is_gpu(name) {
            question.kv_bytes_per_token
        } else {
            question.kv_bytes_per_token_total.or(question.kv_bytes_per_token)
        };
        named_tiers.push((name.clone(), room.blocks(curve.block_tokens, bytes)?));
    }
    let tier_blocks: Vec<u64> = named_tiers.iter().map(|&(_, blocks)| blocks).collect();
    let deployment = match (&question.held, held_blocks) {
        (Some(held), Some(blocks)) => {
            let scene = buys::Scene {
                curve: &curve,
                paths: &paths,
                input_lens: lens,
                kv_bytes_per_token: question.kv_bytes_per_token,
                belady: question.belady,
            };
            Some(scene.deployment(held, blocks, &named_tiers)?)
        }
        _ => None,
    };
    let tiers = tier_hits(&curve, &tier_blocks)
        .iter()
        .zip(&named_tiers)
        .map(|(hit, (name, capacity_blocks))| TierRow {
            name: name.clone(),
            capacity_blocks: *capacity_blocks,
            cumulative_blocks: hit.cumulative_blocks,
            hit_blocks: hit.hit_blocks,
            hit_tokens: hit.hit_tokens,
            hit_rate_tokens: rate(hit.hit_tokens, curve.input_tokens),
        })
        .collect();

    Ok(CurveReport {
        schema: "kvwise.curve/1",
        trace: trace.name().to_owned(),
        trace_format: trace.format().name(),
        semantics: question.semantics.name(),
        requests: curve.requests,
        skipped: loaded.skipped,
        block_accesses: curve.block_accesses,
        unique_blocks: curve.unique_blocks,
        block_tokens: curve.block_tokens,
        input_tokens: curve.input_tokens,
        kv_bytes_per_token: question.kv_bytes_per_token,
        longest_request_blocks: curve.longest_request_blocks,
        capacity_needed_blocks: curve.capacity_needed(),
        one_pass_exact_from_blocks: Some(curve.exact_from()).filter(|&c| c != u64::MAX),
        ideal: Ideal {
            hit_blocks: curve.ideal_hit_blocks(),
            hit_tokens: curve.ideal_hit_tokens(),
            hit_rate_blocks: rate(curve.ideal_hit_blocks(), curve.block_accesses),
            hit_rate_tokens: rate(curve.ideal_hit_tokens(), curve.input_tokens),
            hit_rate_mean_of_requests: curve.mean_request_hit_rate(u64::MAX),
        },
        points,
        knees: knees(&curve)
            .into_iter()
            .map(|knee| knee_row(&curve, knee, question.kv_bytes_per_token))
            .collect(),
        tiers,
        deployment,
        reuse_distance_blocks: reuse_distance(&curve),
        reuse_time_s: reuse_time(&curve),
        line: plotted(&curve, held_blocks),
    })
}

/// From 1 block to where the curve is flat; under vLLM from the longest request on, where the one pass is exact,
/// and few points where each needs a run.
fn default_capacities(curve: &Curve) -> Vec<u64> {
    let last = curve.capacity_needed();
    let first = curve.exact_from();
    if first == u64::MAX {
        return log_capacities(last, 2)
            .into_iter()
            .filter(|&c| c >= curve.longest_request_blocks)
            .chain([last])
            .collect();
    }
    let mut capacities: Vec<u64> = log_capacities(last, PER_DECADE)
        .into_iter()
        .filter(|&c| c >= first.max(1))
        .collect();
    if first > 1 {
        capacities.insert(0, first);
    }
    capacities
}

fn point_row(curve: &Curve, point: &Point, kv_bytes_per_token: Option<u64>, belady: Option<u64>) -> PointRow {
    let capacity_tokens = point
        .capacity_blocks
        .saturating_mul(u64::from(curve.block_tokens));
    PointRow {
        capacity_blocks: point.capacity_blocks,
        capacity_tokens,
        capacity_bytes: kv_bytes_per_token.map(|b| capacity_tokens.saturating_mul(b)),
        hit_blocks: point.hit_blocks,
        hit_tokens: point.hit_tokens,
        hit_rate_blocks: rate(point.hit_blocks, curve.block_accesses),
        hit_rate_tokens: rate(point.hit_tokens, curve.input_tokens),
        hit_rate_mean_of_requests: point.hit_rate_mean_of_requests,
        share_of_ideal: rate(point.hit_blocks, curve.ideal_hit_blocks()),
        refused_requests: point.refused_requests,
        source: match point.source {
            Source::OnePass => "one_pass",
            Source::Run => "run",
        },
        belady_hit_blocks: belady,
    }
}

fn knee_row(curve: &Curve, knee: Knee, kv_bytes_per_token: Option<u64>) -> KneeRow {
    let capacity_tokens = knee.capacity_blocks * u64::from(curve.block_tokens);
    KneeRow {
        capacity_blocks: knee.capacity_blocks,
        capacity_tokens,
        capacity_bytes: kv_bytes_per_token.map(|b| capacity_tokens.saturating_mul(b)),
        hit_rate_tokens: rate(curve.hit_tokens(knee.capacity_blocks), curve.input_tokens),
        reason: match knee.kind {
            KneeKind::ShareOfIdeal(share) => format!("{share} % of the ideal"),
            KneeKind::Bend => "bend".to_owned(),
        },
    }
}

fn rate(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

const QUANTILES: [u32; 4] = [10, 50, 90, 99];

/// Blocks between two uses of a block, over all hits: the capacity at which so many of them hit.
fn reuse_distance(curve: &Curve) -> Option<Quantiles> {
    let ideal = curve.ideal_hit_blocks();
    (ideal > 0).then(|| {
        Quantiles::new(QUANTILES.map(|q| {
            let needed = u64::try_from((u128::from(ideal) * u128::from(q)).div_ceil(100)).unwrap_or(ideal);
            curve.capacity_for(needed).unwrap_or(curve.capacity_needed()) as f64
        }))
    })
}

fn reuse_time(curve: &Curve) -> Option<Quantiles> {
    let mut times = curve.reuse_times.clone();
    times.sort_unstable_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let total: u64 = times.iter().map(|t| t.blocks).sum();
    (total > 0).then(|| {
        let (mut seen, mut k) = (0u64, 0usize);
        Quantiles::new(QUANTILES.map(|q| {
            let needed = u64::try_from((u128::from(total) * u128::from(q)).div_ceil(100)).unwrap_or(total);
            while seen < needed {
                seen += times[k].blocks;
                k += 1;
            }
            times[k.saturating_sub(1)].seconds
        }))
    })
}

/// Enough points of the whole curve for a picture that shows `marked` too.
fn plotted(curve: &Curve, marked: Option<u64>) -> Vec<(u64, u64)> {
    let last = curve.capacity_needed().max(marked.unwrap_or(0));
    log_capacities(last.max(2), 48)
        .into_iter()
        .map(|c| (c, curve.hit_tokens(c)))
        .collect()
}
