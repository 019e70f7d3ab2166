//! The event loop: scheduler steps on a clock.

use kvwise_core::{Error, Result};

use super::workload::Arrivals;
use crate::cost::{Batch, Prefill, StepModel, StepTime};
use crate::replay::vllm::{Isolation, TraceContent};
use crate::sched::vllm::{
    Admission, BlockTables, NewRequest, Rejection, Scheduler, SchedulerConfig, SchedulerEvents,
};
use crate::trace::Trace;
use kvwise_cache::pool::BlockId;

/// How long a step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepClock<'a> {
    /// As the model's kernels say.
    Model(&'a StepModel),
    /// Always the same, seconds.
    Fixed(f64),
}

/// Host time that the GPU's kernels do not show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostTimes {
    /// Scheduling, input preparation and sampling of a step, seconds.
    pub step_s: f64,
    /// The same for each sequence of the step, seconds.
    pub sequence_s: f64,
    /// HTTP, tokenisation and hand-over of a request before its first token, seconds.
    pub request_s: f64,
}

impl Default for HostTimes {
    /// Fitted to served points (see the accuracy page): 0.2 ms a step, 20 ms a request.
    fn default() -> Self {
        Self {
            step_s: 2.0e-4,
            sequence_s: 0.0,
            request_s: 0.020,
        }
    }
}

/// An engine with its pool, scheduler and clock.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// Scheduler and pool.
    pub scheduler: SchedulerConfig,
    /// Step times.
    pub clock: StepClock<'a>,
    /// Host times; zero under [`StepClock::Fixed`].
    pub host: HostTimes,
    /// What separates prefixes besides salts.
    pub isolation: Isolation,
}

/// What happened to one request; times in seconds from the start, NaN where it never came so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Arrival.
    pub arrival_s: f64,
    /// First admission.
    pub admitted_s: f64,
    /// First token, host time included.
    pub first_token_s: f64,
    /// Last token.
    pub finished_s: f64,
    /// Prompt tokens.
    pub input_tokens: u32,
    /// Generated tokens.
    pub output_tokens: u32,
    /// Prompt tokens found in the cache at first admission.
    pub hit_tokens: u32,
    /// Preemptions.
    pub preemptions: u32,
    /// Whether it could never run.
    pub rejected: bool,
}

/// State of the engine at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds from the start.
    pub time_s: f64,
    /// Running requests.
    pub running: u32,
    /// Waiting requests.
    pub waiting: u32,
    /// Share of the pool in use.
    pub kv_usage: f64,
    /// Tokens found in the cache so far over tokens looked up.
    pub hit_rate: f64,
}

/// Everything a simulation recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// One a request, in the trace's order.
    pub records: Vec<Record>,
    /// At most a few thousand samples, evenly thinned.
    pub series: Vec<Sample>,
    /// Gaps between tokens: seconds and how many tokens had it.
    pub gaps: Vec<(f64, u64)>,
    /// Busy time by kind.
    pub busy: StepTime,
    /// Host time, seconds.
    pub host_s: f64,
    /// Time with nothing to do, seconds.
    pub idle_s: f64,
    /// End of the last request, seconds.
    pub end_s: f64,
    /// Scheduler steps.
    pub steps: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Tokens found in the cache and tokens looked up at first admissions.
    pub hit_tokens: u64,
    /// Tokens looked up at first admissions.
    pub query_tokens: u64,
    /// Mean share of the pool in use over busy time.
    pub kv_usage_mean: f64,
    /// Largest share of the pool in use.
    pub kv_usage_peak: f64,
}

/// Collects what a step reports, until its end time is known.
#[derive(Debug, Default)]
struct StepEvents<E> {
    admitted: Vec<(u32, u32, bool)>,
    first_tokens: Vec<u32>,
    finished: Vec<(u32, u32, u32)>,
    rejected: Vec<u32>,
    prefills: Vec<Prefill>,
    inner: E,
}

impl<E: SchedulerEvents> SchedulerEvents for StepEvents<E> {
    const EVICTIONS: bool = E::EVICTIONS;
    fn evicted(&mut self, step: u64, block: BlockId) {
        self.inner.evicted(step, block);
    }
    fn admitted(&mut self, step: u64, admission: &Admission, blocks: &BlockTables<'_>) {
        self.admitted
            .push((admission.tag, admission.hit_tokens, admission.resumed));
        self.inner.admitted(step, admission, blocks);
    }
    fn preempted(&mut self, step: u64, tag: u32, computed_tokens: u32, blocks: &BlockTables<'_>) {
        self.inner.preempted(step, tag, computed_tokens, blocks);
    }
    fn finished(&mut self, step: u64, tag: u32, generated: u32, preemptions: u32, blocks: &BlockTables<'_>) {
        self.finished.push((tag, generated, preemptions));
        self.inner.finished(step, tag, generated, preemptions, blocks);
    }
    fn rejected(&mut self, step: u64, tag: u32, reason: Rejection) {
        self.rejected.push(tag);
        self.inner.rejected(step, tag, reason);
    }
    fn prefilled(&mut self, step: u64, tag: u32, new_tokens: u32, past_tokens: u32, done: bool) {
        if new_tokens > 0 {
            self.prefills.push(Prefill {
                new_tokens: new_tokens.into(),
                past_tokens: past_tokens.into(),
            });
        }
        if done {
            self.first_tokens.push(tag);
        }
        self.inner.prefilled(step, tag, new_tokens, past_tokens, done);
    }
}

/// Steps between two looks at the clock while nothing but decoding happens: the context grows by this much at most,
/// so that timing the middle of the stretch is exact for attention that is linear in the context.
const MAX_STRETCH: u32 = 256;
/// Most samples of the series.
const MAX_SAMPLES: usize = 2048;

/// Runs `trace` on `deployment`; `events` hears everything that the scheduler reports.
///
/// # Errors
/// If the scheduler's settings are refused, the concurrency or the speed is not positive, or the trace lacks the
/// times that `arrivals` needs.
pub fn run<E: SchedulerEvents>(
    trace: &Trace,
    deployment: &Deployment<'_>,
    arrivals: Arrivals,
    events: E,
) -> Result<(Run, E)> {
    let mut driver = Driver::new(trace, deployment, arrivals, events)?;
    driver.drive();
    Ok((driver.run, driver.events.inner))
}

struct Driver<'a, E> {
    trace: &'a Trace,
    deployment: &'a Deployment<'a>,
    arrivals: Arrivals,
    order: Option<Vec<u32>>,
    scheduler: Scheduler,
    content: TraceContent<'a>,
    events: StepEvents<E>,
    run: Run,
    now_s: f64,
    step: u64,
    next: u32,
    open: u32,
    sample_every_s: f64,
    next_sample_s: f64,
    usage_area: f64,
    busy_s: f64,
}

impl<'a, E: SchedulerEvents> Driver<'a, E> {
    fn new(trace: &'a Trace, deployment: &'a Deployment<'a>, arrivals: Arrivals, events: E) -> Result<Self> {
        let order = match arrivals {
            Arrivals::Closed { concurrency: 0 } => {
                return Err(Error::input("--concurrency is 0, expected at least 1"));
            }
            Arrivals::Closed { .. } => None,
            Arrivals::Trace { speed } => {
                if !(speed.is_finite() && speed > 0.0) {
                    return Err(Error::input(format!(
                        "--speed is {speed}, expected a positive number"
                    )));
                }
                if !trace.has_arrivals() {
                    return Err(
                        Error::input(format!("{}: the trace has no arrival times", trace.name()))
                            .hint("pass --concurrency N for a closed loop"),
                    );
                }
                trace.arrival_order()
            }
        };
        let groups = u32::try_from(deployment.scheduler.groups.len())
            .map_err(|_| Error::overflow("the number of groups"))?;
        let hash_block_size = Scheduler::new(
            SchedulerConfig {
                num_blocks: 2,
                ..deployment.scheduler.clone()
            },
            0,
        )?
        .hash_block_size();
        let content = TraceContent::new(trace, hash_block_size, groups, deployment.isolation)?;
        let scheduler = Scheduler::new(deployment.scheduler.clone(), content.expected_keys())?;
        let blank = Record {
            arrival_s: f64::NAN,
            admitted_s: f64::NAN,
            first_token_s: f64::NAN,
            finished_s: f64::NAN,
            input_tokens: 0,
            output_tokens: 0,
            hit_tokens: 0,
            preemptions: 0,
            rejected: false,
        };
        Ok(Self {
            trace,
            deployment,
            arrivals,
            order,
            scheduler,
            content,
            events: StepEvents {
                admitted: Vec::new(),
                first_tokens: Vec::new(),
                finished: Vec::new(),
                rejected: Vec::new(),
                prefills: Vec::new(),
                inner: events,
            },
            run: Run {
                records: vec![blank; trace.len()],
                ..Run::default()
            },
            now_s: 0.0,
            step: 0,
            next: 0,
            open: 0,
            sample_every_s: 0.0,
            next_sample_s: 0.0,
            usage_area: 0.0,
            busy_s: 0.0,
        })
    }

    fn row(&self, i: u32) -> u32 {
        self.order.as_ref().map_or(i, |order| order[i as usize])
    }

    /// When the next request arrives; `None` if not before another one ends, or never.
    fn next_arrival_s(&self) -> Option<f64> {
        if self.next >= self.trace.request_count() {
            return None;
        }
        match self.arrivals {
            Arrivals::Closed { concurrency } => (self.open < concurrency).then_some(self.now_s),
            Arrivals::Trace { speed } => {
                Some(self.trace.arrival(self.row(self.next) as usize).unwrap_or(0.0) / speed)
            }
        }
    }

    fn add_arrivals(&mut self) {
        while let Some(at) = self.next_arrival_s() {
            if at > self.now_s {
                break;
            }
            let tag = self.row(self.next);
            self.next += 1;
            self.open += 1;
            let index = tag as usize;
            let record = &mut self.run.records[index];
            record.arrival_s = at;
            record.input_tokens = self.trace.input_len(index);
            let new = NewRequest {
                tag,
                prompt_tokens: self.trace.input_len(index),
                max_tokens: self.trace.output_len(index),
                priority: self.trace.priority(index),
            };
            self.scheduler.add(self.step, new, &mut self.events);
            self.take_rejections();
        }
    }

    fn take_rejections(&mut self) {
        for tag in self.events.rejected.drain(..) {
            self.run.records[tag as usize].rejected = true;
            self.open -= 1;
        }
    }

    fn drive(&mut self) {
        loop {
            self.add_arrivals();
            if !self.scheduler.has_unfinished() {
                match self.next_arrival_s() {
                    None => break,
                    Some(at) => {
                        self.run.idle_s += (at - self.now_s).max(0.0);
                        self.now_s = self.now_s.max(at);
                        continue;
                    }
                }
            }
            if self.skip_decoding() {
                continue;
            }
            self.one_step();
        }
        let totals = self.scheduler.totals();
        self.run.preemptions = totals.preemptions;
        self.run.hit_tokens = totals.hit_tokens;
        self.run.query_tokens = totals.query_tokens;
        self.run.steps = self.step;
        self.run.end_s = self.now_s;
        self.run.kv_usage_mean = if self.busy_s > 0.0 {
            self.usage_area / self.busy_s
        } else {
            0.0
        };
        self.run.gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    }

    /// Seconds of a step and what they are spent on.
    fn step_time(&self, decoding: u64, context: f64, prefills: &[Prefill]) -> (StepTime, f64) {
        match self.deployment.clock {
            StepClock::Fixed(seconds) => (StepTime::default(), seconds),
            StepClock::Model(model) => {
                let batch = Batch {
                    decode_sequences: decoding,
                    decode_context_tokens: context,
                    prefills,
                };
                let sequences = decoding as f64 + prefills.len() as f64;
                let host = self.deployment.host.step_s + self.deployment.host.sequence_s * sequences;
                (model.time(&batch), host)
            }
        }
    }

    /// Lets steps pass in which everybody just decodes; returns whether any did.
    fn skip_decoding(&mut self) -> bool {
        let idle = self.scheduler.idle_steps().min(MAX_STRETCH);
        if idle == 0 {
            return false;
        }
        let decoding = self.scheduler.num_running() as u64;
        let context = self.scheduler.decode_context_tokens() as f64;
        let until = self.next_arrival_s();
        let timed = |steps: u32| {
            let middle = context + decoding as f64 * (f64::from(steps) - 1.0) / 2.0;
            self.step_time(decoding, middle, &[])
        };
        let mut steps = idle;
        let (mut kinds, mut host) = timed(steps);
        if let (Some(until), StepClock::Fixed(seconds)) = (until, self.deployment.clock) {
            // Counted as the replay counts: rounding decides who arrives in time.
            let mut at = self.now_s;
            steps = 0;
            while steps < idle && at < until {
                at += seconds;
                steps += 1;
            }
            if steps == 0 {
                return false;
            }
        } else if let Some(until) = until {
            // The first step that ends at or after the arrival is the last one before it is seen.
            let seconds = kinds.total_s() + host;
            let ahead = ((until - self.now_s) / seconds).ceil().max(0.0);
            if ahead < f64::from(steps) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "below a u32"
                )]
                {
                    steps = ahead as u32;
                }
                if steps == 0 {
                    return false;
                }
                (kinds, host) = timed(steps);
            }
        }
        self.scheduler.skip(steps);
        self.step += u64::from(steps);
        self.account(kinds, host, steps, decoding * u64::from(steps));
        true
    }

    fn account(&mut self, kinds: StepTime, host: f64, steps: u32, decode_tokens: u64) {
        let n = f64::from(steps);
        let seconds = kinds.total_s() + host;
        if matches!(self.deployment.clock, StepClock::Fixed(_)) {
            // Summed step by step, as the replay does: rounding decides who arrives in time.
            for _ in 0..steps {
                self.now_s += seconds;
            }
        } else {
            self.now_s += seconds * n;
        }
        let busy = &mut self.run.busy;
        busy.linear_s += kinds.linear_s * n;
        busy.experts_s += kinds.experts_s * n;
        busy.attention_s += kinds.attention_s * n;
        busy.state_s += kinds.state_s * n;
        busy.communication_s += kinds.communication_s * n;
        busy.elementwise_s += kinds.elementwise_s * n;
        self.run.host_s += host * n;
        if decode_tokens > 0 {
            self.run.gaps.push((seconds, decode_tokens));
        }
        let usage = self.scheduler.usage();
        self.usage_area += usage * seconds * n;
        self.busy_s += seconds * n;
        self.run.kv_usage_peak = self.run.kv_usage_peak.max(usage);
        if self.now_s >= self.next_sample_s {
            self.sample(usage);
        }
    }

    fn sample(&mut self, kv_usage: f64) {
        let totals = self.scheduler.totals();
        self.run.series.push(Sample {
            time_s: self.now_s,
            running: u32::try_from(self.scheduler.num_running()).unwrap_or(u32::MAX),
            waiting: u32::try_from(self.scheduler.num_waiting()).unwrap_or(u32::MAX),
            kv_usage,
            hit_rate: totals.hit_tokens as f64 / totals.query_tokens.max(1) as f64,
        });
        if self.run.series.len() >= MAX_SAMPLES {
            let mut keep = false;
            self.run.series.retain(|_| {
                keep = !keep;
                keep
            });
            self.sample_every_s = (self.sample_every_s * 2.0).max(self.now_s / (MAX_SAMPLES as f64 / 2.0));
        }
        self.next_sample_s = self.now_s + self.sample_every_s;
    }

    fn one_step(&mut self) {
        let start = self.now_s;
        let context_before = self.scheduler.decode_context_tokens() as f64;
        let work = self
            .scheduler
            .step(self.step, &mut self.content, &mut self.events);
        let decoding = u64::from(work.decode_requests);
        let prefills = std::mem::take(&mut self.events.prefills);
        let (kinds, host) = self.step_time(decoding, context_before, &prefills);
        self.events.prefills = prefills;
        self.events.prefills.clear();
        self.step += 1;
        self.account(kinds, host, 1, decoding);
        for (tag, hit_tokens, resumed) in self.events.admitted.drain(..) {
            let record = &mut self.run.records[tag as usize];
            if !resumed {
                record.admitted_s = start;
                record.hit_tokens = hit_tokens;
            }
        }
        for tag in self.events.first_tokens.drain(..) {
            let record = &mut self.run.records[tag as usize];
            if record.first_token_s.is_nan() {
                record.first_token_s = self.now_s;
            }
        }
        for (tag, generated, preemptions) in self.events.finished.drain(..) {
            let record = &mut self.run.records[tag as usize];
            record.finished_s = self.now_s;
            record.output_tokens = generated;
            record.preemptions = preemptions;
            self.open -= 1;
        }
        self.take_rejections();
    }
}
