//! The waiting queue of SGLang's scheduler: its order, and what looking at it does to the cache.
//!
//! SGLang 0.5.23, `sglang/srt/managers/schedule_policy.py`, `SchedulePolicy.calc_priority`.

use std::cmp::Reverse;

use kvwise_cache::radix::{Namespace, TreePolicy};
use kvwise_core::Result;
use rustc_hash::FxHashSet;

use super::{SchedulePolicy, SteppedScheduler, fill};

/// Waiting requests beyond which prefixes are not looked up (`WAITING_QUEUE_PREFIX_MATCH_MAX`).
const LOOKED_UP: usize = 128;
/// Cached tokens up to which a request is compared with others in the queue, and equal tokens from which it waits for
/// them (`IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD`, `IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD`).
const SHARED_TOKENS: usize = 32;
/// Passes between two refreshes of what waiting requests have cached (`WAITING_PREFIX_REFRESH_INTERVAL`).
const REFRESH_PASSES: u64 = 32;

impl SteppedScheduler<'_> {
    /// Puts the queue in order. Prefixes that waiting requests will use count as used: with `lpm` at every pass, else
    /// every 32nd, first in line last, so that they outlive what nobody waits for.
    pub(super) fn order_waiting(&mut self) -> Result<()> {
        let cached = self.feed.is_some();
        match self.config.schedule {
            SchedulePolicy::Lpm if cached && self.waiting.len() <= LOOKED_UP => {
                return self.longest_prefix_first();
            }
            SchedulePolicy::Lof => {
                self.waiting
                    .make_contiguous()
                    .sort_by_key(|job| Reverse(job.output));
            }
            SchedulePolicy::Lpm | SchedulePolicy::Fcfs => {}
        }
        if cached && !self.waiting.is_empty() && matches!(self.config.eviction, TreePolicy::Lru) {
            let due = self.refreshes.is_multiple_of(REFRESH_PASSES);
            self.refreshes += 1;
            if due {
                for i in (0..self.waiting.len().min(LOOKED_UP)).rev() {
                    self.touch(i)?;
                }
            }
        }
        Ok(())
    }

    /// Cached tokens of a waiting request, all of its tokens looked up; the prefix counts as used.
    fn touch(&mut self, position: usize) -> Result<usize> {
        let job = &mut self.waiting[position];
        fill(self.feed.as_mut(), job)?;
        let known = job.known();
        Ok(job.content.as_ref().map_or(0, |r| {
            self.cache
                .touch(r.namespace, &r.tokens[..known.min(r.tokens.len())])
        }))
    }

    /// Longest cached prefix first. Of several requests that begin alike and have little cached, all but the first go to
    /// the end, where the first's prefix will serve them.
    fn longest_prefix_first(&mut self) -> Result<()> {
        let mut beginnings: FxHashSet<(Namespace, Vec<i64>)> = FxHashSet::default();
        let mut keys = Vec::with_capacity(self.waiting.len());
        for i in 0..self.waiting.len() {
            let matched = self.touch(i)?;
            let job = &self.waiting[i];
            let mut last = false;
            if matched <= SHARED_TOKENS
                && let Some(r) = &job.content
                && let Some(beginning) = r.tokens[..job.known().min(r.tokens.len())].get(..SHARED_TOKENS)
            {
                last = !beginnings.insert((r.namespace, beginning.to_vec()));
            }
            keys.push((last, Reverse(if last { 0 } else { matched.min(job.known() - 1) })));
        }
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        let mut jobs: Vec<Option<_>> = std::mem::take(&mut self.waiting).into_iter().map(Some).collect();
        self.waiting = order.into_iter().filter_map(|i| jobs[i].take()).collect();
        Ok(())
    }
}
