//! Measures a simulation of a trace on a clock made of kernel times: Llama-3.1-8B on one H100.
//!
//! `cargo run --release -p kvwise-sim --example simulate_speed -- TRACE.jsonl [vllm|sglang] [TIMES]` with a trace in Mooncake's
//! form. The last figure names the run: it changes with any time of any request.

#[path = "mooncake/mod.rs"]
mod mooncake;

use std::time::Instant;

use kvwise_core::arch::{Config, family};
use kvwise_core::catalogue;
use kvwise_sim::cost::{Calibration, Engine, StepModel, StepOptions};
use kvwise_sim::sched::sglang::step::StepConfig;
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::simulate::{Arrivals, Deployment, EngineConfig, StepClock, run};

/// Blocks of 16 tokens of such a deployment.
const BLOCKS: u32 = 28_731;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(path) = args.first() else {
        return Err("usage: simulate_speed TRACE.jsonl [vllm|sglang] [TIMES]".into());
    };
    let sglang = args.get(1).is_some_and(|engine| engine == "sglang");
    let times: u32 = args.get(2).map_or(Ok(3), |n| n.parse())?;
    let trace = mooncake::read(path)?;
    let config = catalogue::find("meta-llama/Meta-Llama-3.1-8B")?.config_text()?;
    let family::Reading::Model(model) = family::read("llama", &Config::parse(config.as_bytes())?)? else {
        return Err("the model is refused".into());
    };
    let (kernels, engine) = if sglang {
        let pool = StepConfig::new(BLOCKS as usize * 16);
        (Engine::Sglang, EngineConfig::Sglang(pool))
    } else {
        let pool = SchedulerConfig {
            max_model_len: 131_072,
            ..SchedulerConfig::new(BLOCKS, 16)
        };
        (Engine::Vllm, EngineConfig::Vllm(pool))
    };
    let calibration = Calibration::embedded("h100_sxm")?;
    let step = StepModel::new(&model, &calibration, StepOptions::new(kernels, 1))?;
    let deployment = Deployment::new(engine, StepClock::Model(&step));
    for _ in 0..times {
        let start = Instant::now();
        let (run, ()) = run(&trace, &deployment, Arrivals::Trace { speed: 1.0 }, ())?;
        let seconds = start.elapsed().as_secs_f64();
        let mut name = 0xcbf2_9ce4_8422_2325_u64;
        let mut tokens = 0_u64;
        for r in &run.records {
            tokens += u64::from(r.output_tokens);
            for bits in [r.admitted_s, r.first_token_s, r.finished_s].map(f64::to_bits) {
                name = (name ^ bits).wrapping_mul(0x0100_0000_01b3);
            }
        }
        let mut out = std::io::stdout().lock();
        std::io::Write::write_fmt(
            &mut out,
            format_args!(
                "{} requests, {tokens} tokens, {} steps in {:.0} ms; {name:016x}\n",
                trace.len(),
                run.steps,
                seconds * 1e3
            ),
        )?;
    }
    Ok(())
}
