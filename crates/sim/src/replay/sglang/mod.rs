//! A trace through SGLang's scheduler and radix cache.
//!
//! No time but steps: each turn of SGLang's loop is one, in which it looks for new requests, composes a batch and learns what
//! the one before gave. Under [`Clock::Steps`] arrivals count these turns; under [`Clock::Seconds`] every turn that computes
//! something takes the same time, and those in which nothing but results become known take none, as in the simulator with a
//! fixed step (a test holds the two together). Batches, slots, evictions and the order of all events equal those of SGLang
//! 0.5.23's own `Scheduler`, tree, allocators and rows; what is left out is said in
//! [`crate::sched::sglang::step`].
//!
//! ```
//! use kvwise_sim::replay::sglang::{Clock, ReplayConfig, run};
//! use kvwise_sim::sched::sglang::step::StepConfig;
//! use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder};
//! let mut builder = TraceBuilder::new("two", 1, IdMeaning::Content);
//! for prompt in [[1, 2, 3, 4], [1, 2, 3, 9]] {
//!     let request = NewRequest { prompt: PromptIds::Tokens(&prompt), output_len: Some(3), ..NewRequest::default() };
//!     builder.push(&request)?;
//! }
//! let config = ReplayConfig { scheduler: StepConfig::new(64), clock: Clock::Steps };
//! let summary = run(&builder.finish(), &config, &mut (), |()| Ok(()))?;
//! assert_eq!((summary.requests, summary.generated_tokens), (2, 6));
//! # Ok::<(), kvwise_core::Error>(())
//! ```

mod events;

use kvwise_core::{Error, Result};

pub use super::clock::Clock;
pub use events::EventLines;

use super::clock::{round6, step_of};
use crate::sched::sglang::step::{StepConfig, StepEvent, SteppedScheduler};
use crate::trace::{Prompt, Trace, TraceSize};

/// What a replay needs besides the trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplayConfig {
    /// The engine's settings.
    pub scheduler: StepConfig,
    /// The meaning of arrival times.
    pub clock: Clock,
}

/// Hears what happens.
pub trait Events {
    /// Whether anything is wanted; without, quiet stretches are skipped.
    const WANTED: bool;
    /// One thing that happened, and the turn of the loop in which it did.
    fn happened(&mut self, turn: u64, event: &StepEvent);
}

impl Events for () {
    const WANTED: bool = false;
    fn happened(&mut self, _: u64, _: &StepEvent) {}
}

/// The counters of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Summary {
    /// Requests of the trace.
    pub requests: u64,
    /// Requests that could never run.
    pub rejected: u64,
    /// Requests that ran out of memory with nobody left to retract.
    pub aborted: u64,
    /// Turns of the loop, those between requests among them under a step clock, until the last results were known.
    pub steps: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens looked up at first admissions.
    pub query_tokens: u64,
    /// Tokens found in the cache at first admissions.
    pub hit_tokens: u64,
    /// `hit_tokens / query_tokens`, rounded to six digits.
    pub hit_rate: f64,
    /// Times a request lost its memory to the decoding of others.
    pub retractions: u64,
    /// Times a request lost its memory to a more important one.
    pub preemptions: u64,
    /// Tokens of evicted nodes.
    pub evicted_tokens: u64,
    /// Nodes evicted.
    pub evicted_nodes: u64,
    /// Tokens free when the last request had ended.
    pub free_at_end: u64,
    /// Tokens in the tree then.
    pub cached_at_end: u64,
}

/// Replays `trace`; `flush` is called after each step.
///
/// # Errors
/// If a setting makes no sense, the trace has no content, arrivals are beyond all steps, SGLang itself would stop for want of
/// memory, or `flush` fails.
pub fn run<E: Events>(
    trace: &Trace,
    config: &ReplayConfig,
    events: &mut E,
    mut flush: impl FnMut(&mut E) -> Result<()>,
) -> Result<Summary> {
    config.clock.check()?;
    let known = trace.is_empty() || !matches!(trace.prompt(0), Prompt::Unknown);
    if config.scheduler.radix_cache && !known {
        return Err(Error::input(format!(
            "{}: the trace has lengths only, no tokens and no hash ids, so prefixes cannot be compared",
            trace.name()
        ))
        .hint("pass --disable-radix-cache to replay it without shared prefixes"));
    }
    let mut scheduler = SteppedScheduler::new(trace, config.scheduler)?;
    if E::WANTED {
        scheduler.keep_events();
    }
    let order = trace.arrival_order();
    let total = trace.request_count();
    let row = |i: u32| order.as_ref().map_or(i, |order| order[i as usize]);
    let arrival = |i: u32| trace.arrival(row(i) as usize).unwrap_or(0.0);

    let mut summary = Summary {
        requests: u64::from(total),
        ..Summary::default()
    };
    let mut next = 0_u32;
    let mut now_s = 0.0_f64;
    loop {
        if !scheduler.has_unfinished() {
            match config.clock {
                // The loop goes on turning, and whoever comes finds it as it is.
                Clock::Steps if scheduler.has_pending() => {}
                Clock::Steps => {
                    if next >= total {
                        break;
                    }
                    let at = step_of(arrival(next))?;
                    scheduler.idle(at.saturating_sub(scheduler.turns()))?;
                }
                Clock::Seconds { .. } => {
                    scheduler.settle()?;
                    if next >= total {
                        break;
                    }
                    now_s = now_s.max(arrival(next));
                }
            }
        }
        let now = match config.clock {
            Clock::Steps => scheduler.turns() as f64,
            Clock::Seconds { .. } => now_s,
        };
        while next < total && arrival(next) <= now {
            let tag = row(next);
            next += 1;
            summary.prompt_tokens += u64::from(trace.input_len(tag as usize));
            summary.rejected += u64::from(!scheduler.add(tag)?);
        }
        let until = (next < total).then(|| arrival(next));
        let quiet = skip(&scheduler, config.clock, until, &mut now_s);
        if quiet > 0 {
            scheduler.skip(quiet)?;
            continue;
        }
        let outcome = match config.clock {
            Clock::Steps if scheduler.has_unfinished() || scheduler.has_pending() => scheduler.step()?.0,
            Clock::Seconds { step_time } if scheduler.has_unfinished() => {
                now_s += step_time;
                scheduler.advance()?.0
            }
            // Everything that arrived was turned away.
            _ => {
                hear(&mut scheduler, events);
                continue;
            }
        };
        summary.rejected += outcome.rejected.len() as u64;
        hear(&mut scheduler, events);
        flush(events)?;
    }
    hear(&mut scheduler, events);
    let (hit_tokens, query_tokens) = scheduler.hits();
    let (evicted_nodes, evicted_tokens) = scheduler.evicted();
    let cache = scheduler.cache();
    Ok(Summary {
        // Those that ran out of memory are counted apart.
        rejected: summary.rejected - scheduler.aborted(),
        aborted: scheduler.aborted(),
        steps: scheduler.busy_turns(),
        generated_tokens: scheduler.generated_tokens(),
        query_tokens,
        hit_tokens,
        hit_rate: round6(hit_tokens as f64 / query_tokens.max(1) as f64),
        retractions: scheduler.retractions(),
        preemptions: scheduler.preemptions(),
        evicted_tokens,
        evicted_nodes,
        free_at_end: cache.slots().available_tokens() as u64,
        cached_at_end: cache.tree().total_tokens() as u64,
        ..summary
    })
}

/// Coming steps that may be skipped: those in which everybody just decodes, before the next arrival.
fn skip(scheduler: &SteppedScheduler<'_>, clock: Clock, until: Option<f64>, now_s: &mut f64) -> u32 {
    let idle = scheduler.idle_steps();
    let Some(until) = until else { return idle };
    let mut passed = 0;
    match clock {
        Clock::Steps => {
            while passed < idle && ((scheduler.turns() + u64::from(passed)) as f64) < until {
                passed += 1;
            }
        }
        Clock::Seconds { step_time } => {
            // Summed step by step: rounding decides who arrives in time.
            while passed < idle && *now_s < until {
                *now_s += step_time;
                passed += 1;
            }
        }
    }
    passed
}

fn hear<E: Events>(scheduler: &mut SteppedScheduler<'_>, events: &mut E) {
    if E::WANTED {
        for (turn, event) in scheduler.take_events() {
            events.happened(turn, &event);
        }
    }
}

/// Bytes that a replay holds beside the trace, for a trace of `size` in a pool of `capacity_tokens` tokens.
///
/// As [`crate::sched::sglang::working_bytes`], with the tokens of those waiting requests whose prefixes are looked up, and what
/// a waiting request takes in the queue. No more requests are taken to run at once than four times as many as fit the pool
/// if they share nothing.
pub fn working_bytes(size: &TraceSize, capacity_tokens: u64, page_size: u64, max_running: u64) -> u64 {
    const LOOKED_UP: u64 = 128;
    const WAITING_BYTES: u64 = 192;
    let mean = (size.input_tokens + size.output_tokens) / size.requests.max(1);
    let fit = (capacity_tokens / mean.max(1))
        .saturating_mul(4)
        .saturating_add(1);
    let room = max_running.min(fit).saturating_add(LOOKED_UP);
    crate::sched::sglang::working_bytes(size, capacity_tokens, page_size, room)
        .saturating_add(size.requests.saturating_mul(WAITING_BYTES))
}
