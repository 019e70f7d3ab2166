//! Arrival processes.

use kvwise_core::{Error, Result};
use rand_distr::{Distribution, Exp1, Gamma};
use rand_pcg::Pcg64;

/// How requests (or conversations) arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Independent of each other.
    Poisson,
    /// Gaps with a Gamma distribution: bursty where the coefficient of variation is above 1, regular below.
    Gamma {
        /// Standard deviation of the gaps over their mean.
        cv: f64,
    },
    /// Poisson with a rate that follows a sine, as day and night.
    Diurnal {
        /// Seconds of a full wave.
        period_s: f64,
        /// Height of the wave over the mean rate, from 0 to 1.
        amplitude: f64,
    },
}

impl Arrivals {
    #[expect(clippy::match_same_arms, reason = "one arm a kind, the checks before its yes")]
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Poisson => Ok(()),
            Self::Gamma { cv } if cv.is_finite() && (0.01..=100.0).contains(&cv) => Ok(()),
            Self::Gamma { cv } => Err(Error::input(format!(
                "the variation of arrivals is {cv}, expected a number from 0.01 to 100"
            ))),
            Self::Diurnal { period_s, .. } if !period_s.is_finite() || period_s <= 0.0 => Err(Error::input(
                format!("the period of arrivals is {period_s} s, expected a number above 0"),
            )),
            Self::Diurnal { amplitude, .. } if !(0.0..=1.0).contains(&amplitude) => Err(Error::input(
                format!("the amplitude of arrivals is {amplitude}, expected a number from 0 to 1"),
            )),
            Self::Diurnal { .. } => Ok(()),
        }
    }

    /// The time after `now` of the next arrival, at `rate_per_s` on average.
    pub(super) fn next(self, now: f64, rate_per_s: f64, rng: &mut Pcg64) -> f64 {
        let exponential = |rng: &mut Pcg64| -> f64 { Exp1.sample(rng) };
        match self {
            Self::Poisson => now + exponential(rng) / rate_per_s,
            Self::Gamma { cv } => {
                // shape k has a variation of 1 / sqrt(k); the scale makes the mean gap 1 / rate
                let shape = 1.0 / (cv * cv);
                let gamma =
                    Gamma::new(shape, 1.0 / (shape * rate_per_s)).expect("checked: shape and scale above 0");
                now + gamma.sample(rng)
            }
            Self::Diurnal { period_s, amplitude } => {
                // thinning (Lewis and Shedler, 1979): candidates at the highest rate, kept in proportion
                let mut t = now;
                loop {
                    t += exponential(rng) / (rate_per_s * (1.0 + amplitude));
                    let level = 1.0 + amplitude * (std::f64::consts::TAU * t / period_s).sin();
                    let accept: f64 = exponential(rng);
                    // exp(-x) is uniform on (0, 1) for exponential x
                    if (-accept).exp() * (1.0 + amplitude) <= level {
                        return t;
                    }
                }
            }
        }
    }
}
