//! Tables of `session.sqlite`, version [`VERSION`].
//!
//! Times are `t_us`: microseconds since 1970, computed from one wall-clock reading at the recording's start plus a
//! monotonic clock, so that a clock that jumps does not reorder the recording. Counters are totals that only grow
//! (see [`super::counters`]). Reference: `docs/src/reference/session.md`.

use kvwise_core::{Error, Result};
use rusqlite::Connection;

use crate::prometheus::engine::{COUNTERS, GAUGES};

/// Version of the tables; stored in `PRAGMA user_version`.
pub const VERSION: i32 = 2;

/// What version 2 added: when the probe recorded less than everything, and what it cost.
const ADDED_IN_2: &str = "
ALTER TABLE probe_total ADD COLUMN hook_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE probe_total ADD COLUMN writer_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE probe_total ADD COLUMN step_ns INTEGER NOT NULL DEFAULT 0;
-- from t_us on only every n-th step, block and hashed request is recorded (1: all, 0: totals only, -1: nothing), because the
-- probe took share_ppm of the step time (-1: not measured)
CREATE TABLE sampling (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, every INTEGER NOT NULL,
  share_ppm INTEGER NOT NULL, limit_ppm INTEGER NOT NULL);
";

/// Fixed tables; `sample` is made from the vocabulary.
const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- what is scraped, or the folder of the probe
CREATE TABLE target (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE engine (
  id INTEGER PRIMARY KEY, target_id INTEGER NOT NULL REFERENCES target(id),
  engine TEXT NOT NULL, model TEXT NOT NULL, rank TEXT NOT NULL,
  UNIQUE (target_id, engine, model, rank));
CREATE TABLE config (engine_id INTEGER NOT NULL REFERENCES engine(id), t_us INTEGER NOT NULL, json TEXT NOT NULL);
-- cumulative histograms as JSON {\"b\":[[upper bound or null for infinity, count],...],\"s\":sum,\"n\":count}
CREATE TABLE histogram (
  engine_id INTEGER NOT NULL REFERENCES engine(id), name TEXT NOT NULL, t_us INTEGER NOT NULL, json TEXT NOT NULL,
  PRIMARY KEY (engine_id, name, t_us)) WITHOUT ROWID;
-- stretches without data
CREATE TABLE gap (
  id INTEGER PRIMARY KEY, target_id INTEGER NOT NULL REFERENCES target(id),
  start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, failures INTEGER NOT NULL, reason TEXT NOT NULL);
-- restarts, counters that fell, configurations that changed, quantities that the server does not publish
CREATE TABLE event (
  t_us INTEGER NOT NULL, target_id INTEGER NOT NULL REFERENCES target(id), kind TEXT NOT NULL, detail TEXT NOT NULL);
-- from KV events: contents of the prefix cache, once a second
CREATE TABLE kv_content (
  target_id INTEGER NOT NULL REFERENCES target(id), t_us INTEGER NOT NULL, cached INTEGER NOT NULL,
  stored INTEGER NOT NULL, removed INTEGER NOT NULL, recomputed INTEGER NOT NULL, cleared INTEGER NOT NULL,
  missed_batches INTEGER NOT NULL, block_tokens INTEGER NOT NULL, PRIMARY KEY (target_id, t_us)) WITHOUT ROWID;
-- one content removed; lifetime_us is NULL if it was stored before the recording began
CREATE TABLE kv_removal (target_id INTEGER NOT NULL REFERENCES target(id), t_us INTEGER NOT NULL, lifetime_us INTEGER);

-- from here on: written by the probe
CREATE TABLE process (
  id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, pid INTEGER NOT NULL, start_us INTEGER NOT NULL,
  header TEXT NOT NULL, bytes_read INTEGER NOT NULL, records INTEGER NOT NULL, bad_lines INTEGER NOT NULL,
  ended INTEGER NOT NULL);
CREATE TABLE pool (
  process_id INTEGER NOT NULL REFERENCES process(id), pool INTEGER NOT NULL, t_us INTEGER NOT NULL,
  num_blocks INTEGER NOT NULL, caching INTEGER NOT NULL, hash_block_size INTEGER,
  PRIMARY KEY (process_id, pool)) WITHOUT ROWID;
CREATE TABLE settings (process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, json TEXT NOT NULL);
CREATE TABLE step (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, span_us INTEGER NOT NULL, n INTEGER NOT NULL,
  step INTEGER NOT NULL, running REAL, running_max INTEGER, waiting REAL, waiting_max INTEGER,
  scheduled_requests REAL, scheduled_tokens REAL, scheduled_tokens_max INTEGER, prefill_tokens REAL,
  used_blocks REAL, used_blocks_max INTEGER, schedule_us REAL);
CREATE INDEX step_time ON step (process_id, t_us);
-- totals since the process began; exact, also where single records are sampled
CREATE TABLE probe_total (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL,
  allocated_blocks INTEGER NOT NULL, freed_blocks INTEGER NOT NULL, hit_blocks INTEGER NOT NULL,
  evicted_blocks INTEGER NOT NULL, query_tokens INTEGER NOT NULL, hit_tokens INTEGER NOT NULL,
  resumed_query_tokens INTEGER NOT NULL, resumed_hit_tokens INTEGER NOT NULL,
  preemptions INTEGER NOT NULL, finished_requests INTEGER NOT NULL, steps INTEGER NOT NULL,
  lost_records INTEGER NOT NULL, errors INTEGER NOT NULL,
  PRIMARY KEY (process_id, t_us)) WITHOUT ROWID;
-- kind: alloc, free, hit, evict, clear; blocks: JSON list of block ids in the engine's order
CREATE TABLE block_event (
  process_id INTEGER NOT NULL REFERENCES process(id), pool INTEGER NOT NULL, t_us INTEGER NOT NULL,
  kind TEXT NOT NULL, blocks TEXT NOT NULL);
CREATE TABLE eviction (
  process_id INTEGER NOT NULL REFERENCES process(id), pool INTEGER NOT NULL, t_us INTEGER NOT NULL,
  block INTEGER NOT NULL, lifetime_us INTEGER NOT NULL, idle_us INTEGER NOT NULL, hits INTEGER NOT NULL,
  cached INTEGER NOT NULL);
CREATE TABLE admission (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, step INTEGER NOT NULL, request INTEGER NOT NULL,
  tokens INTEGER NOT NULL, hit_tokens INTEGER NOT NULL, resumed INTEGER NOT NULL);
CREATE TABLE preemption (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, step INTEGER NOT NULL, request INTEGER NOT NULL,
  computed_tokens INTEGER NOT NULL);
-- hash_ids: JSON list, one integer for each full block of prompt, then of output (keyed hashes, not reversible)
CREATE TABLE request (
  process_id INTEGER NOT NULL REFERENCES process(id), request INTEGER NOT NULL, arrival_us INTEGER NOT NULL,
  arrival_step INTEGER NOT NULL, finish_us INTEGER, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER,
  max_tokens INTEGER, preemptions INTEGER, reason TEXT, priority INTEGER NOT NULL, hash_block_tokens INTEGER,
  hash_ids TEXT,
  PRIMARY KEY (process_id, request)) WITHOUT ROWID;
CREATE TABLE graph_capture (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, runtime_mode TEXT NOT NULL,
  num_tokens INTEGER, num_reqs INTEGER, uniform INTEGER, has_lora INTEGER);
CREATE TABLE graph_use (
  process_id INTEGER NOT NULL REFERENCES process(id), runtime_mode TEXT NOT NULL, num_tokens INTEGER NOT NULL,
  num_reqs INTEGER NOT NULL, uniform INTEGER NOT NULL, has_lora INTEGER NOT NULL, replay_count INTEGER NOT NULL,
  PRIMARY KEY (process_id, runtime_mode, num_tokens, num_reqs, uniform, has_lora)) WITHOUT ROWID;
CREATE TABLE graph_timeline (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, descriptor TEXT NOT NULL,
  duration_us INTEGER NOT NULL);
CREATE TABLE memory (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE note (
  process_id INTEGER NOT NULL REFERENCES process(id), t_us INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
";

/// Whether a gauge also keeps its smallest and largest value of a thinned-out stretch.
pub(crate) fn gauge_columns() -> impl Iterator<Item = String> {
    GAUGES.iter().flat_map(|g| {
        [
            g.name.to_owned(),
            format!("{}_min", g.name),
            format!("{}_max", g.name),
        ]
    })
}

/// The statement that makes the table `sample`.
fn sample_table() -> String {
    let mut sql =
        "CREATE TABLE sample (engine_id INTEGER NOT NULL REFERENCES engine(id), t_us INTEGER NOT NULL, \
                   span_us INTEGER NOT NULL, n INTEGER NOT NULL"
            .to_owned();
    for column in gauge_columns().chain(COUNTERS.iter().map(|c| c.name.to_owned())) {
        sql.push_str(", ");
        sql.push_str(&column);
        sql.push_str(" REAL");
    }
    sql.push_str(", PRIMARY KEY (engine_id, t_us)) WITHOUT ROWID;");
    sql
}

/// Makes the tables in an empty database.
///
/// # Errors
/// If the database cannot be written.
pub fn create(db: &mut Connection) -> Result<()> {
    let fail = |e: rusqlite::Error| Error::io(format!("session.sqlite: cannot make its tables: {e}"));
    let tx = db.transaction().map_err(fail)?;
    tx.execute_batch(TABLES).map_err(fail)?;
    tx.execute_batch(&sample_table()).map_err(fail)?;
    tx.execute_batch(ADDED_IN_2).map_err(fail)?;
    tx.pragma_update(None, "user_version", VERSION).map_err(fail)?;
    tx.commit().map_err(fail)
}

/// Brings the tables of an older version up to this one.
///
/// # Errors
/// If the database cannot be written.
pub fn upgrade(db: &mut Connection) -> Result<()> {
    let fail = |e: rusqlite::Error| Error::io(format!("session.sqlite: cannot be brought up to date: {e}"));
    let tx = db
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(fail)?;
    // another program may have done it between our look and our lock
    if check(&tx)? == 1 {
        tx.execute_batch(ADDED_IN_2).map_err(fail)?;
        tx.pragma_update(None, "user_version", VERSION).map_err(fail)?;
    }
    tx.commit().map_err(fail)
}

/// The version of an existing database: 0 for one without tables.
///
/// # Errors
/// If the file is not a database, or of a version that this program does not know.
pub fn check(db: &Connection) -> Result<i32> {
    let version: i32 = db
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|e| Error::input(format!("session.sqlite: not a session database: {e}")))?;
    if version > VERSION {
        return Err(Error::unsupported(format!(
            "session.sqlite: written by a newer kvwise (session version {version}, this program knows up to {VERSION})"
        ))
        .hint("update kvwise, or open the file with any SQLite tool"));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_version_1_gets_what_version_2_added_and_keeps_its_rows() {
        let mut db = Connection::open_in_memory().expect("memory");
        db.execute_batch(TABLES).expect("tables");
        db.execute_batch(
            "INSERT INTO process VALUES (1, 'f', 1, 0, '{}', 0, 0, 0, 0);
             INSERT INTO probe_total VALUES (1, 5, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
             PRAGMA user_version = 1;",
        )
        .expect("rows");
        upgrade(&mut db).expect("upgraded");
        upgrade(&mut db).expect("once only");
        assert_eq!(check(&db).expect("known"), VERSION);
        let row: (i64, i64) = db
            .query_row("SELECT allocated_blocks, hook_ns FROM probe_total", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .expect("a row");
        assert_eq!(row, (7, 0));
        db.execute("INSERT INTO sampling VALUES (1, 5, 2, 20000, 10000)", [])
            .expect("the new table");
    }
}
