//! The releases' differing rules, one row a change.

use super::{
    BatchRule, FreedBlocks, ImageRule, JunctionRule, LatentBlocks, RetentionRule, Rules, SORTING_SAMPLER,
    StateCaching, TokensRule, Version, WideHeads,
};

/// One change: from `since` on, `apply` holds.
pub(super) struct Change {
    pub(super) since: Version,
    /// Where the rule was read or measured.
    pub(super) source: &'static str,
    pub(super) what: &'static str,
    pub(super) apply: fn(&mut Rules),
}

/// Rules before the first row: releases of the V1 engine up to 0.20.
pub(super) const OLDEST: Rules = Rules {
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
    state_caching: StateCaching::Never,
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
pub(super) const CHANGES: [Change; 37] = [
    Change {
        since: Version::new(0, 6, 5),
        source: "vllm-project/vllm pull request 10544, opened in November 2024",
        what: "split prompts take 2048 tokens a step, not 512",
        apply: |rules| rules.batch = BatchRule::WholePrompt { chunk: 2048 },
    },
    Change {
        since: Version::new(0, 8, 0),
        source: "engine/arg_utils.py of 0.8.0 (_set_default_args_v1); vllm-project/vllm pull request 12369",
        what: "prompts are split: 2048 tokens a step, 8192 on H100 and H200; 1024 sequences",
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
        since: Version::new(0, 8, 5),
        source: "engine/arg_utils.py of 0.8.5 and 0.8.0; the release between is not certain",
        what: "8192 tokens and 1024 sequences from 70 GiB on, else 2048 and 256",
        apply: |rules| rules.batch = BatchRule::ByMemoryAlone,
    },
    Change {
        since: Version::new(0, 9, 0),
        source: "engine/arg_utils.py of 0.9.2 and 0.8.5; vllm-project/vllm pull request 17885",
        what: "not on the A100",
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
        since: Version::new(0, 11, 1),
        source: "vllm-project/vllm pull request 25752, reviewed in October 2025 after 0.11.0; model_executor/models/config.py of \
                 commit 0144dd5b switches it off",
        what: "prefixes of models with recurrent states are cached where the user says so",
        apply: |rules| rules.state_caching = StateCaching::OnRequest,
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
        source: "config/cache.py of 0.19.1 and 0.20.0; vllm-project/vllm pull request 38284",
        what: "utilization defaults to 0.92",
        apply: |rules| rules.gpu_memory_utilization = 0.92,
    },
    Change {
        since: Version::new(0, 20, 0),
        source: "envs.py of 0.19.1 and 0.20.0 (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS; its message says 0.21)",
        what: "the CUDA graph estimate is taken off the KV budget",
        apply: |rules| rules.subtracts_cuda_graph_estimate = true,
    },
    Change {
        since: Version::new(0, 20, 1),
        source: "v1/core/kv_cache_utils.py of 0.20.0 and 0.20.1",
        what: "the logged tokens are concurrency times length, not blocks over groups",
        apply: |rules| rules.tokens = TokensRule::ConcurrencyTimesLength,
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
        since: Version::new(0, 28, 0),
        source: "engine/arg_utils.py of 0.27.0 and 0.28.0; vllm-project/vllm pull request 51726",
        what: "16,384 tokens a step from 160 GiB on",
        apply: |rules| rules.batch = BatchRule::ByMemoryAndLarger,
    },
    Change {
        since: Version::new(0, 28, 0),
        source: "vllm-project/vllm pull request 50991 of August 2026 (engine/arg_utils.py kept it opt-in until then); \
                 vllm-project/vllm-metal pull request 651 says it of 0.28.0",
        what: "prefixes of models with recurrent states are cached by default",
        apply: |rules| rules.state_caching = StateCaching::AsOthers,
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
