//! A cache of keys around a policy: what tests, curves and comparisons drive.

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

use super::{Access, Capacity, EvictionPolicy};

/// What one access did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessOutcome {
    /// Whether the key was there.
    pub hit: bool,
    /// The key that had to go for it.
    pub evicted: Option<u64>,
}

/// A set of keys of fixed capacity, filled on demand.
#[derive(Debug, Clone)]
pub struct PolicyCache<P> {
    policy: P,
    /// Key of each entry.
    keys: Vec<u64>,
    /// Entries by key.
    table: HashTable<u32>,
    /// Entries without a key.
    vacant: Vec<u32>,
}

fn hash(key: u64) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl<P: EvictionPolicy> PolicyCache<P> {
    /// An empty cache.
    pub fn new(capacity: Capacity, config: P::Config) -> Self {
        Self {
            policy: P::new(capacity, config),
            keys: vec![0; capacity.get()],
            table: HashTable::with_capacity(capacity.get()),
            vacant: (0..capacity.get() as u32).rev().collect(),
        }
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether a key is held; nothing changes.
    pub fn contains(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// Uses a key, making room for it if it is not there.
    pub fn access(&mut self, access: &Access) -> AccessOutcome {
        if let Some(entry) = self.find(access.key) {
            self.policy.on_hit(entry, access);
            return AccessOutcome {
                hit: true,
                evicted: None,
            };
        }
        let (entry, evicted) = match self.vacant.pop() {
            Some(entry) => (entry, None),
            None => match self.policy.pop_victim(access) {
                Some(entry) => (entry, Some(self.unfile(entry))),
                None => {
                    return AccessOutcome {
                        hit: false,
                        evicted: None,
                    };
                }
            },
        };
        self.keys[entry as usize] = access.key;
        let keys = &self.keys;
        self.table
            .insert_unique(hash(access.key), entry, |&other| hash(keys[other as usize]));
        self.policy.on_insert(entry, access);
        AccessOutcome { hit: false, evicted }
    }

    /// Takes a key out; says whether it was there.
    pub fn remove(&mut self, key: u64) -> bool {
        let Some(entry) = self.find(key) else {
            return false;
        };
        self.unfile(entry);
        self.policy.on_remove(entry);
        self.vacant.push(entry);
        true
    }

    fn find(&self, key: u64) -> Option<u32> {
        self.table
            .find(hash(key), |&entry| self.keys[entry as usize] == key)
            .copied()
    }

    fn unfile(&mut self, entry: u32) -> u64 {
        let key = self.keys[entry as usize];
        if let Ok(found) = self.table.find_entry(hash(key), |&other| other == entry) {
            found.remove();
        }
        key
    }
}
