//! The flags of llama.cpp's server.
//!
//! Its defaults adapt themselves to the machine (b11549, `tools/server/server.cpp` and `common/fit.cpp`: four slots that share
//! one cache, as many layers and as much context as fit), so what the plan rests on is always said.

use kvwise_core::plan::Plan;
use kvwise_core::units::{grouped, human_bytes, parse_count};
use kvwise_core::{Error, Result};
use serde_json::Value;

use super::super::deployment::Deployment;
use super::command::why;
use crate::report::generate::Argument;

/// Default of `--batch-size`, which must hold a physical batch.
const BATCH_TOKENS: u64 = 2048;
/// Default of `--ubatch-size`.
const UBATCH_TOKENS: u64 = 512;

/// Whether a deployment is for llama.cpp.
pub fn is_llamacpp(deployment: &Deployment) -> bool {
    let gguf = || {
        let name = deployment.model.as_deref().unwrap_or_default();
        std::path::Path::new(name)
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
    };
    match deployment.engine.as_deref() {
        None => gguf(),
        Some(name) => ["llamacpp", "llama.cpp", "llama-cpp"]
            .iter()
            .any(|n| name.eq_ignore_ascii_case(n)),
    }
}

/// The deployment with its slots and context said, where the load implies them; others as they are.
pub fn prepared(deployment: &Deployment) -> Result<Deployment> {
    let mut out = deployment.clone();
    if !is_llamacpp(deployment) {
        return Ok(out);
    }
    let asked = deployment.concurrency.iter().copied().max();
    if out.parallel.is_none() {
        out.parallel = asked;
    }
    let length = match (deployment.context.first(), deployment.prompt_tokens) {
        (Some(text), _) => Some(parse_count(text).map_err(|e| e.at("--context"))?),
        (None, Some(prompt)) => prompt.checked_add(deployment.gen_tokens.unwrap_or(0)),
        (None, None) => None,
    };
    if let (None, None, Some(length)) = (&out.ctx_size, &out.max_model_len, length) {
        let all = length
            .checked_mul(out.parallel.unwrap_or(1))
            .ok_or_else(|| Error::overflow("--context times --concurrency"))?;
        out.ctx_size = Some(all.to_string());
    }
    Ok(out)
}

/// The arguments of `llama-server` after the model.
pub fn llamacpp(deployment: &Deployment, plan: &Plan, from_hub: bool) -> Result<Vec<Argument>> {
    refuse(deployment)?;
    let mut out = Vec::new();
    let mut put = |flag: &str, values: Vec<String>, why: String| {
        out.push(Argument {
            flag: flag.to_owned(),
            values,
            why,
        });
    };
    let says = |field: &str, flag: &str| why(deployment, plan, field, flag, "llamacpp");
    let Some(kv) = &plan.kv_cache else {
        return Err(Error::unsupported(
            "the architecture is not known, so neither is its context",
        ));
    };
    let slots = deployment.parallel.unwrap_or(1);
    let each = if deployment.kv_unified || slots == 1 {
        String::new()
    } else {
        format!(
            "; {} slots of {} tokens each",
            grouped(slots),
            grouped(kv.max_model_len)
        )
    };
    put(
        "--ctx-size",
        vec![kv.capacity_tokens.to_string()],
        format!("{}{each}", says("ctx_size", "--ctx-size")),
    );
    put(
        "--parallel",
        vec![slots.to_string()],
        format!(
            "{}; left open, the server takes four",
            says("parallel", "--parallel")
        ),
    );
    if deployment.kv_unified {
        put("--kv-unified", Vec::new(), says("kv_unified", "--kv-unified"));
    }
    put(
        "--n-gpu-layers",
        vec![
            deployment
                .n_gpu_layers
                .map_or_else(|| "all".to_owned(), |n| n.to_string()),
        ],
        format!(
            "{}; on the fullest GPU {} of weights",
            says("n_gpu_layers", "--n-gpu-layers"),
            human_bytes(plan.weights.bytes_per_rank.iter().copied().max().unwrap_or(0))
        ),
    );
    // Patterns count in their order, those of experts last.
    for value in &deployment.override_tensor {
        put(
            "--override-tensor",
            vec![value.clone()],
            says("override_tensor", "--override-tensor"),
        );
    }
    if let Some(mode) = &deployment.split_mode {
        put(
            "--split-mode",
            vec![mode.clone()],
            says("split_mode", "--split-mode"),
        );
    }
    if let Some(gpu) = deployment.main_gpu {
        put(
            "--main-gpu",
            vec![gpu.to_string()],
            says("main_gpu", "--main-gpu"),
        );
    }
    if let Some(layers) = deployment.n_cpu_moe {
        put(
            "--n-cpu-moe",
            vec![layers.to_string()],
            says("n_cpu_moe", "--n-cpu-moe"),
        );
    }
    if deployment.cpu_moe {
        put("--cpu-moe", Vec::new(), says("cpu_moe", "--cpu-moe"));
    }
    if !deployment.tensor_split.is_empty() {
        let shares: Vec<String> = deployment.tensor_split.iter().map(f64::to_string).collect();
        put(
            "--tensor-split",
            vec![shares.join(",")],
            says("tensor_split", "--tensor-split"),
        );
    }
    let kind = |field: &str| {
        plan.inputs
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or("f16")
            .to_owned()
    };
    for (field, flag) in [
        ("cache_type_k", "--cache-type-k"),
        ("cache_type_v", "--cache-type-v"),
    ] {
        if kind(field) != "f16" {
            put(flag, vec![kind(field)], says(field, flag));
        }
    }
    if deployment.no_flash_attn {
        put(
            "--flash-attn",
            vec!["off".to_owned()],
            "flash attention was switched off".to_owned(),
        );
    } else if !["f16", "f32", "bf16"].contains(&kind("cache_type_v").as_str()) {
        put(
            "--flash-attn",
            vec!["on".to_owned()],
            "quantised values need it; left open, the server would stop where it finds none".to_owned(),
        );
    }
    if let Some(tokens) = deployment.ubatch_size.filter(|&n| n != UBATCH_TOKENS) {
        if tokens > BATCH_TOKENS {
            put(
                "--batch-size",
                vec![tokens.to_string()],
                "a logical batch must hold a physical one".to_owned(),
            );
        }
        put(
            "--ubatch-size",
            vec![tokens.to_string()],
            says("ubatch_size", "--ubatch-size"),
        );
    }
    if deployment.swa_full {
        put("--swa-full", Vec::new(), says("swa_full", "--swa-full"));
    }
    if deployment.no_kv_offload {
        put(
            "--no-kv-offload",
            Vec::new(),
            "the caches stay with the host".to_owned(),
        );
    }
    if deployment.language_model_only && from_hub {
        put(
            "--no-mmproj",
            Vec::new(),
            "leaves the vision part of the repository out".to_owned(),
        );
    }
    Ok(out)
}

/// Flags that the planner passes over for llama.cpp and that its server does not have.
fn refuse(deployment: &Deployment) -> Result<()> {
    for (flag, given) in [
        ("--dtype", deployment.dtype.is_some()),
        ("--enforce-eager", deployment.enforce_eager),
        ("--no-enable-prefix-caching", deployment.no_enable_prefix_caching),
        ("--enable-prefix-caching", deployment.enable_prefix_caching),
        ("--no-async-scheduling", deployment.no_async_scheduling),
        ("--enable-expert-parallel", deployment.enable_expert_parallel),
        (
            "--kv-cache-dtype-skip-layers",
            deployment.kv_cache_dtype_skip_layers.is_some(),
        ),
        ("--revision", deployment.revision.is_some()),
    ] {
        if given {
            return Err(
                Error::input(format!("{flag} means nothing to llama.cpp's server"))
                    .hint("leave it out, or give llama.cpp's own flag after --"),
            );
        }
    }
    Ok(())
}
