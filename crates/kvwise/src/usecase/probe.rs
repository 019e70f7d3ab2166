//! The Python probe that is embedded in this program: unpacking it, and launching a command with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kvwise_core::{Error, Result};
use kvwise_io::session::store::{Clock, Metadata};
use kvwise_io::session::{Session, age, probe};

/// The probe's files, below the folder that goes on PYTHONPATH.
const FILES: [(&str, &str); 14] = [
    (
        "sitecustomize.py",
        include_str!("../../../../python/kvwise_probe/sitecustomize.py"),
    ),
    (
        "kvwise_probe/__init__.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/__init__.py"),
    ),
    (
        "kvwise_probe/budget.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/budget.py"),
    ),
    (
        "kvwise_probe/encoder.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/encoder.py"),
    ),
    (
        "kvwise_probe/finder.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/finder.py"),
    ),
    (
        "kvwise_probe/gpu_hooks.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/gpu_hooks.py"),
    ),
    (
        "kvwise_probe/hooking.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/hooking.py"),
    ),
    (
        "kvwise_probe/live.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/live.py"),
    ),
    (
        "kvwise_probe/pool_hooks.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/pool_hooks.py"),
    ),
    (
        "kvwise_probe/recorder.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/recorder.py"),
    ),
    (
        "kvwise_probe/scheduler_hooks.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/scheduler_hooks.py"),
    ),
    (
        "kvwise_probe/settings.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/settings.py"),
    ),
    (
        "kvwise_probe/sink.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/sink.py"),
    ),
    (
        "kvwise_probe/vllm_hooks.py",
        include_str!("../../../../python/kvwise_probe/kvwise_probe/vllm_hooks.py"),
    ),
];

/// How often the probe's files are taken into the database.
const INGEST_INTERVAL: Duration = Duration::from_millis(500);
/// How often old data is thinned out.
const THIN_OUT_INTERVAL: Duration = Duration::from_secs(60);

/// Writes the probe into `folder`; files that are there already and equal are left alone.
///
/// # Errors
/// If the folder cannot be written.
pub fn unpack(folder: &Path) -> Result<()> {
    for (name, text) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|e| Error::io(format!("{}: cannot make the folder: {e}", parent.display())))?;
        }
        kvwise_io::atomic::write(&path, text.as_bytes())?;
    }
    Ok(())
}

/// Where the probe is kept for this user: `$XDG_DATA_HOME/kvwise/probe-VERSION`.
///
/// # Errors
/// If neither `XDG_DATA_HOME` nor `HOME` is set.
pub fn default_folder() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let base = set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|h| h.join(".local/share")))
        .ok_or_else(|| {
            Error::input("neither XDG_DATA_HOME nor HOME is set").hint("give a folder with --dir")
        })?;
    Ok(base
        .join("kvwise")
        .join(concat!("probe-", env!("CARGO_PKG_VERSION"))))
}

/// How a launched command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whether its exit status was zero.
    pub success: bool,
    /// The status in words.
    pub status: String,
    /// Records taken in.
    pub records: u64,
}

/// Runs `command` with the probe and records into `folder` until it ends. Signals that reach only this process are
/// passed on; an interrupt typed at a terminal reaches the command by itself.
///
/// # Errors
/// If the command cannot be started or the folder cannot be written.
pub fn run(command: &[String], folder: &Path, warn: &mut dyn FnMut(&str)) -> Result<Ended> {
    let [program, arguments @ ..] = command else {
        return Err(Error::input("no command to run").hint("kvwise run -o DIR -- vllm serve MODEL"));
    };
    let signals = signals::Signals::catch()?;
    let clock = Clock::default();
    let metadata = Metadata::new("run", vec![command.join(" ")], clock.now_us());
    let mut session = Session::create(folder, metadata)?;
    let folder = fs::canonicalize(folder)
        .map_err(|e| Error::io(format!("{}: cannot be resolved: {e}", folder.display())))?;
    let code = folder.join("python");
    unpack(&code)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("PYTHONPATH", python_path(&code)?)
        .env("KVWISE_SESSION_DIR", &folder)
        .spawn()
        .map_err(|e| Error::io(format!("{program}: cannot be started: {e}")))?;
    let mut ingest = probe::Ingest::default();
    let mut records = 0;
    let mut trouble = false;
    let mut thinned = Instant::now();
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .map_err(|e| Error::io(format!("{program}: cannot wait for it: {e}")))?
        {
            break status;
        }
        signals.pass_on(&mut child);
        // trouble with the recording must not end the server
        match ingest.round(&mut session.db, &folder) {
            Ok(progress) => records += progress.records,
            Err(e) if !trouble => {
                trouble = true;
                warn(&format!("recording: {e}"));
            }
            Err(_) => {}
        }
        if thinned.elapsed() >= THIN_OUT_INTERVAL {
            let _ = age::thin_out(&mut session.db, clock.now_us());
            thinned = Instant::now();
        }
        std::thread::sleep(INGEST_INTERVAL);
    };
    records += ingest.all(&mut session.db, &folder)?.records;
    session.finish(clock.now_us())?;
    Ok(Ended {
        success: status.success(),
        status: status.to_string(),
        records,
    })
}

fn python_path(code: &Path) -> Result<std::ffi::OsString> {
    let mut parts = vec![code.to_path_buf()];
    if let Some(old) = std::env::var_os("PYTHONPATH").filter(|v| !v.is_empty()) {
        parts.extend(std::env::split_paths(&old));
    }
    std::env::join_paths(parts)
        .map_err(|e| Error::input(format!("{}: cannot be part of PYTHONPATH: {e}", code.display())))
}

#[cfg(unix)]
mod signals {
    use std::io::IsTerminal;
    use std::process::Child;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kvwise_core::{Error, Result};
    use rustix::process::{Pid, Signal, kill_process};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    /// The last signal that arrived and was not passed on yet: 0 for none.
    pub struct Signals(Arc<AtomicUsize>);

    const ALL: [(i32, usize, Signal); 3] = [
        (SIGINT, 1, Signal::INT),
        (SIGTERM, 2, Signal::TERM),
        (SIGHUP, 3, Signal::HUP),
    ];

    impl Signals {
        /// From now on, signals do not end this process.
        pub fn catch() -> Result<Self> {
            let seen = Arc::new(AtomicUsize::new(0));
            for (number, code, _) in ALL {
                signal_hook::flag::register_usize(number, Arc::clone(&seen), code)
                    .map_err(|e| Error::io(format!("cannot handle signals: {e}")))?;
            }
            Ok(Self(seen))
        }

        /// Passes a signal on to the command.
        pub fn pass_on(&self, child: &mut Child) {
            let code = self.0.swap(0, Ordering::SeqCst);
            let Some((_, _, signal)) = ALL.iter().find(|s| s.1 == code) else {
                return;
            };
            // a terminal sends interrupts to every process of its foreground group: twice would be one too many
            if *signal == Signal::INT && std::io::stdin().is_terminal() {
                return;
            }
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, *signal);
            }
        }
    }
}

#[cfg(not(unix))]
mod signals {
    use std::process::Child;

    use kvwise_core::Result;

    /// Where there are no Unix signals, nothing is passed on.
    pub struct Signals;

    impl Signals {
        /// Nothing to catch.
        pub fn catch() -> Result<Self> {
            Ok(Self)
        }

        /// Nothing to pass on.
        pub fn pass_on(&self, _: &mut Child) {}
    }
}
