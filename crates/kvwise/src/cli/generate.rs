//! `kvwise generate`: from a plan that fits to files that start a server.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_io::bundle;

use super::deployment::DeploymentArgs;
use super::output::{Format, json};
use crate::printer::{ExitStatus, Printer};
use crate::report::generate::{Executor, Generated, NearestPart, SCHEMA};
use crate::usecase::generate::{Artifact, Order, Outcome, generate, nearest};

const EXAMPLES: &str = "Examples:
  kvwise generate meta-llama/Llama-3.1-8B --gpu h100 --max-model-len 32k --output-dir out
  kvwise generate Qwen/Qwen3-32B --gpu h100 --tp 2 --print docker-compose.yaml
  kvwise generate Qwen/Qwen3-32B --gpu h100 --tp 2 -c 64 --context 8k --output-dir out --emit k8s,compose
  kvwise generate ./my-model --gpu l40s --kv-cache-dtype fp8 --output-dir out --served-model-name mine
  kvwise generate qwen3-8b --gpu l4 --max-model-len auto --output-dir out -- --reasoning-parser qwen3
  kvwise generate model.gguf --gpu rtx-4090 --context 8k -c 4 --cache-type-k q8_0 --output-dir out   llama.cpp
  kvwise generate qwen3-8b --engine llamacpp --hf-repo ggml-org/Qwen3-8B-GGUF:Q4_K_M --gpu rtx-4090 --output-dir out
  kvwise generate deepseek-ai/DeepSeek-V3 --gpu h100 --tp 8 --pp 2 --max-model-len 32k --output-dir out   two nodes
  kvwise generate llama-3.1-405b --gpu h100 --tp 8 --pp 2 --distributed-executor-backend ray --print serve_command.sh

Exit status: 0 written, 1 it does not fit (nothing is written; the nearest that fits is named), 2 cannot be done.";

/// Words for [`Executor`], which are vLLM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExecutorWord {
    /// The engine's own processes on every machine.
    Mp,
    /// A Ray cluster of the machines.
    Ray,
}

/// Write the files that start a server: command, docker, Compose, Kubernetes, profile.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Generate {
    #[command(flatten)]
    deployment: DeploymentArgs,

    /// Folder for the files; made if it is missing.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "print",
        help_heading = "Files"
    )]
    output_dir: Option<PathBuf>,

    /// Write nothing; say what would be written.
    #[arg(long, help_heading = "Files")]
    dry_run: bool,

    /// Print this one (k8s.yaml, ...) instead of writing any.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output_dir", "force", "dry_run"], help_heading = "Files")]
    print: Option<String>,

    /// Files to write, besides plan.json: command, docker, compose, k8s, profile [default: all that can be made].
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Files")]
    emit: Vec<String>,

    /// Replace files that are there already.
    #[arg(long, help_heading = "Files")]
    force: bool,

    /// Port of the server [default: the engine's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Server")]
    port: Option<u16>,

    /// Container image [default: the engine's published image of the version].
    #[arg(long, value_name = "IMAGE", help_heading = "Server")]
    image: Option<String>,

    /// Hub repository with GGUF files that llama.cpp is to serve: ORG/NAME or ORG/NAME:QUANT.
    #[arg(long, value_name = "REPO", help_heading = "Server")]
    hf_repo: Option<String>,

    /// GPUs of one machine; a server that takes more gets a script to be run on each of several [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024), help_heading = "Server")]
    gpus_per_node: Option<u64>,

    /// How vLLM reaches the GPUs of several machines: by itself, or through a Ray cluster.
    #[arg(
        long,
        value_enum,
        value_name = "BACKEND",
        default_value = "mp",
        help_heading = "Server"
    )]
    distributed_executor_backend: ExecutorWord,

    /// Name under which clients ask for the model [default: its id, or the folder's name].
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    served_model_name: Option<String>,

    /// Let the engine run code that the model brings.
    #[arg(long, help_heading = "Server")]
    trust_remote_code: bool,

    /// Format of the summary on stdout [default: table on a terminal, else json].
    #[arg(
        long,
        value_enum,
        env = "KVWISE_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    format: Option<Format>,

    /// Further flags of the engine, checked and added to the command.
    #[arg(last = true, value_name = "FLAGS")]
    extra: Vec<String>,
}

impl Generate {
    /// Runs the command.
    ///
    /// # Errors
    /// If the deployment cannot be planned, a flag is not the engine's, or the files cannot be written.
    pub fn run(&self, printer: Printer) -> Result<ExitStatus> {
        let emit = self
            .emit
            .iter()
            .map(|word| Artifact::parse(word))
            .collect::<Result<Vec<_>>>()?;
        let order = Order {
            deployment: self.deployment.deployment()?,
            emit,
            port: self.port,
            image: self.image.clone(),
            served_model_name: self.served_model_name.clone(),
            trust_remote_code: self.trust_remote_code,
            extra: self.extra.clone(),
            hf_repo: self.hf_repo.clone(),
            gpus_per_node: self.gpus_per_node,
            executor: match self.distributed_executor_backend {
                ExecutorWord::Mp => Executor::Own,
                ExecutorWord::Ray => Executor::Ray,
            },
        };
        let directory = self
            .output_dir
            .as_ref()
            .map(|d| d.display().to_string())
            .unwrap_or_default();
        let (generated, status) = match generate(&order)? {
            Outcome::Files { plan, server, files } => {
                if let Some(name) = &self.print {
                    let file = files.iter().find(|f| f.name == name).ok_or_else(|| {
                        let names: Vec<&str> = files.iter().map(|f| f.name).collect();
                        Error::input(format!(
                            "--print is \"{name}\", expected one of {}",
                            names.join(", ")
                        ))
                    })?;
                    printer.data(&file.text)?;
                    return Ok(ExitStatus::Success);
                }
                if let Some(folder) = self.output_dir.as_ref().filter(|_| !self.dry_run) {
                    bundle::write(folder, &files, self.force)?;
                }
                let program = server.program(false).iter().map(|w| (*w).to_owned());
                let generated = Generated {
                    schema: SCHEMA,
                    written: !self.dry_run,
                    directory,
                    files: files.iter().map(|f| f.name.to_owned()).collect(),
                    verdict: plan.verdict.clone(),
                    command: program.chain(server.words(false)).collect(),
                    arguments: server.arguments.clone(),
                    fix: None,
                    nearest: None,
                    warnings: server.warnings.clone(),
                };
                (generated, ExitStatus::Success)
            }
            Outcome::DoesNotFit { plan } => {
                let nearest = nearest(&order.deployment);
                let generated = Generated {
                    schema: SCHEMA,
                    written: false,
                    directory,
                    files: Vec::new(),
                    verdict: plan.verdict.clone(),
                    command: Vec::new(),
                    arguments: Vec::new(),
                    fix: plan.fix.clone(),
                    nearest: nearest.map(|n| NearestPart {
                        flags: n
                            .flags
                            .into_iter()
                            .map(|(flag, value)| format!("{flag} {value}"))
                            .collect(),
                        verdict: n.verdict,
                    }),
                    warnings: plan.feasibility.warnings.clone(),
                };
                (generated, ExitStatus::No)
            }
        };
        let format = self.format.unwrap_or(if printer.stdout_is_terminal() {
            Format::Table
        } else {
            Format::Json
        });
        printer.data(&match format {
            Format::Table => generated.text(),
            Format::Json => json(&generated)?,
            Format::Csv => generated.grid().csv(),
            Format::Markdown => generated.grid().markdown(),
        })?;
        Ok(status)
    }
}
