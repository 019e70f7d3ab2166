//! What each record of the probe becomes in the database. The records are described where they are made:
//! `python/kvwise_probe/kvwise_probe/vllm_hooks.py`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kvwise_core::Result;
use rusqlite::{Transaction, params};
use serde_json::Value;

use super::probe_events::{Memory, Row};
use super::store::sql;

/// The process whose file is read.
pub(super) struct Process {
    /// Row id.
    pub id: i64,
    /// Its monotonic clock when the file was begun, nanoseconds.
    pub mono_ns: i64,
    /// The wall clock then, nanoseconds since 1970.
    pub unix_ns: i64,
    /// Whether it said that it ended.
    pub ended: bool,
}

impl Process {
    /// Monotonic nanoseconds of the process to microseconds since 1970.
    fn time_us(&self, mono_ns: i64) -> Option<i64> {
        Some((self.unix_ns.checked_add(mono_ns.checked_sub(self.mono_ns)?)?).div_euclid(1000))
    }
}

/// Learns from one record what later events need.
pub(super) fn remember(memory: &mut Memory, record: &[Value]) {
    let int = |i: usize| record.get(i).and_then(Value::as_i64);
    match (record.first().and_then(Value::as_str), int(2)) {
        (Some("p"), Some(pool)) => memory.pool(pool, int(4).unwrap_or(0) != 0),
        (Some("B"), Some(every)) => memory.sample(every),
        (Some("k"), Some(graph)) => {
            memory.graph(graph, record.get(3).and_then(Value::as_str).unwrap_or_default());
        }
        _ => {}
    }
}

/// Stores what came of events; `false` if a time is beyond all calendars.
pub(super) fn store_row(tx: &Transaction<'_>, process: &Process, row: &Row) -> Result<bool> {
    let id = process.id;
    let (Row::Blocks { t_ns, .. }
    | Row::Eviction { t_ns, .. }
    | Row::Replayed { t_ns, .. }
    | Row::Step([t_ns, ..])
    | Row::Arrived([t_ns, ..])
    | Row::LookedUp([t_ns, ..])
    | Row::Preempted([t_ns, ..])) = row;
    let Some(t) = process.time_us(*t_ns) else {
        return Ok(false);
    };
    let run = |sql_text: &str, values: &[&dyn rusqlite::ToSql]| -> Result<bool> {
        tx.prepare_cached(sql_text)
            .and_then(|mut s| s.execute(values))
            .map(|_| true)
            .map_err(sql)
    };
    match row {
        Row::Blocks {
            kind, pool, blocks, ..
        } => {
            let blocks = serde_json::to_string(blocks).unwrap_or_default();
            run(
                "INSERT INTO block_event VALUES (?, ?, ?, ?, ?)",
                &[&id, pool, &t, kind, &blocks],
            )
        }
        Row::Eviction {
            pool,
            block,
            lifetime_us,
            idle_us,
            hits,
            cached,
            ..
        } => run(
            "INSERT INTO eviction VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            &[&id, pool, &t, block, lifetime_us, idle_us, hits, cached],
        ),
        Row::Step(
            [
                _,
                step,
                running,
                waiting,
                requests,
                tokens,
                prefill,
                used,
                schedule_us,
            ],
        ) => run(
            "INSERT INTO step VALUES (?1, ?2, 0, 1, ?3, ?4, ?4, ?5, ?5, ?6, ?7, ?7, ?8, ?9, ?9, ?10)",
            &[
                &id,
                &t,
                step,
                running,
                waiting,
                requests,
                tokens,
                prefill,
                used,
                schedule_us,
            ],
        ),
        Row::Arrived([_, request, step, prompt, limit, priority]) => run(
            "INSERT OR IGNORE INTO request (process_id, request, arrival_us, arrival_step, prompt_tokens, max_tokens, \
             priority) VALUES (?, ?, ?, ?, ?, ?, ?)",
            &[
                &id,
                request,
                &t,
                step,
                prompt,
                &Some(*limit).filter(|n| *n >= 0),
                priority,
            ],
        ),
        Row::LookedUp([_, request, step, tokens, hit_tokens, resumed]) => run(
            "INSERT INTO admission VALUES (?, ?, ?, ?, ?, ?, ?)",
            &[&id, &t, step, request, tokens, hit_tokens, resumed],
        ),
        Row::Preempted([_, request, step, computed]) => run(
            "INSERT INTO preemption VALUES (?, ?, ?, ?, ?)",
            &[&id, &t, step, request, computed],
        ),
        Row::Replayed {
            graph, duration_us, ..
        } => run(
            "INSERT INTO graph_timeline VALUES (?, ?, ?, ?)",
            &[&id, &t, graph, duration_us],
        ),
    }
}

/// Stores one record; `false` if it is not one that this program knows.
pub(super) fn store(tx: &Transaction<'_>, process: &mut Process, record: &[Value]) -> Result<bool> {
    let Some(kind) = record.first().and_then(Value::as_str) else {
        return Ok(false);
    };
    let Some(t_us) = record
        .get(1)
        .and_then(Value::as_i64)
        .and_then(|t| process.time_us(t))
    else {
        return Ok(false);
    };
    let id = process.id;
    let int = |i: usize| record.get(i).and_then(Value::as_i64);
    let text = |i: usize| record.get(i).and_then(Value::as_str);
    let list = |i: usize| record.get(i).and_then(Value::as_array);
    let run = |sql_text: &str, values: &[&dyn rusqlite::ToSql]| -> Result<bool> {
        tx.prepare_cached(sql_text)
            .and_then(|mut s| s.execute(values))
            .map(|_| true)
            .map_err(sql)
    };
    match kind {
        "r" => {
            let hashes = text(7).and_then(decode_hashes);
            run(
                "UPDATE request SET finish_us = ?3, output_tokens = ?4, preemptions = ?5, reason = ?6, \
                 hash_block_tokens = ?7, hash_ids = ?8 WHERE process_id = ?1 AND request = ?2",
                &[&id, &int(2), &t_us, &int(3), &int(4), &text(5), &int(6), &hashes],
            )
        }
        "p" => {
            let (Some(pool), Some(blocks)) = (int(2), int(3)) else {
                return Ok(false);
            };
            run(
                "INSERT OR REPLACE INTO pool VALUES (?, ?, ?, ?, ?, ?)",
                &[&id, &pool, &t_us, &blocks, &int(4).unwrap_or(0), &int(5)],
            )
        }
        "B" => {
            let Some(every) = int(2) else { return Ok(false) };
            run(
                "INSERT INTO sampling VALUES (?, ?, ?, ?, ?)",
                &[&id, &t_us, &every, &int(3).unwrap_or(-1), &int(4).unwrap_or(0)],
            )
        }
        "T" => totals(tx, id, t_us, record.get(2)),
        "g" => run(
            "INSERT INTO graph_capture VALUES (?, ?, ?, ?, ?, ?, ?)",
            &[
                &id,
                &t_us,
                &text(2).unwrap_or(""),
                &int(3),
                &int(4),
                &flag(record.get(5)),
                &flag(record.get(6)),
            ],
        ),
        "G" => {
            for row in list(2).into_iter().flatten() {
                let at = |i: usize| row.get(i).and_then(Value::as_i64);
                // NULL in a primary key would be another row each time: piecewise graphs have no request count
                run(
                    "INSERT OR REPLACE INTO graph_use VALUES (?, ?, ?, ?, ?, ?, ?)",
                    &[
                        &id,
                        &row.get(0).and_then(Value::as_str).unwrap_or(""),
                        &at(1).unwrap_or(-1),
                        &at(2).unwrap_or(-1),
                        &flag(row.get(3)).unwrap_or(false),
                        &flag(row.get(4)).unwrap_or(false),
                        &at(5).unwrap_or(0),
                    ],
                )?;
            }
            Ok(true)
        }
        "m" => run(
            "INSERT INTO memory VALUES (?, ?, ?, ?)",
            &[&id, &t_us, &text(2).unwrap_or(""), &int(3).unwrap_or(0)],
        ),
        "S" => run(
            "INSERT INTO settings VALUES (?, ?, ?)",
            &[
                &id,
                &t_us,
                &record.get(2).map(Value::to_string).unwrap_or_default(),
            ],
        ),
        "n" => run(
            "INSERT INTO note VALUES (?, ?, ?, ?)",
            &[&id, &t_us, &text(2).unwrap_or(""), &text(3).unwrap_or("")],
        ),
        "k" => Ok(int(2).is_some() && text(3).is_some()),
        "end" => {
            process.ended = true;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn flag(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => Some(n.as_i64() != Some(0)),
        _ => None,
    }
}

fn totals(tx: &Transaction<'_>, id: i64, t_us: i64, values: Option<&Value>) -> Result<bool> {
    let Some(Value::Object(values)) = values else {
        return Ok(false);
    };
    let get = |key: &str| values.get(key).and_then(Value::as_i64).unwrap_or(0);
    tx.prepare_cached(
        "INSERT OR REPLACE INTO probe_total VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .and_then(|mut s| {
        s.execute(params![
            id,
            t_us,
            get("allocated_blocks"),
            get("freed_blocks"),
            get("hit_blocks"),
            get("evicted_blocks"),
            get("query_tokens"),
            get("hit_tokens"),
            get("resumed_query_tokens"),
            get("resumed_hit_tokens"),
            get("preemptions"),
            get("finished_requests"),
            get("steps"),
            get("lost_records"),
            get("errors"),
            get("hook_ns"),
            get("writer_ns"),
            get("step_ns")
        ])
    })
    .map(|_| true)
    .map_err(sql)
}

/// Base64 of six bytes for each block, as a JSON list of integers.
fn decode_hashes(text: &str) -> Option<String> {
    let bytes = STANDARD.decode(text).ok().filter(|b| b.len().is_multiple_of(6))?;
    let ids: Vec<u64> = bytes
        .chunks_exact(6)
        .map(|c| c.iter().fold(0, |id, b| id << 8 | u64::from(*b)))
        .collect();
    serde_json::to_string(&ids).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_come_back_as_the_integers_they_were() {
        // python: base64.b64encode(bytes([0,0,0,0,0,1]) + bytes([255]*6))
        assert_eq!(
            decode_hashes("AAAAAAAB////////").as_deref(),
            Some("[1,281474976710655]")
        );
        assert_eq!(decode_hashes(""), Some("[]".to_owned()));
        assert_eq!(decode_hashes("AA=="), None);
    }
}
