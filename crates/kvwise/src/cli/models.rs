//! `kvwise models`: the model catalogue.

use clap::Args;
use kvwise_core::Result;

use super::output::Output;
use crate::printer::{ExitStatus, Printer};
use crate::report::catalogue;
use crate::usecase;

const EXAMPLES: &str = "Examples:
  kvwise models                    every model of the built-in catalogue
  kvwise models qwen3 fp8          those whose id contains both words
  kvwise models --format json      with sources, dates and other names";

/// List or search the models that are known without a file or network.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Models {
    /// Words that the hub id must contain.
    query: Vec<String>,

    #[command(flatten)]
    output: Output,
}

impl Models {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing matches or the destination cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let entries = usecase::catalogue::models(&self.query)?;
        let report = catalogue::Models::of(&entries)?;
        self.output.rows(printer, &report.grid(), &report)?;
        Ok(ExitStatus::Success)
    }
}
