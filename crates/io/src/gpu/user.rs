//! The user's own GPUs: `gpus.toml` in the configuration folder, with the columns of the built-in catalogue.

use std::path::PathBuf;
use std::sync::OnceLock;

use kvwise_core::hardware::{self, Gpu};
use kvwise_core::{Error, Result};

/// Name of the file.
const FILE: &str = "gpus.toml";
/// Largest file that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Where the file is looked for, whether or not it is there.
pub fn path() -> Option<PathBuf> {
    crate::folders::config().map(|folder| folder.join(FILE))
}

/// The path for messages.
pub(super) fn describe() -> String {
    path().map_or_else(
        || format!("{FILE} in the configuration folder"),
        |p| p.display().to_string(),
    )
}

/// The user's rows; none if there is no file. Read once.
///
/// # Errors
/// If the file cannot be read, a value cannot be used, or a name is a built-in GPU's.
pub fn all() -> Result<&'static [Gpu]> {
    static ROWS: OnceLock<Result<Vec<Gpu>>> = OnceLock::new();
    match ROWS.get_or_init(|| path().map_or(Ok(Vec::new()), |path| read(&path))) {
        Ok(rows) => Ok(rows),
        Err(e) => Err(e.clone()),
    }
}

/// Finds a GPU among the user's rows, then in the built-in catalogue.
///
/// # Errors
/// If there is none with this name, or the user's file is broken.
pub fn find(name: &str) -> Result<&'static Gpu> {
    hardware::find_among(all()?, name)
}

fn read(path: &std::path::Path) -> Result<Vec<Gpu>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = crate::model::read_capped(path, MAX_BYTES)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::input(format!("{}: not text in UTF-8", path.display())))?;
    hardware::read(&text, &path.display().to_string())
        .map_err(|e| e.hint("the columns are those of `kvwise gpus --format json`; docs: guides/gpus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Result<Vec<Gpu>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    const GOOD: &str = r#"
[[gpu]]
name = "lab-card"
title = "The card in the lab"
memory_mib = 48000
compute = "9.0"
bandwidth_gbps = 900
tflops = { fp16 = 100 }
pcie_gbps = 32
source = "measured by us"
date = "2026-11-01"
"#;

    #[test]
    fn a_row_is_read_and_found_before_the_built_in_ones() {
        let rows = rows(GOOD).unwrap();
        assert_eq!(rows[0].memory_bytes, 48_000 << 20);
        let rows: &'static [Gpu] = Vec::leak(rows);
        assert_eq!(hardware::find_among(rows, "LAB card").unwrap().name, "lab-card");
        assert_eq!(hardware::find_among(rows, "h100").unwrap().name, "h100");
        assert!(hardware::find_among(rows, "lab-kard").unwrap_err().hints()[0].contains("lab-card"));
    }

    #[test]
    fn a_missing_file_has_no_rows() {
        assert!(
            read(std::path::Path::new("/nowhere/gpus.toml"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn values_that_cannot_be_used_are_named_with_file_row_and_field() {
        for (from, to, says) in [
            ("48000", "0", "memory_mib is 0"),
            ("48000", "18446744073709551615", "memory_mib"),
            ("48000", "-1", "memory_mib"),
            ("= 900", "= -900", "bandwidth_gbps is -900"),
            ("= 900", "= nan", "bandwidth_gbps is NaN"),
            ("fp16 = 100", "fp16 = 0", "tflops.fp16 is 0"),
            ("\"9.0\"", "\"nine.0\"", "compute is \"nine.0\""),
            ("lab-card", "h100", "h100"),
            ("\"lab-card\"", "\"  \"", "name"),
            ("pcie_gbps = 32\n", "", "pcie_gbps"),
            ("date =", "day =", "day"),
        ] {
            let e = rows(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(e.contains("gpus.toml") && e.contains(says), "{from} -> {to}: {e}");
        }
        let twice = format!("{GOOD}{GOOD}");
        assert!(rows(&twice).unwrap_err().to_string().contains("twice"));
    }
}
