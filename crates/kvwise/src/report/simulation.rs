//! The answer of `kvwise simulate`.

use std::fmt::Write as _;

use kvwise_sim::simulate::{Percentiles, Slo, TimeShares};
use kvwise_sim::trace::Trace;
use serde::Serialize;

use super::table::{Align, Grid};
use crate::usecase::simulate::Outcome;

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
    /// GPUs in use.
    pub gpus: u64,
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
    /// What the times rest on.
    pub basis: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// Fingerprint of the workload: requests, prompt and output tokens.
    pub workload: String,
}

impl Simulation {
    /// The report of one outcome.
    pub fn new(label: String, trace: &Trace, seed: u64, slo: Slo, outcome: &Outcome) -> Self {
        let s = &outcome.summary;
        let run = &outcome.run;
        let given = slo.ttft_ms.is_some() || slo.tpot_ms.is_some();
        let met = slo.ttft_ms.is_none_or(|limit| s.ttft_ms.p99 <= limit)
            && slo.tpot_ms.is_none_or(|limit| s.tpot_ms.p99 <= limit)
            && s.finished > 0;
        let tokens = |lens: &[u32]| lens.iter().map(|&n| u64::from(n)).sum::<u64>();
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            label,
            model: outcome.plan.model.name.clone(),
            gpu: outcome.plan.gpu.name.clone(),
            gpus: outcome.plan.gpu.count,
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
            basis: if outcome.fitted_on_this_gpu {
                "fitted: kernels measured on this GPU; two models on H100, H200 and B200 came out with a median error of \
                 5 % of the time per output token, 14 % at the 95th percentile"
                    .to_owned()
            } else {
                "fitted on another GPU of its kind, applied to this GPU's datasheet".to_owned()
            },
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
        return grid(simulations).text();
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
    let t = s.time;
    let kinds = [
        ("matrix products", t.linear_s),
        ("experts", t.experts_s),
        ("attention", t.attention_s),
        ("states", t.state_s),
        ("communication", t.communication_s),
        ("small kernels", t.elementwise_s),
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
    let _ = writeln!(out, "basis       {}", s.basis.replace("; ", ";\n            "));
    out
}
