//! `kvwise curve`: hit rate at every capacity.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_sim::curve::Semantics;

use super::deployment::{CacheFlags, cache_block};
use super::output::preferred_among;
use super::trace_input::TraceInput;
use crate::printer::{ExitStatus, Printer};
use crate::usecase::curve::{CurveQuestion, Held, Room, answer, working_bytes};
use crate::usecase::kv_room::kv_room;
use crate::usecase::trace_memory::Need;

/// Hit rate of the prefix cache at every capacity, from one pass over a trace.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise curve --example
  kvwise curve conversation_trace.jsonl.zst --capacities 1000,10000,100000 --format json
  kvwise curve trace.jsonl --semantics vllm --kv-bytes-per-token 131072 --capacities 40GiB,80GiB
  kvwise curve trace.jsonl --model meta-llama/Llama-3.1-8B --gpu h100           # what would 2x the memory buy?
  kvwise curve trace.jsonl --model Qwen/Qwen3-32B --gpu h100 --tp 2 --tiers host=200GiB,disk=1TiB
  kvwise curve traces/ --kv-bytes-per-token 131072 --tiers gpu=60GiB,host=500GiB,disk=4TiB
  kvwise curve trace.jsonl --every-step --format csv -o curve.csv
  kvwise curve trace.jsonl --format svg -o curve.svg")]
pub struct CurveArgs {
    #[command(flatten)]
    input: TraceInput,

    /// Whose rules: any block cacheable and requests cut to the cache (prefix-lru), or vLLM 0.32's pool (vllm).
    #[arg(long, value_enum, default_value_t = SemanticsName::PrefixLru)]
    semantics: SemanticsName,

    /// Capacities: blocks (5000), tokens (80000tokens) or bytes (40GiB) [default: a spread].
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = Room::parse)]
    capacities: Vec<Room>,

    /// Every capacity at which the hit rate changes.
    #[arg(long, conflicts_with = "capacities")]
    every_step: bool,

    /// KV-cache bytes of one token, to answer in bytes too; --model knows it.
    #[arg(
        long,
        visible_alias = "bytes-per-token",
        value_name = "BYTES",
        conflicts_with = "model"
    )]
    kv_bytes_per_token: Option<u64>,

    /// The cache that there is, in blocks, tokens or bytes: what would more of it buy? --model knows it.
    #[arg(long, value_name = "ROOM", value_parser = Room::parse, conflicts_with = "model")]
    have: Option<Room>,

    /// Room of each tier, fastest first: gpu=60GiB,host=500GiB (or blocks, or tokens). Bytes of the tier gpu are those
    /// of one GPU; with --model or --have the tier gpu may be left out.
    #[arg(long, value_delimiter = ',', value_name = "NAME=ROOM,...", value_parser = parse_tier)]
    tiers: Vec<(String, Room)>,

    /// Add the most hits that any eviction rule could have (Belady), about 100 ns a block access and point.
    #[arg(long)]
    belady: bool,

    #[command(flatten)]
    deployment: CacheFlags,

    /// How to answer [default: table on a terminal, json elsewhere; by the name of FILE].
    #[arg(
        long,
        value_enum,
        env = "KVWISE_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    format: Option<CurveFormat>,

    /// Write the answer to this file, whole or not at all.
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SemanticsName {
    /// Leaf-first LRU at block granularity, the last partial block included.
    PrefixLru,
    /// vLLM 0.32: full blocks only, the last token is always computed.
    Vllm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CurveFormat {
    /// For people, with a plot.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For documents.
    Markdown,
    /// A picture.
    Svg,
    /// A page with the picture.
    Html,
}

pub(super) fn parse_tier(text: &str) -> Result<(String, Room)> {
    let (name, room) = text
        .split_once('=')
        .filter(|(name, _)| !name.trim().is_empty())
        .ok_or_else(|| {
            Error::input(format!(
                "\"{text}\" is not a tier, expected NAME=ROOM as in gpu=60GiB"
            ))
        })?;
    Ok((name.trim().to_owned(), Room::parse(room.trim())?))
}

/// Runs the command.
///
/// # Errors
/// If the trace cannot be read or the answer not written.
pub fn run(args: &CurveArgs, printer: Printer) -> Result<ExitStatus> {
    let room = args
        .deployment
        .deployment()?
        .map(|deployment| kv_room(&deployment))
        .transpose()?;
    let loaded = args.input.load(
        printer,
        &Need {
            what: "the curve",
            block_tokens: args.deployment.expected_block(room.as_ref()),
            beside: &|size| working_bytes(size, args.belady, args.semantics == SemanticsName::Vllm),
        },
    )?;
    let mut status = ExitStatus::Success;
    if let Some(room) = &room {
        room.warnings.iter().for_each(|warning| printer.warn(warning));
        if let Some(reason) = &room.refused {
            printer.warn(&format!("{} would not start: {reason}", room.name));
            status = ExitStatus::No;
        }
    }
    let block_tokens = cache_block(&args.deployment, room.as_ref(), &loaded.trace)?;
    let question = CurveQuestion {
        semantics: match args.semantics {
            SemanticsName::PrefixLru => Semantics::PrefixLru,
            SemanticsName::Vllm => Semantics::Vllm,
        },
        block_tokens,
        capacities: args.capacities.clone(),
        every_step: args.every_step,
        tiers: args.tiers.clone(),
        kv_bytes_per_token: room
            .as_ref()
            .map(|r| r.bytes_per_token)
            .or(args.kv_bytes_per_token),
        kv_bytes_per_token_total: room.as_ref().map(|r| r.bytes_per_token_total),
        held: room.as_ref().and_then(Held::of).or(args.have.map(Held::stated)),
        belady: args.belady,
    };
    let report = answer(&loaded, &question)?;
    let format = args
        .format
        .unwrap_or_else(|| default_format(args.output.as_deref(), printer));
    let text = match format {
        CurveFormat::Table => report.text(80),
        CurveFormat::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|e| Error::input(format!("the answer cannot be written as JSON: {e}")))? + "\n"
        }
        CurveFormat::Csv => report.csv(),
        CurveFormat::Markdown => report.markdown(),
        CurveFormat::Svg => report.chart().svg(900, 480)?,
        CurveFormat::Html => report.html()?,
    };
    printer.data_to(args.output.as_deref(), &text)?;
    Ok(status)
}

fn default_format(output: Option<&std::path::Path>, printer: Printer) -> CurveFormat {
    match output.map(|path| path.extension().and_then(|e| e.to_str()).unwrap_or_default()) {
        Some("csv") => CurveFormat::Csv,
        Some("md") => CurveFormat::Markdown,
        Some("svg") => CurveFormat::Svg,
        Some("html" | "htm") => CurveFormat::Html,
        Some("txt") => CurveFormat::Table,
        None if preferred_among::<CurveFormat>().is_some() => preferred_among().unwrap_or(CurveFormat::Json),
        None if printer.stdout_is_terminal() => CurveFormat::Table,
        _ => CurveFormat::Json,
    }
}
