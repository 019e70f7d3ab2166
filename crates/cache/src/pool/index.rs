//! Where the pool finds a cached block by the identity of its content.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};
use std::num::NonZeroU32;

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
    /// Gives `entry` the name `key`, and makes it the head if there was none; returns the head there was, 0 if none.
    ///
    /// As [`PrefixIndex::get`], [`PrefixIndex::name`] and [`PrefixIndex::set_head`], for indexes that can do it in one search.
    #[inline]
    fn name_as_head(&mut self, entry: EntryId, group: u32, key: Self::Key) -> EntryId {
        let head = self.get(group, key);
        self.name(entry, group, key);
        if head == 0 {
            self.set_head(entry);
        }
        head
    }
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
    /// Not zero by its type, so that a division by it cannot panic and is left out where nobody looks at its result.
    groups: NonZeroU32,
}

impl DenseIndex {
    /// An index for keys `0..num_keys` in `groups` groups; larger keys may follow and make it grow.
    pub fn new(num_keys: usize, groups: u32) -> Self {
        Self {
            heads: vec![0; num_keys * groups as usize],
            slot_of: Vec::new(),
            groups: NonZeroU32::new(groups).unwrap_or(NonZeroU32::MIN),
        }
    }

    #[inline]
    fn slot(&self, group: u32, key: u32) -> usize {
        key as usize * self.groups.get() as usize + group as usize
    }

    /// Makes room for a slot beyond those announced.
    #[cold]
    fn grow(&mut self, slot: usize) {
        assert!(u32::try_from(slot).is_ok(), "more than 2^32 (key, group) pairs");
        self.heads.resize((slot + 1).next_power_of_two(), 0);
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
            self.grow(slot);
        }
        self.slot_of[entry as usize] = slot as u32;
    }

    #[inline]
    fn set_head(&mut self, entry: EntryId) {
        self.heads[self.slot_of[entry as usize] as usize] = entry;
    }

    #[inline]
    fn name_as_head(&mut self, entry: EntryId, group: u32, key: u32) -> EntryId {
        let slot = self.slot(group, key);
        if slot >= self.heads.len() {
            self.grow(slot);
        }
        self.slot_of[entry as usize] = slot as u32;
        let head = &mut self.heads[slot];
        let there = *head;
        if there == 0 {
            *head = entry;
        }
        there
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

/// For engines: keys are digests, found through a hash table of block numbers.
///
/// The table has one word a slot, 32 bits of the key's hash beside the entry, and probes to the right; removing closes
/// the gap again. So it never allocates, leaves no tombstones, and only looks at an entry's key when all 32 bits agree:
/// a hit reads two cache lines that are nobody's neighbours (slot and key), a miss, an insertion and an eviction one
/// beside the block's own. Out of the caches a line costs 16 to 29 ns.
#[derive(Debug, Clone)]
pub struct HashIndex<K> {
    /// Hash in the upper half, entry in the lower, 0 for none; a power of two, at most four fifths full.
    slots: Vec<u64>,
    /// Names of the entries; empty as long as none has one.
    entries: Vec<Entry<K>>,
    num_entries: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    key: K,
    /// [`NO_GROUP`]: the entry has no name, and `key` means nothing.
    group: u32,
    /// The hash of group and key.
    hash: u32,
}

const NO_GROUP: u32 = u32::MAX;

impl<K: Copy + Eq + Hash + Debug> HashIndex<K> {
    /// An index for `num_blocks` blocks.
    pub fn new(num_blocks: usize) -> Self {
        let mut index = Self {
            slots: Vec::new(),
            entries: Vec::new(),
            num_entries: 0,
        };
        index.reserve_entries(num_blocks);
        index
    }

    #[inline]
    fn hash(group: u32, key: &K) -> u32 {
        // the multiplication spreads digests whose bits are poor; its upper half is the best
        let hash: u64 = FxBuildHasher.hash_one((key, group));
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    /// Where entries of this hash belong.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        let bits = self.slots.len().trailing_zeros();
        (u64::from(hash) >> (32 - bits)) as usize
    }

    #[inline]
    fn after(&self, slot: usize) -> usize {
        (slot + 1) & (self.slots.len() - 1)
    }

    #[inline]
    fn write_name(&mut self, entry: EntryId, name: Entry<K>) {
        if self.entries.is_empty() {
            let group = NO_GROUP;
            self.entries.resize(self.num_entries, Entry { group, ..name });
        }
        self.entries[entry as usize] = name;
    }

    fn insert(&mut self, hash: u32, entry: EntryId) {
        let mut at = self.home(hash);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = (u64::from(hash) << 32) | u64::from(entry);
    }

    /// The slot that holds `entry`, which is a head.
    fn slot_of(&self, entry: EntryId) -> usize {
        let hash = self.entries[entry as usize].hash;
        let word = (u64::from(hash) << 32) | u64::from(entry);
        let mut at = self.home(hash);
        while self.slots[at] != word {
            assert!(self.slots[at] != 0, "entry {entry} is in the table");
            at = self.after(at);
        }
        at
    }

    /// Empties a slot, moving what was pushed to the right of it back.
    fn remove(&mut self, slot: usize) {
        let mask = self.slots.len() - 1;
        let (mut gap, mut at) = (slot, self.after(slot));
        while self.slots[at] != 0 {
            let home = self.home((self.slots[at] >> 32) as u32);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
            at = self.after(at);
        }
        self.slots[gap] = 0;
    }
}

impl<K: Copy + Eq + Hash + Debug> PrefixIndex for HashIndex<K> {
    type Key = K;

    fn reserve_entries(&mut self, entries: usize) {
        if entries <= self.num_entries {
            return;
        }
        self.num_entries = entries;
        if let Some(&filler) = self.entries.first() {
            let group = NO_GROUP;
            self.entries.resize(entries, Entry { group, ..filler });
        }
        let slots = (entries + entries / 4).next_power_of_two().max(4);
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for word in old.into_iter().filter(|&word| word != 0) {
            self.insert((word >> 32) as u32, word as u32);
        }
    }

    #[inline]
    fn get(&self, group: u32, key: K) -> EntryId {
        let hash = Self::hash(group, &key);
        let mut at = self.home(hash);
        loop {
            let word = self.slots[at];
            if word == 0 {
                return 0;
            }
            if (word >> 32) as u32 == hash {
                let e = &self.entries[word as u32 as usize];
                if e.group == group && e.key == key {
                    return word as u32;
                }
            }
            at = self.after(at);
        }
    }

    fn name(&mut self, entry: EntryId, group: u32, key: K) {
        let hash = Self::hash(group, &key);
        self.write_name(entry, Entry { key, group, hash });
    }

    fn set_head(&mut self, entry: EntryId) {
        self.insert(self.entries[entry as usize].hash, entry);
    }

    #[inline]
    fn name_as_head(&mut self, entry: EntryId, group: u32, key: K) -> EntryId {
        let hash = Self::hash(group, &key);
        let (mut at, mut there) = (self.home(hash), 0);
        loop {
            let word = self.slots[at];
            if word == 0 {
                self.slots[at] = (u64::from(hash) << 32) | u64::from(entry);
                break;
            }
            if (word >> 32) as u32 == hash {
                let e = &self.entries[word as u32 as usize];
                if e.group == group && e.key == key {
                    there = word as u32;
                    break;
                }
            }
            at = self.after(at);
        }
        self.write_name(entry, Entry { key, group, hash });
        there
    }

    fn replace_head(&mut self, old: EntryId, new: EntryId) {
        let slot = self.slot_of(old);
        self.slots[slot] = (self.slots[slot] >> 32 << 32) | u64::from(new);
    }

    fn remove_head(&mut self, entry: EntryId) {
        self.remove(self.slot_of(entry));
        self.entries[entry as usize].group = NO_GROUP;
    }

    fn is_head(&self, entry: EntryId) -> bool {
        let (group, key) = self.key_of(entry);
        self.get(group, key) == entry
    }

    fn key_of(&self, entry: EntryId) -> (u32, K) {
        let e = &self.entries[entry as usize];
        assert!(e.group != NO_GROUP, "entry {entry} has no name");
        (e.group, e.key)
    }

    fn clear(&mut self) {
        self.slots.fill(0);
        for e in &mut self.entries {
            e.group = NO_GROUP;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::HashMap;

    use super::*;

    proptest! {
        /// Property: whatever is named and forgotten, in a table that is as full as it gets, a key leads to its entry.
        #[test]
        fn a_hash_index_is_a_map(operations in prop::collection::vec((any::<bool>(), 0u32..2, 0u128..40, 1u32..40), 0..400)) {
            let mut index = HashIndex::<u128>::new(8);
            index.reserve_entries(40);
            let mut map: HashMap<(u32, u128), u32> = HashMap::new();
            for (insert, group, key, entry) in operations {
                let taken = map.values().any(|&e| e == entry);
                if insert && !taken && !map.contains_key(&(group, key)) {
                    if entry % 2 == 0 {
                        index.name(entry, group, key);
                        index.set_head(entry);
                    } else {
                        prop_assert_eq!(index.name_as_head(entry, group, key), 0);
                    }
                    map.insert((group, key), entry);
                } else if insert && !taken {
                    let old = map[&(group, key)];
                    prop_assert_eq!(index.name_as_head(entry, group, key), old);
                    index.replace_head(old, entry);
                    map.insert((group, key), entry);
                } else if let Some(entry) = map.remove(&(group, key)) {
                    prop_assert!(index.is_head(entry));
                    index.remove_head(entry);
                }
                for group in 0..2 {
                    for key in 0..40 {
                        prop_assert_eq!(index.get(group, key), map.get(&(group, key)).copied().unwrap_or(0));
                    }
                }
            }
        }
    }

    #[test]
    fn growing_keeps_what_is_named() {
        let mut index = HashIndex::<u64>::new(3);
        for (entry, key) in [(1, 10), (2, 20)] {
            index.name(entry, 0, key);
            index.set_head(entry);
        }
        index.reserve_entries(100);
        index.name(90, 0, 30);
        index.set_head(90);
        assert_eq!([10, 20, 30, 40].map(|key| index.get(0, key)), [1, 2, 90, 0]);
    }
}
