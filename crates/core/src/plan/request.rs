//! The question: which model, on which hardware, by which engine, for which load.

use serde_json::{Map, Value, json};

use super::policy::Policy;
use crate::arch::{Config, Model};
use crate::engine::{llamacpp, sglang, vllm};
use crate::hardware::Gpu;
use crate::quant::Inventories;
use crate::units::GIB;
use crate::{Error, Result};

/// A question for [`plan`](super::plan).
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// What is served.
    pub subject: Subject<'a>,
    /// What it runs on.
    pub hardware: Hardware,
    /// Which engine, with its settings.
    pub engine: Engine,
    /// Contexts and concurrencies to answer for; the first pair is the load of the verdict.
    pub load: Load,
    /// Margins.
    pub policy: Policy,
    /// Whether to derive every number step by step.
    pub explain: bool,
}

/// What is served.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// What the user called it.
    pub name: &'a str,
    /// Where its description comes from, for people.
    pub source: String,
    /// Its layers, if they are known, and the configuration they were read from.
    pub model: Option<(&'a Model, &'a Config)>,
    /// Why the engine does not serve this architecture, if it does not.
    pub refused: Option<String>,
    /// What to change in its files, where they are what the engine refuses.
    pub fix: Option<String>,
    /// Parameters, where the user gives them.
    pub params: Option<u64>,
    /// Bytes of the checkpoint, where headers or an index give them.
    pub checkpoint: Option<CheckpointBytes>,
    /// What was worked out about the parameters of `model`; a new one (`Inventories::default()`) for another model.
    pub inventories: Inventories,
}

impl<'a> Subject<'a> {
    /// A model whose layers are known, and nothing else.
    pub fn of_model(name: &'a str, source: impl Into<String>, model: &'a Model, config: &'a Config) -> Self {
        Self {
            name,
            source: source.into(),
            model: Some((model, config)),
            refused: None,
            fix: None,
            params: None,
            checkpoint: None,
            inventories: Inventories::default(),
        }
    }

    /// Why nothing can be planned without its layers, where a refusal is no answer: the reason, else `otherwise`.
    pub(super) fn undescribed(&self, otherwise: &str) -> Error {
        let why = self.refused.clone().unwrap_or_else(|| otherwise.to_owned());
        self.fix.iter().fold(Error::unsupported(why), Error::hint)
    }
}

/// Bytes of a checkpoint on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointBytes {
    /// All tensors together.
    pub total_bytes: u64,
    /// `safetensors`, `index` or `gguf`.
    pub source: &'static str,
}

/// What it runs on: one kind of GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Hardware {
    /// Catalogue name, or `custom`.
    pub name: String,
    /// GPUs that may be used; at least as many as the engine's ranks.
    pub gpus: u64,
    /// Bytes as the driver reports them.
    pub driver_bytes: u64,
    /// Bytes as PyTorch reports them.
    pub torch_bytes: u64,
    /// Whether `torch_bytes` comes from a log (else it is estimated).
    pub torch_known: bool,
    /// CUDA compute capability.
    pub compute_capability: Option<(u32, u32)>,
    /// Peak device memory bandwidth in bytes per second.
    pub bandwidth_bytes_per_s: Option<f64>,
    /// Peak dense 16-bit rate in operations per second.
    pub flops: Option<f64>,
    /// Whether the ranks talk over `PCIe` (slower for tensor parallelism).
    pub pcie_only: bool,
    /// Whether the user said how they talk, or the catalogue.
    pub link_given: bool,
    /// Whether the GPU shares the host's memory.
    pub unified: bool,
}

impl Hardware {
    /// `gpus` of a catalogue row.
    pub fn of(gpu: &Gpu, gpus: u64) -> Self {
        let (torch_bytes, torch_known) = gpu.torch_total();
        Self {
            name: gpu.name.clone(),
            gpus,
            driver_bytes: gpu.memory_bytes,
            torch_bytes,
            torch_known,
            compute_capability: gpu.compute_capability,
            bandwidth_bytes_per_s: Some(gpu.bandwidth_bytes_per_s),
            flops: Some(gpu.tflops.fp16 * 1e12),
            pcie_only: gpu.nvlink_bytes_per_s.is_none(),
            link_given: false,
            unified: gpu.unified,
        }
    }

    /// The CPU platform of an engine: the memory of one node, of which each rank takes a share.
    pub fn cpu(memory_bytes: u64, ranks: u64) -> Self {
        Self {
            name: "cpu".to_owned(),
            compute_capability: Some((0, 0)),
            pcie_only: true,
            ..Self::custom(memory_bytes, ranks)
        }
    }

    /// Whether it is an AMD GPU: every GPU of the catalogue without a compute capability is.
    pub fn is_amd(&self) -> bool {
        self.compute_capability.is_none() && self.name != "custom"
    }

    /// Whether the engine runs on the CPU.
    pub fn is_cpu(&self) -> bool {
        self.name == "cpu"
    }

    /// `gpus` of a card that is not in the catalogue, with this much memory for the engine.
    pub fn custom(memory_bytes: u64, gpus: u64) -> Self {
        Self {
            name: "custom".to_owned(),
            gpus,
            driver_bytes: memory_bytes,
            torch_bytes: memory_bytes,
            torch_known: true,
            compute_capability: None,
            bandwidth_bytes_per_s: None,
            flops: None,
            pcie_only: false,
            link_given: false,
            unified: false,
        }
    }
}

/// Which engine's rules, with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Engine {
    /// vLLM, by its own rules.
    Vllm(Box<vllm::Settings>),
    /// SGLang, by its own rules.
    Sglang(Box<sglang::Settings>),
    /// llama.cpp, by its own rules.
    LlamaCpp(Box<LlamaCpp>),
    /// No particular engine: tokens times bytes, and the margins of the policy.
    Generic(Generic),
}

/// llama.cpp's settings, and what is known of the file it loads.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LlamaCpp {
    /// Settings of the server.
    pub settings: llamacpp::Settings,
    /// The GGUF file, where there is one; else the configuration is planned as the converter would write it.
    pub file: Option<GgufFile>,
    /// Mix of types that a configuration is planned with (`q4_k_m` where nothing is said).
    pub mix: Option<String>,
}

/// What the header of a GGUF file says.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufFile {
    /// What its memory depends on.
    pub hparams: llamacpp::Hparams,
    /// Bytes by where they are placed.
    pub weights: llamacpp::Weights,
}

/// Settings of the generic engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Generic {
    /// Ranks that share each layer.
    pub tensor_parallel_size: u64,
    /// Stages that share the layers.
    pub pipeline_parallel_size: u64,
    /// Bits of one weight element unless the checkpoint or quantisation says otherwise.
    pub dtype: Option<crate::dtype::Dtype>,
    /// Weight format made on load.
    pub quantization: Option<super::generic::Quantization>,
    /// Whether a checkpoint's own quantisation is left out of account (`--quantization none`).
    pub ignores_checkpoint: bool,
    /// Bytes of one KV element (1 or 2; 4 for float32).
    pub kv_element_bytes: Option<u64>,
    /// Share of the memory to use.
    pub gpu_memory_utilization: f64,
    /// Longest request.
    pub max_model_len: Option<u64>,
}

impl Default for Generic {
    fn default() -> Self {
        Self {
            tensor_parallel_size: 1,
            pipeline_parallel_size: 1,
            dtype: None,
            quantization: None,
            ignores_checkpoint: false,
            kv_element_bytes: None,
            gpu_memory_utilization: 0.9,
            max_model_len: None,
        }
    }
}

/// What has to be served at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Tokens of each request, prompt and output together; empty means the longest the engine is started for.
    pub contexts: Vec<u64>,
    /// Requests at once; at least one value.
    pub concurrencies: Vec<u64>,
    /// Prompt tokens of one request, where they were given apart.
    pub prompt_tokens: Option<u64>,
    /// What settings are recommended for; `None` recommends none for the steps of the scheduler.
    pub mode: Option<Mode>,
}

/// What a deployment is for; decides the steps of the scheduler that are recommended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Many tokens a second: room for more requests than asked for, and larger steps.
    Throughput,
    /// Short steps: no more requests than asked for.
    Latency,
    /// Between the two.
    Balanced,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Throughput, Self::Latency, Self::Balanced];

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Balanced => "balanced",
        }
    }

    /// The mode of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Parses a name; case and blanks around it do not matter.
    ///
    /// # Errors
    /// If it is none of the three.
    pub fn parse(text: &str) -> Result<Self> {
        Self::named(&text.trim().to_ascii_lowercase()).ok_or_else(|| {
            Error::input(format!("--mode is \"{text}\"")).hint("write throughput, latency or balanced")
        })
    }

    /// Sequences and tokens of a step for `concurrency` requests of `context` tokens on a GPU with this memory, by the
    /// rules of an earlier planner (vllm-wizard 0.2.0, `recommend.py`).
    pub fn steps(self, context: u64, concurrency: u64, memory_bytes: u64) -> Steps {
        let (more, percent) = match self {
            Self::Throughput => (4, 150),
            Self::Latency => (0, 100),
            Self::Balanced => (2, 125),
        };
        let most_tokens = match memory_bytes {
            m if m >= 40 * GIB => 65_536,
            m if m >= 20 * GIB => 32_768,
            _ => 16_384,
        };
        let load = u128::from(context) * u128::from(concurrency) * u128::from(percent) / 100;
        Steps {
            sequences: concurrency.saturating_add(more),
            tokens: u64::try_from(load)
                .unwrap_or(most_tokens)
                .clamp(8192, most_tokens),
            most_tokens,
            percent,
        }
    }
}

/// Bounds of a scheduler's step that a [`Mode`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// Sequences at once.
    pub sequences: u64,
    /// Tokens of a step.
    pub tokens: u64,
    /// What `tokens` is bounded by on this GPU.
    pub most_tokens: u64,
    /// Share of the load's tokens that a step takes, in percent.
    pub percent: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            concurrencies: vec![1],
            prompt_tokens: None,
            mode: None,
        }
    }
}

impl Load {
    /// Checks that every number is in a sensible range.
    ///
    /// # Errors
    /// If one is zero or absurdly large.
    pub fn validate(&self) -> Result<()> {
        for (what, values) in [
            ("--context", &self.contexts),
            ("--concurrency", &self.concurrencies),
        ] {
            for &n in values {
                if n == 0 || n > 1 << 40 {
                    return Err(Error::input(format!(
                        "{what} is {n}, expected 1 to {}",
                        1_u64 << 40
                    )));
                }
            }
        }
        if self.concurrencies.is_empty() {
            return Err(Error::input("--concurrency has no value"));
        }
        Ok(())
    }
}

/// The settings as they were used, under the names of the flags.
pub(super) fn echo(request: &Request) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            map.insert(key.to_owned(), value);
        }
    };
    put("model", json!(request.subject.name));
    put("gpu", json!(request.hardware.name));
    put("gpus", json!(request.hardware.gpus));
    match &request.engine {
        Engine::Vllm(s) => {
            put("engine", json!("vllm"));
            put("engine_version", json!(s.version.to_string()));
            put("tensor_parallel_size", json!(s.tensor_parallel_size));
            put("pipeline_parallel_size", json!(s.pipeline_parallel_size));
            put("data_parallel_size", json!(s.data_parallel_size));
            put(
                "decode_context_parallel_size",
                json!(s.decode_context_parallel_size),
            );
            put("enable_expert_parallel", json!(s.enable_expert_parallel));
            put("dtype", json!(s.dtype.map(crate::dtype::Dtype::name)));
            put("quantization", json!(s.quantization));
            put("kv_cache_dtype", json!(s.kv_cache_dtype.name()));
            put("block_size", json!(s.block_size));
            put("max_num_seqs", json!(s.max_num_seqs));
            put("max_num_batched_tokens", json!(s.max_num_batched_tokens));
            put("gpu_memory_utilization", json!(s.gpu_memory_utilization));
            put("kv_cache_memory_bytes", json!(s.kv_cache_memory_bytes));
            put("num_gpu_blocks_override", json!(s.num_gpu_blocks_override));
            put("enforce_eager", json!(s.enforce_eager));
            put("enable_prefix_caching", json!(s.enable_prefix_caching));
            put("async_scheduling", json!(s.async_scheduling));
            put("language_model_only", json!(s.language_model_only));
            put("limit_mm_per_prompt", json!(s.multimodal.limits_json()));
            put("max_pixels", json!(s.multimodal.max_pixels));
            put(
                "skip_mm_profiling",
                json!(s.multimodal.skip_profiling.then_some(true)),
            );
            put("enable_lora", json!(s.enable_lora.then_some(true)));
            put("max_loras", json!(s.max_loras));
            put("max_lora_rank", json!(s.max_lora_rank));
            put(
                "attention_backend",
                json!(s.attention_backend.map(vllm::Backend::name)),
            );
            put(
                "disable_hybrid_kv_cache_manager",
                json!(s.disable_hybrid_kv_cache_manager.then_some(true)),
            );
            if s.kv_cache_dtype_skip_layers != vllm::settings::SkipLayers::default() {
                put(
                    "kv_cache_dtype_skip_layers",
                    json!(s.kv_cache_dtype_skip_layers.to_string()),
                );
            }
            if let Some(speculative) = &s.speculative {
                put(
                    "speculative_config",
                    json!({
                        "method": speculative.method.name(),
                        "model": speculative.draft.as_ref().map(|draft| &draft.model.name),
                        "num_speculative_tokens": speculative.num_tokens,
                    }),
                );
            }
        }
        Engine::Sglang(s) => {
            put("engine", json!("sglang"));
            put("engine_version", json!(sglang::VERSION));
            put("tensor_parallel_size", json!(s.tp()));
            put("pipeline_parallel_size", json!(s.pp()));
            put("data_parallel_size", json!(s.attention_dp()));
            put("enable_expert_parallel", json!(s.expert_parallel));
            put("dtype", json!(s.dtype.map(crate::dtype::Dtype::name)));
            put("quantization", json!(s.quantization));
            put("kv_cache_dtype", json!(s.kv_cache_dtype.name()));
            put("mem_fraction_static", json!(s.mem_fraction_static));
            put("page_size", json!(s.page_size));
            put(
                "chunked_prefill_size",
                match s.chunked_prefill_size {
                    None => Value::Null,
                    Some(sglang::Chunk::Whole) => json!(-1),
                    Some(sglang::Chunk::Tokens(n)) => json!(n),
                },
            );
            put("max_running_requests", json!(s.max_running_requests));
            put("max_total_tokens", json!(s.max_total_tokens));
            put("context_length", json!(s.context_length));
            put("swa_full_tokens_ratio", json!(s.swa_full_tokens_ratio));
            put("mamba_full_memory_ratio", json!(s.mamba_full_memory_ratio));
            if let Some(speculative) = &s.speculative {
                put("speculative_algorithm", json!(speculative.algorithm.name()));
                put("speculative_num_steps", json!(speculative.num_steps));
                put("speculative_eagle_topk", json!(speculative.eagle_topk));
                put(
                    "speculative_num_draft_tokens",
                    json!(speculative.num_draft_tokens),
                );
            }
            put("disable_cuda_graph", json!(s.disable_cuda_graph));
            put("disable_radix_cache", json!(s.disable_radix_cache));
            put("kv_cache_memory_bytes", json!(s.kv_cache_memory_bytes));
        }
        Engine::LlamaCpp(l) => {
            let s = &l.settings;
            put("engine", json!("llamacpp"));
            put("engine_version", json!(llamacpp::VERSION));
            put("quantization", json!(l.mix));
            put("ctx_size", json!(s.ctx_size));
            put("parallel", json!(s.parallel));
            put("kv_unified", json!(s.kv_unified));
            put("cache_type_k", json!(s.cache_type_k.name));
            put("cache_type_v", json!(s.cache_type_v.name));
            put("swa_full", json!(s.swa_full));
            put("flash_attn", json!(s.flash_attn));
            put("ubatch_size", json!(s.ubatch_size));
            put("n_gpu_layers", json!(s.gpu_layers));
            if !s.tensor_split.is_empty() {
                put("tensor_split", json!(s.tensor_split));
            }
            if s.split_mode != llamacpp::SplitMode::Layer {
                put("split_mode", json!(s.split_mode.name()));
            }
            if s.main_gpu != 0 {
                put("main_gpu", json!(s.main_gpu));
            }
            if !s.overrides.is_empty() {
                put("override_tensor", json!(s.overrides.texts().collect::<Vec<_>>()));
            }
            match s.cpu_moe_layers {
                0 => {}
                u64::MAX => put("cpu_moe", json!(true)),
                layers => put("n_cpu_moe", json!(layers)),
            }
        }
        Engine::Generic(g) => {
            put("engine", json!("generic"));
            put("tensor_parallel_size", json!(g.tensor_parallel_size));
            put("pipeline_parallel_size", json!(g.pipeline_parallel_size));
            put("dtype", json!(g.dtype.map(crate::dtype::Dtype::name)));
            put(
                "quantization",
                json!(g.quantization.map(super::generic::Quantization::name)),
            );
            put("kv_element_bytes", json!(g.kv_element_bytes));
            put("gpu_memory_utilization", json!(g.gpu_memory_utilization));
            put("max_model_len", json!(g.max_model_len));
        }
    }
    put("context", json!(request.load.contexts));
    put("concurrency", json!(request.load.concurrencies));
    put("prompt_tokens", json!(request.load.prompt_tokens));
    put("mode", json!(request.load.mode.map(Mode::name)));
    if request.hardware.link_given {
        let link = if request.hardware.pcie_only {
            "pcie"
        } else {
            "nvlink"
        };
        put("interconnect", json!(link));
    }
    put(
        "fragmentation_factor",
        json!(request.policy.fragmentation.to_string()),
    );
    put("overhead_bytes", json!(request.policy.overhead_bytes));
    put("headroom_bytes", json!(request.policy.headroom_bytes));
    put("params", json!(request.subject.params));
    put("site_calibration", json!(request.policy.site));
    map
}
