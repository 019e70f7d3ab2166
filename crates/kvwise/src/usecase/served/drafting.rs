//! Speculative decoding in time: how many tokens are drafted, how many are kept, and what drafting costs.

use kvwise_core::arch::Model;
use kvwise_core::engine::vllm::{Method, Settings, Speculative};
use kvwise_core::plan::Hardware;
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{Batch, Calibration, Speculation, StepModel, StepOptions};

use super::Serving;
use super::kernels::precisions;

/// Sequences of the steps at which a draft model is compared with its target; their largest share counts.
const SEQUENCES: [u64; 4] = [1, 16, 64, 256];
/// Cached tokens of each of them.
const CONTEXT: f64 = 1024.0;

/// The scheduler's view of the planned `--speculative-config`, if an acceptance rate is given. `share` says what drafting one
/// token takes as a share of the model's own decode step.
pub(super) fn speculation(
    planned: Option<&Speculative>,
    serving: &Serving,
    warnings: &mut Vec<String>,
    share: &dyn Fn(&Speculative) -> Result<f64>,
) -> Result<Option<Speculation>> {
    let Some(planned) = planned else {
        return match serving.acceptance_rate {
            None => Ok(None),
            Some(_) => Err(Error::input(
                "--acceptance-rate says how often drafts are accepted, but nothing is drafted",
            )
            .hint("add --speculative-config '{\"method\":\"mtp\",\"num_speculative_tokens\":1}'")),
        };
    };
    let Some(acceptance) = serving.acceptance_rate else {
        warnings.push(
            "speculative decoding is planned for memory but not simulated in time: give --acceptance-rate"
                .to_owned(),
        );
        return Ok(None);
    };
    if !(0.0..=1.0).contains(&acceptance) {
        return Err(Error::input(format!(
            "--acceptance-rate is {acceptance}, expected a number from 0 to 1"
        )));
    }
    let tokens = u32::try_from(planned.num_tokens)
        .ok()
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| {
            Error::input(format!(
                "--speculative-config: num_speculative_tokens is {}, and 1 to 64 are simulated",
                planned.num_tokens
            ))
        })?;
    Ok(Some(Speculation {
        tokens,
        acceptance,
        draft_share: share(planned)?,
    }))
}

/// Time of drafting one token as a share of the target's decode step.
///
/// N-grams are looked up on the host beside the step. A module or head of one layer takes a layer's share. A draft model's own
/// steps are timed by the same kernels, and the largest share of several batches counts.
///
/// # Errors
/// If drafts of this method are not timed, or a kernel of the draft model is not known.
pub(super) fn share(
    planned: &Speculative,
    target: &Model,
    calibration: &Calibration,
    options: StepOptions,
    hardware: &Hardware,
) -> Result<f64> {
    let unsupported = || {
        Error::unsupported(format!(
            "drafts made by {:?} are planned but not timed",
            planned.method
        ))
        .hint("n-gram, MTP, EAGLE and draft-model drafts are simulated")
    };
    match planned.method {
        Method::Ngram | Method::NgramGpu | Method::Suffix => return Ok(0.0),
        Method::Mtp | Method::Eagle | Method::Eagle3 => {
            return Ok(1.0 / target.layers.len().max(1) as f64);
        }
        Method::DraftModel => {}
        _ => return Err(unsupported()),
    }
    let draft = planned.draft.as_ref().ok_or_else(unsupported)?;
    let plain = StepOptions {
        speculation: None,
        pp: 1,
        ..options
    };
    let (linear, experts) = precisions(&draft.config, &Settings::default(), hardware)?;
    let small = StepModel::new(
        &draft.model,
        calibration,
        StepOptions {
            linear,
            experts,
            ep: 1,
            expert_dp: 1,
            ..plain
        },
    )
    .map_err(|e| e.at("the draft model"))?;
    let large = StepModel::new(target, calibration, plain)?;
    let at = |sequences: u64| {
        let batch = Batch::new(sequences, CONTEXT * sequences as f64, &[]);
        small.time(&batch).total_s() / large.time(&batch).total_s()
    };
    Ok(SEQUENCES.into_iter().map(at).fold(0.0, f64::max))
}
