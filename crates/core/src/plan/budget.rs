//! What an engine takes besides weights and KV cache: activations, CUDA graphs, memory outside of PyTorch.
//!
//! Physics first: at the peak of the profiling step either one layer's feed-forward is alive, or the sampler's copies of
//! the logits, both beside the embeddings of the images that the tower encoded before, or the tower's own activations
//! ([`encoder`] says what it encodes), whichever is largest. The V0 engine holds fewer copies of the residual
//! stream than V1, more without FlashAttention, and tensor parallelism adds the buffers of the sum over ranks; which copies
//! the sampler makes depends on the version ([`Rules::sampler_decibytes_per_logit`](crate::engine::vllm::Rules)) and on the
//! model runner ([`Runner`](crate::engine::vllm::Runner)), which may keep counts of tokens and leave graphs out. The
//! constants ([`Constants::FITTED`]) were then fitted to budgets that published start-up logs print
//! (`data/measurements/vllm_boots.csv`); the test module `accuracy` fits them again without each deployment in turn and
//! writes the figures of the accuracy page. This is the only place that knows these constants.

#[cfg(test)]
mod accuracy;
pub mod encoder;
mod spread;

pub use spread::{Footing, Spread};

use super::ledger::{Basis, Term};
use encoder::Encoder;

use crate::engine::vllm::SORTING_SAMPLER;
use crate::units::{GIB, MIB, human_bytes};

/// The fitted constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constants {
    /// What one rank takes outside of PyTorch after the CUDA context, which the engine does not count.
    pub context_bytes: u64,
    /// More on AMD GPUs.
    pub amd_bytes: u64,
    /// More than one tensor-parallel rank: communication buffers.
    pub communication_bytes: u64,
    /// More where ranks share symmetric memory over `NVLink` (compute capability 9 and 10 under the V1 engine).
    pub symmetric_bytes: u64,
    /// A pipeline stage.
    pub pipeline_bytes: u64,
    /// GPUs that share the host's memory: what the driver and the page cache take while the engine starts.
    pub unified_bytes: u64,
    /// Captured CUDA graphs: what the pool of the largest takes.
    pub graph_bytes: u64,
    /// More for each size of a step that is captured.
    pub graph_size_bytes: u64,
    /// Tenths of a byte that a vision tower holds on every rank at its peak for each element of a patch's residual stream.
    pub vision_decibytes: u64,
    /// The same of what the ranks divide: fused projections and the feed-forward.
    pub vision_divided_decibytes: u64,
    /// Copies of the residual stream that are alive beside a feed-forward under the V1 engine.
    pub streams: u64,
    /// The same under the V0 engine with FlashAttention; one more without.
    pub streams_v0: u64,
    /// More copies where ranks add up their results.
    pub streams_of_ranks: u64,
}

impl Constants {
    /// Fitted to the 152 budgets of `data/measurements/vllm_boots.csv`.
    pub const FITTED: Self = Self {
        context_bytes: 100 * MIB,
        amd_bytes: 450 * MIB,
        communication_bytes: 100 * MIB,
        symmetric_bytes: 400 * MIB,
        pipeline_bytes: 512 * MIB,
        unified_bytes: 3 * GIB,
        graph_bytes: 256 * MIB,
        graph_size_bytes: 5 * MIB,
        vision_decibytes: 160,
        vision_divided_decibytes: 120,
        streams: 6,
        streams_v0: 4,
        streams_of_ranks: 2,
    };

    /// Tenths of a byte that the tower holds on one rank.
    fn vision(&self, i: &Inputs) -> u64 {
        self.vision_decibytes + self.vision_divided_decibytes / i.tensor_parallel_size.max(1)
    }

    const fn streams(&self, i: &Inputs) -> u64 {
        let own = if i.v0_engine {
            self.streams_v0 + i.xformers as u64
        } else {
            self.streams
        };
        if i.tensor_parallel_size > 1 {
            own + self.streams_of_ranks
        } else {
            own
        }
    }
}

/// What captured graphs took in four of five start-up logs that say so.
const GRAPHS_BETWEEN: (u64, u64) = (100 * MIB, 2 * GIB);

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
    /// Sizes of a step for which graphs are captured ([`graph_sizes`]).
    pub graph_sizes: u64,
    /// Whether the GPU shares the host's memory.
    pub unified_memory: bool,
    /// What the profiling step encodes of images or videos.
    pub encoder: Encoder,
    /// Whether the V0 engine serves it.
    pub v0_engine: bool,
    /// Whether attention is xFormers' (the V0 engine on GPUs before Ampere).
    pub xformers: bool,
    /// Whether it is an AMD GPU.
    pub amd: bool,
    /// Whether it is a GPU of any maker but NVIDIA.
    pub other_maker: bool,
    /// Whether its ranks share symmetric memory (vLLM 0.32.0, `distributed/device_communicators/symm_mem.py`).
    pub symmetric_memory: bool,
    /// Tenths of a byte that the sampler holds for each logit.
    pub sampler_decibytes_per_logit: u64,
    /// Whether the runner's counts of tokens are taken off the budget.
    pub counts_tokens: bool,
    /// Bytes of workspaces that attention reserves for the longest request ([`indexer_workspace_bytes`]).
    pub workspace_bytes: u64,
    /// Whether the engine keeps the graphs' memory out of the KV budget (vLLM since 0.20; on AMD since 0.26).
    pub graphs_in_budget: bool,
}

impl Inputs {
    /// How well the sum is known.
    pub const fn footing(&self) -> Footing {
        if self.unified_memory {
            Footing::Unified
        } else if self.other_maker {
            Footing::OtherMakers
        } else if self.sampler_decibytes_per_logit == SORTING_SAMPLER {
            Footing::Sorting
        } else {
            Footing::Other
        }
    }
}

/// Tenths of a byte of the second runner's counts for each sequence and token of the vocabulary: 32 bits, and a bit for the
/// prompt (vLLM 0.32.0, `v1/worker/gpu/sample/penalties.py`).
const COUNT_DECIBYTES: u64 = 41;

/// Tenths of a byte that the second runner's sampler holds for each logit: 16 and 32 bits (vLLM 0.32.0,
/// `v1/worker/gpu/sample/sampler.py`).
pub(crate) const SECOND_RUNNER_SAMPLER: u64 = 60;

/// Sizes of a step for which the V1 engine captures graphs where the user names none: 1, 2, 4, each 8 up to 256 and each 16 up
/// to 512, as far as twice the tokens that the sequences decode at once (vLLM 0.32.0, `config/vllm.py`,
/// `_set_cudagraph_sizes`).
pub fn graph_sizes(sequences: u64, tokens_each: u64, max_num_batched_tokens: u64) -> u64 {
    let largest = sequences
        .saturating_mul(tokens_each)
        .saturating_mul(2)
        .min(512)
        .min(max_num_batched_tokens);
    [1, 2, 4]
        .into_iter()
        .chain((8..256).step_by(8))
        .chain((256..=512).step_by(16))
        .filter(|size| *size <= largest)
        .count() as u64
}

/// What a sparse indexer reserves to gather the keys of long prompts: 40 entries for each token of the longest request, divided
/// by the tokens of an entry (vLLM 0.32.0, `get_max_prefill_buffer_size` in `v1/attention/backends/mla/indexer.py`).
pub fn indexer_workspace_bytes(max_model_len: u64, bytes_per_entry: u64, tokens_per_entry: u64) -> u64 {
    (max_model_len / tokens_per_entry.max(1))
        .saturating_mul(40)
        .saturating_mul(bytes_per_entry)
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
    /// How well the sum is known.
    pub footing: Footing,
}

impl Overhead {
    /// What is taken off the KV budget, with its distribution.
    pub fn budgeted(&self) -> Spread {
        Spread::around(
            self.terms()
                .iter()
                .filter(|term| term.name != "cuda_graphs" || self.graphs_in_budget)
                .fold(0, |sum, term| sum.saturating_add(term.bytes)),
            self.footing,
        )
    }

    /// All terms.
    pub fn terms(&self) -> [&Term; 3] {
        [&self.activation, &self.graphs, &self.non_torch]
    }
}

/// A fitted term; its interval is what it would be as the whole sum.
fn fitted(name: &'static str, bytes: u64, footing: Footing, formula: String) -> Term {
    let spread = Spread::around(bytes, footing);
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
    held: u64,
    workspace: u64,
    counts: u64,
    graphs: u64,
    communication: u64,
    symmetric: u64,
    pipeline: u64,
    unified: u64,
    amd: u64,
    context: u64,
}

impl Numbers {
    fn of(c: &Constants, i: &Inputs) -> Self {
        // A layer's widest fused output, what its activation leaves of it, and copies of the residual stream.
        let layer = i
            .max_num_batched_tokens
            .saturating_mul(
                i.widest_projection
                    .saturating_add(i.widest_projection / 2)
                    .saturating_add(i.hidden_size.saturating_mul(c.streams(i))),
            )
            .saturating_mul(i.element_bytes);
        let rows = i.max_num_seqs.min(i.max_num_batched_tokens);
        let only = |condition: bool, bytes: u64| if condition { bytes } else { 0 };
        Self {
            layer,
            rows,
            logits: rows
                .saturating_mul(i.vocab_size)
                .saturating_mul(i.sampler_decibytes_per_logit)
                / 10,
            vision: only(
                !i.v0_engine,
                i.encoder
                    .patches
                    .saturating_mul(i.encoder.width)
                    .saturating_mul(c.vision(i))
                    / 10,
            ),
            held: only(!i.v0_engine, i.encoder.held_bytes),
            workspace: i.workspace_bytes,
            counts: only(
                i.counts_tokens,
                i.max_num_seqs
                    .saturating_mul(i.vocab_size)
                    .saturating_mul(COUNT_DECIBYTES)
                    / 10,
            ),
            graphs: only(
                !i.enforce_eager,
                (c.graph_size_bytes.saturating_mul(i.graph_sizes)).saturating_add(c.graph_bytes),
            ),
            communication: only(i.tensor_parallel_size > 1, c.communication_bytes),
            symmetric: only(
                i.tensor_parallel_size > 1 && i.symmetric_memory && !i.v0_engine,
                c.symmetric_bytes,
            ),
            pipeline: only(i.pipeline_parallel_size > 1, c.pipeline_bytes),
            unified: only(i.unified_memory, c.unified_bytes),
            amd: only(i.amd, c.amd_bytes),
            context: c.context_bytes,
        }
    }

    fn activation(&self) -> u64 {
        self.layer
            .max(self.logits)
            .saturating_add(self.held)
            .max(self.vision)
            .saturating_add(self.workspace)
    }

    fn non_torch(&self) -> u64 {
        [
            self.communication,
            self.symmetric,
            self.pipeline,
            self.unified,
            self.amd,
            self.counts,
        ]
        .into_iter()
        .fold(self.context, u64::saturating_add)
    }
}

/// The same with other constants (a fit, a site's calibration).
pub fn overhead_with(c: &Constants, i: &Inputs) -> Overhead {
    let n = Numbers::of(c, i);
    let mut candidates = vec![
        format!(
            "{} tokens x (1.5 x {} + {} x {}) x {} B",
            i.max_num_batched_tokens,
            i.widest_projection,
            c.streams(i),
            i.hidden_size,
            i.element_bytes
        ),
        format!(
            "{} sequences x {} logits x {}.{} B",
            n.rows,
            i.vocab_size,
            i.sampler_decibytes_per_logit / 10,
            i.sampler_decibytes_per_logit % 10
        ),
    ];
    let beside = if n.held > 0 {
        format!(" + {} of embeddings", human_bytes(n.held))
    } else {
        String::new()
    };
    if n.vision > 0 {
        candidates.push(format!(
            "{} patches x {} x {}.{} B in the tower",
            i.encoder.patches,
            i.encoder.width,
            c.vision(i) / 10,
            c.vision(i) % 10
        ));
    }
    let reserved = if n.workspace > 0 {
        format!(" + {} that the indexer reserves", human_bytes(n.workspace))
    } else {
        String::new()
    };
    let graphs = if i.enforce_eager {
        Term::exact("cuda_graphs", 0, "--enforce-eager: none are captured")
    } else {
        let left = if i.graphs_in_budget {
            ""
        } else {
            ", which this version leaves to the memory it does not use"
        };
        Term::estimated(
            "cuda_graphs",
            Basis::Fitted,
            n.graphs,
            GRAPHS_BETWEEN,
            format!(
                "{} for the graphs of {} step sizes{left}",
                human_bytes(n.graphs),
                i.graph_sizes
            ),
        )
    };
    let mut parts = vec![format!("{} outside of PyTorch", human_bytes(n.context))];
    for (bytes, what) in [
        (
            n.communication,
            format!("communication of {} ranks", i.tensor_parallel_size),
        ),
        (n.symmetric, "their symmetric memory".to_owned()),
        (n.pipeline, "pipeline".to_owned()),
        (n.unified, "taken from unified memory".to_owned()),
        (n.amd, "more on AMD".to_owned()),
        (
            n.counts,
            format!("counts of {} x {} tokens", i.max_num_seqs, i.vocab_size),
        ),
    ] {
        if bytes > 0 {
            parts.push(format!("{} {what}", human_bytes(bytes)));
        }
    }
    Overhead {
        activation: fitted(
            "activation",
            n.activation(),
            i.footing(),
            peak(&candidates, &beside) + &reserved,
        ),
        graphs,
        non_torch: fitted("non_torch", n.non_torch(), i.footing(), parts.join(" + ")),
        graphs_in_budget: i.graphs_in_budget,
        footing: i.footing(),
    }
}

/// The largest of the candidates; embeddings are beside the first two, which are the language model's.
fn peak(candidates: &[String], beside: &str) -> String {
    match candidates {
        [layer, logits, tower] if !beside.is_empty() => {
            format!("max(max({layer}, {logits}){beside}, {tower})")
        }
        _ => format!("max({})", candidates.join(", ")),
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
        graph_sizes: 51,
        unified_memory: false,
        encoder: Encoder {
            patches: 0,
            width: 0,
            held_bytes: 0,
        },
        v0_engine: false,
        xformers: false,
        amd: false,
        other_maker: false,
        symmetric_memory: false,
        sampler_decibytes_per_logit: 386,
        counts_tokens: false,
        workspace_bytes: 0,
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
        assert_eq!(layer, 8192 * (28_672 * 3 / 2 + 4096 * 6) * 2);
        let seeing = |held_bytes| Inputs {
            encoder: Encoder {
                patches: 65_536,
                width: 1152,
                held_bytes,
            },
            ..few
        };
        let tower = 65_536 * 1152 * 28;
        assert_eq!(overhead(&seeing(GIB / 8)).activation.bytes, tower);
        assert_eq!(overhead(&seeing(2 * GIB)).activation.bytes, layer + 2 * GIB);
        assert!(
            (overhead(&seeing(GIB)).activation.formula)
                .ends_with("+ 1.00 GiB of embeddings, 65536 patches x 1152 x 28.0 B in the tower)")
        );
    }

    #[test]
    fn the_v0_engine_holds_what_a_log_of_a_t4_shows() {
        // Qwen2.5-1.5B, 32,768 tokens a step, vLLM 0.7.3 on a T4: 2.02 GiB of activations, 2.03 GiB with what is outside
        // of PyTorch.
        let turing = overhead(&Inputs {
            max_num_batched_tokens: 32_768,
            max_num_seqs: 256,
            hidden_size: 1536,
            widest_projection: 17_920,
            vocab_size: 151_936,
            v0_engine: true,
            xformers: true,
            graphs_in_budget: false,
            ..LLAMA_8B
        });
        assert_eq!(turing.activation.bytes, 32_768 * (17_920 * 3 / 2 + 5 * 1536) * 2);
        let logged = 203 * GIB / 100;
        assert!(turing.budgeted().bytes().abs_diff(logged) < GIB / 5);
    }
}
