//! The flags of SGLang's server.

use kvwise_core::engine::flags;
use kvwise_core::plan::Plan;
use kvwise_core::{Error, Result};
use serde_json::Value;

use super::super::deployment::{Deployment, Resolved};
use super::command::{quantization, why};
use crate::report::generate::Argument;

/// Fields of a deployment and the flags of SGLang 0.5.23 that say the same.
const FLAGS: [(&str, &str); 28] = [
    ("revision", "--revision"),
    ("tensor_parallel_size", "--tp-size"),
    ("pipeline_parallel_size", "--pp-size"),
    // Data parallelism inside of the tensor-parallel group, as the plan counts it; --dp-size would start more servers.
    ("data_parallel_size", "--attn-dp-size"),
    ("dtype", "--dtype"),
    ("quantization", "--quantization"),
    ("kv_cache_dtype", "--kv-cache-dtype"),
    ("max_model_len", "--context-length"),
    ("mem_fraction_static", "--mem-fraction-static"),
    ("max_total_tokens", "--max-total-tokens"),
    ("page_size", "--page-size"),
    ("block_size", "--page-size"),
    ("chunked_prefill_size", "--chunked-prefill-size"),
    ("max_running_requests", "--max-running-requests"),
    ("max_num_seqs", "--max-running-requests"),
    ("swa_full_tokens_ratio", "--swa-full-tokens-ratio"),
    ("mamba_full_memory_ratio", "--mamba-full-memory-ratio"),
    ("enforce_eager", "--cuda-graph-backend-decode"),
    ("enforce_eager", "--cuda-graph-backend-prefill"),
    ("no_enable_prefix_caching", "--disable-radix-cache"),
    ("no_async_scheduling", "--disable-overlap-schedule"),
    ("attention_backend", "--attention-backend"),
    ("language_model_only", "--language-model-only"),
    ("speculative_algorithm", "--speculative-algorithm"),
    ("speculative_draft_model_path", "--speculative-draft-model-path"),
    ("speculative_num_steps", "--speculative-num-steps"),
    ("speculative_eagle_topk", "--speculative-eagle-topk"),
    ("speculative_num_draft_tokens", "--speculative-num-draft-tokens"),
];

/// Fields that SGLang's plan knows or passes over, but no flag of its server says.
const WITHOUT_A_FLAG: [&str; 13] = [
    "enable_prefix_caching",
    "speculative_config",
    "num_gpu_blocks_override",
    "kv_cache_memory_bytes",
    "kv_cache_dtype_skip_layers",
    "decode_context_parallel_size",
    "disable_hybrid_kv_cache_manager",
    "gpu_memory_utilization",
    "max_num_batched_tokens",
    "limit_mm_per_prompt",
    "mm_processor_kwargs",
    "skip_mm_profiling",
    "enable_lora",
];

/// The arguments of SGLang's server after the model.
pub fn sglang(deployment: &Deployment, resolved: &Resolved, plan: &Plan) -> Result<Vec<Argument>> {
    let table = flags::sglang();
    let said = serde_json::to_value(deployment).unwrap_or_default();
    let set = |field: &str| {
        said.get(field)
            .filter(|v| !v.is_null() && **v != Value::Bool(false))
            .cloned()
    };
    if let Some(field) = WITHOUT_A_FLAG.into_iter().find(|field| set(field).is_some()) {
        return Err(Error::input(format!(
            "--{} is a flag of vLLM and has no counterpart that is generated for sglang",
            field.replace('_', "-")
        ))
        .hint("leave it out, or give SGLang's own flag after --"));
    }
    let mut out: Vec<Argument> = Vec::new();
    for (field, name) in FLAGS {
        let Some(given) = set(field) else { continue };
        let Some(flag) = table.get(name) else {
            return Err(Error::unsupported(format!(
                "{name} is no flag of SGLang {}",
                table.version
            )));
        };
        let text = super::plain(&given);
        let values = match (field, given) {
            ("enforce_eager", _) => vec!["disabled".to_owned()],
            (_, Value::Bool(_)) => Vec::new(),
            ("max_model_len", _) => match &plan.kv_cache {
                Some(kv) => vec![kv.max_model_len.to_string()],
                None => continue,
            },
            ("kv_cache_dtype", _) => vec![match text.as_str() {
                "fp8" | "fp8_e4m3fn" => "fp8_e4m3".to_owned(),
                "bf16" => "bfloat16".to_owned(),
                _ => text,
            }],
            ("dtype" | "max_total_tokens", _) => vec![super::plain(
                plan.inputs.get(field).unwrap_or(&Value::String(text)),
            )],
            ("quantization", _) => match quantization(resolved, &text, &MADE_ON_LOAD, "fp8")? {
                Some(method) => vec![method],
                None => continue,
            },
            _ => vec![text],
        };
        if flag.is_default(&values, false) || out.iter().any(|a| a.flag == name) {
            continue;
        }
        out.push(Argument {
            why: match name {
                "--cuda-graph-backend-decode" | "--cuda-graph-backend-prefill" => {
                    "CUDA graphs were switched off".to_owned()
                }
                _ => why(deployment, plan, field, name, "sglang"),
            },
            flag: name.to_owned(),
            values,
        });
    }
    if deployment.enable_expert_parallel {
        let ranks = deployment.tensor_parallel_size.unwrap_or(1);
        out.push(Argument {
            flag: "--ep-size".to_owned(),
            values: vec![ranks.to_string()],
            why: why(deployment, plan, "enable_expert_parallel", "--ep-size", "sglang"),
        });
    }
    Ok(out)
}

/// Method that SGLang 0.5.23 makes on load from a 16-bit checkpoint (`srt/layers/quantization/fp8.py`,
/// `is_checkpoint_fp8_serialized`).
const MADE_ON_LOAD: [(&str, &str); 1] = [("fp8", "fp8")];
