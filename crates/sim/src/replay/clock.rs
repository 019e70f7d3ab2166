//! The clocks of replays: no model of time, just steps.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and in range before"
)]

use kvwise_core::{Error, Result};

/// What arrival times mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clock {
    /// They count scheduler steps.
    Steps,
    /// They are seconds; a step takes this long.
    Seconds {
        /// Length of a step, in seconds.
        step_time: f64,
    },
}

impl Clock {
    /// Whether it can advance.
    ///
    /// # Errors
    /// If a step takes no time.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Seconds { step_time } if !(step_time.is_finite() && step_time > 0.0) => Err(Error::input(
                format!("--step-time is {step_time}, expected a positive number of seconds"),
            )),
            _ => Ok(()),
        }
    }
}

/// The step of an arrival: the next whole number.
pub(super) fn step_of(arrival: f64) -> Result<u64> {
    let step = arrival.ceil();
    if step >= 9e15 {
        return Err(Error::input(format!(
            "arrival {arrival} is beyond 9e15 steps; are the times meant in another unit?"
        ))
        .hint("pass --clock time if arrivals are in seconds"));
    }
    Ok(step as u64)
}

/// Rounded to six decimal digits, the last one correctly.
pub(super) fn round6(value: f64) -> f64 {
    format!("{value:.6}").parse().unwrap_or(value)
}
