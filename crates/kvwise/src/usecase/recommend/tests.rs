use std::borrow::Cow;

use kvwise_sim::simulate::{Lengths, Slo, open_loop};

use super::super::served::Serving;
use super::super::simulate::simulate;
use super::super::traffic::Workload;
use super::*;

fn question(rate: f64, tpot_ms: f64, gpus: &[&str]) -> Question {
    let lengths = Lengths {
        input_tokens: 512,
        output_tokens: 64,
        ratio: 0.5,
    };
    Question {
        base: Deployment {
            model: Some("Llama-3.1-8B".to_owned()),
            ..Deployment::default()
        },
        trace: open_loop(lengths, 120, rate, 1.0, 7).unwrap(),
        load: Load::Open,
        objectives: Objectives {
            slo: Slo {
                ttft_ms: Some(2000.0),
                tpot_ms: Some(tpot_ms),
            },
            percentile: 90,
        },
        objective: Objective::Cost,
        gpus_from: gpus.iter().map(|g| (*g).to_owned()).collect(),
        prices: Prices::with(&[]).unwrap(),
        max_gpus: 16,
        budget_usd_per_hour: None,
        allow_fp8: false,
    }
}

#[test]
fn a_recommendation_planned_and_simulated_again_keeps_its_promise() {
    let question = question(20.0, 40.0, &["h100", "l40s", "a100-80gb"]);
    let answer = recommend(&question).unwrap();
    let best = answer.recommended.unwrap();
    // From the words alone, as a user would.
    let mut deployment = Deployment {
        gpu: Some(best.gpu.clone()),
        ..question.base.clone()
    };
    let mut words = best.flags.iter();
    while let Some(flag) = words.next() {
        let value = words.next().unwrap().clone();
        match flag.as_str() {
            "--tensor-parallel-size" => deployment.tensor_parallel_size = value.parse().ok(),
            "--max-model-len" => deployment.max_model_len = Some(value),
            "--max-num-batched-tokens" => deployment.max_num_batched_tokens = Some(value),
            other => panic!("{other}"),
        }
    }
    let arrivals = kvwise_sim::simulate::Arrivals::Trace {
        speed: 1.0 / best.replicas as f64,
    };
    let workload = Workload {
        trace: Cow::Borrowed(&question.trace),
        arrivals,
    };
    let again = simulate(
        &deployment,
        &Serving::default(),
        &workload,
        question.objectives.slo,
    )
    .unwrap();
    assert!(again.summary.ttft_ms.p90 <= 2000.0 && again.summary.tpot_ms.p90 <= 40.0);
    assert!((again.summary.tpot_ms.p90 - best.tpot_ms.unwrap()).abs() < 1e-9);
    assert!(answer.holds_factor.unwrap() >= 1.0);
    assert_eq!(answer.explanation.len(), 3);
}

#[test]
fn tighter_objectives_never_cost_less() {
    let mut before = 0.0;
    for tpot_ms in [100.0, 20.0, 10.0] {
        let answer = recommend(&question(8.0, tpot_ms, &["h100", "l40s"])).unwrap();
        let cost = answer.recommended.map_or(f64::INFINITY, |r| r.usd_per_hour);
        assert!(cost >= before, "{tpot_ms} ms: ${cost} after ${before}");
        before = cost;
    }
}

#[test]
fn nothing_holds_an_impossible_objective_and_the_nearest_says_what_it_misses() {
    let answer = recommend(&question(4.0, 0.1, &["l40s"])).unwrap();
    assert!(answer.recommended.is_none());
    assert!(
        answer.alternatives[0].why_not.contains("time per output token"),
        "{answer:?}"
    );
    assert!(answer.explanation[0].starts_with("Nothing holds"));
}

#[test]
fn a_gpu_without_room_says_why_and_one_without_a_price_asks_for_it() {
    let mut q = question(1.0, 60.0, &["rtx-3090", "h200"]);
    q.base.model = Some("meta-llama/Llama-3.1-405B".to_owned());
    let answer = recommend(&q).unwrap();
    let small = answer.alternatives.iter().find(|a| a.gpu == "rtx-3090").unwrap();
    assert!(small.why_not.contains("does not fit"), "{small:?}");
    let unpriced = recommend(&question(1.0, 60.0, &["t4"])).unwrap_err();
    assert!(unpriced.hints()[0].contains("--price t4="), "{unpriced:?}");
}

#[test]
fn requests_longer_than_the_model_are_refused() {
    let mut q = question(1.0, 60.0, &["h100"]);
    q.base.model = Some("Llama-2-7b".to_owned());
    let lengths = Lengths {
        input_tokens: 5000,
        output_tokens: 10,
        ratio: 1.0,
    };
    q.trace = open_loop(lengths, 5, 1.0, 1.0, 1).unwrap();
    let e = recommend(&q).unwrap_err();
    assert!(e.to_string().contains("the model accepts 4096"), "{e}");
}
