//! Number formats of matrix products: bytes, peak rates, and which fitted coefficients they take.

use super::calibration::GpuSpec;
use super::kernel::Format;

/// Number format of the matrix products of a part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 16-bit weights and activations.
    Bf16,
    /// 8-bit float weights and activations, per tensor or per channel.
    Fp8,
    /// 8-bit float with 128 x 128 blocks.
    Fp8Block,
    /// NVIDIA 4-bit float weights and activations.
    Nvfp4,
    /// OCP 4-bit float weights, 16-bit activations.
    Mxfp4A16,
    /// OCP 4-bit float weights, 8-bit activations.
    Mxfp4A8,
    /// 4-bit integer weights, 16-bit activations (AWQ, GPTQ, compressed-tensors W4A16).
    Int4A16,
}

impl Precision {
    /// Key of the routed-expert coefficients.
    pub(super) fn moe_key(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8_block",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4A16 => "w4a16_mxfp4",
            Self::Mxfp4A8 => "w4a8_mxfp4_mxfp8",
            Self::Int4A16 => "int4_wo",
        }
    }

    /// Key of the matrix-product coefficients: block-wise fp8 uses those of fp8, whose fit does not contain the
    /// quantisation launches of the micro-benchmark; weight-only formats compute in 16 bits.
    pub(super) fn gemm_key(self) -> &'static str {
        match self {
            Self::Fp8 | Self::Fp8Block => "fp8",
            Self::Nvfp4 => "nvfp4",
            Self::Bf16 | Self::Mxfp4A16 | Self::Mxfp4A8 | Self::Int4A16 => "bfloat16",
        }
    }

    /// Bytes an element and peak rate on this GPU. Formats that its matrix units lack compute in 16 bits.
    pub(super) fn format(self, gpu: &GpuSpec) -> Format {
        let f8 = gpu.f8.unwrap_or(gpu.f16);
        let (weight_bytes, activation_bytes, rate) = match self {
            Self::Bf16 => (2.0, 2.0, gpu.f16),
            Self::Fp8 | Self::Fp8Block => (1.0, 1.0, f8),
            // Four bits and a scale byte for each 16 elements.
            Self::Nvfp4 => (0.5625, 0.5625, gpu.f4.unwrap_or(f8)),
            // Four bits and a scale byte for each 32 elements.
            Self::Mxfp4A16 => (0.53125, 2.0, gpu.f16),
            Self::Mxfp4A8 => (0.53125, 1.0, f8),
            Self::Int4A16 => (0.53, 2.0, gpu.f16),
        };
        Format {
            weight_bytes,
            activation_bytes,
            rate,
        }
    }
}
