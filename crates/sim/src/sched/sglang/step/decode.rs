//! One token for every running request, and who gives memory back when there is none.
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler.py` (`update_running_batch`), `schedule_batch.py` (`check_decode_mem`,
//! `retract_decode`) and `mem_cache/allocation.py` (`alloc_for_decode`).

use std::cmp::Reverse;

use kvwise_cache::radix::RequestKv;
use kvwise_core::Result;

use super::job::{Job, Pending};
use super::{RetractionPolicy, StepEvent, SteppedScheduler, small};
use crate::sched::sglang::{RETRACT_DECODE_STEPS, of_cache};

impl SteppedScheduler<'_> {
    /// Composes a decode batch of all running requests; `None` if there is none.
    pub(super) fn decode(&mut self) -> Result<Option<Pending>> {
        if self.running.is_empty() {
            return Ok(None);
        }
        let before = self.running.len();
        let ending = self.set_ending_aside();
        if self.running.is_empty() {
            return Ok(None);
        }
        if self.fits() {
            self.decay(1.0);
        } else if ending == 0 {
            self.retract()?;
        } else {
            // Their memory comes with their results; the others wait for it.
            return Ok(None);
        }
        if self.running.len() < before {
            self.full = false;
        }
        if self.running.is_empty() {
            return Ok(None);
        }
        self.take_tokens()?;
        let places = self.running.clone();
        Ok(Some(self.launch(&places, 0)))
    }

    /// Takes requests out whose token under way is their last; their memory comes with its result. Returns how many.
    pub(super) fn set_ending_aside(&mut self) -> usize {
        let before = self.running.len();
        let lags = self.lags();
        let active = &mut self.active;
        self.running.retain(|&place| match &mut active[place] {
            Some(a) if a.done && !lags => {
                a.listed = false;
                false
            }
            _ => true,
        });
        let ending = before - self.running.len();
        if ending > 0 {
            self.full = false;
        }
        ending
    }

    /// A slot for the next token of every running request.
    pub(super) fn take_tokens(&mut self) -> Result<()> {
        self.make_room(self.running.len() * self.config.page_size);
        for &place in &self.running {
            if let Some(a) = &mut self.active[place] {
                let end = a.owned_len() + 1;
                if let Some(kv) = &mut a.kv {
                    self.cache.grow(kv, end).map_err(of_cache)?;
                }
            }
        }
        Ok(())
    }

    /// Evicts until so many tokens are free, or nothing is left to evict; says whether they are free.
    pub(super) fn make_room(&mut self, tokens: usize) -> bool {
        let (log, turn) = (&mut self.log, self.turn);
        self.cache.make_room(tokens, |slots| log.evicted(turn, slots))
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
        let by_priority = match self.config.retraction {
            RetractionPolicy::Length => None,
            RetractionPolicy::Priority => self.config.priorities,
        };
        let worth = |place: &usize| {
            self.active[*place].as_ref().map(|a| {
                let importance = by_priority.map_or(0, |p| -p.rank(a.job.priority));
                (importance, a.job.generated, Reverse(a.job.prompt))
            })
        };
        let mut keys: Vec<(usize, _)> = self.running.iter().map(|place| (*place, worth(place))).collect();
        keys.sort_by_key(|&(_, key)| Reverse(key));
        self.running = keys.into_iter().map(|(place, _)| place).collect();
        let mut lost = Vec::new();
        let mut first = true;
        while first || !self.fits() {
            if self.running.len() == 1 {
                break;
            }
            first = false;
            if let Some(place) = self.running.pop()
                && let Some(job) = self.give_back(place, false)?
            {
                self.retractions += 1;
                lost.push(job);
            }
            self.make_room(self.running.len() * RETRACT_DECODE_STEPS);
        }
        if self.running.len() <= 1
            && !self.fits()
            && let Some(place) = self.running.pop()
        {
            // Not even the last one fits: SGLang aborts it.
            self.abort(place)?;
        }
        let jobs = || {
            self.running
                .iter()
                .filter_map(|&p| self.active[p].as_ref())
                .map(|a| &a.job)
        };
        let decoded: usize = jobs().map(|j| j.generated).sum();
        let asked: usize = jobs().map(|j| j.asked).sum();
        self.ratio =
            ((decoded + RETRACT_DECODE_STEPS * self.running.len()) as f64 / (asked + 1) as f64).min(1.0);
        for job in lost {
            self.put_back(job);
        }
        Ok(())
    }

    /// The request ends here, without all its tokens.
    fn abort(&mut self, place: usize) -> Result<()> {
        let Some(active) = self.vacate(place) else {
            return Ok(());
        };
        self.aborted += 1;
        self.generated_tokens += active.job.generated as u64;
        self.outcome.rejected.push(active.job.tag);
        self.log.note(self.turn, || StepEvent::Aborted {
            tag: active.job.tag,
            generated: small(active.job.generated),
        });
        self.free(active.kv)
    }

    /// Takes a request's memory without publishing what it computed; it keeps its tokens and can enter the queue again.
    pub(super) fn give_back(&mut self, place: usize, to_priority: bool) -> Result<Option<Job>> {
        let Some(active) = self.vacate(place) else {
            return Ok(None);
        };
        self.log.note(self.turn, || StepEvent::Lost {
            tag: active.job.tag,
            computed_tokens: small(active.owned_len()),
            generated: small(active.job.generated),
            to_priority,
        });
        self.free(active.kv)?;
        let mut job = active.job;
        job.retractions += 1;
        job.content = None;
        job.matched = 0;
        job.weighed.1 = 0;
        Ok(Some(job))
    }

    fn free(&mut self, kv: Option<RequestKv>) -> Result<()> {
        let Some(kv) = kv else { return Ok(()) };
        self.rows -= 1;
        self.unblock();
        self.cache.retract(kv).map_err(of_cache)
    }

    /// Whether the coming decode step has room, evicting what can be evicted.
    pub(super) fn fits(&mut self) -> bool {
        let demand = self.demand();
        self.make_room(demand)
    }
}
