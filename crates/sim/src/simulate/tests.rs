//! The simulation against the replay, and against laws that any queueing system obeys.

use kvwise_core::arch::{Config, family};
use proptest::prelude::*;

use super::*;
use crate::cost::{Calibration, Engine, StepModel, StepOptions};
use crate::replay::sglang::{self, Events as _};
use crate::replay::vllm::{Clock, EventLines, Isolation, ReplayConfig};
use crate::sched::sglang::step::{PriorityScheduling, SchedulePolicy, StepConfig, StepEvent};
use crate::sched::vllm::{Admission, BlockTables, Rejection, SchedulerConfig, SchedulerEvents};
use crate::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};

const LLAMA_8B: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16"}"#;

pub(super) fn step_model(gpu: &str) -> StepModel {
    step_model_with(gpu, StepOptions::new(Engine::Vllm, 1))
}

pub(super) fn step_model_with(gpu: &str, options: StepOptions) -> StepModel {
    let config = Config::parse(LLAMA_8B.as_bytes()).unwrap();
    let family::Reading::Model(model) = family::read("llama", &config).unwrap() else {
        panic!("readable")
    };
    StepModel::new(&model, &Calibration::embedded(gpu).unwrap(), options).unwrap()
}

/// A trace of shared prefixes: (gap in tenths of a second, prefix blocks, own blocks, output).
pub(super) fn trace_of(requests: &[(u32, u8, u8, u8)]) -> Trace {
    let mut builder = TraceBuilder::new("test", 16, IdMeaning::Prefix);
    let mut now = 0.0;
    let mut own = 1000_u64;
    for &(gap, shared, rest, output) in requests {
        now += f64::from(gap) / 10.0;
        let mut ids: Vec<u64> = (0..u64::from(shared)).collect();
        for _ in 0..=rest {
            own += 1;
            ids.push(own);
        }
        builder
            .push(&NewRequest {
                arrival: Some(now),
                input_len: Some(ids.len() as u64 * 16),
                output_len: Some(u64::from(output) + 1),
                prompt: PromptIds::Blocks(&ids),
                ..NewRequest::default()
            })
            .unwrap();
    }
    builder.finish()
}

pub(super) fn scheduler(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 128,
        max_model_len: 2048,
        ..SchedulerConfig::new(num_blocks, 16)
    }
}

/// Hears SGLang's scheduler.
struct Heard<'a>(sglang::EventLines<'a>);

impl SchedulerEvents for Heard<'_> {
    const EVICTIONS: bool = false;
    fn evicted(&mut self, _: u64, _: u32) {}
    fn admitted(&mut self, _: u64, _: &Admission, _: &BlockTables<'_>) {}
    fn preempted(&mut self, _: u64, _: u32, _: u32, _: &BlockTables<'_>) {}
    fn finished(&mut self, _: u64, _: u32, _: u32, _: u32, _: &BlockTables<'_>) {}
    fn rejected(&mut self, _: u64, _: u32, _: Rejection) {}
}

impl RunEvents for Heard<'_> {
    const STEPS: bool = true;
    fn happened(&mut self, turn: u64, event: &StepEvent) {
        self.0.happened(turn, event);
    }
}

fn simulate(trace: &Trace, num_blocks: u32, clock: StepClock<'_>, arrivals: Arrivals) -> Run {
    let deployment = Deployment::new(EngineConfig::Vllm(scheduler(num_blocks)), clock);
    run(trace, &deployment, arrivals, ()).unwrap().0
}

pub(super) fn requests() -> impl Strategy<Value = Vec<(u32, u8, u8, u8)>> {
    prop::collection::vec((0_u32..30, 0_u8..6, 0_u8..12, 0_u8..60), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn without_a_model_clock_the_simulation_is_the_replay(requests in requests(), blocks in 24_u32..80) {
        let trace = trace_of(&requests);
        let config = ReplayConfig {
            scheduler: scheduler(blocks),
            clock: Clock::Seconds { step_time: 0.05 },
            isolation: Isolation::default(),
        };
        let mut replayed = EventLines::new(&trace);
        let summary = crate::replay::vllm::run(&trace, &config, &mut replayed, |_| Ok(())).unwrap();
        let deployment = Deployment::new(EngineConfig::Vllm(scheduler(blocks)), StepClock::Fixed(0.05));
        let events = EventLines::new(&trace);
        let (result, simulated) =
            run(&trace, &deployment, Arrivals::Trace { speed: 1.0 }, events).unwrap();
        prop_assert_eq!(replayed.text, simulated.text);
        prop_assert_eq!(result.preemptions, summary.preemptions);
        prop_assert_eq!(result.hit_tokens, summary.hit_tokens);
    }

    #[test]
    fn without_a_model_clock_the_simulation_of_sglang_is_its_replay(
        requests in requests(), tokens in 600_usize..2000, choice in 0_usize..4, mixed: bool, overlap: bool,
        priorities: bool, page in 0_usize..3, recv_interval in 0_usize..3,
    ) {
        let trace = trace_of(&requests);
        let page = [1, 4, 16][page];
        let schedule = [
            SchedulePolicy::Fcfs, SchedulePolicy::Lpm, SchedulePolicy::DfsWeight, SchedulePolicy::Hrrn,
        ][choice];
        let config = StepConfig {
            page_size: page,
            max_running: 4,
            max_context_tokens: 2048,
            chunked_prefill_tokens: Some(100),
            mixed_chunk: mixed,
            overlap,
            recv_interval: [1, 3, 40][recv_interval],
            priorities: (priorities && choice == 0).then_some(PriorityScheduling {
                low_values_first: false,
                preemption_threshold: (!overlap).then_some(0),
            }),
            schedule,
            ..StepConfig::new(tokens / page * page)
        };
        let mut replayed = sglang::EventLines::new(&trace);
        let clock = Clock::Seconds { step_time: 0.05 };
        let summary =
            sglang::run(&trace, &sglang::ReplayConfig { scheduler: config, clock }, &mut replayed, |_| Ok(())).unwrap();
        let deployment = Deployment::new(EngineConfig::Sglang(config), StepClock::Fixed(0.05));
        let heard = Heard(sglang::EventLines::new(&trace));
        let (result, heard) = run(&trace, &deployment, Arrivals::Trace { speed: 1.0 }, heard).unwrap();
        prop_assert_eq!(&replayed.text, &heard.0.text);
        prop_assert_eq!(result.preemptions, summary.preemptions + summary.retractions);
        prop_assert_eq!((result.hit_tokens, result.query_tokens), (summary.hit_tokens, summary.query_tokens));
        // Without events quiet stretches are skipped, and nothing else changes.
        let unheard = sglang::run(&trace, &sglang::ReplayConfig { scheduler: config, clock }, &mut (), |()| Ok(()));
        prop_assert_eq!(unheard.unwrap(), summary);
    }

    #[test]
    fn every_request_ends_once_with_all_its_tokens_and_times_in_order(requests in requests(), blocks in 24_u32..80) {
        let trace = trace_of(&requests);
        let model = step_model("l40s");
        let result = simulate(&trace, blocks, StepClock::Model(&model), Arrivals::Trace { speed: 1.0 });
        for (i, r) in result.records.iter().enumerate() {
            if r.rejected {
                continue;
            }
            prop_assert_eq!(r.output_tokens, trace.output_len(i).max(1));
            prop_assert!(r.arrival_s <= r.admitted_s, "{r:?}");
            prop_assert!(r.admitted_s < r.first_token_s && r.first_token_s <= r.finished_s, "{r:?}");
        }
        let busy = result.busy.total_s() + result.host_s;
        prop_assert!((busy + result.idle_s - result.end_s).abs() < 1e-6 * result.end_s.max(1.0));
    }

    #[test]
    fn a_faster_gpu_finishes_no_later(requests in requests()) {
        let trace = trace_of(&requests);
        let (slow, fast) = (step_model("l40s"), step_model("h200_sxm"));
        let closed = Arrivals::Closed { concurrency: 4 };
        let slow = simulate(&trace, 4096, StepClock::Model(&slow), closed);
        let fast = simulate(&trace, 4096, StepClock::Model(&fast), closed);
        prop_assert!(fast.end_s <= slow.end_s);
    }
}

#[test]
fn little_s_law_holds_in_a_closed_loop() {
    let lengths = Lengths {
        input_tokens: 600,
        output_tokens: 200,
        ratio: 0.5,
    };
    let trace = closed_loop(lengths, 200, 7).unwrap();
    let model = step_model("h100_sxm");
    let result = simulate(
        &trace,
        4096,
        StepClock::Model(&model),
        Arrivals::Closed { concurrency: 4 },
    );
    let inside: f64 = result.records.iter().map(|r| r.finished_s - r.arrival_s).sum();
    let mean = inside / result.end_s;
    assert!((mean - 4.0).abs() < 0.1, "mean number in the system {mean}");
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another_one() {
    let lengths = Lengths {
        input_tokens: 600,
        output_tokens: 200,
        ratio: 0.5,
    };
    let model = step_model("h100_sxm");
    let of = |seed| {
        let trace = open_loop(lengths, 50, 3.0, 1.0, seed).unwrap();
        simulate(
            &trace,
            4096,
            StepClock::Model(&model),
            Arrivals::Trace { speed: 1.0 },
        )
        .end_s
    };
    assert_eq!(of(1).to_bits(), of(1).to_bits());
    assert_ne!(of(1).to_bits(), of(2).to_bits());
}

#[test]
fn senseless_workloads_are_refused_with_the_flag_s_name() {
    let lengths = Lengths {
        input_tokens: 600,
        output_tokens: 200,
        ratio: 0.5,
    };
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(
            open_loop(lengths, 5, rate, 1.0, 0)
                .unwrap_err()
                .to_string()
                .contains("--rate")
        );
    }
    assert!(
        closed_loop(lengths, 0, 0)
            .unwrap_err()
            .to_string()
            .contains("--requests")
    );
    assert!(
        closed_loop(
            Lengths {
                ratio: 1.5,
                ..lengths
            },
            5,
            0
        )
        .unwrap_err()
        .to_string()
        .contains("--length-ratio")
    );
    assert!(
        closed_loop(
            Lengths {
                input_tokens: 0,
                ..lengths
            },
            5,
            0
        )
        .is_err()
    );
    let trace = closed_loop(lengths, 5, 0).unwrap();
    let deployment = Deployment::new(EngineConfig::Vllm(scheduler(4096)), StepClock::Fixed(0.05));
    assert!(run(&trace, &deployment, Arrivals::Closed { concurrency: 0 }, ()).is_err());
    let error = run(&trace, &deployment, Arrivals::Trace { speed: 1.0 }, ()).unwrap_err();
    assert!(error.to_string().contains("no arrival times"));
}
