//! Files that appear whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use kvwise_core::{Error, Result};

/// Writes `bytes` to `path` through a temporary file in the same folder and a rename.
///
/// # Errors
/// If the folder cannot be written or the rename fails; an existing file is then unchanged.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |what: &str, e: std::io::Error| Error::io(format!("{}: cannot {what}: {e}", path.display()));
    let name = path
        .file_name()
        .ok_or_else(|| Error::input(format!("{}: not a file name", path.display())))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written =
        fs::File::create(&temporary).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
    if let Err(e) = written {
        let _ = fs::remove_file(&temporary);
        return Err(fail("write", e));
    }
    fs::rename(&temporary, path).map_err(|e| {
        let _ = fs::remove_file(&temporary);
        fail("replace", e)
    })
}
