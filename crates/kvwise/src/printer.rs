//! The only place that writes to the terminal: data to stdout, everything else to stderr.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use kvwise_core::{Error, Result};
use owo_colors::OwoColorize;

/// How a command ended; the process exits with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: yes, or done.
    Success,
    /// 1: the honest answer is no (does not fit, objective missed, regression found).
    No,
    /// 2: usage or input error.
    Error,
}

impl ExitStatus {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::No => 1,
            Self::Error => 2,
        }
    }
}

/// Writes answers, warnings and errors; knows what is a terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Printer {
    /// Suppress everything on stderr but errors.
    pub quiet: bool,
}

impl Printer {
    /// Whether stdout is a terminal (tables, plots and colours only then).
    pub fn stdout_is_terminal(self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether stderr is a terminal (progress bars only then).
    pub fn stderr_is_terminal(self) -> bool {
        io::stderr().is_terminal()
    }

    /// Writes data to stdout; a closed pipe ends quietly.
    ///
    /// # Errors
    /// If stdout cannot be written for another reason than a closed pipe.
    pub fn data(self, text: &str) -> Result<()> {
        let mut out = anstream::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io(format!("cannot write to stdout: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Streams data to stdout through `write`; a closed pipe ends quietly.
    ///
    /// # Errors
    /// Those of `write`, unless the pipe is closed.
    pub fn stream(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        /// Takes everything once nobody reads any more.
        struct Pipe<W>(W, bool);

        impl<W: Write> Write for Pipe<W> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match if self.1 {
                    Ok(bytes.len())
                } else {
                    self.0.write(bytes)
                } {
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                        self.1 = true;
                        Ok(bytes.len())
                    }
                    written => written,
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                match if self.1 { Ok(()) } else { self.0.flush() } {
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    flushed => flushed,
                }
            }
        }

        let mut out = io::BufWriter::with_capacity(1 << 16, Pipe(io::stdout().lock(), false));
        write(&mut out)?;
        out.flush()
            .map_err(|e| Error::io(format!("cannot write to stdout: {e}")))
    }

    /// Writes data to stdout, or atomically to `file` (temporary file beside it, then rename).
    ///
    /// # Errors
    /// If the destination cannot be written; the old file, if any, is then unchanged.
    pub fn data_to(self, file: Option<&Path>, text: &str) -> Result<()> {
        match file {
            None => self.data(text),
            Some(path) => kvwise_io::atomic::write(path, text.as_bytes()),
        }
    }

    /// A remark on stderr.
    pub fn note(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// A warning on stderr.
    pub fn warn(self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{} {text}", "warning:".yellow().bold());
        }
    }

    /// An error and its hints on stderr.
    pub fn error(self, error: &Error) {
        let mut err = anstream::stderr().lock();
        let _ = writeln!(err, "{} {error}", "error:".red().bold());
        for hint in error.hints() {
            let _ = writeln!(err, "{} {hint}", "hint:".cyan());
        }
    }
}
