use std::borrow::Cow;

use kvwise_sim::simulate::{Lengths, Slo, open_loop};

use super::super::served::Serving;
use super::super::simulate::simulate;
use super::super::traffic::Workload;
use super::*;

mod engines;

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
        mode: None,
        thorough: false,
        acceptance: None,
        drafters: Vec::new(),
        engines: vec!["vllm"],
        network: NetworkAsked::default(),
        resume: None,
    }
}

/// The deployment that the words of a recommendation stand for, as a user would give them.
fn from_words(base: &Deployment, gpu: &str, flags: &[String]) -> Deployment {
    use clap::{Args, FromArgMatches};
    let words = ["kvwise", "--gpu", gpu].map(str::to_owned);
    let command = crate::cli::deployment::DeploymentArgs::augment_args(clap::Command::new("kvwise"));
    let matches = command.get_matches_from(words.iter().chain(flags));
    let given = crate::cli::deployment::DeploymentArgs::from_arg_matches(&matches)
        .unwrap()
        .given()
        .unwrap();
    Deployment {
        model: base.model.clone(),
        ..given
    }
}

#[test]
fn a_recommendation_planned_and_simulated_again_keeps_its_promise() {
    let question = question(20.0, 40.0, &["h100", "l40s", "a100-80gb"]);
    let answer = recommend(&question).unwrap();
    let best = answer.recommended.unwrap();
    // From the words alone, as a user would.
    let deployment = from_words(&question.base, &best.gpu, &best.flags);
    let plan = kvwise_core::plan::plan(&deployment.resolve().unwrap().request(false)).unwrap();
    assert!(plan.feasibility.fits, "{}", plan.verdict);
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

/// Everything that could be asked of a small space, one simulation after the other.
fn exhaustive(q: &Question) -> Option<(f64, u64)> {
    let trace = first(&q.trace);
    let longest = trace
        .input_lens()
        .iter()
        .zip(trace.output_lens())
        .map(|(&a, &b)| u64::from(a) + u64::from(b))
        .max()
        .unwrap();
    let mut base = q.base.clone();
    base.context = vec![longest.to_string()];
    base.concurrency = vec![1];
    base.max_model_len = Some(longest.next_multiple_of(LENGTH_STEP).to_string());
    let choice = Choice {
        base,
        gpus: q.gpus_from.clone(),
        max_gpus: q.max_gpus,
        allow_fp8: q.allow_fp8,
        longest,
        concurrency: None,
        shared_prefixes: false,
        mode: None,
        thorough: q.thorough,
        engines: q.engines.clone(),
        drafters: q.drafters.clone(),
        acceptance: q.acceptance,
        gpus_per_machine: None,
    };
    let (candidates, _) = space::candidates(&choice).unwrap();
    let bench = Simulated::new(&candidates, &trace, q.load, q.objectives, q.network.clone());
    let mut best: Option<(f64, u64)> = None;
    for (i, c) in candidates.iter().enumerate() {
        for replicas in 1..=q.max_gpus / c.gpus {
            let usd = q.prices.of(&c.gpu).unwrap() * (c.gpus * replicas) as f64;
            if bench.measure(i, 1.0 / replicas as f64, true).meets(q.objectives)
                && best.is_none_or(|(least, _)| usd < least - 1e-9)
            {
                best = Some((usd, c.gpus * replicas));
            }
        }
    }
    best
}

#[test]
fn trying_everything_finds_nothing_cheaper() {
    for (rate, tpot_ms, gpus, max_gpus) in [
        (8.0, 30.0, &["l40s", "h100"][..], 2),
        (30.0, 14.0, &["h100"][..], 2),
    ] {
        let mut q = question(rate, tpot_ms, gpus);
        q.max_gpus = max_gpus;
        q.thorough = true;
        q.trace = q.trace.select(&(0..30).collect::<Vec<u32>>());
        let found = recommend(&q)
            .unwrap()
            .recommended
            .map(|r| (r.usd_per_hour, r.gpus));
        let (found, best) = (found.map(|f| f.0), exhaustive(&q).map(|b| b.0));
        match (found, best) {
            (Some(found), Some(best)) => assert!((found - best).abs() < 1e-9, "{found} and {best}"),
            (found, best) => assert_eq!(found, best),
        }
    }
}

#[test]
fn a_larger_budget_is_never_worse_and_changing_more_settings_never_dearer() {
    let cost = |max_gpus: u64, thorough: bool| {
        let mut q = question(20.0, 12.0, &["h100", "l40s"]);
        q.trace = q.trace.select(&(0..60).collect::<Vec<u32>>());
        q.max_gpus = max_gpus;
        q.thorough = thorough;
        recommend(&q)
            .unwrap()
            .recommended
            .map_or(f64::INFINITY, |r| r.usd_per_hour)
    };
    let mut before = f64::INFINITY;
    for max_gpus in [1, 2, 4, 8] {
        let now = cost(max_gpus, false);
        assert!(now <= before, "{max_gpus} GPUs: {now} after {before}");
        before = now;
    }
    assert!(cost(4, true) <= cost(4, false));
}

#[test]
fn a_search_that_goes_on_gives_the_same_answer_and_simulates_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.jsonl");
    let mut q = question(8.0, 30.0, &["h100", "l40s"]);
    q.trace = q.trace.select(&(0..60).collect::<Vec<u32>>());
    let alone = recommend(&q).unwrap();
    q.resume = Some(path.clone());
    let first = recommend(&q).unwrap();
    assert_eq!(first, alone);
    let kept = std::fs::read_to_string(&path).unwrap();
    // As if it had been stopped in the middle of a line.
    std::fs::write(&path, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(recommend(&q).unwrap(), alone);
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&std::fs::read_to_string(&path).unwrap()), lines(&kept));
    q.load = Load::Closed(4);
    assert!(
        recommend(&q)
            .unwrap_err()
            .to_string()
            .contains("another question")
    );
}

#[test]
fn a_drafter_is_recommended_with_the_acceptance_that_it_rests_on() {
    let mut q = question(1.0, 25.0, &["h200"]);
    q.base.model = Some("deepseek-ai/DeepSeek-V3".to_owned());
    q.trace = q.trace.select(&(0..30).collect::<Vec<u32>>());
    q.acceptance = Some(0.95);
    let mut spoken = false;
    for tpot_ms in [40.0, 20.0, 15.0, 12.0, 10.0] {
        q.objectives.slo.tpot_ms = Some(tpot_ms);
        let answer = recommend(&q).unwrap();
        let Some(best) = answer.recommended else {
            break;
        };
        if best.flags.contains(&"--speculative-config".to_owned()) {
            let says = &answer.explanation[2];
            assert!(says.contains("0.95 is your figure"), "{says}");
            spoken = true;
        }
    }
    assert!(spoken, "no limit needs the drafter");
}
