//! The words of the command line: one file a command, clap types only here.

pub mod advise;
pub mod attach;
pub mod compare;
pub mod config;
pub mod curve;
pub mod demo;
pub mod deployment;
pub mod duration;
mod examples;
pub mod export;
pub mod generate;
pub mod gpus;
mod interrupt;
pub mod lint;
pub mod models;
pub mod other_engines;
mod output;
pub mod plan;
pub mod probe_path;
pub mod recommend;
pub mod replay;
mod replay_sglang;
mod replay_vllm;
pub mod report;
pub mod run;
mod schedule;
pub mod shell;
pub mod simulate;
pub mod size;
pub mod sweep;
pub mod trace;
pub mod trace_input;
pub mod traffic;
pub mod tree;
pub mod verify;
pub mod watch;

use std::env;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use kvwise_core::Result;

use crate::printer::{ExitStatus, Printer};
use crate::usecase::settings;

const EXAMPLES: &str = "Examples:
  kvwise plan meta-llama/Llama-3.1-8B --gpu h100   # does it fit, how far
  kvwise size Qwen/Qwen3-32B --gpu l40s --context 32k -c 8   # the fewest GPUs
  kvwise lint --gpu h100 vllm serve Qwen/Qwen3-32B -tp 2   # a command you have
  kvwise verify --log server.log   # a server's own figures beside the plan

Each command's --help has its flags and examples. Exit status: 0 yes or done, 1 the honest answer is no, 2 the question
cannot be answered.";

/// Where your GPU memory goes when you serve language models, and what to do about it.
#[derive(Debug, Parser)]
#[command(name = "kvwise", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// Print nothing but data and errors.
    #[arg(long, short, global = true)]
    pub quiet: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

// Deferred: a run builds the flags of its own command alone, which is a third of what a plan of a small model costs.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    Plan(Box<plan::Plan>),
    Size(Box<size::Size>),
    Compare(compare::Compare),
    Recommend(Box<recommend::Recommend>),
    Generate(Box<generate::Generate>),
    Lint(lint::LintArgs),
    Verify(Box<verify::Verify>),
    Simulate(Box<simulate::Simulate>),
    Sweep(Box<sweep::Sweep>),
    Replay(replay::ReplayArgs),
    Curve(curve::CurveArgs),
    Tree(tree::TreeArgs),
    Trace(trace::TraceArgs),
    Demo(demo::DemoArgs),
    Run(run::RunArgs),
    ProbePath(probe_path::ProbePathArgs),
    Attach(attach::AttachArgs),
    Watch(watch::WatchArgs),
    Report(report::ReportArgs),
    Advise(advise::AdviseArgs),
    Export(export::ExportArgs),
    Models(models::Models),
    Gpus(gpus::Gpus),
    Config(config::ConfigArgs),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// What `kvwise` says when it is asked nothing.
const START: &str = "kvwise plans, simulates, profiles and tunes the GPU memory of serving language models.

Plan:
  kvwise plan meta-llama/Llama-3.1-8B --gpu h100             does it fit, and how many requests?
  kvwise compare qwen3-8b qwen3-32b --gpu l40s,h100,h200     models and GPUs side by side
  kvwise models qwen3; kvwise gpus                           what is known without network

Deploy:
  kvwise recommend llama-3.1-8b --workload input=1000,output=200,rate=4 --slo-tpot-ms 50
                                                             the cheapest that holds an objective
  kvwise generate llama-3.1-8b --gpu h100 --output-dir out   the files that start it
  kvwise lint --gpu h100 vllm serve Qwen/Qwen3-32B -tp 2     what an existing command means

Understand:
  kvwise simulate --model llama-3.1-8b --gpu h100 --input-len 1000 --output-len 200 --concurrency 32
                                                             latencies and throughput under a load
  kvwise attach http://localhost:8000 -o session             record a running server

All commands: kvwise --help. One command: kvwise plan --help.
";

/// The program's whole command line, the examples of its help folded for a terminal.
#[must_use]
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    examples::fold(command)
}

/// Parses the command line, runs the command and reports its exit status.
pub fn main() -> ExitCode {
    // Folding costs a third of a millisecond, which only a reader of help should pay.
    let help = env::args_os().any(|word| word == "-h" || word == "--help" || word == "help");
    let command = if help { command() } else { Cli::command() };
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit());
    let printer = Printer { quiet: cli.quiet };
    let status = settings::install()
        .and_then(|()| run(&cli, printer))
        .unwrap_or_else(|error| {
            printer.error(&error);
            ExitStatus::Error
        });
    ExitCode::from(status.code())
}

fn run(cli: &Cli, printer: Printer) -> Result<ExitStatus> {
    match &cli.command {
        None => {
            printer.data(START)?;
            Ok(ExitStatus::Success)
        }
        Some(command) => match command {
            Command::Replay(args) => replay::run(args, printer),
            Command::Simulate(command) => command.run(printer),
            Command::Sweep(command) => command.run(printer),
            Command::Plan(command) => command.run(printer),
            Command::Size(command) => command.run(printer),
            Command::Generate(command) => command.run(printer),
            Command::Compare(command) => command.run(printer),
            Command::Recommend(command) => command.run(printer),
            Command::Lint(args) => args.run(printer),
            Command::Verify(command) => command.run(printer),
            Command::Models(command) => command.run(printer),
            Command::Gpus(command) => command.run(printer),
            Command::Demo(args) => demo::run(args, printer),
            Command::Attach(args) => attach::run(args, printer),
            Command::Run(args) => run::run(args, printer),
            Command::ProbePath(args) => probe_path::run(args, printer),
            Command::Watch(args) => watch::run(args, printer),
            Command::Report(args) => report::run(args, printer),
            Command::Advise(args) => advise::run(args, printer),
            Command::Export(args) => export::run(args, printer),
            Command::Config(args) => config::run(args, printer),
            Command::Completions(command) => command.run(printer),
            Command::Man(command) => command.run(printer),
            Command::Curve(args) => curve::run(args, printer),
            Command::Tree(args) => tree::run(args, printer),
            Command::Trace(args) => trace::run(args, printer),
        },
    }
}
