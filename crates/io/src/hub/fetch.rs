//! The order of steps of asking a hub about a model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kvwise_core::arch::config::MAX_CONFIG_BYTES;
use kvwise_core::{Error, Result, catalogue};
use serde::Deserialize;

use super::client::{Client, Failure, Refusal};
use super::id::RepoId;
use super::settings::Settings;
use super::snapshot::{Draft, Snapshot};
use super::{HubModel, OnProgress, Taken, store};
use crate::model::folder::{self, INDEX, MAX_INDEX_BYTES};
use crate::model::safetensors::{self, MAX_HEADER_BYTES};

/// Largest description of a repository that is read; one with 100,000 files has about 10 MB.
const MAX_INFO_BYTES: u64 = 64 << 20;
/// First bytes asked of a tensor file: most headers are shorter, so most files need one request.
const FIRST_BYTES: u64 = 128 << 10;
/// Most bytes of headers of one model.
const MAX_ALL_HEADERS_BYTES: u64 = 1 << 30;
/// Tensor files asked for at once.
const AT_ONCE: usize = 8;

/// What the hub says of a repository.
#[derive(Debug, Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Why a repository was not described.
pub(super) enum Undescribed {
    /// The hub refused or was not reached.
    Failed(Failure),
    /// What it answered means nothing.
    Nonsense(Error),
}

impl Undescribed {
    /// The error to show, a refusal in the caller's words.
    pub(super) fn or_explained(self, explain: &dyn Fn(&Failure) -> Error) -> Error {
        match self {
            Self::Failed(failure) => explain(&failure),
            Self::Nonsense(error) => error,
        }
    }
}

/// The commit that a revision is, and the names of all files in it.
pub(super) fn describe(
    client: &Client,
    id: &RepoId,
    revision: &str,
) -> std::result::Result<(String, Vec<String>), Undescribed> {
    let path = format!("/api/models/{id}/revision/{}", revision.replace('/', "%2F"));
    let bytes = client.whole(&path, MAX_INFO_BYTES).map_err(Undescribed::Failed)?;
    let info: Info = serde_json::from_slice(&bytes).map_err(|e| {
        Undescribed::Nonsense(
            Error::input(format!(
                "{}{path}: not what a hub says of a model: {e}",
                client.endpoint()
            ))
            .hint("is HF_ENDPOINT the address of a Hugging Face hub?"),
        )
    })?;
    if !store::is_commit(&info.sha) {
        return Err(Undescribed::Nonsense(Error::input(format!(
            "{}{path}: \"{}\" is not a commit",
            client.endpoint(),
            info.sha.chars().take(80).collect::<String>()
        ))));
    }
    let names = info.siblings.into_iter().map(|s| s.rfilename).collect();
    Ok((info.sha, names))
}

/// Asks the hub and stores what it answers.
///
/// # Errors
/// If the hub refuses, cannot be reached, or what it has is not a model.
pub(super) fn fetch(
    client: &Client,
    id: &RepoId,
    revision: &str,
    settings: &Settings,
    progress: OnProgress,
) -> Result<HubModel> {
    let cache = settings.folder_to_keep_in()?;
    let refused = |failure: &Failure| explain(failure, client, id, revision);
    progress("description", 0, 1);
    let (sha, names) = describe(client, id, revision).map_err(|e| e.or_explained(&refused))?;
    if let Some(snapshot) = Snapshot::of_commit(&cache, id, &sha)? {
        // stored under another name of the same commit
        snapshot.name(&cache, revision)?;
        return snapshot.model(revision, Taken::OwnCache);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if !names.contains(&"config.json") {
        return Err(no_configuration(id, &names));
    }

    let draft = Draft::new(&cache, id, &sha)?;
    let whole = |name: &str, cap: usize| {
        client
            .whole(&address(id, &sha, name), cap as u64)
            .map_err(|f| refused(&f))
    };
    progress("config.json", 0, 1);
    let config = whole("config.json", MAX_CONFIG_BYTES)?;
    crate::model::parse_config(&config).map_err(|e| e.at(format!("{id}: config.json")))?;
    draft.file("config.json", &config)?;
    if names.contains(&crate::model::QUANTIZATION_FILE) {
        let bytes = whole(crate::model::QUANTIZATION_FILE, MAX_CONFIG_BYTES)?;
        draft.file(crate::model::QUANTIZATION_FILE, &bytes)?;
    }
    let index = if names.contains(&INDEX) {
        let bytes = whole(INDEX, MAX_INDEX_BYTES)?;
        draft.index(&bytes)?;
        Some(bytes)
    } else {
        None
    };
    let here: Vec<String> = names
        .iter()
        .filter(|name| folder::is_file_name(name))
        .map(|&name| name.to_owned())
        .collect();
    let wanted = folder::tensor_files(id.as_str(), &here, index.as_deref())?;
    let tensor_files = headers(client, id, &sha, &wanted, &draft, &refused, progress)?;
    let mut notes = Vec::new();
    if wanted.is_empty() {
        notes.push(format!(
            "{id} has no safetensors files: weights are computed from its configuration"
        ));
    }
    draft
        .finish(&cache, revision, tensor_files, notes)?
        .model(revision, Taken::Network)
}

/// Path of a file at a commit.
pub(super) fn address(id: &RepoId, commit: &str, name: &str) -> String {
    let mut path = format!("/{id}/resolve/{commit}/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// Fetches and stores the headers of these files, several at once; brings the files' lengths.
fn headers(
    client: &Client,
    id: &RepoId,
    commit: &str,
    names: &[String],
    draft: &Draft,
    refused: &(dyn Fn(&Failure) -> Error + Sync),
    progress: OnProgress,
) -> Result<BTreeMap<String, u64>> {
    let next = AtomicUsize::new(0);
    let stored_bytes = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let done: Mutex<(BTreeMap<String, u64>, Option<Error>)> = Mutex::default();
    let one = |name: &String| -> Result<()> {
        let path = address(id, commit, name);
        let (bytes, total) = header(client, &path, name, refused)?;
        let sum = stored_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst) + bytes.len() as u64;
        if sum > MAX_ALL_HEADERS_BYTES {
            return Err(Error::input(format!(
                "{id}: the headers of its tensor files have more than {MAX_ALL_HEADERS_BYTES} bytes"
            )));
        }
        draft.header(name, &bytes)?;
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0.insert(name.clone(), total);
        progress("tensor headers", done.0.len(), names.len());
        Ok(())
    };
    let work = || {
        while !failed.load(Ordering::SeqCst) {
            let Some(name) = names.get(next.fetch_add(1, Ordering::SeqCst)) else {
                return;
            };
            if let Err(e) = one(name) {
                failed.store(true, Ordering::SeqCst);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.1.get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(AT_ONCE) {
            scope.spawn(work);
        }
    });
    match done.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some(error)) => Err(error),
        (lengths, None) => Ok(lengths),
    }
}

/// The beginning of one tensor file, and the file's length.
fn header(
    client: &Client,
    path: &str,
    name: &str,
    refused: &dyn Fn(&Failure) -> Error,
) -> Result<(Vec<u8>, u64)> {
    let place = || format!("{}{path}", client.endpoint());
    let first = client.part(path, 0, FIRST_BYTES).map_err(|f| refused(&f))?;
    let total = first.total_bytes.ok_or_else(|| {
        Error::input(format!(
            "{}: the server does not say how long the file is",
            place()
        ))
        .hint("is HF_ENDPOINT the address of a Hugging Face hub?")
    })?;
    let mut bytes = first.bytes;
    let claimed = match bytes.first_chunk::<8>() {
        Some(length) => u64::from_le_bytes(*length),
        None => 0,
    };
    let wanted = claimed.saturating_add(8);
    // longer claims are refused by the parser below, with nothing more asked for
    if claimed <= MAX_HEADER_BYTES && wanted <= total && wanted > bytes.len() as u64 {
        let have = bytes.len() as u64;
        let rest = client.part(path, have, wanted - have).map_err(|f| refused(&f))?;
        bytes.extend_from_slice(&rest.bytes);
    }
    safetensors::read_header(&mut bytes.as_slice(), total).map_err(|e| e.at(name).at(place()))?;
    bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    Ok((bytes, total))
}

/// Why a repository without `config.json` cannot be planned.
fn no_configuration(id: &RepoId, names: &[&str]) -> Error {
    let error = Error::unsupported(format!("{id} has no config.json on the hub"));
    let has = |what: &str| names.contains(&what);
    if names.iter().any(|n| n.to_ascii_lowercase().ends_with(".gguf")) {
        error.hint(format!(
            "it holds GGUF files: {id}:Q4_K_M plans one of them, the original model's name plans for other engines"
        ))
    } else if has("adapter_config.json") {
        error.hint("it is an adapter: give its base model, with --enable-lora --max-lora-rank")
    } else if has("model_index.json") {
        error.hint("it is a diffusion pipeline, which keeps no KV cache")
    } else if has("params.json") {
        error.hint("it has only params.json (Mistral's own format): give a folder with a config.json")
    } else {
        error.hint("is it a model, and not a data set or a collection of files?")
    }
}

/// What a refusal means, and what to do.
pub(super) fn explain(failure: &Failure, client: &Client, id: &RepoId, revision: &str) -> Error {
    let hub = client.endpoint();
    let code = failure.code.as_deref().unwrap_or_default();
    let token_says_no = failure
        .message
        .to_ascii_lowercase()
        .contains("invalid credentials");
    match (code, failure.refusal) {
        ("GatedRepo", _) => {
            let error = Error::input(format!(
                "{id} is gated: {hub} shows it only to accounts that accepted its terms"
            ));
            if client.has_token() {
                error.hint(format!(
                    "the account of your token has no access: accept the terms on {hub}/{id}, or check the token's rights"
                ))
            } else {
                error.hint(format!(
                    "accept the terms on {hub}/{id}, then set HF_TOKEN to a token of that account"
                ))
            }
        }
        ("RevisionNotFound", _) => Error::not_found(format!("{id} has no revision \"{revision}\" on {hub}"))
            .hint("give a branch, a tag or a whole commit; `main` is the default"),
        (_, Refusal::Denied(_)) if token_says_no => {
            Error::input(format!("{hub} refuses the token that was sent"))
                .hint("renew it: HF_TOKEN, or the file that HF_TOKEN_PATH names (`hf auth login` writes it)")
        }
        ("RepoNotFound", _) | (_, Refusal::Missing(_) | Refusal::Denied(401)) => {
            let mut error = Error::not_found(format!("{id} is not on {hub}, or is private"));
            if let Err(unknown) = catalogue::find(id.as_str()) {
                for hint in unknown.hints().iter().filter(|h| h.starts_with("did you mean")) {
                    error = error.hint(hint.clone());
                }
            }
            if client.has_token() {
                error.hint("check the spelling; the account of your token may have no access")
            } else {
                error.hint("check the spelling; for a private model set HF_TOKEN")
            }
        }
        _ => failure.error(),
    }
}
