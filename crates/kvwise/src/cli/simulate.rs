//! `kvwise simulate`: what traffic does on a deployment, in time.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::{Error, Result};

use super::deployment::DeploymentFlags;
use super::output::{Format, Output, json};
use super::traffic::{ServingArgs, SloArgs, TrafficArgs};
use crate::printer::{ExitStatus, Printer};
use crate::report::rate::RateAnswer;
use crate::report::simulation::{self as report, Seeds, Simulation};
use crate::report::simulation_html;
use crate::usecase::rate::highest_rate;
use crate::usecase::served::{Prepared, prepare};
use crate::usecase::simulate as usecase;

const EXAMPLES: &str = "Examples:
  kvwise simulate --model meta-llama/Llama-3.1-8B --gpu h100 --input-len 1024 --output-len 256 --concurrency 32
  kvwise simulate --model Qwen/Qwen3-32B --gpu h100 --tp 2 --input-len 2000 --output-len 300 --rate 4 --requests 1000
  kvwise simulate trace.jsonl --model llama-3.1-8b --gpu h200 --slo-ttft-ms 2000 --slo-tpot-ms 50 --html report.html
  kvwise simulate trace.jsonl --model llama-3.1-8b --gpu h200 --compare kv-cache-dtype=fp8 --compare tp=2
  kvwise simulate --model llama-3.1-8b --gpu h100 --input-len 1000 --output-len 200 --find-rate --slo-ttft-ms 500
  kvwise simulate --model deepseek-ai/DeepSeek-R1 --gpu h200 --tp 8 --engine sglang --input-len 1024 --output-len 1024 \\
      --length-ratio 0.8 --concurrency 32 --roofline
  kvwise simulate --model llama-3.1-70b --gpu h100 --max-model-len 16k --input-len 8000 --output-len 500 --rate 1 \\
      --requests 200 --disaggregate prefill=2,decode=1 --prefill-flags tp=2 --decode-flags tp=4
  kvwise simulate trace.jsonl --model llama-3.1-70b --gpu h100 --tp 4 --tiers host=400GiB,disk=4TiB

Exit status: 0 done (and objectives met), 1 an objective is missed or the engine would not start, 2 cannot be answered.";

/// Most seeds of one answer.
const MAX_SEEDS: u32 = 1000;

/// Simulate traffic on a deployment: latencies, throughput, KV usage, preemptions.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Simulate {
    #[command(flatten)]
    traffic: TrafficArgs,

    /// Requests a second (open loop); with a trace use --speed.
    #[arg(
        long,
        value_name = "R",
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    rate: Option<f64>,

    /// Repeat with so many seeds and give the spread of each figure.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    seeds: u32,

    #[command(flatten)]
    slo: SloArgs,

    /// Search for the highest rate that meets the objectives.
    #[arg(long, help_heading = "Objectives")]
    find_rate: bool,

    #[command(flatten)]
    serving: ServingArgs,

    /// Also simulate with these flags changed (kv-cache-dtype=fp8,tp=2); may be given several times.
    #[arg(long, value_name = "FLAGS", help_heading = "Output")]
    compare: Vec<String>,

    /// Also compute what no implementation can beat: every resource busy all the time at its datasheet rate.
    #[arg(long, help_heading = "Output")]
    roofline: bool,

    /// Also draw running and waiting requests and KV usage over time.
    #[arg(long, help_heading = "Output")]
    plot: bool,

    /// Also write the report as one HTML file (no network, light and dark).
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,

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
        let slo = self.slo.slo()?;
        if !(1..=MAX_SEEDS).contains(&self.seeds) {
            return Err(Error::input(format!(
                "--seeds is {}, expected 1 to {MAX_SEEDS}",
                self.seeds
            )));
        }
        let mut deployment = self.deployment.0.deployment()?;
        deployment.lookup.progress &= !printer.quiet;
        let concurrency = match deployment.concurrency.as_slice() {
            [] => None,
            [one] => Some(
                u32::try_from(*one)
                    .map_err(|_| Error::input(format!("--concurrency is {one}, more than is simulated")))?,
            ),
            _ => {
                return Err(
                    Error::input("--concurrency takes one value here").hint("`kvwise sweep` takes several")
                );
            }
        };
        deployment.concurrency.clear();
        let serving = self.serving.serving(self.roofline)?;
        let mut traffic = self.traffic.traffic(printer)?;
        traffic.concurrency = concurrency;
        traffic.rate = self.rate;
        if self.find_rate {
            if concurrency.is_some() || self.rate.is_some() {
                return Err(Error::input(
                    "--find-rate searches for the rate: leave --rate and --concurrency out",
                ));
            }
            let served = match prepare(&deployment, &serving)? {
                Prepared::Ready(served) => served,
                Prepared::Refused(plan, reason) => {
                    printer.note(&format!(
                        "{} on {} x {}: the engine would not start: {reason}",
                        plan.model.name, plan.gpu.count, plan.gpu.name
                    ));
                    if let Some(fix) = usecase::fix(&deployment, &serving, &traffic.at_rate(1.0)?.workload()?)
                    {
                        printer.note(&format!("fix: {fix}"));
                    }
                    return Ok(ExitStatus::No);
                }
            };
            for warning in &served.warnings {
                printer.warn(warning);
            }
            let found = highest_rate(&served, &traffic, slo)?;
            let answer = RateAnswer::new(&served, (&deployment, &serving), &traffic, slo, found);
            let text = match self.output.format(printer) {
                Format::Json => json(&answer)?,
                Format::Table => answer.text(),
                Format::Csv => answer.grid().csv(),
                Format::Markdown => answer.grid().markdown(),
            };
            self.output.write(printer, &text)?;
            return Ok(if answer.rate_per_s.is_some() {
                ExitStatus::Success
            } else {
                ExitStatus::No
            });
        }
        let mut variants = vec![("as asked".to_owned(), deployment.clone())];
        for changes in &self.compare {
            variants.push((
                changes.clone(),
                usecase::changed(&deployment, "--compare", changes)?,
            ));
        }
        let workload = traffic.workload()?;
        let mut simulations = Vec::new();
        for (label, deployment) in variants {
            let outcome = usecase::simulate(&deployment, &serving, &workload, slo)?;
            for warning in &outcome.warnings {
                printer.warn(warning);
            }
            let mut simulation = Simulation::new(label, &workload, &deployment, traffic.seed, slo, &outcome);
            if self.seeds > 1 && outcome.refused.is_none() {
                let mut seeds = Seeds::default();
                seeds.add(&simulation);
                for i in 1..self.seeds {
                    let mut other = traffic.clone();
                    other.seed = traffic.seed.wrapping_add(u64::from(i));
                    let workload = other.workload()?;
                    let outcome = usecase::simulate(&deployment, &serving, &workload, slo)?;
                    seeds.add(&Simulation::new(
                        String::new(),
                        &workload,
                        &deployment,
                        other.seed,
                        slo,
                        &outcome,
                    ));
                }
                simulation.seeds = Some(seeds.summary());
            }
            simulations.push(simulation);
        }
        let first = &simulations[0];
        if first.slo_met == Some(false) {
            printer
                .note("the objectives are missed: --find-rate searches for the highest rate that meets them");
        }
        let status = if first.is_yes() {
            ExitStatus::Success
        } else {
            ExitStatus::No
        };
        if let Some(path) = &self.html {
            printer.data_to(Some(path), &simulation_html::page(&simulations)?)?;
        }
        let text = match self.output.format(printer) {
            _ if self.wants_html() => simulation_html::page(&simulations)?,
            Format::Json if simulations.len() == 1 => json(first)?,
            Format::Json => json(&simulations)?,
            Format::Table => {
                let mut text = report::text(&simulations);
                if self.plot {
                    text.push_str(&report::plots(first));
                }
                text
            }
            Format::Csv => report::grid(&simulations, true).csv(),
            Format::Markdown => report::grid(&simulations, true).markdown(),
        };
        self.output.write(printer, &text)?;
        Ok(status)
    }

    /// `-o report.html` without `--format`.
    fn wants_html(&self) -> bool {
        self.output.format.is_none()
            && self
                .output
                .output
                .as_ref()
                .is_some_and(|p| p.extension().is_some_and(|e| e == "html"))
    }
}
