//! Drafters of speculative decoding against vLLM 0.32.0: caches and weights of multi-token-prediction modules and EAGLE heads.
//!
//! The rows of `data/drafters.jsonl` were made by vLLM's own drafter classes on the meta device, beside the target
//! (`initialize_model` with `speculative_config`), then its own grouping and sizing; backends `FLASH_ATTN` and `FLASHMLA`,
//! 8192 tokens and 256 sequences a step. Weights are the drafter's parameters without the embedding and, for
//! multi-token prediction, without the output head, which are the target's own. Rows with a `config` have their own target,
//! those without a capacity are of a model for which a GPU's kernel keeps a block that the reference does not (`FlashKDA`).

use kvwise_core::arch::family::{
    Block, Eagle, Reading, read, read_assistant, read_block_drafter, read_eagle,
};
use kvwise_core::arch::{CacheKind, Config, Model, Parallel};
use kvwise_core::catalogue;
use kvwise_core::dtype::Dtype;
use kvwise_core::engine::vllm::{Backend, Draft, Gpu, MaxModelLen, Method, Settings, Speculative, layout};
use serde_json::Value;

const ROWS: &str = include_str!("data/drafters.jsonl");

/// Where the stand-in for `FLASH_ATTN` takes any multiple of 16, as on Ampere: Hopper's own fixes pages for some heads.
const A100: Gpu = Gpu {
    major: 8,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: true,
    hopper: false,
    memory_unknown: false,
};

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: true,
    memory_unknown: false,
};

/// The target: a model of the catalogue, or the configuration that the row has.
fn target(name: &str, row: &Value) -> Model {
    let config = match row.get("config") {
        Some(config) => Config::parse(config.to_string().as_bytes()).unwrap(),
        None => catalogue::find(name).unwrap().config().unwrap(),
    };
    match read(name, &config).unwrap() {
        Reading::Model(model) => *model,
        Reading::Refused(refusal) => panic!("{name}: {}", refusal.reason),
    }
}

fn is_latent(model: &Model) -> bool {
    model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::Latent { .. }))
}

#[test]
fn drafters_have_the_caches_and_weights_that_the_engine_gives_them() {
    let mut failures = Vec::new();
    let mut rows = 0;
    for line in ROWS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let n = |key: &str| row[key].as_u64().unwrap();
        let (name, tp) = (row["model"].as_str().unwrap(), n("tp"));
        let model = target(name, &row);
        let method = Method::parse(row["method"].as_str().unwrap()).unwrap();
        let draft = row.get("draft").map(|config| {
            let config = Config::parse(config.to_string().as_bytes()).unwrap();
            let drafter = match method {
                Method::Eagle => read_eagle("draft", &config, Eagle::One, model.vocab_size),
                Method::Eagle3 => read_eagle("draft", &config, Eagle::Three, model.vocab_size),
                Method::DFlash => read_block_drafter("draft", &config, Block::Flash, Some(&model)),
                Method::DSpark => read_block_drafter("draft", &config, Block::Spark, Some(&model)),
                _ => read_assistant("draft", &config).map(|read| read.expect("an assistant")),
            };
            Box::new(Draft {
                model: drafter.unwrap_or_else(|e| panic!("{name}: {e}")),
                config,
                has_embedding: None,
                has_head: None,
            })
        });
        let speculative = Speculative {
            method,
            num_tokens: n("num_tokens"),
            draft,
        };
        let latent = is_latent(&model);
        let settings = Settings {
            tensor_parallel_size: tp,
            max_model_len: MaxModelLen::Tokens(n("max_model_len")),
            max_num_batched_tokens: Some(8192),
            max_num_seqs: Some(256),
            enable_prefix_caching: Some(true),
            attention_backend: latent.then_some(Backend::FlashMla),
            speculative: Some(speculative.clone()),
            ..Settings::default()
        };
        let gpu = if latent { H100 } else { A100 };
        let outcome = layout(&model, &settings, gpu, &[n("available_bytes")]).unwrap();
        let parallel = Parallel::tensor(tp);
        let weights = speculative
            .weights(&model, &parallel, Dtype::Bf16, None)
            .map(|w| w.map_or(0, |w| w.bytes));
        let Some(held) = outcome.layout else {
            failures.push(format!("{name} TP {tp}: refused: {:?}", outcome.refused));
            continue;
        };
        rows += 1;
        let got = [
            held.kv_layers,
            held.block_size,
            held.stages[0].bytes_per_block,
            held.num_blocks,
            row.get("capacity_tokens").and(held.capacity_tokens).unwrap_or(0),
        ];
        let want = [
            "kv_layers",
            "block_size",
            "bytes_per_block",
            "num_blocks",
            "capacity_tokens",
        ]
        .map(|key| row.get(key).map_or(0, |value| value.as_u64().unwrap()));
        if got != want {
            failures.push(format!(
                "{name} TP {tp} {}: {got:?}, the engine has {want:?}",
                method.name()
            ));
        }
        match weights {
            Ok(bytes) if bytes == n("drafter_bytes") => {}
            other => failures.push(format!(
                "{name} TP {tp} {}: weights {other:?}, the engine has {}",
                method.name(),
                n("drafter_bytes")
            )),
        }
    }
    assert!(rows >= 12, "{rows} rows");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
