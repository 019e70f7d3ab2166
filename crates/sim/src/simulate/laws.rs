//! Laws that hold for every engine, load and arrangement of replicas.

use proptest::prelude::*;

use super::tests::{requests, scheduler, step_model, trace_of};
use super::*;
use crate::cost::{Batch, Prefill, Speculation, StepModel};
use crate::sched::sglang::step::{SchedulePolicy, StepConfig};
use crate::trace::Trace;

fn vllm(blocks: u32) -> EngineConfig {
    EngineConfig::Vllm(scheduler(blocks))
}

fn sglang(tokens: usize, schedule: SchedulePolicy) -> EngineConfig {
    EngineConfig::Sglang(StepConfig {
        max_running: 4,
        max_context_tokens: 2048,
        chunked_prefill_tokens: Some(128),
        schedule,
        ..StepConfig::new(tokens)
    })
}

fn simulated(trace: &Trace, deployment: &Deployment<'_>, arrivals: Arrivals) -> Run {
    run(trace, deployment, arrivals, ()).unwrap().0
}

/// Every request ends once, with all its tokens (or is refused), and its times are in order.
fn conserves(trace: &Trace, run: &Run) -> Result<(), TestCaseError> {
    for (i, r) in run.records.iter().enumerate() {
        if r.rejected {
            continue;
        }
        prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1), "request {}", i);
        prop_assert!(
            r.arrival_s <= r.admitted_s && r.admitted_s < r.first_token_s && r.first_token_s <= r.finished_s,
            "{r:?}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sglang_serves_every_request_once_whatever_the_policy_and_the_pool(
        requests in requests(), tokens in 600_usize..3000, policy in 0_usize..3,
    ) {
        let trace = trace_of(&requests);
        let model = step_model("h100_sxm");
        let policy = [SchedulePolicy::Fcfs, SchedulePolicy::Lpm, SchedulePolicy::Lof][policy];
        let deployment = Deployment::new(sglang(tokens, policy), StepClock::Model(&model));
        let result = simulated(&trace, &deployment, Arrivals::Trace { speed: 1.0 });
        conserves(&trace, &result)?;
        // Prompts of at most 18 blocks of 16 tokens and 60 output tokens fit every one of these pools.
        prop_assert!(result.records.iter().all(|r| !r.rejected));
    }

    #[test]
    fn replicas_together_serve_every_request_once(
        requests in requests(), replicas in 1_u32..4, ranks in 1_u32..3, routing in 0_usize..4, closed in any::<bool>(),
    ) {
        let trace = trace_of(&requests);
        let model = step_model("l40s");
        let routing = [
            Routing::RoundRobin, Routing::LeastLoaded, Routing::PrefixAware, Routing::SessionAffinity,
        ][routing];
        let deployment = Deployment {
            replicas, ranks, routing,
            ..Deployment::new(vllm(64), StepClock::Model(&model))
        };
        let arrivals = if closed { Arrivals::Closed { concurrency: 5 } } else { Arrivals::Trace { speed: 3.0 } };
        let result = simulated(&trace, &deployment, arrivals);
        conserves(&trace, &result)?;
        prop_assert!(result.records.iter().all(|r| r.engine < replicas * ranks));
        if closed {
            // Nobody is served while five others already are.
            let mut edges: Vec<(f64, i32)> = result.records.iter()
                .flat_map(|r| [(r.arrival_s, 1), (if r.rejected { r.arrival_s } else { r.finished_s }, -1)])
                .collect();
            edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let mut open = 0;
            for (_, change) in edges {
                open += change;
                prop_assert!(open <= 5);
            }
        }
    }

    #[test]
    fn a_step_never_takes_less_than_its_first_principles_bound(
        decoding in 0_u64..400, context in 1_u64..20_000, prefill in 0_u64..9000, past in 0_u64..9000,
    ) {
        prop_assume!(decoding + prefill > 0);
        for gpu in ["a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm"] {
            let model = step_model(gpu);
            let prefills = [Prefill { new_tokens: prefill, past_tokens: past }];
            let prefills = if prefill > 0 { &prefills[..] } else { &[] };
            let batch = Batch::new(decoding, (decoding * context) as f64, prefills);
            let (time, bound) = (model.time(&batch).total_s(), model.bound(&batch).seconds());
            prop_assert!(time >= bound, "{gpu}: {time} s is less than {bound} s");
            prop_assert!(time <= 60.0 * bound + 0.05, "{gpu}: {time} s is far above {bound} s");
        }
    }

    #[test]
    fn a_longer_step_is_never_shorter(decoding in 1_u64..300, context in 1_u64..10_000, more in 1_u64..50) {
        let model = step_model("h200_sxm");
        let time = |n: u64, c: u64| model.time(&Batch::new(n, (n * c) as f64, &[])).total_s();
        // Tiles of the matrix units fill up in waves, so a step may win a little by one more sequence.
        prop_assert!(time(decoding + more, context) >= 0.97 * time(decoding, context));
        prop_assert!(time(decoding, context + more) >= time(decoding, context) - 1e-12);
    }
}

#[test]
fn the_same_run_on_any_number_of_threads_is_the_same_run() {
    let lengths = Lengths {
        input_tokens: 500,
        output_tokens: 60,
        ratio: 0.5,
    };
    let trace = closed_loop(lengths, 60, 3).unwrap();
    let model = step_model("h100_sxm");
    let deployment = Deployment {
        replicas: 3,
        ..Deployment::new(vllm(4096), StepClock::Model(&model))
    };
    let alone = simulated(&trace, &deployment, Arrivals::Closed { concurrency: 9 });
    let together: Vec<Run> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| simulated(&trace, &deployment, Arrivals::Closed { concurrency: 9 })))
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    // As text: times that never came are NaN, which equals nothing.
    let alone = format!("{alone:?}");
    assert!(together.iter().all(|r| format!("{r:?}") == alone));
}

#[test]
fn two_replicas_finish_a_burst_sooner_than_one_and_three_sooner_than_two() {
    let lengths = Lengths {
        input_tokens: 400,
        output_tokens: 100,
        ratio: 1.0,
    };
    let trace = closed_loop(lengths, 48, 1).unwrap();
    let model = step_model("h100_sxm");
    let end = |replicas: u32| {
        let deployment = Deployment {
            replicas,
            ..Deployment::new(vllm(4096), StepClock::Model(&model))
        };
        simulated(&trace, &deployment, Arrivals::Closed { concurrency: 48 }).end_s
    };
    assert!(
        end(2) < 0.6 * end(1) && end(3) < 0.8 * end(2),
        "{} {} {}",
        end(1),
        end(2),
        end(3)
    );
}

#[test]
fn sessions_wait_for_the_answer_and_find_their_past_in_the_cache() {
    let lengths = Lengths {
        input_tokens: 160,
        output_tokens: 32,
        ratio: 1.0,
    };
    let trace = sessions(lengths, 6, 4, 11).unwrap();
    let model = step_model("h100_sxm");
    let arrivals = Arrivals::Sessions {
        concurrency: 3,
        think_s: 0.5,
        seed: 11,
    };
    for engine in [vllm(4096), sglang(65_536, SchedulePolicy::Fcfs)] {
        let deployment = Deployment::new(engine, StepClock::Model(&model));
        let result = simulated(&trace, &deployment, arrivals);
        let r = &result.records;
        for turn in 0..trace.len() {
            if turn % 4 > 0 {
                assert!(r[turn].arrival_s > r[turn - 1].finished_s, "turn {turn}");
                // All of the session's past but a last partial block is there.
                assert!(
                    r[turn].hit_tokens + 16 >= r[turn - 1].input_tokens + 31,
                    "turn {turn}: {:?}",
                    r[turn]
                );
            }
        }
    }
}

#[test]
fn a_session_stays_where_it_began_and_equal_prefixes_meet() {
    let trace = sessions(
        Lengths {
            input_tokens: 64,
            output_tokens: 8,
            ratio: 1.0,
        },
        8,
        3,
        2,
    )
    .unwrap();
    let model = step_model("h100_sxm");
    let deployment = Deployment {
        replicas: 4,
        routing: Routing::SessionAffinity,
        ..Deployment::new(vllm(4096), StepClock::Model(&model))
    };
    let arrivals = Arrivals::Sessions {
        concurrency: 8,
        think_s: 0.1,
        seed: 1,
    };
    let result = simulated(&trace, &deployment, arrivals);
    for session in 0..8 {
        let engines: Vec<u32> = (0..3).map(|t| result.records[session * 3 + t].engine).collect();
        assert!(engines.iter().all(|e| *e == engines[0]), "{engines:?}");
    }
    // Two prefixes, alternating: the prefix-aware router keeps each on one engine.
    let alternating: Vec<(u32, u8, u8, u8)> = (0..24).map(|_| (5, 4, 0, 4)).collect();
    let trace = trace_of(&alternating);
    let deployment = Deployment {
        replicas: 2,
        routing: Routing::PrefixAware,
        ..Deployment::new(vllm(4096), StepClock::Model(&model))
    };
    let result = simulated(&trace, &deployment, Arrivals::Trace { speed: 1.0 });
    assert!(
        result
            .records
            .iter()
            .all(|r| r.engine == result.records[0].engine)
    );
}

#[test]
fn speculation_gains_tokens_with_the_acceptance_rate_and_loses_without() {
    let time = |acceptance: Option<f64>| {
        let mut options = crate::cost::StepOptions::new(crate::cost::Engine::Vllm, 1);
        options.speculation = acceptance.map(|acceptance| Speculation::chain(3, acceptance, 0.05));
        let model: StepModel = super::tests::step_model_with("h100_sxm", options);
        model.time(&Batch::new(8, 8.0 * 2000.0, &[])).total_s()
    };
    assert!((Speculation::chain(3, 0.5, 0.0).tokens_per_step() - 1.875).abs() < 1e-12);
    let plain = time(None);
    assert!(time(Some(0.9)) < 0.5 * plain);
    assert!(time(Some(0.0)) > plain);
    assert!(time(Some(0.8)) < time(Some(0.4)));
}

#[test]
fn a_pipeline_serves_one_sequence_no_faster_and_many_sequences_with_more_throughput() {
    let time = |pp: u64, n: u64| {
        let mut options = crate::cost::StepOptions::new(crate::cost::Engine::Vllm, 1);
        options.pp = pp;
        super::tests::step_model_with("h100_sxm", options)
            .time(&Batch::new(n, n as f64 * 1000.0, &[]))
            .total_s()
    };
    assert!(time(4, 1) > time(1, 1));
    assert!(time(4, 512) < time(1, 512));
}

/// Requests of adapters in turn: (gap in tenths of a second, adapter or none, prompt blocks, output).
fn trace_of_adapters(requests: &[(u32, u8, u8, u8)]) -> Trace {
    let mut builder = crate::trace::TraceBuilder::new("adapters", 16, crate::trace::IdMeaning::Prefix);
    let mut now = 0.0;
    for &(gap, adapter, blocks, output) in requests {
        now += f64::from(gap) / 100.0;
        let ids: Vec<u64> = (0..=u64::from(blocks)).collect();
        let name = format!("adapter-{adapter}");
        builder
            .push(&crate::trace::NewRequest {
                arrival: Some(now),
                input_len: Some(ids.len() as u64 * 16),
                output_len: Some(u64::from(output) + 2),
                prompt: crate::trace::PromptIds::Blocks(&ids),
                lora: (adapter > 0).then_some(name.as_str()),
                ..crate::trace::NewRequest::default()
            })
            .unwrap();
    }
    builder.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_batch_holds_more_adapters_than_fit_and_everybody_is_served(
        requests in prop::collection::vec((0_u32..20, 0_u8..5, 0_u8..4, 0_u8..40), 1..30), most in 1_u32..4,
    ) {
        let trace = trace_of_adapters(&requests);
        let model = step_model("h100_sxm");
        let mut config = scheduler(4096);
        config.max_num_seqs = 16;
        config.max_loras = Some(most);
        let deployment = Deployment {
            isolation: crate::replay::vllm::Isolation { lora: true },
            ..Deployment::new(EngineConfig::Vllm(config), StepClock::Model(&model))
        };
        let result = simulated(&trace, &deployment, Arrivals::Trace { speed: 1.0 });
        conserves(&trace, &result)?;
        for r in &result.records {
            let mut present: Vec<u8> = result.records.iter().zip(&requests)
                .filter(|(o, q)| q.1 > 0 && o.admitted_s <= r.admitted_s && o.finished_s > r.admitted_s)
                .map(|(_, q)| q.1)
                .collect();
            present.sort_unstable();
            present.dedup();
            prop_assert!(present.len() <= most as usize, "{:?}", present);
        }
        // Equal prompts under different adapters share nothing; the first of each adapter finds nothing.
        let mut seen = [false; 5];
        for (r, q) in result.records.iter().zip(&requests) {
            if !seen[q.1 as usize] {
                prop_assert_eq!(r.hit_tokens, 0);
            }
            seen[q.1 as usize] = true;
        }
    }
}
