//! A progress bar on stderr for what takes longer than a second.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kvwise_io::trace::Progress;

use crate::printer::Printer;

/// Quiet time before a bar appears.
const DELAY: Duration = Duration::from_secs(1);

/// Progress of reading a trace.
#[derive(Debug)]
pub struct ReadProgress {
    start: Instant,
    bar: OnceLock<ProgressBar>,
    enabled: bool,
}

impl ReadProgress {
    /// Progress that shows only on a terminal and not under `--quiet`.
    pub fn new(printer: Printer) -> Self {
        let enabled = !printer.quiet && printer.stderr_is_terminal();
        Self {
            start: Instant::now(),
            bar: OnceLock::new(),
            enabled,
        }
    }

    /// Shows how far reading has come.
    pub fn update(&self, progress: Progress) {
        if !self.enabled || self.start.elapsed() < DELAY {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = match progress.total_bytes {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::no_length(),
            };
            bar.with_style(style)
        });
        bar.set_message(format!("{} requests", progress.requests));
        bar.set_position(progress.read_bytes);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

/// Progress of work that is counted; may be told from several threads.
#[derive(Debug)]
pub struct CountProgress {
    start: Instant,
    bar: OnceLock<ProgressBar>,
    enabled: bool,
}

impl CountProgress {
    /// Progress that shows only on a terminal and not under `--quiet`.
    pub fn new(printer: Printer) -> Self {
        Self {
            start: Instant::now(),
            bar: OnceLock::new(),
            enabled: !printer.quiet && printer.stderr_is_terminal(),
        }
    }

    /// `done` of `total` are done.
    pub fn update(&self, done: usize, total: usize) {
        if !self.enabled || self.start.elapsed() < DELAY {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total as u64).with_style(style)
        });
        bar.set_position(done as u64);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
