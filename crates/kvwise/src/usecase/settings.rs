//! The user's settings and calibrations for this run of the program.
//!
//! They are read once, when the program starts; a library user, and every unit test, has none.

use std::sync::OnceLock;

use kvwise_core::plan::Observation;
use kvwise_core::{Error, Result};
use kvwise_io::folders;
use kvwise_io::settings::{Key, Layer, Settings};
use kvwise_io::site::Calibrations;

use super::deployment::Deployment;

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Reads the settings of the user who runs the program.
///
/// # Errors
/// If the settings file or a variable has a key or value that is not known.
pub fn install() -> Result<()> {
    let settings = Settings::load(folders::config(), |name| std::env::var(name).ok())?;
    let _ = SETTINGS.set(settings);
    Ok(())
}

/// The settings of this run; empty if none were installed.
pub fn current() -> &'static Settings {
    static NONE: OnceLock<Settings> = OnceLock::new();
    SETTINGS
        .get()
        .unwrap_or_else(|| NONE.get_or_init(Settings::default))
}

/// Where calibrations are kept.
///
/// # Errors
/// If the user has no folder.
pub fn calibrations() -> Result<Calibrations> {
    current().dir.as_ref().map(Calibrations::new).ok_or_else(|| {
        Error::input("there is no folder to keep calibrations in")
            .hint("set KVWISE_CONFIG_DIR to a folder that can be written")
    })
}

/// Saved observations; none without a folder.
///
/// # Errors
/// If the file cannot be read.
pub fn observations() -> Result<Vec<Observation>> {
    match &current().dir {
        None => Ok(Vec::new()),
        Some(dir) => Ok(Calibrations::new(dir)
            .load()?
            .into_iter()
            .map(|saved| saved.observation)
            .collect()),
    }
}

/// The deployment, with what it leaves open taken from the user's settings.
pub fn complete(deployment: Deployment) -> Deployment {
    current()
        .layers()
        .iter()
        .fold(deployment, |deployment, layer| under(deployment, layer))
}

/// A deployment over one layer of defaults. Settings that belong together are taken together: a card that is named does
/// not get another card's memory, an engine not another engine's version.
fn under(mut deployment: Deployment, layer: &Layer) -> Deployment {
    if deployment.gpu.is_none() && deployment.gpu_memory.is_none() {
        deployment.gpu = layer.get(Key::Gpu);
        deployment.gpu_memory = layer.get(Key::GpuMemory);
    }
    deployment.interconnect = deployment.interconnect.or_else(|| layer.get(Key::Interconnect));
    // A number of parameters alone can only be planned without an engine.
    if deployment.model.is_none() {
        return deployment;
    }
    let of_layer = layer.get(Key::Engine);
    let effective = |engine: &Option<String>| engine.as_deref().unwrap_or("vllm").to_ascii_lowercase();
    let same = deployment.engine.is_none() || effective(&deployment.engine) == effective(&of_layer);
    deployment.engine = deployment.engine.or(of_layer);
    if same && effective(&deployment.engine) != "generic" {
        deployment.engine_version = deployment
            .engine_version
            .or_else(|| layer.get(Key::EngineVersion));
    }
    if effective(&deployment.engine) == "vllm" {
        deployment.gpu_memory_utilization = deployment.gpu_memory_utilization.or_else(|| {
            layer
                .get(Key::GpuMemoryUtilization)
                .and_then(|share| share.parse().ok())
        });
    }
    deployment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &'static [(&'static str, &'static str)]) -> Settings {
        Settings::load(None, |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
        .unwrap()
    }

    fn complete_with(deployment: Deployment, settings: &Settings) -> Deployment {
        settings
            .layers()
            .iter()
            .fold(deployment, |deployment, layer| under(deployment, layer))
    }

    #[test]
    fn what_is_said_wins_and_what_belongs_together_stays_together() {
        let all = settings(&[
            ("KVWISE_GPU", "h100"),
            ("KVWISE_GPU_MEMORY", "40GiB"),
            ("KVWISE_ENGINE_VERSION", "0.20.0"),
            ("KVWISE_GPU_MEMORY_UTILIZATION", "0.8"),
        ]);
        let model = || Deployment {
            model: Some("m".to_owned()),
            ..Deployment::default()
        };
        let plain = complete_with(model(), &all);
        assert_eq!(plain.gpu.as_deref(), Some("h100"));
        assert_eq!(plain.gpu_memory.as_deref(), Some("40GiB"));
        assert_eq!(plain.engine_version.as_deref(), Some("0.20.0"));
        assert_eq!(plain.gpu_memory_utilization, Some(0.8));
        let other_card = complete_with(
            Deployment {
                gpu: Some("l4".to_owned()),
                ..model()
            },
            &all,
        );
        assert_eq!(
            (other_card.gpu.as_deref(), other_card.gpu_memory),
            (Some("l4"), None)
        );
        let other_engine = complete_with(
            Deployment {
                engine: Some("sglang".to_owned()),
                ..model()
            },
            &all,
        );
        assert_eq!(other_engine.engine_version, None);
        assert_eq!(other_engine.gpu_memory_utilization, None);
    }

    #[test]
    fn a_number_of_parameters_alone_gets_no_engine() {
        let all = settings(&[("KVWISE_ENGINE", "vllm"), ("KVWISE_GPU", "h100")]);
        let only_size = complete_with(
            Deployment {
                params_b: Some(8.0),
                ..Deployment::default()
            },
            &all,
        );
        assert_eq!((only_size.engine, only_size.gpu.as_deref()), (None, Some("h100")));
    }
}
