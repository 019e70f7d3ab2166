//! The file of a replay's events: lines are gathered and written in large pieces, and the file is there when it is whole.

use std::path::Path;

use kvwise_core::Result;
use kvwise_io::atomic::AtomicFile;

/// Bytes of event lines kept before they are written.
const WRITE_AT: usize = 1 << 18;

/// A file of event lines that is being written.
pub struct EventFile(AtomicFile);

impl EventFile {
    /// Starts the file.
    ///
    /// # Errors
    /// If it cannot be written there.
    pub fn create(path: &Path) -> Result<Self> {
        AtomicFile::create(path).map(Self)
    }

    /// Writes the lines and empties `text`, once there are many.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn pour(&mut self, text: &mut String) -> Result<()> {
        if text.len() >= WRITE_AT {
            self.0.write(text.as_bytes())?;
            text.clear();
        }
        Ok(())
    }

    /// Writes the last lines and gives the file its name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(mut self, text: &str) -> Result<()> {
        self.0.write(text.as_bytes())?;
        self.0.commit()
    }
}
