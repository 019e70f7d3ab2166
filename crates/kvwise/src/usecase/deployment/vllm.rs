//! vLLM's settings from a deployment's words.

use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::vllm;
use kvwise_core::units::parse_count;
use kvwise_core::{Error, Result};

use super::{Deployment, speculative};

/// Ranks of adapters that slots can be made for (vLLM 0.32.0, `MaxLoRARanks` in `config/lora.py`).
const LORA_RANKS: [u64; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

impl Deployment {
    pub(super) fn vllm(&self, config: &Config, target: Option<&Model>) -> Result<vllm::Settings> {
        self.refuse_others("vllm")?;
        let defaults = vllm::Settings::default();
        let count = |flag: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| parse_count(text).map_err(|e| e.at(flag)))
                .transpose()
        };
        let quantization = match self.quantization.as_deref() {
            None | Some("auto") => None,
            Some(text) => Some(text.to_ascii_lowercase()),
        };
        if self.max_loras.is_some_and(|n| n == 0) {
            return Err(Error::input("--max-loras is 0; it must be at least 1"));
        }
        if !self.enable_lora && (self.max_loras.is_some() || self.max_lora_rank.is_some()) {
            return Err(Error::input(
                "--max-loras and --max-lora-rank mean nothing without --enable-lora",
            ));
        }
        if let Some(rank) = self.max_lora_rank.filter(|rank| !LORA_RANKS.contains(rank)) {
            let error = Error::input(format!(
                "--max-lora-rank is {rank}, and vLLM takes only {}",
                LORA_RANKS.map(|n| n.to_string()).join(", ")
            ));
            return Err(match LORA_RANKS.iter().find(|&&known| known > rank) {
                Some(next) => error.hint(format!("--max-lora-rank {next} serves adapters of rank {rank}")),
                None => error,
            });
        }
        let version = match self.engine_version.as_deref() {
            None => defaults.version,
            Some(text) => vllm::Version::parse(text)?,
        };
        let settings = vllm::Settings {
            version,
            tensor_parallel_size: self.tensor_parallel_size.unwrap_or(1),
            pipeline_parallel_size: self.pipeline_parallel_size.unwrap_or(1),
            data_parallel_size: self.data_parallel_size.unwrap_or(1),
            enable_expert_parallel: self.enable_expert_parallel,
            decode_context_parallel_size: self.decode_context_parallel_size.unwrap_or(1),
            dtype: self.weight_dtype()?,
            quantization,
            kv_cache_dtype: match self.kv_cache_dtype.as_deref() {
                None => defaults.kv_cache_dtype,
                Some(text) => vllm::KvDtype::parse(text)?,
            },
            // `none` takes the whole quantization_config away, with what it says of the cache.
            checkpoint_kv_cache_dtype: if self.quantization.as_deref() == Some("none") {
                None
            } else {
                vllm::kv_dtype::declared_by_checkpoint(config)?
            },
            kv_cache_dtype_skip_layers: match self.kv_cache_dtype_skip_layers.as_deref() {
                None => defaults.kv_cache_dtype_skip_layers,
                Some(text) => vllm::settings::SkipLayers::parse(text)?,
            },
            block_size: self.block_size,
            max_model_len: match self.max_model_len.as_deref() {
                None => defaults.max_model_len,
                Some(text) => vllm::MaxModelLen::parse(text)?,
            },
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: count("--max-num-batched-tokens", &self.max_num_batched_tokens)?,
            gpu_memory_utilization: self.gpu_memory_utilization,
            kv_cache_memory_bytes: self.pool_bytes()?,
            num_gpu_blocks_override: self.num_gpu_blocks_override,
            enforce_eager: self.enforce_eager,
            enable_prefix_caching: if self.no_enable_prefix_caching {
                Some(false)
            } else {
                // On unless said otherwise, but for releases that take recurrent states out of it.
                let rules = vllm::Rules::of(version);
                let on =
                    rules.caches_prefixes_by_default && rules.state_caching == vllm::StateCaching::AsOthers;
                (on || self.enable_prefix_caching).then_some(true)
            },
            async_scheduling: self.no_async_scheduling.then_some(false),
            disable_hybrid_kv_cache_manager: self.disable_hybrid_kv_cache_manager,
            attention_backend: self
                .attention_backend
                .as_deref()
                .map(vllm::Backend::parse)
                .transpose()?,
            language_model_only: self.language_model_only,
            multimodal: vllm::Multimodal::read(
                self.limit_mm_per_prompt.as_deref(),
                self.mm_processor_kwargs.as_deref(),
                self.skip_mm_profiling,
            )?,
            speculative: self
                .speculative_config
                .as_deref()
                .map(|text| speculative::read(text, target, &self.lookup))
                .transpose()?,
            enable_lora: self.enable_lora,
            max_loras: self.max_loras,
            max_lora_rank: self.max_lora_rank,
            ..defaults
        };
        settings.validate()?;
        Ok(settings)
    }
}
