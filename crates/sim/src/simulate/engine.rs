//! An engine without time: its queue, its running requests and its cache.

use kvwise_cache::pool::BlockId;
use kvwise_core::{Error, Result};

use crate::cost::Prefill;
use crate::replay::vllm::{Isolation, TraceContent};
use crate::sched::sglang::step::{StepConfig, SteppedScheduler};
use crate::sched::vllm::{
    Admission, BlockTables, NewRequest, Rejection, Scheduler, SchedulerConfig, SchedulerEvents,
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
    /// Prefill chunks.
    pub(super) prefills: Vec<Prefill>,
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

    fn has_unfinished(&self) -> bool {
        self.num_running() + self.num_waiting() > 0
    }
}

/// vLLM's scheduler over a trace.
pub(super) struct VllmEngine<'a, E> {
    trace: &'a Trace,
    scheduler: Scheduler,
    content: TraceContent<'a>,
    events: E,
}

impl<'a, E: SchedulerEvents> VllmEngine<'a, E> {
    pub(super) fn new(
        trace: &'a Trace,
        config: &SchedulerConfig,
        isolation: Isolation,
        events: E,
    ) -> Result<Self> {
        let groups =
            u32::try_from(config.groups.len()).map_err(|_| Error::overflow("the number of groups"))?;
        let small = SchedulerConfig {
            num_blocks: 2,
            ..config.clone()
        };
        let hash_block_size = Scheduler::new(small, 0)?.hash_block_size();
        let content = TraceContent::new(trace, hash_block_size, groups, isolation)?;
        let scheduler = Scheduler::new(config.clone(), content.expected_keys())?;
        Ok(Self {
            trace,
            scheduler,
            content,
            events,
        })
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
        if new_tokens > 0 {
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

impl<E: SchedulerEvents> EngineState for VllmEngine<'_, E> {
    fn add(&mut self, step: u64, tag: u32, report: &mut StepReport) -> Result<()> {
        let index = tag as usize;
        let new = NewRequest {
            tag,
            prompt_tokens: self.trace.input_len(index),
            max_tokens: self.trace.output_len(index),
            priority: self.trace.priority(index),
        };
        let inner = &mut self.events;
        self.scheduler.add(step, new, &mut Listener { report, inner });
        Ok(())
    }

    fn step(&mut self, step: u64, report: &mut StepReport) -> Result<u64> {
        let inner = &mut self.events;
        let work = self
            .scheduler
            .step(step, &mut self.content, &mut Listener { report, inner });
        Ok(work.decode_requests.into())
    }

    fn idle_steps(&self) -> u32 {
        self.scheduler.idle_steps()
    }

    fn skip(&mut self, steps: u32) -> Result<()> {
        self.scheduler.skip(steps);
        Ok(())
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

    fn counters(&self) -> Counters {
        let totals = self.scheduler.totals();
        Counters {
            preemptions: totals.preemptions,
            hit_tokens: totals.hit_tokens,
            query_tokens: totals.query_tokens,
        }
    }
}

/// SGLang's scheduler over a trace.
pub(super) struct SglangEngine<'a> {
    scheduler: SteppedScheduler<'a>,
}

impl<'a> SglangEngine<'a> {
    pub(super) fn new(trace: &'a Trace, config: StepConfig) -> Result<Self> {
        Ok(Self {
            scheduler: SteppedScheduler::new(trace, config)?,
        })
    }
}

impl EngineState for SglangEngine<'_> {
    fn add(&mut self, _: u64, tag: u32, report: &mut StepReport) -> Result<()> {
        if !self.scheduler.add(tag)? {
            report.rejected.push(tag);
        }
        Ok(())
    }

    fn step(&mut self, _: u64, report: &mut StepReport) -> Result<u64> {
        let (outcome, decoding) = self.scheduler.step()?;
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
        Ok(decoding)
    }

    fn idle_steps(&self) -> u32 {
        self.scheduler.idle_steps()
    }

    fn skip(&mut self, steps: u32) -> Result<()> {
        self.scheduler.skip(steps)
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

    fn counters(&self) -> Counters {
        let (hit_tokens, query_tokens) = self.scheduler.hits();
        Counters {
            preemptions: self.scheduler.retractions(),
            hit_tokens,
            query_tokens,
        }
    }
}
