//! When the probe recorded less than everything, and what it cost the engine.
//!
//! Above its limit (1 % of the step time by default) the probe follows only every n-th step, block and request, then
//! totals only, then takes its hooks off. Each change is a row of the table `sampling`; before the first one everything
//! is recorded.

use kvwise_core::Result;
use rusqlite::{Connection, OptionalExtension, params};

use super::store::sql;

/// How one process was recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// Changes: microseconds since 1970, and what is recorded from there on: every n-th, 0 for totals only, -1 for nothing.
    pub changes: Vec<(i64, i64)>,
    /// The limit as a share of step time; `None` where it was never reached.
    pub limit: Option<f64>,
    /// From the first total to the last, microseconds since 1970.
    pub span_us: (i64, i64),
}

impl Sampling {
    /// Whether single records are a sample for some of the time.
    pub fn is_sampled(&self) -> bool {
        self.changes.iter().any(|(_, every)| *every != 1)
    }

    /// Whether totals leave out what happened while the hooks were off.
    pub fn has_blind_stretches(&self) -> bool {
        self.changes.iter().any(|(_, every)| *every < 0)
    }

    /// Seconds in which `which` was true of what was recorded (see [`Self::changes`]).
    pub fn seconds(&self, which: impl Fn(i64) -> bool) -> f64 {
        let (start, end) = self.span_us;
        let (mut at, mut every, mut sum_us) = (start, 1, 0);
        for (t_us, next) in self.changes.iter().copied().chain([(end, 1)]) {
            let t_us = t_us.clamp(at, end.max(at));
            if which(every) {
                sum_us += t_us - at;
            }
            (at, every) = (t_us, next);
        }
        sum_us as f64 / 1e6
    }
}

/// How a process was recorded.
///
/// # Errors
/// If the database cannot be read.
pub fn of_process(db: &Connection, process: i64) -> Result<Sampling> {
    let mut statement = db
        .prepare("SELECT t_us, every, limit_ppm FROM sampling WHERE process_id = ? ORDER BY rowid")
        .map_err(sql)?;
    let rows = statement
        .query_map([process], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, i64>(2)?)))
        .map_err(sql)?;
    let rows = rows
        .collect::<rusqlite::Result<Vec<(i64, i64, i64)>>>()
        .map_err(sql)?;
    let span_us = db
        .query_row(
            "SELECT start_us, COALESCE((SELECT MAX(t_us) FROM probe_total WHERE process_id = ?1), start_us) \
             FROM process WHERE id = ?1",
            params![process],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .optional()
        .map_err(sql)?
        .unwrap_or_default();
    Ok(Sampling {
        limit: rows.last().map(|r| r.2 as f64 / 1e6),
        changes: rows.into_iter().map(|(t_us, every, _)| (t_us, every)).collect(),
        span_us,
    })
}

/// Reuses of blocks in the whole recording: those recorded, and an estimate where each stands for several (else equal).
///
/// # Errors
/// If the database cannot be read.
pub fn eviction_count(db: &Connection) -> Result<(i64, i64)> {
    db.query_row(
        "SELECT COUNT(*), COALESCE(SUM(MAX(1, COALESCE((SELECT every FROM sampling \
         WHERE sampling.process_id = eviction.process_id AND sampling.t_us <= eviction.t_us \
         ORDER BY sampling.rowid DESC LIMIT 1), 1))), 0) FROM eviction",
        [],
        |r| Ok((r.get(0)?, r.get(1)?)),
    )
    .map_err(sql)
}

/// Whether any process of the recording was sampled.
///
/// # Errors
/// If the database cannot be read.
pub fn any(db: &Connection) -> Result<bool> {
    db.query_row(
        "SELECT EXISTS (SELECT 1 FROM sampling WHERE every <> 1)",
        [],
        |r| r.get(0),
    )
    .map_err(sql)
}

/// Whether no recorded request was in the engine at a time, where requests are recorded.
///
/// # Errors
/// If the database cannot be read.
pub fn is_idle(db: &Connection, process: i64, t_us: i64) -> Result<bool> {
    db.query_row(
        "SELECT EXISTS (SELECT 1 FROM request WHERE process_id = ?1) AND NOT EXISTS (SELECT 1 FROM request \
         WHERE process_id = ?1 AND arrival_us <= ?2 AND (finish_us IS NULL OR finish_us > ?2))",
        params![process, t_us],
        |r| r.get(0),
    )
    .map_err(sql)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::schema;

    #[test]
    fn times_and_counts_follow_the_changes() {
        let mut db = Connection::open_in_memory().expect("memory");
        schema::create(&mut db).expect("tables");
        db.execute_batch(
            "INSERT INTO process VALUES (1, 'f', 1, 0, '{}', 0, 0, 0, 0);
             INSERT INTO probe_total (process_id, t_us, allocated_blocks, freed_blocks, hit_blocks, evicted_blocks, \
               query_tokens, hit_tokens, resumed_query_tokens, resumed_hit_tokens, preemptions, finished_requests, steps, \
               lost_records, errors) VALUES (1, 10000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
             INSERT INTO eviction VALUES (1, 0, 1000000, 4, 0, 0, 0, 0), (1, 0, 3000000, 4, 0, 0, 0, 0);",
        )
        .expect("rows");
        let full = of_process(&db, 1).expect("read");
        assert!(!full.is_sampled() && !any(&db).expect("read"));
        assert!((full.seconds(|every| every == 1) - 10.0).abs() < 1e-9);
        assert_eq!(eviction_count(&db).expect("read"), (2, 2));
        db.execute_batch(
            "INSERT INTO sampling VALUES (1, 2000000, 8, 30000, 10000), (1, 5000000, -1, 30000, 10000), \
               (1, 9000000, 1, 2000, 10000);",
        )
        .expect("rows");
        let sampled = of_process(&db, 1).expect("read");
        assert!(sampled.is_sampled() && sampled.has_blind_stretches() && any(&db).expect("read"));
        assert!((sampled.seconds(|every| every == 1) - 3.0).abs() < 1e-9);
        assert!((sampled.seconds(|every| every > 1) - 3.0).abs() < 1e-9);
        assert!((sampled.seconds(|every| every < 0) - 4.0).abs() < 1e-9);
        assert_eq!(eviction_count(&db).expect("read"), (2, 9));
    }

    #[test]
    fn an_engine_is_idle_only_while_no_request_is_in_it() {
        let mut db = Connection::open_in_memory().expect("memory");
        schema::create(&mut db).expect("tables");
        db.execute_batch("INSERT INTO process VALUES (1, 'f', 1, 0, '{}', 0, 0, 0, 0);")
            .expect("row");
        assert!(
            !is_idle(&db, 1, 5).expect("read"),
            "requests were not recorded: nobody knows"
        );
        db.execute_batch(
            "INSERT INTO request (process_id, request, arrival_us, arrival_step, prompt_tokens, priority, finish_us) \
             VALUES (1, 0, 10, 0, 5, 0, 20), (1, 1, 30, 0, 5, 0, NULL);",
        )
        .expect("rows");
        let idle = [5, 15, 25, 35].map(|t| is_idle(&db, 1, t).expect("read"));
        assert_eq!(idle, [true, false, true, false]);
    }
}
