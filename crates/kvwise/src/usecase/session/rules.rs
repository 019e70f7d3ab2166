//! Explicit rules from figures to findings.
//!
//! Thresholds begin with those of the vLLM KV-cache profiling guide (usage 60 to 80 %, hit rate 10/30/50 %, lifetimes
//! 5 s and 60 s, graph coverage 90 %, preemptions 10 %), corrected where the engine's code contradicts them; each
//! finding names which.

use crate::report::session::finding::{Confidence, Severity};
use crate::report::session::{EngineReport, Finding, Gain, ProbeReport, SessionReport, Suggestion};

/// Computes what a change would bring on the recorded traffic. Whoever can (plan, curve, simulate) implements it;
/// a gain that was not computed is never printed.
pub trait GainCalculator {
    /// The gain of `suggestion` on the traffic of `report`, or `None` if it cannot be computed.
    fn gain(&self, report: &SessionReport, suggestion: &Suggestion) -> Option<Gain>;
}

/// Computes nothing.
#[derive(Debug, Clone, Copy)]
pub struct NotComputed;

impl GainCalculator for NotComputed {
    fn gain(&self, _: &SessionReport, _: &Suggestion) -> Option<Gain> {
        None
    }
}

const GUIDE: &str = "vLLM KV-cache profiling guide";
const CODE: &str = "vLLM 0.32.0 vllm/v1/core";

/// The figures that the rules look at: one engine, from scrapes or from the probe.
#[derive(Debug, Clone, Default)]
struct Facts {
    name: String,
    is_vllm: bool,
    seconds: f64,
    usage_p95: Option<f64>,
    usage_max: Option<f64>,
    waiting_mean: Option<f64>,
    running_max: Option<f64>,
    preemptions: Option<f64>,
    finished: Option<f64>,
    hit_rate: Option<f64>,
    query_tokens: Option<f64>,
    capacity_tokens: Option<f64>,
    block_size: Option<f64>,
    max_num_seqs: Option<f64>,
    max_model_len: Option<f64>,
    prompt_p99: Option<f64>,
    prompt_mean: Option<f64>,
    output_p99: Option<f64>,
    output_mean: Option<f64>,
    queue_p50_ms: Option<f64>,
    cache_dtype: Option<String>,
    prefix_caching: Option<bool>,
    lifetime_p50_s: Option<f64>,
    idle_p50_s: Option<f64>,
    evicted_with_content: Option<f64>,
    never_hit_share: Option<f64>,
    graph_share: Option<f64>,
}

fn scraped(e: &EngineReport) -> Facts {
    let d = |name: &str| e.distributions.get(name);
    let config = |key: &str| e.config.get(key).map(String::as_str);
    Facts {
        name: format!("{} {} at {}", e.engine, e.model, e.target),
        is_vllm: e.engine == "vllm",
        seconds: e.duration_s,
        usage_p95: e.usage_ratio.map(|u| u.p95),
        usage_max: e.usage_ratio.map(|u| u.max),
        waiting_mean: e.waiting_requests.map(|w| w.mean),
        running_max: e.running_requests.map(|r| r.max),
        preemptions: e.preemptions,
        finished: e.finished_requests,
        hit_rate: e.prefix_hit_rate,
        query_tokens: e.prefix_query_tokens,
        capacity_tokens: e.capacity_tokens,
        block_size: config("block_size").and_then(|v| v.parse().ok()),
        prompt_p99: d("request_prompt_tokens").map(|d| d.p99),
        prompt_mean: d("request_prompt_tokens").map(|d| d.mean),
        output_p99: d("request_generation_tokens").map(|d| d.p99),
        output_mean: d("request_generation_tokens").map(|d| d.mean),
        queue_p50_ms: d("queue_ms").map(|d| d.p50),
        cache_dtype: config("cache_dtype").map(str::to_owned),
        prefix_caching: config("enable_prefix_caching").map(|v| v == "True"),
        lifetime_p50_s: d("block_lifetime_s").map(|d| d.p50),
        idle_p50_s: d("block_idle_s").map(|d| d.p50),
        ..Facts::default()
    }
}

fn probed(p: &ProbeReport, seconds: f64) -> Facts {
    let int = |key: &str| p.settings[key].as_f64();
    let usable = p.usable_blocks as f64;
    let block_size = int("block_size");
    Facts {
        name: format!("vLLM {} (process {})", p.vllm_version, p.pid),
        is_vllm: true,
        seconds,
        usage_p95: p.usage_ratio.map(|u| u.p95),
        waiting_mean: p.waiting_requests.map(|w| w.mean),
        running_max: p.running_requests.map(|r| r.max),
        usage_max: (usable > 0.0).then(|| p.peak_used_blocks as f64 / usable),
        preemptions: Some(p.preemptions as f64),
        finished: Some(p.finished_requests as f64),
        hit_rate: p.prefix_hit_rate,
        query_tokens: Some(p.query_tokens as f64),
        capacity_tokens: block_size.map(|b| b * usable),
        block_size,
        max_num_seqs: int("max_num_seqs"),
        max_model_len: int("max_model_len"),
        prompt_p99: p.prompt_tokens.map(|d| d.p99),
        prompt_mean: p.prompt_tokens.map(|d| d.mean),
        output_p99: p.output_tokens.map(|d| d.p99),
        output_mean: p.output_tokens.map(|d| d.mean),
        cache_dtype: p.settings["cache_dtype"].as_str().map(str::to_owned),
        prefix_caching: Some(p.prefix_caching),
        lifetime_p50_s: p.evictions.lifetime_s.map(|d| d.p50),
        idle_p50_s: p.evictions.idle_s.map(|d| d.p50),
        evicted_with_content: Some(p.evictions.with_content as f64),
        never_hit_share: p.evictions.never_hit_share,
        graph_share: (p.graph_replays > 0 && p.steps > 0).then(|| p.graph_replays as f64 / p.steps as f64),
        ..Facts::default()
    }
}

/// Every finding of a report, the most important first, with the gains that `calculator` can compute.
pub fn findings(report: &SessionReport, calculator: &dyn GainCalculator) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut all: Vec<Facts> = report.engines.iter().map(scraped).collect();
    all.extend(report.probes.iter().map(|p| probed(p, report.session.duration_s)));
    let several = all.len() > 1;
    for facts in &all {
        let mut here = Vec::new();
        pressure(facts, &mut here);
        slack(facts, &mut here);
        prefix_cache(facts, &mut here);
        lengths(facts, &mut here);
        graphs(facts, &mut here);
        if several {
            for f in &mut here {
                f.title = format!("{}: {}", facts.name, f.title);
            }
        }
        found.append(&mut here);
    }
    recomputation(report, &mut found);
    recording(report, &mut found);
    for finding in &mut found {
        finding.gain = finding
            .suggestion
            .as_ref()
            .and_then(|s| calculator.gain(report, s));
    }
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

/// What relieves a full pool: a smaller element if the cache has large ones, otherwise more memory.
fn more_room(f: &Facts) -> Suggestion {
    match f.cache_dtype.as_deref() {
        Some("auto" | "bfloat16" | "float16" | "half") if f.is_vllm => suggest(
            "--kv-cache-dtype",
            "fp8",
            "check the model's answers; needs a GPU and attention backend with fp8 KV",
        ),
        _ if f.is_vllm => suggest(
            "--gpu-memory-utilization",
            "0.95",
            "only if nothing else uses the GPU's memory",
        ),
        _ => suggest(
            "--mem-fraction-static",
            "0.9",
            "only if activations and CUDA graphs leave that much",
        ),
    }
}

fn pressure(f: &Facts, out: &mut Vec<Finding>) {
    let preemptions = f.preemptions.unwrap_or(0.0);
    let full = f.usage_p95.or(f.usage_max).is_some_and(|u| u > 0.9);
    let waiting = f.waiting_mean.unwrap_or(0.0);
    if preemptions > 0.0 {
        let finished = f.finished.unwrap_or(0.0).max(1.0);
        let share = preemptions / finished;
        out.push(Finding {
            rule: "preemptions",
            severity: if share > 0.1 {
                Severity::Problem
            } else {
                Severity::Improve
            },
            title: "requests are thrown out of the batch for want of KV blocks and computed again".to_owned(),
            evidence: format!(
                "{preemptions:.0} preemptions for {finished:.0} finished requests ({})",
                percent(share)
            ),
            threshold: "a problem above 10 %, worth a look above 0",
            source: GUIDE,
            confidence: Confidence::High,
            suggestion: Some(more_room(f)),
            gain: None,
        });
    }
    if full && (waiting >= 1.0 || preemptions > 0.0) {
        out.push(Finding {
            rule: "pool_full",
            severity: Severity::Problem,
            title: "the KV pool is full while requests wait or are preempted: memory limits the batch"
                .to_owned(),
            evidence: format!(
                "usage {} at {}, {waiting:.1} waiting on average",
                percent(f.usage_p95.or(f.usage_max).unwrap_or(0.0)),
                if f.usage_p95.is_some() {
                    "the 95th percentile"
                } else {
                    "its peak"
                },
            ),
            threshold: "usage above 90 % with requests waiting (full without a queue is good use of memory)",
            source: GUIDE,
            confidence: Confidence::High,
            suggestion: Some(more_room(f)),
            gain: None,
        });
    } else if !full && waiting >= 1.0 {
        let at_limit = match (f.running_max, f.max_num_seqs) {
            (Some(r), Some(m)) => r >= m,
            _ => false,
        };
        out.push(Finding {
            rule: "queueing",
            severity: Severity::Problem,
            title: if at_limit {
                "requests wait although blocks are free: the batch is at max_num_seqs".to_owned()
            } else {
                "requests wait although blocks are free: the batch or its token budget is the limit".to_owned()
            },
            evidence: format!(
                "{waiting:.1} waiting on average, usage at most {}{}{}",
                percent(f.usage_max.unwrap_or(0.0)),
                f.running_max.map_or_else(String::new, |r| format!(", at most {r:.0} running")),
                f.queue_p50_ms
                    .map_or_else(String::new, |q| format!(", median queue time {q:.0} ms")),
            ),
            threshold: "more than 1 waiting on average with usage below 90 %",
            source: "vLLM 0.32.0 vllm/v1/core/sched/scheduler.py: admission stops at max_num_seqs, the token budget, or blocks",
            confidence: if at_limit { Confidence::High } else { Confidence::Medium },
            suggestion: f
                .running_max
                .filter(|_| f.is_vllm)
                .map(|r| suggest("--max-num-seqs", &format!("{:.0}", (r * 2.0).max(16.0)), "latency of each token grows with the batch")),
            gain: None,
        });
    }
}

fn slack(f: &Facts, out: &mut Vec<Finding>) {
    let (Some(max), true) = (f.usage_max, f.seconds >= 60.0) else {
        return;
    };
    let busy = f.finished.unwrap_or(0.0) > 0.0;
    let waits = f.waiting_mean.unwrap_or(0.0) >= 1.0;
    if busy && max < 0.4 && !waits {
        out.push(Finding {
            rule: "pool_idle",
            severity: Severity::Info,
            title: "requests never hold much of the pool; what they leave serves as prefix cache".to_owned(),
            evidence: format!("usage at most {}, in {:.0} s", percent(max), f.seconds),
            threshold: "below 40 %; cached blocks that nobody uses count as free, so low usage alone is no waste",
            source: GUIDE,
            confidence: Confidence::Medium,
            suggestion: None,
            gain: None,
        });
    }
    let (Some(capacity), Some(seqs), Some(prompt), Some(output)) =
        (f.capacity_tokens, f.max_num_seqs, f.prompt_p99, f.output_p99)
    else {
        return;
    };
    let reachable = seqs * (prompt + output);
    if reachable < capacity * 0.8 {
        out.push(Finding {
            rule: "pool_beyond_max_num_seqs",
            severity: Severity::Improve,
            title: "max_num_seqs requests of the longest observed length cannot fill the pool".to_owned(),
            evidence: format!(
                "{seqs:.0} x ({prompt:.0} + {output:.0}) tokens (99th percentiles) = {reachable:.0} of {capacity:.0} tokens"
            ),
            threshold: "below 80 % of the pool",
            source: CODE,
            confidence: Confidence::Medium,
            suggestion: Some(suggest(
                "--max-num-seqs",
                &format!("{:.0}", (capacity / (prompt + output)).floor().max(1.0)),
                "the rest of the pool is not lost: it keeps prefixes",
            )),
            gain: None,
        });
    }
}

fn prefix_cache(f: &Facts, out: &mut Vec<Finding>) {
    if f.prefix_caching == Some(false) {
        out.push(Finding {
            rule: "prefix_caching_off",
            severity: Severity::Improve,
            title: "prefix caching is switched off".to_owned(),
            evidence: "enable_prefix_caching is False".to_owned(),
            threshold: "on is vLLM's default",
            source: CODE,
            confidence: Confidence::Medium,
            suggestion: Some(suggest(
                "--enable-prefix-caching",
                "",
                "of no use where no two prompts begin alike",
            )),
            gain: None,
        });
        return;
    }
    let (Some(rate), Some(queries)) = (f.hit_rate, f.query_tokens) else {
        return;
    };
    if queries < 10_000.0 {
        return;
    }
    let evidence = format!("{} of {queries:.0} looked-up tokens were found", percent(rate));
    let evicts = f.evicted_with_content.unwrap_or(0.0) > 0.0 || f.idle_p50_s.is_some();
    if rate < 0.1 {
        out.push(Finding {
            rule: "hit_rate_low",
            severity: Severity::Info,
            title: "few prompts begin like an earlier one that is still cached".to_owned(),
            evidence,
            threshold: "low below 10 %, high above 50 %",
            source: GUIDE,
            confidence: if evicts {
                Confidence::Low
            } else {
                Confidence::Medium
            },
            suggestion: None,
            gain: None,
        });
    } else if rate > 0.5 {
        out.push(Finding {
            rule: "hit_rate_high",
            severity: Severity::Info,
            title: "the prefix cache saves most of the prompt work".to_owned(),
            evidence,
            threshold: "high above 50 %",
            source: GUIDE,
            confidence: Confidence::High,
            suggestion: None,
            gain: None,
        });
    }
    if let (Some(life), Some(lost)) = (f.lifetime_p50_s, f.evicted_with_content)
        && lost > 0.0
        && life < 5.0
    {
        let never = f.never_hit_share.unwrap_or(0.0);
        out.push(Finding {
                rule: "content_evicted_early",
                severity: Severity::Improve,
                title: "cached content is thrown away within seconds".to_owned(),
                evidence: format!(
                    "{lost:.0} recorded evictions of cached content, median lifetime {life:.2} s, {} never hit",
                    percent(never)
                ),
                threshold: "median below 5 s, counting only blocks with cached content: vLLM's own histogram also \
                            counts the unfilled tails of requests, which are reused at once and cost nothing",
                source: GUIDE,
                confidence: Confidence::Medium,
                suggestion: Some(more_room(f)),
                gain: None,
            });
    }
}

fn lengths(f: &Facts, out: &mut Vec<Finding>) {
    if let (Some(limit), Some(prompt), Some(output)) = (f.max_model_len, f.prompt_p99, f.output_p99)
        && prompt + output < limit * 0.25
    {
        out.push(Finding {
                rule: "max_model_len",
                severity: Severity::Info,
                title: "requests are far shorter than max_model_len".to_owned(),
                evidence: format!(
                    "99th percentiles: prompt {prompt:.0} and output {output:.0} of {limit:.0} tokens"
                ),
                threshold: "below a quarter. Blocks are given out as a request grows: a smaller max_model_len frees no \
                            KV memory (the guide says otherwise); it matters only where the engine refuses to start",
                source: CODE,
                confidence: Confidence::High,
                suggestion: None,
                gain: None,
            });
    }
    if let (Some(block), Some(prompt), Some(output)) = (f.block_size, f.prompt_mean, f.output_mean) {
        let length = prompt + output;
        let waste = block / 2.0 / length;
        if length > 0.0 && waste > 0.05 {
            out.push(Finding {
                rule: "block_size",
                severity: Severity::Improve,
                title: "the unfilled last block of each request is a large part of what it holds".to_owned(),
                evidence: format!(
                    "half a block of {block:.0} tokens is {} of a mean request of {length:.0} tokens",
                    percent(waste)
                ),
                threshold: "above 5 %",
                source: GUIDE,
                confidence: Confidence::Medium,
                suggestion: f.is_vllm.then(|| {
                    suggest(
                        "--block-size",
                        "16",
                        "if the attention backend supports it; smaller blocks also match shorter prefixes",
                    )
                }),
                gain: None,
            });
        }
    }
}

fn graphs(f: &Facts, out: &mut Vec<Finding>) {
    if let Some(share) = f.graph_share.filter(|s| *s < 0.9) {
        out.push(Finding {
            rule: "graph_coverage",
            severity: Severity::Improve,
            title: "many steps run without a CUDA graph".to_owned(),
            evidence: format!("{} of the steps replayed a graph", percent(share)),
            threshold: "below 90 %; steps with long prefills run without a full graph by design",
            source: GUIDE,
            confidence: Confidence::Low,
            suggestion: None,
            gain: None,
        });
    }
}

fn recomputation(report: &SessionReport, out: &mut Vec<Finding>) {
    for c in &report.contents {
        let share = c.recomputed as f64 / (c.stored.max(1)) as f64;
        if c.recomputed > 0 && share > 0.05 {
            out.push(Finding {
                rule: "evicted_then_recomputed",
                severity: Severity::Improve,
                title:
                    "blocks are computed again that had been cached and evicted: a larger pool would have hit"
                        .to_owned(),
                evidence: format!(
                    "{} of {} stored block contents ({}), {} tokens",
                    c.recomputed,
                    c.stored,
                    percent(share),
                    c.recomputed * c.block_tokens
                ),
                threshold: "above 5 % of what is stored",
                source: "KV events: the same content stored again after its removal",
                confidence: Confidence::High,
                suggestion: report.engines.first().map(|e| more_room(&scraped(e))),
                gain: None,
            });
        }
    }
}

fn recording(report: &SessionReport, out: &mut Vec<Finding>) {
    let failures: i64 = report.gaps.iter().map(|g| g.failures).sum();
    if failures > 0 {
        out.push(Finding {
            rule: "gaps",
            severity: Severity::Info,
            title: "the recording has gaps".to_owned(),
            evidence: format!("{failures} failed scrapes in {} stretches", report.gaps.len()),
            threshold: "any",
            source: "the recording",
            confidence: Confidence::High,
            suggestion: None,
            gain: None,
        });
    }
    let restarts = report.events.iter().filter(|e| e.kind == "restart").count();
    if restarts > 0 {
        out.push(Finding {
            rule: "restarts",
            severity: Severity::Problem,
            title: "a server was started anew while it was recorded".to_owned(),
            evidence: format!("{restarts} restart(s)"),
            threshold: "any",
            source: "process_start_time_seconds, or counters that began again",
            confidence: Confidence::High,
            suggestion: None,
            gain: None,
        });
    }
    for probe in &report.probes {
        if probe.hook_errors > 0 {
            out.push(Finding {
                rule: "probe_errors",
                severity: Severity::Info,
                title: "hooks of the probe failed in this engine version".to_owned(),
                evidence: format!("{} errors in process {}", probe.hook_errors, probe.pid),
                threshold: "any",
                source: "the probe's notes",
                confidence: Confidence::High,
                suggestion: None,
                gain: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::session::{About, Spread};

    fn report(engine: EngineReport) -> SessionReport {
        SessionReport {
            schema: "kvwise.session_report/1",
            session: About {
                id: "s".to_owned(),
                made_by: "attach".to_owned(),
                targets: vec![],
                start: String::new(),
                duration_s: 300.0,
                complete: true,
            },
            engines: vec![engine],
            probes: vec![],
            contents: vec![],
            gaps: vec![],
            events: vec![],
            notes: vec![],
            findings: vec![],
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the fields that it fills are optional")]
    fn spread(value: f64) -> Option<Spread> {
        Some(Spread {
            mean: value,
            p95: value,
            max: value,
        })
    }

    fn rules_of(engine: EngineReport) -> Vec<&'static str> {
        findings(&report(engine), &NotComputed)
            .iter()
            .map(|f| f.rule)
            .collect()
    }

    fn vllm() -> EngineReport {
        EngineReport {
            engine: "vllm".to_owned(),
            duration_s: 300.0,
            finished_requests: Some(100.0),
            ..EngineReport::default()
        }
    }

    #[test]
    fn a_full_pool_is_a_problem_only_when_somebody_waits() {
        let full = EngineReport {
            usage_ratio: spread(0.97),
            waiting_requests: spread(0.0),
            preemptions: Some(0.0),
            ..vllm()
        };
        assert_eq!(rules_of(full.clone()), [""; 0]);
        let waiting = EngineReport {
            waiting_requests: spread(4.0),
            ..full.clone()
        };
        assert_eq!(rules_of(waiting), ["pool_full"]);
        let preempting = EngineReport {
            preemptions: Some(12.0),
            ..full
        };
        assert_eq!(rules_of(preempting), ["preemptions", "pool_full"]);
    }

    #[test]
    fn a_queue_before_free_blocks_is_not_blamed_on_memory() {
        let queue = EngineReport {
            usage_ratio: spread(0.3),
            waiting_requests: spread(9.0),
            running_requests: spread(8.0),
            ..vllm()
        };
        let found = findings(&report(queue), &NotComputed);
        assert_eq!(found.iter().map(|f| f.rule).collect::<Vec<_>>(), ["queueing"]);
        assert_eq!(
            found[0].suggestion.as_ref().map(|s| s.flag.as_str()),
            Some("--max-num-seqs")
        );
    }

    #[test]
    fn low_usage_and_few_hits_are_information_not_alarms() {
        let idle = EngineReport {
            usage_ratio: spread(0.1),
            waiting_requests: spread(0.0),
            prefix_hit_rate: Some(0.02),
            prefix_query_tokens: Some(1e6),
            ..vllm()
        };
        let found = findings(&report(idle), &NotComputed);
        assert_eq!(
            found.iter().map(|f| f.rule).collect::<Vec<_>>(),
            ["pool_idle", "hit_rate_low"]
        );
        assert!(
            found
                .iter()
                .all(|f| f.severity == Severity::Info && f.suggestion.is_none())
        );
    }

    #[test]
    fn gains_come_from_the_calculator_or_not_at_all() {
        struct Fixed;
        impl GainCalculator for Fixed {
            fn gain(&self, _: &SessionReport, s: &Suggestion) -> Option<Gain> {
                (s.flag == "--kv-cache-dtype").then(|| Gain {
                    text: "twice the pool".to_owned(),
                    basis: "test".to_owned(),
                })
            }
        }
        let mut engine = EngineReport {
            preemptions: Some(50.0),
            usage_ratio: spread(0.5),
            ..vllm()
        };
        engine.config.insert("cache_dtype".to_owned(), "auto".to_owned());
        let found = findings(&report(engine.clone()), &Fixed);
        assert_eq!(found[0].severity, Severity::Problem);
        assert!(found[0].gain.is_some());
        assert!(findings(&report(engine), &NotComputed)[0].gain.is_none());
    }
}
