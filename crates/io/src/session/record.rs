//! Writing scrapes into a recording.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvwise_core::Result;
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::counters::{Finding, Totals};
use super::store::sql;
use super::{Session, schema};
use crate::kv_events::content::{ContentTotals, Removal};
use crate::prometheus::engine::{COUNTERS, EngineKey, HISTOGRAMS, NUM_COUNTERS, NUM_GAUGES, Snapshot};
use crate::prometheus::histogram::Histogram;

/// Histograms change slowly and are large: they are written at most this often.
const HISTOGRAM_INTERVAL_US: i64 = 5_000_000;

/// Writes what scrapes bring. Nothing is committed before [`Recorder::commit`].
#[derive(Debug)]
pub struct Recorder {
    session: Session,
    engines: BTreeMap<(i64, EngineKey), EngineState>,
    open_gaps: BTreeMap<i64, i64>,
    insert_sample: String,
    in_transaction: bool,
}

#[derive(Debug)]
struct EngineState {
    id: i64,
    totals: Totals<NUM_COUNTERS>,
    histograms: Vec<HistogramState>,
    config: BTreeMap<String, String>,
    reported_missing: bool,
}

#[derive(Debug, Clone, Default)]
struct HistogramState {
    raw: Option<(Option<f64>, Histogram)>,
    total: Histogram,
    written_us: i64,
    dirty: bool,
}

impl Recorder {
    /// A recorder into `session`.
    pub fn new(session: Session) -> Self {
        let columns: Vec<String> = schema::gauge_columns()
            .chain(COUNTERS.iter().map(|c| c.name.to_owned()))
            .collect();
        let mut insert_sample = "INSERT OR REPLACE INTO sample (engine_id, t_us, span_us, n".to_owned();
        for column in &columns {
            let _ = write!(insert_sample, ", {column}");
        }
        insert_sample.push_str(") VALUES (?, ?, 0, 1");
        insert_sample.push_str(&", ?".repeat(columns.len()));
        insert_sample.push(')');
        Self {
            session,
            engines: BTreeMap::new(),
            open_gaps: BTreeMap::new(),
            insert_sample,
            in_transaction: false,
        }
    }

    /// The recording.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The row of a target, made if it is new.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn target(&mut self, name: &str) -> Result<i64> {
        self.begin()?;
        let db = &self.session.db;
        let known = db
            .query_row("SELECT id FROM target WHERE name = ?", [name], |r| r.get(0))
            .optional()
            .map_err(sql)?;
        if let Some(id) = known {
            return Ok(id);
        }
        db.execute("INSERT INTO target (name) VALUES (?)", [name])
            .map_err(sql)?;
        Ok(db.last_insert_rowid())
    }

    /// Writes what one scrape brought; an open gap of the target ends.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn snapshots(&mut self, target: i64, t_us: i64, snapshots: &[Snapshot]) -> Result<()> {
        self.begin()?;
        self.open_gaps.remove(&target);
        for snapshot in snapshots {
            self.snapshot(target, t_us, snapshot)?;
        }
        Ok(())
    }

    fn snapshot(&mut self, target: i64, t_us: i64, snapshot: &Snapshot) -> Result<()> {
        let key = (target, snapshot.key.clone());
        if !self.engines.contains_key(&key) {
            let id = self.engine_row(target, &snapshot.key)?;
            self.engines.insert(
                key.clone(),
                EngineState {
                    id,
                    totals: Totals::default(),
                    histograms: vec![HistogramState::default(); HISTOGRAMS.len()],
                    config: BTreeMap::new(),
                    reported_missing: false,
                },
            );
        }
        let Some(state) = self.engines.get_mut(&key) else {
            return Ok(());
        };
        let db = &self.session.db;
        let event = |kind: &str, detail: &str| {
            db.prepare_cached("INSERT INTO event (t_us, target_id, kind, detail) VALUES (?, ?, ?, ?)")
                .and_then(|mut s| s.execute(params![t_us, target, kind, detail]))
                .map(|_| ())
                .map_err(sql)
        };
        if !state.reported_missing {
            state.reported_missing = true;
            let missing = snapshot.missing();
            if !missing.is_empty() {
                event("not_published", &missing.join(" "))?;
            }
        }
        if !snapshot.config.is_empty() && snapshot.config != state.config {
            let json = serde_json::to_string(&snapshot.config).unwrap_or_default();
            db.execute(
                "INSERT INTO config (engine_id, t_us, json) VALUES (?, ?, ?)",
                params![state.id, t_us, json],
            )
            .map_err(sql)?;
            if !state.config.is_empty() {
                event(
                    "config_changed",
                    &config_difference(&state.config, &snapshot.config),
                )?;
            }
            state.config.clone_from(&snapshot.config);
        }
        let (totals, findings) =
            state
                .totals
                .update(t_us as f64 / 1e6, snapshot.process_start_s, &snapshot.counters);
        for finding in findings {
            match finding {
                Finding::Restart => event("restart", &snapshot.key.model)?,
                Finding::AnotherServer => event("another_server", &snapshot.key.model)?,
                Finding::Fell(i) => event("counter_fell", COUNTERS[i].name)?,
            }
        }
        let mut values: Vec<rusqlite::types::Value> = vec![state.id.into(), t_us.into()];
        for gauge in snapshot.gauges.iter().take(NUM_GAUGES) {
            values.extend([(*gauge).into(), (*gauge).into(), (*gauge).into()]);
        }
        values.extend(totals.iter().map(|v| rusqlite::types::Value::from(*v)));
        db.prepare_cached(&self.insert_sample)
            .and_then(|mut s| s.execute(params_from_iter(values)))
            .map_err(sql)?;
        for (i, (seen, kept)) in snapshot.histograms.iter().zip(&mut state.histograms).enumerate() {
            let Some(raw) = seen else { continue };
            kept.update(snapshot.process_start_s, raw);
            if kept.dirty && t_us.saturating_sub(kept.written_us) >= HISTOGRAM_INTERVAL_US {
                write_histogram(db, state.id, HISTOGRAMS[i].name, t_us, kept)?;
            }
        }
        Ok(())
    }

    fn engine_row(&self, target: i64, key: &EngineKey) -> Result<i64> {
        let db = &self.session.db;
        db.execute(
            "INSERT OR IGNORE INTO engine (target_id, engine, model, rank) VALUES (?, ?, ?, ?)",
            params![target, key.engine.name(), key.model, key.rank],
        )
        .map_err(sql)?;
        db.query_row(
            "SELECT id FROM engine WHERE target_id = ? AND engine = ? AND model = ? AND rank = ?",
            params![target, key.engine.name(), key.model, key.rank],
            |r| r.get(0),
        )
        .map_err(sql)
    }

    /// Notes a scrape that failed: it opens a gap or lengthens the open one.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn failure(&mut self, target: i64, t_us: i64, reason: &str) -> Result<()> {
        self.begin()?;
        let db = &self.session.db;
        if let Some(gap) = self.open_gaps.get(&target) {
            db.execute(
                "UPDATE gap SET end_us = ?, failures = failures + 1 WHERE id = ?",
                params![t_us, gap],
            )
            .map_err(sql)?;
        } else {
            db.execute(
                "INSERT INTO gap (target_id, start_us, end_us, failures, reason) VALUES (?, ?, ?, 1, ?)",
                params![target, t_us, t_us, reason],
            )
            .map_err(sql)?;
            self.open_gaps.insert(target, db.last_insert_rowid());
        }
        Ok(())
    }

    /// Notes something that happened to a target.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn event(&mut self, target: i64, t_us: i64, kind: &str, detail: &str) -> Result<()> {
        self.begin()?;
        self.session
            .db
            .execute(
                "INSERT INTO event (t_us, target_id, kind, detail) VALUES (?, ?, ?, ?)",
                params![t_us, target, kind, detail],
            )
            .map(|_| ())
            .map_err(sql)
    }

    /// Writes the state of a prefix cache that is followed by its events, and what was removed since the last time.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn content(
        &mut self,
        target: i64,
        t_us: i64,
        cached: usize,
        totals: &ContentTotals,
        removals: &[Removal],
    ) -> Result<()> {
        self.begin()?;
        let db = &self.session.db;
        db.prepare_cached("INSERT OR REPLACE INTO kv_content VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .and_then(|mut s| {
                s.execute(params![
                    target,
                    t_us,
                    cached.cast_signed() as i64,
                    totals.stored.cast_signed(),
                    totals.removed.cast_signed(),
                    totals.recomputed.cast_signed(),
                    totals.cleared.cast_signed(),
                    totals.missed_batches.cast_signed(),
                    totals.block_tokens
                ])
            })
            .map_err(sql)?;
        for removal in removals {
            db.prepare_cached("INSERT INTO kv_removal VALUES (?, ?, ?)")
                .and_then(|mut s| s.execute(params![target, t_us, removal.lifetime_us]))
                .map_err(sql)?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            self.session.db.execute_batch("BEGIN IMMEDIATE").map_err(sql)?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Makes everything written so far survive a kill.
    ///
    /// # Errors
    /// If the disk is full or gone; what was committed before stays.
    pub fn commit(&mut self) -> Result<()> {
        if self.in_transaction {
            self.session.db.execute_batch("COMMIT").map_err(sql)?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// Thins out old data (see [`super::age`]).
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn thin_out(&mut self, now_us: i64) -> Result<()> {
        self.commit()?;
        super::age::thin_out(&mut self.session.db, now_us)
    }

    /// Writes the last state of every histogram, commits, and closes the recording.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn finish(mut self, t_us: i64) -> Result<()> {
        self.begin()?;
        for state in self.engines.values_mut() {
            for (i, kept) in state.histograms.iter_mut().enumerate() {
                if kept.dirty {
                    write_histogram(&self.session.db, state.id, HISTOGRAMS[i].name, t_us, kept)?;
                }
            }
        }
        self.commit()?;
        self.session.finish(t_us)
    }
}

impl HistogramState {
    /// Adds what was observed since the last scrape of the same process; a new process counts from zero.
    fn update(&mut self, start: Option<f64>, raw: &Histogram) {
        let added = match &self.raw {
            None => {
                // the first state is kept even if nothing was observed yet: later ones are measured from it
                self.total = raw.clone();
                self.raw = Some((start, raw.clone()));
                self.dirty = true;
                return;
            }
            Some((before, old)) if *before == start => {
                raw.since(old).or_else(|| start.is_none().then(|| raw.clone()))
            }
            Some((Some(before), _)) if start.is_some_and(|s| s > *before) => Some(raw.clone()),
            Some(_) => None,
        };
        if let Some(added) = added {
            if added.count > 0.0 && self.total.add(&added) {
                self.dirty = true;
            }
            self.raw = Some((start, raw.clone()));
        }
    }
}

fn write_histogram(
    db: &rusqlite::Connection,
    engine: i64,
    name: &str,
    t_us: i64,
    kept: &mut HistogramState,
) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO histogram (engine_id, name, t_us, json) VALUES (?, ?, ?, ?)")
        .and_then(|mut s| s.execute(params![engine, name, t_us, histogram_json(&kept.total)]))
        .map_err(sql)?;
    kept.written_us = t_us;
    kept.dirty = false;
    Ok(())
}

/// The form of a histogram in the database.
fn histogram_json(h: &Histogram) -> String {
    let buckets: Vec<(Option<f64>, f64)> = h
        .buckets
        .iter()
        .map(|b| (b.0.is_finite().then_some(b.0), b.1))
        .collect();
    serde_json::json!({"b": buckets, "s": h.sum, "n": h.count}).to_string()
}

/// Reads the form of a histogram in the database.
pub(crate) fn histogram_from_json(json: &str) -> Option<Histogram> {
    #[derive(serde::Deserialize)]
    struct Stored {
        b: Vec<(Option<f64>, f64)>,
        s: f64,
        n: f64,
    }
    let stored: Stored = serde_json::from_str(json).ok()?;
    Some(Histogram {
        buckets: stored
            .b
            .into_iter()
            .map(|(bound, count)| (bound.unwrap_or(f64::INFINITY), count))
            .collect(),
        sum: stored.s,
        count: stored.n,
    })
}

fn config_difference(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> String {
    let mut changes: Vec<String> = new
        .iter()
        .filter(|(k, v)| old.get(*k) != Some(v))
        .map(|(k, v)| format!("{k}: {} -> {v}", old.get(k).map_or("(absent)", String::as_str)))
        .collect();
    changes.extend(
        old.keys()
            .filter(|k| !new.contains_key(*k))
            .map(|k| format!("{k}: removed")),
    );
    changes.join(", ")
}
