//! Where the pool finds a cached block by the identity of its content.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};

use rustc_hash::FxBuildHasher;

/// An entry of a [`PrefixIndex`]: a block's own number, or above that a second name of some block.
///
/// 0 means "no entry", since block 0 is the null block and never cached.
pub type EntryId = u32;

/// Maps (group, key) to the oldest entry that holds this content.
///
/// The pool keeps younger entries of the same key in a ring of its own, so an index stores one head a key. Keys
/// identify a block's tokens *and its whole prefix*; two keys are equal if and only if the contents are.
pub trait PrefixIndex {
    /// Identity of a block's content with its prefix.
    type Key: Copy + Eq + Debug;

    /// Makes room for entries `0..entries`.
    fn reserve_entries(&mut self, entries: usize);
    /// The head entry of `key` in `group`, 0 if none.
    fn get(&self, group: u32, key: Self::Key) -> EntryId;
    /// Gives `entry` the name `key`; it becomes the head only with [`PrefixIndex::set_head`].
    fn name(&mut self, entry: EntryId, group: u32, key: Self::Key);
    /// Makes the named `entry` the first head of its key; there was none.
    fn set_head(&mut self, entry: EntryId);
    /// Replaces the head `old` by `new`, an entry named by the same key.
    fn replace_head(&mut self, old: EntryId, new: EntryId);
    /// Removes the head `entry`: its key is not cached any more.
    fn remove_head(&mut self, entry: EntryId);
    /// Whether the named `entry` is the head of its key.
    fn is_head(&self, entry: EntryId) -> bool;
    /// The group and key of a named entry.
    fn key_of(&self, entry: EntryId) -> (u32, Self::Key);
    /// Forgets all heads.
    fn clear(&mut self);
}

/// For simulation: keys are small consecutive numbers, heads live in one flat array.
///
/// A lookup is one array read (1-4 ns). Heads of all groups of one key lie side by side, since hybrid models ask for
/// them together. Memory is 4 bytes a (key, group), and only touched pages are resident.
#[derive(Debug, Clone)]
pub struct DenseIndex {
    heads: Vec<u32>,
    slot_of: Vec<u32>,
    groups: u32,
}

impl DenseIndex {
    /// An index for keys `0..num_keys` in `groups` groups; larger keys may follow and make it grow.
    pub fn new(num_keys: usize, groups: u32) -> Self {
        Self {
            heads: vec![0; num_keys * groups as usize],
            slot_of: Vec::new(),
            groups,
        }
    }

    #[inline]
    fn slot(&self, group: u32, key: u32) -> usize {
        key as usize * self.groups as usize + group as usize
    }
}

impl PrefixIndex for DenseIndex {
    type Key = u32;

    fn reserve_entries(&mut self, entries: usize) {
        self.slot_of.resize(entries, 0);
    }

    #[inline]
    fn get(&self, group: u32, key: u32) -> EntryId {
        self.heads.get(self.slot(group, key)).copied().unwrap_or(0)
    }

    #[inline]
    fn name(&mut self, entry: EntryId, group: u32, key: u32) {
        let slot = self.slot(group, key);
        if slot >= self.heads.len() {
            assert!(u32::try_from(slot).is_ok(), "more than 2^32 (key, group) pairs");
            self.heads.resize((slot + 1).next_power_of_two(), 0);
        }
        self.slot_of[entry as usize] = slot as u32;
    }

    #[inline]
    fn set_head(&mut self, entry: EntryId) {
        self.heads[self.slot_of[entry as usize] as usize] = entry;
    }

    #[inline]
    fn replace_head(&mut self, _old: EntryId, new: EntryId) {
        self.set_head(new);
    }

    #[inline]
    fn remove_head(&mut self, entry: EntryId) {
        self.heads[self.slot_of[entry as usize] as usize] = 0;
    }

    #[inline]
    fn is_head(&self, entry: EntryId) -> bool {
        self.heads[self.slot_of[entry as usize] as usize] == entry
    }

    fn key_of(&self, entry: EntryId) -> (u32, u32) {
        let slot = self.slot_of[entry as usize];
        (slot % self.groups, slot / self.groups)
    }

    fn clear(&mut self) {
        self.heads.fill(0);
    }
}

/// For engines: keys are digests, found through an intrusive hash table.
///
/// The nodes of the table are the blocks themselves (one link each), so inserting and evicting never allocate and
/// leave no tombstones. A lookup is one bucket read plus, on average, less than one chain step: 16-29 ns once the
/// table leaves the caches.
#[derive(Debug, Clone)]
pub struct HashIndex<K> {
    buckets: Vec<u32>,
    entries: Vec<Entry<K>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    key: Option<K>,
    group: u32,
    next: u32,
}

impl<K: Copy + Eq + Hash + Debug> HashIndex<K> {
    /// An index for `num_blocks` blocks.
    pub fn new(num_blocks: usize) -> Self {
        let mut index = Self {
            buckets: Vec::new(),
            entries: Vec::new(),
        };
        index.reserve_entries(num_blocks);
        index
    }

    #[inline]
    fn bucket(&self, group: u32, key: &K) -> usize {
        // The multiplication spreads digests whose low bits are poor; the table size is a power of two.
        let hash = FxBuildHasher.hash_one((key, group));
        (hash >> 20) as usize & (self.buckets.len() - 1)
    }

    fn bucket_of(&self, entry: EntryId) -> usize {
        let e = &self.entries[entry as usize];
        match &e.key {
            Some(key) => self.bucket(e.group, key),
            None => unreachable!("entry {entry} has no key"),
        }
    }

    fn link(&mut self, entry: EntryId) {
        let bucket = self.bucket_of(entry);
        self.entries[entry as usize].next = self.buckets[bucket];
        self.buckets[bucket] = entry;
    }

    fn unlink(&mut self, entry: EntryId) {
        let bucket = self.bucket_of(entry);
        let next = self.entries[entry as usize].next;
        let mut at = self.buckets[bucket];
        if at == entry {
            self.buckets[bucket] = next;
            return;
        }
        while at != 0 {
            let after = self.entries[at as usize].next;
            if after == entry {
                self.entries[at as usize].next = next;
                return;
            }
            at = after;
        }
        unreachable!("entry {entry} is not in its bucket");
    }
}

impl<K: Copy + Eq + Hash + Debug> PrefixIndex for HashIndex<K> {
    type Key = K;

    fn reserve_entries(&mut self, entries: usize) {
        if entries <= self.entries.len() {
            return;
        }
        let linked: Vec<u32> = (1..self.entries.len() as u32)
            .filter(|&e| self.entries[e as usize].key.is_some() && self.is_head(e))
            .collect();
        let empty = Entry {
            key: None,
            group: 0,
            next: 0,
        };
        self.entries.resize(entries, empty);
        self.buckets.clear();
        self.buckets.resize(entries.next_power_of_two().max(4), 0);
        for e in linked {
            self.link(e);
        }
    }

    #[inline]
    fn get(&self, group: u32, key: K) -> EntryId {
        let mut at = self.buckets[self.bucket(group, &key)];
        while at != 0 {
            let e = &self.entries[at as usize];
            if e.group == group && e.key == Some(key) {
                return at;
            }
            at = e.next;
        }
        0
    }

    fn name(&mut self, entry: EntryId, group: u32, key: K) {
        let e = &mut self.entries[entry as usize];
        e.key = Some(key);
        e.group = group;
    }

    fn set_head(&mut self, entry: EntryId) {
        self.link(entry);
    }

    fn replace_head(&mut self, old: EntryId, new: EntryId) {
        self.unlink(old);
        self.link(new);
    }

    fn remove_head(&mut self, entry: EntryId) {
        self.unlink(entry);
        self.entries[entry as usize].key = None;
    }

    fn is_head(&self, entry: EntryId) -> bool {
        let (group, key) = self.key_of(entry);
        self.get(group, key) == entry
    }

    fn key_of(&self, entry: EntryId) -> (u32, K) {
        let e = &self.entries[entry as usize];
        match e.key {
            Some(key) => (e.group, key),
            None => unreachable!("entry {entry} has no key"),
        }
    }

    fn clear(&mut self) {
        self.buckets.fill(0);
        for e in &mut self.entries {
            e.key = None;
        }
    }
}
