//! GGUF files of the hub: which file of a repository is meant, and its header by range requests.
//!
//! A name is written as llama.cpp writes it (`llama-server -hf`, llama.cpp b11549, `common/download.cpp`): `ORG/NAME:QUANT`
//! picks a file by a part of its name, `ORG/NAME` alone means `Q4_K_M` or else the first file; `ORG/NAME/FILE.gguf` names it.
//! Of a file its header is asked for in growing parts, never the tensors; what came is kept beside the other answers of the
//! hub (`models--ORG--NAME/gguf/COMMIT`), so that the next time needs no network.

use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use kvwise_core::engine::llamacpp::Header;
use kvwise_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::client::{Client, Failure};
use super::fetch::{address, describe, explain};
use super::id::RepoId;
use super::settings::Settings;
use super::{OnProgress, Origin, Taken, checked_revision, store};
use crate::atomic;
use crate::model::gguf::{read_header, with_other_parts};

/// Quantisation of the file that is meant where none is named.
const DEFAULT_QUANT: &str = "Q4_K_M";
/// First bytes asked of a file; each further request asks for as many as came before, up to [`MOST_AT_ONCE`].
const FIRST_BYTES: u64 = 1 << 20;
/// Most bytes of one request.
const MOST_AT_ONCE: u64 = 8 << 20;
/// Largest header that is fetched; the largest vocabularies take some ten MiB.
const MAX_FETCHED_BYTES: u64 = 64 << 20;
/// Largest list of files that is read from this program's cache.
const MAX_LIST_BYTES: usize = 16 << 20;
/// Files that an error names.
const NAMED_FILES: usize = 12;

/// A GGUF model of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufId {
    /// Repository.
    pub id: RepoId,
    /// Which of its files.
    pub pick: Pick,
}

/// Which file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The one of the default quantisation, else the first.
    Default,
    /// The one whose name has this part.
    Quant(String),
    /// The one of this name.
    File(String),
}

impl GgufId {
    /// Reads `ORG/NAME:QUANT` or `ORG/NAME/FILE.gguf`; `None` for other names.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((repo, quant)) = text.split_once(':') {
            let sound = !quant.is_empty()
                && quant.len() <= 64
                && quant
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            let id = RepoId::parse(repo).filter(RepoId::has_organisation)?;
            return sound.then(|| Self {
                id,
                pick: Pick::Quant(quant.to_owned()),
            });
        }
        let mut parts = text.splitn(3, '/');
        let (org, name, file) = (parts.next()?, parts.next()?, parts.next()?);
        let is_file = is_gguf(file)
            && file
                .split('/')
                .all(|part| !part.is_empty() && !part.starts_with('.'));
        let id = RepoId::parse(&format!("{org}/{name}"))?;
        is_file.then(|| Self {
            id,
            pick: Pick::File(file.to_owned()),
        })
    }
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct HubGguf {
    /// Its header, with all parts where it is split.
    pub header: Header,
    /// `ORG/NAME/FILE.gguf`.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
}

fn is_gguf(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Whether a file can be a model: not a projector of images, and the first part of a split one.
fn is_model(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let later_part = file
        .strip_suffix(".gguf")
        .and_then(|stem| stem.rsplit_once("-of-"))
        .and_then(|(rest, _)| rest.rsplit_once('-'))
        .is_some_and(|(_, part)| {
            part.len() == 5 && part.bytes().all(|b| b.is_ascii_digit()) && part != "00001"
        });
    is_gguf(&file) && !file.contains("mmproj") && !later_part
}

/// Whether a part of a name between separators is the quantisation.
fn has_quant(name: &str, quant: &str) -> bool {
    let (name, quant) = (name.to_ascii_lowercase(), quant.to_ascii_lowercase());
    name.match_indices(&quant).any(|(at, found)| {
        let before = name[..at].bytes().next_back();
        let after = name[at + found.len()..].bytes().next();
        let ends = |byte: Option<u8>| byte.is_none_or(|b| b"-./".contains(&b));
        ends(before) && ends(after)
    })
}

/// The file that is meant.
fn choose(id: &RepoId, pick: &Pick, files: &[String]) -> Result<String> {
    let mut models: Vec<&String> = files.iter().filter(|name| is_model(name)).collect();
    models.sort_unstable();
    let found = match pick {
        Pick::File(file) => files.iter().find(|name| *name == file),
        Pick::Quant(quant) => models.iter().copied().find(|name| has_quant(name, quant)),
        Pick::Default => models
            .iter()
            .copied()
            .find(|name| has_quant(name, DEFAULT_QUANT))
            .or_else(|| models.first().copied()),
    };
    found.cloned().ok_or_else(|| {
        let asked = match pick {
            Pick::File(file) => format!("no file {file}"),
            Pick::Quant(quant) => format!("no GGUF file of {quant}"),
            Pick::Default => "no GGUF file of a model".to_owned(),
        };
        let error = Error::not_found(format!("{id} has {asked}"));
        if models.is_empty() {
            return error
                .hint("it holds no GGUF files: give the model's name alone, for --engine vllm or sglang");
        }
        let names: Vec<&str> = models
            .iter()
            .take(NAMED_FILES)
            .map(|name| name.as_str())
            .collect();
        let more = models.len().saturating_sub(names.len());
        error.hint(format!(
            "it has {}{}",
            names.join(", "),
            if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            }
        ))
    })
}

/// What is kept of a commit.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// All files of the repository that end in `.gguf`.
    files: Vec<String>,
}

/// Folder of a commit's headers in this program's cache.
fn kept_at(cache: &Path, id: &RepoId, commit: &str) -> PathBuf {
    cache.join(id.folder()).join("gguf").join(commit)
}

/// The beginning of a file and its length, as kept.
fn kept_header(folder: &Path, file: &str) -> Option<(Vec<u8>, u64)> {
    let cap = usize::try_from(MAX_FETCHED_BYTES + 8).unwrap_or(usize::MAX);
    let bytes = crate::model::read_capped(&folder.join(flat(file)), cap).ok()?;
    let (length, header) = bytes.split_first_chunk::<8>()?;
    Some((header.to_vec(), u64::from_le_bytes(*length)))
}

/// A name without folders, of which none can lead elsewhere.
fn flat(file: &str) -> String {
    file.replace('%', "%25").replace('/', "%2F")
}

/// Finds a GGUF file: in the hub's cache, in this program's, else on the hub.
///
/// # Errors
/// If it is nowhere, the hub refuses or cannot be reached, or what comes is no GGUF file; hints say what to do.
pub fn find(
    wanted: &GgufId,
    revision: Option<&str>,
    settings: &Settings,
    progress: OnProgress,
) -> Result<HubGguf> {
    let revision = checked_revision(revision)?;
    if let Some(found) = in_hub_cache(wanted, revision, settings)? {
        return Ok(found);
    }
    if let Some(found) = in_own_cache(wanted, revision, settings)? {
        return Ok(found);
    }
    if let Some(why) = &settings.offline {
        return Err(Error::not_found(format!(
            "{} is in no cache of this machine as a GGUF file, and {why} forbids asking the hub",
            wanted.id
        ))
        .hint("go online once, or download the file and give its path"));
    }
    let client = Client::new(settings)?;
    on_hub(&client, wanted, revision, settings, progress)
}

fn origin(id: &RepoId, revision: &str, commit: &str, taken: Taken) -> Origin {
    Origin {
        id: id.clone(),
        revision: revision.to_owned(),
        commit: commit.to_owned(),
        taken,
        notes: Vec::new(),
    }
}

/// Whole files that the hub's own library downloaded.
fn in_hub_cache(wanted: &GgufId, revision: &str, settings: &Settings) -> Result<Option<HubGguf>> {
    let Some(cache) = &settings.hub_cache else {
        return Ok(None);
    };
    let folder = cache.join(wanted.id.folder());
    let Some(commit) = store::commit(&folder, revision) else {
        return Ok(None);
    };
    let snapshot = folder.join("snapshots").join(&commit);
    let Ok(entries) = fs::read_dir(&snapshot) else {
        return Ok(None);
    };
    let files: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_gguf(name))
        .collect();
    let Ok(file) = choose(&wanted.id, &wanted.pick, &files) else {
        return Ok(None);
    };
    // The default is a matter of all files of the repository, of which only some may be here.
    if wanted.pick == Pick::Default && !has_quant(&file, DEFAULT_QUANT) {
        return Ok(None);
    }
    Ok(Some(HubGguf {
        header: crate::model::gguf::read(&snapshot.join(&file))?,
        name: format!("{}/{file}", wanted.id),
        origin: origin(&wanted.id, revision, &commit, Taken::HubCache),
    }))
}

fn in_own_cache(wanted: &GgufId, revision: &str, settings: &Settings) -> Result<Option<HubGguf>> {
    let Some(cache) = settings.own_cache() else {
        return Ok(None);
    };
    let Some(commit) = store::commit(&cache.join(wanted.id.folder()), revision) else {
        return Ok(None);
    };
    let folder = kept_at(&cache, &wanted.id, &commit);
    let Ok(bytes) = crate::model::read_capped(&folder.join("files.json"), MAX_LIST_BYTES) else {
        return Ok(None);
    };
    let Ok(kept) = serde_json::from_slice::<Kept>(&bytes) else {
        return Ok(None);
    };
    let file = choose(&wanted.id, &wanted.pick, &kept.files)?;
    let read = |path: &Path| -> Result<Header> {
        let name = path.to_string_lossy();
        let (bytes, total) =
            kept_header(&folder, &name).ok_or_else(|| Error::not_found(format!("{name} is not kept")))?;
        read_header(&mut bytes.as_slice(), total).map_err(|e| e.at(&name))
    };
    let here = |path: &Path| kept_header(&folder, &path.to_string_lossy()).is_some();
    let path = Path::new(&file);
    if !here(path) {
        return Ok(None);
    }
    // A part that was never fetched is asked for anew.
    match read(path).and_then(|first| with_other_parts(path, first, here, read)) {
        Ok(header) => Ok(Some(HubGguf {
            header,
            name: format!("{}/{file}", wanted.id),
            origin: origin(&wanted.id, revision, &commit, Taken::OwnCache),
        })),
        Err(_) => Ok(None),
    }
}

fn on_hub(
    client: &Client,
    wanted: &GgufId,
    revision: &str,
    settings: &Settings,
    progress: OnProgress,
) -> Result<HubGguf> {
    let id = &wanted.id;
    let cache = settings.folder_to_keep_in()?;
    let refused = |failure: &Failure| explain(failure, client, id, revision);
    progress("description", 0, 1);
    let (commit, names) = describe(client, id, revision).map_err(|e| e.or_explained(&refused))?;
    let files: Vec<String> = names.into_iter().filter(|name| is_gguf(name)).collect();
    let file = choose(id, &wanted.pick, &files)?;
    let folder = kept_at(&cache, id, &commit);
    make(&folder)?;
    let fetched = RefCell::new(0_usize);
    let read = |path: &Path| -> Result<Header> {
        let name = path.to_string_lossy().into_owned();
        *fetched.borrow_mut() += 1;
        progress("GGUF header", *fetched.borrow(), *fetched.borrow());
        let mut remote = Remote::new(client, address(id, &commit, &name));
        remote.more().map_err(|f| refused(&f))?;
        let total = remote.total.ok_or_else(|| {
            Error::input(format!(
                "{}{}: the server does not say how long the file is",
                client.endpoint(),
                remote.path
            ))
            .hint("is HF_ENDPOINT the address of a Hugging Face hub?")
        })?;
        let header = read_header(&mut remote, total);
        if let Some(failure) = &remote.failed {
            return Err(refused(failure));
        }
        let header = header.map_err(|e| e.at(format!("{id}/{name}")))?;
        let mut bytes = total.to_le_bytes().to_vec();
        bytes.extend_from_slice(&remote.bytes[..remote.at]);
        atomic::write(&folder.join(flat(&name)), &bytes)?;
        Ok(header)
    };
    let here = |path: &Path| {
        let name = path.to_string_lossy();
        files.iter().any(|file| *file == name)
    };
    let path = Path::new(&file);
    let header = with_other_parts(path, read(path)?, here, read)?;
    let kept = serde_json::to_vec_pretty(&Kept { files: files.clone() })
        .map_err(|e| Error::io(format!("{}: cannot write: {e}", folder.display())))?;
    atomic::write(&folder.join("files.json"), &kept)?;
    if !store::is_commit(revision) {
        let name = cache.join(id.folder()).join("refs").join(revision);
        if let Some(parent) = name.parent() {
            make(parent)?;
        }
        atomic::write(&name, commit.as_bytes())?;
    }
    Ok(HubGguf {
        header,
        name: format!("{id}/{file}"),
        origin: origin(id, revision, &commit, Taken::Network),
    })
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| {
        Error::io(format!("{}: cannot make the folder: {e}", folder.display()))
            .hint("KVWISE_CACHE names another folder for what the hub answers")
    })
}

/// A file on the hub, read from its beginning as far as the reader goes.
struct Remote<'a> {
    client: &'a Client,
    path: String,
    bytes: Vec<u8>,
    at: usize,
    total: Option<u64>,
    failed: Option<Failure>,
}

impl<'a> Remote<'a> {
    fn new(client: &'a Client, path: String) -> Self {
        Self {
            client,
            path,
            bytes: Vec::new(),
            at: 0,
            total: None,
            failed: None,
        }
    }

    /// Asks for the next part; nothing comes at the file's end or at the cap.
    fn more(&mut self) -> std::result::Result<(), Failure> {
        let have = self.bytes.len() as u64;
        let end = self.total.unwrap_or(u64::MAX).min(MAX_FETCHED_BYTES);
        let wanted = have
            .clamp(FIRST_BYTES, MOST_AT_ONCE)
            .min(end.saturating_sub(have));
        if wanted == 0 {
            return Ok(());
        }
        let part = self.client.part(&self.path, have, wanted)?;
        self.total = self.total.or(part.total_bytes);
        self.bytes.extend_from_slice(&part.bytes);
        Ok(())
    }
}

impl Read for Remote<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.bytes.len()
            && let Err(failure) = self.more()
        {
            self.failed = Some(failure);
            return Err(std::io::Error::other("the hub does not answer"));
        }
        let n = out.len().min(self.bytes.len() - self.at);
        out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_file_is_picked_by_quantisation_by_name_or_by_default() {
        let id = RepoId::parse("org/name-GGUF").unwrap();
        let all = files(&[
            "mmproj-Q4_K_M.gguf",
            "m-Q8_0.gguf",
            "m-Q4_K_M.gguf",
            "UD/m-UD-Q4_K_XL.gguf",
            "BF16/m-BF16-00001-of-00002.gguf",
            "BF16/m-BF16-00002-of-00002.gguf",
        ]);
        let pick = |pick: Pick| choose(&id, &pick, &all);
        assert_eq!(pick(Pick::Default).unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(pick(Pick::Quant("q8_0".to_owned())).unwrap(), "m-Q8_0.gguf");
        assert_eq!(
            pick(Pick::Quant("BF16".to_owned())).unwrap(),
            "BF16/m-BF16-00001-of-00002.gguf"
        );
        assert_eq!(
            pick(Pick::File("UD/m-UD-Q4_K_XL.gguf".to_owned())).unwrap(),
            "UD/m-UD-Q4_K_XL.gguf"
        );
        let e = pick(Pick::Quant("Q4_K".to_owned())).unwrap_err();
        assert!(format!("{e:?}").contains("m-Q8_0.gguf"), "{e:?}");
        assert_eq!(
            choose(&id, &Pick::Default, &files(&["b.gguf", "a.gguf"])).unwrap(),
            "a.gguf"
        );
        assert!(choose(&id, &Pick::Default, &files(&["mmproj.gguf"])).is_err());
    }

    #[test]
    fn names_of_files_are_told_from_names_of_models() {
        let of = |text: &str| GgufId::parse(text).map(|id| (id.id.as_str().to_owned(), id.pick));
        let repo = "org/name-GGUF".to_owned();
        assert_eq!(
            of("org/name-GGUF:Q4_K_M"),
            Some((repo.clone(), Pick::Quant("Q4_K_M".to_owned())))
        );
        assert_eq!(
            of("org/name-GGUF/sub/m.gguf"),
            Some((repo, Pick::File("sub/m.gguf".to_owned())))
        );
        for other in [
            "org/name",
            "name:Q4",
            "org/name:",
            "org/name:a/b",
            "C:/m.gguf",
            "org/name/../m.gguf",
            "org/name/m.bin",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_kept_name_leads_nowhere_else() {
        assert_eq!(flat("a/../b%2F.gguf"), "a%2F..%2Fb%252F.gguf");
    }
}
