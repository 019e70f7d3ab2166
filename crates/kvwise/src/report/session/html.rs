//! The report as one HTML file: no network, light and dark, charts that zoom (drag or keys) and reset (double click or 0).

use std::fmt::Write as _;

use super::{EngineReport, Finding, ProbeReport, SessionReport, text};
use crate::report::html::{document, escape};
use kvwise_core::Result;

/// How the charts are used; the keys work in the chart that has the focus.
const CHART_HINT: &str = "<p class=\"soft\">Drag in a chart to zoom into a stretch of time, double-click to see all of it again. \
     Keys: + and − zoom, ← and → move, 0 shows everything.</p>";
const JS: &str = include_str!("../../../assets/session_report.js");

/// Longest name of what was recorded that stands as the heading.
const MAX_HEADING_CHARS: usize = 70;

/// The whole page.
///
/// # Errors
/// Never in practice: the report is plain data.
pub fn page(report: &SessionReport) -> Result<String> {
    let mut body = String::new();
    let about = &report.session;
    let targets = about.targets.join(", ");
    // a recorded command with all its flags is no heading
    let (heading, detail) = if targets.chars().count() <= MAX_HEADING_CHARS {
        (targets.as_str(), String::new())
    } else {
        (
            about.id.as_str(),
            format!("<p><code>{}</code></p>", escape(&targets)),
        )
    };
    let _ = write!(
        body,
        "<h1>KV cache of {}</h1>{detail}<p class=\"soft\">{}, {}{}</p>",
        escape(heading),
        escape(&about.start),
        text::seconds(about.duration_s),
        if about.complete {
            ""
        } else {
            " (the recorder was stopped hard)"
        }
    );
    body.push_str("<h2>Findings</h2>");
    if report.findings.is_empty() {
        body.push_str("<p>Nothing stands out.</p>");
    }
    for finding in &report.findings {
        body.push_str(&finding_html(finding));
    }
    for (i, engine) in report.engines.iter().enumerate() {
        engine_html(&mut body, i, engine);
    }
    for (i, probe) in report.probes.iter().enumerate() {
        probe_html(&mut body, i, probe);
    }
    for content in &report.contents {
        let _ = write!(body, "<h2>Cached content ({})</h2>", escape(&content.target));
        rows(&mut body, &text::content_rows(content));
    }
    remarks(&mut body, report);
    document(&about.id, &body, report, JS)
}

fn finding_html(f: &Finding) -> String {
    let severity = text::severity(f.severity);
    let mut out = format!(
        "<div class=\"finding {severity}\"><b>{}: {}</b>{}<br><span class=\"soft\">threshold: {}; source: {}; confidence: {}</span>",
        severity,
        escape(&f.title),
        escape(&f.evidence),
        escape(f.threshold),
        escape(f.source),
        text::confidence(f.confidence)
    );
    if let Some(s) = &f.suggestion {
        let _ = write!(
            out,
            "<br>try <code>{}</code> <span class=\"soft\">({})</span>",
            escape(&text::flag(s)),
            escape(&s.caveat)
        );
    }
    if let Some(g) = &f.gain {
        let _ = write!(
            out,
            "<br>computed gain: {} <span class=\"soft\">({})</span>",
            escape(&g.text),
            escape(&g.basis)
        );
    }
    if let Some(text) = &f.not_sized {
        let _ = write!(out, "<br><span class=\"soft\">not sized: {}</span>", escape(text));
    }
    out.push_str("</div>");
    out
}

fn rows(out: &mut String, rows: &[(String, String)]) {
    out.push_str("<div class=\"scroll\"><table>");
    for (name, value) in rows {
        let _ = write!(
            out,
            "<tr><th>{}</th><td class=\"n\">{}</td></tr>",
            escape(name),
            escape(value)
        );
    }
    out.push_str("</table></div>");
}

fn engine_html(out: &mut String, i: usize, e: &EngineReport) {
    let _ = write!(
        out,
        "<h2>{}</h2><p class=\"soft\">{}</p>",
        escape(&text::engine_name(e)),
        escape(&e.target)
    );
    rows(out, &text::engine_rows(e));
    out.push_str(CHART_HINT);
    let _ = write!(out, "<div id=\"engine-charts-{i}\"></div>");
    if !e.distributions.is_empty() {
        out.push_str(
            "<h3>Distributions</h3><div class=\"scroll\"><table><tr><th>quantity</th><th class=\"n\">count</th>\
             <th class=\"n\">mean</th><th class=\"n\">p50</th><th class=\"n\">p90</th><th class=\"n\">p99</th></tr>",
        );
        for (name, d) in &e.distributions {
            let _ = write!(out, "<tr><td>{}</td>", escape(name));
            for v in [d.count, d.mean, d.p50, d.p90, d.p99] {
                let _ = write!(out, "<td class=\"n\">{}</td>", text::number(v));
            }
            out.push_str("</tr>");
        }
        out.push_str(
            "</table></div><p class=\"soft\">Quantiles are interpolated inside the server's own buckets.</p>",
        );
    }
}

fn probe_html(out: &mut String, i: usize, p: &ProbeReport) {
    let _ = write!(
        out,
        "<h2>Inside process {} (vLLM {})</h2>",
        p.pid,
        escape(&p.vllm_version)
    );
    rows(out, &text::probe_rows(p));
    out.push_str(CHART_HINT);
    let _ = write!(out, "<div id=\"probe-charts-{i}\"></div>");
    let bars: Vec<(String, f64, f64)> = p
        .evictions
        .lifetime_bins
        .iter()
        .map(|(b, with, without)| {
            let label = if *b >= 1e9 {
                "more".to_owned()
            } else {
                format!("{b} s")
            };
            (label, *with as f64, *without as f64)
        })
        .collect();
    histogram(
        out,
        "Lifetimes of blocks given to other content (blue: with cached content, grey: without)",
        &bars,
    );
    let hits: Vec<(String, f64, f64)> = p
        .evictions
        .hit_bins
        .iter()
        .map(|(hits, n)| (hits.to_string(), *n as f64, 0.0))
        .collect();
    histogram(
        out,
        "Prefix hits of a block before its content was thrown away",
        &hits,
    );
    if let Some(map) = &p.block_map {
        let _ = write!(
            out,
            "<h3>Blocks over time</h3><canvas class=\"map\" id=\"block-map-{i}\"></canvas>\
             <p class=\"soft\">From left to right {}; each row is {} block(s), the first block above; the darker, the \
             longer held by requests.</p>",
            text::seconds(map.to_s - map.from_s),
            map.blocks_per_row
        );
    }
}

fn histogram(out: &mut String, title: &str, bars: &[(String, f64, f64)]) {
    let highest = bars.iter().map(|b| b.1 + b.2).fold(0.0, f64::max);
    if highest <= 0.0 {
        return;
    }
    let _ = write!(out, "<h3>{}</h3><div class=\"bars\">", escape(title));
    for (label, a, b) in bars {
        let _ = write!(
            out,
            "<div title=\"{}: {a:.0} and {b:.0}\"><i style=\"height:{:.1}%\"></i><i class=\"other\" style=\"height:{:.1}%\"></i></div>",
            escape(label),
            a / highest * 100.0,
            b / highest * 100.0
        );
    }
    out.push_str("</div><div class=\"labels\">");
    for (label, ..) in bars {
        let _ = write!(out, "<span>{}</span>", escape(label));
    }
    out.push_str("</div>");
}

fn remarks(out: &mut String, report: &SessionReport) {
    let lines = text::remarks(report);
    if lines.is_empty() {
        return;
    }
    out.push_str("<h2>About the recording</h2><ul>");
    for line in lines {
        let _ = write!(out, "<li>{}</li>", escape(&line));
    }
    out.push_str("</ul>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::session::About;

    #[test]
    fn what_a_server_calls_itself_cannot_break_out_of_the_page() {
        let evil = "</script><script>alert(1)</script>";
        let report = SessionReport {
            schema: "kvwise.session_report/1",
            session: About {
                id: evil.to_owned(),
                made_by: "attach".to_owned(),
                targets: vec![evil.to_owned()],
                start: String::new(),
                duration_s: 1.0,
                complete: true,
            },
            engines: vec![EngineReport {
                model: evil.to_owned(),
                ..EngineReport::default()
            }],
            probes: vec![],
            contents: vec![],
            gaps: vec![],
            events: vec![],
            notes: vec![evil.to_owned()],
            findings: vec![],
        };
        let page = page(&report).expect("a page");
        assert!(!page.contains("<script>alert"));
        assert_eq!(
            page.matches("</script>").count(),
            3,
            "only the page's own scripts end"
        );
        for loads in [" src=", " href=", "url(", "@import", "fetch("] {
            assert!(!page.contains(loads), "{loads}: the page must not load anything");
        }
    }
}
