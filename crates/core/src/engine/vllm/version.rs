//! Engine versions, and the rules that differ between them: one row a change.

mod changes;
#[cfg(test)]
mod tests;

use std::fmt;

use super::gpu::{BatchDefaults, Gpu};
use crate::{Error, Result};
use changes::{CHANGES, OLDEST};

const GIB: u64 = 1 << 30;

/// A release of vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// The newest release whose rules are known.
    pub const NEWEST: Self = Self::new(0, 32, 0);

    /// A version from its numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Parses `0.32.0`, `v0.32`, `0.32.0rc1`, `0.32.0+cu130` (suffixes are ignored) or `latest`.
    ///
    /// # Errors
    /// If there are no two numbers separated by a dot.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::input(format!("engine version {text} is not of the form 0.32.0"))
                .hint(format!("the newest known version of vLLM is {}", Self::NEWEST))
        };
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("latest") {
            return Ok(Self::NEWEST);
        }
        let plain = trimmed.strip_prefix('v').unwrap_or(trimmed);
        let mut numbers = [0_u32; 3];
        let mut count = 0;
        for part in plain.splitn(3, '.') {
            let digits: &str = &part[..part.bytes().take_while(u8::is_ascii_digit).count()];
            if digits.is_empty() || (digits.len() != part.len() && count < 2) {
                return Err(wrong());
            }
            numbers[count] = digits.parse().map_err(|_| wrong())?;
            count += 1;
        }
        if count < 2 {
            return Err(wrong());
        }
        Ok(Self::new(numbers[0], numbers[1], numbers[2]))
    }

    /// Whether the rules of this release are known; a newer one is planned with [`Self::NEWEST`]'s.
    pub fn is_newer_than_known(self) -> bool {
        (self.major, self.minor) > (Self::NEWEST.major, Self::NEWEST.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// How a version turns blocks into the tokens it logs as "KV cache size".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokensRule {
    /// `num_blocks // groups * block_size`.
    BlocksOverGroups,
    /// `int(max_concurrency * max_model_len)`.
    ConcurrencyTimesLength,
}

/// Where the pool puts the blocks that a request gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreedBlocks {
    /// All behind the others in the free queue: a partial block pushes out a cached one.
    AllLast,
    /// As [`FreedBlocks::UnnamedFirst`] for sliding windows and what lies behind a window, else as
    /// [`FreedBlocks::AllLast`].
    WindowsUnnamedFirst,
    /// Blocks that no later request can hit first, cached ones last.
    UnnamedFirst,
}

/// Which groups honour a retention interval: the rule by which sliding windows and states name only some of their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetentionRule {
    /// There is no such setting: every block is named.
    None,
    /// Sliding windows do, if an interval is set; else every block is named.
    Windows,
    /// So do Mamba states.
    WindowsAndStates,
    /// Without a setting the interval is 0: only blocks that a resend or a seen junction can use are named.
    ZeroByDefault,
}

/// What is done where requests part from a prefix that is cached in layers of full attention only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JunctionRule {
    /// Nothing.
    None,
    /// A chunk of models with Mamba states ends there, so that its state is cached.
    EndsChunk,
    /// Blocks that end there are also kept under a retention interval.
    IsRetained,
}

/// How backends are chosen for models whose image tokens see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageRule {
    /// As for all others, as far as is known.
    NotAsked,
    /// Triton alone lets them.
    Triton,
    /// One that lets them: FlashAttention 4 or Triton.
    One,
    /// A pair, one for images and one for text, where there is one.
    Pair,
}

/// Who chooses the block size of latent attention where the user names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatentBlocks {
    /// Nobody: it stays at 16.
    Default,
    /// The platform: 64 where FlashMLA runs.
    FlashMla,
    /// The platform: 64 where FlashMLA runs, 128 for CUTLASS on Blackwell.
    FlashMlaOrCutlass,
    /// The platform: on Blackwell 64 for FlashInfer where its kernel takes the heads.
    FlashMlaOrFlashInfer,
    /// The backends that serve the layers.
    Backends,
}

/// What serves a model whose heads are of two sizes, one of them above 256 elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WideHeads {
    /// Triton, all layers.
    Triton,
    /// FlashAttention 4 where it runs, with a 16-bit cache.
    FlashAttention4,
    /// With an 8-bit cache too.
    FlashAttention4AlsoIn8Bits,
}

/// When the prefixes of models with recurrent states are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateCaching {
    /// Never, whatever the user says.
    Never,
    /// Where the user says so.
    OnRequest,
    /// As those of other models.
    AsOthers,
}

/// How a version chooses the tokens and sequences of one step where the user names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchRule {
    /// The V0 engine: a whole prompt, or `chunk` tokens where prompts of more than 32,768 tokens are split; 256 sequences.
    WholePrompt {
        /// Tokens of a chunk.
        chunk: u64,
    },
    /// The V1 engine's first releases: 8192 tokens on H100 and H200, 2048 elsewhere; 1024 sequences.
    NamedHopper,
    /// 8192 tokens and 1024 sequences from 70 GiB on, else 2048 and 256.
    ByMemoryAlone,
    /// 8192 tokens and 1024 sequences from 70 GiB on, but for the A100; else 2048 and 256.
    ByMemory,
    /// As [`BatchRule::ByMemory`], and 16,384 tokens from 160 GiB on.
    ByMemoryAndLarger,
}

/// The rules of one release, where they are not the same in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Default of `--gpu-memory-utilization`.
    pub gpu_memory_utilization: f64,
    /// Whether the start-up check keeps one block back for the null block.
    pub reserves_null_block: bool,
    /// Whether sliding windows are charged the tokens of every batch in flight, or of one batch.
    pub charges_in_flight_batches: bool,
    /// How the logged token count is computed.
    pub tokens: TokensRule,
    /// Whether the estimate of CUDA graph memory is taken off the KV budget.
    pub subtracts_cuda_graph_estimate: bool,
    /// Tenths of a byte that the sampler of the profiling step holds for each logit at its peak.
    pub sampler_decibytes_per_logit: u64,
    /// GPUs whose compute capability has a smaller major number are served by the V0 engine.
    pub v0_below_capability: u32,
    /// Where blocks that a request gives back stand in the free queue.
    pub freed_blocks: FreedBlocks,
    /// Which groups name only some of their blocks.
    pub retention: RetentionRule,
    /// What happens where requests part.
    pub junctions: JunctionRule,
    /// Tokens and sequences of one step.
    pub batch: BatchRule,
    /// Whether the next step is scheduled while one runs, unless the user says otherwise.
    pub async_by_default: bool,
    /// Whether prefixes are cached unless the user says otherwise.
    pub caches_prefixes_by_default: bool,
    /// When prefixes of models with recurrent states are.
    pub state_caching: StateCaching,
    /// Whether layers with a window have groups of their own; else they keep all tokens.
    pub groups_windows: bool,
    /// Whether `--max-model-len auto` is understood.
    pub fits_length: bool,
    /// How backends are chosen where the tokens of an image see each other.
    pub images: ImageRule,
    /// What serves Gemma-4, whose heads are 256 and 512 elements wide.
    pub wide_heads: WideHeads,
    /// Who chooses the block size of latent attention.
    pub latent_blocks: LatentBlocks,
}

/// Tenths of a byte a logit where the sampler sorts them: 16- and 32-bit logits, sorted values with 64-bit indices and
/// their buffers, probabilities and their sum.
pub(crate) const SORTING_SAMPLER: u64 = 386;

impl Rules {
    /// The rules of a release; newer ones than known have the newest known rules.
    pub fn of(version: Version) -> Self {
        let mut rules = OLDEST;
        for change in &CHANGES {
            if version >= change.since {
                (change.apply)(&mut rules);
            }
        }
        rules
    }

    /// The rules of a release on this GPU: releases with both engines serve old GPUs with V0, which takes whole prompts in
    /// one step and sorts the logits (vLLM 0.8.0 to 0.10.2, `engine/arg_utils.py`, `_is_v1_supported_oracle`).
    pub fn on(version: Version, gpu: &Gpu) -> Self {
        let rules = Self::of(version);
        if !rules.v0(gpu) || matches!(rules.batch, BatchRule::WholePrompt { .. }) {
            return rules;
        }
        Self {
            batch: BatchRule::WholePrompt { chunk: 2048 },
            sampler_decibytes_per_logit: SORTING_SAMPLER,
            ..rules
        }
    }

    /// Whether the V0 engine serves this GPU.
    pub const fn v0(&self, gpu: &Gpu) -> bool {
        !gpu.is_cpu() && gpu.major < self.v0_below_capability
    }

    /// Tokens and sequences of one step for the `OpenAI` server on this GPU, for a model of that longest request.
    pub fn batch_defaults(&self, gpu: &Gpu, max_model_len: u64) -> BatchDefaults {
        let (max_num_batched_tokens, max_num_seqs) = match self.batch {
            _ if gpu.is_cpu() => (2048, 128),
            BatchRule::WholePrompt { chunk } if max_model_len > 32_768 => (chunk, 256),
            BatchRule::WholePrompt { .. } => (max_model_len.max(2048), 256),
            BatchRule::NamedHopper if gpu.hopper => (8192, 1024),
            BatchRule::NamedHopper => (2048, 1024),
            _ if gpu.memory_unknown => (2048, 256),
            BatchRule::ByMemoryAndLarger if gpu.memory_bytes >= 160 * GIB => (16_384, 1024),
            BatchRule::ByMemoryAlone | BatchRule::ByMemory | BatchRule::ByMemoryAndLarger => {
                let excepted = gpu.a100 && self.batch != BatchRule::ByMemoryAlone;
                if gpu.memory_bytes >= 70 * GIB && !excepted {
                    (8192, 1024)
                } else {
                    (2048, 256)
                }
            }
        };
        BatchDefaults {
            max_num_batched_tokens,
            max_num_seqs,
        }
    }

    /// All known changes: since which release, what, and the source.
    pub fn changes() -> impl Iterator<Item = (Version, &'static str, &'static str)> {
        CHANGES
            .iter()
            .map(|change| (change.since, change.what, change.source))
    }
}
