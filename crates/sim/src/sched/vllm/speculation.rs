//! Speculative decoding as the scheduler and the cache see it.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/sched/scheduler.py` (`schedule`, `update_from_output`) and `vllm/config/vllm.py`
//! (`num_lookahead_tokens`). Whoever has its prompt computed is given all its drafts to verify in every step, beside the
//! one token that it has; rejected ones are computed again. Drafters with a KV cache of their own (EAGLE, MTP) reserve
//! slots past what the target computes and drop the last block of a prefix hit, whose end they have to see again.
//!
//! Which drafts a target accepts is nothing a scheduler knows: here it is a mean, met exactly over the steps of each
//! request. Not modelled: drafters that are models of their own (they take places in the input), several MTP modules
//! (longer lookahead), Mamba groups (a state a draft), numbers of drafts that change with the batch.

use kvwise_cache::manager::GroupKind;
use kvwise_core::{Error, Result};

use super::{Request, Scheduler, SchedulerConfig};

/// Drafts a step that are believed.
const MAX_DRAFT_TOKENS: u32 = 64;

/// How the engine speculates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speculation {
    /// Drafts verified in each step of a decoding request: `num_speculative_tokens`.
    pub draft_tokens: u32,
    /// Whether the drafter reads the target's hidden states and keeps a KV cache (EAGLE, EAGLE-3, MTP): it then reserves
    /// a slot a draft and drops the last block of a prefix hit. Otherwise (n-gram) it does neither.
    pub eagle: bool,
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
        let mamba = |kind: GroupKind| matches!(kind, GroupKind::MambaAlign { .. });
        if config.groups.iter().any(|group| mamba(group.kind)) {
            return Err(Error::unsupported(
                "speculation together with Mamba groups is not replayed: their managers keep a state a draft",
            ));
        }
        Ok(())
    }

    /// Slots reserved past the tokens of a step.
    pub(super) fn lookahead_tokens(&self) -> u32 {
        if self.eagle { self.draft_tokens } else { 0 }
    }

    /// Drafts accepted in a request's `nth` step of verification, counted from 0.
    fn accepted(&self, nth: u32) -> u32 {
        let until = |n: u32| u64::from(n) * u64::from(self.accepted_per_mille) / 1000;
        u32::try_from(until(nth + 1) - until(nth)).unwrap_or(self.draft_tokens)
    }

    /// The step's tokens of a request cover all that it knows: its drafts are verified and a token is sampled.
    pub(super) fn verify(&self, request: &mut Request) {
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
        request.padded = false;
    }
}

impl Scheduler {
    /// Drafts that request `r` wants to verify beside its known tokens.
    pub(super) fn drafts(&self, r: u32) -> u32 {
        match &self.config.speculation {
            Some(speculation) if self.requests[r as usize].drafting => speculation.draft_tokens,
            _ => 0,
        }
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
        let joins = tokens == 1 && !self.batch_prefills && (self.batch_runs || hit_tokens > 0);
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

    #[test]
    fn the_mean_of_accepted_drafts_is_met_exactly() {
        let speculation = Speculation {
            draft_tokens: 3,
            eagle: true,
            accepted_per_mille: 1250,
        };
        let accepted: Vec<u32> = (0..8).map(|n| speculation.accepted(n)).collect();
        assert_eq!(accepted, [1, 1, 1, 2, 1, 1, 1, 2]);
        let all = Speculation {
            accepted_per_mille: 3000,
            ..speculation
        };
        assert!((0..5).all(|n| all.accepted(n) == 3));
    }

    #[test]
    fn what_is_not_modelled_is_refused() {
        use kvwise_cache::manager::GroupSpec;
        let speculation = Speculation {
            draft_tokens: 3,
            eagle: true,
            accepted_per_mille: 3001,
        };
        let config = SchedulerConfig::new(100, 16);
        assert!(speculation.check(&config).is_err());
        let fine = Speculation {
            accepted_per_mille: 3000,
            ..speculation
        };
        fine.check(&config).unwrap();
        for draft_tokens in [0, 65] {
            let wrong = Speculation {
                draft_tokens,
                accepted_per_mille: 0,
                ..fine
            };
            assert!(wrong.check(&config).is_err());
        }
        let mamba = SchedulerConfig {
            groups: vec![GroupSpec::full(16), GroupSpec::mamba_align(16)],
            ..config
        };
        assert!(fine.check(&mamba).unwrap_err().to_string().contains("Mamba"));
    }
}
