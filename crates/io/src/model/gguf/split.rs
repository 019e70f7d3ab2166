//! Models in several files: `NAME-00001-of-00003.gguf`. Metadata is in the first part, tensors are in all.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kvwise_core::engine::llamacpp::{Header, Meta};
use kvwise_core::{Error, Result};

/// Most parts of a model.
const MAX_PARTS: u64 = 10_000;

/// The parts of a name like `x-00002-of-00003.gguf`: what comes before, the number and how many there are.
fn parts_of(path: &Path) -> Option<(String, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok())?;
    Some((name.to_owned(), digits(part)?, digits(count)?))
}

/// `first`, with the other parts' tensors where the file is a part of a split model.
///
/// # Errors
/// If parts are missing, contradict each other or repeat a tensor.
pub(crate) fn with_other_parts(
    path: &Path,
    first: Header,
    is_there: impl Fn(&Path) -> bool,
    read: impl Fn(&Path) -> Result<Header>,
) -> Result<Header> {
    let count = match first.metadata.get("split.count") {
        None => return Ok(first),
        Some(Meta::Int(n)) => u64::try_from(*n)
            .ok()
            .filter(|&n| n <= MAX_PARTS)
            .ok_or_else(|| {
                Error::input(format!(
                    "{}: split.count is {n}, expected 0 to {MAX_PARTS}",
                    path.display()
                ))
            })?,
        Some(_) => {
            return Err(Error::input(format!(
                "{}: split.count is not an integer",
                path.display()
            )));
        }
    };
    if count <= 1 {
        return Ok(first);
    }
    let Some((name, part, named)) = parts_of(path).filter(|&(_, _, named)| named == count) else {
        return Err(Error::input(format!(
            "{}: the file is one of {count} parts, but is not named like NAME-00001-of-{count:05}.gguf",
            path.display()
        )));
    };
    let file = |n: u64| -> PathBuf { path.with_file_name(format!("{name}-{n:05}-of-{named:05}.gguf")) };
    let missing: Vec<u64> = (1..=count)
        .filter(|&n| n != part && !is_there(&file(n)))
        .collect();
    if let Some(&one) = missing.first() {
        return Err(Error::not_found(format!(
            "{}: {} of the {count} parts are missing, {} is the first",
            path.display(),
            missing.len(),
            file(one).display()
        )));
    }
    let mut whole = if part == 1 { first } else { read(&file(1))? };
    let mut seen: HashSet<String> = whole.tensors.iter().map(|t| t.name.clone()).collect();
    for n in 2..=count {
        let next = read(&file(n))?;
        // Parts of another file, or in another order, would make a model that nobody has.
        for (key, expected) in [
            ("split.count", i128::from(count)),
            ("split.no", i128::from(n) - 1),
        ] {
            if let Some(Meta::Int(said)) = next.metadata.get(key)
                && *said != expected
            {
                return Err(Error::input(format!(
                    "{}: {key} is {said}, but by its name it is {expected}",
                    file(n).display()
                )));
            }
        }
        let key = "general.architecture";
        if let (Some(other), Some(one)) = (next.metadata.get(key), whole.metadata.get(key))
            && other != one
        {
            return Err(Error::input(format!(
                "{}: {key} is another than in the first part",
                file(n).display()
            )));
        }
        for tensor in next.tensors {
            if !seen.insert(tensor.name.clone()) {
                return Err(Error::input(format!(
                    "{}: tensor {} is in an earlier part too",
                    file(n).display(),
                    tensor.name
                )));
            }
            whole.tensors.push(tensor);
        }
    }
    if let Some(Meta::Int(n)) = whole.metadata.get("split.tensors.count")
        && *n != whole.tensors.len() as i128
    {
        return Err(Error::input(format!(
            "{}: the parts have {} tensors together, split.tensors.count says {n}",
            path.display(),
            whole.tensors.len()
        )));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_taken_apart_and_others_left_alone() {
        let of = |name: &str| parts_of(Path::new(name));
        assert_eq!(
            of("dir/m-q4-00002-of-00003.gguf"),
            Some(("m-q4".to_owned(), 2, 3))
        );
        for name in [
            "m.gguf",
            "m-2-of-3.gguf",
            "m-00002-of-00003.bin",
            "-of-.gguf",
            "m-0000x-of-00003.gguf",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
