//! More important requests take the memory of less important ones.
//!
//! SGLang 0.5.23, `sglang/srt/managers/schedule_policy.py` (`PrefillAdder.preempt_to_schedule`).

use kvwise_core::Result;

use super::gate::Budget;
use super::job::Job;
use super::{PriorityScheduling, SteppedScheduler};
use crate::sched::sglang::RETRACT_DECODE_STEPS;

impl SteppedScheduler<'_> {
    /// Whether a batch that is full may make room for important requests, and by which rules.
    pub(super) fn preemption(&self) -> Option<(PriorityScheduling, i64)> {
        let priorities = self.config.priorities?;
        Some((priorities, priorities.preemption_threshold?))
    }

    /// Takes running requests out until `wanted` has room, the least important and latest ones first; whether it did. They are
    /// added to `lost`, to wait again when the batch is composed.
    ///
    /// What `wanted` needs is weighed as SGLang does: by its tokens and cached tokens at its last turn at the gate, which for a
    /// new request is nothing but its output.
    pub(super) fn preempt_for(
        &mut self,
        wanted: &Job,
        budget: &mut Budget,
        lost: &mut Vec<Job>,
    ) -> Result<bool> {
        let Some((priorities, threshold)) = self.preemption() else {
            return Ok(false);
        };
        let mut candidates: Vec<(i128, u64, usize)> = self
            .running
            .iter()
            .filter_map(|&place| Some((place, self.active[place].as_ref()?)))
            .map(|(place, a)| (priorities.rank(a.job.priority), a.job.entered, place))
            .collect();
        candidates.sort_unstable_by_key(|&(rank, entered, _)| std::cmp::Reverse((rank, entered)));
        let (tokens, cached) = wanted.weighed;
        let mut missing = (tokens + wanted.clipped()) as f64
            - cached as f64
            - (self.cache.obtainable_tokens() as f64 - budget.total);
        let own = priorities.rank(wanted.priority);
        let mut chosen = Vec::new();
        for (rank, _, place) in candidates {
            if rank - own <= i128::from(threshold) {
                break;
            }
            chosen.push(place);
            missing -= self.expected_tokens(place);
            if missing <= 0.0 {
                break;
            }
        }
        if chosen.is_empty() || missing > 0.0 {
            return Ok(false);
        }
        let all = self.running.len();
        let mut kept = Vec::with_capacity(all);
        let mut released = 0;
        for place in std::mem::take(&mut self.running) {
            if !chosen.contains(&place) {
                kept.push(place);
                continue;
            }
            budget.total -= self.expected_tokens(place);
            released += 1;
            if let Some(job) = self.give_back(place, true)? {
                self.preemptions += 1;
                lost.push(job);
            }
            self.make_room((all - released) * RETRACT_DECODE_STEPS);
        }
        self.running = kept;
        Ok(true)
    }

    /// Tokens that the gate expects a running request to generate yet.
    pub(super) fn expected_tokens(&self, place: usize) -> f64 {
        self.active[place]
            .as_ref()
            .map_or(0.0, |a| a.job.to_come() as f64 * self.ratio)
    }
}
