//! What a hub answered about one commit of a model, kept on disk: small files, and the headers of tensor files.
//!
//! `models--ORG--NAME/refs/REVISION` holds a commit; `snapshots/COMMIT/` holds `config.json`, where the model has
//! them `hf_quant_config.json` and `model.safetensors.index.json`, the beginnings of its safetensors files in
//! `headers/`, and `snapshot.json`, which is written last: a folder without it is not finished and not used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::id::RepoId;
use super::{HubModel, Origin, Taken, store};
use crate::atomic;
use crate::model::folder::{self, Files, INDEX};
use crate::model::safetensors::{self, MAX_HEADER_BYTES, Tensor};

const SCHEMA: &str = "kvwise.hub/1";
const MANIFEST: &str = "snapshot.json";
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: usize = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    schema: String,
    id: String,
    commit: String,
    /// Length in bytes of each tensor file whose beginning is here.
    tensor_files: BTreeMap<String, u64>,
    notes: Vec<String>,
}

/// A stored snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    folder: PathBuf,
    id: RepoId,
    manifest: Manifest,
}

impl Snapshot {
    /// The snapshot of a revision, if one was stored whole.
    ///
    /// # Errors
    /// If it was stored by a newer version or its manifest is broken.
    pub fn open(cache: &Path, id: &RepoId, revision: &str) -> Result<Option<Self>> {
        let Some(commit) = store::commit(&cache.join(id.folder()), revision) else {
            return Ok(None);
        };
        Self::of_commit(cache, id, &commit)
    }

    /// The snapshot of a commit, if it was stored whole.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn of_commit(cache: &Path, id: &RepoId, commit: &str) -> Result<Option<Self>> {
        let folder = cache.join(id.folder()).join("snapshots").join(commit);
        let file = folder.join(MANIFEST);
        if !file.is_file() {
            return Ok(None);
        }
        let broken = |why: String| {
            Error::input(format!("{}: {why}", file.display())).hint(format!(
                "remove the folder {} to fetch the model anew",
                folder.display()
            ))
        };
        let bytes = crate::model::read_capped(&file, MAX_MANIFEST_BYTES)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| broken(format!("not a stored snapshot: {e}")))?;
        if manifest.schema != SCHEMA || manifest.commit != commit || manifest.id != id.as_str() {
            return Err(broken(format!(
                "it is the {} of {} at {}",
                manifest.schema, manifest.id, manifest.commit
            )));
        }
        if let Some(name) = manifest
            .tensor_files
            .keys()
            .find(|name| !folder::is_file_name(name))
        {
            return Err(broken(format!("\"{name}\" is not the name of a file")));
        }
        Ok(Some(Self {
            folder,
            id: id.clone(),
            manifest,
        }))
    }

    /// The model in it.
    ///
    /// # Errors
    /// If a stored file cannot be read.
    pub fn model(&self, revision: &str, taken: Taken) -> Result<HubModel> {
        let checkpoint = folder::read_files(self)?;
        Ok(HubModel {
            config: crate::model::read_folder_config(&self.folder)?,
            checkpoint,
            origin: Origin {
                id: self.id.clone(),
                revision: revision.to_owned(),
                commit: self.manifest.commit.clone(),
                taken,
                notes: self.manifest.notes.clone(),
            },
        })
    }
}

impl Files for Snapshot {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.manifest.tensor_files.keys().cloned().collect())
    }

    fn index(&self) -> Result<Option<Vec<u8>>> {
        folder::read_index(&self.folder)
    }

    fn header(&self, name: &str) -> Result<Vec<Tensor>> {
        let file = self.folder.join("headers").join(name);
        let total = self.manifest.tensor_files.get(name).copied().unwrap_or_default();
        let cap = usize::try_from(MAX_HEADER_BYTES + 8).unwrap_or(usize::MAX);
        let bytes = crate::model::read_capped(&file, cap)?;
        safetensors::read_header(&mut bytes.as_slice(), total).map_err(|e| e.at(file.display()))
    }
}

/// A snapshot that is being stored.
#[derive(Debug)]
pub(super) struct Draft {
    folder: PathBuf,
    id: RepoId,
    commit: String,
}

impl Draft {
    /// Makes the folder.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(cache: &Path, id: &RepoId, commit: &str) -> Result<Self> {
        let folder = cache.join(id.folder()).join("snapshots").join(commit);
        make(&folder.join("headers"))?;
        Ok(Self {
            folder,
            id: id.clone(),
            commit: commit.to_owned(),
        })
    }

    /// Stores a small file under its name.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic::write(&self.folder.join(name), bytes)
    }

    /// Stores the index.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn index(&self, bytes: &[u8]) -> Result<()> {
        self.file(INDEX, bytes)
    }

    /// Stores the beginning of a tensor file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn header(&self, name: &str, bytes: &[u8]) -> Result<()> {
        atomic::write(&self.folder.join("headers").join(name), bytes)
    }

    /// Finishes the snapshot and makes it the one that `revision` means.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(
        self,
        cache: &Path,
        revision: &str,
        tensor_files: BTreeMap<String, u64>,
        notes: Vec<String>,
    ) -> Result<Snapshot> {
        let manifest = Manifest {
            schema: SCHEMA.to_owned(),
            id: self.id.as_str().to_owned(),
            commit: self.commit,
            tensor_files,
            notes,
        };
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::io(format!("{}: cannot write: {e}", self.folder.display())))?;
        atomic::write(&self.folder.join(MANIFEST), &bytes)?;
        let snapshot = Snapshot {
            folder: self.folder,
            id: self.id,
            manifest,
        };
        snapshot.name(cache, revision)?;
        Ok(snapshot)
    }
}

impl Snapshot {
    /// Makes this the snapshot that `revision` means.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn name(&self, cache: &Path, revision: &str) -> Result<()> {
        if store::is_commit(revision) {
            return Ok(());
        }
        let file = cache.join(self.id.folder()).join("refs").join(revision);
        if let Some(parent) = file.parent() {
            make(parent)?;
        }
        atomic::write(&file, self.manifest.commit.as_bytes())
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| {
        Error::io(format!("{}: cannot make the folder: {e}", folder.display()))
            .hint("KVWISE_CACHE names another folder for what the hub answers")
    })
}
