//! What a simulation writes down.

use super::handoff::Transfers;
use super::tiers::TierTotals;
use crate::cost::{Bound, StepTime};

/// Host time that the GPU's kernels do not show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostTimes {
    /// Scheduling, input preparation and sampling of a step, seconds.
    pub step_s: f64,
    /// The same for each sequence of the step, seconds.
    pub sequence_s: f64,
    /// HTTP, tokenisation and hand-over of a request before its first token, seconds.
    pub request_s: f64,
}

impl Default for HostTimes {
    /// vLLM's.
    fn default() -> Self {
        Self::VLLM
    }
}

impl HostTimes {
    /// Fitted to served points (see the accuracy page): 0.2 ms a step, 20 ms a request.
    pub const VLLM: Self = Self {
        step_s: 2.0e-4,
        sequence_s: 0.0,
        request_s: 0.020,
    };
    /// SGLang hides its scheduler behind the running step; requests pass through two more processes. Chosen on
    /// published points (see the accuracy page).
    pub const SGLANG: Self = Self {
        step_s: 2.0e-4,
        sequence_s: 0.0,
        request_s: 0.100,
    };
}

/// What happened to one request; times in seconds from the start, NaN where it never came so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Arrival.
    pub arrival_s: f64,
    /// First admission.
    pub admitted_s: f64,
    /// First token, host time included.
    pub first_token_s: f64,
    /// Last token.
    pub finished_s: f64,
    /// End of its prompt on a prefill engine, where prefill and decode are apart.
    pub prefilled_s: f64,
    /// Its blocks are on the decode engine, where prefill and decode are apart.
    pub kv_arrived_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Generated tokens.
    pub output_tokens: u32,
    /// Prompt tokens found in the cache at first admission.
    pub hit_tokens: u32,
    /// Tokens loaded from tiers.
    pub loaded_tokens: u32,
    /// Preemptions.
    pub preemptions: u32,
    /// The engine it was sent to; of prefill engines where those are apart.
    pub engine: u32,
    /// Whether it could never run.
    pub rejected: bool,
}

impl Record {
    pub(super) const BLANK: Self = Self {
        arrival_s: f64::NAN,
        admitted_s: f64::NAN,
        first_token_s: f64::NAN,
        finished_s: f64::NAN,
        prefilled_s: f64::NAN,
        kv_arrived_s: f64::NAN,
        input_tokens: 0,
        output_tokens: 0,
        hit_tokens: 0,
        loaded_tokens: 0,
        preemptions: 0,
        engine: 0,
        rejected: false,
    };
}

/// State of all engines together at one time.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Sample {
    /// Seconds from the start.
    pub time_s: f64,
    /// Running requests.
    pub running: u32,
    /// Waiting requests.
    pub waiting: u32,
    /// Share of the pools in use.
    pub kv_usage: f64,
    /// Tokens found in the cache so far over tokens looked up.
    pub hit_rate: f64,
}

/// Everything a simulation recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// One a request, in the trace's order.
    pub records: Vec<Record>,
    /// At most a few thousand samples, evenly thinned.
    pub series: Vec<Sample>,
    /// Gaps between tokens: seconds and how many tokens had it.
    pub gaps: Vec<(f64, u64)>,
    /// Busy time by kind, of all replicas together.
    pub busy: StepTime,
    /// First-principles lower bound of the same steps.
    pub bound: Bound,
    /// Sum over the steps of each step's own lower bound, seconds.
    pub bound_s: f64,
    /// Host time, seconds.
    pub host_s: f64,
    /// Time in which a replica had nothing to do, seconds.
    pub idle_s: f64,
    /// End of the last step, seconds.
    pub end_s: f64,
    /// Scheduler steps.
    pub steps: u64,
    /// Preemptions (retractions).
    pub preemptions: u64,
    /// Tokens found in the cache at first admissions.
    pub hit_tokens: u64,
    /// Tokens looked up at first admissions.
    pub query_tokens: u64,
    /// Mean share of the pools in use over busy time.
    pub kv_usage_mean: f64,
    /// Largest share of a pool in use.
    pub kv_usage_peak: f64,
    /// What moved from prefill to decode engines.
    pub transfers: Transfers,
    /// What each tier did, nearest first, all engines together.
    pub tiers: Vec<TierTotals>,
}
