//! Damaged configurations: what vLLM 0.32.0 makes of a file with one field changed or left out.
//!
//! `data/mutated_configs.jsonl` holds published configurations (`base`, without quantisation) and, for each, files in which one
//! field was left out or got another value, with vLLM's answer: that it refuses the file, or the block pool of 400 GiB and
//! the weights of one rank. The reference scripts driving vLLM 0.32.0's own code answered, with transformers 5.19.0 reading
//! the files, 8,192 tokens a step, 256 sequences, and FlashMLA for latent attention.

use std::collections::BTreeMap;

use kvwise_core::arch::family::{self, Reading};
use kvwise_core::arch::{CacheKind, Config, Model, Parallel};
use kvwise_core::dtype::Dtype;
use kvwise_core::engine::vllm::{Backend, Gpu, RefusalKind, Settings, layout};
use serde_json::{Map, Value, json};

const ROWS: &str = include_str!("data/mutated_configs.jsonl");
const AVAILABLE_BYTES: u64 = 400 << 30;
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
    hopper: false,
    memory_unknown: false,
};

/// Sizes that no model has and with which vLLM builds one all the same, as PyTorch takes empty tensors and Python takes
/// lengths below nothing.
fn no_size(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_f64().is_none_or(|n| n <= 0.0 || n > f64::from(1 << 26)),
        // Python counts true as one, and what is empty as nothing.
        Value::Bool(_) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Fields that are no sizes and that are read more strictly here.
fn read_strictly(field: &str) -> bool {
    ["torch_dtype", "topk_method", "rope_type", "architectures"]
        .iter()
        .any(|name| field.ends_with(name))
}

fn rows() -> impl Iterator<Item = Value> {
    ROWS.lines()
        .map(|line| serde_json::from_str(line).expect("each line is a JSON object"))
}

fn damaged(base: &Map<String, Value>, row: &Value) -> Map<String, Value> {
    let mut map = base.clone();
    let Some(field) = row["field"].as_str() else {
        return map;
    };
    let (path, last) = field
        .rsplit_once('.')
        .map_or((None, field), |(path, last)| (Some(path), last));
    let mut part = &mut map;
    for name in path.into_iter().flat_map(|path| path.split('.')) {
        part = part
            .get_mut(name)
            .and_then(Value::as_object_mut)
            .expect("the path leads through objects");
    }
    if row["deleted"] == true {
        part.remove(last).expect("the field was there");
    } else {
        part.insert(last.to_owned(), row["value"].clone());
    }
    map
}

/// What is computed here, in the words of the rows; `refused` alone where the file is refused.
fn answer(map: Map<String, Value>) -> Value {
    let config = Config::from_map(map);
    if let Some(why) = family::unrecognised(&config) {
        return json!({"refused": true, "why": why});
    }
    let model = match family::read("m", &config) {
        Ok(Reading::Model(model)) => model,
        Ok(Reading::Refused(refusal)) => return json!({"refused": true, "why": refusal.reason}),
        Err(error) => return json!({"refused": true, "why": error.to_string()}),
    };
    laid_out(&model).unwrap_or_else(|why| json!({"refused": true, "why": why}))
}

fn laid_out(model: &Model) -> Result<Value, String> {
    let latent = |kind: &CacheKind| matches!(kind, CacheKind::Latent { .. });
    let latent = model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| latent(&cache.kind));
    let (gpu, backend) = if latent {
        (H100, "FLASHMLA")
    } else {
        (A100, "FLASH_ATTN")
    };
    let settings = Settings {
        max_num_batched_tokens: Some(8192),
        max_num_seqs: Some(256),
        async_scheduling: Some(true),
        enable_prefix_caching: Some(true),
        attention_backend: Some(Backend::parse(backend).unwrap()),
        ..Settings::default()
    };
    let outcome = layout(model, &settings, gpu, &[AVAILABLE_BYTES]).map_err(|e| e.to_string())?;
    // The reference scripts stand in for every backend, so what backends cannot do is not part of the comparison.
    if let Some(refusal) = outcome.refused
        && refusal.kind != RefusalKind::AttentionBackend
    {
        return Err(refusal.reason);
    }
    let layout = outcome.layout.ok_or("no layout")?;
    let weights = model
        .weight_bytes(0, &Parallel::default(), Dtype::Bf16, false)
        .map_err(|e| e.to_string())?;
    Ok(json!({
        "length": layout.max_model_len,
        "bytes_per_block": layout.stages.iter().map(|stage| stage.bytes_per_block).collect::<Vec<_>>(),
        "num_blocks": layout.num_blocks,
        "capacity": layout.capacity_tokens,
        "weights": [weights],
    }))
}

#[test]
fn a_damaged_file_is_refused_where_vllm_refuses_it_and_else_means_the_same() {
    let mut bases: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let (mut same, mut both_refuse, mut stricter) = (0, 0, 0);
    let mut differ = Vec::new();
    for row in rows() {
        let base = row["base"].as_str().expect("a row names its base").to_owned();
        if let Value::Object(config) = &row["config"] {
            bases.insert(base, config.clone());
            continue;
        }
        let ours = answer(damaged(&bases[&base], &row));
        let field = row["field"].as_str().unwrap_or_default();
        let what = format!(
            "{base}: {field} {}",
            if row["deleted"] == true {
                "left out".to_owned()
            } else {
                row["value"].to_string()
            }
        );
        match (row["refused"] == true, ours["refused"] == true) {
            (true, true) => both_refuse += 1,
            (true, false) => differ.push(format!("{what}: vLLM refuses, we do not")),
            (false, true) if no_size(&row["value"]) || read_strictly(field) => stricter += 1,
            (false, true) => differ.push(format!("{what}: we refuse ({}), vLLM does not", ours["why"])),
            (false, false) => {
                let figures = ["length", "bytes_per_block", "num_blocks", "capacity", "weights"];
                let other: Vec<String> = figures
                    .iter()
                    .filter(|figure| row[**figure] != ours[**figure])
                    .map(|figure| format!("{figure}: vLLM {}, ours {}", row[*figure], ours[*figure]))
                    .collect();
                if other.is_empty() {
                    same += 1;
                } else {
                    differ.push(format!("{what}: {}", other.join(", ")));
                }
            }
        }
    }
    assert!(
        differ.is_empty(),
        "{} of the files differ:\n{}",
        differ.len(),
        differ.join("\n")
    );
    assert!(
        same > 250 && both_refuse > 250 && stricter < 60,
        "{same} same, {both_refuse} refused, {stricter} stricter"
    );
}
