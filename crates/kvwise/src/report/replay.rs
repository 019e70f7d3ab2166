//! The answers of `kvwise replay --engine sglang`.

use kvwise_sim::replay::sglang::{ReplayConfig, Summary};
use serde::Serialize;

/// Totals of a replay through SGLang's cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SglangReplayReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Always `sglang`.
    pub engine: &'static str,
    /// Requests of the trace.
    pub requests: u64,
    /// Requests that the pool or the context limit can never hold.
    pub refused: u64,
    /// Prompt tokens of the others.
    pub input: u64,
    /// Prompt tokens found in the cache.
    pub matched: u64,
    /// Tokens evicted.
    pub evicted: u64,
    /// Nodes evicted.
    pub evicted_nodes: u64,
    /// Eviction policy.
    pub policy: &'static str,
    /// Tokens per page.
    pub page: usize,
    /// Tokens of the pool.
    pub capacity: usize,
    /// Requests held at once.
    pub running: usize,
    /// Times a request lost its place to another one's decoding and was admitted again.
    pub retracted: u64,
    /// Requests whose output did not fit the pool although nobody else ran.
    pub aborted: u64,
    /// `matched / input`.
    pub hit_rate_tokens: f64,
}

/// Totals of a replay through SGLang's scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SglangBatchReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Always `sglang`.
    pub engine: &'static str,
    /// Always `batch`.
    pub scheduler: &'static str,
    /// Requests of the trace.
    pub requests: u64,
    /// Requests that could never run: too long, or larger than the pool.
    pub rejected: u64,
    /// Requests that ran out of memory with nobody left to retract.
    pub aborted: u64,
    /// Turns of the loop.
    pub steps: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens looked up at first admissions.
    pub query_tokens: u64,
    /// Tokens found in the cache at first admissions.
    pub hit_tokens: u64,
    /// `hit_tokens / query_tokens`, to six digits.
    pub hit_rate: f64,
    /// Times a request lost its memory to the decoding of others.
    pub retractions: u64,
    /// Times a request lost its memory to a more important one.
    pub preemptions: u64,
    /// Tokens of evicted nodes.
    pub evicted_tokens: u64,
    /// Nodes evicted.
    pub evicted_nodes: u64,
    /// Tokens free at the end.
    pub free_at_end: u64,
    /// Tokens in the tree at the end.
    pub cached_at_end: u64,
    /// Eviction policy.
    pub policy: &'static str,
    /// Order of the waiting queue.
    pub schedule_policy: &'static str,
    /// Tokens per page.
    pub page: usize,
    /// Tokens of the pool.
    pub capacity: usize,
    /// Requests that may run at once.
    pub max_running_requests: usize,
}

impl SglangBatchReport {
    /// The report of a run.
    pub fn new(s: &Summary, config: &ReplayConfig) -> Self {
        let scheduler = &config.scheduler;
        Self {
            schema: "kvwise.replay/1",
            engine: "sglang",
            scheduler: "batch",
            requests: s.requests,
            rejected: s.rejected,
            aborted: s.aborted,
            steps: s.steps,
            prompt_tokens: s.prompt_tokens,
            generated_tokens: s.generated_tokens,
            query_tokens: s.query_tokens,
            hit_tokens: s.hit_tokens,
            hit_rate: s.hit_rate,
            retractions: s.retractions,
            preemptions: s.preemptions,
            evicted_tokens: s.evicted_tokens,
            evicted_nodes: s.evicted_nodes,
            free_at_end: s.free_at_end,
            cached_at_end: s.cached_at_end,
            policy: scheduler.eviction.name(),
            schedule_policy: scheduler.schedule.name(),
            page: scheduler.page_size,
            capacity: scheduler.capacity_tokens,
            max_running_requests: scheduler.max_running,
        }
    }
}
