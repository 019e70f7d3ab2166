//! Speculative decoding in time: how many tokens are drafted, how many are kept, and what drafting costs.

use kvwise_core::arch::{Config, Model};
use kvwise_core::engine::sglang;
use kvwise_core::engine::vllm::{self, Method};
use kvwise_core::plan::Hardware;
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{Batch, Calibration, Speculation, StepModel, StepOptions};

use super::Serving;
use super::kernels::precisions;

/// Sequences of the steps at which a draft model is compared with its target; their largest share counts.
const SEQUENCES: [u64; 4] = [1, 16, 64, 256];
/// Cached tokens of each of them.
const CONTEXT: f64 = 1024.0;
/// Most drafted tokens in a row that are timed.
const MOST: u64 = 64;

/// What a deployment drafts with, whichever engine serves it.
#[derive(Debug)]
pub(super) struct Drafting<'a> {
    /// Tokens in a row.
    tokens: u64,
    /// Tokens that one pass checks.
    checked: u64,
    /// The flag that says so.
    flag: &'static str,
    cost: Cost<'a>,
}

/// Where drafts come from.
#[derive(Debug)]
enum Cost<'a> {
    /// From the text so far, on the host beside the step.
    Nothing,
    /// From a module or head of one layer.
    Layer,
    /// From a smaller model.
    Model(&'a Model, &'a Config),
    /// From something that is not timed, by its name.
    Untimed(String),
}

impl<'a> Drafting<'a> {
    /// vLLM's `--speculative-config`: a chain.
    pub(super) fn of_vllm(planned: &'a vllm::Speculative) -> Self {
        let untimed = || Cost::Untimed(format!("{:?}", planned.method));
        Self {
            tokens: planned.num_tokens,
            checked: planned.num_tokens.saturating_add(1),
            flag: "--speculative-config: num_speculative_tokens",
            cost: match planned.method {
                Method::Ngram | Method::NgramGpu | Method::Suffix => Cost::Nothing,
                Method::Mtp | Method::Eagle | Method::Eagle3 => Cost::Layer,
                Method::DraftModel => planned
                    .draft
                    .as_ref()
                    .map_or_else(untimed, |draft| Cost::Model(&draft.model, &draft.config)),
                _ => untimed(),
            },
        }
    }

    /// SGLang's `--speculative-…`, a chain or a tree, for a target of this class (0.5.23, `speculative/eagle_worker_v2.py`: a
    /// pass of the drafter for each of `num_steps`, one pass of the model over `num_draft_tokens`; a tree's branches are
    /// drafted in one pass. `speculative/ngram_worker.py`: what is looked up may be a chain of all tokens but one).
    pub(super) fn of_sglang(planned: &'a sglang::Speculative, class: &str) -> Self {
        let steps = planned.steps(class);
        let most = steps.num_draft_tokens.saturating_sub(1);
        let lookup = planned.algorithm == sglang::Algorithm::Ngram;
        Self {
            tokens: if lookup { most } else { steps.num_steps.min(most) },
            checked: steps.num_draft_tokens,
            flag: "--speculative-num-draft-tokens: tokens that can be accepted",
            cost: match (planned.algorithm, &planned.drafter) {
                (sglang::Algorithm::Ngram, _) => Cost::Nothing,
                (sglang::Algorithm::Eagle | sglang::Algorithm::NextN | sglang::Algorithm::Eagle3, _) => {
                    Cost::Layer
                }
                (sglang::Algorithm::Standalone, sglang::Drafter::Model(draft)) => {
                    Cost::Model(&draft.model, &draft.config)
                }
                (sglang::Algorithm::Standalone, _) => Cost::Untimed("the target itself".to_owned()),
            },
        }
    }

    /// Time of drafting one token as a share of the target's decode step.
    ///
    /// A module or head of one layer takes a layer's share. A draft model's own steps are timed by the same kernels, and the
    /// largest share of several batches counts.
    ///
    /// # Errors
    /// If drafts of this kind are not timed, or a kernel of the draft model is not known.
    fn share(
        &self,
        target: &Model,
        calibration: &Calibration,
        options: StepOptions,
        hardware: &Hardware,
    ) -> Result<f64> {
        let (model, config) = match &self.cost {
            Cost::Nothing => return Ok(0.0),
            Cost::Layer => return Ok(1.0 / target.layers.len().max(1) as f64),
            Cost::Model(model, config) => (*model, *config),
            Cost::Untimed(name) => {
                return Err(
                    Error::unsupported(format!("drafts made by {name} are planned but not timed"))
                        .hint("n-gram, MTP, EAGLE and draft-model drafts are simulated"),
                );
            }
        };
        let plain = StepOptions {
            speculation: None,
            pp: 1,
            ..options
        };
        let (linear, experts) = precisions(config, None, hardware);
        let small = StepModel::new(
            model,
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
}

/// What is said of drafts that are planned and not timed.
pub(super) const NOT_TIMED: &str =
    "speculative decoding is planned for memory but not simulated in time: give --acceptance-rate";

/// The scheduler's view of what is drafted, if an acceptance rate is given.
///
/// # Errors
/// If the rate is no probability, nothing is drafted that it could be the rate of, or the drafts are not timed.
pub(super) fn speculation(
    planned: Option<&Drafting<'_>>,
    serving: &Serving,
    warnings: &mut Vec<String>,
    target: &Model,
    (calibration, options, hardware): (&Calibration, StepOptions, &Hardware),
) -> Result<Option<Speculation>> {
    let Some(planned) = planned else {
        return match serving.acceptance_rate {
            None => Ok(None),
            Some(_) => Err(Error::input(
                "--acceptance-rate says how often drafts are accepted, but nothing is drafted",
            )
            .hint(
                "add --speculative-config '{\"method\":\"mtp\",\"num_speculative_tokens\":1}', or SGLang's --speculative-algorithm",
            )),
        };
    };
    let Some(acceptance) = serving.acceptance_rate else {
        warnings.push(NOT_TIMED.to_owned());
        return Ok(None);
    };
    if !(0.0..=1.0).contains(&acceptance) {
        return Err(Error::input(format!(
            "--acceptance-rate is {acceptance}, expected a number from 0 to 1"
        )));
    }
    let count = |n: u64, most: u64| {
        u32::try_from(n)
            .ok()
            .filter(|n| (1..=most).contains(&u64::from(*n)))
    };
    let (Some(tokens), Some(checked)) = (count(planned.tokens, MOST), count(planned.checked, 16 * MOST))
    else {
        return Err(Error::input(format!(
            "{} is {}, and 1 to {MOST} are simulated",
            planned.flag, planned.tokens
        )));
    };
    Ok(Some(Speculation {
        tokens,
        checked,
        acceptance,
        draft_share: planned.share(target, calibration, options, hardware)?,
    }))
}
