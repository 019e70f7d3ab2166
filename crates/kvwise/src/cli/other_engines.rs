//! Flags that only SGLang or only llama.cpp has, under their own names.

use clap::Args;

use crate::usecase::deployment::Deployment;

/// SGLang's and llama.cpp's own flags.
#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::doc_markdown, reason = "help texts of flags, not documentation")]
pub struct OtherEngineArgs {
    /// Share of the free memory that weights and KV cache may take [default: by the card].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        help_heading = "SGLang"
    )]
    pub mem_fraction_static: Option<f64>,

    /// Tokens in a page of the KV cache [default: what the attention backend takes].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub page_size: Option<u64>,

    /// Prompt tokens of one step; -1 for whole prompts [default: by the card].
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "SGLang"
    )]
    pub chunked_prefill_size: Option<i64>,

    /// Most requests at once.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub max_running_requests: Option<u64>,

    /// Upper limit of the pool's tokens.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub max_total_tokens: Option<String>,

    /// Tokens of the sliding-window pool for each token of the full one [default: 0.8].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        help_heading = "SGLang"
    )]
    pub swa_full_tokens_ratio: Option<f64>,

    /// Memory of recurrent states for each byte of KV cache [default: 0.9].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        help_heading = "SGLang"
    )]
    pub mamba_full_memory_ratio: Option<f64>,

    /// Speculative decoding: EAGLE, NEXTN, EAGLE3, STANDALONE or NGRAM (SGLang).
    #[arg(long, value_name = "NAME", help_heading = "SGLang")]
    pub speculative_algorithm: Option<String>,

    /// The drafter; the model's own name for its prediction modules (SGLang).
    #[arg(long, value_name = "MODEL", help_heading = "SGLang")]
    pub speculative_draft_model_path: Option<String>,

    /// Steps of the drafter (SGLang).
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub speculative_num_steps: Option<u64>,

    /// Branches of each step (SGLang).
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub speculative_eagle_topk: Option<u64>,

    /// Tokens that one verification checks (SGLang).
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "SGLang"
    )]
    pub speculative_num_draft_tokens: Option<u64>,

    /// Tokens of all sequences together [default: --context times --concurrency, else the model's].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "llama.cpp"
    )]
    pub ctx_size: Option<String>,

    /// Sequences at once.
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "llama.cpp"
    )]
    pub parallel: Option<u64>,

    /// Type of the keys: f16, q8_0, q4_0, ... [default: f16].
    #[arg(long, value_name = "TYPE", help_heading = "llama.cpp")]
    pub cache_type_k: Option<String>,

    /// Type of the values [default: f16].
    #[arg(long, value_name = "TYPE", help_heading = "llama.cpp")]
    pub cache_type_v: Option<String>,

    /// Layers on GPUs, the output counting as one [default: all].
    #[arg(
        long,
        visible_alias = "ngl",
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "llama.cpp"
    )]
    pub n_gpu_layers: Option<u64>,

    /// Shares of the GPUs (3,1); those left out are 0 [default: equal].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "F",
        value_delimiter = ',',
        help_heading = "llama.cpp"
    )]
    pub tensor_split: Vec<f64>,

    /// What is spread over the GPUs: none, layer, row or tensor [default: layer].
    #[arg(long, visible_alias = "sm", value_name = "MODE", help_heading = "llama.cpp")]
    pub split_mode: Option<String>,

    /// The GPU that has the model with --split-mode none; -1 is the host.
    #[arg(
        long,
        visible_alias = "mg",
        allow_negative_numbers = true,
        value_name = "INDEX",
        help_heading = "llama.cpp"
    )]
    pub main_gpu: Option<i64>,

    /// Tensors whose names match lie in this buffer (CPU, CUDA0, ...); may be repeated.
    #[arg(
        long,
        visible_alias = "ot",
        value_name = "PATTERN=BUFFER,...",
        help_heading = "llama.cpp"
    )]
    pub override_tensor: Vec<String>,

    /// The experts of the first N layers stay with the host.
    #[arg(
        long,
        visible_alias = "ncmoe",
        value_name = "N",
        help_heading = "llama.cpp",
        conflicts_with = "cpu_moe"
    )]
    pub n_cpu_moe: Option<u64>,

    /// All experts stay with the host.
    #[arg(long, visible_alias = "cmoe", help_heading = "llama.cpp")]
    pub cpu_moe: bool,

    /// Tokens of one physical batch [default: 512].
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        help_heading = "llama.cpp"
    )]
    pub ubatch_size: Option<u64>,

    /// Sliding windows keep the whole context.
    #[arg(long, help_heading = "llama.cpp")]
    pub swa_full: bool,

    /// One cache for all sequences.
    #[arg(long, help_heading = "llama.cpp")]
    pub kv_unified: bool,

    /// No flash attention.
    #[arg(long, help_heading = "llama.cpp")]
    pub no_flash_attn: bool,

    /// Caches stay with the host.
    #[arg(long, help_heading = "llama.cpp")]
    pub no_kv_offload: bool,
}

impl OtherEngineArgs {
    /// Copies what is given into a deployment.
    pub fn apply(&self, to: &mut Deployment) {
        to.mem_fraction_static = self.mem_fraction_static;
        to.page_size = self.page_size;
        to.chunked_prefill_size = self.chunked_prefill_size;
        to.max_running_requests = self.max_running_requests;
        to.max_total_tokens.clone_from(&self.max_total_tokens);
        to.swa_full_tokens_ratio = self.swa_full_tokens_ratio;
        to.mamba_full_memory_ratio = self.mamba_full_memory_ratio;
        to.speculative_algorithm.clone_from(&self.speculative_algorithm);
        to.speculative_draft_model_path
            .clone_from(&self.speculative_draft_model_path);
        to.speculative_num_steps = self.speculative_num_steps;
        to.speculative_eagle_topk = self.speculative_eagle_topk;
        to.speculative_num_draft_tokens = self.speculative_num_draft_tokens;
        to.ctx_size.clone_from(&self.ctx_size);
        to.parallel = self.parallel;
        to.cache_type_k.clone_from(&self.cache_type_k);
        to.cache_type_v.clone_from(&self.cache_type_v);
        to.n_gpu_layers = self.n_gpu_layers;
        to.tensor_split.clone_from(&self.tensor_split);
        to.split_mode.clone_from(&self.split_mode);
        to.main_gpu = self.main_gpu;
        to.override_tensor.clone_from(&self.override_tensor);
        to.n_cpu_moe = self.n_cpu_moe;
        to.cpu_moe = self.cpu_moe;
        to.ubatch_size = self.ubatch_size;
        to.swa_full = self.swa_full;
        to.kv_unified = self.kv_unified;
        to.no_flash_attn = self.no_flash_attn;
        to.no_kv_offload = self.no_kv_offload;
    }
}
