//! Two recordings side by side.

use std::fmt::Write as _;

use serde::Serialize;

/// The answer of `kvwise report NEW --against OLD`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Always `kvwise.session_comparison/1`.
    pub schema: &'static str,
    /// The recording compared with.
    pub old: String,
    /// The recording in question.
    pub new: String,
    /// Settings that differ.
    pub config: Vec<String>,
    /// Figures, engine by engine.
    pub changes: Vec<Change>,
}

/// One figure in both recordings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Which engine.
    pub engine: String,
    /// Which figure.
    pub figure: String,
    /// Mean in the old recording.
    pub old: f64,
    /// Mean in the new recording.
    pub new: f64,
    /// Half width of the 95 % interval of the difference, from the spread between ten stretches of each recording.
    pub noise: f64,
    /// Whether the difference is larger than that.
    pub beyond_noise: bool,
}

impl Comparison {
    /// As Markdown (and readable as it is).
    pub fn markdown(&self) -> String {
        let mut out = format!("# {} against {}\n\n", self.new, self.old);
        for line in &self.config {
            let _ = writeln!(out, "- {line}");
        }
        if self.config.is_empty() {
            out.push_str("The engines tell the same configuration.\n");
        }
        out.push_str("\n| engine | figure | old | new | difference | noise (95 %) | verdict |\n|---|---|--:|--:|--:|--:|---|\n");
        for c in &self.changes {
            let _ = writeln!(
                out,
                "| {} | {} | {:.4} | {:.4} | {:+.4} | ±{:.4} | {} |",
                c.engine,
                c.figure,
                c.old,
                c.new,
                c.new - c.old,
                c.noise,
                if c.beyond_noise { "changed" } else { "within noise" }
            );
        }
        out
    }

    /// As CSV.
    pub fn csv(&self) -> String {
        let mut out = "engine,figure,old,new,noise,beyond_noise\n".to_owned();
        for c in &self.changes {
            let _ = writeln!(
                out,
                "{},{},{},{},{},{}",
                c.engine.replace(',', " "),
                c.figure,
                c.old,
                c.new,
                c.noise,
                c.beyond_noise
            );
        }
        out
    }
}
