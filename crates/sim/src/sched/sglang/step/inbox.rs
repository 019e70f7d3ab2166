//! How often the loop looks for new requests (`--scheduler-recv-interval`).
//!
//! SGLang 0.5.23, `sglang/srt/managers/scheduler_components/recv_skipper.py`: every turn of the loop counts by what the
//! turn before launched, and the loop looks when the count reaches the interval. The weights are the defaults of
//! `SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_*` (`sglang/srt/environ.py`).

use std::collections::VecDeque;

use super::job::Job;

/// Largest interval: an idle loop turns as often before it sees a request.
pub const MAX_RECV_INTERVAL: u32 = 100_000;

/// What the last turn of the loop launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launched {
    Nothing,
    Decode,
    Prefill,
}

impl Launched {
    fn weight(self) -> u32 {
        match self {
            Self::Nothing | Self::Decode => 1,
            Self::Prefill => 1000,
        }
    }
}

/// Requests that have reached the server, and the loop has not looked for yet.
pub(super) struct Inbox {
    interval: u32,
    count: u32,
    arrived: VecDeque<Job>,
}

impl Inbox {
    pub(super) fn new(interval: u32) -> Self {
        Self {
            interval,
            count: 0,
            arrived: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.arrived.len()
    }

    /// A request arrives; it is seen when the loop looks next.
    pub(super) fn add(&mut self, job: Job) {
        self.arrived.push_back(job);
    }

    /// A turn of the loop begins; if it looks, those who have arrived come out.
    pub(super) fn turn(&mut self, last: Launched) -> VecDeque<Job> {
        if self.interval > 1 {
            self.count += last.weight();
            if self.count < self.interval {
                return VecDeque::new();
            }
            self.count = 0;
        }
        std::mem::take(&mut self.arrived)
    }

    /// Coming turns, each after a decode step, in which the loop sees nobody.
    pub(super) fn unseen_turns(&self) -> u32 {
        if self.arrived.is_empty() {
            u32::MAX
        } else {
            (self.interval - self.count).saturating_sub(1)
        }
    }

    /// Lets turns after decode steps pass, of which none sees anybody.
    pub(super) fn skip(&mut self, turns: u64) {
        if self.interval > 1 {
            let count = (u64::from(self.count) + turns) % u64::from(self.interval);
            #[expect(clippy::cast_possible_truncation, reason = "less than the interval")]
            {
                self.count = count as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(tag: u32) -> Job {
        Job {
            tag,
            prompt: 1,
            asked: 1,
            ..Job::default()
        }
    }

    #[test]
    fn an_interval_of_one_looks_every_turn_and_a_prefill_makes_the_next_turn_look() {
        for (interval, last, seen_after) in [
            (1, Launched::Decode, 1),
            (30, Launched::Decode, 30),
            (30, Launched::Nothing, 30),
            (30, Launched::Prefill, 1),
            (1920, Launched::Prefill, 2),
        ] {
            let mut inbox = Inbox::new(interval);
            inbox.add(job(7));
            let (mut seen, mut turns) = (0, 0);
            while seen == 0 {
                seen = inbox.turn(last).len();
                turns += 1;
            }
            assert_eq!(
                (turns, inbox.len()),
                (seen_after, 0),
                "interval {interval} after {last:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn skipped_turns_count_as_the_same_turns_taken_one_by_one(
            interval in 1_u32..40, before in 0_u32..50, waiting: bool, ahead in 0_u32..60
        ) {
            let (mut skipped, mut taken) = (Inbox::new(interval), Inbox::new(interval));
            for inbox in [&mut skipped, &mut taken] {
                for _ in 0..before {
                    inbox.turn(Launched::Decode);
                }
                if waiting {
                    inbox.add(job(0));
                }
            }
            let quiet = ahead.min(skipped.unseen_turns());
            skipped.skip(quiet.into());
            for _ in 0..quiet {
                prop_assert!(taken.turn(Launched::Decode).is_empty());
            }
            prop_assert_eq!(skipped.count, taken.count);
            prop_assert_eq!(skipped.len(), taken.len());
        }
    }
}
