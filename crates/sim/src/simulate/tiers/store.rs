//! What one tier holds, and what it gives up.

use kvwise_cache::policy::{Access, Arc, Capacity, EvictionPolicy, Lru};
use kvwise_core::{Error, Result};
use rustc_hash::FxHashMap;

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

#[derive(Debug)]
enum Order {
    Lru(Lru),
    Arc(Box<Arc>),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    block: u64,
    ready: bool,
    /// Reads under way; the order knows only entries that are ready and that nobody reads.
    pins: u32,
    loading: bool,
}

/// The blocks of one tier.
#[derive(Debug)]
pub(super) struct Store {
    capacity: u32,
    order: Order,
    entries: Vec<Entry>,
    free: Vec<u32>,
    places: FxHashMap<u64, u32>,
    clock: u64,
    evicted: u64,
}

impl Store {
    pub(super) fn new(capacity_blocks: u32, policy: TierPolicy) -> Result<Self> {
        let capacity = Capacity::new(capacity_blocks as usize).map_err(|_| {
            Error::input(format!(
                "a tier has room for {capacity_blocks} blocks, expected 1 to 2^31 - 1"
            ))
        })?;
        Ok(Self {
            capacity: capacity_blocks,
            order: match policy {
                TierPolicy::Lru => Order::Lru(Lru::new(capacity, ())),
                TierPolicy::Arc => Order::Arc(Box::new(Arc::new(capacity, ()))),
            },
            entries: Vec::new(),
            free: Vec::new(),
            places: FxHashMap::default(),
            clock: 0,
            evicted: 0,
        })
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn find(&self, block: u64) -> Found {
        match self.places.get(&block) {
            None => Found::Missing,
            Some(&e) if self.entries[e as usize].ready => Found::Ready,
            Some(_) => Found::OnItsWay,
        }
    }

    fn access(&mut self, block: u64) -> Access {
        self.clock += 1;
        Access::new(block, self.clock)
    }

    /// Makes room for a block that will be written: `Some(true)` if it was not there, `Some(false)` if it is there or
    /// on its way, `None` if everything else is in use.
    pub(super) fn reserve(&mut self, block: u64) -> Option<bool> {
        if self.places.contains_key(&block) {
            return Some(false);
        }
        let place = if let Some(place) = self.free.pop() {
            place
        } else if self.entries.len() < self.capacity as usize {
            self.entries.push(Entry {
                block,
                ready: false,
                pins: 0,
                loading: false,
            });
            u32::try_from(self.entries.len() - 1).ok()?
        } else {
            let access = self.access(block);
            let victim = match &mut self.order {
                Order::Lru(order) => order.pop_victim(&access),
                Order::Arc(order) => order.pop_victim(&access),
            }?;
            self.places.remove(&self.entries[victim as usize].block);
            self.evicted += 1;
            victim
        };
        self.entries[place as usize] = Entry {
            block,
            ready: false,
            pins: 0,
            loading: false,
        };
        self.places.insert(block, place);
        Some(true)
    }

    /// Blocks that were reserved are there.
    pub(super) fn written(&mut self, blocks: &[u64]) {
        // The last block of a prefix is worth least without those before it.
        for &block in blocks.iter().rev() {
            if let Some(&place) = self.places.get(&block) {
                let entry = &mut self.entries[place as usize];
                if !entry.ready {
                    entry.ready = true;
                    if entry.pins == 0 {
                        self.put(place, block);
                    }
                }
            }
        }
    }

    fn put(&mut self, place: u32, block: u64) {
        let access = self.access(block);
        match &mut self.order {
            Order::Lru(order) => order.on_insert(place, &access),
            Order::Arc(order) => order.on_insert(place, &access),
        }
    }

    /// Somebody reads the block: it cannot be evicted.
    pub(super) fn pin(&mut self, block: u64) {
        let Some(&place) = self.places.get(&block) else {
            return;
        };
        let entry = &mut self.entries[place as usize];
        entry.pins += 1;
        if entry.pins == 1 && entry.ready {
            match &mut self.order {
                Order::Lru(order) => order.on_remove(place),
                Order::Arc(order) => order.on_remove(place),
            }
        }
    }

    /// A reader is done.
    pub(super) fn unpin(&mut self, block: u64) {
        let Some(&place) = self.places.get(&block) else {
            return;
        };
        let entry = &mut self.entries[place as usize];
        entry.pins = entry.pins.saturating_sub(1);
        if entry.pins == 0 && entry.ready {
            self.put(place, block);
        }
    }

    /// The block was used.
    pub(super) fn touch(&mut self, block: u64) {
        let Some(&place) = self.places.get(&block) else {
            return;
        };
        let entry = self.entries[place as usize];
        if entry.ready && entry.pins == 0 {
            let access = self.access(block);
            match &mut self.order {
                Order::Lru(order) => order.on_hit(place, &access),
                Order::Arc(order) => order.on_hit(place, &access),
            }
        }
    }

    /// Marks the block as on its way to the pool, or not any more.
    pub(super) fn loading(&mut self, block: u64, loading: bool) {
        if let Some(&place) = self.places.get(&block) {
            self.entries[place as usize].loading = loading;
        }
    }

    pub(super) fn is_loading(&self, block: u64) -> bool {
        self.places
            .get(&block)
            .is_some_and(|&place| self.entries[place as usize].loading)
    }
}
