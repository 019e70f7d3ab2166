//! Bounded lists of keys that were evicted lately.

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

use super::list::{Links, List};

/// Keys in order of eviction, with a table to find them; holds at most its capacity, drops the oldest.
#[derive(Debug, Clone)]
pub(super) struct GhostList {
    links: Links,
    order: List,
    keys: Vec<u64>,
    vacant: Vec<u32>,
    table: HashTable<u32>,
}

fn hash(key: u64) -> u64 {
    FxBuildHasher.hash_one(key)
}

impl GhostList {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            links: Links::new(capacity),
            order: List::EMPTY,
            keys: vec![0; capacity],
            vacant: (0..capacity as u32).rev().collect(),
            table: HashTable::with_capacity(capacity),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn contains(&self, key: u64) -> bool {
        self.table
            .find(hash(key), |&at| self.keys[at as usize] == key)
            .is_some()
    }

    /// Remembers a key as the youngest; one that is there already keeps its place.
    pub(super) fn push(&mut self, key: u64) {
        if self.keys.is_empty() || self.contains(key) {
            return;
        }
        if self.vacant.is_empty() {
            self.pop_oldest();
        }
        if let Some(at) = self.vacant.pop() {
            self.keys[at as usize] = key;
            self.order.push_back(&mut self.links, at);
            let keys = &self.keys;
            self.table
                .insert_unique(hash(key), at, |&other| hash(keys[other as usize]));
        }
    }

    /// Forgets a key; says whether it was there.
    pub(super) fn remove(&mut self, key: u64) -> bool {
        let keys = &self.keys;
        let Ok(found) = self.table.find_entry(hash(key), |&at| keys[at as usize] == key) else {
            return false;
        };
        let (at, _) = found.remove();
        self.order.remove(&mut self.links, at);
        self.vacant.push(at);
        true
    }

    pub(super) fn pop_oldest(&mut self) {
        if let Some(at) = self.order.front() {
            self.remove(self.keys[at as usize]);
        }
    }
}
