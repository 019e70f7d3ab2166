//! `kvwise replay --engine sglang --scheduler batch`: a trace through SGLang's scheduler, with its events as lines of JSON.

use std::path::Path;

use kvwise_core::Result;
use kvwise_sim::replay::sglang::{EventLines, ReplayConfig, Summary, run};
use kvwise_sim::trace::Trace;

use super::event_file::EventFile;
use crate::report::replay::SglangBatchReport;

/// Replays `trace` and writes its events, if asked for.
///
/// # Errors
/// If SGLang would refuse the settings or stop, or the events cannot be written.
pub fn replay(trace: &Trace, config: &ReplayConfig, events: Option<&Path>) -> Result<SglangBatchReport> {
    let summary = match events {
        None => run(trace, config, &mut (), |()| Ok(()))?,
        Some(path) => with_events(trace, config, path)?,
    };
    Ok(SglangBatchReport::new(summary, config))
}

fn with_events(trace: &Trace, config: &ReplayConfig, path: &Path) -> Result<Summary> {
    let mut file = EventFile::create(path)?;
    let mut lines = EventLines::new(trace);
    let summary = run(trace, config, &mut lines, |lines| file.pour(&mut lines.text))?;
    lines.summary(&summary);
    file.finish(&lines.text)?;
    Ok(summary)
}
