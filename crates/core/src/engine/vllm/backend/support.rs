//! What each backend can serve, by its own checks.

use super::{Backend, Demand, Sight};
use crate::engine::vllm::gpu::Gpu;
use crate::engine::vllm::kv_dtype::KvDtype;
use crate::engine::vllm::version::ImageRule;

impl Backend {
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
            | Self::TritonFlashInfer
            | Self::DeepseekV41Mega => gpu.major == 10,
            Self::FlashMlaSparse | Self::DeepseekV4 | Self::DeepseekV41 => gpu.major == 9 || gpu.major == 10,
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
            | Self::DeepseekV4
            | Self::DeepseekV41
            | Self::DeepseekV41Mega => size > 0,
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
            Self::Indexer
            | Self::PooledIndexer
            | Self::MinimaxIndexer
            | Self::DeepseekV4
            | Self::DeepseekV41
            | Self::DeepseekV41Mega => true,
        }
    }
}
