//! The site calibrations that are kept in the user's own folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kvwise_core::plan::Observation;
use kvwise_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::model::read_capped;

/// Most bytes of the calibration file that are read.
const MAX_FILE_BYTES: usize = 8 << 20;
/// Most observations that are kept; of more, the oldest go.
const MAX_OBSERVATIONS: usize = 2000;
/// Name of the file in the user's folder.
const FILE: &str = "calibration.json";
/// Version of the file's shape.
const VERSION: u64 = 1;

/// One saved calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Number by which it can be removed; never used twice in one file.
    pub id: u64,
    /// Name of the log that it was read from.
    pub log: String,
    /// What was observed.
    pub observation: Observation,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u64,
    next_id: u64,
    calibrations: Vec<Saved>,
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            version: VERSION,
            next_id: 1,
            calibrations: Vec::new(),
        }
    }
}

/// The calibrations of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibrations {
    dir: PathBuf,
}

impl Calibrations {
    /// Those of this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file that holds them.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// All that are saved; none if there is no file.
    ///
    /// # Errors
    /// If the file cannot be read or is not one of this version.
    pub fn load(&self) -> Result<Vec<Saved>> {
        Ok(self.contents()?.calibrations)
    }

    /// Adds an observation and answers its number. The same observation of a log with the same name replaces the older.
    ///
    /// # Errors
    /// If the folder or the file cannot be written, or the present file cannot be read.
    pub fn add(&self, log: &str, observation: Observation) -> Result<u64> {
        self.change(|contents| {
            contents
                .calibrations
                .retain(|saved| saved.observation != observation);
            let id = contents.next_id;
            contents.next_id = id.saturating_add(1);
            contents.calibrations.push(Saved {
                id,
                log: log.chars().take(300).collect(),
                observation,
            });
            let excess = contents.calibrations.len().saturating_sub(MAX_OBSERVATIONS);
            contents.calibrations.drain(..excess);
            Ok(id)
        })
    }

    /// Removes the one with this number, or all of them, and answers how many.
    ///
    /// # Errors
    /// If none has the number, or the file cannot be read or written.
    pub fn remove(&self, id: Option<u64>) -> Result<u64> {
        self.change(|contents| {
            let before = contents.calibrations.len();
            contents
                .calibrations
                .retain(|saved| id.is_some_and(|id| saved.id != id));
            match (before - contents.calibrations.len(), id) {
                (0, Some(id)) => Err(Error::not_found(format!(
                    "{}: no calibration has the number {id}",
                    self.path().display()
                ))
                .hint("`kvwise config` lists the saved calibrations with their numbers")),
                (removed, _) => Ok(removed as u64),
            }
        })
    }

    fn contents(&self) -> Result<Contents> {
        let path = self.path();
        if !path.exists() {
            return Ok(Contents::default());
        }
        let bytes = read_capped(&path, MAX_FILE_BYTES)?;
        let damaged = |what: String| {
            Error::input(format!("{}: {what}", path.display()))
                .hint("move the file away to begin anew, or give --no-calibration")
        };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| damaged(format!("not valid JSON: {e}")))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(damaged(format!(
                    "version is {other}, this program reads version {VERSION}"
                )));
            }
            None => return Err(damaged("it has no version".to_owned())),
        }
        serde_json::from_value(value).map_err(|e| damaged(format!("not a calibration file: {e}")))
    }

    /// Changes the file under a lock, so that two programs at once lose nothing.
    fn change<T>(&self, change: impl FnOnce(&mut Contents) -> Result<T>) -> Result<T> {
        let fail = |path: &Path, e: &std::io::Error| {
            Error::io(format!("{}: cannot write: {e}", path.display()))
                .hint("KVWISE_CONFIG_DIR names another folder for settings and calibrations")
        };
        fs::create_dir_all(&self.dir).map_err(|e| fail(&self.dir, &e))?;
        let lock_path = self.dir.join("calibration.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| fail(&lock_path, &e))?;
        lock.lock().map_err(|e| fail(&lock_path, &e))?;
        let mut contents = self.contents()?;
        let answer = change(&mut contents)?;
        let mut text = serde_json::to_string_pretty(&contents)
            .map_err(|e| Error::input(format!("the calibrations cannot be written as JSON: {e}")))?;
        text.push('\n');
        atomic::write(&self.path(), text.as_bytes())?;
        // The lock ends with the file handle.
        drop(lock);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use kvwise_core::plan::Site;

    use super::*;

    fn observation(available_bytes: i64) -> Observation {
        Observation {
            site: Site {
                gpu: "h100".to_owned(),
                engine: "vllm".to_owned(),
                engine_version: "0.31".to_owned(),
                family: "LlamaForCausalLM".to_owned(),
                model: "m".to_owned(),
                tensor_parallel_size: 1,
                pipeline_parallel_size: 1,
                speculative: None,
                quantization: None,
            },
            budget_bytes: 70,
            available_bytes,
            planned_weights_bytes: 15,
            planned_overhead_bytes: 3,
            gpu_bytes: 80,
            unified: false,
        }
    }

    #[test]
    fn what_is_added_is_there_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let site = Calibrations::new(folder.path().join("new").join("kvwise"));
        assert_eq!(site.load().unwrap(), []);
        assert_eq!(site.add("a.log", observation(1)).unwrap(), 1);
        assert_eq!(site.add("b.log", observation(2)).unwrap(), 2);
        // The same log once more is no further evidence.
        assert_eq!(site.add("a.log", observation(1)).unwrap(), 3);
        let logs: Vec<String> = site.load().unwrap().into_iter().map(|s| s.log).collect();
        assert_eq!(logs, ["b.log", "a.log"]);
        assert!(
            site.remove(Some(1))
                .unwrap_err()
                .to_string()
                .contains("no calibration has the number 1")
        );
        assert_eq!(site.remove(Some(2)).unwrap(), 1);
        assert_eq!(site.remove(None).unwrap(), 1);
        assert_eq!(site.load().unwrap(), []);
    }

    #[test]
    fn a_damaged_or_newer_file_is_an_error_that_names_it_and_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let site = Calibrations::new(folder.path());
        for (text, says) in [
            ("{", "not valid JSON"),
            ("[]", "no version"),
            (r#"{"version":9,"next_id":1,"calibrations":[]}"#, "version is 9"),
            (r#"{"version":1,"calibrations":[]}"#, "next_id"),
            (
                r#"{"version":1,"next_id":1,"calibrations":[{"id":1}]}"#,
                "missing field",
            ),
        ] {
            fs::write(site.path(), text).unwrap();
            let e = site.load().unwrap_err();
            assert!(
                e.to_string().contains(says) && e.to_string().contains("calibration.json"),
                "{e}"
            );
            assert!(site.add("x", observation(1)).is_err());
            assert_eq!(fs::read_to_string(site.path()).unwrap(), text);
        }
    }

    #[test]
    fn several_writers_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let site = Calibrations::new(folder.path());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let site = &site;
                scope.spawn(move || {
                    for i in 0..5 {
                        site.add("log", observation(thread * 100 + i)).unwrap();
                    }
                });
            }
        });
        let saved = site.load().unwrap();
        let mut ids: Vec<u64> = saved.iter().map(|s| s.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=20).collect::<Vec<u64>>());
    }
}
