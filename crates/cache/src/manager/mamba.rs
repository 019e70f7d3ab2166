//! State-space groups whose state is kept at block boundaries ("align").
//!
//! A request needs only its running state, and a copy of the state at each boundary that a later request may resume
//! from. Positions between are null. The worker copies the state of the previous step's block into the block of this
//! step, so the previous one is given back a step later.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/single_type_kv_cache_manager.py` (`MambaManager`) and
//! `vllm/v1/kv_cache_interface.py` (`get_mamba_prefill_checkpoint_position`). Hand-offs to KV connectors are left out.

use crate::pool::{BlockId, NULL_BLOCK, PoolObserver, PrefixIndex};

use super::config::GroupKind;
use super::retention::{Boundaries, Mask};
use super::{Allocation, KvCacheManager, Need, Slot};

/// The last position of a prefill of `num_tokens` whose state a resend can use, a multiple of `unit`.
///
/// Without a drafter one token must be left to compute; a drafter drops one unit, which leaves enough.
pub fn prefill_checkpoint_position(num_tokens: u32, unit: u32, drop_eagle_block: bool) -> u32 {
    let limit = if drop_eagle_block {
        num_tokens
    } else {
        num_tokens.saturating_sub(1)
    };
    let position = limit / unit * unit;
    if drop_eagle_block {
        position.saturating_sub(unit)
    } else {
        position
    }
}

/// Whether a kernel with this alignment can write the state at `checkpoint` while it computes `start..end`.
pub fn is_prefill_checkpoint_valid(
    start: u32,
    end: u32,
    checkpoint: u32,
    hash_block_size: u32,
    block_size: u32,
    alignment: Option<u32>,
) -> bool {
    let Some(alignment) = alignment else {
        return false;
    };
    let initial_state = (i64::from(start) - 1).div_euclid(i64::from(block_size));
    let checkpoint_block = i64::from(end.div_ceil(block_size)) - 2;
    start.is_multiple_of(hash_block_size)
        && checkpoint_block > initial_state
        && start + hash_block_size <= checkpoint
        && start < checkpoint
        && checkpoint < end
        && (checkpoint - start).is_multiple_of(alignment)
}

fn kernel(kind: GroupKind) -> (u32, Option<u32>) {
    match kind {
        GroupKind::MambaAlign {
            speculative_blocks,
            checkpoint_alignment,
        } => (speculative_blocks, checkpoint_alignment),
        _ => (0, None),
    }
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> KvCacheManager<I, O> {
    /// Blocks a request needs from the pool; may be negative after an over-allocation.
    pub(super) fn mamba_need(&mut self, g: usize, slot: Slot, hit: &[BlockId], need: &Need) -> i64 {
        // A state that another request writes in this very step cannot be read yet: wait a step.
        if let Some(&last) = hit.last()
            && let Some(name) = self.pool.name_of(last)
            && self.named_this_step.contains(&name)
        {
            return i64::from(self.pool.num_blocks()) + 1;
        }
        let spec = self.groups[g];
        let (speculative, alignment) = kernel(spec.kind);
        let block_size = spec.block_size;
        let t = self.table_index(slot, g);
        let table = &self.tables[t];
        let required = need.main_tokens.div_ceil(block_size) + speculative;
        let mut new = i64::from(required) - hit.len() as i64 - i64::from(table.len());
        let partial =
            (!hit.is_empty() && !need.local_tokens.is_multiple_of(block_size)) || table.partial_hit.is_some();
        if partial {
            new = new.max(0) + 1;
        }
        let position = prefill_checkpoint_position(
            need.main_tokens,
            self.lookup.sizes.alignment,
            self.drop_checkpoint,
        );
        let index = i64::from(need.main_tokens.div_ceil(block_size)) - 2;
        let valid = alignment.is_some()
            && need.main_tokens >= need.prefill_end
            && is_prefill_checkpoint_valid(
                need.total_tokens,
                need.main_tokens,
                position,
                self.lookup.sizes.hash_block_size,
                block_size,
                alignment,
            )
            && index >= 0
            && (index >= i64::from(table.len())
                || table.blocks[index as usize] == NULL_BLOCK
                || (table.mamba.allocated && index >= i64::from(table.len()) - i64::from(speculative)));
        let checkpoint = valid && position > 0;
        let allocated = table.mamba.allocated;
        if !need.apply_cap {
            self.tables[t].mamba.checkpoint = checkpoint.then_some((position, index.max(0) as u32));
        }
        if new > 0 {
            let cap = 1
                + i64::from(partial)
                + i64::from(checkpoint)
                + if allocated { 0 } else { i64::from(speculative) };
            new = new.min(cap);
        }
        new + self.evictable(hit)
    }

    /// Gives back states that lie behind, and the one that was copied from in the last step.
    pub(super) fn mamba_remove_skipped(&mut self, g: usize, slot: Slot, processed: u32) {
        let block_size = self.groups[g].block_size;
        let t = self.table_index(slot, g);
        let table = &mut self.tables[t];
        if processed > 1 {
            let end = ((processed - 1) / block_size).min(table.len());
            let start = table.mamba.num_retired;
            if start < end {
                // Null gaps lie between the states of a prefill, so the walk does not stop at the first null.
                let freed = table.blocks[start as usize..end as usize]
                    .iter_mut()
                    .rev()
                    .map(|b| std::mem::replace(b, NULL_BLOCK));
                self.pool.release_window(freed);
                table.mamba.num_retired = end;
            }
        }
        if let Some(last) = table.mamba.last_state
            && i64::from(last) < i64::from(processed.div_ceil(block_size)) - 1
        {
            let block = std::mem::replace(&mut table.blocks[last as usize], NULL_BLOCK);
            self.pool.release([block]);
        }
    }

    /// Extends the table to the running state of a step that ends at `main_tokens`.
    pub(super) fn mamba_allocate(&mut self, g: usize, slot: Slot, main_tokens: u32) {
        let spec = self.groups[g];
        let (speculative, _) = kernel(spec.kind);
        let t = self.table_index(slot, g);
        let table = &mut self.tables[t];
        let required = main_tokens.div_ceil(spec.block_size) + speculative;
        let checkpoint = u32::from(table.mamba.checkpoint.is_some());
        let partial = table.partial_hit;
        let before = table.len();
        if required <= before && partial.is_none() && checkpoint == 0 {
            table.mamba.allocated = true;
            return;
        }
        let was_allocated = table.mamba.allocated;
        if was_allocated {
            table.mamba.last_state = (before).checked_sub(1 + speculative);
        } else if before > 0 {
            table.mamba.last_state = Some(before - 1);
        }
        let skipped = i64::from(required) - i64::from(speculative) - 1;
        let null_end = (skipped - i64::from(checkpoint)).max(0) as usize;
        if i64::from(before) < skipped && null_end > table.blocks.len() {
            table.blocks.resize(null_end, NULL_BLOCK);
        }
        if was_allocated {
            for i in before.saturating_sub(speculative)..before {
                if i64::from(i) >= skipped - i64::from(checkpoint) {
                    break;
                }
                let block = std::mem::replace(&mut table.blocks[i as usize], NULL_BLOCK);
                table.blocks.push(block);
            }
        }
        let mut new = required.saturating_sub(table.len());
        if let Some((position, source)) = partial {
            // One private block for the copy, ahead of the others.
            let copy = self.allocate_one();
            let table = &mut self.tables[t];
            if was_allocated {
                // The worker's table of a running request only grows: it stays on the shared block, and the cached
                // content moves to the copy, which is filled before the shared block is overwritten.
                self.pool.move_names(source, copy);
                self.pool.retain(source);
                if let Some(name) = self.pool.name_of(copy) {
                    self.named_this_step.push(name);
                }
            } else {
                table.blocks[position as usize] = copy;
                self.pool.retain(copy);
            }
            self.copies.push((g as u32, source, copy));
        }
        let table = &mut self.tables[t];
        table.mamba.allocated = true;
        table.partial_hit = None;
        new = new.min(self.pool.num_free());
        self.extend_table(t, new);
    }

    /// Names the states written by this step: full blocks went before; here boundaries inside a block.
    pub(super) fn mamba_name_partial(
        &mut self,
        g: usize,
        slot: Slot,
        num_tokens: u32,
        a: &Allocation<'_, I::Key>,
    ) {
        let block_size = self.groups[g].block_size;
        let hash_block_size = self.lookup.sizes.hash_block_size;
        let t = self.table_index(slot, g);
        if let Some((position, index)) = self.tables[t].mamba.checkpoint {
            let block = self.tables[t].blocks[index as usize];
            let of_prompt = position
                == prefill_checkpoint_position(
                    a.num_prompt_tokens,
                    self.lookup.sizes.alignment,
                    self.drop_checkpoint,
                );
            let retained = position % block_size == 0 && {
                let none = Boundaries::new(0, self.lookup.sizes.scheduler_block_size, false, 0);
                let mask = Mask::new(
                    &self.groups[g],
                    self.lookup.sizes.alignment,
                    false,
                    self.retention,
                    &none,
                );
                mask.keeps(position / block_size - 1)
            };
            if !of_prompt && !retained && position != a.shared_prefix_boundary {
                self.pool.evict(block);
                return;
            }
            if self.pool.hash_tokens(block) == position {
                return;
            }
            self.pool.unregister(block);
            self.name_partial(g, block, position, a.keys);
            return;
        }
        if num_tokens == 0 || !num_tokens.is_multiple_of(hash_block_size) {
            return;
        }
        let last = prefill_checkpoint_position(a.num_prompt_tokens, hash_block_size, self.drop_checkpoint);
        if num_tokens != last {
            return;
        }
        let index = num_tokens.div_ceil(block_size) - 1;
        let Some(&block) = self.tables[t].blocks.get(index as usize) else {
            return;
        };
        if block == NULL_BLOCK {
            return;
        }
        self.name_partial(g, block, num_tokens, a.keys);
        if !num_tokens.is_multiple_of(block_size) {
            let table = &mut self.tables[t];
            table.partial_hit = Some((index, block));
            table.num_cached = index;
        }
    }

    fn name_partial(&mut self, g: usize, block: BlockId, num_tokens: u32, keys: &[I::Key]) {
        if let Some(key) = self.register_partial(g, block, num_tokens, keys) {
            self.named_this_step.push((g as u32, key));
        }
    }
}
