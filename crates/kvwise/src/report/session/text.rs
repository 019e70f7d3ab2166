//! The report as a terminal text, Markdown and CSV, and the words that HTML shares with them.

use std::fmt::Write as _;

use super::finding::{Confidence, Severity};
use super::{ContentReport, EngineReport, Finding, ProbeReport, SessionReport, Spread, Suggestion};

/// A severity in a word.
pub fn severity(s: Severity) -> &'static str {
    match s {
        Severity::Problem => "problem",
        Severity::Improve => "improve",
        Severity::Info => "info",
    }
}

/// A confidence in a word.
pub fn confidence(c: Confidence) -> &'static str {
    match c {
        Confidence::High => "high",
        Confidence::Medium => "medium",
        Confidence::Low => "low",
    }
}

/// A flag as it is typed.
pub fn flag(s: &Suggestion) -> String {
    if s.value.is_empty() {
        s.flag.clone()
    } else {
        format!("{} {}", s.flag, s.value)
    }
}

/// `1 h 5 min`, `42.0 s`.
pub fn seconds(s: f64) -> String {
    if s >= 3600.0 {
        format!(
            "{:.0} h {:.0} min",
            (s / 3600.0).floor(),
            (s % 3600.0 / 60.0).floor()
        )
    } else if s >= 120.0 {
        format!("{:.0} min {:.0} s", (s / 60.0).floor(), (s % 60.0).floor())
    } else if s < 0.1 {
        format!("{:.1} ms", s * 1000.0)
    } else {
        format!("{s:.1} s")
    }
}

/// A figure with as many digits as it deserves.
pub fn number(v: f64) -> String {
    let size = v.abs();
    if size >= 100.0 || (v.fract() == 0.0 && size >= 1.0) {
        format!("{v:.0}")
    } else if size >= 1.0 {
        format!("{v:.2}")
    } else if size == 0.0 {
        "0".to_owned()
    } else {
        format!("{v:.4}")
    }
}

fn percent(v: f64) -> String {
    format!("{:.1} %", v * 100.0)
}

/// Name of an engine instance.
pub fn engine_name(e: &EngineReport) -> String {
    let mut name = match e.engine.as_str() {
        "vllm" => "vLLM",
        "sglang" => "SGLang",
        "llamacpp" => "llama.cpp",
        other => other,
    }
    .to_owned();
    for part in [&e.model, &e.rank] {
        if !part.is_empty() {
            let _ = write!(name, " {part}");
        }
    }
    name
}

/// The figures of an engine, by name.
pub fn engine_rows(e: &EngineReport) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push((name.to_owned(), value));
        }
    };
    let spread = |s: Option<Spread>, f: fn(f64) -> String| {
        s.map(|s| format!("mean {}, p95 {}, max {}", f(s.mean), f(s.p95), f(s.max)))
    };
    add(
        "KV pool",
        e.capacity_tokens.map(|c| format!("{} tokens", number(c))),
    );
    add("held by requests", spread(e.usage_ratio, percent));
    add("running requests", spread(e.running_requests, number));
    add("waiting requests", spread(e.waiting_requests, number));
    add("finished requests", e.finished_requests.map(number));
    add("preemptions", e.preemptions.map(number));
    add(
        "prefix hit rate",
        e.prefix_hit_rate.map(|r| {
            format!(
                "{} of {} tokens",
                percent(r),
                number(e.prefix_query_tokens.unwrap_or(0.0))
            )
        }),
    );
    add("prompt tokens / s", e.prompt_tokens_per_s.map(number));
    add("generated tokens / s", e.generation_tokens_per_s.map(number));
    for name in ["ttft_ms", "itl_ms", "e2e_ms", "queue_ms"] {
        add(
            name,
            e.distributions.get(name).map(|d| {
                format!(
                    "p50 {}, p90 {}, p99 {}",
                    number(d.p50),
                    number(d.p90),
                    number(d.p99)
                )
            }),
        );
    }
    add(
        "scrapes",
        Some(format!("{} in {}", e.scrapes, seconds(e.duration_s))),
    );
    rows
}

/// The figures of a process, by name.
pub fn probe_rows(p: &ProbeReport) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| rows.push((name.to_owned(), value));
    add("usable blocks", p.usable_blocks.to_string());
    let spread = |s: Option<Spread>, f: fn(f64) -> String| {
        s.map_or_else(
            || "unknown".to_owned(),
            |s| format!("mean {}, p95 {}, max {}", f(s.mean), f(s.p95), f(s.max)),
        )
    };
    add("held by requests", spread(p.usage_ratio, percent));
    add("peak of used blocks", p.peak_used_blocks.to_string());
    add("running requests", spread(p.running_requests, number));
    add("waiting requests", spread(p.waiting_requests, number));
    add(
        "blocks allocated / freed",
        format!("{} / {}", p.allocated_blocks, p.freed_blocks),
    );
    add("blocks found in the cache", p.hit_blocks.to_string());
    add("cached contents lost", p.evicted_blocks.to_string());
    if let Some(rate) = p.prefix_hit_rate {
        add(
            "prefix hit rate",
            format!("{} of {} tokens", percent(rate), p.query_tokens),
        );
    }
    add("preemptions", p.preemptions.to_string());
    add("finished requests", p.finished_requests.to_string());
    add("scheduler steps", p.steps.to_string());
    if let (Some(life), Some(idle)) = (p.evictions.lifetime_s, p.evictions.idle_s) {
        add(
            "lifetime of lost contents",
            format!("p50 {} s, p99 {} s", number(life.p50), number(life.p99)),
        );
        add(
            "idle before they were lost",
            format!("p50 {} s, p99 {} s", number(idle.p50), number(idle.p99)),
        );
    }
    for (name, d) in [
        ("prompt tokens", p.prompt_tokens),
        ("output tokens", p.output_tokens),
    ] {
        if let Some(d) = d {
            add(
                name,
                format!(
                    "mean {}, p50 {}, p99 {}",
                    number(d.mean),
                    number(d.p50),
                    number(d.p99)
                ),
            );
        }
    }
    if p.graph_replays > 0 {
        add("CUDA-graph replays", p.graph_replays.to_string());
    }
    for (name, bytes) in &p.memory_bytes {
        add(
            &format!("memory: {name}"),
            format!("{:.2} GiB", *bytes as f64 / f64::from(1 << 30)),
        );
    }
    if p.lost_records > 0 {
        add("single records left out", p.lost_records.to_string());
    }
    if let (Some(share), Some(us)) = (p.probe_cost_ratio, p.probe_cost_us_per_step) {
        add(
            "the probe's own cost",
            format!("{:.2} % of step time, {} us a step", share * 100.0, number(us)),
        );
    }
    if let Some(s) = p.sampling {
        let mut text = format!(
            "to stay below {} % of step time: everything for {} s",
            number(s.limit_ratio * 100.0),
            number(s.complete_s)
        );
        for (seconds, what) in [
            (
                s.sampled_s,
                format!("down to 1 of {} steps, blocks and hashed requests", s.largest_n),
            ),
            (s.totals_only_s, "totals only".to_owned()),
            (s.off_s, "nothing at all (the totals leave this out)".to_owned()),
        ] {
            if seconds > 0.0 {
                let _ = write!(text, ", {what} for {} s", number(seconds));
            }
        }
        text.push_str("; no block map, and no gain is computed from a part of the requests");
        add("sampled", text);
    }
    rows
}

/// The figures of a followed cache, by name.
pub fn content_rows(c: &ContentReport) -> Vec<(String, String)> {
    let mut rows = vec![
        (
            "cached at the end".to_owned(),
            format!("{} blocks of {} tokens", c.cached, c.block_tokens),
        ),
        (
            "stored / evicted".to_owned(),
            format!("{} / {}", c.stored, c.removed),
        ),
        (
            "computed again after eviction".to_owned(),
            c.recomputed.to_string(),
        ),
    ];
    if let Some(d) = c.lifetime_s {
        rows.push((
            "lifetime of evicted content".to_owned(),
            format!(
                "p50 {} s, p90 {} s, p99 {} s",
                number(d.p50),
                number(d.p90),
                number(d.p99)
            ),
        ));
    }
    if c.missed_batches > 0 {
        rows.push((
            "batches that never arrived".to_owned(),
            c.missed_batches.to_string(),
        ));
    }
    rows
}

/// Gaps, events and notes as sentences.
pub fn remarks(report: &SessionReport) -> Vec<String> {
    let mut lines = Vec::new();
    for g in report.gaps.iter().take(20) {
        lines.push(format!(
            "gap at {}: {} failed scrapes of {} in {} ({})",
            g.start,
            g.failures,
            g.target,
            seconds(g.duration_ms as f64 / 1000.0),
            g.reason
        ));
    }
    if report.gaps.len() > 20 {
        lines.push(format!("and {} more gaps", report.gaps.len() - 20));
    }
    for e in report.events.iter().take(50) {
        lines.push(match e.kind.as_str() {
            "not_published" => format!("{} does not publish: {}", e.target, e.detail),
            "restart" => format!("{}: {} was started anew", e.time, e.target),
            "another_server" => format!("{}: several servers answer at {}", e.time, e.target),
            "counter_fell" => format!(
                "{}: counter {} of {} fell without a restart",
                e.time, e.detail, e.target
            ),
            _ => format!("{}: {} {}: {}", e.time, e.target, e.kind, e.detail),
        });
    }
    lines.extend(report.notes.iter().map(|n| format!("probe: {n}")));
    lines
}

/// One finding as lines.
pub fn finding_lines(f: &Finding) -> Vec<String> {
    let mut lines = vec![
        format!("{}: {}", severity(f.severity), f.title),
        format!("  measured:   {}", f.evidence),
        format!("  threshold:  {} (source: {})", f.threshold, f.source),
        format!("  confidence: {}", confidence(f.confidence)),
    ];
    if let Some(s) = &f.suggestion {
        lines.push(format!("  try:        {}   ({})", flag(s), s.caveat));
        lines.extend(
            f.gain
                .iter()
                .map(|g| format!("  gain:       {} ({})", g.text, g.basis)),
        );
    }
    lines.extend(f.not_sized.iter().map(|text| format!("  not sized:  {text}")));
    lines
}

/// For the terminal.
pub fn table(report: &SessionReport) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}  {}  {}{}\n",
        report.session.targets.join(", "),
        report.session.start,
        seconds(report.session.duration_s),
        if report.session.complete {
            ""
        } else {
            "  (stopped hard)"
        }
    );
    let mut section = |title: String, rows: Vec<(String, String)>| {
        let width = rows.iter().map(|r| r.0.chars().count()).max().unwrap_or(0);
        let _ = writeln!(out, "{title}");
        for (name, value) in rows {
            let _ = writeln!(out, "  {name:width$}  {value}");
        }
        out.push('\n');
    };
    for e in &report.engines {
        section(format!("{} ({})", engine_name(e), e.target), engine_rows(e));
    }
    for p in &report.probes {
        section(
            format!("inside process {} (vLLM {})", p.pid, p.vllm_version),
            probe_rows(p),
        );
    }
    for c in &report.contents {
        section(format!("cached content ({})", c.target), content_rows(c));
    }
    out.push_str(&findings(&report.findings));
    for line in remarks(report) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The findings alone, for the terminal.
pub fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    if findings.is_empty() {
        out.push_str("nothing stands out\n");
    }
    for f in findings {
        for line in finding_lines(f) {
            out.push_str(&line);
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

/// As Markdown.
pub fn markdown(report: &SessionReport) -> String {
    let mut out = format!(
        "# KV cache of {}\n\n{}, {}\n\n## Findings\n\n",
        report.session.targets.join(", "),
        report.session.start,
        seconds(report.session.duration_s)
    );
    if report.findings.is_empty() {
        out.push_str("Nothing stands out.\n");
    }
    for f in &report.findings {
        let _ = writeln!(
            out,
            "- **{}: {}**. {}. Threshold: {} (source: {}); confidence {}.",
            severity(f.severity),
            f.title,
            f.evidence,
            f.threshold,
            f.source,
            confidence(f.confidence)
        );
        if let Some(s) = &f.suggestion {
            let _ = writeln!(out, "  Try `{}` ({}).", flag(s), s.caveat);
        }
        if let Some(g) = &f.gain {
            let _ = writeln!(out, "  Gain: {} ({}).", g.text, g.basis);
        }
        if let Some(text) = &f.not_sized {
            let _ = writeln!(out, "  Not sized: {text}.");
        }
    }
    let mut section = |title: String, rows: Vec<(String, String)>| {
        let _ = writeln!(out, "\n## {title}\n\n| figure | value |\n|---|---|");
        for (name, value) in rows {
            let _ = writeln!(out, "| {name} | {} |", value.replace('|', "\\|"));
        }
    };
    for e in &report.engines {
        section(engine_name(e), engine_rows(e));
    }
    for p in &report.probes {
        section(
            format!("Inside process {} (vLLM {})", p.pid, p.vllm_version),
            probe_rows(p),
        );
    }
    for c in &report.contents {
        section(format!("Cached content ({})", c.target), content_rows(c));
    }
    let lines = remarks(report);
    if !lines.is_empty() {
        out.push_str("\n## About the recording\n\n");
        for line in lines {
            let _ = writeln!(out, "- {line}");
        }
    }
    out
}

/// The time series of all scraped engines and processes as CSV.
pub fn csv(report: &SessionReport) -> String {
    let cell = |v: Option<&Option<f64>>| v.copied().flatten().map_or_else(String::new, |v| v.to_string());
    let mut out = "source,t_s,usage_ratio,usage_ratio_max,running_requests,waiting_requests,prefix_hit_rate,\
                   prompt_tokens_per_s,generation_tokens_per_s,preemptions_per_s\n"
        .to_owned();
    for e in &report.engines {
        let s = &e.series;
        let name = format!("{} {}", engine_name(e), e.target).replace([',', '"'], " ");
        for (i, t) in s.t_s.iter().enumerate() {
            let _ = write!(out, "{name},{t:.3}");
            for line in [
                &s.usage_ratio,
                &s.usage_ratio_max,
                &s.running_requests,
                &s.waiting_requests,
                &s.prefix_hit_rate,
                &s.prompt_tokens_per_s,
                &s.generation_tokens_per_s,
                &s.preemptions_per_s,
            ] {
                let _ = write!(out, ",{}", cell(line.get(i)));
            }
            out.push('\n');
        }
    }
    for p in &report.probes {
        let s = &p.series;
        let usable = p.usable_blocks.max(1) as f64;
        for (i, t) in s.t_s.iter().enumerate() {
            let usage = s.used_blocks.get(i).copied().flatten().map(|u| u / usable);
            let _ = writeln!(
                out,
                "process {},{t:.3},{},,{},{},,,,",
                p.pid,
                cell(Some(&usage)),
                cell(s.running.get(i)),
                cell(s.waiting.get(i))
            );
        }
    }
    out
}
