//! Which families of each engine carry the same quantity: data, newest name first.

use super::EngineKind;

/// One quantity and the families that carry it, without the engine's prefix.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name in sessions and reports (unit last).
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// vLLM families, newest first.
    pub vllm: &'static [&'static str],
    /// SGLang families.
    pub sglang: &'static [&'static str],
    /// llama.cpp families.
    pub llamacpp: &'static [&'static str],
}

impl Row {
    /// The families of `engine`, newest first; empty if that engine does not publish the quantity.
    pub fn families(&self, engine: EngineKind) -> &'static [&'static str] {
        match engine {
            EngineKind::Vllm => self.vllm,
            EngineKind::Sglang => self.sglang,
            EngineKind::LlamaCpp => self.llamacpp,
        }
    }
}

const fn row(
    name: &'static str,
    help: &'static str,
    vllm: &'static [&'static str],
    sglang: &'static [&'static str],
    llamacpp: &'static [&'static str],
) -> Row {
    Row {
        name,
        help,
        vllm,
        sglang,
        llamacpp,
    }
}

/// Number of gauges.
pub const NUM_GAUGES: usize = 6;
/// Number of counters.
pub const NUM_COUNTERS: usize = 12;

/// Index into [`GAUGES`]: share of the KV pool that running requests hold.
pub const USAGE: usize = 0;
/// Index into [`GAUGES`]: requests in the running batch.
pub const RUNNING: usize = 1;
/// Index into [`GAUGES`]: requests in the queue.
pub const WAITING: usize = 2;
/// Index into [`COUNTERS`]: preemptions.
pub const PREEMPTIONS: usize = 0;
/// Index into [`COUNTERS`]: tokens looked up in the prefix cache.
pub const PREFIX_QUERIES: usize = 1;
/// Index into [`COUNTERS`]: tokens found in the prefix cache.
pub const PREFIX_HITS: usize = 2;
/// Index into [`COUNTERS`]: prompt tokens.
pub const PROMPT_TOKENS: usize = 3;
/// Index into [`COUNTERS`]: generated tokens.
pub const GENERATION_TOKENS: usize = 4;
/// Index into [`COUNTERS`]: finished requests.
pub const FINISHED: usize = 5;

/// Gauges. SGLang rounds `token_usage` to two digits. llama.cpp published its use of the cache until 2025; servers of 2026
/// (b11434, b11549) do not.
pub const GAUGES: [Row; NUM_GAUGES] = [
    row(
        "usage_ratio",
        "share of the KV pool held by requests, 0 to 1",
        &["kv_cache_usage_perc", "gpu_cache_usage_perc"],
        &["token_usage"],
        &["kv_cache_usage_ratio"],
    ),
    row(
        "running_requests",
        "requests in the running batch",
        &["num_requests_running"],
        &["num_running_reqs"],
        &["requests_processing"],
    ),
    row(
        "waiting_requests",
        "requests in the queue",
        &["num_requests_waiting"],
        &["num_queue_reqs"],
        &["requests_deferred"],
    ),
    row(
        "used_tokens",
        "tokens held by requests",
        &[],
        &["kv_used_tokens", "num_used_tokens"],
        &["kv_cache_tokens"],
    ),
    row(
        "evictable_tokens",
        "tokens cached but not in use",
        &[],
        &["kv_evictable_tokens"],
        &[],
    ),
    row(
        "capacity_tokens",
        "size of the KV pool",
        &[],
        &["max_total_num_tokens"],
        &[],
    ),
];

/// Counters; the `_total` suffix is left out.
pub const COUNTERS: [Row; NUM_COUNTERS] = [
    row(
        "preemptions",
        "requests thrown out of the batch for want of blocks",
        &["num_preemptions"],
        &["num_retracted_requests"],
        &[],
    ),
    row(
        "prefix_query_tokens",
        "tokens looked up in the prefix cache",
        &["prefix_cache_queries", "gpu_prefix_cache_queries"],
        &["prompt_tokens"],
        &[],
    ),
    row(
        "prefix_hit_tokens",
        "tokens found in the prefix cache",
        &["prefix_cache_hits", "gpu_prefix_cache_hits"],
        &["cached_tokens"],
        &["prompt_tokens_cached"],
    ),
    row(
        "prompt_tokens",
        "prompt tokens processed",
        &["prompt_tokens"],
        &["prompt_tokens"],
        &["prompt_tokens"],
    ),
    row(
        "generation_tokens",
        "tokens generated",
        &["generation_tokens"],
        &["generation_tokens"],
        &["tokens_predicted"],
    ),
    row(
        "finished_requests",
        "requests finished, for whatever reason",
        &["request_success"],
        &["num_requests"],
        &[],
    ),
    row(
        "rejected_requests",
        "requests refused at admission",
        &["admission_rejections"],
        &["num_aborted_requests"],
        &[],
    ),
    row(
        "external_query_tokens",
        "tokens looked up in a KV connector",
        &["external_prefix_cache_queries"],
        &[],
        &[],
    ),
    row(
        "external_hit_tokens",
        "tokens found in a KV connector",
        &["external_prefix_cache_hits"],
        &["load_back_tokens"],
        &[],
    ),
    row(
        "evicted_tokens",
        "tokens evicted from the cache",
        &[],
        &["evicted_tokens"],
        &[],
    ),
    row(
        "estimated_flops",
        "estimated floating-point operations of one GPU",
        &["estimated_flops_per_gpu"],
        &["estimated_flops_per_gpu"],
        &[],
    ),
    row(
        "decode_steps",
        "calls of the model's decode",
        &[],
        &[],
        &["n_decode"],
    ),
];

/// Number of histograms.
pub const NUM_HISTOGRAMS: usize = 15;

/// Histograms; seconds and tokens.
pub const HISTOGRAMS: [Row; NUM_HISTOGRAMS] = [
    row(
        "ttft_s",
        "time to first token",
        &["time_to_first_token_seconds"],
        &["time_to_first_token_seconds"],
        &[],
    ),
    row(
        "itl_s",
        "time between tokens",
        &["inter_token_latency_seconds", "time_per_output_token_seconds"],
        &["inter_token_latency_seconds"],
        &[],
    ),
    row(
        "tpot_s",
        "mean time per output token of a request",
        &["request_time_per_output_token_seconds"],
        &["request_time_per_output_token_seconds"],
        &[],
    ),
    row(
        "e2e_s",
        "time from arrival to the last token",
        &["e2e_request_latency_seconds"],
        &["e2e_request_latency_seconds"],
        &[],
    ),
    row(
        "queue_s",
        "time in the queue",
        &["request_queue_time_seconds"],
        &["queue_time_seconds"],
        &[],
    ),
    row(
        "prefill_s",
        "time in prefill",
        &["request_prefill_time_seconds"],
        &[],
        &[],
    ),
    row(
        "decode_s",
        "time in decode",
        &["request_decode_time_seconds"],
        &[],
        &[],
    ),
    row(
        "request_prompt_tokens",
        "prompt length of finished requests",
        &["request_prompt_tokens"],
        &["prompt_tokens_histogram"],
        &[],
    ),
    row(
        "request_generation_tokens",
        "output length of finished requests",
        &["request_generation_tokens"],
        &["generation_tokens_histogram"],
        &[],
    ),
    row(
        "iteration_tokens",
        "tokens in one engine step",
        &["iteration_tokens_total"],
        &[],
        &[],
    ),
    row(
        "request_preemptions",
        "preemptions of a finished request",
        &["request_num_preemptions"],
        &[],
        &[],
    ),
    row(
        "prefill_computed_tokens",
        "prompt tokens that a finished request had to compute",
        &["request_prefill_kv_computed_tokens"],
        &["uncached_prompt_tokens_histogram"],
        &[],
    ),
    row(
        "block_lifetime_s",
        "time from a block's allocation to its reuse for other content",
        &["kv_block_lifetime_seconds"],
        &[],
        &[],
    ),
    row(
        "block_idle_s",
        "time from a block's last hit to its reuse for other content",
        &["kv_block_idle_before_evict_seconds"],
        &[],
        &[],
    ),
    row(
        "block_reuse_gap_s",
        "time between two hits of a block",
        &["kv_block_reuse_gap_seconds"],
        &[],
        &[],
    ),
];
