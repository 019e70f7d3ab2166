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
            block_size_formula(layout, &backends),
            format!("{} tokens", layout.block_size),
        )
        .of("vLLM 0.32.0, v1/attention/backends, config/vllm.py")
    });
    explain_groups(layout, steps);
    for (i, stage) in layout.stages.iter().enumerate() {
        let place = if layout.stages.len() > 1 {
            format!(" on stage {}", i + 1)
        } else {
            String::new()
        };
        if i == 0 {
            steps.add(|| {
                Step::new(
                    "bytes of a block",
                    block_formula(layout, stage.bytes_per_block),
                    format!("{} B", grouped(stage.bytes_per_block)),
                )
                .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, get_kv_cache_config_from_groups")
            });
        }
        steps.add(|| {
            Step::new(
                format!("blocks{place}"),
                format!(
                    "{} B available // {} B a block",
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
                capacity_formula(layout, tokens),
                format!("{} tokens", grouped(tokens)),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py")
        });
    }
}

/// What decides the block size.
fn block_size_formula(layout: &vllm::Layout, backends: &[&str]) -> String {
    if backends.is_empty() {
        return "no attention layer".to_owned();
    }
    let smallest = format!("smallest that the kernels of {} take", backends.join(", "));
    let states = layout.groups.iter().filter(|group| group.spec.is_state());
    match states.map(|group| group.spec.content_bytes).max() {
        Some(bytes) => format!(
            "{smallest}, raised until an attention layer's page holds a recurrent state of {} B",
            grouped(bytes)
        ),
        None => smallest,
    }
}

/// One step for each run of equal groups.
fn explain_groups(layout: &vllm::Layout, steps: &mut Derivation) {
    let count = layout.groups.len();
    let mut first = 0;
    while let Some(group) = layout.groups.get(first) {
        let equal = layout.groups[first..]
            .iter()
            .take_while(|other| *other == group)
            .count();
        let last = first + equal;
        steps.add(|| {
            let place = match equal {
                1 => format!("group {last} of {count}"),
                _ => format!("groups {} to {last} of {count}, each", first + 1),
            };
            Step::new(
                format!("{place}: {}", group.kind),
                format!("{}, {}", layers(group.layers), pages(layout, first)),
                format!("a page of {} B", grouped(group.page_bytes)),
            )
            .of("vLLM 0.32.0, v1/kv_cache_interface.py, page_size_bytes of each spec")
        });
        steps.add(|| {
            Step::new(
                format!(
                    "blocks of it for a request of {} tokens",
                    grouped(layout.max_model_len)
                ),
                layout.blocks_formula(&group.spec),
                match equal {
                    1 => grouped(group.blocks_per_request),
                    _ => format!("{} in each of the {equal}", grouped(group.blocks_per_request)),
                },
            )
            .of("vLLM 0.32.0, v1/kv_cache_interface.py, max_memory_usage_bytes of each spec")
        });
        first = last;
    }
}

fn layers(count: u64) -> String {
    match count {
        1 => "1 layer".to_owned(),
        n => format!("{n} layers"),
    }
}

/// How the page of a group comes about: of one layer, or of all layers together where they differ.
fn pages(layout: &vllm::Layout, index: usize) -> String {
    let grouping = layout.grouping();
    let group = grouping.groups.get(index).filter(|group| group.uniform_type);
    let Some(group) = group else {
        return format!("each {}", layout.groups[index].spec.page_formula());
    };
    let mut distinct: Vec<(String, u64)> = Vec::new();
    for spec in group.layers.iter().filter_map(|&layer| grouping.specs.get(layer)) {
        let formula = spec.page_formula();
        match distinct.iter_mut().find(|(known, _)| *known == formula) {
            Some((_, count)) => *count += 1,
            None => distinct.push((formula, 1)),
        }
    }
    let parts = distinct
        .iter()
        .map(|(formula, count)| format!("{count} x ({formula})"));
    format!("all together {}", parts.collect::<Vec<_>>().join(" + "))
}

/// How the bytes of a block of the first stage come about: the group with most bytes decides.
fn block_formula(layout: &vllm::Layout, bytes_per_block: u64) -> String {
    let of = |group: &vllm::GroupShare| match group.kind {
        "uniform_type" => group.page_bytes,
        _ => group.layers.saturating_mul(group.page_bytes),
    };
    let Some(largest) = layout.groups.iter().max_by_key(|group| of(group)) else {
        return "no cache".to_owned();
    };
    let page = grouped(largest.page_bytes);
    let product = match largest.kind {
        "uniform_type" => format!("{page} B of all layers"),
        _ => format!("{} x {page} B", layers(largest.layers)),
    };
    let whose = if layout.groups.len() > 1 {
        " of the largest group"
    } else {
        ""
    };
    if of(largest) == bytes_per_block {
        format!("{product}{whose}")
    } else {
        format!("{product}{whose}, each page with the distance to the next that its kernel needs")
    }
}

/// How the logged number of tokens comes about: by the length of a request since 0.10, by the groups before.
fn capacity_formula(layout: &vllm::Layout, tokens: u64) -> String {
    let (blocks, needed) = (layout.num_blocks, layout.blocks_per_request.max(1));
    let by_length = u128::from(blocks) * u128::from(layout.max_model_len) / u128::from(needed);
    // The engine's division is one of floating-point numbers, which may fall one short.
    if by_length.abs_diff(u128::from(tokens)) <= 1 {
        format!(
            "int({} / {} x {})",
            grouped(blocks),
            grouped(needed),
            grouped(layout.max_model_len)
        )
    } else {
        let groups = layout.groups.len().max(1);
        format!(
            "({} blocks // {groups} groups) x {} tokens",
            grouped(blocks),
            grouped(layout.block_size)
        )
    }
}
