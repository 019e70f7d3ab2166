use kvwise_core::plan::Basis;
use kvwise_sim::simulate::{Arrivals, Lengths, Slo, closed_loop, run, summarize};

use super::super::deployment::Deployment;
use super::super::plan::plan;
use super::super::served::{Prepared, Served, Serving, prepare};
use super::*;

fn deployment(model: &str, gpu: &str, prompt: u64, output: u64, concurrency: u64) -> Deployment {
    Deployment {
        model: Some(model.to_owned()),
        gpu: Some(gpu.to_owned()),
        prompt_tokens: Some(prompt),
        gen_tokens: Some(output),
        concurrency: vec![concurrency],
        max_model_len: Some("40960".to_owned()),
        ..Deployment::default()
    }
}

/// Deployments of every kind that is timed.
fn timed() -> Vec<Deployment> {
    let sglang = |d: Deployment| Deployment {
        engine: Some("sglang".to_owned()),
        ..d
    };
    let tp = |d: Deployment, n: u64| Deployment {
        tensor_parallel_size: Some(n),
        ..d
    };
    let whole_experts = |d: Deployment| Deployment {
        enable_expert_parallel: true,
        ..d
    };
    vec![
        deployment("meta-llama/Llama-3.1-8B", "h100", 1000, 1000, 1),
        deployment("meta-llama/Llama-3.1-8B", "rtx-4090", 1000, 100, 3),
        deployment("meta-llama/Llama-3.1-8B", "mi300x", 1000, 100, 3),
        Deployment {
            kv_cache_dtype: Some("fp8".to_owned()),
            max_num_batched_tokens: Some("1024".to_owned()),
            ..tp(
                deployment("meta-llama/Llama-3.1-70B", "h200", 20_000, 1000, 16),
                4,
            )
        },
        Deployment {
            pipeline_parallel_size: Some(2),
            ..tp(deployment("Qwen/Qwen3-32B", "a100-80gb", 9000, 1000, 33), 2)
        },
        Deployment {
            data_parallel_size: Some(2),
            ..deployment("Qwen/Qwen3-32B", "b200", 3000, 1000, 33)
        },
        whole_experts(tp(deployment("openai/gpt-oss-120b", "h100", 8000, 1000, 64), 2)),
        whole_experts(Deployment {
            data_parallel_size: Some(4),
            ..deployment("Qwen/Qwen3-30B-A3B", "h100", 3000, 1000, 30)
        }),
        tp(deployment("deepseek-ai/DeepSeek-R1", "h200", 8000, 1000, 64), 8),
        Deployment {
            enforce_eager: true,
            ..deployment("meta-llama/Llama-3.1-8B", "h200", 3000, 1000, 8)
        },
        sglang(tp(
            deployment("deepseek-ai/DeepSeek-R1", "b200", 20_000, 1000, 16),
            8,
        )),
        sglang(deployment("Qwen/Qwen3-32B", "h200", 9000, 1000, 7)),
        sglang(deployment("Qwen/Qwen3-1.7B", "rtx-4090", 9000, 1000, 2)),
        sglang(whole_experts(Deployment {
            data_parallel_size: Some(4),
            ..tp(deployment("Qwen/Qwen3-30B-A3B", "h100", 9000, 1000, 30), 4)
        })),
    ]
}

fn name(d: &Deployment) -> String {
    format!(
        "{:?} {:?} on {:?} tp {:?} pp {:?} dp {:?}",
        d.engine, d.model, d.gpu, d.tensor_parallel_size, d.pipeline_parallel_size, d.data_parallel_size
    )
}

fn served(deployment: &Deployment) -> Box<Served> {
    match prepare(deployment, &Serving::default()).unwrap() {
        Prepared::Ready(served) => served,
        Prepared::Refused(_, why) => panic!("{}: {why}", name(deployment)),
    }
}

fn close(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-9
}

#[test]
fn a_plan_says_of_a_decode_step_what_the_simulator_says() {
    for deployment in timed() {
        let told = plan(&deployment, false).unwrap().performance.unwrap();
        let served = served(&deployment);
        let engines = u64::from(served.replicas * served.ranks);
        let own = told.concurrency.div_ceil(engines);
        let batch = Batch {
            peer_tokens: (told.concurrency.div_ceil(u64::from(served.replicas)) - own) as f64,
            ..Batch::new(own, (own * told.context) as f64, &[])
        };
        let host = served.simulated().host;
        let step_ms = (served.step.time(&batch).total_s() + host.step_s) * 1e3;
        let expected = told.speed.tpot_ms.expected.unwrap();
        assert!(
            close(expected, step_ms),
            "{}: {expected} and {step_ms} ms",
            name(&deployment)
        );
        assert!(close(
            told.speed.tpot_ms.high / expected,
            served.confidence.factor
        ));
        assert!(close(
            told.speed.decode_tokens_per_s.expected.unwrap(),
            told.concurrency as f64 / step_ms * 1e3
        ));
    }
}

#[test]
fn a_plan_says_of_a_lone_prompt_what_the_simulator_says() {
    for deployment in timed() {
        let told = plan(&deployment, false).unwrap().performance.unwrap();
        let served = served(&deployment);
        let lengths = Lengths {
            input_tokens: u32::try_from(told.prompt_tokens).unwrap(),
            output_tokens: 2,
            ratio: 1.0,
        };
        let trace = closed_loop(lengths, 1, 1).unwrap();
        let simulated = served.simulated();
        let (result, ()) = run(&trace, &simulated, Arrivals::Closed { concurrency: 1 }, ()).unwrap();
        let alone_ms = summarize(&result, simulated.host, Slo::default()).ttft_ms.mean;
        let expected = told.speed.ttft_ms.expected.unwrap();
        assert!(
            close(expected, alone_ms),
            "{}: {expected} and {alone_ms} ms",
            name(&deployment)
        );
    }
}

#[test]
fn nothing_is_faster_than_the_datasheet() {
    for deployment in timed() {
        let p = plan(&deployment, false).unwrap().performance.unwrap();
        let (s, bound) = (p.speed, p.roofline);
        assert!(
            s.tpot_ms.expected.unwrap() > bound.tpot_ms,
            "{}: {p:?}",
            name(&deployment)
        );
        assert!(
            s.ttft_ms.expected.unwrap() > bound.ttft_ms,
            "{}: {p:?}",
            name(&deployment)
        );
        assert!(s.decode_tokens_per_s.expected.unwrap() < bound.decode_tokens_per_s);
        assert!(s.prefill_tokens_per_s.expected.unwrap() < bound.prefill_tokens_per_s);
        assert!(s.tpot_ms.low >= bound.tpot_ms && s.ttft_ms.low >= bound.ttft_ms);
        assert!(s.decode_tokens_per_s.high <= bound.decode_tokens_per_s);
        assert!(s.prefill_tokens_per_s.high <= bound.prefill_tokens_per_s);
        for range in [
            s.tpot_ms,
            s.ttft_ms,
            s.decode_tokens_per_s,
            s.prefill_tokens_per_s,
        ] {
            assert!(0.0 < range.low && range.low < range.expected.unwrap());
            assert!(range.expected.unwrap() < range.high && range.high.is_finite());
        }
    }
}

#[test]
fn a_gpu_without_measured_kernels_has_the_wider_range_and_says_so() {
    let of = |gpu: &str| {
        plan(&deployment("meta-llama/Llama-3.1-8B", gpu, 1000, 100, 4), false)
            .unwrap()
            .performance
            .unwrap()
    };
    let (measured, borrowed) = (of("h100"), of("gh200"));
    let width = |p: &Performance| p.speed.tpot_ms.high / p.speed.tpot_ms.low;
    assert!(width(&borrowed) > width(&measured));
    assert!(
        measured.basis.starts_with(Basis::Fitted.name()),
        "{}",
        measured.basis
    );
    assert!(
        borrowed.basis.starts_with(Basis::Assumed.name()),
        "{}",
        borrowed.basis
    );
    assert!(measured.source.starts_with("kernels measured on h100_sxm"));
    assert!(
        borrowed
            .source
            .starts_with("efficiencies of kernels measured on h100_sxm")
    );
}

#[test]
fn engines_that_are_not_simulated_have_bounds_alone() {
    let told = plan(
        &Deployment {
            engine: Some("llamacpp".to_owned()),
            max_model_len: None,
            ..deployment("meta-llama/Llama-3.1-8B", "rtx-4090", 1000, 100, 1)
        },
        false,
    )
    .unwrap()
    .performance
    .unwrap();
    assert_eq!(told.speed.tpot_ms.expected, None);
    assert!(told.basis.starts_with("assumed"), "{}", told.basis);
    assert!(told.roofline.tpot_ms < told.speed.tpot_ms.low);
}

#[test]
fn every_row_of_a_grid_has_its_own_speed() {
    let asked = Deployment {
        prompt_tokens: None,
        gen_tokens: None,
        context: vec!["4k".to_owned(), "32k".to_owned()],
        concurrency: vec![1, 16],
        ..deployment("meta-llama/Llama-3.1-8B", "h100", 1, 1, 1)
    };
    let told = plan(&asked, false).unwrap();
    assert_eq!(told.grid.len(), 4);
    let tpot: Vec<f64> = told
        .grid
        .iter()
        .map(|row| row.speed.unwrap().tpot_ms.expected.unwrap())
        .collect();
    // 4k x 1, 4k x 16, 32k x 1, 32k x 16.
    assert!(
        tpot[0] < tpot[1] && tpot[0] < tpot[2] && tpot[2] < tpot[3],
        "{tpot:?}"
    );
    assert_eq!(told.grid[0].speed.unwrap(), told.performance.unwrap().speed);
}

#[test]
fn a_long_prompt_in_many_steps_is_timed_in_groups_that_change_little() {
    let at = |batched: &str| {
        plan(
            &Deployment {
                max_model_len: None,
                max_num_batched_tokens: Some(batched.to_owned()),
                ..deployment("meta-llama/Llama-3.1-8B", "h200", 130_000, 1000, 1)
            },
            false,
        )
        .unwrap()
        .performance
        .unwrap()
        .speed
        .ttft_ms
        .expected
        .unwrap()
    };
    // 64 steps are timed one by one, 65 in pairs.
    let (exact, grouped) = (at("2032"), at("2016"));
    assert!((grouped / exact - 1.0).abs() < 0.02, "{exact} and {grouped} ms");
}

#[test]
fn a_derivation_adds_up_to_what_it_derives() {
    let plan = plan(&deployment("openai/gpt-oss-120b", "h200", 1000, 100, 8), true).unwrap();
    let step = plan
        .steps
        .iter()
        .find(|s| s.what.starts_with("time of one more token"))
        .unwrap();
    let sum: f64 = step
        .how
        .split(" + ")
        .map(|term| term.split(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let told = plan.performance.unwrap().speed.tpot_ms.expected.unwrap();
    assert!((sum - told).abs() < 0.005, "{}: {told}", step.how);
}

#[test]
fn without_graphs_a_step_takes_at_least_as_long_as_its_launches() {
    let at = |enforce_eager: bool| {
        plan(
            &Deployment {
                enforce_eager,
                ..deployment("meta-llama/Llama-3.1-8B", "h100", 1000, 100, 1)
            },
            false,
        )
        .unwrap()
        .performance
        .unwrap()
        .speed
    };
    let (graphs, eager) = (at(false), at(true));
    let ms = |speed: Speed| speed.tpot_ms.expected.unwrap();
    // 32 layers of 0.7 ms, and the host's 0.2 ms.
    assert!((ms(eager) - 22.6).abs() < 1e-9, "{}", ms(eager));
    assert!(ms(graphs) < 0.5 * ms(eager), "{}", ms(graphs));
}
