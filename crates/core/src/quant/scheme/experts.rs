//! What routed experts register under each number format.

use super::{Layout, OddBlocks, Packed, Scheme, Sum, groups};
use crate::dtype::Dtype;
use crate::{Error, Result};

impl Packed {
    /// Whether Marlin's kernels run experts of these widths; others are packed by bytes (vLLM 0.32.0,
    /// `check_moe_marlin_supports_config` with padded tiles in `quantization/utils/marlin_utils.py`).
    pub(super) fn fits_marlin(&self, hidden: u64, width: u64) -> bool {
        self.layout == Layout::CompressedTensors
            || self.layout != Layout::Bytes
                && hidden.is_multiple_of(128)
                && match self.group {
                    None => self.pads_tiles || width.is_multiple_of(64),
                    Some(group) => {
                        let tile = if self.pads_tiles { group } else { group.max(64) };
                        matches!(group, 32 | 64 | 128) && width.is_multiple_of(tile)
                    }
                }
    }

    /// Experts packed by bytes in groups halved until they divide both widths (vLLM 0.32.0, `MoeWNA16Method` in
    /// `quantization/moe_wna16.py`).
    fn experts_in_bytes(&self, sum: &mut Sum, e: u64, both: [(u64, u64); 2], model: Dtype) -> Result<()> {
        let what = sum.what;
        let refused = |why: &str| {
            Err(Error::unsupported(format!("{what}: {why}")).hint("choose a smaller tensor-parallel size"))
        };
        let Some(mut group) = self.group else {
            return refused("experts without groups need a model width that 128 divides");
        };
        while both.iter().any(|(_, k)| !k.is_multiple_of(group)) {
            group /= 2;
            if group < 32 {
                return refused("no group of 32 inputs or more divides the experts on a rank");
            }
        }
        for (n, k) in both {
            let per_byte = 8 / self.bits;
            sum.add(Dtype::U8, &[e, n, k / per_byte])?;
            sum.add(model, &[e, n, k / group])?;
            if self.asymmetric {
                sum.add(Dtype::U8, &[e, n / per_byte, k / group])?;
            }
        }
        Ok(())
    }
}

impl Scheme {
    pub(super) fn experts(
        self,
        sum: &mut Sum,
        e: u64,
        hidden: u64,
        width: u64,
        parts: u64,
        model: Dtype,
    ) -> Result<()> {
        let what = sum.what;
        // Both projections: outputs times inputs.
        let up = parts
            .checked_mul(width)
            .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
        let both = [(up, hidden), (hidden, width)];
        match self {
            Self::Fp8Tensor { static_input } => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                }
                // A scale for each of gate and up, and one for down; activations have one each.
                sum.add(Dtype::F32, &[e, parts + 1])?;
                if static_input {
                    sum.add(Dtype::F32, &[e, 2])?;
                }
            }
            Self::Fp8Bounded => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                    sum.add(Dtype::F32, &[e, n])?;
                }
            }
            Self::Bnb4 => {
                for (n, k) in both {
                    let elements = n
                        .checked_mul(k)
                        .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
                    sum.add(Dtype::U8, &[e, elements.div_ceil(2)])?;
                    sum.add(Dtype::F32, &[e, elements.div_ceil(64)])?;
                }
            }
            Self::Fp8Channel { static_input } => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                    sum.add(Dtype::F32, &[e, n])?;
                }
                if static_input {
                    sum.add(Dtype::F32, &[e, 2])?;
                }
            }
            Self::Fp8OnLoad => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                }
                sum.add(Dtype::F32, &[e, 2])?;
            }
            Self::Fp8Block {
                outputs: block_n,
                inputs: block_k,
                odd,
                ..
            } => {
                let (mut bn, mut bk) = (block_n, block_k);
                let (mut hidden, mut width) = (hidden, width);
                match odd {
                    OddBlocks::Pad => {
                        let up = |n: u64| {
                            n.checked_next_multiple_of(block_n)
                                .ok_or_else(|| Error::overflow(format_args!("the padded size of {what}")))
                        };
                        (hidden, width) = (up(hidden)?, up(width)?);
                    }
                    _ if width.is_multiple_of(block_n) => {}
                    OddBlocks::Refine => {
                        // vLLM 0.32.0, `refine_fp8_moe_block_shape` in fused_moe/oracle/fp8.py.
                        let finer = gcd(gcd(block_n, block_k), gcd(width, hidden));
                        if finer < 32 {
                            return Err(odd_width(what, width, block_n));
                        }
                        (bn, bk) = (finer, finer);
                    }
                    OddBlocks::Refuse => return Err(odd_width(what, width, block_n)),
                    OddBlocks::Take => {}
                }
                let up = parts
                    .checked_mul(width)
                    .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
                sum.add(Dtype::F8E4m3, &[e, up, hidden])?;
                sum.add(Dtype::F8E4m3, &[e, hidden, width])?;
                sum.add(Dtype::F32, &[e, parts, width.div_ceil(bn), hidden.div_ceil(bk)])?;
                sum.add(Dtype::F32, &[e, hidden.div_ceil(bn), width.div_ceil(bk)])?;
            }
            Self::Mxfp8 => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                    sum.add(Dtype::U8, &[e, n, groups(what, k, 32)?])?;
                }
            }
            Self::Int4InBytes { group } => {
                let dtype = if group.is_some() { Dtype::Bf16 } else { Dtype::F32 };
                // Gate and up are both there, whether the model has both or not.
                let both = [(width.checked_mul(2), hidden), (Some(hidden), width)];
                for (n, k) in both {
                    let n = n.ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
                    sum.add(Dtype::I8, &[e, n, k])?;
                    sum.add(dtype, &[e, n, group.map_or(1, |group| k / group)])?;
                }
            }
            Self::Int8WithZeros {
                per_channel,
                static_input,
            } => {
                for (n, k) in both {
                    sum.add(Dtype::I8, &[e, n, k])?;
                }
                let scales = if per_channel { [up, hidden] } else { [parts, 1] };
                for scales in scales {
                    sum.add(Dtype::F32, &[e, scales])?;
                    sum.add(Dtype::I8, &[e, scales])?;
                }
                if static_input {
                    sum.add(Dtype::F32, &[e, 2])?;
                }
                sum.add(Dtype::I8, &[e, parts + 1])?;
            }
            Self::Int4InWords { group } => {
                let packed = Packed {
                    bits: 4,
                    group: Some(group),
                    zeros: true,
                    asymmetric: true,
                    pads_tiles: true,
                    layout: Layout::Bytes,
                };
                packed.experts_in_bytes(sum, e, both, model)?;
            }
            Self::Rotated { .. } => {
                return Err(Error::unsupported(format!(
                    "{what}: FP-Quant has no scheme for experts"
                )));
            }
            Self::Int8 { static_input, .. } => {
                for (n, k) in both {
                    sum.add(Dtype::I8, &[e, n, k])?;
                    sum.add(Dtype::F32, &[e, n])?;
                }
                if static_input {
                    sum.add(Dtype::F32, &[e, 2])?;
                }
            }
            // `AutoAWQMoEMethod` counts groups of -1 inputs.
            Self::Packed(Packed {
                layout: Layout::Awq,
                group: None,
                ..
            }) => {
                return Err(Error::unsupported(format!(
                    "{what}: vLLM 0.32.0 builds no AWQ experts without groups (group_size -1)"
                )));
            }
            Self::Packed(p) if !p.fits_marlin(hidden, width) => p.experts_in_bytes(sum, e, both, model)?,
            Self::Packed(p) if p.layout == Layout::CompressedTensors => {
                let words = |n: u64| {
                    n.checked_mul(p.bits)
                        .map(|bits| bits / 32)
                        .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))
                };
                for (n, k) in both {
                    let scales = p.group.map_or(Ok(1), |group| groups(what, k, group))?;
                    sum.add(Dtype::I32, &[e, n, words(k)?])?;
                    sum.add(model, &[e, scales, n])?;
                    if p.zeros {
                        sum.add(Dtype::I32, &[e, scales, words(n)?])?;
                    }
                    // The unpacked shape, in the model's element type here.
                    sum.add(model, &[e, 2])?;
                }
            }
            Self::Packed(p) => {
                let per_word = 32 / p.bits;
                for (n, k) in both {
                    let scales = match p.group {
                        Some(g) => groups(what, k, g)?,
                        None => 1,
                    };
                    let words = if p.layout == Layout::Awq {
                        [k, n / per_word]
                    } else {
                        [k / per_word, n]
                    };
                    sum.add(Dtype::I32, &[e, words[0], words[1]])?;
                    sum.add(model, &[e, scales, n])?;
                    if p.zeros {
                        sum.add(Dtype::I32, &[e, scales, n / per_word])?;
                    }
                }
            }
            Self::Nvfp4(_) => {
                for (n, k) in both {
                    sum.add(Dtype::U8, &[e, n, k / 2])?;
                    sum.add(Dtype::F8E4m3, &[e, n, groups(what, k, 16)?])?;
                }
                sum.add(Dtype::F32, &[e, parts + 1])?;
                // Experts register input scales whatever the activations are.
                sum.add(Dtype::F32, &[e, parts + 1])?;
            }
            Self::Nvfp4OnLoad => {
                for (n, k) in both {
                    sum.add(Dtype::U8, &[e, n, k / 2])?;
                    sum.add(Dtype::F8E4m3, &[e, n, groups(what, k, 16)?])?;
                }
                // A scale a matrix for weights, and one for activations.
                sum.add(Dtype::F32, &[e, 4])?;
            }
            Self::Mxfp4 | Self::Mxfp4StaticInput => {
                for (n, k) in both {
                    sum.add(Dtype::U8, &[e, n, k / 2])?;
                    sum.add(Dtype::U8, &[e, n, k / 32])?;
                }
                if self == Self::Mxfp4StaticInput {
                    sum.add(Dtype::F32, &[e, 2])?;
                }
            }
        }
        Ok(())
    }
}

/// Experts that blocks do not divide.
fn odd_width(what: &str, width: u64, block: u64) -> Error {
    Error::unsupported(format!(
        "{what}: The output_size of gate's and up's weight = {width} is not divisible by weight quantization block_n = \
         {block}."
    ))
    .hint("choose a smaller tensor-parallel size, or --enable-expert-parallel")
}

/// The greatest common divisor.
const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
