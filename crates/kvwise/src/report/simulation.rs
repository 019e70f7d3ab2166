//! The answer of `kvwise simulate`.

use std::fmt::Write as _;

use kvwise_sim::simulate::{
    Cause, Percentiles, Sample, Slo, TierTotals, TimeShares, Transfers, Worst, worst,
};
use kvwise_sim::trace::Trace;
use serde::Serialize;

use super::table::{Align, Grid};
use crate::plot::{LineChart, Series};
use crate::usecase::deployment::Deployment;
use crate::usecase::served::Serving;
use crate::usecase::simulate::Outcome;
use crate::usecase::sweep::fingerprint;

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
/// The time to first token is less certain than the time per token: median errors are two to three times as large.
const TTFT_FACTOR: f64 = 1.5;

impl Simulation {
    /// The report of one outcome.
    pub fn new(
        label: String,
        trace: &Trace,
        deployment: &Deployment,
        seed: u64,
        slo: Slo,
        outcome: &Outcome,
    ) -> Self {
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
            inputs_hash: inputs_hash(deployment, &outcome.serving, trace, seed),
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
        self.refused.is_none() && self.slo_met != Some(false)
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
fn inputs_hash(deployment: &Deployment, serving: &Serving, trace: &Trace, seed: u64) -> String {
    let mut bytes = serde_json::to_vec(&(deployment, serving)).unwrap_or_default();
    bytes.extend(seed.to_le_bytes());
    for lens in [trace.input_lens(), trace.output_lens()] {
        bytes.extend(lens.iter().flat_map(|n| n.to_le_bytes()));
    }
    for i in 0..trace.len() {
        bytes.extend(trace.arrival(i).unwrap_or(-1.0).to_bits().to_le_bytes());
    }
    for i in 0..trace.len() {
        if let Some(adapter) = trace.lora(i) {
            bytes.extend((i as u64).to_le_bytes());
            bytes.extend(adapter.as_bytes());
        }
    }
    fingerprint(&bytes)
}

/// One row a simulation: percentiles in ms, output tokens and requests a second, share of prompt tokens found in the
/// cache, preemptions, largest share of the pool in use.
pub fn grid(simulations: &[Simulation]) -> Grid {
    let mut grid = Grid::new(&[
        ("changed", Align::Left),
        ("ttft50", Align::Right),
        ("ttft99", Align::Right),
        ("tpot50", Align::Right),
        ("tpot99", Align::Right),
        ("tok/s", Align::Right),
        ("req/s", Align::Right),
        ("hits", Align::Right),
        ("pre", Align::Right),
        ("kv", Align::Right),
    ]);
    for s in simulations {
        if let Some(reason) = &s.refused {
            grid.row([format!("{}: {reason}", s.label)]);
            continue;
        }
        grid.row([
            s.label.clone(),
            format!("{:.0}", s.ttft_ms.p50),
            format!("{:.0}", s.ttft_ms.p99),
            format!("{:.1}", s.tpot_ms.p50),
            format!("{:.1}", s.tpot_ms.p99),
            format!("{:.0}", s.output_tokens_per_s),
            format!("{:.2}", s.requests_per_s),
            format!("{:.3}", s.prefix_hit_rate_tokens),
            s.preemptions.to_string(),
            format!("{:.3}", s.kv_usage.peak),
        ]);
    }
    grid
}

/// For a terminal: one deployment in words, several as a table.
pub fn text(simulations: &[Simulation]) -> String {
    let [s] = simulations else {
        let mut out = grid(simulations).text();
        out.push('\n');
        for s in simulations.iter().filter(|s| s.refused.is_none()) {
            let _ = writeln!(out, "{}: {}", s.label, answer(s));
        }
        if let Some(s) = simulations.iter().find(|s| s.refused.is_none()) {
            let _ = writeln!(out, "basis {}", s.basis.replace("; ", ";\n      "));
        }
        return out;
    };
    let mut out = String::new();
    if let Some(reason) = &s.refused {
        let _ = writeln!(
            out,
            "{} on {} x {}: the engine would not start: {reason}",
            s.model, s.gpus, s.gpu
        );
        return out;
    }
    let verdict = match s.slo_met {
        None => format!(
            "{:.0} output tokens/s, {:.2} requests/s",
            s.output_tokens_per_s, s.requests_per_s
        ),
        Some(true) => format!("meets the objectives at {:.2} requests/s", s.requests_per_s),
        Some(false) => format!(
            "misses the objectives: {:.1} % of the requests meet them, {:.2} requests/s",
            s.slo_attainment * 100.0,
            s.goodput_requests_per_s
        ),
    };
    let _ = writeln!(out, "{} on {} x {}: {verdict}\n", s.model, s.gpus, s.gpu);
    let mut grid = Grid::new(&[
        ("ms", Align::Left),
        ("mean", Align::Right),
        ("p50", Align::Right),
        ("p90", Align::Right),
        ("p99", Align::Right),
    ]);
    for (name, p) in [
        ("time to first token", s.ttft_ms),
        ("time per output token", s.tpot_ms),
        ("gap between tokens", s.itl_ms),
        ("whole request", s.e2e_ms),
        ("waiting for admission", s.queue_ms),
    ] {
        grid.row(
            [name.to_owned()]
                .into_iter()
                .chain([p.mean, p.p50, p.p90, p.p99].map(|x| format!("{x:.1}"))),
        );
    }
    out.push_str(&grid.text());
    let _ = writeln!(
        out,
        "\nrequests    {} finished of {}, {} rejected, {} preemptions, {:.1} s",
        s.finished, s.requests, s.rejected, s.preemptions, s.duration_s
    );
    let _ = writeln!(
        out,
        "KV cache    {} blocks, {:.1} % used on average, {:.1} % at the peak, prefix hits {:.1} % of prompt tokens",
        s.num_blocks,
        s.kv_usage.mean * 100.0,
        s.kv_usage.peak * 100.0,
        s.prefix_hit_rate_tokens * 100.0
    );
    apart_text(&mut out, s);
    let t = s.time;
    let kinds = [
        ("matrix products", t.busy.linear_s),
        ("experts", t.busy.experts_s),
        ("attention", t.busy.attention_s),
        ("states", t.busy.state_s),
        ("communication", t.busy.communication_s),
        ("small kernels", t.busy.elementwise_s),
        ("host", t.host_s),
        ("idle", t.idle_s),
    ];
    let total: f64 = kinds.iter().map(|(_, x)| x).sum();
    let shares: Vec<String> = kinds
        .iter()
        .filter(|(_, x)| total > 0.0 && *x / total >= 0.005)
        .map(|(name, x)| format!("{name} {:.0} %", x / total * 100.0))
        .collect();
    let _ = writeln!(out, "time        {}", shares.join(", "));
    if let Some(r) = s.roofline {
        let _ = writeln!(
            out,
            "roofline    {:.2} times what no implementation can beat, which is bound by {}",
            r.ratio,
            [
                ("computing", r.compute_s),
                ("memory", r.memory_s),
                ("links", r.link_s)
            ]
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or("nothing", |(name, _)| name)
        );
    }
    if let Some(seeds) = s.seeds {
        let _ = writeln!(
            out,
            "{} seeds     ttft p99 {:.0} ± {:.0} ms, tpot p99 {:.1} ± {:.1} ms, {:.0} ± {:.0} output tokens/s (95 %)",
            seeds.seeds,
            seeds.ttft_p99_ms.mean,
            seeds.ttft_p99_ms.half_width_95,
            seeds.tpot_p99_ms.mean,
            seeds.tpot_p99_ms.half_width_95,
            seeds.output_tokens_per_s.mean,
            seeds.output_tokens_per_s.half_width_95
        );
    }
    let (tpot, ttft) = (s.tpot_mean_interval_ms, s.ttft_mean_interval_ms);
    let _ = writeln!(
        out,
        "range       mean time per output token {:.1} to {:.1} ms, to the first token {:.0} to {:.0} ms",
        tpot.low, tpot.high, ttft.low, ttft.high
    );
    if let Some(w) = s.worst.first() {
        let _ = writeln!(
            out,
            "worst       request {}: {:.0} ms to its first token, {:.0} ms of them queueing; most time in {}",
            w.request,
            w.ttft_ms,
            w.queue_ms,
            cause(w.cause)
        );
    }
    let _ = writeln!(out, "basis       {}", s.basis.replace("; ", ";\n            "));
    out
}

/// Whether the objectives are met, how far the figures that decide it may be off, and whether that could turn the answer.
fn answer(s: &Simulation) -> String {
    let mut parts = match s.slo_met {
        None => Vec::new(),
        Some(true) => vec!["meets the objectives".to_owned()],
        Some(false) => vec![format!(
            "misses the objectives ({:.1} % of the requests meet them)",
            s.slo_attainment * 100.0
        )],
    };
    for (what, p, range, limit) in [
        (
            "to the first token",
            s.ttft_ms,
            s.ttft_mean_interval_ms,
            s.slo_ttft_ms,
        ),
        (
            "per output token",
            s.tpot_ms,
            s.tpot_mean_interval_ms,
            s.slo_tpot_ms,
        ),
    ] {
        // The same factors as around the mean.
        let (low, high) = if p.mean > 0.0 {
            (p.p99 * range.low / p.mean, p.p99 * range.high / p.mean)
        } else {
            (p.p99, p.p99)
        };
        let sure = match limit {
            None => "",
            Some(limit) if (low..=high).contains(&limit) => ", which leaves it open",
            Some(_) => ", which does not change that",
        };
        parts.push(format!("99 % {what} within {low:.0} to {high:.0} ms{sure}"));
    }
    parts.join("; ")
}

/// What moved between engines and tiers.
fn apart_text(out: &mut String, s: &Simulation) {
    if let Some(d) = s.disaggregation {
        let _ = writeln!(
            out,
            "apart       {} on {} GPUs, {} on {} GPUs; cache handed over in {:.0} ms (mean), {:.0} ms (p99); ports {:.1} % busy",
            engines(d.prefill_replicas, "prefill"),
            d.prefill_gpus,
            engines(d.decode_replicas, "decode"),
            d.decode_gpus,
            d.transfer_ms.mean,
            d.transfer_ms.p99,
            d.link_use * 100.0
        );
    }
    for tier in &s.tiers {
        let _ = writeln!(
            out,
            "{:<12}{} blocks, {} prompt tokens found there, {:.1} GiB read, {:.1} GiB written, {} blocks evicted",
            tier.name,
            tier.capacity_blocks,
            tier.hit_tokens,
            gib(tier.read_bytes),
            gib(tier.written_bytes),
            tier.evicted_blocks
        );
    }
}

fn engines(count: u64, side: &str) -> String {
    format!("{count} {side} engine{}", if count == 1 { "" } else { "s" })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// A cause in words.
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Queue => "the queue",
        Cause::Prefill => "its own prompt",
        Cause::Preemption => "computing again after a preemption",
        Cause::Transfer => "getting its cache to a decode engine",
        Cause::Decode => "decoding",
    }
}

/// Requests and KV usage over time, for a terminal.
pub fn plots(s: &Simulation) -> String {
    if s.series.is_empty() {
        return String::new();
    }
    let line = |name: &str, value: fn(&Sample) -> f64| Series {
        name: name.to_owned(),
        points: s.series.iter().map(|p| (p.time_s, value(p))).collect(),
    };
    let highest = s
        .series
        .iter()
        .map(|p| f64::from(p.running.max(p.waiting)))
        .fold(1.0, f64::max);
    let chart = |title: &str, y_label: &str, y_max: f64, series: Vec<Series>| LineChart {
        title: title.to_owned(),
        x_label: "seconds".to_owned(),
        y_label: y_label.to_owned(),
        x_log: false,
        y_max,
        series,
    };
    let requests = chart(
        "requests",
        "requests",
        highest * 1.05,
        vec![
            line("running", |p| f64::from(p.running)),
            line("waiting", |p| f64::from(p.waiting)),
        ],
    );
    let cache = chart(
        "KV cache",
        "share",
        1.0,
        vec![
            line("in use", |p| p.kv_usage),
            line("prefix hits", |p| p.hit_rate),
        ],
    );
    format!("\n{}\n{}", requests.text(78, 12), cache.text(78, 10))
}
