//! `kvwise attach`: record running servers from their metrics alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use kvwise_core::{Error, Result};

use super::duration;
use crate::printer::{ExitStatus, Printer};
use crate::usecase::attach::{self, Attach};
use crate::usecase::exporter::{self, Export};

/// Record running vLLM, SGLang or llama.cpp servers from their /metrics pages.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kvwise attach localhost:8000 --duration 60s -o recording
  kvwise attach http://a:8000 http://b:8000 --interval 1s -o fleet
  kvwise attach localhost:8000 --kv-events tcp://localhost:5557 --kv-events-replay tcp://localhost:5558
  kvwise attach http://prometheus:9090 --prometheus --duration 1h -o last-hour
  kvwise attach http://a:8000 http://b:8000 --export 127.0.0.1:9464      # metrics of the fleet for Prometheus")]
pub struct AttachArgs {
    /// Servers; `/metrics` is added where the URL has no path.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,

    /// The URL is a Prometheus server: take the engines' history of the last `--duration` from it.
    #[arg(long)]
    prometheus: bool,

    /// Follow the KV events that vLLM (--kv-events-config) or SGLang publishes here: exact content and evictions.
    #[arg(long, value_name = "tcp://HOST:PORT", conflicts_with = "prometheus")]
    kv_events: Vec<String>,

    /// Where missed batches can be asked for (vLLM's `replay_endpoint`), in the order of `--kv-events`.
    #[arg(long, value_name = "tcp://HOST:PORT", requires = "kv_events")]
    kv_events_replay: Vec<String>,

    /// Record nothing; serve what is derived from the servers' metrics (peaks, hit rates of windows, totals that go on
    /// over restarts, findings) at this address under /metrics, for a Prometheus.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["prometheus", "kv_events", "output"])]
    export: Option<String>,

    /// How long to record (default: until interrupted; with `--prometheus`: 1h of history).
    #[arg(long, value_parser = duration::parse, value_name = "TIME")]
    duration: Option<Duration>,

    /// Time between two scrapes of a server.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "1s")]
    interval: Duration,

    /// How long a server may take to answer.
    #[arg(long, value_parser = duration::parse, value_name = "TIME", default_value = "5s")]
    timeout: Duration,

    /// Folder of the recording (default: `kvwise_DATE_TIME`).
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If no server can be scraped or the folder cannot be written.
pub fn run(args: &AttachArgs, printer: Printer) -> Result<ExitStatus> {
    if let Some(listen) = &args.export {
        let plan = Export {
            urls: args.urls.clone(),
            listen: listen.clone(),
            duration: args.duration,
            interval: args.interval,
            timeout: args.timeout,
        };
        let stop = stop_on_interrupt()?;
        exporter::run(&plan, &stop, &mut |address| {
            printer.note(&format!("serving http://{address}/metrics"));
        })?;
        return Ok(ExitStatus::Success);
    }
    let folder = args.output.clone().unwrap_or_else(attach::default_folder);
    let stop = stop_on_interrupt()?;
    let plan = Attach {
        urls: args.urls.clone(),
        duration: args.duration,
        interval: args.interval,
        timeout: args.timeout,
        folder: folder.clone(),
        kv_events: args
            .kv_events
            .iter()
            .enumerate()
            .map(|(i, e)| (e.clone(), args.kv_events_replay.get(i).cloned()))
            .collect(),
    };
    let summary = if args.prometheus {
        attach::from_prometheus(&plan, &mut |text| printer.warn(text))?
    } else {
        attach::record(&plan, &stop, &mut |text| printer.warn(text))?
    };
    printer.note(&format!(
        "{} scrapes of {} engine(s) recorded, {} failed\nsee `kvwise report {}`",
        summary.scrapes,
        summary.engines,
        summary.failures,
        folder.display()
    ));
    Ok(ExitStatus::Success)
}

/// A flag that an interrupt (or a termination request) sets.
///
/// # Errors
/// If the handler cannot be installed.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || seen.store(true, Ordering::SeqCst))
        .map_err(|e| Error::io(format!("cannot handle interrupts: {e}")))?;
    Ok(stop)
}
