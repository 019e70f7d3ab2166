//! Running makers' tools: found on the path, stopped when they hang, their output capped.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvwise_core::{Error, Result};

/// Most output that is taken from a tool, in bytes.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// How long a tool may take; a wedged driver makes `nvidia-smi` wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

type Variable = dyn Fn(&str) -> Option<String>;

/// Where tools and variables come from.
pub struct Tools {
    path: OsString,
    variable: Box<Variable>,
    patience: Duration,
    #[cfg(feature = "nvml")]
    may_use_libraries: bool,
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tools {
    /// Tools on this process's path.
    pub fn from_env() -> Self {
        Self {
            path: std::env::var_os("PATH").unwrap_or_default(),
            variable: Box::new(|name| std::env::var(name).ok()),
            patience: PATIENCE,
            // stand-ins on the path are there to be used
            #[cfg(feature = "nvml")]
            may_use_libraries: std::env::var_os("KVWISE_GPU_TOOLS_ONLY").is_none(),
        }
    }

    /// Tools of these folders, with these variables, and no libraries.
    pub fn of(
        path: OsString,
        variable: impl Fn(&str) -> Option<String> + 'static,
        patience: Duration,
    ) -> Self {
        Self {
            path,
            variable: Box::new(variable),
            patience,
            #[cfg(feature = "nvml")]
            may_use_libraries: false,
        }
    }

    /// Whether drivers' libraries may be loaded.
    #[cfg(feature = "nvml")]
    pub(super) fn may_use_libraries(&self) -> bool {
        self.may_use_libraries
    }

    /// An environment variable.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name)
    }

    fn locate(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|folder| folder.is_absolute())
            .flat_map(|folder| [folder.join(name), folder.join(format!("{name}.exe"))])
            .find(|file| file.is_file())
    }

    /// What a tool prints; `None` if there is no such tool.
    ///
    /// # Errors
    /// If it fails, hangs, or prints more than is read; the message holds what it said.
    pub(super) fn run(&self, name: &str, arguments: &[&str]) -> Result<Option<String>> {
        let Some(file) = self.locate(name) else {
            return Ok(None);
        };
        let call = || format!("{} {}", file.display(), arguments.join(" "));
        let mut child = Command::new(&file)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(format!("{}: cannot be started: {e}", call())))?;
        let out = collect(child.stdout.take());
        let err = collect(child.stderr.take());
        let status = wait(&mut child, self.patience).map_err(|e| {
            Error::io(format!("{}: {e}", call())).hint("does it answer when you run it yourself?")
        })?;
        let text = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
        let (out, err) = (text(out), text(err));
        if out.len() as u64 > MAX_OUTPUT_BYTES {
            return Err(Error::input(format!(
                "{}: prints more than {MAX_OUTPUT_BYTES} bytes",
                call()
            )));
        }
        if !status.success() {
            // nvidia-smi complains on stdout
            let said = String::from_utf8_lossy(if err.is_empty() { &out } else { &err }).into_owned();
            let said: String = said
                .trim()
                .chars()
                .filter(|c| !c.is_control())
                .take(300)
                .collect();
            return Err(Error::io(format!("{}: failed ({status}): {said}", call()))
                .hint("does it answer when you run it yourself?"));
        }
        String::from_utf8(out)
            .map(Some)
            .map_err(|_| Error::input(format!("{}: prints no text", call())))
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            // a stream that breaks off has brought what it brought; the exit status tells the rest
            let _ = stream.take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, patience: Duration) -> std::result::Result<std::process::ExitStatus, String> {
    let started = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if started.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer in {:.0} s", patience.as_secs_f64().ceil()));
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}
