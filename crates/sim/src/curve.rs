//! The hit rate of a prefix cache at every capacity, from one pass over a trace.
//!
//! Requests are served one after the other: a request has ended before the next one arrives, and output tokens are
//! not cached. Then least-recently-used eviction that releases a request's blocks tail first is a *stack
//! algorithm*: whatever the capacity C, the cache holds the first C blocks of one order (by the last request that
//! used a block, later first; within a request, shallower first). A block j of an arriving request was last used by
//! some request q; it is cached exactly if C is at least its rank,
//!
//! ```text
//! rank(j) = (blocks whose last request is later than q) - (earlier blocks of this request among them) + j + 1
//! ```
//!
//! with all positions taken at arrival. Along a path the last requests never grow, so the blocks of a request fall
//! into a few segments of equal q, each of which is one range of ranks: the work is a Fenwick-tree query a segment,
//! not a block. Blocks are only touched to remember their last request, which is a `memset` a run.
//!
//! Budget: 1.4 segments a request on Mooncake's conversation trace (24 blocks a request), 1.0 on the kv-cache-tester
//! traces (1,910 blocks a request); with 4 bytes written a block access and about 100 ns a segment that is 2 ms and
//! 60 ms, far below the cost of parsing.
//!
//! Two semantics ([`Semantics`]): a leaf-first LRU tree at block granularity, which cuts a request that is longer
//! than the cache; and vLLM 0.32's block pool. What breaks the stack property and is not modelled here: waiting,
//! preemption and load-dependent routing. Replay answers those, one run a capacity.

mod belady;
mod knees;
mod pass;
mod points;
mod vllm;

pub use belady::belady_hit_blocks;
pub use knees::{Knee, KneeKind, knees};
pub use pass::{Curve, ReuseTime};
pub use points::{Point, Source, TierHit, log_capacities, tier_hits};
pub use vllm::{SerialRun, vllm_serial_run};

use kvwise_core::{Error, Result};

use crate::trace::{BlockPaths, Trace, TraceSize};

/// Whose rules a curve follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semantics {
    /// Every block, the last partial one too, is cacheable; a request longer than the cache keeps its first blocks.
    /// Equals a leaf-first LRU radix tree at block granularity.
    PrefixLru,
    /// vLLM 0.32 (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`): only full blocks are cached, the last token
    /// is always computed, a partial block occupies a pool block while it runs and is reused first; a request
    /// longer than the pool is refused. Capacities count usable blocks, without the null block.
    Vllm,
}

impl Semantics {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixLru => "prefix-lru",
            Self::Vllm => "vllm",
        }
    }
}

/// Computes the curve of `trace` in blocks of `block_tokens` tokens (`None`: the trace's own, 16 for tokens).
///
/// # Errors
/// If the trace has no content or blocks of another size.
///
/// # Examples
/// ```
/// use kvwise_sim::curve::{Semantics, curve};
/// use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};
///
/// let mut builder = TraceBuilder::new("two chats taking turns", 16, IdMeaning::Prefix);
/// for ids in [[1, 2], [3, 4], [1, 2], [3, 4]] {
///     builder.push(&NewRequest { prompt: PromptIds::Blocks(&ids), ..NewRequest::default() })?;
/// }
/// let curve = curve(&builder.finish(), None, Semantics::PrefixLru)?;
/// // with room for three blocks only the first block of each chat survives the other one
/// assert_eq!((1..=4).map(|c| curve.hit_blocks(c)).collect::<Vec<_>>(), [0, 0, 2, 4]);
/// # Ok::<(), kvwise_core::Error>(())
/// ```
pub fn curve(trace: &Trace, block_tokens: Option<u32>, semantics: Semantics) -> Result<Curve> {
    let paths = trace.to_blocks(block_tokens)?;
    Ok(Curve::of_paths(
        &paths,
        trace.input_lens(),
        |i| trace.arrival(i),
        semantics,
    ))
}

/// Bytes that [`curve`] holds beside the trace, for a trace of `size`.
///
/// The stamp of each distinct block, an entry of the Fenwick tree a request, and for each reuse of earlier blocks (about
/// one a run of a path, [`crate::trace::Run`]) two ends of its range of ranks while the pass runs, half as many again
/// while they are sorted, two corners, what a partial block lacks and a reuse time.
pub fn working_bytes(size: &TraceSize) -> u64 {
    let stamps = 4 * size.distinct_blocks;
    let fenwick = 8 * size.requests;
    size.to_blocks_bytes()
        .saturating_add(stamps + fenwick)
        .saturating_add(size.runs.saturating_mul(pass::REUSE_BYTES))
}

/// Bytes of one run of [`belady_hit_blocks`]: the next use of every block access, and four words a distinct block.
pub fn belady_working_bytes(size: &TraceSize) -> u64 {
    8 * size.block_accesses + (8 + 8 + 16) * size.distinct_blocks
}

/// Bytes of one [`vllm_serial_run`] in a pool that is as large as the trace can fill.
pub fn vllm_serial_working_bytes(size: &TraceSize) -> u64 {
    (4 + 3 * 4) * size.distinct_blocks
}

/// Refuses a capacity of 0 blocks.
///
/// # Errors
/// If `capacity_blocks` is 0.
pub fn check_capacity(capacity_blocks: u64) -> Result<()> {
    if capacity_blocks == 0 {
        return Err(Error::input("a capacity is 0 blocks, expected at least 1"));
    }
    Ok(())
}

/// Blocks a request holds while it runs: `ceil(input_len / block_tokens)`, and how many of them are full.
pub(crate) fn pool_blocks(input_len: u32, block_tokens: u32) -> (u32, u32) {
    (input_len.div_ceil(block_tokens), input_len / block_tokens)
}

/// The most pool blocks that one request needs.
pub(crate) fn longest_request(paths: &BlockPaths, input_lens: &[u32], semantics: Semantics) -> u64 {
    match semantics {
        Semantics::PrefixLru => (0..paths.len())
            .map(|i| paths.get(i).len() as u64)
            .max()
            .unwrap_or(0),
        Semantics::Vllm => input_lens
            .iter()
            .map(|&len| u64::from(pool_blocks(len, paths.block_tokens()).0))
            .max()
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
