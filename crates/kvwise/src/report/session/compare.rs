//! Two recordings side by side.

use std::fmt::Write as _;

use kvwise_core::Result;
use serde::Serialize;

use crate::report::html::{document, escape};

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

    /// As one HTML file. A bar shows each difference beside its noise: what reaches out of the grey is a change.
    ///
    /// # Errors
    /// Never in practice: the structure is plain.
    pub fn html(&self) -> Result<String> {
        let mut body = format!("<h1>{} against {}</h1>", escape(&self.new), escape(&self.old));
        body.push_str("<h2>Settings</h2>");
        if self.config.is_empty() {
            body.push_str("<p>The engines tell the same configuration.</p>");
        }
        for line in &self.config {
            let _ = write!(body, "<p><code>{}</code></p>", escape(line));
        }
        body.push_str(
            "<h2>Figures</h2><div class=\"scroll\"><table><tr><th>engine</th><th>figure</th><th class=\"n\">old</th>\
             <th class=\"n\">new</th><th class=\"n\">difference</th><th class=\"n\">noise (95 %)</th><th>beside the noise</th>\
             <th>verdict</th></tr>",
        );
        for c in &self.changes {
            let _ = write!(
                body,
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{:.4}</td><td class=\"n\">{:.4}</td><td class=\"n\">{:+.4}</td>\
                 <td class=\"n\">±{:.4}</td><td>{}</td><td>{}</td></tr>",
                escape(&c.engine),
                escape(&c.figure),
                c.old,
                c.new,
                c.new - c.old,
                c.noise,
                c.bar(),
                if c.beyond_noise {
                    "<b>changed</b>"
                } else {
                    "within noise"
                }
            );
        }
        body.push_str("</table></div>");
        if self.changes.is_empty() {
            body.push_str("<p>The recordings have no figure in common.</p>");
        }
        document(&format!("{} against {}", self.new, self.old), &body, self, "")
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

impl Change {
    /// The difference as a line from the middle, before a box as wide as its noise; both ends stand for three times the noise.
    fn bar(&self) -> String {
        let difference = self.new - self.old;
        let scale = (3.0 * self.noise).max(difference.abs());
        let share = |v: f64| if scale > 0.0 { 60.0 * v / scale } else { 0.0 };
        let (half, to) = (share(self.noise), 60.0 + share(difference));
        format!(
            "<svg width=\"120\" height=\"14\" role=\"img\" aria-label=\"difference {:.1} times the noise\">\
             <rect x=\"{:.1}\" y=\"1\" width=\"{:.1}\" height=\"12\" fill=\"var(--line)\"/>\
             <rect x=\"{:.1}\" y=\"5\" width=\"{:.1}\" height=\"4\" fill=\"var({})\"/></svg>",
            if self.noise > 0.0 {
                difference.abs() / self.noise
            } else {
                0.0
            },
            60.0 - half,
            2.0 * half,
            to.min(60.0),
            (to - 60.0).abs().max(1.0),
            if self.beyond_noise { "--b" } else { "--a" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_each_change_and_nothing_of_it_is_markup() {
        let page = Comparison {
            schema: "kvwise.session_comparison/1",
            old: "a<b".to_owned(),
            new: "c".to_owned(),
            config: vec!["x: <1> -> 2".to_owned()],
            changes: vec![Change {
                engine: "vllm <i>".to_owned(),
                figure: "prefix_hit_rate".to_owned(),
                old: 0.25,
                new: 0.75,
                noise: 0.25,
                beyond_noise: true,
            }],
        }
        .html()
        .expect("plain");
        assert!(
            page.contains("c against a&lt;b") && page.contains("vllm &lt;i&gt;"),
            "escaped"
        );
        assert!(page.contains("+0.5000") && page.contains("<b>changed</b>"));
        // the noise covers a third of each side, the difference two thirds of the right one
        assert!(page.contains("x=\"40.0\" y=\"1\" width=\"40.0\""), "noise");
        assert!(page.contains("x=\"60.0\" y=\"5\" width=\"40.0\""), "difference");
    }
}
