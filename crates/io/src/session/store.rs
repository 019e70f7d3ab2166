//! The folder of a recording: made, opened, closed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvwise_core::{Error, Result};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::atomic;

/// Name of the database in the folder.
pub const DATABASE: &str = "session.sqlite";
/// Name of the description in the folder.
pub const METADATA: &str = "metadata.json";
/// Folder of the probe's own files in the folder.
pub const PROBE_FOLDER: &str = "probe";

/// `metadata.json`: what the recording is, readable without SQLite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Always `kvwise.session/1`.
    pub schema: String,
    /// Name of the folder.
    pub session_id: String,
    /// When the recording began, microseconds since 1970.
    pub start_unix_us: i64,
    /// When it ended; absent while it runs and after a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_unix_us: Option<i64>,
    /// `attach`, `run` or `probe`.
    pub made_by: String,
    /// Servers or the command that were recorded.
    pub targets: Vec<String>,
    /// Seconds between two scrapes, for `attach`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_s: Option<f64>,
    /// Version of kvwise that wrote it.
    pub kvwise_version: String,
}

impl Metadata {
    /// A description of a recording that begins now.
    pub fn new(made_by: &str, targets: Vec<String>, start_unix_us: i64) -> Self {
        Self {
            schema: "kvwise.session/1".to_owned(),
            session_id: String::new(),
            start_unix_us,
            end_unix_us: None,
            made_by: made_by.to_owned(),
            targets,
            interval_s: None,
            kvwise_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Wall-clock time that cannot jump: one reading of the clock, then a monotonic one.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    start_unix_us: i64,
}

impl Default for Clock {
    fn default() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            start: Instant::now(),
            start_unix_us: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        }
    }
}

impl Clock {
    /// Microseconds since 1970.
    pub fn now_us(&self) -> i64 {
        let passed = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.start_unix_us.saturating_add(passed)
    }
}

/// An open recording.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    /// What it is.
    pub metadata: Metadata,
    /// The database.
    pub db: Connection,
}

fn database_error(e: &rusqlite::Error) -> Error {
    let error = Error::io(format!("session.sqlite: {e}"));
    match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            error.hint("free some space; what was recorded so far is safe")
        }
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => error
            .hint("the file was changed by something else; `sqlite3 session.sqlite .recover` may save it"),
        Some(rusqlite::ErrorCode::DatabaseBusy) => {
            error.hint("another kvwise writes this session: stop it first")
        }
        _ => error,
    }
}

/// Turns an SQLite error into one of ours.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn sql(e: rusqlite::Error) -> Error {
    database_error(&e)
}

impl Session {
    /// Makes a new recording in `folder`, which must not hold one yet.
    ///
    /// # Errors
    /// If the folder holds a recording, or cannot be written.
    pub fn create(folder: &Path, mut metadata: Metadata) -> Result<Self> {
        if folder.join(DATABASE).exists() || folder.join(METADATA).exists() {
            return Err(
                Error::input(format!("{}: holds a recording already", folder.display()))
                    .hint("give another folder with -o, or remove this one"),
            );
        }
        fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("{}: cannot make the folder: {e}", folder.display())))?;
        metadata.session_id = folder
            .canonicalize()
            .ok()
            .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
            .unwrap_or_default();
        write_metadata(folder, &metadata)?;
        let mut db = open_database(&folder.join(DATABASE))?;
        schema::create(&mut db)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            metadata,
            db,
        })
    }

    /// Opens a recording. A folder that holds only the probe's own files (a container wrote it) becomes one.
    ///
    /// # Errors
    /// If there is no recording, or one from a newer version, or a file that is something else.
    pub fn open(folder: &Path) -> Result<Self> {
        let place = folder.display();
        if !folder.is_dir() {
            return Err(Error::not_found(format!("{place}: no such folder"))
                .hint("record one with `kvwise attach URL -o DIR` or `kvwise run -o DIR -- COMMAND`"));
        }
        let database = folder.join(DATABASE);
        let probe_only = !database.exists() && has_probe_files(folder);
        if !database.exists() && !probe_only {
            let inner: Vec<String> = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|e| e.path().join(DATABASE).exists() || has_probe_files(&e.path()))
                .map(|e| e.path().display().to_string())
                .collect();
            let error = Error::input(format!(
                "{place}: no recording in this folder (neither {DATABASE} nor {PROBE_FOLDER}/)"
            ));
            return Err(match inner.first() {
                Some(first) => error.hint(format!("there is one in {first}")),
                None => error,
            });
        }
        let mut db = open_database(&database).map_err(|e| e.at(place.to_string()))?;
        match schema::check(&db).map_err(|e| e.at(place.to_string()))? {
            // killed between making the file and its tables, or the probe's files only
            0 => schema::create(&mut db)?,
            schema::VERSION => {}
            _ => schema::upgrade(&mut db).map_err(|e| e.at(place.to_string()))?,
        }
        let metadata = read_metadata(folder)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            metadata,
            db,
        })
    }

    /// Whether a path looks like a recording.
    pub fn is_folder(path: &Path) -> bool {
        path.join(DATABASE).exists() || has_probe_files(path)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `metadata.json` again.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save_metadata(&self) -> Result<()> {
        write_metadata(&self.folder, &self.metadata)
    }

    /// Marks the end of the recording and folds the write-ahead log into the database.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn finish(mut self, end_unix_us: i64) -> Result<()> {
        self.metadata.end_unix_us = Some(end_unix_us);
        self.save_metadata()?;
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(sql)
    }
}

fn has_probe_files(folder: &Path) -> bool {
    fs::read_dir(folder.join(PROBE_FOLDER)).is_ok_and(|mut files| {
        files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().ends_with(".jsonl")))
    })
}

/// The description of a recording. One that is not there (the probe alone recorded) or stops in its middle (the machine
/// lost power) is made up: the database knows all that was recorded.
fn read_metadata(folder: &Path) -> Result<Metadata> {
    let made_up = |made_by: &str| {
        let mut made = Metadata::new(made_by, Vec::new(), 0);
        made.session_id = folder
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        made
    };
    let Ok(bytes) = fs::read(folder.join(METADATA)) else {
        return Ok(made_up("probe"));
    };
    match serde_json::from_slice(&bytes) {
        Ok(metadata) => Ok(metadata),
        Err(e) if e.is_eof() => Ok(made_up("unknown")),
        Err(e) => Err(Error::input(format!(
            "{}/{METADATA}: not the description of a session: {e}",
            folder.display()
        ))),
    }
}

fn write_metadata(folder: &Path, metadata: &Metadata) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(metadata)
        .map_err(|e| Error::io(format!("{METADATA}: cannot be written as JSON: {e}")))?;
    text.push(b'\n');
    atomic::write(&folder.join(METADATA), &text)
}

fn open_database(path: &Path) -> Result<Connection> {
    let db = Connection::open(path).map_err(sql)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(sql)?;
    // WAL: readers (report, watch) never block the recorder, and a killed writer leaves a file that opens
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .map_err(sql)?;
    db.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -4096;")
        .map_err(sql)?;
    Ok(db)
}
