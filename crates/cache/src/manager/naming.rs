//! Which blocks of a request get a name in a step, so that others find them.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/single_type_kv_cache_manager.py` (`cache_blocks` of each manager).

use crate::pool::{BlockId, NULL_BLOCK, PoolObserver, PrefixIndex, StoredRun};

use super::config::GroupKind;
use super::retention::{Boundaries, Mask};
use super::{Allocation, KvCacheManager, Slot};

impl<I: PrefixIndex, O: PoolObserver<I::Key>> KvCacheManager<I, O> {
    /// Tokens of the first `num_tokens` whose blocks group `g` may name.
    pub(super) fn cacheable_tokens(&self, g: usize, num_tokens: u32) -> u32 {
        if self.groups.len() == 1 {
            return num_tokens;
        }
        let align = |tokens: u32| {
            if self.lookup.sizes.partial_hits {
                tokens
            } else {
                tokens - tokens % self.lookup.sizes.scheduler_block_size
            }
        };
        let aligned = align(num_tokens);
        if self.eagle[g] && aligned > 0 {
            num_tokens.min(aligned + self.groups[g].block_size)
        } else {
            aligned
        }
    }

    pub(super) fn name_blocks(&mut self, slot: Slot, num_tokens: u32, a: &Allocation<'_, I::Key>) {
        let boundaries = Boundaries::new(
            a.num_prompt_tokens,
            self.lookup.sizes.scheduler_block_size,
            self.any_eagle,
            a.shared_prefix_boundary,
        );
        for g in 0..self.groups.len() {
            let tokens = self.cacheable_tokens(g, num_tokens);
            let t = self.table_index(slot, g);
            let before = self.tables[t].num_cached;
            self.name_full_blocks(g, t, tokens, a.keys, &boundaries);
            match self.groups[g].kind {
                GroupKind::Full if self.groups[g].block_size != self.hash_block_size() => {
                    self.name_prompt_tail(g, t, tokens, a);
                }
                GroupKind::MambaAlign { .. } => {
                    let after = self.tables[t].num_cached;
                    self.mamba_name_partial(g, slot, tokens, a);
                    for i in before..after {
                        let block = self.tables[t].blocks[i as usize];
                        if block != NULL_BLOCK
                            && let Some(name) = self.pool.name_of(block)
                        {
                            self.named_this_step.push(name);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    #[inline]
    pub(super) fn name_full_blocks(
        &mut self,
        g: usize,
        t: usize,
        num_tokens: u32,
        keys: &[I::Key],
        boundaries: &Boundaries,
    ) {
        let spec = self.groups[g];
        let start = self.tables[t].num_cached;
        let end = num_tokens / spec.block_size;
        if start >= end {
            return;
        }
        let mask = Mask::new(
            &spec,
            self.lookup.sizes.alignment,
            self.eagle[g],
            self.retention,
            boundaries,
        );
        let scale = spec.block_size / self.lookup.sizes.hash_block_size;
        let key_of = |i: u32| keys[((i + 1) * scale - 1) as usize];
        let table = &mut self.tables[t];
        let (group, first_tokens) = (g as u32, (start + 1) * spec.block_size);
        let run = &table.blocks[start as usize..end as usize];
        if mask.keeps_all() {
            let keys = &keys[((start + 1) * scale - 1) as usize..];
            if scale == 1 {
                let keys = keys.iter().copied();
                self.pool
                    .register_run(run, group, keys, first_tokens, spec.block_size);
            } else {
                let keys = keys.iter().copied().step_by(scale as usize);
                self.pool
                    .register_run(run, group, keys, first_tokens, spec.block_size);
            }
        } else {
            for i in start..end {
                let block = table.blocks[i as usize];
                if mask.keeps(i) {
                    let key = std::iter::once(key_of(i));
                    let tokens = (i + 1) * spec.block_size;
                    self.pool
                        .register_run(&[block], group, key, tokens, spec.block_size);
                }
            }
        }
        self.pool.note_stored(StoredRun {
            group: g as u32,
            parent: start.checked_sub(1).map(key_of),
            start_token: start * spec.block_size,
            end_token: end * spec.block_size,
            block_size: spec.block_size,
        });
        table.num_cached = end;
        table.tracked = true;
    }

    /// Names the prompt's last boundary inside a block, where keys are finer than blocks.
    pub(super) fn name_prompt_tail(
        &mut self,
        g: usize,
        t: usize,
        num_tokens: u32,
        a: &Allocation<'_, I::Key>,
    ) {
        let unit = self.hash_block_size();
        let limit = if self.eagle[g] {
            a.num_prompt_tokens
        } else {
            a.num_prompt_tokens.saturating_sub(1)
        };
        let boundary = limit / unit * unit;
        let block_size = self.groups[g].block_size;
        if boundary == 0 || boundary > num_tokens || boundary.is_multiple_of(block_size) {
            return;
        }
        if let Some(&block) = self.tables[t].blocks.get((boundary / block_size) as usize) {
            self.register_partial(g, block, boundary, a.keys);
        }
    }

    /// Names the first `num_tokens` tokens' boundary in `block`; names of shorter prefixes give way to it.
    pub(super) fn register_partial(
        &mut self,
        g: usize,
        block: BlockId,
        num_tokens: u32,
        keys: &[I::Key],
    ) -> Option<I::Key> {
        if block == NULL_BLOCK {
            return None;
        }
        let unit = self.hash_block_size();
        let key = keys[(num_tokens / unit - 1) as usize];
        let named = self.pool.is_named(block, g as u32, key) && self.pool.hash_tokens(block) != 0;
        if !named {
            if self.pool.hash_tokens(block) != 0 && self.pool.hash_tokens(block) < num_tokens {
                self.pool.unregister(block);
            }
            self.pool.register(block, g as u32, key, num_tokens);
            self.pool.note_stored(StoredRun {
                group: g as u32,
                parent: (num_tokens / unit).checked_sub(2).map(|i| keys[i as usize]),
                start_token: num_tokens - unit,
                end_token: num_tokens,
                block_size: unit,
            });
        }
        Some(key)
    }
}
