//! A simulation in words, tables and terminal plots.

use std::fmt::Write as _;

use kvwise_sim::simulate::{Cause, Sample};

use super::Simulation;
use crate::plot::{LineChart, Series};
use crate::report::refusal::{Refusal, paragraphs};
use crate::report::table::{Align, Grid};
use crate::report::text::wrap;

/// One row a simulation: percentiles in ms, output tokens and requests a second, share of prompt tokens found in the
/// cache, preemptions, largest share of the pool in use; why it does not start, if one does not and `with_reasons`.
pub fn grid(simulations: &[Simulation], with_reasons: bool) -> Grid {
    let mut columns = vec![
        ("changed", Align::Left),
        ("ttft50", Align::Right),
        ("ttft99", Align::Right),
        ("tpot50", Align::Right),
        ("tpot99", Align::Right),
        ("tok/s", Align::Right),
        ("req/s", Align::Right),
        ("hits", Align::Right),
        ("pre", Align::Right),
        ("kv", Align::Right),
    ];
    let figures = columns.len() - 1;
    if with_reasons && simulations.iter().any(|s| s.refused.is_some()) {
        columns.push(("does not start", Align::Left));
    }
    let mut grid = Grid::new(&columns);
    for s in simulations {
        if let Some(reason) = &s.refused {
            let none = if with_reasons { "" } else { "-" };
            let row = std::iter::once(s.label.clone()).chain(std::iter::repeat_n(none.to_owned(), figures));
            grid.row(row.chain(with_reasons.then(|| reason.clone())));
            continue;
        }
        grid.row([
            s.label.clone(),
            format!("{:.0}", s.ttft_ms.p50),
            format!("{:.0}", s.ttft_ms.p99),
            format!("{:.1}", s.tpot_ms.p50),
            format!("{:.1}", s.tpot_ms.p99),
            format!("{:.0}", s.output_tokens_per_s),
            format!("{:.2}", s.requests_per_s),
            format!("{:.3}", s.prefix_hit_rate_tokens),
            s.preemptions.to_string(),
            format!("{:.3}", s.kv_usage.peak),
        ]);
    }
    grid
}

fn refusal(s: &Simulation) -> Option<Refusal<'_>> {
    s.refused.as_ref().map(|reason| Refusal {
        name: &s.label,
        reason,
        fix: s.fix.as_deref(),
    })
}

/// For a terminal: one deployment in words, several as a table.
pub fn text(simulations: &[Simulation]) -> String {
    let [s] = simulations else {
        let mut out = grid(simulations, false).text();
        out.push('\n');
        paragraphs(
            &mut out,
            &simulations.iter().filter_map(refusal).collect::<Vec<_>>(),
        );
        for s in simulations.iter().filter(|s| s.refused.is_none()) {
            wrap(&mut out, &format!("{}: {}", s.label, answer(s)), "  ");
        }
        if let Some(s) = simulations.iter().find(|s| s.refused.is_none()) {
            wrap(&mut out, &format!("basis {}", s.basis), "      ");
        }
        return out;
    };
    let mut out = String::new();
    if let Some(refusal) = refusal(s) {
        let name = format!("{} on {} x {}", s.model, s.gpus, s.gpu);
        paragraphs(
            &mut out,
            &[Refusal {
                name: &name,
                ..refusal
            }],
        );
        return out;
    }
    let verdict = match s.slo_met {
        None => format!(
            "{:.0} output tokens/s, {:.2} requests/s",
            s.output_tokens_per_s, s.requests_per_s
        ),
        Some(true) => format!("meets the objectives at {:.2} requests/s", s.requests_per_s),
        Some(false) => format!(
            "misses the objectives: {:.1} % of the requests meet them, {:.2} requests/s",
            s.slo_attainment * 100.0,
            s.goodput_requests_per_s
        ),
    };
    wrap(
        &mut out,
        &format!("{} on {} x {}: {verdict}", s.model, s.gpus, s.gpu),
        "",
    );
    out.push('\n');
    let mut grid = Grid::new(&[
        ("ms", Align::Left),
        ("mean", Align::Right),
        ("p50", Align::Right),
        ("p90", Align::Right),
        ("p99", Align::Right),
    ]);
    for (name, p) in [
        ("time to first token", s.ttft_ms),
        ("time per output token", s.tpot_ms),
        ("gap between tokens", s.itl_ms),
        ("whole request", s.e2e_ms),
        ("waiting for admission", s.queue_ms),
    ] {
        grid.row(
            [name.to_owned()]
                .into_iter()
                .chain([p.mean, p.p50, p.p90, p.p99].map(|x| format!("{x:.1}"))),
        );
    }
    out.push_str(&grid.text());
    out.push('\n');
    for line in details(s).lines() {
        wrap(&mut out, line, NAMES);
    }
    out
}

/// As wide as the names before the details.
const NAMES: &str = "            ";

/// A line for each thing that happened, its name first.
fn details(s: &Simulation) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "requests    {} finished of {}, {} rejected, {} preemptions, {:.1} s",
        s.finished, s.requests, s.rejected, s.preemptions, s.duration_s
    );
    let _ = writeln!(
        out,
        "KV cache    {} blocks, {:.1} % used on average, {:.1} % at the peak, prefix hits {:.1} % of prompt tokens",
        s.num_blocks,
        s.kv_usage.mean * 100.0,
        s.kv_usage.peak * 100.0,
        s.prefix_hit_rate_tokens * 100.0
    );
    apart_text(&mut out, s);
    let kinds = s.time_kinds();
    let total: f64 = kinds.iter().map(|(_, x)| x).sum();
    let shares: Vec<String> = kinds
        .iter()
        .filter(|(_, x)| total > 0.0 && *x / total >= 0.005)
        .map(|(name, x)| format!("{name} {:.0} %", x / total * 100.0))
        .collect();
    let _ = writeln!(out, "time        {}", shares.join(", "));
    if let Some(r) = s.roofline {
        let _ = writeln!(
            out,
            "roofline    {:.2} times what no implementation can beat, which is bound by {}",
            r.ratio,
            [
                ("computing", r.compute_s),
                ("memory", r.memory_s),
                ("links", r.link_s)
            ]
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or("nothing", |(name, _)| name)
        );
    }
    if let Some(seeds) = s.seeds {
        let _ = writeln!(
            out,
            "{} seeds     ttft p99 {:.0} ± {:.0} ms, tpot p99 {:.1} ± {:.1} ms, {:.0} ± {:.0} output tokens/s (95 %)",
            seeds.seeds,
            seeds.ttft_p99_ms.mean,
            seeds.ttft_p99_ms.half_width_95,
            seeds.tpot_p99_ms.mean,
            seeds.tpot_p99_ms.half_width_95,
            seeds.output_tokens_per_s.mean,
            seeds.output_tokens_per_s.half_width_95
        );
    }
    let (tpot, ttft) = (s.tpot_mean_interval_ms, s.ttft_mean_interval_ms);
    let _ = writeln!(
        out,
        "range       mean time per output token {:.1} to {:.1} ms, to the first token {:.0} to {:.0} ms",
        tpot.low, tpot.high, ttft.low, ttft.high
    );
    if let Some(w) = s.worst.first() {
        let _ = writeln!(
            out,
            "worst       request {}: {:.0} ms to its first token, {:.0} ms of them queueing; most time in {}",
            w.request,
            w.ttft_ms,
            w.queue_ms,
            cause(w.cause)
        );
    }
    let _ = writeln!(out, "basis       {}", s.basis);
    out
}

/// Whether the objectives are met, how far the figures that decide it may be off, and whether that could turn the answer.
fn answer(s: &Simulation) -> String {
    let mut parts = match s.slo_met {
        None => Vec::new(),
        Some(true) => vec!["meets the objectives".to_owned()],
        Some(false) => vec![format!(
            "misses the objectives ({:.1} % of the requests meet them)",
            s.slo_attainment * 100.0
        )],
    };
    for (what, p, range, limit) in [
        (
            "to the first token",
            s.ttft_ms,
            s.ttft_mean_interval_ms,
            s.slo_ttft_ms,
        ),
        (
            "per output token",
            s.tpot_ms,
            s.tpot_mean_interval_ms,
            s.slo_tpot_ms,
        ),
    ] {
        // The same factors as around the mean.
        let (low, high) = if p.mean > 0.0 {
            (p.p99 * range.low / p.mean, p.p99 * range.high / p.mean)
        } else {
            (p.p99, p.p99)
        };
        let sure = match limit {
            None => "",
            Some(limit) if (low..=high).contains(&limit) => ", which leaves it open",
            Some(_) => ", which does not change that",
        };
        parts.push(format!("99 % {what} within {low:.0} to {high:.0} ms{sure}"));
    }
    parts.join("; ")
}

/// What moved between engines and tiers.
fn apart_text(out: &mut String, s: &Simulation) {
    if let Some(d) = s.disaggregation {
        let _ = writeln!(
            out,
            "apart       {} on {} GPUs, {} on {} GPUs; cache handed over in {:.0} ms (mean), {:.0} ms (p99); ports {:.1} % busy",
            engines(d.prefill_replicas, "prefill"),
            d.prefill_gpus,
            engines(d.decode_replicas, "decode"),
            d.decode_gpus,
            d.transfer_ms.mean,
            d.transfer_ms.p99,
            d.link_use * 100.0
        );
    }
    for tier in &s.tiers {
        let _ = writeln!(
            out,
            "{:<12}{} blocks, {} prompt tokens found there, {:.1} GiB read, {:.1} GiB written, {} blocks evicted",
            tier.name,
            tier.capacity_blocks,
            tier.hit_tokens,
            gib(tier.read_bytes),
            gib(tier.written_bytes),
            tier.evicted_blocks
        );
    }
}

fn engines(count: u64, side: &str) -> String {
    format!("{count} {side} engine{}", if count == 1 { "" } else { "s" })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// A cause in words.
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Queue => "the queue",
        Cause::Prefill => "its own prompt",
        Cause::Preemption => "computing again after a preemption",
        Cause::Transfer => "getting its cache to a decode engine",
        Cause::Decode => "decoding",
    }
}

/// Requests and KV usage over time, for a terminal.
pub fn plots(s: &Simulation) -> String {
    if s.series.is_empty() {
        return String::new();
    }
    let line = |name: &str, value: fn(&Sample) -> f64| Series {
        name: name.to_owned(),
        points: s.series.iter().map(|p| (p.time_s, value(p))).collect(),
    };
    let highest = s
        .series
        .iter()
        .map(|p| f64::from(p.running.max(p.waiting)))
        .fold(1.0, f64::max);
    let chart = |title: &str, y_label: &str, y_max: f64, series: Vec<Series>| LineChart {
        title: title.to_owned(),
        x_label: "seconds".to_owned(),
        y_label: y_label.to_owned(),
        x_log: false,
        y_max,
        series,
    };
    let requests = chart(
        "requests",
        "requests",
        highest * 1.05,
        vec![
            line("running", |p| f64::from(p.running)),
            line("waiting", |p| f64::from(p.waiting)),
        ],
    );
    let cache = chart(
        "KV cache",
        "share",
        1.0,
        vec![
            line("in use", |p| p.kv_usage),
            line("prefix hits", |p| p.hit_rate),
        ],
    );
    format!("\n{}\n{}", requests.text(78, 12), cache.text(78, 10))
}
