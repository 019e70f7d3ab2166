//! `kvwise replay --engine sglang`: a trace through SGLang's radix cache, with its events as lines of JSON.

use std::fmt::Write as _;
use std::path::Path;

use kvwise_cache::radix::TreePolicy;
use kvwise_core::{Error, Result};
use kvwise_sim::sched::sglang::{Feed, Outcome, Replay, ReplayConfig, Totals};
use kvwise_sim::trace::Trace;
use serde_json::{Map, Value};

use super::event_file::EventFile;
use crate::report::replay::SglangReplayReport;

/// Replays `trace` and writes its events, if asked for: for each request what was matched, evicted (tokens and first
/// slot of each node) and left, in the form of the reference replay of SGLang's own code; at the end the summary.
///
/// # Errors
/// If the trace has no content, a size makes no sense, or the events cannot be written.
pub fn replay(trace: &Trace, config: &ReplayConfig, events: Option<&Path>) -> Result<SglangReplayReport> {
    let feed = Feed::new(trace)?;
    let mut replay = Replay::new(ReplayConfig {
        longest_request_tokens: Some(feed.longest_request_tokens()),
        ..*config
    })?;
    let mut file = events.map(EventFile::create).transpose()?;
    let mut lines = String::new();
    for request in feed {
        replay.submit(request?, |outcome| {
            if file.is_some() {
                event(&mut lines, trace, outcome);
            }
        })?;
        if let Some(file) = &mut file {
            file.pour(&mut lines)?;
        }
    }
    let totals = replay.finish(|outcome| {
        if file.is_some() {
            event(&mut lines, trace, outcome);
        }
    })?;
    if let Some(file) = file {
        summary(&mut lines, &totals, config);
        file.finish(&lines)?;
    }
    Ok(SglangReplayReport {
        schema: "kvwise.replay/1",
        engine: "sglang",
        requests: totals.requests,
        refused: totals.refused,
        input: totals.input,
        matched: totals.matched,
        evicted: totals.evicted,
        evicted_nodes: totals.evicted_nodes,
        policy: config.policy.name(),
        page: config.page_size,
        capacity: config.capacity_tokens,
        running: config.max_running,
        retracted: totals.retracted,
        aborted: totals.aborted,
        hit_rate_tokens: if totals.input == 0 {
            0.0
        } else {
            totals.matched as f64 / totals.input as f64
        },
    })
}

/// One line, spaced as Python's `json.dumps` does.
fn event(lines: &mut String, trace: &Trace, outcome: Outcome<'_>) {
    let written = match outcome {
        Outcome::Refused { number } => {
            writeln!(lines, "{{\"id\": {}, \"refused\": true}}", trace.id_json(number))
        }
        Outcome::Retracted { number } => {
            writeln!(
                lines,
                "{{\"id\": {}, \"retracted\": true}}",
                trace.id_json(number)
            )
        }
        Outcome::Aborted { number } => {
            writeln!(lines, "{{\"id\": {}, \"aborted\": true}}", trace.id_json(number))
        }
        Outcome::Admitted(a) => {
            let _ = write!(
                lines,
                "{{\"id\": {}, \"input\": {}, \"matched\": {}, \"new\": {}, \"evicted\": [",
                trace.id_json(a.number),
                a.input,
                a.matched,
                a.input - a.matched
            );
            comma_separated(lines, a.evicted.iter().map(|e| e.tokens as u64));
            lines.push_str("], \"slots\": [");
            comma_separated(lines, a.evicted.iter().map(|e| u64::from(e.first_slot)));
            let again = if a.again { ", \"again\": true" } else { "" };
            writeln!(
                lines,
                "], \"free\": {}, \"evictable\": {}, \"protected\": {}{again}}}",
                a.free, a.evictable, a.protected
            )
        }
    };
    written.expect("writing to a string cannot fail");
}

fn comma_separated(lines: &mut String, numbers: impl Iterator<Item = u64>) {
    for (at, number) in numbers.enumerate() {
        let separator = if at == 0 { "" } else { ", " };
        let _ = write!(lines, "{separator}{number}");
    }
}

fn summary(lines: &mut String, totals: &Totals, config: &ReplayConfig) {
    let mut lost = String::new();
    for (name, count) in [("retracted", totals.retracted), ("aborted", totals.aborted)] {
        if count > 0 {
            let _ = write!(lost, ", \"{name}\": {count}");
        }
    }
    let _ = writeln!(
        lines,
        "{{\"summary\": {{\"requests\": {}, \"refused\": {}, \"input\": {}, \"matched\": {}, \"evicted\": {}, \
         \"evicted_nodes\": {}, \"policy\": \"{}\", \"page\": {}, \"capacity\": {}{lost}}}}}",
        totals.requests,
        totals.refused,
        totals.input,
        totals.matched,
        totals.evicted,
        totals.evicted_nodes,
        config.policy.name(),
        config.page_size,
        config.capacity_tokens
    );
}

/// The policy of that name with the parameters of a JSON object, in SGLang's spelling.
///
/// # Errors
/// If the policy or a parameter is not known, or a value is no whole number from 0 on.
pub fn policy(name: &str, config: Option<&str>) -> Result<TreePolicy> {
    let mut policy: TreePolicy = name
        .parse()
        .map_err(|e: kvwise_cache::Error| Error::input(format!("--policy: {e}")))?;
    let Some(config) = config.filter(|text| !text.trim().is_empty()) else {
        return Ok(policy);
    };
    let bad = |what: String| Error::input(format!("--policy-config: {what}"));
    let fields: Map<String, Value> =
        serde_json::from_str(config).map_err(|e| bad(format!("not a JSON object: {e}")))?;
    for (field, value) in &fields {
        let slot = match (&mut policy, field.as_str()) {
            (TreePolicy::Slru { protected_threshold }, "protected_threshold") => protected_threshold,
            (TreePolicy::Tlru { threshold, .. }, "threshold") => threshold,
            (
                TreePolicy::Tlru {
                    next_prompt_estimate, ..
                },
                "next_prompt_estimate",
            ) => next_prompt_estimate,
            (policy, _) => {
                return Err(bad(format!("policy {} has no parameter \"{field}\"", policy.name())).hint(
                    "slru has protected_threshold; tlru has threshold and next_prompt_estimate, in tokens",
                ));
            }
        };
        *slot = value
            .as_u64()
            .ok_or_else(|| bad(format!("{field} is {value}, expected a whole number from 0 on")))?;
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_take_their_parameters_and_refuse_others() {
        assert_eq!(policy("lru", None).unwrap(), TreePolicy::Lru);
        assert_eq!(
            policy("tlru", Some("{\"threshold\": 7}")).unwrap(),
            TreePolicy::Tlru {
                threshold: 7,
                next_prompt_estimate: 0
            }
        );
        for (name, config, word) in [
            ("arc", None, "arc"),
            ("lru", Some("{\"threshold\": 1}"), "threshold"),
            ("slru", Some("{\"protected_threshold\": -1}"), "-1"),
            ("slru", Some("[1]"), "object"),
        ] {
            let error = policy(name, config).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
