//! Sweeps: every combination of flags, GPUs and loads, in parallel, resumable.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use kvwise_core::{Error, Result};
use kvwise_sim::simulate::{Percentiles, Slo};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::deployment::Deployment;
use super::fingerprint::Fingerprint;
use super::served::{Prepared, Serving, prepare};
use super::simulate::{changed, fix, simulate_served};
use super::traffic::Traffic;

/// Most points of one sweep.
pub const MAX_POINTS: usize = 100_000;

/// How much traffic, one point each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadLevel {
    /// Requests under way.
    Concurrency(u32),
    /// Requests a second.
    Rate(f64),
}

/// What is swept.
#[derive(Debug, Clone)]
pub struct Question {
    /// The deployment whose flags are varied.
    pub deployment: Deployment,
    /// What a simulation needs besides.
    pub serving: Serving,
    /// The traffic whose intensity is varied.
    pub traffic: Traffic,
    /// For each flag its values; every combination is tried.
    pub vary: Vec<(String, Vec<String>)>,
    /// Intensities.
    pub loads: Vec<LoadLevel>,
    /// Objectives.
    pub slo: Slo,
}

/// One simulated point, a line of the results file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Fingerprint of everything that decides the result: question, traffic, program version.
    pub key: String,
    /// The varied flags and their values.
    pub flags: BTreeMap<String, String>,
    /// The load.
    pub load: LoadLevel,
    /// GPUs of all replicas.
    pub gpus: u64,
    /// Why nothing could be simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What would let the engine start, if one change does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Time to first token.
    pub ttft_ms: Percentiles,
    /// Time per output token after the first.
    pub tpot_ms: Percentiles,
    /// Arrival to last token.
    pub e2e_ms: Percentiles,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// The same for each GPU.
    pub output_tokens_per_s_per_gpu: f64,
    /// Finished requests a second.
    pub requests_per_s: f64,
    /// Finished requests a second that met the objectives.
    pub goodput_requests_per_s: f64,
    /// Prompt tokens found in the cache, share of those looked up.
    pub prefix_hit_rate_tokens: f64,
    /// Preemptions.
    pub preemptions: u64,
    /// Largest share of a pool in use.
    pub kv_usage_peak: f64,
    /// Requests that could never run.
    pub rejected: u64,
    /// Whether the 99th percentiles meet the objectives, if any were given.
    pub slo_met: Option<bool>,
}

/// Varied flags, the deployment they make, and the load.
pub type Combination = (BTreeMap<String, String>, Deployment, LoadLevel);

impl Question {
    /// Every combination of flags and load, in order: the last flag varies fastest, then the load.
    ///
    /// # Errors
    /// If a flag is not known, a value does not fit it, or there are too many points.
    pub fn points(&self) -> Result<Vec<Combination>> {
        let mut combinations = vec![(BTreeMap::new(), self.deployment.clone())];
        for (flag, values) in &self.vary {
            let mut next = Vec::new();
            for (flags, deployment) in &combinations {
                for value in values {
                    let mut flags: BTreeMap<String, String> = flags.clone();
                    flags.insert(flag.clone(), value.clone());
                    next.push((flags, changed(deployment, "--vary", &format!("{flag}={value}"))?));
                    if next.len().saturating_mul(self.loads.len()) > MAX_POINTS {
                        return Err(Error::input(format!(
                            "the sweep has more than {MAX_POINTS} points: vary fewer values"
                        )));
                    }
                }
            }
            combinations = next;
        }
        Ok(combinations
            .into_iter()
            .flat_map(|(flags, deployment)| {
                self.loads
                    .iter()
                    .map(move |load| (flags.clone(), deployment.clone(), *load))
                    .collect::<Vec<_>>()
            })
            .collect())
    }

    /// Name of the recorded traffic, if there is any.
    fn traffic_name(&self) -> Fingerprint {
        let mut name = Fingerprint::default();
        if let Some(trace) = &self.traffic.trace {
            name.trace(trace);
        }
        name
    }

    /// Fingerprint of one point; `traffic` is the recorded traffic's.
    ///
    /// # Errors
    /// Never in practice: the parts are plain data.
    fn key(&self, traffic: &Fingerprint, deployment: &Deployment, load: LoadLevel) -> Result<String> {
        let t = &self.traffic;
        let parts = serde_json::to_vec(&(
            env!("CARGO_PKG_VERSION"),
            deployment,
            &self.serving,
            load,
            (t.input_len, t.output_len, t.length_ratio, t.burstiness),
            (t.requests, t.speed, t.turns, t.think_s, &t.adapters, t.seed),
            (self.slo.ttft_ms, self.slo.tpot_ms),
        ))
        .map_err(|e| Error::input(format!("the sweep's point cannot be named: {e}")))?;
        let mut name = traffic.clone();
        name.bytes(&parts);
        Ok(name.name())
    }
}

/// Results of an earlier run, by key.
///
/// # Errors
/// If the file is there but cannot be read, or a line is not a result; a last line that was cut off is left out.
pub fn earlier(path: &Path) -> Result<BTreeMap<String, Point>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(Error::io(format!("{}: {e}", path.display()))),
    };
    let whole = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut points = BTreeMap::new();
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_str::<Point>(line) {
            Ok(point) => {
                points.insert(point.key.clone(), point);
            }
            Err(_) if i + 1 == lines.len() && !whole => {}
            Err(e) => {
                return Err(Error::input(format!(
                    "{}: line {} is not a result of a sweep: {e}",
                    path.display(),
                    i + 1
                ))
                .hint("give --results another file, or remove this one"));
            }
        }
    }
    Ok(points)
}

/// Simulates what is not in the results file yet, on all cores, appending each result as it comes; the answer is in the
/// order of the question whatever the order of the results. `progress` hears how many points are done, and of how many.
///
/// # Errors
/// If a point's flags cannot be used, or the results cannot be written.
pub fn sweep(
    question: &Question,
    results: Option<&Path>,
    progress: impl Fn(usize, usize) + Sync,
) -> Result<Vec<Point>> {
    let points = question.points()?;
    let mut known = match results {
        Some(path) => earlier(path)?,
        None => BTreeMap::new(),
    };
    let mut keyed = Vec::with_capacity(points.len());
    let mut open = BTreeSet::new();
    let mut todo = Vec::new();
    let traffic = question.traffic_name();
    for (flags, deployment, load) in points {
        let key = question.key(&traffic, &deployment, load)?;
        if !known.contains_key(&key) && open.insert(key.clone()) {
            todo.push((key.clone(), flags.clone(), deployment, load));
        }
        keyed.push((key, flags));
    }
    let file = results
        .map(|path| {
            // A last line that was cut off is taken away, so that the next result stands on its own.
            let bytes = std::fs::read(path).unwrap_or_default();
            let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .and_then(|file| {
                    if whole < bytes.len() {
                        file.set_len(whole as u64)?;
                    }
                    Ok(file)
                })
                .map_err(|e| Error::io(format!("{}: {e}", path.display())))
        })
        .transpose()?;
    let file = Mutex::new(file);
    let total = todo.len();
    let done = Mutex::new(0_usize);
    let fresh: Vec<Point> = todo
        .into_par_iter()
        .map(|(key, flags, deployment, load)| {
            let point = simulate_point(question, key, &flags, &deployment, load)?;
            let line = serde_json::to_string(&point)
                .map_err(|e| Error::input(format!("a result cannot be written as JSON: {e}")))?;
            if let Ok(mut file) = file.lock()
                && let Some(file) = file.as_mut()
            {
                file.write_all(format!("{line}\n").as_bytes())
                    .map_err(|e| Error::io(format!("the results cannot be written: {e}")))?;
            }
            if let Ok(mut done) = done.lock() {
                *done += 1;
                progress(*done, total);
            }
            Ok(point)
        })
        .collect::<Result<_>>()?;
    known.extend(fresh.into_iter().map(|p| (p.key.clone(), p)));
    keyed
        .into_iter()
        .map(|(key, flags)| {
            known
                .get(&key)
                .cloned()
                .map(|p| Point { flags, ..p })
                .ok_or_else(|| Error::input("a point of the sweep has no result"))
        })
        .collect()
}

fn simulate_point(
    question: &Question,
    key: String,
    flags: &BTreeMap<String, String>,
    deployment: &Deployment,
    load: LoadLevel,
) -> Result<Point> {
    let named = |e: Error| {
        let what: Vec<String> = flags.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if what.is_empty() { e } else { e.at(what.join(",")) }
    };
    let mut point = Point {
        key,
        flags: flags.clone(),
        load,
        gpus: 0,
        refused: None,
        fix: None,
        ttft_ms: Percentiles::default(),
        tpot_ms: Percentiles::default(),
        e2e_ms: Percentiles::default(),
        output_tokens_per_s: 0.0,
        output_tokens_per_s_per_gpu: 0.0,
        requests_per_s: 0.0,
        goodput_requests_per_s: 0.0,
        prefix_hit_rate_tokens: 0.0,
        preemptions: 0,
        kv_usage_peak: 0.0,
        rejected: 0,
        slo_met: None,
    };
    let traffic = match load {
        LoadLevel::Concurrency(n) => Traffic {
            concurrency: Some(n),
            rate: None,
            ..question.traffic.clone()
        },
        LoadLevel::Rate(rate) => question.traffic.at_rate(rate)?,
    };
    let workload = traffic.workload()?;
    let served = match prepare(deployment, &question.serving).map_err(named)? {
        Prepared::Ready(served) => served,
        Prepared::Refused(plan, reason) => {
            point.gpus = plan.gpu.count;
            point.fix = fix(deployment, &question.serving, &workload);
            point.refused = Some(reason);
            return Ok(point);
        }
    };
    let outcome = simulate_served(&served, &workload, question.slo)?;
    let (s, run, slo) = (&outcome.summary, &outcome.run, question.slo);
    point.gpus = outcome.gpus;
    point.ttft_ms = shortened(s.ttft_ms);
    point.tpot_ms = shortened(s.tpot_ms);
    point.e2e_ms = shortened(s.e2e_ms);
    point.output_tokens_per_s = short(s.output_tokens_per_s);
    point.output_tokens_per_s_per_gpu = short(s.output_tokens_per_s / outcome.gpus.max(1) as f64);
    point.requests_per_s = short(s.requests_per_s);
    point.goodput_requests_per_s = short(s.goodput_requests_per_s);
    point.prefix_hit_rate_tokens = short(run.hit_tokens as f64 / run.query_tokens.max(1) as f64);
    point.preemptions = run.preemptions;
    point.kv_usage_peak = short(run.kv_usage_peak);
    point.rejected = s.rejected;
    point.slo_met = (slo.ttft_ms.is_some() || slo.tpot_ms.is_some()).then(|| {
        s.finished > 0
            && s.rejected == 0
            && slo.ttft_ms.is_none_or(|limit| s.ttft_ms.p99 <= limit)
            && slo.tpot_ms.is_none_or(|limit| s.tpot_ms.p99 <= limit)
    });
    Ok(point)
}

/// The number with six decimals: what is written is read back exactly, so that a resumed sweep says the same.
fn short(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

fn shortened(p: Percentiles) -> Percentiles {
    Percentiles {
        mean: short(p.mean),
        p50: short(p.p50),
        p90: short(p.p90),
        p99: short(p.p99),
    }
}

/// Positions of the points that no other one beats in both time per output token and output tokens a second per GPU,
/// by rising time per output token.
pub fn pareto(points: &[Point]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len())
        .filter(|&i| points[i].refused.is_none() && points[i].output_tokens_per_s > 0.0)
        .collect();
    order.sort_by(|&a, &b| {
        points[a].tpot_ms.p50.total_cmp(&points[b].tpot_ms.p50).then(
            points[b]
                .output_tokens_per_s_per_gpu
                .total_cmp(&points[a].output_tokens_per_s_per_gpu),
        )
    });
    let mut best = 0.0;
    order.retain(|&i| {
        let wins = points[i].output_tokens_per_s_per_gpu > best;
        if wins {
            best = points[i].output_tokens_per_s_per_gpu;
        }
        wins
    });
    order
}
