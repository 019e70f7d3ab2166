//! Kernel times that many steps share.
//!
//! What a step's matrix products, experts, sums and small kernels cost depends on how many tokens it computes, not on their
//! contexts: steps of a simulation have few different numbers of tokens, and only attention is timed anew for each.

use super::step::{Batch, StepModel, StepTime};

/// Steps that are remembered at once.
const SLOTS: usize = 512;

/// Tokens, sampled positions, tokens of other ranks (their bits).
type Key = (u64, u64, u64);

/// Times of the steps seen last, for one [`StepModel`]: a number of tokens shares its place with those 512 apart.
#[derive(Debug, Clone, Default)]
pub struct Memo {
    slots: Vec<Option<(Key, StepTime)>>,
}

impl StepModel {
    /// As [`StepModel::time`], to the bit, with what `memo` remembers of this model.
    pub fn time_with(&self, batch: &Batch<'_>, memo: &mut Memo) -> StepTime {
        if !self.is_one_pass() || batch.tokens() <= 0.0 {
            return self.time(batch);
        }
        let prompts: u64 = batch.prefills.iter().map(|p| p.new_tokens).sum();
        let tokens = batch.decode_sequences.saturating_add(prompts);
        let sampled = batch.decode_sequences.saturating_add(batch.prefills.len() as u64);
        let key = (tokens, sampled, batch.peer_tokens.to_bits());
        if memo.slots.is_empty() {
            memo.slots.resize(SLOTS, None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of 512")]
        let slot = &mut memo.slots[(tokens % SLOTS as u64) as usize];
        let mut time = match slot {
            Some((known, time)) if *known == key => *time,
            _ => {
                let time = self.without_attention(batch, 1.0);
                *slot = Some((key, time));
                time
            }
        };
        self.add_attention(batch, &mut time);
        self.wait_for_launches(batch, &mut time);
        self.slowed(time)
    }
}

#[cfg(test)]
mod tests {
    use kvwise_core::arch::{Config, family};
    use kvwise_core::catalogue;
    use proptest::prelude::*;

    use super::*;
    use crate::cost::{Calibration, Engine, Graphs, Prefill, Speculation, StepOptions};

    fn models() -> Vec<StepModel> {
        let mut models = Vec::new();
        for (name, tp) in [("meta-llama/Meta-Llama-3.1-8B", 1), ("openai/gpt-oss-120b", 2)] {
            let text = catalogue::find(name).unwrap().config_text().unwrap();
            let config = Config::parse(text.as_bytes()).unwrap();
            let family::Reading::Model(model) = family::read(name, &config).unwrap() else {
                panic!("readable")
            };
            let calibration = Calibration::embedded("h100_sxm").unwrap();
            let plain = StepOptions::new(Engine::Vllm, tp);
            for options in [
                plain,
                StepOptions {
                    graphs: Graphs::Decode,
                    ..plain
                },
                StepOptions { pp: 2, ..plain },
                StepOptions {
                    speculation: Some(Speculation::chain(2, 0.7, 0.1)),
                    ..plain
                },
            ] {
                models.push(StepModel::new(&model, &calibration, options).unwrap());
            }
            let mut slow = calibration;
            slow.slowdown = Some(2.4);
            models.push(StepModel::new(&model, &slow, plain).unwrap());
        }
        models
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn remembered_steps_take_the_same_time_to_the_bit(
            steps in prop::collection::vec((0_u64..4, 0_u64..90_000, prop::collection::vec((1_u64..600, 0_u64..3), 0..3), 0_u64..3), 1..40),
        ) {
            for model in models() {
                let mut memo = Memo::default();
                for (decoding, context, prefills, peers) in &steps {
                    let prefills: Vec<Prefill> = prefills
                        .iter()
                        .map(|&(new, past)| Prefill { new_tokens: new, past_tokens: 700 * past })
                        .collect();
                    // Numbers of tokens that share a place among them.
                    let mut batch = Batch::new(decoding * 256, (decoding * context) as f64, &prefills);
                    batch.peer_tokens = *peers as f64 * 10.0;
                    let bits = |t: StepTime| {
                        [t.linear_s, t.experts_s, t.attention_s, t.state_s, t.communication_s, t.elementwise_s].map(f64::to_bits)
                    };
                    prop_assert_eq!(bits(model.time_with(&batch, &mut memo)), bits(model.time(&batch)));
                }
            }
        }
    }
}
