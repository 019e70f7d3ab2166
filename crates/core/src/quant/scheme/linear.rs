//! What a linear module, a head or an embedding registers under each number format.

use super::{InputScale, Layout, OddBlocks, Scheme, Sum, groups};
use crate::dtype::Dtype;
use crate::{Error, Result};

impl Scheme {
    /// Whether blocks divide what the ranks hold (vLLM 0.32.0, `validate_fp8_block_shape` in `utils/fp8_utils.py`, and
    /// `_maybe_allow_fp8_block_shape_mismatch` in `layers/linear.py`).
    ///
    /// # Errors
    /// If the engine would refuse the shape.
    pub(super) fn fits_blocks(
        self,
        what: &str,
        (k, k_full): (u64, u64),
        outputs: &[u64],
        outputs_full: u64,
    ) -> Result<()> {
        let Self::Fp8Block {
            outputs: block_n,
            inputs: block_k,
            odd,
            ..
        } = self
        else {
            return Ok(());
        };
        let on_rank = outputs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let (fused, divided) = (outputs.len() > 1, on_rank != outputs_full);
        let odd_part = |parts: &[u64]| parts.iter().copied().find(|part| !part.is_multiple_of(block_n));
        let refused = |size: u64, of: &str, block: u64| {
            Err(Error::unsupported(format!(
                "{what}: {size} {of} on a rank are no multiple of the weight quantization block of {block}"
            ))
            .hint("choose a smaller tensor-parallel size"))
        };
        match odd {
            OddBlocks::Pad => return Ok(()),
            OddBlocks::Take if k.is_multiple_of(block_k) => return Ok(()),
            OddBlocks::Take => return refused(k, "inputs", block_k),
            OddBlocks::Refine if fused && odd_part(outputs).is_some() => return Ok(()),
            OddBlocks::Refine | OddBlocks::Refuse => {}
        }
        if k != k_full && !k.is_multiple_of(block_k) {
            return refused(k, "inputs", block_k);
        }
        let parts = match outputs {
            parts if divided => parts,
            // The last of several whole matrices may have a rest.
            [parts @ .., _] => parts,
            [] => &[],
        };
        match odd_part(parts) {
            Some(size) => refused(size, "outputs", block_n),
            None => Ok(()),
        }
    }

    pub(super) fn linear(
        self,
        sum: &mut Sum,
        k: u64,
        outputs: &[u64],
        k_full: u64,
        model: Dtype,
    ) -> Result<()> {
        let what = sum.what;
        let n = outputs
            .iter()
            .try_fold(0u64, |t, &o| t.checked_add(o))
            .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
        let parts = outputs.len() as u64;
        match self {
            Self::Fp8Tensor { static_input } => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::F32, &[parts])?;
                if static_input {
                    sum.add(Dtype::F32, &[parts])?;
                }
            }
            Self::Fp8Channel { static_input } => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::F32, &[n])?;
                if static_input {
                    sum.add(Dtype::F32, &[parts])?;
                }
            }
            Self::Fp8Bounded => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::F32, &[n])?;
                sum.add(Dtype::F32, &[1])?;
            }
            Self::Bnb4 => {
                let elements = n
                    .checked_mul(k)
                    .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))?;
                sum.add(Dtype::U8, &[elements.div_ceil(2)])?;
                sum.add(Dtype::F32, &[elements.div_ceil(64)])?;
            }
            Self::Fp8OnLoad => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::F32, &[1])?;
            }
            Self::Fp8Block {
                outputs: bn,
                inputs: bk,
                scale,
                ..
            } => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(scale, &[n.div_ceil(bn), k.div_ceil(bk)])?;
            }
            Self::Mxfp8 => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                let scales = sum.groups(k, 32)?;
                sum.add(Dtype::U8, &[n, scales])?;
            }
            Self::Int8 {
                per_channel,
                static_input,
                input_zero,
            } => {
                sum.add(Dtype::I8, &[n, k])?;
                sum.add(Dtype::F32, &[if per_channel { n } else { parts }])?;
                if static_input {
                    sum.add(Dtype::F32, &[1])?;
                    if input_zero {
                        sum.add(Dtype::I8, &[1])?;
                    }
                }
            }
            Self::Int4InBytes { group } => {
                sum.add(Dtype::I8, &[n, k])?;
                let scales = group.map_or(Ok(1), |group| groups(what, k, group))?;
                sum.add(model, &[n, scales])?;
            }
            Self::Int8WithZeros {
                per_channel,
                static_input,
            } => {
                let scales = if per_channel { n } else { parts };
                sum.add(Dtype::I8, &[n, k])?;
                sum.add(Dtype::F32, &[scales])?;
                sum.add(Dtype::I8, &[scales])?;
                if static_input {
                    sum.add(Dtype::F32, &[1])?;
                    sum.add(Dtype::I8, &[1])?;
                }
            }
            Self::Int4InWords { group } => {
                let words = n.div_ceil(8);
                let scales = groups(what, k, group)?;
                sum.add(Dtype::I32, &[k, words])?;
                sum.add(Dtype::I32, &[scales, words])?;
                sum.add(model, &[scales, words, 8])?;
            }
            Self::Rotated { group, hadamard } => {
                groups(what, k, hadamard)?;
                sum.add(Dtype::U8, &[n, k / 2])?;
                sum.add(Dtype::U8, &[n, k / group])?;
                sum.add(Dtype::F32, &[2])?;
                sum.add(model, &[hadamard, hadamard])?;
            }
            Self::Packed(p) if p.layout == Layout::CompressedTensors => {
                let scales = p.group.map_or(Ok(1), |group| groups(what, k, group))?;
                sum.add(Dtype::I32, &[n, words(what, k, p.bits)?])?;
                sum.add(Dtype::I64, &[2])?;
                sum.add(model, &[n, scales])?;
                if p.zeros {
                    sum.add(Dtype::I32, &[scales, words(what, n, p.bits)?])?;
                }
            }
            Self::Packed(p) => {
                let per_word = 32 / p.bits;
                // What Marlin's kernels do not run goes to `AutoAWQLinearMethod`, which wants whole words and groups.
                let marlin = p.asymmetric && matches!(p.group, None | Some(32 | 64 | 128));
                if p.layout == Layout::Awq && !marlin {
                    groups(what, k, p.group.unwrap_or(k_full))?;
                }
                // A group that is wider than the module, and all of auto-round's, are counted as they come.
                let floors = p.layout == Layout::Awq && marlin;
                let scales = match p.group {
                    Some(g) if floors && (g >= k_full || !p.pads_tiles) => k / g,
                    Some(g) => groups(what, k, g)?,
                    // One scale for all inputs: a rank with some of them has room for none.
                    None if p.layout == Layout::Awq => k / k_full.max(1),
                    // A row-parallel module keeps one scale a whole row on every rank.
                    None => 1,
                };
                if p.layout == Layout::Awq && !marlin && !n.is_multiple_of(per_word) {
                    return Err(Error::unsupported(format!(
                        "{what}: {n} outputs on a rank are no multiple of the {per_word} that a word holds"
                    ))
                    .hint("choose a smaller tensor-parallel size"));
                }
                match p.layout {
                    Layout::Awq => sum.add(Dtype::I32, &[k, n / per_word])?,
                    // Words hold inputs here and outputs there; a remainder is left out.
                    _ => sum.add(Dtype::I32, &[k / per_word, n])?,
                }
                sum.add(model, &[scales, n])?;
                if p.zeros {
                    sum.add(Dtype::I32, &[scales, n / per_word])?;
                }
            }
            Self::Nvfp4OnLoad => {
                return Err(Error::unsupported(format!(
                    "{what}: the engine makes NVFP4 on load for experts alone"
                )));
            }
            Self::Nvfp4(input) => {
                sum.add(Dtype::U8, &[n, k / 2])?;
                let scales = sum.groups(k, 16)?;
                sum.add(Dtype::F8E4m3, &[n, scales])?;
                sum.add(Dtype::F32, &[parts])?;
                match input {
                    InputScale::None => {}
                    InputScale::F32 => sum.add(Dtype::F32, &[parts])?,
                    InputScale::Model => sum.add(model, &[parts])?,
                }
            }
            Self::Mxfp4 | Self::Mxfp4StaticInput => {
                sum.add(Dtype::U8, &[n, k / 2])?;
                let scales = sum.groups(k, 32)?;
                sum.add(Dtype::U8, &[n, scales])?;
                if self == Self::Mxfp4StaticInput {
                    sum.add(Dtype::F32, &[parts])?;
                }
            }
        }
        Ok(())
    }
}

/// 32-bit words that so many packed integers take.
fn words(what: &str, count: u64, bits: u64) -> Result<u64> {
    count
        .checked_mul(bits)
        .map(|bits| bits.div_ceil(32))
        .ok_or_else(|| Error::overflow(format_args!("the size of {what}")))
}
