//! One golden row against our own answer.

use kvwise_core::arch::{Cache, CacheKind, Model};
use kvwise_core::dtype::Dtype;
use kvwise_core::engine::vllm::{Gpu, Layout, layout};
use serde_json::Value;

use super::settings::{parallel, settings};

const H100: Gpu = Gpu {
    major: 9,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: false,
    hopper: false,
    memory_unknown: false,
};

/// Where the stand-in for `FLASH_ATTN` takes any multiple of 16, as on Ampere: Hopper's own fixes pages for some heads.
const A100: Gpu = Gpu {
    major: 8,
    minor: 0,
    memory_bytes: 80 << 30,
    a100: true,
    hopper: false,
    memory_unknown: false,
};

fn group_kind(wrapper: &str) -> &'static str {
    match wrapper {
        // R-SWA (Unlimited-OCR) gives blocks back during decoding; it is sized as full attention is.
        "FullAttention" | "RSWA" => "full_attention",
        "SlidingWindow" => "sliding_window",
        "Mamba" => "mamba",
        "MLAAttention" => "mla_attention",
        "ChunkedLocalAttention" => "chunked_local_attention",
        "CrossAttention" => "cross_attention",
        "UniformType" => "uniform_type",
        other => panic!("unknown group {other}"),
    }
}

/// The row's concurrency, rounded as the standard library rounds (the JSON reader may be off by one unit).
fn concurrency(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("\"max_concurrency\":")?;
    let (digits, _) = rest.split_once([',', '}'])?;
    digits.parse().ok()
}

/// Fields in which our layout is not vLLM's, as `field: theirs, ours`.
fn differences(row: &Value, concurrency: Option<f64>, ours: &Layout) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |field: &str, theirs: String, ours: String| {
        if theirs != ours {
            found.push(format!("{field}: vLLM {theirs}, ours {ours}"));
        }
    };
    let optional = |value: Option<u64>| value.map_or("null".to_owned(), |n| n.to_string());
    let bytes: Vec<u64> = ours.stages.iter().map(|stage| stage.bytes_per_block).collect();
    compare(
        "block_size",
        row["block_size"].to_string(),
        ours.block_size.to_string(),
    );
    compare(
        "mamba_block_size",
        row["mamba_block_size"].to_string(),
        optional(ours.mamba_block_size),
    );
    compare(
        "mamba_page_size_padded",
        row["mamba_page_size_padded"].to_string(),
        optional(ours.mamba_page_bytes_padded),
    );
    compare(
        "kv_layers",
        row["kv_layers"].to_string(),
        ours.kv_layers.to_string(),
    );
    compare(
        "bytes_per_block",
        row["bytes_per_block"].to_string(),
        format!("{bytes:?}").replace(' ', ""),
    );
    compare(
        "num_blocks",
        row["num_blocks"].to_string(),
        ours.num_blocks.to_string(),
    );
    compare(
        "capacity_tokens",
        row["capacity_tokens"].to_string(),
        optional(ours.capacity_tokens),
    );
    compare(
        "scheduler_block_size",
        row["scheduler_block_size"].to_string(),
        ours.scheduler_block_size.to_string(),
    );
    compare(
        "hash_block_size",
        row["hash_block_size"].to_string(),
        ours.hash_block_size.to_string(),
    );
    if concurrency != ours.max_concurrency {
        compare(
            "max_concurrency",
            row["max_concurrency"].to_string(),
            format!("{:?}", ours.max_concurrency),
        );
    }
    let theirs: Vec<String> = row["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            let kind = group_kind(group[1].as_str().unwrap());
            let page = if kind == "uniform_type" {
                Value::from(0)
            } else {
                group[3].clone()
            };
            format!("{} {kind} {} {page} {}", group[0], group[2], group[4])
        })
        .collect();
    let own: Vec<String> = ours
        .groups
        .iter()
        .map(|group| {
            let page = if group.kind == "uniform_type" {
                0
            } else {
                group.page_bytes
            };
            format!(
                "{} {} {} {page} {}",
                group.layers, group.kind, group.block_size, group.blocks_per_request
            )
        })
        .collect();
    compare("groups", theirs.join("; "), own.join("; "));
    found
}

/// Differences of one row: in the cache, and in the weights.
pub fn row_differences(line: &str, row: &Value, model: &Model) -> (Vec<String>, Vec<String>) {
    let args = &row["args"];
    let settings = settings(args, model);
    let latent = |cache: &Cache| {
        matches!(
            cache.kind,
            CacheKind::Latent { .. } | CacheKind::Compressed { .. } | CacheKind::SharedCompressed { .. }
        )
    };
    let dense = !model.layers.iter().flat_map(|layer| &layer.caches).any(latent);
    let gpu = match args["capability"].as_u64() {
        Some(major) => Gpu {
            major: u32::try_from(major).unwrap(),
            ..H100
        },
        None if dense => A100,
        None => H100,
    };
    let outcome = match layout(
        model,
        &settings,
        gpu,
        &[args["available_bytes"].as_u64().unwrap()],
    ) {
        Ok(outcome) => outcome,
        Err(error) => return (vec![format!("error: {error}")], Vec::new()),
    };
    if row["refused"].as_bool() == Some(true) {
        let found = match outcome.refused {
            None => Some("vLLM refuses, we do not".to_owned()),
            Some(refusal) => {
                let theirs = row["estimated_max_model_len"].as_u64();
                let ours = refusal.estimated_max_model_len;
                (theirs != ours).then(|| format!("estimated_max_model_len: vLLM {theirs:?}, ours {ours:?}"))
            }
        };
        return (found.into_iter().collect(), Vec::new());
    }
    // The reference scripts stand in for every backend, so its limits are not part of the comparison.
    let kv = match &outcome.layout {
        Some(ours) => differences(row, concurrency(line), ours),
        None => vec![format!("refused: {:?}", outcome.refused)],
    };
    let parallel = parallel(&settings);
    let towers = args["with_encoder"].as_bool() == Some(true);
    let weights: Vec<String> = (0..parallel.pp)
        .map(
            |stage| match model.weight_bytes(stage, &parallel, Dtype::Bf16, towers) {
                Ok(bytes) => bytes.to_string(),
                Err(error) => error.to_string(),
            },
        )
        .collect();
    let own = format!("[{}]", weights.join(","));
    let theirs = row["weight_bytes_per_rank"].to_string();
    let mut found: Vec<String> = (theirs != "null" && theirs != own)
        .then(|| format!("weight_bytes_per_rank: vLLM {theirs}, ours {own}"))
        .into_iter()
        .collect();
    if let (Some(theirs), Some(speculative)) = (row["drafter_bytes"].as_u64(), &settings.speculative) {
        match speculative.weights(model, &parallel, Dtype::Bf16, None) {
            Ok(Some(ours)) if ours.bytes == theirs => {}
            other => found.push(format!("drafter_bytes: vLLM {theirs}, ours {other:?}")),
        }
    }
    (kv, found)
}
