//! `kvwise recommend`: the deployment worth running for a model, a traffic and objectives.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvwise_core::plan::Mode;
use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{Lengths, closed_loop, open_loop};
use kvwise_sim::trace::Trace;

use super::output::{Format, Output, json};
use super::traffic::{NetworkArgs, SloArgs};
use crate::printer::{ExitStatus, Printer};
use crate::usecase::deployment::Deployment;
use crate::usecase::recommend::bench::{Load, Objectives};
use crate::usecase::recommend::drafters::Drafter;
use crate::usecase::recommend::prices::Prices;
use crate::usecase::recommend::{Objective, Question, recommend};
use crate::usecase::trace_memory::open_for_simulation;

const EXAMPLES: &str = "Examples:
  kvwise recommend llama-3.1-8b --workload input=1000,output=200,rate=4 --slo-ttft-ms 1000 --slo-tpot-ms 50
  kvwise recommend qwen3-32b --workload input=4000,output=400,concurrency=64 --slo-tpot-ms 40 --gpus-from h100,h200
  kvwise recommend llama-3.1-70b --workload trace.jsonl --slo-ttft-ms 2000 --price h100=2.10 --price h200=2.90
  kvwise recommend qwen3-8b --workload input=500,output=300,rate=20 --slo-tpot-ms 30 --objective throughput --budget 10
  kvwise recommend qwen3-8b --workload input=512,output=256,concurrency=16,mode=latency --slo-ttft-ms 500
  kvwise recommend qwen3-32b --workload trace.jsonl --slo-tpot-ms 40 --thorough --resume answers.jsonl
  kvwise recommend qwen3-32b --workload input=2000,output=300,rate=2 --slo-tpot-ms 20 --engine vllm,sglang --drafter ngram=0.4
  kvwise recommend deepseek-v3 --workload input=2000,output=300,rate=2 --slo-tpot-ms 50 --gpus-from h100 --network efa-3200

A workload is a trace in any format of `kvwise trace`, or input=N,output=N with rate=R or concurrency=N, and optionally
ratio=R (shortest length as a share of the longest), burstiness=S (1 is Poisson), requests=N, and with concurrency=N also
mode=throughput|latency|balanced, which adds the sequences and tokens of a step that `kvwise plan --mode` recommends.
Every number and kind of GPU is tried with tensor-, pipeline- and (for experts) data-parallel ranks; sequences and tokens of a
step, block size and what drafts tokens (the model's own modules, EAGLE heads known for it, what --drafter names) are changed one
at a time, with --thorough in every combination.
Exit status: 0 something holds the objectives, 1 nothing does, 2 cannot be answered.";

/// Words for [`Objective`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ObjectiveWord {
    /// Least money an hour.
    Cost,
    /// Fewest GPUs.
    Gpus,
    /// Most traffic within --max-gpus and --budget.
    Throughput,
}

/// Engines to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineWord {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp.
    #[value(name = "llamacpp", alias = "llama.cpp")]
    Llamacpp,
}

/// Recommend GPUs, parallelism and settings for a model, a traffic and objectives on latency.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Recommend {
    /// Model: catalogue name or hub id, folder with config.json, or a config.json.
    model: String,

    /// Traffic: a trace, or input=N,output=N,rate=R (or concurrency=N).
    #[arg(long, value_name = "SPEC|TRACE", help_heading = "Traffic")]
    workload: String,

    /// Requests under way at any time, instead of a trace's times.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    concurrency: Option<u32>,

    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    seed: u64,

    #[command(flatten)]
    slo: SloArgs,

    /// Percentile at which the limits hold: 50, 90 or 99.
    #[arg(long, value_name = "P", default_value_t = 99, help_heading = "Objectives")]
    slo_percentile: u8,

    /// What is best.
    #[arg(long, value_enum, default_value = "cost", help_heading = "Objectives")]
    objective: ObjectiveWord,

    /// Kinds of GPU to choose from [default: all with a price].
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Hardware")]
    gpus_from: Vec<String>,

    /// Most GPUs in all.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096), help_heading = "Hardware")]
    max_gpus: u64,

    /// Most dollars an hour in all.
    #[arg(long, value_name = "USD", help_heading = "Hardware")]
    budget: Option<f64>,

    /// Price of a GPU in dollars an hour (h100=2.5); may be given several times.
    #[arg(
        long,
        value_name = "GPU=USD",
        value_delimiter = ',',
        help_heading = "Hardware"
    )]
    price: Vec<String>,

    /// Also consider making 8-bit weights and caches from 16-bit ones, which changes the answers a little.
    #[arg(long, help_heading = "Hardware")]
    allow_fp8: bool,

    /// Try every combination of settings, not one change at a time; takes minutes.
    #[arg(long, help_heading = "Search")]
    thorough: bool,

    /// Keep what was simulated in this file, and go on from there if it is there already.
    #[arg(long, value_name = "FILE", help_heading = "Search")]
    resume: Option<PathBuf>,

    /// What may draft tokens besides the model's own modules and the heads known for it, with the probability that a drafted
    /// token is accepted: ngram=0.4, a head or draft model (ORG/NAME=0.6); may be given several times.
    #[arg(long, value_name = "NAME[=P]", help_heading = "Search")]
    drafter: Vec<String>,

    /// Probability that a drafted token is accepted, given that all before it were, for drafters without their own
    /// [default: 0.7 for the model's own modules and 0.6 for EAGLE heads, assumed].
    #[arg(long, value_name = "P", help_heading = "Search")]
    acceptance_rate: Option<f64>,

    /// Engines to choose from. llama.cpp's steps are not timed: where it starts is planned, and no more.
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "vllm",
        help_heading = "Search"
    )]
    engine: Vec<EngineWord>,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    output: Output,
}

impl Recommend {
    /// Runs the command.
    ///
    /// # Errors
    /// If the question cannot be answered or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let slo = self.slo.slo()?;
        if self.budget.is_some_and(|x| !(x.is_finite() && x > 0.0)) {
            return Err(Error::input("--budget must be a positive number"));
        }
        if let Some(p) = self.acceptance_rate.filter(|p| !(0.0..=1.0).contains(p)) {
            return Err(Error::input(format!(
                "--acceptance-rate is {p}, expected a number from 0 to 1"
            )));
        }
        if slo.ttft_ms.is_none() && slo.tpot_ms.is_none() {
            return Err(
                Error::input("which objective? give --slo-ttft-ms, --slo-tpot-ms or both")
                    .hint("example: --slo-ttft-ms 1000 --slo-tpot-ms 50"),
            );
        }
        if ![50, 90, 99].contains(&self.slo_percentile) {
            return Err(Error::input(format!(
                "--slo-percentile is {}, expected 50, 90 or 99",
                self.slo_percentile
            )));
        }
        let (trace, load, mode) = self.traffic(printer)?;
        let question = Question {
            base: Deployment {
                model: Some(self.model.clone()),
                ..Deployment::default()
            },
            trace,
            load,
            objectives: Objectives {
                slo,
                percentile: self.slo_percentile,
            },
            objective: match self.objective {
                ObjectiveWord::Cost => Objective::Cost,
                ObjectiveWord::Gpus => Objective::Gpus,
                ObjectiveWord::Throughput => Objective::Throughput,
            },
            gpus_from: self.gpus_from.clone(),
            prices: Prices::with(&self.price)?,
            max_gpus: self.max_gpus,
            budget_usd_per_hour: self.budget,
            allow_fp8: self.allow_fp8,
            mode,
            thorough: self.thorough,
            acceptance: self.acceptance_rate,
            drafters: self
                .drafter
                .iter()
                .map(|text| Drafter::given(text, self.acceptance_rate))
                .collect::<Result<Vec<_>>>()?,
            engines: self.engines(),
            network: self.network.asked(),
            resume: self.resume.clone(),
        };
        let report = recommend(&question)?;
        let text = match self.output.format(printer) {
            Format::Table => report.text(),
            Format::Json => json(&report)?,
            Format::Csv => report.grid().csv(),
            Format::Markdown => report.grid().markdown(),
        };
        self.output.write(printer, &text)?;
        Ok(if report.recommended.is_some() {
            ExitStatus::Success
        } else {
            ExitStatus::No
        })
    }

    /// The engines, each once.
    fn engines(&self) -> Vec<&'static str> {
        let mut all = Vec::new();
        for word in &self.engine {
            let name = match word {
                EngineWord::Vllm => "vllm",
                EngineWord::Sglang => "sglang",
                EngineWord::Llamacpp => "llamacpp",
            };
            if !all.contains(&name) {
                all.push(name);
            }
        }
        all
    }

    fn traffic(&self, printer: Printer) -> Result<(Trace, Load, Option<Mode>)> {
        let path = Path::new(&self.workload);
        if path.exists() || self.workload == "-" {
            let trace = open_for_simulation(path, printer)?;
            let load = match self.concurrency {
                Some(0) => return Err(Error::input("--concurrency is 0, expected at least 1")),
                Some(n) => Load::Closed(n),
                None => Load::Open,
            };
            return Ok((trace, load, None));
        }
        if !self.workload.contains('=') {
            return Err(
                Error::not_found(format!("--workload {}: there is no such file", self.workload))
                    .hint("give a trace, or a description: --workload input=1000,output=200,rate=4"),
            );
        }
        spec(&self.workload, self.concurrency, self.seed)
    }
}

/// Traffic from `input=1000,output=200,rate=4`.
fn spec(text: &str, concurrency: Option<u32>, seed: u64) -> Result<(Trace, Load, Option<Mode>)> {
    let (mut input, mut output, mut rate, mut at_once, mut requests) = (None, None, None, concurrency, None);
    let (mut ratio, mut burstiness, mut mode) = (1.0, 1.0, None);
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let wrong = || {
            Error::input(format!("--workload: \"{part}\" is not understood")).hint(
                "known: input=N, output=N, rate=R, concurrency=N, ratio=R, burstiness=S, requests=N, mode=M",
            )
        };
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        let count = || value.parse::<u32>().ok().filter(|&n| n > 0).ok_or_else(wrong);
        let number = || {
            value
                .parse::<f64>()
                .ok()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(wrong)
        };
        match key.trim() {
            "input" | "prompt" => input = Some(count()?),
            "output" | "gen" => output = Some(count()?),
            "rate" => rate = Some(number()?),
            "concurrency" => at_once = Some(count()?),
            "requests" => requests = Some(count()?),
            "ratio" => ratio = number()?,
            "burstiness" => burstiness = number()?,
            "mode" => {
                mode = Some(Mode::named(value).ok_or_else(|| {
                    Error::input(format!(
                        "--workload: mode is \"{value}\", expected throughput, latency or balanced"
                    ))
                })?);
            }
            _ => return Err(wrong()),
        }
    }
    let (Some(input_tokens), Some(output_tokens)) = (input, output) else {
        return Err(Error::input("--workload needs input=N and output=N, in tokens"));
    };
    let lengths = Lengths {
        input_tokens,
        output_tokens,
        ratio,
    };
    match (rate, at_once) {
        (Some(_), None) if mode.is_some() => Err(Error::input(
            "--workload: mode sets sequences and tokens by the requests at once: give concurrency=N",
        )),
        (Some(rate), None) => {
            let trace = open_loop(lengths, requests.unwrap_or(600), rate, burstiness, seed)?;
            Ok((trace, Load::Open, None))
        }
        (None, Some(n)) => {
            let requests = requests.unwrap_or_else(|| n.saturating_mul(6).clamp(200, 2000));
            Ok((closed_loop(lengths, requests, seed)?, Load::Closed(n), mode))
        }
        (Some(_), Some(_)) => Err(Error::input(
            "--workload: rate and concurrency are two kinds of traffic: give one",
        )),
        (None, None) => Err(Error::input(
            "--workload: how much traffic? add rate=R or concurrency=N",
        )),
    }
}
