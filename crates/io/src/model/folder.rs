//! Which files of a folder are the model's checkpoint, and what their headers add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kvwise_core::{Error, Result};
use serde::Deserialize;

use super::safetensors::{self, Tensor};

/// Name of the file that says which tensor is in which file.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Largest index that is read; the largest published ones have about 16 MB.
pub(crate) const MAX_INDEX_BYTES: usize = 256 << 20;
/// Most files that one checkpoint may have.
const MAX_FILES: usize = 10_000;

/// The files of a model, wherever they are.
pub(crate) trait Files {
    /// Where they are, for messages.
    fn place(&self) -> String;
    /// Names of the files that are there, in any order.
    fn names(&self) -> Result<Vec<String>>;
    /// Content of the index, if there is one.
    fn index(&self) -> Result<Option<Vec<u8>>>;
    /// Tensors of the file with this name.
    fn header(&self, name: &str) -> Result<Vec<Tensor>>;
}

/// A folder with whole files.
struct Folder<'a>(&'a Path);

impl Files for Folder<'_> {
    fn place(&self) -> String {
        self.0.display().to_string()
    }

    fn names(&self) -> Result<Vec<String>> {
        let io = |e: std::io::Error| Error::io(format!("{}: cannot list: {e}", self.0.display()));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.0).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Ok(name) = entry.file_name().into_string()
                && name.ends_with(".safetensors")
                && entry.path().is_file()
            {
                names.push(name);
            }
            if names.len() > MAX_FILES {
                return Err(Error::input(format!(
                    "{}: more than {MAX_FILES} safetensors files",
                    self.0.display()
                )));
            }
        }
        Ok(names)
    }

    fn index(&self) -> Result<Option<Vec<u8>>> {
        read_index(self.0)
    }

    fn header(&self, name: &str) -> Result<Vec<Tensor>> {
        safetensors::read(&self.0.join(name))
    }
}

/// The index of a folder, if it has one.
///
/// # Errors
/// If it cannot be read or is too long.
pub(crate) fn read_index(folder: &Path) -> Result<Option<Vec<u8>>> {
    let path = folder.join(INDEX);
    if !path.is_file() {
        return Ok(None);
    }
    super::read_capped(&path, MAX_INDEX_BYTES).map(Some)
}

/// Whether this is the name of a file in the folder itself: an index from outside must not lead elsewhere.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// What a folder's checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// Every tensor, from the headers of all files.
    Tensors(Vec<Tensor>),
    /// Only the total that an index states; its files are not (all) there.
    Index {
        /// `metadata.total_size`, in bytes.
        total_bytes: u64,
        /// How many of the index's files are missing, and how many there should be.
        missing: (usize, usize),
    },
}

impl Checkpoint {
    /// Bytes of all tensors.
    ///
    /// # Errors
    /// If the sum leaves 64 bits.
    pub fn total_bytes(&self) -> Result<u64> {
        match self {
            Self::Tensors(tensors) => tensors
                .iter()
                .try_fold(0_u64, |sum, t| sum.checked_add(t.bytes))
                .ok_or_else(|| Error::overflow("the size of the checkpoint")),
            Self::Index { total_bytes, .. } => Ok(*total_bytes),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    metadata: Option<Metadata>,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    /// Some exporters write it as a float.
    total_size: Option<serde_json::Number>,
}

/// Reads the headers of a folder's safetensors files; `None` if it has none.
///
/// An index decides which files belong; without one it is `model.safetensors`, else every `*.safetensors` but adapters
/// and the `consolidated*` copies that some publishers add.
///
/// # Errors
/// If a header or the index cannot be read, or index and headers name different tensors.
pub fn read(folder: &Path) -> Result<Option<Checkpoint>> {
    read_files(&Folder(folder))
}

/// Which files' headers make up the checkpoint, of those in `here`, sorted; files that an index names and that are
/// missing are left out.
///
/// # Errors
/// If the index cannot be read.
pub(crate) fn tensor_files(place: &str, here: &[String], index: Option<&[u8]>) -> Result<Vec<String>> {
    if let Some(bytes) = index {
        let index = Index::parse(place, bytes)?;
        let here: BTreeSet<&str> = here.iter().map(String::as_str).collect();
        let files = index.files().into_iter().filter(|name| here.contains(name));
        return Ok(files.map(str::to_owned).collect());
    }
    let single = "model.safetensors";
    if here.iter().any(|name| name == single) {
        return Ok(vec![single.to_owned()]);
    }
    let mut names: Vec<String> = here
        .iter()
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter"))
        .cloned()
        .collect();
    if names.iter().any(|n| !n.starts_with("consolidated")) {
        names.retain(|n| !n.starts_with("consolidated"));
    }
    names.sort_unstable();
    Ok(names)
}

/// As [`read`], wherever the files are.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_files(source: &impl Files) -> Result<Option<Checkpoint>> {
    let place = source.place();
    let index = source.index()?;
    let names = tensor_files(&place, &source.names()?, index.as_deref())?;
    if let Some(bytes) = index {
        return read_indexed(source, &Index::parse(&place, &bytes)?, &names).map(Some);
    }
    if names.is_empty() {
        return Ok(None);
    }
    if let Some(missing) = missing_part(&names) {
        return Err(Error::input(format!(
            "{place}: the file {missing} is missing beside its other parts"
        ))
        .hint("download it, or give config.json alone"));
    }
    let mut tensors = Vec::new();
    let mut owner: BTreeMap<String, String> = BTreeMap::new();
    for name in names {
        for tensor in source.header(&name)? {
            if let Some(other) = owner.insert(tensor.name.clone(), name.clone()) {
                return Err(Error::input(format!(
                    "{place}: tensor \"{}\" is in {other} and in {name}",
                    tensor.name
                ))
                .hint("remove the files that belong to another checkpoint"));
            }
            tensors.push(tensor);
        }
    }
    Ok(Some(Checkpoint::Tensors(tensors)))
}

/// The first file that is not there of a series that numbers its parts (`model-00001-of-00003.safetensors`).
fn missing_part(names: &[String]) -> Option<String> {
    let parted = |name: &str| {
        let (stem, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (prefix, number) = stem.rsplit_once('-')?;
        number.parse::<u32>().ok()?;
        Some((prefix.to_owned(), number.len(), of.to_owned()))
    };
    let here: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    names.iter().find_map(|name| {
        let (prefix, digits, of) = parted(name)?;
        let count = of.parse::<usize>().ok().filter(|n| *n <= MAX_FILES)?;
        let named = |part: usize| format!("{prefix}-{part:0digits$}-of-{of}.safetensors");
        // Some exporters count from nought.
        let first = usize::from(!here.contains(named(0).as_str()));
        (first..first + count)
            .map(named)
            .find(|part| !here.contains(part.as_str()))
    })
}

impl Index {
    fn parse(place: &str, bytes: &[u8]) -> Result<Self> {
        let at = || format!("{place}: {INDEX}");
        let index: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::input(format!("{}: not a safetensors index: {e}", at())))?;
        let files = index.files();
        if files.is_empty() || files.len() > MAX_FILES {
            return Err(Error::input(format!("{}: names {} files", at(), files.len())));
        }
        if let Some(file) = files.into_iter().find(|file| !is_file_name(file)) {
            return Err(Error::input(format!(
                "{}: \"{file}\" is not the name of a file in the folder",
                at()
            )));
        }
        Ok(index)
    }

    fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

fn read_indexed(source: &impl Files, index: &Index, here: &[String]) -> Result<Checkpoint> {
    let at = || format!("{}: {INDEX}", source.place());
    let files = index.files();
    let missing = files.len() - here.len();
    if missing > 0 {
        let total_bytes = index
            .metadata
            .as_ref()
            .and_then(|m| m.total_size.as_ref())
            .and_then(|n| n.as_u64().or_else(|| whole(n.as_f64()?)))
            .ok_or_else(|| {
                Error::input(format!(
                    "{}: {missing} of its {} files are missing and metadata.total_size is not there",
                    at(),
                    files.len()
                ))
                .hint("download the files, or give config.json alone")
            })?;
        return Ok(Checkpoint::Index {
            total_bytes,
            missing: (missing, files.len()),
        });
    }
    let mut tensors = Vec::with_capacity(index.weight_map.len());
    for file in files {
        for tensor in source.header(file)? {
            if index.weight_map.get(&tensor.name).is_none_or(|f| f != file) {
                return Err(Error::input(format!(
                    "{}: tensor \"{}\" is in {file}, but the index does not say so",
                    at(),
                    tensor.name
                ))
                .hint("the index belongs to another version of the files"));
            }
            tensors.push(tensor);
        }
    }
    if tensors.len() != index.weight_map.len() {
        return Err(Error::input(format!(
            "{}: names {} tensors, but its files hold {}",
            at(),
            index.weight_map.len(),
            tensors.len()
        )));
    }
    Ok(Checkpoint::Tensors(tensors))
}

fn whole(x: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: whole, not negative and below 2^53"
    )]
    (x >= 0.0 && x.fract() == 0.0 && x < 9_007_199_254_740_992.0).then_some(x as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file of one-dimensional bf16 tensors.
    fn write(folder: &Path, file: &str, tensors: &[(&str, u64)]) {
        let mut at = 0;
        let members: Vec<String> = tensors
            .iter()
            .map(|(name, n)| {
                at += n * 2;
                format!(
                    r#""{name}":{{"dtype":"BF16","shape":[{n}],"data_offsets":[{},{at}]}}"#,
                    at - n * 2
                )
            })
            .collect();
        let header = format!("{{{}}}", members.join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(std::iter::repeat_n(0, usize::try_from(at).unwrap()));
        fs::write(folder.join(file), bytes).unwrap();
    }

    #[test]
    fn a_part_that_is_missing_without_an_index_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model-00001-of-00003.safetensors", &[("a", 10)]);
        write(dir.path(), "model-00003-of-00003.safetensors", &[("c", 10)]);
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("the file model-00002-of-00003.safetensors is missing"),
            "{error}"
        );
        write(dir.path(), "model-00002-of-00003.safetensors", &[("b", 10)]);
        assert_eq!(read(dir.path()).unwrap().unwrap().total_bytes().unwrap(), 60);
        // What only looks like a number of parts is a name.
        write(dir.path(), "best-of-two.safetensors", &[("d", 10)]);
        assert_eq!(read(dir.path()).unwrap().unwrap().total_bytes().unwrap(), 80);
    }

    #[test]
    fn one_file_several_files_and_an_index_add_up_to_the_same() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        write(dir.path(), "model.safetensors", &[("a", 10), ("b", 20)]);
        assert_eq!(read(dir.path()).unwrap().unwrap().total_bytes().unwrap(), 60);

        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        write(dir.path(), "model-00001-of-00002.safetensors", &[("a", 10)]);
        write(dir.path(), "model-00002-of-00002.safetensors", &[("b", 20)]);
        write(dir.path(), "consolidated.safetensors", &[("whole", 30)]);
        write(dir.path(), "adapter_model.safetensors", &[("lora", 1)]);
        assert_eq!(read(dir.path()).unwrap().unwrap().total_bytes().unwrap(), 60);

        let index = r#"{"metadata":{"total_size":60},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        fs::write(dir.path().join(INDEX), index).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().total_bytes().unwrap(), 60);

        fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            Some(Checkpoint::Index {
                total_bytes: 60,
                missing: (1, 2)
            })
        );
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m.safetensors", &[("a", 1)]);
        for (index, says) in [
            (
                r#"{"weight_map":{"a":"../secret.safetensors"}}"#,
                "not the name of a file",
            ),
            (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "not the name of a file"),
            (r#"{"weight_map":{}}"#, "names 0 files"),
            (
                r#"{"weight_map":{"b":"m.safetensors"}}"#,
                "the index does not say so",
            ),
            (
                r#"{"weight_map":{"a":"m.safetensors","b":"m.safetensors"}}"#,
                "names 2 tensors",
            ),
            (
                r#"{"weight_map":{"a":"gone.safetensors"}}"#,
                "total_size is not there",
            ),
            (
                r#"{"metadata":{"total_size":-3},"weight_map":{"a":"gone.safetensors"}}"#,
                "total_size is not there",
            ),
            ("[]", "not a safetensors index"),
        ] {
            fs::write(dir.path().join(INDEX), index).unwrap();
            let e = read(dir.path()).unwrap_err().to_string();
            assert!(e.contains(says), "expected \"{says}\" in: {e}");
        }
    }

    #[test]
    fn a_tensor_in_two_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "x.safetensors", &[("a", 1)]);
        write(dir.path(), "y.safetensors", &[("a", 1)]);
        assert!(
            read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("in x.safetensors and in y.safetensors")
        );
    }
}
