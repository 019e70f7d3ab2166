//! Raw counters of servers that restart, made into totals that only grow.
//!
//! A server's counter starts at zero with its process. What the recording needs is how much was added since the last
//! scrape, without inventing anything: an increase seen twice, or one from before the recording began, would be a
//! false peak. Rules, for each process behind the address (told apart by `process_start_time_seconds`):
//!
//! 1. The first scrape of the recording gives the base: the total starts at the raw value.
//! 2. A raw value that grew adds the difference.
//! 3. A process that started after the previous scrape adds its whole raw value (it counted from zero: a restart).
//! 4. A process that started before the recording's previous scrape and is met only now adds nothing at first: several
//!    servers share the address, and what this one did earlier is not known.
//! 5. A raw value that fell within one process adds nothing, and the highest value seen stays the base. Only where the
//!    server publishes no start time is a fall taken for a restart, as Prometheus' own `increase` does.

/// State of the counters of one engine instance.
#[derive(Debug, Clone)]
pub struct Totals<const N: usize> {
    sums: [Option<f64>; N],
    processes: Vec<Process<N>>,
    last_time_s: Option<f64>,
}

#[derive(Debug, Clone)]
struct Process<const N: usize> {
    start_s: Option<f64>,
    raw: [Option<f64>; N],
}

/// What an update found besides numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// The server was started anew.
    Restart,
    /// A second process answers at the same address.
    AnotherServer,
    /// Counter of this index fell although the process is the same.
    Fell(usize),
}

/// Processes remembered behind one address: more means that it restarts all the time, and the oldest are forgotten.
const MAX_PROCESSES: usize = 16;

impl<const N: usize> Default for Totals<N> {
    fn default() -> Self {
        Self {
            sums: [None; N],
            processes: Vec::new(),
            last_time_s: None,
        }
    }
}

impl<const N: usize> Totals<N> {
    /// Takes one scrape and returns the totals and what was noticed.
    pub fn update(
        &mut self,
        time_s: f64,
        start_s: Option<f64>,
        raw: &[Option<f64>; N],
    ) -> ([Option<f64>; N], Vec<Finding>) {
        let mut findings = Vec::new();
        let known = self.processes.iter().position(|p| p.start_s == start_s);
        let first = self.processes.is_empty();
        if let Some(index) = known {
            let process = &mut self.processes[index];
            for (i, now) in raw.iter().enumerate() {
                let Some(now) = *now else { continue };
                let before = process.raw[i];
                let added = match before {
                    None => {
                        // a family that appears later (vLLM creates some on first use) counted from zero meanwhile,
                        // but a family that a proxy dropped once did not: without an earlier value nothing is added
                        self.sums[i].map_or(now, |_| 0.0)
                    }
                    Some(before) if now >= before => now - before,
                    Some(_) if start_s.is_none() => {
                        if !findings.contains(&Finding::Restart) {
                            findings.push(Finding::Restart);
                        }
                        now
                    }
                    Some(_) => {
                        findings.push(Finding::Fell(i));
                        continue;
                    }
                };
                process.raw[i] = Some(now);
                self.sums[i] = Some(self.sums[i].unwrap_or(0.0) + added);
            }
        } else {
            // started after the last scrape: counted from zero, all of it happened since
            let fresh =
                matches!((start_s, self.last_time_s), (Some(start), Some(last)) if start > last - 1.0);
            for (i, now) in raw.iter().enumerate() {
                let Some(now) = *now else { continue };
                let total = self.sums[i].unwrap_or(0.0);
                self.sums[i] = Some(if first || fresh { total + now } else { total });
            }
            if !first {
                findings.push(if fresh {
                    Finding::Restart
                } else {
                    Finding::AnotherServer
                });
            }
            if self.processes.len() >= MAX_PROCESSES {
                self.processes.remove(0);
            }
            self.processes.push(Process { start_s, raw: *raw });
        }
        self.last_time_s = Some(time_s);
        (self.sums, findings)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "whole numbers, counted exactly")]
    use super::*;
    use proptest::prelude::*;

    fn total(t: &mut Totals<1>, time: f64, start: Option<f64>, raw: f64) -> (f64, Vec<Finding>) {
        let (totals, findings) = t.update(time, start, &[Some(raw)]);
        (totals[0].expect("a total"), findings)
    }

    #[test]
    fn a_restart_adds_what_the_new_process_counted_and_no_more() {
        let mut t = Totals::<1>::default();
        assert_eq!(total(&mut t, 100.0, Some(10.0), 1000.0), (1000.0, vec![]));
        assert_eq!(total(&mut t, 101.0, Some(10.0), 1010.0), (1010.0, vec![]));
        assert_eq!(
            total(&mut t, 140.0, Some(120.0), 7.0),
            (1017.0, vec![Finding::Restart])
        );
        assert_eq!(total(&mut t, 141.0, Some(120.0), 9.0), (1019.0, vec![]));
    }

    #[test]
    fn two_servers_behind_one_address_give_no_peaks() {
        let mut t = Totals::<1>::default();
        total(&mut t, 100.0, Some(10.0), 1000.0);
        let (sum, findings) = total(&mut t, 101.0, Some(20.0), 5_000_000.0);
        assert_eq!((sum, findings), (1000.0, vec![Finding::AnotherServer]));
        assert_eq!(total(&mut t, 102.0, Some(10.0), 1005.0).0, 1005.0);
        assert_eq!(total(&mut t, 103.0, Some(20.0), 5_000_003.0).0, 1008.0);
    }

    #[test]
    fn a_counter_that_falls_without_a_restart_adds_nothing() {
        let mut t = Totals::<1>::default();
        total(&mut t, 1.0, Some(0.0), 100.0);
        assert_eq!(
            total(&mut t, 2.0, Some(0.0), 40.0),
            (100.0, vec![Finding::Fell(0)])
        );
        assert_eq!(total(&mut t, 3.0, Some(0.0), 100.0), (100.0, vec![]));
        assert_eq!(total(&mut t, 4.0, Some(0.0), 103.0), (103.0, vec![]));
    }

    #[test]
    fn without_a_start_time_a_fall_is_a_restart() {
        let mut t = Totals::<1>::default();
        total(&mut t, 1.0, None, 100.0);
        assert_eq!(total(&mut t, 2.0, None, 4.0), (104.0, vec![Finding::Restart]));
    }

    #[test]
    fn a_family_that_is_missing_for_a_while_makes_no_peak() {
        let mut t = Totals::<1>::default();
        total(&mut t, 1.0, Some(0.0), 100.0);
        let (totals, _) = t.update(2.0, Some(0.0), &[None]);
        assert_eq!(totals, [Some(100.0)]);
        assert_eq!(total(&mut t, 3.0, Some(0.0), 110.0).0, 110.0);
    }

    proptest! {
        /// 100 scrapes of a server that works, restarts and is missed at random: the total is exactly the work that
        /// was visible, never more.
        #[test]
        fn totals_are_exactly_the_visible_work(
            script in prop::collection::vec((0u32..50, 0u8..10), 1..100),
        ) {
            let mut t = Totals::<1>::default();
            let (mut raw, mut start, mut unseen, mut expected) = (500.0, 0.0, 0.0, None);
            for (second, (work, fate)) in script.iter().enumerate() {
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let now = 100.0 + second as f64 * 10.0;
                raw += f64::from(*work);
                unseen += f64::from(*work);
                match fate {
                    0 => {
                        // a restart: what was counted since the last good scrape is gone for ever
                        unseen = 0.0;
                        raw = 0.0;
                        start = now - 2.0;
                        continue;
                    }
                    1 => continue, // a failed scrape
                    _ => {}
                }
                let (totals, _) = t.update(now, Some(start), &[Some(raw)]);
                let total = expected.map_or(raw, |before: f64| before + unseen);
                prop_assert_eq!(totals[0], Some(total));
                expected = Some(total);
                unseen = 0.0;
            }
        }
    }
}
