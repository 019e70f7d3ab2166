//! The waiting queue of SGLang's scheduler: its order, and what looking at it does to the cache.
//!
//! SGLang 0.5.23, `sglang/srt/managers/schedule_policy.py`, `SchedulePolicy.calc_priority`.

use std::cmp::Reverse;

use kvwise_cache::radix::{Match, Namespace, TreePolicy};
use kvwise_core::Result;
use rustc_hash::FxHashSet;

use super::job::Job;
use super::{SchedulePolicy, SteppedScheduler, fill};
use crate::sched::sglang::of_cache;

/// Waiting requests beyond which prefixes are not looked up (`WAITING_QUEUE_PREFIX_MATCH_MAX`).
const LOOKED_UP: usize = 128;
/// Cached tokens up to which a request is compared with others in the queue, and equal tokens from which it waits for
/// them (`IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD`, `IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD`).
const SHARED_TOKENS: usize = 32;
/// Passes between two refreshes of what waiting requests have cached (`WAITING_PREFIX_REFRESH_INTERVAL`).
const REFRESH_PASSES: u64 = 32;

impl SteppedScheduler<'_> {
    /// A request comes to the end of the queue, for the first time or again.
    pub(super) fn enter(&mut self, mut job: Job) {
        self.entries += 1;
        job.entered = self.entries;
        job.entered_after_tokens = self.prefilled_tokens;
        self.waiting.push_back(job);
    }

    /// Puts the queue in order. Prefixes that waiting requests will use count as used: by policies that look at the cache at
    /// every pass, else every 32nd, first in line last, so that they outlive what nobody waits for.
    pub(super) fn order_waiting(&mut self) -> Result<()> {
        let schedule = self.config.schedule;
        let short = self.waiting.len() <= LOOKED_UP;
        match schedule {
            SchedulePolicy::Lpm | SchedulePolicy::Hrrn if self.feed.is_some() && short => {
                return self.order_by_cache();
            }
            SchedulePolicy::DfsWeight | SchedulePolicy::ShortestPrefillFirst if self.feed.is_some() => {
                return self.order_by_cache();
            }
            SchedulePolicy::Fcfs | SchedulePolicy::Lof => self.order_by_priority(),
            _ => {}
        }
        if self.feed.is_some() && !self.waiting.is_empty() && matches!(self.config.eviction, TreePolicy::Lru)
        {
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

    /// The most important first, if priorities count; then the longest output, or who came first.
    fn order_by_priority(&mut self) {
        let rank = |job: &Job| self.config.priorities.map_or(0, |p| p.rank(job.priority));
        let longest = self.config.schedule == SchedulePolicy::Lof;
        let queue = self.waiting.make_contiguous();
        if longest {
            queue.sort_by_key(|job| (rank(job), Reverse(job.asked)));
        } else if self.config.priorities.is_some() {
            queue.sort_by_key(|job| (rank(job), job.entered));
        }
    }

    /// What a waiting request has cached, all of its tokens looked up; the prefix counts as used.
    fn touch(&mut self, position: usize) -> Result<Match> {
        let job = &mut self.waiting[position];
        fill(self.feed.as_mut(), job)?;
        let known = job.known();
        Ok(match &job.content {
            Some(r) => self
                .cache
                .touch(r.namespace, &r.tokens[..known.min(r.tokens.len())]),
            None => self.cache.touch(Namespace::DEFAULT, &[]),
        })
    }

    /// By what is cached. Of several requests that begin alike and have little cached, all but the first go to the end (but
    /// with `dfs-weight`), where the first's prefix will serve them.
    fn order_by_cache(&mut self) -> Result<()> {
        let mut beginnings: FxHashSet<(Namespace, Vec<i64>)> = FxHashSet::default();
        let (mut last, mut nodes) = (Vec::new(), Vec::new());
        for i in 0..self.waiting.len() {
            let found = self.touch(i)?;
            let job = &mut self.waiting[i];
            job.matched = found.len.min(job.known() - 1);
            let mut defer = false;
            if found.len <= SHARED_TOKENS
                && let Some(r) = &job.content
                && let Some(beginning) = r.tokens[..job.known().min(r.tokens.len())].get(..SHARED_TOKENS)
            {
                defer = !beginnings.insert((r.namespace, beginning.to_vec()));
            }
            last.push(defer);
            nodes.push(found.node);
        }
        let jobs = &self.waiting;
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        match self.config.schedule {
            SchedulePolicy::DfsWeight => {
                order = self.cache.tree().order_by_weight(&nodes).map_err(of_cache)?;
            }
            SchedulePolicy::Hrrn => {
                let ratio = |i: usize| self.response_ratio(&jobs[i]);
                order.sort_by(|&a, &b| {
                    last[a]
                        .cmp(&last[b])
                        .then_with(|| {
                            if last[a] {
                                std::cmp::Ordering::Equal
                            } else {
                                ratio(b).total_cmp(&ratio(a))
                            }
                        })
                        .then_with(|| {
                            let id = |i: usize| self.trace.id(jobs[i].tag as usize);
                            id(a).cmp(&id(b))
                        })
                });
            }
            SchedulePolicy::ShortestPrefillFirst => order.sort_by_key(|&i| {
                let work = (jobs[i].known() - jobs[i].matched).max(1);
                (last[i], work, jobs[i].entered)
            }),
            _ => order.sort_by_key(|&i| (last[i], Reverse(if last[i] { 0 } else { jobs[i].matched }))),
        }
        let mut jobs: Vec<Option<Job>> = std::mem::take(&mut self.waiting).into_iter().map(Some).collect();
        self.waiting = order.into_iter().filter_map(|i| jobs[i].take()).collect();
        Ok(())
    }

    /// Prompt tokens prefilled since the request came, a token of its prompt that is not cached.
    fn response_ratio(&self, job: &Job) -> f64 {
        match job.prompt.saturating_sub(job.matched) {
            0 => f64::INFINITY,
            uncached => (self.prefilled_tokens - job.entered_after_tokens) as f64 / uncached as f64,
        }
    }
}
