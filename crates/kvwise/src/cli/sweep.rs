//! `kvwise sweep`: simulate every combination of flags, GPUs and loads.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};

use super::deployment::DeploymentFlags;
use super::output::{json, preferred_among};
use super::traffic::{ServingArgs, SloArgs, TrafficArgs};
use crate::printer::{ExitStatus, Printer};
use crate::report::sweep as report;
use crate::usecase::progress::CountProgress;
use crate::usecase::sweep::{LoadLevel, Question, sweep};

const EXAMPLES: &str = "Examples:
  kvwise sweep --model llama-3.1-8b --gpu h100 --input-len 1024 --output-len 256 --concurrency 1,2,4,8,16,32,64
  kvwise sweep --model Qwen/Qwen3-32B --vary gpu=h100,h200 --vary tp=1,2,4 --input-len 2000 --output-len 300 \\
      --rates 1,2,4,8 --slo-ttft-ms 1000 --results sweep.jsonl --svg pareto.svg
  kvwise sweep trace.jsonl --model llama-3.1-8b --gpu h100 --vary kv-cache-dtype=auto,fp8 --rates 2,4,8
  kvwise sweep --model llama-3.1-8b --gpu h100 --input-len 512 --output-len 128 --concurrency 1,8,64 -o sweep.html

The results file is appended to as points end; the same sweep started again goes on where it stopped.
Exit status: 0 done (and some point meets the objectives), 1 none does or none starts, 2 cannot be answered.";

/// Simulate a deployment over flags, GPUs and loads: throughput against latency, and the points nothing beats.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Sweep {
    #[command(flatten)]
    traffic: TrafficArgs,

    /// Requests a second, several values.
    #[arg(
        long,
        value_name = "R,...",
        value_delimiter = ',',
        allow_negative_numbers = true,
        help_heading = "Sweep"
    )]
    rates: Vec<f64>,

    /// A flag and its values (tp=1,2,4; gpu=h100,h200); may be given several times, every combination is tried.
    #[arg(long, value_name = "FLAG=V,...", help_heading = "Sweep")]
    vary: Vec<String>,

    /// Append results to this file (JSON lines) and take from it what is there already.
    #[arg(long, value_name = "FILE", help_heading = "Sweep")]
    results: Option<PathBuf>,

    #[command(flatten)]
    slo: SloArgs,

    #[command(flatten)]
    serving: ServingArgs,

    /// Also draw throughput against latency in the terminal.
    #[arg(long, help_heading = "Output")]
    plot: bool,

    /// Also write that picture as SVG.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,

    /// Also write table and picture as one HTML file.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,

    #[command(flatten)]
    deployment: DeploymentFlags,

    /// Format of the answer [default: by the file's name, else table on a terminal, else json].
    #[arg(
        long,
        value_enum,
        env = "KVWISE_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    format: Option<SweepFormat>,

    /// Write the answer to this file, whole or not at all.
    #[arg(long, short = 'o', value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

/// Formats of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SweepFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For documents.
    Markdown,
    /// One page with table and picture (no network, light and dark).
    Html,
    /// For pandas, `DuckDB` and Polars (needs --output and a build with the feature `parquet`).
    Parquet,
}

impl Sweep {
    /// Runs the command.
    ///
    /// # Errors
    /// If the question cannot be answered or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let slo = self.slo.slo()?;
        let mut deployment = self.deployment.0.deployment()?;
        let mut loads = Vec::new();
        for &n in &deployment.concurrency {
            let n = u32::try_from(n)
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| Error::input(format!("--concurrency has {n}, expected 1 to 2^32 - 1")))?;
            loads.push(LoadLevel::Concurrency(n));
        }
        for &rate in &self.rates {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(Error::input(format!(
                    "--rates has {rate}, expected positive numbers of requests a second"
                )));
            }
            loads.push(LoadLevel::Rate(rate));
        }
        if loads.is_empty() {
            return Err(Error::input(
                "how much traffic? give --concurrency N,N,... or --rates R,R,...",
            ));
        }
        deployment.concurrency.clear();
        let question = Question {
            deployment,
            serving: self.serving.serving(false)?,
            traffic: self.traffic.traffic(printer)?,
            vary: self.vary.iter().map(|v| varied(v)).collect::<Result<_>>()?,
            loads,
            slo,
        };
        let progress = CountProgress::new(printer);
        let points = sweep(&question, self.results.as_deref(), |done, total| {
            progress.update(done, total);
        });
        progress.finish();
        let points = points?;
        let answer = report::SweepAnswer::new(points, slo, question.traffic.seed);
        if let Some(path) = &self.svg {
            printer.data_to(Some(path), &answer.chart().svg(900, 520)?)?;
        }
        if let Some(path) = &self.html {
            printer.data_to(Some(path), &answer.html()?)?;
        }
        let text = match self.format(printer) {
            SweepFormat::Json => json(&answer)?,
            SweepFormat::Table => {
                let mut text = answer.text();
                if self.plot {
                    text.push('\n');
                    text.push_str(&answer.chart().text(78, 20));
                }
                text
            }
            SweepFormat::Csv => answer.full_grid().csv(),
            SweepFormat::Markdown => answer.full_grid().markdown(),
            SweepFormat::Html => answer.html()?,
            SweepFormat::Parquet => {
                let path = self.output.as_deref().ok_or_else(|| {
                    Error::input("a Parquet file cannot go to the standard output: give -o FILE.parquet")
                })?;
                kvwise_io::parquet_table::write(path, "sweep", &answer.columns())?;
                return Ok(answer_status(&answer));
            }
        };
        printer.data_to(self.output.as_deref(), &text)?;
        Ok(answer_status(&answer))
    }

    /// The format: as asked, else by the file's name, else as the user's settings say, else a table for a terminal.
    fn format(&self, printer: Printer) -> SweepFormat {
        if let Some(format) = self.format {
            return format;
        }
        if let Some(path) = &self.output {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("csv") => SweepFormat::Csv,
                Some("md" | "markdown") => SweepFormat::Markdown,
                Some("txt") => SweepFormat::Table,
                Some("html" | "htm") => SweepFormat::Html,
                Some("parquet") => SweepFormat::Parquet,
                _ => SweepFormat::Json,
            };
        }
        preferred_among().unwrap_or(if printer.stdout_is_terminal() {
            SweepFormat::Table
        } else {
            SweepFormat::Json
        })
    }
}

fn answer_status(answer: &report::SweepAnswer) -> ExitStatus {
    if answer.is_yes() {
        ExitStatus::Success
    } else {
        ExitStatus::No
    }
}

/// `tp=1,2,4` as a flag and its values.
fn varied(text: &str) -> Result<(String, Vec<String>)> {
    let (flag, values) = text
        .split_once('=')
        .ok_or_else(|| Error::input(format!("--vary is \"{text}\"")).hint("write --vary tp=1,2,4"))?;
    let values: Vec<String> = values
        .split(',')
        .map(str::trim)
        .filter(|v| !v.is_empty())
        .map(str::to_owned)
        .collect();
    if values.is_empty() {
        return Err(Error::input(format!("--vary {flag} has no values")).hint("write --vary tp=1,2,4"));
    }
    Ok((flag.trim_start_matches('-').to_owned(), values))
}
