//! Measures a replay through vLLM's scheduler: blocks allocated a second, events off.
//!
//! `cargo run --release -p kvwise-sim --example replay_speed -- [TRACE.jsonl] [NUM_BLOCKS] [BLOCK_SIZE] [step|time]`
//! with a trace in Mooncake's form; without one, a generated conversation trace.

#![expect(clippy::cast_possible_truncation, reason = "small numbers of an example")]

#[path = "mooncake/mod.rs"]
mod mooncake;

use std::time::Instant;

use kvwise_sim::replay::vllm::{Clock, Isolation, ReplayConfig, run};
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let num_blocks = args.get(1).map_or(Ok(20_000), |n| n.parse())?;
    let block_size = args.get(2).map_or(Ok(16), |n| n.parse())?;
    let clock = match args.get(3).map(String::as_str) {
        Some("step") => Clock::Steps,
        _ => Clock::Seconds { step_time: 0.05 },
    };
    let trace = match args.first().map(String::as_str) {
        Some(path) if path != "-" => mooncake::read(path)?,
        _ => generated()?,
    };
    let config = ReplayConfig {
        scheduler: SchedulerConfig {
            max_model_len: 131_072,
            ..SchedulerConfig::new(num_blocks, block_size)
        },
        clock,
        isolation: Isolation::default(),
    };
    for _ in 0..3 {
        let start = Instant::now();
        let summary = run(&trace, &config, &mut (), |()| Ok(()))?;
        let seconds = start.elapsed().as_secs_f64();
        let mut out = std::io::stdout().lock();
        std::io::Write::write_fmt(
            &mut out,
            format_args!(
                "{} requests, {} steps, {} blocks in {:.1} ms: {:.1} M blocks/s (hit rate {}, {} preemptions, {} rejected)\n",
                summary.requests,
                summary.steps,
                summary.allocated_blocks,
                seconds * 1e3,
                summary.allocated_blocks as f64 / seconds / 1e6,
                summary.hit_rate,
                summary.preemptions,
                summary.rejected,
            ),
        )?;
    }
    Ok(())
}

/// Conversations that grow turn by turn, from a few system prompts.
fn generated() -> Result<Trace, Failure> {
    let mut builder = TraceBuilder::new("generated", 512, IdMeaning::Prefix);
    let mut state = 1_u64;
    let mut random = |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut next_id = 0;
    let mut open: Vec<Vec<u64>> = Vec::new();
    for i in 0..12_000_u32 {
        let mut ids = if !open.is_empty() && random(2) == 0 {
            open.swap_remove(random(open.len() as u64) as usize)
        } else {
            Vec::new()
        };
        for _ in 0..=random(30) {
            ids.push(next_id);
            next_id += 1;
        }
        builder.push(&NewRequest {
            arrival: Some(f64::from(i) * 0.3),
            input_len: Some(ids.len() as u64 * 512 - random(500)),
            output_len: Some(1 + random(600)),
            prompt: PromptIds::Blocks(&ids),
            ..NewRequest::default()
        })?;
        // A turn goes on from its full blocks only.
        ids.pop();
        if ids.len() < 60 {
            open.push(ids);
        }
    }
    Ok(builder.finish())
}
