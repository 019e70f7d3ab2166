//! The block pool: who owns which block, what a block's content is called, and which block goes next.
//!
//! A pool hands out block numbers `1..num_blocks`; block 0 is the *null block*, a placeholder in block tables that is
//! never owned nor cached. A freed block keeps its content and its name in the prefix index until it is handed out
//! again: freeing is not evicting.
//!
//! # Complexity
//! Every operation is O(1) a block; nothing is allocated after construction (with [`DenseIndex`], unless keys exceed
//! the announced number; with partial entries, unless a block collects several names).
//!
//! | operation | work a block |
//! |---|---|
//! | allocate | one list step, one index removal if the block was cached |
//! | touch | one counter, one unlink if the block was free |
//! | release | one counter, one link |
//! | register | one index insertion |
//!
//! # Invariants
//! 1. A block is in the free queue if and only if its reference count is 0 (the null block is in neither state).
//! 2. A block with names (`hash_tokens != 0`) is reachable through the index by each of them, in insertion order
//!    among the blocks of the same name.
//! 3. `num_free` equals the length of the queue.
//!
//! Debug builds check the parts that cost O(1) at each call; [`BlockPool::check`] checks everything.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/block_pool.py`.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of blocks and entries stay below 2^32: the constructors check it"
)]

mod free_list;
mod index;
mod names;
mod observer;

use crate::error::{Error, Result};

use free_list::{FreeList, Place};
use names::{Aliases, Ring};

pub use index::{DenseIndex, EntryId, HashIndex, PrefixIndex};
pub use observer::{EventLog, KvEvent, PoolObserver, ResidencyLog, ResidencySample, StoredRun};

/// Number of a block in the pool.
pub type BlockId = u32;

/// The placeholder in block tables: always 0, never owned, never cached.
pub const NULL_BLOCK: BlockId = 0;

/// Where released blocks go in the free queue: the rule that changed between vLLM releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReleaseOrder {
    /// Blocks without name go to the head (reused first), named ones to the tail; without prefix caching all go to
    /// the head. The rule of vLLM 0.24.0 to 0.26.0 and of 0.32.0 (pull request 42656, without caching as corrected by 51482).
    #[default]
    UnnamedFirst,
    /// As [`ReleaseOrder::UnnamedFirst`], but without prefix caching all go to the tail: builds of summer 2026 between
    /// vLLM pull requests 48017 and 51482.
    UnnamedFirstCachingOnly,
    /// As [`ReleaseOrder::UnnamedFirst`] for sliding windows and for what lies behind a window or a chunk
    /// ([`BlockPool::release_window`]), all others to the tail: vLLM 0.23.
    WindowsUnnamedFirst,
    /// All blocks go to the tail: vLLM before 0.23. Partial blocks then push out cached ones.
    AllLast,
}

/// Reference-counted blocks, their free queue and the names of their contents.
#[derive(Debug, Clone)]
pub struct BlockPool<I: PrefixIndex, O = ()> {
    /// The free queue, and each block's owners and length of name.
    free: FreeList,
    /// Ring of entries with the same name, 0 for a ring of one.
    ring: Vec<Ring>,
    index: I,
    aliases: Aliases,
    caching: bool,
    order: ReleaseOrder,
    num_allocated: u64,
    num_evicted: u64,
    version: u64,
    num_gained: u64,
    observer: O,
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> BlockPool<I, O> {
    /// A pool of `num_blocks` blocks, the null block included.
    ///
    /// # Errors
    /// If `num_blocks` is 0 or leaves 31 bits.
    pub fn new(
        num_blocks: u32,
        caching: bool,
        order: ReleaseOrder,
        mut index: I,
        observer: O,
    ) -> Result<Self> {
        if num_blocks == 0 {
            return Err(Error::invalid(
                "num_blocks is 0, a pool needs at least its null block",
            ));
        }
        if num_blocks > u32::MAX / 2 {
            return Err(Error::overflow(format!(
                "num_blocks is {num_blocks}, a pool holds at most 2^31 - 1 blocks"
            )));
        }
        let n = num_blocks as usize;
        index.reserve_entries(n);
        Ok(Self {
            free: FreeList::new(num_blocks),
            ring: vec![Ring::default(); n],
            index,
            aliases: Aliases::default(),
            caching,
            order,
            num_allocated: 0,
            num_evicted: 0,
            version: 0,
            num_gained: 0,
            observer,
        })
    }

    /// Blocks of the pool, the null block included.
    #[inline]
    pub fn num_blocks(&self) -> u32 {
        self.free.num_blocks()
    }

    /// Blocks in the free queue, cached ones included.
    #[inline]
    pub fn num_free(&self) -> u32 {
        self.free.len()
    }

    /// Share of usable blocks that are owned, 0 to 1; cached but free blocks do not count.
    pub fn usage(&self) -> f64 {
        match self.num_blocks() - 1 {
            0 => 0.0,
            usable => 1.0 - f64::from(self.num_free()) / f64::from(usable),
        }
    }

    /// Whether contents are named and found again.
    pub fn caching(&self) -> bool {
        self.caching
    }

    /// Blocks handed out so far.
    pub fn num_allocated(&self) -> u64 {
        self.num_allocated
    }

    /// Blocks that lost a cached content so far.
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted
    }

    /// Changes at every operation that can change the result of a lookup or of a capacity test.
    ///
    /// A refused allocation needs not be tried again while the version stays the same.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Grows by at least as many as there are blocks that became both named and owned, by a name or by an owner.
    ///
    /// A request that waits may find so many more of its blocks in others' hands than it found before: while that is less
    /// than it lacks, it needs not be looked up again.
    #[inline]
    pub fn num_gained(&self) -> u64 {
        self.num_gained
    }

    /// The observer.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// The observer, to drain it.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    /// How many requests hold `block`.
    #[inline]
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.free.node(block).refs
    }

    /// Prefix tokens covered by the block's name, 0 if it has none.
    #[inline]
    pub fn hash_tokens(&self, block: BlockId) -> u32 {
        self.free.node(block).hash_tokens()
    }

    /// The block that holds the content `key` in `group`; of several, the one cached first.
    #[inline]
    pub fn cached(&self, group: u32, key: I::Key) -> Option<BlockId> {
        match self.index.get(group, key) {
            0 => None,
            entry => Some(self.block_of(entry)),
        }
    }

    /// Group and key of the block's primary name.
    pub fn name_of(&self, block: BlockId) -> Option<(u32, I::Key)> {
        (self.free.node(block).hash_tokens() != 0).then(|| self.index.key_of(block))
    }

    /// Takes `n` blocks off the free queue, evicting what they held, and appends them to `out`.
    ///
    /// # Errors
    /// If fewer than `n` blocks are free; nothing is changed then.
    #[inline]
    pub fn allocate(&mut self, n: u32, out: &mut Vec<BlockId>) -> Result<()> {
        if n > self.free.len() {
            return Err(Error::exhausted(format!(
                "{n} blocks were asked for and {} are free",
                self.free.len()
            )));
        }
        self.version += 1;
        self.num_allocated += u64::from(n);
        out.reserve(n as usize);
        let mut free = std::mem::take(&mut self.free);
        let num_blocks = free.num_blocks();
        free.pop_n(n, |block, node| {
            if self.caching {
                self.observer.recycled(block);
                let (named, shared) = node.take_name();
                if named {
                    if self.aliases.head.is_empty() && !shared {
                        // nearly always: one name, nobody else's
                        let (group, key) = self.index.key_of(block);
                        self.index.remove_head(block);
                        self.observer.removed(group, key);
                    } else {
                        self.drop_names(block, num_blocks);
                    }
                    self.num_evicted += 1;
                    self.observer.evicted(block);
                }
            }
            debug_assert_eq!(node.refs, 0, "block {block} was free and owned");
            node.refs = 1;
            self.observer.allocated(block);
            out.push(block);
        });
        self.free = free;
        Ok(())
    }

    /// Adds an owner to each block of a hit, taking it out of the free queue if it was there. Null blocks are skipped.
    #[inline]
    pub fn touch(&mut self, blocks: &[BlockId]) {
        self.version += 1;
        self.num_gained += blocks.len() as u64;
        for &block in blocks {
            if block == NULL_BLOCK {
                continue;
            }
            let node = self.free.node_mut(block);
            node.refs += 1;
            if node.refs == 1 {
                self.free.remove(block);
            }
            self.observer.touched(block);
        }
    }

    /// Removes an owner from each block; those without owner join the free queue by the [`ReleaseOrder`].
    ///
    /// Callers pass a request's blocks last block first, so that of one request the deepest block is evicted first.
    /// Null blocks are skipped.
    #[inline]
    pub fn release(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        self.release_in(self.order, blocks);
    }

    /// As [`BlockPool::release`], for blocks of sliding windows and such that no later token attends to: some releases
    /// of vLLM order these in a way of their own.
    #[inline]
    pub fn release_window(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        let order = match self.order {
            ReleaseOrder::WindowsUnnamedFirst => ReleaseOrder::UnnamedFirst,
            order => order,
        };
        self.release_in(order, blocks);
    }

    #[inline]
    fn release_in(&mut self, order: ReleaseOrder, blocks: impl IntoIterator<Item = BlockId>) {
        self.version += 1;
        // whether blocks without and with a name go first
        let (unnamed, named) = match order {
            ReleaseOrder::UnnamedFirst => (true, !self.caching),
            ReleaseOrder::UnnamedFirstCachingOnly => (self.caching, false),
            ReleaseOrder::WindowsUnnamedFirst | ReleaseOrder::AllLast => (false, false),
        };
        self.free.put_back(blocks, |block, node| {
            if block == NULL_BLOCK {
                return Place::Nowhere;
            }
            debug_assert!(node.refs > 0, "block {block} was released without an owner");
            node.refs -= 1;
            if node.refs != 0 {
                return Place::Nowhere;
            }
            let first = if node.hash_tokens() == 0 { unnamed } else { named };
            if first { Place::Head } else { Place::Tail }
        });
    }

    /// Adds an owner to an owned block (copy-on-write keeps both ends of a copy).
    pub fn retain(&mut self, block: BlockId) {
        debug_assert!(
            self.free.node(block).refs > 0,
            "block {block} has no owner to join"
        );
        self.free.node_mut(block).refs += 1;
    }

    /// Tells the observer that a run of blocks was registered.
    #[inline]
    pub(crate) fn note_stored(&mut self, run: StoredRun<I::Key>) {
        self.observer.stored(run);
    }

    /// Forgets all contents if no block is owned; otherwise changes nothing and returns `false`.
    pub fn reset(&mut self) -> bool {
        if self.num_free() + 1 != self.num_blocks() {
            return false;
        }
        self.version += 1;
        self.index.clear();
        self.free.forget_names();
        self.ring.fill(Ring::default());
        self.aliases.head.fill(0);
        let n = self.num_blocks();
        self.aliases.unused.clear();
        self.aliases
            .unused
            .extend((0..self.aliases.nodes.len() as u32).map(|i| n + i));
        self.observer.cleared();
        true
    }

    /// The free queue, next block to be handed out first.
    pub fn free_order(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.free.iter()
    }

    /// Checks every invariant of the pool; O(blocks), for tests.
    ///
    /// # Errors
    /// The first broken invariant, as one sentence.
    pub fn check(&self) -> Result<(), String> {
        let n = self.num_blocks();
        let mut queued = 0;
        for block in self.free.iter() {
            queued += 1;
            if queued > n {
                return Err("the free queue has a cycle".to_owned());
            }
            if block == NULL_BLOCK || self.free.node(block).refs != 0 {
                return Err(format!("block {block} is in the free queue and owned"));
            }
        }
        if queued != self.free.len() {
            return Err(format!(
                "the free queue holds {queued} blocks and counts {}",
                self.free.len()
            ));
        }
        for block in 1..n {
            if (self.free.node(block).refs == 0) != self.free.contains(block) {
                return Err(format!(
                    "block {block} has {} owners and the wrong place",
                    self.free.node(block).refs
                ));
            }
            if let Some((group, key)) = self.name_of(block)
                && !self.is_named(block, group, key)
            {
                return Err(format!("block {block} is not reachable by its name {key:?}"));
            }
            let mut alias = self.first_alias(block);
            while alias != 0 {
                let (group, key) = self.index.key_of(alias);
                if !self.is_named(block, group, key) {
                    return Err(format!(
                        "block {block} is not reachable by its second name {key:?}"
                    ));
                }
                alias = self.next_alias(alias);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
