//! Bytes of one module's shard under each number format, as the engine's quantisation methods allocate it.

use crate::arch::Shard;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// How the parameters of a module are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// 8-bit floats and a float32 scale for each fused part, for static activations also an input scale each.
    Fp8Tensor {
        /// Whether activations have a scale in the checkpoint.
        static_input: bool,
    },
    /// 8-bit floats and a float32 scale for every output (llm-compressor's `channel` strategy).
    Fp8Channel {
        /// Whether activations have a scale in the checkpoint.
        static_input: bool,
    },
    /// [`Scheme::Fp8Channel`] with a bound of the activations' scale (FBGEMM).
    Fp8Bounded,
    /// 8-bit floats made on load with one float32 scale for the module (`--quantization fp8_per_tensor`).
    Fp8OnLoad,
    /// 8-bit floats and a float32 scale for every block of outputs times inputs.
    Fp8Block {
        /// Outputs in a block.
        outputs: u64,
        /// Inputs in a block.
        inputs: u64,
    },
    /// 8-bit floats and one 8-bit power-of-two scale for every 32 inputs.
    Mxfp8,
    /// 8-bit integers and a float32 scale for every output, or for every fused part.
    Int8 {
        /// Whether every output has its own scale.
        per_channel: bool,
        /// Whether activations have a scale in the checkpoint.
        static_input: bool,
        /// Whether they have a zero point beside it.
        input_zero: bool,
    },
    /// Integers packed in 32-bit words.
    Packed(Packed),
    /// 4-bit floats, an 8-bit float scale for every 16 inputs, a float32 scale for each fused part.
    Nvfp4(InputScale),
    /// 4-bit floats and one 8-bit power-of-two scale for every 32 inputs.
    Mxfp4,
    /// 4-bit floats and a float32 scale for every 64 of them (bitsandbytes, its nested scales unpacked on load).
    Bnb4,
}

/// What a 4-bit float scheme registers for activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputScale {
    /// Nothing.
    None,
    /// A float32 for each fused part.
    F32,
    /// One in the model's element type for each fused part, dropped after loading.
    Model,
}

/// Integers packed in 32-bit words, with scales in the model's element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packed {
    /// Bits of one integer.
    pub bits: u64,
    /// Inputs that share a scale; `None` for one scale an output.
    pub group: Option<u64>,
    /// Whether packed zero points are there.
    pub zeros: bool,
    /// Whether the checkpoint fills them (AWQ's `zero_point`; GPTQ's with `sym` are constants).
    pub asymmetric: bool,
    /// Whose layout: it decides what lies beside the packed words.
    pub layout: Layout,
}

/// Whose layout packed integers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `AutoAWQ`.
    Awq,
    /// `AutoGPTQ`: zero points always, expert biases always.
    Gptq,
    /// llm-compressor: two 64-bit numbers with the unpacked shape.
    CompressedTensors,
    /// Experts packed by bytes (`moe_wna16`).
    Bytes,
}

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

/// A running total of bytes that never wraps.
struct Sum<'a> {
    what: &'a str,
    bytes: u64,
}

impl Sum<'_> {
    fn add(&mut self, dtype: Dtype, shape: &[u64]) -> Result<()> {
        let overflow = || Error::overflow(format_args!("the size of {}", self.what));
        let count = shape
            .iter()
            .try_fold(1u64, |p, &n| p.checked_mul(n))
            .ok_or_else(overflow)?;
        self.bytes = self.bytes.checked_add(dtype.bytes(count)?).ok_or_else(overflow)?;
        Ok(())
    }
}

/// A size that has to be a multiple of another.
fn groups(what: &str, size: u64, group: u64) -> Result<u64> {
    if group > 0 && size.is_multiple_of(group) {
        return Ok(size / group);
    }
    Err(Error::unsupported(format!(
        "{what}: {size} inputs on a rank are no multiple of the quantisation group of {group}"
    ))
    .hint("choose a smaller tensor-parallel size"))
}

/// What rearranging the scales of 4-bit block-scaled experts adds to them: rows in tiles of 256, and themselves where the
/// old ones stay.
fn swizzled_scales(
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

impl Packed {
    /// Whether Marlin's kernels run experts of these widths; others are packed by bytes (vLLM 0.32.0,
    /// `check_moe_marlin_supports_config` with padded tiles in `quantization/utils/marlin_utils.py`).
    fn fits_marlin(&self, hidden: u64, width: u64) -> bool {
        self.layout == Layout::CompressedTensors
            || self.layout != Layout::Bytes
                && hidden.is_multiple_of(128)
                && match self.group {
                    None => true,
                    Some(group) => matches!(group, 32 | 64 | 128) && width.is_multiple_of(group),
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
    /// Whether experts of these widths keep the layout of the checkpoint.
    fn packs_experts(self, hidden: u64, width: u64) -> bool {
        match self {
            Self::Packed(packed) => packed.fits_marlin(hidden, width),
            _ => false,
        }
    }

    /// Bytes of one rank's shard. `model` is the model's element type, in which biases and some scales stay.
    ///
    /// # Errors
    /// If the scheme cannot cut the shard as the engine would, or a size leaves 64 bits.
    pub fn bytes(self, what: &str, shard: &Shard, model: Dtype, padding: Mxfp4Padding) -> Result<u64> {
        let mut sum = Sum { what, bytes: 0 };
        match shard {
            Shard::Linear {
                inputs,
                outputs,
                bias,
                inputs_full,
            } => {
                self.linear(&mut sum, *inputs, outputs, *inputs_full, model)?;
                sum.add(model, &[*bias])?;
            }
            Shard::Vocab { rows, width, bias } => {
                self.linear(&mut sum, *width, &[*rows], *width, model)?;
                sum.add(model, &[*bias])?;
            }
            Shard::Experts {
                experts,
                hidden,
                intermediate,
                parts,
                bias,
            } => {
                let gptq = matches!(
                    self,
                    Self::Packed(Packed {
                        layout: Layout::Gptq,
                        ..
                    })
                );
                // AWQ's experts and those packed by bytes have no room for biases.
                let awq = matches!(
                    self,
                    Self::Packed(Packed {
                        layout: Layout::Awq | Layout::Bytes,
                        ..
                    })
                );
                let (hidden, intermediate) = if self == Self::Mxfp4 {
                    let up = |n: u64, to: u64| {
                        n.checked_next_multiple_of(to.max(1))
                            .ok_or_else(|| Error::overflow(format_args!("the padded size of {what}")))
                    };
                    (
                        up(*hidden, padding.hidden)?,
                        up(*intermediate, padding.intermediate)?,
                    )
                } else {
                    (*hidden, *intermediate)
                };
                self.experts(&mut sum, *experts, hidden, intermediate, *parts, model)?;
                let swizzled = self == Self::Mxfp4 && padding.swizzled;
                if swizzled {
                    swizzled_scales(&mut sum, *experts, hidden, intermediate, *parts, padding)?;
                }
                if (*bias && !awq) || (gptq && self.packs_experts(hidden, intermediate)) {
                    let biases = if swizzled { Dtype::F32 } else { model };
                    sum.add(biases, &[*experts, *parts, intermediate])?;
                    sum.add(biases, &[*experts, hidden])?;
                }
            }
            Shard::Plain { elements } => sum.add(model, &[*elements])?,
        }
        Ok(sum.bytes)
    }

    /// Bytes of one rank's shard of an output head without those of its matrix, where that is the embedding's. A scheme
    /// whose matrix is not called `weight` keeps its own beside it.
    ///
    /// # Errors
    /// As [`Scheme::bytes`].
    pub(super) fn bytes_beside_weight(self, what: &str, shard: &Shard, model: Dtype) -> Result<u64> {
        let all = self.bytes(what, shard, model, Mxfp4Padding::NONE)?;
        let Shard::Vocab { rows, width, .. } = shard else {
            return Ok(all);
        };
        let mut matrix = Sum { what, bytes: 0 };
        match self {
            Self::Packed(_) => {}
            Self::Nvfp4(_) | Self::Mxfp4 | Self::Bnb4 => matrix.add(Dtype::U8, &[*rows, width / 2])?,
            _ => matrix.add(Dtype::U8, &[*rows, *width])?,
        }
        Ok(all.saturating_sub(matrix.bytes))
    }

    fn linear(self, sum: &mut Sum, k: u64, outputs: &[u64], k_full: u64, model: Dtype) -> Result<()> {
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
            } => {
                if k != k_full {
                    groups(what, k, bk)?;
                }
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::F32, &[n.div_ceil(bn), k.div_ceil(bk)])?;
            }
            Self::Mxfp8 => {
                sum.add(Dtype::F8E4m3, &[n, k])?;
                sum.add(Dtype::U8, &[n, groups(what, k, 32)?])?;
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
            Self::Packed(p) => {
                let per_word = 32 / p.bits;
                let scales = match (p.group, p.layout) {
                    (Some(g), _) => groups(what, k, g)?,
                    // One scale for all inputs: a rank with some of them has room for none.
                    (None, Layout::Awq) => k / k_full.max(1),
                    // A row-parallel module keeps one scale a whole row on every rank.
                    (None, _) => 1,
                };
                match p.layout {
                    Layout::CompressedTensors => {
                        sum.add(Dtype::I32, &[n, k.div_ceil(per_word)])?;
                        sum.add(Dtype::I64, &[2])?;
                    }
                    // Words hold inputs here and outputs there; a remainder is left out.
                    Layout::Gptq | Layout::Bytes => sum.add(Dtype::I32, &[k / per_word, n])?,
                    Layout::Awq => sum.add(Dtype::I32, &[k, n / per_word])?,
                }
                sum.add(model, &[scales, n])?;
                if p.zeros {
                    let words = if p.layout == Layout::CompressedTensors {
                        n.div_ceil(per_word)
                    } else {
                        n / per_word
                    };
                    sum.add(Dtype::I32, &[scales, words])?;
                }
            }
            Self::Nvfp4(input) => {
                sum.add(Dtype::U8, &[n, k / 2])?;
                sum.add(Dtype::F8E4m3, &[n, groups(what, k, 16)?])?;
                sum.add(Dtype::F32, &[parts])?;
                match input {
                    InputScale::None => {}
                    InputScale::F32 => sum.add(Dtype::F32, &[parts])?,
                    InputScale::Model => sum.add(model, &[parts])?,
                }
            }
            Self::Mxfp4 => {
                sum.add(Dtype::U8, &[n, k / 2])?;
                sum.add(Dtype::U8, &[n, groups(what, k, 32)?])?;
            }
        }
        Ok(())
    }

    fn experts(self, sum: &mut Sum, e: u64, hidden: u64, width: u64, parts: u64, model: Dtype) -> Result<()> {
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
                outputs: bn,
                inputs: bk,
            } => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                }
                sum.add(Dtype::F32, &[e, parts, width.div_ceil(bn), hidden.div_ceil(bk)])?;
                sum.add(Dtype::F32, &[e, hidden.div_ceil(bn), width.div_ceil(bk)])?;
            }
            Self::Mxfp8 => {
                for (n, k) in both {
                    sum.add(Dtype::F8E4m3, &[e, n, k])?;
                    sum.add(Dtype::U8, &[e, n, groups(what, k, 32)?])?;
                }
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
                    if p.layout == Layout::CompressedTensors {
                        // The unpacked shape, in the model's element type here.
                        sum.add(model, &[e, 2])?;
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
            Self::Mxfp4 => {
                for (n, k) in both {
                    sum.add(Dtype::U8, &[e, n, k / 2])?;
                    sum.add(Dtype::U8, &[e, n, k / 32])?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Routed experts of a model of width 2048 on one rank.
    fn experts(intermediate: u64) -> Shard {
        Shard::Experts {
            experts: 8,
            hidden: 2048,
            intermediate,
            parts: 2,
            bias: false,
        }
    }

    fn packed(layout: Layout, group: Option<u64>) -> Scheme {
        Scheme::Packed(Packed {
            bits: 4,
            group,
            zeros: true,
            asymmetric: layout == Layout::Awq,
            layout,
        })
    }

    fn bytes(scheme: Scheme, shard: &Shard) -> Result<u64> {
        scheme.bytes("experts", shard, Dtype::Bf16, Mxfp4Padding::NONE)
    }

    #[test]
    fn experts_that_a_group_does_not_divide_are_packed_by_bytes_in_smaller_groups() {
        // 704 inputs are 5.5 groups of 128 and 11 of 64.
        let (n, k) = (2 * 704, 2048);
        let matrices = 8 * (n * k + k * 704) / 2;
        let scales = 8 * (n * (k / 64) + k * (704 / 64));
        let gptq = bytes(packed(Layout::Gptq, Some(128)), &experts(704)).unwrap();
        assert_eq!(gptq, matrices + 2 * scales);
        // Zero points of 4 bits beside each scale.
        let awq = bytes(packed(Layout::Awq, Some(128)), &experts(704)).unwrap();
        assert_eq!(awq, matrices + 2 * scales + scales / 2);
    }

    #[test]
    fn experts_that_no_group_divides_are_refused() {
        for (layout, group, width) in [
            (Layout::Gptq, Some(128), 720),
            (Layout::Awq, None, 768),
            (Layout::Bytes, None, 768),
        ] {
            let error = bytes(packed(layout, group), &experts(width)).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn a_tied_head_keeps_all_but_its_matrix() {
        let head = Shard::Vocab {
            rows: 256,
            width: 128,
            bias: 0,
        };
        let rest = |scheme: Scheme| scheme.bytes_beside_weight("lm_head", &head, Dtype::Bf16).unwrap();
        assert_eq!(rest(Scheme::Fp8Tensor { static_input: true }), 8);
        let whole = bytes(packed(Layout::Gptq, Some(128)), &head).unwrap();
        assert_eq!(rest(packed(Layout::Gptq, Some(128))), whole);
    }
}
