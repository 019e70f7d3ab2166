//! The answer of `kvwise simulate`.

mod text;

use kvwise_sim::simulate::{Percentiles, Sample, Slo, TierTotals, TimeShares, Transfers, Worst, worst};
use serde::Serialize;

use crate::usecase::deployment::Deployment;
use crate::usecase::fingerprint::Fingerprint;
use crate::usecase::served::{Serving, TTFT_FACTOR};
use crate::usecase::simulate::Outcome;
use crate::usecase::traffic::Workload;
pub use text::{cause, grid, plots, text};

/// Schema of the JSON answer.
pub const SCHEMA: &str = "kvwise.simulation/1";

/// Share of the pool in use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usage {
    /// Mean over busy time, 0 to 1.
    pub mean: f64,
    /// Largest, 0 to 1.
    pub peak: f64,
}

/// What no implementation can beat, beside what is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Roofline {
    /// Seconds of the same steps with every resource at its datasheet rate.
    pub bound_s: f64,
    /// Simulated kernel and host time of those steps over that bound.
    pub ratio: f64,
    /// Operations at the peak rate, seconds.
    pub compute_s: f64,
    /// Weights, caches and states at the memory's bandwidth, seconds.
    pub memory_s: f64,
    /// Partial sums over the links, seconds.
    pub link_s: f64,
}

/// Range that holds the true mean in 90 of 100 cases like this one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Prefill and decode on different engines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Disaggregated {
    /// Prefill replicas.
    pub prefill_replicas: u64,
    /// Their GPUs.
    pub prefill_gpus: u64,
    /// Decode replicas.
    pub decode_replicas: u64,
    /// Their GPUs.
    pub decode_gpus: u64,
    /// End of the prompt to its blocks on the decode engine: router, waiting for room, link.
    pub transfer_ms: Percentiles,
    /// What moved.
    #[serde(flatten)]
    pub transfers: Transfers,
    /// Share of the time in which a decode engine's port received.
    pub link_use: f64,
}

/// Mean and spread of one figure over several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean over seeds.
    pub mean: f64,
    /// Half width of the 95 % confidence interval of that mean (normal approximation).
    pub half_width_95: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Spreads over several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SeedSummary {
    /// Seeds.
    pub seeds: u64,
    /// 99th percentile of the time to first token.
    pub ttft_p99_ms: Spread,
    /// 99th percentile of the time per output token.
    pub tpot_p99_ms: Spread,
    /// Generated tokens a second.
    pub output_tokens_per_s: Spread,
    /// Finished requests a second that met the objectives.
    pub goodput_requests_per_s: Spread,
}

/// Collects figures over seeds.
#[derive(Debug, Clone, Default)]
pub struct Seeds {
    rows: Vec<[f64; 4]>,
}

impl Seeds {
    /// Adds one seed's simulation.
    pub fn add(&mut self, s: &Simulation) {
        self.rows.push([
            s.ttft_ms.p99,
            s.tpot_ms.p99,
            s.output_tokens_per_s,
            s.goodput_requests_per_s,
        ]);
    }

    /// The spreads.
    pub fn summary(&self) -> SeedSummary {
        let n = self.rows.len().max(1) as f64;
        let spread = |column: usize| {
            let values = || self.rows.iter().map(|r| r[column]);
            let mean = values().sum::<f64>() / n;
            let variance = if self.rows.len() > 1 {
                values().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)
            } else {
                0.0
            };
            Spread {
                mean,
                half_width_95: 1.96 * (variance / n).sqrt(),
                min: values().fold(f64::INFINITY, f64::min),
                max: values().fold(f64::NEG_INFINITY, f64::max),
            }
        };
        SeedSummary {
            seeds: self.rows.len() as u64,
            ttft_p99_ms: spread(0),
            tpot_p99_ms: spread(1),
            output_tokens_per_s: spread(2),
            goodput_requests_per_s: spread(3),
        }
    }
}

/// One simulated deployment under one workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Schema and its version.
    pub schema: &'static str,
    /// Program version.
    pub version: &'static str,
    /// What was changed against the question.
    pub label: String,
    /// Model.
    pub model: String,
    /// GPU and how many.
    pub gpu: String,
    /// GPUs in use, of all replicas.
    pub gpus: u64,
    /// Engine.
    pub engine: &'static str,
    /// Replicas behind the router.
    pub replicas: u32,
    /// Why the engine would not start.
    pub refused: Option<String>,
    /// What would let it start, if one change does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Requests of the workload.
    pub requests: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Requests that could never run.
    pub rejected: u64,
    /// Length of the run, seconds.
    pub duration_s: f64,
    /// Time to first token.
    pub ttft_ms: Percentiles,
    /// Time per output token after the first.
    pub tpot_ms: Percentiles,
    /// Gap between two tokens.
    pub itl_ms: Percentiles,
    /// Arrival to last token.
    pub e2e_ms: Percentiles,
    /// Arrival to first admission.
    pub queue_ms: Percentiles,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// Prompt and generated tokens a second.
    pub total_tokens_per_s: f64,
    /// Finished requests a second.
    pub requests_per_s: f64,
    /// Finished requests a second that met the objectives.
    pub goodput_requests_per_s: f64,
    /// Share of finished requests that met the objectives.
    pub slo_attainment: f64,
    /// Objective for the time to first token.
    pub slo_ttft_ms: Option<f64>,
    /// Objective for the time per output token.
    pub slo_tpot_ms: Option<f64>,
    /// Whether the 99th percentiles meet the objectives; none were given if absent.
    pub slo_met: Option<bool>,
    /// Prompt tokens found in the cache, share of those looked up.
    pub prefix_hit_rate_tokens: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Share of the pool in use.
    pub kv_usage: Usage,
    /// Blocks of the pool.
    pub num_blocks: u64,
    /// Scheduler steps.
    pub steps: u64,
    /// Where the time went.
    pub time: TimeShares,
    /// Prefill and decode apart (`--disaggregate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disaggregation: Option<Disaggregated>,
    /// What each tier behind the pool did (`--tiers`), nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<TierTotals>,
    /// First-principles lower bound (`--roofline`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roofline: Option<Roofline>,
    /// Range of the mean time per output token, milliseconds.
    pub tpot_mean_interval_ms: Interval,
    /// Range of the mean time to first token, milliseconds.
    pub ttft_mean_interval_ms: Interval,
    /// What the times rest on.
    pub basis: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// The workload in words: requests, prompt and output tokens.
    pub workload: String,
    /// Fingerprint of deployment and workload.
    pub inputs_hash: String,
    /// Spread over several seeds (`--seeds`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<SeedSummary>,
    /// The requests with the latest first tokens, and why.
    pub worst: Vec<Worst>,
    /// State over time, at most 512 samples.
    pub series: Vec<Sample>,
}

/// Most samples and worst requests of a report.
const MAX_SAMPLES: usize = 512;
const MAX_WORST: usize = 10;
impl Simulation {
    /// Where the time went, in words, in seconds.
    pub(super) fn time_kinds(&self) -> [(&'static str, f64); 8] {
        let t = &self.time;
        [
            ("matrix products", t.busy.linear_s),
            ("experts", t.busy.experts_s),
            ("attention", t.busy.attention_s),
            ("states", t.busy.state_s),
            ("communication", t.busy.communication_s),
            ("small kernels", t.busy.elementwise_s),
            ("host", t.host_s),
            ("idle", t.idle_s),
        ]
    }

    /// The report of one outcome.
    pub fn new(
        label: String,
        workload: &Workload<'_>,
        deployment: &Deployment,
        seed: u64,
        slo: Slo,
        outcome: &Outcome,
    ) -> Self {
        let trace = &*workload.trace;
        let s = &outcome.summary;
        let run = &outcome.run;
        let given = slo.ttft_ms.is_some() || slo.tpot_ms.is_some();
        let met = slo.ttft_ms.is_none_or(|limit| s.ttft_ms.p99 <= limit)
            && slo.tpot_ms.is_none_or(|limit| s.tpot_ms.p99 <= limit)
            && s.finished > 0;
        let factor = outcome.confidence.as_ref().map_or(1.0, |c| c.factor);
        let tokens = |lens: &[u32]| lens.iter().map(|&n| u64::from(n)).sum::<u64>();
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            label,
            model: outcome.plan.model.name.clone(),
            gpu: outcome.plan.gpu.name.clone(),
            gpus: outcome.gpus,
            engine: outcome.engine,
            replicas: outcome.replicas,
            refused: outcome.refused.clone(),
            fix: outcome.fix.clone(),
            requests: trace.len() as u64,
            finished: s.finished,
            rejected: s.rejected,
            duration_s: s.duration_s,
            ttft_ms: s.ttft_ms,
            tpot_ms: s.tpot_ms,
            itl_ms: s.itl_ms,
            e2e_ms: s.e2e_ms,
            queue_ms: s.queue_ms,
            output_tokens_per_s: s.output_tokens_per_s,
            total_tokens_per_s: s.total_tokens_per_s,
            requests_per_s: s.requests_per_s,
            goodput_requests_per_s: s.goodput_requests_per_s,
            slo_attainment: s.slo_attainment,
            slo_ttft_ms: slo.ttft_ms,
            slo_tpot_ms: slo.tpot_ms,
            slo_met: given.then_some(met),
            prefix_hit_rate_tokens: run.hit_tokens as f64 / run.query_tokens.max(1) as f64,
            preemptions: run.preemptions,
            kv_usage: Usage {
                mean: run.kv_usage_mean,
                peak: run.kv_usage_peak,
            },
            num_blocks: outcome.plan.kv_cache.as_ref().map_or(0, |kv| kv.num_blocks),
            steps: run.steps,
            time: s.time,
            disaggregation: outcome
                .apart
                .map(|[prefill, prefill_gpus, decode, decode_gpus]| Disaggregated {
                    prefill_replicas: prefill,
                    prefill_gpus,
                    decode_replicas: decode,
                    decode_gpus,
                    transfer_ms: s.transfer_ms,
                    transfers: run.transfers,
                    link_use: run.transfers.receiving_s / (run.end_s * decode as f64).max(f64::MIN_POSITIVE),
                }),
            tiers: run.tiers.clone(),
            roofline: outcome.roofline.then(|| Roofline {
                bound_s: run.bound_s,
                ratio: (run.busy.total_s() + run.host_s) / run.bound_s.max(f64::MIN_POSITIVE),
                compute_s: run.bound.compute_s,
                memory_s: run.bound.memory_s,
                link_s: run.bound.link_s,
            }),
            tpot_mean_interval_ms: Interval {
                low: s.tpot_ms.mean / factor,
                high: s.tpot_ms.mean * factor,
            },
            ttft_mean_interval_ms: Interval {
                low: s.ttft_ms.mean / (factor * TTFT_FACTOR),
                high: s.ttft_ms.mean * factor * TTFT_FACTOR,
            },
            basis: outcome
                .confidence
                .as_ref()
                .map_or_else(|| "not simulated".to_owned(), |c| c.basis.clone()),
            seeds: None,
            worst: worst(run, outcome.host, MAX_WORST),
            series: thinned(&run.series),
            inputs_hash: inputs_hash(deployment, &outcome.serving, workload, seed),
            seed,
            workload: format!(
                "{} requests, {} prompt tokens, {} output tokens",
                trace.len(),
                tokens(trace.input_lens()),
                tokens(trace.output_lens())
            ),
        }
    }

    /// Whether it starts and meets its objectives.
    pub fn is_yes(&self) -> bool {
        self.refused.is_none() && self.finished > 0 && self.slo_met != Some(false)
    }
}

/// At most [`MAX_SAMPLES`], evenly taken, the last one among them.
fn thinned(series: &[Sample]) -> Vec<Sample> {
    let every = series.len().div_ceil(MAX_SAMPLES).max(1);
    let mut kept: Vec<Sample> = series.iter().step_by(every).copied().collect();
    if let Some(last) = series.last()
        && kept.last() != Some(last)
    {
        kept.push(*last);
    }
    kept
}

/// Fingerprint of what decides the result.
fn inputs_hash(deployment: &Deployment, serving: &Serving, workload: &Workload<'_>, seed: u64) -> String {
    let mut name = Fingerprint::default();
    name.bytes(&serde_json::to_vec(&(deployment, serving, seed)).unwrap_or_default());
    name.bytes(format!("{:?}", workload.arrivals).as_bytes());
    name.trace(&workload.trace);
    name.name()
}
