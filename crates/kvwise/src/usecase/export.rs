//! Recordings as files for other tools.

use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};
use kvwise_io::session::{Session, probe, sampling, seed_files, series, trace};

/// Opens a recording and takes in what the probe wrote since.
///
/// # Errors
/// If it cannot be opened.
pub fn open(folder: &Path) -> Result<Session> {
    let mut session = Session::open(folder)?;
    probe::ingest_all(&mut session.db, folder)?;
    Ok(session)
}

/// Writes the CSV files and the summary.
///
/// # Errors
/// If a file cannot be written.
pub fn csv(session: &Session, folder: &Path) -> Result<Vec<PathBuf>> {
    seed_files::write(session, folder)
}

/// An exported trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeTrace {
    /// The file.
    pub path: PathBuf,
    /// Requests in it.
    pub requests: usize,
    /// Requests that had not finished or had no hashes.
    pub left_out: u64,
    /// Whether the probe recorded only a part of the requests' hashes: a replay is then not what happened.
    pub sampled: bool,
    /// The command that replays it with the recorded engine's sizes.
    pub replay: String,
}

/// Writes `trace.jsonl`.
///
/// # Errors
/// If no request with block hashes was recorded, or the file cannot be written.
pub fn trace(session: &Session, folder: &Path) -> Result<MadeTrace> {
    let made = trace::read(&session.db)?;
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::io(format!("{}: cannot make the folder: {e}", folder.display())))?;
    let path = folder.join("trace.jsonl");
    kvwise_io::atomic::write(&path, trace::to_jsonl(&made)?.as_bytes())?;
    let mut replay = format!(
        "kvwise replay {} --trace-format tokens --engine vllm --hash-block {} --clock step",
        path.display(),
        made.hash_block_tokens
    );
    if let Some(process) = series::processes(&session.db)?.first() {
        replay.push_str(&format!(" --num-blocks {}", process.num_blocks));
        for (flag, key) in [
            ("--block-size", "block_size"),
            ("--max-model-len", "max_model_len"),
            ("--max-num-seqs", "max_num_seqs"),
            ("--max-num-batched-tokens", "max_num_batched_tokens"),
        ] {
            if let Some(value) = process.settings[key].as_i64() {
                replay.push_str(&format!(" {flag} {value}"));
            }
        }
    }
    Ok(MadeTrace {
        path,
        requests: made.requests.len(),
        left_out: made.left_out,
        sampled: sampling::any(&session.db)?,
        replay,
    })
}

/// Writes every table as a Parquet file.
///
/// # Errors
/// If a file cannot be written.
#[cfg(feature = "parquet")]
pub fn parquet(session: &Session, folder: &Path) -> Result<Vec<PathBuf>> {
    kvwise_io::session::parquet::write(session, folder)
}

/// Says that this build has no Parquet support.
///
/// # Errors
/// Always.
#[cfg(not(feature = "parquet"))]
pub fn parquet(_: &Session, _: &Path) -> Result<Vec<PathBuf>> {
    Err(Error::unsupported("this build has no Parquet support").hint(
        "build with `--features parquet`, or use `--to csv`; DuckDB and pandas open session.sqlite directly",
    ))
}
