//! Flags that every answering command shares: format and destination.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::Result;
use kvwise_io::settings::Key;
use serde::Serialize;

use crate::printer::Printer;
use crate::report::table::Grid;
use crate::usecase::settings;

/// Formats of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
    /// For documents.
    Markdown,
}

/// Where an answer goes and how it is written.
#[derive(Debug, Clone, Args)]
pub struct Output {
    /// Format of the answer [default: table on a terminal, else json].
    #[arg(
        long,
        value_enum,
        env = "KVWISE_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    pub format: Option<Format>,

    /// Write the answer to this file, whole or not at all.
    #[arg(long, short = 'o', value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
}

impl Output {
    /// The format: as asked, else by the file's name, else as the user's settings say, else a table for a terminal and
    /// JSON for a pipe.
    pub fn format(&self, printer: Printer) -> Format {
        if let Some(format) = self.format {
            return format;
        }
        match &self.output {
            Some(path) => match path.extension().and_then(|e| e.to_str()) {
                Some("csv") => Format::Csv,
                Some("md" | "markdown") => Format::Markdown,
                Some("txt") => Format::Table,
                _ => Format::Json,
            },
            None if settings::current().value(Key::Format).is_some() => preferred(),
            None if printer.stdout_is_terminal() => Format::Table,
            None => Format::Json,
        }
    }

    /// Writes text to the destination.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, printer: Printer, text: &str) -> Result<()> {
        printer.data_to(self.output.as_deref(), text)
    }

    /// Writes rows in the chosen format; JSON is `value`.
    ///
    /// # Errors
    /// If the destination cannot be written.
    pub fn rows(&self, printer: Printer, grid: &Grid, value: &impl Serialize) -> Result<()> {
        let text = match self.format(printer) {
            Format::Table => grid.text(),
            Format::Csv => grid.csv(),
            Format::Markdown => grid.markdown(),
            Format::Json => json(value)?,
        };
        self.write(printer, &text)
    }
}

/// The format of the user's settings; the environment is read with the flags.
fn preferred() -> Format {
    preferred_among::<Format>().unwrap_or(Format::Json)
}

/// The format of the user's settings among those that a command has.
pub fn preferred_among<T: ValueEnum>() -> Option<T> {
    settings::current()
        .value(Key::Format)
        .and_then(|(name, _)| T::from_str(name, true).ok())
}

/// Pretty JSON with a final newline.
///
/// # Errors
/// If the value has a map with keys that are not strings (none of ours has).
pub fn json(value: &impl Serialize) -> Result<String> {
    crate::report::json_text(value)
}
