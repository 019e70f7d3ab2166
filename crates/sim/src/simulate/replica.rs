//! Engines that step together, on a clock.

use kvwise_core::Result;

use super::engine::{EngineState, StepReport};
use super::record::{HostTimes, Record, Run};
use super::run::StepClock;
use crate::cost::{Batch, Bound, Prefill, StepTime};

/// Steps between two looks at the clock while nothing but decoding happens: the context grows by this much at most,
/// so that timing the middle of the stretch is exact for attention that is linear in the context.
const MAX_STRETCH: u32 = 256;

/// One engine, or the data-parallel ranks of one model that share experts and therefore step together.
pub(super) struct Replica<'a> {
    pub(super) ranks: Vec<Box<dyn EngineState + 'a>>,
    clock: StepClock<'a>,
    host: HostTimes,
    bounds: bool,
    pub(super) now_s: f64,
    step: u64,
    reports: Vec<StepReport>,
    usage_area: f64,
    busy_s: f64,
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
    ) -> Self {
        let reports = ranks.iter().map(|_| StepReport::default()).collect();
        Self {
            ranks,
            clock,
            host,
            bounds,
            now_s: 0.0,
            step: 0,
            reports,
            usage_area: 0.0,
            busy_s: 0.0,
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
        self.ranks[rank].add(self.step, tag, &mut self.reports[rank])?;
        take_rejections(&mut self.reports[rank], records, ended);
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
            .min(MAX_STRETCH)
    }

    /// The earliest time at which a request can end here if nothing arrives: the end of the coming quiet stretch.
    pub(super) fn quiet_until_s(&self) -> f64 {
        if !self.has_unfinished() {
            return f64::INFINITY;
        }
        match self.idle_steps() {
            0 => self.now_s,
            idle => self.now_s + self.stretch(idle).seconds() * f64::from(idle),
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
                kinds: model.time(&batch),
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
        let mut work = Vec::with_capacity(self.ranks.len());
        for (rank, report) in self.ranks.iter_mut().zip(&mut self.reports) {
            let context = rank.decode_context_tokens() as f64;
            let decoding = if rank.has_unfinished() {
                rank.step(self.step, report)?
            } else {
                0
            };
            work.push((decoding, if decoding > 0 { context } else { 0.0 }));
        }
        let reports = std::mem::take(&mut self.reports);
        let timed = self.timed(|rank| (work[rank].0, work[rank].1, reports[rank].prefills.as_slice()));
        self.reports = reports;
        self.step += 1;
        let decoding = work.iter().map(|(n, _)| n).sum();
        self.account(&timed, 1, decoding, run);
        let now = self.now_s;
        for report in &mut self.reports {
            report.prefills.clear();
            for (tag, hit_tokens, resumed) in report.admitted.drain(..) {
                let record = &mut run.records[tag as usize];
                if !resumed {
                    record.admitted_s = start;
                    record.hit_tokens = hit_tokens;
                }
            }
            for tag in report.first_tokens.drain(..) {
                let record = &mut run.records[tag as usize];
                if record.first_token_s.is_nan() {
                    record.first_token_s = now;
                }
            }
            for (tag, generated, preemptions) in report.finished.drain(..) {
                let record = &mut run.records[tag as usize];
                record.finished_s = now;
                record.output_tokens = generated;
                record.preemptions = preemptions;
                ended.tags.push(tag);
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
