//! Attention backends: which one vLLM picks on a GPU, and the block sizes its kernels take.

mod choice;
mod support;

use std::fmt;

use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::version::ImageRule;
use crate::{Error, Result};

pub use choice::select;

/// An attention backend by the name that `--attention-backend` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the engine's own name")]
pub enum Backend {
    FlashAttn,
    FlashInfer,
    TritonAttn,
    FlexAttention,
    TurboQuant,
    CpuAttn,
    CpuMla,
    FlashAttnMla,
    FlashMla,
    FlashInferMla,
    TokenspeedMla,
    CutlassMla,
    TritonMla,
    FlashAttnMlaSparse,
    FlashMlaSparse,
    FlashInferMlaSparse,
    FlashInferMlaSparseSm90,
    FlashInferMlaSparseSm120,
    /// Triton where images see both ways, FlashAttention elsewhere.
    TritonFlashAttn,
    /// Triton where images see both ways, FlashInfer elsewhere.
    TritonFlashInfer,
    /// Storage of the sparse indexer; cannot be selected.
    Indexer,
    /// Storage of an indexer over pools of tokens (GLM-5-Next); cannot be selected.
    PooledIndexer,
    /// Storage and sparse attention of MiniMax-M3; cannot be selected.
    MinimaxIndexer,
    /// DeepSeek-V4's own; cannot be selected.
    DeepseekV4,
    /// DeepSeek-V4.1's own, with 8-bit states; cannot be selected.
    DeepseekV41,
    /// DeepSeek-V4.1's own on Blackwell, one kernel for all of attention, with 4-bit states; cannot be selected.
    DeepseekV41Mega,
}

/// A block size that a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelBlock {
    /// This number of tokens.
    Exactly(u64),
    /// Any multiple of this number of tokens.
    MultipleOf(u64),
}

impl KernelBlock {
    /// The smallest number of tokens it allows.
    pub const fn smallest(self) -> u64 {
        match self {
            Self::Exactly(n) | Self::MultipleOf(n) => n,
        }
    }
}

/// What a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Earlier tokens.
    Earlier,
    /// An encoder's output.
    Encoder,
    /// Earlier tokens, and all of an image where one stands (`is_mm_prefix_lm`).
    WholeImages(ImageRule),
}

/// What the choice of a backend depends on for one kind of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Whether the layer keeps a latent (MLA).
    pub latent: bool,
    /// Whether a sparse indexer selects its tokens.
    pub sparse: bool,
    /// Elements of a cached head or latent.
    pub head_size: u64,
    /// `qk_nope_head_dim` of latent attention.
    pub nope: u64,
    /// `qk_rope_head_dim` of latent attention.
    pub rope: u64,
    /// Query heads on this rank.
    pub query_heads: u64,
    /// Key/value heads on this rank.
    pub kv_heads: u64,
    /// What it attends to.
    pub sees: Sight,
    /// `--kv-cache-dtype` after `auto` is resolved.
    pub kv_dtype: KvDtype,
    /// `--block-size`, if the user gave one.
    pub block_size: Option<u64>,
    /// Decode context parallel size.
    pub dcp: u64,
    /// Tokens that one entry of an indexer covers, 1 elsewhere.
    pub pool: u64,
}

const NAMES: [(&str, Backend); 20] = [
    ("FLASH_ATTN", Backend::FlashAttn),
    ("FLASHINFER", Backend::FlashInfer),
    ("TRITON_ATTN", Backend::TritonAttn),
    ("FLEX_ATTENTION", Backend::FlexAttention),
    ("TURBOQUANT", Backend::TurboQuant),
    ("TRITON_FLASH_ATTN", Backend::TritonFlashAttn),
    ("TRITON_FLASHINFER", Backend::TritonFlashInfer),
    ("CPU_ATTN", Backend::CpuAttn),
    ("CPU_MLA", Backend::CpuMla),
    ("FLASH_ATTN_MLA", Backend::FlashAttnMla),
    ("FLASHMLA", Backend::FlashMla),
    ("FLASHINFER_MLA", Backend::FlashInferMla),
    ("TOKENSPEED_MLA", Backend::TokenspeedMla),
    ("CUTLASS_MLA", Backend::CutlassMla),
    ("TRITON_MLA", Backend::TritonMla),
    ("FLASH_ATTN_MLA_SPARSE", Backend::FlashAttnMlaSparse),
    ("FLASHMLA_SPARSE", Backend::FlashMlaSparse),
    ("FLASHINFER_MLA_SPARSE", Backend::FlashInferMlaSparse),
    ("FLASHINFER_MLA_SPARSE_SM90", Backend::FlashInferMlaSparseSm90),
    ("FLASHINFER_MLA_SPARSE_SM120", Backend::FlashInferMlaSparseSm120),
];

const FLASHINFER_SMALL: [KernelBlock; 3] = [
    KernelBlock::Exactly(16),
    KernelBlock::Exactly(32),
    KernelBlock::Exactly(64),
];
const FLASHINFER_LARGE: [KernelBlock; 7] = [
    KernelBlock::Exactly(16),
    KernelBlock::Exactly(32),
    KernelBlock::Exactly(64),
    KernelBlock::Exactly(128),
    KernelBlock::Exactly(256),
    KernelBlock::Exactly(512),
    KernelBlock::Exactly(1024),
];
const TURBOQUANT: [KernelBlock; 4] = [
    KernelBlock::Exactly(16),
    KernelBlock::Exactly(32),
    KernelBlock::Exactly(64),
    KernelBlock::Exactly(128),
];

/// Tokens in pages of 32 and 64 entries over pools of so many tokens; of the latter alone on compute capability 12
/// (vLLM 0.32.0, `get_paged_mqa_page_sizes` in `utils/deep_gemm.py`).
fn pooled_pages(pool: u64, gpu: Gpu) -> &'static [KernelBlock] {
    macro_rules! pages {
        ($($pool:literal)*) => {
            match pool {
                $($pool => {
                    const PAGES: [KernelBlock; 2] =
                        [KernelBlock::Exactly(32 * $pool), KernelBlock::Exactly(64 * $pool)];
                    &PAGES
                })*
                _ => &[KernelBlock::Exactly(32), KernelBlock::Exactly(64)],
            }
        };
    }
    let pages: &'static [KernelBlock] = pages!(2 4 8 16 32 64 128);
    if gpu.major == 12 { &pages[1..] } else { pages }
}

impl Backend {
    /// Parses the value of `--attention-backend`, in any case.
    ///
    /// # Errors
    /// If vLLM has no CUDA backend of that name.
    pub fn parse(text: &str) -> Result<Self> {
        let name = text.trim().to_ascii_uppercase().replace('-', "_");
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, backend)| backend)
            .ok_or_else(|| {
                let known: Vec<&str> = NAMES.iter().map(|&(known, _)| known).collect();
                Error::input(format!(
                    "--attention-backend {text} is not one of {}",
                    known.join(", ")
                ))
            })
    }

    /// The engine's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Indexer | Self::PooledIndexer => "DEEPSEEK_V32_INDEXER",
            Self::MinimaxIndexer => "MINIMAX_M3_SPARSE",
            Self::DeepseekV4 => "FLASHMLA_SPARSE_DSV4",
            Self::DeepseekV41 => "FLASHMLA_SPARSE_DSV41",
            Self::DeepseekV41Mega => "FLASHMLA_MEGA_ATTN_DSV41",
            other => NAMES
                .iter()
                .find(|&&(_, backend)| backend == other)
                .map_or("", |&(name, _)| name),
        }
    }

    /// Whether it reads latent caches.
    pub const fn is_latent(self) -> bool {
        !matches!(
            self,
            Self::FlashAttn
                | Self::FlashInfer
                | Self::TritonAttn
                | Self::FlexAttention
                | Self::TurboQuant
                | Self::CpuAttn
                | Self::TritonFlashAttn
                | Self::TritonFlashInfer
        )
    }

    /// Whether it reads latent caches through an indexer.
    pub const fn is_sparse(self) -> bool {
        matches!(
            self,
            Self::FlashAttnMlaSparse
                | Self::FlashMlaSparse
                | Self::FlashInferMlaSparse
                | Self::FlashInferMlaSparseSm90
                | Self::FlashInferMlaSparseSm120
        )
    }

    /// Block sizes of its kernels on a GPU for a kind of layer (`get_supported_kernel_block_sizes` of each file
    /// under `v1/attention/backends`, vLLM 0.32.0).
    pub fn kernel_blocks(self, gpu: Gpu, demand: &Demand) -> &'static [KernelBlock] {
        match self {
            // Both of a pair take Triton's blocks, or those that FlashAttention 4 fixes.
            Self::FlashAttn | Self::TritonFlashAttn if flash_attn_page(gpu, demand) == 64 => {
                &[KernelBlock::Exactly(64)]
            }
            Self::FlashAttn if flash_attn_page(gpu, demand) == 128 => &[KernelBlock::Exactly(128)],
            Self::FlashAttn
            | Self::TritonAttn
            | Self::FlexAttention
            | Self::TritonFlashAttn
            | Self::FlashAttnMla
            | Self::TritonMla => &[KernelBlock::MultipleOf(16)],
            // trtllm-gen kernels of grouped-query attention take large pages.
            Self::FlashInfer
                if gpu.major == 10 && demand.kv_heads > 0 && demand.query_heads / demand.kv_heads > 1 =>
            {
                &FLASHINFER_LARGE
            }
            Self::FlashInfer => &FLASHINFER_SMALL,
            Self::TurboQuant => &TURBOQUANT,
            Self::CpuMla => &[KernelBlock::Exactly(16)],
            Self::FlashMla | Self::Indexer | Self::TritonFlashInfer => &[KernelBlock::Exactly(64)],
            Self::FlashInferMla | Self::TokenspeedMla => {
                &[KernelBlock::Exactly(32), KernelBlock::Exactly(64)]
            }
            Self::PooledIndexer => pooled_pages(demand.pool, gpu),
            Self::FlashMlaSparse if gpu.major == 10 && !demand.kv_dtype.is_16_bit() => {
                &[KernelBlock::Exactly(64)]
            }
            Self::FlashAttnMlaSparse
            | Self::FlashMlaSparse
            | Self::FlashInferMlaSparseSm90
            | Self::FlashInferMlaSparseSm120 => &[KernelBlock::MultipleOf(64)],
            Self::FlashInferMlaSparse | Self::CpuAttn => &[KernelBlock::MultipleOf(32)],
            Self::DeepseekV4 => &[KernelBlock::Exactly(256)],
            Self::DeepseekV41 if gpu.major == 9 => &[KernelBlock::Exactly(64)],
            Self::CutlassMla | Self::MinimaxIndexer | Self::DeepseekV41 | Self::DeepseekV41Mega => {
                &[KernelBlock::Exactly(128)]
            }
        }
    }

    /// Whether a manager block of `block_size` tokens can be split into kernel blocks (`supports_block_size`).
    pub fn supports_block_size(self, gpu: Gpu, demand: &Demand, block_size: u64) -> bool {
        self.kernel_blocks(gpu, demand)
            .iter()
            .any(|kernel| block_size.is_multiple_of(kernel.smallest()))
    }

    /// The block size it takes when the user names none and `default` would do (`get_preferred_block_size`).
    pub fn preferred_block_size(self, gpu: Gpu, demand: &Demand, default: u64) -> u64 {
        if self.supports_block_size(gpu, demand, default) {
            return default;
        }
        self.kernel_blocks(gpu, demand)
            .iter()
            .map(|kernel| kernel.smallest())
            .min()
            .unwrap_or(default)
    }

    /// The cache type that this backend really stores for a requested one
    /// (`mla_attention.py` `_canonicalize_sparse_mla_kv_cache_dtype`).
    pub fn stored_kv_dtype(self, requested: KvDtype) -> KvDtype {
        match self {
            Self::FlashMlaSparse if !requested.is_16_bit() && requested != KvDtype::Nvfp4DsMla => {
                KvDtype::Fp8DsMla
            }
            Self::FlashInferMlaSparseSm120
                if matches!(requested, KvDtype::Auto | KvDtype::Fp8 | KvDtype::Fp8E4m3) =>
            {
                KvDtype::Fp8DsMla
            }
            _ => requested,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Page that `FlashAttention` 4 fixes: 64 for head size 512 with an 8-bit cache on Hopper, 128 for head size 256
/// on Blackwell (`v1/attention/backends/flash_attn.py`); 16 otherwise.
fn flash_attn_page(gpu: Gpu, demand: &Demand) -> u64 {
    let fp8 = matches!(demand.kv_dtype, KvDtype::Fp8 | KvDtype::Fp8E4m3);
    if gpu.major == 9 && demand.head_size == 512 && fp8 {
        64
    } else if gpu.major == 10 && demand.head_size == 256 && demand.kv_dtype.is_16_bit() && demand.dcp == 1 {
        128
    } else {
        16
    }
}

#[cfg(test)]
mod tests;
