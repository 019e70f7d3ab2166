//! What a user says about a deployment, and what it becomes: model, hardware and engine settings.
//!
//! The same fields come from the command line, from a profile file and from requests to the web interface.

mod engines;
mod generic;
mod hardware;
mod load;
mod resolve;
mod site;
mod speculative;
mod vllm;

use kvwise_core::dtype::Dtype;
use kvwise_core::names::nearest;
use kvwise_core::units::{parse_bytes, parse_count};
use kvwise_core::{Error, Result};
use kvwise_io::model::is_gguf_name;
use serde::{Deserialize, Serialize};

use super::lookup::Lookup;
pub use resolve::Resolved;

/// Everything that can be said; what is not said has the engine's default. Sizes, counts and names are text in the
/// spellings of the command line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    missing_docs,
    reason = "each field is the flag of the same name, documented there"
)]
pub struct Deployment {
    pub model: Option<String>,
    pub revision: Option<String>,
    pub params_b: Option<f64>,
    pub gpu: Option<String>,
    pub gpus: Option<u64>,
    pub gpu_memory: Option<String>,
    pub interconnect: Option<String>,
    pub engine: Option<String>,
    pub engine_version: Option<String>,
    pub tensor_parallel_size: Option<u64>,
    pub pipeline_parallel_size: Option<u64>,
    pub data_parallel_size: Option<u64>,
    pub enable_expert_parallel: bool,
    pub decode_context_parallel_size: Option<u64>,
    pub dtype: Option<String>,
    pub quantization: Option<String>,
    pub kv_cache_dtype: Option<String>,
    pub kv_cache_dtype_skip_layers: Option<String>,
    pub block_size: Option<u64>,
    pub max_model_len: Option<String>,
    /// Whether the server is known to take its length, which no flag says.
    #[serde(skip)]
    pub longer_context: bool,
    pub max_num_seqs: Option<u64>,
    pub max_num_batched_tokens: Option<String>,
    pub gpu_memory_utilization: Option<f64>,
    pub kv_cache_memory_bytes: Option<String>,
    pub num_gpu_blocks_override: Option<u64>,
    pub enforce_eager: bool,
    pub no_enable_prefix_caching: bool,
    pub enable_prefix_caching: bool,
    pub no_async_scheduling: bool,
    pub disable_hybrid_kv_cache_manager: bool,
    pub attention_backend: Option<String>,
    pub language_model_only: bool,
    pub limit_mm_per_prompt: Option<String>,
    pub mm_processor_kwargs: Option<String>,
    pub skip_mm_profiling: bool,
    pub speculative_config: Option<String>,
    pub enable_lora: bool,
    pub max_loras: Option<u64>,
    pub max_lora_rank: Option<u64>,
    pub mem_fraction_static: Option<f64>,
    pub page_size: Option<u64>,
    pub chunked_prefill_size: Option<i64>,
    pub max_running_requests: Option<u64>,
    pub max_total_tokens: Option<String>,
    pub swa_full_tokens_ratio: Option<f64>,
    pub mamba_full_memory_ratio: Option<f64>,
    pub speculative_algorithm: Option<String>,
    pub speculative_draft_model_path: Option<String>,
    pub speculative_num_steps: Option<u64>,
    pub speculative_eagle_topk: Option<u64>,
    pub speculative_num_draft_tokens: Option<u64>,
    pub ctx_size: Option<String>,
    pub parallel: Option<u64>,
    pub cache_type_k: Option<String>,
    pub cache_type_v: Option<String>,
    pub n_gpu_layers: Option<u64>,
    pub tensor_split: Vec<f64>,
    pub split_mode: Option<String>,
    pub main_gpu: Option<i64>,
    pub override_tensor: Vec<String>,
    pub n_cpu_moe: Option<u64>,
    pub cpu_moe: bool,
    pub ubatch_size: Option<u64>,
    pub swa_full: bool,
    pub kv_unified: bool,
    pub no_flash_attn: bool,
    pub no_kv_offload: bool,
    pub context: Vec<String>,
    pub concurrency: Vec<u64>,
    pub prompt_tokens: Option<u64>,
    pub gen_tokens: Option<u64>,
    pub mode: Option<String>,
    pub overhead: Option<String>,
    pub fragmentation_factor: Option<String>,
    pub headroom: Option<String>,
    /// How far names are looked up; not part of what a file or a request can say.
    #[serde(skip)]
    pub lookup: Lookup,
    pub no_calibration: bool,
}

/// Engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EngineName {
    Vllm,
    Sglang,
    LlamaCpp,
    Generic,
}

impl Deployment {
    /// `self`, with what it leaves open taken from `base` (flags win over a file).
    ///
    /// # Errors
    /// Never; the result of serialising plain fields is always readable.
    pub fn over(&self, base: &Self) -> Result<Self> {
        let broken = |e: serde_json::Error| Error::input(format!("cannot combine flags and profile: {e}"));
        let mut merged = serde_json::to_value(base).map_err(broken)?;
        let own = serde_json::to_value(self).map_err(broken)?;
        if let (Some(merged), Some(own)) = (merged.as_object_mut(), own.as_object()) {
            for (key, value) in own {
                let said = !(value.is_null()
                    || value.as_bool() == Some(false)
                    || value.as_array().is_some_and(Vec::is_empty));
                if said {
                    merged.insert(key.clone(), value.clone());
                }
            }
        }
        let merged: Self = serde_json::from_value(merged).map_err(broken)?;
        Ok(Self {
            lookup: self.lookup.clone(),
            ..merged
        })
    }

    fn engine_name(&self) -> Result<EngineName> {
        match self.engine.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None if self.model.as_deref().is_some_and(is_gguf_name) => Ok(EngineName::LlamaCpp),
            None | Some("vllm") => Ok(EngineName::Vllm),
            Some("sglang") => Ok(EngineName::Sglang),
            Some("llamacpp" | "llama.cpp" | "llama-cpp") => Ok(EngineName::LlamaCpp),
            Some("generic") => Ok(EngineName::Generic),
            Some(other) => {
                let names = ["vllm", "sglang", "llamacpp", "generic"];
                let error = Error::input(format!("--engine is \"{other}\", expected {}", names.join(", ")));
                Err(match nearest(other, names, 1).first() {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error,
                })
            }
        }
    }

    fn params(&self) -> Result<Option<u64>> {
        let Some(billions) = self.params_b else {
            return Ok(None);
        };
        if !(billions > 0.0 && billions <= 100_000.0) {
            return Err(Error::input(format!(
                "--params-b is {billions}, expected billions of parameters, like 7 or 6.74"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked: positive and at most 10^14"
        )]
        let params = (billions * 1e9).round() as u64;
        Ok(Some(params))
    }

    /// `--kv-cache-memory-bytes`: plain bytes, or a size with its unit.
    fn pool_bytes(&self) -> Result<Option<u64>> {
        self.kv_cache_memory_bytes
            .as_deref()
            .map(|text| {
                parse_count(text)
                    .or_else(|_| parse_bytes(text))
                    .map_err(|e| e.at("--kv-cache-memory-bytes"))
            })
            .transpose()
    }

    /// `--dtype`: `auto` is none.
    fn weight_dtype(&self) -> Result<Option<Dtype>> {
        match self.dtype.as_deref() {
            None | Some("auto") => Ok(None),
            Some(text) => match Dtype::parse(text) {
                Some(dtype @ (Dtype::F16 | Dtype::Bf16 | Dtype::F32)) => Ok(Some(dtype)),
                _ => Err(Error::input(format!("--dtype is \"{text}\""))
                    .hint("write auto, float16 (half, fp16), bfloat16 (bf16) or float32 (float, fp32)")),
            },
        }
    }
}

#[cfg(test)]
mod tests;
