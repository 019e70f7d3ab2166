//! Site calibration: what logs of the user's own servers say about the terms that are estimated.
//!
//! An [`Observation`] is one start of a real server beside the plan for it. Logs of the same deployment (model, GPU,
//! engine, release and ranks) correct the sum of all memory that is not KV cache by the difference that was seen; logs
//! of another model of the same family scale the estimated part. The interval that remains is the spread of the
//! observations, but never less than what identical starts differ by: 11 starts of one deployment on unified-memory
//! machines spanned 0.9 % of the memory (46.27 to 47.37 of 121.63 GiB).

use serde::{Deserialize, Serialize};

use super::budget::Spread;
use super::ledger::{Basis, Signed, Term};
use crate::units::MIB;

/// Identical starts differ by this share of the GPU's memory to each side, in thousandths.
const SPREAD_PERMILLE: u64 = 5;
/// The same where host and GPU share the memory.
const SPREAD_UNIFIED_PERMILLE: u64 = 10;
/// And by at least this.
const SPREAD_FLOOR: u64 = 64 * MIB;
/// Scales of another model's estimate that are believed, in thousandths.
const RATIOS: (u64, u64) = (200, 5000);

/// One start of a real server, beside what was planned for it (without any calibration). Bytes are of the tightest rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// What it was measured on and with.
    pub site: Site,
    /// What the engine allowed itself.
    pub budget_bytes: u64,
    /// What was left for the KV cache; negative where weights and overhead were larger than the budget.
    pub available_bytes: i64,
    /// Weights as planned.
    pub planned_weights_bytes: u64,
    /// Everything else that is taken off the budget, as planned.
    pub planned_overhead_bytes: u64,
    /// Memory of the GPU as the engine sees it.
    pub gpu_bytes: u64,
    /// Whether GPU and host share it.
    #[serde(default)]
    pub unified: bool,
}

/// What an observation holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// GPU by its catalogue name.
    pub gpu: String,
    /// Engine.
    pub engine: String,
    /// Release: major and minor number of the engine (`0.32`).
    pub engine_version: String,
    /// Model family: the class that the engine serves it with.
    pub family: String,
    /// Model.
    pub model: String,
    /// `--tensor-parallel-size`.
    pub tensor_parallel_size: u64,
    /// `--pipeline-parallel-size`.
    pub pipeline_parallel_size: u64,
    /// Method of speculative decoding, whose drafter takes memory too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculative: Option<String>,
    /// Quantisation given by flag, where the checkpoint does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
}

impl Site {
    /// Whether both are the same deployment: everything is equal.
    fn is_deployment(&self, other: &Self) -> bool {
        self == other
    }

    /// Whether both are the same kind of machine, release and family.
    fn is_family(&self, other: &Self) -> bool {
        self.gpu == other.gpu
            && self.engine == other.engine
            && self.engine_version == other.engine_version
            && self.family == other.family
    }
}

impl Observation {
    /// How much more than planned was taken off the budget.
    fn offset_bytes(&self) -> i64 {
        let actual = i128::from(self.budget_bytes) - i128::from(self.available_bytes);
        let planned = i128::from(self.planned_weights_bytes) + i128::from(self.planned_overhead_bytes);
        i64::try_from(actual - planned).unwrap_or(if actual > planned { i64::MAX } else { i64::MIN })
    }

    /// Everything but planned weights and KV cache, in thousandths of what was planned for it.
    fn ratio_permille(&self) -> Option<u64> {
        let overhead = i128::from(self.planned_overhead_bytes) + i128::from(self.offset_bytes());
        let permille = overhead.checked_mul(1000)? / i128::from(self.planned_overhead_bytes.max(1));
        Some(
            u64::try_from(permille.max(0))
                .unwrap_or(u64::MAX)
                .clamp(RATIOS.0, RATIOS.1),
        )
    }

    fn spread_floor(&self) -> u64 {
        let permille = if self.unified {
            SPREAD_UNIFIED_PERMILLE
        } else {
            SPREAD_PERMILLE
        };
        (self.gpu_bytes / 1000 * permille).max(SPREAD_FLOOR)
    }
}

/// What a plan is corrected by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Correction {
    /// Logs of this very deployment.
    Deployment {
        /// Logs it rests on.
        logs: u64,
        /// Added to the memory besides the KV cache.
        offset_bytes: i64,
        /// What remains uncertain, to each side.
        spread_bytes: u64,
    },
    /// Logs of other models of the family, on the same GPU and release.
    Family {
        /// Logs it rests on.
        logs: u64,
        /// The estimated terms are multiplied by this, in thousandths.
        ratio_permille: u64,
    },
}

/// The middle of sorted values (the mean of both middle ones).
fn median(values: &mut [i64]) -> Option<i64> {
    values.sort_unstable();
    let n = values.len();
    let (a, b) = (*values.get(n.checked_sub(1)? / 2)?, *values.get(n / 2)?);
    i64::try_from(i128::midpoint(i128::from(a), i128::from(b))).ok()
}

impl Correction {
    /// What the observations say about a site; `None` if none of them is of this machine, release and family.
    pub fn choose(observations: &[Observation], site: &Site) -> Option<Self> {
        let own: Vec<&Observation> = observations
            .iter()
            .filter(|o| o.site.is_deployment(site))
            .collect();
        let mut offsets: Vec<i64> = own.iter().map(|o| o.offset_bytes()).collect();
        if let Some(offset_bytes) = median(&mut offsets) {
            let widest = offsets
                .iter()
                .map(|o| o.abs_diff(offset_bytes))
                .max()
                .unwrap_or(0);
            let floor = own.iter().map(|o| o.spread_floor()).max().unwrap_or(SPREAD_FLOOR);
            return Some(Self::Deployment {
                logs: own.len() as u64,
                offset_bytes,
                spread_bytes: widest.saturating_add(widest / 2).max(floor),
            });
        }
        let mut ratios: Vec<i64> = observations
            .iter()
            .filter(|o| o.site.is_family(site))
            .filter_map(Observation::ratio_permille)
            .filter_map(|ratio| i64::try_from(ratio).ok())
            .collect();
        let logs = ratios.len() as u64;
        median(&mut ratios).map(|ratio| Self::Family {
            logs,
            ratio_permille: u64::try_from(ratio).unwrap_or(1000),
        })
    }

    /// Corrects the estimated terms, and with them the distribution of what is taken off the budget.
    #[must_use]
    pub fn apply(self, terms: &mut [Term], taken: Spread) -> Spread {
        match self {
            Self::Deployment {
                logs,
                offset_bytes,
                spread_bytes,
            } => {
                let note = format!(
                    "corrected by {} as {} of this deployment {}",
                    Signed(i128::from(offset_bytes)).human(),
                    if logs == 1 {
                        "a log".to_owned()
                    } else {
                        format!("{logs} logs")
                    },
                    if logs == 1 { "shows" } else { "show" }
                );
                let best = moved(taken.bytes(), offset_bytes);
                // The logs give the sum: the last estimated term takes the difference, and the whole interval.
                let mut left = offset_bytes;
                let mut spread = Some(spread_bytes);
                for term in terms.iter_mut().rev().filter(|t| t.basis != Basis::Exact) {
                    let before = term.bytes;
                    term.bytes = moved(before, left);
                    left = left.saturating_sub(difference(term.bytes, before));
                    (term.low_bytes, term.high_bytes) = match spread.take() {
                        Some(spread) => (
                            term.bytes.saturating_sub(spread),
                            term.bytes.saturating_add(spread),
                        ),
                        None => (term.bytes, term.bytes),
                    };
                    term.basis = Basis::Fitted;
                    term.formula = format!("{}; the sum is {note}", term.formula);
                }
                Spread::between(
                    best,
                    (
                        best.saturating_sub(spread_bytes),
                        best.saturating_add(spread_bytes),
                    ),
                )
            }
            Self::Family { logs, ratio_permille } => {
                let scaled = |bytes: u64| {
                    u64::try_from(u128::from(bytes) * u128::from(ratio_permille) / 1000).unwrap_or(u64::MAX)
                };
                for term in terms.iter_mut().filter(|t| t.basis == Basis::Fitted) {
                    term.bytes = scaled(term.bytes);
                    term.low_bytes = scaled(term.low_bytes);
                    term.high_bytes = scaled(term.high_bytes);
                    term.formula = format!(
                        "{}; x {}.{:03} as {logs} of the family's logs on this GPU show",
                        term.formula,
                        ratio_permille / 1000,
                        ratio_permille % 1000
                    );
                }
                let (low, high) = taken.interval();
                Spread::between(scaled(taken.bytes()), (scaled(low), scaled(high)))
            }
        }
    }

    /// One sentence for people.
    pub fn sentence(self) -> String {
        match self {
            Self::Deployment { logs, .. } => {
                format!("corrected by the site calibration: {logs} log(s) of this deployment")
            }
            Self::Family { logs, .. } => {
                format!("scaled by the site calibration: {logs} log(s) of the same family on this GPU")
            }
        }
    }
}

fn moved(bytes: u64, by: i64) -> u64 {
    bytes.saturating_add_signed(by)
}

fn difference(after: u64, before: u64) -> i64 {
    i64::try_from(i128::from(after) - i128::from(before)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::GIB;

    fn site(model: &str) -> Site {
        Site {
            gpu: "h100".to_owned(),
            engine: "vllm".to_owned(),
            engine_version: "0.31".to_owned(),
            family: "LlamaForCausalLM".to_owned(),
            model: model.to_owned(),
            tensor_parallel_size: 1,
            pipeline_parallel_size: 1,
            speculative: None,
            quantization: None,
        }
    }

    fn observation(model: &str, available_gib: u64) -> Observation {
        Observation {
            site: site(model),
            budget_bytes: 70 * GIB,
            available_bytes: i64::try_from(available_gib * GIB).unwrap(),
            planned_weights_bytes: 15 * GIB,
            planned_overhead_bytes: 3 * GIB,
            gpu_bytes: 80 * GIB,
            unified: false,
        }
    }

    fn terms() -> Vec<Term> {
        vec![
            Term::estimated("activation", Basis::Fitted, 2 * GIB, (GIB, 4 * GIB), "a"),
            Term::exact("cuda_graphs", 0, "none"),
            Term::estimated("non_torch", Basis::Fitted, GIB, (GIB / 2, 2 * GIB), "n"),
        ]
    }

    #[test]
    fn a_log_of_the_same_deployment_moves_the_sum_to_what_was_seen() {
        // 70 - 50 - 15 = 5 GiB of overhead were seen where 3 were planned.
        let correction = Correction::choose(&[observation("a", 50)], &site("a")).unwrap();
        let mut terms = terms();
        let sum = correction.apply(&mut terms, Spread::between(3 * GIB, (GIB, 6 * GIB)));
        assert_eq!(sum.bytes(), 5 * GIB);
        let (low, high) = sum.interval();
        assert!(high < 5 * GIB + GIB / 2 && high > sum.bytes() && low < sum.bytes());
        assert_eq!(terms.iter().map(|t| t.bytes).sum::<u64>(), 5 * GIB);
        assert!(terms[2].formula.contains("a log of this deployment shows"));
    }

    #[test]
    fn less_than_planned_is_taken_from_the_terms_in_turn() {
        // 70 - 54 - 15 = 1 GiB: the last term is not enough to take 2 GiB off.
        let correction = Correction::choose(&[observation("a", 54)], &site("a")).unwrap();
        let mut terms = terms();
        let sum = correction.apply(&mut terms, Spread::between(3 * GIB, (GIB, 6 * GIB)));
        assert_eq!(sum.bytes(), GIB);
        assert_eq!((terms[0].bytes, terms[2].bytes), (GIB, 0));
        assert_eq!(terms[1].bytes, 0, "an exact term is not touched");
    }

    #[test]
    fn another_model_of_the_family_scales_and_another_release_says_nothing() {
        let observations = [observation("a", 50), observation("b", 46)];
        let Some(Correction::Family { logs, ratio_permille }) = Correction::choose(&observations, &site("c"))
        else {
            panic!("a family's correction was expected");
        };
        // Overheads of 5 and 9 where 3 were planned: the mean of both ratios.
        assert_eq!((logs, ratio_permille), (2, 2333));
        let other = Site {
            engine_version: "0.20".to_owned(),
            ..site("a")
        };
        assert_eq!(Correction::choose(&observations, &other), None);
    }

    #[test]
    fn several_logs_give_their_median_and_their_spread() {
        let observations = [observation("a", 50), observation("a", 51), observation("a", 40)];
        let Some(Correction::Deployment {
            offset_bytes,
            spread_bytes,
            logs,
        }) = Correction::choose(&observations, &site("a"))
        else {
            panic!("a deployment's correction was expected");
        };
        assert_eq!((logs, offset_bytes), (3, i64::try_from(2 * GIB).unwrap()));
        assert_eq!(spread_bytes, 15 * GIB);
    }

    proptest! {
        #[test]
        fn no_observation_makes_a_term_overflow_or_lose_its_value(
            budget in any::<u64>(), available in any::<i64>(), weights in any::<u64>(), overhead in any::<u64>()
        ) {
            let extreme = Observation {
                budget_bytes: budget,
                available_bytes: available,
                planned_weights_bytes: weights,
                planned_overhead_bytes: overhead,
                ..observation("a", 1)
            };
            for name in ["a", "b"] {
                let correction = Correction::choose(std::slice::from_ref(&extreme), &site(name)).unwrap();
                let mut terms = terms();
                let sum = correction.apply(&mut terms, Spread::between(3 * GIB, (GIB, 6 * GIB)));
                prop_assert!(sum.bytes() <= sum.interval().1);
                for term in terms {
                    prop_assert!(term.low_bytes <= term.bytes && term.bytes <= term.high_bytes);
                }
            }
        }
    }
}
