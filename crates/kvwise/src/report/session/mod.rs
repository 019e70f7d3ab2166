//! What a recording shows: plain structs, and their rendering as table, Markdown, CSV and HTML.

pub mod compare;
pub mod finding;
pub mod html;
pub mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use finding::{Finding, Gain, Suggestion};

/// The whole answer of `kvwise report`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionReport {
    /// Always `kvwise.session_report/1`.
    pub schema: &'static str,
    /// The recording.
    pub session: About,
    /// Engines that were scraped.
    pub engines: Vec<EngineReport>,
    /// Processes that the probe ran in.
    pub probes: Vec<ProbeReport>,
    /// Prefix caches followed by their events.
    pub contents: Vec<ContentReport>,
    /// Stretches without data.
    pub gaps: Vec<GapReport>,
    /// Restarts, changed configurations, quantities that the server does not publish.
    pub events: Vec<EventReport>,
    /// Notes of the probe: hooks that are missing in this engine version, errors.
    pub notes: Vec<String>,
    /// What stands out, the most important first.
    pub findings: Vec<Finding>,
}

/// The recording itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct About {
    /// Name of its folder.
    pub id: String,
    /// `attach`, `run` or `probe`.
    pub made_by: String,
    /// Servers or command.
    pub targets: Vec<String>,
    /// First and last record.
    pub start: String,
    /// Seconds between them.
    pub duration_s: f64,
    /// Whether the recorder ended by itself.
    pub complete: bool,
}

/// Mean and extremes of a gauge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Mean over time.
    pub mean: f64,
    /// 95th percentile over the recorded points.
    pub p95: f64,
    /// Largest value.
    pub max: f64,
}

/// A distribution as a server's histogram tells it: quantiles are interpolated inside its buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Observations.
    pub count: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// One scraped engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EngineReport {
    /// What was scraped.
    pub target: String,
    /// `vllm`, `sglang` or `llamacpp`.
    pub engine: String,
    /// Served model name.
    pub model: String,
    /// Engine index or data-parallel rank.
    pub rank: String,
    /// What the engine tells of its cache.
    pub config: BTreeMap<String, String>,
    /// Tokens that the pool holds.
    pub capacity_tokens: Option<f64>,
    /// Scrapes behind the figures.
    pub scrapes: i64,
    /// Seconds between the first and the last scrape.
    pub duration_s: f64,
    /// Share of the pool held by requests.
    pub usage_ratio: Option<Spread>,
    /// Requests in the batch.
    pub running_requests: Option<Spread>,
    /// Requests in the queue.
    pub waiting_requests: Option<Spread>,
    /// Preemptions in the recorded time.
    pub preemptions: Option<f64>,
    /// Finished requests in the recorded time.
    pub finished_requests: Option<f64>,
    /// Share of looked-up tokens that were found.
    pub prefix_hit_rate: Option<f64>,
    /// Tokens looked up in the recorded time.
    pub prefix_query_tokens: Option<f64>,
    /// Prompt tokens a second.
    pub prompt_tokens_per_s: Option<f64>,
    /// Generated tokens a second.
    pub generation_tokens_per_s: Option<f64>,
    /// Latencies in milliseconds (`ttft_ms`), lengths in tokens, block times in seconds (`block_lifetime_s`).
    pub distributions: BTreeMap<String, Distribution>,
    /// For charts.
    pub series: Series,
}

/// Time series of an engine, thinned out for display; gaps are `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// Seconds since 1970.
    pub t_s: Vec<f64>,
    /// Share of the pool held by requests.
    pub usage_ratio: Vec<Option<f64>>,
    /// Largest share in the stretch.
    pub usage_ratio_max: Vec<Option<f64>>,
    /// Requests in the batch.
    pub running_requests: Vec<Option<f64>>,
    /// Requests in the queue.
    pub waiting_requests: Vec<Option<f64>>,
    /// Prefix hit rate in the stretch.
    pub prefix_hit_rate: Vec<Option<f64>>,
    /// Prompt tokens a second.
    pub prompt_tokens_per_s: Vec<Option<f64>>,
    /// Generated tokens a second.
    pub generation_tokens_per_s: Vec<Option<f64>>,
    /// Preemptions a second.
    pub preemptions_per_s: Vec<Option<f64>>,
}

/// One process that the probe ran in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ProbeReport {
    /// Process number.
    pub pid: i64,
    /// vLLM's version.
    pub vllm_version: String,
    /// Settings of the engine.
    pub settings: serde_json::Value,
    /// Usable blocks.
    pub usable_blocks: i64,
    /// Whether prefix caching is on.
    pub prefix_caching: bool,
    /// Exact totals.
    pub allocated_blocks: i64,
    /// Blocks that lost their last user.
    pub freed_blocks: i64,
    /// Blocks found in the prefix cache.
    pub hit_blocks: i64,
    /// Blocks that lost cached content.
    pub evicted_blocks: i64,
    /// Tokens looked up by requests on first admission.
    pub query_tokens: i64,
    /// Tokens found.
    pub hit_tokens: i64,
    /// Found share.
    pub prefix_hit_rate: Option<f64>,
    /// Preemptions.
    pub preemptions: i64,
    /// Finished requests.
    pub finished_requests: i64,
    /// Scheduler steps.
    pub steps: i64,
    /// Most blocks in use.
    pub peak_used_blocks: i64,
    /// Share of the pool in use, over steps.
    pub usage_ratio: Option<Spread>,
    /// Requests in the batch, over steps.
    pub running_requests: Option<Spread>,
    /// Requests in the queue, over steps.
    pub waiting_requests: Option<Spread>,
    /// Reuse of blocks for other content.
    pub evictions: EvictionReport,
    /// Prompt lengths.
    pub prompt_tokens: Option<Distribution>,
    /// Output lengths.
    pub output_tokens: Option<Distribution>,
    /// CUDA-graph replays.
    pub graph_replays: i64,
    /// Records dropped by the limits.
    pub lost_records: i64,
    /// What the probe took of the engine's step time, its writer included; absent in recordings that did not measure it.
    pub probe_cost_ratio: Option<f64>,
    /// The same for one step, microseconds.
    pub probe_cost_us_per_step: Option<f64>,
    /// Where single records are a sample, because the probe would have taken more than its limit.
    pub sampling: Option<SamplingReport>,
    /// Errors of hooks.
    pub hook_errors: i64,
    /// Memory figures in bytes.
    pub memory_bytes: BTreeMap<String, i64>,
    /// For charts.
    pub series: ProbeSeries,
    /// Who holds which block over time, if block events were recorded.
    pub block_map: Option<BlockMap>,
}

/// When less than everything was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SamplingReport {
    /// Most of the step time that the probe may take.
    pub limit_ratio: f64,
    /// Time in which everything was recorded, seconds.
    pub complete_s: f64,
    /// Time in which every n-th step, block and hashed request was, seconds.
    pub sampled_s: f64,
    /// The largest n.
    pub largest_n: i64,
    /// Time in which only totals were, seconds.
    pub totals_only_s: f64,
    /// Time in which nothing was: the totals leave it out, seconds.
    pub off_s: f64,
}

/// Reuse of blocks for other content.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EvictionReport {
    /// Recorded reuses.
    pub recorded: usize,
    /// Of these, with cached content lost. Only they can cost a hit: the others are the unfilled tails of requests.
    pub with_content: usize,
    /// Lifetimes of blocks with content, seconds.
    pub lifetime_s: Option<Distribution>,
    /// Idle times of blocks with content, seconds.
    pub idle_s: Option<Distribution>,
    /// Share of blocks with content that were never hit.
    pub never_hit_share: Option<f64>,
    /// `(upper bound in seconds, blocks with content, blocks without)`.
    pub lifetime_bins: Vec<(f64, u64, u64)>,
    /// `(hits, blocks with content)`; the last counts that many and more.
    pub hit_bins: Vec<(u64, u64)>,
}

/// Time series of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ProbeSeries {
    /// Seconds since 1970.
    pub t_s: Vec<f64>,
    /// Blocks in use.
    pub used_blocks: Vec<Option<f64>>,
    /// Requests in the batch.
    pub running: Vec<Option<f64>>,
    /// Requests in the queue.
    pub waiting: Vec<Option<f64>>,
    /// Tokens of a step.
    pub tokens: Vec<Option<f64>>,
}

/// Share of time that blocks are held, in a grid of block groups and stretches of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BlockMap {
    /// Seconds since 1970 of the first and the last column's edge.
    pub from_s: f64,
    /// End of the last column.
    pub to_s: f64,
    /// Blocks of one row.
    pub blocks_per_row: usize,
    /// One text a row, one digit a column: 0 never held, 9 held all the time.
    pub rows: Vec<String>,
}

/// A prefix cache followed by its events: exact, for what happened while it was followed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContentReport {
    /// Endpoint of the events.
    pub target: String,
    /// Tokens of one block.
    pub block_tokens: i64,
    /// Block contents cached at the end.
    pub cached: i64,
    /// Block contents that became findable.
    pub stored: i64,
    /// Block contents evicted.
    pub removed: i64,
    /// Block contents computed again after they had been evicted.
    pub recomputed: i64,
    /// Batches of events that never arrived.
    pub missed_batches: i64,
    /// Lifetimes of evicted contents, seconds.
    pub lifetime_s: Option<Distribution>,
}

/// A stretch without data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GapReport {
    /// What was scraped.
    pub target: String,
    /// When it began.
    pub start: String,
    /// Milliseconds to the last failed scrape.
    pub duration_ms: i64,
    /// Failed scrapes.
    pub failures: i64,
    /// Why the first failed.
    pub reason: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventReport {
    /// When.
    pub time: String,
    /// What was scraped.
    pub target: String,
    /// What.
    pub kind: String,
    /// More about it.
    pub detail: String,
}
