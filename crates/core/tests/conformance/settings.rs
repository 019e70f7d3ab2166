//! The settings of a golden row, as our planner takes them, and its column of the table.

use std::fmt::Write as _;

use kvwise_core::arch::{CacheKind, Model, Parallel};
use kvwise_core::engine::vllm::{Backend, KvDtype, MaxModelLen, Method, Settings, Speculative};
use serde_json::Value;

/// Arguments that have a column of their own in the table.
const COLUMNS: [&str; 8] = [
    "layers",
    "tp",
    "pp",
    "kv_dtype",
    "no_prefix_caching",
    "with_encoder",
    "max_model_len",
    "available_bytes",
];

/// The column of the table that a row belongs to; rarer settings share one and are listed below the table.
pub fn setting(args: &Value) -> (String, Option<String>) {
    let rare: Vec<String> = args
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, value)| {
            !COLUMNS.contains(&key.as_str())
                || (key.as_str() == "kv_dtype" && value.as_str() != Some("fp8"))
                || (key.as_str() == "tp" && value.as_u64() > Some(8))
                || (key.as_str() == "pp" && value.as_u64() > Some(2))
        })
        .map(|(key, value)| format!("{key}={}", value.to_string().trim_matches('"')))
        .collect();
    let combined = ["dp", "ep", "dcp", "mtp"]
        .iter()
        .filter(|key| args.get(**key).is_some())
        .count();
    if args.get("layers").is_some() || combined > 1 {
        return ("combined".to_owned(), None);
    }
    if !rare.is_empty() {
        return ("other".to_owned(), Some(rare.join(" ")));
    }
    let mut label = format!("TP {}", args["tp"].as_u64().unwrap_or(1));
    if let Some(stages) = args["pp"].as_u64() {
        let _ = write!(label, ", PP {stages}");
    }
    if let Some(dtype) = args["kv_dtype"].as_str() {
        let _ = write!(label, ", {dtype}");
    }
    if args["no_prefix_caching"].as_bool() == Some(true) {
        label.push_str(", no prefix caching");
    }
    if args["with_encoder"].as_bool() == Some(true) {
        label.push_str(", with towers");
    }
    (label, None)
}

/// The settings the reference scripts used: stand-ins for `FLASH_ATTN`, and `FLASHMLA` for latent attention without
/// an indexer, unless the row names others; 8192 batched tokens, asynchronous scheduling without pipeline stages.
pub fn settings(args: &Value, model: &Model) -> Settings {
    let any = |wanted: fn(&CacheKind) -> bool| {
        model
            .layers
            .iter()
            .flat_map(|layer| &layer.caches)
            .any(|cache| wanted(&cache.kind))
    };
    let shared = any(|kind| matches!(kind, CacheKind::SharedCompressed { .. }));
    let latent =
        any(|kind| matches!(kind, CacheKind::Latent { .. } | CacheKind::Compressed { .. })) || shared;
    let sparse = any(|kind| matches!(kind, CacheKind::Latent { sparse: true, .. })) || shared;
    let backend = match (latent, sparse) {
        (true, true) => args["mla_backend"].as_str(),
        (true, false) => Some(args["mla_backend"].as_str().unwrap_or("FLASHMLA")),
        (false, _) => Some(args["backend"].as_str().unwrap_or("FLASH_ATTN")),
    };
    let stages = args["pp"].as_u64().unwrap_or(1);
    Settings {
        tensor_parallel_size: args["tp"].as_u64().unwrap_or(1),
        pipeline_parallel_size: stages,
        data_parallel_size: args["dp"].as_u64().unwrap_or(1),
        enable_expert_parallel: args["ep"].as_bool() == Some(true),
        decode_context_parallel_size: args["dcp"].as_u64().unwrap_or(1),
        speculative: [("mtp", Method::Mtp), ("dspark", Method::DSpark)]
            .into_iter()
            .find_map(|(key, method)| Some((method, args[key].as_u64()?)))
            .map(|(method, num_tokens)| Speculative {
                method,
                num_tokens,
                draft: None,
            }),
        kv_cache_dtype: KvDtype::parse(args["kv_dtype"].as_str().unwrap_or("auto")).unwrap(),
        block_size: args["block_size"].as_u64(),
        max_model_len: args["max_model_len"]
            .as_u64()
            .map_or(MaxModelLen::Derived, MaxModelLen::Tokens),
        max_num_batched_tokens: Some(args["max_num_batched_tokens"].as_u64().unwrap_or(8192)),
        max_num_seqs: Some(256),
        async_scheduling: Some(stages == 1 && args["asyn"].as_u64() != Some(0)),
        enable_prefix_caching: Some(args["no_prefix_caching"].as_bool() != Some(true)),
        disable_hybrid_kv_cache_manager: args["no_hybrid"].as_bool() == Some(true),
        attention_backend: backend.map(|name| Backend::parse(name).unwrap()),
        ..Settings::default()
    }
}

/// The ranks of these settings.
pub fn parallel(settings: &Settings) -> Parallel {
    Parallel {
        tp: settings.tensor_parallel_size,
        pp: settings.pipeline_parallel_size,
        dp: settings.data_parallel_size,
        dcp: settings.decode_context_parallel_size,
        expert_parallel: settings.enable_expert_parallel,
    }
}
