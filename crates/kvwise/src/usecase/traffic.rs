//! Traffic: a trace or a description of one, turned into requests and arrivals.

use std::borrow::Cow;

use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{Arrivals, Lengths, closed_loop, open_loop, sessions};
use kvwise_sim::trace::{Adapters, Trace};

/// What is known of the traffic.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Recorded requests, instead of lengths.
    pub trace: Option<Trace>,
    /// Longest prompt in tokens.
    pub input_len: Option<u32>,
    /// Longest answer in tokens.
    pub output_len: Option<u32>,
    /// Shortest length as a share of the longest.
    pub length_ratio: f64,
    /// Requests (or sessions) under way at any time.
    pub concurrency: Option<u32>,
    /// Requests a second.
    pub rate: Option<f64>,
    /// Shape of the gaps between requests.
    pub burstiness: f64,
    /// Requests (or sessions) in all.
    pub requests: Option<u32>,
    /// A trace is replayed this much faster than recorded.
    pub speed: f64,
    /// Turns of a session.
    pub turns: Option<u32>,
    /// Mean time between an answer and the next turn, seconds.
    pub think_s: Option<f64>,
    /// LoRA adapters of described traffic.
    pub adapters: Option<Adapters>,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Requests and when they arrive.
#[derive(Debug, Clone)]
pub struct Workload<'a> {
    /// The requests.
    pub trace: Cow<'a, Trace>,
    /// When they arrive.
    pub arrivals: Arrivals,
}

/// Requests without a number given and without concurrency.
const REQUESTS: u32 = 1000;

/// Whether a number differs from 1, the default of all numbers that change how requests come.
#[expect(clippy::float_cmp, reason = "the default is this very number")]
fn is_set(x: f64) -> bool {
    x != 1.0
}

impl Traffic {
    /// The requests and their arrivals.
    ///
    /// # Errors
    /// If the flags contradict each other or a value is senseless; the message names the flag.
    pub fn workload(&self) -> Result<Workload<'_>> {
        match &self.trace {
            Some(trace) => self.recorded(trace),
            None => self.described(),
        }
    }

    fn recorded<'a>(&self, trace: &'a Trace) -> Result<Workload<'a>> {
        for (flag, given) in [
            ("--input-len", self.input_len.is_some()),
            ("--output-len", self.output_len.is_some()),
            ("--rate", self.rate.is_some()),
            ("--requests", self.requests.is_some()),
            ("--turns", self.turns.is_some()),
            ("--length-ratio", is_set(self.length_ratio)),
            ("--burstiness", is_set(self.burstiness)),
            ("--lora-shares", self.adapters.is_some()),
        ] {
            if given {
                return Err(Error::input(format!(
                    "{flag} and a trace both describe the traffic: give one of them"
                ))
                .hint("a trace's rate is changed with --speed, or replaced with --concurrency"));
            }
        }
        if trace.is_empty() {
            return Err(Error::input(format!(
                "{}: the trace holds no requests",
                trace.name()
            )));
        }
        if is_set(self.speed) && (self.concurrency.is_some() || self.think_s.is_some()) {
            return Err(Error::input(
                "--speed changes a trace's arrival times, which --concurrency and --think-time replace: leave it out",
            ));
        }
        let arrivals = match (self.concurrency, self.think_s) {
            (Some(concurrency), None) => Arrivals::Closed { concurrency },
            (None, None) => Arrivals::Trace { speed: self.speed },
            (concurrency, Some(think_s)) => Arrivals::Sessions {
                concurrency: concurrency.unwrap_or(trace.request_count()),
                think_s,
                seed: self.seed,
            },
        };
        Ok(Workload {
            trace: Cow::Borrowed(trace),
            arrivals,
        })
    }

    fn described(&self) -> Result<Workload<'static>> {
        let (Some(input_tokens), Some(output_tokens)) = (self.input_len, self.output_len) else {
            return Err(
                Error::input("which traffic? give a trace, or --input-len and --output-len")
                    .hint("example: --input-len 1024 --output-len 256 --concurrency 32"),
            );
        };
        let lengths = Lengths {
            input_tokens,
            output_tokens,
            ratio: self.length_ratio,
        };
        if is_set(self.speed) {
            return Err(
                Error::input("--speed replays a trace faster than recorded, but no trace is given")
                    .hint("change --rate or --concurrency instead"),
            );
        }
        if is_set(self.burstiness) && self.rate.is_none() {
            return Err(Error::input(
                "--burstiness is the shape of the gaps between requests that arrive by --rate: it says nothing here",
            ));
        }
        let ten_times = |n: u32| n.saturating_mul(10).max(1);
        let (trace, arrivals) = match (self.concurrency, self.rate) {
            (Some(concurrency), None) if self.turns.is_some() || self.think_s.is_some() => (
                sessions(
                    lengths,
                    self.requests.unwrap_or(ten_times(concurrency)),
                    self.turns.unwrap_or(1),
                    self.seed,
                )?,
                Arrivals::Sessions {
                    concurrency,
                    think_s: self.think_s.unwrap_or(0.0),
                    seed: self.seed,
                },
            ),
            (None, Some(_)) if self.turns.is_some() || self.think_s.is_some() => {
                return Err(Error::input(
                    "--turns and --think-time make sessions, which --concurrency counts: --rate does not",
                ));
            }
            (Some(concurrency), None) => (
                closed_loop(
                    lengths,
                    self.requests.unwrap_or(ten_times(concurrency)),
                    self.seed,
                )?,
                Arrivals::Closed { concurrency },
            ),
            (None, Some(rate)) => (
                open_loop(
                    lengths,
                    self.requests.unwrap_or(REQUESTS),
                    rate,
                    self.burstiness,
                    self.seed,
                )?,
                Arrivals::Trace { speed: self.speed },
            ),
            (Some(_), Some(_)) => {
                return Err(Error::input(
                    "--concurrency and --rate are two kinds of traffic: give one of them",
                ));
            }
            (None, None) => {
                return Err(Error::input("how much traffic? give --concurrency N or --rate R"));
            }
        };
        let trace = match &self.adapters {
            Some(adapters) => adapters.assign(trace, self.seed),
            None => trace,
        };
        Ok(Workload {
            trace: Cow::Owned(trace),
            arrivals,
        })
    }

    /// The same at another intensity: requests a second for open traffic, the speed of a trace so that it has that
    /// many on average.
    ///
    /// # Errors
    /// If the trace has no times, or all its requests arrive at once.
    pub fn at_rate(&self, rate_per_s: f64) -> Result<Self> {
        let mut other = self.clone();
        match &self.trace {
            None => {
                other.rate = Some(rate_per_s);
                other.concurrency = None;
            }
            Some(trace) => {
                let times = || (0..trace.len()).filter_map(|i| trace.arrival(i));
                let first = times().fold(f64::INFINITY, f64::min);
                let last = times().fold(f64::NEG_INFINITY, f64::max);
                let recorded = trace.len() as f64 / (last - first);
                if !(recorded.is_finite() && recorded > 0.0) {
                    return Err(Error::input(format!(
                        "{}: the trace has no arrival times to speed up",
                        trace.name()
                    ))
                    .hint("give --input-len, --output-len and --requests instead of a trace"));
                }
                other.speed = rate_per_s / recorded;
                other.concurrency = None;
            }
        }
        Ok(other)
    }
}
