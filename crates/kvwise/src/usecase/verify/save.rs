//! Keeping a boot as a site calibration.

use std::path::PathBuf;

use kvwise_core::plan::{Engine, Observation, Plan};
use kvwise_core::{Error, Result};

use super::Case;
use crate::usecase::deployment::Deployment;
use crate::usecase::settings;

/// Bytes that are missing before any KV cache; 0 if none are.
pub(super) fn shortfall(plan: &Plan) -> f64 {
    let used: u64 = plan
        .memory
        .components
        .iter()
        .filter(|term| !["kv_cache", "unused"].contains(&term.name))
        .fold(0, |sum, term| sum.saturating_add(term.bytes));
    let graphs = plan
        .memory
        .components
        .iter()
        .find(|term| term.name == "cuda_graphs")
        .map_or(0, |term| term.bytes);
    let empty = plan
        .memory
        .components
        .iter()
        .all(|term| term.name != "kv_cache" || term.bytes == 0);
    // Graphs may lie outside of the budget: only what is missing without them is missing for sure.
    if empty {
        used.saturating_sub(graphs)
            .saturating_sub(plan.memory.budget_bytes) as f64
    } else {
        0.0
    }
}

/// The observation of a boot beside its plan.
///
/// # Errors
/// If the log lacks the memory that was left, or the engine is not vLLM.
pub(super) fn observation(case: &Case, deployment: &Deployment) -> Result<Observation> {
    let unusable = |why: &str| Error::input(format!("nothing to save: {why}"));
    let Some(settings) = case.settings else {
        return Err(unusable("site calibrations are kept for vLLM only"));
    };
    if settings.kv_cache_memory_bytes.is_some() {
        return Err(unusable(
            "the KV memory of this boot was given and not measured (--kv-cache-memory-bytes or VLLM_CPU_KVCACHE_SPACE)",
        ));
    }
    let Some(available) = case.boot.smallest(|rank| rank.available_kv) else {
        return Err(unusable(
            "the log does not say what memory was left for the KV cache",
        ));
    };
    let Some(model) = case.resolved.model() else {
        return Err(unusable("the architecture is not known"));
    };
    let plain = Deployment {
        no_calibration: true,
        ..deployment.clone()
    }
    .resolve()?;
    let plan = kvwise_core::plan::plan(&plain.request(false))?;
    let Engine::Vllm(settings_plain) = plain.engine() else {
        return Err(unusable("site calibrations are kept for vLLM only"));
    };
    let weights = plan.weights.bytes_per_rank.iter().copied().max().unwrap_or(0);
    let kv = plan.memory.components.iter().find(|term| term.name == "kv_cache");
    let kv_bytes = kv.map_or(0, |term| term.bytes);
    // What the plan takes off the budget besides weights: known exactly from what it leaves.
    let short = shortfall(&plan);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a difference of byte counts below 2^53"
    )]
    let planned_overhead_bytes = plan
        .memory
        .budget_bytes
        .saturating_add(short as u64)
        .saturating_sub(weights)
        .saturating_sub(kv_bytes);
    let hardware = plain.hardware();
    Ok(Observation {
        site: deployment.site(plain.name(), &model.architecture, hardware, settings_plain),
        budget_bytes: plan.memory.budget_bytes,
        available_bytes: available.bytes,
        planned_weights_bytes: weights,
        planned_overhead_bytes,
        gpu_bytes: plan.memory.gpu_bytes,
        unified: hardware.unified,
    })
}

/// Keeps a boot; answers its number and the file.
///
/// # Errors
/// See [`observation`]; also if the user's folder cannot be written.
pub(super) fn save(case: &Case, deployment: &Deployment, log: &str) -> Result<(u64, PathBuf)> {
    let observation = observation(case, deployment)?;
    let calibrations = settings::calibrations()?;
    let id = calibrations.add(log, observation)?;
    Ok((id, calibrations.path()))
}
