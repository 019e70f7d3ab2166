//! Keeping a boot as a site calibration.

use std::path::PathBuf;

use kvwise_core::engine::{sglang, vllm};
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
    // Where graphs lie outside of the budget, only what is missing without them is missing for sure.
    let counted = plan.engine.name == "vllm"
        && plan.engine.version.as_deref().is_some_and(|version| {
            vllm::Version::parse(version)
                .is_ok_and(|version| vllm::Rules::of(version).subtracts_cuda_graph_estimate)
        });
    if empty {
        used.saturating_sub(if counted { 0 } else { graphs })
            .saturating_sub(plan.memory.budget_bytes) as f64
    } else {
        0.0
    }
}

fn unusable(why: &str) -> Error {
    Error::input(format!("nothing to save: {why}"))
}

fn component(plan: &Plan, name: &str) -> u64 {
    plan.memory
        .components
        .iter()
        .find(|term| term.name == name)
        .map_or(0, |term| term.bytes)
}

/// What was left of a budget in the log, and how much of the budget was planned for weights and for everything else.
#[expect(clippy::struct_field_names, reason = "units come last in names")]
struct Measured {
    budget_bytes: u64,
    available_bytes: i64,
    weights_bytes: u64,
    overhead_bytes: u64,
}

fn of_vllm(case: &Case, plan: &Plan, settings: &vllm::Settings) -> Result<Measured> {
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
    let weights = plan.weights.bytes_per_rank.iter().copied().max().unwrap_or(0);
    // What the plan takes off the budget besides weights: known exactly from what it leaves.
    let short = shortfall(plan);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a difference of byte counts below 2^53"
    )]
    let overhead = plan
        .memory
        .budget_bytes
        .saturating_add(short as u64)
        .saturating_sub(weights)
        .saturating_sub(component(plan, "kv_cache"));
    Ok(Measured {
        budget_bytes: plan.memory.budget_bytes,
        available_bytes: available.bytes,
        weights_bytes: weights,
        overhead_bytes: overhead,
    })
}

/// SGLang: the pools and states that it logs, beside what it reserves by rule.
fn of_sglang(case: &Case, plan: &Plan, settings: &sglang::Settings) -> Result<Measured> {
    if settings.kv_cache_memory_bytes.is_some() || settings.max_total_tokens.is_some() {
        return Err(unusable(
            "the pool of this boot was given and not measured (--max-total-tokens)",
        ));
    }
    let Some(pool) = case.boot.kv_bytes else {
        return Err(unusable("the log does not say how large the pools are"));
    };
    let states = case.boot.state_bytes.map_or(0, |states| states.bytes);
    Ok(Measured {
        budget_bytes: plan
            .memory
            .gpu_bytes
            .saturating_sub(component(plan, "runtime_reserve")),
        available_bytes: pool.bytes.saturating_add(states),
        weights_bytes: component(plan, "weights").saturating_add(component(plan, "drafter")),
        overhead_bytes: component(plan, "cuda_context"),
    })
}

/// llama.cpp: the buffers of one GPU; what the context takes it does not log.
fn of_llamacpp(case: &Case, plan: &Plan) -> Result<Measured> {
    let loads: Vec<i64> = case
        .boot
        .ranks
        .iter()
        .filter_map(|rank| rank.model_load)
        .map(|load| load.bytes)
        .collect();
    let (&[load], Some(compute)) = (loads.as_slice(), case.boot.compute_bytes) else {
        return Err(unusable(
            "the buffers of one GPU are needed: its model buffer and its compute buffer",
        ));
    };
    let context = component(plan, "cuda_context");
    let taken = load
        .saturating_add(compute.bytes)
        .saturating_add_unsigned(context);
    Ok(Measured {
        budget_bytes: plan.memory.gpu_bytes,
        available_bytes: i64::try_from(plan.memory.gpu_bytes)
            .unwrap_or(i64::MAX)
            .saturating_sub(taken),
        weights_bytes: component(plan, "weights"),
        overhead_bytes: context.saturating_add(component(plan, "compute_buffer")),
    })
}

/// The observation of a boot beside its plan.
///
/// # Errors
/// If the log lacks the memory that was left, or nothing is measured at this engine's start.
pub(super) fn observation(case: &Case, deployment: &Deployment) -> Result<Observation> {
    let Some(model) = case.resolved.model() else {
        return Err(unusable("the architecture is not known"));
    };
    let plain = Deployment {
        no_calibration: true,
        ..deployment.clone()
    }
    .resolve()?;
    let plan = kvwise_core::plan::plan(&plain.request(false))?;
    let measured = match plain.engine() {
        Engine::Vllm(settings) => of_vllm(case, &plan, settings)?,
        Engine::Sglang(settings) => of_sglang(case, &plan, settings)?,
        Engine::LlamaCpp(_) => of_llamacpp(case, &plan)?,
        Engine::Generic(_) => return Err(unusable("--engine generic has no server that logs")),
    };
    let hardware = plain.hardware();
    let Some(site) = deployment.site(plain.name(), &model.architecture, hardware, plain.engine()) else {
        return Err(unusable("this engine has no calibration"));
    };
    Ok(Observation {
        site,
        budget_bytes: measured.budget_bytes,
        available_bytes: measured.available_bytes,
        planned_weights_bytes: measured.weights_bytes,
        planned_overhead_bytes: measured.overhead_bytes,
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
