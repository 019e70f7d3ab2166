//! The two sides of a deployment that computes prompts on engines of their own (`--disaggregation-mode`).
//!
//! SGLang 0.5.23, `sglang/srt/disaggregation/prefill.py` and `decode.py`, with the defaults of `arg_groups/fields/disagg.py`
//! (memory on the decode side first, no optimistic prefill, no radix cache on the decode side):
//!
//! - a request waits on the decode engine until there is a row and room for its whole prompt, beside what the requests that
//!   have room are promised (`--num-reserved-decode-tokens` each, or what the longest running one may still need);
//! - only then the prefill engine may compute it, with one token to generate; chunks are sent as they are known, whole pages
//!   at a time, and the memory stays until all has been read;
//! - what has arrived joins the decode batch with the prefill engine's token, and nothing of the prompt is computed again;
//! - with overlap, a request that has its last token decodes once more in vain;
//! - a request that decoding pushes out is copied to the host and comes back before anybody new gets room; while one waits
//!   for that, arrived prompts do not join either.
//!
//! Simplified: copies of requests that were pushed out take no time and always find room on the host. On purpose different: a
//! request that can never come in because nothing is left that could make room is rejected, where the engine would stand
//! still.

use std::collections::VecDeque;

use kvwise_cache::radix::Namespace;
use kvwise_core::Result;
use rustc_hash::{FxHashMap, FxHashSet};

use super::job::{Active, Job};
use super::{Side, SteppedScheduler, small};
use crate::sched::sglang::of_cache;

/// What only an engine of one side keeps.
#[derive(Default)]
pub(super) struct Apart {
    /// Requests without room, in the order of their arrival.
    unplaced: VecDeque<Job>,
    /// Whether the first of them stays without room however long the others just decode.
    blocked: bool,
    /// Places whose prompts are computed or on their way, in the order in which they got room.
    receiving: Vec<usize>,
    /// Requests whose prompt has arrived and was not yet looked at.
    arrived: FxHashSet<u32>,
    /// Places that are ready to join the batch.
    ready: VecDeque<usize>,
    /// Requests that were pushed out, in that order.
    retracted: VecDeque<Job>,
    /// Prompts that are computed and kept for the other side, by request.
    held: FxHashMap<u32, usize>,
    /// Those of them that were read.
    read: Vec<u32>,
}

impl Apart {
    /// Requests that have room but do not run yet.
    pub(super) fn num_placed(&self) -> usize {
        self.receiving.len() + self.ready.len()
    }

    /// Requests that do not run yet, with room or without.
    pub(super) fn num_waiting(&self) -> usize {
        self.unplaced.len() + self.num_placed() + self.retracted.len()
    }

    /// Whether nothing changes here while everybody just decodes; `free` if another one could join the batch.
    pub(super) fn is_quiet(&self, free: bool) -> bool {
        self.retracted.is_empty()
            && self.arrived.is_empty()
            && (self.unplaced.is_empty() || self.blocked)
            && (self.ready.is_empty() || !free)
    }
}

impl SteppedScheduler<'_> {
    /// Whether the loop knows of a last token only after it has launched one more step for the request: only the loop that does
    /// everything looks ahead (`enable_skip_finishing_decode`).
    pub(super) fn lags(&self) -> bool {
        self.config.overlap && matches!(self.config.side, Side::Decode { .. })
    }

    /// A request comes to where it waits first.
    pub(super) fn arrive(&mut self, job: Job) {
        if matches!(self.config.side, Side::Decode { .. }) {
            self.apart.blocked = false;
            self.apart.unplaced.push_back(job);
        } else {
            self.enter(job);
        }
    }

    /// The loop looks for requests that have arrived, if it is due.
    pub(super) fn look_for_requests(&mut self) {
        for job in self.inbox.turn(self.launched) {
            self.arrive(job);
        }
    }

    /// A request that decoding has pushed out waits again.
    pub(super) fn put_back(&mut self, job: Job) {
        if matches!(self.config.side, Side::Decode { .. }) {
            self.apart.retracted.push_back(job);
        } else {
            self.enter(job);
        }
    }

    /// Waiting requests that have room here, and whose prompts are computed or on their way elsewhere.
    pub fn num_expected(&self) -> usize {
        self.apart.receiving.len()
    }

    /// The whole prompt of a request is on this decode engine.
    pub fn receive(&mut self, tag: u32) {
        self.apart.arrived.insert(tag);
    }

    /// The prompt of a request was read from this prefill engine.
    pub fn release(&mut self, tag: u32) {
        self.apart.read.push(tag);
    }

    /// Memory came back: whoever is without room may find some.
    pub(super) fn unblock(&mut self) {
        self.apart.blocked = false;
    }

    /// The prompt of a request will never come to this decode engine.
    ///
    /// # Errors
    /// If the cache refuses what it gave (it never does).
    pub fn cancel(&mut self, tag: u32) -> Result<()> {
        self.apart.unplaced.retain(|job| job.tag != tag);
        let is_it = |place: &usize| self.active[*place].as_ref().is_some_and(|a| a.job.tag == tag);
        if let Some(at) = self.apart.receiving.iter().position(is_it) {
            let place = self.apart.receiving.remove(at);
            self.give_back(place, false)?;
        }
        Ok(())
    }

    /// What an engine of one side does before it composes a batch.
    pub(super) fn begin_apart(&mut self) -> Result<()> {
        match self.config.side {
            Side::Whole | Side::Prefill => Ok(()),
            Side::Decode {
                reserved_tokens,
                extra_rows: _,
            } => {
                self.bring_back(reserved_tokens)?;
                if self.apart.retracted.is_empty() {
                    self.make_places(reserved_tokens)?;
                    self.look_for_arrivals();
                }
                self.join()
            }
        }
    }

    /// A prompt is computed: it is published, and stays until it was read.
    pub(super) fn hold(&mut self, place: usize) -> Result<()> {
        let Some(a) = &self.active[place] else {
            return Ok(());
        };
        let (tag, up_to) = (a.job.tag, a.computed);
        self.apart.held.insert(tag, place);
        self.publish(place, up_to)
    }

    /// Gives back the memory of prompts that were read, as every turn of the loop does at its end.
    ///
    /// # Errors
    /// If the cache refuses what it gave (it never does).
    pub fn let_go(&mut self) -> Result<()> {
        let mut later = Vec::new();
        for tag in std::mem::take(&mut self.apart.read) {
            if let Some(place) = self.apart.held.remove(&tag) {
                self.release_place(place)?;
                self.vacate(place);
            } else if self.is_under_way(tag) {
                // Its result is not known yet.
                later.push(tag);
            }
        }
        self.apart.read = later;
        Ok(())
    }

    fn is_under_way(&self, tag: u32) -> bool {
        self.active.iter().flatten().any(|a| a.job.tag == tag)
    }

    /// Tokens that are neither taken nor promised: to each request with room, or to the running one that may still need most
    /// after `retractable` tokens were pushed out (`None`: not asked). And whether the former is more.
    fn unpromised(&self, reserved_tokens: usize, retractable: Option<usize>) -> (i64, bool) {
        let active = self.running.len() + self.apart.num_placed();
        let promised = whole(reserved_tokens.saturating_mul(active));
        let longest = retractable.map_or(0, |retractable| {
            self.running
                .iter()
                .filter_map(|&place| self.active[place].as_ref())
                .map(|a| whole(a.job.clipped() + a.job.prompt) - whole(retractable))
                .max()
                .unwrap_or(0)
        });
        let free = whole(self.cache.slots().available_tokens());
        (free - promised.max(longest), promised >= longest)
    }

    /// Tokens of the pages that so many tokens take.
    fn paged(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(self.config.page_size)
    }

    fn rows_free(&self) -> usize {
        self.config.max_rows().saturating_sub(self.rows)
    }

    /// Requests that were pushed out come back, first those that went first, as long as there is room.
    fn bring_back(&mut self, reserved_tokens: usize) -> Result<()> {
        let mut resumed = 0;
        while let Some(job) = self.apart.retracted.front() {
            let fill = job.prompt + job.generated.saturating_sub(1);
            let needed = whole(self.paged(fill) + reserved_tokens);
            let (free, _) = self.unpromised(reserved_tokens, None);
            if self.rows_free() == 0 || needed > free {
                break;
            }
            let Some(job) = self.apart.retracted.pop_front() else {
                break;
            };
            let place = self.place(job, fill)?;
            self.apart.ready.push_back(place);
            resumed += 1;
        }
        // Where not even an engine with nobody in it has room, and those whose prompts came are not looked at: it stands still.
        if resumed == 0
            && self.running.is_empty()
            && self.pending.is_none()
            && self.apart.ready.is_empty()
            && self.apart.receiving.len() <= self.apart.arrived.len()
            && let Some(job) = self.apart.retracted.pop_front()
        {
            self.outcome.rejected.push(job.tag);
        }
        Ok(())
    }

    /// Requests get room for their prompts, first come, first served.
    fn make_places(&mut self, reserved_tokens: usize) -> Result<()> {
        let retractable: usize = self
            .running
            .iter()
            .filter_map(|&place| self.active[place].as_ref())
            .map(|a| a.job.known())
            .sum();
        self.apart.blocked = false;
        while let Some(job) = self.apart.unplaced.front() {
            if self.rows_free() == 0 {
                self.apart.blocked = true;
                break;
            }
            let least = whole(self.paged(job.prompt) + reserved_tokens);
            let most = whole(job.prompt + job.clipped()) - whole(retractable);
            let (free, by_promise) = self.unpromised(reserved_tokens, Some(retractable));
            if least.max(most) > free {
                // Decoding takes memory, and only what the longest one may still need shrinks with it.
                self.apart.blocked = least >= most && by_promise;
                let nobody =
                    self.running.is_empty() && self.apart.num_placed() == 0 && self.pending.is_none();
                if nobody && let Some(job) = self.apart.unplaced.pop_front() {
                    self.outcome.rejected.push(job.tag);
                    continue;
                }
                break;
            }
            let Some(job) = self.apart.unplaced.pop_front() else {
                break;
            };
            let (tag, fill) = (job.tag, job.prompt);
            let place = self.place(job, fill)?;
            self.apart.receiving.push(place);
            self.outcome.placed.push(tag);
        }
        Ok(())
    }

    /// Takes a row and slots for the first `fill` tokens of a request.
    fn place(&mut self, job: Job, fill: usize) -> Result<usize> {
        let mut kv = self
            .cache
            .lookup(Namespace(0), &self.blank[..fill], 0)
            .map_err(of_cache)?;
        self.cache.start(&mut kv).map_err(of_cache)?;
        self.rows += 1;
        self.cache.grow(&mut kv, fill).map_err(of_cache)?;
        self.admissions += 1;
        Ok(self.occupy(Active {
            job,
            serial: self.admissions,
            computed: fill,
            published: fill,
            kv: Some(kv),
            middle_chunks: 0,
            in_flight: 0,
            done: false,
            listed: true,
        }))
    }

    /// Prompts that have arrived are ready, in the order in which they got room.
    fn look_for_arrivals(&mut self) {
        if self.apart.arrived.is_empty() {
            return;
        }
        let (mut under_way, arrived) = (Vec::new(), &mut self.apart.arrived);
        for place in std::mem::take(&mut self.apart.receiving) {
            match &mut self.active[place] {
                Some(a) if arrived.remove(&a.job.tag) => {
                    a.job.generated = 1;
                    self.apart.ready.push_back(place);
                }
                _ => under_way.push(place),
            }
        }
        self.apart.receiving = under_way;
        self.apart.arrived.clear();
    }

    /// Requests that are ready join the batch as far as it may grow.
    fn join(&mut self) -> Result<()> {
        let free = self.config.max_running.saturating_sub(self.running.len());
        for _ in 0..free {
            let Some(place) = self.apart.ready.pop_front() else {
                break;
            };
            let Some(a) = &self.active[place] else {
                continue;
            };
            let ended = a.job.generated >= a.job.output();
            self.outcome.joined.push((a.job.tag, small(a.owned_len()), ended));
            if ended {
                self.release_place(place)?;
                self.vacate(place);
            } else {
                self.running.push(place);
            }
        }
        Ok(())
    }
}

/// Tokens as a number that may become negative.
fn whole(tokens: usize) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX / 4)
}
