//! `curve`: trace in, hit rates at the capacities that matter out.

use kvwise_core::{Error, Result};
use kvwise_io::trace::Loaded;
use kvwise_sim::curve::{
    Curve, Knee, KneeKind, Point, Semantics, Source, belady_hit_blocks, knees, log_capacities, tier_hits,
};
use kvwise_sim::trace::BlockPaths;
use rayon::prelude::*;

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
    /// KV-cache bytes of one token, for figures in bytes.
    pub kv_bytes_per_token: Option<u64>,
    /// Compute Belady's bound at each point.
    pub belady: bool,
}

/// An amount of cache in the unit that the user gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Blocks.
    Blocks(u64),
    /// Tokens, rounded down to blocks.
    Tokens(u64),
    /// Bytes, rounded down to blocks; needs the bytes of a token.
    Bytes(u64),
}

impl Room {
    /// Reads `5000` (blocks), `80000tokens`, `40GiB`, `40GB`.
    ///
    /// # Errors
    /// If the text is not a positive whole number with one of these units.
    pub fn parse(text: &str) -> Result<Self> {
        let digits = text.len()
            - text
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_' || c == '.')
                .len();
        let (number, unit) = text.split_at(digits);
        let number = number.replace('_', "");
        let wrong = || {
            Error::input(format!("\"{text}\" is not an amount of cache"))
                .hint("say 5000 (blocks), 80000tokens, 40GiB or 40GB")
        };
        let whole = || number.parse::<u64>().map_err(|_| wrong());
        let scale = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "blocks" | "block" => return Ok(Self::Blocks(whole()?)),
            "tokens" | "token" | "tok" => return Ok(Self::Tokens(whole()?)),
            "mib" => 1u64 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(wrong()),
        };
        let (int, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let int: u64 = int.parse().map_err(|_| wrong())?;
        if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let millionths: u64 = format!("{fraction:0<6}").parse().map_err(|_| wrong())?;
        // at most 10^6 * 2^40, which fits
        let part = millionths * scale / 1_000_000;
        int.checked_mul(scale)
            .and_then(|b| b.checked_add(part))
            .map(Self::Bytes)
            .ok_or_else(|| Error::overflow(text))
    }

    fn blocks(self, block_tokens: u32, kv_bytes_per_token: Option<u64>) -> Result<u64> {
        let block = u64::from(block_tokens);
        match self {
            Self::Blocks(blocks) => Ok(blocks),
            Self::Tokens(tokens) => Ok(tokens / block),
            Self::Bytes(bytes) => {
                let per_token = kv_bytes_per_token.filter(|&b| b > 0).ok_or_else(|| {
                    Error::input("a capacity is given in bytes, but the bytes of a token are not known")
                        .hint("add --kv-bytes-per-token N (kv_cache.bytes_per_token of `kvwise plan MODEL --format json`)")
                })?;
                let per_block = per_token
                    .checked_mul(block)
                    .ok_or_else(|| Error::overflow("the bytes of a block"))?;
                Ok(bytes / per_block)
            }
        }
    }
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
    let points: Vec<PointRow> = capacities
        .par_iter()
        .map(|&capacity| {
            let point = curve.point(&paths, lens, capacity)?;
            let bound = question.belady.then(|| belady_hit_blocks(&paths, capacity));
            Ok(point_row(&curve, &point, question.kv_bytes_per_token, bound))
        })
        .collect::<Result<_>>()?;

    let tier_blocks: Vec<u64> = question
        .tiers
        .iter()
        .map(|(_, room)| blocks(room))
        .collect::<Result<_>>()?;
    if question.semantics == Semantics::Vllm && !question.tiers.is_empty() {
        return Err(Error::input(
            "--tiers needs --semantics prefix-lru: vLLM's pool alone has no tiers",
        ));
    }
    let tiers = tier_hits(&curve, &tier_blocks)
        .iter()
        .zip(&question.tiers)
        .zip(&tier_blocks)
        .map(|((hit, (name, _)), &capacity_blocks)| TierRow {
            name: name.clone(),
            capacity_blocks,
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
        reuse_distance_blocks: reuse_distance(&curve),
        reuse_time_s: reuse_time(&curve),
        line: plotted(&curve),
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
    times.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
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

/// Enough points of the whole curve for a picture.
fn plotted(curve: &Curve) -> Vec<(u64, u64)> {
    let last = curve.capacity_needed();
    log_capacities(last.max(2), 48)
        .into_iter()
        .map(|c| (c, curve.hit_tokens(c)))
        .collect()
}

/// The prompts as blocks, for callers that compute several answers.
///
/// # Errors
/// As [`kvwise_sim::trace::Trace::to_blocks`].
pub fn blocks_of(loaded: &Loaded, block_tokens: Option<u32>) -> Result<BlockPaths> {
    loaded.trace.to_blocks(block_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_read_in_blocks_tokens_and_bytes() {
        for (text, room) in [
            ("5000", Room::Blocks(5000)),
            ("80_000tokens", Room::Tokens(80_000)),
            ("1.5GiB", Room::Bytes(3 << 29)),
            ("2 GB", Room::Bytes(2_000_000_000)),
        ] {
            assert_eq!(Room::parse(text).unwrap(), room, "{text}");
        }
        for text in [
            "",
            "GiB",
            "-5",
            "1.5",
            "5 apples",
            "99999999999999999999",
            "99999999999GiB",
            "1.2.3GiB",
        ] {
            assert!(Room::parse(text).is_err(), "{text}");
        }
        assert!(Room::Bytes(1 << 30).blocks(16, None).is_err());
        assert_eq!(Room::Bytes(1 << 30).blocks(16, Some(1024)).unwrap(), 65_536);
    }
}
