//! Attention backends: which one vLLM picks on a GPU, and the block sizes its kernels take.

use std::fmt;

use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::version::ImageRule;
use crate::{Error, Result};

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
            Self::CutlassMla | Self::MinimaxIndexer => &[KernelBlock::Exactly(128)],
            Self::FlashMlaSparse if gpu.major == 10 && !demand.kv_dtype.is_16_bit() => {
                &[KernelBlock::Exactly(64)]
            }
            Self::FlashAttnMlaSparse
            | Self::FlashMlaSparse
            | Self::FlashInferMlaSparseSm90
            | Self::FlashInferMlaSparseSm120 => &[KernelBlock::MultipleOf(64)],
            Self::FlashInferMlaSparse | Self::CpuAttn => &[KernelBlock::MultipleOf(32)],
            Self::DeepseekV4 => &[KernelBlock::Exactly(256)],
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

    /// Why it cannot serve this kind of layer, in the engine's words; `None` if it can.
    ///
    /// Follows `AttentionBackend.validate_configuration` and each backend's overrides (vLLM 0.32.0). The optional
    /// package of `TOKENSPEED_MLA` counts as not installed, those of the others as installed.
    pub fn invalid_reason(self, gpu: Gpu, demand: &Demand) -> Option<&'static str> {
        if self.is_latent() != demand.latent {
            return Some(if demand.latent {
                "MLA not supported"
            } else {
                "non-MLA not supported"
            });
        }
        if self.is_sparse() != demand.sparse {
            return Some(if demand.sparse {
                "sparse not supported"
            } else {
                "non-sparse not supported"
            });
        }
        if !self.supports_capability(gpu) {
            return Some("compute capability not supported");
        }
        if !self.supports_head_size(gpu, demand) {
            return Some("head_size not supported");
        }
        if !self.supports_kv_dtype(gpu, demand) {
            return Some("kv_cache_dtype not supported");
        }
        if demand
            .block_size
            .is_some_and(|n| !self.supports_block_size(gpu, demand, n))
        {
            return Some("block_size not supported");
        }
        match demand.sees {
            Sight::Encoder if !matches!(self, Self::FlashAttn | Self::TritonAttn) => {
                return Some("attention type encoder_decoder not supported");
            }
            Sight::WholeImages(_) => {
                if let Some(reason) = self.blind_to_images(gpu, demand) {
                    return Some(reason);
                }
            }
            Sight::Earlier | Sight::Encoder => {}
        }
        match self {
            Self::TokenspeedMla => Some("tokenspeed_mla package is not installed"),
            Self::FlashInferMla if ![64, 128, 192].contains(&demand.nope) => {
                Some("FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192]")
            }
            Self::FlashInferMlaSparse if demand.rope != 0 && ![128, 192].contains(&demand.nope) => {
                Some("FlashInfer MLA Sparse kernel requires qk_nope_head_dim in [128, 192]")
            }
            Self::FlashAttnMlaSparse if demand.dcp > 1 => {
                Some("FlashAttention MLA Sparse does not support DCP for now")
            }
            Self::FlashMlaSparse if demand.head_size == 512 && (gpu.major != 9 || demand.rope != 0) => {
                Some("FLASHMLA_SPARSE supports head_size 512 only for rope-free (NoPE) models on SM90")
            }
            _ => None,
        }
    }

    /// Why it cannot let the tokens of an image see each other (`supports_mm_prefix` and `supports_combination` of each
    /// file under `v1/attention/backends`, vLLM 0.32.0).
    fn blind_to_images(self, gpu: Gpu, demand: &Demand) -> Option<&'static str> {
        match self {
            // A CPU has one backend, and no other question is asked.
            Self::TritonAttn
            | Self::FlexAttention
            | Self::TritonFlashAttn
            | Self::TritonFlashInfer
            | Self::CpuAttn => None,
            // FlashAttention 4 alone can.
            Self::FlashAttn
                if !(9..=11).contains(&gpu.major) || demand.sees == Sight::WholeImages(ImageRule::Triton) =>
            {
                Some("partial multimodal token full attention not supported")
            }
            Self::FlashAttn if gpu.major == 9 && !demand.kv_dtype.is_16_bit() => {
                Some("SM90 FP8 KV with mm_prefix requires Triton")
            }
            Self::FlashAttn => {
                let four = if gpu.major == 9 {
                    demand.head_size > 256
                } else {
                    demand.head_size <= 128
                };
                (!four).then_some(
                    "mm_prefix (PrefixLM bidirectional attention) requires FlashAttention v4, which does not resolve for \
                     this head_size",
                )
            }
            _ => Some("partial multimodal token full attention not supported"),
        }
    }

    fn supports_capability(self, gpu: Gpu) -> bool {
        match self {
            Self::CpuAttn | Self::CpuMla => gpu.is_cpu(),
            Self::FlashAttn | Self::FlashInfer => gpu.major >= 8 && gpu.major <= 12,
            Self::TritonAttn
            | Self::FlexAttention
            | Self::TurboQuant
            | Self::TritonMla
            | Self::Indexer
            | Self::PooledIndexer
            | Self::MinimaxIndexer => true,
            Self::FlashAttnMla
            | Self::FlashMla
            | Self::FlashAttnMlaSparse
            | Self::FlashInferMlaSparseSm90
            | Self::TritonFlashAttn => gpu.major == 9,
            Self::FlashInferMla
            | Self::TokenspeedMla
            | Self::CutlassMla
            | Self::FlashInferMlaSparse
            | Self::TritonFlashInfer => gpu.major == 10,
            Self::FlashMlaSparse | Self::DeepseekV4 => gpu.major == 9 || gpu.major == 10,
            Self::FlashInferMlaSparseSm120 => gpu.major == 12,
        }
    }

    fn supports_head_size(self, gpu: Gpu, demand: &Demand) -> bool {
        let size = demand.head_size;
        match self {
            // FlashAttention 4 (9.x to 11.x) goes up to 512.
            Self::FlashAttn => {
                size.is_multiple_of(8) && size <= if (9..=11).contains(&gpu.major) { 512 } else { 256 }
            }
            Self::FlashInfer => [64, 128, 256, 512].contains(&size),
            Self::TritonFlashAttn | Self::TritonFlashInfer => [256, 512].contains(&size),
            Self::TritonAttn => size >= 32,
            Self::CpuAttn => [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512].contains(&size),
            Self::FlashAttnMla
            | Self::FlashMla
            | Self::FlashInferMla
            | Self::TokenspeedMla
            | Self::CutlassMla => [320, 512, 576].contains(&size),
            Self::FlashMlaSparse | Self::FlashInferMlaSparseSm90 => [512, 576].contains(&size),
            Self::FlexAttention
            | Self::TurboQuant
            | Self::CpuMla
            | Self::TritonMla
            | Self::FlashAttnMlaSparse
            | Self::FlashInferMlaSparse
            | Self::FlashInferMlaSparseSm120
            | Self::Indexer
            | Self::PooledIndexer
            | Self::MinimaxIndexer
            | Self::DeepseekV4 => size > 0,
        }
    }

    fn supports_kv_dtype(self, gpu: Gpu, demand: &Demand) -> bool {
        let dtype = demand.kv_dtype;
        let fp8_e4m3 = matches!(dtype, KvDtype::Fp8 | KvDtype::Fp8E4m3);
        let fp8 = fp8_e4m3 || dtype == KvDtype::Fp8E5m2;
        match self {
            Self::FlashAttn => {
                dtype.is_16_bit()
                    || fp8_e4m3
                        && match gpu.major {
                            9 => demand.head_size <= 256 || demand.head_size == 512,
                            10 => demand.head_size <= 128,
                            _ => false,
                        }
            }
            Self::FlashInfer => {
                dtype.is_16_bit()
                    || fp8
                    || (dtype == KvDtype::Nvfp4 && (gpu.major == 10 || demand.head_size != 64))
                    || (dtype == KvDtype::Nvfp4FourOverSix && gpu.major == 10)
            }
            // A pair takes what both of its kernels take.
            Self::CpuAttn | Self::TritonFlashInfer => dtype.is_16_bit() || fp8,
            Self::TritonAttn => dtype.is_16_bit() || fp8 || dtype.is_per_token_head(),
            Self::FlexAttention | Self::FlashAttnMla | Self::FlashAttnMlaSparse | Self::CpuMla => {
                dtype.is_16_bit()
            }
            Self::TurboQuant => dtype.is_packed() && dtype != KvDtype::Ultraquant4bit,
            Self::FlashMla
            | Self::FlashInferMla
            | Self::CutlassMla
            | Self::TritonMla
            | Self::TritonFlashAttn
            | Self::FlashInferMlaSparse => dtype.is_16_bit() || fp8_e4m3,
            Self::TokenspeedMla => fp8_e4m3,
            Self::FlashMlaSparse => {
                matches!(
                    dtype,
                    KvDtype::Auto | KvDtype::Bfloat16 | KvDtype::Fp8 | KvDtype::Fp8E4m3 | KvDtype::Fp8DsMla
                ) || (dtype == KvDtype::Nvfp4DsMla && gpu.major == 10)
            }
            Self::FlashInferMlaSparseSm90 => matches!(dtype, KvDtype::Auto | KvDtype::Bfloat16) || fp8_e4m3,
            Self::FlashInferMlaSparseSm120 => matches!(dtype, KvDtype::Auto | KvDtype::Fp8DsMla) || fp8_e4m3,
            Self::Indexer | Self::PooledIndexer | Self::MinimaxIndexer | Self::DeepseekV4 => true,
        }
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

/// Backends in the order of preference (`platforms/cuda.py`, `_get_backend_priorities`, vLLM 0.32.0).
fn priorities(gpu: Gpu, demand: &Demand) -> &'static [Backend] {
    use Backend::{
        CutlassMla, FlashAttn, FlashAttnMla, FlashAttnMlaSparse, FlashInfer, FlashInferMla,
        FlashInferMlaSparse, FlashInferMlaSparseSm90, FlashInferMlaSparseSm120, FlashMla, FlashMlaSparse,
        FlexAttention, TokenspeedMla, TritonAttn, TritonFlashAttn, TritonFlashInfer, TritonMla, TurboQuant,
    };
    match (demand.latent, demand.sparse, gpu.major) {
        // Without AMX tiles (platforms/cpu.py, get_attn_backend_cls).
        (false, _, 0) => &[Backend::CpuAttn],
        (true, _, 0) => &[Backend::CpuMla],
        (false, _, 9) if demand.sees == Sight::WholeImages(ImageRule::Pair) => &[
            TritonFlashAttn,
            FlashAttn,
            FlashInfer,
            TritonAttn,
            FlexAttention,
            TurboQuant,
        ],
        (false, _, 10) if demand.sees == Sight::WholeImages(ImageRule::Pair) => &[
            TritonFlashInfer,
            FlashInfer,
            FlashAttn,
            TritonAttn,
            FlexAttention,
            TurboQuant,
        ],
        (false, _, 10) => &[FlashInfer, FlashAttn, TritonAttn, FlexAttention, TurboQuant],
        (false, _, _) => &[FlashAttn, FlashInfer, TritonAttn, FlexAttention, TurboQuant],
        (true, false, 10) => &[
            FlashInferMla,
            TokenspeedMla,
            CutlassMla,
            FlashAttnMla,
            FlashMla,
            TritonMla,
        ],
        (true, false, 12) => &[TritonMla],
        (true, false, _) => &[FlashAttnMla, FlashMla, FlashInferMla, TritonMla],
        (true, true, 10) if !demand.kv_dtype.is_16_bit() || demand.query_heads <= 16 => {
            &[FlashInferMlaSparse, FlashMlaSparse]
        }
        (true, true, 10) => &[FlashMlaSparse, FlashInferMlaSparse],
        (true, true, 12) => &[FlashInferMlaSparseSm120],
        (true, true, _) if demand.head_size == 512 => {
            &[FlashInferMlaSparseSm90, FlashAttnMlaSparse, FlashMlaSparse]
        }
        (true, true, _) => &[FlashAttnMlaSparse, FlashMlaSparse, FlashInferMlaSparseSm90],
    }
}

/// The backend vLLM takes for a kind of layer, or why it has none.
///
/// # Errors
/// The reason in the engine's words, where no backend, or not the `forced` one, supports the combination.
pub fn select(gpu: Gpu, demand: &Demand, forced: Option<Backend>) -> Result<Backend, String> {
    if let Some(backend) = forced {
        return match backend.invalid_reason(gpu, demand) {
            None => Ok(backend),
            Some(reason) => Err(format!(
                "Selected backend {backend} is not valid for this configuration. Reason: ['{reason}']"
            )),
        };
    }
    let mut reasons = Vec::new();
    for &backend in priorities(gpu, demand) {
        match backend.invalid_reason(gpu, demand) {
            None => return Ok(backend),
            Some(reason) => reasons.push(format!("{backend}: [{reason}]")),
        }
    }
    Err(format!(
        "No valid attention backend found for compute capability {}.{} with head_size={}, kv_cache_dtype={}, use_mla={}, use_sparse={}. Reasons: {{{}}}",
        gpu.major,
        gpu.minor,
        demand.head_size,
        demand.kv_dtype,
        demand.latent,
        demand.sparse,
        reasons.join(", ")
    ))
}

#[cfg(test)]
mod tests;
