//! A sizing for people and documents; JSON is the structure itself.

use std::fmt::Write as _;

use kvwise_core::plan::size::{Helps, Sizing};
use kvwise_core::units::{grouped, human_bytes};

use super::table::{Align, Grid};
use super::text::wrap;

/// The whole answer for a terminal of 80 columns.
pub fn text(sizing: &Sizing) -> String {
    let mut out = String::new();
    wrap(&mut out, &sizing.verdict, "");
    out.push('\n');
    out.push_str(&answers(sizing).text());
    if !sizing.changes.is_empty() {
        let _ = writeln!(
            out,
            "\nOne change at a time (requests of {} tokens; tokens of {} at once):",
            grouped(sizing.context),
            grouped(sizing.concurrency)
        );
        for change in &sizing.changes {
            let line = format!(
                "{} {}: {} -> {} requests, {} -> {} tokens ({})",
                if change.meets { "+" } else { "-" },
                words(change),
                grouped(change.most_requests_before),
                grouped(change.most_requests),
                grouped(change.longest_context_before),
                grouped(change.longest_context),
                change.price
            );
            wrap(&mut out, &line, "    ");
        }
        out.push_str("+ is enough for the need, - is not.\n");
    }
    for warning in &sizing.warnings {
        wrap(&mut out, &format!("note: {warning}"), "  ");
    }
    out
}

/// The answer for a document.
pub fn markdown(sizing: &Sizing) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "**{}**\n", sizing.verdict);
    out.push_str(&answers(sizing).markdown());
    if !sizing.changes.is_empty() {
        out.push('\n');
        out.push_str(&changes(sizing).markdown());
    }
    out
}

/// The changed flag as it is written.
fn words(change: &Helps) -> String {
    format!("{} {}", change.flag, change.value).trim_end().to_owned()
}

fn answers(sizing: &Sizing) -> Grid {
    let mut rows = Grid::new(&[("question", Align::Left), ("answer", Align::Right)]);
    let mut row = |question: String, answer: String| rows.row([question, answer]);
    let none = || "none that was tried".to_owned();
    row(
        "settings as given".to_owned(),
        if sizing.met { "enough" } else { "not enough" }.to_owned(),
    );
    row(
        "fewest GPUs".to_owned(),
        sizing.fewest_gpus.as_ref().map_or_else(none, |g| {
            let (tp, pp) = (g.tensor_parallel_size, g.pipeline_parallel_size);
            if tp.saturating_mul(pp) == g.count {
                format!("{} (TP {tp}, PP {pp})", g.count)
            } else {
                format!("{}, layers spread", g.count)
            }
        }),
    );
    if let Some(flag) = sizing.utilization_flag {
        row(
            format!("smallest {flag}"),
            sizing
                .smallest_utilization
                .map_or_else(none, |share| format!("{share:.2}")),
        );
    }
    row(
        format!("longest context for {} at once", grouped(sizing.concurrency)),
        format!("{} tokens", grouped(sizing.longest_context)),
    );
    row(
        format!("most requests of {} tokens", grouped(sizing.context)),
        grouped(sizing.most_requests),
    );
    if let Some(format) = &sizing.widest_weights {
        let name = if format.quantization == "none" {
            "as the checkpoint is".to_owned()
        } else {
            format.quantization.clone()
        };
        row(
            "widest weights".to_owned(),
            format!("{name}, {} per GPU", human_bytes(format.weights_bytes)),
        );
    }
    rows
}

/// One row a change, the most helpful first, for spreadsheets and documents.
pub fn changes(sizing: &Sizing) -> Grid {
    let mut rows = Grid::new(&[
        ("change", Align::Left),
        ("enough", Align::Left),
        ("requests", Align::Right),
        ("context", Align::Right),
        ("price", Align::Left),
    ]);
    for change in &sizing.changes {
        rows.row([
            words(change),
            if change.meets { "yes" } else { "no" }.to_owned(),
            format!(
                "{} -> {}",
                grouped(change.most_requests_before),
                grouped(change.most_requests)
            ),
            format!(
                "{} -> {}",
                grouped(change.longest_context_before),
                grouped(change.longest_context)
            ),
            change.price.to_owned(),
        ]);
    }
    rows
}
