//! `trace info` and `tree`: from a trace to its description.

use kvwise_core::{Error, Result};
use kvwise_io::trace::Loaded;
use kvwise_sim::curve::{self, Curve, Semantics};
use kvwise_sim::trace::{Content, Summary, Trace, TraceSize, concurrency, log2_bins};
use kvwise_sim::tree::{most_saving, shared_prefixes};

use crate::report::trace_info::{ArrivalInfo, PrefixRow, SessionInfo, SharingInfo, TraceInfo, TreeReport};

/// Parts of the time span that arrivals are counted in.
const PARTS: usize = 20;

/// Describes a trace. Service times are assumed for the number of requests in service.
///
/// # Errors
/// If the trace is empty or has more distinct blocks than fit.
pub fn info(loaded: &Loaded, block_tokens: Option<u32>, ttft_s: f64, tpot_s: f64) -> Result<TraceInfo> {
    for (value, name) in [(ttft_s, "--ttft"), (tpot_s, "--tpot")] {
        if !value.is_finite() || value < 0.0 {
            return Err(Error::input(format!(
                "{name} is {value}, expected a number of seconds of 0 or more"
            )));
        }
    }
    let trace = &loaded.trace;
    let summary =
        Summary::of(trace).ok_or_else(|| Error::input(format!("{}: the trace is empty", trace.name())))?;
    let arrivals = summary.span_s.map(|span_s| {
        let (concurrency_mean, concurrency_peak) = concurrency(trace, ttft_s, tpot_s).unwrap_or((0.0, 0));
        ArrivalInfo {
            span_s,
            requests_per_s: if span_s > 0.0 {
                trace.len() as f64 / span_s
            } else {
                0.0
            },
            gap_s: summary.gap_s.map(Into::into),
            gap_cv: summary.gap_cv,
            requests_by_part: by_part(trace, span_s),
            concurrency_mean,
            concurrency_peak,
            assumed_ttft_s: ttft_s,
            assumed_tpot_s: tpot_s,
        }
    });
    let sharing = match trace.content() {
        Content::None => None,
        Content::Tokens(_) | Content::Blocks(_) => Some(sharing(trace, block_tokens)?),
    };
    Ok(TraceInfo {
        schema: "kvwise.trace_info/1",
        trace: trace.name().to_owned(),
        trace_format: trace.format().name(),
        requests: trace.len() as u64,
        skipped: loaded.skipped,
        content: summary.content,
        input_tokens: summary.input_tokens,
        output_tokens: summary.output_tokens,
        input_len_tokens: summary.input_len.into(),
        output_len_tokens: summary.output_len.into(),
        input_len_log2_counts: log2_bins(trace.input_lens().iter().copied()),
        output_len_log2_counts: log2_bins(trace.output_lens().iter().copied()),
        arrivals,
        sessions: summary
            .sessions
            .zip(summary.requests_per_session)
            .map(|(count, requests)| SessionInfo {
                count,
                requests: requests.into(),
            }),
        sharing,
    })
}

/// Bytes that [`info`] holds beside the trace: the curve that sharing is told from while it is made, then what is left of it
/// (a stamp a block, an entry a request) and the uses of each block, or lengths, times and gaps as they are sorted,
/// whatever is more.
pub fn working_bytes(size: &TraceSize) -> u64 {
    let uses = (4 + 8) * size.distinct_blocks + 8 * size.requests;
    let sharing = curve::working_bytes(size).max(size.to_blocks_bytes().saturating_add(uses));
    // lengths; order, times, gaps twice; starts and ends for concurrency
    let sorted = (8 + 4 + 8 + 2 * 8 + 2 * 16) * size.requests;
    sharing.max(sorted)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part is below PARTS"
)]
fn by_part(trace: &Trace, span_s: f64) -> Vec<u64> {
    let mut counts = vec![0; PARTS];
    let times = || (0..trace.len()).filter_map(|i| trace.arrival(i));
    let first = times().min_by(f64::total_cmp).unwrap_or(0.0);
    for time in times() {
        let part = if span_s > 0.0 {
            ((time - first) / span_s * PARTS as f64) as usize
        } else {
            0
        };
        counts[part.min(PARTS - 1)] += 1;
    }
    counts
}

fn sharing(trace: &Trace, block_tokens: Option<u32>) -> Result<SharingInfo> {
    let paths = trace.to_blocks(block_tokens)?;
    let curve = Curve::of_paths(&paths, trace.input_lens(), |_| None, Semantics::PrefixLru);
    let nodes = paths.unique_blocks() as usize;
    // uses of each block: a run of consecutive nodes is two steps of a difference array
    let mut uses = vec![0i64; nodes + 1];
    let mut seen = 0u32;
    let mut requests_with_hit = 0u64;
    for index in 0..paths.len() {
        let runs = paths.get(index).runs();
        // in file order nodes are numbered as they first appear, so an old first block is a shared one
        let first = runs.first().map_or(u32::MAX, |run| run.first);
        requests_with_hit += u64::from(first < seen);
        for run in runs {
            uses[run.first as usize] += 1;
            uses[(run.first + run.len) as usize] -= 1;
            seen = seen.max(run.first + run.len);
        }
    }
    let mut sum = 0i64;
    for entry in &mut uses {
        sum += *entry;
        *entry = sum;
    }
    uses.truncate(nodes);
    uses.sort_unstable_by(|a, b| b.cmp(a));
    let reuses: i64 = uses.iter().map(|&n| (n - 1).max(0)).sum();
    let top: i64 = uses
        .iter()
        .take(nodes.div_ceil(10))
        .map(|&n| (n - 1).max(0))
        .sum();
    let never = uses.iter().filter(|&&n| n <= 1).count();
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    Ok(SharingInfo {
        block_tokens: curve.block_tokens,
        block_accesses: curve.block_accesses,
        unique_blocks: curve.unique_blocks,
        ideal_hit_rate_tokens: share(curve.ideal_hit_tokens() as f64, curve.input_tokens as f64),
        ideal_hit_rate_mean_of_requests: curve.mean_request_hit_rate(u64::MAX),
        requests_with_hit,
        never_reused_share: share(never as f64, nodes as f64),
        top_tenth_reuse_share: share(top as f64, reuses as f64),
    })
}

/// Finds the shared prefixes that save most.
///
/// # Errors
/// If the trace has no content.
pub fn tree(
    loaded: &Loaded,
    block_tokens: Option<u32>,
    count: usize,
    kv_bytes_per_token: Option<u64>,
) -> Result<TreeReport> {
    let trace = &loaded.trace;
    let paths = trace.to_blocks(block_tokens)?;
    let has_ids = matches!(trace.content(), Content::Blocks(_)) && !trace.has_isolation_keys();
    let block = u64::from(paths.block_tokens());
    let input_tokens: u64 = trace.input_lens().iter().map(|&l| u64::from(l)).sum();
    let found = shared_prefixes(&paths);
    let (shared, saved) = (
        found.len() as u64,
        found.iter().map(|p| p.saved_blocks() * block).sum(),
    );
    let prefixes = most_saving(found, count)
        .into_iter()
        .map(|p| {
            let own_tokens = u64::from(p.own_blocks) * block;
            let saved_tokens = p.saved_blocks() * block;
            PrefixRow {
                prefix: p.number,
                parent: p.parent,
                requests: p.requests,
                first_request: trace.id(p.first_request as usize),
                prefix_tokens: u64::from(p.prefix_blocks) * block,
                own_tokens,
                saved_tokens,
                saved_share: saved_tokens as f64 / input_tokens.max(1) as f64,
                cached_bytes: kv_bytes_per_token.map(|b| own_tokens.saturating_mul(b)),
                last_hash_id: has_ids.then(|| paths.raw_ids()[p.last_node as usize]),
            }
        })
        .collect();
    Ok(TreeReport {
        schema: "kvwise.tree/1",
        trace: trace.name().to_owned(),
        requests: trace.len() as u64,
        block_tokens: paths.block_tokens(),
        input_tokens,
        shared_prefixes: shared,
        saved_tokens: saved,
        kv_bytes_per_token,
        prefixes,
    })
}
