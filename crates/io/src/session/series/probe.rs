//! Reading back what the probe recorded: processes, steps, reuses of blocks, requests.

use std::collections::BTreeMap;

use kvwise_core::Result;
use rusqlite::{Connection, OptionalExtension, params};

use crate::session::store::sql;

/// A process that the probe ran in and that has a block pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// Row id.
    pub id: i64,
    /// Process number.
    pub pid: i64,
    /// vLLM's version, as the process said.
    pub vllm: String,
    /// Blocks of its first pool, with the null block; 0 if it has none.
    pub num_blocks: i64,
    /// Whether prefix caching is on.
    pub caching: bool,
    /// Settings as JSON, empty if none.
    pub settings: serde_json::Value,
    /// Whether the process said that it ended.
    pub ended: bool,
    /// Its totals.
    pub totals: ProbeTotals,
}

/// Totals of one process: exact also where single records were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProbeTotals {
    /// Blocks handed out.
    pub allocated_blocks: i64,
    /// Blocks that lost their last user.
    pub freed_blocks: i64,
    /// Blocks found in the prefix cache.
    pub hit_blocks: i64,
    /// Blocks that lost cached content.
    pub evicted_blocks: i64,
    /// Tokens looked up by requests admitted for the first time.
    pub query_tokens: i64,
    /// Tokens found by them.
    pub hit_tokens: i64,
    /// Preemptions.
    pub preemptions: i64,
    /// Finished requests.
    pub finished_requests: i64,
    /// Scheduler steps.
    pub steps: i64,
    /// Single records dropped by the rate or size limit.
    pub lost_records: i64,
    /// Errors of hooks.
    pub errors: i64,
    /// Time in hooks on the engine's thread, nanoseconds (estimated from one step of thirteen).
    pub hook_ns: i64,
    /// CPU time of the probe's writer, nanoseconds.
    pub writer_ns: i64,
    /// Time from step to step, idle waits left out, nanoseconds; 0 where it was not recorded.
    pub step_ns: i64,
}

/// The processes with a block pool, by row id.
///
/// # Errors
/// If the database cannot be read.
pub fn processes(db: &Connection) -> Result<Vec<Process>> {
    let mut statement = db
        .prepare(
            "SELECT process.id, pid, header, ended, num_blocks, caching FROM process \
             JOIN pool ON pool.process_id = process.id AND pool.pool = 0 ORDER BY process.id",
        )
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| {
            let header: String = r.get(2)?;
            let header: serde_json::Value = serde_json::from_str(&header).unwrap_or_default();
            Ok(Process {
                id: r.get(0)?,
                pid: r.get(1)?,
                vllm: header["vllm"].as_str().unwrap_or("unknown").to_owned(),
                ended: r.get(3)?,
                num_blocks: r.get(4)?,
                caching: r.get(5)?,
                settings: serde_json::Value::Null,
                totals: ProbeTotals::default(),
            })
        })
        .map_err(sql)?;
    let mut found = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)?;
    for process in &mut found {
        let json: Option<String> = db
            .query_row(
                "SELECT json FROM settings WHERE process_id = ? ORDER BY t_us DESC LIMIT 1",
                [process.id],
                |r| r.get(0),
            )
            .optional()
            .map_err(sql)?;
        process.settings = json
            .and_then(|j| serde_json::from_str(&j).ok())
            .unwrap_or_default();
        if let Some(totals) = probe_totals(db, process.id)? {
            process.totals = totals;
        }
    }
    Ok(found)
}

fn probe_totals(db: &Connection, process: i64) -> Result<Option<ProbeTotals>> {
    db.query_row(
        "SELECT allocated_blocks, freed_blocks, hit_blocks, evicted_blocks, query_tokens, hit_tokens, preemptions, \
         finished_requests, steps, lost_records, errors, hook_ns, writer_ns, step_ns FROM probe_total WHERE process_id = ? \
         ORDER BY t_us DESC LIMIT 1",
        [process],
        |r| {
            Ok(ProbeTotals {
                allocated_blocks: r.get(0)?,
                freed_blocks: r.get(1)?,
                hit_blocks: r.get(2)?,
                evicted_blocks: r.get(3)?,
                query_tokens: r.get(4)?,
                hit_tokens: r.get(5)?,
                preemptions: r.get(6)?,
                finished_requests: r.get(7)?,
                steps: r.get(8)?,
                lost_records: r.get(9)?,
                errors: r.get(10)?,
                hook_ns: r.get(11)?,
                writer_ns: r.get(12)?,
                step_ns: r.get(13)?,
            })
        },
    )
    .optional()
    .map_err(sql)
}

/// One recorded (or thinned-out) scheduler step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// When, microseconds since 1970.
    pub t_us: i64,
    /// Requests in the batch.
    pub running: f64,
    /// Requests in the queue.
    pub waiting: f64,
    /// Tokens scheduled.
    pub tokens: f64,
    /// Of these, for prompts.
    pub prefill_tokens: f64,
    /// Blocks in use.
    pub used_blocks: f64,
    /// Most blocks in use (differs from `used_blocks` in thinned-out stretches).
    pub used_blocks_max: i64,
}

/// The steps of one process, by time.
///
/// # Errors
/// If the database cannot be read.
pub fn steps(db: &Connection, process: i64) -> Result<Vec<Step>> {
    let mut statement = db
        .prepare(
            "SELECT t_us, running, waiting, scheduled_tokens, prefill_tokens, used_blocks, used_blocks_max FROM step \
             WHERE process_id = ? ORDER BY t_us",
        )
        .map_err(sql)?;
    let rows = statement
        .query_map([process], |r| {
            Ok(Step {
                t_us: r.get(0)?,
                running: r.get::<_, Option<f64>>(1)?.unwrap_or(0.0),
                waiting: r.get::<_, Option<f64>>(2)?.unwrap_or(0.0),
                tokens: r.get::<_, Option<f64>>(3)?.unwrap_or(0.0),
                prefill_tokens: r.get::<_, Option<f64>>(4)?.unwrap_or(0.0),
                used_blocks: r.get::<_, Option<f64>>(5)?.unwrap_or(0.0),
                used_blocks_max: r.get::<_, Option<i64>>(6)?.unwrap_or(0),
            })
        })
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

/// Reuse of one block for other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// When, microseconds since 1970.
    pub t_us: i64,
    /// Time since its allocation.
    pub lifetime_us: i64,
    /// Time since its last hit, or its allocation.
    pub idle_us: i64,
    /// Prefix hits in between.
    pub hits: i64,
    /// Whether cached content was lost.
    pub cached: bool,
}

/// The recorded reuses of blocks of one process, by time; at most `limit`.
///
/// # Errors
/// If the database cannot be read.
pub fn evictions(db: &Connection, process: i64, limit: u32) -> Result<Vec<Eviction>> {
    let mut statement = db
        .prepare("SELECT t_us, lifetime_us, idle_us, hits, cached FROM eviction WHERE process_id = ? ORDER BY t_us LIMIT ?")
        .map_err(sql)?;
    let rows = statement
        .query_map(params![process, limit], |r| {
            Ok(Eviction {
                t_us: r.get(0)?,
                lifetime_us: r.get(1)?,
                idle_us: r.get(2)?,
                hits: r.get(3)?,
                cached: r.get(4)?,
            })
        })
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

/// Notes of the probe: hooks that are missing or failed.
///
/// # Errors
/// If the database cannot be read.
pub fn notes(db: &Connection) -> Result<Vec<(String, String)>> {
    let mut statement = db
        .prepare("SELECT DISTINCT kind, text FROM note ORDER BY kind, text LIMIT 200")
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

/// Lengths of the finished requests of one process; `column` is `prompt_tokens` or `output_tokens`.
///
/// # Errors
/// If the database cannot be read.
pub fn request_lengths(db: &Connection, process: i64, column: &str) -> Result<Vec<f64>> {
    let column = if column == "output_tokens" {
        "output_tokens"
    } else {
        "prompt_tokens"
    };
    let mut statement = db
        .prepare(&format!(
            "SELECT {column} FROM request WHERE process_id = ? AND output_tokens IS NOT NULL LIMIT 1000000"
        ))
        .map_err(sql)?;
    let rows = statement.query_map([process], |r| r.get(0)).map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

/// CUDA-graph replays of one process.
///
/// # Errors
/// If the database cannot be read.
pub fn graph_replays(db: &Connection, process: i64) -> Result<i64> {
    db.query_row(
        "SELECT COALESCE(SUM(replay_count), 0) FROM graph_use WHERE process_id = ?",
        [process],
        |r| r.get(0),
    )
    .map_err(sql)
}

/// Memory figures that any process told, the last of each name.
///
/// # Errors
/// If the database cannot be read.
pub fn memory(db: &Connection) -> Result<BTreeMap<String, i64>> {
    let mut statement = db
        .prepare("SELECT name, bytes FROM memory ORDER BY t_us")
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<BTreeMap<_, _>>>().map_err(sql)
}

/// What a block event does to the blocks it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockChange {
    /// Allocated, or hit: held by a request from here on.
    Taken,
    /// Lost its last user.
    Freed,
}

/// Walks through the recorded block events of the first pool of a process, in their order: time, change, block ids.
///
/// # Errors
/// If the database cannot be read.
pub fn block_changes(
    db: &Connection,
    process: i64,
    mut each: impl FnMut(i64, BlockChange, &[usize]),
) -> Result<()> {
    let mut statement = db
        .prepare(
            "SELECT t_us, kind, blocks FROM block_event WHERE process_id = ? AND pool = 0 \
             AND kind IN ('alloc', 'hit', 'free') ORDER BY rowid",
        )
        .map_err(sql)?;
    let mut rows = statement.query([process]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let t_us: i64 = row.get(0).map_err(sql)?;
        let kind: String = row.get(1).map_err(sql)?;
        let blocks: String = row.get(2).map_err(sql)?;
        let blocks: Vec<usize> = serde_json::from_str(&blocks).unwrap_or_default();
        let change = if kind == "free" {
            BlockChange::Freed
        } else {
            BlockChange::Taken
        };
        each(t_us, change, &blocks);
    }
    Ok(())
}
