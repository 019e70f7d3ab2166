//! The requests that fared worst, and why.

use super::record::{HostTimes, Run};
use super::summary::{tpot_ms, ttft_ms};

/// What kept a request waiting most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It waited for a place among the running requests, or for room in the cache.
    Queue,
    /// Its own prompt took long to compute.
    Prefill,
    /// It lost its blocks and was computed again.
    Preemption,
    /// Its cache took long from the prefill to the decode engine: no room there, or a busy link.
    Transfer,
    /// Each of its tokens took long: many sequences, long contexts, others' prompts in between.
    Decode,
}

/// One request and where its time went; milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Worst {
    /// Its number in the trace.
    pub request: u32,
    /// Seconds from the start at which it arrived.
    pub arrival_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Generated tokens.
    pub output_tokens: u32,
    /// Prompt tokens found in the cache.
    pub hit_tokens: u32,
    /// Arrival to last token.
    pub e2e_ms: f64,
    /// Arrival to first token.
    pub ttft_ms: f64,
    /// Time per output token after the first; 0 for a single one.
    pub tpot_ms: f64,
    /// Arrival to admission.
    pub queue_ms: f64,
    /// Preemptions.
    pub preemptions: u32,
    /// The largest part of its time.
    pub cause: Cause,
}

/// The `count` requests with the latest first token, worst first.
pub fn worst(run: &Run, host: HostTimes, count: usize) -> Vec<Worst> {
    let mut all: Vec<(f64, u32)> = run
        .records
        .iter()
        .zip(0_u32..)
        .filter(|(r, _)| r.finished_s.is_finite())
        .map(|(r, i)| (ttft_ms(r, host), i))
        .collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(count);
    all.into_iter()
        .map(|(ttft, request)| {
            let r = &run.records[request as usize];
            let queue_ms = (r.admitted_s - r.arrival_s) * 1e3;
            let decode_ms = (r.finished_s - r.first_token_s) * 1e3;
            let transfer_ms = ((r.kv_arrived_s - r.prefilled_s) * 1e3).max(0.0);
            let prefill_ms = ttft - queue_ms - transfer_ms;
            let cause = if r.preemptions > 0 {
                Cause::Preemption
            } else if transfer_ms > queue_ms.max(prefill_ms) {
                Cause::Transfer
            } else if queue_ms >= prefill_ms {
                Cause::Queue
            } else if prefill_ms >= decode_ms {
                Cause::Prefill
            } else {
                Cause::Decode
            };
            let tpot = tpot_ms(r);
            Worst {
                request,
                arrival_s: r.arrival_s,
                input_tokens: r.input_tokens,
                output_tokens: r.output_tokens,
                hit_tokens: r.hit_tokens,
                e2e_ms: (r.finished_s - r.arrival_s + host.request_s) * 1e3,
                ttft_ms: ttft,
                tpot_ms: if tpot.is_finite() { tpot } else { 0.0 },
                queue_ms,
                preemptions: r.preemptions,
                cause,
            }
        })
        .collect()
}
