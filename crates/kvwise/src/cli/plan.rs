//! `kvwise plan`: does it fit, how far does it reach, where does the memory go.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::Result;
use kvwise_io::plan_profile;

use super::deployment::DeploymentArgs;
use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::plan as report;
use crate::usecase;

const EXAMPLES: &str = "Examples:
  kvwise plan meta-llama/Llama-3.1-8B --gpu h100
  kvwise plan Qwen/Qwen3-32B --gpu h100 --tp 2 --context 32k --concurrency 8
  kvwise plan deepseek-ai/DeepSeek-V3 --gpu h200 --tp 8 --kv-cache-dtype fp8 --explain
  kvwise plan ./my-model --gpu l40s --max-model-len auto --format json
  kvwise plan llama-3.1-8b --gpu l4 --max-model-len 32k --context 4k,32k -c 1,8
  kvwise plan openai/gpt-oss-20b --engine sglang --gpu h100 --mem-fraction-static 0.85
  kvwise plan model-Q4_K_M.gguf --gpu rtx-4090 --context 32768 --cache-type-k q8_0 --cache-type-v q8_0
  kvwise plan llama-2-7b --engine generic --gpu rtx-4090 --context 4096

Exit status: 0 it fits, 1 it does not (or the engine would refuse to start), 2 the question cannot be answered.";

/// Plan the GPU memory of serving a model: weights, overhead, KV cache, and what that holds.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    #[command(flatten)]
    deployment: DeploymentArgs,

    /// Derive every number step by step.
    #[arg(long, help_heading = "Output")]
    explain: bool,

    /// Also write the settings as a profile (YAML, version 1).
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    save_profile: Option<PathBuf>,

    #[command(flatten)]
    output: Output,
}

impl Plan {
    /// Runs the command.
    ///
    /// # Errors
    /// If the question cannot be answered or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let mut deployment = self.deployment.deployment()?;
        deployment.lookup.progress &= !printer.quiet;
        let plan = usecase::plan::plan(&deployment, self.explain)?;
        let text = match self.output.format(printer) {
            Format::Json => json(&plan)?,
            Format::Table => report::text(&plan),
            Format::Csv => report::csv(&plan),
            Format::Markdown => report::markdown(&plan),
        };
        if let Some(path) = &self.save_profile {
            plan_profile::write(path, &deployment.to_profile()?)?;
        }
        self.output.write(printer, &text)?;
        Ok(if plan.feasibility.fits {
            ExitStatus::Success
        } else {
            ExitStatus::No
        })
    }
}
