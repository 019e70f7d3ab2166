//! `kvwise replay`: a trace through an engine's prefix cache.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_sim::replay::sglang::{Clock, ReplayConfig};
use kvwise_sim::trace::Trace;
use kvwise_sim::{replay, sched};
use serde::Serialize;

use super::interrupt::leave_nothing_behind;
use super::output::Output;
use super::replay_sglang::{Driver, SglangArgs};
use super::replay_vllm::VllmArgs;
use super::trace_input::TraceInput;
use crate::printer::{ExitStatus, Printer};
use crate::report::table::{Align, Grid};
use crate::usecase::trace_memory::Need;
use crate::usecase::{replay_batches, replay_sglang, replay_vllm};

/// Replay a trace through an engine's prefix cache, event for event.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise replay trace.jsonl --engine vllm --num-blocks 4000 --events events.jsonl
  kvwise replay conversation_trace.jsonl.zst --engine vllm --num-blocks 20000 --max-model-len 131072
  kvwise replay trace.jsonl --engine vllm --num-blocks 2200 --groups full:1,swa1024:5 --format json
  kvwise replay trace.jsonl --engine vllm --num-blocks 4000 --engine-version 0.22   # frees in the older order
  kvwise replay trace.jsonl --num-blocks 4000 --speculative-config '{\"method\":\"eagle3\",\"num_speculative_tokens\":3}'
  kvwise replay trace.jsonl --engine sglang --capacity 200000
  kvwise replay trace.jsonl.zst --engine sglang --capacity 60032 --page 64 --policy slru --events events.jsonl
  kvwise replay trace.jsonl --engine sglang --capacity 200000 --scheduler batch --chunked-prefill-size 2048
  kvwise replay trace.jsonl --engine sglang --capacity 200000 --enable-priority-scheduling --enable-mixed-chunk")]
pub struct ReplayArgs {
    #[command(flatten)]
    input: TraceInput,

    /// Whose cache.
    #[arg(long, value_enum, default_value = "vllm")]
    engine: Engine,

    /// Write one line of JSON per event to this file.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    events: Option<PathBuf>,

    #[command(flatten)]
    output: Output,

    /// vLLM: order of requests, fcfs or priority [default: fcfs]. SGLang: eviction, lru, lfu, slru, priority, tlru, fifo,
    /// mru or filo [default: lru].
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,

    /// What arrival times count [default: step for the tokens format, time for others]. SGLang: with --scheduler batch.
    #[arg(long, value_enum, help_heading = "Clock")]
    clock: Option<ClockArg>,

    /// Seconds a step takes, under --clock time.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.05, help_heading = "Clock")]
    step_time: f64,

    #[command(flatten)]
    vllm: VllmArgs,

    #[command(flatten)]
    sglang: SglangArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// vLLM 0.32.0: scheduler, block pool and managers.
    Vllm,
    /// SGLang 0.5.23: radix tree, allocators and request rows, one request after the other or by its scheduler.
    Sglang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClockArg {
    /// Scheduler steps.
    Step,
    /// Seconds.
    Time,
}

impl ReplayArgs {
    fn clock(&self, trace: &Trace) -> Clock {
        let steps = self.clock.map(|clock| clock == ClockArg::Step);
        replay_vllm::clock(steps, self.step_time, trace.format())
    }
}

/// Runs the command.
///
/// # Errors
/// If the trace cannot be read, a flag makes no sense, or an output cannot be written.
pub fn run(args: &ReplayArgs, printer: Printer) -> Result<ExitStatus> {
    if args.events.is_some() {
        leave_nothing_behind()?;
    }
    match args.engine {
        Engine::Vllm => vllm(args, printer),
        Engine::Sglang => sglang(args, printer),
    }
}

fn vllm(args: &ReplayArgs, printer: Printer) -> Result<ExitStatus> {
    let loaded = args.input.load(
        printer,
        &Need {
            what: "the replay",
            block_tokens: Some(args.vllm.block_size()),
            beside: &|size| args.vllm.working_bytes(size),
        },
    )?;
    let clock = args.clock(&loaded.trace);
    let config = args
        .vllm
        .config(args.policy.as_deref(), clock, &loaded.trace, printer)?;
    let report = replay_vllm::replay(&loaded.trace, &config, args.events.as_deref())?;
    print(args, printer, &report)
}

fn sglang(args: &ReplayArgs, printer: Printer) -> Result<ExitStatus> {
    match args.sglang.driver(args.policy.as_deref())? {
        Driver::OneByOne(config) => {
            if args.clock.is_some() {
                return Err(Error::input(
                    "--clock has no effect on requests that are served one by one, in the order of the trace",
                )
                .hint("pass --scheduler batch to replay SGLang's own batches"));
            }
            let need = Need {
                what: "the replay",
                block_tokens: None,
                beside: &|size| {
                    let (tokens, page) = (config.capacity_tokens as u64, config.page_size as u64);
                    sched::sglang::working_bytes(size, tokens, page, config.max_running as u64)
                },
            };
            let loaded = args.input.load(printer, &need)?;
            let report = replay_sglang::replay(&loaded.trace, &config, args.events.as_deref())?;
            print(args, printer, &report)
        }
        Driver::Batch(scheduler) => {
            let need = Need {
                what: "the replay",
                block_tokens: None,
                beside: &|size| {
                    let (tokens, page) = (scheduler.capacity_tokens as u64, scheduler.page_size as u64);
                    replay::sglang::working_bytes(size, tokens, page, scheduler.max_running as u64)
                },
            };
            let loaded = args.input.load(printer, &need)?;
            let clock = args.clock(&loaded.trace);
            let config = ReplayConfig { scheduler, clock };
            let report = replay_batches::replay(&loaded.trace, &config, args.events.as_deref())?;
            print(args, printer, &report)
        }
    }
}

/// Prints a flat report: its fields as rows, or as JSON.
fn print(args: &ReplayArgs, printer: Printer, report: &impl Serialize) -> Result<ExitStatus> {
    let value = serde_json::to_value(report)
        .map_err(|e| Error::input(format!("the report cannot be written as JSON: {e}")))?;
    let mut grid = Grid::new(&[("figure", Align::Left), ("value", Align::Right)]);
    for (name, value) in value.as_object().into_iter().flatten() {
        if name != "schema" {
            grid.row([name.clone(), value.to_string().trim_matches('"').to_owned()]);
        }
    }
    args.output.rows(printer, &grid, report)?;
    Ok(ExitStatus::Success)
}
