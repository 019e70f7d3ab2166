//! `kvwise config`: where settings come from, and the saved calibrations.

use clap::{Args, Subcommand};
use kvwise_core::{Error, Result};

use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::config as report;
use crate::usecase::config;

const EXAMPLES: &str = "Examples:
  kvwise config
  kvwise config calibration list
  kvwise config calibration remove 3
  kvwise config calibration remove --all

A flag wins over the environment (KVWISE_GPU, ...), the environment over config.toml, and that over the defaults. The
file is in KVWISE_CONFIG_DIR, else in XDG_CONFIG_HOME/kvwise, else in ~/.config/kvwise:

  gpu = \"h100\"
  engine = \"vllm\"
  engine_version = \"0.32.0\"
  gpu_memory_utilization = 0.9
  format = \"table\"";

/// Show where settings come from; list and remove site calibrations.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Site calibrations, kept by `kvwise verify --save`.
    #[command(subcommand)]
    Calibration(Calibration),
}

#[derive(Debug, Subcommand)]
enum Calibration {
    /// List them.
    List(Output),
    /// Remove one by its number, or all.
    Remove {
        /// Number of the calibration.
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        id: Option<u64>,
        /// Remove all of them.
        #[arg(long)]
        all: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// If the user's folder cannot be read or written.
pub fn run(args: &ConfigArgs, printer: Printer) -> Result<ExitStatus> {
    match &args.command {
        None => {
            let answer = config::show()?;
            let text = match args.output.format(printer) {
                Format::Json => json(&answer)?,
                Format::Table => report::text(&answer),
                Format::Csv => report::settings(&answer).csv(),
                Format::Markdown => report::settings(&answer).markdown(),
            };
            args.output.write(printer, &text)?;
        }
        Some(Command::Calibration(Calibration::List(output))) => {
            let answer = config::show()?;
            output.rows(printer, &report::calibrations(&answer), &answer.calibrations)?;
        }
        Some(Command::Calibration(Calibration::Remove { id, all })) => {
            if id.is_none() && !all {
                return Err(Error::input("which calibration? give its number, or --all"));
            }
            let removed = config::remove(*id)?;
            printer.note(&format!("{removed} calibration(s) removed"));
        }
    }
    Ok(ExitStatus::Success)
}
