//! `kvwise size`: what a need takes at least, and which change helps most.

use clap::Args;
use kvwise_core::Result;

use super::deployment::DeploymentArgs;
use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::size as report;
use crate::usecase;

const EXAMPLES: &str = "Examples:
  kvwise size meta-llama/Llama-3.1-70B --gpu h100 --context 32k --concurrency 16
  kvwise size Qwen/Qwen3-32B --gpu l40s --context 8k --concurrency 64 --probability 0.9
  kvwise size deepseek-ai/DeepSeek-V3 --gpu h200 --context 128k --concurrency 8 --max-gpus 16
  kvwise size llama-3.1-8b --gpu l4 --prompt-tokens 3000 --gen-tokens 1000 --concurrency 4 --format json

Exit status: 0 the need can be met, 1 nothing that was tried meets it, 2 the question cannot be answered.";

/// Size a deployment for a need: fewest GPUs, smallest utilisation, longest context, most requests, and the single change
/// that helps most.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Size {
    #[command(flatten)]
    deployment: DeploymentArgs,

    /// Probability with which the need has to be met; 0.5 takes the best value of every estimate.
    #[arg(long, value_name = "P", default_value_t = 0.5, help_heading = "Load")]
    probability: f64,

    /// Most GPUs to try (powers of two; any number by llama.cpp).
    #[arg(
        long,
        allow_negative_numbers = true,
        value_name = "N",
        default_value_t = 16,
        help_heading = "Hardware"
    )]
    max_gpus: u64,

    #[command(flatten)]
    output: Output,
}

impl Size {
    /// Runs the command.
    ///
    /// # Errors
    /// If the question cannot be answered or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let deployment = self.deployment.deployment()?;
        let sizing = usecase::size::size(&deployment, self.probability, self.max_gpus)?;
        let text = match self.output.format(printer) {
            Format::Json => json(&sizing)?,
            Format::Table => report::text(&sizing),
            Format::Csv => report::changes(&sizing).csv(),
            Format::Markdown => report::markdown(&sizing),
        };
        self.output.write(printer, &text)?;
        Ok(if sizing.satisfiable {
            ExitStatus::Success
        } else {
            ExitStatus::No
        })
    }
}
