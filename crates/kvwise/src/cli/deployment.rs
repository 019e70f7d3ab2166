//! Flags that describe a deployment; several commands share them.

use std::io::IsTerminal;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use kvwise_core::{Error, Result};
use kvwise_io::plan_profile;
use kvwise_sim::trace::{Content, Trace};

use super::other_engines::OtherEngineArgs;
use crate::usecase::deployment::Deployment;
use crate::usecase::kv_room::KvRoom;
use crate::usecase::lookup::Lookup;
use crate::usecase::settings;

/// Model, hardware, engine settings, load and margins.
#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::doc_markdown, reason = "help texts of flags, not documentation")]
pub struct DeploymentArgs {
    /// Model: catalogue name, hub id (ORG/NAME, ORG/NAME-GGUF:Q4_K_M), folder with config.json, a config.json, or a .gguf
    /// file.
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,

    /// Parameters in billions, where nothing else is known (or instead of the configuration's count).
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub params_b: Option<f64>,

    /// Branch, tag or commit of the model on the hub [default: main].
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,

    /// Ask nothing of the network: models of the catalogue, of files and of the hub's caches only.
    #[arg(long)]
    pub offline: bool,

    /// GPU by name (h100, h200, a100-80gb, rtx-4090, h100-1g.10gb, ...; see `kvwise gpus`), auto (this machine's) or cpu.
    #[arg(long, value_name = "NAME", help_heading = "Hardware")]
    pub gpu: Option<String>,

    /// GPUs that are there [default: as many as the parallel sizes use].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Hardware"
    )]
    pub gpus: Option<u64>,

    /// Memory of one GPU with its unit (48GiB), for cards that are not in the catalogue or to correct it.
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "SIZE",
        help_heading = "Hardware"
    )]
    pub gpu_memory: Option<String>,

    /// How the GPUs are connected: pcie or nvlink [default: as the catalogue says].
    #[arg(long, value_name = "LINK", help_heading = "Hardware")]
    pub interconnect: Option<String>,

    /// Engine whose rules are used: vllm, sglang, llamacpp or generic [default: vllm; llamacpp for .gguf].
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub engine: Option<String>,

    /// Version of the engine, e.g. 0.32.0 [default: the newest known].
    #[arg(long, value_name = "V", help_heading = "Engine")]
    pub engine_version: Option<String>,

    /// Ranks that share each layer.
    #[arg(
        long,
        visible_alias = "tp",
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub tensor_parallel_size: Option<u64>,

    /// Stages that share the layers.
    #[arg(
        long,
        visible_alias = "pp",
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub pipeline_parallel_size: Option<u64>,

    /// Replicas of the attention layers.
    #[arg(
        long,
        visible_alias = "dp",
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub data_parallel_size: Option<u64>,

    /// Give whole experts to ranks.
    #[arg(long, help_heading = "Engine")]
    pub enable_expert_parallel: bool,

    /// Ranks that share the tokens of the KV cache while decoding.
    #[arg(
        long,
        visible_alias = "dcp",
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub decode_context_parallel_size: Option<u64>,

    /// Type of weights and activations: auto, float16, bfloat16, float32.
    #[arg(long, value_name = "TYPE", help_heading = "Engine")]
    pub dtype: Option<String>,

    /// Weight quantisation: auto (what the checkpoint says), none, or a method.
    #[arg(long, value_name = "METHOD", help_heading = "Engine")]
    pub quantization: Option<String>,

    /// Type of the KV cache: auto, fp8, fp8_e5m2, bfloat16, ...
    #[arg(long, value_name = "TYPE", help_heading = "Engine")]
    pub kv_cache_dtype: Option<String>,

    /// Layers whose cache keeps the model's type: indices, or sliding_window.
    #[arg(long, value_name = "LIST", help_heading = "Engine")]
    pub kv_cache_dtype_skip_layers: Option<String>,

    /// Tokens in a block.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub block_size: Option<u64>,

    /// Longest request in tokens, or auto (the longest that fits) [default: the model's].
    #[arg(
        long,
        value_name = "N|auto",
        allow_hyphen_values = true,
        help_heading = "Engine"
    )]
    pub max_model_len: Option<String>,

    /// Most sequences in one step.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_num_seqs: Option<u64>,

    /// Most tokens in one step.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_num_batched_tokens: Option<String>,

    /// Share of the GPU's memory that the engine may use [default: the version's].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        help_heading = "Engine"
    )]
    pub gpu_memory_utilization: Option<f64>,

    /// KV cache bytes per GPU instead of the memory profile.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub kv_cache_memory_bytes: Option<String>,

    /// Number of blocks instead of the computed one.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub num_gpu_blocks_override: Option<u64>,

    /// No CUDA graphs.
    #[arg(long, help_heading = "Engine")]
    pub enforce_eager: bool,

    /// Prefix caching off.
    #[arg(long, help_heading = "Engine")]
    pub no_enable_prefix_caching: bool,

    /// Prefix caching on where a release leaves it off: models with recurrent states before vLLM 0.28.
    #[arg(long, help_heading = "Engine", conflicts_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,

    /// Asynchronous scheduling off.
    #[arg(long, help_heading = "Engine")]
    pub no_async_scheduling: bool,

    /// Sliding windows hold all tokens.
    #[arg(long, help_heading = "Engine")]
    pub disable_hybrid_kv_cache_manager: bool,

    /// Attention backend by the engine's name (FLASH_ATTN, FLASHMLA, ...).
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub attention_backend: Option<String>,

    /// Leave out vision and audio towers.
    #[arg(long, help_heading = "Engine")]
    pub language_model_only: bool,

    /// Most images, videos and clips of one prompt (JSON, or image=2,video=0); 0 of all leaves out their towers.
    #[arg(long, value_name = "JSON", help_heading = "Engine")]
    pub limit_mm_per_prompt: Option<String>,

    /// Options of the model's processor, as the engine's JSON: max_pixels and size bound the largest image.
    #[arg(long, value_name = "JSON", help_heading = "Engine")]
    pub mm_processor_kwargs: Option<String>,

    /// Images and videos take no part in the memory profile.
    #[arg(long, help_heading = "Engine")]
    pub skip_mm_profiling: bool,

    /// Speculative decoding, as the engine's JSON.
    #[arg(long, value_name = "JSON", help_heading = "Engine")]
    pub speculative_config: Option<String>,

    /// Serve LoRA adapters, whose slots take memory.
    #[arg(long, help_heading = "Engine")]
    pub enable_lora: bool,

    /// Adapters on the GPU at once [default: 1].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_loras: Option<u64>,

    /// Highest rank of an adapter [default: 16].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "Engine"
    )]
    pub max_lora_rank: Option<u64>,

    /// Flags of SGLang and llama.cpp.
    #[command(flatten)]
    pub other_engines: OtherEngineArgs,

    /// Tokens of one request, prompt and output; several values make a grid.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        value_delimiter = ',',
        help_heading = "Load"
    )]
    pub context: Vec<String>,

    /// Requests at once; several values make a grid.
    #[arg(
        long,
        short = 'c',
        allow_negative_numbers = true,
        value_name = "N",
        value_delimiter = ',',
        help_heading = "Load"
    )]
    pub concurrency: Vec<u64>,

    /// Prompt tokens of one request.
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Load")]
    pub prompt_tokens: Option<u64>,

    /// Output tokens of one request.
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Load")]
    pub gen_tokens: Option<u64>,

    /// Recommend sequences and tokens of a step for throughput, latency or balanced.
    #[arg(long, value_name = "MODE", help_heading = "Load")]
    pub mode: Option<String>,

    /// Bytes to reserve instead of the estimated overhead (2GiB).
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "SIZE",
        help_heading = "Margins"
    )]
    pub overhead: Option<String>,

    /// Factor on the KV cache of the load [default: 1.0 for vllm, 1.15 for generic].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        help_heading = "Margins"
    )]
    pub fragmentation_factor: Option<String>,

    /// Memory that must stay free [default: none for vllm, 1GiB for generic].
    #[arg(
        long,
        allow_hyphen_values = true,
        value_name = "SIZE",
        help_heading = "Margins"
    )]
    pub headroom: Option<String>,

    /// Plan without the calibrations that `kvwise verify --save` keeps.
    #[arg(long, help_heading = "Margins")]
    pub no_calibration: bool,

    /// Take what is not given here from a profile (YAML, version 1).
    #[arg(long, short = 'p', value_name = "FILE", help_heading = "Input")]
    pub profile: Option<std::path::PathBuf>,
}

impl DeploymentArgs {
    /// The flags, over the profile if one is given, over the user's settings.
    ///
    /// # Errors
    /// If the profile cannot be read.
    pub fn deployment(&self) -> Result<Deployment> {
        self.given().map(settings::complete)
    }

    /// The flags, over the profile if one is given, and nothing else.
    ///
    /// # Errors
    /// If the profile cannot be read.
    pub fn given(&self) -> Result<Deployment> {
        let mut flags = Deployment {
            model: self.model.clone(),
            revision: self.revision.clone(),
            params_b: self.params_b,
            gpu: self.gpu.clone(),
            gpus: self.gpus,
            gpu_memory: self.gpu_memory.clone(),
            interconnect: self.interconnect.clone(),
            engine: self.engine.clone(),
            engine_version: self.engine_version.clone(),
            tensor_parallel_size: self.tensor_parallel_size,
            pipeline_parallel_size: self.pipeline_parallel_size,
            data_parallel_size: self.data_parallel_size,
            enable_expert_parallel: self.enable_expert_parallel,
            decode_context_parallel_size: self.decode_context_parallel_size,
            dtype: self.dtype.clone(),
            quantization: self.quantization.clone(),
            kv_cache_dtype: self.kv_cache_dtype.clone(),
            kv_cache_dtype_skip_layers: self.kv_cache_dtype_skip_layers.clone(),
            block_size: self.block_size,
            max_model_len: self.max_model_len.clone(),
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens.clone(),
            gpu_memory_utilization: self.gpu_memory_utilization,
            kv_cache_memory_bytes: self.kv_cache_memory_bytes.clone(),
            num_gpu_blocks_override: self.num_gpu_blocks_override,
            enforce_eager: self.enforce_eager,
            no_enable_prefix_caching: self.no_enable_prefix_caching,
            enable_prefix_caching: self.enable_prefix_caching,
            no_async_scheduling: self.no_async_scheduling,
            disable_hybrid_kv_cache_manager: self.disable_hybrid_kv_cache_manager,
            attention_backend: self.attention_backend.clone(),
            language_model_only: self.language_model_only,
            limit_mm_per_prompt: self.limit_mm_per_prompt.clone(),
            mm_processor_kwargs: self.mm_processor_kwargs.clone(),
            skip_mm_profiling: self.skip_mm_profiling,
            speculative_config: self.speculative_config.clone(),
            enable_lora: self.enable_lora,
            max_loras: self.max_loras,
            max_lora_rank: self.max_lora_rank,
            context: self.context.clone(),
            concurrency: self.concurrency.clone(),
            prompt_tokens: self.prompt_tokens,
            gen_tokens: self.gen_tokens,
            mode: self.mode.clone(),
            overhead: self.overhead.clone(),
            fragmentation_factor: self.fragmentation_factor.clone(),
            headroom: self.headroom.clone(),
            lookup: Lookup::new(!self.offline, std::io::stderr().is_terminal()),
            no_calibration: self.no_calibration,
            ..Deployment::default()
        };
        self.other_engines.apply(&mut flags);
        match &self.profile {
            None => Ok(flags),
            Some(path) => flags.over(
                &Deployment::from_profile(&plan_profile::read(path)?).map_err(|e| e.at(path.display()))?,
            ),
        }
    }
}

/// The deployment's flags with the model behind `--model`, for commands whose position belongs to a trace.
#[derive(Debug, Clone, Default)]
pub struct DeploymentFlags(pub DeploymentArgs);

impl FromArgMatches for DeploymentFlags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        DeploymentArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for DeploymentFlags {
    fn augment_args(command: Command) -> Command {
        DeploymentArgs::augment_args(command).mut_arg("model", |a| a.long("model"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        DeploymentArgs::augment_args_for_update(command).mut_arg("model", |a| a.long("model"))
    }
}

/// As [`DeploymentFlags`], for commands that only ask how much the deployment's KV cache holds: flags about load and
/// margins are accepted, so that a plan's flags can be pasted, but not listed.
#[derive(Debug, Clone, Default)]
pub struct CacheFlags(pub DeploymentArgs);

/// Flags that do not change the size of the cache.
const ABOUT_LOAD: [&str; 6] = [
    "context",
    "concurrency",
    "prompt_tokens",
    "gen_tokens",
    "mode",
    "fragmentation_factor",
];

impl CacheFlags {
    /// The deployment, if a model or a profile names one.
    ///
    /// # Errors
    /// If the profile cannot be read.
    pub fn deployment(&self) -> Result<Option<Deployment>> {
        if self.0.model.is_none() && self.0.profile.is_none() && self.0.params_b.is_none() {
            return Ok(None);
        }
        self.0.deployment().map(Some)
    }
}

impl CacheFlags {
    /// Tokens of a block to expect before the trace is known: see [`cache_block`].
    pub fn expected_block(&self, room: Option<&KvRoom>) -> Option<u32> {
        let size = self.0.block_size.or(room.map(|room| room.block_size))?;
        u32::try_from(size).ok().filter(|&size| size > 0)
    }
}

impl FromArgMatches for CacheFlags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        DeploymentArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for CacheFlags {
    fn augment_args(command: Command) -> Command {
        ABOUT_LOAD
            .iter()
            .fold(DeploymentFlags::augment_args(command), |command, &flag| {
                command.mut_arg(flag, |a| a.hide(true))
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        DeploymentFlags::augment_args_for_update(command)
    }
}

/// Tokens of a block to cut `trace` in: as `--block-size` says; else for traces of token ids those of the deployment;
/// else what the trace says.
///
/// # Errors
/// If `--block-size` is 0 or beyond 32 bits.
pub fn cache_block(flags: &CacheFlags, room: Option<&KvRoom>, trace: &Trace) -> Result<Option<u32>> {
    if let Some(asked) = flags.0.block_size {
        return match u32::try_from(asked) {
            Ok(size) if size > 0 => Ok(Some(size)),
            _ => Err(Error::input(format!(
                "--block-size is {asked}, expected 1 to {}",
                u32::MAX
            ))),
        };
    }
    Ok(match (trace.content(), room) {
        (Content::Tokens(_), Some(room)) => u32::try_from(room.block_size).ok().filter(|&size| size > 0),
        _ => None,
    })
}
