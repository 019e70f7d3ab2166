//! Settings of the generic engine from a deployment's words.

use kvwise_core::dtype::Dtype;
use kvwise_core::names::nearest;
use kvwise_core::plan::{Generic, Quantization};
use kvwise_core::units::parse_count;
use kvwise_core::{Error, Result};

use super::Deployment;

impl Deployment {
    pub(super) fn generic(&self) -> Result<Generic> {
        self.refuse_others("generic")?;
        for (flag, given) in [
            ("--block-size", self.block_size.is_some()),
            (
                "--num-gpu-blocks-override",
                self.num_gpu_blocks_override.is_some(),
            ),
            ("--kv-cache-memory-bytes", self.kv_cache_memory_bytes.is_some()),
            ("--attention-backend", self.attention_backend.is_some()),
            ("--speculative-config", self.speculative_config.is_some()),
            ("--limit-mm-per-prompt", self.limit_mm_per_prompt.is_some()),
            ("--mm-processor-kwargs", self.mm_processor_kwargs.is_some()),
            ("--skip-mm-profiling", self.skip_mm_profiling),
            ("--engine-version", self.engine_version.is_some()),
            (
                "--decode-context-parallel-size",
                self.decode_context_parallel_size.is_some_and(|n| n > 1),
            ),
            (
                "--data-parallel-size",
                self.data_parallel_size.is_some_and(|n| n > 1),
            ),
        ] {
            if given {
                return Err(Error::input(format!("{flag} means nothing to --engine generic"))
                    .hint("leave it out, or plan with --engine vllm"));
            }
        }
        let quantization = match self.quantization.as_deref() {
            None | Some("auto" | "none") => None,
            Some(text) => Some(Quantization::parse(text).ok_or_else(|| {
                let known: Vec<&str> = Quantization::ALL.iter().map(|q| q.name()).collect();
                let error = Error::input(format!("--quantization is \"{text}\""))
                    .hint(format!("write auto, none, {}", known.join(", ")));
                match nearest(text, known, 1).first() {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error,
                }
            })?),
        };
        let kv_element_bytes = match self.kv_cache_dtype.as_deref() {
            None | Some("auto") => None,
            Some(text) if text.to_ascii_lowercase().contains("fp8") || text.starts_with("float8") => Some(1),
            Some(text) => match Dtype::parse(text) {
                Some(dtype @ (Dtype::F16 | Dtype::Bf16 | Dtype::F32)) => Some(dtype.bits() / 8),
                Some(Dtype::I8) => Some(1),
                _ => {
                    return Err(Error::input(format!("--kv-cache-dtype is \"{text}\""))
                        .hint("write auto, float16, bfloat16, float32, int8 or fp8"));
                }
            },
        };
        let max_model_len = match self.max_model_len.as_deref() {
            None | Some("auto") => None,
            Some(text) => match parse_count(text).map_err(|e| e.at("--max-model-len"))? {
                0 => return Err(Error::input("--max-model-len is 0, expected at least 1")),
                n => Some(n),
            },
        };
        Ok(Generic {
            tensor_parallel_size: self.tensor_parallel_size.unwrap_or(1),
            pipeline_parallel_size: self.pipeline_parallel_size.unwrap_or(1),
            dtype: self.weight_dtype()?,
            quantization,
            ignores_checkpoint: self.quantization.as_deref() == Some("none"),
            kv_element_bytes,
            gpu_memory_utilization: self.gpu_memory_utilization.unwrap_or(0.9),
            max_model_len,
        })
    }
}
