//! Two recordings side by side: what changed, and whether it is more than noise.

use kvwise_io::prometheus::engine::{
    GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, RUNNING, USAGE, WAITING,
};
use kvwise_io::session::Session;
use kvwise_io::session::series::{self, Engine, Point, Step};

use kvwise_core::{Error, Result};

use crate::report::session::compare::{Change, Comparison};

/// Each recording is cut into this many stretches; their spread is the noise.
const STRETCHES: usize = 10;
/// Student's t for a two-sided 95 % interval at 18 degrees of freedom (ten stretches each).
const T_95: f64 = 2.101;

/// Compares `new` against `old`, engine by engine: those with the same model and rank, or the only one of each.
///
/// # Errors
/// If a recording cannot be read, or has no scraped engine.
pub fn compare(old: &Session, new: &Session) -> Result<Comparison> {
    let (a, b) = (series::engines(&old.db)?, series::engines(&new.db)?);
    if a.is_empty() || b.is_empty() {
        return compare_probes(old, new);
    }
    let mut changes = Vec::new();
    let mut config = Vec::new();
    let (pairs, alone) = pairs(&a, &b);
    if pairs.is_empty() {
        return Err(Error::input(format!(
            "the recordings have no engine in common: {}",
            alone.join(", ")
        ))
        .hint("engines are the same if their model and rank are"));
    }
    config.extend(alone);
    for (x, y) in pairs {
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

/// Compares what the probe saw, where nothing was scraped: one engine process in each recording.
fn compare_probes(old: &Session, new: &Session) -> Result<Comparison> {
    let (a, b) = (series::processes(&old.db)?, series::processes(&new.db)?);
    let ([x], [y]) = (a.as_slice(), b.as_slice()) else {
        return Err(Error::input(format!(
            "the recordings cannot be compared: {} and {} engine processes with the probe, and not both were scraped",
            a.len(),
            b.len()
        ))
        .hint("two recordings of `kvwise attach`, or two of `kvwise run` with one engine process each, can be"));
    };
    let steps = (series::steps(&old.db, x.id)?, series::steps(&new.db, y.id)?);
    let usable = ((x.num_blocks - 1).max(1) as f64, (y.num_blocks - 1).max(1) as f64);
    let mut changes = Vec::new();
    for (figure, f) in STEP_FIGURES {
        changes.extend(change(
            "probe",
            figure,
            &f(&steps.0, usable.0),
            &f(&steps.1, usable.1),
        ));
    }
    let mut config = Vec::new();
    if let (Some(before), Some(after)) = (x.settings.as_object(), y.settings.as_object()) {
        for (key, value) in after {
            let old = before.get(key).unwrap_or(&serde_json::Value::Null);
            if old != value {
                config.push(format!("{key}: {old} -> {value}"));
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

type StepFigure = fn(&[Step], f64) -> Vec<f64>;

const STEP_FIGURES: [(&str, StepFigure); 4] = [
    ("usage_ratio", |s, usable| of_steps(s, |s| s.used_blocks / usable)),
    ("running_requests", |s, _| of_steps(s, |s| s.running)),
    ("waiting_requests", |s, _| of_steps(s, |s| s.waiting)),
    ("scheduled_tokens_per_step", |s, _| of_steps(s, |s| s.tokens)),
];

/// The mean of a figure in each tenth of the steps.
fn of_steps(steps: &[Step], figure: impl Fn(&Step) -> f64) -> Vec<f64> {
    let width = steps.len().div_ceil(STRETCHES).max(1);
    steps
        .chunks(width)
        .map(|part| part.iter().map(&figure).sum::<f64>() / part.len() as f64)
        .collect()
}

/// Engines that are the same in both recordings, and in words those that are in one alone.
fn pairs<'a>(old: &'a [Engine], new: &'a [Engine]) -> (Vec<(&'a Engine, &'a Engine)>, Vec<String>) {
    if let ([a], [b]) = (old, new) {
        // a model that was renamed or exchanged is what the comparison is about
        return (vec![(a, b)], Vec::new());
    }
    let key = |e: &Engine| (e.engine.clone(), e.model.clone(), e.rank.clone());
    // several servers of one model: by their order, as they were named on the command line
    let mut left: Vec<&Engine> = old.iter().collect();
    let mut found = Vec::new();
    let mut alone = Vec::new();
    let name = |e: &Engine| format!("{} {} {}", e.engine, e.model, e.rank).trim().to_owned();
    for engine in new {
        if let Some(at) = left.iter().position(|e| key(e) == key(engine)) {
            found.push((left.remove(at), engine));
        } else {
            alone.push(format!("{} is only in the new recording", name(engine)));
        }
    }
    alone.extend(
        left.iter()
            .map(|e| format!("{} is only in the old recording", name(e))),
    );
    (found, alone)
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
    use std::collections::BTreeMap;

    use super::{Engine, change, pairs};

    fn engine(id: i64, model: &str) -> Engine {
        Engine {
            id,
            target: format!("http://h{id}"),
            engine: "vllm".to_owned(),
            model: model.to_owned(),
            rank: String::new(),
            config: BTreeMap::new(),
        }
    }

    #[test]
    fn engines_are_compared_with_themselves_and_never_with_a_stranger() {
        let old = [engine(1, "a"), engine(2, "b"), engine(3, "b")];
        let new = [engine(1, "b"), engine(2, "c"), engine(3, "b")];
        let (found, alone) = pairs(&old, &new);
        let ids: Vec<(i64, i64)> = found.iter().map(|(x, y)| (x.id, y.id)).collect();
        assert_eq!(ids, [(2, 1), (3, 3)]);
        assert_eq!(
            alone,
            [
                "vllm c is only in the new recording",
                "vllm a is only in the old recording"
            ]
        );
        assert_eq!(
            pairs(&old[..1], &new[1..2]).0.len(),
            1,
            "one of each is one deployment, changed"
        );
    }

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
