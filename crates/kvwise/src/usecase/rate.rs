//! The highest rate that meets the objectives, by search.

use kvwise_core::{Error, Result};
use kvwise_sim::simulate::Slo;
use serde::Serialize;

use super::served::Served;
use super::simulate::simulate_served;
use super::traffic::Traffic;

/// One probed rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Probe {
    /// Requests a second offered.
    pub rate_per_s: f64,
    /// 99th percentile of the time to first token, milliseconds.
    pub ttft_p99_ms: f64,
    /// 99th percentile of the time per output token, milliseconds.
    pub tpot_p99_ms: f64,
    /// Requests a second finished.
    pub finished_per_s: f64,
    /// Whether the objectives hold and the engine keeps up (finishes at least 95 % of what is offered).
    pub holds: bool,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HighestRate {
    /// The highest rate that holds; `None` if not even one request at a time meets the objectives.
    pub rate_per_s: Option<f64>,
    /// What one request at a time reaches: the nearest to the objectives that this deployment comes.
    pub alone: Probe,
    /// Every probe, in the order of the search.
    pub probes: Vec<Probe>,
}

/// Relative width at which the search stops.
const TOLERANCE: f64 = 0.02;
/// Doublings of the rate before it counts as without limit.
const MAX_DOUBLINGS: u32 = 24;

/// Searches for the highest rate: doubles until it fails, then halves the interval (2 % wide at the end).
///
/// # Errors
/// If no objective is given, or the traffic cannot be described by a rate.
pub fn highest_rate(served: &Served, traffic: &Traffic, slo: Slo) -> Result<HighestRate> {
    if slo.ttft_ms.is_none() && slo.tpot_ms.is_none() {
        return Err(
            Error::input("--find-rate needs an objective").hint("give --slo-ttft-ms, --slo-tpot-ms or both")
        );
    }
    let mut probes = Vec::new();
    let mut probe = |rate: f64| -> Result<Probe> {
        let traffic = traffic.at_rate(rate)?;
        let s = simulate_served(served, &traffic.workload()?, slo)?.summary;
        let meets = s.rejected == 0
            && slo.ttft_ms.is_none_or(|limit| s.ttft_ms.p99 <= limit)
            && slo.tpot_ms.is_none_or(|limit| s.tpot_ms.p99 <= limit);
        // The tail after the last arrival is no part of what is kept up with.
        let keeps_up = s.requests_per_s >= 0.95 * rate || s.queue_ms.p99 <= 1.0;
        let p = Probe {
            rate_per_s: rate,
            ttft_p99_ms: s.ttft_ms.p99,
            tpot_p99_ms: s.tpot_ms.p99,
            finished_per_s: s.requests_per_s,
            holds: meets && (keeps_up || slo.ttft_ms.is_some()),
        };
        probes.push(p);
        Ok(p)
    };
    // So rare that requests hardly meet.
    let alone = probe(1e-3)?;
    if !alone.holds {
        return Ok(HighestRate {
            rate_per_s: None,
            alone,
            probes,
        });
    }
    let mut low = 1e-3;
    let mut high = 0.125;
    let mut doublings = 0;
    while probe(high)?.holds {
        low = high;
        high *= 2.0;
        doublings += 1;
        if doublings > MAX_DOUBLINGS {
            break;
        }
    }
    while high / low > 1.0 + TOLERANCE && doublings <= MAX_DOUBLINGS {
        let middle = (low * high).sqrt();
        if probe(middle)?.holds {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(HighestRate {
        rate_per_s: Some(low),
        alone,
        probes,
    })
}
