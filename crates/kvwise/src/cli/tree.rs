//! `kvwise tree`: which shared prefixes save most.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};

use super::deployment::{CacheFlags, cache_block};
use super::trace_input::TraceInput;
use crate::printer::{ExitStatus, Printer};
use crate::usecase::kv_room::kv_room;
use crate::usecase::trace_info;
use crate::usecase::trace_memory::Need;

/// The shared prefixes of a trace that save most: which system prompt is worth what.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise tree --example
  kvwise tree trace.jsonl --top 50 --kv-bytes-per-token 131072
  kvwise tree trace.jsonl --model Qwen/Qwen3-32B --gpu h100 --tp 2
  kvwise tree traces/ --format csv -o prefixes.csv")]
pub struct TreeArgs {
    #[command(flatten)]
    input: TraceInput,

    /// How many prefixes to list.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,

    /// KV-cache bytes of one token, to answer in bytes too; --model knows it.
    #[arg(
        long,
        visible_alias = "bytes-per-token",
        value_name = "BYTES",
        conflicts_with = "model"
    )]
    kv_bytes_per_token: Option<u64>,

    #[command(flatten)]
    deployment: CacheFlags,

    /// How to answer [default: table on a terminal, json elsewhere].
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<TreeFormat>,

    /// Write the answer to this file, whole or not at all.
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TreeFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

/// Runs the command.
///
/// # Errors
/// If the trace cannot be read or the answer not written.
pub fn run(args: &TreeArgs, printer: Printer) -> Result<ExitStatus> {
    let room = args
        .deployment
        .deployment()?
        .map(|deployment| kv_room(&deployment))
        .transpose()?;
    let loaded = args.input.load(
        printer,
        &Need {
            what: "the prefix tree",
            block_tokens: args.deployment.expected_block(room.as_ref()),
            beside: &kvwise_sim::tree::working_bytes,
        },
    )?;
    if let Some(room) = &room {
        room.warnings.iter().for_each(|warning| printer.warn(warning));
    }
    let block_tokens = cache_block(&args.deployment, room.as_ref(), &loaded.trace)?;
    let kv_bytes_per_token = room
        .as_ref()
        .map(|r| r.bytes_per_token)
        .or(args.kv_bytes_per_token);
    let report = trace_info::tree(&loaded, block_tokens, args.top, kv_bytes_per_token)?;
    let default = if args.output.is_none() && printer.stdout_is_terminal() {
        TreeFormat::Table
    } else {
        TreeFormat::Json
    };
    let text = match args.format.unwrap_or(default) {
        TreeFormat::Table => report.text(),
        TreeFormat::Csv => report.csv(),
        TreeFormat::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|e| Error::input(format!("the answer cannot be written as JSON: {e}")))? + "\n"
        }
    };
    printer.data_to(args.output.as_deref(), &text)?;
    Ok(ExitStatus::Success)
}
