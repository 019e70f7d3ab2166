//! `kvwise demo`: the textbook demonstrations with the engines' rules.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kvwise_core::Result;
use kvwise_sim::demo::capacity::CapacityQuestion;
use kvwise_sim::demo::fragmentation::{FragmentationQuestion, Lengths};
use kvwise_sim::demo::sharing::Scenario;
use serde::Serialize;

use super::output::{json, preferred_among};
use crate::printer::{ExitStatus, Printer};
use crate::report::sheet::Sheet;
use crate::usecase::demo;

/// Show what paging, blocks and shared prefixes do for KV memory, beside the figures tutorials give.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(subcommand)]
    command: DemoCommand,

    /// How to print the answer [default: table on a terminal, json elsewhere].
    #[arg(
        long,
        value_enum,
        global = true,
        env = "KVWISE_FORMAT",
        hide_env_values = true
    )]
    format: Option<Format>,

    /// Write to this file instead of stdout.
    #[arg(short, long, value_name = "FILE", global = true)]
    output: Option<PathBuf>,
}

/// As every answer, and a page for a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people at a terminal.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For notes and issues.
    Markdown,
    /// For a browser: one self-contained page.
    Html,
}

#[derive(Debug, Subcommand)]
enum DemoCommand {
    Capacity(CapacityArgs),
    Fragmentation(FragmentationArgs),
    Sharing(SharingArgs),
}

/// How many requests a KV pool holds, with and without paging.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise demo capacity                                        # a 70B model's 480 GB, as in the chapter on KV caches
  kvwise demo capacity --kv-memory-bytes 42949672960 --kv-bytes-per-token 131072 --contexts 1500,6000    # 40 GiB")]
struct CapacityArgs {
    /// Memory for K and V, all GPUs together.
    #[arg(long, value_name = "BYTES", default_value_t = 480_000_000_000)]
    kv_memory_bytes: u64,

    /// Bytes of K and V of one token, all GPUs together (327680: Llama 70B in 16 bits).
    #[arg(long, value_name = "BYTES", default_value_t = 327_680)]
    kv_bytes_per_token: u64,

    /// Longest sequence: what a server without paging reserves for every request.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    max_model_len: u64,

    /// Tokens per block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: u64,

    /// Tokens that a request really has, prompt and output.
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_values_t = [2048, 4096, 8192, 32_768])]
    contexts: Vec<u64>,
}

/// Where reserved KV memory goes: the experiment of the PagedAttention paper's figure 2.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise demo fragmentation                                   # ShareGPT's mean lengths, OPT-13B on one A100 40 GB
  kvwise demo fragmentation --input-mean 19.31 --output-mean 58.45              # Alpaca's
  kvwise demo fragmentation --pool 262144 --max-model-len 32768 --format markdown")]
struct FragmentationArgs {
    /// Slots of the pool in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 15_700)]
    pool: u64,

    /// Longest sequence.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_model_len: u64,

    /// Tokens per block under paging.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: u64,

    /// Mean prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = Lengths::SHAREGPT.input_mean)]
    input_mean: f64,

    /// Mean output.
    #[arg(long, value_name = "TOKENS", default_value_t = Lengths::SHAREGPT.output_mean)]
    output_mean: f64,

    /// Spread: standard deviation of the logarithm of the lengths; 0 makes all equal.
    #[arg(long, default_value_t = 1.0)]
    sigma: f64,

    /// Steps looked at, after as many of warm-up.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,

    /// Seed of the lengths.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What shared prefixes save: one system prompt, few-shot examples, a conversation.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise demo sharing                                         # 100 requests, as in the chapter on KV caches
  kvwise demo sharing --block-size 1                          # SGLang's pages of one token
  kvwise demo sharing --requests 1000 --system-prompt 2000 --user-prompt 50")]
struct SharingArgs {
    /// Requests with a common prefix.
    #[arg(long, value_name = "N", default_value_t = 100)]
    requests: u32,

    /// Tokens of the system prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 500)]
    system_prompt: u32,

    /// Tokens of each request's own question.
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    user_prompt: u32,

    /// Worked examples in a few-shot prompt.
    #[arg(long, value_name = "N", default_value_t = 5)]
    examples: u32,

    /// Tokens of an example.
    #[arg(long, value_name = "TOKENS", default_value_t = 200)]
    example_tokens: u32,

    /// Tokens of the question after the examples.
    #[arg(long, value_name = "TOKENS", default_value_t = 50)]
    few_shot_question: u32,

    /// Turns of the conversation.
    #[arg(long, value_name = "N", default_value_t = 20)]
    turns: u32,

    /// Tokens of each message of the conversation.
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    message_tokens: u32,

    /// Tokens of each answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 250)]
    answer_tokens: u32,

    /// Tokens per block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: u32,

    /// Bytes of K and V of one token (327680: Llama 70B in 16 bits).
    #[arg(long, value_name = "BYTES", default_value_t = 327_680)]
    kv_bytes_per_token: u64,
}

/// Runs the command.
///
/// # Errors
/// If a value makes no sense or the output cannot be written.
pub fn run(args: &DemoArgs, printer: Printer) -> Result<ExitStatus> {
    match &args.command {
        DemoCommand::Capacity(a) => {
            let report = demo::capacities(&CapacityQuestion {
                kv_memory_bytes: a.kv_memory_bytes,
                kv_bytes_per_token: a.kv_bytes_per_token,
                max_model_len: a.max_model_len,
                block_size: a.block_size,
                contexts: a.contexts.clone(),
            })?;
            print(args, printer, &report, &report.sheet())
        }
        DemoCommand::Fragmentation(a) => {
            let report = demo::fragmentations(&FragmentationQuestion {
                pool_tokens: a.pool,
                max_model_len: a.max_model_len,
                block_size: a.block_size,
                lengths: Lengths {
                    input_mean: a.input_mean,
                    output_mean: a.output_mean,
                    sigma: a.sigma,
                },
                steps: a.steps,
                seed: a.seed,
            })?;
            print(args, printer, &report, &report.sheet())
        }
        DemoCommand::Sharing(a) => {
            let scenarios = [
                (
                    format!("system prompt of {} + {}", a.system_prompt, a.user_prompt),
                    Scenario::SystemPrompt {
                        system_tokens: a.system_prompt,
                        question_tokens: a.user_prompt,
                    },
                    a.requests,
                ),
                (
                    format!(
                        "{} examples of {} + {}",
                        a.examples, a.example_tokens, a.few_shot_question
                    ),
                    Scenario::FewShot {
                        examples: a.examples,
                        example_tokens: a.example_tokens,
                        question_tokens: a.few_shot_question,
                    },
                    a.requests,
                ),
                (
                    format!(
                        "conversation of {} turns, {} + {}",
                        a.turns, a.message_tokens, a.answer_tokens
                    ),
                    Scenario::MultiTurn {
                        message_tokens: a.message_tokens,
                        answer_tokens: a.answer_tokens,
                    },
                    a.turns,
                ),
            ];
            let report = demo::sharings(&scenarios, a.block_size, a.kv_bytes_per_token)?;
            print(args, printer, &report, &report.sheet())
        }
    }
}

fn print(args: &DemoArgs, printer: Printer, report: &impl Serialize, sheet: &Sheet) -> Result<ExitStatus> {
    let default = || match &args.output {
        None => preferred_among().unwrap_or(if printer.stdout_is_terminal() {
            Format::Table
        } else {
            Format::Json
        }),
        Some(_) => Format::Json,
    };
    let text = match args.format.unwrap_or_else(default) {
        Format::Table => sheet.text(),
        Format::Json => json(report)?,
        Format::Csv => sheet.csv(),
        Format::Markdown => sheet.markdown(),
        Format::Html => sheet.html(),
    };
    printer.data_to(args.output.as_deref(), &text)?;
    Ok(ExitStatus::Success)
}
