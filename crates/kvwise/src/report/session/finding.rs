//! What stands out in a recording, with everything needed to judge it.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Requests suffer now.
    Problem,
    /// Something can be gained.
    Improve,
    /// Good to know.
    Info,
}

/// How sure a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Follows from what was measured.
    High,
    /// Likely; another explanation is possible.
    Medium,
    /// A rule of thumb.
    Low,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the rule.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence.
    pub title: String,
    /// The measured figures.
    pub evidence: String,
    /// What they were compared with.
    pub threshold: &'static str,
    /// Where the threshold comes from.
    pub source: &'static str,
    /// How sure it is.
    pub confidence: Confidence,
    /// What to change: only where what it brings was computed.
    pub suggestion: Option<Suggestion>,
    /// What the change brings, and how that was computed.
    pub gain: Option<Gain>,
    /// What may help but could not be sized, and what would size it.
    pub not_sized: Option<String>,
}

/// A change of the engine's flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// The engine's own flag.
    pub flag: String,
    /// Its value; empty for a switch.
    pub value: String,
    /// What to mind.
    pub caveat: String,
}

/// A computed gain: never a guess.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gain {
    /// For example `pool 41k -> 82k tokens, hit rate 31 -> 44 %`.
    pub text: String,
    /// How it was computed and on which traffic.
    pub basis: String,
}
