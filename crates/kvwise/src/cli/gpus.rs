//! `kvwise gpus`: the hardware catalogue.

use clap::Args;
use kvwise_core::Result;

use super::output::Output;
use crate::printer::{ExitStatus, Printer};
use crate::report::catalogue;
use crate::usecase;

const EXAMPLES: &str = "Examples:
  kvwise gpus                      every GPU with memory, bandwidth and compute
  kvwise gpus h100                 those whose name contains h100
  kvwise gpus --format json        with sources and dates";

/// List or search the GPUs that --gpu knows, with what their drivers really report.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Gpus {
    /// Words that the name must contain.
    query: Vec<String>,

    #[command(flatten)]
    output: Output,
}

impl Gpus {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing matches or the destination cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let gpus = usecase::catalogue::gpus(&self.query)?;
        let report = catalogue::Gpus::of(&gpus);
        self.output.rows(printer, &report.grid(), &report)?;
        Ok(ExitStatus::Success)
    }
}
