//! `kvwise advise`: what to change on a running or recorded server.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kvwise_core::{Error, Result};

use super::attach::stop_on_interrupt;
use super::duration;
use crate::printer::{ExitStatus, Printer};
use crate::report::session::{SessionReport, text};
use crate::usecase::attach::{self, Attach};
use crate::usecase::session::build;

/// Say what stands out on a server and what to change, with evidence and thresholds.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise advise recording
  kvwise advise localhost:8000 --duration 60s
  kvwise advise recording --format json")]
pub struct AdviseArgs {
    /// A recording's folder, or a server's URL.
    #[arg(value_name = "URL|DIR")]
    target: String,

    /// How long to watch a server.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "15s")]
    duration: Duration,

    /// Form of the answer.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Markdown,
}

/// Runs the command.
///
/// # Errors
/// If the recording or server cannot be read.
pub fn run(args: &AdviseArgs, printer: Printer) -> Result<ExitStatus> {
    let report = if Path::new(&args.target).is_dir() {
        build::report(Path::new(&args.target))?
    } else {
        watch_a_while(args, printer)?
    };
    let out = match args.format {
        Format::Table => text::findings(&report.findings),
        Format::Markdown => text::markdown(&report),
        Format::Json => {
            let value = serde_json::json!({"schema": "kvwise.advice/1", "session": report.session, "findings": report.findings});
            serde_json::to_string_pretty(&value).map_err(|e| Error::io(format!("advice: {e}")))? + "\n"
        }
    };
    printer.data(&out)?;
    Ok(ExitStatus::Success)
}

/// Records a server for a while into a folder that is removed again.
fn watch_a_while(args: &AdviseArgs, printer: Printer) -> Result<SessionReport> {
    let folder = std::env::temp_dir().join(format!("kvwise-advise-{}", std::process::id()));
    let plan = Attach {
        urls: vec![args.target.clone()],
        duration: Some(args.duration),
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(5),
        folder: folder.clone(),
        kv_events: Vec::new(),
    };
    printer.note(&format!(
        "watching {} for {}",
        args.target,
        text::seconds(args.duration.as_secs_f64())
    ));
    let stop = stop_on_interrupt()?;
    let report = attach::record(&plan, &stop, &mut |w| printer.warn(w)).and_then(|_| build::report(&folder));
    let _ = std::fs::remove_dir_all(&folder);
    report
}
