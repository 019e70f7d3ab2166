//! The settings of SGLang's scheduler, by its names.

use kvwise_cache::radix::TreePolicy;
use kvwise_core::{Error, Result};

use super::MAX_RECV_INTERVAL;

/// Order of the waiting queue (SGLang 0.5.23, `sglang/srt/managers/schedule_policy.py`).
///
/// SGLang's `random` is left out, as no two runs of it are alike, and `routing-key`, as traces name no such keys.
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
    /// Depth first through the cache's tree, the branch with most waiting requests first.
    DfsWeight,
    /// Highest response ratio next: tokens prefilled since the request came, a token of its own that is not cached.
    Hrrn,
    /// Fewest uncached tokens first, also before the next chunk of a long prompt.
    ShortestPrefillFirst,
}

impl SchedulePolicy {
    /// Whether its order depends on what is cached.
    pub fn is_cache_aware(self) -> bool {
        !matches!(self, Self::Fcfs | Self::Lof)
    }

    /// SGLang's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Lpm => "lpm",
            Self::Lof => "lof",
            Self::DfsWeight => "dfs-weight",
            Self::Hrrn => "hrrn",
            Self::ShortestPrefillFirst => "shortest-prefill-first",
        }
    }
}

/// Which running request is retracted first when decoding finds no room (`--retraction-policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RetractionPolicy {
    /// That with the fewest tokens generated, then the longest prompt.
    #[default]
    Length,
    /// The least important one, then as above.
    Priority,
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

/// `--enable-priority-scheduling` and what goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityScheduling {
    /// Whether small numbers are important (`--schedule-low-priority-values-first`).
    pub low_values_first: bool,
    /// By how much a request must be more important than a running one to take its place
    /// (`--priority-scheduling-preemption-threshold`); `None`: it never does (`--disable-priority-preemption`).
    pub preemption_threshold: Option<i64>,
}

impl Default for PriorityScheduling {
    fn default() -> Self {
        Self {
            low_values_first: false,
            preemption_threshold: Some(10),
        }
    }
}

impl PriorityScheduling {
    /// Less is more important.
    pub(super) fn rank(self, priority: i64) -> i128 {
        if self.low_values_first {
            priority.into()
        } else {
            -i128::from(priority)
        }
    }
}

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
    /// Requests of one prefill batch (`--prefill-max-requests`), if there is a limit.
    pub prefill_max_requests: Option<usize>,
    /// Whether running requests decode in the batches that prefill others (`--enable-mixed-chunk`).
    pub mixed_chunk: bool,
    /// Order of the waiting queue.
    pub schedule: SchedulePolicy,
    /// Priorities between requests, if they count.
    pub priorities: Option<PriorityScheduling>,
    /// Who is retracted first.
    pub retraction: RetractionPolicy,
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
            prefill_max_requests: None,
            mixed_chunk: false,
            schedule: SchedulePolicy::default(),
            priorities: None,
            retraction: RetractionPolicy::default(),
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

    /// Requests that SGLang runs at once unless told (`max_running_requests`): as many as have room on average, 2048 to 4096,
    /// never more than half of the tokens (0.5.23, `sglang/srt/mem_cache/kv_cache_configurator.py`).
    pub fn default_max_running(capacity_tokens: usize, max_context_tokens: usize) -> usize {
        let room = capacity_tokens as u128 * 512 / max_context_tokens.max(1) as u128;
        usize::try_from(room)
            .unwrap_or(usize::MAX)
            .clamp(2048, 4096)
            .min(capacity_tokens / 2)
            .max(1)
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("the KV pool", self.capacity_tokens),
            ("--page-size", self.page_size),
            ("--max-running-requests", self.max_running),
            ("--context-length", self.max_context_tokens),
            ("--max-prefill-tokens", self.max_prefill_tokens),
            ("--chunked-prefill-size", self.chunked_prefill_tokens.unwrap_or(1)),
            ("--prefill-max-requests", self.prefill_max_requests.unwrap_or(1)),
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
        self.check_combinations()
    }

    /// What SGLang refuses together, and what it would not survive.
    fn check_combinations(&self) -> Result<()> {
        let schedule = self.schedule.name();
        if self.priorities.is_some() && self.schedule.is_cache_aware() {
            return Err(Error::input(format!(
                "--schedule-policy is {schedule}, but SGLang schedules by priority with fcfs or lof only"
            )));
        }
        if self.priorities.is_none() && self.retraction == RetractionPolicy::Priority {
            return Err(Error::input(
                "--retraction-policy priority needs --enable-priority-scheduling, as in SGLang",
            ));
        }
        if self.schedule == SchedulePolicy::ShortestPrefillFirst && !self.radix_cache {
            return Err(Error::input(
                "--schedule-policy shortest-prefill-first needs the radix cache, as in SGLang",
            ));
        }
        if self.mixed_chunk {
            let Some(chunk) = self.chunked_prefill_tokens else {
                return Err(Error::input(
                    "--enable-mixed-chunk needs chunks, but --chunked-prefill-size turns them off",
                ));
            };
            if chunk <= self.max_running {
                return Err(Error::input(format!(
                    "--chunked-prefill-size is {chunk} under --enable-mixed-chunk, where every running request takes a token of \
                     a chunk: expected more than --max-running-requests, {}",
                    self.max_running
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_sglang_refuses_together_are_refused_with_their_names() {
        let fine = StepConfig::new(10_000);
        assert!(fine.check().is_ok());
        for (config, words) in [
            (
                StepConfig {
                    priorities: Some(PriorityScheduling::default()),
                    schedule: SchedulePolicy::Lpm,
                    ..fine
                },
                "--schedule-policy is lpm",
            ),
            (
                StepConfig {
                    retraction: RetractionPolicy::Priority,
                    ..fine
                },
                "--enable-priority-scheduling",
            ),
            (
                StepConfig {
                    mixed_chunk: true,
                    chunked_prefill_tokens: Some(8),
                    max_running: 8,
                    ..fine
                },
                "--chunked-prefill-size is 8",
            ),
            (
                StepConfig {
                    mixed_chunk: true,
                    chunked_prefill_tokens: None,
                    ..fine
                },
                "turns them off",
            ),
            (
                StepConfig {
                    schedule: SchedulePolicy::ShortestPrefillFirst,
                    radix_cache: false,
                    ..fine
                },
                "radix cache",
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn as_many_requests_run_as_have_room_between_2048_and_4096() {
        for (tokens, context, running) in [
            (1_000_000, 131_072, 3906),
            (100, 131_072, 50),
            (1_000_000, 4096, 4096),
            (500_000, 131_072, 2048),
            (1, 10, 1),
        ] {
            assert_eq!(StepConfig::default_max_running(tokens, context), running);
        }
    }
}
