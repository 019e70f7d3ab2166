//! One start of a server, as its log tells it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figure::Figure;
use super::python::Value;

/// Most workers of one boot; more are not kept apart.
const MAX_RANKS: usize = 1024;
/// Most remarks of one boot.
const MAX_EVIDENCE: usize = 64;
/// Longest quotation of a line, in characters.
const MAX_QUOTE: usize = 160;

/// Which engine wrote a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// llama.cpp (and what embeds it, like Ollama).
    Llamacpp,
}

impl EngineKind {
    /// Its name for `--engine`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Llamacpp => "llamacpp",
        }
    }
}

/// Whether the compiled kernels were there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Loaded from the cache.
    Warm,
    /// Compiled during this start, which takes memory that is counted as activations.
    Cold,
}

/// What one worker measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rank {
    /// Name of the process, as in its lines.
    pub worker: String,
    /// Memory after loading the weights (drafter and buffers included).
    pub model_load: Option<Figure>,
    /// Peak of the profiling step above what stays.
    pub activation: Option<Figure>,
    /// Memory outside of `PyTorch`.
    pub non_torch: Option<Figure>,
    /// Weights and memory outside of `PyTorch` together (vLLM since 0.27).
    pub consumed: Option<Figure>,
    /// Estimate of the CUDA graphs before capture.
    pub graphs_estimate: Option<Figure>,
    /// What the captured graphs took.
    pub graphs: Option<Figure>,
    /// What was left for the KV cache.
    pub available_kv: Option<Figure>,
    /// All memory of the GPU as the engine sees it.
    pub total: Option<Figure>,
    /// Memory that was free when the engine started.
    pub free_at_start: Option<Figure>,
    /// What the engine allowed itself.
    pub requested: Option<Figure>,
    /// Memory that was free after the first load of weights (`SGLang`).
    pub free_after_load: Option<Figure>,
    /// Memory that was free after the pools were made (`SGLang`).
    pub free_after_pools: Option<Figure>,
}

/// Why the engine did not start.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// Less is free than the utilisation asks for.
    FreeMemory {
        /// Free at start.
        free: Figure,
        /// All memory.
        total: Figure,
        /// Utilisation.
        utilization: f64,
        /// What it asks for.
        requested: Figure,
    },
    /// Nothing is left for a KV cache.
    NoMemory,
    /// One request of the maximum length does not fit.
    TooLong {
        /// The maximum length.
        max_model_len: u64,
        /// What one request needs, where it is printed.
        needed: Option<Figure>,
        /// What was there, where it is printed.
        available: Option<Figure>,
        /// Tokens that the pool holds (V0), where they are printed.
        pool_tokens: Option<u64>,
        /// Longest length that would fit, by the engine's estimate.
        estimated: Option<u64>,
    },
    /// Graphs need a block of recurrent state for each sequence.
    StateBlocks {
        /// Sequences of one step.
        max_num_seqs: u64,
        /// Blocks of the pool.
        blocks: u64,
    },
    /// Out of memory while loading or capturing.
    OutOfMemory {
        /// What was asked for last.
        tried: Option<Figure>,
        /// What other processes held, where the message says.
        others: Option<Figure>,
    },
}

/// A line that explains something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// What it shows: `drafter`, `lora`, `encoder`, `sleep_mode`, `padding`, ...
    pub what: &'static str,
    /// Number of the line.
    pub line: u64,
    /// The line, shortened.
    pub text: String,
}

/// One start of a server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Boot {
    /// Container that it is from, if lines name one.
    pub source: String,
    /// Engine, once a line of it was seen.
    pub engine: Option<EngineKind>,
    /// Version as printed.
    pub version: Option<String>,
    /// Whether vLLM ran its first engine (V0).
    pub v0: bool,
    /// Whether the second model runner ran.
    pub v2_runner: bool,
    /// Model as given to the engine: a hub id or a path.
    pub model: Option<String>,
    /// Flags that were given (`non-default args`, the `Namespace`, or a command line).
    pub flags: BTreeMap<String, Value>,
    /// Settings as the engine resolved them.
    pub config: BTreeMap<String, Value>,
    /// GPU by name.
    pub gpu: Option<String>,
    /// Whether the engine ran on the CPU.
    pub cpu: bool,
    /// Attention backend by the engine's name.
    pub backend: Option<String>,
    /// Workers in the order of their first figure.
    pub ranks: Vec<Rank>,
    /// Blocks of the pool.
    pub num_blocks: Option<u64>,
    /// Blocks that the memory would have given before an override.
    pub blocks_before_override: Option<u64>,
    /// Tokens of a block, where a line says.
    pub block_size: Option<u64>,
    /// KV cache size in tokens.
    pub tokens: Option<u64>,
    /// Requests of the maximum length at once, and that length.
    pub concurrency: Option<(f64, u64)>,
    /// Longest request that the engine settled on.
    pub max_model_len: Option<u64>,
    /// Tokens of one step.
    pub max_num_batched_tokens: Option<u64>,
    /// Share of the memory, where a line says.
    pub utilization: Option<f64>,
    /// Size of the KV cache that was given instead of measured.
    pub kv_given: Option<Figure>,
    /// Keys and values of a pool together, where they are printed.
    pub kv_bytes: Option<Figure>,
    /// Tokens of the sliding-window pool (`SGLang`).
    pub swa_tokens: Option<u64>,
    /// Recurrent state slots (`SGLang`).
    pub state_slots: Option<u64>,
    /// Bytes of the recurrent states.
    pub state_bytes: Option<Figure>,
    /// Bytes of the compute buffers (llama.cpp), on GPUs.
    pub compute_bytes: Option<Figure>,
    /// Whether compiled kernels were there already.
    pub compile_cache: Option<Cache>,
    /// Why it did not start.
    pub refusal: Option<Refusal>,
    /// Lines that explain something.
    pub evidence: Vec<Evidence>,
    /// Whether the line with the engine's configuration was seen.
    pub has_engine_line: bool,
    /// Whether the server came up.
    pub is_up: bool,
    /// First and last line that said something.
    pub first_line: Option<u64>,
    /// See `first_line`.
    pub last_line: u64,
}

impl Boot {
    /// Nothing yet, of a container.
    pub fn of(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            ..Self::default()
        }
    }

    /// The worker's figures, made if they are not there.
    pub fn rank(&mut self, worker: &str) -> &mut Rank {
        let at = self.ranks.iter().position(|rank| rank.worker == worker);
        let at = at.unwrap_or_else(|| {
            if self.ranks.len() < MAX_RANKS {
                self.ranks.push(Rank {
                    worker: worker.to_owned(),
                    ..Rank::default()
                });
            }
            self.ranks.len() - 1
        });
        &mut self.ranks[at]
    }

    /// Keeps a line that explains something; the first of each kind.
    pub fn remark(&mut self, what: &'static str, line: u64, text: &str) {
        if self.evidence.len() < MAX_EVIDENCE && !self.evidence.iter().any(|e| e.what == what) {
            let text: String = text.trim().chars().take(MAX_QUOTE).collect();
            self.evidence.push(Evidence { what, line, text });
        }
    }

    /// The remark of a kind.
    pub fn evidence_of(&self, what: &str) -> Option<&Evidence> {
        self.evidence.iter().find(|e| e.what == what)
    }

    /// Whether it says anything about memory or settings.
    pub fn says_something(&self) -> bool {
        self.engine.is_some()
            && (self.has_engine_line
                || !self.flags.is_empty()
                || self.version.is_some()
                || self.is_finished()
                || !self.ranks.is_empty())
    }

    /// Whether the size of the cache or a refusal was printed: what follows may be another start.
    pub fn is_finished(&self) -> bool {
        self.tokens.is_some() || self.refusal.is_some() || self.is_up || self.num_blocks.is_some()
    }

    /// Whether there is a figure that a plan can be compared with.
    pub fn has_figures(&self) -> bool {
        self.tokens.is_some()
            || self.num_blocks.is_some()
            || self.refusal.is_some()
            || self.kv_bytes.is_some()
            || self.state_bytes.is_some()
            || self
                .ranks
                .iter()
                .any(|r| r.available_kv.is_some() || r.model_load.is_some())
    }

    /// A setting: given flags first, then what the engine resolved.
    pub fn setting(&self, name: &str) -> Option<&Value> {
        self.flags
            .get(name)
            .filter(|v| **v != Value::None)
            .or_else(|| self.config.get(name).filter(|v| **v != Value::None))
    }

    /// Largest figure over the workers.
    pub fn largest(&self, of: impl Fn(&Rank) -> Option<Figure>) -> Option<Figure> {
        self.ranks.iter().filter_map(of).max_by_key(|f| f.bytes)
    }

    /// Smallest figure over the workers.
    pub fn smallest(&self, of: impl Fn(&Rank) -> Option<Figure>) -> Option<Figure> {
        self.ranks.iter().filter_map(of).min_by_key(|f| f.bytes)
    }

    /// Puts together what only the whole boot tells: terms that some versions print as sums.
    pub(super) fn settle(&mut self) {
        let applied = self.engine == Some(EngineKind::Vllm);
        for rank in &mut self.ranks {
            // Since 0.27 the printed activation contains the graph estimate, and weights come with the rest.
            if let (Some(consumed), true) = (rank.consumed, applied) {
                if let Some(load) = rank.model_load
                    && rank.non_torch.is_none()
                {
                    rank.non_torch = Some(consumed.minus(load));
                }
                if let (Some(activation), Some(estimate)) = (rank.activation, rank.graphs_estimate) {
                    rank.activation = Some(activation.minus(estimate));
                }
            }
        }
        if self.utilization.is_none() {
            self.utilization = self
                .setting("gpu_memory_utilization")
                .and_then(Value::number)
                .filter(|u| *u > 0.0 && *u <= 1.0);
        }
    }
}
