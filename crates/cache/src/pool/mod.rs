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
mod observer;

use crate::error::{Error, Result};

use free_list::FreeList;
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
    /// the head. vLLM pull request 42656 as corrected by 51482; the rule of vLLM 0.32.0.
    #[default]
    UnnamedFirst,
    /// As [`ReleaseOrder::UnnamedFirst`], but without prefix caching all go to the tail: builds of summer 2026 between
    /// vLLM pull requests 48017 and 51482.
    UnnamedFirstCachingOnly,
    /// All blocks go to the tail: vLLM before pull request 42656 (May 2026). Partial blocks then push out cached ones.
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ring {
    prev: EntryId,
    next: EntryId,
}

/// Second and further names of blocks (prefix boundaries inside a block).
#[derive(Debug, Clone, Default)]
struct Aliases {
    /// First alias of each block, empty as long as no block ever had one.
    head: Vec<EntryId>,
    /// Block and next alias, by `entry - num_blocks`.
    nodes: Vec<(BlockId, EntryId)>,
    unused: Vec<EntryId>,
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
        self.free.node(block).hash_tokens
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
        (self.free.node(block).hash_tokens != 0).then(|| self.index.key_of(block))
    }

    /// Whether `key` leads to `block` itself, not only to a duplicate.
    pub fn is_named(&self, block: BlockId, group: u32, key: I::Key) -> bool {
        let head = self.index.get(group, key);
        if head == 0 {
            return false;
        }
        let mut at = head;
        loop {
            if self.block_of(at) == block {
                return true;
            }
            at = self.ring[at as usize].next;
            if at == 0 || at == head {
                return false;
            }
        }
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
                if std::mem::take(&mut node.hash_tokens) != 0 {
                    self.drop_names(block, num_blocks);
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
        self.version += 1;
        let mut last_at_head = None;
        for block in blocks {
            if block == NULL_BLOCK {
                continue;
            }
            let node = self.free.node_mut(block);
            debug_assert!(node.refs > 0, "block {block} was released without an owner");
            node.refs -= 1;
            if node.refs != 0 {
                continue;
            }
            let named = node.hash_tokens != 0;
            let at_head = match self.order {
                ReleaseOrder::UnnamedFirst => !named || !self.caching,
                ReleaseOrder::UnnamedFirstCachingOnly => !named && self.caching,
                ReleaseOrder::AllLast => false,
            };
            if at_head {
                self.free.insert_after(block, last_at_head);
                last_at_head = Some(block);
            } else {
                self.free.push_back(block);
            }
        }
    }

    /// Adds an owner to an owned block (copy-on-write keeps both ends of a copy).
    pub fn retain(&mut self, block: BlockId) {
        debug_assert!(
            self.free.node(block).refs > 0,
            "block {block} has no owner to join"
        );
        self.free.node_mut(block).refs += 1;
    }

    /// Names the content of `block`: its first `num_tokens` prefix tokens are `key`.
    ///
    /// A block that has a name already gets a second one. Naming it again by a name it has changes nothing.
    #[inline]
    pub fn register(&mut self, block: BlockId, group: u32, key: I::Key, num_tokens: u32) {
        debug_assert!(block != NULL_BLOCK, "the null block cannot be cached");
        debug_assert!(num_tokens > 0, "a name covers at least one token");
        self.version += 1;
        self.num_gained += 1;
        let entry = if self.free.node(block).hash_tokens == 0 {
            self.free.node_mut(block).hash_tokens = num_tokens;
            block
        } else if self.is_named(block, group, key) {
            return;
        } else {
            self.new_alias(block)
        };
        self.insert(entry, group, key);
    }

    /// Takes all names off `block`, calling the observer's `removed`; returns whether it had any.
    pub fn unregister(&mut self, block: BlockId) -> bool {
        if self.free.node(block).hash_tokens == 0 {
            return false;
        }
        self.version += 1;
        self.forget_names(block);
        true
    }

    /// Makes `block`'s content unreachable without freeing it; returns whether it was cached.
    pub fn evict(&mut self, block: BlockId) -> bool {
        self.observer.recycled(block);
        let was_cached = self.unregister(block);
        if was_cached {
            self.num_evicted += 1;
            self.observer.evicted(block);
        }
        was_cached
    }

    /// Moves all names of `from` to the nameless block `to`; no events.
    pub fn move_names(&mut self, from: BlockId, to: BlockId) {
        debug_assert_eq!(
            self.free.node(to).hash_tokens,
            0,
            "block {to} has names of its own"
        );
        if self.free.node(from).hash_tokens == 0 {
            return;
        }
        self.version += 1;
        let tokens = self.free.node(from).hash_tokens;
        let (group, key) = self.index.key_of(from);
        let mut moved = Vec::new();
        let mut alias = self.first_alias(from);
        while alias != 0 {
            moved.push(self.index.key_of(alias));
            alias = self.next_alias(alias);
        }
        self.remove_all_entries(from, |_, _| {});
        self.register(to, group, key, tokens);
        for (group, key) in moved {
            self.register(to, group, key, tokens);
        }
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

    #[inline]
    fn block_of(&self, entry: EntryId) -> BlockId {
        match entry.checked_sub(self.num_blocks()) {
            None => entry,
            Some(alias) => self.aliases.nodes[alias as usize].0,
        }
    }

    #[inline]
    fn insert(&mut self, entry: EntryId, group: u32, key: I::Key) {
        let head = self.index.get(group, key);
        self.index.name(entry, group, key);
        if head == 0 {
            self.index.set_head(entry);
        } else {
            let last = match self.ring[head as usize].prev {
                0 => head,
                last => last,
            };
            self.ring[entry as usize] = Ring {
                prev: last,
                next: head,
            };
            self.ring[last as usize].next = entry;
            self.ring[head as usize].prev = entry;
        }
        self.observer.registered(self.block_of(entry), group, key);
    }

    #[inline]
    fn remove(&mut self, entry: EntryId) {
        let Ring { prev, next } = self.ring[entry as usize];
        if next == 0 {
            self.index.remove_head(entry);
            return;
        }
        if self.index.is_head(entry) {
            self.index.replace_head(entry, next);
        }
        self.ring[entry as usize] = Ring::default();
        if prev == next {
            self.ring[next as usize] = Ring::default();
        } else {
            self.ring[prev as usize].next = next;
            self.ring[next as usize].prev = prev;
        }
    }

    #[inline]
    fn forget_names(&mut self, block: BlockId) {
        self.free.node_mut(block).hash_tokens = 0;
        self.drop_names(block, self.free.num_blocks());
    }

    /// Removes all names of a block, whose state says already that it has none. `num_blocks` is given because the free
    /// queue may be taken apart meanwhile.
    #[inline]
    fn drop_names(&mut self, block: BlockId, num_blocks: u32) {
        let (group, key) = self.index.key_of(block);
        self.remove(block);
        self.observer.removed(group, key);
        if !self.aliases.head.is_empty() {
            self.forget_aliases(block, num_blocks);
        }
    }

    fn forget_aliases(&mut self, block: BlockId, num_blocks: u32) {
        let mut alias = self.first_alias(block);
        while alias != 0 {
            let next = self.aliases.nodes[(alias - num_blocks) as usize].1;
            let (group, key) = self.index.key_of(alias);
            self.remove(alias);
            self.observer.removed(group, key);
            self.aliases.unused.push(alias);
            alias = next;
        }
        self.aliases.head[block as usize] = 0;
    }

    fn remove_all_entries(&mut self, block: BlockId, mut each: impl FnMut(u32, I::Key)) {
        let (group, key) = self.index.key_of(block);
        self.remove(block);
        self.free.node_mut(block).hash_tokens = 0;
        each(group, key);
        let mut alias = self.first_alias(block);
        while alias != 0 {
            let next = self.next_alias(alias);
            self.remove(alias);
            self.aliases.unused.push(alias);
            alias = next;
        }
        if let Some(head) = self.aliases.head.get_mut(block as usize) {
            *head = 0;
        }
    }

    fn first_alias(&self, block: BlockId) -> EntryId {
        self.aliases.head.get(block as usize).copied().unwrap_or(0)
    }

    fn next_alias(&self, alias: EntryId) -> EntryId {
        self.aliases.nodes[(alias - self.num_blocks()) as usize].1
    }

    fn new_alias(&mut self, block: BlockId) -> EntryId {
        let n = self.num_blocks();
        if self.aliases.head.is_empty() {
            self.aliases.head = vec![0; n as usize];
        }
        let next = self.aliases.head[block as usize];
        let alias = if let Some(alias) = self.aliases.unused.pop() {
            self.aliases.nodes[(alias - n) as usize] = (block, next);
            alias
        } else {
            let alias = n + self.aliases.nodes.len() as u32;
            self.aliases.nodes.push((block, next));
            let entries = alias as usize + 1;
            if entries > self.ring.len() {
                let room = entries.next_power_of_two().max(n as usize + 64);
                self.ring.resize(room, Ring::default());
                self.index.reserve_entries(room);
            }
            alias
        };
        self.aliases.head[block as usize] = alias;
        alias
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
