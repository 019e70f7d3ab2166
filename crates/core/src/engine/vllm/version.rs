//! Engine versions, and the rules that differ between them: one row a change.

use std::fmt;

use super::gpu::{BatchDefaults, Gpu};
use crate::{Error, Result};

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

/// How a version chooses the tokens and sequences of one step where the user names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchRule {
    /// The V0 engine: a whole prompt, or `chunk` tokens where prompts of more than 32,768 tokens are split; 256 sequences.
    WholePrompt {
        /// Tokens of a chunk.
        chunk: u64,
    },
    /// The V1 engine's first releases: 8192 tokens on H100 and H200, 2048 elsewhere; 256 sequences.
    NamedHopper,
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

/// One change: from `since` on, `apply` holds.
struct Change {
    since: Version,
    /// Where the rule was read or measured.
    source: &'static str,
    what: &'static str,
    apply: fn(&mut Rules),
}

/// Tenths of a byte a logit where the sampler sorts them: 16- and 32-bit logits, sorted values with 64-bit indices and
/// their buffers, probabilities and their sum.
pub(crate) const SORTING_SAMPLER: u64 = 386;

/// Rules before the first row: releases of the V1 engine up to 0.20.
const OLDEST: Rules = Rules {
    gpu_memory_utilization: 0.9,
    reserves_null_block: false,
    charges_in_flight_batches: false,
    tokens: TokensRule::BlocksOverGroups,
    subtracts_cuda_graph_estimate: false,
    sampler_decibytes_per_logit: SORTING_SAMPLER,
    v0_below_capability: u32::MAX,
    batch: BatchRule::WholePrompt { chunk: 512 },
    async_by_default: false,
    caches_prefixes_by_default: false,
    groups_windows: false,
    fits_length: false,
    images: ImageRule::NotAsked,
    wide_heads: WideHeads::Triton,
    latent_blocks: LatentBlocks::Default,
    freed_blocks: FreedBlocks::AllLast,
    retention: RetentionRule::None,
    junctions: JunctionRule::None,
};

/// In the order of the releases.
const CHANGES: [Change; 34] = [
    Change {
        since: Version::new(0, 6, 5),
        source: "vllm-project/vllm pull request 10544, opened in November 2024",
        what: "split prompts take 2048 tokens a step, not 512",
        apply: |rules| rules.batch = BatchRule::WholePrompt { chunk: 2048 },
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "the V1 engine is the default since 0.8.0; vllm-project/vllm pull request 12369",
        what: "prompts are split: 2048 tokens a step, 8192 on H100 and H200",
        apply: |rules| rules.batch = BatchRule::NamedHopper,
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "the V1 engine is the default since 0.8.0",
        what: "prefixes are cached by default",
        apply: |rules| rules.caches_prefixes_by_default = true,
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "start-up logs of 0.10.0 and 0.10.1 (A100, L40S class): fitted; FlashInfer samples where it is installed",
        what: "the V1 engine's sampler holds 14 bytes a logit",
        apply: |rules| rules.sampler_decibytes_per_logit = 140,
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "start-up logs of 0.8.1 and 0.8.5 on V100 and RTX 2080 Ti: V0's wording, whole prompts in one step",
        what: "GPUs before Ampere keep the V0 engine",
        apply: |rules| rules.v0_below_capability = 8,
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "platforms/cuda.py of 0.8.5 and 0.6.6",
        what: "blocks of latent attention are 64 tokens where FlashMLA runs",
        apply: |rules| rules.latent_blocks = LatentBlocks::FlashMla,
    },
    Change {
        since: Version::new(0, 9, 0),
        source: "start-up logs of 0.10.2 and 0.11.0 on H100 and H200, of 0.10.1 on A100; the release is not certain",
        what: "8192 tokens and 1024 sequences from 70 GiB on, but for the A100",
        apply: |rules| rules.batch = BatchRule::ByMemory,
    },
    Change {
        since: Version::new(0, 10, 0),
        source: "vllm-project/vllm, docs/design/hybrid_kv_cache_manager.md describes 0.10.1; merged in June and July 2025",
        what: "windows and full attention have groups of their own",
        apply: |rules| rules.groups_windows = true,
    },
    Change {
        since: Version::new(0, 10, 0),
        source: "platforms/cuda.py of 0.10.2 and 0.8.5; the release between is not certain",
        what: "latent attention takes CUTLASS on Blackwell, with blocks of 128 tokens",
        apply: |rules| rules.latent_blocks = LatentBlocks::FlashMlaOrCutlass,
    },
    Change {
        since: Version::new(0, 10, 2),
        source: "start-up logs of 0.10.2 to 0.13 (H100, H200, RTX 5090): 9.59 to 9.73 float32 a logit in 7 of 7; \
                 16- and 32-bit logits, sorted values with 64-bit indices and their buffers, probabilities and their sum",
        what: "the profiling step sorts all logits: 38.6 bytes each",
        apply: |rules| rules.sampler_decibytes_per_logit = SORTING_SAMPLER,
    },
    Change {
        since: Version::new(0, 11, 0),
        source: "release notes of 0.11.0: the V0 engine is removed",
        what: "the V1 engine serves all GPUs",
        apply: |rules| rules.v0_below_capability = 0,
    },
    Change {
        since: Version::new(0, 14, 0),
        source: "vllm-project/vllm pull request 27614; release notes of 0.14.0",
        what: "scheduling is asynchronous by default",
        apply: |rules| rules.async_by_default = true,
    },
    Change {
        since: Version::new(0, 14, 0),
        source: "vllm-project/vllm pull request 29431, merged in December 2025",
        what: "--max-model-len auto",
        apply: |rules| rules.fits_length = true,
    },
    Change {
        since: Version::new(0, 14, 0),
        source: "v1/attention/backend.py of 0.14.1; 0.12.0 has nothing of it; the release between is not certain",
        what: "models whose images see both ways take Triton",
        apply: |rules| rules.images = ImageRule::Triton,
    },
    Change {
        since: Version::new(0, 16, 0),
        source: "platforms/cuda.py of 0.16.0 and 0.14.1; the release between is not certain",
        what: "latent attention takes FlashInfer on Blackwell where its kernel takes the heads, with blocks of 64 tokens",
        apply: |rules| rules.latent_blocks = LatentBlocks::FlashMlaOrFlashInfer,
    },
    Change {
        since: Version::new(0, 17, 0),
        source: "vllm-project/vllm pull request 33538 (February 2026: top-k and top-p without sorting); start-up logs of 0.19 to \
                 0.25 (A100, RTX 5090, GB10): fitted",
        what: "the sampler holds 12 bytes a logit",
        apply: |rules| rules.sampler_decibytes_per_logit = 120,
    },
    Change {
        since: Version::new(0, 18, 0),
        source: "platforms/interface.py of 0.18.0 (update_block_size_for_backend); 0.17.1 has none",
        what: "the backends of the layers choose the block size",
        apply: |rules| rules.latent_blocks = LatentBlocks::Backends,
    },
    Change {
        since: Version::new(0, 20, 0),
        source: "vllm-project/vllm pull request 38284 (spring 2026); config/cache.py of 0.25.0 and 0.32.0",
        what: "utilization defaults to 0.92",
        apply: |rules| rules.gpu_memory_utilization = 0.92,
    },
    Change {
        since: Version::new(0, 21, 0),
        source: "start-up logs of 0.20 and 0.21 for one pool: 585,168 and 1,251,446 tokens",
        what: "the logged tokens are concurrency times length, not blocks over groups",
        apply: |rules| rules.tokens = TokensRule::ConcurrencyTimesLength,
    },
    Change {
        since: Version::new(0, 21, 0),
        source: "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS is on by default since 0.21",
        what: "the CUDA graph estimate is taken off the KV budget",
        apply: |rules| rules.subtracts_cuda_graph_estimate = true,
    },
    Change {
        since: Version::new(0, 23, 0),
        source: "v1/core/single_type_kv_cache_manager.py of 0.22.0 and 0.23.0 (free, remove_skipped_blocks)",
        what: "blocks of sliding windows that are freed without a hash go to the head of the free queue",
        apply: |rules| rules.freed_blocks = FreedBlocks::WindowsUnnamedFirst,
    },
    Change {
        since: Version::new(0, 23, 0),
        source: "v1/core/kv_cache_coordinator.py of 0.22.0 and 0.23.0; vllm-project/vllm pull request 43447; off unless set",
        what: "a retention interval can be set for sliding windows",
        apply: |rules| rules.retention = RetentionRule::Windows,
    },
    Change {
        since: Version::new(0, 24, 0),
        source: "v1/core/block_pool.py (free_blocks) of 0.23.0 and 0.24.0; vllm-project/vllm pull request 42656",
        what: "all freed blocks without a hash go to the head of the free queue",
        apply: |rules| rules.freed_blocks = FreedBlocks::UnnamedFirst,
    },
    Change {
        since: Version::new(0, 24, 0),
        source: "v1/core/sched/scheduler.py (_mamba_block_aligned_split) of 0.23.0 and 0.24.0; pull request 37898",
        what: "chunks of models with Mamba states end where prompts part",
        apply: |rules| rules.junctions = JunctionRule::EndsChunk,
    },
    Change {
        since: Version::new(0, 24, 0),
        source: "v1/core/kv_cache_coordinator.py of 0.23.0 and 0.24.0; vllm-project/vllm pull request 45845",
        what: "a retention interval holds for Mamba states too",
        apply: |rules| rules.retention = RetentionRule::WindowsAndStates,
    },
    Change {
        since: Version::new(0, 24, 0),
        source: "v1/attention/backends/flash_attn.py of 0.24.0 and 0.23.0",
        what: "models whose images see both ways take FlashAttention 4 too",
        apply: |rules| rules.images = ImageRule::One,
    },
    Change {
        since: Version::new(0, 24, 0),
        source: "model_executor/models/config.py of 0.24.0 and 0.23.0 (Gemma4Config)",
        what: "FlashAttention 4 serves Gemma-4 where it runs; until then Triton does, everywhere",
        apply: |rules| rules.wide_heads = WideHeads::FlashAttention4,
    },
    Change {
        since: Version::new(0, 26, 0),
        source: "vllm-project/vllm pull request 47728, merged in July 2026 after 0.25.0; read in 0.32.0",
        what: "sliding windows and chunks are charged the tokens of every batch in flight",
        apply: |rules| rules.charges_in_flight_batches = true,
    },
    Change {
        since: Version::new(0, 26, 0),
        source: "vllm-project/vllm pull request 47272, merged in July 2026 after 0.25.0; read in 0.32.0",
        what: "the start-up check keeps the null block back",
        apply: |rules| rules.reserves_null_block = true,
    },
    Change {
        since: Version::new(0, 26, 0),
        source: "v1/core/single_type_kv_cache_manager.py of 0.25.0 and 0.26.0; vllm-project/vllm pull request 47782",
        what: "blocks where prompts part are kept under a retention interval",
        apply: |rules| rules.junctions = JunctionRule::IsRetained,
    },
    Change {
        since: Version::new(0, 27, 0),
        source: "vllm-project/vllm pull request 51726, August 2026; engine/arg_utils.py of 0.32.0",
        what: "16,384 tokens a step from 160 GiB on",
        apply: |rules| rules.batch = BatchRule::ByMemoryAndLarger,
    },
    Change {
        since: Version::new(0, 29, 0),
        source: "vllm-project/vllm pull request 52216, merged in August 2026 and not in 0.28.0 (issues 48435, 57610); read in 0.32.0",
        what: "the retention interval is 0 unless set",
        apply: |rules| rules.retention = RetentionRule::ZeroByDefault,
    },
    Change {
        since: Version::new(0, 30, 0),
        source: "platforms/cuda.py of 0.30.0 and 0.29.0",
        what: "text and images of one model can have a backend each",
        apply: |rules| rules.images = ImageRule::Pair,
    },
    Change {
        since: Version::new(0, 31, 0),
        source: "v1/attention/backends/flash_attn.py of 0.31.0 and 0.30.0",
        what: "FlashAttention 4 reads an 8-bit cache of heads of 512 elements on Hopper, from pages of 64 tokens",
        apply: |rules| rules.wide_heads = WideHeads::FlashAttention4AlsoIn8Bits,
    },
];

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
            BatchRule::NamedHopper if gpu.hopper => (8192, 256),
            BatchRule::NamedHopper => (2048, 256),
            _ if gpu.memory_unknown => (2048, 256),
            BatchRule::ByMemoryAndLarger if gpu.memory_bytes >= 160 * GIB => (16_384, 1024),
            BatchRule::ByMemory | BatchRule::ByMemoryAndLarger => {
                if gpu.memory_bytes >= 70 * GIB && !gpu.a100 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_with_and_without_suffixes() {
        for (text, version) in [
            ("0.32.0", Version::new(0, 32, 0)),
            ("v0.20", Version::new(0, 20, 0)),
            ("0.32.1rc1", Version::new(0, 32, 1)),
            ("0.11.0+cu128", Version::new(0, 11, 0)),
            ("latest", Version::NEWEST),
        ] {
            assert_eq!(Version::parse(text).unwrap(), version, "{text}");
        }
        for text in ["", "32", "0.x", "zero", "0.99999999999"] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn changes_are_in_the_order_of_the_releases_and_have_a_source() {
        let mut last = Version::new(0, 0, 0);
        for (since, what, source) in Rules::changes() {
            assert!(since >= last, "{since} after {last}");
            last = since;
            assert!(
                since <= Version::NEWEST && !what.is_empty() && source.len() > 20,
                "{since} {what}"
            );
        }
        let at = |minor| Rules::of(Version::new(0, minor, 0));
        let sampler = [6, 8, 11, 19, 32].map(|minor| at(minor).sampler_decibytes_per_logit);
        assert_eq!(sampler, [386, 140, 386, 120, 120]);
        assert!((at(19).gpu_memory_utilization - 0.9).abs() < 1e-9);
        assert!((at(20).gpu_memory_utilization - 0.92).abs() < 1e-9);
        assert!(!at(13).async_by_default && at(14).async_by_default);
        assert!(!at(9).groups_windows && at(10).groups_windows);
        let freed = [22, 23, 24, 32].map(|minor| at(minor).freed_blocks);
        assert_eq!(
            freed,
            [
                FreedBlocks::AllLast,
                FreedBlocks::WindowsUnnamedFirst,
                FreedBlocks::UnnamedFirst,
                FreedBlocks::UnnamedFirst
            ]
        );
        let retention = [22, 23, 24, 28, 29].map(|minor| at(minor).retention);
        assert_eq!(
            retention,
            [
                RetentionRule::None,
                RetentionRule::Windows,
                RetentionRule::WindowsAndStates,
                RetentionRule::WindowsAndStates,
                RetentionRule::ZeroByDefault
            ]
        );
        let junctions = [23, 24, 26].map(|minor| at(minor).junctions);
        assert_eq!(
            junctions,
            [
                JunctionRule::None,
                JunctionRule::EndsChunk,
                JunctionRule::IsRetained
            ]
        );
    }

    #[test]
    fn gpus_before_ampere_keep_the_v0_engine_until_it_was_removed() {
        let volta = Gpu::new("v100", 7, 0, 32 << 30);
        let rules = |minor| Rules::on(Version::new(0, minor, 0), &volta);
        // The log of 0.8.5 on a V100 profiles 32,768 tokens in one step.
        assert_eq!(
            rules(8).batch_defaults(&volta, 32_768).max_num_batched_tokens,
            32_768
        );
        assert!(rules(8).v0(&volta) && !rules(11).v0(&volta));
        assert_eq!(rules(8).sampler_decibytes_per_logit, SORTING_SAMPLER);
        assert_eq!(
            rules(11).batch_defaults(&volta, 32_768).max_num_batched_tokens,
            2048
        );
        let ampere = Gpu::new("a10", 8, 6, 24 << 30);
        assert_eq!(
            Rules::on(Version::new(0, 8, 0), &ampere),
            Rules::of(Version::new(0, 8, 0))
        );
    }

    #[test]
    fn steps_grow_with_releases_and_memory() {
        let defaults = |minor, name: &str, gib: u64, length| {
            let major = if name == "h100" { 9 } else { 8 };
            let d = Rules::of(Version::new(0, minor, 0))
                .batch_defaults(&Gpu::new(name, major, 0, gib << 30), length);
            (d.max_num_batched_tokens, d.max_num_seqs)
        };
        assert_eq!(defaults(6, "rtx-3090", 24, 20_000), (20_000, 256));
        assert_eq!(defaults(6, "rtx-3090", 24, 131_072), (512, 256));
        assert_eq!(defaults(7, "rtx-3090", 24, 131_072), (2048, 256));
        assert_eq!(defaults(8, "h100", 80, 131_072), (8192, 256));
        assert_eq!(defaults(11, "h100", 80, 131_072), (8192, 1024));
        assert_eq!(defaults(11, "a100-80gb", 80, 131_072), (2048, 256));
        assert_eq!(defaults(26, "b200", 178, 131_072), (8192, 1024));
        assert_eq!(defaults(32, "b200", 178, 131_072), (16_384, 1024));
    }

    #[test]
    fn a_newer_version_has_the_newest_known_rules() {
        let future = Version::new(0, 99, 0);
        assert!(future.is_newer_than_known());
        assert_eq!(Rules::of(future), Rules::of(Version::NEWEST));
        assert!(!Version::new(0, 32, 7).is_newer_than_known());
        assert_eq!(
            Rules::of(Version::new(0, 19, 0)).tokens,
            TokensRule::BlocksOverGroups
        );
    }
}
