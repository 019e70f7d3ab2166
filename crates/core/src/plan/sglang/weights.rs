//! Weights of an SGLang deployment, its drafter's among them.

use crate::arch::{Config, Model, Parallel};
use crate::dtype::Dtype;
use crate::engine::sglang::Settings;
use crate::engine::{sglang, vllm};
use crate::plan::request::Subject;
use crate::plan::vllm::weights::weights;
use crate::{ErrorKind, Result};

/// Weights of a deployment.
pub(super) struct RankWeights {
    /// Of one rank of each stage.
    pub(super) bytes: Vec<u64>,
    /// Of the whole model.
    pub(super) total: u64,
    /// Parameters: all, and those that one token uses.
    pub(super) params: (u64, u64),
    /// How they are held, for the formula.
    pub(super) how: String,
    /// Why they cannot be divided.
    pub(super) indivisible: Option<String>,
    /// What the drafter adds to each rank.
    pub(super) drafter: Option<vllm::DrafterWeights>,
}

/// The drafter in vLLM's terms: its classes descend from the same modules.
fn drafter_as_vllm(speculative: &sglang::Speculative) -> Option<vllm::Speculative> {
    let method = match speculative.algorithm {
        sglang::Algorithm::Ngram => return None,
        sglang::Algorithm::Eagle3 => vllm::Method::Eagle3,
        sglang::Algorithm::Standalone => vllm::Method::DraftModel,
        sglang::Algorithm::Eagle | sglang::Algorithm::NextN => match &speculative.drafter {
            sglang::Drafter::Model(_) => vllm::Method::Eagle,
            _ => vllm::Method::Mtp,
        },
    };
    Some(vllm::Speculative {
        method,
        num_tokens: speculative.num_draft_tokens.unwrap_or(1),
        draft: match &speculative.drafter {
            sglang::Drafter::Model(draft) => Some(draft.clone()),
            _ => None,
        },
    })
}

/// Weights as vLLM's modules shard them; where they cannot be divided, even shares and why.
///
/// # Errors
/// If a configuration cannot be read or a size leaves 64 bits.
pub(super) fn rank_weights(
    subject: &Subject,
    described: (&Model, &Config),
    settings: &Settings,
    gpu: &vllm::Gpu,
    parallel: &Parallel,
    dtype: Dtype,
) -> Result<RankWeights> {
    let speculative = settings.speculative.as_ref().and_then(drafter_as_vllm);
    let as_vllm = vllm::Settings {
        speculative,
        tensor_parallel_size: parallel.tp,
        pipeline_parallel_size: parallel.pp,
        data_parallel_size: parallel.dp,
        enable_expert_parallel: settings.expert_parallel,
        dtype: settings.dtype,
        quantization: settings.quantization.clone(),
        language_model_only: settings.language_model_only,
        ..vllm::Settings::default()
    };
    match weights(subject, described, &as_vllm, gpu, parallel, dtype) {
        Ok(stages) => Ok(RankWeights {
            bytes: stages.bytes,
            total: stages.total,
            params: stages.params,
            how: stages.how,
            indivisible: None,
            drafter: stages.drafter,
        }),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let one = weights(subject, described, &as_vllm, gpu, &Parallel::default(), dtype)?;
            let share = one
                .total
                .div_ceil(settings.tp().saturating_mul(settings.pp()).max(1));
            Ok(RankWeights {
                bytes: vec![share; usize::try_from(settings.pp()).unwrap_or(1)],
                total: one.total,
                params: one.params,
                how: format!("{} as even shares", one.how),
                indivisible: Some(error.to_string()),
                drafter: None,
            })
        }
        Err(error) => Err(error),
    }
}
