//! From what a user calls a model to its configuration and, where they are known, its tensors' headers.

pub mod folder;
pub mod gguf;
mod quantization;
pub mod safetensors;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvwise_core::arch::config::MAX_CONFIG_BYTES;
use kvwise_core::arch::{Config, shape};
use kvwise_core::engine::llamacpp::Header;
use kvwise_core::{Error, ErrorKind, Result, catalogue};

use crate::hub::{self, GgufId, OnProgress, RepoId};
pub use folder::Checkpoint;
pub(crate) use quantization::QUANTIZATION_FILE;

/// A model that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Hub id, or the path as the user wrote it.
    pub name: String,
    /// Where it was found.
    pub place: Place,
    /// Its configuration.
    pub config: Config,
    /// Its tensors, where headers or an index were there.
    pub checkpoint: Option<Checkpoint>,
    /// What the user should know about how it was found, one sentence each.
    pub notes: Vec<String>,
    /// The header, where it is a GGUF file; its configuration is then empty.
    pub gguf: Option<Box<Header>>,
}

/// Where a model was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The built-in catalogue.
    Catalogue(catalogue::Provenance),
    /// A folder or file.
    Path(PathBuf),
    /// The hub, or a cache of it.
    Hub(hub::Origin),
    /// Nowhere: a shape in the user's words (`layers=80,heads=64`, see [`kvwise_core::arch::shape`]).
    Shape,
}

/// Finds a model without the hub: an existing folder or file, else a shape in words, else a name of the built-in catalogue.
///
/// # Errors
/// If there is no such file and no such name, or what is there cannot be used.
pub fn find(name: &str) -> Result<Found> {
    match find_path(name)? {
        Some(found) => Ok(found),
        None => in_catalogue(&catalogue::find(name)?),
    }
}

/// Finds a model anywhere: an existing folder or file, a name of the built-in catalogue, the hub's caches on this
/// machine, and last the hub itself, if `settings` allow it.
///
/// A catalogue name needs no network. With a `revision` other than `main` the caches and the hub are asked first, and
/// the catalogue's row stands in, with a note, where they cannot be. Only names with an organisation (`ORG/NAME`) are
/// asked of the hub, so that a mistyped short name never leaves this machine.
///
/// # Errors
/// If it is nowhere, or what is there cannot be used; hints name the nearest names and what to do.
pub fn find_anywhere(
    name: &str,
    revision: Option<&str>,
    settings: &hub::Settings,
    progress: OnProgress,
) -> Result<Found> {
    if let Some(wanted) = GgufId::parse(name).filter(|_| !Path::new(name).exists()) {
        return gguf_on_hub(&wanted, revision, settings, progress);
    }
    if let Some(found) = find_path(name)? {
        return Ok(found);
    }
    let id = RepoId::parse(name);
    let pinned = revision.filter(|&r| r != "main");
    match (catalogue::find(name), pinned) {
        (Ok(entry), None) => in_catalogue(&entry),
        (Ok(entry), Some(pinned)) => {
            let id = id
                .filter(RepoId::has_organisation)
                .or_else(|| RepoId::parse(entry.id));
            let why = match id {
                None => format!("{} is not a name of the hub", entry.id),
                Some(id) => match hub::find(&id, revision, settings, progress) {
                    Ok(model) => return Ok(on_hub(model)),
                    // the hub has no such revision: the catalogue's is not what was asked for
                    Err(e) if e.kind() != ErrorKind::Io && settings.offline.is_none() => return Err(e),
                    Err(e) if !matches!(e.kind(), ErrorKind::Io | ErrorKind::NotFound) => return Err(e),
                    Err(e) => e.to_string(),
                },
            };
            let mut found = in_catalogue(&entry)?;
            found.notes.push(format!(
                "revision {pinned} is not known here, the catalogue's configuration is taken: {why}"
            ));
            Ok(found)
        }
        (Err(unknown), _) => {
            let Some(id) = id else { return Err(unknown) };
            if !id.has_organisation() {
                return match hub::find_local(&id, revision, settings)? {
                    Some(model) => Ok(on_hub(model)),
                    None => Err(unknown.hint("models of the hub are written ORG/NAME")),
                };
            }
            if names_gguf(&id) {
                let wanted = GgufId {
                    id,
                    pick: hub::Pick::Default,
                };
                return gguf_on_hub(&wanted, revision, settings, progress);
            }
            hub::find(&id, revision, settings, progress)
                .map(on_hub)
                .map_err(|e| {
                    let cannot_ask = e.kind() == ErrorKind::Io || settings.offline.is_some();
                    if !cannot_ask {
                        return e;
                    }
                    let mut error = Error::new(e.kind(), format!("{unknown}; on the hub: {e}"));
                    for hint in unknown.hints().iter().chain(e.hints()) {
                        error = error.hint(hint.clone());
                    }
                    error
                })
        }
    }
}

/// Whether a repository is named as one of GGUF files (`ORG/NAME-GGUF`).
fn names_gguf(id: &RepoId) -> bool {
    id.as_str().to_ascii_lowercase().ends_with("gguf")
}

/// Whether a model's name means a GGUF file: a path, a file of the hub, or a repository of them.
pub fn is_gguf_name(name: &str) -> bool {
    extension(Path::new(name)).as_deref() == Some("gguf")
        || GgufId::parse(name).is_some()
        || RepoId::parse(name).is_some_and(|id| id.has_organisation() && names_gguf(&id))
}

/// A GGUF file of the hub.
fn gguf_on_hub(
    wanted: &GgufId,
    revision: Option<&str>,
    settings: &hub::Settings,
    progress: OnProgress,
) -> Result<Found> {
    let found = hub::gguf::find(wanted, revision, settings, progress)?;
    Ok(Found {
        name: found.name,
        place: Place::Hub(found.origin),
        config: Config::from_map(serde_json::Map::new()),
        checkpoint: None,
        notes: Vec::new(),
        gguf: Some(Box::new(found.header)),
    })
}

fn in_catalogue(entry: &catalogue::Entry) -> Result<Found> {
    Ok(Found {
        name: entry.id.to_owned(),
        place: Place::Catalogue(entry.provenance()?),
        config: entry.config()?,
        checkpoint: None,
        notes: Vec::new(),
        gguf: None,
    })
}

fn on_hub(model: hub::HubModel) -> Found {
    Found {
        name: model.origin.id.as_str().to_owned(),
        notes: model.origin.notes.clone(),
        place: Place::Hub(model.origin),
        config: model.config,
        checkpoint: model.checkpoint,
        gguf: None,
    }
}

/// A folder or file with this name, or a shape; `None` if there is none and the name may be a model's.
fn find_path(name: &str) -> Result<Option<Found>> {
    let path = Path::new(name);
    let found = |config, checkpoint| Found {
        name: name.to_owned(),
        place: Place::Path(path.to_owned()),
        config,
        checkpoint,
        notes: Vec::new(),
        gguf: None,
    };
    if !path.exists() && shape::is_shape(name) {
        return Ok(Some(Found {
            place: Place::Shape,
            ..found(shape::config(name)?, None)
        }));
    }
    if path.is_dir() {
        let config = read_folder_config(path)?;
        return Ok(Some(found(config, folder::read(path)?)));
    }
    if path.is_file() {
        return match extension(path).as_deref() {
            Some("json") => Ok(Some(found(read_config(path)?, None))),
            Some("gguf") => Ok(Some(Found {
                gguf: Some(Box::new(gguf::read(path)?)),
                ..found(Config::from_map(serde_json::Map::new()), None)
            })),
            Some("safetensors") => Err(Error::input(format!(
                "{name}: tensors alone do not describe a model"
            ))
            .hint("give the folder that also holds its config.json")),
            _ => Err(Error::input(format!(
                "{name}: not a folder, a config.json or a name of the catalogue"
            ))),
        };
    }
    if path.is_absolute()
        || name.starts_with("./")
        || name.starts_with("../")
        || matches!(extension(path).as_deref(), Some("json" | "gguf" | "safetensors"))
    {
        return Err(Error::not_found(format!("{name}: no such file or folder")));
    }
    Ok(None)
}

fn extension(path: &Path) -> Option<String> {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase())
}

/// Reads a `config.json`.
///
/// # Errors
/// If it is missing, too large or not a JSON object.
pub fn read_config(path: &Path) -> Result<Config> {
    let bytes = read_capped(path, MAX_CONFIG_BYTES)?;
    parse_config(&bytes).map_err(|e| e.at(path.display()))
}

/// Parses a `config.json`.
///
/// # Errors
/// If it is too large or not a JSON object.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<Config> {
    Config::parse(bytes)
}

/// Reads a folder's `config.json`, and the quantisation that older ModelOpt checkpoints keep in a second file.
///
/// # Errors
/// If a file is missing, too large or not a JSON object.
pub(crate) fn read_folder_config(folder: &Path) -> Result<Config> {
    quantization::with_second_file(read_config(&folder.join("config.json"))?, folder)
}

/// Reads a whole file, but never more than `cap` bytes.
///
/// # Errors
/// If it cannot be read or is longer.
pub fn read_capped(path: &Path, cap: usize) -> Result<Vec<u8>> {
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("{}: no such file", path.display())),
        _ => Error::io(format!("{}: cannot read: {e}", path.display())),
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(missing)?
        .take(cap as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(missing)?;
    if bytes.len() > cap {
        return Err(Error::input(format!(
            "{}: longer than the {cap} bytes that are read",
            path.display()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_name_is_found_without_any_file() {
        let found = find("qwen3-32b").unwrap();
        assert_eq!(found.name, "Qwen/Qwen3-32B");
        assert!(matches!(found.place, Place::Catalogue(_)));
    }

    #[test]
    fn a_missing_path_is_not_looked_up_as_a_name() {
        for name in ["./nothing", "/nowhere/model", "gone/config.json", "gone.gguf"] {
            assert!(
                find(name).unwrap_err().to_string().contains("no such file"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_config_file_and_its_folder_are_the_same_model() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"architectures":["LlamaForCausalLM"]}"#).unwrap();
        let a = find(file.to_str().unwrap()).unwrap();
        let b = find(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(a.config, b.config);
        assert_eq!(b.checkpoint, None);
    }

    #[test]
    fn a_folder_without_config_says_which_file_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let e = find(dir.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(e.ends_with("config.json: no such file"), "{e}");
    }

    #[test]
    fn broken_json_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for (text, says) in [
            (&b"{\"a\": "[..], "not valid JSON"),
            (&b"[1]"[..], "not an object"),
            (&b"{\"a\": \"\xff\"}"[..], "not valid JSON"),
            (&b""[..], "not valid JSON"),
        ] {
            let file = dir.path().join("config.json");
            std::fs::write(&file, text).unwrap();
            let e = find(file.to_str().unwrap()).unwrap_err().to_string();
            assert!(e.contains("config.json: ") && e.contains(says), "{e}");
        }
    }
}
