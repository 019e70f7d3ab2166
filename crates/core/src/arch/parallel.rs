//! How a model is spread over GPUs.

use crate::{Error, Result};

/// Numbers of ranks, by the engine's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Parallel {
    /// Tensor-parallel size.
    pub tp: u64,
    /// Pipeline stages.
    pub pp: u64,
    /// Data-parallel replicas; attention is whole in each, experts are spread over all of them.
    pub dp: u64,
    /// Decode context-parallel size: it divides the tokens of the cache, not the weights.
    pub dcp: u64,
    /// Whether whole experts are given to ranks, instead of a slice of every expert.
    pub expert_parallel: bool,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            tp: 1,
            pp: 1,
            dp: 1,
            dcp: 1,
            expert_parallel: false,
        }
    }
}

impl Parallel {
    /// Tensor parallelism alone.
    pub fn tensor(tp: u64) -> Self {
        Self {
            tp,
            ..Self::default()
        }
    }

    /// Ranks that share one layer's experts: all tensor-parallel ranks of all data-parallel replicas
    /// (vLLM 0.32.0, `FusedMoEParallelConfig.make`).
    ///
    /// # Errors
    /// If a size is zero or the product leaves 64 bits.
    pub fn expert_ranks(&self) -> Result<u64> {
        match self.tp.checked_mul(self.dp) {
            Some(0) => Err(Error::input("a parallel size is 0, expected at least 1")),
            Some(n) => Ok(n),
            None => Err(Error::overflow("tensor-parallel size times data-parallel size")),
        }
    }

    /// Whether tokens are spread over the tensor-parallel ranks around the experts, which makes shared experts
    /// whole on every rank (vLLM 0.32.0, `ParallelConfig.use_sequence_parallel_moe`).
    pub fn sequence_parallel_experts(&self) -> bool {
        self.expert_parallel && self.tp > 1 && self.dp > 1
    }

    /// The layers `[first, end)` of pipeline stage `stage`: an even share each, and a remainder goes to the
    /// last stages but the very last (vLLM 0.32.0, `vllm/distributed/utils.py`, `get_pp_indices`).
    ///
    /// # Errors
    /// If the stage does not exist or there are more stages than layers.
    pub fn stage_layers(&self, stage: u64, layers: u64) -> Result<std::ops::Range<u64>> {
        if stage >= self.pp {
            return Err(Error::input(format!(
                "there is no pipeline stage {stage} among {}",
                self.pp
            )));
        }
        let even = layers / self.pp;
        let rest = layers % self.pp;
        if even == 0 && self.pp > 1 {
            return Err(Error::unsupported(format!(
                "{layers} layers cannot be divided over {} pipeline stages",
                self.pp
            ))
            .hint("use at most one pipeline stage a layer"));
        }
        // Stages [-1 - rest, -1) hold one layer more.
        let first_longer = self.pp - 1 - rest.min(self.pp - 1);
        let extra_before = |s: u64| s.saturating_sub(first_longer).min(rest);
        let start = stage * even + extra_before(stage);
        let end = (stage + 1) * even + extra_before(stage + 1);
        Ok(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(layers: u64, pp: u64) -> Vec<u64> {
        let p = Parallel {
            pp,
            ..Parallel::default()
        };
        let mut next = 0;
        let sizes = (0..pp)
            .map(|s| {
                let r = p.stage_layers(s, layers).unwrap();
                assert_eq!(r.start, next, "stages are contiguous");
                next = r.end;
                r.end - r.start
            })
            .collect();
        assert_eq!(next, layers, "every layer has a stage");
        sizes
    }

    #[test]
    fn a_remainder_goes_to_the_stages_before_the_last() {
        // vLLM 0.32.0's own get_pp_indices gives these.
        assert_eq!(sizes(61, 2), [31, 30]);
        assert_eq!(sizes(61, 4), [15, 15, 16, 15]);
        assert_eq!(sizes(63, 4), [16, 16, 16, 15]);
        assert_eq!(sizes(80, 8), [10; 8]);
        assert_eq!(sizes(62, 8), [7, 8, 8, 8, 8, 8, 8, 7]);
    }

    #[test]
    fn more_stages_than_layers_are_refused() {
        let p = Parallel {
            pp: 8,
            ..Parallel::default()
        };
        assert!(p.stage_layers(0, 4).is_err());
        assert!(p.stage_layers(8, 80).is_err());
    }
}
