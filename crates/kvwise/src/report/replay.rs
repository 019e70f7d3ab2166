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
    /// What was counted.
    #[serde(flatten)]
    pub totals: Summary,
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
    pub fn new(totals: Summary, config: &ReplayConfig) -> Self {
        let scheduler = &config.scheduler;
        Self {
            schema: "kvwise.replay/1",
            engine: "sglang",
            scheduler: "batch",
            totals,
            policy: scheduler.eviction.name(),
            schedule_policy: scheduler.schedule.name(),
            page: scheduler.page_size,
            capacity: scheduler.capacity_tokens,
            max_running_requests: scheduler.max_running,
        }
    }
}
