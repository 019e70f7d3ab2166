//! Models of the Hugging Face hub: configuration, quantisation file, index and tensor headers, never the weights.
//!
//! [`find`] looks in three places, in this order, and stops at the first that has the model:
//!
//! 1. the hub's own cache on this machine (what `huggingface_hub`, transformers and vLLM downloaded), read only;
//! 2. this program's cache, where earlier answers of the hub lie;
//! 3. the hub itself, unless it is offline. Of a safetensors file only the header is asked for, by a range request.
//!    What comes is kept in this program's cache, so that the next time needs no network.
//!
//! The environment variables are those of `huggingface_hub` 1.x (`constants.py`): see [`Settings::from_env`].

mod client;
mod fetch;
pub mod gguf;
mod id;
mod settings;
mod snapshot;
mod store;
#[cfg(test)]
mod test_hub;
#[cfg(test)]
mod tests;

pub use gguf::{GgufId, HubGguf, Pick};
pub use id::RepoId;
pub use settings::{Limits, Settings, Token};

use kvwise_core::arch::Config;
use kvwise_core::{Error, Result};

use crate::model::Checkpoint;
use client::Client;
use snapshot::Snapshot;

/// Where a model of the hub was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The hub's cache on this machine.
    HubCache,
    /// This program's cache.
    OwnCache,
    /// The hub, just now.
    Network,
}

/// What is known of where a model came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name on the hub.
    pub id: RepoId,
    /// The revision asked for (`main` if none was).
    pub revision: String,
    /// The commit that the revision was.
    pub commit: String,
    /// Where its files were taken from.
    pub taken: Taken,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.taken {
            Taken::HubCache => "hub cache",
            Taken::OwnCache => "kvwise's cache of the hub",
            Taken::Network => "hub",
        };
        let commit = self.commit.get(..12).unwrap_or(&self.commit);
        write!(f, "{place}: {} at {} ({commit})", self.id, self.revision)
    }
}

/// A model of the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct HubModel {
    /// Its configuration, with the quantisation that a second file may hold.
    pub config: Config,
    /// Its tensors, if it has safetensors files.
    pub checkpoint: Option<Checkpoint>,
    /// Where it comes from.
    pub origin: Origin,
}

/// How far a fetch has come: what is being done, and how many files of how many.
pub type OnProgress<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// Finds a model in the caches of this machine; the network is not touched.
///
/// # Errors
/// If a cache holds the model but its files cannot be read.
pub fn find_local(id: &RepoId, revision: Option<&str>, settings: &Settings) -> Result<Option<HubModel>> {
    let revision = checked_revision(revision)?;
    if let Some(cache) = &settings.hub_cache
        && let Some((commit, folder)) = store::in_hub_cache(cache, id, revision)
    {
        let config = crate::model::read_folder_config(&folder)?;
        let checkpoint = crate::model::folder::read(&folder)?;
        let mut notes = Vec::new();
        if checkpoint.is_none() {
            notes.push(format!(
                "the hub's cache holds no tensors of {id}: weights are computed from its configuration"
            ));
        }
        return Ok(Some(HubModel {
            config,
            checkpoint,
            origin: Origin {
                id: id.clone(),
                revision: revision.to_owned(),
                commit,
                taken: Taken::HubCache,
                notes,
            },
        }));
    }
    if let Some(cache) = settings.own_cache()
        && let Some(snapshot) = Snapshot::open(&cache, id, revision)?
    {
        return snapshot.model(revision, Taken::OwnCache).map(Some);
    }
    Ok(None)
}

/// Finds a model: in the caches of this machine, else on the hub.
///
/// # Errors
/// If it is nowhere, the hub refuses or cannot be reached, or what comes is not a model; hints say what to do.
pub fn find(
    id: &RepoId,
    revision: Option<&str>,
    settings: &Settings,
    progress: OnProgress,
) -> Result<HubModel> {
    if let Some(found) = find_local(id, revision, settings)? {
        return Ok(found);
    }
    if let Some(why) = &settings.offline {
        let at = revision.map(|r| format!(" at revision {r}")).unwrap_or_default();
        let error = Error::not_found(format!(
            "{id}{at} is in no cache of this machine, and {why} forbids asking the hub"
        ));
        let caches: Vec<String> = [settings.hub_cache.clone(), settings.own_cache()]
            .into_iter()
            .flatten()
            .map(|path| path.display().to_string())
            .collect();
        return Err(error
            .hint(format!("looked in {}", caches.join(" and ")))
            .hint("go online once, or give a folder with its config.json"));
    }
    let client = Client::new(settings)?;
    fetch::fetch(&client, id, checked_revision(revision)?, settings, progress)
}

/// `main` without a revision; refuses what no git revision can be.
fn checked_revision(revision: Option<&str>) -> Result<&str> {
    let revision = revision.unwrap_or("main");
    let sound = !revision.is_empty()
        && revision.len() <= 200
        && revision
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.'));
    if !sound {
        return Err(Error::input(format!(
            "--revision is \"{}\", expected a branch, a tag or a commit",
            revision.chars().take(60).collect::<String>()
        )));
    }
    Ok(revision)
}
