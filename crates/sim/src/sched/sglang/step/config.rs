//! Sizes and policies of SGLang's scheduler, by its own names.

use kvwise_cache::radix::TreePolicy;
use kvwise_core::{Error, Result};

use super::inbox::MAX_RECV_INTERVAL;

/// Order of the waiting queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulePolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Longest prefix match first.
    Lpm,
    /// Longest output first.
    Lof,
}

/// What an engine does for its requests (`--disaggregation-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// Everything.
    #[default]
    Whole,
    /// Computes prompts, and keeps them until they were read.
    Prefill,
    /// Makes room for whole prompts, which come from elsewhere, and goes on from their first generated token.
    Decode {
        /// Tokens kept free for each request that has room (`--num-reserved-decode-tokens`).
        reserved_tokens: usize,
        /// Requests that may have room beside those that may run (`--disaggregation-decode-extra-slots`).
        extra_rows: usize,
    },
}

/// Default of `--num-reserved-decode-tokens` (SGLang 0.5.23, `arg_groups/fields/disagg.py`).
pub const RESERVED_DECODE_TOKENS: usize = 512;

/// Sizes and policies of a [`SteppedScheduler`](super::SteppedScheduler), by SGLang's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepConfig {
    /// Tokens of the KV pool (`max_total_num_tokens`).
    pub capacity_tokens: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// Which leaf of the tree is evicted first.
    pub eviction: TreePolicy,
    /// Requests that may run at once.
    pub max_running: usize,
    /// Longest prompt plus output, in tokens (`context_length`).
    pub max_context_tokens: usize,
    /// Tokens of one prefill batch (`chunked_prefill_size`); `None`: prompts are computed in one go.
    pub chunked_prefill_tokens: Option<usize>,
    /// Prompt tokens that a prefill batch may start (`max_prefill_tokens`).
    pub max_prefill_tokens: usize,
    /// Order of the waiting queue.
    pub schedule: SchedulePolicy,
    /// `--schedule-conservativeness`.
    pub conservativeness: f64,
    /// Whether prefixes are kept (`--disable-radix-cache` clears it).
    pub radix_cache: bool,
    /// Whether a batch is composed while the one before is computed (`--disable-overlap-schedule` clears it).
    pub overlap: bool,
    /// Turns of the loop between two looks for new requests while requests decode (`--scheduler-recv-interval`).
    pub recv_interval: u32,
    /// What the engine does where prompts are computed apart (`--disaggregation-mode`).
    pub side: Side,
}

impl StepConfig {
    /// SGLang's defaults for a pool of this many tokens.
    pub fn new(capacity_tokens: usize) -> Self {
        Self {
            capacity_tokens,
            page_size: 1,
            eviction: TreePolicy::Lru,
            max_running: 2048,
            max_context_tokens: 131_072,
            chunked_prefill_tokens: Some(8192),
            max_prefill_tokens: 16_384,
            schedule: SchedulePolicy::default(),
            conservativeness: 1.0,
            radix_cache: true,
            overlap: true,
            recv_interval: 1,
            side: Side::Whole,
        }
    }

    /// Requests that may hold memory at once.
    pub(super) fn max_rows(&self) -> usize {
        match self.side {
            Side::Decode { extra_rows, .. } => self.max_running.saturating_add(extra_rows),
            _ => self.max_running,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("the KV pool", self.capacity_tokens),
            ("--page-size", self.page_size),
            ("--max-running-requests", self.max_running),
            ("--context-length", self.max_context_tokens),
            ("--max-prefill-tokens", self.max_prefill_tokens),
            ("--chunked-prefill-size", self.chunked_prefill_tokens.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} is 0, expected a positive count")));
            }
        }
        if !(1..=MAX_RECV_INTERVAL).contains(&self.recv_interval) {
            return Err(Error::input(format!(
                "--scheduler-recv-interval is {}, expected 1 to {MAX_RECV_INTERVAL}",
                self.recv_interval
            )));
        }
        if !(self.conservativeness.is_finite() && self.conservativeness > 0.0) {
            return Err(Error::input(format!(
                "--schedule-conservativeness is {}, expected a positive number",
                self.conservativeness
            )));
        }
        Ok(())
    }
}
