//! What an engine takes besides weights and KV cache: activations, CUDA graphs, memory outside of PyTorch.
//!
//! Physics first: at the peak of the profiling step either one layer's feed-forward is alive, or the sampler's copies of
//! the logits, whichever is larger; which copies the sampler makes depends on the version
//! ([`Rules::sampler_decibytes_per_logit`](crate::engine::vllm::Rules)). The few constants below were then fitted to
//! 47 budgets that published start-up logs of vLLM 0.6 to 0.31 print (33 deployments, TP 1 to 8, 11 kinds of GPU).
//! Error of the sum, as a share of the GPU's memory, fitted without the deployment that it is tested on: 0.9 % in the
//! median, 6.4 % at the 90th percentile. In 42 of the 47 the logged sum lies between 0.53 and 1.6 times the fitted one,
//! which is the interval given here. This is the only file that knows these constants.

use super::ledger::{Basis, Term};
use crate::units::{GIB, MIB, human_bytes};

/// CUDA context and kernels of one rank.
const CONTEXT_BYTES: u64 = 100 * MIB;
/// More than one tensor-parallel rank: communication buffers, and more for each doubling.
const COMMUNICATION_BYTES: u64 = 200 * MIB;
const COMMUNICATION_BYTES_PER_DOUBLING: u64 = 100 * MIB;
/// A pipeline stage (one deployment, Qwen3-32B: 3.03 GiB against 1.66 with tensor parallelism).
const PIPELINE_BYTES: u64 = GIB;
/// GPUs that share the host's memory: what the driver and the page cache take while the engine starts.
const UNIFIED_BYTES: u64 = 2 * GIB;
/// Captured CUDA graphs.
const GRAPH_BYTES: u64 = 512 * MIB;
/// Interval of every term, in hundredths of its value.
const INTERVAL_PERCENT: (u64, u64) = (55, 160);

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
    /// Whether the GPU shares the host's memory.
    pub unified_memory: bool,
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

/// A fitted term with its interval.
fn fitted(name: &'static str, bytes: u64, formula: String) -> Term {
    let share =
        |percent: u64| u64::try_from(u128::from(bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    Term::estimated(
        name,
        Basis::Fitted,
        bytes,
        (share(INTERVAL_PERCENT.0), share(INTERVAL_PERCENT.1)),
        formula,
    )
}

/// Estimates the overhead of one rank of vLLM.
pub fn overhead(i: &Inputs) -> Overhead {
    let tokens = i.max_num_batched_tokens;
    // A layer's widest fused output, what its activation leaves of it, and six copies of the residual stream.
    let layer = tokens
        .saturating_mul(
            i.widest_projection
                .saturating_add(i.widest_projection / 2)
                .saturating_add(i.hidden_size.saturating_mul(6)),
        )
        .saturating_mul(i.element_bytes);
    let rows = i.max_num_seqs.min(tokens);
    let logits = rows
        .saturating_mul(i.vocab_size)
        .saturating_mul(i.sampler_decibytes_per_logit)
        / 10;
    let activation = fitted(
        "activation",
        layer.max(logits),
        format!(
            "max({tokens} tokens x (1.5 x {} + 6 x {}) x {} B, {rows} sequences x {} logits x {}.{} B)",
            i.widest_projection,
            i.hidden_size,
            i.element_bytes,
            i.vocab_size,
            i.sampler_decibytes_per_logit / 10,
            i.sampler_decibytes_per_logit % 10
        ),
    );

    let graphs = if i.enforce_eager {
        Term::exact("cuda_graphs", 0, "--enforce-eager: none are captured")
    } else {
        fitted(
            "cuda_graphs",
            GRAPH_BYTES,
            format!("{} for the captured graphs", human_bytes(GRAPH_BYTES)),
        )
    };

    let mut non_torch = CONTEXT_BYTES;
    let mut parts = vec![format!("{} CUDA context", human_bytes(CONTEXT_BYTES))];
    if i.tensor_parallel_size > 1 {
        let doublings = u64::from(i.tensor_parallel_size.ilog2());
        let bytes = COMMUNICATION_BYTES + COMMUNICATION_BYTES_PER_DOUBLING * doublings;
        non_torch += bytes;
        parts.push(format!(
            "{} communication of {} ranks",
            human_bytes(bytes),
            i.tensor_parallel_size
        ));
    }
    if i.pipeline_parallel_size > 1 {
        non_torch += PIPELINE_BYTES;
        parts.push(format!("{} pipeline", human_bytes(PIPELINE_BYTES)));
    }
    if i.unified_memory {
        non_torch += UNIFIED_BYTES;
        parts.push(format!(
            "{} taken from unified memory",
            human_bytes(UNIFIED_BYTES)
        ));
    }
    let non_torch = fitted("non_torch", non_torch, parts.join(" + "));
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
        unified_memory: false,
        sampler_decibytes_per_logit: 386,
        graphs_in_budget: true,
    };

    /// Model, GPU, version; batched tokens, sequences, hidden width, widest projection, vocabulary, ranks, unified,
    /// tenths of a byte a logit, graphs in the budget; GiB that the log's budget leaves besides weights and KV cache.
    type Logged = (&'static str, [u64; 6], bool, u64, bool, f64);

    /// Budgets as start-up logs print them: github.com/llm-d-incubation/llm-d-planner
    /// docs/empirical-vllm-memory-results.md, and public issues and repositories.
    const LOGGED: [Logged; 9] = [
        (
            "gpt-oss-20b, H100, 0.11.0",
            [8192, 1024, 2880, 23_040, 201_088, 1],
            false,
            386,
            false,
            7.51,
        ),
        (
            "Llama-3.3-70B FP8, 2 x H100, 0.11.0",
            [8192, 1024, 8192, 28_672, 128_256, 2],
            false,
            386,
            false,
            5.38,
        ),
        (
            "Qwen3-0.6B, H100, 0.11.0",
            [8192, 1024, 1024, 6144, 151_936, 1],
            false,
            386,
            false,
            5.69,
        ),
        (
            "Qwen3-32B, 2 x H100, 0.11.0",
            [8192, 1024, 5120, 25_600, 151_936, 2],
            false,
            386,
            false,
            6.18,
        ),
        (
            "Qwen3-Next-80B, 2 x H200, 0.10.2",
            [8192, 1024, 2048, 5632, 151_936, 2],
            false,
            386,
            false,
            6.96,
        ),
        (
            "Qwen2-7B, A100, 0.10.1.1",
            [2048, 256, 3584, 37_888, 152_064, 1],
            false,
            80,
            false,
            0.55,
        ),
        (
            "gpt-oss-120b, 4 x A100, 0.10.1.1",
            [2048, 256, 2880, 5760, 201_088, 4],
            false,
            80,
            false,
            0.86,
        ),
        (
            "Llama-3.1-8B, A100, 0.31.0",
            [2048, 256, 4096, 28_672, 128_256, 1],
            false,
            160,
            true,
            1.70,
        ),
        (
            "DeepSeek-V4-Flash, 4 x GB10, 0.26.1",
            [4096, 1024, 4096, 7168, 129_280, 4],
            true,
            160,
            true,
            5.34,
        ),
    ];

    #[test]
    fn logged_budgets_lie_within_the_interval() {
        for (name, [tokens, sequences, hidden, widest, vocabulary, ranks], unified, decibytes, graphs, gib) in
            LOGGED
        {
            let (best, low, high) = overhead(&Inputs {
                max_num_batched_tokens: tokens,
                max_num_seqs: sequences,
                hidden_size: hidden,
                widest_projection: widest,
                vocab_size: vocabulary,
                tensor_parallel_size: ranks,
                unified_memory: unified,
                sampler_decibytes_per_logit: decibytes,
                graphs_in_budget: graphs,
                ..LLAMA_8B
            })
            .budgeted();
            let [best, low, high] = [best, low, high].map(|b| b as f64 / GIB as f64);
            assert!(
                low <= gib && gib <= high,
                "{name}: {low:.2} <= {gib} <= {high:.2} (best {best:.2})"
            );
        }
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
