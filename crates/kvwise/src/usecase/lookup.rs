//! Looking models up by name: files, catalogue, caches and, if it may, the hub.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kvwise_core::Result;
use kvwise_core::arch::{Config, Model, family};
use kvwise_core::quant::Inventories;
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

/// A model that was found and read.
#[derive(Debug)]
pub struct Looked {
    /// Where it was found, and what lies beside its configuration.
    pub found: Found,
    /// Its layers, if the engine serves them.
    pub model: Option<Arc<Model>>,
    /// Its configuration.
    pub config: Arc<Config>,
    /// Why the engine does not serve its architecture, if it does not.
    pub refused: Option<String>,
    /// The part of the configuration with a tower whose weights are not known.
    pub unread_tower: Option<&'static str>,
    /// What plans work out about its parameters.
    pub inventories: Inventories,
}

impl Looked {
    fn read(found: Found) -> Result<Self> {
        let config = Arc::new(found.config.clone());
        let mut looked = Self {
            found,
            model: None,
            config,
            refused: None,
            unread_tower: None,
            inventories: Inventories::default(),
        };
        // A GGUF file is described by its header.
        if looked.found.gguf.is_some() {
            return Ok(looked);
        }
        match family::read(&looked.found.name, &looked.config).map_err(|e| e.at(&looked.found.name))? {
            family::Reading::Model(model) => {
                looked.model = Some(Arc::new(*model));
                looked.unread_tower = family::unread_tower(&looked.config)?;
            }
            family::Reading::Refused(refusal) => {
                looked.refused = Some(format!("{}: {}", refusal.architecture, refusal.reason));
            }
        }
        Ok(looked)
    }
}

/// Models by name and revision, each looked up and read once: for questions that plan the same model many times.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<Asked, Arc<Looked>>>);

/// Name and revision of a model, as they were asked for.
type Asked = (String, Option<String>);

impl Known {
    /// The model, from before or looked up now.
    ///
    /// # Errors
    /// As [`Lookup::find`], and if its configuration cannot be used.
    pub fn get(&self, lookup: Lookup, name: &str, revision: Option<&str>) -> Result<Arc<Looked>> {
        let key = (name.to_owned(), revision.map(str::to_owned));
        let list = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = list().get(&key) {
            return Ok(Arc::clone(known));
        }
        let looked = Arc::new(Looked::read(lookup.find(name, revision)?)?);
        Ok(Arc::clone(list().entry(key).or_insert(looked)))
    }
}
