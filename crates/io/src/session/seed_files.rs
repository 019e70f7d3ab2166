//! The files that older vLLM profiling guides describe, with exactly their columns and number formats.
//!
//! `kv_cache_usage.csv`, `kv_cache_evictions.csv` (only if any eviction was recorded), `kv_cache_summary.txt`,
//! `cuda_graph_captures.csv`, `cuda_graph_usage.csv`, `cuda_graph_timeline.csv`: comma, CRLF line ends, a header always.
//! Times are seconds since the recording's start. Blocks are usable blocks: vLLM's null block holds nothing, so
//! `usage_pct` is `num_blocks / total_blocks`, as vLLM's own usage is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kvwise_core::{Error, Result};
use rusqlite::{Connection, Row};

use super::Session;
use super::sampling;
use super::series::{self, Process};
use super::store::sql;
use crate::atomic;
use crate::prometheus::engine::{PREEMPTIONS, USAGE};

/// Writes the files into `folder` and returns their paths.
///
/// # Errors
/// If the recording cannot be read or a file cannot be written.
pub fn write(session: &Session, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::io(format!("{}: cannot make the folder: {e}", folder.display())))?;
    let db = &session.db;
    let start_us = start_us(session)?;
    let mut written = Vec::new();
    let mut save = |name: &str, text: &str| -> Result<()> {
        let path = folder.join(name);
        atomic::write(&path, text.as_bytes())?;
        written.push(path);
        Ok(())
    };
    save("kv_cache_usage.csv", &usage_csv(db, start_us)?)?;
    if let Some(text) = evictions_csv(db, start_us)? {
        save("kv_cache_evictions.csv", &text)?;
    }
    save("kv_cache_summary.txt", &summary(db)?)?;
    save("cuda_graph_captures.csv", &graph_captures(db, start_us)?)?;
    save("cuda_graph_usage.csv", &graph_usage(db)?)?;
    save("cuda_graph_timeline.csv", &graph_timeline(db, start_us)?)?;
    Ok(written)
}

/// The recording's start; the first record's time where it is not known.
fn start_us(session: &Session) -> Result<i64> {
    if session.metadata.start_unix_us > 0 {
        return Ok(session.metadata.start_unix_us);
    }
    session
        .db
        .query_row(
            "SELECT COALESCE(MIN(t), 0) FROM (SELECT MIN(start_us) AS t FROM process UNION SELECT MIN(t_us) FROM sample)",
            [],
            |r| r.get(0),
        )
        .map_err(sql)
}

fn seconds(t_us: i64, start_us: i64) -> f64 {
    (t_us - start_us) as f64 / 1e6
}

/// Rows of usage: from the probe's steps if there are any, else from scrapes of engines that tell their block count.
fn usage_csv(db: &Connection, start_us: i64) -> Result<String> {
    let mut out = "timestamp_sec,usage_pct,num_blocks,total_blocks\r\n".to_owned();
    let mut row = |t_us: i64, used: f64, total: f64| {
        let _ = write!(
            out,
            "{:.3},{:.2},{:.0},{total:.0}\r\n",
            seconds(t_us, start_us),
            if total > 0.0 { used / total * 100.0 } else { 0.0 },
            used
        );
    };
    let mut any = false;
    for process in series::processes(db)? {
        let total = (process.num_blocks - 1).max(0) as f64;
        for step in series::steps(db, process.id)? {
            row(step.t_us, step.used_blocks, total);
            any = true;
        }
    }
    if any {
        return Ok(out);
    }
    for engine in series::engines(db)? {
        let Some(total) = usable_blocks(&engine) else {
            continue;
        };
        for point in series::points(db, engine.id, i64::MIN, i64::MAX)? {
            if let Some(usage) = point.gauges[USAGE] {
                row(point.t_us, usage * total, total);
            }
        }
    }
    Ok(out)
}

/// Blocks of a scraped vLLM without the null block.
fn usable_blocks(engine: &series::Engine) -> Option<f64> {
    let blocks: f64 = engine.config.get("num_gpu_blocks")?.parse().ok()?;
    (blocks > 1.0).then_some(blocks - 1.0)
}

fn evictions_csv(db: &Connection, start_us: i64) -> Result<Option<String>> {
    let mut statement = db
        .prepare("SELECT t_us, lifetime_us, idle_us FROM eviction ORDER BY t_us")
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    let mut out = String::new();
    while let Some(r) = rows.next().map_err(sql)? {
        let (t_us, life, idle): (i64, i64, i64) = (get(r, 0)?, get(r, 1)?, get(r, 2)?);
        let _ = write!(
            out,
            "{:.3},{:.3},{:.3}\r\n",
            seconds(t_us, start_us),
            life as f64 / 1e6,
            idle as f64 / 1e6
        );
    }
    Ok((!out.is_empty()).then(|| format!("timestamp_sec,lifetime_sec,idle_sec\r\n{out}")))
}

fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, i: usize) -> Result<T> {
    row.get(i).map_err(sql)
}

/// The summary. Without the probe, allocations are not known: the line says so instead of a number.
fn summary(db: &Connection) -> Result<String> {
    let mut out = format!("KV Cache Statistics\n{}\n\n", "=".repeat(50));
    let processes = series::processes(db)?;
    if processes.is_empty() {
        return summary_of_scrapes(db, out);
    }
    let sum = |f: fn(&Process) -> i64| processes.iter().map(f).sum::<i64>();
    let total = sum(|p| (p.num_blocks - 1).max(0));
    let peak: i64 = db
        .query_row(
            "SELECT COALESCE(SUM(peak), 0) FROM (SELECT MAX(used_blocks_max) AS peak FROM step GROUP BY process_id)",
            [],
            |r| r.get(0),
        )
        .map_err(sql)?;
    let _ = writeln!(out, "Total blocks available: {total}");
    let _ = writeln!(out, "Total allocations: {}", sum(|p| p.totals.allocated_blocks));
    let _ = writeln!(out, "Total deallocations: {}", sum(|p| p.totals.freed_blocks));
    let _ = writeln!(out, "Peak blocks used: {peak}");
    if total > 0 {
        let _ = writeln!(out, "Peak usage: {:.2}%", peak as f64 / total as f64 * 100.0);
    }
    let (life, idle): (Option<f64>, Option<f64>) = db
        .query_row("SELECT AVG(lifetime_us), AVG(idle_us) FROM eviction", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .map_err(sql)?;
    let (recorded, count) = sampling::eviction_count(db)?;
    let _ = writeln!(out, "Total evictions: {count}");
    if let (Some(life), Some(idle)) = (life, idle) {
        let _ = writeln!(out, "Avg block lifetime: {:.2}s", life / 1e6);
        let _ = writeln!(out, "Avg idle before eviction: {:.2}s", idle / 1e6);
    }
    if sampling::any(db)? {
        let _ = writeln!(
            out,
            "Sampled to keep the profiler's cost down: {recorded} evictions recorded, peaks are those of recorded steps"
        );
    }
    Ok(out)
}

fn summary_of_scrapes(db: &Connection, mut out: String) -> Result<String> {
    let (mut total, mut peak, mut evictions, mut life, mut idle) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let mut preemptions = 0.0;
    for engine in series::engines(db)? {
        let points = series::points(db, engine.id, i64::MIN, i64::MAX)?;
        if let Some(blocks) = usable_blocks(&engine) {
            total += blocks;
            let highest = points
                .iter()
                .filter_map(|p| p.gauge_max[USAGE])
                .fold(0.0, f64::max);
            peak += (highest * blocks).round();
        }
        preemptions += points.last().and_then(|p| p.counters[PREEMPTIONS]).unwrap_or(0.0);
        let histograms = series::histograms(db, engine.id, true)?;
        if let Some(h) = histograms.get("block_lifetime_s") {
            evictions += h.count;
            life += h.sum;
        }
        if let Some(h) = histograms.get("block_idle_s") {
            idle += h.sum;
        }
    }
    let _ = writeln!(out, "Total blocks available: {total:.0}");
    let _ = writeln!(out, "Total allocations: not recorded (needs the probe)");
    let _ = writeln!(out, "Total deallocations: not recorded (needs the probe)");
    let _ = writeln!(out, "Peak blocks used: {peak:.0}");
    if total > 0.0 {
        let _ = writeln!(out, "Peak usage: {:.2}%", peak / total * 100.0);
    }
    let _ = writeln!(out, "Total evictions: {evictions:.0}");
    if evictions > 0.0 {
        let _ = writeln!(out, "Avg block lifetime: {:.2}s", life / evictions);
        let _ = writeln!(out, "Avg idle before eviction: {:.2}s", idle / evictions);
    }
    let _ = writeln!(out, "Total preemptions: {preemptions:.0}");
    Ok(out)
}

/// Python's spelling, as the guides' files have it.
fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

fn python_int(value: Option<i64>) -> String {
    value
        .filter(|v| *v >= 0)
        .map_or_else(|| "None".to_owned(), |v| v.to_string())
}

fn graph_captures(db: &Connection, start_us: i64) -> Result<String> {
    let mut out = "runtime_mode,num_tokens,num_reqs,uniform,has_lora,capture_time_sec\r\n".to_owned();
    let mut statement = db
        .prepare("SELECT runtime_mode, num_tokens, num_reqs, uniform, has_lora, t_us FROM graph_capture ORDER BY t_us")
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    while let Some(r) = rows.next().map_err(sql)? {
        let _ = write!(
            out,
            "{},{},{},{},{},{:.3}\r\n",
            csv_field(&get::<String>(r, 0)?),
            python_int(get(r, 1)?),
            python_int(get(r, 2)?),
            python_bool(get::<Option<bool>>(r, 3)?.unwrap_or(false)),
            python_bool(get::<Option<bool>>(r, 4)?.unwrap_or(false)),
            seconds(get(r, 5)?, start_us)
        );
    }
    Ok(out)
}

fn graph_usage(db: &Connection) -> Result<String> {
    let mut out = "runtime_mode,num_tokens,num_reqs,uniform,has_lora,replay_count\r\n".to_owned();
    let mut statement = db
        .prepare(
            "SELECT runtime_mode, num_tokens, num_reqs, uniform, has_lora, SUM(replay_count) AS n FROM graph_use \
             GROUP BY 1, 2, 3, 4, 5 ORDER BY n DESC, 1, 2, 3, 4, 5",
        )
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    while let Some(r) = rows.next().map_err(sql)? {
        let _ = write!(
            out,
            "{},{},{},{},{},{}\r\n",
            csv_field(&get::<String>(r, 0)?),
            python_int(get(r, 1)?),
            python_int(get(r, 2)?),
            python_bool(get(r, 3)?),
            python_bool(get(r, 4)?),
            get::<i64>(r, 5)?
        );
    }
    Ok(out)
}

fn graph_timeline(db: &Connection, start_us: i64) -> Result<String> {
    let mut out = "timestamp_sec,descriptor,duration_ms\r\n".to_owned();
    let mut statement = db
        .prepare("SELECT t_us, descriptor, duration_us FROM graph_timeline ORDER BY t_us")
        .map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    while let Some(r) = rows.next().map_err(sql)? {
        let _ = write!(
            out,
            "{:.3},{},{:.3}\r\n",
            seconds(get(r, 0)?, start_us),
            csv_field(&get::<String>(r, 1)?),
            get::<i64>(r, 2)? as f64 / 1000.0
        );
    }
    Ok(out)
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
