//! What one tier holds, and what it gives up.
//!
//! vLLM 0.32.0, `vllm/v1/kv_offload/cpu/manager.py` and `policies/{lru,arc}.py`, call for call: a store takes all the blocks of
//! an offer that it lacks, or none; a block's age is decided when it is first stored and when a request that used it ends
//! (its first blocks are the youngest then), never by transfers; what is on its way cannot be evicted, nor what the offer
//! under way names. Held to vLLM's manager by `store_tests.rs`.

use std::collections::{BTreeMap, BTreeSet};

use kvwise_core::{Error, Result};
use rustc_hash::{FxHashMap, FxHashSet};

/// What a tier evicts (the two of vLLM 0.32.0, `vllm/v1/kv_offload/cpu/policies/`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierPolicy {
    /// Least recently used.
    #[default]
    Lru,
    /// Adaptive replacement.
    Arc,
}

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Ready,
    OnItsWay,
    Missing,
}

/// A block as a request uses it: its name, its group of layers and the tokens up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Used {
    pub(super) block: u64,
    pub(super) group: u32,
    pub(super) end_token: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Transfers that read it; `None` while it is written.
    readers: Option<u32>,
    /// Where it stands in its order.
    rank: u64,
    /// Whether ARC counts it as used more than once.
    frequent: bool,
    loading: bool,
}

/// Blocks in the order of their ranks, found by either.
#[derive(Debug, Default)]
struct Ghosts {
    by_rank: BTreeMap<u64, u64>,
    ranks: FxHashMap<u64, u64>,
}

impl Ghosts {
    fn push(&mut self, block: u64, rank: u64) {
        self.remove(block);
        self.by_rank.insert(rank, block);
        self.ranks.insert(block, rank);
    }

    fn remove(&mut self, block: u64) {
        if let Some(rank) = self.ranks.remove(&block) {
            self.by_rank.remove(&rank);
        }
    }

    fn trim(&mut self, most: usize) {
        while self.by_rank.len() > most
            && let Some((_, block)) = self.by_rank.pop_first()
        {
            self.ranks.remove(&block);
        }
    }

    fn contains(&self, block: u64) -> bool {
        self.ranks.contains_key(&block)
    }

    fn len(&self) -> usize {
        self.by_rank.len()
    }
}

#[derive(Debug)]
enum Order {
    /// Ranks and blocks that can be evicted.
    Lru(BTreeSet<(u64, u64)>),
    Arc(Box<Adaptive>),
}

/// ARC's lists by rank, blocks in use included.
#[derive(Debug, Default)]
struct Adaptive {
    recent: BTreeMap<u64, u64>,
    frequent: BTreeMap<u64, u64>,
    recent_ghosts: Ghosts,
    frequent_ghosts: Ghosts,
    /// Blocks that `recent` should hold.
    target: f64,
}

/// What a request did with the blocks of a tier.
#[derive(Debug, Default)]
struct Uses {
    /// In the order in which they were first seen.
    seen: Vec<Used>,
    known: FxHashSet<u64>,
    inserted: FxHashSet<u64>,
    reused: FxHashSet<u64>,
    missed: FxHashSet<u64>,
}

/// The blocks of one tier.
#[derive(Debug)]
pub(super) struct Store {
    capacity: usize,
    order: Order,
    entries: FxHashMap<u64, Entry>,
    uses: FxHashMap<u32, Uses>,
    next_rank: u64,
    /// Blocks that nothing reads or writes.
    idle: usize,
    evicted: u64,
}

impl Store {
    pub(super) fn new(capacity_blocks: u32, policy: TierPolicy) -> Result<Self> {
        if capacity_blocks == 0 {
            return Err(Error::input(format!(
                "a tier has room for {capacity_blocks} blocks, expected 1 to {}",
                u32::MAX
            )));
        }
        Ok(Self {
            capacity: capacity_blocks as usize,
            order: match policy {
                TierPolicy::Lru => Order::Lru(BTreeSet::new()),
                TierPolicy::Arc => Order::Arc(Box::default()),
            },
            entries: FxHashMap::default(),
            uses: FxHashMap::default(),
            next_rank: 0,
            idle: 0,
            evicted: 0,
        })
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn find(&self, block: u64) -> Found {
        match self.entries.get(&block) {
            None => Found::Missing,
            Some(entry) if entry.readers.is_some() => Found::Ready,
            Some(_) => Found::OnItsWay,
        }
    }

    /// A request offers blocks: those that are to be written because they were missing, or `None` if there is no room for
    /// all of them. `request` is `None` for copies that no request makes.
    pub(super) fn store(&mut self, request: Option<u32>, offer: &[Used]) -> Option<Vec<u64>> {
        let (mut missing, mut ready) = (Vec::new(), Vec::new());
        for used in offer {
            match self.find(used.block) {
                Found::Missing => missing.push(used.block),
                Found::Ready => ready.push(used.block),
                Found::OnItsWay => {}
            }
        }
        let first_misses: Vec<u64> = match request.map(|tag| self.uses.entry(tag).or_default()) {
            Some(uses) => missing
                .iter()
                .copied()
                .filter(|&b| uses.missed.insert(b))
                .collect(),
            None => missing.clone(),
        };
        if let Order::Arc(arc) = &mut self.order {
            // The last block first, so that the first one adapts last.
            for &block in first_misses.iter().rev() {
                self.next_rank += 1;
                arc.adapt(block, self.next_rank, self.capacity);
            }
        }
        if let Some(tag) = request {
            let recorded: FxHashSet<u64> = missing.iter().chain(&ready).copied().collect();
            let seen = offer.iter().copied().filter(|u| recorded.contains(&u.block));
            self.record(tag, seen, &ready);
        }
        if missing.is_empty() {
            return Some(missing);
        }
        let lacking = (self.entries.len() + missing.len()).saturating_sub(self.capacity);
        if lacking > 0 {
            if lacking > self.idle {
                return None;
            }
            let kept: FxHashSet<u64> = offer.iter().map(|u| u.block).collect();
            let victims = self.victims(lacking, &kept)?;
            self.evict(&victims);
        }
        for &block in &missing {
            self.next_rank += 1;
            let entry = Entry {
                readers: None,
                rank: self.next_rank,
                frequent: false,
                loading: false,
            };
            self.entries.insert(block, entry);
            if let Order::Arc(arc) = &mut self.order {
                arc.recent.insert(entry.rank, block);
                arc.recent_ghosts.remove(block);
                arc.frequent_ghosts.remove(block);
            }
        }
        if let Some(uses) = request.and_then(|tag| self.uses.get_mut(&tag)) {
            uses.inserted.extend(&missing);
        }
        Some(missing)
    }

    /// The blocks to evict, oldest first; `None` if there are not so many.
    fn victims(&self, count: usize, kept: &FxHashSet<u64>) -> Option<Vec<u64>> {
        let free = |block: &u64| {
            !kept.contains(block) && self.entries.get(block).is_some_and(|e| e.readers == Some(0))
        };
        let victims: Vec<u64> = match &self.order {
            Order::Lru(idle) => idle.iter().map(|&(_, b)| b).filter(free).take(count).collect(),
            Order::Arc(arc) => {
                let mut recent = arc.recent.values().copied().filter(free);
                let mut frequent = arc.frequent.values().copied().filter(free);
                let mut left = arc.recent.len();
                let mut victims = Vec::with_capacity(count);
                while victims.len() < count {
                    let mut victim = None;
                    if left as f64 >= arc.target.floor() {
                        victim = recent.next();
                        left -= usize::from(victim.is_some());
                    }
                    if victim.is_none() {
                        victim = frequent.next();
                    }
                    if victim.is_none() {
                        victim = recent.next();
                        left -= usize::from(victim.is_some());
                    }
                    victims.push(victim?);
                }
                victims
            }
        };
        (victims.len() == count).then_some(victims)
    }

    fn evict(&mut self, victims: &[u64]) {
        for &block in victims {
            let Some(entry) = self.entries.remove(&block) else {
                continue;
            };
            self.next_rank += 1;
            match &mut self.order {
                Order::Lru(idle) => {
                    idle.remove(&(entry.rank, block));
                }
                Order::Arc(arc) if entry.frequent => {
                    arc.frequent.remove(&entry.rank);
                    arc.frequent_ghosts.push(block, self.next_rank);
                }
                Order::Arc(arc) => {
                    arc.recent.remove(&entry.rank);
                    arc.recent_ghosts.push(block, self.next_rank);
                }
            }
        }
        if let Order::Arc(arc) = &mut self.order {
            arc.recent_ghosts.trim(self.capacity);
            arc.frequent_ghosts.trim(self.capacity);
        }
        self.idle -= victims.len();
        self.evicted += victims.len() as u64;
    }

    fn record(&mut self, tag: u32, seen: impl Iterator<Item = Used>, reused: &[u64]) {
        let uses = self.uses.entry(tag).or_default();
        for used in seen {
            if uses.known.insert(used.block) {
                uses.seen.push(used);
            }
        }
        // Reading back what the request itself stored is no second use.
        let own = &uses.inserted;
        uses.reused.extend(reused.iter().filter(|b| !own.contains(b)));
    }

    /// Blocks that were stored are there.
    pub(super) fn written(&mut self, blocks: &[u64]) {
        for block in blocks {
            if let Some(entry) = self.entries.get_mut(block)
                && entry.readers.is_none()
            {
                entry.readers = Some(0);
                self.idle += 1;
                if let Order::Lru(idle) = &mut self.order {
                    idle.insert((entry.rank, *block));
                }
            }
        }
    }

    /// A request uses blocks that are there.
    pub(super) fn used(&mut self, tag: u32, blocks: &[Used]) {
        let reused: Vec<u64> = blocks.iter().map(|u| u.block).collect();
        self.record(tag, blocks.iter().copied(), &reused);
    }

    /// Somebody reads the block: it cannot be evicted.
    pub(super) fn pin(&mut self, block: u64) {
        if let Some(entry) = self.entries.get_mut(&block)
            && let Some(readers) = &mut entry.readers
        {
            *readers += 1;
            if *readers == 1 {
                self.idle -= 1;
                if let Order::Lru(idle) = &mut self.order {
                    idle.remove(&(entry.rank, block));
                }
            }
        }
    }

    /// A reader is done.
    pub(super) fn unpin(&mut self, block: u64) {
        if let Some(entry) = self.entries.get_mut(&block)
            && let Some(readers) = &mut entry.readers
            && *readers > 0
        {
            *readers -= 1;
            if *readers == 0 {
                self.idle += 1;
                if let Order::Lru(idle) = &mut self.order {
                    idle.insert((entry.rank, block));
                }
            }
        }
    }

    /// A request ended: what it used is young now, the first blocks most of all.
    pub(super) fn ended(&mut self, tag: u32) {
        let Some(uses) = self.uses.remove(&tag) else {
            return;
        };
        let mut seen = uses.seen;
        seen.sort_by_key(|u| (u.group, u.end_token));
        seen.sort_by_key(|u| u.end_token);
        for used in seen.into_iter().rev() {
            let block = used.block;
            let Some(entry) = self.entries.get_mut(&block) else {
                continue;
            };
            self.next_rank += 1;
            let rank = self.next_rank;
            match &mut self.order {
                Order::Lru(idle) => {
                    if idle.remove(&(entry.rank, block)) {
                        idle.insert((rank, block));
                    }
                    entry.rank = rank;
                }
                Order::Arc(arc) => {
                    let reused = uses.reused.contains(&block);
                    if !reused && !uses.inserted.contains(&block) {
                        continue;
                    }
                    let list = if entry.frequent {
                        &mut arc.frequent
                    } else {
                        &mut arc.recent
                    };
                    list.remove(&entry.rank);
                    entry.rank = rank;
                    entry.frequent |= reused;
                    let list = if entry.frequent {
                        &mut arc.frequent
                    } else {
                        &mut arc.recent
                    };
                    list.insert(rank, block);
                }
            }
        }
    }

    /// Marks the block as on its way to the pool, or not any more.
    pub(super) fn loading(&mut self, block: u64, loading: bool) {
        if let Some(entry) = self.entries.get_mut(&block) {
            entry.loading = loading;
        }
    }

    pub(super) fn is_loading(&self, block: u64) -> bool {
        self.entries.get(&block).is_some_and(|e| e.loading)
    }

    /// All blocks, for tests.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> Vec<u64> {
        let mut blocks: Vec<u64> = self.entries.keys().copied().collect();
        blocks.sort_unstable();
        blocks
    }
}

impl Adaptive {
    /// A block that is missing was evicted a while ago: the list that it was evicted from should be longer.
    fn adapt(&mut self, block: u64, rank: u64, capacity: usize) {
        let (recent, frequent) = (self.recent_ghosts.len() as f64, self.frequent_ghosts.len() as f64);
        if self.recent_ghosts.contains(block) {
            self.target = (self.target + (frequent / recent).max(1.0)).min(capacity as f64);
            self.recent_ghosts.push(block, rank);
        } else if self.frequent_ghosts.contains(block) {
            self.target = (self.target - (recent / frequent).max(1.0)).max(0.0);
            self.frequent_ghosts.push(block, rank);
        }
    }
}
