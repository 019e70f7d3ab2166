//! Bytes of one module's shard under each number format, as the engine's quantisation methods allocate it.

mod experts;
mod linear;
mod padding;
#[cfg(test)]
mod tests;

pub use padding::Mxfp4Padding;

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
    /// 8-bit floats and a scale for every block of outputs times inputs.
    Fp8Block {
        /// Outputs in a block.
        outputs: u64,
        /// Inputs in a block.
        inputs: u64,
        /// What becomes of shapes that blocks do not divide.
        odd: OddBlocks,
        /// Element type of a scale: float32, or a power of two in a byte.
        scale: Dtype,
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
    /// 4-bit integers, each in a byte, with scales in the model's element type (llm-compressor with 8-bit activations).
    Int4InBytes {
        /// Inputs that share a scale; `None` for one scale an output.
        group: Option<u64>,
    },
    /// 8-bit integers with zero points beside every scale (Quark).
    Int8WithZeros {
        /// Whether every output has its own scale.
        per_channel: bool,
        /// Whether activations have a scale in the checkpoint.
        static_input: bool,
    },
    /// 4-bit integers in words of eight outputs, always with zero points (Quark).
    Int4InWords {
        /// Inputs that share a scale.
        group: u64,
    },
    /// Integers packed in 32-bit words.
    Packed(Packed),
    /// 4-bit floats, an 8-bit float scale for every 16 inputs, a float32 scale for each fused part.
    Nvfp4(InputScale),
    /// The same made on load, for experts: one float32 scale a matrix (`--quantization nvfp4_per_token`).
    Nvfp4OnLoad,
    /// 4-bit floats and one 8-bit power-of-two scale for every 32 inputs.
    Mxfp4,
    /// The same with a float32 scale for the activations of each fused part (Quark).
    Mxfp4StaticInput,
    /// 4-bit floats with 8-bit scales, two float32 ones, and a Hadamard matrix in the model's element type (FP-Quant).
    Rotated {
        /// Inputs that share a scale.
        group: u64,
        /// Rows and columns of the matrix.
        hadamard: u64,
    },
    /// 4-bit floats and a float32 scale for every 64 of them (bitsandbytes, its nested scales unpacked on load).
    Bnb4,
}

/// What an engine does where blocks do not divide a rank's part of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OddBlocks {
    /// It refuses parts of a divided module, takes others, and gives experts smaller blocks (`fp8`).
    Refine,
    /// It refuses them (llm-compressor, Quark).
    Refuse,
    /// It pads experts to whole blocks (made on load).
    Pad,
    /// It takes all but inputs (`ModelOpt`).
    Take,
}

/// What differs between formats with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Format {
    /// How experts keep biases.
    pub expert_biases: ExpertBiases,
    /// Whether linear modules in 4- and 8-bit floats have room for whole groups of inputs alone, where others are refused
    /// that groups do not divide (llm-compressor).
    pub whole_groups: bool,
}

impl Format {
    /// As the model has its biases, with groups that divide.
    pub const PLAIN: Self = Self {
        expert_biases: ExpertBiases::Model,
        whole_groups: false,
    };
}

/// In which element type experts keep their biases, where the model has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertBiases {
    /// The model's.
    Model,
    /// Float32.
    F32,
    /// The format has no room for them.
    None,
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
    /// Whether the kernel of experts may pad them to its tiles (auto-round's code does not ask for that).
    pub pads_tiles: bool,
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

/// A running total of bytes that never wraps.
struct Sum<'a> {
    what: &'a str,
    bytes: u64,
    /// [`Format::whole_groups`].
    whole_groups: bool,
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

impl Sum<'_> {
    /// Groups of inputs that a linear module has scales for.
    fn groups(&self, size: u64, group: u64) -> Result<u64> {
        if self.whole_groups && group > 0 {
            return Ok(size / group);
        }
        groups(self.what, size, group)
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
    pub fn bytes(
        self,
        what: &str,
        shard: &Shard,
        model: Dtype,
        padding: Mxfp4Padding,
        format: Format,
    ) -> Result<u64> {
        let mut sum = Sum {
            what,
            bytes: 0,
            whole_groups: format.whole_groups,
        };
        match shard {
            Shard::Linear {
                inputs,
                outputs,
                bias,
                inputs_full,
                outputs_full,
            } => {
                self.fits_blocks(what, (*inputs, *inputs_full), outputs, *outputs_full)?;
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
                    padding::swizzled_scales(&mut sum, *experts, hidden, intermediate, *parts, padding)?;
                }
                let own = gptq && self.packs_experts(hidden, intermediate);
                let biases = match format.expert_biases {
                    _ if own => Some(model),
                    _ if !*bias => None,
                    ExpertBiases::None => None,
                    ExpertBiases::Model if swizzled => Some(Dtype::F32),
                    ExpertBiases::Model => Some(model),
                    ExpertBiases::F32 => Some(Dtype::F32),
                };
                if let Some(dtype) = biases {
                    sum.add(dtype, &[*experts, *parts, intermediate])?;
                    sum.add(dtype, &[*experts, hidden])?;
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
        let all = self.bytes(what, shard, model, Mxfp4Padding::NONE, Format::PLAIN)?;
        let Shard::Vocab { rows, width, .. } = shard else {
            return Ok(all);
        };
        let mut matrix = Sum {
            what,
            bytes: 0,
            whole_groups: false,
        };
        match self {
            Self::Packed(_) | Self::Int4InWords { .. } | Self::Rotated { .. } => {}
            Self::Nvfp4(_) | Self::Nvfp4OnLoad | Self::Mxfp4 | Self::Mxfp4StaticInput | Self::Bnb4 => {
                matrix.add(Dtype::U8, &[*rows, width / 2])?;
            }
            _ => matrix.add(Dtype::U8, &[*rows, *width])?,
        }
        Ok(all.saturating_sub(matrix.bytes))
    }
}
