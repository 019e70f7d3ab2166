//! The figures that the rules look at: one engine, from scrapes or from the probe.

use crate::report::session::{EngineReport, ProbeReport};

/// One engine's figures; what a recording does not say is `None`.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// How the engine is called where there are several.
    pub(in crate::usecase::session) name: String,
    /// Whether it is vLLM: its flags are known.
    pub(in crate::usecase::session) is_vllm: bool,
    /// Whether it is llama.cpp's server, which has slots and no blocks.
    pub(in crate::usecase::session) is_llamacpp: bool,
    /// Length of the recording.
    pub(in crate::usecase::session) seconds: f64,
    /// Share of the pool held by requests: 95th percentile.
    pub(in crate::usecase::session) usage_p95: Option<f64>,
    /// The same: its peak.
    pub(in crate::usecase::session) usage_max: Option<f64>,
    /// Requests in the queue, on average.
    pub(in crate::usecase::session) waiting_mean: Option<f64>,
    /// Most requests in the batch.
    pub(in crate::usecase::session) running_max: Option<f64>,
    /// Requests thrown out of the batch.
    pub(in crate::usecase::session) preemptions: Option<f64>,
    /// Finished requests.
    pub(in crate::usecase::session) finished: Option<f64>,
    /// Found share of looked-up tokens.
    pub(in crate::usecase::session) hit_rate: Option<f64>,
    /// Tokens looked up.
    pub(in crate::usecase::session) query_tokens: Option<f64>,
    /// Tokens that the pool holds.
    pub(in crate::usecase::session) capacity_tokens: Option<f64>,
    /// Tokens of a block.
    pub(in crate::usecase::session) block_size: Option<f64>,
    /// Most requests that the engine puts into a batch.
    pub(in crate::usecase::session) max_num_seqs: Option<f64>,
    /// Longest request that it takes.
    pub(in crate::usecase::session) max_model_len: Option<f64>,
    /// Prompt tokens of finished requests: 99th percentile.
    pub(in crate::usecase::session) prompt_p99: Option<f64>,
    /// The same: mean.
    pub(in crate::usecase::session) prompt_mean: Option<f64>,
    /// Generated tokens of finished requests: 99th percentile.
    pub(in crate::usecase::session) output_p99: Option<f64>,
    /// The same: mean.
    pub(in crate::usecase::session) output_mean: Option<f64>,
    /// Time in the queue: median.
    pub(in crate::usecase::session) queue_p50_ms: Option<f64>,
    /// Element type of the cache, as the engine names it.
    pub(in crate::usecase::session) cache_dtype: Option<String>,
    /// Whether prefix caching is on.
    pub(in crate::usecase::session) prefix_caching: Option<bool>,
    /// Time from a block's allocation to its reuse: median.
    pub(in crate::usecase::session) lifetime_p50_s: Option<f64>,
    /// Time from a block's last hit to its reuse: median.
    pub(in crate::usecase::session) idle_p50_s: Option<f64>,
    /// Recorded reuses that lost cached content.
    pub(in crate::usecase::session) evicted_with_content: Option<f64>,
    /// Share of them that was never hit.
    pub(in crate::usecase::session) never_hit_share: Option<f64>,
    /// Share of the steps that replayed a CUDA graph.
    pub(in crate::usecase::session) graph_share: Option<f64>,
    /// Memory of one GPU, where the probe saw it measured.
    pub(in crate::usecase::session) memory: Option<Memory>,
    /// Whether all layers keep one kind of cache, where that is known: only then a type's width alone sizes the pool.
    pub(in crate::usecase::session) one_kind_of_cache: Option<bool>,
}

/// What vLLM's worker measured at start (vLLM 0.32.0, `vllm/v1/worker/gpu_worker.py`, `determine_available_memory`): the
/// budget is the utilisation's share of the GPU, and the cache gets what weights, activations and others leave of it.
#[derive(Debug, Clone, Copy)]
pub(in crate::usecase::session) struct Memory {
    /// `--gpu-memory-utilization`.
    pub utilization: f64,
    /// Bytes for the cache.
    pub available_bytes: f64,
    /// Bytes of weights, peak activations and what lies outside of PyTorch.
    pub other_bytes: f64,
}

pub(super) fn scraped(e: &EngineReport) -> Facts {
    let d = |name: &str| e.distributions.get(name);
    let config = |key: &str| e.config.get(key).map(String::as_str);
    Facts {
        name: format!("{} {} at {}", e.engine, e.model, e.target),
        is_vllm: e.engine == "vllm",
        is_llamacpp: e.engine == "llamacpp",
        seconds: e.duration_s,
        usage_p95: e.usage_ratio.map(|u| u.p95),
        usage_max: e.usage_ratio.map(|u| u.max),
        waiting_mean: e.waiting_requests.map(|w| w.mean),
        running_max: e.running_requests.map(|r| r.max),
        preemptions: e.preemptions,
        finished: e.finished_requests,
        hit_rate: e.prefix_hit_rate,
        query_tokens: e.prefix_query_tokens,
        capacity_tokens: e.capacity_tokens,
        block_size: config("block_size").and_then(|v| v.parse().ok()),
        prompt_p99: d("request_prompt_tokens").map(|d| d.p99),
        prompt_mean: d("request_prompt_tokens").map(|d| d.mean),
        output_p99: d("request_generation_tokens").map(|d| d.p99),
        output_mean: d("request_generation_tokens").map(|d| d.mean),
        queue_p50_ms: d("queue_ms").map(|d| d.p50),
        cache_dtype: config("cache_dtype").map(str::to_owned),
        prefix_caching: config("enable_prefix_caching").map(|v| v == "True"),
        lifetime_p50_s: d("block_lifetime_s").map(|d| d.p50),
        idle_p50_s: d("block_idle_s").map(|d| d.p50),
        ..Facts::default()
    }
}

pub(super) fn probed(p: &ProbeReport, seconds: f64) -> Facts {
    let int = |key: &str| p.settings[key].as_f64();
    let usable = p.usable_blocks as f64;
    let block_size = int("block_size");
    Facts {
        name: format!("vLLM {} (process {})", p.vllm_version, p.pid),
        is_vllm: true,
        seconds,
        usage_p95: p.usage_ratio.map(|u| u.p95),
        waiting_mean: p.waiting_requests.map(|w| w.mean),
        running_max: p.running_requests.map(|r| r.max),
        usage_max: (usable > 0.0).then(|| p.peak_used_blocks as f64 / usable),
        preemptions: Some(p.preemptions as f64),
        finished: Some(p.finished_requests as f64),
        hit_rate: p.prefix_hit_rate,
        query_tokens: Some(p.query_tokens as f64),
        capacity_tokens: block_size.map(|b| b * usable),
        block_size,
        max_num_seqs: int("max_num_seqs"),
        max_model_len: int("max_model_len"),
        prompt_p99: p.prompt_tokens.map(|d| d.p99),
        prompt_mean: p.prompt_tokens.map(|d| d.mean),
        output_p99: p.output_tokens.map(|d| d.p99),
        output_mean: p.output_tokens.map(|d| d.mean),
        cache_dtype: p.settings["cache_dtype"].as_str().map(str::to_owned),
        prefix_caching: Some(p.prefix_caching),
        lifetime_p50_s: p.evictions.lifetime_s.map(|d| d.p50),
        idle_p50_s: p.evictions.idle_s.map(|d| d.p50),
        evicted_with_content: Some(p.evictions.with_content as f64),
        never_hit_share: p.evictions.never_hit_share,
        memory: memory(p),
        one_kind_of_cache: p.settings["groups"].as_array().map(|groups| groups.len() == 1),
        graph_share: (p.graph_replays > 0 && p.steps > 0).then(|| p.graph_replays as f64 / p.steps as f64),
        ..Facts::default()
    }
}

fn memory(p: &ProbeReport) -> Option<Memory> {
    let bytes = |name: &str| p.memory_bytes.get(name).map(|b| *b as f64);
    let utilization = p.settings["gpu_memory_utilization"]
        .as_f64()
        .filter(|u| *u > 0.0)?;
    Some(Memory {
        utilization,
        available_bytes: bytes("available_kv_cache").filter(|b| *b > 0.0)?,
        other_bytes: bytes("weights")? + bytes("peak_activation")? + bytes("non_torch")?,
    })
}
