//! What a pool tells the outside: the engine's KV events and block residency.

use super::BlockId;

/// Called by the pool at each change; every method defaults to nothing, and `()` observes nothing at no cost.
///
/// The calls come in the order in which vLLM 0.32.0 queues its KV events (`vllm/v1/core/block_pool.py`).
pub trait PoolObserver<K> {
    /// `block` is about to be handed out again or is evicted on request, whether or not it was cached.
    #[inline]
    fn recycled(&mut self, block: BlockId) {
        let _ = block;
    }
    /// `block` was cached and lost its content's name.
    #[inline]
    fn evicted(&mut self, block: BlockId) {
        let _ = block;
    }
    /// `block` was given to a request as a new block.
    #[inline]
    fn allocated(&mut self, block: BlockId) {
        let _ = block;
    }
    /// `block` was hit by a request.
    #[inline]
    fn touched(&mut self, block: BlockId) {
        let _ = block;
    }
    /// `block` became reachable under `key`.
    #[inline]
    fn registered(&mut self, block: BlockId, group: u32, key: K) {
        let _ = (block, group, key);
    }
    /// A run of a request's blocks was registered; the `registered` calls before it belong to it.
    #[inline]
    fn stored(&mut self, run: StoredRun<K>) {
        let _ = run;
    }
    /// `key` no longer leads to some block (another block may still hold the same content).
    #[inline]
    fn removed(&mut self, group: u32, key: K) {
        let _ = (group, key);
    }
    /// The whole prefix cache was reset.
    #[inline]
    fn cleared(&mut self) {}
}

impl<K> PoolObserver<K> for () {}

/// One `BlockStored` event: consecutive tokens of one request in one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRun<K> {
    /// The group's position in the manager's list.
    pub group: u32,
    /// Key of the block before the run, `None` at the start of the sequence.
    pub parent: Option<K>,
    /// First token covered.
    pub start_token: u32,
    /// One past the last token covered.
    pub end_token: u32,
    /// Tokens a block of this group holds.
    pub block_size: u32,
}

/// A KV event as engines publish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent<K> {
    /// Blocks became reachable.
    BlockStored {
        /// Where they lie in the request.
        run: StoredRun<K>,
        /// Keys of the stored blocks; blocks that retention skipped are missing.
        keys: Vec<K>,
    },
    /// A key stopped leading to a block.
    BlockRemoved {
        /// The group's position in the manager's list.
        group: u32,
        /// The key.
        key: K,
    },
    /// The whole cache was reset.
    AllBlocksCleared,
}

/// Collects KV events in the engine's order; drain it after each step.
#[derive(Debug, Clone)]
pub struct EventLog<K> {
    events: Vec<KvEvent<K>>,
    pending: Vec<K>,
}

impl<K> Default for EventLog<K> {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            pending: Vec::new(),
        }
    }
}

impl<K> EventLog<K> {
    /// The events since the last call.
    pub fn take(&mut self) -> Vec<KvEvent<K>> {
        std::mem::take(&mut self.events)
    }
}

impl<K> PoolObserver<K> for EventLog<K> {
    fn registered(&mut self, _block: BlockId, _group: u32, key: K) {
        self.pending.push(key);
    }

    fn stored(&mut self, run: StoredRun<K>) {
        let keys = std::mem::take(&mut self.pending);
        self.events.push(KvEvent::BlockStored { run, keys });
    }

    fn removed(&mut self, group: u32, key: K) {
        self.events.push(KvEvent::BlockRemoved { group, key });
    }

    fn cleared(&mut self) {
        self.events.push(KvEvent::AllBlocksCleared);
    }
}

/// Lifetime, idle time and reuse gaps of blocks, as vLLM's `--kv-cache-metrics` measures them with every block
/// sampled.
///
/// Time is whatever the caller puts in [`ResidencyLog::now`]: steps, nanoseconds. A block counts as evicted when it
/// is handed out again, cached or not; blocks still resident are never observed. Source: vLLM 0.32.0,
/// `vllm/v1/core/kv_cache_metrics.py`.
#[derive(Debug, Clone, Default)]
pub struct ResidencyLog {
    /// The current time in the caller's unit.
    pub now: u64,
    blocks: Vec<Residency>,
    samples: Vec<ResidencySample>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Residency {
    birth: u64,
    accesses: [u64; 4],
    num_accesses: u32,
    tracked: bool,
}

/// The life of one block between two allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidencySample {
    /// From allocation to eviction.
    pub lifetime: u64,
    /// From the last hit (or the allocation) to eviction.
    pub idle: u64,
    /// Time between consecutive hits, at most the last three gaps.
    pub reuse_gaps: [Option<u64>; 3],
}

impl ResidencyLog {
    /// The samples since the last call.
    pub fn take(&mut self) -> Vec<ResidencySample> {
        std::mem::take(&mut self.samples)
    }

    /// Blocks whose life is being followed.
    pub fn num_tracked(&self) -> usize {
        self.blocks.iter().filter(|b| b.tracked).count()
    }

    fn block(&mut self, block: BlockId) -> &mut Residency {
        let i = block as usize;
        if i >= self.blocks.len() {
            self.blocks.resize(i + 1, Residency::default());
        }
        &mut self.blocks[i]
    }
}

impl<K> PoolObserver<K> for ResidencyLog {
    fn recycled(&mut self, block: BlockId) {
        let now = self.now;
        let b = self.block(block);
        if !b.tracked {
            return;
        }
        b.tracked = false;
        let kept = b.num_accesses.min(4) as usize;
        let mut reuse_gaps = [None; 3];
        for i in 1..kept {
            reuse_gaps[i - 1] = Some(b.accesses[i] - b.accesses[i - 1]);
        }
        let last = if kept == 0 { b.birth } else { b.accesses[kept - 1] };
        let sample = ResidencySample {
            lifetime: now - b.birth,
            idle: now - last,
            reuse_gaps,
        };
        self.samples.push(sample);
    }

    fn allocated(&mut self, block: BlockId) {
        let now = self.now;
        *self.block(block) = Residency {
            birth: now,
            accesses: [0; 4],
            num_accesses: 0,
            tracked: true,
        };
    }

    fn touched(&mut self, block: BlockId) {
        let now = self.now;
        let b = self.block(block);
        if !b.tracked {
            return;
        }
        if b.num_accesses < 4 {
            b.accesses[b.num_accesses as usize] = now;
        } else {
            b.accesses.rotate_left(1);
            b.accesses[3] = now;
        }
        b.num_accesses = b.num_accesses.saturating_add(1);
    }

    fn cleared(&mut self) {
        self.blocks.fill(Residency::default());
        self.samples.clear();
    }
}
