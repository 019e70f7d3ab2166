//! What an engine takes besides weights and KV cache: activations, CUDA graphs, memory outside of PyTorch.
//!
//! A configuration does not tell these, so they are **assumed** here, by reasoning about which tensors are alive at the
//! peak, with intervals that hold most published start-up logs. This is the only file that knows them.

use super::ledger::{Basis, Term};
use crate::units::{GIB, MIB, human_bytes};

/// What the overhead depends on. Everything is per rank, or of the whole model where the name says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inputs {
    /// Tokens of one profiling step.
    pub max_num_batched_tokens: u64,
    /// Sequences of one step; the sampler's logits have this many rows.
    pub max_num_seqs: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Widest output of a feed-forward projection on one rank (gate and up together).
    pub widest_projection: u64,
    /// Unpadded vocabulary.
    pub vocab_size: u64,
    /// Decoder layers on this rank.
    pub layers: u64,
    /// Bytes of one activation element.
    pub element_bytes: u64,
    /// Tensor-parallel ranks.
    pub tensor_parallel_size: u64,
    /// Pipeline stages.
    pub pipeline_parallel_size: u64,
    /// Whether CUDA graphs are off.
    pub enforce_eager: bool,
    /// Whether the engine keeps the graphs' memory out of the KV budget (vLLM since 0.21).
    pub graphs_in_budget: bool,
}

/// The terms besides weights and KV cache, in the order of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overhead {
    /// Peak of the profiling step above what stays allocated.
    pub activation: Term,
    /// Captured CUDA graphs; zero under `--enforce-eager`.
    pub graphs: Term,
    /// CUDA context, communication buffers, kernel workspaces.
    pub non_torch: Term,
    /// Whether the graphs are taken off the KV budget before it is handed out.
    pub graphs_in_budget: bool,
}

impl Overhead {
    /// Bytes taken off the KV budget: best value, low, high.
    pub fn budgeted(&self) -> (u64, u64, u64) {
        let mut sum = (0_u64, 0_u64, 0_u64);
        for term in self.terms() {
            if term.name == "cuda_graphs" && !self.graphs_in_budget {
                continue;
            }
            sum.0 = sum.0.saturating_add(term.bytes);
            sum.1 = sum.1.saturating_add(term.low_bytes);
            sum.2 = sum.2.saturating_add(term.high_bytes);
        }
        sum
    }

    /// All terms.
    pub fn terms(&self) -> [&Term; 3] {
        [&self.activation, &self.graphs, &self.non_torch]
    }
}

/// Estimates the overhead of one rank of a vLLM-like engine.
pub fn overhead(i: &Inputs) -> Overhead {
    // At the peak one layer's feed-forward input, output and a few copies of the residual stream are alive; after the
    // last layer the logits in the model's type, in float32, and one float32 copy for the sampler.
    let tokens = i.max_num_batched_tokens;
    let layer = tokens
        .saturating_mul(
            i.widest_projection
                .saturating_add(i.widest_projection / 2)
                .saturating_add(6 * i.hidden_size),
        )
        .saturating_mul(i.element_bytes);
    let rows = i.max_num_seqs.min(tokens);
    let logits = rows
        .saturating_mul(i.vocab_size)
        .saturating_mul(i.element_bytes + 8);
    let fixed = 400 * MIB;
    let activation = layer.max(logits).saturating_add(fixed);
    let activation = Term::estimated(
        "activation",
        Basis::Assumed,
        activation,
        (activation / 3, activation.saturating_mul(3).saturating_add(GIB)),
        format!(
            "max({tokens} tokens x (1.5 x {} + 6 x {}) x {} B, {rows} rows x {} vocabulary x {} B) + {}",
            i.widest_projection,
            i.hidden_size,
            i.element_bytes,
            i.vocab_size,
            i.element_bytes + 8,
            human_bytes(fixed)
        ),
    );

    let graphs = if i.enforce_eager {
        Term::exact("cuda_graphs", 0, "--enforce-eager: none are captured")
    } else {
        let bytes = (256 * MIB).saturating_add(i.layers.saturating_mul(6 * MIB));
        Term::estimated(
            "cuda_graphs",
            Basis::Assumed,
            bytes,
            (32 * MIB, bytes.saturating_mul(5)),
            format!("256 MiB + {} layers x 6 MiB", i.layers),
        )
    };

    let ranks = i.tensor_parallel_size.saturating_mul(i.pipeline_parallel_size);
    let communication = if ranks > 1 { 400 * MIB } else { 0 };
    let non_torch = 250 * MIB + communication;
    let non_torch = Term::estimated(
        "non_torch",
        Basis::Assumed,
        non_torch,
        (20 * MIB, non_torch * 3 + communication * 2),
        if ranks > 1 {
            "250 MiB for CUDA context and kernels + 400 MiB for communication buffers".to_owned()
        } else {
            "250 MiB for CUDA context and kernels".to_owned()
        },
    );
    Overhead {
        activation,
        graphs,
        non_torch,
        graphs_in_budget: i.graphs_in_budget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_8B: Inputs = Inputs {
        max_num_batched_tokens: 8192,
        max_num_seqs: 1024,
        hidden_size: 4096,
        widest_projection: 28_672,
        vocab_size: 128_256,
        layers: 32,
        element_bytes: 2,
        tensor_parallel_size: 1,
        pipeline_parallel_size: 1,
        enforce_eager: false,
        graphs_in_budget: true,
    };

    #[test]
    fn published_start_up_logs_lie_within_the_intervals() {
        // Llama-3.1-8B-Instruct on an H100: 4.76 GiB of activations in vLLM 0.11, 1.89 in 0.19; on an A100 (2048 tokens,
        // 256 sequences) 1.44 in 0.31, with 0.26 outside of PyTorch and 0.23 in graphs.
        let gib = |x: f64| (x * 1024.0) as u64 * MIB;
        let holds = |term: &Term, x: f64| term.low_bytes <= gib(x) && gib(x) <= term.high_bytes;
        let h100 = overhead(&LLAMA_8B);
        assert!(
            holds(&h100.activation, 4.76) && holds(&h100.activation, 1.89),
            "{:?}",
            h100.activation
        );
        let a100 = overhead(&Inputs {
            max_num_batched_tokens: 2048,
            max_num_seqs: 256,
            ..LLAMA_8B
        });
        assert!(holds(&a100.activation, 1.44), "{:?}", a100.activation);
        assert!(holds(&a100.graphs, 0.23) && holds(&a100.non_torch, 0.26));
    }

    #[test]
    fn eager_mode_has_no_graphs_and_absurd_sizes_do_not_overflow() {
        let eager = overhead(&Inputs {
            enforce_eager: true,
            ..LLAMA_8B
        });
        assert_eq!(eager.graphs.bytes, 0);
        let huge = overhead(&Inputs {
            max_num_batched_tokens: u64::MAX,
            hidden_size: u64::MAX / 8,
            ..LLAMA_8B
        });
        assert!(huge.budgeted().0 > 0);
    }

    #[test]
    fn graphs_count_against_the_budget_only_in_versions_that_subtract_them() {
        let without = overhead(&Inputs {
            graphs_in_budget: false,
            ..LLAMA_8B
        });
        assert_eq!(
            without.budgeted().0 + without.graphs.bytes,
            overhead(&LLAMA_8B).budgeted().0
        );
    }
}
