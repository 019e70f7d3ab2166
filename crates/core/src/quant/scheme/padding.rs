//! What the kernels of 4-bit block-scaled experts add to the checkpoint's tensors.

use super::Sum;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Rows and columns to which the kernel of 4-bit block-scaled experts pads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mxfp4Padding {
    /// Multiple of the model width.
    pub hidden: u64,
    /// Multiple of an expert's width on one rank.
    pub intermediate: u64,
    /// Whether the scales are rearranged for the kernel into tiles of 256 rows, with biases in 32 bits.
    pub swizzled: bool,
    /// Whether the scales as they were read stay beside those.
    pub keeps_scales: bool,
}

impl Mxfp4Padding {
    /// As the checkpoint has them.
    pub const NONE: Self = Self {
        hidden: 1,
        intermediate: 64,
        swizzled: false,
        keeps_scales: false,
    };
    /// The Triton kernels that vLLM takes on compute capability 9.x (`quantization/utils/mxfp4_utils.py`,
    /// `_swizzle_mxfp4`): rows of scales in tiles of 256, biases in float32.
    pub const TRITON: Self = Self {
        swizzled: true,
        ..Self::NONE
    };
    /// The same before vLLM pull request 46549 of June 2026 freed the scales that nothing reads any more. With them
    /// gpt-oss-20b takes 13.4 GiB (0.11.0 on an H100 logs 13.47), gpt-oss-120b 64.3 (0.14.1 logs 64.38).
    pub const TRITON_KEEPS: Self = Self {
        keeps_scales: true,
        ..Self::TRITON
    };
    /// The `TensorRT-LLM` kernels that it takes on 10.x.
    pub const TRTLLM: Self = Self {
        hidden: 256,
        intermediate: 128,
        swizzled: false,
        keeps_scales: false,
    };
    /// Marlin, where no other kernel supports the GPU.
    pub const MARLIN: Self = Self::TRTLLM;
}

/// What rearranging the scales of 4-bit block-scaled experts adds to them: rows in tiles of 256, and themselves where the
/// old ones stay.
pub(super) fn swizzled_scales(
    sum: &mut Sum,
    experts: u64,
    hidden: u64,
    intermediate: u64,
    parts: u64,
    padding: Mxfp4Padding,
) -> Result<()> {
    let what = sum.what;
    let overflow = || Error::overflow(format_args!("the padded scales of {what}"));
    let rows = intermediate.checked_mul(parts).ok_or_else(overflow)?;
    for (rows, inputs) in [(rows, hidden), (hidden, intermediate)] {
        let padded = rows.checked_next_multiple_of(256).ok_or_else(overflow)?;
        let more = if padding.keeps_scales {
            padded
        } else {
            padded - rows
        };
        sum.add(Dtype::U8, &[experts, more, inputs / 32])?;
    }
    Ok(())
}
