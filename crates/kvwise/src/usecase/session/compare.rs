//! Two recordings side by side: what changed, and whether it is more than noise.

use kvwise_io::prometheus::engine::{
    GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, RUNNING, USAGE, WAITING,
};
use kvwise_io::session::Session;
use kvwise_io::session::series::{self, Point};

use kvwise_core::{Error, Result};

use crate::report::session::compare::{Change, Comparison};

/// Each recording is cut into this many stretches; their spread is the noise.
const STRETCHES: usize = 10;
/// Student's t for a two-sided 95 % interval at 18 degrees of freedom (ten stretches each).
const T_95: f64 = 2.101;

/// Compares `new` against `old`, engine by engine in their order.
///
/// # Errors
/// If a recording cannot be read, or has no scraped engine.
pub fn compare(old: &Session, new: &Session) -> Result<Comparison> {
    let (a, b) = (series::engines(&old.db)?, series::engines(&new.db)?);
    if a.is_empty() || b.is_empty() {
        return Err(
            Error::input("two recordings of `kvwise attach` are needed to compare them")
                .hint("recordings of the probe alone have no common clock for rates"),
        );
    }
    let mut changes = Vec::new();
    let mut config = Vec::new();
    for (x, y) in a.iter().zip(&b) {
        let (px, py) = (
            series::points(&old.db, x.id, i64::MIN, i64::MAX)?,
            series::points(&new.db, y.id, i64::MIN, i64::MAX)?,
        );
        let name = format!("{} {} {}", y.engine, y.model, y.rank).trim().to_owned();
        for (figure, f) in FIGURES {
            if let Some(change) = change(&name, figure, &f(&px), &f(&py)) {
                changes.push(change);
            }
        }
        for (key, value) in &y.config {
            let before = x.config.get(key).map_or("(absent)", String::as_str);
            if before != value {
                config.push(format!("{key}: {before} -> {value}"));
            }
        }
    }
    Ok(Comparison {
        schema: "kvwise.session_comparison/1",
        old: old.metadata.session_id.clone(),
        new: new.metadata.session_id.clone(),
        config,
        changes,
    })
}

type Figure = fn(&[Point]) -> Vec<f64>;

const FIGURES: [(&str, Figure); 6] = [
    ("usage_ratio", |p| gauge(p, USAGE)),
    ("running_requests", |p| gauge(p, RUNNING)),
    ("waiting_requests", |p| gauge(p, WAITING)),
    ("generation_tokens_per_s", |p| rate(p, GENERATION_TOKENS)),
    ("preemptions_per_s", |p| rate(p, PREEMPTIONS)),
    ("prefix_hit_rate", hit_rate),
];

/// The recording in stretches of equal time.
fn stretches(points: &[Point]) -> Vec<&[Point]> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    let width = (last.t_us - first.t_us) as f64 / STRETCHES as f64;
    if width <= 0.0 {
        return Vec::new();
    }
    (0..STRETCHES)
        .map(|i| {
            let edge = |i: usize| first.t_us as f64 + width * i as f64;
            let from = points.partition_point(|p| (p.t_us as f64) < edge(i));
            // one point more, so that increases over the edge belong to somebody
            let to = (points.partition_point(|p| (p.t_us as f64) <= edge(i + 1)) + 1).min(points.len());
            points.get(from..to).unwrap_or(&[])
        })
        .collect()
}

fn gauge(points: &[Point], index: usize) -> Vec<f64> {
    stretches(points)
        .into_iter()
        .filter_map(|s| {
            let values: Vec<f64> = s.iter().filter_map(|p| p.gauges[index]).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        })
        .collect()
}

fn grown(points: &[Point], index: usize) -> Option<f64> {
    Some(points.last()?.counters[index]? - points.first()?.counters[index]?)
}

fn rate(points: &[Point], index: usize) -> Vec<f64> {
    stretches(points)
        .into_iter()
        .filter_map(|s| {
            let seconds = (s.last()?.t_us - s.first()?.t_us) as f64 / 1e6;
            grown(s, index).filter(|_| seconds > 0.0).map(|g| g / seconds)
        })
        .collect()
}

fn hit_rate(points: &[Point]) -> Vec<f64> {
    stretches(points)
        .into_iter()
        .filter_map(|s| {
            let queries = grown(s, PREFIX_QUERIES)?;
            (queries > 0.0)
                .then(|| Some(grown(s, PREFIX_HITS)? / queries))
                .flatten()
        })
        .collect()
}

fn mean_and_variance(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 3 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    Some((
        mean,
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0),
    ))
}

fn change(engine: &str, figure: &str, old: &[f64], new: &[f64]) -> Option<Change> {
    let ((a, va), (b, vb)) = (mean_and_variance(old)?, mean_and_variance(new)?);
    let noise = T_95 * (va / old.len() as f64 + vb / new.len() as f64).sqrt();
    Some(Change {
        engine: engine.to_owned(),
        figure: figure.to_owned(),
        old: a,
        new: b,
        noise,
        beyond_noise: (b - a).abs() > noise && (b - a).abs() > 1e-12,
    })
}

#[cfg(test)]
mod tests {
    use super::change;

    #[test]
    fn a_difference_within_the_spread_is_noise_and_a_clear_one_is_not() {
        let a = [1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.2, 0.8, 1.1, 0.9];
        let near: Vec<f64> = a.iter().map(|v| v + 0.05).collect();
        let far: Vec<f64> = a.iter().map(|v| v + 1.0).collect();
        assert!(!change("e", "f", &a, &near).expect("enough").beyond_noise);
        assert!(change("e", "f", &a, &far).expect("enough").beyond_noise);
        assert!(change("e", "f", &a[..2], &far).is_none());
        assert!(
            !change("e", "f", &[0.0; 10], &[0.0; 10])
                .expect("enough")
                .beyond_noise
        );
    }
}
