//! Percentiles, goodput and shares of a run.

use super::record::{HostTimes, Record, Run};
use crate::cost::StepTime;

/// Mean and percentiles of one quantity; zero if nothing was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct Percentiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Percentiles {
    /// Of weighted values sorted by value: the smallest value whose cumulative weight reaches the share.
    pub fn of_weighted(sorted: &[(f64, u64)]) -> Self {
        let total: u64 = sorted.iter().map(|(_, n)| n).sum();
        if total == 0 {
            return Self::default();
        }
        let mean = sorted.iter().map(|(x, n)| x * *n as f64).sum::<f64>() / total as f64;
        let at = |share: f64| {
            let rank = (share * total as f64).ceil().max(1.0);
            let mut seen = 0_u64;
            for (x, n) in sorted {
                seen += n;
                if seen as f64 >= rank {
                    return *x;
                }
            }
            sorted.last().map_or(0.0, |(x, _)| *x)
        };
        Self {
            mean,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
        }
    }

    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<(f64, u64)> = values.filter(|x| x.is_finite()).map(|x| (x, 1)).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self::of_weighted(&sorted)
    }
}

/// Latency objectives, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Slo {
    /// Time to first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token after the first.
    pub tpot_ms: Option<f64>,
}

/// Where the time of all replicas went, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct TimeShares {
    /// Kernels by kind.
    #[serde(flatten)]
    pub busy: StepTime,
    /// Host.
    pub host_s: f64,
    /// Nothing to do.
    pub idle_s: f64,
}

/// The figures of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// Time to first token, ms.
    pub ttft_ms: Percentiles,
    /// Time per output token after the first, ms, per request.
    pub tpot_ms: Percentiles,
    /// Gap between two tokens of a request, ms.
    pub itl_ms: Percentiles,
    /// Arrival to last token, ms.
    pub e2e_ms: Percentiles,
    /// Arrival to first admission, ms.
    pub queue_ms: Percentiles,
    /// End of the prompt on a prefill engine to its blocks on the decode engine, ms; zero where they are not apart.
    pub transfer_ms: Percentiles,
    /// Finished requests.
    pub finished: u64,
    /// Requests that could never run.
    pub rejected: u64,
    /// Length of the run, s.
    pub duration_s: f64,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// Prompt and generated tokens a second.
    pub total_tokens_per_s: f64,
    /// Finished requests a second.
    pub requests_per_s: f64,
    /// Finished requests a second that met every objective.
    pub goodput_requests_per_s: f64,
    /// Share of finished requests that met every objective.
    pub slo_attainment: f64,
    /// Where the time went.
    pub time: TimeShares,
}

pub(super) fn ttft_ms(r: &Record, host: HostTimes) -> f64 {
    (r.first_token_s - r.arrival_s + host.request_s) * 1e3
}

pub(super) fn tpot_ms(r: &Record) -> f64 {
    if r.output_tokens > 1 {
        (r.finished_s - r.first_token_s) / f64::from(r.output_tokens - 1) * 1e3
    } else {
        f64::NAN
    }
}

/// Summarises a run; `host` adds the request's host time to the time to first token.
pub fn summarize(run: &Run, host: HostTimes, slo: Slo) -> Summary {
    let done = || run.records.iter().filter(|r| r.finished_s.is_finite());
    let finished = done().count() as u64;
    let start = run
        .records
        .iter()
        .map(|r| r.arrival_s)
        .filter(|t| t.is_finite())
        .fold(f64::INFINITY, f64::min);
    let duration_s = if start.is_finite() {
        (run.end_s - start).max(0.0)
    } else {
        0.0
    };
    let per_s = |n: f64| if duration_s > 0.0 { n / duration_s } else { 0.0 };
    let outputs: f64 = done().map(|r| f64::from(r.output_tokens)).sum();
    let inputs: f64 = done().map(|r| f64::from(r.input_tokens)).sum();
    let good = done()
        .filter(|r| {
            slo.ttft_ms.is_none_or(|limit| ttft_ms(r, host) <= limit)
                && slo
                    .tpot_ms
                    .is_none_or(|limit| r.output_tokens <= 1 || tpot_ms(r) <= limit)
        })
        .count() as f64;
    let gaps: Vec<(f64, u64)> = run.gaps.iter().map(|(s, n)| (s * 1e3, *n)).collect();
    Summary {
        ttft_ms: Percentiles::of(done().map(|r| ttft_ms(r, host))),
        tpot_ms: Percentiles::of(done().map(tpot_ms)),
        itl_ms: Percentiles::of_weighted(&gaps),
        e2e_ms: Percentiles::of(done().map(|r| (r.finished_s - r.arrival_s + host.request_s) * 1e3)),
        queue_ms: Percentiles::of(done().map(|r| (r.admitted_s - r.arrival_s) * 1e3)),
        transfer_ms: Percentiles::of(done().map(|r| (r.kv_arrived_s - r.prefilled_s) * 1e3)),
        finished,
        rejected: run.records.iter().filter(|r| r.rejected).count() as u64,
        duration_s,
        output_tokens_per_s: per_s(outputs),
        total_tokens_per_s: per_s(outputs + inputs),
        requests_per_s: per_s(finished as f64),
        goodput_requests_per_s: per_s(good),
        slo_attainment: if finished > 0 { good / finished as f64 } else { 0.0 },
        time: TimeShares {
            busy: run.busy,
            host_s: run.host_s,
            idle_s: run.idle_s,
        },
    }
}
