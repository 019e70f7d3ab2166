//! A log against the plan for what it says was started: predicted, actual, and why they differ.
//!
//! Order: read the log, choose the boot, take the deployment out of it (`found`; what the user says wins), plan it, put
//! each logged figure beside the planned one (`terms`), name the likely cause of each large difference (`causes`),
//! and keep the start as a site calibration if asked to (`save`).

mod causes;
mod found;
mod found_inputs;
mod found_others;
mod refusal;
mod save;
mod terms;
mod terms_others;

use std::collections::BTreeSet;
use std::path::Path;

use kvwise_core::engine::vllm;
use kvwise_core::plan::{Engine, Plan};
use kvwise_core::{Error, Result};
use kvwise_io::log::{self, Boot, EngineKind, Log};

use super::deployment::{Deployment, Resolved};
use super::settings;
use crate::report::verify::{DeploymentPart, LogPart, Row, SCHEMA, SavedPart, Status, Verification};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The log; `-` is standard input.
    pub log: &'a Path,
    /// Which boot of the log, from 1; the last one with figures if not given.
    pub boot: Option<usize>,
    /// What the user says; wins over the log.
    pub given: Deployment,
    /// Whether to keep the boot as a calibration.
    pub save: bool,
}

/// Everything that the comparison works with.
struct Case<'a> {
    boot: &'a Boot,
    resolved: &'a Resolved,
    plan: &'a Plan,
    /// vLLM's settings, if vLLM is planned.
    settings: Option<&'a vllm::Settings>,
}

/// Answers the question.
///
/// # Errors
/// If the log cannot be read or says too little, or the deployment cannot be planned.
pub fn verify(question: &Question) -> Result<Verification> {
    let log = log::open(question.log)?;
    let (number, boot) = choose(&log, question.boot)?;
    let engine = boot.engine.unwrap_or(EngineKind::Vllm);
    let mut found = found::deployment(boot, &question.given);
    let mut warnings = std::mem::take(&mut found.warnings);
    let mut deployment = settings::complete(question.given.over(&found.deployment)?);
    // A server that made its pools has taken the length that it logs.
    deployment.longer_context = boot.tokens.is_some();
    if deployment.model.is_none() {
        return Err(Error::input(format!(
            "{}: the log does not say which model was started",
            log.name
        ))
        .hint("name it: kvwise verify MODEL --log FILE"));
    }
    let resolved = deployment
        .resolve()
        .map_err(|e| found::explain(e, boot, &question.given))?;
    let mut plan = kvwise_core::plan::plan(&resolved.request(false))?;
    plan.feasibility.warnings.splice(0..0, resolved.warnings.clone());
    let case = Case {
        boot,
        resolved: &resolved,
        plan: &plan,
        settings: if let Engine::Vllm(settings) = resolved.engine() {
            Some(settings)
        } else {
            None
        },
    };
    let mut rows = terms::terms(&case)?;
    let refusal = refusal::compare(&case, &mut rows)?;
    if rows.iter().all(|row| row.actual.is_none()) && refusal.is_none() {
        return Err(Error::input(format!(
            "{}: boot {number} has no figure of memory or cache that a plan could be compared with",
            log.name
        ))
        .hint(
            "the lines with \"Available KV cache memory\" or \"KV cache size\" are needed; was the log cut?",
        ));
    }
    let notes = causes::causes(&case, &mut rows);
    let saved = if question.save {
        Some(save::save(&case, &deployment, &log.name)?)
    } else {
        None
    };
    warnings.extend(log_warnings(&log, boot));
    warnings.extend(plan.feasibility.warnings.iter().cloned());
    let wrong = rows.iter().filter(|row| counts(row, &rows)).count();
    let compared = rows
        .iter()
        .filter(|row| row.status != Status::NotCompared)
        .count();
    let refusal_wrong = refusal.as_ref().is_some_and(|r| r.agrees == Some(false));
    Ok(Verification {
        schema: SCHEMA,
        verdict: verdict(&rows, wrong, compared, refusal.as_ref()),
        agrees: wrong == 0 && !refusal_wrong,
        log: LogPart {
            name: log.name.clone(),
            engine: engine.name(),
            version: boot.version.clone(),
            boots: log.boots.len(),
            boot: number,
            first_line: boot.first_line.unwrap_or(0),
            last_line: boot.last_line,
            lines: log.lines,
            recognised: log.recognised,
        },
        deployment: DeploymentPart {
            model: resolved.name().to_owned(),
            gpu: plan.gpu.name.clone(),
            gpu_bytes: plan.gpu.memory_bytes,
            engine_version: plan.engine.version.clone(),
            from_log: found.sources(&question.given),
            inputs: plan.inputs.clone(),
        },
        terms: rows,
        refusal,
        causes: notes,
        warnings,
        calibration: resolved.correction(),
        saved: saved.map(|(id, path)| SavedPart {
            id,
            file: path.display().to_string(),
        }),
    })
}

/// Parts of a sum that is fitted to whole budgets: where the sum is as planned, so is what depends on it.
const PARTS: [&str; 3] = ["activation", "non_torch", "cuda_graphs"];

/// Whether a figure speaks against the plan.
fn counts(row: &Row, rows: &[Row]) -> bool {
    let sum_holds = || {
        rows.iter()
            .any(|sum| sum.name == "available_kv" && sum.status == Status::Inside)
    };
    row.status.is_wrong() && !(PARTS.contains(&row.name) && sum_holds())
}

fn choose(log: &Log, wanted: Option<usize>) -> Result<(usize, &Boot)> {
    match wanted {
        Some(number) => log
            .boots
            .get(number.wrapping_sub(1))
            .map(|boot| (number, boot))
            .ok_or_else(|| {
                Error::input(format!(
                    "--boot is {number}, but the log has {} start(s) of a server",
                    log.boots.len()
                ))
            }),
        None => log
            .boots
            .iter()
            .enumerate()
            .rfind(|(_, boot)| boot.has_figures())
            .map(|(at, boot)| (at + 1, boot))
            .ok_or_else(|| {
                Error::input(format!(
                    "{}: a server starts in it, but no line says what memory was measured",
                    log.name
                ))
                .hint("the lines with \"Available KV cache memory\" or \"KV cache size\" are needed; was the log cut?")
            }),
    }
}

/// A container's name, for people.
fn named(source: &str) -> &str {
    if source.is_empty() {
        "one without a name"
    } else {
        source
    }
}

fn log_warnings(log: &Log, boot: &Boot) -> Vec<String> {
    let mut warnings = Vec::new();
    let sources: BTreeSet<&str> = log.boots.iter().map(|b| b.source.as_str()).collect();
    if sources.len() > 1 {
        warnings.push(format!(
            "the log mixes {} servers ({}); compared is {}, --boot chooses another",
            sources.len(),
            sources.iter().map(|s| named(s)).collect::<Vec<_>>().join(", "),
            named(&boot.source)
        ));
    }
    if log.cut {
        warnings.push(format!(
            "only the first {} of the log were read",
            kvwise_core::units::human_bytes(log::MAX_BYTES)
        ));
    }
    if log.cut_lines > 0 {
        warnings.push(format!(
            "{} line(s) were longer than {} and cut",
            log.cut_lines,
            kvwise_core::units::human_bytes(log::line::MAX_LINE_BYTES as u64)
        ));
    }
    warnings
}

fn verdict(
    rows: &[crate::report::verify::Row],
    wrong: usize,
    compared: usize,
    refusal: Option<&crate::report::verify::RefusalPart>,
) -> String {
    let available = rows
        .iter()
        .find(|row| row.name == "available_kv" && row.status != Status::NotCompared)
        .and_then(|row| row.error_of_gpu_percent)
        .map(|percent| format!("; the KV memory differs by {percent:+.2} % of the GPU"))
        .unwrap_or_default();
    let inside = rows
        .iter()
        .any(|row| row.name == "available_kv" && row.status == Status::Inside);
    let available = if inside && wrong > 0 {
        format!("{available}, within its interval")
    } else {
        available
    };
    if let Some(refusal) = refusal
        && refusal.agrees == Some(false)
    {
        return format!("differs: {}", refusal.comment);
    }
    let apart: Vec<&str> = (rows.iter())
        .filter(|row| row.status.is_wrong() && !counts(row, rows))
        .map(|row| row.name)
        .collect();
    if wrong == 0 && apart.is_empty() {
        format!("agrees: all {compared} figures are as planned or within their intervals{available}")
    } else if wrong == 0 {
        format!(
            "agrees: {} of {compared} figures are as planned or within their intervals, {} in their sum{available}",
            compared - apart.len(),
            apart.join(" and ")
        )
    } else {
        let names: Vec<&str> = rows
            .iter()
            .filter(|row| counts(row, rows))
            .map(|row| row.name)
            .collect();
        format!(
            "differs: {wrong} of {compared} figures are not as planned ({}){available}",
            names.join(", ")
        )
    }
}
