//! `kvwise simulate`: what traffic does on a deployment, in time.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{Arrivals, Lengths, Slo, closed_loop, open_loop};
use kvwise_sim::trace::Trace;

use super::deployment::DeploymentFlags;
use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::simulation::{self as report, Simulation};
use crate::usecase::simulate as usecase;

const EXAMPLES: &str = "Examples:
  kvwise simulate --model meta-llama/Llama-3.1-8B --gpu h100 --input-len 1024 --output-len 256 --concurrency 32
  kvwise simulate --model Qwen/Qwen3-32B --gpu h100 --tp 2 --input-len 2000 --output-len 300 --rate 4 --requests 1000
  kvwise simulate trace.jsonl --model llama-3.1-8b --gpu h200 --slo-ttft-ms 2000 --slo-tpot-ms 50
  kvwise simulate trace.jsonl --model llama-3.1-8b --gpu h200 --compare kv-cache-dtype=fp8 --compare tp=2

Exit status: 0 done (and objectives met), 1 an objective is missed or the engine would not start, 2 cannot be answered.";

/// Simulate traffic on a deployment: latencies, throughput, KV usage, preemptions.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Simulate {
    /// Trace: a file or folder in any format of `kvwise trace`, `-` for standard input.
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,

    /// Longest prompt in tokens, where no trace is given.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    input_len: Option<u32>,

    /// Longest answer in tokens, where no trace is given.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    output_len: Option<u32>,

    /// Shortest length as a share of the longest; lengths are uniform between them.
    #[arg(long, value_name = "R", default_value_t = 1.0, help_heading = "Traffic")]
    length_ratio: f64,

    /// Requests a second (open loop); with a trace use --speed.
    #[arg(long, value_name = "R", help_heading = "Traffic")]
    rate: Option<f64>,

    /// Shape of the gaps between requests: 1 is Poisson, smaller is burstier.
    #[arg(long, value_name = "S", default_value_t = 1.0, help_heading = "Traffic")]
    burstiness: f64,

    /// Requests to simulate where no trace is given [default: 10 times the concurrency, or 1000].
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    requests: Option<u32>,

    /// Replay a trace this much faster than recorded.
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Traffic")]
    speed: f64,

    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    seed: u64,

    /// Objective: time to first token, milliseconds.
    #[arg(long, value_name = "MS", help_heading = "Objectives")]
    slo_ttft_ms: Option<f64>,

    /// Objective: time per output token, milliseconds.
    #[arg(long, value_name = "MS", help_heading = "Objectives")]
    slo_tpot_ms: Option<f64>,

    /// Also simulate with these flags changed (kv-cache-dtype=fp8,tp=2); may be given several times.
    #[arg(long, value_name = "FLAGS", help_heading = "Output")]
    compare: Vec<String>,

    #[command(flatten)]
    deployment: DeploymentFlags,

    #[command(flatten)]
    output: Output,
}

impl Simulate {
    /// Runs the command.
    ///
    /// # Errors
    /// If the question cannot be answered or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let slo = Slo {
            ttft_ms: self.slo_ttft_ms,
            tpot_ms: self.slo_tpot_ms,
        };
        for (flag, limit) in [("--slo-ttft-ms", slo.ttft_ms), ("--slo-tpot-ms", slo.tpot_ms)] {
            if limit.is_some_and(|x| !(x.is_finite() && x > 0.0)) {
                return Err(Error::input(format!(
                    "{flag} must be a positive number of milliseconds"
                )));
            }
        }
        let mut deployment = self.deployment.0.deployment()?;
        deployment.lookup.progress &= !printer.quiet;
        let concurrency = match deployment.concurrency.as_slice() {
            [] => None,
            [one] => Some(
                u32::try_from(*one)
                    .map_err(|_| Error::input(format!("--concurrency is {one}, more than is simulated")))?,
            ),
            _ => return Err(Error::input("--concurrency takes one value here")),
        };
        deployment.concurrency.clear();
        let (trace, arrivals) = self.traffic(concurrency)?;
        let mut results = vec![("as asked".to_owned(), deployment.clone())];
        for changes in &self.compare {
            results.push((changes.clone(), usecase::changed(&deployment, changes)?));
        }
        let mut simulations = Vec::new();
        for (label, deployment) in results {
            let outcome = usecase::simulate(&deployment, &trace, arrivals, slo)?;
            for warning in &outcome.warnings {
                printer.warn(warning);
            }
            simulations.push(Simulation::new(label, &trace, self.seed, slo, &outcome));
        }
        let first = &simulations[0];
        let text = match self.output.format(printer) {
            Format::Json if simulations.len() == 1 => json(first)?,
            Format::Json => json(&simulations)?,
            Format::Table => report::text(&simulations),
            Format::Csv => report::grid(&simulations).csv(),
            Format::Markdown => report::grid(&simulations).markdown(),
        };
        let status = if first.is_yes() {
            ExitStatus::Success
        } else {
            ExitStatus::No
        };
        self.output.write(printer, &text)?;
        Ok(status)
    }

    fn traffic(&self, concurrency: Option<u32>) -> Result<(Trace, Arrivals)> {
        if let Some(path) = &self.trace {
            for (flag, given) in [
                ("--input-len", self.input_len.is_some()),
                ("--output-len", self.output_len.is_some()),
                ("--rate", self.rate.is_some()),
                ("--requests", self.requests.is_some()),
            ] {
                if given {
                    return Err(Error::input(format!(
                        "{flag} and a trace both describe the traffic: give one of them"
                    )));
                }
            }
            let trace = kvwise_io::trace::open(path, &kvwise_io::trace::ReadOptions::default())?.trace;
            let arrivals = match concurrency {
                Some(concurrency) => Arrivals::Closed { concurrency },
                None => Arrivals::Trace { speed: self.speed },
            };
            return Ok((trace, arrivals));
        }
        let (Some(input_tokens), Some(output_tokens)) = (self.input_len, self.output_len) else {
            return Err(
                Error::input("which traffic? give a trace, or --input-len and --output-len")
                    .hint("example: --input-len 1024 --output-len 256 --concurrency 32"),
            );
        };
        let lengths = Lengths {
            input_tokens,
            output_tokens,
            ratio: self.length_ratio,
        };
        match (concurrency, self.rate) {
            (Some(concurrency), None) => {
                let requests = self.requests.unwrap_or(concurrency.saturating_mul(10));
                Ok((
                    closed_loop(lengths, requests, self.seed)?,
                    Arrivals::Closed { concurrency },
                ))
            }
            (None, Some(rate)) => {
                let requests = self.requests.unwrap_or(1000);
                let trace = open_loop(lengths, requests, rate, self.burstiness, self.seed)?;
                Ok((trace, Arrivals::Trace { speed: self.speed }))
            }
            (Some(_), Some(_)) => Err(Error::input(
                "--concurrency and --rate are two kinds of traffic: give one of them",
            )),
            (None, None) => Err(Error::input("how much traffic? give --concurrency N or --rate R")),
        }
    }
}
