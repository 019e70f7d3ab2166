//! The flags of `kvwise replay --engine sglang`, those of the scheduler named as SGLang names them.

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_sim::sched::sglang::ReplayConfig;
use kvwise_sim::sched::sglang::step::{PriorityScheduling, RetractionPolicy, StepConfig};

use super::schedule::ScheduleName;
use crate::usecase::replay_sglang;

/// Flags of `--engine sglang`.
#[derive(Debug, Args)]
#[command(next_help_heading = "SGLang")]
pub struct SglangArgs {
    /// Tokens of the KV pool (what SGLang logs as `max_total_num_tokens`), a multiple of the page size.
    #[arg(long, value_name = "TOKENS")]
    capacity: Option<usize>,

    /// Tokens per page.
    #[arg(long, alias = "page-size", value_name = "TOKENS", default_value_t = 1)]
    page: usize,

    /// Parameters of the policy: {"`protected_threshold"`: 2} or {"threshold": 0, "`next_prompt_estimate"`: 0}.
    #[arg(long, value_name = "JSON")]
    policy_config: Option<String>,

    /// Longest prompt plus output: longer requests are refused, or cut where SGLang's scheduler cuts them.
    #[arg(
        long,
        alias = "context-length",
        value_name = "TOKENS",
        default_value_t = 131_072
    )]
    max_context: usize,

    /// How requests are served [default: batch if a flag of SGLang's scheduler is given, else one-by-one].
    #[arg(long, value_enum)]
    scheduler: Option<SchedulerName>,

    /// Requests held running at once, with --scheduler one-by-one [default: 1].
    #[arg(long, value_name = "N")]
    running: Option<usize>,

    #[command(flatten)]
    batch: BatchArgs,
}

/// Flags of SGLang's own scheduler.
#[derive(Debug, Args)]
#[command(next_help_heading = "SGLang's scheduler")]
struct BatchArgs {
    /// Prompt tokens computed in one batch, -1 for no limit [default: 8192].
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true)]
    chunked_prefill_size: Option<i64>,

    /// Prompt tokens that one batch may start [default: 16384].
    #[arg(long, value_name = "TOKENS")]
    max_prefill_tokens: Option<usize>,

    /// Requests of one prefill batch [default: no limit].
    #[arg(long, value_name = "N")]
    prefill_max_requests: Option<usize>,

    /// Requests running at once [default: as SGLang makes it of pool and context, 2048 to 4096].
    #[arg(long, value_name = "N")]
    max_running_requests: Option<usize>,

    /// Order of the waiting queue [default: fcfs].
    #[arg(long, value_enum, value_name = "POLICY")]
    schedule_policy: Option<ScheduleName>,

    /// Share of what running requests may generate that is kept free when another is admitted, times 0.7 [default: 1].
    #[arg(long, value_name = "X")]
    schedule_conservativeness: Option<f64>,

    /// Decode the running requests in the batches that prefill others.
    #[arg(long)]
    enable_mixed_chunk: bool,

    /// Serve requests with large priorities (field "priority", 0 where none is given) first.
    #[arg(long)]
    enable_priority_scheduling: bool,

    /// Serve those with small priorities first.
    #[arg(long, requires = "enable_priority_scheduling")]
    schedule_low_priority_values_first: bool,

    /// Never take the memory of a running request for a more important one.
    #[arg(long, requires = "enable_priority_scheduling")]
    disable_priority_preemption: bool,

    /// By how much a request must be more important to take the memory of another [default: 10].
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        requires = "enable_priority_scheduling",
        conflicts_with = "disable_priority_preemption"
    )]
    priority_scheduling_preemption_threshold: Option<i64>,

    /// Which request is retracted when decoding finds no room [default: length].
    #[arg(long, value_enum, value_name = "POLICY")]
    retraction_policy: Option<RetractionName>,

    /// Know the results of a batch before the next one is composed.
    #[arg(long)]
    disable_overlap_schedule: bool,

    /// Share no prefixes.
    #[arg(long)]
    disable_radix_cache: bool,

    /// Turns of the loop between two looks for new requests while others decode [default: 1].
    #[arg(long, value_name = "TURNS")]
    scheduler_recv_interval: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchedulerName {
    /// SGLang's own: prefill and decode batches, chunks, priorities, retraction.
    Batch,
    /// Each request decodes all its output when it ends, in the order of the trace: the cache alone.
    OneByOne,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RetractionName {
    /// Fewest tokens generated first, then longest prompt.
    Length,
    /// Least important first.
    Priority,
}

/// What serves the requests.
pub enum Driver {
    /// The cache alone, requests in the order of the trace.
    OneByOne(ReplayConfig),
    /// SGLang's scheduler.
    Batch(StepConfig),
}

impl SglangArgs {
    /// The settings of the scheduler that is asked for; `policy` is that of eviction.
    ///
    /// # Errors
    /// If a flag is missing, cannot be used, or belongs to the other scheduler.
    pub fn driver(&self, policy: Option<&str>) -> Result<Driver> {
        let capacity_tokens = self.capacity.ok_or_else(|| {
            Error::input("--capacity is missing: the tokens of the KV pool")
                .hint("SGLang logs it at its start as max_total_num_tokens")
        })?;
        // slots are numbered in 31 bits
        if capacity_tokens >= 1 << 31 {
            return Err(Error::input(format!(
                "--capacity is {capacity_tokens} tokens, expected less than 2^31"
            )));
        }
        let policy = replay_sglang::policy(policy.unwrap_or("lru"), self.policy_config.as_deref())?;
        let of_batch = self.batch.given();
        match (self.scheduler, of_batch) {
            (Some(SchedulerName::OneByOne), Some(flag)) => Err(Error::input(format!(
                "{flag} belongs to SGLang's scheduler, but --scheduler is one-by-one"
            ))
            .hint("leave --scheduler out, or say --scheduler batch")),
            (Some(SchedulerName::OneByOne) | None, None) => Ok(Driver::OneByOne(ReplayConfig {
                capacity_tokens,
                page_size: self.page,
                policy,
                max_running: self.running.unwrap_or(1),
                max_context_tokens: self.max_context,
                longest_request_tokens: None,
            })),
            (Some(SchedulerName::Batch), _) | (None, Some(_)) => {
                if self.running.is_some() {
                    return Err(Error::input(
                        "--running belongs to --scheduler one-by-one; SGLang's scheduler has --max-running-requests",
                    ));
                }
                if self.page > 0 && !capacity_tokens.is_multiple_of(self.page) {
                    return Err(Error::input(format!(
                        "--capacity is {capacity_tokens} tokens, expected a multiple of the page size, {}",
                        self.page
                    )));
                }
                let base = StepConfig {
                    page_size: self.page,
                    eviction: policy,
                    max_context_tokens: self.max_context,
                    ..StepConfig::new(capacity_tokens)
                };
                self.batch.config(base).map(Driver::Batch)
            }
        }
    }
}

impl BatchArgs {
    /// A flag of the scheduler that is given, if any is.
    fn given(&self) -> Option<&'static str> {
        let all = [
            ("--chunked-prefill-size", self.chunked_prefill_size.is_some()),
            ("--max-prefill-tokens", self.max_prefill_tokens.is_some()),
            ("--prefill-max-requests", self.prefill_max_requests.is_some()),
            ("--max-running-requests", self.max_running_requests.is_some()),
            ("--schedule-policy", self.schedule_policy.is_some()),
            (
                "--schedule-conservativeness",
                self.schedule_conservativeness.is_some(),
            ),
            ("--enable-mixed-chunk", self.enable_mixed_chunk),
            ("--enable-priority-scheduling", self.enable_priority_scheduling),
            ("--retraction-policy", self.retraction_policy.is_some()),
            ("--disable-overlap-schedule", self.disable_overlap_schedule),
            ("--disable-radix-cache", self.disable_radix_cache),
            (
                "--scheduler-recv-interval",
                self.scheduler_recv_interval.is_some(),
            ),
        ];
        all.iter().find(|(_, given)| *given).map(|(name, _)| *name)
    }

    fn config(&self, base: StepConfig) -> Result<StepConfig> {
        let chunked_prefill_tokens = match self.chunked_prefill_size {
            None => base.chunked_prefill_tokens,
            Some(-1) => None,
            Some(n) => Some(usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| {
                Error::input(format!(
                    "--chunked-prefill-size is {n}, expected a positive number of tokens, or -1 for no limit"
                ))
            })?),
        };
        let running = StepConfig::default_max_running(base.capacity_tokens, base.max_context_tokens);
        Ok(StepConfig {
            chunked_prefill_tokens,
            max_prefill_tokens: self.max_prefill_tokens.unwrap_or(base.max_prefill_tokens),
            prefill_max_requests: self.prefill_max_requests,
            max_running: self.max_running_requests.unwrap_or(running),
            mixed_chunk: self.enable_mixed_chunk,
            schedule: self.schedule_policy.map_or(base.schedule, Into::into),
            priorities: self.enable_priority_scheduling.then(|| {
                let usual = PriorityScheduling::default().preemption_threshold;
                PriorityScheduling {
                    low_values_first: self.schedule_low_priority_values_first,
                    preemption_threshold: if self.disable_priority_preemption {
                        None
                    } else {
                        self.priority_scheduling_preemption_threshold.or(usual)
                    },
                }
            }),
            retraction: match self.retraction_policy {
                None | Some(RetractionName::Length) => RetractionPolicy::Length,
                Some(RetractionName::Priority) => RetractionPolicy::Priority,
            },
            conservativeness: self.schedule_conservativeness.unwrap_or(base.conservativeness),
            radix_cache: !self.disable_radix_cache,
            overlap: !self.disable_overlap_schedule,
            recv_interval: self.scheduler_recv_interval.unwrap_or(base.recv_interval),
            ..base
        })
    }
}
