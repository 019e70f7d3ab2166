//! `kvwise lint`: what an existing command or manifest means for memory, and what is wrong with it.

use std::io::Read;

use clap::Args;
use kvwise_core::{Error, Result};

use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::usecase::lint::{Source, Target, lint};

const EXAMPLES: &str = "Examples:
  kvwise lint serve_command.sh                                  a script
  kvwise lint --gpu h100 docker-compose.yaml                    with the plan for this GPU
  kvwise lint --gpu h100 vllm serve Qwen/Qwen3-32B -tp 2        a command, word by word
  kubectl get deploy -o yaml | kvwise lint -                    standard input

Flags of kvwise come before the command. Files: shell scripts, docker run, Compose, Kubernetes manifests and values, profiles.
Exit status: 0 no errors found, 1 errors found, 2 nothing could be read.";

/// Most bytes of standard input.
const MAX_STDIN: u64 = 1 << 20;

/// Check how a vLLM, SGLang or llama.cpp server is started: a command, script, Compose file or Kubernetes manifest.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LintArgs {
    /// Kind of GPU, for the plan (see `kvwise gpus`).
    #[arg(long, value_name = "NAME", help_heading = "Plan")]
    gpu: Option<String>,

    /// Memory of one GPU with its unit, for cards that are not in the catalogue.
    #[arg(long, value_name = "SIZE", help_heading = "Plan")]
    gpu_memory: Option<String>,

    /// Tokens of a request, for the plan.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Plan")]
    context: Option<u64>,

    /// Requests at once, for the plan.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Plan")]
    concurrency: Option<u64>,

    /// Version of the engine, where the image does not say it.
    #[arg(long, value_name = "V", help_heading = "Plan")]
    engine_version: Option<String>,

    #[command(flatten)]
    output: Output,

    /// A file, `-` for standard input, or the command itself.
    #[arg(
        value_name = "FILE|COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    what: Vec<String>,
}

impl LintArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing that starts an engine can be read.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let source = Source::of(&self.what, stdin)?;
        let target = Target {
            gpu: self.gpu.clone(),
            gpu_memory: self.gpu_memory.clone(),
            context: self.context,
            concurrency: self.concurrency,
            engine_version: self.engine_version.clone(),
        };
        let report = lint(&source, &target)?;
        let text = match self.output.format(printer) {
            Format::Table => report.text(),
            Format::Json => json(&report)?,
            Format::Csv => report.grid().csv(),
            Format::Markdown => report.grid().markdown(),
        };
        self.output.write(printer, &text)?;
        if target.gpu.is_none()
            && target.gpu_memory.is_none()
            && report.servers.iter().all(|s| s.verdict.is_none())
        {
            printer.note("give --gpu to see what the flags mean in bytes");
        }
        Ok(if report.errors == 0 {
            ExitStatus::Success
        } else {
            ExitStatus::No
        })
    }
}

fn stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_STDIN + 1)
        .read_to_string(&mut text)
        .map_err(|e| Error::io(format!("standard input: cannot read: {e}")))?;
    if text.len() as u64 > MAX_STDIN {
        return Err(Error::input(
            "standard input: more than 1 MiB, so it is no command",
        ));
    }
    Ok(text)
}
