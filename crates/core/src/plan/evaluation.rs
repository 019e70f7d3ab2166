//! What an engine's rules say about one request, before it becomes an answer.

use super::ledger::{Step, Term};
use super::pool::Pool;
use super::report::KvCache;

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
    /// What the KV cache may take: best value, and with every other term at the upper end.
    pub available_bytes: u64,
    pub available_low: u64,
    /// Whether the pool's size is given and not what is left.
    pub pool_given: bool,
    /// Bytes by which weights and overhead exceed the budget: best value and upper end.
    pub missing_bytes: u64,
    pub missing_bytes_worst: u64,
    /// Longest request the engine is started for.
    pub max_model_len: Option<u64>,
    /// GPUs that the engine's ranks need.
    pub ranks: u64,
    pub kv_cache: Option<KvCache>,
    pub pool: Option<Pool<'a>>,
    /// Why the engine would not start.
    pub refused: Option<String>,
    pub warnings: Vec<String>,
    pub steps: Vec<Step>,
}

impl Evaluation<'_> {
    /// Bytes that are missing before any KV cache.
    pub fn deficit(&self) -> i128 {
        i128::from(self.missing_bytes)
    }

    /// The same with every estimate at its upper end.
    pub fn worst_deficit(&self) -> i128 {
        i128::from(self.missing_bytes_worst)
    }

    /// Sum of the overhead terms: best value and upper end.
    pub fn overhead_bytes(&self) -> (u64, u64) {
        self.overhead.iter().fold((0, 0), |(best, high), term| {
            (
                best.saturating_add(term.bytes),
                high.saturating_add(term.high_bytes),
            )
        })
    }
}
