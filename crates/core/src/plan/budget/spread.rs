//! How far the estimated overhead may be off, as a distribution.
//!
//! The error of a sum `s` is scaled by `sqrt(floor^2 + (share s)^2)`: two boots of one deployment differ by some tenths of a
//! GiB whatever its size (compile caches, what the driver holds), and what the formula misses grows with what it sees.
//! How well it is known depends on the footing ([`Footing`]), and so do the quantiles: those of the errors of budgets
//! that the fit had not seen (`data/measurements/vllm_boots.csv`; the accuracy page has the table), rounded outwards.

use super::super::ledger::Term;
use crate::units::GIB;

/// What an estimate stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Footing {
    /// The profiling step sorts the logits, which gives its peak to some percent (V0, and vLLM 0.10.2 to 0.16).
    Sorting,
    /// GPUs of AMD and Intel: what their libraries take beside the engine is known from some twenty logs.
    OtherMakers,
    /// Other releases: FlashInfer or Triton sample, the graphs are estimated by the engine, compile caches are cold or warm.
    Other,
    /// The GPU shares the host's memory: page cache and other programs come and go while the engine starts.
    Unified,
}

/// Quantiles of the scaled error: probability, and the error that this share of the budgets does not exceed.
type Quantiles = [(f64, f64); 9];

impl Footing {
    /// Scale of the error that does not depend on the sum, in bytes.
    const fn floor_bytes(self) -> f64 {
        match self {
            Self::Sorting => 0.15 * GIB as f64,
            Self::Other | Self::OtherMakers => 0.5 * GIB as f64,
            Self::Unified => 1.5 * GIB as f64,
        }
    }

    /// Scale of the error that does, as a share of the sum.
    const fn share(self) -> f64 {
        match self {
            Self::Sorting => 0.06,
            Self::Other | Self::OtherMakers => 0.15,
            Self::Unified => 0.2,
        }
    }

    /// Bytes of one unit of scaled error.
    fn scale(self, bytes: u64) -> f64 {
        self.floor_bytes().hypot(self.share() * bytes as f64)
    }

    const fn quantiles(self) -> &'static Quantiles {
        match self {
            Self::Sorting => &[
                (0.0, -6.0),
                (0.05, -2.5),
                (0.10, -1.1),
                (0.25, -0.5),
                (0.50, 0.0),
                (0.75, 0.5),
                (0.90, 1.4),
                (0.95, 3.3),
                (1.0, 10.5),
            ],
            Self::OtherMakers => &[
                (0.0, -2.0),
                (0.05, -1.1),
                (0.10, -0.8),
                (0.25, -0.1),
                (0.50, 1.0),
                (0.75, 2.5),
                (0.90, 5.8),
                (0.95, 7.0),
                (1.0, 10.0),
            ],
            Self::Other => &[
                (0.0, -2.4),
                (0.05, -1.9),
                (0.10, -1.1),
                (0.25, -0.3),
                (0.50, 0.0),
                (0.75, 0.7),
                (0.90, 1.7),
                (0.95, 4.0),
                (1.0, 6.0),
            ],
            Self::Unified => &[
                (0.0, -3.0),
                (0.05, -1.5),
                (0.10, -1.1),
                (0.25, -0.6),
                (0.50, 0.0),
                (0.75, 0.8),
                (0.90, 1.7),
                (0.95, 2.3),
                (1.0, 4.0),
            ],
        }
    }
}

/// A sum of estimated terms and the distribution of the true value around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    bytes: u64,
    /// Bytes of one unit of scaled error below and above the best value; 0 where the sum is known.
    below: f64,
    above: f64,
    footing: Footing,
}

impl Spread {
    /// The distribution around a fitted sum.
    pub fn around(bytes: u64, footing: Footing) -> Self {
        let scale = footing.scale(bytes);
        Self {
            bytes,
            below: scale,
            above: scale,
            footing,
        }
    }

    /// A sum of which only an interval is known, taken to hold the true value in 80 of 100 cases.
    pub fn between(bytes: u64, (low, high): (u64, u64)) -> Self {
        let footing = Footing::Other;
        let ends = (footing.z_of(0.1).abs(), footing.z_of(0.9).abs());
        Self {
            bytes,
            below: bytes.saturating_sub(low) as f64 / ends.0,
            above: high.saturating_sub(bytes) as f64 / ends.1,
            footing,
        }
    }

    /// What is taken beside the best value of the weights, `held_bytes`: the overhead, and the weights' own uncertainty;
    /// `site_bytes` around it where the user's own logs say.
    pub fn beside(held_bytes: u64, weights: &Term, overhead: &[Term], site_bytes: Option<u64>) -> Self {
        let sum = |pick: &dyn Fn(&Term) -> u64| {
            overhead
                .iter()
                .fold(pick(weights), |sum, t| sum.saturating_add(pick(t)))
                .saturating_sub(held_bytes)
        };
        let taken = sum(&|t| t.bytes);
        Self::between(
            taken,
            match site_bytes {
                None => (sum(&|t| t.low_bytes), sum(&|t| t.high_bytes)),
                Some(around) => (taken.saturating_sub(around), taken.saturating_add(around)),
            },
        )
    }

    /// A sum that is known.
    pub const fn exact(bytes: u64) -> Self {
        Self {
            bytes,
            below: 0.0,
            above: 0.0,
            footing: Footing::Other,
        }
    }

    /// The same distribution with a known amount on top.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(bytes),
            ..self
        }
    }

    /// The best value.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether the sum is known.
    pub fn is_exact(self) -> bool {
        self.below <= 0.0 && self.above <= 0.0
    }

    /// The bytes that the true value does not exceed with this probability.
    pub fn quantile(self, probability: f64) -> u64 {
        let z = self.footing.z_of(probability);
        let value = self.bytes as f64 + z * if z < 0.0 { self.below } else { self.above };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "kept within what 64 bits hold; an estimate needs no exact bytes"
        )]
        let bytes = if value >= 1.8e19 {
            u64::MAX
        } else {
            value.max(0.0).round() as u64
        };
        bytes
    }

    /// The interval that holds the true value in 80 of 100 cases.
    pub fn interval(self) -> (u64, u64) {
        (self.quantile(0.1), self.quantile(0.9))
    }

    /// Probability that the true value is at most this many bytes.
    pub fn probability_at_most(self, bytes: i128) -> f64 {
        let difference = bytes as f64 - self.bytes as f64;
        let scale = if difference < 0.0 { self.below } else { self.above };
        if scale <= 0.0 {
            return if difference >= 0.0 { 1.0 } else { 0.0 };
        }
        // Nothing is certain: the tails of a few dozen logs are not the tails of all servers.
        interpolate(difference / scale, &self.footing.quantiles().map(|(p, z)| (z, p))).clamp(0.01, 0.99)
    }
}

impl Footing {
    /// The scaled error that this share of the budgets does not exceed.
    fn z_of(self, probability: f64) -> f64 {
        interpolate(probability, self.quantiles())
    }
}

/// Linear between points of rising `x`, constant outside.
fn interpolate(x: f64, points: &[(f64, f64)]) -> f64 {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        return 0.0;
    };
    if x <= first.0 {
        return first.1;
    }
    for pair in points.windows(2) {
        if let [(x0, y0), (x1, y1)] = *pair
            && x <= x1
        {
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0);
        }
    }
    last.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_known_sum_is_certain_and_an_estimate_never_quite() {
        let known = Spread::exact(GIB);
        assert_eq!(known.interval(), (GIB, GIB));
        assert!((known.probability_at_most(i128::from(GIB)) - 1.0).abs() < 1e-12);
        assert!(known.probability_at_most(i128::from(GIB) - 1) < 1e-12);
        let estimate = Spread::around(GIB, Footing::Other);
        assert!((estimate.probability_at_most(1 << 80) - 0.99).abs() < 1e-12);
        assert!((estimate.probability_at_most(i128::from(GIB)) - 0.5).abs() < 1e-9);
    }

    fn footings() -> impl Strategy<Value = Footing> {
        prop::sample::select(vec![
            Footing::Sorting,
            Footing::OtherMakers,
            Footing::Other,
            Footing::Unified,
        ])
    }

    proptest! {
        #[test]
        fn quantile_and_probability_undo_each_other(gib in 4_u64..200, percent in 11_u32..95, footing in footings()) {
            let spread = Spread::around(gib * GIB, footing);
            let p = f64::from(percent) / 100.0;
            let back = spread.probability_at_most(i128::from(spread.quantile(p)));
            prop_assert!((back - p).abs() < 1e-6, "{p} {back}");
        }

        #[test]
        fn more_room_is_never_less_likely(bytes in 0_u64..1 << 40, a in 0_i64..1 << 41, b in 0_i64..1 << 41, footing in footings()) {
            let spread = Spread::around(bytes, footing);
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(spread.probability_at_most(low.into()) <= spread.probability_at_most(high.into()));
        }
    }
}
