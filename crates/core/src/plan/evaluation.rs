//! What an engine's rules say about one request, before it becomes an answer.

use std::sync::Arc;

use super::budget::Spread;
use super::ledger::{Derivation, Term};
use super::pool::Pool;
use super::report::KvCache;
use crate::engine::vllm::Layout;

/// The result of an engine's rules. Bytes are per GPU, of the tightest rank, unless named total.
pub(super) struct Evaluation<'a> {
    /// Parameters, and those that one token uses.
    pub params: u64,
    pub params_active: u64,
    pub weights_total: u64,
    /// One tensor-parallel rank of each stage.
    pub weights_per_rank: Vec<u64>,
    pub weights_source: &'static str,
    /// Weights of the fullest rank.
    pub weights: Term,
    /// Everything else that is not KV cache.
    pub overhead: Vec<Term>,
    /// Memory as the engine sees it, and what it allows itself.
    pub gpu_bytes: u64,
    pub budget_bytes: u64,
    /// What the KV cache may take, at the best value of every other term.
    pub available_bytes: u64,
    /// What weights (and a pool of given size) leave of the budget; negative if they exceed it.
    pub room_bytes: i128,
    /// What else takes of that room, as a distribution.
    pub spread: Spread,
    /// Whether the pool's size is given and not what is left.
    pub pool_given: bool,
    /// Whether the host computes a part, so that the GPU's rates say nothing of the speed.
    pub host_computes: bool,
    /// KV bytes without which the engine would not start.
    pub start_bytes: u64,
    /// Bytes by which weights and overhead exceed the budget, at the best value.
    pub missing_bytes: u64,
    /// Longest request the engine is started for.
    pub max_model_len: Option<u64>,
    /// GPUs that the engine's ranks need.
    pub ranks: u64,
    pub kv_cache: Option<KvCache>,
    pub pool: Option<Pool<'a>>,
    /// vLLM's layout, for what is built upon it.
    pub layout: Option<Arc<Layout>>,
    /// Why the engine would not start.
    pub refused: Option<String>,
    /// Whether it would with more memory.
    pub refused_for_memory: bool,
    /// What to change so that it would, where that is known without another plan.
    pub fix: Option<String>,
    pub warnings: Vec<String>,
    pub steps: Derivation,
}

impl Evaluation<'_> {
    /// Bytes that are missing before any KV cache.
    pub fn deficit(&self) -> i128 {
        i128::from(self.missing_bytes)
    }

    /// Whether the model keeps nothing between tokens (encoders).
    pub fn keeps_nothing(&self) -> bool {
        self.kv_cache.as_ref().is_some_and(|kv| kv.groups.is_empty())
    }

    /// What is left for (more) KV cache beyond a need, at a value of the overhead; negative if missing.
    pub fn left(&self, overhead_bytes: u64, kv_bytes: u64) -> i128 {
        if self.pool_given {
            // The pool is there whatever the overhead is; what is missing is missing beside it.
            let pool = i128::from(self.available_bytes) - i128::from(kv_bytes);
            return pool - (i128::from(overhead_bytes) - self.room_bytes).max(0);
        }
        self.room_bytes - i128::from(overhead_bytes) - i128::from(kv_bytes)
    }

    /// KV bytes with the overhead at the low and at the high end of its interval.
    pub fn available_interval(&self) -> (u64, u64) {
        let (low, high) = self.spread.interval();
        let at = |overhead: u64| u64::try_from(self.left(overhead, 0).max(0)).unwrap_or(u64::MAX);
        (at(high), at(low))
    }

    /// Probability that this many KV bytes are there.
    pub fn probability_of(&self, kv_bytes: u64) -> f64 {
        if self.pool_given {
            let beside = self.spread.probability_at_most(self.room_bytes);
            return if kv_bytes <= self.available_bytes {
                beside
            } else {
                0.0
            };
        }
        self.spread
            .probability_at_most(self.room_bytes - i128::from(kv_bytes))
    }

    /// Sum of the overhead terms at their best values.
    pub fn overhead_bytes(&self) -> u64 {
        self.overhead
            .iter()
            .fold(0, |best, term| best.saturating_add(term.bytes))
    }
}
