//! Engines that step together, on a clock.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvwise_core::Result;

use super::engine::{EngineState, StepReport};
use super::record::{HostTimes, Record, Run};
use super::run::StepClock;
use super::source::Time;
use crate::cost::{Batch, Bound, Memo, Prefill, StepTime};

/// What a replica does for its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Everything.
    Whole,
    /// Computes prompts and hands them over.
    Prefill,
    /// Goes on where prefill engines ended.
    Decode,
}

/// Something from another engine that happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// The blocks of a request are there.
    Read {
        /// The rank.
        rank: usize,
        /// The request.
        tag: u32,
    },
    /// The blocks of a request were read by another engine.
    Release {
        /// The rank.
        rank: usize,
        /// The request.
        tag: u32,
    },
    /// The blocks of a request will never come.
    Cancel {
        /// The rank.
        rank: usize,
        /// The request.
        tag: u32,
    },
}

/// Something that happened in a step and another engine must hear of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Notice {
    /// A part of a prompt can be sent: tokens from the start, whether they are all.
    Sent {
        tag: u32,
        tokens: u32,
        all: bool,
        rank: usize,
        at_s: f64,
    },
    /// A request has room for its prompt.
    Placed { tag: u32, at_s: f64 },
}

/// Reads of other engines' blocks that began in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) rank: usize,
    pub(super) tag: u32,
    pub(super) blocks: u32,
    pub(super) at_s: f64,
}

/// One engine, or the data-parallel ranks of one model that share experts and therefore step together.
pub(super) struct Replica<'a> {
    pub(super) ranks: Vec<Box<dyn EngineState + 'a>>,
    clock: StepClock<'a>,
    memo: RefCell<Memo>,
    host: HostTimes,
    bounds: bool,
    role: Role,
    /// Steps of pure decoding that pass together at most.
    stretch_steps: u32,
    pub(super) now_s: f64,
    step: u64,
    reports: Vec<StepReport>,
    usage_area: f64,
    busy_s: f64,
    /// What other engines do for this one, by time.
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    num_events: u64,
    /// Nothing can be computed before something arrives.
    stalled: bool,
    /// Reads that began since the loop last looked.
    pub(super) readings: Vec<Reading>,
    /// What happened since the loop last looked.
    pub(super) notices: Vec<Notice>,
}

/// What changed in a step, for the loop around: requests that ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Requests that finished or can never run.
    pub(super) tags: Vec<u32>,
}

/// The length of a step by kind, and the host's part.
#[derive(Debug, Clone, Copy)]
struct Timed {
    kinds: StepTime,
    host_s: f64,
    bound: Bound,
}

impl Timed {
    fn seconds(&self) -> f64 {
        self.kinds.total_s() + self.host_s
    }
}

impl<'a> Replica<'a> {
    pub(super) fn new(
        ranks: Vec<Box<dyn EngineState + 'a>>,
        clock: StepClock<'a>,
        host: HostTimes,
        bounds: bool,
        role: Role,
        stretch_steps: u32,
    ) -> Self {
        let reports = ranks.iter().map(|_| StepReport::default()).collect();
        Self {
            ranks,
            clock,
            memo: RefCell::default(),
            host,
            bounds,
            role,
            stretch_steps,
            now_s: 0.0,
            step: 0,
            reports,
            usage_area: 0.0,
            busy_s: 0.0,
            events: BinaryHeap::new(),
            num_events: 0,
            stalled: false,
            readings: Vec::new(),
            notices: Vec::new(),
        }
    }

    pub(super) fn steps(&self) -> u64 {
        self.step
    }

    /// Integral of the pools' mean usage over busy time, and that time.
    pub(super) fn usage_area(&self) -> (f64, f64) {
        (self.usage_area, self.busy_s)
    }

    pub(super) fn has_unfinished(&self) -> bool {
        self.ranks.iter().any(|r| r.has_unfinished())
    }

    /// Mean share of the pools in use.
    pub(super) fn usage(&self) -> f64 {
        self.ranks.iter().map(|r| r.usage()).sum::<f64>() / self.ranks.len() as f64
    }

    /// A request arrives at a rank.
    pub(super) fn add(
        &mut self,
        rank: usize,
        tag: u32,
        records: &mut [Record],
        ended: &mut Ended,
    ) -> Result<()> {
        self.stalled = false;
        self.ranks[rank].add(self.step, tag, &mut self.reports[rank])?;
        take_rejections(&mut self.reports[rank], records, ended);
        Ok(())
    }

    /// Another engine does something for this one at `at_s`.
    pub(super) fn expect(&mut self, at_s: f64, event: Event) {
        self.num_events += 1;
        self.events.push(Reverse((Time(at_s), self.num_events, event)));
    }

    /// When something arrives that a request waits for, from another engine or a tier.
    fn next_event_s(&self) -> Option<f64> {
        let own = self.events.peek().map(|Reverse((at, ..))| at.0);
        self.ranks
            .iter()
            .filter_map(|r| r.next_event_s())
            .chain(own)
            .min_by(f64::total_cmp)
    }

    /// When it can compute next: now, or when something arrives; `None` if it has nothing to do, or waits for others.
    pub(super) fn ready_s(&self) -> Option<f64> {
        if !self.has_unfinished() {
            None
        } else if self.stalled {
            self.next_event_s().map(|at| at.max(self.now_s))
        } else {
            Some(self.now_s)
        }
    }

    /// Lets time pass without work; returns how much.
    pub(super) fn rest_until(&mut self, at_s: f64) -> f64 {
        let rest = (at_s - self.now_s).max(0.0);
        self.now_s = self.now_s.max(at_s);
        rest
    }

    /// What has happened until now.
    /// Nothing comes any more.
    pub(super) fn end(&mut self) -> Result<()> {
        self.ranks.iter_mut().try_for_each(|rank| rank.end())
    }

    fn take_events(&mut self, records: &mut [Record]) -> Result<()> {
        while let Some(&Reverse((at, _, event))) = self.events.peek()
            && at.0 <= self.now_s
        {
            self.events.pop();
            self.stalled = false;
            match event {
                Event::Read { rank, tag } => {
                    records[tag as usize].kv_arrived_s = at.0;
                    self.ranks[rank].read(tag);
                }
                Event::Release { rank, tag } => self.ranks[rank].release(tag),
                Event::Cancel { rank, tag } => self.ranks[rank].cancel(tag)?,
            }
        }
        for rank in &mut self.ranks {
            if rank.next_event_s().is_some_and(|at| at <= self.now_s) {
                self.stalled = false;
            }
            rank.clock(self.now_s);
        }
        Ok(())
    }

    /// Coming steps in which everybody just decodes, unless a request arrives.
    fn idle_steps(&self) -> u32 {
        self.ranks
            .iter()
            .filter(|r| r.has_unfinished())
            .map(|r| r.idle_steps())
            .min()
            .unwrap_or(0)
            .min(self.stretch_steps)
    }

    /// The earliest time at which a request can end here if nothing arrives: the end of the coming quiet stretch.
    pub(super) fn quiet_until_s(&self) -> f64 {
        let Some(ready) = self.ready_s() else {
            return f64::INFINITY;
        };
        match self.idle_steps() {
            0 => ready,
            idle => {
                let quiet = ready + self.stretch(idle).seconds() * f64::from(idle);
                self.next_event_s().map_or(quiet, |at| quiet.min(at.max(ready)))
            }
        }
    }

    /// The middle step of a stretch of pure decoding.
    fn stretch(&self, steps: u32) -> Timed {
        self.timed(|rank| {
            let decoding = self.ranks[rank].num_running() as u64;
            let context = self.ranks[rank].decode_context_tokens() as f64;
            let middle = context + decoding as f64 * (f64::from(steps) - 1.0) / 2.0;
            (decoding, middle, &[])
        })
    }

    /// The time of one step: that of the slowest rank.
    fn timed<'b>(&self, work: impl Fn(usize) -> (u64, f64, &'b [Prefill])) -> Timed {
        let StepClock::Model(model) = self.clock else {
            let StepClock::Fixed(seconds) = self.clock else {
                unreachable!("a clock is a model or fixed");
            };
            return Timed {
                kinds: StepTime::default(),
                host_s: seconds,
                bound: Bound::default(),
            };
        };
        let batch = |rank: usize| {
            let (decoding, context, prefills) = work(rank);
            Batch::new(decoding, context, prefills)
        };
        let all: f64 = if self.ranks.len() > 1 {
            (0..self.ranks.len()).map(|r| batch(r).tokens()).sum()
        } else {
            0.0
        };
        let mut slowest: Option<Timed> = None;
        for rank in 0..self.ranks.len() {
            let mut batch = batch(rank);
            batch.peer_tokens = (all - batch.tokens()).max(0.0);
            let sequences = batch.decode_sequences as f64 + batch.prefills.len() as f64;
            let timed = Timed {
                kinds: model.time_with(&batch, &mut self.memo.borrow_mut()),
                host_s: self.host.step_s + self.host.sequence_s * sequences,
                bound: if self.bounds {
                    model.bound(&batch)
                } else {
                    Bound::default()
                },
            };
            if slowest.is_none_or(|s| timed.seconds() > s.seconds()) {
                slowest = Some(timed);
            }
        }
        slowest.unwrap_or(Timed {
            kinds: StepTime::default(),
            host_s: 0.0,
            bound: Bound::default(),
        })
    }

    /// One step, or a stretch of steps in which everybody just decodes that ends no later than the first step after
    /// `until_s`.
    pub(super) fn advance(&mut self, until_s: Option<f64>, run: &mut Run, ended: &mut Ended) -> Result<()> {
        self.take_events(&mut run.records)?;
        let until_s = match (until_s, self.next_event_s()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if self.skip_decoding(until_s, run)? {
            return Ok(());
        }
        self.one_step(run, ended)
    }

    fn skip_decoding(&mut self, until_s: Option<f64>, run: &mut Run) -> Result<bool> {
        let idle = self.idle_steps();
        if idle == 0 {
            return Ok(false);
        }
        let mut steps = idle;
        let mut timed = self.stretch(steps);
        if let (Some(until), StepClock::Fixed(seconds)) = (until_s, self.clock) {
            // Counted as the replay counts: rounding decides who arrives in time.
            let mut at = self.now_s;
            steps = 0;
            while steps < idle && at < until {
                at += seconds;
                steps += 1;
            }
            if steps == 0 {
                return Ok(false);
            }
        } else if let Some(until) = until_s {
            // The first step that ends at or after the arrival is the last one before it is seen.
            let ahead = ((until - self.now_s) / timed.seconds()).ceil().max(0.0);
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
                    return Ok(false);
                }
                timed = self.stretch(steps);
            }
        }
        let mut decoding = 0;
        for rank in &mut self.ranks {
            decoding += rank.num_running() as u64;
            rank.skip(steps)?;
        }
        self.step += u64::from(steps);
        self.account(&timed, steps, decoding * u64::from(steps), run);
        Ok(true)
    }

    fn one_step(&mut self, run: &mut Run, ended: &mut Ended) -> Result<()> {
        let start = self.now_s;
        let mut work: Vec<(u64, f64)> = Vec::with_capacity(self.ranks.len());
        let mut decoded = 0;
        for (rank, report) in self.ranks.iter_mut().zip(&mut self.reports) {
            let context = rank.decode_context_tokens() as f64;
            let decoding = if rank.has_unfinished() {
                rank.step(self.step, report)?
            } else {
                0
            };
            decoded += decoding.saturating_sub(std::mem::take(&mut report.in_vain));
            // A prompt of which only the last token is missing is computed as a decode is.
            let singles = std::mem::take(&mut report.single_tokens);
            let past: u64 = singles.iter().sum();
            let joined = std::mem::take(&mut report.joined_tokens);
            let context = if decoding > 0 {
                context + joined as f64
            } else {
                0.0
            } + past as f64;
            work.push((decoding + singles.len() as u64, context));
        }
        let nothing = work.iter().all(|w| w.0 == 0) && self.reports.iter().all(|r| r.prefills.is_empty());
        if nothing && self.ranks.iter().any(|r| r.has_connector()) {
            // The engine turns its loop until something arrives; that takes no time of its own here.
            self.stalled = !self.reports.iter().any(|r| r.preempted);
        } else {
            let reports = std::mem::take(&mut self.reports);
            let timed = self.timed(|rank| (work[rank].0, work[rank].1, reports[rank].prefills.as_slice()));
            self.reports = reports;
            self.step += 1;
            self.account(&timed, 1, decoded, run);
        }
        let now = self.now_s;
        for rank in &mut self.ranks {
            rank.clock(now);
        }
        let role = self.role;
        for (rank, report) in self.reports.iter_mut().enumerate() {
            report.prefills.clear();
            report.preempted = false;
            for (tag, hit_tokens, resumed) in report.admitted.drain(..) {
                let record = &mut run.records[tag as usize];
                if !resumed && role != Role::Decode {
                    record.admitted_s = start;
                    record.hit_tokens = hit_tokens;
                }
            }
            // Their first token came with the prompt: it goes out before the step begins.
            for (tag, ended_too) in report.joined.drain(..) {
                let record = &mut run.records[tag as usize];
                if record.first_token_s.is_nan() {
                    record.first_token_s = start;
                }
                if ended_too {
                    record.finished_s = start;
                    record.output_tokens = 1;
                    ended.tags.push(tag);
                }
            }
            for (tag, generated, preemptions) in report.ended.drain(..) {
                let record = &mut run.records[tag as usize];
                record.preemptions += preemptions;
                record.finished_s = start;
                record.output_tokens = generated;
                ended.tags.push(tag);
            }
            for (tag, tokens, all) in report.sent.drain(..) {
                self.notices.push(Notice::Sent {
                    tag,
                    tokens,
                    all,
                    rank,
                    at_s: now,
                });
            }
            for tag in report.placed.drain(..) {
                self.notices.push(Notice::Placed { tag, at_s: start });
            }
            for tag in report.first_tokens.drain(..) {
                let record = &mut run.records[tag as usize];
                if record.first_token_s.is_nan() && role != Role::Prefill {
                    record.first_token_s = now;
                }
            }
            for (tag, generated, preemptions) in report.finished.drain(..) {
                let record = &mut run.records[tag as usize];
                record.preemptions += preemptions;
                if role == Role::Prefill {
                    record.prefilled_s = now;
                } else {
                    record.finished_s = now;
                    record.output_tokens = generated;
                }
                ended.tags.push(tag);
            }
            for (tag, tokens) in report.loads.drain(..) {
                run.records[tag as usize].loaded_tokens += tokens;
            }
            for (tag, blocks) in report.reads.drain(..) {
                self.readings.push(Reading {
                    rank,
                    tag,
                    blocks,
                    at_s: start,
                });
            }
            take_rejections(report, &mut run.records, ended);
        }
        Ok(())
    }

    fn account(&mut self, timed: &Timed, steps: u32, decode_tokens: u64, run: &mut Run) {
        let n = f64::from(steps);
        let seconds = timed.seconds();
        if matches!(self.clock, StepClock::Fixed(_)) {
            // Summed step by step, as the replay does: rounding decides who arrives in time.
            for _ in 0..steps {
                self.now_s += seconds;
            }
        } else {
            self.now_s += seconds * n;
        }
        run.busy.add(&timed.kinds, n);
        run.bound.add(&timed.bound, n);
        run.bound_s += timed.bound.seconds() * n;
        run.host_s += timed.host_s * n;
        if decode_tokens > 0 {
            run.gaps.push((seconds, decode_tokens));
        }
        let usage = self.usage();
        self.usage_area += usage * seconds * n;
        self.busy_s += seconds * n;
        run.kv_usage_peak = run.kv_usage_peak.max(usage);
    }
}

fn take_rejections(report: &mut StepReport, records: &mut [Record], ended: &mut Ended) {
    for tag in report.rejected.drain(..) {
        records[tag as usize].rejected = true;
        ended.tags.push(tag);
    }
}
