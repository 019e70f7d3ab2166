//! Folders of models on this machine: where the hub's own library put them, and where this program keeps its answers.

use std::path::{Path, PathBuf};

use super::id::RepoId;

/// Longest file that names a commit, in bytes.
const MAX_REF_BYTES: usize = 256;

/// Whether a text is a commit's name as git and the hub write it: 40 or 64 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64)
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The commit that `revision` was when something was last stored below `folder` (a `models--...` folder).
pub(super) fn commit(folder: &Path, revision: &str) -> Option<String> {
    if is_commit(revision) {
        return Some(revision.to_owned());
    }
    let bytes = crate::model::read_capped(&folder.join("refs").join(revision), MAX_REF_BYTES).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let text = text.trim();
    is_commit(text).then(|| text.to_owned())
}

/// The snapshot of a model in the hub's own cache, if its configuration is there: commit and folder.
///
/// The layout is that of `huggingface_hub` 1.x (`file_download.py`): `models--ORG--NAME/refs/REVISION` holds a commit,
/// `snapshots/COMMIT/` holds the files (links into `blobs/`).
pub(super) fn in_hub_cache(cache: &Path, id: &RepoId, revision: &str) -> Option<(String, PathBuf)> {
    let folder = cache.join(id.folder());
    let commit = commit(&folder, revision)?;
    let snapshot = folder.join("snapshots").join(&commit);
    snapshot
        .join("config.json")
        .is_file()
        .then_some((commit, snapshot))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_snapshot_is_found_by_branch_and_by_commit_and_only_with_a_configuration() {
        let cache = tempfile::tempdir().unwrap();
        let id = RepoId::parse("org/name").unwrap();
        let folder = cache.path().join("models--org--name");
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let snapshot = folder.join("snapshots").join(sha);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(folder.join("refs/pr")).unwrap();
        fs::write(folder.join("refs/main"), sha).unwrap();
        fs::write(folder.join("refs/pr/1"), format!("{sha}\n")).unwrap();
        assert_eq!(in_hub_cache(cache.path(), &id, "main"), None);
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        for revision in ["main", "pr/1", sha] {
            assert_eq!(
                in_hub_cache(cache.path(), &id, revision),
                Some((sha.to_owned(), snapshot.clone())),
                "{revision}"
            );
        }
        assert_eq!(in_hub_cache(cache.path(), &id, "v2"), None);
        fs::write(folder.join("refs/main"), "../../../etc").unwrap();
        assert_eq!(in_hub_cache(cache.path(), &id, "main"), None);
    }
}
