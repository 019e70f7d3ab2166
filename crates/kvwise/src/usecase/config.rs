//! Where settings come from, and what is saved.

use kvwise_core::Result;
use kvwise_io::settings::{Key, Origin};
use kvwise_io::site::Saved;

use super::settings;
use crate::report::config::{CalibrationRow, ConfigReport, SCHEMA, SettingRow};

/// The settings in force, and the saved calibrations.
///
/// # Errors
/// If the calibrations cannot be read.
pub fn show() -> Result<ConfigReport> {
    let current = settings::current();
    let settings = Key::ALL
        .map(|key| {
            let (value, origin) = match current.value(key) {
                None => (None, "default".to_owned()),
                Some((value, Origin::Environment(name))) => {
                    (Some(value.to_owned()), format!("environment {name}"))
                }
                Some((value, Origin::File(path))) => (Some(value.to_owned()), path.display().to_string()),
            };
            SettingRow {
                name: key.name(),
                value,
                origin,
                default: key.default(),
                variable: key.variable(),
            }
        })
        .to_vec();
    let calibrations = match settings::calibrations() {
        Ok(calibrations) => calibrations.load()?.iter().map(row).collect(),
        Err(_) => Vec::new(),
    };
    Ok(ConfigReport {
        schema: SCHEMA,
        folder: current.dir.as_ref().map(|dir| dir.display().to_string()),
        file: current.path().map(|path| path.display().to_string()),
        file_exists: current.path().is_some_and(|path| path.is_file()),
        settings,
        calibrations,
    })
}

fn row(saved: &Saved) -> CalibrationRow {
    CalibrationRow {
        id: saved.id,
        log: saved.log.clone(),
        observation: saved.observation.clone(),
    }
}

/// Removes one calibration, or all.
///
/// # Errors
/// If there is none of that number or the file cannot be written.
pub fn remove(id: Option<u64>) -> Result<u64> {
    settings::calibrations()?.remove(id)
}
