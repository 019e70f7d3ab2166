//! Room for a step: how many blocks it takes, and the tables that grow by them.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/kv_cache_manager.py` (`allocate_slots`) and
//! `vllm/v1/core/single_type_kv_cache_manager.py` (`get_num_blocks_to_allocate`, `allocate_new_computed_blocks`,
//! `allocate_new_blocks`, `remove_skipped_blocks`).

use crate::pool::{BlockId, NULL_BLOCK, PoolObserver, PrefixIndex};

use super::config::{GroupKind, Retention};
use super::{Hit, KvCacheManager, Slot};

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
pub(super) struct Need {
    pub(super) num_tokens: u32,
    pub(super) main_tokens: u32,
    pub(super) total_tokens: u32,
    pub(super) local_tokens: u32,
    pub(super) prefill_end: u32,
    pub(super) apply_cap: bool,
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> KvCacheManager<I, O> {
    pub(super) fn try_allocate(&mut self, slot: Slot, a: &Allocation<'_, I::Key>, hit: &Hit) -> bool {
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

    pub(super) fn evictable(&self, blocks: &[BlockId]) -> i64 {
        blocks
            .iter()
            .filter(|&&b| b != NULL_BLOCK && self.pool.ref_count(b) == 0)
            .count() as i64
    }

    /// Blocks that all groups together take from the free queue.
    pub(super) fn need(&mut self, slot: Slot, hit: &Hit, need: &Need) -> i64 {
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

    pub(super) fn attention_need(&self, g: usize, slot: Slot, hit: &[BlockId], need: &Need) -> i64 {
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
    pub(super) fn remove_skipped(&mut self, slot: Slot, processed: u32) {
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
                        self.pool.release_window(table.null_until(end));
                    }
                }
            }
        }
    }

    /// Takes the hit blocks of a request that starts.
    pub(super) fn adopt(
        &mut self,
        g: usize,
        slot: Slot,
        hit: &[BlockId],
        total_tokens: u32,
        local_tokens: u32,
    ) {
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
    pub(super) fn extend(&mut self, g: usize, slot: Slot, num_tokens: u32) {
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
    pub(super) fn extend_table(&mut self, t: usize, new: u32) {
        if new > 0 {
            let granted = self.pool.allocate(new, &mut self.tables[t].blocks);
            debug_assert!(
                granted.is_ok(),
                "the capacity test passed, but blocks are missing"
            );
        }
    }

    pub(super) fn allocate_one(&mut self) -> BlockId {
        let mut one = Vec::with_capacity(1);
        let granted = self.pool.allocate(1, &mut one);
        debug_assert!(
            granted.is_ok(),
            "the capacity test passed, but blocks are missing"
        );
        one.first().copied().unwrap_or(NULL_BLOCK)
    }
}
