//! Rows that SGLang 0.5.23's own code made, compared to the last token.
//!
//! `tests/data/sglang_pools.jsonl` was made by `tests/reference/sglang_pools.py`: the engine's argument resolution with
//! the platform's facts stated (a CPU stands in for the GPU), then its own `KVCacheConfigurator` on given amounts of free
//! memory. Fields: the arguments by the engine's names, the drafter's configuration, free GiB before and after loading, and
//! what it resolved. A row that is refused before any of it is resolved has no fraction.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Algorithm, Card, Chunk, Drafter, KvDtype, Settings, Speculative, Static, defaults, pools, shape,
};
use crate::arch::{Config, Model, family};
use crate::catalogue;
use crate::dtype::Dtype;
use crate::engine::vllm::Draft;

#[derive(Deserialize)]
struct Row {
    model: String,
    mib: f64,
    cap: (u32, u32),
    args: Map<String, Value>,
    draft: Option<Map<String, Value>>,
    before_gib: f64,
    after_gib: f64,
    #[serde(flatten)]
    resolved: Option<Resolved>,
    steps: Option<[u64; 3]>,
    kv_bytes: Option<u64>,
    tokens: Option<u64>,
    swa: Option<u64>,
    slots: Option<u64>,
    running: Option<u64>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Resolved {
    fraction: f64,
    page: u64,
    backend: String,
    chunk: i64,
    element: String,
    context: u64,
    graphs: Option<u64>,
}

fn drafter(row: &Row) -> Drafter {
    match (&row.draft, row.args.get("speculative_draft_model_path")) {
        (Some(config), _) => {
            let config = Config::from_map(config.clone());
            Drafter::Model(Box::new(Draft {
                model: model("drafter", &config).unwrap(),
                config,
                has_embedding: None,
                has_head: None,
            }))
        }
        (None, Some(_)) => Drafter::Target,
        (None, None) => Drafter::Unnamed,
    }
}

fn model(name: &str, config: &Config) -> Result<Model, String> {
    match family::read(name, config) {
        Ok(family::Reading::Model(model)) => Ok(*model),
        other => Err(format!("{other:?}")),
    }
}

fn settings(row: &Row) -> Settings {
    let mut s = Settings::default();
    let mut dp = 1;
    let number = |key: &str| row.args.get(key).and_then(Value::as_u64);
    s.speculative = row.args.get("speculative_algorithm").map(|name| Speculative {
        algorithm: Algorithm::parse(name.as_str().unwrap()).unwrap(),
        num_steps: number("speculative_num_steps"),
        eagle_topk: number("speculative_eagle_topk"),
        num_draft_tokens: number("speculative_num_draft_tokens"),
        drafter: drafter(row),
    });
    for (key, value) in &row.args {
        let n = value.as_u64();
        match key.as_str() {
            key if key.starts_with("speculative_") => {}
            "attention_backend" => s.attention_backend = value.as_str().map(str::to_owned),
            "tp_size" => s.tensor_parallel_size = n.unwrap(),
            "pp_size" => s.pipeline_parallel_size = n.unwrap(),
            "enable_dp_attention" => {}
            "dp_size" => dp = n.unwrap(),
            "kv_cache_dtype" => s.kv_cache_dtype = KvDtype::parse(value.as_str().unwrap()).unwrap(),
            "page_size" => s.page_size = n,
            "mem_fraction_static" => s.mem_fraction_static = value.as_f64(),
            "chunked_prefill_size" => s.chunked_prefill_size = Some(n.map_or(Chunk::Whole, Chunk::Tokens)),
            "max_running_requests" => s.max_running_requests = n,
            "context_length" => s.context_length = n,
            "swa_full_tokens_ratio" => s.swa_full_tokens_ratio = value.as_f64(),
            "disable_radix_cache" => s.disable_radix_cache = true,
            "disable_cuda_graph" => s.disable_cuda_graph = true,
            "disable_prefill_cuda_graph" => s.disable_prefill_cuda_graph = true,
            "disable_overlap_schedule" => s.disable_overlap_schedule = true,
            "mamba_full_memory_ratio" => s.mamba_full_memory_ratio = value.as_f64(),
            "max_total_tokens" => s.max_total_tokens = n,
            "cuda_graph_max_bs_decode" => s.cuda_graph_max_bs = n,
            "max_mamba_cache_size" => s.max_mamba_cache_size = n,
            "mamba_radix_cache_strategy" => s.mamba_extra_buffer = Some(value == "extra_buffer"),
            other => panic!("the rows have an argument {other} that this test does not know"),
        }
    }
    s.attention_dp_size = dp;
    s
}

/// What differs between a row and the model of the engine, in words.
fn differences(row: &Row) -> Vec<String> {
    let entry = catalogue::find(&row.model).unwrap_or_else(|e| panic!("{e:?}"));
    let config = entry.config().unwrap();
    let model = match model(&row.model, &config) {
        Ok(model) => model,
        Err(reading) => return vec![reading],
    };
    let settings = settings(row);
    settings.validate().unwrap();
    let card = Card {
        memory_mib: row.mib,
        capability: row.cap,
    };
    let shape = match shape(&model, &config, &settings, &card) {
        Ok(shape) => shape,
        Err(e) => return vec![e.to_string()],
    };
    let resolved = match (&row.resolved, &shape.refused) {
        (Some(resolved), None) => resolved,
        (None, Some(_)) => return Vec::new(),
        (Some(_), Some(ours)) => return vec![format!("refused: {ours}")],
        (None, None) => return vec![format!("not refused: {:?}", row.refused)],
    };
    let found = defaults(&settings, &card, &shape.traits);
    let mut out = Vec::new();
    let mut compare = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            out.push(format!("{what}: {ours} instead of {theirs}"));
        }
    };
    // The last bit of a fraction is the reader's of this file.
    let share = |fraction: f64| format!("{fraction:.14}");
    compare(
        "fraction",
        share(found.mem_fraction_static),
        share(resolved.fraction),
    );
    compare("page", shape.page_size.to_string(), resolved.page.to_string());
    compare("backend", shape.backend.clone(), resolved.backend.clone());
    compare(
        "chunk",
        found
            .chunked_prefill_size
            .map_or("-1".to_owned(), |n| n.to_string()),
        resolved.chunk.to_string(),
    );
    compare(
        "bits of an element",
        shape.element.bits().to_string(),
        match resolved.element.as_str() {
            // A byte of two.
            "float4_e2m1fn_x2" => 8,
            element => Dtype::parse(element).unwrap().bits(),
        }
        .to_string(),
    );
    compare(
        "context",
        shape.context_len.to_string(),
        resolved.context.to_string(),
    );
    let steps = shape
        .steps
        .map(|s| [s.num_steps, s.eagle_topk, s.num_draft_tokens]);
    compare("steps", format!("{steps:?}"), format!("{:?}", row.steps));
    if let Some(graphs) = resolved.graphs {
        compare(
            "largest decode graph",
            found.decode_max_batch.to_string(),
            graphs.to_string(),
        );
    }
    let measured = Static {
        before_gib: row.before_gib,
        after_gib: row.after_gib,
        fraction: resolved.fraction,
    };
    let measured = vec![measured; shape.stages.len()];
    match (pools(&shape, &settings, &measured).unwrap(), &row.refused) {
        (Ok(pools), None) => {
            let ours = (
                Some(pools.kv_bytes),
                Some(pools.max_total_num_tokens),
                pools.swa_tokens,
                pools.state_slots,
                Some(pools.max_running_requests),
            );
            let theirs = (row.kv_bytes, row.tokens, row.swa, row.slots, row.running);
            compare(
                "bytes, tokens, window, states, requests",
                format!("{ours:?}"),
                format!("{theirs:?}"),
            );
        }
        (Err(_), Some(_)) => {}
        (Ok(pools), Some(theirs)) => out.push(format!("{pools:?} instead of a refusal: {theirs}")),
        (Err(ours), None) => out.push(format!("refused ({ours}) instead of {:?} tokens", row.tokens)),
    }
    out
}

/// The rows of a file that differ, in words, and how many there are in all.
fn compare_rows(rows: &str) -> (Vec<String>, usize) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in rows.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        count += 1;
        let found = differences(&row);
        if !found.is_empty() {
            wrong.push(format!(
                "{} {:?} {}: {}",
                row.model,
                row.cap,
                Value::Object(row.args.clone()),
                found.join("; ")
            ));
        }
    }
    (wrong, count)
}

#[test]
fn tokens_states_and_fractions_are_those_of_the_engines_own_code() {
    let (wrong, count) = compare_rows(include_str!("../../../tests/data/sglang_pools.jsonl"));
    assert!(count > 350, "only {count} rows");
    assert!(
        wrong.is_empty(),
        "{} of {count} rows differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Rows for the whole catalogue, made by `tests/reference/sglang_pool_jobs.py` and `sglang_pools.py`.
#[test]
fn rows_of_a_file_are_compared_where_one_is_named() {
    let Some(path) = std::env::var_os("KVWISE_SGLANG_POOLS") else {
        return;
    };
    let (wrong, count) = compare_rows(&std::fs::read_to_string(path).unwrap());
    let equal = count - wrong.len();
    assert!(
        count > 0 && wrong.is_empty(),
        "{equal} of {count} rows are equal:\n{}",
        wrong.join("\n")
    );
}
