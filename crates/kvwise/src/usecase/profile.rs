//! Between a deployment and its profile file.

use kvwise_core::units::{gib, parse_bytes, parse_count};
use kvwise_core::{Error, Result};
use kvwise_io::plan_profile::{Hardware, Model, Outputs, Policy, Profile, Workload};
use serde_json::{Map, Value};

use super::deployment::Deployment;

/// Engine settings that version 1 of the file has no place for; they go to `outputs.vllm_args`.
const EXTRA: [&str; 55] = [
    "engine",
    "engine_version",
    "pipeline_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "decode_context_parallel_size",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "enforce_eager",
    "no_enable_prefix_caching",
    "enable_prefix_caching",
    "no_async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "attention_backend",
    "language_model_only",
    "limit_mm_per_prompt",
    "mm_processor_kwargs",
    "skip_mm_profiling",
    "speculative_config",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "max_model_len",
    "context",
    "mem_fraction_static",
    "page_size",
    "chunked_prefill_size",
    "max_running_requests",
    "max_total_tokens",
    "swa_full_tokens_ratio",
    "mamba_full_memory_ratio",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "ctx_size",
    "parallel",
    "cache_type_k",
    "cache_type_v",
    "n_gpu_layers",
    "tensor_split",
    "split_mode",
    "main_gpu",
    "override_tensor",
    "n_cpu_moe",
    "cpu_moe",
    "ubatch_size",
    "swa_full",
    "kv_unified",
    "no_flash_attn",
    "no_kv_offload",
];

impl Deployment {
    /// What a profile says.
    ///
    /// # Errors
    /// If a size is negative or not a number, or `vllm_args` has a name that is not known.
    pub fn from_profile(profile: &Profile) -> Result<Self> {
        let mut extra = Map::new();
        for (name, value) in &profile.outputs.vllm_args {
            let key = name.trim_start_matches('-').replace('-', "_");
            let key = match key.as_str() {
                "tp" => "tensor_parallel_size",
                "pp" => "pipeline_parallel_size",
                "dp" => "data_parallel_size",
                "dcp" => "decode_context_parallel_size",
                other => other,
            };
            // Sizes and counts are text in the spellings of the command line; a file may have plain numbers.
            let textual = [
                "max_model_len",
                "max_num_batched_tokens",
                "kv_cache_memory_bytes",
                "ctx_size",
                "max_total_tokens",
            ]
            .contains(&key);
            let value = match value {
                Value::Number(n) if textual => Value::String(n.to_string()),
                other => other.clone(),
            };
            extra.insert(key.to_owned(), value);
        }
        let extra: Self = serde_json::from_value(Value::Object(extra))
            .map_err(|e| Error::input(format!("outputs.vllm_args: {e}")))?;
        let sizes = Self {
            model: profile.model.id.clone(),
            revision: profile.model.revision.clone(),
            dtype: profile.model.dtype.clone(),
            quantization: profile.model.quantization.clone(),
            kv_cache_dtype: profile.model.kv_cache_dtype.clone(),
            max_model_len: profile.model.max_model_len.map(|n| n.to_string()),
            params_b: profile.model.params_b,
            gpu: profile.hardware.gpu_name.clone(),
            gpus: profile.hardware.gpus,
            gpu_memory: gib_text("hardware.vram_gb", profile.hardware.vram_gb)?,
            interconnect: profile
                .hardware
                .interconnect
                .clone()
                .filter(|link| link != "unknown"),
            tensor_parallel_size: profile.hardware.tp_size,
            prompt_tokens: profile.workload.prompt_tokens,
            gen_tokens: profile.workload.gen_tokens,
            concurrency: profile.workload.concurrency.into_iter().collect(),
            mode: profile.workload.mode.clone(),
            gpu_memory_utilization: profile.policy.gpu_memory_utilization,
            overhead: gib_text("policy.overhead_gb", profile.policy.overhead_gb)?,
            fragmentation_factor: profile.policy.fragmentation_factor.map(|f| f.to_string()),
            headroom: gib_text("policy.headroom_gb", profile.policy.headroom_gb)?,
            ..Self::default()
        };
        extra.over(&sizes)
    }

    /// The deployment as a profile.
    ///
    /// # Errors
    /// If a size cannot be read, or several loads are asked for at once.
    pub fn to_profile(&self) -> Result<Profile> {
        if self.concurrency.len() > 1 || self.context.len() > 1 {
            return Err(Error::input(
                "a profile holds one load: give one --context and one --concurrency",
            ));
        }
        let size = |text: &Option<String>| text.as_deref().map(parse_bytes).transpose().map(|b| b.map(gib));
        let all = serde_json::to_value(self)
            .map_err(|e| Error::input(format!("the deployment cannot be written: {e}")))?;
        let length = self
            .max_model_len
            .as_deref()
            .map(parse_count)
            .and_then(Result::ok);
        let said = |value: &Value| {
            !(value.is_null() || *value == Value::Bool(false) || value.as_array().is_some_and(Vec::is_empty))
        };
        let vllm_args = EXTRA
            .iter()
            .filter(|&&key| key != "max_model_len" || length.is_none())
            .filter_map(|&key| Some((key.to_owned(), all.get(key)?.clone())))
            .filter(|(_, value)| said(value))
            .collect();
        Ok(Profile {
            profile_version: 1,
            model: Model {
                id: self.model.clone(),
                revision: self.revision.clone(),
                dtype: self.dtype.clone(),
                quantization: self.quantization.clone(),
                kv_cache_dtype: self.kv_cache_dtype.clone(),
                max_model_len: length,
                params_b: self.params_b,
            },
            hardware: Hardware {
                gpu_name: self.gpu.clone(),
                gpus: self.gpus,
                vram_gb: size(&self.gpu_memory)?,
                interconnect: self.interconnect.clone(),
                tp_size: self.tensor_parallel_size,
            },
            workload: Workload {
                prompt_tokens: self.prompt_tokens,
                gen_tokens: self.gen_tokens,
                concurrency: self.concurrency.first().copied(),
                streaming: None,
                mode: self.mode.clone(),
            },
            policy: Policy {
                gpu_memory_utilization: self.gpu_memory_utilization,
                overhead_gb: size(&self.overhead)?,
                fragmentation_factor: self.fragmentation_factor.as_deref().and_then(|f| f.parse().ok()),
                headroom_gb: size(&self.headroom)?,
            },
            outputs: Outputs {
                emit: Vec::new(),
                vllm_args,
            },
        })
    }
}

/// A number of GiB as the text that flags take.
fn gib_text(what: &str, value: Option<f64>) -> Result<Option<String>> {
    match value {
        None => Ok(None),
        Some(x) if (0.0..=1_000_000.0).contains(&x) => Ok(Some(format!("{x:.9}GiB"))),
        Some(x) => Err(Error::input(format!(
            "{what} is {x}, expected GiB from 0 to 1,000,000"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use kvwise_io::plan_profile::parse;

    use super::*;

    #[test]
    fn a_deployment_survives_its_profile() {
        let deployment = Deployment {
            model: Some("Qwen/Qwen3-32B".to_owned()),
            gpu: Some("h100".to_owned()),
            tensor_parallel_size: Some(2),
            max_num_seqs: Some(64),
            max_model_len: Some("auto".to_owned()),
            max_num_batched_tokens: Some("8k".to_owned()),
            headroom: Some("2GiB".to_owned()),
            concurrency: vec![4],
            context: vec!["8k".to_owned()],
            enforce_eager: true,
            ..Deployment::default()
        };
        let back = Deployment::from_profile(&deployment.to_profile().unwrap()).unwrap();
        assert_eq!(back.headroom.as_deref().map(parse_bytes), Some(Ok(2 << 30)));
        assert_eq!(
            Deployment {
                headroom: deployment.headroom.clone(),
                ..back
            },
            deployment
        );
    }

    #[test]
    fn engine_flags_of_a_file_are_used_and_unknown_ones_refused() {
        let file = |args: &str| {
            parse(&format!(
                "profile_version: 1\noutputs: {{vllm_args: {{{args}}}}}\n"
            ))
            .unwrap()
        };
        let deployment =
            Deployment::from_profile(&file("--max-num-seqs: 64, max_model_len: 4096, tp: 2")).unwrap();
        assert_eq!(deployment.max_num_seqs, Some(64));
        assert_eq!(deployment.max_model_len.as_deref(), Some("4096"));
        assert_eq!(deployment.tensor_parallel_size, Some(2));
        let e = Deployment::from_profile(&file("max_num_sqs: 64"))
            .unwrap_err()
            .to_string();
        assert!(e.contains("max_num_sqs"), "{e}");
    }

    #[test]
    fn negative_sizes_are_refused_with_their_name() {
        let profile = parse("profile_version: 1\nhardware: {vram_gb: -24}\n").unwrap();
        let e = Deployment::from_profile(&profile).unwrap_err().to_string();
        assert!(e.contains("hardware.vram_gb is -24"), "{e}");
    }
}
