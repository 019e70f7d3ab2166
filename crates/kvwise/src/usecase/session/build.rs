//! Measures a recording: the figures of [`SessionReport`] but its findings.

use std::collections::BTreeMap;
use std::path::Path;

use kvwise_core::{Error, Result};
use kvwise_io::prometheus::engine::{
    COUNTERS, FINISHED, GENERATION_TOKENS, PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PROMPT_TOKENS, RUNNING,
    USAGE, WAITING,
};
use kvwise_io::prometheus::histogram::Histogram;
use kvwise_io::session::series::{self, Eviction, Point, Process, Step};
use kvwise_io::session::{Session, sampling};

use super::gains::Gains;
use super::{blocks, rules};
use crate::report::session::{
    About, ContentReport, Distribution, EngineReport, EventReport, EvictionReport, GapReport, ProbeReport,
    ProbeSeries, SamplingReport, Series, SessionReport, Spread,
};
use crate::report::time;
use crate::usecase::export;

/// Most points of a chart.
const CHART_POINTS: usize = 1200;
/// Most recorded reuses that are read.
const MAX_EVICTIONS: u32 = 2_000_000;
/// Two points further apart than this many usual distances have a gap between them.
const GAP_FACTOR: i64 = 5;

/// Opens a recording and measures and judges it.
///
/// # Errors
/// If it cannot be read, or holds nothing.
pub fn report(folder: &Path) -> Result<SessionReport> {
    let session = export::open(folder)?;
    let mut report = measure(&session)?;
    if report.engines.is_empty() && report.probes.is_empty() {
        return Err(Error::input(format!("{}: the recording is empty", folder.display())).hint(
            "it was stopped before the first scrape, or no process of the recorded command imported vLLM's engine",
        ));
    }
    report.findings = rules::findings(&report, &Gains::new(&session));
    Ok(report)
}

/// Measures a recording; findings are left empty.
///
/// # Errors
/// If it cannot be read.
pub fn measure(session: &Session) -> Result<SessionReport> {
    let db = &session.db;
    let engines = series::engines(db)?
        .iter()
        .map(|e| engine_report(session, e))
        .collect::<Result<Vec<_>>>()?;
    let probes = series::processes(db)?
        .iter()
        .map(|p| probe_report(session, p))
        .collect::<Result<Vec<_>>>()?;
    let times = engines
        .iter()
        .flat_map(|e| e.series.t_s.iter())
        .chain(probes.iter().flat_map(|p| p.series.t_s.iter()));
    let (first, last) = times.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), t| {
        (a.min(*t), b.max(*t))
    });
    #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
    let start_us = if first.is_finite() {
        (first * 1e6) as i64
    } else {
        session.metadata.start_unix_us
    };
    Ok(SessionReport {
        schema: "kvwise.session_report/1",
        session: About {
            id: session.metadata.session_id.clone(),
            made_by: session.metadata.made_by.clone(),
            targets: session.metadata.targets.clone(),
            start: time::readable(start_us),
            duration_s: if last > first { last - first } else { 0.0 },
            complete: session.metadata.end_unix_us.is_some() || (!probes.is_empty() && engines.is_empty()),
        },
        engines,
        probes,
        contents: series::contents(db)?
            .into_iter()
            .map(|c| ContentReport {
                target: c.target,
                block_tokens: c.block_tokens,
                cached: c.cached,
                stored: c.stored,
                removed: c.removed,
                recomputed: c.recomputed,
                missed_batches: c.missed_batches,
                lifetime_s: distribution(c.lifetimes_s),
            })
            .collect(),
        gaps: series::gaps(db)?
            .into_iter()
            .map(|g| GapReport {
                target: g.target,
                start: time::readable(g.start_us),
                duration_ms: (g.end_us - g.start_us) / 1000,
                failures: g.failures,
                reason: g.reason,
            })
            .collect(),
        events: series::events(db)?
            .into_iter()
            .map(|e| EventReport {
                time: time::readable(e.t_us),
                target: e.target,
                kind: e.kind,
                detail: e.detail,
            })
            .collect(),
        notes: series::notes(db)?
            .into_iter()
            .map(|(kind, text)| format!("{kind}: {text}"))
            .collect(),
        findings: Vec::new(),
    })
}

fn engine_report(session: &Session, engine: &series::Engine) -> Result<EngineReport> {
    let points = series::points(&session.db, engine.id, i64::MIN, i64::MAX)?;
    let histograms = series::histograms(&session.db, engine.id, false)?;
    let seconds = match (points.first(), points.last()) {
        (Some(a), Some(b)) => (b.t_us - a.t_us) as f64 / 1e6,
        _ => 0.0,
    };
    let grown = |counter: usize| {
        let mut known = points.iter().filter_map(|p| p.counters[counter]);
        let first = known.next()?;
        Some(known.next_back().unwrap_or(first) - first)
    };
    let rate = |counter: usize| grown(counter).filter(|_| seconds > 0.0).map(|g| g / seconds);
    let queries = grown(PREFIX_QUERIES);
    let number = |key: &str| engine.config.get(key).and_then(|v| v.parse::<f64>().ok());
    Ok(EngineReport {
        target: engine.target.clone(),
        engine: engine.engine.clone(),
        model: engine.model.clone(),
        rank: engine.rank.clone(),
        config: engine.config.clone(),
        capacity_tokens: points
            .last()
            .and_then(|p| p.gauges[5])
            .or_else(|| number("kv_cache_size_tokens"))
            .or_else(|| Some((number("num_gpu_blocks")? - 1.0).max(0.0) * number("block_size")?)),
        scrapes: points.iter().map(|p| p.n).sum(),
        duration_s: seconds,
        usage_ratio: spread(&points, USAGE),
        running_requests: spread(&points, RUNNING),
        waiting_requests: spread(&points, WAITING),
        preemptions: grown(PREEMPTIONS),
        finished_requests: grown(FINISHED),
        prefix_hit_rate: queries
            .filter(|q| *q > 0.0)
            .and_then(|q| Some(grown(PREFIX_HITS)? / q)),
        prefix_query_tokens: queries,
        prompt_tokens_per_s: rate(PROMPT_TOKENS),
        generation_tokens_per_s: rate(GENERATION_TOKENS),
        distributions: histograms
            .iter()
            .filter_map(|(name, h)| displayed(name, h))
            .collect(),
        series: chart(&points),
    })
}

/// Latencies in milliseconds, everything else as it is.
fn displayed(name: &str, h: &Histogram) -> Option<(String, Distribution)> {
    let latency = name.ends_with("_s") && !name.starts_with("block_");
    let (name, scale) = match name.strip_suffix("_s").filter(|_| latency) {
        Some(stem) => (format!("{stem}_ms"), 1000.0),
        None => (name.to_owned(), 1.0),
    };
    Some((
        name,
        Distribution {
            count: h.count,
            mean: h.mean()? * scale,
            p50: h.quantile(0.5)? * scale,
            p90: h.quantile(0.9)? * scale,
            p99: h.quantile(0.99)? * scale,
        },
    ))
}

fn spread(points: &[Point], gauge: usize) -> Option<Spread> {
    let mut values: Vec<f64> = points.iter().filter_map(|p| p.gauges[gauge]).collect();
    let (mut sum, mut weight) = (0.0, 0.0);
    for p in points {
        if let Some(v) = p.gauges[gauge] {
            sum += v * p.n as f64;
            weight += p.n as f64;
        }
    }
    values.sort_by(f64::total_cmp);
    Some(Spread {
        mean: sum / weight,
        p95: quantile(&values, 0.95)?,
        max: points
            .iter()
            .filter_map(|p| p.gauge_max[gauge])
            .fold(*values.last()?, f64::max),
    })
}

/// Over steps, not over time: an idle engine makes none.
fn step_spread(steps: &[Step], f: impl Fn(&Step) -> f64) -> Option<Spread> {
    let mut values: Vec<f64> = steps.iter().map(f).collect();
    values.sort_by(f64::total_cmp);
    Some(Spread {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        p95: quantile(&values, 0.95)?,
        max: *values.last()?,
    })
}

/// Quantile of sorted values, by the nearest rank.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the length"
    )]
    let rank = (q * last as f64).round() as usize;
    sorted.get(rank.min(last)).copied()
}

/// The distribution of single values.
pub(crate) fn distribution(mut values: Vec<f64>) -> Option<Distribution> {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    Some(Distribution {
        count,
        mean: values.iter().sum::<f64>() / count,
        p50: quantile(&values, 0.5)?,
        p90: quantile(&values, 0.9)?,
        p99: quantile(&values, 0.99)?,
    })
}

fn chart(points: &[Point]) -> Series {
    let group = points.len().div_ceil(CHART_POINTS).max(1);
    let groups: Vec<&[Point]> = points.chunks(group).collect();
    let mut distances: Vec<i64> = points.windows(2).map(|w| w[1].t_us - w[0].t_us).collect();
    distances.sort_unstable();
    let usual =
        distances.get(distances.len() / 2).copied().unwrap_or(0).max(1) * i64::try_from(group).unwrap_or(1);
    let mut s = Series::default();
    let mut before: Option<&Point> = None;
    for points in groups {
        let Some(last) = points.last() else { continue };
        let mean = |g: usize| {
            let known: Vec<f64> = points.iter().filter_map(|p| p.gauges[g]).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        // after a gap the increase is known, but not when it happened: no rate is better than a wrong one
        let near = before.filter(|b| last.t_us - b.t_us <= usual * GAP_FACTOR);
        let grown = |c: usize| Some(last.counters[c]? - near?.counters[c]?);
        let seconds = near.map_or(0.0, |b| (last.t_us - b.t_us) as f64 / 1e6);
        let rate = |c: usize| grown(c).filter(|_| seconds > 0.0).map(|g| g / seconds);
        if before.is_some() && near.is_none() {
            // a point without values breaks the line
            s.push_gap(last.t_us as f64 / 1e6 - 1e-3);
        }
        s.t_s.push(last.t_us as f64 / 1e6);
        s.usage_ratio.push(mean(USAGE));
        s.usage_ratio_max.push(
            points
                .iter()
                .filter_map(|p| p.gauge_max[USAGE])
                .max_by(f64::total_cmp),
        );
        s.running_requests.push(mean(RUNNING));
        s.waiting_requests.push(mean(WAITING));
        s.prefix_hit_rate.push(
            grown(PREFIX_QUERIES)
                .filter(|q| *q > 0.0)
                .and_then(|q| Some(grown(PREFIX_HITS)? / q)),
        );
        s.prompt_tokens_per_s.push(rate(PROMPT_TOKENS));
        s.generation_tokens_per_s.push(rate(GENERATION_TOKENS));
        s.preemptions_per_s.push(rate(PREEMPTIONS));
        before = Some(last);
    }
    debug_assert!(COUNTERS.len() > PREEMPTIONS);
    s
}

impl Series {
    fn push_gap(&mut self, t_s: f64) {
        self.t_s.push(t_s);
        for line in [
            &mut self.usage_ratio,
            &mut self.usage_ratio_max,
            &mut self.running_requests,
            &mut self.waiting_requests,
            &mut self.prefix_hit_rate,
            &mut self.prompt_tokens_per_s,
            &mut self.generation_tokens_per_s,
            &mut self.preemptions_per_s,
        ] {
            line.push(None);
        }
    }
}

fn probe_report(session: &Session, process: &Process) -> Result<ProbeReport> {
    let db = &session.db;
    let steps = series::steps(db, process.id)?;
    let usable = (process.num_blocks - 1).max(0);
    let totals = process.totals;
    let sampled = sampling::of_process(db, process.id)?;
    let cost_ns = (totals.hook_ns + totals.writer_ns) as f64;
    let lengths = |column: &str| series::request_lengths(db, process.id, column).map(distribution);
    Ok(ProbeReport {
        pid: process.pid,
        vllm_version: process.vllm.clone(),
        settings: process.settings.clone(),
        usable_blocks: usable,
        prefix_caching: process.caching,
        allocated_blocks: totals.allocated_blocks,
        freed_blocks: totals.freed_blocks,
        hit_blocks: totals.hit_blocks,
        evicted_blocks: totals.evicted_blocks,
        query_tokens: totals.query_tokens,
        hit_tokens: totals.hit_tokens,
        prefix_hit_rate: (totals.query_tokens > 0)
            .then(|| totals.hit_tokens as f64 / totals.query_tokens as f64),
        preemptions: totals.preemptions,
        finished_requests: totals.finished_requests,
        steps: totals.steps,
        peak_used_blocks: steps.iter().map(|s| s.used_blocks_max).max().unwrap_or(0),
        usage_ratio: step_spread(&steps, |s| s.used_blocks / usable.max(1) as f64),
        running_requests: step_spread(&steps, |s| s.running),
        waiting_requests: step_spread(&steps, |s| s.waiting),
        evictions: eviction_report(&series::evictions(db, process.id, MAX_EVICTIONS)?),
        prompt_tokens: lengths("prompt_tokens")?,
        output_tokens: lengths("output_tokens")?,
        graph_replays: series::graph_replays(db, process.id)?,
        lost_records: totals.lost_records,
        probe_cost_ratio: (totals.step_ns > 0).then(|| cost_ns / totals.step_ns as f64),
        probe_cost_us_per_step: (totals.step_ns > 0 && totals.steps > 0)
            .then(|| cost_ns / 1e3 / totals.steps as f64),
        sampling: sampled.is_sampled().then(|| SamplingReport {
            limit_ratio: sampled.limit.unwrap_or(0.0),
            complete_s: sampled.seconds(|every| every == 1),
            sampled_s: sampled.seconds(|every| every > 1),
            largest_n: sampled.changes.iter().map(|c| c.1).max().unwrap_or(1),
            totals_only_s: sampled.seconds(|every| every == 0),
            off_s: sampled.seconds(|every| every < 0),
        }),
        hook_errors: totals.errors,
        memory_bytes: series::memory(db)?,
        series: probe_chart(&steps, |t_us| {
            // requests that came and went unrecorded would look like an idle engine
            if sampled.is_sampled() || totals.lost_records > 0 {
                return Ok(false);
            }
            sampling::is_idle(db, process.id, t_us)
        })?,
        // who holds a block cannot be told from a part of the events
        block_map: if sampled.is_sampled() {
            None
        } else {
            blocks::map(session, process.id, process.num_blocks)?
        },
    })
}

/// An engine makes no steps while it is idle, and none while it is busy with a long one: `idle` says which it was.
fn probe_chart(steps: &[Step], idle: impl Fn(i64) -> Result<bool>) -> Result<ProbeSeries> {
    let group = steps.len().div_ceil(CHART_POINTS).max(1);
    let mut s = ProbeSeries::default();
    let mut last_us: Option<i64> = None;
    for part in steps.chunks(group) {
        let Some(end) = part.last() else { continue };
        let mean = |f: fn(&Step) -> f64| Some(part.iter().map(f).sum::<f64>() / part.len() as f64);
        let t_s = end.t_us as f64 / 1e6;
        let began = part[0].t_us;
        if let Some(before) = last_us.filter(|last| began - last > 2_000_000)
            && idle(before + (began - before) / 2)?
        {
            // nothing runs, nothing waits, nothing is held
            for t_us in [before + 1000, began - 1000] {
                s.t_s.push(t_us as f64 / 1e6);
                s.used_blocks.push(Some(0.0));
                s.running.push(Some(0.0));
                s.waiting.push(Some(0.0));
                s.tokens.push(Some(0.0));
            }
        }
        s.t_s.push(t_s);
        s.used_blocks.push(mean(|x| x.used_blocks));
        s.running.push(mean(|x| x.running));
        s.waiting.push(mean(|x| x.waiting));
        s.tokens.push(mean(|x| x.tokens));
        last_us = Some(end.t_us);
    }
    Ok(s)
}

/// Upper bounds of the lifetime histogram in seconds.
const LIFETIME_BOUNDS: [f64; 14] = [
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    f64::INFINITY,
];
/// Hits from which on blocks are counted together.
const MAX_HITS_BIN: u64 = 16;

fn eviction_report(evictions: &[Eviction]) -> EvictionReport {
    let content: Vec<&Eviction> = evictions.iter().filter(|e| e.cached).collect();
    let seconds = |f: fn(&Eviction) -> i64| distribution(content.iter().map(|e| f(e) as f64 / 1e6).collect());
    let mut bins = vec![(0_u64, 0_u64); LIFETIME_BOUNDS.len()];
    let mut hits: BTreeMap<u64, u64> = BTreeMap::new();
    for e in evictions {
        let life = e.lifetime_us as f64 / 1e6;
        if let Some(i) = LIFETIME_BOUNDS.iter().position(|b| life <= *b) {
            if e.cached {
                bins[i].0 += 1;
            } else {
                bins[i].1 += 1;
            }
        }
        if e.cached {
            *hits
                .entry(u64::try_from(e.hits).unwrap_or(0).min(MAX_HITS_BIN))
                .or_default() += 1;
        }
    }
    EvictionReport {
        recorded: evictions.len(),
        with_content: content.len(),
        lifetime_s: seconds(|e| e.lifetime_us),
        idle_s: seconds(|e| e.idle_us),
        never_hit_share: (!content.is_empty())
            .then(|| content.iter().filter(|e| e.hits == 0).count() as f64 / content.len() as f64),
        lifetime_bins: LIFETIME_BOUNDS
            .iter()
            .zip(bins)
            // JSON has no infinity
            .map(|(b, (with, without))| (if b.is_finite() { *b } else { 1e9 }, with, without))
            .collect(),
        hit_bins: hits.into_iter().collect(),
    }
}
