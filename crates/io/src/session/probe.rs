//! Reads the files that the Python probe writes (`probe/PID-N.jsonl`), incrementally and exactly once.
//!
//! How far a file was read is stored in the same transaction as what was read, so a recorder that is killed goes on
//! where it stopped. A line without its end is left for the next round: the writer may still be at it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use kvwise_core::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

use super::probe_events::Memory;
use super::probe_records::{Process, remember, store, store_row};
use super::store::{PROBE_FOLDER, sql};

/// Longest line that is read; longer ones are skipped and counted as bad.
const MAX_LINE_BYTES: usize = 16 << 20;
/// Most bytes taken from one file in one round, so that one transaction stays small.
const MAX_ROUND_BYTES: u64 = 8 << 20;

/// Version of the files that this program reads; they say it in their first line.
const PROBE_VERSION: &str = "2";

/// What one round found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Records and events read.
    pub records: u64,
    /// Lines or records that could not be read.
    pub bad_lines: u64,
}

impl std::ops::AddAssign for Progress {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.records += other.records;
        self.bad_lines += other.bad_lines;
    }
}

/// Takes in the files of one recording. Keep it between rounds: it knows what earlier events said of each block, which a new
/// one has to read again.
#[derive(Debug, Default)]
pub struct Ingest {
    files: HashMap<String, Known>,
}

/// What is known of one file up to some point.
#[derive(Debug, Default)]
struct Known {
    offset: u64,
    memory: Memory,
}

impl Ingest {
    /// Takes in what is new in every file of the probe. Call it again until nothing is left.
    ///
    /// # Errors
    /// If a file or the database cannot be read or written, or a file was written by another version of the probe.
    pub fn round(&mut self, db: &mut Connection, folder: &Path) -> Result<Progress> {
        let probe = folder.join(PROBE_FOLDER);
        let Ok(entries) = std::fs::read_dir(&probe) else {
            return Ok(Progress::default());
        };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| Path::new(n).extension().is_some_and(|e| e == "jsonl"))
            .collect();
        names.sort();
        let mut total = Progress::default();
        for name in names {
            total += self.file(db, &probe.join(&name), &name)?;
        }
        Ok(total)
    }

    fn file(&mut self, db: &mut Connection, path: &Path, name: &str) -> Result<Progress> {
        let fail = |e: std::io::Error| Error::io(format!("{}: {e}", path.display()));
        let offset_of = |known: Option<(i64, i64)>| known.map_or(0, |k| u64::try_from(k.1).unwrap_or(0));
        let mut file = File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        if size <= offset_of(read_so_far(db, name)?) {
            return Ok(Progress::default());
        }
        // two programs may take in the same file (`run` and a `report` meanwhile): who has the write lock goes on where
        // the other stopped
        let tx = db
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(sql)?;
        let known = read_so_far(&tx, name)?;
        let offset = offset_of(known);
        if self.files.get(name).is_none_or(|k| k.offset != offset) {
            let memory = recall(&mut file, offset).map_err(fail)?;
            self.files.insert(name.to_owned(), Known { offset, memory });
        }
        let mut process = match known {
            Some((id, _)) => Some(load_process(&tx, id)?),
            None => None,
        };
        // what this round learns counts only once it is committed
        let Some(Known { mut memory, .. }) = self.files.remove(name) else {
            return Ok(Progress::default());
        };
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut progress = Progress::default();
        let mut line = Vec::new();
        while progress.bytes < MAX_ROUND_BYTES {
            line.clear();
            let read = read_line(&mut reader, &mut line).map_err(fail)?;
            if read == 0 {
                break; // nothing more, or a line that is still being written
            }
            progress.bytes += read as u64;
            match (&mut process, serde_json::from_slice(&line).ok()) {
                (None, Some(Value::Object(header))) => {
                    check_version(path, &header)?;
                    process = Some(new_process(&tx, name, &header)?);
                }
                (Some(process), Some(Value::Array(list))) => {
                    take_line(&tx, process, &mut memory, &list, &mut progress)?;
                }
                _ => progress.bad_lines += 1,
            }
        }
        // without a header yet: read it again later
        let Some(process) = process else {
            return Ok(Progress::default());
        };
        let offset = offset + progress.bytes;
        tx.execute(
            "UPDATE process SET bytes_read = ?, records = records + ?, bad_lines = bad_lines + ?, ended = ? WHERE id = ?",
            params![
                i64::try_from(offset).unwrap_or(i64::MAX),
                progress.records.cast_signed(),
                progress.bad_lines.cast_signed(),
                process.ended,
                process.id
            ],
        )
        .map_err(sql)?;
        tx.commit().map_err(sql)?;
        self.files.insert(name.to_owned(), Known { offset, memory });
        Ok(progress)
    }
}

/// Takes in everything that is there now.
///
/// # Errors
/// As [`Ingest::round`].
pub fn ingest_all(db: &mut Connection, folder: &Path) -> Result<Progress> {
    Ingest::default().all(db, folder)
}

impl Ingest {
    /// Takes in everything that is there now.
    ///
    /// # Errors
    /// As [`Ingest::round`].
    pub fn all(&mut self, db: &mut Connection, folder: &Path) -> Result<Progress> {
        let mut total = Progress::default();
        loop {
            let round = self.round(db, folder)?;
            if round.bytes == 0 {
                return Ok(total);
            }
            total += round;
        }
    }
}

/// What a line of many events holds, if it is one.
fn events_of(list: &[Value]) -> Option<&str> {
    match list {
        [kind, text] if kind == "b" => text.as_str(),
        _ => None,
    }
}

/// One line after the header: many events, or a list of records.
fn take_line(
    tx: &Transaction<'_>,
    process: &mut Process,
    memory: &mut Memory,
    list: &[Value],
    progress: &mut Progress,
) -> Result<()> {
    if let Some(text) = events_of(list) {
        match memory.line(text) {
            Some(events) => progress.records += events,
            None => progress.bad_lines += 1,
        }
        for row in memory.rows() {
            if !store_row(tx, process, &row)? {
                progress.bad_lines += 1;
            }
        }
        return Ok(());
    }
    if list.is_empty() {
        progress.bad_lines += 1;
    }
    for record in list {
        let fields = record.as_array().map(Vec::as_slice).unwrap_or_default();
        if store(tx, process, fields)? {
            remember(memory, fields);
            progress.records += 1;
        } else {
            progress.bad_lines += 1;
        }
    }
    Ok(())
}

/// What the first bytes of a file, which were stored before, say of blocks.
fn recall(file: &mut File, until: u64) -> std::io::Result<Memory> {
    let mut memory = Memory::default();
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 16, file).take(until);
    let mut line = Vec::new();
    loop {
        line.clear();
        if read_line(&mut reader, &mut line)? == 0 {
            return Ok(memory);
        }
        let Ok(Value::Array(list)) = serde_json::from_slice(&line) else {
            continue;
        };
        if let Some(text) = events_of(&list) {
            let _ = memory.line(text); // broken lines were counted when they were stored
            memory.rows();
        } else {
            for record in list.iter().filter_map(Value::as_array) {
                remember(&mut memory, record);
            }
        }
    }
}

fn check_version(path: &Path, header: &serde_json::Map<String, Value>) -> Result<()> {
    let version = header
        .get("kvwise_probe")
        .and_then(Value::as_str)
        .unwrap_or("none");
    if version == PROBE_VERSION {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{}: written by version {version} of the probe, this program reads version {PROBE_VERSION}",
        path.display()
    ))
    .hint("take the recording in with the kvwise whose `probe-path` made the probe, or move the file away"))
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
    use base64::Engine as _;
    use std::io::Write;

    const HEADER: &str = r#"{"kvwise_probe":"2","pid":7,"mono_ns":1000000000,"unix_ns":1700000001000000000}"#;
    const POOL: &str = r#"[["p",1000000000,0,64,1,16]]"#;

    /// A line of events: kind first, then the numbers.
    fn events(list: &[&[i64]]) -> String {
        let bytes: Vec<u8> = list
            .iter()
            .flat_map(|event| {
                let head = event[0] | ((event.len().cast_signed() as i64 - 1) << 8);
                std::iter::once(head).chain(event[1..].iter().copied())
            })
            .flat_map(i64::to_le_bytes)
            .collect();
        format!(
            "[\"b\",\"{}\"]",
            base64::engine::general_purpose::STANDARD.encode(bytes)
        )
    }

    fn database() -> Connection {
        let mut db = Connection::open_in_memory().expect("memory");
        schema::create(&mut db).expect("tables");
        db
    }

    fn folder_with(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        let probe = folder.path().join(PROBE_FOLDER);
        std::fs::create_dir(&probe).expect("folder");
        std::fs::write(probe.join("7-0.jsonl"), text).expect("file");
        folder
    }

    fn append(folder: &tempfile::TempDir, text: &str) {
        let path = folder.path().join(PROBE_FOLDER).join("7-0.jsonl");
        let mut file = File::options().append(true).open(path).expect("file");
        write!(file, "{text}").expect("write");
    }

    fn count(db: &Connection, table: &str) -> i64 {
        db.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |r| r.get(0))
            .expect("a table")
    }

    #[test]
    fn records_arrive_once_also_when_the_file_grows_and_a_line_is_torn() {
        let free = events(&[&[2, 3_000_000_000, 0, 3]]);
        let (begun, rest) = free.split_at(12);
        let alloc = events(&[&[1, 2_000_000_000, 0, 1, 2, 3]]);
        let folder = folder_with(&format!("{HEADER}\n{alloc}\n{begun}"));
        let mut db = database();
        let first = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((first.records, first.bad_lines), (1, 0));
        append(
            &folder,
            &format!("{rest}\nnonsense\n[[\"unknown\",1],[\"end\",4000000000]]\n"),
        );
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
    fn every_kind_of_event_reaches_its_table() {
        let line = events(&[
            &[8, 1_500_000_000, 0, 0, 100, -1, 2],
            &[9, 2_000_000_000, 0, 1, 100, 32, 0],
            &[1, 2_000_000_000, 0, 1, 258],
            &[4, 3_000_000_000, 0, 258],
            &[1, 3_000_000_000, 0, 258],
            &[7, 3_500_000_000, 1, 1, 0, 1, 100, 100, 2, 500],
            &[10, 3_600_000_000, 0, 1, 64],
            &[11, 3_700_000_000, 3, 77],
        ]);
        let text = format!(
            "{HEADER}\n[[\"p\",1,0,64,1,16],[\"k\",1,3,\"FULL:8\"],[\"B\",4000000000,4,21000,10000]]\n{line}\n\
             [[\"r\",5000000000,0,9,1,\"stopped\",16,\"AAAAAAAB\"]]\n"
        );
        let folder = folder_with(&text);
        let mut db = database();
        let progress = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!((progress.records, progress.bad_lines), (3 + 8 + 1, 0));
        let eviction: (i64, i64, i64, i64, i64) = db
            .query_row(
                "SELECT block, lifetime_us, idle_us, hits, cached FROM eviction",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
            )
            .expect("one eviction");
        assert_eq!(eviction, (258, 1_000_000, 1_000_000, 0, 1));
        let request: (i64, Option<i64>, i64, i64, String) = db
            .query_row(
                "SELECT prompt_tokens, max_tokens, priority, output_tokens, hash_ids FROM request",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
            )
            .expect("one request");
        assert_eq!(request, (100, None, 2, 9, "[1]".to_owned()));
        let graph: (String, i64) = db
            .query_row("SELECT descriptor, duration_us FROM graph_timeline", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .expect("one replay");
        assert_eq!(graph, ("FULL:8".to_owned(), 77));
        let step: (i64, f64, i64) = db
            .query_row(
                "SELECT step, scheduled_tokens, used_blocks_max FROM step",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )
            .expect("one step");
        assert_eq!(step, (1, 100.0, 2));
        for (table, rows) in [
            ("admission", 1),
            ("preemption", 1),
            ("sampling", 1),
            ("block_event", 3),
        ] {
            assert_eq!(count(&db, table), rows, "{table}");
        }
    }

    #[test]
    fn a_program_that_goes_on_where_another_stopped_knows_the_same_of_blocks() {
        let lines: Vec<String> = (0..6)
            .map(|n| {
                events(&[
                    &[4, n * 1_000_000, 0, n % 2],
                    &[1, n * 1_000_000, 0, n % 2],
                    &[3, n * 1_000_000 + 5, 0, n % 2],
                ])
            })
            .collect();
        let evictions = |db: &Connection| -> Vec<(i64, i64, i64, i64)> {
            db.prepare("SELECT t_us, block, lifetime_us, hits FROM eviction ORDER BY rowid")
                .expect("a table")
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
                .expect("rows")
                .map(|r| r.expect("a row"))
                .collect()
        };
        let whole = folder_with(&format!("{HEADER}\n{POOL}\n{}\n", lines.join("\n")));
        let mut at_once = database();
        ingest_all(&mut at_once, whole.path()).expect("read");
        assert_eq!(evictions(&at_once).len(), 4);

        // three programs take turns: two that stay, one that is new each time
        let folder = folder_with(&format!("{HEADER}\n{POOL}\n"));
        let mut db = database();
        let (mut one, mut two) = (Ingest::default(), Ingest::default());
        for (n, line) in lines.iter().enumerate() {
            append(&folder, &format!("{line}\n"));
            match n % 3 {
                0 => one.round(&mut db, folder.path()).expect("read"),
                1 => two.round(&mut db, folder.path()).expect("read"),
                _ => ingest_all(&mut db, folder.path()).expect("read"),
            };
        }
        assert_eq!(evictions(&db), evictions(&at_once));
    }

    #[test]
    fn a_file_of_another_version_is_refused_by_name() {
        let folder = folder_with("{\"kvwise_probe\":\"9\",\"pid\":7}\n");
        let error = ingest_all(&mut database(), folder.path())
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains("7-0.jsonl") && error.contains("version 9"),
            "{error}"
        );
    }

    #[test]
    fn no_record_of_any_kind_stops_the_others() {
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
                lines.push_str(&format!("[[\"{kind}\",1{rest}]]\n"));
            }
        }
        for kind in 0..=14_i64 {
            for rest in [
                &[][..],
                &[i64::MIN],
                &[i64::MAX, i64::MIN, -1, i64::MAX],
                &[-1; 9],
                &[i64::MAX; 9],
            ] {
                lines.push_str(&events(&[&[&[kind], rest].concat()]));
                lines.push('\n');
            }
        }
        let last = events(&[&[1, 2_000_000_000, 0, 1, 2, 3]]);
        let folder = folder_with(&format!("{HEADER}\n{lines}{last}\n"));
        let mut db = database();
        ingest_all(&mut db, folder.path()).expect("read");
        let found: i64 = db
            .query_row(
                "SELECT COUNT(*) FROM block_event WHERE blocks = '[1,2,3]'",
                [],
                |r| r.get(0),
            )
            .expect("a table");
        assert_eq!(found, 1);
    }

    #[test]
    fn records_of_the_wrong_shape_are_counted_not_stored() {
        let lines = [
            "[]",
            "[1]",
            "[\"a\"]",
            "[[\"r\",\"x\"]]",
            "[[\"T\",1,7]]",
            "{}",
            "[\"b\",\"?\"]",
            "[\"b\",7]",
            "[[]]",
        ];
        let folder = folder_with(&format!("{HEADER}\n{}\n", lines.join("\n")));
        let mut db = database();
        let progress = ingest_all(&mut db, folder.path()).expect("read");
        assert_eq!(progress.records, 0);
        assert_eq!(
            progress.bad_lines, 10,
            "`[\"b\",7]` holds two records that are none"
        );
    }
}
