//! The deployments that are looked at: kinds and numbers of GPUs, parallelism, formats, limits of a step.

use kvwise_core::plan;
use kvwise_core::{Error, Result, hardware};
use rayon::prelude::*;

use super::super::deployment::Deployment;

/// Tensor-parallel sizes; one node has eight GPUs at most.
const RANKS: [u64; 4] = [1, 2, 4, 8];
/// Tokens of a step besides the engine's default: smaller steps delay running requests less.
const STEP_TOKENS: [Option<&str>; 2] = [None, Some("2048")];

/// What may differ between candidates.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What every candidate shares.
    pub base: Deployment,
    /// Kinds of GPU.
    pub gpus: Vec<String>,
    /// Whether 8-bit weights and caches may be made from 16-bit ones.
    pub allow_fp8: bool,
    /// Tokens of the longest request.
    pub longest: u64,
}

/// A kind of GPU on which nothing starts, and why.
pub type Unfit = (String, String);

/// A deployment that starts, one replica.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The deployment.
    pub deployment: Deployment,
    /// Its GPU.
    pub gpu: String,
    /// GPUs of a replica.
    pub gpus: u64,
    /// What its plan says.
    pub verdict: String,
}

/// Candidates that start and hold the longest request, and why the kinds of GPU without any have none.
///
/// # Errors
/// If the model or a GPU is not known, or the model does not accept requests of that length.
pub fn candidates(choice: &Choice) -> Result<(Vec<Candidate>, Vec<Unfit>)> {
    let mut all = Vec::new();
    for name in &choice.gpus {
        let gpu = hardware::find(name)?;
        let fp8 = choice.allow_fp8 && gpu.tflops.fp8.is_some();
        for tp in RANKS {
            for expert_parallel in [false, true] {
                for kv in [None, Some("fp8")] {
                    for quantization in [None, Some("fp8")] {
                        for tokens in STEP_TOKENS {
                            let lossy = kv.is_some() || quantization.is_some();
                            if (expert_parallel && tp == 1) || (lossy && !fp8) {
                                continue;
                            }
                            let mut deployment = choice.base.clone();
                            deployment.gpu = Some(gpu.name.clone());
                            deployment.tensor_parallel_size = Some(tp);
                            deployment.enable_expert_parallel |= expert_parallel;
                            if kv.is_some() {
                                deployment.kv_cache_dtype = kv.map(str::to_owned);
                            }
                            if quantization.is_some() {
                                deployment.quantization = quantization.map(str::to_owned);
                            }
                            if tokens.is_some() {
                                deployment.max_num_batched_tokens = tokens.map(str::to_owned);
                            }
                            all.push((gpu.name.clone(), tp, expert_parallel, deployment));
                        }
                    }
                }
            }
        }
    }
    let Some((_, _, _, first)) = all.first() else {
        return Err(Error::input("--gpus-from names no GPU"));
    };
    // A model that is not known, or too short, is the same mistake for every candidate.
    let resolved = first.resolve()?;
    let accepted = resolved.model().and_then(|m| m.max_position);
    if let Some(most) = accepted.filter(|&most| choice.longest > most) {
        return Err(Error::input(format!(
            "the traffic has requests of {} tokens, and the model accepts {most}",
            choice.longest
        )));
    }
    let planned: Vec<Result<Result<Candidate, String>>> = all
        .par_iter()
        .map(|(gpu, tp, expert_parallel, deployment)| {
            let plan = match deployment.resolve().and_then(|r| plan::plan(&r.request(false))) {
                Ok(plan) => plan,
                Err(e) => return Ok(Err(e.to_string())),
            };
            // Whole experts make a difference only where some of the parameters rest.
            if *expert_parallel && plan.model.params_active == plan.model.params {
                return Ok(Err("no experts".to_owned()));
            }
            if !plan.feasibility.fits {
                return Ok(Err(plan.verdict));
            }
            Ok(Ok(Candidate {
                deployment: deployment.clone(),
                gpu: gpu.clone(),
                gpus: *tp,
                verdict: plan.verdict,
            }))
        })
        .collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: Vec<(String, String)> = Vec::new();
    for (outcome, (gpu, ..)) in planned.into_iter().zip(&all) {
        match outcome? {
            Ok(candidate) => candidates.push(candidate),
            // The reason of the most GPUs is the one that counts.
            Err(why) if why != "no experts" => {
                reasons.retain(|(name, _)| name != gpu);
                reasons.push((gpu.clone(), why));
            }
            Err(_) => {}
        }
    }
    reasons.retain(|(gpu, _)| candidates.iter().all(|c| c.gpu != *gpu));
    Ok((candidates, reasons))
}
