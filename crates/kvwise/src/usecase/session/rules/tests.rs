use std::collections::BTreeSet;

use super::*;
use crate::report::session::{
    About, ContentReport, Distribution, EngineReport, EventReport, EvictionReport, GapReport, ProbeReport,
    Spread,
};
use crate::usecase::session::gains::Gains;

/// Computes nothing.
struct NotComputed;

impl GainCalculator for NotComputed {
    fn gain(&self, _: &Facts, _: &Suggestion) -> Option<Gain> {
        None
    }
}

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
    assert!(found[0].suggestion.is_none(), "its size is not known");
    let not_sized = found[0].not_sized.as_deref().unwrap();
    assert!(
        not_sized.starts_with("--max-num-seqs 16 may help") && not_sized.contains("kvwise run"),
        "{not_sized}"
    );
}

#[test]
fn requests_that_wait_for_a_slot_of_llama_cpp_are_not_said_to_wait_before_free_blocks() {
    let queue = EngineReport {
        engine: "llamacpp".to_owned(),
        waiting_requests: spread(2.0),
        running_requests: spread(4.0),
        ..vllm()
    };
    let found = findings(&report(queue), &NotComputed);
    assert_eq!(found[0].title, "requests wait for a slot of the server");
    assert_eq!(found[0].evidence, "2.0 waiting on average, at most 4 running");
    assert!(found[0].source.starts_with("llama.cpp"));
    assert!(
        found[0]
            .not_sized
            .as_deref()
            .unwrap()
            .starts_with("--parallel 8 may help")
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
        fn gain(&self, _: &Facts, s: &Suggestion) -> Option<Gain> {
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

fn lengths(mean: f64) -> Distribution {
    Distribution {
        count: 100.0,
        mean,
        p50: mean,
        p90: mean,
        p99: mean,
    }
}

/// A server recorded by its metrics, with the figures that arithmetic needs.
fn measured() -> EngineReport {
    let mut engine = EngineReport {
        capacity_tokens: Some(41_000.0),
        ..vllm()
    };
    for (name, mean) in [
        ("request_prompt_tokens", 700.0),
        ("request_generation_tokens", 100.0),
    ] {
        engine.distributions.insert(name.to_owned(), lengths(mean));
    }
    for (key, value) in [
        ("cache_dtype", "auto"),
        ("block_size", "128"),
        ("enable_prefix_caching", "True"),
    ] {
        engine.config.insert(key.to_owned(), value.to_owned());
    }
    engine
}

/// A server recorded from inside, in which most that can be wrong is.
fn probed() -> ProbeReport {
    ProbeReport {
        usable_blocks: 10_000,
        prefix_caching: true,
        finished_requests: 100,
        steps: 1000,
        graph_replays: 500,
        hook_errors: 3,
        settings: serde_json::json!({"block_size": 16, "max_num_seqs": 4, "max_model_len": 32768, "cache_dtype": "fp8",
            "gpu_memory_utilization": 0.9, "groups": [{"kind": "FullAttentionSpec"}]}),
        prompt_tokens: Some(lengths(700.0)),
        output_tokens: Some(lengths(100.0)),
        memory_bytes: [
            ("available_kv_cache", 20),
            ("weights", 14),
            ("peak_activation", 1),
            ("non_torch", 1),
        ]
        .map(|(name, gb)| (name.to_owned(), gb * 1_000_000_000))
        .into(),
        evictions: EvictionReport {
            with_content: 50,
            lifetime_s: Some(lengths(0.5)),
            idle_s: Some(lengths(0.2)),
            never_hit_share: Some(0.9),
            ..EvictionReport::default()
        },
        query_tokens: 100_000,
        prefix_hit_rate: Some(0.3),
        ..ProbeReport::default()
    }
}

/// Recordings that together set off every rule.
fn scenarios() -> Vec<SessionReport> {
    let with = |change: fn(&mut EngineReport)| {
        let mut engine = measured();
        change(&mut engine);
        report(engine)
    };
    let mut several = with(|_| {});
    several.contents = vec![ContentReport {
        target: "tcp://a:5557".to_owned(),
        block_tokens: 16,
        cached: 1,
        stored: 100,
        removed: 90,
        recomputed: 50,
        missed_batches: 0,
        lifetime_s: None,
    }];
    several.gaps = vec![GapReport {
        target: "a".to_owned(),
        start: String::new(),
        duration_ms: 1000,
        failures: 3,
        reason: "refused".to_owned(),
    }];
    several.events = vec![EventReport {
        time: String::new(),
        target: "a".to_owned(),
        kind: "restart".to_owned(),
        detail: String::new(),
    }];
    let mut inside = report(vllm());
    inside.engines.clear();
    inside.probes = vec![probed()];
    vec![
        several,
        inside,
        with(|e| {
            e.preemptions = Some(50.0);
            e.usage_ratio = spread(0.97);
            e.waiting_requests = spread(4.0);
        }),
        with(|e| {
            e.usage_ratio = spread(0.3);
            e.waiting_requests = spread(4.0);
            e.running_requests = spread(8.0);
        }),
        with(|e| {
            e.usage_ratio = spread(0.1);
            e.prefix_hit_rate = Some(0.01);
            e.prefix_query_tokens = Some(1e6);
        }),
        with(|e| {
            e.prefix_hit_rate = Some(0.8);
            e.prefix_query_tokens = Some(1e6);
        }),
        with(|e| {
            e.config
                .insert("enable_prefix_caching".to_owned(), "False".to_owned());
        }),
        with(|e| {
            e.distributions
                .insert("request_prompt_tokens".to_owned(), lengths(50.0));
        }),
    ]
}

#[test]
fn every_rule_says_what_it_saw_and_every_change_it_suggests_has_a_computed_gain() {
    let mut seen = BTreeSet::new();
    let mut flags = BTreeSet::new();
    for report in scenarios() {
        for f in findings(&report, &Gains::of_figures()) {
            assert!(RULES.contains(&f.rule), "{}: not in the list of rules", f.rule);
            for (field, text) in [
                ("title", f.title.as_str()),
                ("evidence", &f.evidence),
                ("threshold", f.threshold),
                ("source", f.source),
            ] {
                assert!(text.len() > 2, "{}: {field} is {text:?}", f.rule);
            }
            assert!(
                f.threshold == "any"
                    || f.evidence.contains(|c: char| c.is_ascii_digit())
                    || f.rule == "prefix_caching_off",
                "{}: no figure in {:?}",
                f.rule,
                f.evidence
            );
            match (&f.suggestion, &f.gain, &f.not_sized) {
                (Some(s), Some(g), None) => {
                    assert!(g.text.contains("->") && g.basis.len() > 20, "{}: {g:?}", f.rule);
                    flags.insert(s.flag.clone());
                }
                (None, None, _) => {}
                other => panic!("{}: a change without its size: {other:?}", f.rule),
            }
            seen.insert(f.rule);
        }
    }
    let missing: Vec<&&str> = RULES.iter().filter(|r| !seen.contains(**r)).collect();
    assert!(missing.is_empty(), "no recording sets off {missing:?}");
    let expected = [
        "--block-size",
        "--gpu-memory-utilization",
        "--kv-cache-dtype",
        "--max-num-seqs",
    ];
    assert_eq!(flags.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}
