//! The ledger: every number of a plan with its formula, its basis and an interval.

use serde::{Serialize, Serializer};

use crate::units::human_bytes;

/// What a number rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Arithmetic on known facts: the interval is one point.
    Exact,
    /// Fitted to measurements that the formula's source names.
    Fitted,
    /// A default that nobody measured for this case.
    Assumed,
}

impl Basis {
    /// Lower-case name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Fitted => "fitted",
            Self::Assumed => "assumed",
        }
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Term {
    /// Short name: `weights`, `activation`, ...
    pub name: &'static str,
    /// Best value in bytes.
    pub bytes: u64,
    /// Lower end of the interval.
    pub low_bytes: u64,
    /// Upper end of the interval.
    pub high_bytes: u64,
    /// What it rests on.
    pub basis: Basis,
    /// How it was computed, with the numbers filled in.
    pub formula: String,
}

impl Term {
    /// A term that is arithmetic on known facts.
    pub fn exact(name: &'static str, bytes: u64, formula: impl Into<String>) -> Self {
        Self {
            name,
            bytes,
            low_bytes: bytes,
            high_bytes: bytes,
            basis: Basis::Exact,
            formula: formula.into(),
        }
    }

    /// A term with an interval; the ends are put in order and made to include the value.
    pub fn estimated(
        name: &'static str,
        basis: Basis,
        bytes: u64,
        (low, high): (u64, u64),
        formula: impl Into<String>,
    ) -> Self {
        Self {
            name,
            bytes,
            low_bytes: low.min(bytes),
            high_bytes: high.max(bytes),
            basis,
            formula: formula.into(),
        }
    }

    /// `1.25 GiB` or `1.25 GiB (0.50 to 3.00)`, for people.
    pub fn human(&self) -> String {
        if self.low_bytes == self.high_bytes {
            human_bytes(self.bytes)
        } else {
            format!(
                "{} ({} to {})",
                human_bytes(self.bytes),
                human_bytes(self.low_bytes),
                human_bytes(self.high_bytes)
            )
        }
    }
}

/// A byte count that may be negative (headroom), kept exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Signed(pub i128);

impl Signed {
    /// `a - b`.
    pub fn difference(a: u64, b: u64) -> Self {
        Self(i128::from(a) - i128::from(b))
    }

    /// In GiB.
    #[expect(clippy::cast_precision_loss, reason = "for display and `_gb` fields")]
    pub fn gib(self) -> f64 {
        self.0 as f64 / crate::units::GIB as f64
    }

    /// `1.25 GiB`, with the sign if negative.
    pub fn human(self) -> String {
        let size = human_bytes(u64::try_from(self.0.unsigned_abs()).unwrap_or(u64::MAX));
        if self.0 < 0 { format!("-{size}") } else { size }
    }
}

impl Serialize for Signed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Differences of byte counts of one GPU fit by far; saturate rather than fail.
        let clamped = self.0.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        serializer.serialize_i64(i64::try_from(clamped).unwrap_or_default())
    }
}

/// One step of `--explain`: what, how, result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is computed.
    pub what: String,
    /// The formula with its numbers.
    pub how: String,
    /// The result with its unit.
    pub result: String,
    /// Where the rule comes from, where it is an engine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<&'static str>,
}

impl Step {
    /// A step of plain arithmetic.
    pub fn new(what: impl Into<String>, how: impl Into<String>, result: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            how: how.into(),
            result: result.into(),
            source: None,
        }
    }

    /// A rule of an engine.
    #[must_use]
    pub fn of(mut self, source: &'static str) -> Self {
        self.source = Some(source);
        self
    }

    /// The same where there is a source.
    #[must_use]
    pub fn of_any(mut self, source: Option<&'static str>) -> Self {
        self.source = source;
        self
    }
}

/// The steps of `--explain`, built only where somebody wants to read them: the texts take longer than the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Derivation {
    wanted: bool,
    steps: Vec<Step>,
}

impl Derivation {
    /// Collects steps if they are wanted.
    pub(super) fn wanted(wanted: bool) -> Self {
        Self {
            wanted,
            steps: Vec::new(),
        }
    }

    /// Adds what is built here.
    pub(super) fn add(&mut self, step: impl FnOnce() -> Step) {
        if self.wanted {
            self.steps.push(step());
        }
    }

    /// The steps so far.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_always_includes_its_value() {
        let term = Term::estimated("x", Basis::Assumed, 5, (7, 3), "");
        assert!(term.low_bytes <= 5 && term.high_bytes >= 5);
        let exact = Term::exact("y", 5, "");
        assert_eq!((exact.low_bytes, exact.high_bytes), (5, 5));
    }

    #[test]
    fn a_negative_headroom_keeps_its_sign_in_json_and_for_people() {
        let short = Signed::difference(1 << 30, 3 << 30);
        assert_eq!(serde_json::to_string(&short).unwrap(), "-2147483648");
        assert_eq!(short.human(), "-2.00 GiB");
    }
}
