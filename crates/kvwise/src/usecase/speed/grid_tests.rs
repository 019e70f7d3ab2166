//! Speeds of the models, GPUs and engines that public benchmarks run, held against each other.

use kvwise_core::plan::Plan;

use super::super::deployment::Deployment;
use super::super::plan::plan;
use super::super::served::{Prepared, Serving, prepare};

const CONCURRENCIES: [u64; 6] = [4, 8, 16, 64, 256, 512];
/// Mean cached tokens of requests of 1k/1k and 8k/1k (1k/8k lies between).
const CONTEXTS: [&str; 2] = ["1536", "8704"];
const GPUS: [&str; 3] = ["h100", "h200", "b200"];

/// Models with the format they are served in (none: the checkpoint's) and the GPUs of each kind that are enough for it.
const MODELS: [(&str, Option<&str>, [u64; 3]); 5] = [
    ("meta-llama/Llama-3.1-70B", Some("fp8"), [2, 1, 1]),
    ("openai/gpt-oss-120b", None, [1, 1, 1]),
    ("MiniMaxAI/MiniMax-M2.5", None, [4, 2, 2]),
    ("deepseek-ai/DeepSeek-R1", None, [16, 8, 8]),
    ("Qwen/Qwen3.5-397B-A17B", Some("fp8"), [8, 4, 4]),
];

#[derive(Clone, Copy)]
struct Kind {
    model: usize,
    gpu: usize,
    engine: &'static str,
    tp: u64,
    ep: bool,
}

impl Kind {
    fn deployment(self) -> Deployment {
        let (model, quantization, _) = MODELS[self.model];
        Deployment {
            model: Some(model.to_owned()),
            gpu: Some(GPUS[self.gpu].to_owned()),
            engine: Some(self.engine.to_owned()),
            quantization: quantization.map(str::to_owned),
            tensor_parallel_size: Some(self.tp),
            enable_expert_parallel: self.ep,
            max_model_len: Some("9472".to_owned()),
            context: CONTEXTS.iter().map(|&c| c.to_owned()).collect(),
            concurrency: CONCURRENCIES.to_vec(),
            ..Deployment::default()
        }
    }

    fn name(self) -> String {
        format!(
            "{} on {} x {}, {}{}",
            MODELS[self.model].0,
            self.tp,
            GPUS[self.gpu],
            self.engine,
            if self.ep { ", whole experts" } else { "" }
        )
    }
}

/// Expected times per token and to the first token, in the order of the grid; `None` where it would not start.
fn speeds(kind: Kind) -> Option<Vec<(f64, f64)>> {
    let told: Plan = plan(&kind.deployment(), false).unwrap_or_else(|e| panic!("{}: {e}", kind.name()));
    if told.feasibility.refused.is_some() {
        return None;
    }
    let of_row = |row: &kvwise_core::plan::report::GridRow| {
        let speed = row.speed?;
        Some((speed.tpot_ms.expected?, speed.ttft_ms.expected?))
    };
    told.grid.iter().map(of_row).collect()
}

fn kinds() -> Vec<Kind> {
    let mut all = Vec::new();
    for (model, (_, _, enough)) in MODELS.iter().enumerate() {
        for (gpu, &least) in enough.iter().enumerate() {
            for engine in ["vllm", "sglang"] {
                for tp in [1, 2, 4, 8] {
                    for ep in [false, true] {
                        if tp >= least && !(ep && (tp == 1 || model == 0)) {
                            all.push(Kind {
                                model,
                                gpu,
                                engine,
                                tp,
                                ep,
                            });
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn more_requests_take_longer_steps_and_never_as_many_times_longer() {
    let mut seen = 0;
    for kind in kinds() {
        let Some(speeds) = speeds(kind) else { continue };
        seen += 1;
        assert_eq!(
            speeds.len(),
            CONTEXTS.len() * CONCURRENCIES.len(),
            "{}",
            kind.name()
        );
        for of_context in speeds.chunks(CONCURRENCIES.len()) {
            for pair in of_context.windows(2) {
                let (fewer, more) = (pair[0].0, pair[1].0);
                // 16 to 64 and 64 to 256 are four times as many.
                assert!(
                    fewer <= more && more < 4.0 * fewer,
                    "{}: {fewer} and {more} ms",
                    kind.name()
                );
            }
            for &(_, ttft) in of_context {
                assert!((20.0..20_000.0).contains(&ttft), "{}: {ttft} ms", kind.name());
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn a_faster_gpu_is_never_slower_and_more_gpus_pay_no_more_than_their_number() {
    for kind in kinds() {
        let Some(slower) = speeds(kind) else { continue };
        if kind.gpu + 1 < GPUS.len() {
            let next = Kind {
                gpu: kind.gpu + 1,
                ..kind
            };
            if let Some(faster) = speeds(next) {
                for (a, b) in faster.iter().zip(&slower) {
                    assert!(
                        a.0 <= b.0 * 1.001,
                        "{}: {} ms against {} ms",
                        next.name(),
                        a.0,
                        b.0
                    );
                }
            }
        }
        if kind.tp < 8 {
            let more = Kind {
                tp: 2 * kind.tp,
                ..kind
            };
            if let Some(faster) = speeds(more) {
                for (a, b) in faster.iter().zip(&slower) {
                    assert!(
                        (0.5 * b.0..1.1 * b.0).contains(&a.0),
                        "{}: {} ms against {} ms",
                        more.name(),
                        a.0,
                        b.0
                    );
                }
            }
        }
        if !kind.ep {
            let whole = Kind { ep: true, ..kind };
            if let Some(whole_experts) = speeds(whole).filter(|_| kind.tp > 1 && kind.model > 0) {
                for (a, b) in whole_experts.iter().zip(&slower) {
                    assert!(
                        (0.4 * b.0..2.5 * b.0).contains(&a.0),
                        "{}: {} and {} ms",
                        whole.name(),
                        a.0,
                        b.0
                    );
                }
            }
        }
    }
}

#[test]
fn what_public_benchmarks_run_is_simulated() {
    let run = |model: usize, gpu: usize, engine: &'static str, tp: u64, ep: bool| Kind {
        model,
        gpu,
        engine,
        tp,
        ep,
    };
    let mut all = Vec::new();
    for (gpu, least) in [2, 1, 1].into_iter().enumerate() {
        for tp in [1, 2, 4, 8].into_iter().filter(|&tp| tp >= least) {
            all.push(run(0, gpu, "vllm", tp, false));
            all.push(run(1, gpu, "vllm", tp, false));
        }
    }
    all.extend([
        run(2, 0, "vllm", 4, true),
        run(2, 0, "vllm", 8, true),
        run(2, 1, "vllm", 4, false),
        run(2, 1, "vllm", 8, true),
        run(2, 2, "vllm", 2, false),
        run(2, 2, "vllm", 4, false),
        run(2, 2, "vllm", 4, true),
        run(3, 1, "sglang", 8, false),
        run(3, 2, "sglang", 8, false),
        run(3, 2, "sglang", 4, false),
        run(3, 1, "vllm", 8, false),
        run(3, 2, "vllm", 8, true),
        run(4, 0, "sglang", 8, false),
        run(4, 0, "sglang", 8, true),
        run(4, 1, "sglang", 8, true),
        run(4, 2, "sglang", 4, false),
        run(4, 2, "sglang", 8, false),
    ]);
    for kind in all {
        let deployment = Deployment {
            context: Vec::new(),
            concurrency: Vec::new(),
            // DeepSeek-R1 on four B200 needs more than SGLang's own share; the benchmarks give it.
            mem_fraction_static: (kind.model == 3 && kind.engine == "sglang").then_some(0.95),
            ..kind.deployment()
        };
        match prepare(&deployment, &Serving::default()) {
            Ok(Prepared::Ready(_)) => {}
            Ok(Prepared::Refused(_, why)) => panic!("{}: {why}", kind.name()),
            Err(e) => panic!("{}: {e}", kind.name()),
        }
    }
}
