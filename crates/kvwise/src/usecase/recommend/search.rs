//! The search over deployments: which candidate, with how many replicas, is best and holds the objectives.
//!
//! Pure: what a candidate holds is asked of a [`Bench`]. Candidates are looked at in waves of a fixed size, cheapest possible
//! first; a candidate whose cheapest form is worse than the best found is not tried. The answer does not depend on threads.

use rayon::prelude::*;

/// Candidates in one wave; fixed, so that the number of cores changes nothing.
const WAVE: usize = 16;

/// Says whether one replica of a candidate holds its share of the traffic.
pub trait Bench: Sync {
    /// Whether a replica that gets `share` of the traffic meets the objectives; a smaller share is never harder.
    fn holds(&self, candidate: usize, share: f64) -> bool;

    /// The same on all of the traffic's requests, where [`Bench::holds`] looks at the first ones only.
    fn holds_for_sure(&self, candidate: usize, share: f64) -> bool;
}

/// What the best deployment is best at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Least money an hour.
    Cost,
    /// Fewest GPUs.
    Gpus,
    /// Most traffic within the limits.
    Throughput,
}

/// What one candidate takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// GPUs of one replica.
    pub gpus: u64,
    /// Dollars an hour of one replica.
    pub usd_per_hour: f64,
}

/// What may be used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// GPUs of all replicas.
    pub gpus: u64,
    /// Dollars an hour.
    pub usd_per_hour: f64,
}

impl Limits {
    /// Replicas of a size that the limits allow.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive quotient, cut off at 2^20"
    )]
    fn replicas(&self, size: Size) -> u64 {
        let by_gpus = self.gpus / size.gpus.max(1);
        let by_price = if size.usd_per_hour > 0.0 {
            // A hair more than the quotient, so that a budget of exactly n replicas allows n.
            (self.usd_per_hour / size.usd_per_hour * (1.0 + 1e-12)).min(1_048_576.0) as u64
        } else {
            u64::MAX
        };
        by_gpus.min(by_price)
    }
}

/// A candidate that holds the objectives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Solution {
    /// The candidate.
    pub candidate: usize,
    /// Replicas.
    pub replicas: u64,
    /// Multiple of the traffic that it holds, at least 1; exactly 1 unless throughput was asked for.
    pub factor: f64,
}

/// How a candidate fared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    /// It holds the objectives.
    Holds(Solution),
    /// It does not hold them with all the replicas that the limits allow.
    Misses {
        /// That many.
        replicas: u64,
    },
    /// A single replica exceeds the limits.
    TooLarge,
    /// It cannot be better than what was found before, so it was not tried.
    NotTried,
}

/// Steps of the factor that is looked for under [`Objective::Throughput`].
const FACTOR_STEP: f64 = 1.05;
/// Largest factor that is looked for: 1.05^142 is about a thousand.
const FACTOR_STEPS: u32 = 142;

/// Smaller is better; ties go to fewer GPUs, less money, fewer replicas, the earlier candidate.
pub fn order(objective: Objective, sizes: &[Size], a: &Solution, b: &Solution) -> std::cmp::Ordering {
    let key = |s: &Solution| {
        let size = sizes[s.candidate];
        let n = s.replicas as f64;
        let (cost, gpus) = (size.usd_per_hour * n, size.gpus as f64 * n);
        match objective {
            Objective::Cost => [cost, gpus, n],
            Objective::Gpus => [gpus, cost, n],
            Objective::Throughput => [-s.factor, cost, gpus],
        }
    };
    let (ka, kb) = (key(a), key(b));
    ka.iter()
        .zip(&kb)
        .map(|(x, y)| x.total_cmp(y))
        .find(|o| o.is_ne())
        .unwrap_or_else(|| a.candidate.cmp(&b.candidate))
}

/// The solutions that are as good as the best in everything that the objective counts, the best itself first; at most `most`.
pub fn equals(
    objective: Objective,
    sizes: &[Size],
    fates: &[Fate],
    best: &Solution,
    most: usize,
) -> Vec<Solution> {
    let same = |s: &Solution| {
        let ordered = order(
            objective,
            sizes,
            &Solution {
                candidate: best.candidate,
                ..*s
            },
            best,
        );
        let size = |i: usize| sizes[i];
        ordered.is_eq()
            && size(s.candidate).gpus == size(best.candidate).gpus
            && size(s.candidate)
                .usd_per_hour
                .total_cmp(&size(best.candidate).usd_per_hour)
                .is_eq()
    };
    let others = fates.iter().filter_map(|fate| match fate {
        Fate::Holds(s) if s.candidate != best.candidate && same(s) => Some(*s),
        _ => None,
    });
    std::iter::once(*best).chain(others).take(most).collect()
}

/// How every candidate fares, and the best that holds on all requests.
///
/// The best of a first look is confirmed on all requests; where it does not hold, it gets more replicas (or less traffic) and goes
/// back in line, and candidates that were passed over for its sake are looked at.
pub fn search(
    objective: Objective,
    limits: Limits,
    sizes: &[Size],
    bench: &impl Bench,
) -> (Vec<Fate>, Option<Solution>) {
    let mut fates = vec![Fate::NotTried; sizes.len()];
    let mut queue: Vec<usize> = (0..sizes.len()).collect();
    queue.sort_by(|&a, &b| order(objective, sizes, &least(a), &least(b)));
    loop {
        look(objective, limits, sizes, &queue, bench, &mut fates);
        let Some(best) = best(objective, sizes, &fates) else {
            return (fates, None);
        };
        if bench.holds_for_sure(best.candidate, best.factor / best.replicas as f64) {
            return (fates, Some(best));
        }
        fates[best.candidate] = next(objective, limits, sizes, &best);
    }
}

/// The least that a candidate can take: one replica.
fn least(candidate: usize) -> Solution {
    Solution {
        candidate,
        replicas: 1,
        factor: f64::INFINITY,
    }
}

/// The best solution so far.
fn best(objective: Objective, sizes: &[Size], fates: &[Fate]) -> Option<Solution> {
    fates
        .iter()
        .filter_map(|fate| match fate {
            Fate::Holds(solution) => Some(*solution),
            _ => None,
        })
        .min_by(|a, b| order(objective, sizes, a, b))
}

/// Tries the candidates that were not tried and may be better than the best so far.
fn look(
    objective: Objective,
    limits: Limits,
    sizes: &[Size],
    queue: &[usize],
    bench: &impl Bench,
    fates: &mut [Fate],
) {
    let waiting: Vec<usize> = queue
        .iter()
        .copied()
        .filter(|&i| fates[i] == Fate::NotTried)
        .collect();
    let mut best = best(objective, sizes, fates);
    for wave in waiting.chunks(WAVE) {
        let bound = best;
        let hopeless = |i: usize| {
            objective != Objective::Throughput
                && bound.is_some_and(|best| order(objective, sizes, &least(i), &best).is_gt())
        };
        let tried: Vec<(usize, Fate)> = wave
            .par_iter()
            .filter(|&&i| !hopeless(i))
            .map(|&i| (i, one(objective, limits, sizes[i], i, bench)))
            .collect();
        for (i, fate) in tried {
            fates[i] = fate;
            if let Fate::Holds(solution) = fate
                && best.is_none_or(|b| order(objective, sizes, &solution, &b).is_lt())
            {
                best = Some(solution);
            }
        }
    }
}

/// One candidate alone.
fn one(objective: Objective, limits: Limits, size: Size, i: usize, bench: &impl Bench) -> Fate {
    let most = limits.replicas(size);
    if most == 0 {
        return Fate::TooLarge;
    }
    let holds = |replicas: u64, factor: f64| bench.holds(i, factor / replicas as f64);
    if objective == Objective::Throughput {
        if !holds(most, 1.0) {
            return Fate::Misses { replicas: most };
        }
        let factor = |step: u32| FACTOR_STEP.powi(i32::try_from(step).unwrap_or(i32::MAX));
        let (mut yes, mut no) = (0, FACTOR_STEPS + 1);
        while no - yes > 1 {
            let middle = yes + (no - yes) / 2;
            if holds(most, factor(middle)) {
                yes = middle;
            } else {
                no = middle;
            }
        }
        return Fate::Holds(Solution {
            candidate: i,
            replicas: most,
            factor: factor(yes),
        });
    }
    // One replica is often enough, and often all of them are not; else doubling, since most candidates need few.
    let (mut no, mut yes) = (0, 1);
    if !holds(1, 1.0) {
        if most == 1 || !holds(most, 1.0) {
            return Fate::Misses { replicas: most };
        }
        (no, yes) = (1, 2.min(most));
        while yes < most && !holds(yes, 1.0) {
            no = yes;
            yes = (yes * 2).min(most);
        }
    }
    while yes - no > 1 {
        let middle = no + (yes - no) / 2;
        if holds(middle, 1.0) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    Fate::Holds(Solution {
        candidate: i,
        replicas: yes,
        factor: 1.0,
    })
}

/// What is left to a solution that does not hold on all requests.
fn next(objective: Objective, limits: Limits, sizes: &[Size], solution: &Solution) -> Fate {
    let most = limits.replicas(sizes[solution.candidate]);
    match objective {
        Objective::Throughput if solution.factor / FACTOR_STEP >= 1.0 - 1e-9 => Fate::Holds(Solution {
            factor: solution.factor / FACTOR_STEP,
            ..*solution
        }),
        Objective::Cost | Objective::Gpus if solution.replicas < most => Fate::Holds(Solution {
            replicas: solution.replicas + 1,
            ..*solution
        }),
        _ => Fate::Misses { replicas: most },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Candidates that hold up to a share each; on all requests a little less.
    #[derive(Debug)]
    struct Shares(Vec<(f64, f64)>);

    impl Bench for Shares {
        fn holds(&self, candidate: usize, share: f64) -> bool {
            share <= self.0[candidate].0
        }
        fn holds_for_sure(&self, candidate: usize, share: f64) -> bool {
            share <= self.0[candidate].1
        }
    }

    /// Every candidate with every number of replicas.
    fn exhaustive(objective: Objective, limits: Limits, sizes: &[Size], bench: &Shares) -> Option<Solution> {
        let mut all = Vec::new();
        for (candidate, size) in sizes.iter().enumerate() {
            for replicas in 1..=limits.replicas(*size) {
                let share = 1.0 / replicas as f64;
                if bench.holds(candidate, share) && bench.holds_for_sure(candidate, share) {
                    all.push(Solution {
                        candidate,
                        replicas,
                        factor: 1.0,
                    });
                }
            }
        }
        all.into_iter().min_by(|a, b| order(objective, sizes, a, b))
    }

    fn space() -> impl Strategy<Value = (Vec<Size>, Shares)> {
        // Narrow prices and answers that change much on all requests, so that many candidates are passed over too early.
        let one = (1_u64..9, 8_u32..40, 0.0_f64..1.6, 0.2_f64..1.0);
        proptest::collection::vec(one, 1..120).prop_map(|rows| {
            let sizes = rows
                .iter()
                .map(|&(gpus, cents, ..)| Size {
                    gpus,
                    usd_per_hour: f64::from(cents) / 4.0 * gpus as f64,
                })
                .collect();
            (
                sizes,
                Shares(
                    rows.iter()
                        .map(|&(_, _, share, sure)| (share, share * sure))
                        .collect(),
                ),
            )
        })
    }

    proptest! {
        #[test]
        fn nothing_better_is_found_by_trying_everything(
            (sizes, bench) in space(), gpus in 1_u64..70, by_gpus: bool
        ) {
            let objective = if by_gpus { Objective::Gpus } else { Objective::Cost };
            let limits = Limits { gpus, usd_per_hour: f64::INFINITY };
            let (_, found) = search(objective, limits, &sizes, &bench);
            prop_assert_eq!(found, exhaustive(objective, limits, &sizes, &bench));
        }

        #[test]
        fn a_larger_budget_is_never_worse((sizes, bench) in space(), gpus in 1_u64..40, more in 0_u64..40) {
            let cost = |gpus: u64| {
                let limits = Limits { gpus, usd_per_hour: f64::INFINITY };
                let (_, found) = search(Objective::Cost, limits, &sizes, &bench);
                found.map_or(f64::INFINITY, |s| sizes[s.candidate].usd_per_hour * s.replicas as f64)
            };
            prop_assert!(cost(gpus + more) <= cost(gpus));
        }

        #[test]
        fn looser_objectives_are_never_dearer((sizes, bench) in space(), slack in 1.0_f64..2.0) {
            let limits = Limits { gpus: 64, usd_per_hour: f64::INFINITY };
            let cost = |bench: &Shares| {
                let (_, found) = search(Objective::Cost, limits, &sizes, bench);
                found.map_or(f64::INFINITY, |s| sizes[s.candidate].usd_per_hour * s.replicas as f64)
            };
            let looser = Shares(bench.0.iter().map(|&(a, b)| (a * slack, b * slack)).collect());
            prop_assert!(cost(&looser) <= cost(&bench));
        }

        #[test]
        fn the_most_traffic_stays_within_the_limits((sizes, bench) in space(), budget in 1.0_f64..300.0) {
            let limits = Limits { gpus: 64, usd_per_hour: budget };
            let (_, found) = search(Objective::Throughput, limits, &sizes, &bench);
            if let Some(s) = found {
                prop_assert!(sizes[s.candidate].usd_per_hour * s.replicas as f64 <= budget * (1.0 + 1e-9));
                prop_assert!(bench.holds_for_sure(s.candidate, s.factor / s.replicas as f64));
                prop_assert!(s.factor >= 1.0 - 1e-9);
            }
        }
    }

    #[test]
    fn equals_cost_the_same_and_take_as_many_gpus_and_replicas() {
        let size = |gpus, usd_per_hour| Size { gpus, usd_per_hour };
        let sizes = [
            size(2, 4.0),
            size(2, 4.0),
            size(1, 2.0),
            size(2, 5.0),
            size(2, 4.0),
        ];
        let held = |candidate, replicas| {
            Fate::Holds(Solution {
                candidate,
                replicas,
                factor: 1.0,
            })
        };
        let fates = [held(0, 1), held(1, 1), held(2, 2), held(3, 1), held(4, 2)];
        let best = Solution {
            candidate: 1,
            replicas: 1,
            factor: 1.0,
        };
        let found = equals(Objective::Cost, &sizes, &fates, &best, 9);
        let names: Vec<usize> = found.iter().map(|s| s.candidate).collect();
        assert_eq!(names, [1, 0]);
        assert_eq!(equals(Objective::Cost, &sizes, &fates, &best, 1).len(), 1);
    }

    #[test]
    fn what_was_passed_over_for_a_best_that_does_not_hold_is_looked_at() {
        // The first holds alone only in a first look, and two of it cost more than the last, which comes in another wave.
        let mut sizes = vec![
            Size {
                gpus: 1,
                usd_per_hour: 1.0,
            };
            20
        ];
        let mut shares = vec![(0.0, 0.0); 20];
        shares[0] = (1.0, 0.6);
        sizes[19].usd_per_hour = 1.5;
        shares[19] = (1.0, 1.0);
        let limits = Limits {
            gpus: 8,
            usd_per_hour: f64::INFINITY,
        };
        let (_, found) = search(Objective::Cost, limits, &sizes, &Shares(shares));
        let found = found.unwrap();
        assert_eq!((found.candidate, found.replicas), (19, 1));
    }

    #[test]
    fn a_candidate_that_cannot_win_is_not_tried() {
        let sizes: Vec<Size> = (1..=40)
            .map(|n| Size {
                gpus: n,
                usd_per_hour: n as f64,
            })
            .collect();
        let bench = Shares(vec![(2.0, 2.0); 40]);
        let limits = Limits {
            gpus: 64,
            usd_per_hour: f64::INFINITY,
        };
        let (fates, best) = search(Objective::Cost, limits, &sizes, &bench);
        assert_eq!(best.unwrap().candidate, 0);
        assert_eq!(fates[39], Fate::NotTried);
    }
}
