//! Grouping, pools and start-up check against cases made by vLLM's own code (`tests/golden/vllm_grouping.py`).

use serde_json::Value;

use super::group::{MemoryOrder, group};
use super::kv_dtype::KvDtype;
use super::request::RequestContext;
use super::spec::{Spec, SpecKind, StrideAlignment};
use super::startup;
use super::state::{StateFamily, StateShape, StateTensor};
use crate::dtype::Dtype;

const CASES: &str = include_str!("../../../tests/golden/vllm_grouping.jsonl");

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn tensor(value: &Value, index: usize) -> StateTensor {
    let dims: Vec<u64> = value["shapes"][index]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    let mut shape = [1; 3];
    shape[..dims.len()].copy_from_slice(&dims);
    StateTensor {
        shape,
        rank: dims.len(),
        dtype: Dtype::parse(value["dtypes"][index].as_str().unwrap()).unwrap(),
    }
}

fn spec(value: &Value) -> Spec {
    let window = number(value, "window");
    let kind = match value["kind"].as_str().unwrap() {
        "full" => SpecKind::Full {
            window: None,
            chunk: None,
        },
        "mla" => SpecKind::Latent {
            indexer: value["indexer"].as_bool().unwrap(),
        },
        "sliding" => SpecKind::Sliding { window, extra: 0 },
        "swmla" => SpecKind::SlidingLatent {
            window,
            extra: 0,
            replayed: false,
        },
        "chunked" => SpecKind::Chunked {
            chunk: number(value, "chunk"),
        },
        "cross" => SpecKind::Cross,
        _ => SpecKind::State {
            shape: StateShape {
                family: StateFamily::Mamba2,
                first: tensor(value, 0),
                second: Some(tensor(value, 1)),
                checkpoint_blocks: number(value, "checkpoint"),
            },
            speculative_blocks: number(value, "spec"),
        },
    };
    let (head_size, head_size_v) = (number(value, "head"), number(value, "head_v"));
    let heads = value["heads"].as_u64().unwrap_or(1);
    let content_bytes = match kind {
        SpecKind::State { shape, .. } => shape.bytes().unwrap(),
        _ => value["content"].as_u64().unwrap_or((head_size + head_size_v) * 2),
    };
    Spec {
        kind,
        block_size: number(value, "block"),
        kv_heads: heads,
        head_size,
        head_size_v,
        slots: heads,
        content_bytes,
        tokens_per_state: value["tps"].as_u64().unwrap_or(1),
        kv_dtype: KvDtype::Auto,
        padded_page_bytes: value["padded"].as_u64(),
        page_alignment_bytes: value["align"].as_u64().unwrap_or(1),
        stride: value["stride"]["kernel"]
            .as_u64()
            .map_or(StrideAlignment::Any, StrideAlignment::KernelBlock),
        dcp_sharded: !matches!(kind, SpecKind::State { .. }),
    }
    .aligned()
    .unwrap()
}

/// The engine's answer for one case, as text that both sides can be rendered to.
fn expected(case: &Value) -> String {
    match case.get("result") {
        None => {
            let error = case["error"].as_str().unwrap();
            match error.split_once("estimated maximum model length is ") {
                Some((_, rest)) => {
                    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                    format!("refused, at most {digits}")
                }
                None => "refused".to_owned(),
            }
        }
        Some(result) => {
            let groups: Vec<String> = result["groups"]
                .as_array()
                .unwrap()
                .iter()
                .map(|group| format!("{}x{}@{}", group["layers"], group["block"], group["page"]))
                .collect();
            format!(
                "{} blocks of {} for {}, {} tokens, scheduler {} hash {}, {}",
                result["num_blocks"],
                result["bytes_per_block"],
                result["length"],
                result["tokens"],
                result["scheduler_block"],
                result["hash_block"],
                groups.join(" ")
            )
        }
    }
}

fn computed(case: &Value) -> String {
    let table: Vec<Spec> = case["table"].as_array().unwrap().iter().map(spec).collect();
    let order = case["order"].as_array().unwrap();
    let specs: Vec<Spec> = order
        .iter()
        .map(|index| table[usize::try_from(index.as_u64().unwrap()).unwrap()])
        .collect();
    let layers: Vec<u64> = case["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    let available: Vec<u64> = case["available"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .collect();
    let memory_order = if case["block_outermost"].as_bool().unwrap() {
        MemoryOrder::BlockOutermost
    } else {
        MemoryOrder::LayerOutermost
    };
    let dcp = number(case, "dcp");
    let align_states = case["mode"].as_str() == Some("align");
    let disable_hybrid = case["disable_hybrid"].as_bool().unwrap();
    let Ok(grouping) = group(specs, memory_order, disable_hybrid).unwrap() else {
        return "refused".to_owned();
    };
    let mut context = RequestContext {
        max_model_len: number(case, "length"),
        max_in_flight_tokens: number(case, "in_flight"),
        max_encoder_tokens: number(case, "batched"),
        dcp,
        align_states,
    };
    let stages: Vec<std::ops::Range<u64>> = (0..available.len() as u64)
        .map(|stage| stage..stage + 1)
        .collect();
    let pools = startup::pools(&grouping, &layers, &stages, &available, case["override"].as_u64()).unwrap();
    if case["auto"].as_bool().unwrap() {
        match startup::auto_length(&grouping, &context, &pools, true).unwrap() {
            Ok(length) => context.max_model_len = length,
            Err(_) => return "refused".to_owned(),
        }
    }
    if let Err(refusal) = startup::check(&grouping, &context, &pools, true).unwrap() {
        return match refusal.estimated_max_model_len {
            Some(length) => format!("refused, at most {length}"),
            None => "refused".to_owned(),
        };
    }
    if pools.iter().any(|pool| pool.kv_layers == 0) {
        return "refused".to_owned();
    }
    let num_blocks = pools.iter().map(|pool| pool.num_blocks).min().unwrap();
    let per_request = grouping.request_blocks(&context).unwrap();
    let (tokens, _) = super::layout::logged_capacity(num_blocks, per_request, context.max_model_len).unwrap();
    let caching = case["caching"].as_bool().unwrap();
    let (scheduler, hash) = grouping
        .block_sizes(number(case, "block"), dcp, caching, align_states)
        .unwrap();
    let groups: Vec<String> = grouping
        .groups
        .iter()
        .map(|group| {
            let members: Vec<usize> = group
                .layers
                .iter()
                .copied()
                .filter(|&cache| layers[cache] == 0)
                .collect();
            let shown = if members.is_empty() {
                group.layers.clone()
            } else {
                members.clone()
            };
            let page = if group.uniform_type {
                shown
                    .iter()
                    .map(|&cache| grouping.specs[cache].page_bytes().unwrap())
                    .sum()
            } else {
                group.spec.page_bytes().unwrap()
            };
            let text: Vec<String> = members.iter().map(usize::to_string).collect();
            format!("[{}]x{}@{page}", text.join(","), group.spec.block_size)
        })
        .collect();
    let bytes: Vec<String> = pools
        .iter()
        .map(|pool| pool.bytes_per_block.to_string())
        .collect();
    format!(
        "{num_blocks} blocks of [{}] for {}, {tokens} tokens, scheduler {scheduler} hash {hash}, {}",
        bytes.join(","),
        context.max_model_len,
        groups.join(" ")
    )
}

#[test]
fn random_layers_are_grouped_and_pooled_as_the_engine_does() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (line, text) in CASES.lines().enumerate() {
        let case: Value = serde_json::from_str(text).unwrap();
        let (expected, computed) = (expected(&case), computed(&case));
        count += 1;
        if expected != computed {
            wrong.push(format!(
                "line {}:\n  vLLM   {expected}\n  kvwise {computed}",
                line + 1
            ));
        }
    }
    assert!(count >= 250, "the golden file has lost cases");
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
