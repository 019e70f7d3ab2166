//! `kvwise report`: what a recording shows.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};
use kvwise_io::session::seed_files;

use crate::printer::{ExitStatus, Printer};
use crate::report::session::{html, text};
use crate::usecase::export;
use crate::usecase::session::{build, compare};

/// Show what a recording says: figures, findings, charts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise report recording
  kvwise report recording -o report.html
  kvwise report recording --format json
  kvwise report after --against before")]
pub struct ReportArgs {
    /// Folder of the recording.
    #[arg(value_name = "DIR")]
    session: PathBuf,

    /// Compare with this earlier recording instead.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,

    /// Form of the answer (default: by the file's name, else table).
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// File to write.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Csv,
    Markdown,
    Html,
}

impl Format {
    fn by_name(path: &Path) -> Option<Self> {
        Some(match path.extension()?.to_str()? {
            "html" | "htm" => Self::Html,
            "md" => Self::Markdown,
            "json" => Self::Json,
            "csv" => Self::Csv,
            "txt" => Self::Table,
            _ => return None,
        })
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| Error::io(format!("report: {e}")))
}

/// Runs the command.
///
/// # Errors
/// If a recording cannot be read or the file cannot be written.
pub fn run(args: &ReportArgs, printer: Printer) -> Result<ExitStatus> {
    let format = args
        .format
        .or_else(|| Format::by_name(args.output.as_deref()?))
        .unwrap_or(Format::Table);
    if let Some(old) = &args.against {
        let comparison = compare::compare(&export::open(old)?, &export::open(&args.session)?)?;
        let out = match format {
            Format::Json => json(&comparison)?,
            Format::Csv => comparison.csv(),
            Format::Table | Format::Markdown => comparison.markdown(),
            Format::Html => comparison.html()?,
        };
        printer.data_to(args.output.as_deref(), &out)?;
        return Ok(ExitStatus::Success);
    }
    let report = build::report(&args.session)?;
    // the guides' files appear beside the database; a read-only folder is no reason to fail
    if let Err(e) = export::open(&args.session).and_then(|s| seed_files::write(&s, &args.session)) {
        printer.warn(&e.to_string());
    }
    let out = match format {
        Format::Table => text::table(&report),
        Format::Json => json(&report)?,
        Format::Csv => text::csv(&report),
        Format::Markdown => text::markdown(&report),
        Format::Html => html::page(&report)?,
    };
    printer.data_to(args.output.as_deref(), &out)?;
    Ok(ExitStatus::Success)
}
