//! What an engine takes besides weights and KV cache: activations, CUDA graphs, memory outside of PyTorch.
//!
//! Physics first: at the peak of the profiling step either one layer's feed-forward is alive, or the sampler's copies of
//! the logits, or the vision tower's activations, whichever is largest; which copies the sampler makes depends on the
//! version ([`Rules::sampler_decibytes_per_logit`](crate::engine::vllm::Rules)). The constants ([`Constants::FITTED`]) were
//! then fitted to budgets that published start-up logs print (`data/measurements/vllm_boots.csv`); the test module
//! `accuracy` fits them again without each deployment in turn and writes the figures of the accuracy page. This is the only
//! place that knows these constants.

#[cfg(test)]
mod accuracy;
mod spread;

pub use spread::Spread;

use super::ledger::{Basis, Term};
use crate::units::{GIB, MIB, human_bytes};

/// The fitted constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constants {
    /// CUDA context and kernels of one rank.
    pub context_bytes: u64,
    /// More than one tensor-parallel rank: communication buffers.
    pub communication_bytes: u64,
    /// More for each doubling of the ranks.
    pub communication_bytes_per_doubling: u64,
    /// A pipeline stage.
    pub pipeline_bytes: u64,
    /// GPUs that share the host's memory: what the driver and the page cache take while the engine starts.
    pub unified_bytes: u64,
    /// Captured CUDA graphs.
    pub graph_bytes: u64,
    /// Activations of a vision tower that takes images of any size.
    pub vision_bytes: u64,
    /// Share of the feed-forward's tensors that are alive at once, in hundredths.
    pub layer_percent: u64,
}

impl Constants {
    /// Fitted to the 47 budgets of `data/measurements/vllm_boots.csv`.
    pub const FITTED: Self = Self {
        context_bytes: 300 * MIB,
        communication_bytes: 200 * MIB,
        communication_bytes_per_doubling: 100 * MIB,
        pipeline_bytes: GIB,
        unified_bytes: 3 * GIB,
        graph_bytes: 512 * MIB,
        vision_bytes: 2 * GIB,
        layer_percent: 85,
    };
}

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
    /// Bytes of one activation element.
    pub element_bytes: u64,
    /// Tensor-parallel ranks.
    pub tensor_parallel_size: u64,
    /// Pipeline stages.
    pub pipeline_parallel_size: u64,
    /// Whether CUDA graphs are off.
    pub enforce_eager: bool,
    /// Whether the GPU shares the host's memory.
    pub unified_memory: bool,
    /// Whether the model has a vision tower for images of any size that the engine profiles.
    pub vision_tower: bool,
    /// Tenths of a byte that the sampler holds for each logit.
    pub sampler_decibytes_per_logit: u64,
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
    /// Whether the GPU shares the host's memory.
    pub unified_memory: bool,
}

impl Overhead {
    /// What is taken off the KV budget, with its distribution.
    pub fn budgeted(&self) -> Spread {
        Spread::around(
            self.terms()
                .iter()
                .filter(|term| term.name != "cuda_graphs" || self.graphs_in_budget)
                .fold(0, |sum, term| sum.saturating_add(term.bytes)),
            self.unified_memory,
        )
    }

    /// All terms.
    pub fn terms(&self) -> [&Term; 3] {
        [&self.activation, &self.graphs, &self.non_torch]
    }
}

/// A fitted term; its interval is what it would be as the whole sum.
fn fitted(name: &'static str, bytes: u64, formula: String) -> Term {
    let spread = Spread::around(bytes, false);
    Term::estimated(name, Basis::Fitted, bytes, spread.interval(), formula)
}

/// Estimates the overhead of one rank of vLLM.
pub fn overhead(i: &Inputs) -> Overhead {
    overhead_with(&Constants::FITTED, i)
}

/// The terms as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    layer: u64,
    rows: u64,
    logits: u64,
    vision: u64,
    graphs: u64,
    communication: u64,
    pipeline: u64,
    unified: u64,
    context: u64,
}

impl Numbers {
    fn of(c: &Constants, i: &Inputs) -> Self {
        // A layer's widest fused output, what its activation leaves of it, and six copies of the residual stream.
        let layer = i
            .max_num_batched_tokens
            .saturating_mul(
                i.widest_projection
                    .saturating_add(i.widest_projection / 2)
                    .saturating_add(i.hidden_size.saturating_mul(6)),
            )
            .saturating_mul(i.element_bytes);
        let rows = i.max_num_seqs.min(i.max_num_batched_tokens);
        let only = |condition: bool, bytes: u64| if condition { bytes } else { 0 };
        let doublings = u64::from(i.tensor_parallel_size.max(1).ilog2());
        Self {
            layer: u64::try_from(u128::from(layer) * u128::from(c.layer_percent) / 100).unwrap_or(u64::MAX),
            rows,
            logits: rows
                .saturating_mul(i.vocab_size)
                .saturating_mul(i.sampler_decibytes_per_logit)
                / 10,
            vision: only(i.vision_tower, c.vision_bytes),
            graphs: only(!i.enforce_eager, c.graph_bytes),
            communication: only(
                i.tensor_parallel_size > 1,
                c.communication_bytes
                    .saturating_add(c.communication_bytes_per_doubling.saturating_mul(doublings)),
            ),
            pipeline: only(i.pipeline_parallel_size > 1, c.pipeline_bytes),
            unified: only(i.unified_memory, c.unified_bytes),
            context: c.context_bytes,
        }
    }

    fn activation(&self) -> u64 {
        self.layer.max(self.logits).max(self.vision)
    }

    fn non_torch(&self) -> u64 {
        [self.communication, self.pipeline, self.unified]
            .into_iter()
            .fold(self.context, u64::saturating_add)
    }
}

/// The same with other constants (a fit, a site's calibration).
pub fn overhead_with(c: &Constants, i: &Inputs) -> Overhead {
    let n = Numbers::of(c, i);
    let mut candidates = vec![
        format!(
            "{} tokens x (1.5 x {} + 6 x {}) x {} B x 0.{:02}",
            i.max_num_batched_tokens, i.widest_projection, i.hidden_size, i.element_bytes, c.layer_percent
        ),
        format!(
            "{} sequences x {} logits x {}.{} B",
            n.rows,
            i.vocab_size,
            i.sampler_decibytes_per_logit / 10,
            i.sampler_decibytes_per_logit % 10
        ),
    ];
    if n.vision > 0 {
        candidates.push(format!("{} of the vision tower", human_bytes(n.vision)));
    }
    let graphs = if i.enforce_eager {
        Term::exact("cuda_graphs", 0, "--enforce-eager: none are captured")
    } else {
        let left = if i.graphs_in_budget {
            ""
        } else {
            ", which this version leaves to the memory it does not use"
        };
        fitted(
            "cuda_graphs",
            n.graphs,
            format!("{} for the captured graphs{left}", human_bytes(n.graphs)),
        )
    };
    let mut parts = vec![format!("{} CUDA context", human_bytes(n.context))];
    for (bytes, what) in [
        (
            n.communication,
            format!("communication of {} ranks", i.tensor_parallel_size),
        ),
        (n.pipeline, "pipeline".to_owned()),
        (n.unified, "taken from unified memory".to_owned()),
    ] {
        if bytes > 0 {
            parts.push(format!("{} {what}", human_bytes(bytes)));
        }
    }
    Overhead {
        activation: fitted(
            "activation",
            n.activation(),
            format!("max({})", candidates.join(", ")),
        ),
        graphs,
        non_torch: fitted("non_torch", n.non_torch(), parts.join(" + ")),
        graphs_in_budget: i.graphs_in_budget,
        unified_memory: i.unified_memory,
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
        element_bytes: 2,
        tensor_parallel_size: 1,
        pipeline_parallel_size: 1,
        enforce_eager: false,
        unified_memory: false,
        vision_tower: false,
        sampler_decibytes_per_logit: 386,
        graphs_in_budget: true,
    };

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
        assert!(huge.budgeted().bytes() > 0);
        assert!(huge.budgeted().interval().1 >= huge.budgeted().bytes());
    }

    #[test]
    fn graphs_count_against_the_budget_only_in_versions_that_subtract_them() {
        let without = overhead(&Inputs {
            graphs_in_budget: false,
            ..LLAMA_8B
        });
        assert_eq!(
            without.budgeted().bytes() + without.graphs.bytes,
            overhead(&LLAMA_8B).budgeted().bytes()
        );
    }

    #[test]
    fn the_largest_of_layer_logits_and_tower_is_the_peak() {
        let sampler = overhead(&LLAMA_8B).activation.bytes;
        assert_eq!(sampler, 1024 * 128_256 * 386 / 10);
        let few = Inputs {
            max_num_seqs: 8,
            ..LLAMA_8B
        };
        let layer = overhead(&few).activation.bytes;
        assert_eq!(layer, 8192 * (28_672 * 3 / 2 + 4096 * 6) * 2 * 85 / 100);
        let seeing = Inputs {
            vision_tower: true,
            ..few
        };
        assert_eq!(overhead(&seeing).activation.bytes, 2 * GIB);
    }
}
