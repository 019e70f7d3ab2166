//! What a change would bring on the recorded traffic: by replaying the recorded requests where that earns trust, otherwise
//! by arithmetic on what was measured.

mod measured;
mod replayed;

use kvwise_io::session::Session;

use self::replayed::ReplayedGains;
use super::rules::GainCalculator;
use super::rules::facts::Facts;
use crate::report::session::{Gain, Suggestion};

/// Computes the gains of one recording.
#[derive(Debug)]
pub struct Gains {
    replayed: Option<ReplayedGains>,
}

impl Gains {
    /// Prepares a recording.
    pub fn new(session: &Session) -> Self {
        Self {
            replayed: ReplayedGains::new(session),
        }
    }

    /// Without the recorded requests: arithmetic alone.
    pub fn of_figures() -> Self {
        Self { replayed: None }
    }
}

impl GainCalculator for Gains {
    fn gain(&self, facts: &Facts, suggestion: &Suggestion) -> Option<Gain> {
        self.replayed
            .as_ref()
            .and_then(|replayed| replayed.gain(facts, suggestion))
            .or_else(|| measured::gain(facts, suggestion))
    }
}
