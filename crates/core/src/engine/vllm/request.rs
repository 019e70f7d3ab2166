//! Blocks that one request takes from a group.

use super::spec::{Spec, SpecKind};
use crate::units::grouped;

/// What the number of blocks depends on besides the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestContext {
    /// Length of the request in tokens, prompt and output.
    pub max_model_len: u64,
    /// Tokens scheduled but not settled: batched tokens times batches in flight.
    pub max_in_flight_tokens: u64,
    /// Encoder tokens a step may take (`max_num_batched_tokens`); cross attention is sized by it.
    pub max_encoder_tokens: u64,
    /// Decode context parallel size.
    pub dcp: u64,
    /// Whether recurrent states are kept for prefix caching (mode "align").
    pub align_states: bool,
}

/// Blocks of one request of `max_model_len` tokens (vLLM 0.32.0, `v1/kv_cache_interface.py`,
/// `max_memory_usage_bytes` of each spec, divided by its page).
pub fn blocks_per_request(spec: &Spec, context: &RequestContext) -> u64 {
    let block_size = spec.block_size.max(1);
    let length = context.max_model_len;
    match spec.kind {
        SpecKind::Full { .. } | SpecKind::Latent { .. } => {
            let own = if spec.dcp_sharded {
                length.div_ceil(context.dcp.max(1))
            } else {
                length
            };
            own.div_ceil(block_size)
        }
        SpecKind::Sliding { window, extra } | SpecKind::SlidingLatent { window, extra, .. } => {
            // One more, as a window need not start at the beginning of a block.
            let held = window
                .saturating_sub(1)
                .saturating_add(extra)
                .saturating_add(context.max_in_flight_tokens);
            held.min(length).div_ceil(block_size).saturating_add(1)
        }
        SpecKind::Chunked { chunk } => chunk
            .saturating_add(context.max_in_flight_tokens)
            .min(length)
            .div_ceil(block_size),
        SpecKind::State {
            shape,
            speculative_blocks,
        } => {
            if context.align_states {
                speculative_blocks
                    .saturating_add(shape.checkpoint_blocks)
                    .saturating_add(2)
            } else {
                speculative_blocks.saturating_add(1)
            }
        }
        SpecKind::Cross => context.max_encoder_tokens.div_ceil(block_size),
        SpecKind::Ring => 1,
    }
}

/// How [`blocks_per_request`] comes about, with its numbers.
pub(crate) fn blocks_formula(spec: &Spec, context: &RequestContext) -> String {
    let block = spec.block_size.max(1);
    let length = grouped(context.max_model_len);
    let in_flight = grouped(context.max_in_flight_tokens);
    match spec.kind {
        SpecKind::Full { .. } | SpecKind::Latent { .. } if spec.dcp_sharded && context.dcp > 1 => {
            format!("ceil(ceil({length} / {} ranks) / {block})", context.dcp)
        }
        SpecKind::Full { .. } | SpecKind::Latent { .. } => format!("ceil({length} / {block})"),
        SpecKind::Sliding { window, extra } | SpecKind::SlidingLatent { window, extra, .. } => {
            let window = grouped(window.saturating_sub(1).saturating_add(extra));
            format!("ceil(min({window} of the window + {in_flight} in flight, {length}) / {block}) + 1")
        }
        SpecKind::Chunked { chunk } => {
            format!(
                "ceil(min({} of the chunk + {in_flight} in flight, {length}) / {block})",
                grouped(chunk)
            )
        }
        SpecKind::State {
            shape,
            speculative_blocks,
        } => {
            let mut parts = vec!["1 for the state"];
            let (drafts, checkpoints);
            if context.align_states {
                parts.push("1 for the state before");
                if shape.checkpoint_blocks > 0 {
                    checkpoints = format!("{} for checkpoints", shape.checkpoint_blocks);
                    parts.push(&checkpoints);
                }
            }
            if speculative_blocks > 0 {
                drafts = format!("{speculative_blocks} for drafts");
                parts.push(&drafts);
            }
            parts.join(" + ")
        }
        SpecKind::Cross => format!(
            "ceil({} encoder tokens / {block})",
            grouped(context.max_encoder_tokens)
        ),
        SpecKind::Ring => "1, overwritten in a circle".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::{FULL, spec};
    use super::*;

    const CONTEXT: RequestContext = RequestContext {
        max_model_len: 131_072,
        max_in_flight_tokens: 16_384,
        max_encoder_tokens: 8192,
        dcp: 1,
        align_states: true,
    };

    #[test]
    fn windows_are_charged_the_tokens_in_flight() {
        // Gemma-3-27B at 131072 tokens: 6 × 1089 + 8192 blocks with asynchronous, 577 with synchronous scheduling.
        let window = spec(
            SpecKind::Sliding {
                window: 1024,
                extra: 0,
            },
            16,
        );
        assert_eq!(blocks_per_request(&window, &CONTEXT), 1089);
        let synchronous = RequestContext {
            max_in_flight_tokens: 8192,
            ..CONTEXT
        };
        assert_eq!(blocks_per_request(&window, &synchronous), 577);
        assert_eq!(blocks_per_request(&spec(FULL, 16), &CONTEXT), 8192);
        let short = RequestContext {
            max_model_len: 4096,
            ..CONTEXT
        };
        assert_eq!(blocks_per_request(&window, &short), 257);
    }

    #[test]
    fn chunks_have_no_extra_block_and_contexts_are_divided_over_ranks() {
        let chunked = spec(SpecKind::Chunked { chunk: 8192 }, 8);
        assert_eq!(blocks_per_request(&chunked, &CONTEXT), (8192 + 16_384) / 16);
        let divided = RequestContext { dcp: 4, ..CONTEXT };
        assert_eq!(blocks_per_request(&spec(FULL, 8), &divided), 2048);
        assert_eq!(blocks_per_request(&spec(SpecKind::Cross, 8), &CONTEXT), 512);
    }

    #[test]
    fn the_blocks_of_a_request_say_how_they_come_about() {
        let window = spec(
            SpecKind::Sliding {
                window: 1024,
                extra: 0,
            },
            16,
        );
        let divided = RequestContext { dcp: 4, ..CONTEXT };
        for (spec, context, says) in [
            (spec(FULL, 8), CONTEXT, "ceil(131,072 / 16)"),
            (spec(FULL, 8), divided, "ceil(ceil(131,072 / 4 ranks) / 16)"),
            (
                window,
                CONTEXT,
                "ceil(min(1,023 of the window + 16,384 in flight, 131,072) / 16) + 1",
            ),
            (
                spec(SpecKind::Cross, 8),
                CONTEXT,
                "ceil(8,192 encoder tokens / 16)",
            ),
        ] {
            assert_eq!(blocks_formula(&spec, &context), says);
        }
    }
}
