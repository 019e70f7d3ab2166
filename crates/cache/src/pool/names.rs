//! What blocks are called: names given, moved and taken away.
//!
//! The index leads from a name to the oldest block that has it; younger ones with the same content follow in a ring. A block
//! may have several names (prefix boundaries inside of it): the first is its own entry, further ones are aliases behind the
//! entries of all blocks.

use super::free_list::MAX_TOKENS;
use super::{BlockId, BlockPool, EntryId, NULL_BLOCK, PoolObserver, PrefixIndex};

/// Neighbours among the entries of one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ring {
    pub(super) prev: EntryId,
    pub(super) next: EntryId,
}

/// Second and further names of blocks (prefix boundaries inside a block).
#[derive(Debug, Clone, Default)]
pub(super) struct Aliases {
    /// First alias of each block, empty as long as no block ever had one.
    pub(super) head: Vec<EntryId>,
    /// Block and next alias, by `entry - num_blocks`.
    pub(super) nodes: Vec<(BlockId, EntryId)>,
    pub(super) unused: Vec<EntryId>,
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> BlockPool<I, O> {
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

    /// Names the content of `block`: its first `num_tokens` prefix tokens are `key`.
    ///
    /// A block that has a name already gets a second one. Naming it again by a name it has changes nothing.
    #[inline]
    pub fn register(&mut self, block: BlockId, group: u32, key: I::Key, num_tokens: u32) {
        debug_assert!(block != NULL_BLOCK, "the null block cannot be cached");
        debug_assert!(num_tokens > 0, "a name covers at least one token");
        let num_tokens = num_tokens.min(MAX_TOKENS);
        self.version += 1;
        self.num_gained += 1;
        let entry = if self.free.node(block).hash_tokens() == 0 {
            self.free.node_mut(block).set_hash_tokens(num_tokens);
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
        if self.free.node(block).hash_tokens() == 0 {
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
            self.free.node(to).hash_tokens(),
            0,
            "block {to} has names of its own"
        );
        if self.free.node(from).hash_tokens() == 0 {
            return;
        }
        self.version += 1;
        let tokens = self.free.node(from).hash_tokens();
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

    #[inline]
    pub(super) fn block_of(&self, entry: EntryId) -> BlockId {
        match entry.checked_sub(self.num_blocks()) {
            None => entry,
            Some(alias) => self.aliases.nodes[alias as usize].0,
        }
    }

    #[inline]
    fn insert(&mut self, entry: EntryId, group: u32, key: I::Key) {
        let head = self.index.name_as_head(entry, group, key);
        if head != 0 {
            self.join_ring(entry, head);
        }
        self.observer.registered(self.block_of(entry), group, key);
    }

    /// Puts an entry behind all others of the name that `head` has.
    #[cold]
    fn join_ring(&mut self, entry: EntryId, head: EntryId) {
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
        for entry in [entry, head] {
            let block = self.block_of(entry);
            self.free.node_mut(block).set_shared();
        }
    }

    /// Names a run of a request's full blocks: `blocks[i]` holds the `block_size` tokens up to `first_tokens` and `i` blocks
    /// more. Names of boundaries inside a block, given while it was filling, are taken away; null blocks are skipped.
    #[inline]
    pub(crate) fn register_run(
        &mut self,
        blocks: &[BlockId],
        group: u32,
        keys: impl Iterator<Item = I::Key>,
        first_tokens: u32,
        block_size: u32,
    ) {
        self.version += 1;
        self.num_gained += blocks.len() as u64;
        let mut tokens = first_tokens;
        for (&block, key) in blocks.iter().zip(keys) {
            if block != NULL_BLOCK {
                let node = self.free.node_mut(block);
                if node.hash_tokens() == 0 {
                    node.set_hash_tokens(tokens);
                } else {
                    self.forget_names(block);
                    self.free.node_mut(block).set_hash_tokens(tokens);
                }
                let head = self.index.name_as_head(block, group, key);
                if head != 0 {
                    self.join_ring(block, head);
                }
                self.observer.registered(block, group, key);
            }
            tokens = tokens.wrapping_add(block_size);
        }
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
        self.free.node_mut(block).set_hash_tokens(0);
        self.drop_names(block, self.free.num_blocks());
    }

    /// Removes all names of a block, whose state says already that it has none. `num_blocks` is given because the free
    /// queue may be taken apart meanwhile.
    #[inline]
    pub(super) fn drop_names(&mut self, block: BlockId, num_blocks: u32) {
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
        self.free.node_mut(block).set_hash_tokens(0);
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

    pub(super) fn first_alias(&self, block: BlockId) -> EntryId {
        self.aliases.head.get(block as usize).copied().unwrap_or(0)
    }

    pub(super) fn next_alias(&self, alias: EntryId) -> EntryId {
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
}
