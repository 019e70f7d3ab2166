//! Explicit rules from figures to findings.
//!
//! Thresholds begin with those of the vLLM KV-cache profiling guide (usage 60 to 80 %, hit rate 10/30/50 %, lifetimes
//! 5 s and 60 s, graph coverage 90 %, preemptions 10 %), corrected where the engine's code contradicts them; each
//! finding names which.

pub mod facts;
mod pool;
mod prefix;
mod recording;
mod requests;

use self::facts::Facts;
use crate::report::session::finding::{Confidence, Severity};
use crate::report::session::{Finding, Gain, SessionReport, Suggestion};

/// Every rule: the names that findings bear.
pub const RULES: [&str; 16] = [
    "preemptions",
    "pool_full",
    "queueing",
    "pool_idle",
    "pool_beyond_max_num_seqs",
    "prefix_caching_off",
    "hit_rate_low",
    "hit_rate_high",
    "content_evicted_early",
    "evicted_then_recomputed",
    "max_model_len",
    "block_size",
    "graph_coverage",
    "gaps",
    "restarts",
    "probe_errors",
];

/// Computes what a change would bring on the recorded traffic.
pub trait GainCalculator {
    /// The gain of `suggestion` for the engine of these figures, or `None` if it cannot be computed.
    fn gain(&self, facts: &Facts, suggestion: &Suggestion) -> Option<Gain>;
}

const GUIDE: &str = "vLLM KV-cache profiling guide";
const CODE: &str = "vLLM 0.32.0 vllm/v1/core";

/// What a rule says before anybody computed what its change brings.
#[derive(Debug)]
struct Draft {
    rule: &'static str,
    severity: Severity,
    title: String,
    evidence: String,
    threshold: &'static str,
    source: &'static str,
    confidence: Confidence,
    suggestion: Option<Suggestion>,
}

impl Draft {
    /// A change is only suggested with its size: where that cannot be computed, the finding says so instead.
    fn sized(self, facts: &Facts, calculator: &dyn GainCalculator) -> Finding {
        let gain = self.suggestion.as_ref().and_then(|s| calculator.gain(facts, s));
        let not_sized = match (&self.suggestion, &gain) {
            (Some(s), None) => Some(not_sized(facts, s)),
            _ => None,
        };
        Finding {
            rule: self.rule,
            severity: self.severity,
            title: self.title,
            evidence: self.evidence,
            threshold: self.threshold,
            source: self.source,
            confidence: self.confidence,
            suggestion: self.suggestion.filter(|_| gain.is_some()),
            gain,
            not_sized,
        }
    }
}

fn not_sized(facts: &Facts, suggestion: &Suggestion) -> String {
    let change = format!("{} {}", suggestion.flag, suggestion.value);
    let how = if facts.is_vllm {
        "record the requests themselves with `kvwise run`, or plan the changed server with `kvwise plan`"
    } else {
        "plan the changed server with `kvwise plan`"
    };
    format!(
        "{} may help ({}); this recording does not hold what its effect is computed from: {how}",
        change.trim_end(),
        suggestion.caveat
    )
}

/// Every finding of a report, the most important first. A change is suggested only with the gain that `calculator` computes.
pub fn findings(report: &SessionReport, calculator: &dyn GainCalculator) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut all: Vec<Facts> = report.engines.iter().map(facts::scraped).collect();
    all.extend(
        report
            .probes
            .iter()
            .map(|p| facts::probed(p, report.session.duration_s)),
    );
    let several = all.len() > 1;
    for facts in &all {
        let mut here = Vec::new();
        pool::pressure(facts, &mut here);
        pool::slack(facts, &mut here);
        prefix::prefix_cache(facts, &mut here);
        requests::lengths(facts, &mut here);
        requests::graphs(facts, &mut here);
        for mut draft in here {
            if several {
                draft.title = format!("{}: {}", facts.name, draft.title);
            }
            found.push(draft.sized(facts, calculator));
        }
    }
    let mut of_all = Vec::new();
    prefix::recomputation(report, &mut of_all);
    recording::recording(report, &mut of_all);
    let first = all.into_iter().next().unwrap_or_default();
    found.extend(of_all.into_iter().map(|draft| draft.sized(&first, calculator)));
    found.sort_by_key(|f| f.severity);
    found
}

fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

fn suggest(flag: &str, value: &str, caveat: &str) -> Suggestion {
    Suggestion {
        flag: flag.to_owned(),
        value: value.to_owned(),
        caveat: caveat.to_owned(),
    }
}

#[cfg(test)]
mod tests;
