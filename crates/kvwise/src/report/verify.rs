//! Predicted and actual, side by side; JSON is the structure itself (schema `kvwise.verification/1`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvwise_core::plan::{Basis, Correction};
use kvwise_core::units::{GIB, gib, grouped, human_bytes};
use kvwise_io::log::Evidence;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::table::{Align, Grid};
use super::text::wrap;

/// Version of the JSON shape.
pub const SCHEMA: &str = "kvwise.verification/1";

/// A whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The answer in one sentence.
    pub verdict: String,
    /// Whether every figure is as planned or within its interval.
    pub agrees: bool,
    /// The log.
    pub log: LogPart,
    /// What was planned, and what of it the log told.
    pub deployment: DeploymentPart,
    /// One row a figure.
    pub terms: Vec<Row>,
    /// Why the server did not start, if it did not, or why the plan says so.
    pub refusal: Option<RefusalPart>,
    /// What explains the differences.
    pub causes: Vec<Cause>,
    /// What else one should know.
    pub warnings: Vec<String>,
    /// The site calibration that the prediction used.
    pub calibration: Option<Correction>,
    /// The calibration that was saved.
    pub saved: Option<SavedPart>,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogPart {
    /// File.
    pub name: String,
    /// Engine that wrote it.
    pub engine: &'static str,
    /// Version as printed.
    pub version: Option<String>,
    /// Starts of a server in it.
    pub boots: usize,
    /// Which of them this is, from 1.
    pub boot: usize,
    /// First line of it that says something.
    pub first_line: u64,
    /// Last one.
    pub last_line: u64,
    /// Lines of the file.
    pub lines: u64,
    /// Lines that were understood.
    pub recognised: u64,
}

/// What was planned.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentPart {
    /// Model.
    pub model: String,
    /// GPU.
    pub gpu: String,
    /// Its memory as the engine sees it.
    pub gpu_bytes: u64,
    /// Version whose rules were used.
    pub engine_version: Option<String>,
    /// Settings that the log told, and how.
    pub from_log: BTreeMap<&'static str, String>,
    /// Every setting of the plan.
    pub inputs: Map<String, Value>,
}

/// Unit of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Tokens.
    Tokens,
    /// Blocks.
    Blocks,
    /// Requests at once (a real number, as the engine logs it).
    Requests,
}

/// How a figure compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Exact, and equal as far as the log's rounding shows.
    Equal,
    /// Estimated, and within the interval.
    Inside,
    /// Estimated, and outside of the interval.
    Outside,
    /// Exact, and not equal.
    Differs,
    /// Only one of both is known.
    NotCompared,
}

impl Status {
    /// Whether the prediction was wrong.
    pub const fn is_wrong(self) -> bool {
        matches!(self, Self::Outside | Self::Differs)
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Inside => "inside",
            Self::Outside => "OUTSIDE",
            Self::Differs => "DIFFERS",
            Self::NotCompared => "-",
        }
    }
}

/// One figure. Numbers are in `unit`; bytes, tokens and blocks are integers.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name: `available_kv`, `weights`, ...
    pub name: &'static str,
    /// Unit of all numbers.
    pub unit: Unit,
    /// What the plan says, with its interval.
    pub predicted: Option<(f64, f64, f64)>,
    /// What the prediction rests on.
    pub basis: Basis,
    /// What the log says, and the range that prints like it.
    pub actual: Option<(f64, f64, f64)>,
    /// Actual minus predicted.
    pub error: Option<f64>,
    /// The same in percent of the actual value.
    pub error_percent: Option<f64>,
    /// The same in percent of the GPU's memory, for bytes.
    pub error_of_gpu_percent: Option<f64>,
    /// The comparison.
    pub status: Status,
}

impl Row {
    /// Compares a prediction with what the log says.
    pub fn new(
        name: &'static str,
        unit: Unit,
        basis: Basis,
        predicted: Option<(f64, f64, f64)>,
        actual: Option<(f64, f64, f64)>,
        gpu_bytes: u64,
    ) -> Self {
        let error = predicted.zip(actual).map(|(p, a)| a.0 - p.0);
        let percent = |of: f64| error.filter(|_| of != 0.0).map(|e| e * 100.0 / of.abs());
        let status = match (predicted, actual) {
            (Some((_, low, high)), Some((_, least, most))) => {
                // Intervals that touch agree: the log rounds.
                let agree = least <= high && low <= most;
                match (basis, agree) {
                    (Basis::Exact, true) => Status::Equal,
                    (Basis::Exact, false) => Status::Differs,
                    (_, true) => Status::Inside,
                    (_, false) => Status::Outside,
                }
            }
            _ => Status::NotCompared,
        };
        Self {
            name,
            unit,
            predicted,
            basis,
            actual,
            error,
            error_percent: actual.and_then(|a| percent(a.0)),
            error_of_gpu_percent: (unit == Unit::Bytes).then(|| percent(gpu_bytes as f64)).flatten(),
            status,
        }
    }

    fn number(&self, x: f64) -> Value {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounded, and within 2^53 by construction"
        )]
        let whole = x.round().clamp(-9e15, 9e15) as i64;
        match self.unit {
            Unit::Requests => json!((x * 1e6).round() / 1e6),
            Unit::Bytes | Unit::Tokens | Unit::Blocks => json!(whole),
        }
    }

    fn cell(&self, x: f64) -> String {
        match self.unit {
            Unit::Bytes if self.name == "kv_bytes_per_token" => {
                format!("{} B", grouped(self.number(x).as_u64().unwrap_or(0)))
            }
            Unit::Bytes => format!("{:.2} GiB", x / GIB as f64),
            Unit::Requests => format!("{x:.2}"),
            Unit::Tokens | Unit::Blocks => {
                let number = self.number(x).as_i64().unwrap_or(0);
                let sign = if number < 0 { "-" } else { "" };
                format!("{sign}{}", grouped(number.unsigned_abs()))
            }
        }
    }
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = Map::new();
        let number = |x: Option<f64>| x.map_or(Value::Null, |x| self.number(x));
        let rounded = |x: Option<f64>| x.map_or(Value::Null, |x| json!((x * 1e3).round() / 1e3));
        map.insert("name".to_owned(), json!(self.name));
        map.insert("unit".to_owned(), json!(self.unit));
        map.insert("predicted".to_owned(), number(self.predicted.map(|p| p.0)));
        map.insert("predicted_low".to_owned(), number(self.predicted.map(|p| p.1)));
        map.insert("predicted_high".to_owned(), number(self.predicted.map(|p| p.2)));
        map.insert("basis".to_owned(), json!(self.basis));
        map.insert("actual".to_owned(), number(self.actual.map(|a| a.0)));
        map.insert("error".to_owned(), number(self.error));
        map.insert("error_percent".to_owned(), rounded(self.error_percent));
        map.insert(
            "error_of_gpu_percent".to_owned(),
            rounded(self.error_of_gpu_percent),
        );
        map.insert("status".to_owned(), json!(self.status));
        map.serialize(serializer)
    }
}

/// A start that was refused, or is planned to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RefusalPart {
    /// What the log says.
    pub actual: Option<kvwise_io::log::Refusal>,
    /// What the plan says.
    pub predicted: Option<String>,
    /// Whether both agree; `null` where no plan can know (memory of other processes).
    pub agrees: Option<bool>,
    /// One sentence.
    pub comment: String,
}

/// What explains a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The figure it is about.
    pub term: &'static str,
    /// What is likely, in one sentence.
    pub cause: String,
    /// The line that shows it.
    pub evidence: Option<Evidence>,
}

/// A calibration that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SavedPart {
    /// Its number.
    pub id: u64,
    /// The file it is in.
    pub file: String,
}

/// What each figure is, for people.
fn label(name: &str) -> &str {
    match name {
        "gpu_memory" => "memory of the GPU",
        "budget" => "allowed by the utilisation",
        "weights" => "weights",
        "activation" => "activations (peak)",
        "non_torch" => "outside PyTorch",
        "cuda_graphs" => "CUDA graphs",
        "overhead" => "all but weights and KV cache",
        "available_kv" => "KV memory",
        "kv_blocks" => "blocks",
        "kv_tokens" => "tokens",
        "max_concurrency" => "requests of the longest",
        "max_model_len" => "longest request",
        "block_size" => "tokens in a block",
        "kv_blocks_of_logged_memory" => "blocks of the logged KV memory",
        "kv_tokens_of_logged_memory" => "tokens of the logged KV memory",
        "max_concurrency_of_logged_memory" => "requests of the logged KV memory",
        "kv_bytes_of_a_request" => "KV cache of the longest request",
        "estimated_max_model_len" => "longest that would fit",
        "kv_bytes_per_token" => "KV bytes of a token",
        "kv_cache" => "KV cache",
        "kv_cells" => "cells of a cache",
        "state_cache" => "recurrent states",
        "state_slots" => "slots for states",
        "swa_tokens" => "tokens of the windows' pool",
        "compute_buffer" => "compute buffer",
        "free_before_load" => "free before loading",
        "free_after_pools" => "left beside the pools",
        other => other,
    }
}

fn grid(answer: &Verification) -> Grid {
    let mut rows = Grid::new(&[
        ("figure", Align::Left),
        ("predicted", Align::Right),
        ("from", Align::Right),
        ("to", Align::Right),
        ("logged", Align::Right),
        ("error", Align::Right),
        ("", Align::Left),
    ]);
    for row in &answer.terms {
        let cell = |x: Option<f64>| x.map(|x| row.cell(x)).unwrap_or_default();
        // What is exact has no interval; the tolerance of a loader's measurement is none.
        let ends = row.predicted.filter(|p| p.1 < p.2 && row.basis != Basis::Exact);
        let short = |x: Option<f64>| match row.unit {
            Unit::Bytes => x.map(|x| format!("{:.2}", x / GIB as f64)).unwrap_or_default(),
            _ => cell(x),
        };
        rows.row([
            label(row.name).to_owned(),
            cell(row.predicted.map(|p| p.0)),
            short(ends.map(|p| p.1)),
            short(ends.map(|p| p.2)),
            cell(row.actual.map(|a| a.0)),
            match (row.error_of_gpu_percent, row.error_percent) {
                (Some(percent), _) => format!("{percent:+.2} % GPU"),
                (None, Some(percent)) => format!("{percent:+.2} %"),
                (None, None) => String::new(),
            },
            row.status.words().to_owned(),
        ]);
    }
    rows
}

/// For a terminal of 80 columns.
pub fn text(answer: &Verification) -> String {
    let mut out = String::new();
    wrap(&mut out, &answer.verdict, "");
    out.push('\n');
    let d = &answer.deployment;
    let boot = if answer.log.boots > 1 {
        format!(", boot {} of {}", answer.log.boot, answer.log.boots)
    } else {
        String::new()
    };
    wrap(
        &mut out,
        &format!(
            "{} on {} ({}), {} {}{boot}",
            d.model,
            d.gpu,
            human_bytes(d.gpu_bytes),
            answer.log.engine,
            d.engine_version.as_deref().unwrap_or("")
        ),
        "  ",
    );
    if !d.from_log.is_empty() {
        let names: Vec<&str> = d.from_log.keys().copied().collect();
        wrap(&mut out, &format!("from the log: {}", names.join(", ")), "  ");
    }
    out.push('\n');
    out.push_str(&grid(answer).text());
    if let Some(refusal) = &answer.refusal {
        out.push('\n');
        wrap(&mut out, &format!("start: {}", refusal.comment), "  ");
    }
    if !answer.causes.is_empty() {
        out.push('\n');
        for cause in &answer.causes {
            wrap(&mut out, &format!("{}: {}", label(cause.term), cause.cause), "  ");
            if let Some(evidence) = &cause.evidence {
                wrap(
                    &mut out,
                    &format!("  line {}: {}", evidence.line, evidence.text),
                    "    ",
                );
            }
        }
    }
    if let Some(saved) = &answer.saved {
        wrap(
            &mut out,
            &format!("saved as calibration {} in {}", saved.id, saved.file),
            "  ",
        );
    }
    for warning in &answer.warnings {
        wrap(&mut out, &format!("note: {warning}"), "  ");
    }
    out
}

/// One row a figure.
pub fn csv(answer: &Verification) -> String {
    let mut rows = Grid::new(&[
        ("name", Align::Left),
        ("unit", Align::Left),
        ("predicted", Align::Right),
        ("predicted_low", Align::Right),
        ("predicted_high", Align::Right),
        ("basis", Align::Left),
        ("actual", Align::Right),
        ("error", Align::Right),
        ("error_percent", Align::Right),
        ("error_of_gpu_percent", Align::Right),
        ("status", Align::Left),
    ]);
    for row in &answer.terms {
        let value = serde_json::to_value(row).unwrap_or_default();
        let cell = |key: &str| match value.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        rows.row(
            [
                "name",
                "unit",
                "predicted",
                "predicted_low",
                "predicted_high",
                "basis",
                "actual",
                "error",
                "error_percent",
                "error_of_gpu_percent",
                "status",
            ]
            .map(cell),
        );
    }
    rows.csv()
}

/// For a document.
pub fn markdown(answer: &Verification) -> String {
    let mut out = format!("**{}**\n\n", answer.verdict);
    out.push_str(&grid(answer).markdown());
    if let Some(refusal) = &answer.refusal {
        let _ = write!(out, "\nStart: {}\n", refusal.comment);
    }
    let notes = answer
        .causes
        .iter()
        .map(|cause| match &cause.evidence {
            Some(e) => format!(
                "{}: {} (line {}: `{}`)",
                label(cause.term),
                cause.cause,
                e.line,
                e.text.replace('`', "'")
            ),
            None => format!("{}: {}", label(cause.term), cause.cause),
        })
        .chain(answer.warnings.iter().cloned());
    let notes: Vec<String> = notes.map(|note| format!("- {note}\n")).collect();
    if !notes.is_empty() {
        out.push('\n');
        out.push_str(&notes.concat());
    }
    out
}

/// A size in GiB as the engines round it.
pub fn two_decimals(bytes: u64) -> String {
    format!("{:.2} GiB", gib(bytes))
}
