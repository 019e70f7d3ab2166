//! Reading a recording back: time series, totals and distributions.

mod probe;

use std::collections::BTreeMap;

use kvwise_core::Result;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::record::histogram_from_json;
use super::store::sql;
use crate::prometheus::engine::{COUNTERS, GAUGES, HISTOGRAMS, NUM_COUNTERS, NUM_GAUGES};
use crate::prometheus::histogram::Histogram;

pub use probe::{
    BlockChange, Eviction, ProbeTotals, Process, Step, block_changes, evictions, graph_replays, memory,
    notes, processes, request_lengths, steps,
};

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
