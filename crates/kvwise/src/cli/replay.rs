//! `kvwise replay`: a trace through an engine's prefix cache.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_sim::sched::{self, sglang::ReplayConfig};
use serde::Serialize;

use super::interrupt::leave_nothing_behind;
use super::output::Output;
use super::replay_vllm::VllmArgs;
use super::trace_input::TraceInput;
use crate::printer::{ExitStatus, Printer};
use crate::report::table::{Align, Grid};
use crate::usecase::trace_memory::Need;
use crate::usecase::{replay_sglang, replay_vllm};

/// Replay a trace through an engine's prefix cache, event for event.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise replay trace.jsonl --engine vllm --num-blocks 4000 --events events.jsonl
  kvwise replay conversation_trace.jsonl.zst --engine vllm --num-blocks 20000 --max-model-len 131072
  kvwise replay trace.jsonl --engine vllm --num-blocks 2200 --groups full:1,swa1024:5 --format json
  kvwise replay trace.jsonl --engine vllm --num-blocks 4000 --engine-version 0.22   # frees in the older order
  kvwise replay trace.jsonl --num-blocks 4000 --speculative-config '{\"method\":\"eagle3\",\"num_speculative_tokens\":3}'
  kvwise replay trace.jsonl --engine sglang --capacity 200000
  kvwise replay trace.jsonl.zst --engine sglang --capacity 60032 --page 64 --policy slru --events events.jsonl")]
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

    #[command(flatten)]
    vllm: VllmArgs,

    #[command(flatten)]
    sglang: SglangArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// vLLM 0.32.0: scheduler, block pool and managers.
    Vllm,
    /// SGLang 0.5.23: radix tree, allocators and request rows.
    Sglang,
}

/// Flags of `--engine sglang`.
#[derive(Debug, Args)]
#[command(next_help_heading = "SGLang")]
struct SglangArgs {
    /// Tokens of the KV pool (what SGLang logs as `max_total_num_tokens`), a multiple of the page size.
    #[arg(long, value_name = "TOKENS")]
    capacity: Option<usize>,

    /// Tokens per page (--page-size of the server).
    #[arg(long, value_name = "TOKENS", default_value_t = 1)]
    page: usize,

    /// Parameters of the policy: {"`protected_threshold"`: 2} or {"threshold": 0, "`next_prompt_estimate"`: 0}.
    #[arg(long, value_name = "JSON")]
    policy_config: Option<String>,

    /// Requests held running at once.
    #[arg(long, value_name = "N", default_value_t = 1)]
    running: usize,

    /// Longest prompt plus output; longer requests are refused.
    #[arg(long, value_name = "TOKENS", default_value_t = 131_072)]
    max_context: usize,
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
    let config = args.vllm.config(args.policy.as_deref(), &loaded.trace, printer)?;
    let report = replay_vllm::replay(&loaded.trace, &config, args.events.as_deref())?;
    print(args, printer, &report)
}

fn sglang(args: &ReplayArgs, printer: Printer) -> Result<ExitStatus> {
    let flags = &args.sglang;
    let capacity_tokens = flags.capacity.ok_or_else(|| {
        Error::input("--capacity is missing: the tokens of the KV pool")
            .hint("SGLang logs it at its start as max_total_num_tokens")
    })?;
    // slots are numbered in 31 bits
    if capacity_tokens >= 1 << 31 {
        return Err(Error::input(format!(
            "--capacity is {capacity_tokens} tokens, expected less than 2^31"
        )));
    }
    let config = ReplayConfig {
        capacity_tokens,
        page_size: flags.page,
        policy: replay_sglang::policy(
            args.policy.as_deref().unwrap_or("lru"),
            flags.policy_config.as_deref(),
        )?,
        max_running: flags.running,
        max_context_tokens: flags.max_context,
        longest_request_tokens: None,
    };
    let loaded = args.input.load(
        printer,
        &Need {
            what: "the replay",
            block_tokens: None,
            beside: &|size| {
                let tokens = capacity_tokens as u64;
                sched::sglang::working_bytes(size, tokens, flags.page as u64, flags.running as u64)
            },
        },
    )?;
    let report = replay_sglang::replay(&loaded.trace, &config, args.events.as_deref())?;
    print(args, printer, &report)
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
