//! Rules about the block pool: too small, too large, or not what limits the batch.

use super::facts::Facts;
use super::{CODE, Draft, GUIDE, percent, suggest};
use crate::report::session::Suggestion;
use crate::report::session::finding::{Confidence, Severity};

/// What relieves a full pool: a smaller element if the cache has large ones, otherwise more memory.
pub(super) fn more_room(f: &Facts) -> Suggestion {
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

pub(super) fn pressure(f: &Facts, out: &mut Vec<Draft>) {
    let preemptions = f.preemptions.unwrap_or(0.0);
    let full = f.usage_p95.or(f.usage_max).is_some_and(|u| u > 0.9);
    let waiting = f.waiting_mean.unwrap_or(0.0);
    if preemptions > 0.0 {
        let finished = f.finished.unwrap_or(0.0).max(1.0);
        let share = preemptions / finished;
        out.push(Draft {
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
        });
    }
    if full && (waiting >= 1.0 || preemptions > 0.0) {
        out.push(Draft {
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
        });
    } else if !full && waiting >= 1.0 {
        out.push(queueing(f, waiting));
    }
}

/// Requests wait, and it is not for want of blocks as far as is known.
fn queueing(f: &Facts, waiting: f64) -> Draft {
    let at_limit = matches!((f.running_max, f.max_num_seqs), (Some(r), Some(m)) if r >= m);
    let usage = f.usage_p95.or(f.usage_max);
    let title = match (usage, f.is_llamacpp) {
        (_, true) => "requests wait for a slot of the server",
        (None, _) => "requests wait; the server does not say how full its cache is",
        _ if at_limit => "requests wait although blocks are free: the batch is at max_num_seqs",
        _ => "requests wait although blocks are free: the batch or its token budget is the limit",
    };
    let mut evidence = format!("{waiting:.1} waiting on average");
    if let Some(usage) = f.usage_max {
        evidence.push_str(&format!(", usage at most {}", percent(usage)));
    }
    if let Some(running) = f.running_max {
        evidence.push_str(&format!(", at most {running:.0} running"));
    }
    if let Some(queue_ms) = f.queue_p50_ms {
        evidence.push_str(&format!(", median queue time {queue_ms:.0} ms"));
    }
    let twice = f.running_max.map(|r| (r * 2.0).max(2.0));
    let suggestion = match twice {
        Some(n) if f.is_llamacpp => Some(suggest(
            "--parallel",
            &format!("{n:.0}"),
            "the context is divided among the slots unless they share it (--kv-unified)",
        )),
        Some(n) if f.is_vllm => Some(suggest(
            "--max-num-seqs",
            &format!("{:.0}", n.max(16.0)),
            "latency of each token grows with the batch",
        )),
        _ => None,
    };
    Draft {
        rule: "queueing",
        severity: Severity::Problem,
        title: title.to_owned(),
        evidence,
        threshold: "more than 1 waiting on average with usage below 90 % or unknown",
        source: if f.is_llamacpp {
            "llama.cpp b11434 tools/server/server-context.cpp: a request without a free slot is deferred"
        } else {
            "vLLM 0.32.0 vllm/v1/core/sched/scheduler.py: admission stops at max_num_seqs, the token budget, or blocks"
        },
        confidence: if at_limit || f.is_llamacpp {
            Confidence::High
        } else {
            Confidence::Medium
        },
        suggestion,
    }
}

pub(super) fn slack(f: &Facts, out: &mut Vec<Draft>) {
    let (Some(max), true) = (f.usage_max, f.seconds >= 60.0) else {
        return;
    };
    let busy = f.finished.unwrap_or(0.0) > 0.0;
    let waits = f.waiting_mean.unwrap_or(0.0) >= 1.0;
    if busy && max < 0.4 && !waits {
        out.push(Draft {
            rule: "pool_idle",
            severity: Severity::Info,
            title: "requests never hold much of the pool; what they leave serves as prefix cache".to_owned(),
            evidence: format!("usage at most {}, in {:.0} s", percent(max), f.seconds),
            threshold: "below 40 %; cached blocks that nobody uses count as free, so low usage alone is no waste",
            source: GUIDE,
            confidence: Confidence::Medium,
            suggestion: None,
        });
    }
    let (Some(capacity), Some(seqs), Some(prompt), Some(output)) =
        (f.capacity_tokens, f.max_num_seqs, f.prompt_p99, f.output_p99)
    else {
        return;
    };
    let reachable = seqs * (prompt + output);
    if reachable < capacity * 0.8 {
        out.push(Draft {
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
        });
    }
}
