//! `kvwise probe-path`: the folder to put on PYTHONPATH.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::{Error, Result};

use crate::printer::{ExitStatus, Printer};
use crate::usecase::probe;

/// Unpack the Python probe and print the folder to put on PYTHONPATH.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  PYTHONPATH=$(kvwise probe-path) VLLM_PROFILING_DIR=/data/prof vllm serve MODEL
  kvwise probe-path --dir ./probe      # then mount ./probe into the container
VLLM_PROFILING_DIR is where recordings go (default /tmp/vllm_profiling), VLLM_PROFILING_VERBOSE=1 says what is hooked")]
pub struct ProbePathArgs {
    /// Unpack here instead of in the user's data folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If the folder cannot be written.
pub fn run(args: &ProbePathArgs, printer: Printer) -> Result<ExitStatus> {
    let folder = match &args.dir {
        Some(dir) => dir.clone(),
        None => probe::default_folder()?,
    };
    probe::unpack(&folder)?;
    let folder = std::fs::canonicalize(&folder)
        .map_err(|e| Error::io(format!("{}: cannot be resolved: {e}", folder.display())))?;
    printer.data(&format!("{}\n", folder.display()))?;
    Ok(ExitStatus::Success)
}
