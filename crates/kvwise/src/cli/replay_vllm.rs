//! The flags of `kvwise replay --engine vllm`, named as vLLM names them.

use clap::Args;
use kvwise_core::engine::vllm::version::Version;
use kvwise_core::{Error, Result};
use kvwise_sim::replay::vllm::{Clock, Isolation, ReplayConfig, working_bytes};
use kvwise_sim::sched::vllm::{Policy, SchedulerConfig};
use kvwise_sim::trace::{Trace, TraceSize};

use crate::printer::Printer;
use crate::usecase::replay_vllm;

/// Flags of `--engine vllm`.
#[derive(Debug, Args)]
#[command(next_help_heading = "vLLM")]
pub struct VllmArgs {
    /// Blocks of the pool, the null block included (what vLLM logs as `num_gpu_blocks`).
    #[arg(long, value_name = "N")]
    num_blocks: Option<u32>,

    /// Release of vLLM: before 0.24 partial blocks that a request gives back push out cached ones (those of sliding windows
    /// before 0.23), before 0.29 all blocks of windows and states are kept.
    #[arg(long, value_name = "V", default_value = "0.32.0")]
    engine_version: String,

    /// Tokens per block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: u32,

    /// Longest sequence, prompt and output together.
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    max_model_len: u32,

    /// Requests running at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_num_seqs: u32,

    /// Tokens computed in a step.
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
    max_num_batched_tokens: u32,

    /// Share of the pool kept free when a request is admitted beside running ones.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    watermark: f64,

    /// Groups of layers: full:1,swa1024:5; kinds full, swaN, chunkN, mamba, each with @SIZE for its own block size
    /// and +eagle where the drafter's layers are.
    #[arg(long, value_name = "GROUPS", default_value = "full:1")]
    groups: String,

    /// Which blocks of sliding-window and Mamba groups stay reachable: 0, none (all) or every so many tokens
    /// [default: the release's, 0 from 0.29 on, none before].
    #[arg(long, value_name = "TOKENS")]
    retention: Option<String>,

    /// Speculative decoding, as vLLM takes it (see the examples), with `parallel_drafting` and
    /// `num_speculative_tokens_per_batch_size`; all methods but suffix.
    #[arg(long, value_name = "JSON")]
    speculative_config: Option<String>,

    /// Draft tokens accepted in a step on average, 0 to all of them.
    #[arg(
        long,
        value_name = "MEAN",
        default_value_t = 0.0,
        requires = "speculative_config"
    )]
    accepted_tokens: f64,

    /// Share no prefixes.
    #[arg(long)]
    no_prefix_caching: bool,

    /// Admit a prompt as soon as its first chunk fits.
    #[arg(long)]
    no_reserve_full_isl: bool,

    /// Keep prefixes of different LoRA adapters (field "lora") apart, as a vLLM with LoRA does.
    #[arg(long)]
    lora_keys: bool,
}

impl VllmArgs {
    /// Tokens of a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes that the replay of a trace of `size` holds beside the trace; flags that make no sense are refused later.
    pub fn working_bytes(&self, size: &TraceSize) -> u64 {
        let groups =
            replay_vllm::groups(&self.groups, self.block_size.max(1)).map_or(1, |groups| groups.len() as u64);
        working_bytes(size, self.num_blocks.unwrap_or(0), self.block_size, groups)
    }

    /// The replay's settings for `trace`.
    ///
    /// # Errors
    /// If a flag is missing or cannot be used.
    pub fn config(
        &self,
        policy: Option<&str>,
        clock: Clock,
        trace: &Trace,
        printer: Printer,
    ) -> Result<ReplayConfig> {
        let num_blocks = self.num_blocks.ok_or_else(|| {
            Error::input("--num-blocks is missing: the blocks of the KV pool, the null block included")
                .hint("vLLM logs it at its start; or ask `kvwise plan` for the model and the GPU")
        })?;
        if self.block_size == 0 {
            return Err(Error::input("--block-size is 0, expected at least 1 token"));
        }
        let policy = match policy {
            None | Some("fcfs") => Policy::Fcfs,
            Some("priority") => Policy::Priority,
            Some(other) => {
                return Err(Error::input(format!(
                    "--policy is \"{other}\", but vLLM's scheduler has fcfs and priority"
                )));
            }
        };
        if !self.lora_keys && (0..trace.len()).any(|i| trace.lora(i).is_some()) {
            printer.warn(
                "requests name LoRA adapters, and prefixes are shared between adapters here as in the reference replay; \
                 pass --lora-keys to keep them apart as vLLM does when it serves adapters",
            );
        }
        let version = Version::parse(&self.engine_version).map_err(|e| e.at("--engine-version"))?;
        if version.is_newer_than_known() {
            printer.warn(&format!(
                "vLLM {version} is newer than the rules known here; those of {} are used",
                Version::NEWEST
            ));
        }
        let groups = replay_vllm::groups(&self.groups, self.block_size)?;
        let retention = replay_vllm::retention_of(self.retention.as_deref(), version, &groups)?;
        Ok(ReplayConfig {
            scheduler: SchedulerConfig {
                groups,
                max_model_len: self.max_model_len,
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
                watermark: self.watermark,
                policy,
                prefix_caching: !self.no_prefix_caching,
                retention,
                junctions: replay_vllm::junctions(version),
                reserve_full_isl: !self.no_reserve_full_isl,
                release_order: replay_vllm::release_order(version),
                speculation: self
                    .speculative_config
                    .as_deref()
                    .map(|text| replay_vllm::speculation(text, self.accepted_tokens))
                    .transpose()?,
                ..SchedulerConfig::new(num_blocks, self.block_size)
            },
            clock,
            isolation: Isolation { lora: self.lora_keys },
        })
    }
}
