//! The user's defaults: a small TOML file in the user's folder, and environment variables that win over it.
//!
//! Only settings that name the user's own hardware and taste are here; what belongs to a deployment is in its
//! [profile](crate::plan_profile). A key that is not known is an error, so that a misspelt one does not silently do
//! nothing.

use std::path::{Path, PathBuf};

use kvwise_core::names::nearest;
use kvwise_core::units::parse_bytes;
use kvwise_core::{Error, Result};

use crate::gpu::user;
use crate::model::read_capped;

/// Largest settings file that is read, in bytes.
const MAX_BYTES: usize = 64 << 10;
/// Name of the file in the user's folder.
const FILE: &str = "config.toml";

/// A setting that can have a default of the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `--gpu`.
    Gpu,
    /// `--gpu-memory`.
    GpuMemory,
    /// `--interconnect`.
    Interconnect,
    /// `--engine`.
    Engine,
    /// `--engine-version`.
    EngineVersion,
    /// `--gpu-memory-utilization`.
    GpuMemoryUtilization,
    /// `--format`.
    Format,
}

impl Key {
    /// All keys, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Gpu,
        Self::GpuMemory,
        Self::Interconnect,
        Self::Engine,
        Self::EngineVersion,
        Self::GpuMemoryUtilization,
        Self::Format,
    ];

    /// Name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::GpuMemory => "gpu_memory",
            Self::Interconnect => "interconnect",
            Self::Engine => "engine",
            Self::EngineVersion => "engine_version",
            Self::GpuMemoryUtilization => "gpu_memory_utilization",
            Self::Format => "format",
        }
    }

    /// Environment variable.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Gpu => "KVWISE_GPU",
            Self::GpuMemory => "KVWISE_GPU_MEMORY",
            Self::Interconnect => "KVWISE_INTERCONNECT",
            Self::Engine => "KVWISE_ENGINE",
            Self::EngineVersion => "KVWISE_ENGINE_VERSION",
            Self::GpuMemoryUtilization => "KVWISE_GPU_MEMORY_UTILIZATION",
            Self::Format => "KVWISE_FORMAT",
        }
    }

    /// What holds if nobody says anything, for people.
    pub const fn default(self) -> &'static str {
        match self {
            Self::Gpu | Self::GpuMemory => "none: has to be given",
            Self::Interconnect => "as the catalogue says",
            Self::Engine => "vllm",
            Self::EngineVersion => "the newest known",
            Self::GpuMemoryUtilization => "the engine version's",
            Self::Format => "table on a terminal, else json",
        }
    }

    /// Checks a value; the message says what is expected.
    fn check(self, value: &str) -> Result<()> {
        let one_of = |names: &[&str]| {
            if names.contains(&value) {
                return Ok(());
            }
            let error = Error::input(format!(
                "{} is \"{value}\", expected {}",
                self.name(),
                names.join(", ")
            ));
            Err(match nearest(value, names.iter().copied(), 1).first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            })
        };
        match self {
            Self::Gpu if value == "auto" || value == "cpu" => Ok(()),
            Self::Gpu => user::find(value).map(|_| ()).map_err(|e| e.at("gpu")),
            Self::GpuMemory => parse_bytes(value).map(|_| ()).map_err(|e| e.at("gpu_memory")),
            Self::Interconnect => one_of(&["pcie", "nvlink"]),
            Self::Engine => one_of(&["vllm", "sglang", "llamacpp", "generic"]),
            Self::EngineVersion => {
                if value == "latest"
                    || value
                        .trim_start_matches('v')
                        .starts_with(|c: char| c.is_ascii_digit())
                {
                    Ok(())
                } else {
                    Err(Error::input(format!(
                        "engine_version is \"{value}\", expected a release like 0.32.0"
                    )))
                }
            }
            Self::GpuMemoryUtilization => match value.parse::<f64>() {
                Ok(share) if share > 0.0 && share <= 1.0 => Ok(()),
                _ => Err(Error::input(format!(
                    "gpu_memory_utilization is {value}, expected more than 0 and at most 1"
                ))),
            },
            Self::Format => one_of(&["table", "json", "csv", "markdown", "html"]),
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable.
    Environment(&'static str),
    /// The settings file.
    File(PathBuf),
}

/// The user's defaults, from the environment and the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The user's folder, if there can be one.
    pub dir: Option<PathBuf>,
    environment: Vec<(Key, String)>,
    file: Vec<(Key, String)>,
}

impl Settings {
    /// Reads the file of a folder (none is fine) and the environment through `variable`.
    ///
    /// # Errors
    /// If the file cannot be read, has a key that is not known, or a value that means nothing; the message names it.
    pub fn load(dir: Option<PathBuf>, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut environment = Vec::new();
        for key in Key::ALL {
            if let Some(value) = variable(key.variable()).filter(|v| !v.is_empty()) {
                key.check(&value).map_err(|e| e.at(key.variable()))?;
                environment.push((key, value));
            }
        }
        let file = match &dir {
            Some(dir) => read(&dir.join(FILE))?,
            None => Vec::new(),
        };
        Ok(Self {
            dir,
            environment,
            file,
        })
    }

    /// The settings file's path.
    pub fn path(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(FILE))
    }

    /// The value of a key and where it comes from: the environment first, then the file.
    pub fn value(&self, key: Key) -> Option<(&str, Origin)> {
        let of = |values: &'_ [(Key, String)]| values.iter().position(|(k, _)| *k == key);
        if let Some(at) = of(&self.environment) {
            return Some((&self.environment[at].1, Origin::Environment(key.variable())));
        }
        of(&self.file).map(|at| {
            (
                self.file[at].1.as_str(),
                Origin::File(self.path().unwrap_or_default()),
            )
        })
    }

    /// Layers from the strongest to the weakest: environment, file.
    pub fn layers(&self) -> [Layer<'_>; 2] {
        [Layer(&self.environment), Layer(&self.file)]
    }
}

/// One place where values come from.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a>(&'a [(Key, String)]);

impl Layer<'_> {
    /// The value of a key in this place.
    pub fn get(&self, key: Key) -> Option<String> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone())
    }
}

fn read(path: &Path) -> Result<Vec<(Key, String)>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = read_capped(path, MAX_BYTES)?;
    let at = |e: Error| e.at(path.display());
    let text = std::str::from_utf8(&bytes).map_err(|_| at(Error::input("not UTF-8 text")))?;
    parse(text).map_err(at)
}

/// Reads the text of a settings file.
///
/// # Errors
/// If it is not TOML, or a key or value is not known.
pub fn parse(text: &str) -> Result<Vec<(Key, String)>> {
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| Error::input(format!("not valid TOML: {}", e.message())))?;
    let mut values = Vec::new();
    for (name, value) in &table {
        let Some(key) = Key::ALL.into_iter().find(|key| key.name() == name) else {
            let names = Key::ALL.map(Key::name);
            let error = Error::input(format!("\"{name}\" is not a setting"))
                .hint(format!("settings are: {}", names.join(", ")));
            return Err(match nearest(name, names, 1).first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            });
        };
        let value = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Float(number) if key == Key::GpuMemoryUtilization => number.to_string(),
            toml::Value::Integer(number) if key == Key::GpuMemoryUtilization => number.to_string(),
            other => {
                return Err(Error::input(format!(
                    "{name} is {} {other}, expected {}",
                    other.type_str(),
                    if key == Key::GpuMemoryUtilization {
                        "a number"
                    } else {
                        "text in quotes"
                    }
                )));
            }
        };
        key.check(&value)?;
        values.push((key, value));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_environment_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.toml"),
            "gpu = \"h100\"\nformat = \"csv\"\ngpu_memory_utilization = 0.85\n",
        )
        .unwrap();
        let settings = Settings::load(Some(folder.path().to_owned()), |name| {
            (name == "KVWISE_GPU").then(|| "a100-80gb".to_owned())
        })
        .unwrap();
        assert_eq!(
            settings.value(Key::Gpu),
            Some(("a100-80gb", Origin::Environment("KVWISE_GPU")))
        );
        assert_eq!(settings.value(Key::Format).unwrap().0, "csv");
        assert_eq!(settings.value(Key::GpuMemoryUtilization).unwrap().0, "0.85");
        assert_eq!(settings.value(Key::Engine), None);
        let [environment, file] = settings.layers();
        assert_eq!(environment.get(Key::Gpu).as_deref(), Some("a100-80gb"));
        assert_eq!(file.get(Key::Gpu).as_deref(), Some("h100"));
    }

    #[test]
    fn what_is_misspelt_or_means_nothing_is_an_error_that_names_it() {
        for (text, says) in [
            ("gpus = \"h100\"", "\"gpus\" is not a setting"),
            ("gpu = \"h10\"", "gpu: the GPU \"h10\""),
            ("gpu = 100", "gpu is integer 100, expected text in quotes"),
            ("gpu_memory = \"24\"", "gpu_memory: "),
            ("engine = \"vlm\"", "engine is \"vlm\""),
            ("interconnect = \"ethernet\"", "interconnect is \"ethernet\""),
            ("engine_version = \"new\"", "engine_version is \"new\""),
            ("gpu_memory_utilization = 92", "gpu_memory_utilization is 92"),
            ("gpu_memory_utilization = nan", "gpu_memory_utilization is NaN"),
            ("format = \"xml\"", "format is \"xml\""),
            ("gpu = ", "not valid TOML"),
            ("[gpu]\nname = \"h100\"", "gpu is table"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.to_string().contains(says), "{text}: {e}");
        }
        let e = parse("intercnnect = \"pcie\"").unwrap_err();
        assert!(format!("{e:?}").contains("did you mean interconnect?"), "{e:?}");
        let e =
            Settings::load(None, |name| (name == "KVWISE_ENGINE").then(|| "llama".to_owned())).unwrap_err();
        assert!(e.to_string().starts_with("KVWISE_ENGINE: "), "{e}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[a-z_= \"\\[\\]0-9.\n]{0,80}") {
            let _ = parse(&text);
        }
    }
}
