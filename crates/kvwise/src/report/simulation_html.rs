//! Simulations as one HTML file.

use std::fmt::Write as _;

use kvwise_core::Result;

use super::html::{document, escape};
use super::simulation::{Simulation, cause};

const JS: &str = include_str!("../../assets/simulation_report.js");

/// The whole page: one section a deployment, charts over time, where time went, the worst requests.
///
/// # Errors
/// Never in practice: the report is plain data.
pub fn page(simulations: &[Simulation]) -> Result<String> {
    let mut body = String::new();
    let first = simulations.first();
    let title = first.map_or_else(
        || "nothing simulated".to_owned(),
        |s| format!("{} on {} x {}", s.model, s.gpus, s.gpu),
    );
    let _ = write!(body, "<h1>Simulation: {}</h1>", escape(&title));
    if let Some(s) = first {
        let _ = write!(
            body,
            "<p class=\"soft\">{}; seed {}; inputs {}; kvwise {}</p>",
            escape(&s.workload),
            s.seed,
            escape(&s.inputs_hash),
            s.version
        );
    }
    if simulations.len() > 1 {
        // What a comparison is about stands first.
        table(
            &mut body,
            &[
                "times in ms",
                "ttft 50 %",
                "ttft 99 %",
                "tpot 50 %",
                "tpot 99 %",
                "mean tpot, range",
                "tok/s",
                "req/s",
                "objectives",
            ],
            simulations.iter().map(compared),
        );
    }
    for (i, s) in simulations.iter().enumerate() {
        section(&mut body, i, s);
    }
    document(&title, &body, &simulations, JS)
}

/// A row of the comparison.
fn compared(s: &Simulation) -> Vec<String> {
    if let Some(reason) = &s.refused {
        let mut row = vec![format!("{}: would not start: {reason}", s.label)];
        row.resize(9, String::new());
        return row;
    }
    let range = s.tpot_mean_interval_ms;
    let met = s.slo_met.map_or("", |met| if met { "met" } else { "missed" });
    vec![
        s.label.clone(),
        format!("{:.0}", s.ttft_ms.p50),
        format!("{:.0}", s.ttft_ms.p99),
        format!("{:.1}", s.tpot_ms.p50),
        format!("{:.1}", s.tpot_ms.p99),
        format!("{:.1} to {:.1}", range.low, range.high),
        format!("{:.0}", s.output_tokens_per_s),
        format!("{:.2}", s.requests_per_s),
        met.to_owned(),
    ]
}

fn section(body: &mut String, i: usize, s: &Simulation) {
    let _ = write!(body, "<h2>{}</h2>", escape(&s.label));
    if let Some(reason) = &s.refused {
        let _ = write!(
            body,
            "<div class=\"finding problem\"><b>The engine would not start</b>{}{}</div>",
            escape(reason),
            s.fix
                .as_ref()
                .map_or_else(String::new, |fix| format!("<br>fix: {}", escape(fix)))
        );
        return;
    }
    if let Some(met) = s.slo_met {
        let _ = write!(
            body,
            "<div class=\"finding {}\"><b>{}</b>{:.1} % of the requests meet the objectives, {:.2} requests/s of {:.2}</div>",
            if met { "info" } else { "problem" },
            if met {
                "Meets the objectives"
            } else {
                "Misses the objectives"
            },
            s.slo_attainment * 100.0,
            s.goodput_requests_per_s,
            s.requests_per_s
        );
    }
    table(
        body,
        &["ms", "mean", "median", "90 %", "99 %"],
        [
            ("time to first token", s.ttft_ms),
            ("time per output token", s.tpot_ms),
            ("gap between tokens", s.itl_ms),
            ("whole request", s.e2e_ms),
            ("waiting for admission", s.queue_ms),
        ]
        .iter()
        .map(|(name, p)| {
            let mut row = vec![(*name).to_owned()];
            row.extend([p.mean, p.p50, p.p90, p.p99].map(|x| format!("{x:.1}")));
            row
        }),
    );
    let usage = s.kv_usage;
    let (tpot, ttft) = (s.tpot_mean_interval_ms, s.ttft_mean_interval_ms);
    table(
        body,
        &["figure", "value"],
        [
            ("output tokens a second", format!("{:.0}", s.output_tokens_per_s)),
            ("requests a second", format!("{:.2}", s.requests_per_s)),
            (
                "finished, of, rejected, preemptions",
                format!(
                    "{}, {}, {}, {}",
                    s.finished, s.requests, s.rejected, s.preemptions
                ),
            ),
            (
                "KV cache in use: mean, peak",
                format!("{:.1} %, {:.1} %", usage.mean * 100.0, usage.peak * 100.0),
            ),
            (
                "prompt tokens found in the cache",
                format!("{:.1} %", s.prefix_hit_rate_tokens * 100.0),
            ),
            (
                "mean time per output token, range",
                format!("{:.1} to {:.1} ms", tpot.low, tpot.high),
            ),
            (
                "mean time to first token, range",
                format!("{:.0} to {:.0} ms", ttft.low, ttft.high),
            ),
        ]
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .chain(s.disaggregation.iter().flat_map(|d| {
            [
                vec![
                    "prefill engines (GPUs), decode engines (GPUs)".to_owned(),
                    format!(
                        "{} ({}), {} ({})",
                        d.prefill_replicas, d.prefill_gpus, d.decode_replicas, d.decode_gpus
                    ),
                ],
                vec![
                    "cache handed over in: mean, 99 %".to_owned(),
                    format!("{:.0} ms, {:.0} ms", d.transfer_ms.mean, d.transfer_ms.p99),
                ],
            ]
        }))
        .chain(s.tiers.iter().map(|t| {
            vec![
                format!("prompt tokens found in {}", t.name),
                t.hit_tokens.to_string(),
            ]
        }))
        .chain(s.roofline.map(|r| {
            vec![
                "times the first-principles lower bound".to_owned(),
                format!("{:.2}", r.ratio),
            ]
        })),
    );
    let _ = write!(body, "<p class=\"soft\">{}</p>", escape(&s.basis));
    let _ = write!(body, "<div id=\"charts-{i}\"></div>");
    let kinds = s.time_kinds();
    let total: f64 = kinds.iter().map(|(_, x)| x).sum();
    body.push_str("<h3>Where the time went</h3>");
    table(
        body,
        &["kind", "seconds", "share"],
        kinds.iter().filter(|(_, x)| *x > 0.0).map(|(name, x)| {
            vec![
                (*name).to_owned(),
                format!("{x:.1}"),
                format!("{:.1} %", x / total.max(f64::MIN_POSITIVE) * 100.0),
            ]
        }),
    );
    if !s.worst.is_empty() {
        body.push_str("<h3>The latest first tokens</h3>");
        table(
            body,
            &[
                "request",
                "arrival s",
                "prompt",
                "found",
                "output",
                "ttft ms",
                "queue ms",
                "tpot ms",
                "most time in",
            ],
            s.worst.iter().map(|w| {
                vec![
                    w.request.to_string(),
                    format!("{:.1}", w.arrival_s),
                    w.input_tokens.to_string(),
                    w.hit_tokens.to_string(),
                    w.output_tokens.to_string(),
                    format!("{:.0}", w.ttft_ms),
                    format!("{:.0}", w.queue_ms),
                    format!("{:.1}", w.tpot_ms),
                    cause(w.cause).to_owned(),
                ]
            }),
        );
    }
}

/// A table whose first column is text and the others numbers.
pub(super) fn table(body: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    body.push_str("<div class=\"scroll\"><table><tr>");
    for (i, name) in head.iter().enumerate() {
        let class = if i == 0 { "" } else { " class=\"n\"" };
        let _ = write!(body, "<th{class}>{}</th>", escape(name));
    }
    body.push_str("</tr>");
    for row in rows {
        body.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let class = if i == 0 { "" } else { " class=\"n\"" };
            let _ = write!(body, "<td{class}>{}</td>", escape(cell));
        }
        body.push_str("</tr>");
    }
    body.push_str("</table></div>");
}
