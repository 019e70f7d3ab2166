//! The one pass.
//!
//! The hits are a broken line over capacities: a segment of a request adds one hit a block of room over one range of
//! ranks. Only the corners are kept (two a segment), not one entry a capacity: 0.3 MB instead of 4.4 MB on Mooncake's
//! conversation trace, where first touching memory costs more than computing what goes there.

use super::{Semantics, longest_request, pool_blocks};
use crate::trace::BlockPaths;
use crate::trace::size_of_u64;

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
    /// Where the number of hits begins to grow faster or slower, ascending; the last one ends all growth.
    corners: Vec<Corner>,
    /// What partial last blocks lack, ascending by rank and summed up.
    missing: Vec<Missing>,
}

/// From a rank on, every further block of room adds as many hits.
#[derive(Debug, Clone, Copy)]
struct Corner {
    /// The rank, at least 1.
    rank: u64,
    /// Blocks hit with one block less room than `rank`.
    hits: u64,
    /// Blocks that each block of room from `rank` on adds.
    blocks_per_block: u64,
    /// As `hits`: the sum over requests of the share of their prompt that is hit, partial blocks counted as full.
    shares: f64,
    /// What each block of room from `rank` on adds to it.
    shares_per_block: f64,
}

/// A range of ranks begins (share above 0) or ends (below 0): each rank in it is a block hit, and so much of a prompt.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rank: u64,
    share: f64,
}

/// What the partial last blocks up to a rank lack of full ones.
#[derive(Debug, Clone, Copy)]
struct Missing {
    rank: u64,
    tokens: u64,
    /// The same as shares of their requests' prompts.
    shares: f64,
}

/// Bytes that one reuse of earlier blocks leaves at the peak of the pass: see [`working_bytes`](super::working_bytes).
pub(super) const REUSE_BYTES: u64 = 3 * size_of_u64::<Turn>()
    + 2 * size_of_u64::<Corner>()
    + size_of_u64::<Missing>()
    + 2 * size_of_u64::<ReuseTime>(); // the report sorts a copy

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
        let mut turns: Vec<Turn> = Vec::with_capacity(2 * paths.len());
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
            corners: Vec::new(),
            missing: Vec::new(),
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
                    let share = f64::from(block_tokens) / f64::from(len);
                    turns.extend([
                        Turn {
                            rank: base + segment.start + 1,
                            share,
                        },
                        Turn {
                            rank: base + end + 1,
                            share: -share,
                        },
                    ]);
                    let tokens = (end * u64::from(block_tokens)).saturating_sub(u64::from(len));
                    if tokens > 0 {
                        curve.missing.push(Missing {
                            rank: base + end,
                            tokens,
                            shares: tokens as f64 / f64::from(len),
                        });
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
        curve.finish(turns);
        curve
    }

    fn finish(&mut self, mut turns: Vec<Turn>) {
        // a stable order, so that the sums below are always rounded alike
        turns.sort_by_key(|turn| turn.rank);
        let mut corner = Corner {
            rank: 0,
            hits: 0,
            blocks_per_block: 0,
            shares: 0.0,
            shares_per_block: 0.0,
        };
        let mut rest = &turns[..];
        while let Some(&Turn { rank, .. }) = rest.first() {
            let room = rank - corner.rank;
            corner.hits += corner.blocks_per_block * room;
            corner.shares += corner.shares_per_block * room as f64;
            corner.rank = rank;
            let here = rest.iter().take_while(|turn| turn.rank == rank);
            for turn in here.clone() {
                // an end comes after its beginning, so the count never falls below 0
                let delta = if turn.share > 0.0 { 1 } else { u64::MAX };
                corner.blocks_per_block = corner.blocks_per_block.wrapping_add(delta);
                corner.shares_per_block += turn.share;
            }
            rest = &rest[here.count()..];
            if corner.blocks_per_block == 0 {
                // what rounding left over would grow with the room
                corner.shares_per_block = 0.0;
            }
            self.corners.push(corner);
        }
        self.missing
            .sort_unstable_by(|a, b| a.rank.cmp(&b.rank).then(a.shares.total_cmp(&b.shares)));
        let (mut tokens, mut shares) = (0, 0.0);
        for entry in &mut self.missing {
            tokens += entry.tokens;
            shares += entry.shares;
            (entry.tokens, entry.shares) = (tokens, shares);
        }
    }

    /// The last corner at or below a capacity, and by how many blocks the capacity exceeds what came before it.
    fn corner(&self, capacity_blocks: u64) -> Option<(&Corner, u64)> {
        let after = self.corners.partition_point(|c| c.rank <= capacity_blocks);
        let corner = &self.corners[after.checked_sub(1)?];
        Some((corner, capacity_blocks - (corner.rank - 1)))
    }

    /// What partial last blocks lack with room for `capacity_blocks` blocks.
    fn missing(&self, capacity_blocks: u64) -> Option<&Missing> {
        let entries = self.missing.partition_point(|m| m.rank <= capacity_blocks);
        self.missing.get(entries.checked_sub(1)?)
    }

    /// Blocks hit with room for `capacity_blocks` blocks.
    pub fn hit_blocks(&self, capacity_blocks: u64) -> u64 {
        self.corner(capacity_blocks)
            .map_or(0, |(corner, room)| corner.hits + corner.blocks_per_block * room)
    }

    /// Tokens hit with room for `capacity_blocks` blocks; a partial last block counts its own tokens only.
    pub fn hit_tokens(&self, capacity_blocks: u64) -> u64 {
        let missing = self.missing(capacity_blocks).map_or(0, |m| m.tokens);
        self.hit_blocks(capacity_blocks) * u64::from(self.block_tokens) - missing
    }

    /// Mean over requests of the share of the prompt that is hit, from 0 to 1.
    pub fn mean_request_hit_rate(&self, capacity_blocks: u64) -> f64 {
        let Some((corner, room)) = self.corner(capacity_blocks) else {
            return 0.0;
        };
        let full = corner.shares + corner.shares_per_block * room as f64;
        let missing = self.missing(capacity_blocks).map_or(0.0, |m| m.shares);
        ((full - missing) / self.requests as f64).clamp(0.0, 1.0)
    }

    /// The smallest capacity at which all hits that are possible happen, in blocks.
    pub fn capacity_needed(&self) -> u64 {
        self.corners.last().map_or(0, |last| last.rank - 1)
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
        if hit_blocks > self.ideal_hit_blocks() {
            return None;
        }
        let reached = self.corners.partition_point(|c| c.hits < hit_blocks);
        let Some(corner) = reached.checked_sub(1).map(|last| &self.corners[last]) else {
            return Some(0); // no hit is asked for
        };
        // the next corner has the hits asked for, so this one's hits grow
        let room = (hit_blocks - corner.hits).div_ceil(corner.blocks_per_block);
        Some(corner.rank - 1 + room)
    }

    /// The capacities at which the number of hits changes, ascending.
    pub fn steps(&self) -> impl Iterator<Item = u64> + '_ {
        self.corners
            .windows(2)
            .filter(|pair| pair[0].blocks_per_block > 0)
            .flat_map(|pair| pair[0].rank..pair[1].rank)
    }

    /// The curve's bends: (capacity, blocks hit), between which it is straight; ascending.
    pub fn bends(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.corners.iter().map(|corner| (corner.rank - 1, corner.hits))
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
