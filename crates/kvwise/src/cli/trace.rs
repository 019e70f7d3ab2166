//! `kvwise trace info|convert|generate`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_io::trace::{WriteFormat, write, write_file};
use kvwise_sim::generate::{Arrivals, Shape, Workload, generate};
use kvwise_sim::trace::Trace;

use super::interrupt::leave_nothing_behind;
use super::trace_input::TraceInput;
use crate::printer::{ExitStatus, Printer};
use crate::usecase::trace_info;
use crate::usecase::trace_memory::Need;

/// Describe, convert or generate request traces.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise trace info --example
  kvwise trace convert traces/ --to mooncake -o agentic.jsonl.zst
  kvwise trace generate --shape chat --requests 5000 --rate 4 --seed 7 -o chat.jsonl.zst")]
pub struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    Info(InfoArgs),
    Convert(ConvertArgs),
    Generate(Box<GenerateArgs>),
}

/// Lengths, arrivals, concurrency and sharing of a trace.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise trace info trace.jsonl.zst
  kvwise trace info azure.csv.gz --ttft 0.5 --tpot 0.03 --format json")]
struct InfoArgs {
    #[command(flatten)]
    input: TraceInput,

    /// Tokens of a cache block [default: the trace's; 16 for traces of tokens].
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,

    /// Assumed seconds to the first token, for the number of requests in service.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    ttft: f64,

    /// Assumed seconds of a generated token, for the number of requests in service.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.02)]
    tpot: f64,

    /// How to answer [default: table on a terminal, json elsewhere].
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<InfoFormat>,

    /// Write the answer to this file, whole or not at all.
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InfoFormat {
    /// For people, with histograms.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// JSON lines with hash ids; an id names a prefix.
    Mooncake,
    /// JSON lines as the engines' reference scripts take them.
    Tokens,
}

impl From<To> for WriteFormat {
    fn from(to: To) -> Self {
        match to {
            To::Mooncake => Self::Mooncake,
            To::Tokens => Self::Tokens,
        }
    }
}

/// Write a trace in another format.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise trace convert traces/ --to mooncake -o agentic.jsonl.zst
  kvwise trace convert tokens.jsonl --to mooncake --block-size 16 -o blocks.jsonl")]
struct ConvertArgs {
    #[command(flatten)]
    input: TraceInput,

    /// The format to write.
    #[arg(long, value_enum)]
    to: To,

    /// Tokens of a block when tokens are cut into blocks [default: the trace's; 512 for tokens].
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,

    /// The file, compressed if it ends in .gz or .zst [default: stdout].
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ShapeName {
    /// Single questions below one of several system prompts.
    SystemPrompts,
    /// Single questions below a header of worked examples.
    FewShot,
    /// Conversations that send their history again.
    Chat,
    /// Long conversations in quick succession, with answers of tools.
    Agents,
    /// A system prompt, one popular document, a question.
    Retrieval,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalName {
    /// Independent arrivals.
    Poisson,
    /// Gamma gaps: bursty above a variation of 1, regular below.
    Gamma,
    /// A rate that follows day and night.
    Diurnal,
}

/// Generate a trace with explicit tokens; the same seed gives the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise trace generate --shape chat --requests 5000 --rate 4 -o chat.jsonl.zst
  kvwise trace generate --shape agents --arrivals gamma --arrival-cv 3 --seed 7 --to mooncake -o agents.jsonl
  kvwise trace generate --shape retrieval --documents 200 --document-tokens 2000 -o rag.jsonl")]
struct GenerateArgs {
    /// How prompts share their starts.
    #[arg(long, value_enum, default_value_t = ShapeName::Chat)]
    shape: ShapeName,

    /// How requests (or conversations) arrive.
    #[arg(long, value_enum, default_value_t = ArrivalName::Poisson)]
    arrivals: ArrivalName,

    /// Gamma: standard deviation of the gaps over their mean.
    #[arg(long, value_name = "X", default_value_t = 2.0)]
    arrival_cv: f64,

    /// Diurnal: seconds of a full wave.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400.0)]
    period: f64,

    /// Diurnal: height of the wave over the mean rate, 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    amplitude: f64,

    /// Requests in total.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    requests: u32,

    /// Requests per second.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    rate: f64,

    /// Different system prompts, used with Zipf popularity.
    #[arg(long, value_name = "N", default_value_t = 10)]
    system_prompts: u32,

    /// Mean tokens of a system prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 500)]
    system_tokens: u32,

    /// Mean tokens a user adds to a turn.
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    user_tokens: u32,

    /// Mean generated tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 200)]
    output_tokens: u32,

    /// Standard deviation of lengths over their mean; 0 for constant lengths.
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    length_cv: f64,

    /// Mean turns of a conversation (agents: ten times as many).
    #[arg(long, value_name = "X", default_value_t = 4.0)]
    turns: f64,

    /// Mean seconds between turns (agents: a tenth).
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    think_time: f64,

    /// Retrieval: documents, used with Zipf popularity.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    documents: u32,

    /// Mean tokens of a document (retrieval), a tool's answer (agents) or the worked examples (few-shot).
    #[arg(long, value_name = "TOKENS", default_value_t = 800)]
    document_tokens: u32,

    /// Longest prompt; conversations end before it.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    max_tokens: u32,

    /// LoRA adapters and the share of conversations that uses each (sql=0.3,chat=0.2).
    #[arg(long, value_name = "NAME=SHARE,...")]
    lora_shares: Option<String>,

    /// Seed of the random numbers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// The format to write.
    #[arg(long, value_enum, default_value_t = To::Tokens)]
    to: To,

    /// Mooncake: tokens of a block.
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,

    /// The file, compressed if it ends in .gz or .zst [default: stdout].
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If a trace cannot be read, generated or written.
pub fn run(args: &TraceArgs, printer: Printer) -> Result<ExitStatus> {
    match &args.command {
        TraceCommand::Info(args) => info(args, printer)?,
        TraceCommand::Convert(args) => {
            let loaded = args.input.load(
                printer,
                &Need {
                    what: "the conversion",
                    block_tokens: args.block_size.or(Some(512)),
                    beside: &|size| {
                        if args.to == To::Mooncake {
                            size.to_blocks_bytes()
                        } else {
                            0
                        }
                    },
                },
            )?;
            put(
                &loaded.trace,
                args.to,
                args.block_size,
                args.output.as_deref(),
                printer,
            )?;
        }
        TraceCommand::Generate(args) => {
            let mut trace = generate(&workload(args), args.seed)?;
            if let Some(shares) = &args.lora_shares {
                trace = kvwise_sim::trace::Adapters::parse(shares)?.assign(trace, args.seed);
            }
            put(&trace, args.to, args.block_size, args.output.as_deref(), printer)?;
        }
    }
    Ok(ExitStatus::Success)
}

fn info(args: &InfoArgs, printer: Printer) -> Result<()> {
    let loaded = args.input.load(
        printer,
        &Need {
            what: "the description",
            block_tokens: args.block_size,
            beside: &trace_info::working_bytes,
        },
    )?;
    let report = trace_info::info(&loaded, args.block_size, args.ttft, args.tpot)?;
    let default = if args.output.is_none() && printer.stdout_is_terminal() {
        InfoFormat::Table
    } else {
        InfoFormat::Json
    };
    let text = match args.format.unwrap_or(default) {
        InfoFormat::Table => report.text(80),
        InfoFormat::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|e| Error::input(format!("the answer cannot be written as JSON: {e}")))? + "\n"
        }
    };
    printer.data_to(args.output.as_deref(), &text)
}

fn put(trace: &Trace, to: To, block: Option<u32>, output: Option<&Path>, printer: Printer) -> Result<()> {
    if let Some(path) = output {
        leave_nothing_behind()?;
        write_file(trace, to.into(), block, path)?;
        printer.note(&format!("{} requests written to {}", trace.len(), path.display()));
        Ok(())
    } else {
        printer.stream(|out| write(trace, to.into(), block, out))
    }
}

fn workload(args: &GenerateArgs) -> Workload {
    Workload {
        shape: match args.shape {
            ShapeName::SystemPrompts => Shape::SystemPrompts,
            ShapeName::FewShot => Shape::FewShot,
            ShapeName::Chat => Shape::Chat,
            ShapeName::Agents => Shape::Agents,
            ShapeName::Retrieval => Shape::Retrieval,
        },
        arrivals: match args.arrivals {
            ArrivalName::Poisson => Arrivals::Poisson,
            ArrivalName::Gamma => Arrivals::Gamma { cv: args.arrival_cv },
            ArrivalName::Diurnal => Arrivals::Diurnal {
                period_s: args.period,
                amplitude: args.amplitude,
            },
        },
        requests: args.requests,
        rate_per_s: args.rate,
        system_prompts: args.system_prompts,
        system_tokens: args.system_tokens,
        user_tokens: args.user_tokens,
        output_tokens: args.output_tokens,
        length_cv: args.length_cv,
        turns: args.turns,
        think_time_s: args.think_time,
        documents: args.documents,
        document_tokens: args.document_tokens,
        max_tokens: args.max_tokens,
    }
}
