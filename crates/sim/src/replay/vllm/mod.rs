//! A trace through vLLM's scheduler and cache manager.
//!
//! The driver is the reference script's: each step schedules, then every request whose prompt is computed gets one
//! token; arrivals are in steps or in seconds of a clock that advances by a fixed time a step. Block numbers and the
//! order of all events equal those of vLLM 0.32.0's own `Scheduler` and `KVCacheManager`.
//!
//! # Budget
//! One core, events off: 30 million allocated blocks a second, from file to answer, for traces of block ids. A block
//! costs about 1 ns to name ([`TraceContent`]), 15 ns to allocate, cache, evict and free
//! ([`kvwise_cache::pool`]); a decode step costs 0.1 to 2 µs for all running requests together
//! ([`crate::sched::vllm`]).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "both are checked to be whole and in range before"
)]

mod content;
pub(super) mod events;

use kvwise_core::{Error, Result};

pub use super::clock::Clock;
pub use content::{Isolation, TraceContent};
pub use events::{EventLines, push_json_string};

use super::clock::{round6, step_of};
use crate::sched::vllm::{NewRequest, Scheduler, SchedulerConfig, SchedulerEvents};
use crate::trace::{Trace, TraceSize, size_of_u64, table_bytes};

/// What a replay needs besides the trace.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayConfig {
    /// The engine's settings.
    pub scheduler: SchedulerConfig,
    /// The meaning of arrival times.
    pub clock: Clock,
    /// What separates prefixes besides salts.
    pub isolation: Isolation,
}

/// The counters of a replay; names as in the reference script.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    /// Cached blocks that were handed out again.
    pub evicted_blocks: u64,
    /// Blocks handed out.
    pub allocated_blocks: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Tokens found in the cache at first admissions.
    pub hit_tokens: u64,
    /// Tokens looked up at first admissions.
    pub query_tokens: u64,
    /// Requests of the trace.
    pub requests: u64,
    /// Scheduler steps; under a step clock the number of the last one.
    pub steps: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Blocks free when the last request had ended.
    pub free_at_end: u32,
    /// `hit_tokens / query_tokens`, rounded to six digits.
    pub hit_rate: f64,
    /// Requests that could never run.
    pub rejected: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
}

/// Runs the whole trace with nobody listening. Unlike [`run`] it is compiled with this crate and its optimisations.
///
/// # Errors
/// As [`run`].
pub fn run_unheard(trace: &Trace, config: &ReplayConfig) -> Result<Summary> {
    run(trace, config, &mut (), |()| Ok(()))
}

/// Runs the whole trace. `flush` is called now and then, to let `events` be emptied.
///
/// # Errors
/// If the configuration is one that vLLM refuses, the clock cannot advance, or `flush` fails.
pub fn run<E: SchedulerEvents>(
    trace: &Trace,
    config: &ReplayConfig,
    events: &mut E,
    mut flush: impl FnMut(&mut E) -> Result<()>,
) -> Result<Summary> {
    config.clock.check()?;
    let groups =
        u32::try_from(config.scheduler.groups.len()).map_err(|_| Error::overflow("the number of groups"))?;
    // The scheduler knows the size of a key's block; it is built twice only on paper: the first one has no keys.
    let hash_block_size = Scheduler::new(
        SchedulerConfig {
            num_blocks: 2,
            ..config.scheduler.clone()
        },
        0,
    )?
    .hash_block_size();
    let mut content = TraceContent::new(trace, hash_block_size, groups, config.isolation)?;
    let mut scheduler = Scheduler::new(config.scheduler.clone(), content.expected_keys())?;

    let order = trace.arrival_order();
    let total = trace.request_count();
    let row = |i: u32| order.as_ref().map_or(i, |order| order[i as usize]);
    let arrival = |i: u32| trace.arrival(row(i) as usize).unwrap_or(0.0);

    let mut step = 0_u64;
    let mut now_s = 0.0_f64;
    let mut next = 0_u32;
    let mut prompt_tokens = 0_u64;
    loop {
        let mut now = match config.clock {
            Clock::Steps => step as f64,
            Clock::Seconds { .. } => now_s,
        };
        if !scheduler.has_unfinished() {
            if next >= total {
                break;
            }
            if arrival(next) > now {
                now = match config.clock {
                    Clock::Steps => {
                        step = step_of(arrival(next))?;
                        step as f64
                    }
                    Clock::Seconds { .. } => arrival(next),
                };
                now_s = now;
            }
        }
        while next < total && arrival(next) <= now {
            let tag = row(next);
            next += 1;
            let prompt = trace.input_len(tag as usize);
            prompt_tokens += u64::from(prompt);
            let new = NewRequest {
                tag,
                prompt_tokens: prompt,
                max_tokens: trace.output_len(tag as usize),
                priority: trace.priority(tag as usize),
                lora: 0,
            };
            scheduler.add(step, new, events);
        }
        if !scheduler.has_unfinished() {
            // Everything that arrived was rejected.
            continue;
        }
        let idle = scheduler.idle_steps();
        let until = (next < total).then(|| arrival(next));
        let skipped = skip(config.clock, idle, until, &mut step, &mut now_s);
        if skipped > 0 {
            scheduler.skip(skipped);
            continue;
        }
        scheduler.step(step, &mut content, events);
        step += 1;
        if let Clock::Seconds { step_time } = config.clock {
            now_s += step_time;
        }
        flush(events)?;
    }
    let totals = scheduler.totals();
    let (allocated_blocks, evicted_blocks, free_at_end) = scheduler.pool_counts();
    let rate = totals.hit_tokens as f64 / totals.query_tokens.max(1) as f64;
    Ok(Summary {
        evicted_blocks,
        allocated_blocks,
        preemptions: totals.preemptions,
        hit_tokens: totals.hit_tokens,
        query_tokens: totals.query_tokens,
        requests: u64::from(total),
        steps: step,
        prompt_tokens,
        free_at_end,
        hit_rate: round6(rate),
        rejected: totals.rejected,
        generated_tokens: totals.generated_tokens,
    })
}

/// Bytes that a replay holds beside the trace, for a trace of `size` in a pool of `num_blocks` blocks of `block_tokens`
/// tokens with `groups` groups of layers.
///
/// A word a name and group ([`TraceContent`] numbers every distinct block there can be), for tokens also the table of
/// names, and the pool: a node of the free queue, a ring of duplicates and the name of each block. As it is not known before
/// how long requests wait, all are taken to wait at once.
pub fn working_bytes(size: &TraceSize, num_blocks: u32, block_tokens: u32, groups: u64) -> u64 {
    let block = u64::from(block_tokens.max(1));
    let per_node = u64::from(size.block_tokens).div_ceil(block).max(1);
    let generated = size.output_tokens / block;
    let (names, table) = if size.has_block_ids {
        (size.distinct_blocks.saturating_mul(per_node) + generated, 0)
    } else if size.token_ids > 0 {
        let interned = size.distinct_blocks.saturating_mul(per_node) + generated;
        (
            size.token_ids / block,
            table_bytes(interned, size_of_u64::<(u128, u32)>()),
        )
    } else {
        ((size.input_tokens + size.output_tokens) / block, 0)
    };
    let pool = (16 + 8 + 4) * u64::from(num_blocks);
    let order = (4 + Scheduler::WAITING_BYTES) * size.requests;
    names
        .saturating_mul(4 * groups)
        .saturating_add(table + pool + order)
}

/// Lets up to `idle` steps pass, but none at or after the arrival `until`; returns how many.
fn skip(clock: Clock, idle: u32, until: Option<f64>, step: &mut u64, now_s: &mut f64) -> u32 {
    let mut passed = 0;
    match clock {
        Clock::Steps => {
            passed = idle;
            if let Some(until) = until {
                let ahead = until.ceil() - *step as f64;
                passed = if ahead >= f64::from(idle) {
                    idle
                } else {
                    ahead as u32
                };
            }
            *step += u64::from(passed);
        }
        Clock::Seconds { step_time } => {
            // The sum is taken step by step, as the reference takes it: rounding decides who arrives in time.
            while passed < idle && until.is_none_or(|until| *now_s < until) {
                *now_s += step_time;
                *step += 1;
                passed += 1;
            }
        }
    }
    passed
}
