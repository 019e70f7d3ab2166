//! The one pass.

use super::{Semantics, longest_request, pool_blocks};
use crate::trace::BlockPaths;

/// How long ago a reused block was used last, for a number of blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReuseTime {
    /// Time since the block's last use, in the trace's unit (seconds).
    pub seconds: f64,
    /// Blocks reused after that time.
    pub blocks: u64,
}

/// Hits at every capacity; made by [`curve`](super::curve()).
#[derive(Debug, Clone)]
pub struct Curve {
    /// The rules followed.
    pub semantics: Semantics,
    /// Requests in the trace.
    pub requests: u64,
    /// Prompt tokens of all requests.
    pub input_tokens: u64,
    /// Blocks of all requests together.
    pub block_accesses: u64,
    /// Distinct blocks.
    pub unique_blocks: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Pool blocks of the longest request.
    pub longest_request_blocks: u64,
    /// Segments treated: the work of the pass.
    pub segments: u64,
    /// Under [`Semantics::Vllm`]: requests whose whole prompt is full blocks seen before. vLLM then computes the last
    /// block again and keeps two copies of it, which no stack describes: where this is not 0, the one pass is an
    /// estimate and single capacities need a run each.
    pub duplicated_blocks: u64,
    /// How long ago reused blocks were last used, in order of requests; empty without arrival times.
    pub reuse_times: Vec<ReuseTime>,
    /// `hits[c]`: blocks hit at capacity c.
    hits: Vec<u64>,
    /// (rank, tokens that a partial last block lacks), summed up and sorted by rank.
    missing_tokens: Vec<(u64, u64)>,
    /// `request_shares[c]`: sum over requests of the share of their prompt that is hit at capacity c.
    request_shares: Vec<f64>,
}

/// Sums of live blocks over requests in order of arrival.
struct Fenwick(Vec<u64>);

impl Fenwick {
    /// Adds `delta` (modulo 2^64) at `index`.
    fn add(&mut self, index: usize, delta: u64) {
        let mut i = index + 1;
        while i < self.0.len() {
            self.0[i] = self.0[i].wrapping_add(delta);
            i += i & i.wrapping_neg();
        }
    }

    /// The sum of entries `0..=index`.
    fn sum_to(&self, index: usize) -> u64 {
        let mut i = index + 1;
        let mut sum = 0u64;
        while i > 0 {
            sum = sum.wrapping_add(self.0[i]);
            i &= i - 1;
        }
        sum
    }
}

/// Consecutive blocks of a path with the same last request, 0 meaning "never used" and q + 1 request q.
struct Segment {
    last: u32,
    start: u64,
    end: u64,
}

impl Curve {
    /// The curve of prompts given as paths; `arrival` may answer `None` throughout.
    pub fn of_paths(
        paths: &BlockPaths,
        input_lens: &[u32],
        arrival: impl Fn(usize) -> Option<f64>,
        semantics: Semantics,
    ) -> Self {
        let block_tokens = paths.block_tokens();
        let unique = paths.unique_blocks() as usize;
        // ranks run to the number of distinct blocks, one more under vLLM; the last entry ends ranges
        let mut starts = vec![0u64; unique + 3];
        let mut shares = vec![0f64; unique + 3];
        let mut curve = Self {
            semantics,
            requests: paths.len() as u64,
            input_tokens: input_lens.iter().map(|&l| u64::from(l)).sum(),
            block_accesses: paths.block_accesses(),
            unique_blocks: unique as u64,
            block_tokens,
            longest_request_blocks: longest_request(paths, input_lens, semantics),
            segments: 0,
            duplicated_blocks: 0,
            reuse_times: Vec::new(),
            hits: Vec::new(),
            missing_tokens: Vec::new(),
            request_shares: Vec::new(),
        };
        let mut last = vec![0u32; unique];
        let mut live = Fenwick(vec![0; paths.len() + 1]);
        let mut live_total = 0u64;
        let mut segments: Vec<Segment> = Vec::new();
        // Under vLLM the partial block of the request before lies unhashed in the free list: one block less.
        let mut lost_to_partial = 0u64;
        for (index, &len) in input_lens.iter().enumerate().take(paths.len()) {
            let stamp = u32::try_from(index + 1).expect("a trace has fewer than 2^32 requests");
            let full = u64::from(pool_blocks(len, block_tokens).1);
            let blocks = paths.get(index).len() as u64;
            let used = if semantics == Semantics::Vllm {
                blocks.min(full)
            } else {
                blocks
            };
            find_segments(paths, index, used, stamp, &mut last, &mut segments);

            // the last token is always computed: a prompt of full blocks only may not hit its last one
            let aligned = semantics == Semantics::Vllm && u64::from(len) == used * u64::from(block_tokens);
            let hittable = if aligned { used.saturating_sub(1) } else { used };
            if aligned && segments.last().is_some_and(|s| s.last != 0) {
                curve.duplicated_blocks += 1;
            }
            let mut known = 0u64;
            for segment in &segments {
                curve.segments += 1;
                if segment.last == 0 {
                    continue;
                }
                let q = segment.last as usize - 1;
                let later = live_total - live.sum_to(q);
                // ranks of the segment's blocks are base + 1 + j
                let base = later - segment.start + lost_to_partial;
                let end = segment.end.min(hittable);
                if end > segment.start {
                    let (from, to) = (slot(base + segment.start + 1), slot(base + end + 1));
                    starts[from] = starts[from].wrapping_add(1);
                    starts[to] = starts[to].wrapping_sub(1);
                    let share = f64::from(block_tokens) / f64::from(len);
                    shares[from] += share;
                    shares[to] -= share;
                    let missing = (end * u64::from(block_tokens)).saturating_sub(u64::from(len));
                    if missing > 0 {
                        curve.missing_tokens.push((base + end, missing));
                        let lacking = missing as f64 / f64::from(len);
                        shares[slot(base + end)] -= lacking;
                        shares[slot(base + end + 1)] += lacking;
                    }
                    if let (Some(now), Some(then)) = (arrival(index), arrival(q)) {
                        let blocks = end - segment.start;
                        curve.reuse_times.push(ReuseTime {
                            seconds: (now - then).max(0.0),
                            blocks,
                        });
                    }
                }
                known = segment.end;
            }
            // the update comes after all queries: positions are those at arrival
            for segment in segments.iter().filter(|s| s.last != 0) {
                live.add(
                    segment.last as usize - 1,
                    (segment.end - segment.start).wrapping_neg(),
                );
            }
            live.add(index, used);
            live_total += used - known;
            lost_to_partial = u64::from(semantics == Semantics::Vllm && !aligned);
        }
        curve.finish(starts, &shares);
        curve
    }

    fn finish(&mut self, starts: Vec<u64>, shares: &[f64]) {
        // first sum: blocks at exactly this rank; second sum: blocks at this rank or below
        let (mut at_rank, mut below) = (0u64, 0u64);
        self.hits = starts;
        for entry in &mut self.hits {
            at_rank = at_rank.wrapping_add(*entry);
            below += at_rank;
            *entry = below;
        }
        let mut total = 0.0;
        let mut at_rank = 0.0;
        // a range [from, to) of ranks carries its share at each rank; what a partial block lacks only at its own
        self.request_shares = Vec::with_capacity(shares.len());
        for &share in shares {
            at_rank += share;
            total += at_rank;
            self.request_shares.push(total);
        }
        self.missing_tokens.sort_unstable();
        let mut sum = 0;
        self.missing_tokens.iter_mut().for_each(|(_, tokens)| {
            sum += *tokens;
            *tokens = sum;
        });
        // everything above the last step is flat
        let ideal = self.hits.last().copied().unwrap_or(0);
        let needed = self.hits.partition_point(|&h| h < ideal);
        self.hits.truncate(needed + 1);
        self.request_shares.truncate(needed + 1);
    }

    fn at<T: Copy>(column: &[T], capacity_blocks: u64) -> T {
        let last = column.len() - 1;
        column[usize::try_from(capacity_blocks).unwrap_or(last).min(last)]
    }

    /// Blocks hit with room for `capacity_blocks` blocks.
    pub fn hit_blocks(&self, capacity_blocks: u64) -> u64 {
        Self::at(&self.hits, capacity_blocks)
    }

    /// Tokens hit with room for `capacity_blocks` blocks; a partial last block counts its own tokens only.
    pub fn hit_tokens(&self, capacity_blocks: u64) -> u64 {
        let entries = self
            .missing_tokens
            .partition_point(|&(rank, _)| rank <= capacity_blocks);
        let missing = entries.checked_sub(1).map_or(0, |e| self.missing_tokens[e].1);
        self.hit_blocks(capacity_blocks) * u64::from(self.block_tokens) - missing
    }

    /// Mean over requests of the share of the prompt that is hit, from 0 to 1.
    pub fn mean_request_hit_rate(&self, capacity_blocks: u64) -> f64 {
        if self.requests == 0 {
            return 0.0;
        }
        (Self::at(&self.request_shares, capacity_blocks) / self.requests as f64).clamp(0.0, 1.0)
    }

    /// The smallest capacity at which all hits that are possible happen, in blocks.
    pub fn capacity_needed(&self) -> u64 {
        (self.hits.len() - 1) as u64
    }

    /// Blocks hit with unlimited room.
    pub fn ideal_hit_blocks(&self) -> u64 {
        self.hit_blocks(u64::MAX)
    }

    /// Tokens hit with unlimited room.
    pub fn ideal_hit_tokens(&self) -> u64 {
        self.hit_tokens(u64::MAX)
    }

    /// The smallest capacity with at least `hit_blocks` hits; `None` if there are never so many.
    pub fn capacity_for(&self, hit_blocks: u64) -> Option<u64> {
        let capacity = self.hits.partition_point(|&h| h < hit_blocks);
        (capacity < self.hits.len()).then_some(capacity as u64)
    }

    /// The capacities at which the number of hits changes, ascending.
    pub fn steps(&self) -> impl Iterator<Item = u64> + '_ {
        (1..self.hits.len())
            .filter(|&c| self.hits[c] != self.hits[c - 1])
            .map(|c| c as u64)
    }

    /// From which capacity on the one pass is exact, in blocks.
    pub fn exact_from(&self) -> u64 {
        match self.semantics {
            Semantics::PrefixLru => 0,
            Semantics::Vllm if self.duplicated_blocks > 0 => u64::MAX,
            Semantics::Vllm => self.longest_request_blocks,
        }
    }
}

fn slot(rank: u64) -> usize {
    usize::try_from(rank).expect("a rank is at most the number of blocks in memory")
}

/// Cuts the first `used` blocks of a path into segments of equal last request, and stamps them.
fn find_segments(
    paths: &BlockPaths,
    index: usize,
    used: u64,
    stamp: u32,
    last: &mut [u32],
    segments: &mut Vec<Segment>,
) {
    segments.clear();
    let mut at = 0u64;
    for run in paths.get(index).runs() {
        let take = u64::from(run.len).min(used - at);
        let first = run.first as usize;
        let nodes = &mut last[first..first + usize::try_from(take).expect("a run fits memory")];
        let mut rest = &nodes[..];
        while let Some(&value) = rest.first() {
            // along a path the last use never grows, so equal stamps are found by bisection
            let len = rest.partition_point(|&v| v >= value);
            match segments.last_mut() {
                Some(open) if open.last == value => open.end += len as u64,
                _ => segments.push(Segment {
                    last: value,
                    start: at,
                    end: at + len as u64,
                }),
            }
            at += len as u64;
            rest = &rest[len..];
        }
        nodes.fill(stamp);
        if at == used {
            break;
        }
    }
}
