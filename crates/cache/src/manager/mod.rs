//! Block tables of requests on one pool: prefix hits, allocation, sliding windows, release.
//!
//! A manager serves models whose layers fall in one or several groups (full attention, sliding window, chunked local,
//! Mamba). It decides nothing about *when* requests run: the caller's scheduler asks [`KvCacheManager::lookup`] how
//! much of a request is cached, and [`KvCacheManager::allocate`] for room; a refusal changes nothing the caller has to
//! undo.
//!
//! The order of all pool operations is that of vLLM 0.32.0 (`vllm/v1/core/kv_cache_manager.py`,
//! `kv_cache_coordinator.py`, `single_type_kv_cache_manager.py`), so that block numbers agree block for block.
//!
//! # An engine's step
//! Block `b` of a table holds the slots `b * block_size ..` of the memory that K and V lie in ([`crate::store`] with pages of
//! one block, whose dummy page 0 is the null block). A running request asks again in each step, with no hit; one that is
//! refused waits or pushes another out, which is closed and later looked up anew: what it had named is mostly still there.
//!
//! ```
//! use kvwise_cache::hash::fast_chain;
//! use kvwise_cache::manager::{Allocation, EngineKvCache, Hit, ManagerConfig};
//! use kvwise_cache::store::{KvDtype, KvLayout, KvStore, KvStoreConfig};
//!
//! let (blocks, block) = (8, 4);
//! let mut cache = EngineKvCache::with_hashes(&ManagerConfig::full_attention(blocks, block))?;
//! let mut bytes = KvStore::new(KvStoreConfig {
//!     layers: 1,
//!     capacity_tokens: ((blocks - 1) * block) as usize,
//!     page_size: block as usize,
//!     heads: 1,
//!     key_dim: 1,
//!     value_dim: 1,
//!     dtype: KvDtype::F32,
//!     layout: KvLayout::Nhd,
//! })?;
//! let mut tokens = vec![1u32, 2, 3, 4, 5, 6];
//! let slot = cache.open();
//! let mut computed = 0;
//! for step in 0..4 {
//!     cache.begin_step();
//!     let known = tokens.len() as u32;
//!     // names of the full blocks, generated tokens included
//!     let mut parent = 0;
//!     let name = |block: &[u32]| { parent = fast_chain(parent, block); parent };
//!     let keys: Vec<u128> = tokens.chunks_exact(block as usize).map(name).collect();
//!     let mut hit = Hit::default();
//!     if step == 0 {
//!         cache.lookup(&keys, known, &mut hit); // once, when the request is admitted
//!     }
//!     let start = computed + hit.num_tokens;
//!     let wanted = Allocation { num_prompt_tokens: 6, ..Allocation::new(&keys, computed, known - start, known) };
//!     assert!(cache.allocate(slot, &wanted, (step == 0).then_some(&hit))); // else wait, or close another request
//!     let table = cache.blocks(slot, 0);
//!     let slots: Vec<u32> = (0..known).map(|i| table[(i / block) as usize] * block + i % block).collect();
//!     for (&slot, &token) in slots.iter().zip(&tokens).skip(start as usize) {
//!         bytes.write(0, &[slot], &[token as f32], &[0.0])?; // here the model computes K and V
//!     }
//!     let mut k = vec![0.0; tokens.len()];
//!     bytes.gather_keys(0, &slots, &mut k)?; // and attends to all of them
//!     assert_eq!(k, tokens.iter().map(|&t| t as f32).collect::<Vec<_>>());
//!     computed = known;
//!     tokens.push(10 + step); // the sampled token
//! }
//! cache.close(slot); // finished; a preempted request is closed too
//! # Ok::<(), kvwise_cache::Error>(())
//! ```
//!
//! # Complexity
//! `lookup` is O(hit blocks) for full attention and O(blocks of the request) for the other kinds; `allocate` is
//! O(blocks it hands out, names or gives back); `release` is O(blocks held).
//!
//! # Modelled and not
//! Modelled: hybrid fixed-point hits, retention intervals and shared-prefix junctions, drafters' dropped blocks,
//! copy-on-write of hits inside a block, watermark, recycling-aware admission caps, room for tokens that a KV connector
//! brings. Not modelled: what connectors do for Mamba states, cross attention, attention sinks' own blocks, R-SWA gap
//! eviction, circular buffers, context parallelism (pass block sizes already multiplied by it).

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tokens and blocks stay below 2^31: the configuration checks it"
)]

mod allocate;
mod config;
mod lookup;
mod mamba;
mod naming;
mod retention;
mod table;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::pool::{BlockId, BlockPool, DenseIndex, HashIndex, PoolObserver, PrefixIndex};

pub use allocate::Allocation;
pub use config::{GroupKind, GroupSpec, ManagerConfig, Retention};
pub use lookup::Hit;
pub use mamba::{is_prefill_checkpoint_valid, prefill_checkpoint_position};

use allocate::Need;
use lookup::{Lookup, MAX_SPEC_GROUPS, SpecGroup};
use table::Table;

/// A request's place in the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Its number; numbers of closed slots are used again, so they stay small.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Block tables of requests in all groups, on one pool.
#[derive(Debug, Clone)]
pub struct KvCacheManager<I: PrefixIndex, O = ()> {
    pool: BlockPool<I, O>,
    groups: Vec<GroupSpec>,
    /// Whether the group drops a drafter's last block.
    eagle: Vec<bool>,
    any_eagle: bool,
    /// Whether Mamba states are kept a unit earlier, for a drafter.
    drop_checkpoint: bool,
    caps: Vec<Option<u32>>,
    lookup: Lookup,
    retention: Retention,
    max_model_len: u32,
    watermark_blocks: u32,
    /// Tables by slot, then group.
    tables: Vec<Table>,
    closed: Vec<u32>,
    num_slots: u32,
    /// States named in this step, which nobody can read before the next.
    named_this_step: Vec<(u32, I::Key)>,
    /// Copies the worker has to make before this step: group, source, destination.
    copies: Vec<(u32, BlockId, BlockId)>,
    no_hit: Hit,
}

/// A manager for engines: content keys are digests.
pub type EngineKvCache<K, O = ()> = KvCacheManager<HashIndex<K>, O>;

/// A manager for simulation: content keys are consecutive numbers.
pub type SimKvCache<O = ()> = KvCacheManager<DenseIndex, O>;

impl<K: Copy + Eq + std::hash::Hash + std::fmt::Debug> EngineKvCache<K> {
    /// A manager whose keys are digests of type `K`.
    ///
    /// # Errors
    /// If the configuration is one that vLLM refuses too; the message names the field.
    pub fn with_hashes(config: &ManagerConfig) -> Result<Self> {
        Self::new(config, HashIndex::new(config.num_blocks as usize), ())
    }
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> KvCacheManager<I, O> {
    /// A manager with all blocks free.
    ///
    /// # Errors
    /// If the configuration is one that vLLM refuses too; the message names the field.
    pub fn new(config: &ManagerConfig, index: I, observer: O) -> Result<Self> {
        let sizes = config.resolve()?;
        let flagged: Vec<bool> = config.groups.iter().map(|g| g.eagle).collect();
        let any_flag = flagged.contains(&true);
        // If drafting is on and no group is flagged, every group drops its last block.
        let eagle: Vec<bool> = flagged
            .iter()
            .map(|&f| f || (config.use_eagle && !any_flag))
            .collect();
        let spec_groups = SpecGroup::of(&config.groups, &eagle);
        if spec_groups.len() > MAX_SPEC_GROUPS {
            return Err(Error::invalid(format!(
                "groups has {} different specifications, at most {MAX_SPEC_GROUPS} are supported",
                spec_groups.len()
            )));
        }
        // Groups looked up together drop together.
        let mut joint = eagle.clone();
        for group in &spec_groups {
            for &g in &group.group_ids {
                joint[g as usize] = group.eagle;
            }
        }
        let pool = BlockPool::new(
            config.num_blocks,
            config.caching,
            config.release_order,
            index,
            observer,
        )?;
        Ok(Self {
            pool,
            caps: config
                .groups
                .iter()
                .map(|g| g.admission_cap(config.max_in_flight_tokens, config.max_model_len))
                .collect(),
            any_eagle: eagle.contains(&true),
            eagle: joint,
            drop_checkpoint: config.use_eagle,
            lookup: Lookup {
                spec_groups,
                sizes,
                num_groups: config.groups.len(),
            },
            groups: config.groups.clone(),
            retention: config.retention,
            max_model_len: config.max_model_len,
            watermark_blocks: (config.watermark * f64::from(config.num_blocks)) as u32,
            tables: Vec::new(),
            closed: Vec::new(),
            num_slots: 0,
            named_this_step: Vec::new(),
            copies: Vec::new(),
            no_hit: Hit {
                blocks: vec![Vec::new(); config.groups.len()],
                ..Hit::default()
            },
        })
    }

    /// The pool, to read its counters.
    pub fn pool(&self) -> &BlockPool<I, O> {
        &self.pool
    }

    /// The pool, to drain its observer or to evict and reset.
    pub fn pool_mut(&mut self) -> &mut BlockPool<I, O> {
        &mut self.pool
    }

    /// The groups, in the order of the configuration.
    pub fn groups(&self) -> &[GroupSpec] {
        &self.groups
    }

    /// Tokens between two keys of a request.
    pub fn hash_block_size(&self) -> u32 {
        self.lookup.sizes.hash_block_size
    }

    /// Least common multiple of the groups' block sizes: prefix hits end on its multiples, unless
    /// [`KvCacheManager::partial_hits`].
    pub fn scheduler_block_size(&self) -> u32 {
        self.lookup.sizes.scheduler_block_size
    }

    /// Whether hits may end inside of a block, on multiples of [`KvCacheManager::hash_block_size`].
    pub fn partial_hits(&self) -> bool {
        self.lookup.sizes.partial_hits
    }

    /// Blocks kept free when a waiting request is admitted beside running ones.
    pub fn watermark_blocks(&self) -> u32 {
        self.watermark_blocks
    }

    /// A place for a new request.
    pub fn open(&mut self) -> Slot {
        if let Some(i) = self.closed.pop() {
            return Slot(i);
        }
        let slot = Slot(self.num_slots);
        self.num_slots += 1;
        let tables = self.num_slots as usize * self.groups.len();
        self.tables.resize_with(tables, Table::default);
        slot
    }

    /// Releases the request's blocks and its place.
    pub fn close(&mut self, slot: Slot) {
        self.release(slot);
        self.closed.push(slot.0);
    }

    /// The blocks of `slot` in group `group`, null where given back.
    #[inline]
    pub fn blocks(&self, slot: Slot, group: usize) -> &[BlockId] {
        &self.tables[self.table_index(slot, group)].blocks
    }

    /// A new step begins: states named in the last one can be read from now on.
    #[inline]
    pub fn begin_step(&mut self) {
        self.named_this_step.clear();
    }

    /// The (source, destination) copies that the worker must make before this step's computation. Both ends were
    /// kept owned until this call.
    pub fn take_copies(&mut self, out: &mut Vec<(BlockId, BlockId)>) {
        out.clear();
        if self.copies.is_empty() {
            return;
        }
        // The engine drains its groups one after the other, which decides the order of release.
        self.copies.sort_by_key(|&(group, ..)| group);
        out.extend(self.copies.drain(..).map(|(_, source, copy)| (source, copy)));
        self.pool
            .release(out.iter().flat_map(|&(source, copy)| [source, copy]));
    }

    /// The longest cached prefix of a request with `num_tokens` known tokens; the last token is never taken, since it
    /// must be computed to continue.
    ///
    /// `keys` are all full hash blocks of the request: `num_tokens / hash_block_size` of them.
    #[inline]
    pub fn lookup(&self, keys: &[I::Key], num_tokens: u32, hit: &mut Hit) {
        if !self.pool.caching() {
            hit.clear(self.groups.len());
            return;
        }
        debug_assert_eq!(keys.len() as u32, num_tokens / self.hash_block_size());
        self.lookup
            .run(&self.pool, keys, num_tokens.saturating_sub(1), hit);
    }

    /// Makes room for a step and names the blocks it fills; `hit` is the lookup's result for a request that starts.
    ///
    /// Returns `false` if the pool has no room; then only blocks behind the request's windows were given back.
    #[must_use = "a refused request must wait or preempt another"]
    pub fn allocate(&mut self, slot: Slot, a: &Allocation<'_, I::Key>, hit: Option<&Hit>) -> bool {
        let no_hit = std::mem::take(&mut self.no_hit);
        let granted = self.try_allocate(slot, a, hit.unwrap_or(&no_hit));
        self.no_hit = no_hit;
        granted
    }

    /// Names the blocks of the first `num_tokens` tokens once what [`Allocation::external_tokens`] announced is there.
    pub fn name_loaded(&mut self, slot: Slot, num_tokens: u32, a: &Allocation<'_, I::Key>) {
        if self.pool.caching() {
            self.name_blocks(slot, num_tokens.min(a.num_tokens), a);
        }
    }

    /// Blocks that a request needs besides those it holds until its first `num_tokens` tokens have room
    /// (`_request_remaining_blocks` of vLLM 0.32.0's scheduler).
    pub fn missing_blocks(&mut self, slot: Slot, num_computed_tokens: u32, num_tokens: u32) -> u32 {
        let no_hit = std::mem::take(&mut self.no_hit);
        let tokens = num_tokens.min(self.max_model_len);
        let need = Need {
            num_tokens: tokens,
            main_tokens: tokens,
            total_tokens: num_computed_tokens,
            local_tokens: num_computed_tokens,
            prefill_end: num_tokens,
            apply_cap: true,
        };
        let blocks = self.need(slot, &no_hit, &need);
        self.no_hit = no_hit;
        blocks.max(0) as u32
    }

    /// Gives all blocks of a request back, last block first; the slot stays open and can start over.
    pub fn release(&mut self, slot: Slot) {
        for g in 0..self.groups.len() {
            let t = self.table_index(slot, g);
            let table = &mut self.tables[t];
            let blocks = table.blocks.iter().rev().copied();
            match self.groups[g].kind {
                GroupKind::SlidingWindow { .. } => self.pool.release_window(blocks),
                _ => self.pool.release(blocks),
            }
            table.clear();
        }
    }

    /// The first number of computed tokens, `num_computed_tokens` or more, at which a step of one token does anything
    /// to the tables: allocates, names or gives back.
    ///
    /// Schedulers may skip [`KvCacheManager::allocate`] for the decode steps before it: it would grant them unchanged.
    #[inline]
    pub fn next_decode_event(&self, num_computed_tokens: u32) -> u32 {
        let c = num_computed_tokens;
        let mut next = u32::MAX;
        for group in &self.groups {
            let b = group.block_size;
            // A block is needed when c is a multiple of b, one is filled when c + 1 is.
            let rest = c % b;
            let block = if rest == 0 || (self.pool.caching() && rest == b - 1) {
                c
            } else if self.pool.caching() {
                c + (b - 1 - rest)
            } else {
                c + (b - rest)
            };
            let window = match group.kind {
                GroupKind::Full => u32::MAX,
                GroupKind::SlidingWindow { window_tokens } => {
                    let skipped = i64::from(c) + 1 - i64::from(window_tokens);
                    let ahead = (-skipped).rem_euclid(i64::from(b));
                    c + ahead as u32
                }
                GroupKind::ChunkedLocal { chunk_tokens } => c.div_ceil(chunk_tokens) * chunk_tokens,
                GroupKind::MambaAlign { .. } => c,
            };
            next = next.min(block).min(window);
        }
        next
    }

    #[inline]
    fn table_index(&self, slot: Slot, group: usize) -> usize {
        slot.0 as usize * self.groups.len() + group
    }

    /// Checks the pool's invariants and that every owned block is owned as often as tables hold it; O(everything).
    ///
    /// # Errors
    /// The first broken invariant, as one sentence.
    pub fn check(&self) -> Result<(), String> {
        self.pool.check()?;
        let mut held = vec![0_u32; self.pool.num_blocks() as usize];
        for &block in self.tables.iter().flat_map(|t| &t.blocks) {
            held[block as usize] += 1;
        }
        for &(_, source, copy) in &self.copies {
            held[source as usize] += 1;
            held[copy as usize] += 1;
        }
        for (block, &n) in held.iter().enumerate().skip(1) {
            let refs = self.pool.ref_count(block as BlockId);
            if refs != n {
                return Err(format!(
                    "block {block} counts {refs} owners and {n} tables hold it"
                ));
            }
        }
        Ok(())
    }
}
