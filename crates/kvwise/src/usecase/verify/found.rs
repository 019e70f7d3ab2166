//! The deployment that a log shows: model, flags, version and GPU, each with where it was read.

use std::collections::BTreeMap;

use kvwise_core::dtype::Dtype;
use kvwise_core::engine::vllm;
use kvwise_core::units::human_bytes;
use kvwise_core::{Error, ErrorKind, catalogue, hardware};
use kvwise_io::gpu::user;
use kvwise_io::log::{Boot, EngineKind, Value, python};
use kvwise_io::model;
use serde_json::json;

use super::{found_inputs, found_others};
use crate::usecase::deployment::Deployment;

/// How far a total of memory may be from a catalogue row to be that card's: logs print two decimals of a GiB.
const TOTAL_TOLERANCE_BYTES: u64 = 30 << 20;
/// The V0 engine splits the prompts of models with longer requests (vLLM 0.6.0 to 0.10.2, `engine/arg_utils.py`).
const V0_SPLITS_ABOVE: u64 = 32_768;
/// Sequences of one step of the V0 engine (vLLM 0.6.0 to 0.10.2, `config.py`).
const V0_SEQUENCES: u64 = 256;
/// Prompts of the V0 engine's profile where nothing else is said.
const V0_LEAST_BATCHED_TOKENS: u64 = 2048;

/// What a log shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub deployment: Deployment,
    /// Setting and how it was found.
    how: BTreeMap<&'static str, String>,
    pub warnings: Vec<String>,
}

impl Found {
    /// How each setting was found, without those that the user gave.
    pub fn sources(&self, given: &Deployment) -> BTreeMap<&'static str, String> {
        let given = serde_json::to_value(given).unwrap_or_default();
        self.how
            .iter()
            .filter(|(name, _)| {
                given
                    .get(**name)
                    .is_none_or(|value| value.is_null() || value == false)
            })
            .map(|(name, how)| (*name, how.clone()))
            .collect()
    }

    pub(super) fn note(&mut self, name: &'static str, how: impl Into<String>) {
        self.how.insert(name, how.into());
    }
}

/// Takes the deployment out of a boot; what cannot be read in it is a warning. What the user gives decides where a
/// setting of the log would mean nothing beside it.
pub(super) fn deployment(boot: &Boot, given: &Deployment) -> Found {
    let mut found = Found::default();
    model_name(boot, &mut found);
    match boot.engine {
        Some(EngineKind::Sglang) => found_others::sglang(boot, &mut found),
        Some(EngineKind::Llamacpp) => found_others::llamacpp(boot, given, &mut found),
        _ => vllm(boot, &mut found),
    }
    gpu(boot, &mut found);
    found
}

/// A hub id from what the engine was given: an id, a folder named like one, or a path of the hub's cache.
fn model_name(boot: &Boot, found: &mut Found) {
    let Some(given) = boot.model.as_deref() else {
        return;
    };
    if let Some(name) = known_name(given) {
        let how = if name == given {
            "named in the log".to_owned()
        } else {
            found.warnings.extend(
                (!given.trim_end_matches('/').ends_with(&name) && !given.contains("models--"))
                    .then(|| format!("planned as {name}, whose sizes {given} is taken to have")),
            );
            format!("the log says {given}")
        };
        found.deployment.model = Some(name);
        found.note("model", how);
    } else {
        found.deployment.model = Some(given.to_owned());
        found.note("model", "named in the log");
    }
}

/// The name under which a model can be found, if any can.
pub(super) fn known_name(given: &str) -> Option<String> {
    let path = std::path::Path::new(given);
    if path.is_dir() || path.is_file() || catalogue::find(given).is_ok() {
        return Some(given.to_owned());
    }
    // .../models--meta-llama--Llama-3.1-8B/snapshots/...
    if let Some(rest) = given.split("models--").nth(1) {
        let id = rest.split('/').next().unwrap_or(rest).replace("--", "/");
        if catalogue::find(&id).is_ok() {
            return Some(id);
        }
    }
    let parts: Vec<&str> = given.split('/').filter(|part| !part.is_empty()).collect();
    let last = parts.last()?;
    let pair = (parts.len() >= 2).then(|| format!("{}/{last}", parts[parts.len() - 2]));
    [pair, Some((*last).to_owned())]
        .into_iter()
        .flatten()
        .find(|name| catalogue::find(name).is_ok())
        .or_else(|| base_name(given))
}

/// Endings of fine-tuned variants that have the sizes of the model they were made from.
const VARIANTS: [&str; 5] = ["-Instruct", "-instruct", "-Chat", "-chat", "-it"];

/// Without the month that some releases end in (`-2507`, `-0731`): the sizes are those of the first release.
fn undated(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((base, date)) if date.len() == 4 && date.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => name,
    }
}

/// The catalogue's model that a variant was made from.
fn base_name(given: &str) -> Option<String> {
    VARIANTS
        .iter()
        .filter_map(|ending| given.trim_end_matches('/').strip_suffix(ending))
        .map(undated)
        .chain(std::iter::once(undated(given)))
        .find(|base| !base.is_empty() && catalogue::find(base).is_ok())
        .map(str::to_owned)
}

fn vllm(boot: &Boot, found: &mut Found) {
    let count = |name: &str| boot.setting(name).and_then(Value::count);
    let text = |name: &str| boot.setting(name).and_then(Value::text);
    let on = |name: &str| boot.setting(name).and_then(Value::flag) == Some(true);
    let off = |name: &str| boot.setting(name).and_then(Value::flag) == Some(false);
    let mut taken: Vec<&'static str> = Vec::new();
    let d = &mut found.deployment;
    d.engine = Some("vllm".to_owned());
    if let Some(version) = &boot.version {
        match vllm::Version::parse(version) {
            // A build without release tags calls itself 0.1.dev.
            Ok(parsed) if (parsed.major, parsed.minor) > (0, 1) => {
                d.engine_version = Some(parsed.to_string());
                found.how.insert("engine_version", format!("the log says {version}"));
            }
            _ => found.warnings.push(format!(
                "the build calls itself {version}, which names no release: planned as {}; --engine-version says better",
                vllm::Version::NEWEST
            )),
        }
    } else if boot.v0 {
        d.engine_version = Some("0.7.3".to_owned());
        found.how.insert(
            "engine_version",
            "V0 engine without a version: 0.7.3 assumed".to_owned(),
        );
    } else {
        found.warnings.push(format!(
            "the log does not name the version: planned as {}; --engine-version says better",
            vllm::Version::NEWEST
        ));
    }
    let mut put = |name: &'static str, slot: &mut Option<u64>| {
        if let Some(value) = count(name) {
            *slot = Some(value);
            taken.push(name);
        }
    };
    put("tensor_parallel_size", &mut d.tensor_parallel_size);
    put("pipeline_parallel_size", &mut d.pipeline_parallel_size);
    put("data_parallel_size", &mut d.data_parallel_size);
    put(
        "decode_context_parallel_size",
        &mut d.decode_context_parallel_size,
    );
    put("max_num_seqs", &mut d.max_num_seqs);
    put("max_loras", &mut d.max_loras);
    put("max_lora_rank", &mut d.max_lora_rank);
    if boot.flags.contains_key("block_size") {
        put("block_size", &mut d.block_size);
    }
    put("num_gpu_blocks_override", &mut d.num_gpu_blocks_override);
    if d.num_gpu_blocks_override.is_none() && boot.blocks_before_override.is_some() {
        d.num_gpu_blocks_override = boot.num_blocks;
        taken.push("num_gpu_blocks_override");
    }
    if let Some(dtype) = text("dtype") {
        let name = dtype.trim_start_matches("torch.").to_owned();
        if Dtype::parse(&name).is_some() {
            d.dtype = Some(name);
            taken.push("dtype");
        }
    }
    if let Some(kind) = text("kv_cache_dtype").map(|k| k.trim_start_matches("torch.").to_owned())
        && vllm::KvDtype::parse(&kind).is_ok()
    {
        d.kv_cache_dtype = Some(kind);
        taken.push("kv_cache_dtype");
    }
    let length = boot.flags.get("max_model_len").and_then(Value::text);
    if let Some(length) = length.filter(|l| vllm::MaxModelLen::parse(l).is_ok()) {
        d.max_model_len = Some(length);
        taken.push("max_model_len");
    } else if let Some(length) = boot.max_model_len {
        d.max_model_len = Some(length.to_string());
        taken.push("max_model_len");
    }
    let batched = boot
        .flags
        .get("max_num_batched_tokens")
        .and_then(Value::count)
        .or(boot.max_num_batched_tokens);
    if let Some(tokens) = batched {
        d.max_num_batched_tokens = Some(tokens.to_string());
        taken.push("max_num_batched_tokens");
    } else if boot.v0
        && let Some(length) = boot.max_model_len
    {
        let split = length > V0_SPLITS_ABOVE && !off("enable_chunked_prefill");
        let (tokens, how) = if split {
            let early = boot
                .version
                .as_deref()
                .and_then(|version| vllm::Version::parse(version).ok())
                .is_some_and(|version| version < vllm::Version::new(0, 6, 5));
            (
                if early { 512 } else { V0_LEAST_BATCHED_TOKENS },
                "the V0 engine splits prompts of models with more than 32,768 tokens",
            )
        } else {
            (
                length.max(V0_LEAST_BATCHED_TOKENS),
                "the V0 engine profiles prompts of the maximum length",
            )
        };
        d.max_num_batched_tokens = Some(tokens.to_string());
        found.how.insert("max_num_batched_tokens", how.to_owned());
    }
    if boot.v0 && d.max_num_seqs.is_none() {
        d.max_num_seqs = Some(V0_SEQUENCES);
        found.how.insert(
            "max_num_seqs",
            "the V0 engine's default in every release".to_owned(),
        );
    }
    if let Some(share) = boot.utilization.or_else(|| measured_share(boot)) {
        d.gpu_memory_utilization = Some(share);
        taken.push("gpu_memory_utilization");
    }
    let given = ["kv_cache_memory_bytes", "kv_cache_memory"]
        .iter()
        .find_map(|name| boot.flags.get(*name).and_then(Value::text));
    if let Some(bytes) = given {
        d.kv_cache_memory_bytes = Some(bytes);
        taken.push("kv_cache_memory_bytes");
    } else if let Some(figure) = boot.kv_given {
        d.kv_cache_memory_bytes = Some(figure.at_least_zero().to_string());
        taken.push("kv_cache_memory_bytes");
    }
    let mut flag = |name: &'static str, value: bool, slot: &mut bool| {
        if value {
            *slot = true;
            taken.push(name);
        }
    };
    flag("enforce_eager", on("enforce_eager"), &mut d.enforce_eager);
    flag(
        "no_enable_prefix_caching",
        off("enable_prefix_caching") || (boot.v0 && !on("enable_prefix_caching")),
        &mut d.no_enable_prefix_caching,
    );
    // A line that says so matters for models with recurrent states, which releases before 0.28 left off by default.
    d.enable_prefix_caching = on("enable_prefix_caching");
    flag(
        "no_async_scheduling",
        off("async_scheduling"),
        &mut d.no_async_scheduling,
    );
    flag(
        "disable_hybrid_kv_cache_manager",
        on("disable_hybrid_kv_cache_manager"),
        &mut d.disable_hybrid_kv_cache_manager,
    );
    flag(
        "enable_expert_parallel",
        on("enable_expert_parallel"),
        &mut d.enable_expert_parallel,
    );
    flag(
        "language_model_only",
        on("language_model_only"),
        &mut d.language_model_only,
    );
    flag(
        "skip_mm_profiling",
        on("skip_mm_profiling"),
        &mut d.skip_mm_profiling,
    );
    flag("enable_lora", on("enable_lora"), &mut d.enable_lora);
    if !d.enable_lora {
        (d.max_loras, d.max_lora_rank) = (None, None);
    }
    if let Some(backend) = boot.backend.as_deref().filter(|_| !boot.cpu)
        && vllm::Backend::parse(backend).is_ok()
    {
        d.attention_backend = Some(backend.to_owned());
        taken.push("attention_backend");
    }
    for name in taken {
        found.note(name, "in the log");
    }
    found_inputs::multimodal(boot, found);
    speculative(boot, found);
    quantization(boot, found);
}

/// The utilisation from what was requested of all memory, where no line names it.
fn measured_share(boot: &Boot) -> Option<f64> {
    let rank = boot
        .ranks
        .iter()
        .find(|r| r.requested.is_some() && r.total.is_some())?;
    let share = rank.requested?.bytes as f64 / rank.total?.bytes.max(1) as f64;
    (share > 0.0 && share <= 1.0).then(|| (share * 1000.0).round() / 1000.0)
}

/// `--speculative-config` as JSON, from Python's way of printing it.
fn speculative(boot: &Boot, found: &mut Found) {
    let Some(Value::Other(text) | Value::Text(text)) = boot.setting("speculative_config") else {
        return;
    };
    let inner = text.split_once('(').map_or(text.as_str(), |(_, rest)| rest);
    let pairs = match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(map) => map
            .into_iter()
            .map(|(key, value)| (key, Value::read(&value.to_string())))
            .collect(),
        Err(_) => python::pairs(inner),
    };
    let method = pairs.get("method").and_then(Value::text);
    let tokens = ["num_speculative_tokens", "num_spec_tokens"]
        .iter()
        .find_map(|name| pairs.get(*name).and_then(Value::count));
    let draft = pairs.get("model").and_then(Value::text);
    let Some(method) = method.filter(|m| vllm::Method::parse(m).is_ok()) else {
        found.warnings.push(format!(
            "the log's speculative_config is not understood and left out: {}",
            text.chars().take(120).collect::<String>()
        ));
        return;
    };
    let mut config = json!({ "method": method, "num_speculative_tokens": tokens.unwrap_or(1) });
    if let Some(draft) = draft {
        match known_name(&draft) {
            Some(name) => config["model"] = json!(name),
            None => found.warnings.push(format!(
                "the drafter {draft} is not found here: its weights and cache are not planned"
            )),
        }
    }
    found.deployment.speculative_config = Some(config.to_string());
    found.note("speculative_config", "in the log");
}

/// Quantisation, only where the model's own configuration does not say it.
pub(super) fn quantization(boot: &Boot, found: &mut Found) {
    let Some(method) = boot
        .setting("quantization")
        .and_then(Value::text)
        .filter(|m| !m.is_empty())
    else {
        return;
    };
    let Some(name) = &found.deployment.model else {
        return;
    };
    let Ok(model) = model::find(name) else { return };
    if model.config.get("quantization_config").is_some() {
        return;
    }
    if kvwise_core::quant::Quantization::named(&method).is_ok() {
        found.deployment.quantization = Some(method);
        found.note("quantization", "in the log; the configuration does not say it");
    } else {
        found.warnings.push(format!(
            "the server quantises by {method}, but the configuration found here does not say how: weights will differ"
        ));
    }
}

/// The GPU by its name in the log, else by its memory; the memory as the engine saw it.
fn gpu(boot: &Boot, found: &mut Found) {
    let total = boot.largest(|rank| rank.total);
    if let Some(total) = total {
        found.deployment.gpu_memory = Some(format!("{}B", total.at_least_zero()));
        found.note(
            "gpu_memory",
            format!("the engine saw {}", human_bytes(total.at_least_zero())),
        );
    }
    if boot.cpu {
        found.deployment.gpu = Some("cpu".to_owned());
        found.note("gpu", "the log is of the CPU backend");
        return;
    }
    if let Some(name) = &boot.gpu
        && let Ok(card) = user::find(name)
    {
        found.deployment.gpu = Some(card.name.clone());
        found.note("gpu", format!("the log says {name}"));
        return;
    }
    let Some(total) = total else { return };
    let mut close: Vec<&hardware::Gpu> = hardware::all()
        .iter()
        .filter(|card| {
            let (torch, known) = card.torch_total();
            known && torch.abs_diff(total.at_least_zero()) <= TOTAL_TOLERANCE_BYTES
        })
        .collect();
    // A slice of a larger card is only assumed where no whole card has this much.
    if close.iter().any(|card| !is_slice(card)) {
        close.retain(|card| !is_slice(card));
    }
    let Some(first) = close.first() else { return };
    let alike = close
        .iter()
        .all(|card| card.compute_capability == first.compute_capability && card.unified == first.unified);
    if alike {
        found.deployment.gpu = Some(first.name.clone());
        let names: Vec<&str> = close.iter().map(|card| card.name.as_str()).collect();
        found.note(
            "gpu",
            format!(
                "assumed: {} is what {} has",
                human_bytes(total.at_least_zero()),
                names.join(" or ")
            ),
        );
    } else {
        let names: Vec<&str> = close.iter().map(|card| card.name.as_str()).collect();
        found.warnings.push(format!(
            "the log does not name the GPU; by its memory it may be {}: --gpu says which",
            names.join(", ")
        ));
    }
}

/// Whether the row is an instance of a partitioned card (`h100-1g.10gb`).
fn is_slice(card: &hardware::Gpu) -> bool {
    card.mig_profile.is_some()
}

/// Adds to a planner's error what the log has to do with it.
pub(super) fn explain(error: Error, boot: &Boot, given: &Deployment) -> Error {
    if given.model.is_none()
        && let Some(model) = &boot.model
        && error.kind() == ErrorKind::NotFound
        && !error.to_string().contains("GPU")
    {
        return error.hint(format!(
            "the log names the model {model}: give its catalogue name, folder or config.json, as in kvwise verify MODEL --log FILE"
        ));
    }
    if given.gpu.is_none() && given.gpu_memory.is_none() && error.to_string().starts_with("which GPU?") {
        return error.hint("the log does not say on which GPU the server ran");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_cache_paths_are_recognised_as_catalogue_models() {
        for given in [
            "Qwen/Qwen3-32B",
            "/models/Qwen3-32B",
            "/mnt/Qwen/Qwen3-32B/",
            "/root/.cache/huggingface/hub/models--Qwen--Qwen3-32B/snapshots/9216db5781bf21249d130ec9da846c4624c16137",
        ] {
            let name = known_name(given).unwrap();
            assert_eq!(catalogue::find(&name).unwrap().id, "Qwen/Qwen3-32B", "{given}");
        }
        assert_eq!(known_name("/models/something-of-our-own"), None);
    }

    #[test]
    fn a_speculative_configuration_is_read_as_python_prints_it() {
        for text in [
            "{'method': 'mtp', 'num_speculative_tokens': 2}",
            "SpeculativeConfig(method='mtp', model='/nowhere', num_spec_tokens=2)",
            "{\"method\":\"mtp\",\"num_speculative_tokens\":2}",
        ] {
            let mut boot = Boot::default();
            boot.flags
                .insert("speculative_config".to_owned(), Value::Other(text.to_owned()));
            let mut found = Found::default();
            speculative(&boot, &mut found);
            assert_eq!(
                found.deployment.speculative_config.as_deref(),
                Some(r#"{"method":"mtp","num_speculative_tokens":2}"#),
                "{text}"
            );
        }
    }
}
