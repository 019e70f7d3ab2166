//! One token for every running request, and who gives memory back when there is none.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler.py` (`update_running_batch`), `schedule_batch.py` (`check_decode_mem`,
//! `retract_decode`) and `mem_cache/allocation.py` (`alloc_for_decode`).

use std::cmp::Reverse;

use kvwise_core::Result;

use super::{Job, Pending, SteppedScheduler};
use crate::sched::sglang::{RETRACT_DECODE_STEPS, of_cache};

impl SteppedScheduler<'_> {
    /// Composes a decode batch of all running requests; `None` if there is none.
    pub(super) fn decode(&mut self) -> Result<Option<Pending>> {
        if self.running.is_empty() {
            return Ok(None);
        }
        let before = self.running.len();
        let lags = self.lags();
        // Requests whose token under way is their last leave; their memory comes with its result.
        let (ending, staying): (Vec<usize>, Vec<usize>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|&place| !lags && self.active[place].as_ref().is_some_and(|a| a.done));
        for &place in &ending {
            if let Some(a) = &mut self.active[place] {
                a.listed = false;
            }
        }
        self.running = staying;
        if self.running.is_empty() {
            self.full = false;
            return Ok(None);
        }
        let demand = self.demand();
        if self.cache.make_room(demand, |_| {}) {
            self.decay(1.0);
        } else if ending.is_empty() {
            self.retract()?;
        } else {
            self.full = false;
            return Ok(None);
        }
        if self.running.len() < before {
            self.full = false;
        }
        if self.running.is_empty() {
            return Ok(None);
        }
        let page = self.config.page_size;
        self.cache.make_room(self.running.len() * page, |_| {});
        for &place in &self.running {
            if let Some(a) = &mut self.active[place] {
                let end = a.owned_len() + 1;
                if let Some(kv) = &mut a.kv {
                    self.cache.grow(kv, end).map_err(of_cache)?;
                }
            }
        }
        let places = self.running.clone();
        Ok(Some(self.launch(false, &places)))
    }

    /// Tokens that the coming decode step needs at most: a page for each request whose pages are full.
    fn demand(&self) -> usize {
        let page = self.config.page_size;
        page * self
            .running
            .iter()
            .filter_map(|&place| self.active[place].as_ref())
            .filter(|a| a.owned_len() % page == 0)
            .count()
    }

    /// Takes requests out until the others can decode: those with the fewest tokens generated, then the longest prompts.
    /// They keep their tokens and wait at the end of the queue.
    fn retract(&mut self) -> Result<()> {
        // Most worth keeping first; the batch stays in this order.
        let worth = |place: &usize| {
            self.active[*place]
                .as_ref()
                .map(|a| (a.job.generated, Reverse(a.job.prompt)))
        };
        let mut keys: Vec<(usize, _)> = self.running.iter().map(|place| (*place, worth(place))).collect();
        keys.sort_by_key(|&(_, key)| Reverse(key));
        self.running = keys.into_iter().map(|(place, _)| place).collect();
        let mut first = true;
        while first || !self.fits() {
            if self.running.len() == 1 {
                break;
            }
            first = false;
            if let Some(place) = self.running.pop()
                && let Some(mut job) = self.give_back(place)?
            {
                self.retractions += 1;
                job.retractions += 1;
                job.content = None;
                self.put_back(job);
            }
            self.cache
                .make_room(self.running.len() * RETRACT_DECODE_STEPS, |_| {});
        }
        if self.running.len() <= 1
            && !self.fits()
            && let Some(place) = self.running.pop()
            && let Some(job) = self.give_back(place)?
        {
            // Not even the last one fits: SGLang aborts it.
            self.outcome.rejected.push(job.tag);
        }
        let jobs = || {
            self.running
                .iter()
                .filter_map(|&p| self.active[p].as_ref())
                .map(|a| &a.job)
        };
        let decoded: usize = jobs().map(|j| j.generated).sum();
        let asked: usize = jobs().map(|j| j.output).sum();
        self.ratio =
            ((decoded + RETRACT_DECODE_STEPS * self.running.len()) as f64 / (asked + 1) as f64).min(1.0);
        Ok(())
    }

    /// Takes a request's memory without publishing what it computed.
    pub(super) fn give_back(&mut self, place: usize) -> Result<Option<Job>> {
        let Some(active) = self.vacate(place) else {
            return Ok(None);
        };
        if let Some(kv) = active.kv {
            self.rows -= 1;
            self.unblock();
            self.cache.retract(kv).map_err(of_cache)?;
        }
        Ok(Some(active.job))
    }

    /// Whether the coming decode step has room, evicting what can be evicted.
    fn fits(&mut self) -> bool {
        let demand = self.demand();
        self.cache.make_room(demand, |_| {})
    }
}
