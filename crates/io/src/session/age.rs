//! Bounded growth: the older a stretch, the coarser it is kept.
//!
//! Totals of counters lose nothing (the last value of a stretch is kept), gauges keep mean, smallest and largest value,
//! so a peak stays visible. With one scrape a second the database of one engine levels off below about 15 MB a month.

use kvwise_core::Result;
use rusqlite::Connection;

use super::store::sql;
use crate::prometheus::engine::{COUNTERS, GAUGES};

/// `(age, width of a stretch)` in seconds: older than the age, one row for each stretch.
pub const STAGES: [(i64, i64); 3] = [(3_600, 10), (86_400, 60), (7 * 86_400, 600)];

/// Thins out samples, histograms and probe steps older than each stage's age.
///
/// # Errors
/// If the database cannot be written.
pub fn thin_out(db: &mut Connection, now_us: i64) -> Result<()> {
    let tx = db.transaction().map_err(sql)?;
    for (age_s, width_s) in STAGES {
        let width_us = width_s * 1_000_000;
        // only whole stretches, or a stretch cut in two would be counted twice
        let limit = (now_us - age_s * 1_000_000).div_euclid(width_us) * width_us;
        tx.execute_batch(&samples_sql(width_us, limit)).map_err(sql)?;
        tx.execute_batch(&steps_sql(width_us, limit)).map_err(sql)?;
        tx.execute(
            "DELETE FROM histogram WHERE t_us < ?1 AND EXISTS (SELECT 1 FROM histogram later \
             WHERE later.engine_id = histogram.engine_id AND later.name = histogram.name \
             AND later.t_us > histogram.t_us AND later.t_us / ?2 = histogram.t_us / ?2)",
            [limit, width_us.max(60_000_000)],
        )
        .map_err(sql)?;
        tx.execute(
            "DELETE FROM probe_total WHERE t_us < ?1 AND EXISTS (SELECT 1 FROM probe_total later \
             WHERE later.process_id = probe_total.process_id AND later.t_us > probe_total.t_us \
             AND later.t_us / ?2 = probe_total.t_us / ?2)",
            [limit, width_us],
        )
        .map_err(sql)?;
    }
    tx.commit().map_err(sql)
}

fn samples_sql(width_us: i64, limit: i64) -> String {
    let mut columns = String::new();
    let mut values = String::new();
    for gauge in &GAUGES {
        let g = gauge.name;
        columns.push_str(&format!(", {g}, {g}_min, {g}_max"));
        // a mean of means, weighted by the scrapes behind each
        values.push_str(&format!(
            ", SUM({g} * n) / SUM(CASE WHEN {g} IS NULL THEN NULL ELSE n END), MIN({g}_min), MAX({g}_max)"
        ));
    }
    for counter in &COUNTERS {
        columns.push_str(&format!(", {}", counter.name));
        values.push_str(&format!(", MAX({})", counter.name));
    }
    format!(
        "CREATE TEMP TABLE thinned AS SELECT engine_id, MAX(t_us) AS t_us, MAX(t_us) - MIN(t_us - span_us) AS span_us,
           SUM(n) AS n {values} FROM sample WHERE t_us < {limit}
           GROUP BY engine_id, t_us / {width_us} HAVING COUNT(*) > 1;
         DELETE FROM sample WHERE t_us < {limit} AND EXISTS (SELECT 1 FROM thinned
           WHERE thinned.engine_id = sample.engine_id AND thinned.t_us / {width_us} = sample.t_us / {width_us});
         INSERT INTO sample (engine_id, t_us, span_us, n {columns}) SELECT * FROM thinned;
         DROP TABLE thinned;"
    )
}

fn steps_sql(width_us: i64, limit: i64) -> String {
    format!(
        "CREATE TEMP TABLE thinned AS SELECT process_id, MAX(t_us) AS t_us, MAX(t_us) - MIN(t_us - span_us) AS span_us,
           SUM(n) AS n, MAX(step) AS step,
           SUM(running * n) / SUM(n), MAX(running_max), SUM(waiting * n) / SUM(n), MAX(waiting_max),
           SUM(scheduled_requests * n) / SUM(n), SUM(scheduled_tokens * n) / SUM(n), MAX(scheduled_tokens_max),
           SUM(prefill_tokens * n) / SUM(n), SUM(used_blocks * n) / SUM(n), MAX(used_blocks_max),
           SUM(schedule_us * n) / SUM(n)
           FROM step WHERE t_us < {limit} GROUP BY process_id, t_us / {width_us} HAVING COUNT(*) > 1;
         DELETE FROM step WHERE t_us < {limit} AND EXISTS (SELECT 1 FROM thinned
           WHERE thinned.process_id = step.process_id AND thinned.t_us / {width_us} = step.t_us / {width_us});
         INSERT INTO step (process_id, t_us, span_us, n, step, running, running_max, waiting, waiting_max,
           scheduled_requests, scheduled_tokens, scheduled_tokens_max, prefill_tokens, used_blocks, used_blocks_max,
           schedule_us) SELECT * FROM thinned;
         DROP TABLE thinned;"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::schema;

    const NOW: i64 = 1_800_000_000_000_000;

    fn count(db: &Connection) -> i64 {
        db.query_row("SELECT COUNT(*) FROM sample", [], |r| r.get(0))
            .expect("a count")
    }

    #[test]
    fn old_samples_get_coarser_but_keep_peaks_means_and_totals() {
        let mut db = Connection::open_in_memory().expect("memory");
        schema::create(&mut db).expect("tables");
        db.execute_batch(
            "INSERT INTO target VALUES (1, 't'); INSERT INTO engine VALUES (1, 1, 'vllm', 'm', '0');",
        )
        .expect("rows");
        // 1000 seconds, two hours ago, and 100 seconds now
        let old = NOW - 7_200_000_000;
        for (start, seconds) in [(old, 1000), (NOW - 100_000_000, 100)] {
            for i in 0..seconds {
                let usage = if i == 333 { 0.99 } else { 0.5 };
                db.execute(
                    "INSERT INTO sample (engine_id, t_us, span_us, n, usage_ratio, usage_ratio_min, usage_ratio_max, \
                     generation_tokens) VALUES (1, ?1, 0, 1, ?2, ?2, ?2, ?3)",
                    rusqlite::params![start + i * 1_000_000, usage, f64::from(i32::try_from(i).expect("small"))],
                )
                .expect("a row");
            }
        }
        thin_out(&mut db, NOW).expect("thinned");
        let thinned = count(&db);
        assert!(
            (200..=202).contains(&thinned),
            "100 stretches of 10 s and 100 untouched rows: {thinned}"
        );
        let (n, mean, peak, total): (i64, f64, f64, f64) = db
            .query_row(
                "SELECT SUM(n), SUM(usage_ratio * n) / SUM(n), MAX(usage_ratio_max), MAX(generation_tokens) \
                 FROM sample WHERE t_us < ?",
                [NOW - 3_600_000_000],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
            )
            .expect("sums");
        assert_eq!(n, 1000);
        assert!((mean - (0.5 * 999.0 + 0.99) / 1000.0).abs() < 1e-9, "{mean}");
        assert!((peak - 0.99).abs() < 1e-12);
        assert!((total - 999.0).abs() < 1e-12);
        thin_out(&mut db, NOW).expect("thinned again");
        assert_eq!(count(&db), thinned, "a second time changes nothing");
        // a day later, minutes are left of the old stretch
        thin_out(&mut db, NOW + 86_400_000_000).expect("thinned");
        assert!(count(&db) <= 22, "{}", count(&db));
        let n: i64 = db
            .query_row("SELECT SUM(n) FROM sample", [], |r| r.get(0))
            .expect("a sum");
        assert_eq!(n, 1100);
    }
}
