//! From what a user calls a model to its configuration and, where they lie beside it, its tensors' headers.

pub mod folder;
pub mod safetensors;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvwise_core::arch::Config;
use kvwise_core::arch::config::MAX_CONFIG_BYTES;
use kvwise_core::{Error, Result, catalogue};

pub use folder::Checkpoint;

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
}

/// Where a model was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The built-in catalogue.
    Catalogue(catalogue::Provenance),
    /// A folder or file.
    Path(PathBuf),
}

/// Finds a model: an existing folder or file, else a name of the built-in catalogue.
///
/// # Errors
/// If there is no such file and no such name, or what is there cannot be used.
pub fn find(name: &str) -> Result<Found> {
    let path = Path::new(name);
    if path.is_dir() {
        let config = read_config(&path.join("config.json"))?;
        let checkpoint = folder::read(path)?;
        return Ok(Found {
            name: name.to_owned(),
            place: Place::Path(path.to_owned()),
            config,
            checkpoint,
        });
    }
    if path.is_file() {
        return match extension(path).as_deref() {
            Some("json") => Ok(Found {
                name: name.to_owned(),
                place: Place::Path(path.to_owned()),
                config: read_config(path)?,
                checkpoint: None,
            }),
            Some("gguf") => Err(Error::unsupported(format!(
                "{name}: GGUF files are not read by this version"
            ))
            .hint("give the folder of the original model, or its config.json")),
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
    let entry = catalogue::find(name)?;
    Ok(Found {
        name: entry.id.to_owned(),
        place: Place::Catalogue(entry.provenance()?),
        config: entry.config()?,
        checkpoint: None,
    })
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
    Config::parse(&bytes).map_err(|e| e.at(path.display()))
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
