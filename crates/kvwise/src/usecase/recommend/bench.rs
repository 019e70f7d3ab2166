//! Asks the simulator what a candidate holds; every answer is kept.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock};

use kvwise_core::Result;
use kvwise_io::answers::Answers;
use kvwise_sim::simulate::{Arrivals, Percentiles, Slo};
use kvwise_sim::trace::{Prompt, Trace};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::served::network::NetworkAsked;
use super::super::served::{Prepared, Served, Serving, prepare};
use super::super::simulate::simulate_served;
use super::super::traffic::Workload;
use super::search::Bench;
use super::space::Candidate;

/// Requests of a first look.
const FIRST_LOOK: usize = 200;

/// What the traffic is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// As the trace's times say.
    Open,
    /// So many requests under way at any time, all replicas together.
    Closed(u32),
}

/// Limits on latency, and at which percentile they hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objectives {
    /// Limits in milliseconds.
    pub slo: Slo,
    /// 50, 90 or 99.
    pub percentile: u8,
}

impl Objectives {
    fn at(self, of: &Percentiles) -> f64 {
        match self.percentile {
            50 => of.p50,
            90 => of.p90,
            _ => of.p99,
        }
    }
}

/// What one replica did under its share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Time to first token at the percentile.
    pub ttft_ms: f64,
    /// Time per output token at the percentile.
    pub tpot_ms: f64,
    /// Generated tokens a second of one replica.
    pub output_tokens_per_s: f64,
    /// Whether the queue stayed bounded until the last arrival.
    pub keeps_up: bool,
    /// Requests that could never run, and why nothing was simulated.
    pub rejected: u64,
    /// Why nothing could be simulated.
    pub refused: Option<String>,
}

impl Measured {
    /// Whether the objectives are met.
    pub fn meets(&self, objectives: Objectives) -> bool {
        let within = |limit: Option<f64>, x: f64| limit.is_none_or(|limit| x <= limit);
        self.refused.is_none()
            && self.rejected == 0
            && self.keeps_up
            && within(objectives.slo.ttft_ms, self.ttft_ms)
            && within(objectives.slo.tpot_ms, self.tpot_ms)
    }

    /// Which objective is missed, in words; `None` if none is.
    pub fn misses(&self, objectives: Objectives) -> Option<String> {
        if let Some(reason) = &self.refused {
            return Some(reason.clone());
        }
        if self.rejected > 0 {
            return Some(format!("{} requests can never run", self.rejected));
        }
        let late = |what: &str, limit: Option<f64>, x: f64| {
            limit.filter(|limit| x > *limit).map(|limit| {
                // As many digits as show the difference.
                let digits = (0..3)
                    .find(|&d| format!("{x:.d$}") != format!("{limit:.d$}"))
                    .unwrap_or(3);
                format!("{what} {x:.digits$} ms instead of {limit:.digits$} ms")
            })
        };
        late("time to first token", objectives.slo.ttft_ms, self.ttft_ms)
            .or_else(|| late("time per output token", objectives.slo.tpot_ms, self.tpot_ms))
            .or_else(|| (!self.keeps_up).then(|| "the queue grows without end".to_owned()))
    }
}

/// Candidate, bits of its share, whether all requests were taken.
type Key = (usize, u64, bool);

/// The simulator behind the search.
pub struct Simulated<'a> {
    candidates: &'a [Candidate],
    all: &'a Trace,
    first: Trace,
    load: Load,
    objectives: Objectives,
    network: NetworkAsked,
    served: Vec<OnceLock<Result<Box<Served>, String>>>,
    answers: Mutex<HashMap<Key, Measured>>,
    kept: Option<Answers<Kept>>,
}

/// Measured times as the bits of the floats, so that a search that goes on finds exactly what it would have found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    times: [u64; 3],
    keeps_up: bool,
    rejected: u64,
    refused: Option<String>,
}

impl Kept {
    fn of(m: &Measured) -> Self {
        Self {
            times: [m.ttft_ms, m.tpot_ms, m.output_tokens_per_s].map(f64::to_bits),
            keeps_up: m.keeps_up,
            rejected: m.rejected,
            refused: m.refused.clone(),
        }
    }

    fn measured(&self) -> Measured {
        let [ttft_ms, tpot_ms, output_tokens_per_s] = self.times.map(f64::from_bits);
        Measured {
            ttft_ms,
            tpot_ms,
            output_tokens_per_s,
            keeps_up: self.keeps_up,
            rejected: self.rejected,
            refused: self.refused.clone(),
        }
    }
}

/// Everything about a question that its answers depend on besides the candidate and its share, as one word.
pub fn about(trace: &Trace, load: Load, objectives: Objectives, network: &NetworkAsked) -> String {
    let mut hash = Sha256::new();
    let mut put = |text: String| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    // The limits decide nothing that is kept: they are compared with the kept times.
    put(format!(
        "kvwise {} {load:?} p{} {network:?}",
        env!("CARGO_PKG_VERSION"),
        objectives.percentile
    ));
    for i in 0..trace.len() {
        put(format!(
            "{} {} {:?} {}",
            trace.input_len(i),
            trace.output_len(i),
            trace.arrival(i).map(f64::to_bits),
            trace.priority(i)
        ));
        match trace.prompt(i) {
            Prompt::Unknown => {}
            Prompt::Tokens(tokens) => put(format!("{tokens:?}")),
            Prompt::Blocks(path) => put(format!("{:?}", path.iter().collect::<Vec<u32>>())),
        }
    }
    word(hash)
}

/// The first 16 bytes of a digest as text.
fn word(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .take(16)
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl<'a> Simulated<'a> {
    /// A bench for this traffic.
    pub fn new(
        candidates: &'a [Candidate],
        trace: &'a Trace,
        load: Load,
        objectives: Objectives,
        network: NetworkAsked,
    ) -> Self {
        let order = trace
            .arrival_order()
            .unwrap_or_else(|| (0..trace.request_count()).collect());
        let first = trace.select(&order[..order.len().min(FIRST_LOOK)]);
        Self {
            candidates,
            all: trace,
            first,
            load,
            objectives,
            network,
            served: candidates.iter().map(|_| OnceLock::new()).collect(),
            answers: Mutex::new(HashMap::new()),
            kept: None,
        }
    }

    /// The same with the answers of an earlier search, to which new ones are added.
    #[must_use]
    pub fn with_answers(mut self, kept: Answers<Kept>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// A candidate with its share as a word that means the same in every run.
    fn name(&self, (candidate, share, all): Key) -> String {
        let candidate = &self.candidates[candidate];
        let deployment = serde_json::to_string(&candidate.deployment).unwrap_or_default();
        let accepted = candidate.drafter.as_ref().map(|d| d.acceptance.to_bits());
        let candidate = word(Sha256::new().chain_update(format!("{deployment} {accepted:?}")));
        format!("{candidate}-{share:x}-{}", u8::from(all))
    }

    /// Simulations that were run.
    pub fn simulations(&self) -> usize {
        self.answers.lock().map_or(0, |answers| answers.len())
    }

    /// What one replica of a candidate does with its share of the traffic.
    pub fn measure(&self, candidate: usize, share: f64, all: bool) -> Measured {
        let all = all || self.all.len() <= FIRST_LOOK;
        let key = (candidate, share.to_bits(), all);
        if let Some(known) = self
            .answers
            .lock()
            .ok()
            .and_then(|answers| answers.get(&key).cloned())
        {
            return known;
        }
        let name = self.kept.as_ref().map(|_| self.name(key));
        let earlier = self
            .kept
            .as_ref()
            .zip(name.as_ref())
            .and_then(|(kept, name)| kept.get(name));
        let measured = if let Some(kept) = earlier {
            kept.measured()
        } else {
            let measured = self.run(candidate, share, all).unwrap_or_else(|e| Measured {
                refused: Some(e.to_string()),
                ..Measured::default()
            });
            if let (Some(kept), Some(name)) = (&self.kept, &name) {
                // A full disk costs the chance to go on, not the answer.
                let _ = kept.keep(name, &Kept::of(&measured));
            }
            measured
        };
        if let Ok(mut answers) = self.answers.lock() {
            answers.insert(key, measured.clone());
        }
        measured
    }

    fn run(&self, candidate: usize, share: f64, all: bool) -> Result<Measured> {
        let trace = if all { self.all } else { &self.first };
        let arrivals = match self.load {
            Load::Open => Arrivals::Trace { speed: share },
            Load::Closed(n) => Arrivals::Closed {
                concurrency: portion(n, share),
            },
        };
        let workload = Workload {
            trace: Cow::Borrowed(trace),
            arrivals,
        };
        let served = match self.served[candidate].get_or_init(|| self.prepared(candidate)) {
            Ok(served) => served,
            Err(reason) => {
                return Ok(Measured {
                    refused: Some(reason.clone()),
                    ..Measured::default()
                });
            }
        };
        let outcome = simulate_served(served, &workload, self.objectives.slo)?;
        let summary = &outcome.summary;
        // A queue that is still short when the last request arrives was served as fast as it filled.
        let keeps_up = self.load != Load::Open || {
            let last = outcome
                .run
                .records
                .iter()
                .map(|r| r.arrival_s)
                .fold(0.0, f64::max);
            let waiting = outcome
                .run
                .series
                .iter()
                .take_while(|s| s.time_s <= last)
                .last()
                .map_or(0, |s| s.waiting);
            u64::from(waiting) <= 4 + trace.len() as u64 / 20
        };
        Ok(Measured {
            ttft_ms: self.objectives.at(&summary.ttft_ms),
            tpot_ms: self.objectives.at(&summary.tpot_ms),
            output_tokens_per_s: summary.output_tokens_per_s,
            keeps_up,
            rejected: summary.rejected,
            refused: outcome.refused,
        })
    }

    /// The candidate ready to be simulated, or why it would not start.
    fn prepared(&self, candidate: usize) -> Result<Box<Served>, String> {
        let candidate = &self.candidates[candidate];
        let serving = Serving {
            acceptance_rate: candidate.drafter.as_ref().map(|d| d.acceptance),
            network: self.network.clone(),
            ..Serving::default()
        };
        match prepare(&candidate.deployment, &serving) {
            Ok(Prepared::Ready(served)) => Ok(served),
            Ok(Prepared::Refused(_, reason)) => Err(reason),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// A share of the requests under way, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and cut off at 2^32"
)]
fn portion(concurrency: u32, share: f64) -> u32 {
    // A hair less, so that a third of three is one.
    (f64::from(concurrency) * share - 1e-9)
        .ceil()
        .clamp(1.0, f64::from(u32::MAX)) as u32
}

impl Bench for Simulated<'_> {
    fn holds(&self, candidate: usize, share: f64) -> bool {
        self.measure(candidate, share, false).meets(self.objectives)
    }

    fn holds_for_sure(&self, candidate: usize, share: f64) -> bool {
        self.measure(candidate, share, true).meets(self.objectives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_misses_by_little_is_not_said_to_be_equal() {
        let objectives = Objectives {
            slo: Slo {
                ttft_ms: None,
                tpot_ms: Some(40.0),
            },
            percentile: 99,
        };
        let misses = |tpot_ms: f64| {
            let measured = Measured {
                tpot_ms,
                keeps_up: true,
                ..Measured::default()
            };
            measured.misses(objectives).unwrap()
        };
        assert_eq!(misses(40.14), "time per output token 40.1 ms instead of 40.0 ms");
        assert_eq!(misses(51.2), "time per output token 51 ms instead of 40 ms");
    }

    #[test]
    fn a_share_of_the_requests_is_rounded_up_and_never_nothing() {
        assert_eq!(portion(3, 1.0 / 3.0), 1);
        assert_eq!(portion(32, 1.0 / 3.0), 11);
        assert_eq!(portion(1, 0.01), 1);
    }
}
