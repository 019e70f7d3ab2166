//! The answer of `kvwise replay --engine vllm`.

use kvwise_sim::replay::vllm::Summary;
use serde::Serialize;

/// Totals of a replay through vLLM's scheduler and block manager.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VllmReplayReport {
    /// Name and version of this structure.
    pub schema: &'static str,
    /// Always `vllm`.
    pub engine: &'static str,
    /// Requests of the trace.
    pub requests: u64,
    /// Requests that could never run: too long, or larger than the pool.
    pub rejected: u64,
    /// Scheduler steps; under a step clock the number of the last one.
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
    /// Times a running request lost its blocks.
    pub preemptions: u64,
    /// Blocks handed out.
    pub allocated_blocks: u64,
    /// Cached blocks that were handed out again.
    pub evicted_blocks: u64,
    /// Blocks free at the end.
    pub free_at_end: u32,
}

impl VllmReplayReport {
    /// The report of a run.
    pub fn new(s: &Summary) -> Self {
        Self {
            schema: "kvwise.replay/1",
            engine: "vllm",
            requests: s.requests,
            rejected: s.rejected,
            steps: s.steps,
            prompt_tokens: s.prompt_tokens,
            generated_tokens: s.generated_tokens,
            query_tokens: s.query_tokens,
            hit_tokens: s.hit_tokens,
            hit_rate: s.hit_rate,
            preemptions: s.preemptions,
            allocated_blocks: s.allocated_blocks,
            evicted_blocks: s.evicted_blocks,
            free_at_end: s.free_at_end,
        }
    }
}
