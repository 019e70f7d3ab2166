//! The event loop: arrivals, a router, and replicas that each step on their own clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvwise_core::Result;

use super::engine::Counters;
use super::handoff::Transfer;
use super::link::Link;
use super::record::{Record, Run, Sample};
use super::replica::{Ended, Event, Notice, Replica};
use super::router::{Load, Router, Routing};
use super::run::{Deployment, EngineConfig};
use super::source::{Source, Time};
use super::tiers::TierTotals;
use crate::trace::Trace;

/// Most samples of the series.
const MAX_SAMPLES: usize = 2048;

/// Where prompts are computed apart: the router to the decode side, and what is on its way there.
struct Apart {
    transfer: Transfer,
    router: Router,
    /// Prompts that are computed, by the time at which they reach the decode side.
    handoffs: BinaryHeap<Reverse<(Time, u32)>>,
    /// Port of each prefill engine.
    sending: Vec<Link>,
    /// Port of each decode engine.
    receiving: Vec<Link>,
    /// Where decode engines make room first and prompts are pushed (SGLang), what is known of them.
    pushed: Option<Pushed>,
}

/// Requests that have room on a decode engine, or wait for it, before their prompts are computed.
struct Pushed {
    page_tokens: u32,
    /// Decode engine of each request.
    engine: Vec<u32>,
    /// Pages of each request that were sent.
    pages: Vec<u32>,
    /// Requests that will come to each prefill engine.
    coming: Vec<u64>,
}

impl Pushed {
    fn of(deployment: &Deployment<'_>, requests: usize, prefill_engines: usize) -> Option<Self> {
        let EngineConfig::Sglang(config) = &deployment.engine else {
            return None;
        };
        Some(Self {
            page_tokens: u32::try_from(config.page_size).unwrap_or(u32::MAX).max(1),
            engine: vec![0; requests],
            pages: vec![0; requests],
            coming: vec![0; prefill_engines],
        })
    }
}

pub(super) struct Cluster<'a> {
    trace: &'a Trace,
    source: Source,
    router: Router,
    loads: Vec<Load>,
    /// Prefill replicas first, where those are apart.
    replicas: Vec<Replica<'a>>,
    /// Prefill replicas; 0 if every replica does everything.
    num_prefill: usize,
    prefill_ranks: usize,
    ranks: usize,
    apart: Option<Apart>,
    run: Run,
    ended: Ended,
    sample_every_s: f64,
    next_sample_s: f64,
}

impl<'a> Cluster<'a> {
    /// Replicas of `deployment`, prefill replicas first.
    pub(super) fn new(
        trace: &'a Trace,
        deployment: &Deployment<'_>,
        source: Source,
        replicas: Vec<Replica<'a>>,
    ) -> Self {
        let d = deployment.disaggregation.as_ref();
        let ranks = deployment.ranks as usize;
        Self {
            trace,
            source,
            router: Router::new(deployment.routing),
            loads: Vec::new(),
            replicas,
            num_prefill: d.map_or(0, |d| d.replicas as usize),
            prefill_ranks: d.map_or(1, |d| d.ranks as usize),
            ranks,
            apart: d.map(|d| Apart {
                transfer: d.transfer,
                router: Router::new(Routing::LeastLoaded),
                handoffs: BinaryHeap::new(),
                sending: vec![Link::new(d.transfer.speed); (d.replicas * d.ranks) as usize],
                receiving: vec![Link::new(d.transfer.speed); deployment.replicas as usize * ranks],
                pushed: Pushed::of(deployment, trace.len(), (d.replicas * d.ranks) as usize),
            }),
            run: Run {
                records: vec![Record::BLANK; trace.len()],
                ..Run::default()
            },
            ended: Ended::default(),
            sample_every_s: 0.0,
            next_sample_s: 0.0,
        }
    }

    /// Runs until every request has ended.
    pub(super) fn run(mut self) -> Result<Run> {
        self.drive()?;
        Ok(self.run)
    }

    /// When the next request reaches an engine, if that is known: from outside, or from a prefill engine.
    fn next_arrival_s(&self) -> Option<f64> {
        let outside = self.source.next_s(self.trace);
        let inside = self
            .apart
            .as_ref()
            .and_then(|a| a.handoffs.peek())
            .map(|Reverse((at, _))| at.0);
        match (outside, inside) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn drive(&mut self) -> Result<()> {
        // The clock of the replica that is furthest behind with work to do; arrivals up to it are sent first.
        let mut now_s = 0.0_f64;
        loop {
            while let Some(at) = self.next_arrival_s()
                && at <= now_s
            {
                self.dispatch(now_s)?;
            }
            let Some((behind, ready_s)) = self.furthest_behind() else {
                match self.next_arrival_s() {
                    None => break,
                    Some(at) => {
                        now_s = now_s.max(at);
                        for replica in &mut self.replicas {
                            self.run.idle_s += replica.rest_until(now_s);
                        }
                        continue;
                    }
                }
            };
            now_s = now_s.max(ready_s);
            if let Some(at) = self.next_arrival_s()
                && at <= now_s
            {
                continue;
            }
            self.run.idle_s += self.replicas[behind].rest_until(ready_s);
            let mut until = self.next_arrival_s();
            if self.replicas.len() > 1 && (self.source.depends_on_ends() || self.apart.is_some()) {
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
            self.take_ended(behind, at);
            self.take_readings(behind);
            self.take_notices(behind);
            self.sample(at);
        }
        for replica in &mut self.replicas {
            replica.end()?;
        }
        self.finish();
        Ok(())
    }

    fn furthest_behind(&self) -> Option<(usize, f64)> {
        (0..self.replicas.len())
            .filter_map(|r| self.replicas[r].ready_s().map(|at| (r, at)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Sends the next request to an engine; an idle one begins now.
    fn dispatch(&mut self, now_s: f64) -> Result<()> {
        let outside = self.source.next_s(self.trace);
        if let Some(apart) = &mut self.apart
            && let Some(&Reverse((at, row))) = apart.handoffs.peek()
            && outside.is_none_or(|o| at.0 <= o)
        {
            apart.handoffs.pop();
            if let Some(pushed) = &mut apart.pushed {
                // It has room: now its prompt may be computed.
                let engine = self.run.records[row as usize].engine as usize;
                pushed.coming[engine] = pushed.coming[engine].saturating_sub(1);
                let (replica, rank) = (engine / self.prefill_ranks, engine % self.prefill_ranks);
                return self.give(replica, rank, row, now_s);
            }
            let decode = self.num_prefill..self.replicas.len();
            self.loads.clear();
            self.loads.extend(self.replicas[decode].iter().flat_map(loads_of));
            let engine = apart.router.choose(self.trace, row, &self.loads);
            let (replica, rank) = (self.num_prefill + engine / self.ranks, engine % self.ranks);
            return self.give(replica, rank, row, now_s);
        }
        let Some((row, at)) = self.source.take(self.trace) else {
            return Ok(());
        };
        let (first, ranks) = if self.apart.is_some() {
            (0..self.num_prefill, self.prefill_ranks)
        } else {
            (0..self.replicas.len(), self.ranks)
        };
        self.loads.clear();
        self.loads.extend(self.replicas[first].iter().flat_map(loads_of));
        if let Some(pushed) = self.apart.as_ref().and_then(|a| a.pushed.as_ref()) {
            for (load, coming) in self.loads.iter_mut().zip(&pushed.coming) {
                load.waiting += coming;
            }
        }
        let engine = self.router.choose(self.trace, row, &self.loads);
        let record = &mut self.run.records[row as usize];
        record.arrival_s = at;
        record.input_tokens = self.trace.input_len(row as usize);
        record.engine = u32::try_from(engine).unwrap_or(u32::MAX);
        if let Some(apart) = &mut self.apart
            && let Some(pushed) = &mut apart.pushed
        {
            // The router sends it to both sides at once; the decode side makes room first.
            pushed.coming[engine] += 1;
            self.loads.clear();
            let decode = self.num_prefill..self.replicas.len();
            self.loads.extend(self.replicas[decode].iter().flat_map(loads_of));
            let engine = apart.router.choose(self.trace, row, &self.loads);
            pushed.engine[row as usize] = u32::try_from(engine).unwrap_or(u32::MAX);
            let (replica, rank) = (self.num_prefill + engine / self.ranks, engine % self.ranks);
            return self.give(replica, rank, row, now_s);
        }
        self.give(engine / ranks, engine % ranks, row, now_s)
    }

    /// A request reaches a rank of a replica.
    fn give(&mut self, replica: usize, rank: usize, row: u32, now_s: f64) -> Result<()> {
        let target = &mut self.replicas[replica];
        // One that computes nothing, or waits for something on its way, sees the request at once.
        if target.ready_s().is_none_or(|at| at > target.now_s) {
            self.run.idle_s += target.rest_until(now_s);
        }
        target.add(rank, row, &mut self.run.records, &mut self.ended)?;
        self.take_ended(replica, now_s);
        Ok(())
    }

    /// Requests that ended on a replica: their clients hear of it, or the decode side does.
    fn take_ended(&mut self, replica: usize, now_s: f64) {
        for row in std::mem::take(&mut self.ended.tags) {
            let rejected = self.run.records[row as usize].rejected;
            if let Some(apart) = &mut self.apart {
                if let Some(pushed) = &mut apart.pushed {
                    let decode = pushed.engine[row as usize] as usize;
                    if replica < self.num_prefill {
                        if !rejected {
                            continue;
                        }
                        let (to, rank) = (self.num_prefill + decode / self.ranks, decode % self.ranks);
                        self.replicas[to].expect(now_s, Event::Cancel { rank, tag: row });
                    } else if rejected && self.run.records[row as usize].admitted_s.is_nan() {
                        // It never came to its prefill engine.
                        let engine = self.run.records[row as usize].engine as usize;
                        pushed.coming[engine] = pushed.coming[engine].saturating_sub(1);
                    }
                } else if replica < self.num_prefill {
                    if !rejected {
                        let at = now_s + apart.transfer.handoff_s;
                        apart.handoffs.push(Reverse((Time(at), row)));
                        continue;
                    }
                } else if rejected {
                    self.release(row, now_s);
                }
            }
            self.source.ended(row, now_s);
        }
    }

    /// The prefill engine of a request may use its blocks again.
    fn release(&mut self, row: u32, at_s: f64) {
        let engine = self.run.records[row as usize].engine as usize;
        let rank = engine % self.prefill_ranks;
        self.replicas[engine / self.prefill_ranks].expect(at_s, Event::Release { rank, tag: row });
    }

    /// Reads that began on a decode replica: both ends of the link are taken, then the blocks are there.
    fn take_readings(&mut self, replica: usize) {
        let readings = std::mem::take(&mut self.replicas[replica].readings);
        for reading in readings {
            let Some(apart) = &mut self.apart else {
                return;
            };
            let from = self.run.records[reading.tag as usize].engine as usize;
            let to = (replica - self.num_prefill) * self.ranks + reading.rank;
            let bytes = apart
                .transfer
                .bytes_per_block
                .saturating_mul(u64::from(reading.blocks));
            let at = Link::send_between(
                &mut apart.sending[from],
                &mut apart.receiving[to],
                reading.at_s,
                bytes,
            );
            let moved = &mut self.run.transfers;
            moved.requests += 1;
            moved.blocks += u64::from(reading.blocks);
            moved.bytes = moved.bytes.saturating_add(bytes);
            let (rank, tag) = (reading.rank, reading.tag);
            self.replicas[replica].expect(at, Event::Read { rank, tag });
            self.release(tag, at);
        }
    }

    /// What happened on a replica and the other side hears of.
    fn take_notices(&mut self, replica: usize) {
        let notices = std::mem::take(&mut self.replicas[replica].notices);
        for notice in notices {
            let Some(apart) = &mut self.apart else {
                return;
            };
            let Some(pushed) = &mut apart.pushed else {
                return;
            };
            match notice {
                Notice::Placed { tag, at_s } => {
                    let at = at_s + apart.transfer.handoff_s;
                    apart.handoffs.push(Reverse((Time(at), tag)));
                }
                Notice::Sent {
                    tag,
                    tokens,
                    all,
                    rank,
                    at_s,
                } => {
                    let so_far = tokens.div_ceil(pushed.page_tokens);
                    let pages = so_far.saturating_sub(pushed.pages[tag as usize]);
                    if pages == 0 && !all {
                        continue;
                    }
                    pushed.pages[tag as usize] = so_far;
                    let to = pushed.engine[tag as usize] as usize;
                    let bytes = apart.transfer.bytes_per_block.saturating_mul(u64::from(pages));
                    let at = Link::send_between(
                        &mut apart.sending[replica * self.prefill_ranks + rank],
                        &mut apart.receiving[to],
                        at_s,
                        bytes,
                    );
                    let moved = &mut self.run.transfers;
                    moved.blocks += u64::from(pages);
                    moved.bytes = moved.bytes.saturating_add(bytes);
                    if all {
                        moved.requests += 1;
                        let (rank, to) = (to % self.ranks, self.num_prefill + to / self.ranks);
                        self.replicas[to].expect(at, Event::Read { rank, tag });
                        self.release(tag, at);
                    }
                }
            }
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
                // One whose prompt is elsewhere is counted there.
                waiting += rank.num_waiting() - rank.num_expected();
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
        if let Some(apart) = &self.apart {
            run.transfers.receiving_s = apart.receiving.iter().map(Link::busy_s).sum();
        }
        for rank in self.replicas.iter().flat_map(|r| &r.ranks) {
            for (i, tier) in rank.tiers().iter().enumerate() {
                if run.tiers.len() <= i {
                    run.tiers.push(TierTotals::default());
                }
                run.tiers[i].add(tier);
            }
        }
    }
}

fn loads_of<'r>(replica: &'r Replica<'_>) -> impl Iterator<Item = Load> + 'r {
    replica.ranks.iter().map(|rank| Load {
        waiting: rank.num_waiting() as u64,
        running: rank.num_running() as u64,
    })
}
