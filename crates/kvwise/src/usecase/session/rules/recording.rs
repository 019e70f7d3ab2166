//! Rules about the recording itself.

use super::Draft;
use crate::report::session::SessionReport;
use crate::report::session::finding::{Confidence, Severity};

pub(super) fn recording(report: &SessionReport, out: &mut Vec<Draft>) {
    let failures: i64 = report.gaps.iter().map(|g| g.failures).sum();
    if failures > 0 {
        out.push(Draft {
            rule: "gaps",
            severity: Severity::Info,
            title: "the recording has gaps".to_owned(),
            evidence: format!("{failures} failed scrapes in {} stretches", report.gaps.len()),
            threshold: "any",
            source: "the recording",
            confidence: Confidence::High,
            suggestion: None,
        });
    }
    let restarts = report.events.iter().filter(|e| e.kind == "restart").count();
    if restarts > 0 {
        out.push(Draft {
            rule: "restarts",
            severity: Severity::Problem,
            title: "a server was started anew while it was recorded".to_owned(),
            evidence: format!("{restarts} restart(s)"),
            threshold: "any",
            source: "process_start_time_seconds, or counters that began again",
            confidence: Confidence::High,
            suggestion: None,
        });
    }
    for probe in &report.probes {
        if probe.hook_errors > 0 {
            out.push(Draft {
                rule: "probe_errors",
                severity: Severity::Info,
                title: "hooks of the probe failed in this engine version".to_owned(),
                evidence: format!("{} errors in process {}", probe.hook_errors, probe.pid),
                threshold: "any",
                source: "the probe's notes",
                confidence: Confidence::High,
                suggestion: None,
            });
        }
    }
}
