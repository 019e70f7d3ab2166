//! `kvwise export`: a recording as files for other tools.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::Result;

use crate::printer::{ExitStatus, Printer};
use crate::usecase::export;

/// Export a recording as CSV or Parquet files, or as a trace for replay, curve and simulate.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise export recording --to csv -o csv
  kvwise export recording --to parquet -o tables   # needs a build with the feature parquet
  kvwise export recording --to trace -o .      # writes trace.jsonl and says how to replay it")]
pub struct ExportArgs {
    /// Folder of the recording.
    #[arg(value_name = "DIR")]
    session: PathBuf,

    /// What to make.
    #[arg(long, value_enum)]
    to: Format,

    /// Folder to write into.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// `kv_cache_usage.csv`, `kv_cache_evictions.csv`, `kv_cache_summary.txt` and the CUDA-graph files.
    Csv,
    /// trace.jsonl: lengths, arrivals and block hashes of the recorded requests.
    Trace,
    /// Every table as a Parquet file (needs a build with the feature `parquet`).
    Parquet,
}

/// Runs the command.
///
/// # Errors
/// If the recording cannot be read or the files cannot be written.
pub fn run(args: &ExportArgs, printer: Printer) -> Result<ExitStatus> {
    let session = export::open(&args.session)?;
    match args.to {
        Format::Csv => {
            for path in export::csv(&session, &args.output)? {
                printer.note(&format!("wrote {}", path.display()));
            }
        }
        Format::Trace => {
            let made = export::trace(&session, &args.output)?;
            printer.note(&format!(
                "wrote {} with {} requests",
                made.path.display(),
                made.requests
            ));
            if made.sampled {
                printer.warn(&format!(
                    "the probe sampled to keep its cost down: {} requests without block identities are left out, so a \
                     replay sees a part of the traffic and its hit rate is not the server's",
                    made.left_out
                ));
            } else if made.left_out > 0 {
                printer.warn(&format!(
                    "{} requests had not finished and are left out",
                    made.left_out
                ));
            }
            printer.note(&format!("replay it with `{}`", made.replay));
        }
        Format::Parquet => {
            for path in export::parquet(&session, &args.output)? {
                printer.note(&format!("wrote {}", path.display()));
            }
        }
    }
    Ok(ExitStatus::Success)
}
