//! `kvwise compare`: models, GPUs, contexts, engines and cache types in one table.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::arch::shape;
use kvwise_core::units::parse_count;
use kvwise_core::{Error, Result, catalogue};

use super::output::{Format, Output, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::compare::View;
use crate::usecase::compare::{Question, compare};
use crate::usecase::deployment::Deployment;

const EXAMPLES: &str = "Examples:
  kvwise compare llama-2-7b llama-2-70b mistral-7b-v0.1 --context 8192,32768       bytes of the KV cache
  kvwise compare qwen3-8b qwen3-32b --gpu l40s,h100,h200 --context 4k,32k          requests that fit
  kvwise compare deepseek-ai/DeepSeek-V3 --gpu h200 --kv-cache-dtype auto,fp8 --context 8k
  kvwise compare llama-2-70b --view fragmentation                                  with and without paging
  kvwise compare all --gpu h100 --context 8k --format csv                          the whole catalogue
  kvwise compare qwen3-8b --engine vllm,sglang,llamacpp --gpu h100 --context 8k    engines side by side
  kvwise compare llama-2-70b --shape layers=80,heads=64,kv-heads=4 --context 8k    and a model that is only an idea
  kvwise compare qwen3-8b qwen3-32b --gpu h100 --context 2k,8k,32k --svg room.svg  as a picture
  kvwise compare qwen3-8b qwen3-32b --gpu h100 --context 2k,8k,32k --format table --plot   in the terminal

Exit status: 0 something fits (or no GPU was asked about), 1 nothing does, 2 cannot be answered.";

/// Words for [`View`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ViewWord {
    /// Bytes of the KV cache by model and context.
    Models,
    /// Requests that fit, by model, GPU and context.
    Capacity,
    /// Memory with and without paging.
    Fragmentation,
}

/// Compare models, GPUs, contexts, engines and cache types in one table.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Compare {
    /// Models: names, folders, or `all` for the whole catalogue.
    #[arg(value_name = "MODEL", required_unless_present = "shape")]
    models: Vec<String>,

    /// A model that is only an idea: layers=80,heads=64,kv-heads=8,head-dim=128 and, if given, hidden, intermediate, vocab,
    /// context, window, experts, experts-per-token; may be given several times.
    #[arg(long, value_name = "SIZES", help_heading = "Compared")]
    shape: Vec<String>,

    /// Kinds of GPU (see `kvwise gpus`).
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Compared")]
    gpu: Vec<String>,

    /// Tokens of a request.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "8192,32768",
        help_heading = "Compared"
    )]
    context: Vec<String>,

    /// Engines: vllm, sglang, llamacpp, generic.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "vllm",
        help_heading = "Compared"
    )]
    engine: Vec<String>,

    /// Types of the KV cache.
    #[arg(
        long,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "Compared"
    )]
    kv_cache_dtype: Vec<String>,

    /// GPUs that share each layer; of several, the fewest that fit [default: 1,2,4,8].
    #[arg(
        long,
        visible_alias = "tp",
        value_name = "N",
        value_delimiter = ',',
        help_heading = "Shared"
    )]
    tensor_parallel_size: Vec<u64>,

    /// Longest request in tokens, or auto [default: the model's].
    #[arg(long, value_name = "N|auto", help_heading = "Shared")]
    max_model_len: Option<String>,

    /// Share of the GPU's memory that the engine may use.
    #[arg(long, value_name = "F", help_heading = "Shared")]
    gpu_memory_utilization: Option<f64>,

    /// REQUESTS:TOKENS:RESERVED of the view of fragmentation; may be given several times.
    #[arg(long, value_name = "R:T:M", help_heading = "Compared")]
    scenario: Vec<String>,

    /// What the table shows [default: capacity if GPUs are given, else models].
    #[arg(long, value_enum, help_heading = "Output")]
    view: Option<ViewWord>,

    /// Write a picture of the contexts beside the answer: requests that fit, or bytes of one request.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,

    /// Draw requests or bytes over the context under the table.
    #[arg(long, help_heading = "Output")]
    plot: bool,

    #[command(flatten)]
    output: Output,
}

/// Requests, tokens and reserved tokens of the book's calculator (`kv_cache_calculator.py`, chapter on KV caches).
const SCENARIOS: [(u64, u64, u64); 4] = [
    (100, 512, 8192),
    (50, 2048, 8192),
    (20, 4096, 32_768),
    (10, 8192, 131_072),
];

impl Compare {
    /// Runs the command.
    ///
    /// # Errors
    /// If a name or value cannot be used, or the answer cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let view = match self.view {
            Some(ViewWord::Fragmentation) => View::Fragmentation,
            Some(ViewWord::Models) => View::Models,
            None if self.gpu.is_empty() => View::Models,
            Some(ViewWord::Capacity) | None => View::Capacity,
        };
        if view == View::Capacity && self.gpu.is_empty() {
            return Err(Error::input(
                "--view capacity counts requests on GPUs: give --gpu",
            ));
        }
        let models = match self.models.as_slice() {
            [one] if one == "all" => catalogue::all().map(|entry| entry.id.to_owned()).collect(),
            given => [given, &self.shapes()?].concat(),
        };
        let contexts = self
            .context
            .iter()
            .map(|text| parse_count(text).map_err(|e| e.at("--context")))
            .collect::<Result<Vec<_>>>()?;
        let scenarios = match (view, self.scenario.as_slice()) {
            (View::Fragmentation, []) => SCENARIOS.to_vec(),
            (View::Fragmentation, given) => given.iter().map(|text| scenario(text)).collect::<Result<_>>()?,
            (_, []) => Vec::new(),
            _ => return Err(Error::input("--scenario belongs to --view fragmentation")),
        };
        let question = Question {
            base: Deployment {
                max_model_len: self.max_model_len.clone(),
                gpu_memory_utilization: self.gpu_memory_utilization,
                ..Deployment::default()
            },
            models,
            gpus: self.gpu.clone(),
            engines: self.engine.clone(),
            kv_cache_dtypes: self.kv_cache_dtype.clone(),
            contexts,
            scenarios,
            view,
            tensor_parallel_sizes: match (self.tensor_parallel_size.as_slice(), view) {
                // Bytes of whole requests need no second GPU.
                ([], View::Models | View::Fragmentation) => vec![1],
                ([], View::Capacity) => vec![1, 2, 4, 8],
                (given, _) => given.to_vec(),
            },
        };
        let (comparison, left_out) = if self.models == ["all"] {
            described(&question)?
        } else {
            (compare(&question)?, Vec::new())
        };
        if !left_out.is_empty() {
            printer.warn(&format!(
                "left out, since their layers are not described: {}",
                left_out.join(", ")
            ));
        }
        let format = self.output.format(printer);
        if self.plot && format != Format::Table {
            return Err(Error::input(
                "--plot draws with characters beside the table, and the format is another",
            )
            .hint("add --format table, or give --svg FILE"));
        }
        let mut text = match format {
            Format::Table => comparison.text(),
            Format::Json => json(&comparison)?,
            Format::Csv => comparison.grid().csv(),
            Format::Markdown => comparison.grid().markdown(),
        };
        let chart = |flag: &str| {
            comparison.chart().ok_or_else(|| {
                Error::input(format!(
                    "{flag} draws what depends on the context, and the view of fragmentation does not"
                ))
                .hint("leave it out, or give --view models or capacity")
            })
        };
        if self.plot {
            text.push('\n');
            text.push_str(&chart("--plot")?.text(78, 14));
        }
        if let Some(path) = &self.svg {
            let chart = chart("--svg")?;
            printer.data_to(Some(path), &chart.svg(1000, 560)?)?;
        }
        self.output.write(printer, &text)?;
        let yes = view != View::Capacity || comparison.rows.iter().any(|r| r.fits);
        Ok(if yes { ExitStatus::Success } else { ExitStatus::No })
    }

    /// The shapes, checked, so that a mistake is not taken for the name of a model.
    fn shapes(&self) -> Result<Vec<String>> {
        for text in &self.shape {
            shape::config(text).map_err(|e| e.at("--shape"))?;
        }
        Ok(self.shape.clone())
    }
}

/// The whole catalogue without the rows whose layers are not described yet.
fn described(question: &Question) -> Result<(crate::report::compare::Comparison, Vec<String>)> {
    use kvwise_core::arch::family;
    let mut models = Vec::new();
    let mut left_out = Vec::new();
    for entry in catalogue::all() {
        match family::read(entry.id, &entry.config()?) {
            Ok(_) => models.push(entry.id.to_owned()),
            Err(_) => left_out.push(entry.id.to_owned()),
        }
    }
    let comparison = compare(&Question {
        models,
        ..question.clone()
    })?;
    Ok((comparison, left_out))
}

fn scenario(text: &str) -> Result<(u64, u64, u64)> {
    let wrong = || {
        Error::input(format!(
            "--scenario is \"{text}\", expected requests, tokens and reserved tokens, like 100:512:8192"
        ))
    };
    let numbers: Vec<u64> = text
        .split(':')
        .map(|part| parse_count(part).map_err(|_| wrong()))
        .collect::<Result<_>>()?;
    match numbers[..] {
        [requests, tokens, reserved] if requests > 0 && tokens > 0 && tokens <= reserved => {
            Ok((requests, tokens, reserved))
        }
        _ => Err(wrong()),
    }
}
