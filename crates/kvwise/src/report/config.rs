//! Settings and calibrations for people and programs.

use std::fmt::Write as _;

use kvwise_core::plan::Observation;
use kvwise_core::units::gib;
use serde::Serialize;

use super::table::{Align, Grid};

/// Version of the JSON shape.
pub const SCHEMA: &str = "kvwise.config/1";

/// Settings in force, and what is saved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConfigReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The user's folder.
    pub folder: Option<String>,
    /// The settings file.
    pub file: Option<String>,
    /// Whether it is there.
    pub file_exists: bool,
    /// One row a setting.
    pub settings: Vec<SettingRow>,
    /// Saved calibrations.
    pub calibrations: Vec<CalibrationRow>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingRow {
    /// Its name in the file.
    pub name: &'static str,
    /// Its value; `null` is the default.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: String,
    /// What holds if nobody says anything.
    pub default: &'static str,
    /// The environment variable that wins over the file.
    pub variable: &'static str,
}

/// One saved calibration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrationRow {
    /// Number by which it is removed.
    pub id: u64,
    /// The log it was read from.
    pub log: String,
    /// What was observed.
    #[serde(flatten)]
    pub observation: Observation,
}

/// The settings as rows.
pub fn settings(report: &ConfigReport) -> Grid {
    let mut rows = Grid::new(&[
        ("setting", Align::Left),
        ("value", Align::Left),
        ("from", Align::Left),
    ]);
    for row in &report.settings {
        rows.row([
            row.name.to_owned(),
            row.value.clone().unwrap_or_else(|| row.default.to_owned()),
            row.origin.clone(),
        ]);
    }
    rows
}

/// The calibrations as rows.
pub fn calibrations(report: &ConfigReport) -> Grid {
    let mut rows = Grid::new(&[
        ("id", Align::Right),
        ("model", Align::Left),
        ("GPU", Align::Left),
        ("engine", Align::Left),
        ("ranks", Align::Right),
        ("KV GiB", Align::Right),
        ("log", Align::Left),
    ]);
    for row in &report.calibrations {
        let o = &row.observation;
        let kv = o.available_bytes;
        let sign = if kv < 0 { "-" } else { "" };
        rows.row([
            row.id.to_string(),
            o.site.model.clone(),
            o.site.gpu.clone(),
            format!("{} {}", o.site.engine, o.site.engine_version),
            o.site
                .tensor_parallel_size
                .saturating_mul(o.site.pipeline_parallel_size)
                .to_string(),
            format!("{sign}{:.2}", gib(kv.unsigned_abs())),
            row.log.clone(),
        ]);
    }
    rows
}

/// For a terminal.
pub fn text(report: &ConfigReport) -> String {
    let mut out = String::new();
    let _ = match (&report.file, report.file_exists) {
        (Some(file), true) => writeln!(out, "settings file: {file}\n"),
        (Some(file), false) => writeln!(out, "settings file: {file} (not there)\n"),
        (None, _) => writeln!(out, "settings file: none (KVWISE_CONFIG_DIR names a folder)\n"),
    };
    out.push_str(&settings(report).text());
    out.push('\n');
    if report.calibrations.is_empty() {
        out.push_str("no site calibrations; `kvwise verify --log FILE --save` keeps one\n");
    } else {
        out.push_str("site calibrations:\n\n");
        out.push_str(&calibrations(report).text());
    }
    out
}
