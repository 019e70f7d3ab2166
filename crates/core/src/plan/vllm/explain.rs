//! The layout in the words of a plan: its figures, and where each comes from.

use super::super::ledger::{Derivation, Step};
use super::super::report::{GroupPart, KvCache};
use crate::dtype::Dtype;
use crate::engine::vllm;
use crate::units::grouped;

/// The figures of the layout.
pub(super) fn kv_cache(layout: &vllm::Layout, available: u64, dtype: Dtype) -> KvCache {
    KvCache {
        dtype: match layout.kv_cache_dtype {
            vllm::KvDtype::Auto => dtype.name(),
            given => given.name(),
        }
        .to_owned(),
        block_size: layout.block_size,
        bytes_per_block: layout.stages.iter().map(|stage| stage.bytes_per_block).collect(),
        num_blocks: layout.num_blocks,
        capacity_tokens: layout.capacity_tokens.unwrap_or(0),
        max_concurrency: layout.max_concurrency.unwrap_or(0.0),
        available_bytes: available,
        bytes_per_token: layout.bytes_per_token(),
        max_model_len: layout.max_model_len,
        max_running_requests: None,
        groups: layout
            .groups
            .iter()
            .map(|group| GroupPart {
                kind: group.kind.to_owned(),
                layers: group.layers,
                block_size: group.block_size,
                page_bytes: group.page_bytes,
                blocks_per_request: group.blocks_per_request,
            })
            .collect(),
    }
}

/// Adds the derivation of the layout.
pub(super) fn explain_layout(layout: &vllm::Layout, steps: &mut Derivation) {
    let backends: Vec<&str> = layout.backends.iter().map(|b| b.name()).collect();
    steps.add(|| {
        Step::new(
            "block size",
            if backends.is_empty() {
                "no attention layer".to_owned()
            } else {
                format!(
                    "smallest that the kernels of {} take, aligned to any recurrent state",
                    backends.join(", ")
                )
            },
            format!("{} tokens", layout.block_size),
        )
        .of("vLLM 0.32.0, v1/attention/backends, config/vllm.py")
    });
    for (i, group) in layout.groups.iter().enumerate() {
        steps.add(|| {
            Step::new(
                format!("group {} of {}: {}", i + 1, layout.groups.len(), group.kind),
                format!(
                    "{} layers, a page of {} B for {} tokens",
                    group.layers,
                    grouped(group.page_bytes),
                    group.block_size
                ),
                format!(
                    "{} blocks for a request of {} tokens",
                    grouped(group.blocks_per_request),
                    grouped(layout.max_model_len)
                ),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, v1/kv_cache_interface.py")
        });
    }
    for (i, stage) in layout.stages.iter().enumerate() {
        let place = if layout.stages.len() > 1 {
            format!(" on stage {}", i + 1)
        } else {
            String::new()
        };
        steps.add(|| {
            Step::new(
                format!("blocks{place}"),
                format!(
                    "{} B available // {} B a block (the largest group's pages)",
                    grouped(stage.available_bytes),
                    grouped(stage.bytes_per_block)
                ),
                format!("{} in the pool of every rank", grouped(layout.num_blocks)),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, get_kv_cache_configs")
        });
    }
    if let (Some(concurrency), Some(tokens)) = (layout.max_concurrency, layout.capacity_tokens) {
        steps.add(|| {
            Step::new(
                "maximum concurrency, as logged",
                format!(
                    "{} blocks / {} blocks of a request of {} tokens",
                    grouped(layout.num_blocks),
                    grouped(layout.blocks_per_request),
                    grouped(layout.max_model_len)
                ),
                format!("{concurrency:.2}x"),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, get_max_concurrency_for_kv_cache_config")
        });
        steps.add(|| {
            Step::new(
                "KV cache size, as logged",
                format!("int({concurrency:.4} x {})", layout.max_model_len),
                format!("{} tokens", grouped(tokens)),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py")
        });
    }
}
