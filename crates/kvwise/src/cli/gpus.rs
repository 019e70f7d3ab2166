//! `kvwise gpus`: the hardware catalogue.

use clap::Args;
use kvwise_core::Result;

use super::output::Output;
use crate::printer::{ExitStatus, Printer};
use crate::report::{catalogue, detected};
use crate::usecase;

const EXAMPLES: &str = "Examples:
  kvwise gpus                      every GPU with memory, bandwidth and compute
  kvwise gpus h100                 those whose name contains h100, MIG slices too
  kvwise gpus --detect             those of this machine, and how much of them is free
  kvwise gpus --format json        with sources and dates

GPUs of your own: gpus.toml in the configuration folder, with the catalogue's columns.";

/// List or search the GPUs that --gpu knows, with what their drivers really report.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Gpus {
    /// Words that the name must contain.
    query: Vec<String>,

    /// List the GPUs of this machine instead, as its drivers' tools tell them.
    #[arg(long, conflicts_with = "query")]
    detect: bool,

    #[command(flatten)]
    output: Output,
}

impl Gpus {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing matches or the destination cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        if self.detect {
            let found = usecase::gpus::detect()?;
            let report = detected::Report::of(&found);
            for note in report.notes() {
                printer.warn(note);
            }
            self.output.rows(printer, &report.grid(), &report)?;
            if found.devices.is_empty() {
                printer.note(
                    "no GPU is visible on this machine (asked for: nvidia-smi, amd-smi, rocm-smi, xpu-smi)",
                );
                return Ok(ExitStatus::No);
            }
            return Ok(ExitStatus::Success);
        }
        let gpus = usecase::catalogue::gpus(&self.query)?;
        let report = catalogue::Gpus::of(&gpus);
        self.output.rows(printer, &report.grid(), &report)?;
        Ok(ExitStatus::Success)
    }
}
