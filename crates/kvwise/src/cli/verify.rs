//! `kvwise verify`: a server's log against the plan for it.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::Result;

use super::deployment::DeploymentArgs;
use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::verify as report;
use crate::usecase::verify::{Question, verify};

const EXAMPLES: &str = "Examples:
  kvwise verify --log server.log
  docker logs vllm 2>&1 | kvwise verify --log -
  kvwise verify Qwen/Qwen3-32B --gpu h100 --log server.log
  kvwise verify --log server.log --save
  kvwise verify --log server.log --boot 1 --format json

Flags win over what the log shows. Exit status: 0 every figure is as planned or within its interval, 1 one is not, 2 the
log cannot be compared.";

/// Compare a serving engine's start-up log with the plan for what it started.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Verify {
    /// The engine's log; - is standard input; .gz and .zst are read.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    log: PathBuf,

    /// Which start of the server, if the log has several, from 1 [default: the last one with figures].
    #[arg(long, value_name = "N", help_heading = "Input")]
    boot: Option<usize>,

    /// Keep what was measured as a calibration for later plans of this GPU, engine version and model family.
    #[arg(long, help_heading = "Output")]
    save: bool,

    #[command(flatten)]
    deployment: DeploymentArgs,

    #[command(flatten)]
    output: Output,
}

impl Verify {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read or compared, or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let answer = verify(&Question {
            log: &self.log,
            boot: self.boot,
            given: self.deployment.given()?,
            save: self.save,
        })?;
        let text = match self.output.format(printer) {
            Format::Json => json(&answer)?,
            Format::Table => report::text(&answer),
            Format::Csv => report::csv(&answer),
            Format::Markdown => report::markdown(&answer),
        };
        self.output.write(printer, &text)?;
        Ok(if answer.agrees {
            ExitStatus::Success
        } else {
            ExitStatus::No
        })
    }
}
