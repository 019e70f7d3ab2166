//! Policies that are an order: the entry with the smallest rank goes first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Access, Capacity, EvictionPolicy};

/// (what the policy orders by, time of last use).
type Rank = (u64, u64);

/// A heap of entries whose ranks change. An entry whose rank grew is corrected when it surfaces; an entry whose
/// rank fell gets a second, valid place, and the outdated one is dropped when it surfaces.
#[derive(Debug, Clone)]
struct RankedEntries {
    heap: BinaryHeap<Reverse<(Rank, u32)>>,
    /// Present rank of each entry; `None` if not held.
    ranks: Vec<Option<Rank>>,
    held: usize,
}

impl RankedEntries {
    fn new(capacity: Capacity) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(2 * capacity.get() + 65),
            ranks: vec![None; capacity.get()],
            held: 0,
        }
    }

    fn set(&mut self, entry: u32, rank: Rank) {
        let old = self.ranks[entry as usize].replace(rank);
        self.held += usize::from(old.is_none());
        if old.is_none_or(|old| rank < old) {
            self.heap.push(Reverse((rank, entry)));
        }
        if self.heap.len() > 2 * self.ranks.len() + 64 {
            self.heap.clear();
            let held = self
                .ranks
                .iter()
                .enumerate()
                .filter_map(|(at, rank)| Some((at, (*rank)?)));
            self.heap
                .extend(held.map(|(at, rank)| Reverse((rank, at as u32))));
        }
    }

    fn remove(&mut self, entry: u32) {
        self.held -= usize::from(self.ranks[entry as usize].take().is_some());
    }

    /// The entry of smallest rank, still held.
    fn first(&mut self) -> Option<(Rank, u32)> {
        while let Some(&Reverse((rank, entry))) = self.heap.peek() {
            match self.ranks[entry as usize] {
                Some(present) if present == rank => return Some((rank, entry)),
                Some(present) if present > rank => {
                    self.heap.pop();
                    self.heap.push(Reverse((present, entry)));
                }
                _ => {
                    self.heap.pop();
                }
            }
        }
        debug_assert_eq!(self.held, 0, "every held entry has a place at or below its rank");
        None
    }

    fn pop(&mut self) -> Option<u32> {
        let (_, entry) = self.first()?;
        self.heap.pop();
        self.remove(entry);
        Some(entry)
    }
}

/// Least frequently used first; uses count while an entry is resident, ties go to the least recently used.
#[derive(Debug, Clone)]
pub struct Lfu(RankedEntries);

impl EvictionPolicy for Lfu {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self(RankedEntries::new(capacity))
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        self.0.set(entry, (1, access.now));
    }

    fn on_hit(&mut self, entry: u32, access: &Access) {
        let uses = self.0.ranks[entry as usize].map_or(0, |rank| rank.0);
        self.0.set(entry, (uses + 1, access.now));
    }

    fn on_remove(&mut self, entry: u32) {
        self.0.remove(entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.0.pop()
    }
}

/// Lowest priority first, then least recently used; a hit can raise an entry's priority, not lower it.
#[derive(Debug, Clone)]
pub struct Priority(RankedEntries);

impl EvictionPolicy for Priority {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self(RankedEntries::new(capacity))
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        // order-preserving: the lowest priority becomes 0
        self.0
            .set(entry, (access.priority.cast_unsigned() ^ 1 << 63, access.now));
    }

    fn on_hit(&mut self, entry: u32, access: &Access) {
        let present = self.0.ranks[entry as usize].map_or(0, |rank| rank.0);
        self.0.set(
            entry,
            (present.max(access.priority.cast_unsigned() ^ 1 << 63), access.now),
        );
    }

    fn on_remove(&mut self, entry: u32) {
        self.0.remove(entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.0.pop()
    }
}

/// Earliest expiry first, then least recently used. Every access says when its entry expires: a fixed time after
/// insertion or after each use, or the lifetime that a class of prompts has.
#[derive(Debug, Clone)]
pub struct Ttl(RankedEntries);

impl Ttl {
    /// Forgets and returns an entry that expired at or before `now`, if there is one.
    pub fn pop_expired(&mut self, now: u64) -> Option<u32> {
        let ((expires, _), _) = self.0.first()?;
        if expires <= now { self.0.pop() } else { None }
    }
}

impl EvictionPolicy for Ttl {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self(RankedEntries::new(capacity))
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        self.0.set(entry, (access.expires, access.now));
    }

    fn on_hit(&mut self, entry: u32, access: &Access) {
        self.0.set(entry, (access.expires, access.now));
    }

    fn on_remove(&mut self, entry: u32) {
        self.0.remove(entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.0.pop()
    }
}

/// Farthest next use first (MIN): the bound that no policy of a demand-filled cache of equal entries can beat. Ties
/// (several entries that are never used again) go to the least recently used.
#[derive(Debug, Clone)]
pub struct Belady(RankedEntries);

impl EvictionPolicy for Belady {
    type Config = ();

    fn new(capacity: Capacity, (): ()) -> Self {
        Self(RankedEntries::new(capacity))
    }

    fn on_insert(&mut self, entry: u32, access: &Access) {
        self.0.set(entry, (u64::MAX - access.next_use, access.now));
    }

    fn on_hit(&mut self, entry: u32, access: &Access) {
        self.on_insert(entry, access);
    }

    fn on_remove(&mut self, entry: u32) {
        self.0.remove(entry);
    }

    fn pop_victim(&mut self, _: &Access) -> Option<u32> {
        self.0.pop()
    }
}
