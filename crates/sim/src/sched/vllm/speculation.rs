//! Speculative decoding as the scheduler and the cache see it.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/sched/scheduler.py` (`schedule`, `update_from_output`) and `vllm/config/vllm.py`
//! (`num_lookahead_tokens`). Whoever has its prompt computed is given all its drafts to verify in every step, beside the
//! one token that it has; rejected ones are computed again. Drafters with a KV cache of their own reserve slots past what
//! the target computes; those that read the target's hidden states (EAGLE, MTP) also drop the last block of a prefix hit,
//! whose end they have to see again, and a model of its own takes a place of the step's input for each request
//! (`vllm/config/speculative.py`, `max_num_new_slots_for_drafting`). Mamba groups keep a state for each draft
//! (`vllm/model_executor/layers/mamba/abstract.py`).
//!
//! Drafters that make all drafts in one pass ("parallel") take places of the step's input for them too, and one that begins
//! with a query of its own (`DFlash`) a slot more. The number of drafts may change with the batch (`draft_counts.rs`).
//!
//! Which drafts a target accepts is nothing a scheduler knows: here it is a mean, met exactly over the steps of each
//! request. Not modelled: several MTP modules (longer lookahead), suffix decoding (how many drafts a step has follows
//! from the text, `vllm/v1/spec_decode/suffix_decoding.py`).

use kvwise_core::{Error, Result};

use super::{DraftCounts, Request, Scheduler, SchedulerConfig};

/// Drafts a step that are believed.
const MAX_DRAFT_TOKENS: u32 = 64;

/// Who makes the drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drafter {
    /// Nothing with a KV cache: n-grams of the prompt, Medusa's heads.
    Ngram,
    /// Layers that read the target's hidden states (EAGLE, EAGLE-3, MTP): a slot a draft is reserved.
    HiddenStates {
        /// Whether the last block of a prefix hit is computed again; false under `disable_eagle_block_drop`.
        drops_block: bool,
    },
    /// As hidden states, all drafts at once and with a query of its own before them (`DFlash`): a slot more than drafts.
    Flash {
        /// Whether the last block of a prefix hit is computed again.
        drops_block: bool,
    },
    /// A model of its own: a slot a draft, and a place of the input for each request of a step.
    Model,
}

/// How the engine speculates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speculation {
    /// Drafts verified in each step of a decoding request: `num_speculative_tokens`.
    pub draft_tokens: u32,
    /// Who makes them.
    pub drafter: Drafter,
    /// Whether all drafts are made in one pass (`parallel_drafting`); `DFlash` always does.
    pub parallel: bool,
    /// Drafts by batch size, at most `draft_tokens`.
    pub draft_counts: DraftCounts,
    /// Drafts accepted a step, in thousandths; at most all of them.
    pub accepted_per_mille: u32,
}

impl Speculation {
    /// Refuses what is not modelled.
    pub(super) fn check(&self, config: &SchedulerConfig) -> Result<()> {
        if !(1..=MAX_DRAFT_TOKENS).contains(&self.draft_tokens) {
            return Err(Error::input(format!(
                "num_speculative_tokens is {}, expected 1 to {MAX_DRAFT_TOKENS}",
                self.draft_tokens
            )));
        }
        if self.accepted_per_mille > self.draft_tokens * 1000 {
            return Err(Error::input(format!(
                "{} of {} draft tokens cannot be accepted in a step",
                f64::from(self.accepted_per_mille) / 1000.0,
                self.draft_tokens
            )));
        }
        if config.max_num_batched_tokens <= self.input_places() {
            return Err(Error::input(format!(
                "--max-num-batched-tokens is {}, and drafting alone takes {} of them for a request",
                config.max_num_batched_tokens,
                self.input_places()
            ))
            .hint("raise --max-num-batched-tokens or lower num_speculative_tokens"));
        }
        Ok(())
    }

    /// Whether the last block of a prefix hit is computed again.
    pub(super) fn drops_block(&self) -> bool {
        matches!(
            self.drafter,
            Drafter::HiddenStates { drops_block: true } | Drafter::Flash { drops_block: true }
        )
    }

    /// Places of a step's input that the drafter takes for each request beside its tokens
    /// (`max_num_new_slots_for_drafting`).
    pub(super) fn input_places(&self) -> u32 {
        match self.drafter {
            Drafter::Flash { .. } => self.draft_tokens,
            Drafter::Model if self.parallel => self.draft_tokens,
            Drafter::Model => 1,
            // the query that is there is the first of them
            Drafter::Ngram | Drafter::HiddenStates { .. } if self.parallel => self.draft_tokens - 1,
            Drafter::Ngram | Drafter::HiddenStates { .. } => 0,
        }
    }

    /// Slots reserved past the tokens of a step.
    pub(super) fn lookahead_tokens(&self) -> u32 {
        match self.drafter {
            Drafter::Ngram => 0,
            Drafter::HiddenStates { .. } | Drafter::Model => self.draft_tokens,
            Drafter::Flash { .. } => self.draft_tokens + 1,
        }
    }

    /// Drafts accepted in a request's `nth` step of verification, counted from 0.
    fn accepted(&self, nth: u32) -> u32 {
        let until = |n: u32| u64::from(n) * u64::from(self.accepted_per_mille) / 1000;
        u32::try_from(until(nth + 1) - until(nth)).unwrap_or(self.draft_tokens)
    }

    /// The step's tokens of a request cover all that it knows: its drafts are verified, a token is sampled, and `proposed`
    /// drafts are made.
    pub(super) fn verify(&self, request: &mut Request, proposed: u32) {
        let verified = request.computed + request.scheduled - request.known;
        let accepted = if request.padded || verified == 0 {
            0 // drafts that only fill up the batch are never accepted
        } else {
            request.verifications += 1;
            self.accepted(request.verifications - 1).min(verified)
        };
        request.computed = request.known + accepted;
        request.known = (request.known + 1 + accepted).min(request.limit);
        request.drafting = true;
        request.drafts = proposed;
        request.padded = false;
    }
}

impl Scheduler {
    /// Drafts that request `r` wants to verify beside its known tokens.
    pub(super) fn drafts(&self, r: u32) -> u32 {
        let request = &self.requests[r as usize];
        if request.drafting { request.drafts } else { 0 }
    }

    /// Drafts that are made for each request after the step that is under way.
    pub(super) fn proposed_drafts(&self) -> u32 {
        let Some(speculation) = &self.config.speculation else {
            return 0;
        };
        if !speculation.draft_counts.is_dynamic() {
            return speculation.draft_tokens;
        }
        let computing = |&&r: &&u32| self.requests[r as usize].scheduled > 0;
        let batch = self.running.iter().filter(computing).count() as u32;
        speculation.draft_counts.after(batch, speculation.draft_tokens)
    }

    /// Places of a step's input that the drafter takes for each request.
    pub(super) fn draft_places(&self) -> u32 {
        self.config
            .speculation
            .as_ref()
            .map_or(0, Speculation::input_places)
    }

    /// Slots to reserve past the tokens of a step.
    pub(super) fn lookahead_tokens(&self) -> u32 {
        self.config
            .speculation
            .as_ref()
            .map_or(0, Speculation::lookahead_tokens)
    }

    /// Tokens of a waiting request of which all but one are cached: it joins a batch of decoding requests with as many
    /// (empty) drafts as they have, so that all are of one length. `None` if it has to wait for room in the budget.
    pub(super) fn padded_tokens(&self, hit_tokens: u32, tokens: u32, budget: u32) -> Option<u32> {
        let Some(speculation) = &self.config.speculation else {
            return Some(tokens);
        };
        let joins = tokens == 1
            && !speculation.draft_counts.is_dynamic()
            && !self.batch_prefills
            && (self.batch_runs || hit_tokens > 0);
        let padded = 1 + speculation.draft_tokens;
        if !joins || hit_tokens + padded + 1 > self.config.max_model_len {
            return Some(tokens);
        }
        (padded <= budget).then_some(padded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EAGLE: Drafter = Drafter::HiddenStates { drops_block: true };

    fn three_drafts(accepted_per_mille: u32) -> Speculation {
        Speculation {
            draft_tokens: 3,
            drafter: EAGLE,
            parallel: false,
            draft_counts: DraftCounts::default(),
            accepted_per_mille,
        }
    }

    #[test]
    fn the_mean_of_accepted_drafts_is_met_exactly() {
        let speculation = three_drafts(1250);
        let accepted: Vec<u32> = (0..8).map(|n| speculation.accepted(n)).collect();
        assert_eq!(accepted, [1, 1, 1, 2, 1, 1, 1, 2]);
        let all = three_drafts(3000);
        assert!((0..5).all(|n| all.accepted(n) == 3));
    }

    #[test]
    fn drafters_take_places_and_slots_as_in_vllm() {
        let flash = Drafter::Flash { drops_block: true };
        for (drafter, parallel, places, slots) in [
            (EAGLE, false, 0, 3),
            (EAGLE, true, 2, 3),
            (Drafter::Model, false, 1, 3),
            (Drafter::Model, true, 3, 3),
            (Drafter::Ngram, false, 0, 0),
            (flash, true, 3, 4),
        ] {
            let speculation = Speculation {
                drafter,
                parallel,
                ..three_drafts(0)
            };
            assert_eq!(speculation.input_places(), places, "{drafter:?}");
            assert_eq!(speculation.lookahead_tokens(), slots, "{drafter:?}");
        }
    }

    #[test]
    fn what_is_not_modelled_is_refused() {
        let config = SchedulerConfig::new(100, 16);
        assert!(three_drafts(3001).check(&config).is_err());
        let fine = three_drafts(3000);
        fine.check(&config).unwrap();
        for draft_tokens in [0, 65] {
            let wrong = Speculation {
                draft_tokens,
                accepted_per_mille: 0,
                ..fine.clone()
            };
            assert!(wrong.check(&config).is_err());
        }
        let narrow = SchedulerConfig {
            max_num_batched_tokens: 1,
            ..config
        };
        fine.check(&narrow).unwrap();
        let model = Speculation {
            drafter: Drafter::Model,
            ..fine
        };
        let error = model.check(&narrow).unwrap_err().to_string();
        assert!(error.contains("drafting alone takes 1"), "{error}");
    }
}
