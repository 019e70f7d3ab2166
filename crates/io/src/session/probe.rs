//! Reads the files that the Python probe writes (`probe/PID-N.jsonl`), incrementally and exactly once.
//!
//! How far a file was read is stored in the same transaction as what was read, so a recorder that is killed goes on
//! where it stopped. A line without its end is left for the next round: the writer may still be at it.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use kvwise_core::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

use super::probe_records::{Process, store};
use super::store::{PROBE_FOLDER, sql};

/// Longest line that is read; longer ones are skipped and counted as bad.
const MAX_LINE_BYTES: usize = 16 << 20;
/// Most bytes taken from one file in one round, so that one transaction stays small.
const MAX_ROUND_BYTES: u64 = 8 << 20;

/// What one round found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Records stored.
    pub records: u64,
    /// Lines or records that could not be read.
    pub bad_lines: u64,
}

/// Takes in what is new in every file of the probe. Call it again until nothing is left.
///
/// # Errors
/// If a file or the database cannot be read or written.
pub fn ingest(db: &mut Connection, folder: &Path) -> Result<Progress> {
    let probe = folder.join(PROBE_FOLDER);
    let Ok(entries) = std::fs::read_dir(&probe) else {
        return Ok(Progress::default());
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| std::path::Path::new(n).extension().is_some_and(|e| e == "jsonl"))
        .collect();
    names.sort();
    let mut total = Progress::default();
    for name in names {
        let progress = ingest_file(db, &probe.join(&name), &name)?;
        total.bytes += progress.bytes;
        total.records += progress.records;
        total.bad_lines += progress.bad_lines;
    }
    Ok(total)
}

/// Takes in everything that is there now.
///
/// # Errors
/// As [`ingest`].
pub fn ingest_all(db: &mut Connection, folder: &Path) -> Result<Progress> {
    let mut total = Progress::default();
    loop {
        let round = ingest(db, folder)?;
        if round.bytes == 0 {
            return Ok(total);
        }
        total.bytes += round.bytes;
        total.records += round.records;
        total.bad_lines += round.bad_lines;
    }
}

fn ingest_file(db: &mut Connection, path: &Path, name: &str) -> Result<Progress> {
    let fail = |e: std::io::Error| Error::io(format!("{}: {e}", path.display()));
    let known = read_so_far(db, name)?;
    let mut file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let offset = known.map_or(0, |k| u64::try_from(k.1).unwrap_or(0));
    if size <= offset {
        return Ok(Progress::default());
    }
    // two programs may take in the same file (`run` and a `report` meanwhile): who has the write lock goes on where
    // the other stopped
    let tx = db
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(sql)?;
    let known = read_so_far(&tx, name)?;
    let offset = known.map_or(0, |k| u64::try_from(k.1).unwrap_or(0));
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut progress = Progress::default();
    let mut process = match known {
        Some((id, _)) => Some(load_process(&tx, id)?),
        None => None,
    };
    let mut line = Vec::new();
    while progress.bytes < MAX_ROUND_BYTES {
        line.clear();
        let read = read_line(&mut reader, &mut line).map_err(fail)?;
        if read == 0 {
            break; // nothing more, or a line that is still being written
        }
        progress.bytes += read as u64;
        let value: Option<Value> = serde_json::from_slice(&line).ok();
        match (&mut process, value) {
            (None, Some(Value::Object(header))) => {
                process = Some(new_process(&tx, name, &header)?);
            }
            // a line is a list of records; the probe's first version wrote each on a line of its own
            (Some(process), Some(Value::Array(list))) => {
                let many = !list.is_empty() && list.iter().all(Value::is_array);
                let one = [Value::Array(list)];
                let records = match &one {
                    [Value::Array(list)] if many => list.as_slice(),
                    one => one,
                };
                for record in records {
                    let fields = record.as_array().map(Vec::as_slice).unwrap_or_default();
                    if store(&tx, process, fields)? {
                        progress.records += 1;
                    } else {
                        progress.bad_lines += 1;
                    }
                }
            }
            _ => progress.bad_lines += 1,
        }
    }
    if let Some(process) = process {
        let read = i64::try_from(offset + progress.bytes).unwrap_or(i64::MAX);
        tx.execute(
            "UPDATE process SET bytes_read = ?, records = records + ?, bad_lines = bad_lines + ?, ended = ? WHERE id = ?",
            params![read, progress.records.cast_signed(), progress.bad_lines.cast_signed(), process.ended, process.id],
        )
        .map_err(sql)?;
        tx.commit().map_err(sql)?;
        return Ok(progress);
    }
    // no header yet: read it again later
    Ok(Progress::default())
}

/// Row id of the process that wrote a file, and how far the file was read.
fn read_so_far(db: &Connection, name: &str) -> Result<Option<(i64, i64)>> {
    db.query_row("SELECT id, bytes_read FROM process WHERE file = ?", [name], |r| {
        Ok((r.get(0)?, r.get(1)?))
    })
    .optional()
    .map_err(sql)
}

/// Appends one whole line without its end; returns its length with the end, 0 if there is no whole line.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut length = 0;
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(0);
        }
        let end = available.iter().position(|b| *b == b'\n');
        let taken = end.map_or(available.len(), |e| e + 1);
        if line.len() + taken <= MAX_LINE_BYTES {
            line.extend_from_slice(available.get(..end.unwrap_or(taken)).unwrap_or_default());
        }
        length += taken;
        reader.consume(taken);
        if end.is_some() {
            return Ok(length);
        }
    }
}

fn load_process(tx: &Transaction<'_>, id: i64) -> Result<Process> {
    let (header, ended): (String, bool) = tx
        .query_row("SELECT header, ended FROM process WHERE id = ?", [id], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .map_err(sql)?;
    let header: Value = serde_json::from_str(&header)
        .map_err(|e| Error::input(format!("session.sqlite: process {id}: broken header: {e}")))?;
    Ok(Process {
        id,
        mono_ns: header["mono_ns"].as_i64().unwrap_or(0),
        unix_ns: header["unix_ns"].as_i64().unwrap_or(0),
        ended,
    })
}

fn new_process(tx: &Transaction<'_>, name: &str, header: &serde_json::Map<String, Value>) -> Result<Process> {
    let int = |key: &str| header.get(key).and_then(Value::as_i64).unwrap_or(0);
    let json = Value::Object(header.clone()).to_string();
    tx.execute(
        "INSERT INTO process (file, pid, start_us, header, bytes_read, records, bad_lines, ended) \
         VALUES (?, ?, ?, ?, 0, 0, 0, 0)",
        params![name, int("pid"), int("unix_ns").div_euclid(1000), json],
    )
    .map_err(sql)?;
    Ok(Process {
        id: tx.last_insert_rowid(),
        mono_ns: int("mono_ns"),
        unix_ns: int("unix_ns"),
        ended: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::schema;
    use std::io::Write;

    const HEADER: &str = r#"{"kvwise_probe":"1","pid":7,"mono_ns":1000000000,"unix_ns":1700000001000000000}"#;

    fn database() -> Connection {
        let mut db = Connection::open_in_memory().expect("memory");
        schema::create(&mut db).expect("tables");
        db
    }

    fn count(db: &Connection, table: &str) -> i64 {
        db.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |r| r.get(0))
            .expect("a table")
    }

    #[test]
    fn records_arrive_once_also_when_the_file_grows_and_a_line_is_torn() {
        let folder = tempfile::tempdir().expect("folder");
        let probe = folder.path().join(PROBE_FOLDER);
        std::fs::create_dir(&probe).expect("folder");
        let mut file = File::create(probe.join("7-0.jsonl")).expect("file");
        let mut db = database();
        write!(file, "{HEADER}\n[\"a\",2000000000,0,[1,2,3]]\n[\"f\",30000").expect("write");
        let first = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((first.records, first.bad_lines), (1, 0));
        writeln!(
            file,
            "00000,0,[3]]\nnonsense\n[\"unknown\",1]\n[\"end\",4000000000]"
        )
        .expect("write");
        let second = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((second.records, second.bad_lines), (2, 2));
        assert_eq!(
            ingest_all(&mut db, folder.path()).expect("read"),
            Progress::default()
        );
        assert_eq!(count(&db, "block_event"), 2);
        let (t_us, blocks): (i64, String) = db
            .query_row(
                "SELECT t_us, blocks FROM block_event WHERE kind = 'alloc'",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .expect("a row");
        assert_eq!((t_us, blocks.as_str()), (1_700_000_002_000_000, "[1,2,3]"));
        let ended: bool = db
            .query_row("SELECT ended FROM process", [], |r| r.get(0))
            .expect("a row");
        assert!(ended);
    }

    #[test]
    fn a_line_may_hold_many_records_and_block_numbers_as_hexadecimal_text() {
        let folder = tempfile::tempdir().expect("folder");
        let probe = folder.path().join(PROBE_FOLDER);
        std::fs::create_dir(&probe).expect("folder");
        // python: array.array("I", [1, 258]).tobytes().hex(), array.array("Q", [1 << 40]).tobytes().hex()
        let line = r#"[["a",2000000000,0,"0100000002010000"],["x",3000000000,0,"02010000","0000000000010000","0500000000000000","02000000","01000000"],["a",3000000000,0,"0100"],["B",4000000000,4,21000,10000]]"#;
        std::fs::write(probe.join("7-0.jsonl"), format!("{HEADER}\n{line}\n")).expect("write");
        let mut db = database();
        let progress = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((progress.records, progress.bad_lines), (3, 1));
        let blocks: String = db
            .query_row("SELECT blocks FROM block_event", [], |r| r.get(0))
            .expect("one event");
        assert_eq!(blocks, "[1,258]");
        let eviction: (i64, i64, i64, i64, i64) = db
            .query_row(
                "SELECT block, lifetime_us, idle_us, hits, cached FROM eviction",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
            )
            .expect("one eviction");
        assert_eq!(eviction, (258, 1 << 40, 5, 2, 1));
        assert_eq!(count(&db, "sampling"), 1);
    }

    #[test]
    fn no_record_of_any_kind_stops_the_others() {
        let folder = tempfile::tempdir().expect("folder");
        let probe = folder.path().join(PROBE_FOLDER);
        std::fs::create_dir(&probe).expect("folder");
        let mut lines = String::new();
        for kind in ('a'..='z').chain('A'..='Z') {
            for rest in [
                "",
                ",null,null,null,null,null",
                ",0,0,0,0,0,0,0",
                ",\"a\",\"a\",\"a\",\"a\",\"a\"",
                ",0,null,null,null",
                ",0,[1],[null],[null],[null],[null],[null]",
                ",{},[],{}",
                ",-9223372036854775808,9223372036854775807,1e300,[[]]",
            ] {
                lines.push_str(&format!("[\"{kind}\",1{rest}]\n"));
            }
        }
        std::fs::write(
            probe.join("1-0.jsonl"),
            format!("{HEADER}\n{lines}[\"a\",2000000000,0,[1,2,3]]\n"),
        )
        .expect("write");
        let mut db = database();
        let progress = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!(progress.records + progress.bad_lines, 52 * 8 + 1);
        assert!(progress.bad_lines > 52 * 4, "{progress:?}");
    }

    #[test]
    fn records_of_the_wrong_shape_are_counted_not_stored() {
        let folder = tempfile::tempdir().expect("folder");
        let probe = folder.path().join(PROBE_FOLDER);
        std::fs::create_dir(&probe).expect("folder");
        let lines = [
            "[]",
            "[1]",
            "[\"a\"]",
            "[\"a\",\"x\"]",
            "[\"x\",1,0,[1],[],[],[],[]]",
            "[\"T\",1,7]",
            "{}",
        ];
        std::fs::write(
            probe.join("1-0.jsonl"),
            format!("{HEADER}\n{}\n", lines.join("\n")),
        )
        .expect("write");
        let mut db = database();
        let progress = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((progress.records, progress.bad_lines), (0, 7));
    }
}
