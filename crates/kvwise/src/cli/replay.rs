//! `kvwise replay`: a trace through an engine's prefix cache.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_io::trace::{Loaded, ReadOptions, open};
use kvwise_sim::sched::sglang::ReplayConfig;
use kvwise_sim::trace::TraceFormat;
use serde::Serialize;

use crate::cli::replay_vllm::VllmArgs;
use crate::printer::{ExitStatus, Printer};
use crate::usecase::{replay_sglang, replay_vllm};

/// Replay a trace through an engine's prefix cache, event for event.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise replay trace.jsonl --engine vllm --num-blocks 4000 --events events.jsonl
  kvwise replay conversation_trace.jsonl.zst --engine vllm --num-blocks 20000 --max-model-len 131072
  kvwise replay trace.jsonl --engine vllm --num-blocks 2200 --groups full:1,swa1024:5 --format json
  kvwise replay trace.jsonl --engine sglang --capacity 200000
  kvwise replay trace.jsonl.zst --engine sglang --capacity 60032 --page 64 --policy slru --events events.jsonl")]
pub struct ReplayArgs {
    /// The trace: a file (plain, .gz or .zst) or - for standard input.
    #[arg(value_name = "TRACE")]
    trace: PathBuf,

    /// Whose cache.
    #[arg(long, value_enum, default_value = "vllm")]
    engine: Engine,

    /// Format of the trace [default: detected].
    #[arg(long, value_name = "FORMAT", help_heading = "Trace")]
    trace_format: Option<TraceFormat>,

    /// Tokens that a hash id stands for [default: 512; Bailian 16].
    #[arg(long, value_name = "TOKENS", help_heading = "Trace")]
    hash_block: Option<u32>,

    /// Leave out unreadable lines and count them.
    #[arg(long, help_heading = "Trace")]
    skip_bad: bool,

    /// Write one line of JSON per event to this file.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    events: Option<PathBuf>,

    /// How to print the totals [default: table on a terminal, json elsewhere].
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<Format>,

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
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
    match args.engine {
        Engine::Vllm => vllm(args, printer),
        Engine::Sglang => sglang(args, printer),
    }
}

fn vllm(args: &ReplayArgs, printer: Printer) -> Result<ExitStatus> {
    let loaded = load(args, printer)?;
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
    let loaded = load(args, printer)?;
    let report = replay_sglang::replay(&loaded.trace, &config, args.events.as_deref())?;
    print(args, printer, &report)
}

/// Reads the trace and says what was left out.
fn load(args: &ReplayArgs, printer: Printer) -> Result<Loaded> {
    let options = ReadOptions {
        format: args.trace_format,
        hash_block_tokens: args.hash_block,
        skip_bad: args.skip_bad,
        ..ReadOptions::default()
    };
    let loaded = open(&args.trace, &options)?;
    if loaded.skipped > 0 {
        printer.warn(&format!("{} unreadable lines were left out", loaded.skipped));
        for example in &loaded.skipped_examples {
            printer.note(&format!("  {example}"));
        }
    }
    Ok(loaded)
}

/// Prints a flat report: as JSON, or a name and a value a line.
fn print(args: &ReplayArgs, printer: Printer, report: &impl Serialize) -> Result<ExitStatus> {
    let broken = |e: serde_json::Error| Error::input(format!("the report cannot be written as JSON: {e}"));
    let table = args
        .format
        .map_or(printer.stdout_is_terminal(), |format| format == Format::Table);
    let text = if table {
        let value = serde_json::to_value(report).map_err(broken)?;
        let fields = value
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name != "schema");
        fields.fold(String::new(), |text, (name, value)| {
            text + &format!("{name:<20} {}\n", value.to_string().trim_matches('"'))
        })
    } else {
        serde_json::to_string_pretty(report).map_err(broken)? + "\n"
    };
    printer.data(&text)?;
    Ok(ExitStatus::Success)
}
