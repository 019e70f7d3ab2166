//! Reading a recording back: time series, totals and distributions.

use std::collections::BTreeMap;

use kvwise_core::Result;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::record::histogram_from_json;
use super::store::sql;
use crate::prometheus::engine::{COUNTERS, GAUGES, HISTOGRAMS, NUM_COUNTERS, NUM_GAUGES};
use crate::prometheus::histogram::Histogram;

/// One row of the table `sample`.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// End of the stretch, microseconds since 1970.
    pub t_us: i64,
    /// Scrapes behind it.
    pub n: i64,
    /// Means, by index into [`GAUGES`].
    pub gauges: [Option<f64>; NUM_GAUGES],
    /// Largest values, by index into [`GAUGES`].
    pub gauge_max: [Option<f64>; NUM_GAUGES],
    /// Totals at the end of the stretch, by index into [`COUNTERS`].
    pub counters: [Option<f64>; NUM_COUNTERS],
}

/// One engine instance of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// Row id.
    pub id: i64,
    /// What was scraped.
    pub target: String,
    /// `vllm`, `sglang` or `llamacpp`.
    pub engine: String,
    /// Served model name.
    pub model: String,
    /// Engine index or data-parallel rank.
    pub rank: String,
    /// The last configuration that the engine told.
    pub config: BTreeMap<String, String>,
}

/// Every engine instance of the recording.
///
/// # Errors
/// If the database cannot be read.
pub fn engines(db: &Connection) -> Result<Vec<Engine>> {
    let mut statement = db
        .prepare(
            "SELECT engine.id, target.name, engine, model, rank FROM engine JOIN target ON target.id = target_id \
             ORDER BY engine.id",
        )
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| {
            Ok(Engine {
                id: r.get(0)?,
                target: r.get(1)?,
                engine: r.get(2)?,
                model: r.get(3)?,
                rank: r.get(4)?,
                config: BTreeMap::new(),
            })
        })
        .map_err(sql)?;
    let mut engines = rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)?;
    for engine in &mut engines {
        let json: Option<String> = db
            .query_row(
                "SELECT json FROM config WHERE engine_id = ? ORDER BY t_us DESC LIMIT 1",
                [engine.id],
                |r| r.get(0),
            )
            .optional()
            .map_err(sql)?;
        if let Some(json) = json {
            engine.config = serde_json::from_str(&json).unwrap_or_default();
        }
    }
    Ok(engines)
}

/// The samples of one engine in `[from_us, to_us]`, by time.
///
/// # Errors
/// If the database cannot be read.
pub fn points(db: &Connection, engine: i64, from_us: i64, to_us: i64) -> Result<Vec<Point>> {
    let mut columns = "t_us, n".to_owned();
    for g in &GAUGES {
        columns.push_str(", ");
        columns.push_str(g.name);
    }
    for g in &GAUGES {
        columns.push_str(", ");
        columns.push_str(g.name);
        columns.push_str("_max");
    }
    for c in &COUNTERS {
        columns.push_str(", ");
        columns.push_str(c.name);
    }
    let mut statement = db
        .prepare(&format!(
            "SELECT {columns} FROM sample WHERE engine_id = ? AND t_us BETWEEN ? AND ? ORDER BY t_us"
        ))
        .map_err(sql)?;
    let rows = statement
        .query_map(params![engine, from_us, to_us], read_point)
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

fn read_point(r: &Row<'_>) -> rusqlite::Result<Point> {
    let mut point = Point {
        t_us: r.get(0)?,
        n: r.get(1)?,
        gauges: [None; NUM_GAUGES],
        gauge_max: [None; NUM_GAUGES],
        counters: [None; NUM_COUNTERS],
    };
    for i in 0..NUM_GAUGES {
        point.gauges[i] = r.get(2 + i)?;
        point.gauge_max[i] = r.get(2 + NUM_GAUGES + i)?;
    }
    for i in 0..NUM_COUNTERS {
        point.counters[i] = r.get(2 + 2 * NUM_GAUGES + i)?;
    }
    Ok(point)
}

/// What was observed between the first and the last stored state of each histogram, by name. With `whole`, what the
/// server counted before the recording began is in it too.
///
/// # Errors
/// If the database cannot be read.
pub fn histograms(db: &Connection, engine: i64, whole: bool) -> Result<BTreeMap<&'static str, Histogram>> {
    let mut found = BTreeMap::new();
    let edge = |name: &str, order: &str| -> Result<Option<Histogram>> {
        let json: Option<String> = db
            .query_row(
                &format!("SELECT json FROM histogram WHERE engine_id = ? AND name = ? ORDER BY t_us {order} LIMIT 1"),
                params![engine, name],
                |r| r.get(0),
            )
            .optional()
            .map_err(sql)?;
        Ok(json.and_then(|j| histogram_from_json(&j)))
    };
    for row in &HISTOGRAMS {
        let Some(last) = edge(row.name, "DESC")? else {
            continue;
        };
        let value = if whole {
            last
        } else {
            let Some(first) = edge(row.name, "ASC")? else {
                continue;
            };
            last.since(&first).unwrap_or(last)
        };
        if value.count > 0.0 {
            found.insert(row.name, value);
        }
    }
    Ok(found)
}

/// A stretch without data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What was scraped.
    pub target: String,
    /// First failed scrape, microseconds since 1970.
    pub start_us: i64,
    /// Last failed scrape.
    pub end_us: i64,
    /// Failed scrapes.
    pub failures: i64,
    /// Why the first failed.
    pub reason: String,
}

/// The gaps of the recording, by time.
///
/// # Errors
/// If the database cannot be read.
pub fn gaps(db: &Connection) -> Result<Vec<Gap>> {
    let mut statement = db
        .prepare(
            "SELECT target.name, start_us, end_us, failures, reason FROM gap JOIN target ON target.id = target_id \
             ORDER BY start_us LIMIT 10000",
        )
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| {
            Ok(Gap {
                target: r.get(0)?,
                start_us: r.get(1)?,
                end_us: r.get(2)?,
                failures: r.get(3)?,
                reason: r.get(4)?,
            })
        })
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

/// Something that happened: restart, configuration change, quantities that are not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, microseconds since 1970.
    pub t_us: i64,
    /// What was scraped.
    pub target: String,
    /// `restart`, `another_server`, `counter_fell`, `config_changed` or `not_published`.
    pub kind: String,
    /// More about it.
    pub detail: String,
}

/// The events of the recording, by time.
///
/// # Errors
/// If the database cannot be read.
pub fn events(db: &Connection) -> Result<Vec<Event>> {
    let mut statement = db
        .prepare(
            "SELECT t_us, target.name, kind, detail FROM event JOIN target ON target.id = target_id \
             ORDER BY t_us LIMIT 10000",
        )
        .map_err(sql)?;
    let rows = statement
        .query_map([], |r| {
            Ok(Event {
                t_us: r.get(0)?,
                target: r.get(1)?,
                kind: r.get(2)?,
                detail: r.get(3)?,
            })
        })
        .map_err(sql)?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map_err(sql)
}

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

/// A prefix cache that was followed by its events.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowedContent {
    /// What was followed.
    pub target: String,
    /// Contents cached at the end that were stored since the recording began.
    pub cached: i64,
    /// Contents that became findable.
    pub stored: i64,
    /// Contents removed.
    pub removed: i64,
    /// Contents stored again after their removal.
    pub recomputed: i64,
    /// Batches of events that never arrived.
    pub missed_batches: i64,
    /// Tokens of one block.
    pub block_tokens: i64,
    /// Lifetimes of removed contents in seconds.
    pub lifetimes_s: Vec<f64>,
}

/// The prefix caches that were followed by their events.
///
/// # Errors
/// If the database cannot be read.
pub fn contents(db: &Connection) -> Result<Vec<FollowedContent>> {
    let mut statement = db
        .prepare(
            "SELECT target_id, target.name, cached, stored, removed, recomputed, missed_batches, block_tokens \
             FROM kv_content JOIN target ON target.id = target_id \
             WHERE t_us = (SELECT MAX(t_us) FROM kv_content l WHERE l.target_id = kv_content.target_id) ORDER BY 1",
        )
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    let mut found = Vec::new();
    while let Some(r) = rows.next().map_err(sql)? {
        let id: i64 = r.get(0).map_err(sql)?;
        let mut lifetimes = db
            .prepare("SELECT lifetime_us FROM kv_removal WHERE target_id = ? AND lifetime_us IS NOT NULL LIMIT 1000000")
            .map_err(sql)?;
        let lifetimes_s = lifetimes
            .query_map([id], |r| r.get::<_, i64>(0).map(|us| us as f64 / 1e6))
            .and_then(Iterator::collect)
            .map_err(sql)?;
        found.push(FollowedContent {
            target: r.get(1).map_err(sql)?,
            cached: r.get(2).map_err(sql)?,
            stored: r.get(3).map_err(sql)?,
            removed: r.get(4).map_err(sql)?,
            recomputed: r.get(5).map_err(sql)?,
            missed_batches: r.get(6).map_err(sql)?,
            block_tokens: r.get(7).map_err(sql)?,
            lifetimes_s,
        });
    }
    Ok(found)
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
