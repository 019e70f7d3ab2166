//! Which request arrives next, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvwise_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::workload::Arrivals;
use crate::trace::Trace;

/// A time that orders, for heaps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Time(pub(super) f64);

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
pub(super) struct Source {
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
    pub(super) fn new(trace: &Trace, arrivals: Arrivals) -> Result<Self> {
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
    pub(super) fn next_s(&self, trace: &Trace) -> Option<f64> {
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
    pub(super) fn take(&mut self, trace: &Trace) -> Option<(u32, f64)> {
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
    pub(super) fn ended(&mut self, row: u32, now_s: f64) {
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
    pub(super) fn depends_on_ends(&self) -> bool {
        !matches!(self.arrivals, Arrivals::Trace { .. })
    }
}

fn check_concurrency(concurrency: u32) -> Result<()> {
    if concurrency == 0 {
        return Err(Error::input("--concurrency is 0, expected at least 1"));
    }
    Ok(())
}
