//! The margins a planner keeps, under the names that earlier planners gave them (overhead, fragmentation factor,
//! headroom, OOM risk), with their arithmetic in integers.

use serde::Serialize;

use super::calibration::Correction;
use crate::units::GIB;
use crate::{Error, Result};

/// Margins of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Bytes to reserve instead of the estimated non-KV overhead, per GPU.
    pub overhead_bytes: Option<u64>,
    /// Factor on the KV bytes of the load.
    pub fragmentation: Factor,
    /// Free bytes that must be left, per GPU, for the load to count as fitting.
    pub headroom_bytes: u64,
    /// What logs of the user's own servers correct the estimated terms by.
    pub site: Option<Correction>,
}

impl Policy {
    /// Margins of the generic engine, as earlier planners have them: factor 1.15 and 1 GiB of headroom.
    pub const fn generic() -> Self {
        Self {
            overhead_bytes: None,
            fragmentation: Factor::GENERIC,
            headroom_bytes: GIB,
            site: None,
        }
    }

    /// No margins: an engine that is modelled block by block needs none.
    pub const fn none() -> Self {
        Self {
            overhead_bytes: None,
            fragmentation: Factor::ONE,
            headroom_bytes: 0,
            site: None,
        }
    }
}

/// A factor of at least one with three decimals, so that bytes stay integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor {
    thousandths: u64,
}

impl Factor {
    /// No margin.
    pub const ONE: Self = Self { thousandths: 1000 };
    /// The default of the generic engine, 1.15.
    pub const GENERIC: Self = Self { thousandths: 1150 };

    /// Parses `1`, `1.15`, `2.0`; one to ten, at most three decimals.
    ///
    /// # Errors
    /// If the text is anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::input(format!(
                "the fragmentation factor is \"{text}\", expected 1 to 10 with at most three decimals, like 1.15"
            ))
        };
        let (whole, decimals) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
        if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) || whole.is_empty() {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let decimals: u64 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
        match whole.checked_mul(1000).and_then(|n| n.checked_add(decimals)) {
            Some(thousandths @ 1000..=10_000) => Ok(Self { thousandths }),
            _ => Err(wrong()),
        }
    }

    /// `bytes` times this, rounded down (as the earlier planner's `int()` does).
    ///
    /// # Errors
    /// If the product leaves 64 bits.
    pub fn of(self, bytes: u64) -> Result<u64> {
        u64::try_from(u128::from(bytes) * u128::from(self.thousandths) / 1000)
            .map_err(|_| Error::overflow("the KV cache with its fragmentation factor"))
    }
}

impl std::fmt::Display for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decimals = format!("{:03}", self.thousandths % 1000);
        let decimals = decimals.trim_end_matches('0');
        write!(
            f,
            "{}.{}",
            self.thousandths / 1000,
            if decimals.is_empty() { "0" } else { decimals }
        )
    }
}

/// How likely the load is to run out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OomRisk {
    /// It fits with a probability of 90 % or more; for the generic engine: at least 2 GiB are left, also at the upper end of
    /// every interval none is missing.
    Low,
    /// The probability is 50 % to 90 %; for the generic engine: less than 2 GiB are left, or the interval crosses zero.
    Medium,
    /// It is below 50 %; for the generic engine: something is missing at the best value already.
    High,
}

/// The level for a headroom at the best value, and at the upper end of all intervals.
pub fn oom_risk(headroom: i128, worst_headroom: i128) -> OomRisk {
    if headroom < 0 {
        OomRisk::High
    } else if headroom < i128::from(2 * GIB) || worst_headroom < 0 {
        OomRisk::Medium
    } else {
        OomRisk::Low
    }
}

/// Overhead of the generic engine per GPU: 1 GiB or 2 % of the memory, whichever is more, and a quarter GiB for every
/// further tensor-parallel rank.
pub fn generic_overhead(memory_bytes: u64, tp: u64) -> u64 {
    GIB.max(memory_bytes / 50)
        .saturating_add(tp.saturating_sub(1).saturating_mul(GIB / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_exactly_and_refused_outside_of_one_to_ten() {
        assert_eq!(Factor::parse("1.15").unwrap(), Factor::GENERIC);
        assert_eq!(Factor::parse("1").unwrap(), Factor::ONE);
        assert_eq!(Factor::GENERIC.of(2_147_483_648).unwrap(), 2_469_606_195);
        assert_eq!(Factor::GENERIC.to_string(), "1.15");
        assert_eq!(Factor::ONE.to_string(), "1.0");
        for text in [
            "0.9",
            "11",
            "nan",
            "",
            "1.1234",
            "-1",
            "1e3",
            "99999999999999999999",
        ] {
            assert!(Factor::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_overhead_of_the_earlier_planner_is_reproduced() {
        assert_eq!(generic_overhead(24 * GIB, 1), GIB);
        assert_eq!(generic_overhead(80 * GIB, 1), 80 * GIB / 50);
        assert_eq!(generic_overhead(24 * GIB, 2), GIB + GIB / 4);
    }

    #[test]
    fn risk_follows_headroom_and_the_worst_case() {
        let gib = i128::from(GIB);
        assert_eq!(oom_risk(3 * gib, gib), OomRisk::Low);
        assert_eq!(oom_risk(3 * gib, -1), OomRisk::Medium);
        assert_eq!(oom_risk(gib, gib), OomRisk::Medium);
        assert_eq!(oom_risk(-1, -1), OomRisk::High);
    }
}
