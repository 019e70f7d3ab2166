//! Looking models up by name: files, catalogue, caches and, if it may, the hub.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kvwise_core::Result;
use kvwise_core::arch::{Config, Model, family};
use kvwise_core::engine::llamacpp::Header;
use kvwise_core::quant::Inventories;
use kvwise_io::hub::Settings;
use kvwise_io::model::{self, Checkpoint, Found, Place};

/// Quiet time before a bar appears.
const DELAY: Duration = Duration::from_secs(1);

/// How far a look-up may go, and the models that it has read: copies share them, so that the variants of a deployment
/// read theirs once. By default it stays on this machine; the command line opens the network.
#[derive(Debug, Clone, Default)]
pub struct Lookup {
    /// Whether a model that is nowhere on this machine may be asked of the hub.
    pub network: bool,
    /// Whether to show a bar on stderr when that takes longer than a second.
    pub progress: bool,
    read: Arc<Mutex<HashMap<Asked, Arc<Looked>>>>,
}

/// Name and revision of a model, as they were asked for.
type Asked = (String, Option<String>);

impl PartialEq for Lookup {
    /// What was read before makes no difference.
    fn eq(&self, other: &Self) -> bool {
        (self.network, self.progress) == (other.network, other.progress)
    }
}

impl Lookup {
    /// A look-up that goes this far.
    pub fn new(network: bool, progress: bool) -> Self {
        Self {
            network,
            progress,
            ..Self::default()
        }
    }

    /// The model, read before or found and read now.
    ///
    /// # Errors
    /// As [`Self::find`], and if its configuration cannot be used.
    pub fn read(&self, name: &str, revision: Option<&str>) -> Result<Arc<Looked>> {
        let asked = (name.to_owned(), revision.map(str::to_owned));
        let list = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(looked) = list().get(&asked) {
            return Ok(Arc::clone(looked));
        }
        let looked = Arc::new(Looked::read(self.find(name, revision)?)?);
        Ok(Arc::clone(list().entry(asked).or_insert(looked)))
    }

    /// Finds a model.
    ///
    /// # Errors
    /// If it is nowhere, or what is there cannot be used.
    pub fn find(&self, name: &str, revision: Option<&str>) -> Result<Found> {
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

/// A model that was found and read; the fields of [`Found`], and what its configuration says.
#[derive(Debug)]
pub struct Looked {
    /// Hub id, or the path as the user wrote it.
    pub name: String,
    /// Where it was found.
    pub place: Place,
    /// Its tensors, where headers or an index were there.
    pub checkpoint: Option<Checkpoint>,
    /// What the user should know about how it was found, one sentence each.
    pub notes: Vec<String>,
    /// The header, where it is a GGUF file, which describes it instead of a configuration.
    pub gguf: Option<Box<Header>>,
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its layers, if the engine serves them.
    pub model: Option<Arc<Model>>,
    /// Why the engine does not serve its architecture, if it does not.
    pub refused: Option<String>,
    /// What to change in its files, where they are what the engine refuses.
    pub fix: Option<String>,
    /// The part of the configuration with a tower whose weights are not known.
    pub unread_tower: Option<&'static str>,
    /// What plans work out about its parameters.
    pub inventories: Inventories,
}

impl Looked {
    fn read(found: Found) -> Result<Self> {
        let (mut model, mut refused, mut fix, mut unread_tower) = (None, None, None, None);
        if found.gguf.is_none() {
            match family::read(&found.name, &found.config).map_err(|e| e.at(&found.name))? {
                family::Reading::Model(layers) => {
                    model = Some(Arc::new(*layers));
                    unread_tower = family::unread_tower(&found.config)?;
                }
                family::Reading::Refused(refusal) => {
                    let culprit = if refusal.of_file {
                        &found.name
                    } else {
                        &refusal.architecture
                    };
                    refused = Some(format!("{culprit}: {}", refusal.reason));
                    fix = refusal.fix;
                    // What the rest of the file says is planned, and the refusal said with it.
                    model = refusal.model.map(|layers| Arc::new(*layers));
                }
            }
        }
        Ok(Self {
            name: found.name,
            place: found.place,
            checkpoint: found.checkpoint,
            notes: found.notes,
            gguf: found.gguf,
            config: Arc::new(found.config),
            model,
            refused,
            fix,
            unread_tower,
            inventories: Inventories::default(),
        })
    }
}
