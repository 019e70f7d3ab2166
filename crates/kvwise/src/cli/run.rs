//! `kvwise run`: launch a server with the probe inside.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::Result;

use crate::printer::{ExitStatus, Printer};
use crate::usecase::{attach, probe};

/// Launch a vLLM server with the probe inside and record what its KV cache does.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise run -o recording -- vllm serve Qwen/Qwen3-8B
  kvwise run -- python -m vllm.entrypoints.openai.api_server --model ./model
In a container that kvwise cannot launch: see `kvwise probe-path`")]
pub struct RunArgs {
    /// Folder of the recording (default: `kvwise_DATE_TIME`).
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// The command, after `--`.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; exit status 1 if the launched command failed.
///
/// # Errors
/// If the command cannot be started or the folder cannot be written.
pub fn run(args: &RunArgs, printer: Printer) -> Result<ExitStatus> {
    let folder = args.output.clone().unwrap_or_else(attach::default_folder);
    let ended = probe::run(&args.command, &folder, &mut |text| printer.warn(text))?;
    printer.note(&format!(
        "{} records in {}; see `kvwise report {}`",
        ended.records,
        folder.display(),
        folder.display()
    ));
    if ended.records == 0 {
        printer.warn(
            "the probe recorded nothing: no process imported vLLM's engine, or Python ran with -I, -E or -S",
        );
    }
    if ended.success {
        return Ok(ExitStatus::Success);
    }
    printer.note(&format!("the command ended with {}", ended.status));
    Ok(ExitStatus::No)
}
