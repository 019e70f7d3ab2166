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

mod config;
mod lookup;
mod mamba;
mod naming;
mod retention;
mod table;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::pool::{BlockId, BlockPool, DenseIndex, HashIndex, NULL_BLOCK, PoolObserver, PrefixIndex};

pub use config::{GroupKind, GroupSpec, ManagerConfig, Retention};
pub use lookup::Hit;
pub use mamba::{is_prefill_checkpoint_valid, prefill_checkpoint_position};

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

/// What one step computes for a request.
#[derive(Debug, Clone, Copy)]
pub struct Allocation<'a, K> {
    /// Names of the request's full hash blocks, prompt and generated tokens alike.
    pub keys: &'a [K],
    /// Tokens whose keys and values are in the cache, the hit not included.
    pub num_computed_tokens: u32,
    /// Tokens to compute in this step.
    pub num_new_tokens: u32,
    /// Known tokens: prompt and generated ones.
    pub num_tokens: u32,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Slots for speculative tokens beyond the step's own.
    pub lookahead_tokens: u32,
    /// Tokens of earlier steps whose results are not in yet (asynchronous scheduling).
    pub in_flight_tokens: u32,
    /// Blocks to leave for others.
    pub reserved_blocks: u32,
    /// [`Hit::shared_prefix_boundary`] of the request's last lookup.
    pub shared_prefix_boundary: u32,
    /// Refuse unless the whole known sequence fits, not only this step's part.
    pub full_sequence_must_fit: bool,
    /// Keep the watermark free: a waiting request beside running ones.
    pub apply_watermark: bool,
    /// Tokens after the hit whose keys and values come from elsewhere (a KV connector); they are room, not work.
    pub external_tokens: u32,
    /// Name no block yet: what comes from elsewhere is not there before [`KvCacheManager::name_loaded`].
    pub delay_naming: bool,
}

impl<'a, K> Allocation<'a, K> {
    /// A step that computes `num_new_tokens` after `num_computed_tokens`; `num_tokens` are known.
    pub fn new(keys: &'a [K], num_computed_tokens: u32, num_new_tokens: u32, num_tokens: u32) -> Self {
        Self {
            keys,
            num_computed_tokens,
            num_new_tokens,
            num_tokens,
            num_prompt_tokens: num_tokens,
            lookahead_tokens: 0,
            in_flight_tokens: 0,
            reserved_blocks: 0,
            shared_prefix_boundary: 0,
            full_sequence_must_fit: false,
            apply_watermark: false,
            external_tokens: 0,
            delay_naming: false,
        }
    }
}

/// Inputs of the block count of one group.
struct Need {
    num_tokens: u32,
    main_tokens: u32,
    total_tokens: u32,
    local_tokens: u32,
    prefill_end: u32,
    apply_cap: bool,
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

    fn try_allocate(&mut self, slot: Slot, a: &Allocation<'_, I::Key>, hit: &Hit) -> bool {
        let local_tokens = a.num_computed_tokens + hit.num_tokens;
        let total_tokens = (local_tokens + a.external_tokens).min(self.max_model_len);
        let watermark = if a.apply_watermark {
            self.watermark_blocks
        } else {
            0
        };
        let prefill_end = match self.retention {
            Retention::ReplayOnly => a.num_prompt_tokens.max(a.num_tokens.saturating_sub(1)),
            Retention::Dense | Retention::Every(_) => 0,
        };
        if a.full_sequence_must_fit {
            let tokens = a.num_tokens.min(self.max_model_len);
            let need = Need {
                num_tokens: tokens,
                main_tokens: tokens,
                total_tokens,
                local_tokens,
                prefill_end,
                apply_cap: true,
            };
            let blocks = self.need(slot, hit, &need) + i64::from(watermark);
            if blocks > i64::from(self.pool.num_free()) {
                return false;
            }
        }
        let main_tokens = total_tokens + a.num_new_tokens;
        let slot_tokens = (main_tokens + a.lookahead_tokens).min(self.max_model_len);
        self.remove_skipped(slot, total_tokens.saturating_sub(a.in_flight_tokens));
        let need = Need {
            num_tokens: slot_tokens,
            main_tokens,
            total_tokens,
            local_tokens,
            prefill_end,
            apply_cap: false,
        };
        let blocks = self.need(slot, hit, &need) + i64::from(watermark);
        if blocks > i64::from(self.pool.num_free()) - i64::from(a.reserved_blocks) {
            return false;
        }
        if !hit.is_empty() || a.external_tokens > 0 {
            for g in 0..self.groups.len() {
                self.adopt(g, slot, &hit.blocks[g], total_tokens, local_tokens);
            }
        }
        if a.external_tokens > 0 {
            // All groups' hits are owned by now, so that no group takes another one's hit for what it loads.
            for g in 0..self.groups.len() {
                if self.groups[g].skipped_tokens(total_tokens) < total_tokens {
                    self.extend(g, slot, total_tokens);
                }
            }
        }
        for g in 0..self.groups.len() {
            match self.groups[g].kind {
                GroupKind::MambaAlign { .. } if self.pool.caching() => {
                    self.mamba_allocate(g, slot, main_tokens);
                }
                _ => self.extend(g, slot, slot_tokens),
            }
        }
        if self.pool.caching() && !a.delay_naming {
            self.name_blocks(slot, (total_tokens + a.num_new_tokens).min(a.num_tokens), a);
        }
        true
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
            self.pool.release(table.blocks.iter().rev().copied());
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

    fn evictable(&self, blocks: &[BlockId]) -> i64 {
        blocks
            .iter()
            .filter(|&&b| b != NULL_BLOCK && self.pool.ref_count(b) == 0)
            .count() as i64
    }

    /// Blocks that all groups together take from the free queue.
    fn need(&mut self, slot: Slot, hit: &Hit, need: &Need) -> i64 {
        let mut sum = 0;
        for g in 0..self.groups.len() {
            sum += match self.groups[g].kind {
                GroupKind::MambaAlign { .. } if self.pool.caching() => {
                    self.mamba_need(g, slot, &hit.blocks[g], need)
                }
                _ => self.attention_need(g, slot, &hit.blocks[g], need),
            };
        }
        sum
    }

    fn attention_need(&self, g: usize, slot: Slot, hit: &[BlockId], need: &Need) -> i64 {
        let spec = &self.groups[g];
        let mut required = spec.blocks_for(need.num_tokens);
        if need.apply_cap
            && let Some(cap) = self.caps[g]
        {
            required = required.min(cap);
        }
        let table = &self.tables[self.table_index(slot, g)];
        let held = table.len();
        if table.tracked {
            debug_assert!(hit.is_empty(), "a running request got a prefix hit");
            return i64::from(required.saturating_sub(held));
        }
        let skipped = spec.skipped_tokens(need.total_tokens) / spec.block_size;
        let present = hit.len() as u32 + held;
        let mut new = required.saturating_sub(skipped.max(present));
        let first = (skipped.saturating_sub(held) as usize).min(hit.len());
        if !hit.is_empty() && !need.local_tokens.is_multiple_of(spec.block_size) {
            new += 1;
        }
        i64::from(new) + self.evictable(&hit[first..])
    }

    /// Gives back blocks that no later token attends to.
    fn remove_skipped(&mut self, slot: Slot, processed: u32) {
        for g in 0..self.groups.len() {
            let spec = self.groups[g];
            match spec.kind {
                GroupKind::MambaAlign { .. } if self.pool.caching() => {
                    self.mamba_remove_skipped(g, slot, processed);
                }
                // without caching a request's one state goes with it
                GroupKind::Full | GroupKind::MambaAlign { .. } => {}
                GroupKind::SlidingWindow { .. } | GroupKind::ChunkedLocal { .. } => {
                    let skipped = spec.skipped_tokens(processed) / spec.block_size;
                    if skipped == 0 {
                        continue;
                    }
                    let t = self.table_index(slot, g);
                    let table = &mut self.tables[t];
                    // Most steps move the window by less than a block; then nothing is left to free.
                    let end = skipped.min(table.len());
                    if end > 0 && table.blocks[end as usize - 1] != NULL_BLOCK {
                        self.pool.release(table.null_until(end));
                    }
                }
            }
        }
    }

    /// Takes the hit blocks of a request that starts.
    fn adopt(&mut self, g: usize, slot: Slot, hit: &[BlockId], total_tokens: u32, local_tokens: u32) {
        let spec = self.groups[g];
        let t = self.table_index(slot, g);
        debug_assert_eq!(
            self.tables[t].len(),
            0,
            "a request that holds blocks got a prefix hit"
        );
        let skipped = spec.skipped_tokens(total_tokens) / spec.block_size;
        let hit = &hit[(skipped as usize).min(hit.len())..];
        self.pool.touch(hit);
        let table = &mut self.tables[t];
        table.blocks.resize(skipped as usize, NULL_BLOCK);
        table.blocks.extend_from_slice(hit);
        table.num_cached = table.len();
        table.tracked = true;
        if let Some(&last) = hit.last()
            && !local_tokens.is_multiple_of(spec.block_size)
        {
            let position = local_tokens / spec.block_size;
            table.partial_hit = Some((position, last));
            table.num_cached = position;
        }
    }

    /// Extends a table so that it holds `num_tokens`.
    fn extend(&mut self, g: usize, slot: Slot, num_tokens: u32) {
        let t = self.table_index(slot, g);
        if let Some((position, source)) = self.tables[t].partial_hit.take() {
            let copy = self.allocate_one();
            self.tables[t].blocks[position as usize] = copy;
            self.pool.retain(copy);
            self.copies.push((g as u32, source, copy));
        }
        let required = self.groups[g].blocks_for(num_tokens);
        let new = required.saturating_sub(self.tables[t].len());
        self.extend_table(t, new);
    }

    #[inline]
    fn extend_table(&mut self, t: usize, new: u32) {
        if new > 0 {
            let granted = self.pool.allocate(new, &mut self.tables[t].blocks);
            debug_assert!(
                granted.is_ok(),
                "the capacity test passed, but blocks are missing"
            );
        }
    }

    fn allocate_one(&mut self) -> BlockId {
        let mut one = Vec::with_capacity(1);
        let granted = self.pool.allocate(1, &mut one);
        debug_assert!(
            granted.is_ok(),
            "the capacity test passed, but blocks are missing"
        );
        one.first().copied().unwrap_or(NULL_BLOCK)
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
