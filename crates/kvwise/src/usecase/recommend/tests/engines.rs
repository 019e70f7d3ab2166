//! Other engines, drafters besides the model's own, and replicas over several machines.

use kvwise_sim::simulate::EngineConfig;

use super::super::super::served::{Prepared, prepare};
use super::super::untimed;
use super::*;
use crate::report::recommend::Deployed;

/// A small question that SGLang, lookups and a draft model may answer.
fn with_everything(rate: f64, tpot_ms: f64) -> Question {
    let mut q = question(rate, tpot_ms, &["h100", "l40s"]);
    q.trace = q.trace.select(&(0..30).collect::<Vec<u32>>());
    q.max_gpus = 2;
    q.engines = vec!["vllm", "sglang"];
    q.drafters = ["ngram=0.3", "draft_model:Qwen/Qwen3-0.6B=0.6"]
        .map(|text| Drafter::given(text, None).unwrap())
        .to_vec();
    q.base.model = Some("Qwen/Qwen3-8B".to_owned());
    q
}

#[test]
fn trying_every_engine_and_drafter_finds_nothing_cheaper() {
    for (rate, tpot_ms, thorough) in [(8.0, 30.0, false), (4.0, 6.0, true)] {
        let mut q = with_everything(rate, tpot_ms);
        q.thorough = thorough;
        if thorough {
            q.gpus_from = vec!["h100".to_owned()];
            q.max_gpus = 1;
            q.trace = q.trace.select(&(0..12).collect::<Vec<u32>>());
        }
        let found = recommend(&q).unwrap().recommended.map(|r| r.usd_per_hour);
        let best = exhaustive(&q).map(|b| b.0);
        match (found, best) {
            (Some(found), Some(best)) => assert!((found - best).abs() < 1e-9, "{found} and {best}"),
            (found, best) => assert_eq!(found, best),
        }
    }
}

/// The 90th percentile of what a recommendation's words do when they are simulated as a user would.
fn again(q: &Question, best: &Deployed, acceptance: Option<f64>) -> f64 {
    let deployment = from_words(&q.base, &best.gpu, &best.flags);
    let workload = Workload {
        trace: Cow::Borrowed(&q.trace),
        arrivals: kvwise_sim::simulate::Arrivals::Trace {
            speed: 1.0 / best.replicas as f64,
        },
    };
    let serving = Serving {
        acceptance_rate: acceptance,
        network: q.network.clone(),
        ..Serving::default()
    };
    let outcome = simulate(&deployment, &serving, &workload, q.objectives.slo).unwrap();
    assert_eq!(outcome.refused, None);
    outcome.summary.tpot_ms.p90
}

/// A mixture of experts with prediction modules of its own, on cards that SGLang may group.
fn with_groups(rate: f64, tpot_ms: f64) -> Question {
    let mut q = question(rate, tpot_ms, &["h200"]);
    q.base.model = Some("zai-org/GLM-4.5-Air".to_owned());
    q.trace = q.trace.select(&(0..12).collect::<Vec<u32>>());
    q.max_gpus = 4;
    q.engines = vec!["sglang"];
    q.acceptance = Some(0.8);
    q
}

#[test]
fn trying_all_groups_and_drafts_of_sglang_finds_nothing_cheaper() {
    for (rate, tpot_ms) in [(2.0, 40.0), (6.0, 7.0), (40.0, 9.0)] {
        let q = with_groups(rate, tpot_ms);
        let found = recommend(&q).unwrap().recommended.map(|r| r.usd_per_hour);
        let best = exhaustive(&q).map(|b| b.0);
        match (found, best) {
            (Some(found), Some(best)) => assert!((found - best).abs() < 1e-9, "{found} and {best}"),
            (found, best) => assert_eq!(found, best),
        }
    }
}

#[test]
fn drafts_of_sglang_are_recommended_where_a_limit_needs_them_and_keep_their_promise() {
    let mut spoken = 0;
    let mut before = 0.0;
    for tpot_ms in [20.0, 9.0, 7.0, 5.0, 4.0, 3.0] {
        let q = with_groups(1.0, tpot_ms);
        let answer = recommend(&q).unwrap();
        // Tighter limits never cost less.
        let cost = answer
            .recommended
            .as_ref()
            .map_or(f64::INFINITY, |r| r.usd_per_hour);
        assert!(cost >= before, "{tpot_ms} ms: ${cost} after ${before}");
        before = cost;
        let Some(best) = answer.recommended else { continue };
        let drafted = best
            .flags
            .windows(2)
            .any(|w| w == ["--speculative-algorithm", "EAGLE"]);
        let measured = again(&q, &best, drafted.then_some(0.8));
        assert!((measured - best.tpot_ms.unwrap()).abs() < 1e-9 && measured <= tpot_ms);
        spoken += u32::from(drafted);
    }
    assert!(spoken > 0, "no limit needs the drafts");
}

#[test]
fn groups_with_attention_of_their_own_are_simulated_as_they_are_planned() {
    let mut q = with_groups(1.0, 40.0);
    q.base.tensor_parallel_size = Some(4);
    let grouped = Deployment {
        engine: Some("sglang".to_owned()),
        gpu: Some("h200".to_owned()),
        data_parallel_size: Some(2),
        enable_expert_parallel: true,
        ..q.base.clone()
    };
    let served = |deployment: &Deployment| match prepare(deployment, &Serving::default()).unwrap() {
        Prepared::Ready(served) => served,
        Prepared::Refused(_, why) => panic!("{why}"),
    };
    let two = served(&grouped);
    assert_eq!((two.ranks, two.replicas, two.gpus()), (2, 1, 4));
    let EngineConfig::Sglang(config) = &two.config else {
        panic!("{:?}", two.config)
    };
    let plan = kvwise_core::plan::plan(&grouped.resolve().unwrap().request(false)).unwrap();
    let kv = plan.kv_cache.unwrap();
    assert_eq!(config.capacity_tokens as u64, kv.capacity_tokens);
    assert_eq!(config.max_running as u64, kv.max_running_requests.unwrap());
    // Each of two groups takes half of a chunk of 8,192 tokens, and less than a third of the room for output.
    assert_eq!(config.chunked_prefill_tokens, Some(4096));
    assert!((config.conservativeness - 0.3).abs() < 1e-12);
    let drafted = Deployment {
        speculative_algorithm: Some("EAGLE".to_owned()),
        ..grouped.clone()
    };
    let EngineConfig::Sglang(config) = served(&drafted).config else {
        unreachable!()
    };
    assert_eq!(
        config.max_running, 24,
        "48 requests at once with drafts, by groups"
    );
    let looked_up = Deployment {
        speculative_algorithm: Some("NGRAM".to_owned()),
        ..grouped.clone()
    };
    match prepare(&looked_up, &Serving::default()).unwrap() {
        Prepared::Refused(_, why) => assert!(why.contains("DP attention"), "{why}"),
        Prepared::Ready(_) => panic!("the engine refuses lookups in groups"),
    }
    let dense = Deployment {
        model: Some("Llama-3.1-8B".to_owned()),
        enable_expert_parallel: false,
        ..grouped
    };
    let e = prepare(&dense, &Serving::default()).unwrap_err();
    assert!(e.to_string().contains("mixtures of experts only"), "{e}");
}

#[test]
fn what_is_recommended_for_sglang_keeps_its_promise() {
    let mut q = with_everything(8.0, 30.0);
    q.engines = vec!["sglang"];
    q.drafters.clear();
    let answer = recommend(&q).unwrap();
    let best = answer.recommended.unwrap();
    assert_eq!(best.engine, "sglang");
    assert!(
        best.flags.windows(2).any(|w| w == ["--engine", "sglang"]),
        "{best:?}"
    );
    let measured = again(&q, &best, None);
    assert!((measured - best.tpot_ms.unwrap()).abs() < 1e-9 && measured <= 30.0);
    assert!(answer.explanation[0].contains("of SGLang"));
}

#[test]
fn a_tight_limit_needs_drafts_and_the_promise_with_them_is_kept() {
    let mut spoken = 0;
    for tpot_ms in [5.5, 4.5, 3.5] {
        let mut q = with_everything(1.0, tpot_ms);
        q.engines = vec!["vllm"];
        q.gpus_from = vec!["h100".to_owned()];
        q.max_gpus = 1;
        q.drafters = vec![Drafter::given("ngram=0.8", None).unwrap()];
        let answer = recommend(&q).unwrap();
        let Some(best) = answer.recommended else { continue };
        if best.flags.iter().any(|f| f.contains("ngram")) {
            let measured = again(&q, &best, Some(0.8));
            assert!((measured - best.tpot_ms.unwrap()).abs() < 1e-9 && measured <= tpot_ms);
            assert!(
                answer.explanation[2].contains("drafted by ngram")
                    && answer.explanation[2].contains("your figure"),
                "{:?}",
                answer.explanation
            );
            spoken += 1;
        }
    }
    assert!(spoken > 0, "no limit needs the drafts");
}

#[test]
fn a_known_head_is_tried_by_itself_and_its_rate_is_called_assumed() {
    let mut q = question(1.0, 15.0, &["h100"]);
    q.base.model = Some("Qwen/Qwen3-32B".to_owned());
    q.trace = q.trace.select(&(0..12).collect::<Vec<u32>>());
    q.max_gpus = 1;
    let mut spoken = false;
    for tpot_ms in [20.0, 17.0, 15.0, 13.0, 11.0] {
        q.objectives.slo.tpot_ms = Some(tpot_ms);
        let answer = recommend(&q).unwrap();
        let Some(best) = answer.recommended else { break };
        if best
            .flags
            .iter()
            .any(|f| f.contains("RedHatAI/Qwen3-32B-speculator.eagle3"))
        {
            assert!(
                answer.explanation[2].contains("0.6 is assumed"),
                "{:?}",
                answer.explanation
            );
            spoken = true;
        }
    }
    assert!(spoken, "no limit needs the head");
}

#[test]
fn better_drafts_never_cost_more_and_more_engines_never_do() {
    let cost = |rates: f64, engines: &[&'static str]| {
        let mut q = with_everything(12.0, 9.0);
        q.engines = engines.to_vec();
        q.drafters = vec![Drafter::given("ngram", Some(rates)).unwrap()];
        recommend(&q)
            .unwrap()
            .recommended
            .map_or(f64::INFINITY, |r| r.usd_per_hour)
    };
    let mut before = f64::INFINITY;
    for rate in [0.1, 0.5, 0.9] {
        let now = cost(rate, &["vllm"]);
        assert!(now <= before, "{rate}: {now} after {before}");
        before = now;
    }
    assert!(cost(0.5, &["vllm", "sglang"]) <= cost(0.5, &["sglang"]));
    assert!(cost(0.9, &["sglang"]) <= cost(0.1, &["sglang"]));
}

#[test]
fn llama_cpp_is_planned_and_nothing_is_said_of_its_latencies() {
    let mut q = question(1.0, 60.0, &["rtx-4090", "l40s"]);
    q.engines = vec!["llamacpp"];
    let answer = recommend(&q).unwrap();
    assert!(answer.recommended.is_none() && answer.alternatives.is_empty());
    assert!(answer.explanation[0].contains("not timed"));
    let cheapest = &answer.planned_only[0];
    assert_eq!((cheapest.gpu.as_str(), cheapest.gpus), ("rtx-4090", 1));
    // Every row is a plan that fits, made again.
    for row in &answer.planned_only {
        assert!(row.verdict.starts_with("fits"), "{row:?}");
    }
    assert!(!untimed::is_timed("llamacpp") && untimed::is_timed("sglang"));
    let mut large = question(1.0, 60.0, &["rtx-4090"]);
    large.engines = vec!["llamacpp"];
    large.base.model = Some("meta-llama/Llama-3.1-405B".to_owned());
    let none = recommend(&large).unwrap();
    assert!(none.planned_only.is_empty());
    assert!(
        none.explanation[1].contains("start on no machine") && none.explanation[1].contains("8 x rtx-4090"),
        "{none:?}"
    );
    q.engines = vec!["vllm", "llamacpp"];
    let both = recommend(&q).unwrap();
    assert!(both.recommended.is_some() && both.planned_only == answer.planned_only);
}

#[test]
fn a_slower_network_never_makes_a_replica_of_two_machines_faster() {
    let mut q = question(0.5, 1000.0, &["h100"]);
    q.base.model = Some("deepseek-ai/DeepSeek-V3".to_owned());
    q.trace = q.trace.select(&(0..6).collect::<Vec<u32>>());
    let mut before = 0.0;
    for network in ["infiniband-xdr", "infiniband-ndr", "ethernet-25"] {
        q.network.name = Some(network.to_owned());
        let best = recommend(&q).unwrap().recommended.unwrap();
        assert_eq!(best.gpus_per_replica, 16);
        let now = again(&q, &best, None);
        assert!(now >= before, "{network}: {now} after {before}");
        before = now;
    }
    q.network.name = None;
    let says = recommend(&q).unwrap().explanation;
    assert!(says[2].contains("assumed to be infiniband-ndr"), "{says:?}");
    q.network.name = Some("string".to_owned());
    assert!(recommend(&q).unwrap_err().to_string().contains("--network is"));
}
