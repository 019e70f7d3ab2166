//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kvwise_core::{Error, Result};

/// A file that is written piece by piece and appears under its name on [`AtomicFile::commit`]; dropped before, it
/// leaves nothing behind.
///
/// A link is followed: the file that it names is replaced, not the link. What is no regular file (a terminal, a pipe,
/// `/dev/null`) cannot appear whole and must not be replaced by one; it is written as it is, piece by piece.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<File>,
    // Dropped after the file is closed; none for what is no regular file.
    temporary: Option<Temporary>,
}

/// A file that goes away with this, unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

/// Temporary files of this process, for when it has to end without dropping anything.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the files of this process that have no name of their own yet. For a process that is about to end, as on an
/// interrupt: what is being written then does not appear.
pub fn remove_unfinished() {
    let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in unfinished.drain(..) {
        let _ = fs::remove_file(path);
    }
}

impl Temporary {
    fn new(path: PathBuf) -> Self {
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.push(path.clone());
        Self { path, renamed: false }
    }

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
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.retain(|path| *path != self.path);
    }
}

impl AtomicFile {
    /// Starts a temporary file beside `path`.
    ///
    /// # Errors
    /// If `path` is a folder, or its folder cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let existing = fs::metadata(path).ok();
        if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(Error::input(format!(
                "{}: is a folder, not a file",
                path.display()
            )));
        }
        if existing.as_ref().is_some_and(|found| !found.is_file()) {
            let file = File::options()
                .write(true)
                .open(path)
                .map_err(|e| fail(path, "write", &e))?;
            return Ok(Self::over(path.to_owned(), file, None));
        }
        let path = match existing {
            Some(_) => fs::canonicalize(path).map_err(|e| fail(path, "write", &e))?,
            None => path.to_owned(),
        };
        let name = path
            .file_name()
            .ok_or_else(|| Error::input(format!("{}: not a file name", path.display())))?;
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let file = File::create(&temporary).map_err(|e| fail(&path, "write", &e))?;
        Ok(Self::over(path, file, Some(Temporary::new(temporary))))
    }

    fn over(path: PathBuf, file: File, temporary: Option<Temporary>) -> Self {
        Self {
            path,
            file: BufWriter::with_capacity(1 << 16, file),
            temporary,
        }
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
            temporary,
        } = self;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        match temporary {
            Some(mut temporary) => file
                .and_then(|file| file.sync_all())
                .and_then(|()| temporary.rename(&path)),
            None => file.map(drop),
        }
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

    #[test]
    #[cfg(unix)]
    fn a_pipe_is_written_and_stays_a_pipe() {
        use std::os::unix::fs::FileTypeExt;

        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("trace.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        write(&pipe, b"one\n").unwrap();
        assert_eq!(reader.join().unwrap(), b"one\n");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(unix)]
    fn the_file_behind_a_link_is_replaced_and_the_link_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (
            folder.path().join("report-1.html"),
            folder.path().join("report.html"),
        );
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_folder_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), b"").unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
