//! What the logs of SGLang and llama.cpp show of a deployment.

use kvwise_core::dtype::Dtype;
use kvwise_core::engine::llamacpp::GgmlType;
use kvwise_core::engine::llamacpp::convert::Mix;
use kvwise_core::engine::sglang;
use kvwise_io::log::{Boot, Value};

use super::found::{Found, known_name, quantization};
use crate::usecase::deployment::Deployment;

/// SGLang's server arguments; what they leave open is taken from the scheduler's own line.
pub(super) fn sglang(boot: &Boot, found: &mut Found) {
    let flag = |name: &str| boot.flags.get(name);
    let count = |name: &str| flag(name).and_then(Value::count);
    let number = |name: &str| flag(name).and_then(Value::number);
    let text = |name: &str| flag(name).and_then(Value::text).filter(|t| t != "auto");
    let on = |name: &str| flag(name).and_then(Value::flag) == Some(true);
    let mut taken: Vec<&'static str> = Vec::new();
    let d = &mut found.deployment;
    d.engine = Some("sglang".to_owned());
    d.tensor_parallel_size = count("tp_size");
    d.pipeline_parallel_size = count("pp_size");
    // Without attention groups, `dp_size` starts whole copies of the server, each with its own GPUs.
    d.data_parallel_size = count("dp_size").filter(|_| on("enable_dp_attention"));
    d.enable_expert_parallel = on("enable_ep_moe") || count("ep_size").is_some_and(|n| n > 1);
    d.max_model_len = count("context_length")
        .or(boot.max_model_len)
        .map(|n| n.to_string());
    d.kv_cache_dtype = text("kv_cache_dtype").filter(|kind| sglang::KvDtype::parse(kind).is_ok());
    d.dtype = text("dtype").filter(|kind| Dtype::parse(kind).is_some());
    d.mem_fraction_static = boot.utilization.filter(|share| *share > 0.0 && *share < 1.0);
    d.page_size = count("page_size").filter(|n| *n > 0);
    d.chunked_prefill_size = match number("chunked_prefill_size") {
        Some(n) if n < 0.0 => Some(-1),
        _ => count("chunked_prefill_size")
            .or(boot.max_num_batched_tokens)
            .and_then(|n| i64::try_from(n).ok())
            .filter(|n| *n > 0),
    };
    d.max_running_requests = count("max_running_requests");
    d.max_total_tokens = count("max_total_tokens").map(|n| n.to_string());
    d.swa_full_tokens_ratio = number("swa_full_tokens_ratio");
    d.mamba_full_memory_ratio = number("mamba_full_memory_ratio");
    d.attention_backend = text("attention_backend");
    d.enforce_eager = on("disable_cuda_graph");
    d.no_enable_prefix_caching = on("disable_radix_cache");
    d.no_async_scheduling = on("disable_overlap_schedule");
    for (name, there) in [
        ("tensor_parallel_size", d.tensor_parallel_size.is_some()),
        ("pipeline_parallel_size", d.pipeline_parallel_size.is_some()),
        ("data_parallel_size", d.data_parallel_size.is_some()),
        ("enable_expert_parallel", d.enable_expert_parallel),
        ("max_model_len", d.max_model_len.is_some()),
        ("kv_cache_dtype", d.kv_cache_dtype.is_some()),
        ("dtype", d.dtype.is_some()),
        ("mem_fraction_static", d.mem_fraction_static.is_some()),
        ("page_size", d.page_size.is_some()),
        ("chunked_prefill_size", d.chunked_prefill_size.is_some()),
        ("max_running_requests", d.max_running_requests.is_some()),
        ("max_total_tokens", d.max_total_tokens.is_some()),
        ("swa_full_tokens_ratio", d.swa_full_tokens_ratio.is_some()),
        ("mamba_full_memory_ratio", d.mamba_full_memory_ratio.is_some()),
        ("attention_backend", d.attention_backend.is_some()),
        ("enforce_eager", d.enforce_eager),
        ("no_enable_prefix_caching", d.no_enable_prefix_caching),
        ("no_async_scheduling", d.no_async_scheduling),
    ] {
        if there {
            taken.push(name);
        }
    }
    for name in taken {
        found.note(name, "in the log");
    }
    if let Some(algorithm) = text("speculative_algorithm")
        && !drafter(boot, &algorithm, found)
    {
        found.warnings.push(format!(
            "the server has speculative_algorithm={algorithm}: its drafter's weights and cache are not planned"
        ));
    }
    if let Some(value) = text("max_mamba_cache_size") {
        found.warnings.push(format!(
            "the server has max_mamba_cache_size={value}: this size of the recurrent states is not planned"
        ));
    }
    if boot.flags.is_empty() {
        found
            .warnings
            .push("the log does not show the server's arguments: the defaults are planned".to_owned());
    }
    quantization(boot, found);
}

/// SGLang's drafter, where its model is one that can be found.
fn drafter(boot: &Boot, algorithm: &str, found: &mut Found) -> bool {
    let text = |name: &str| boot.flags.get(name).and_then(Value::text);
    let path = text("speculative_draft_model_path");
    let own = path.is_some() && path == text("model_path");
    let drafter = match (&path, own) {
        (Some(_), true) => found.deployment.model.clone(),
        (Some(path), false) => known_name(path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)),
        (None, _) => None,
    };
    if sglang::Algorithm::parse(algorithm).is_err() || path.is_some() && drafter.is_none() {
        return false;
    }
    let count = |name: &str| boot.flags.get(name).and_then(Value::count);
    let d = &mut found.deployment;
    d.speculative_algorithm = Some(algorithm.to_owned());
    d.speculative_draft_model_path = drafter;
    d.speculative_num_steps = count("speculative_num_steps");
    d.speculative_eagle_topk = count("speculative_eagle_topk");
    d.speculative_num_draft_tokens = count("speculative_num_draft_tokens");
    found.note("speculative_algorithm", "in the log");
    true
}

/// llama.cpp's file, context and placement.
pub(super) fn llamacpp(boot: &Boot, given: &Deployment, found: &mut Found) {
    let setting = |name: &str| boot.config.get(name);
    let count = |name: &str| setting(name).and_then(Value::count);
    let cache_type = |name: &str| {
        setting(name)
            .and_then(Value::text)
            .filter(|kind| GgmlType::cache(name, kind).is_ok())
    };
    found.deployment.engine = Some("llamacpp".to_owned());
    model(boot, given, found);
    let d = &mut found.deployment;
    // The logged context is the one after rounding to whole units of cells, which rounding again leaves as it is.
    d.ctx_size = boot.max_model_len.map(|n| n.to_string());
    d.parallel = count("n_seq_max").filter(|n| *n > 0);
    d.kv_unified = setting("kv_unified").and_then(Value::flag).unwrap_or_else(|| {
        boot.max_model_len
            .is_some_and(|all| count("n_ctx_seq") == Some(all))
            && d.parallel.is_some_and(|n| n > 1)
    });
    d.ubatch_size = count("n_ubatch").filter(|n| *n > 0);
    d.cache_type_k = cache_type("cache_type_k");
    d.cache_type_v = cache_type("cache_type_v");
    // All layers is the default, whatever the number is in another conversion of the model.
    d.n_gpu_layers = count("n_gpu_layers").filter(|n| count("layers_total") != Some(*n));
    d.no_flash_attn = setting("flash_attn").and_then(Value::flag) == Some(false);
    d.swa_full = setting("swa_full").and_then(Value::flag) == Some(true);
    let devices = boot.ranks.iter().filter(|rank| rank.model_load.is_some()).count() as u64;
    d.gpus = (devices > 1).then_some(devices);
    let names = [
        ("ctx_size", d.ctx_size.is_some()),
        ("parallel", d.parallel.is_some()),
        ("kv_unified", d.kv_unified),
        ("ubatch_size", d.ubatch_size.is_some()),
        ("cache_type_k", d.cache_type_k.is_some()),
        ("cache_type_v", d.cache_type_v.is_some()),
        ("n_gpu_layers", d.n_gpu_layers.is_some()),
        ("no_flash_attn", d.no_flash_attn),
        ("swa_full", d.swa_full),
        ("gpus", d.gpus.is_some()),
    ];
    for (name, _) in names.into_iter().filter(|(_, there)| *there) {
        found.note(name, "in the log");
    }
}

/// The GGUF file if it is here; else the model it was made from, by the file's name, and its mix.
fn model(boot: &Boot, given: &Deployment, found: &mut Found) {
    let named = given.model.as_deref().or(boot.model.as_deref()).unwrap_or("");
    let is_file = std::path::Path::new(named)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut mix = boot
        .config
        .get("file_type")
        .and_then(Value::text)
        .and_then(|kind| mix_of_type(&kind));
    if let Some(path) = &boot.model {
        let (base, of_name) = parts_of_file(path);
        mix = mix.or(of_name);
        if !std::path::Path::new(path).is_file()
            && let Some(name) = known_name(&base)
        {
            found.note("model", format!("the log says {path}"));
            if given.model.is_none() {
                found.warnings.push(format!(
                    "planned as {name} in the types of {path}; the file itself says the exact bytes"
                ));
            }
            found.deployment.model = Some(name);
        }
    }
    // A file that is read says its own types.
    let read = is_file && (given.model.is_some() || std::path::Path::new(named).is_file());
    if let Some(mix) = mix.filter(|_| !read) {
        found.deployment.quantization = Some(mix.name.to_owned());
        found.note("quantization", "in the log");
    }
}

/// llama.cpp's words for a mix (`Q4_K - Medium`, `Q8_0 (guessed)`).
fn mix_of_type(words: &str) -> Option<Mix> {
    let words = words.to_ascii_lowercase();
    let words = words.trim_start_matches("all ").replace("(guessed)", "");
    let name = [(" - medium", "_m"), (" - small", "_s"), (" - large", "_l")]
        .iter()
        .fold(words, |name, (long, short)| name.replace(long, short));
    Mix::by_name(name.trim())
}

/// Model and mix of a file's name: `/m/Qwen3-4B-Q4_K_M.gguf` is `Qwen3-4B` in `q4_k_m`.
fn parts_of_file(path: &str) -> (String, Option<Mix>) {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let name = name
        .get(..name.len().saturating_sub(5))
        .filter(|_| name.to_ascii_lowercase().ends_with(".gguf"))
        .unwrap_or(name);
    // Model-00001-of-00003
    let name = match name.rsplit_once("-of-") {
        Some((rest, last)) if last.bytes().all(|b| b.is_ascii_digit()) => {
            rest.rsplit_once('-').map_or(rest, |(base, _)| base)
        }
        _ => name,
    };
    for cut in ['-', '.'] {
        if let Some((base, tail)) = name.rsplit_once(cut) {
            let low = tail.to_ascii_lowercase();
            let types = low.starts_with('q') || low.starts_with("iq");
            let is_type = Mix::by_name(&low).is_some() || types && low.contains('_');
            if is_type {
                let base = base.trim_end_matches("-UD");
                return (base.to_owned(), Mix::by_name(&low));
            }
        }
    }
    (name.to_owned(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_says_the_model_and_its_types() {
        for (path, base, mix) in [
            ("/m/Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B", Some("q4_k_m")),
            (
                "qwen2.5-7b-instruct-q8_0.gguf",
                "qwen2.5-7b-instruct",
                Some("q8_0"),
            ),
            ("C:\\m\\Llama-3.1-8B.Q5_K_M.GGUF", "Llama-3.1-8B", Some("q5_k_m")),
            (
                "Qwen3-Coder-30B-A3B-Instruct-UD-Q4_K_XL.gguf",
                "Qwen3-Coder-30B-A3B-Instruct",
                None,
            ),
            (
                "Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf",
                "Qwen3-235B-A22B",
                Some("q4_k_m"),
            ),
            ("model-f16.gguf", "model", Some("f16")),
            ("plain", "plain", None),
            ("", "", None),
            (".gguf", "", None),
        ] {
            let (found, found_mix) = parts_of_file(path);
            assert_eq!((found.as_str(), found_mix.map(|m| m.name)), (base, mix), "{path}");
        }
    }

    #[test]
    fn a_type_is_read_in_the_engines_own_words() {
        for (words, name) in [
            ("Q8_0", "q8_0"),
            ("Q4_K - Medium", "q4_k_m"),
            ("Q5_K - Small", "q5_k_s"),
            ("F16 (guessed)", "f16"),
            ("all F32", "f32"),
        ] {
            assert_eq!(mix_of_type(words).map(|m| m.name), Some(name), "{words}");
        }
        assert!(mix_of_type("something else").is_none());
    }
}
