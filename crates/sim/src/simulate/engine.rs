//! An engine without time: its queue, its running requests and its cache.

use kvwise_cache::pool::BlockId;
use kvwise_core::{Error, Result};

use super::handoff::ReadFromPrefill;
use super::run::RunEvents;
use super::tiers::{TierTotals, Tiers};
use crate::cost::Prefill;
use crate::replay::vllm::{Isolation, TraceContent};
use crate::sched::sglang::step::{Side, StepConfig, StepOutcome, SteppedScheduler};
use crate::sched::vllm::{
    Admission, BlockTables, KvConnector, NewRequest, NoConnector, Rejection, Scheduler, SchedulerConfig,
    SchedulerEvents,
};
use crate::trace::Trace;

/// What one step reported, until its end time is known.
#[derive(Debug, Default)]
pub(super) struct StepReport {
    /// Request, tokens found in the cache, whether it ran before.
    pub(super) admitted: Vec<(u32, u32, bool)>,
    /// Requests that have their first token.
    pub(super) first_tokens: Vec<u32>,
    /// Request, generated tokens, preemptions.
    pub(super) finished: Vec<(u32, u32, u32)>,
    /// Requests that can never run.
    pub(super) rejected: Vec<u32>,
    /// Prefill chunks of several tokens.
    pub(super) prefills: Vec<Prefill>,
    /// Tokens before the last one of each prompt that was in the cache but for that one: computed like a decode.
    pub(super) single_tokens: Vec<u64>,
    /// Whether somebody was preempted.
    pub(super) preempted: bool,
    /// Reads from other engines that began: request and blocks.
    pub(super) reads: Vec<(u32, u32)>,
    /// Loads from tiers that began: request and tokens.
    pub(super) loads: Vec<(u32, u32)>,
    /// Parts of prompts that can be sent to another engine: request, tokens from the start, whether they are all.
    pub(super) sent: Vec<(u32, u32, bool)>,
    /// Requests that have room for a prompt from another engine.
    pub(super) placed: Vec<u32>,
    /// Requests that join the step with a first token from another engine; whether it was their last.
    pub(super) joined: Vec<(u32, bool)>,
    /// Their cached tokens.
    pub(super) joined_tokens: u64,
    /// Requests whose last token came with the step before: request, generated tokens, preemptions.
    pub(super) ended: Vec<(u32, u32, u32)>,
    /// Requests of the step that have their last token already.
    pub(super) in_vain: u64,
}

/// Counters of an engine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) preemptions: u64,
    pub(super) hit_tokens: u64,
    pub(super) query_tokens: u64,
}

/// What the clock and the router need of an engine.
pub(super) trait EngineState {
    /// A request arrives.
    fn add(&mut self, step: u64, tag: u32, report: &mut StepReport) -> Result<()>;
    /// Runs one step; returns how many requests computed one further token.
    fn step(&mut self, step: u64, report: &mut StepReport) -> Result<u64>;
    /// Coming steps in which nothing but decoding happens, unless a request arrives.
    fn idle_steps(&self) -> u32;
    /// Lets `steps` of those pass.
    fn skip(&mut self, steps: u32) -> Result<()>;
    /// Cached tokens of all decoding requests together.
    fn decode_context_tokens(&self) -> u64;
    fn num_running(&self) -> usize;
    fn num_waiting(&self) -> usize;
    /// Share of the pool that requests hold.
    fn usage(&self) -> f64;
    fn counters(&self) -> Counters;

    /// Waiting requests that have room, and whose prompts are computed or on their way elsewhere.
    fn num_expected(&self) -> usize {
        0
    }

    fn has_unfinished(&self) -> bool {
        self.num_running() + self.num_waiting() > 0
    }

    /// It is `now_s`: what was under way on links may have arrived.
    fn clock(&mut self, now_s: f64) {
        let _ = now_s;
    }
    /// When something arrives that a request waits for.
    fn next_event_s(&self) -> Option<f64> {
        None
    }
    /// Whether requests may have to wait for something other than the engine itself.
    fn has_connector(&self) -> bool {
        false
    }
    /// The blocks of a request were read from another engine.
    fn read(&mut self, tag: u32) {
        let _ = tag;
    }
    /// Another engine has read the blocks of a request.
    fn release(&mut self, tag: u32) {
        let _ = tag;
    }
    /// The blocks of a request will never come.
    fn cancel(&mut self, tag: u32) -> Result<()> {
        let _ = tag;
        Ok(())
    }
    /// What its tiers did.
    fn tiers(&self) -> Vec<TierTotals> {
        Vec::new()
    }
    /// Nothing comes any more: what is still to be learned of the last step is learned.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A connector on a simulated clock.
pub(super) trait TimedConnector: KvConnector {
    fn advance(&mut self, now_s: f64) -> bool {
        let _ = now_s;
        false
    }
    fn next_event_s(&self) -> Option<f64> {
        None
    }
    fn drain(&mut self, report: &mut StepReport) {
        let _ = report;
    }
    fn read(&mut self, tag: u32) {
        let _ = tag;
    }
    fn tiers(&self) -> Vec<TierTotals> {
        Vec::new()
    }
}

impl TimedConnector for NoConnector {}

impl TimedConnector for ReadFromPrefill {
    fn drain(&mut self, report: &mut StepReport) {
        report.reads.append(&mut self.begun);
    }
    fn read(&mut self, tag: u32) {
        self.arrive(tag);
    }
}

impl TimedConnector for Tiers {
    fn advance(&mut self, now_s: f64) -> bool {
        Self::advance(self, now_s)
    }
    fn next_event_s(&self) -> Option<f64> {
        Self::next_event_s(self)
    }
    fn drain(&mut self, report: &mut StepReport) {
        report.loads.append(&mut self.begun);
    }
    fn tiers(&self) -> Vec<TierTotals> {
        self.totals()
    }
}

/// vLLM's scheduler over a trace.
pub(super) struct VllmEngine<'a, E, K> {
    trace: &'a Trace,
    scheduler: Scheduler,
    content: TraceContent<'a>,
    events: E,
    connector: K,
    /// Tokens that each request generates here, where not as many as the trace says.
    max_tokens: Option<u32>,
    /// Number of each request's LoRA adapter, 0 for none; empty if the engine has no limit of them.
    adapters: Vec<u32>,
}

/// Numbers of the trace's adapters, in the order of their first requests.
fn adapters_of(trace: &Trace) -> Vec<u32> {
    let mut numbers: rustc_hash::FxHashMap<&str, u32> = rustc_hash::FxHashMap::default();
    (0..trace.len())
        .map(|i| {
            trace.lora(i).map_or(0, |name| {
                let next = u32::try_from(numbers.len() + 1).unwrap_or(u32::MAX);
                *numbers.entry(name).or_insert(next)
            })
        })
        .collect()
}

/// Tokens between two names of a request under this configuration.
pub(super) fn hash_block_size(config: &SchedulerConfig) -> Result<u32> {
    let small = SchedulerConfig {
        num_blocks: 2,
        ..config.clone()
    };
    Ok(Scheduler::new(small, 0)?.hash_block_size())
}

impl<'a, E: SchedulerEvents, K: TimedConnector> VllmEngine<'a, E, K> {
    pub(super) fn new(
        trace: &'a Trace,
        config: &SchedulerConfig,
        isolation: Isolation,
        events: E,
        connector: K,
    ) -> Result<Self> {
        let groups =
            u32::try_from(config.groups.len()).map_err(|_| Error::overflow("the number of groups"))?;
        let content = TraceContent::new(trace, hash_block_size(config)?, groups, isolation)?;
        let scheduler = Scheduler::new(config.clone(), content.expected_keys())?;
        Ok(Self {
            trace,
            scheduler,
            content,
            events,
            connector,
            max_tokens: None,
            adapters: if config.max_loras.is_some() {
                adapters_of(trace)
            } else {
                Vec::new()
            },
        })
    }

    /// An engine that computes prompts and hands them over.
    pub(super) fn of_prefill(mut self) -> Self {
        self.max_tokens = Some(1);
        self
    }
}

/// Writes what the scheduler says into the report and passes it on.
struct Listener<'r, E> {
    report: &'r mut StepReport,
    inner: &'r mut E,
}

impl<E: SchedulerEvents> SchedulerEvents for Listener<'_, E> {
    const EVICTIONS: bool = E::EVICTIONS;
    fn evicted(&mut self, step: u64, block: BlockId) {
        self.inner.evicted(step, block);
    }
    fn admitted(&mut self, step: u64, admission: &Admission, blocks: &BlockTables<'_>) {
        self.report
            .admitted
            .push((admission.tag, admission.hit_tokens, admission.resumed));
        self.inner.admitted(step, admission, blocks);
    }
    fn preempted(&mut self, step: u64, tag: u32, computed_tokens: u32, blocks: &BlockTables<'_>) {
        self.report.preempted = true;
        self.inner.preempted(step, tag, computed_tokens, blocks);
    }
    fn finished(&mut self, step: u64, tag: u32, generated: u32, preemptions: u32, blocks: &BlockTables<'_>) {
        self.report.finished.push((tag, generated, preemptions));
        self.inner.finished(step, tag, generated, preemptions, blocks);
    }
    fn rejected(&mut self, step: u64, tag: u32, reason: Rejection) {
        self.report.rejected.push(tag);
        self.inner.rejected(step, tag, reason);
    }
    fn prefilled(&mut self, step: u64, tag: u32, new_tokens: u32, past_tokens: u32, done: bool) {
        if new_tokens == 1 && past_tokens > 0 {
            self.report.single_tokens.push(past_tokens.into());
        } else if new_tokens > 0 {
            self.report.prefills.push(Prefill {
                new_tokens: new_tokens.into(),
                past_tokens: past_tokens.into(),
            });
        }
        if done {
            self.report.first_tokens.push(tag);
        }
        self.inner.prefilled(step, tag, new_tokens, past_tokens, done);
    }
}

/// What both schedulers answer in the same words.
macro_rules! ask_scheduler {
    () => {
        fn idle_steps(&self) -> u32 {
            self.scheduler.idle_steps()
        }
        fn decode_context_tokens(&self) -> u64 {
            self.scheduler.decode_context_tokens()
        }
        fn num_running(&self) -> usize {
            self.scheduler.num_running()
        }
        fn num_waiting(&self) -> usize {
            self.scheduler.num_waiting()
        }
        fn usage(&self) -> f64 {
            self.scheduler.usage()
        }
    };
}

impl<E: SchedulerEvents, K: TimedConnector> EngineState for VllmEngine<'_, E, K> {
    ask_scheduler!();

    fn add(&mut self, step: u64, tag: u32, report: &mut StepReport) -> Result<()> {
        let index = tag as usize;
        let new = NewRequest {
            tag,
            prompt_tokens: self.trace.input_len(index),
            max_tokens: self.max_tokens.unwrap_or(self.trace.output_len(index)),
            priority: self.trace.priority(index),
            lora: self.adapters.get(index).copied().unwrap_or(0),
        };
        let inner = &mut self.events;
        self.scheduler.add(step, new, &mut Listener { report, inner });
        Ok(())
    }

    fn step(&mut self, step: u64, report: &mut StepReport) -> Result<u64> {
        let inner = &mut self.events;
        let work = self.scheduler.step_with(
            step,
            &mut self.content,
            &mut Listener { report, inner },
            &mut self.connector,
        );
        self.connector.drain(report);
        Ok(work.decode_requests.into())
    }

    fn skip(&mut self, steps: u32) -> Result<()> {
        self.scheduler.skip(steps);
        Ok(())
    }

    fn counters(&self) -> Counters {
        let totals = self.scheduler.totals();
        Counters {
            preemptions: totals.preemptions,
            hit_tokens: totals.hit_tokens,
            query_tokens: totals.query_tokens,
        }
    }

    fn clock(&mut self, now_s: f64) {
        if K::ENABLED && self.connector.advance(now_s) {
            self.scheduler.wake();
        }
    }

    fn next_event_s(&self) -> Option<f64> {
        if K::ENABLED && self.scheduler.waits_for_connector() {
            self.connector.next_event_s()
        } else {
            None
        }
    }

    fn has_connector(&self) -> bool {
        K::ENABLED
    }

    fn read(&mut self, tag: u32) {
        self.connector.read(tag);
        self.scheduler.wake();
    }

    fn release(&mut self, tag: u32) {
        self.scheduler.release_held(tag);
    }

    fn tiers(&self) -> Vec<TierTotals> {
        self.connector.tiers()
    }
}

/// SGLang's scheduler over a trace.
pub(super) struct SglangEngine<'a, E> {
    scheduler: SteppedScheduler<'a>,
    events: E,
    /// Whether prompts are computed apart.
    apart: bool,
    /// Whether the loop turns without a batch: then it has seen everything that happened meanwhile.
    idle: bool,
}

impl<'a, E: RunEvents> SglangEngine<'a, E> {
    pub(super) fn new(trace: &'a Trace, config: StepConfig, events: E) -> Result<Self> {
        let preempts = config
            .priorities
            .is_some_and(|priorities| priorities.preemption_threshold.is_some());
        if preempts && config.overlap {
            return Err(Error::unsupported(
                "preemption by priority is not simulated while batches overlap: a request may lose its last token after it was \
                 counted",
            )
            .hint("turn the overlap or the preemption off"));
        }
        let mut scheduler = SteppedScheduler::new(trace, config)?;
        if E::STEPS {
            scheduler.keep_events();
        }
        Ok(Self {
            scheduler,
            events,
            apart: config.side != Side::Whole,
            idle: true,
        })
    }
}

impl<E: RunEvents> SglangEngine<'_, E> {
    /// Passes on what the scheduler has noted.
    fn tell(&mut self) {
        if E::STEPS {
            for (turn, event) in self.scheduler.take_events() {
                self.events.happened(turn, &event);
            }
        }
    }
}

/// Notes what a turn of SGLang's loop did.
fn take_outcome(outcome: &StepOutcome, report: &mut StepReport) {
    report.admitted.extend(&outcome.admitted);
    report.first_tokens.extend(&outcome.first_tokens);
    report.finished.extend(&outcome.finished);
    report.rejected.extend(&outcome.rejected);
    report
        .prefills
        .extend(outcome.prefills.iter().map(|&(_, new, past)| Prefill {
            new_tokens: new.into(),
            past_tokens: past.into(),
        }));
    report.sent.extend(&outcome.sent);
    report.placed.extend(&outcome.placed);
    report.ended.extend(&outcome.ended);
    for &(tag, tokens, ended) in &outcome.joined {
        report.joined.push((tag, ended));
        report.joined_tokens += if ended { 0 } else { u64::from(tokens) };
    }
}

impl<E: RunEvents> EngineState for SglangEngine<'_, E> {
    ask_scheduler!();

    fn add(&mut self, _: u64, tag: u32, report: &mut StepReport) -> Result<()> {
        if !self.scheduler.has_unfinished() {
            // The loop has turned since the last token: its result is known.
            self.scheduler.settle()?;
            self.idle = true;
        }
        if !self.scheduler.add(tag)? {
            report.rejected.push(tag);
        }
        Ok(())
    }

    fn step(&mut self, _: u64, report: &mut StepReport) -> Result<u64> {
        if self.idle {
            self.scheduler.let_go()?;
        }
        // A turn of the loop in which only results of the batch before become known takes no time, nor do the turns of an
        // idle loop until it looks for new requests.
        loop {
            let pending = self.scheduler.has_pending() || self.scheduler.has_unseen();
            let decoding = self.scheduler.step()?.1;
            let outcome = self.scheduler.last_step().0;
            let computes = decoding > 0 || !outcome.prefills.is_empty();
            let turns = if self.apart {
                // Whatever a turn without a batch has done may let the next one do more.
                !computes && (pending || !outcome.is_empty())
            } else {
                !computes
                    && outcome.is_empty()
                    && (self.scheduler.has_pending() || self.scheduler.has_unseen())
            };
            take_outcome(outcome, report);
            if self.apart {
                // They are known to have ended when the step has been launched with them.
                report.in_vain = if decoding > 0 {
                    outcome.ended.len() as u64
                } else {
                    0
                };
            }
            self.idle = !computes;
            if !turns {
                self.tell();
                return Ok(decoding);
            }
        }
    }

    fn skip(&mut self, steps: u32) -> Result<()> {
        self.scheduler.skip(steps)
    }

    fn counters(&self) -> Counters {
        let (hit_tokens, query_tokens) = self.scheduler.hits();
        Counters {
            preemptions: self.scheduler.retractions() + self.scheduler.preemptions(),
            hit_tokens,
            query_tokens,
        }
    }
    fn num_expected(&self) -> usize {
        self.scheduler.num_expected()
    }

    fn has_connector(&self) -> bool {
        self.apart
    }

    fn read(&mut self, tag: u32) {
        self.scheduler.receive(tag);
    }

    fn release(&mut self, tag: u32) {
        self.scheduler.release(tag);
    }

    fn cancel(&mut self, tag: u32) -> Result<()> {
        self.scheduler.cancel(tag)
    }

    fn end(&mut self) -> Result<()> {
        self.scheduler.settle()?;
        self.tell();
        Ok(())
    }
}
