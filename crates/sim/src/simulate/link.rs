//! Links that carry keys and values: one transfer after the other, in the order in which they begin.

/// Speed of a link in one direction.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LinkSpeed {
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Time that each transfer takes besides, seconds.
    pub latency_s: f64,
}

/// One direction of a link. A transfer waits for those before it; its latency overlaps with the next one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Link {
    speed: LinkSpeed,
    free_s: f64,
    busy_s: f64,
    bytes: u64,
}

impl Link {
    pub(super) fn new(speed: LinkSpeed) -> Self {
        Self {
            speed,
            free_s: 0.0,
            busy_s: 0.0,
            bytes: 0,
        }
    }

    /// Sends `bytes` at `at_s`; returns when they are there.
    pub(super) fn send(&mut self, at_s: f64, bytes: u64) -> f64 {
        let seconds = bytes as f64 / self.speed.bytes_per_s;
        self.occupy(at_s.max(self.free_s), seconds, bytes)
    }

    /// Sends over two ends at once: from one machine's port to another's.
    pub(super) fn send_between(from: &mut Self, to: &mut Self, at_s: f64, bytes: u64) -> f64 {
        let start = at_s.max(from.free_s).max(to.free_s);
        let seconds = bytes as f64 / from.speed.bytes_per_s.min(to.speed.bytes_per_s);
        from.occupy(start, seconds, bytes);
        to.occupy(start, seconds, bytes)
    }

    fn occupy(&mut self, start_s: f64, seconds: f64, bytes: u64) -> f64 {
        self.free_s = start_s + seconds;
        self.busy_s += seconds;
        self.bytes = self.bytes.saturating_add(bytes);
        self.free_s + self.speed.latency_s
    }

    /// Bytes sent so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Time in which something was on the way, seconds.
    pub(super) fn busy_s(&self) -> f64 {
        self.busy_s
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn speed(bytes_per_s: f64, latency_s: f64) -> LinkSpeed {
        LinkSpeed {
            bytes_per_s,
            latency_s,
        }
    }

    proptest! {
        #[test]
        fn transfers_do_not_overlap_and_the_link_never_rests_while_one_waits(
            jobs in prop::collection::vec((0.0_f64..2.0, 0_u64..5000), 1..40),
        ) {
            let mut link = Link::new(speed(1000.0, 0.5));
            let (mut now, mut free) = (0.0_f64, 0.0_f64);
            for (gap, bytes) in jobs {
                now += gap;
                let end = link.send(now, bytes);
                // The naive twin: begins when asked for or when the one before is over, whichever is later.
                free = now.max(free) + bytes as f64 / 1000.0;
                prop_assert!((end - free - 0.5).abs() < 1e-9);
            }
        }

        #[test]
        fn a_faster_link_is_never_later(
            jobs in prop::collection::vec((0.0_f64..2.0, 0_u64..5000), 1..40), factor in 1.0_f64..10.0,
        ) {
            let (mut slow, mut fast) = (Link::new(speed(1000.0, 0.1)), Link::new(speed(1000.0 * factor, 0.1)));
            let mut now = 0.0;
            for (gap, bytes) in jobs {
                now += gap;
                prop_assert!(fast.send(now, bytes) <= slow.send(now, bytes) + 1e-12);
            }
        }

        #[test]
        fn two_ends_carry_one_transfer_at_a_time_each(
            jobs in prop::collection::vec((0.0_f64..2.0, 0_usize..3, 0_usize..2, 1_u64..5000), 1..40),
        ) {
            let mut from = [Link::new(speed(1000.0, 0.0)); 3];
            let mut to = [Link::new(speed(500.0, 0.0)); 2];
            let mut now = 0.0;
            let mut spans: Vec<(f64, f64, usize, usize)> = Vec::new();
            for (gap, a, b, bytes) in jobs {
                now += gap;
                let end = Link::send_between(&mut from[a], &mut to[b], now, bytes);
                let start = end - bytes as f64 / 500.0;
                prop_assert!(start >= now - 1e-9);
                for &(s, e, x, y) in &spans {
                    if x == a || y == b {
                        prop_assert!(start >= e - 1e-9 || end <= s + 1e-9);
                    }
                }
                spans.push((start, end, a, b));
            }
        }
    }
}
