//! The event loop: arrivals, a router, and replicas that each step on their own clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvwise_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::engine::{Counters, EngineState, SglangEngine, VllmEngine};
use super::record::{HostTimes, Record, Run, Sample};
use super::replica::{Ended, Replica};
use super::router::{Load, Router, Routing};
use super::workload::Arrivals;
use crate::cost::StepModel;
use crate::replay::vllm::Isolation;
use crate::sched::sglang::step::StepConfig;
use crate::sched::vllm::{SchedulerConfig, SchedulerEvents};
use crate::trace::Trace;

/// How long a step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StepClock<'a> {
    /// As the model's kernels say.
    Model(&'a StepModel),
    /// Always the same, seconds.
    Fixed(f64),
}

/// Scheduler and pool of one engine.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineConfig {
    /// vLLM's.
    Vllm(SchedulerConfig),
    /// SGLang's.
    Sglang(StepConfig),
}

/// Engines behind a router, with their pools, schedulers and clock.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// Scheduler and pool of each engine.
    pub engine: EngineConfig,
    /// Step times.
    pub clock: StepClock<'a>,
    /// Host times; zero under [`StepClock::Fixed`].
    pub host: HostTimes,
    /// What separates prefixes besides salts.
    pub isolation: Isolation,
    /// Independent replicas.
    pub replicas: u32,
    /// Data-parallel ranks of a replica that share experts and step together.
    pub ranks: u32,
    /// Which engine a request is sent to.
    pub routing: Routing,
    /// Whether the first-principles lower bound is computed beside each step.
    pub bounds: bool,
}

impl<'a> Deployment<'a> {
    /// One engine.
    pub fn new(engine: EngineConfig, clock: StepClock<'a>) -> Self {
        let host = match engine {
            EngineConfig::Vllm(_) => HostTimes::VLLM,
            EngineConfig::Sglang(_) => HostTimes::SGLANG,
        };
        Self {
            engine,
            clock,
            host,
            isolation: Isolation::default(),
            replicas: 1,
            ranks: 1,
            routing: Routing::default(),
            bounds: false,
        }
    }
}

/// Most samples of the series.
const MAX_SAMPLES: usize = 2048;
/// Most engines behind one router.
const MAX_ENGINES: u32 = 1024;

/// Runs `trace` on `deployment`; `events` hears everything that vLLM's scheduler reports.
///
/// # Errors
/// If the scheduler's settings are refused, the concurrency or the speed is not positive, the trace lacks the times
/// or sessions that `arrivals` needs, or there are more engines than one while events are asked for by anything but
/// `()`.
pub fn run<E: SchedulerEvents>(
    trace: &Trace,
    deployment: &Deployment<'_>,
    arrivals: Arrivals,
    events: E,
) -> Result<(Run, E)> {
    let mut events = events;
    let run = drive(trace, deployment, arrivals, &mut events)?;
    Ok((run, events))
}

/// Passes events on to an observer that outlives the engine.
struct Relay<'e, E>(&'e mut E);

impl<E: SchedulerEvents> SchedulerEvents for Relay<'_, E> {
    const EVICTIONS: bool = E::EVICTIONS;
    fn evicted(&mut self, step: u64, block: kvwise_cache::pool::BlockId) {
        self.0.evicted(step, block);
    }
    fn admitted(
        &mut self,
        step: u64,
        admission: &crate::sched::vllm::Admission,
        blocks: &crate::sched::vllm::BlockTables<'_>,
    ) {
        self.0.admitted(step, admission, blocks);
    }
    fn preempted(&mut self, step: u64, tag: u32, tokens: u32, blocks: &crate::sched::vllm::BlockTables<'_>) {
        self.0.preempted(step, tag, tokens, blocks);
    }
    fn finished(
        &mut self,
        step: u64,
        tag: u32,
        generated: u32,
        preemptions: u32,
        blocks: &crate::sched::vllm::BlockTables<'_>,
    ) {
        self.0.finished(step, tag, generated, preemptions, blocks);
    }
    fn rejected(&mut self, step: u64, tag: u32, reason: crate::sched::vllm::Rejection) {
        self.0.rejected(step, tag, reason);
    }
}

fn drive<E: SchedulerEvents>(
    trace: &Trace,
    deployment: &Deployment<'_>,
    arrivals: Arrivals,
    events: &mut E,
) -> Result<Run> {
    let engines = deployment.replicas.saturating_mul(deployment.ranks);
    if !(1..=MAX_ENGINES).contains(&engines) {
        return Err(Error::input(format!(
            "{} replicas of {} ranks are not simulated: expected 1 to {MAX_ENGINES} engines",
            deployment.replicas, deployment.ranks
        )));
    }
    let mut replicas = Vec::new();
    let mut relay = Some(Relay(events));
    for _ in 0..deployment.replicas {
        let mut ranks: Vec<Box<dyn EngineState + '_>> = Vec::new();
        for _ in 0..deployment.ranks {
            ranks.push(match &deployment.engine {
                EngineConfig::Vllm(config) => match relay.take() {
                    Some(relay) if engines == 1 => {
                        Box::new(VllmEngine::new(trace, config, deployment.isolation, relay)?)
                    }
                    _ => Box::new(VllmEngine::new(trace, config, deployment.isolation, ())?),
                },
                EngineConfig::Sglang(config) => Box::new(SglangEngine::new(trace, *config)?),
            });
        }
        replicas.push(Replica::new(
            ranks,
            deployment.clock,
            deployment.host,
            deployment.bounds,
        ));
    }
    let mut cluster = Cluster {
        trace,
        source: Source::new(trace, arrivals)?,
        router: Router::new(deployment.routing),
        loads: Vec::new(),
        replicas,
        ranks: deployment.ranks as usize,
        run: Run {
            records: vec![Record::BLANK; trace.len()],
            ..Run::default()
        },
        ended: Ended::default(),
        sample_every_s: 0.0,
        next_sample_s: 0.0,
    };
    cluster.drive()?;
    Ok(cluster.run)
}

/// A time that orders, for heaps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Time(f64);

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Says which request arrives next, and when.
struct Source {
    arrivals: Arrivals,
    /// Rows in the order of their arrival; as they stand if none is given.
    order: Option<Vec<u32>>,
    requests: u32,
    next: u32,
    /// Places of a closed loop that nobody has taken yet.
    unused: u32,
    /// When places of a closed loop became free again.
    free: BinaryHeap<Reverse<Time>>,
    /// Next turn of each request that has one.
    turns: Vec<Option<u32>>,
    /// Turns whose time is known.
    ready: BinaryHeap<Reverse<(Time, u32)>>,
    random: Pcg64,
}

impl Source {
    fn new(trace: &Trace, arrivals: Arrivals) -> Result<Self> {
        let mut source = Self {
            arrivals,
            order: None,
            requests: trace.request_count(),
            next: 0,
            unused: 0,
            free: BinaryHeap::new(),
            turns: Vec::new(),
            ready: BinaryHeap::new(),
            random: Pcg64::seed_from_u64(0),
        };
        match arrivals {
            Arrivals::Closed { concurrency } => {
                check_concurrency(concurrency)?;
                source.unused = concurrency;
            }
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
                source.order = trace.arrival_order();
            }
            Arrivals::Sessions {
                concurrency,
                think_s,
                seed,
            } => {
                check_concurrency(concurrency)?;
                source.unused = concurrency;
                if !(think_s.is_finite() && think_s >= 0.0) {
                    return Err(Error::input(format!(
                        "--think-time is {think_s}, expected seconds from 0 on"
                    )));
                }
                source.random = Pcg64::seed_from_u64(seed);
                source.by_session(trace)?;
            }
        }
        Ok(source)
    }

    /// Only first turns arrive by themselves.
    fn by_session(&mut self, trace: &Trace) -> Result<()> {
        let order = trace
            .arrival_order()
            .unwrap_or_else(|| (0..trace.request_count()).collect());
        let mut last = rustc_hash::FxHashMap::default();
        let mut first = Vec::new();
        self.turns = vec![None; trace.len()];
        for row in order {
            let Some(session) = trace.session(row as usize) else {
                return Err(Error::input(format!(
                    "{}: request {} belongs to no session, so nothing says what its previous turn was",
                    trace.name(),
                    trace.id(row as usize)
                ))
                .hint("leave --think-time out, or give a trace with sessions"));
            };
            match last.insert(session, row) {
                Some(before) => self.turns[before as usize] = Some(row),
                None => first.push(row),
            }
        }
        self.requests = u32::try_from(first.len()).map_err(|_| Error::overflow("the number of sessions"))?;
        self.order = Some(first);
        Ok(())
    }

    fn row(&self, i: u32) -> u32 {
        self.order.as_ref().map_or(i, |order| order[i as usize])
    }

    /// When the next request arrives; `None` if not before another one ends, or never.
    fn next_s(&self, trace: &Trace) -> Option<f64> {
        let turn = self.ready.peek().map(|Reverse((at, _))| at.0);
        let fresh = if self.next >= self.requests {
            None
        } else if let Arrivals::Trace { speed } = self.arrivals {
            Some(trace.arrival(self.row(self.next) as usize).unwrap_or(0.0) / speed)
        } else if self.unused > 0 {
            Some(0.0)
        } else {
            self.free.peek().map(|Reverse(at)| at.0)
        };
        match (turn, fresh) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes the next request.
    fn take(&mut self, trace: &Trace) -> Option<(u32, f64)> {
        let at = self.next_s(trace)?;
        if let Some(Reverse((time, row))) = self.ready.peek().copied()
            && time.0 <= at
        {
            self.ready.pop();
            return Some((row, time.0));
        }
        if self.unused > 0 {
            self.unused -= 1;
        } else {
            self.free.pop();
        }
        let row = self.row(self.next);
        self.next += 1;
        Some((row, at))
    }

    /// A request ended at `now_s`: the next turn of its session is thought out, or another may begin.
    fn ended(&mut self, row: u32, now_s: f64) {
        match self.arrivals {
            Arrivals::Trace { .. } => {}
            Arrivals::Sessions { think_s, .. } if self.turns[row as usize].is_some() => {
                let share: f64 = self.random.random();
                let thought = -think_s * (1.0 - share).ln();
                if let Some(turn) = self.turns[row as usize] {
                    self.ready.push(Reverse((Time(now_s + thought), turn)));
                }
            }
            Arrivals::Closed { .. } | Arrivals::Sessions { .. } => self.free.push(Reverse(Time(now_s))),
        }
    }

    /// Whether what ends decides what arrives.
    fn depends_on_ends(&self) -> bool {
        !matches!(self.arrivals, Arrivals::Trace { .. })
    }
}

fn check_concurrency(concurrency: u32) -> Result<()> {
    if concurrency == 0 {
        return Err(Error::input("--concurrency is 0, expected at least 1"));
    }
    Ok(())
}

struct Cluster<'a> {
    trace: &'a Trace,
    source: Source,
    router: Router,
    loads: Vec<Load>,
    replicas: Vec<Replica<'a>>,
    ranks: usize,
    run: Run,
    ended: Ended,
    sample_every_s: f64,
    next_sample_s: f64,
}

impl Cluster<'_> {
    fn drive(&mut self) -> Result<()> {
        // The clock of the replica that is furthest behind with work to do; arrivals up to it are sent first.
        let mut now_s = 0.0_f64;
        loop {
            while let Some(at) = self.source.next_s(self.trace)
                && at <= now_s
            {
                self.dispatch(now_s)?;
            }
            let Some(behind) = self.furthest_behind() else {
                match self.source.next_s(self.trace) {
                    None => break,
                    Some(at) => {
                        now_s = now_s.max(at);
                        for replica in &mut self.replicas {
                            self.run.idle_s += (now_s - replica.now_s).max(0.0);
                            replica.now_s = replica.now_s.max(now_s);
                        }
                        continue;
                    }
                }
            };
            now_s = now_s.max(self.replicas[behind].now_s);
            if let Some(at) = self.source.next_s(self.trace)
                && at <= now_s
            {
                continue;
            }
            let mut until = self.source.next_s(self.trace);
            if self.replicas.len() > 1 && self.source.depends_on_ends() {
                // Somebody else's end may send a request here.
                let quiet = (0..self.replicas.len())
                    .filter(|&r| r != behind)
                    .map(|r| self.replicas[r].quiet_until_s())
                    .fold(f64::INFINITY, f64::min);
                if quiet.is_finite() {
                    until = Some(until.map_or(quiet, |at| at.min(quiet)));
                }
            }
            self.replicas[behind].advance(until, &mut self.run, &mut self.ended)?;
            let at = self.replicas[behind].now_s;
            self.take_ended(at);
            self.sample(at);
        }
        self.finish();
        Ok(())
    }

    fn furthest_behind(&self) -> Option<usize> {
        (0..self.replicas.len())
            .filter(|&r| self.replicas[r].has_unfinished())
            .min_by(|&a, &b| self.replicas[a].now_s.total_cmp(&self.replicas[b].now_s))
    }

    /// Sends the next request to an engine; an idle one begins now.
    fn dispatch(&mut self, now_s: f64) -> Result<()> {
        let Some((row, at)) = self.source.take(self.trace) else {
            return Ok(());
        };
        self.loads.clear();
        for replica in &self.replicas {
            self.loads.extend(replica.ranks.iter().map(|rank| Load {
                waiting: rank.num_waiting() as u64,
                running: rank.num_running() as u64,
            }));
        }
        let engine = self.router.choose(self.trace, row, &self.loads);
        let record = &mut self.run.records[row as usize];
        record.arrival_s = at;
        record.input_tokens = self.trace.input_len(row as usize);
        record.engine = u32::try_from(engine).unwrap_or(u32::MAX);
        let (replica, rank) = (engine / self.ranks, engine % self.ranks);
        let target = &mut self.replicas[replica];
        if !target.has_unfinished() {
            self.run.idle_s += (now_s - target.now_s).max(0.0);
            target.now_s = target.now_s.max(now_s);
        }
        target.add(rank, row, &mut self.run.records, &mut self.ended)?;
        self.take_ended(now_s);
        Ok(())
    }

    fn take_ended(&mut self, now_s: f64) {
        for row in self.ended.tags.drain(..) {
            self.source.ended(row, now_s);
        }
    }

    fn counters(&self) -> Counters {
        let mut all = Counters::default();
        for rank in self.replicas.iter().flat_map(|r| &r.ranks) {
            let one = rank.counters();
            all.preemptions += one.preemptions;
            all.hit_tokens += one.hit_tokens;
            all.query_tokens += one.query_tokens;
        }
        all
    }

    fn sample(&mut self, time_s: f64) {
        if time_s < self.next_sample_s {
            return;
        }
        let counters = self.counters();
        let (mut running, mut waiting, mut usage) = (0, 0, 0.0);
        for replica in &self.replicas {
            for rank in &replica.ranks {
                running += rank.num_running();
                waiting += rank.num_waiting();
            }
            usage += replica.usage();
        }
        self.run.series.push(Sample {
            time_s,
            running: u32::try_from(running).unwrap_or(u32::MAX),
            waiting: u32::try_from(waiting).unwrap_or(u32::MAX),
            kv_usage: usage / self.replicas.len() as f64,
            hit_rate: counters.hit_tokens as f64 / counters.query_tokens.max(1) as f64,
        });
        if self.run.series.len() >= MAX_SAMPLES {
            let mut keep = false;
            self.run.series.retain(|_| {
                keep = !keep;
                keep
            });
            self.sample_every_s = (self.sample_every_s * 2.0).max(time_s / (MAX_SAMPLES as f64 / 2.0));
        }
        self.next_sample_s = time_s + self.sample_every_s;
    }

    fn finish(&mut self) {
        let counters = self.counters();
        let run = &mut self.run;
        run.preemptions = counters.preemptions;
        run.hit_tokens = counters.hit_tokens;
        run.query_tokens = counters.query_tokens;
        run.steps = self.replicas.iter().map(Replica::steps).sum();
        run.end_s = self.replicas.iter().map(|r| r.now_s).fold(0.0, f64::max);
        for replica in &self.replicas {
            run.idle_s += run.end_s - replica.now_s;
        }
        let (area, busy) = self
            .replicas
            .iter()
            .map(Replica::usage_area)
            .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        run.kv_usage_mean = if busy > 0.0 { area / busy } else { 0.0 };
        run.gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
}
