//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};

/// A file that is written piece by piece and appears under its name on [`AtomicFile::commit`]; dropped before, it
/// leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<File>,
    // Dropped after the file is closed.
    temporary: Temporary,
}

/// A file that goes away with this, unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn rename(&mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AtomicFile {
    /// Starts a temporary file beside `path`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::input(format!("{}: not a file name", path.display())))?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let file = File::create(&temporary).map_err(|e| fail(path, "write", &e))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 16, file),
            temporary: Temporary {
                path: temporary,
                renamed: false,
            },
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| fail(&self.path, "write", &e))
    }

    /// Finishes the file and gives it its name, replacing an older one.
    ///
    /// # Errors
    /// If the disk refuses; an existing file is then unchanged.
    pub fn commit(self) -> Result<()> {
        let Self {
            path,
            file,
            mut temporary,
        } = self;
        file.into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| temporary.rename(&path))
            .map_err(|e| fail(&path, "write", &e))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn fail(path: &Path, what: &str, e: &io::Error) -> Error {
    Error::io(format!("{}: cannot {what}: {e}", path.display()))
}

/// Writes `bytes` to `path` through a temporary file in the same folder and a rename.
///
/// # Errors
/// If the folder cannot be written or the rename fails; an existing file is then unchanged.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_on_commit_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"one\n").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write(&path, b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = folder.path().join("missing").join("x");
        assert!(write(&nowhere, b"").unwrap_err().to_string().contains("missing"));
    }
}
