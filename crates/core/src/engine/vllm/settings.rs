//! Settings of one server, by the names of vLLM's own flags.

use super::backend::Backend;
use super::kv_dtype::KvDtype;
use super::multimodal::Multimodal;
use super::speculative::Speculative;
use super::version::{Rules, Version};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// `--max-model-len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxModelLen {
    /// Not given: what the configuration allows.
    #[default]
    Derived,
    /// `auto` or -1: the longest that fits.
    Auto,
    /// A number of tokens.
    Tokens(u64),
}

/// Layers whose cache is kept at the model's precision (`--kv-cache-dtype-skip-layers`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SkipLayers {
    /// Indices of decoder layers.
    pub layers: Vec<u64>,
    /// Whether all sliding-window layers are left out (`sliding_window`).
    pub sliding_window: bool,
}

impl SkipLayers {
    /// Parses what the engine takes, separated by commas: indices of layers, and `sliding_window`.
    ///
    /// # Errors
    /// If a part is neither, or an index is absurd.
    pub fn parse(text: &str) -> Result<Self> {
        let mut skip = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part.eq_ignore_ascii_case("sliding_window") {
                skip.sliding_window = true;
                continue;
            }
            match part.parse::<u64>() {
                Ok(layer) if layer < 1 << 16 => skip.layers.push(layer),
                _ => {
                    return Err(Error::input(format!(
                        "--kv-cache-dtype-skip-layers has \"{part}\", expected indices of layers or sliding_window"
                    ))
                    .hint("example: --kv-cache-dtype-skip-layers 0,1,sliding_window"));
                }
            }
        }
        Ok(skip)
    }
}

impl std::fmt::Display for SkipLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let window = self.sliding_window.then(|| "sliding_window".to_owned());
        let parts: Vec<String> = self.layers.iter().map(u64::to_string).chain(window).collect();
        f.write_str(&parts.join(","))
    }
}

/// Every flag of `vllm serve` that decides memory, with vLLM's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Release whose rules apply.
    pub version: Version,
    /// `--tensor-parallel-size`.
    pub tensor_parallel_size: u64,
    /// `--pipeline-parallel-size`.
    pub pipeline_parallel_size: u64,
    /// `--data-parallel-size`; replicas have caches of their own.
    pub data_parallel_size: u64,
    /// `--enable-expert-parallel`; no effect on the cache.
    pub enable_expert_parallel: bool,
    /// `--decode-context-parallel-size`.
    pub decode_context_parallel_size: u64,
    /// `VLLM_PP_LAYER_PARTITION`: layers of each stage.
    pub pipeline_partition: Option<Vec<u64>>,
    /// `--dtype`; `None` is `auto`.
    pub dtype: Option<Dtype>,
    /// `--quantization`; `None` is what the checkpoint says. No effect on the cache.
    pub quantization: Option<String>,
    /// `--kv-cache-dtype`.
    pub kv_cache_dtype: KvDtype,
    /// What the checkpoint's `quantization_config` says of the cache
    /// ([`declared_by_checkpoint`](super::kv_dtype::declared_by_checkpoint)); `auto` follows it.
    pub checkpoint_kv_cache_dtype: Option<KvDtype>,
    /// `--kv-cache-dtype-skip-layers`.
    pub kv_cache_dtype_skip_layers: SkipLayers,
    /// `--block-size` in tokens.
    pub block_size: Option<u64>,
    /// `--max-model-len` in tokens.
    pub max_model_len: MaxModelLen,
    /// `--max-num-seqs`.
    pub max_num_seqs: Option<u64>,
    /// `--max-num-batched-tokens`.
    pub max_num_batched_tokens: Option<u64>,
    /// `--gpu-memory-utilization`, in (0, 1].
    pub gpu_memory_utilization: Option<f64>,
    /// `--kv-cache-memory-bytes`.
    pub kv_cache_memory_bytes: Option<u64>,
    /// `--num-gpu-blocks-override`.
    pub num_gpu_blocks_override: Option<u64>,
    /// `--enforce-eager`.
    pub enforce_eager: bool,
    /// `--enable-prefix-caching` or its negation; `None` is the engine's default: on, but for models without attention
    /// and encoder-decoders.
    pub enable_prefix_caching: Option<bool>,
    /// `--async-scheduling` or its negation; `None` is the engine's default: on where it is supported.
    pub async_scheduling: Option<bool>,
    /// `--disable-hybrid-kv-cache-manager`.
    pub disable_hybrid_kv_cache_manager: bool,
    /// `VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE`, on unless set to 0 (vLLM 0.32.0, `envs.py`).
    pub allow_chunked_local_with_hybrid: bool,
    /// `--attention-backend`.
    pub attention_backend: Option<Backend>,
    /// `--language-model-only`; no effect on the cache.
    pub language_model_only: bool,
    /// `--limit-mm-per-prompt`, `--mm-processor-kwargs` and `--skip-mm-profiling`; no effect on the cache.
    pub multimodal: Multimodal,
    /// `--mamba-cache-dtype`.
    pub mamba_cache_dtype: Option<Dtype>,
    /// `--mamba-ssm-cache-dtype`.
    pub mamba_ssm_cache_dtype: Option<Dtype>,
    /// `--speculative-config`.
    pub speculative: Option<Speculative>,
    /// `--enable-lora`; no effect on the cache.
    pub enable_lora: bool,
    /// `--max-loras`.
    pub max_loras: Option<u64>,
    /// `--max-lora-rank`.
    pub max_lora_rank: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: Version::NEWEST,
            tensor_parallel_size: 1,
            pipeline_parallel_size: 1,
            data_parallel_size: 1,
            enable_expert_parallel: false,
            decode_context_parallel_size: 1,
            pipeline_partition: None,
            dtype: None,
            quantization: None,
            kv_cache_dtype: KvDtype::Auto,
            checkpoint_kv_cache_dtype: None,
            kv_cache_dtype_skip_layers: SkipLayers::default(),
            block_size: None,
            max_model_len: MaxModelLen::Derived,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            gpu_memory_utilization: None,
            kv_cache_memory_bytes: None,
            num_gpu_blocks_override: None,
            enforce_eager: false,
            enable_prefix_caching: None,
            async_scheduling: None,
            disable_hybrid_kv_cache_manager: false,
            allow_chunked_local_with_hybrid: true,
            attention_backend: None,
            language_model_only: false,
            multimodal: Multimodal::default(),
            mamba_cache_dtype: None,
            mamba_ssm_cache_dtype: None,
            speculative: None,
            enable_lora: false,
            max_loras: None,
            max_lora_rank: None,
        }
    }
}

/// Largest parallel size that is taken; far above any deployment, far below overflow.
const MAX_PARALLEL: u64 = 1 << 16;
/// Largest number of tokens that is taken for lengths, blocks and batches.
const MAX_TOKENS: u64 = 1 << 40;

impl MaxModelLen {
    /// Parses a number of tokens with the engine's suffixes (`k`, `m` decimal, `K`, `M` binary), `auto` or -1.
    ///
    /// # Errors
    /// If it is anything else, or zero.
    pub fn parse(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("auto") || trimmed == "-1" {
            return Ok(Self::Auto);
        }
        let wrong = || {
            Error::input(format!(
                "--max-model-len {text} is not a positive number of tokens or auto"
            ))
            .hint("examples: 8192, 128k (128,000), 128K (131,072), auto")
        };
        let (digits, unit) = match trimmed.as_bytes().last() {
            Some(b'k') => (&trimmed[..trimmed.len() - 1], 1000),
            Some(b'K') => (&trimmed[..trimmed.len() - 1], 1 << 10),
            Some(b'm') => (&trimmed[..trimmed.len() - 1], 1_000_000),
            Some(b'M') => (&trimmed[..trimmed.len() - 1], 1 << 20),
            _ => (trimmed, 1),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        match number.checked_mul(unit) {
            Some(tokens) if tokens > 0 => Ok(Self::Tokens(tokens)),
            _ => Err(wrong()),
        }
    }
}

impl Settings {
    /// Whether a model of this class is served without images, video and audio.
    pub fn text_only(&self, class: &str) -> bool {
        self.language_model_only || self.multimodal.bars_all(class)
    }

    /// Whether the towers of a model of this class are not built.
    pub fn leaves_out_towers(&self, class: &str) -> bool {
        self.language_model_only || self.multimodal.leaves_out_towers(class, self.version)
    }

    /// Checks every value on its own; what contradicts the model or the GPU is a refusal of the engine, not an error.
    ///
    /// # Errors
    /// If a value can mean nothing: zero, out of range, not a number.
    pub fn validate(&self) -> Result<()> {
        for (flag, value) in [
            ("--tensor-parallel-size", self.tensor_parallel_size),
            ("--pipeline-parallel-size", self.pipeline_parallel_size),
            ("--data-parallel-size", self.data_parallel_size),
            (
                "--decode-context-parallel-size",
                self.decode_context_parallel_size,
            ),
        ] {
            if value == 0 || value > MAX_PARALLEL {
                return Err(Error::input(format!(
                    "{flag} is {value}, expected 1 to {MAX_PARALLEL}"
                )));
            }
        }
        let length = match self.max_model_len {
            MaxModelLen::Tokens(tokens) => Some(tokens),
            MaxModelLen::Derived | MaxModelLen::Auto => None,
        };
        for (flag, value) in [
            ("--block-size", self.block_size),
            ("--max-model-len", length),
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--num-gpu-blocks-override", self.num_gpu_blocks_override),
        ] {
            if let Some(value) = value
                && (value == 0 || value > MAX_TOKENS)
            {
                return Err(Error::input(format!(
                    "{flag} is {value}, expected 1 to {MAX_TOKENS}"
                )));
            }
        }
        if let Some(utilization) = self.gpu_memory_utilization
            && !(utilization > 0.0 && utilization <= 1.0)
        {
            return Err(Error::input(format!(
                "--gpu-memory-utilization is {utilization}, expected more than 0 and at most 1"
            )));
        }
        if let Some(speculative) = &self.speculative
            && (speculative.num_tokens == 0 || speculative.num_tokens > 1 << 16)
        {
            return Err(Error::input(format!(
                "--speculative-config num_speculative_tokens is {}, expected 1 to 65536",
                speculative.num_tokens
            )));
        }
        Ok(())
    }

    /// The cache type after `auto` took the checkpoint's.
    pub fn resolved_kv_cache_dtype(&self) -> KvDtype {
        match self.kv_cache_dtype {
            KvDtype::Auto => self.checkpoint_kv_cache_dtype.unwrap_or_default(),
            given => given,
        }
    }

    /// Whether the cache type comes from a scheme that attention layers look up themselves in the checkpoint's
    /// quantisation (llm-compressor's; vLLM 0.32.0, `model_executor/layers/attention/attention.py`).
    pub fn declared_to_layers(&self) -> bool {
        self.kv_cache_dtype == KvDtype::Auto && self.checkpoint_kv_cache_dtype == Some(KvDtype::Fp8)
    }

    /// Draft tokens of speculative decoding, 0 without.
    pub fn speculative_tokens(&self) -> u64 {
        self.speculative
            .as_ref()
            .map_or(0, |speculative| speculative.num_tokens)
    }

    /// Whether asynchronous scheduling runs (vLLM 0.32.0, `config/vllm.py`).
    pub fn runs_async(&self) -> bool {
        let supported = self
            .speculative
            .as_ref()
            .is_none_or(|spec| spec.method.supports_async());
        self.async_scheduling.unwrap_or(
            Rules::of(self.version).async_by_default
                && supported
                && (self.pipeline_parallel_size == 1 || self.runs_v2_runner()),
        )
    }

    /// Whether model runner V2 runs, the default with Triton, which a GPU has.
    pub fn runs_v2_runner(&self) -> bool {
        self.speculative
            .as_ref()
            .is_none_or(|spec| spec.method.supports_v2_runner())
    }

    /// Batches that may be in flight at once (`max_concurrent_batches`). Models that generate no text are scheduled
    /// synchronously unless asynchronous scheduling is asked for.
    pub fn max_concurrent_batches(&self, pooling: bool) -> u64 {
        let stages = self.pipeline_parallel_size;
        let runs_async = self.runs_async() && (!pooling || self.async_scheduling == Some(true));
        match (runs_async, self.runs_v2_runner()) {
            (true, true) => stages + 1,
            (true, false) if stages == 1 => 2,
            _ => stages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::speculative::Method;
    use super::*;

    #[test]
    fn lengths_parse_with_the_suffixes_of_the_engine() {
        for (text, tokens) in [
            ("8192", 8192),
            ("128k", 128_000),
            ("128K", 131_072),
            ("1m", 1_000_000),
        ] {
            assert_eq!(
                MaxModelLen::parse(text).unwrap(),
                MaxModelLen::Tokens(tokens),
                "{text}"
            );
        }
        assert_eq!(MaxModelLen::parse("auto").unwrap(), MaxModelLen::Auto);
        assert_eq!(MaxModelLen::parse("-1").unwrap(), MaxModelLen::Auto);
        for text in [
            "0",
            "",
            "-2",
            "1.5k",
            "99999999999999999999",
            "99999999999999M",
            "k",
        ] {
            assert!(MaxModelLen::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn asynchronous_scheduling_adds_a_batch_where_it_is_supported() {
        let batches = |stages, asynchronous, method: Option<Method>| {
            Settings {
                pipeline_parallel_size: stages,
                async_scheduling: asynchronous,
                speculative: method.map(|method| Speculative {
                    method,
                    num_tokens: 2,
                    draft: None,
                }),
                ..Settings::default()
            }
            .max_concurrent_batches(false)
        };
        assert_eq!(batches(1, None, None), 2);
        assert_eq!(batches(1, Some(false), None), 1);
        assert_eq!(batches(2, None, None), 3);
        assert_eq!(batches(2, Some(false), None), 2);
        assert_eq!(batches(1, None, Some(Method::Ngram)), 1);
        assert_eq!(batches(1, None, Some(Method::Eagle3)), 2);
        assert_eq!(batches(4, None, Some(Method::Suffix)), 4);
    }

    #[test]
    fn values_that_mean_nothing_are_named_in_the_error() {
        let zero = Settings {
            tensor_parallel_size: 0,
            ..Settings::default()
        };
        assert!(
            zero.validate()
                .unwrap_err()
                .to_string()
                .contains("--tensor-parallel-size is 0")
        );
        let nan = Settings {
            gpu_memory_utilization: Some(f64::NAN),
            ..Settings::default()
        };
        assert!(nan.validate().is_err());
        let huge = Settings {
            max_num_batched_tokens: Some(u64::MAX),
            ..Settings::default()
        };
        assert!(huge.validate().is_err());
        assert!(Settings::default().validate().is_ok());
    }
}
