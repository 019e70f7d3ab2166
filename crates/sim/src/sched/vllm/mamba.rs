//! Where prefill chunks of models with Mamba layers must end.
//!
//! A state exists only at the end of a chunk, so chunks end on block boundaries, at the last boundary that a resend can
//! use, and at a detected shared prefix. Source: vLLM 0.32.0, `vllm/v1/core/sched/scheduler.py`
//! (`_mamba_block_aligned_split`).

use kvwise_cache::manager::{is_prefill_checkpoint_valid, prefill_checkpoint_position};

use super::config::MambaAlign;
use super::{Request, Scheduler};

impl Scheduler {
    /// Shortens a chunk of `tokens` from `start` on so that it ends where its state can be kept.
    pub(super) fn mamba_chunk(
        &self,
        align: &MambaAlign,
        request: &Request,
        start: u32,
        tokens: u32,
        _budget: u32,
    ) -> u32 {
        let prefill_end = request.prompt.max(request.known.saturating_sub(1));
        if start >= prefill_end {
            return tokens;
        }
        let block_size = align.block_size;
        let drop = self.config.drops_block();
        let partial = self.manager.partial_hits();
        let hash_block_size = self.manager.hash_block_size();
        let unit = if partial {
            hash_block_size
        } else {
            self.manager.scheduler_block_size()
        };
        let mut last_cacheable = prefill_checkpoint_position(request.known, block_size, drop);
        let mut end = start + tokens;
        let internal = end >= prefill_end
            && is_prefill_checkpoint_valid(
                start,
                end,
                prefill_checkpoint_position(prefill_end, unit, drop),
                hash_block_size,
                block_size,
                align.checkpoint_alignment,
            );
        if internal {
            last_cacheable = 0;
        }
        if end < prefill_end {
            let aligned = end / block_size * block_size;
            if aligned > start || block_size <= self.config.max_num_batched_tokens {
                end = aligned;
            }
        }
        let boundary = if !start.is_multiple_of(block_size) && !internal {
            (start / block_size + 1) * block_size
        } else {
            0
        };
        let tail = if partial && !internal {
            prefill_checkpoint_position(request.prompt, hash_block_size, drop)
        } else {
            0
        };
        let tail = if last_cacheable < tail && tail < request.prompt {
            tail
        } else {
            0
        };
        let junction = if start < request.boundary && request.boundary < end {
            start + (request.boundary - start) / block_size * block_size
        } else {
            0
        };
        for stop in [boundary, last_cacheable, tail, junction] {
            if start < stop && stop < end {
                end = stop;
            }
        }
        end.saturating_sub(start)
    }
}
