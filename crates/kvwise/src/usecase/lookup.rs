//! Looking models up by name: files, catalogue, caches and, if it may, the hub.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kvwise_core::Result;
use kvwise_io::hub::Settings;
use kvwise_io::model::{self, Found};

/// Quiet time before a bar appears.
const DELAY: Duration = Duration::from_secs(1);

/// How far a look-up may go. By default it stays on this machine; the command line opens the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Whether a model that is nowhere on this machine may be asked of the hub.
    pub network: bool,
    /// Whether to show a bar on stderr when that takes longer than a second.
    pub progress: bool,
}

impl Lookup {
    /// Finds a model.
    ///
    /// # Errors
    /// If it is nowhere, or what is there cannot be used.
    pub fn find(self, name: &str, revision: Option<&str>) -> Result<Found> {
        // what is here needs neither the hub nor variables that describe it
        if revision.is_none_or(|r| r == "main")
            && let Ok(found) = model::find(name)
        {
            return Ok(found);
        }
        let mut settings = Settings::from_env()?;
        if !self.network {
            settings = settings.offline_because("--offline");
        }
        let started = Instant::now();
        let bar: OnceLock<ProgressBar> = OnceLock::new();
        let found = model::find_anywhere(name, revision, &settings, &|what, done, of| {
            if !self.progress || started.elapsed() < DELAY {
                return;
            }
            let bar = bar.get_or_init(|| {
                let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                ProgressBar::new(0).with_style(style)
            });
            bar.set_message(format!("{name}: {what}"));
            bar.set_length(of as u64);
            bar.set_position(done as u64);
        });
        if let Some(bar) = bar.get() {
            bar.finish_and_clear();
        }
        found
    }
}
