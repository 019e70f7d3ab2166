//! Which scheme the engine has for the numbers of a group, in the order in which it asks.

use super::super::{InputScale, Layout, OddBlocks, Packed, Scheme};
use super::Choice;
use crate::arch::Config;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// How weights or activations are quantised (`QuantizationArgs` of the compressed-tensors package).
#[derive(Debug, Clone)]
pub(super) struct Args {
    bits: u64,
    /// Floats, else integers.
    float: bool,
    strategy: Strategy,
    group: Option<u64>,
    symmetric: bool,
    /// Whether scales are computed as values come.
    dynamic: bool,
    /// Outputs and inputs of a block.
    block: Option<(u64, u64)>,
    /// Whether scales are bytes.
    byte_scales: bool,
}

/// What shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Tensor,
    Channel,
    Group,
    Block,
    Token,
    TensorGroup,
    /// One that no scheme of the engine knows.
    Other,
}

impl Args {
    pub(super) fn read(config: &Config) -> Result<Self> {
        let group = match config.get("group_size").map(serde_json::Value::as_i64) {
            None | Some(Some(-1)) => None,
            Some(_) => Some(config.positive(&["group_size"])?),
        };
        let dynamic = match config.get("dynamic") {
            // "local" computes scales of groups on the fly under one from the checkpoint.
            Some(serde_json::Value::String(text)) => !text.is_empty(),
            _ => config.flag("dynamic", false)?,
        };
        let block = match config.u64s("block_structure")? {
            None => None,
            Some(block) => match block[..] {
                [outputs, inputs] if outputs > 0 && inputs > 0 => Some((outputs, inputs)),
                _ => {
                    return Err(Error::input(format!(
                        "{} is {block:?}, expected two positive integers",
                        config.name("block_structure")
                    )));
                }
            },
        };
        // As the package fills it in: groups and blocks say what the strategy is.
        let strategy = match config.str("strategy")? {
            None if group.is_some() => Strategy::Group,
            None if block.is_some() => Strategy::Block,
            None if config.get("group_size").is_some() => Strategy::Channel,
            None | Some("tensor") => Strategy::Tensor,
            Some("channel") => Strategy::Channel,
            Some("group") => Strategy::Group,
            Some("block") => Strategy::Block,
            Some("token") => Strategy::Token,
            Some("tensor_group") => Strategy::TensorGroup,
            Some(_) => Strategy::Other,
        };
        Ok(Self {
            bits: config.first_u64(&["num_bits"])?.unwrap_or(8),
            float: match config.str("type")?.unwrap_or("int") {
                "float" => true,
                "int" => false,
                other => {
                    return Err(Error::input(format!(
                        "{} is {other:?}, expected int or float",
                        config.name("type")
                    )));
                }
            },
            strategy,
            group,
            symmetric: config.flag("symmetric", true)?,
            dynamic,
            block,
            byte_scales: config
                .str("scale_dtype")?
                .is_some_and(|name| name.ends_with("uint8")),
        })
    }

    fn is_nvfp4(&self) -> bool {
        self.float
            && self.bits == 4
            && self.strategy == Strategy::TensorGroup
            && self.group == Some(16)
            && self.symmetric
    }

    fn is_microscaled(&self, bits: u64) -> bool {
        self.float
            && self.bits == bits
            && self.strategy == Strategy::Group
            && self.group == Some(32)
            && self.symmetric
    }

    fn is_mxfp8(&self) -> bool {
        self.is_microscaled(8) && self.byte_scales
    }

    /// One scale an output, or for a group of its inputs.
    fn is_channel_or_group(&self) -> bool {
        matches!(self.strategy, Strategy::Channel | Strategy::Group)
    }

    /// One scale for all, or an output.
    fn is_tensor_or_channel(&self) -> bool {
        matches!(self.strategy, Strategy::Tensor | Strategy::Channel)
    }

    fn packed(&self, zeros: bool) -> Scheme {
        Scheme::Packed(Packed {
            bits: self.bits,
            group: self.groups(),
            zeros,
            asymmetric: zeros,
            pads_tiles: true,
            layout: Layout::CompressedTensors,
        })
    }

    fn groups(&self) -> Option<u64> {
        self.group.filter(|_| self.strategy != Strategy::Channel)
    }

    /// 8-bit floats under the scales that the strategy says.
    fn fp8(&self, static_input: bool) -> Choice {
        match (self.strategy, self.block) {
            (Strategy::Block, Some((outputs, inputs))) => Ok(Scheme::Fp8Block {
                outputs,
                inputs,
                odd: OddBlocks::Refuse,
                scale: Dtype::F32,
            }),
            (Strategy::Block, None) => Err("block-wise FP8 needs a block_structure".to_owned()),
            (Strategy::Channel, _) => Ok(Scheme::Fp8Channel { static_input }),
            _ => Ok(Scheme::Fp8Tensor { static_input }),
        }
    }
}

/// Formats in which activations are quantised (`is_activation_quantization_format`).
fn quantizes_activations(format: &str) -> bool {
    matches!(
        format,
        "naive-quantized" | "int-quantized" | "float-quantized" | "nvfp4-pack-quantized"
    )
}

/// 4-bit integers in groups with 8-bit floats a token.
pub(super) fn four_bits_with_fp8(weights: &Args, input: &Args) -> bool {
    !weights.float
        && weights.bits == 4
        && weights.strategy == Strategy::Group
        && weights.symmetric
        && input.float
        && input.bits == 8
        && input.strategy == Strategy::Token
        && input.symmetric
        && !weights.dynamic
        && input.dynamic
}

/// 8-bit floats on both sides (`_is_fp8_w8a8`).
fn fp8_both(weights: &Args, input: &Args) -> bool {
    let weights_fit = weights.float
        && input.float
        && weights.symmetric
        && !weights.dynamic
        && matches!(
            weights.strategy,
            Strategy::Tensor | Strategy::Channel | Strategy::Block
        );
    weights_fit && (input.dynamic || input.symmetric && input.strategy == Strategy::Tensor)
}

/// 8-bit integers on both sides, with scales computed a token.
fn eight_bits_a_token(weights: &Args, input: &Args) -> bool {
    weights.bits == 8
        && input.bits == 8
        && weights.is_tensor_or_channel()
        && input.strategy == Strategy::Token
        && weights.symmetric
        && !weights.dynamic
        && input.dynamic
}

/// 4-bit integers with 8-bit ones a token.
fn four_bits_with_int8(weights: &Args, input: &Args) -> bool {
    !weights.float
        && !input.float
        && weights.bits == 4
        && input.bits == 8
        && weights.is_channel_or_group()
        && input.strategy == Strategy::Token
        && weights.symmetric
        && !weights.dynamic
        && input.dynamic
}

/// MXFP4 with 8-bit floats for activations.
fn mxfp4_with_fp8(weights: &Args, input: &Args) -> bool {
    weights.is_microscaled(4)
        && input.float
        && input.bits == 8
        && !weights.dynamic
        && input.dynamic
        && matches!(input.strategy, Strategy::Token | Strategy::Group)
        && input.symmetric
}

/// The scheme of a linear module or a head (vLLM 0.32.0, `CompressedTensorsConfig._get_scheme_from_parts`).
pub(super) fn linear(weights: &Args, input: Option<&Args>, format: &str) -> Choice {
    if weights.is_nvfp4() {
        return match input {
            None => Ok(Scheme::Nvfp4(InputScale::None)),
            Some(input) if input.is_nvfp4() => Ok(Scheme::Nvfp4(InputScale::F32)),
            Some(_) => Err(
                "For NVFP4 weights, input quantization must also be NVFP4 format, None for NVFP4A16".into(),
            ),
        };
    }
    if weights.is_microscaled(4) {
        return Ok(Scheme::Mxfp4);
    }
    if weights.is_mxfp8() {
        return Ok(Scheme::Mxfp8);
    }
    let packs = format == "pack-quantized";
    let unknown = || {
        Err(format!(
            "No compressed-tensors compatible scheme was found: {}-bit {} in format {format:?}",
            weights.bits,
            if weights.float { "floats" } else { "integers" }
        ))
    };
    let in_words = || {
        match weights.groups() {
        None if weights.strategy != Strategy::Channel => Err(
            "Pack-quantized format requires group quantization or channelwise quantization, but found no group size \
             and strategy is not channelwise."
                .to_owned(),
        ),
        _ if !(2..=8).contains(&weights.bits) => Err(format!(
            "Unsupported num_bits = {}. Supported num_bits = [2, 3, 4, 5, 6, 7, 8]",
            weights.bits
        )),
        _ => Ok(weights.packed(!weights.symmetric)),
    }
    };
    let Some(input) = input else {
        if weights.is_channel_or_group() && !weights.dynamic && packs {
            return in_words();
        }
        let fits = weights.float
            && weights.symmetric
            && !weights.dynamic
            && matches!(
                weights.strategy,
                Strategy::Tensor | Strategy::Channel | Strategy::Block
            );
        return if fits && quantizes_activations(format) {
            weights.fp8(false)
        } else {
            unknown()
        };
    };
    // On compute capability 9.0, which is asked for apart.
    if four_bits_with_fp8(weights, input) {
        return Ok(weights.packed(false));
    }
    let on_the_fly = !input.float
        && input.symmetric
        && input.dynamic
        && matches!(input.strategy, Strategy::Token | Strategy::Group)
        && matches!(input.bits, 4 | 8);
    if packs && on_the_fly && !weights.float && !weights.dynamic && weights.is_channel_or_group() {
        return in_words();
    }
    if !quantizes_activations(format) {
        return unknown();
    }
    let static_input = !input.dynamic;
    if fp8_both(weights, input) {
        return weights.fp8(static_input);
    }
    if weights.float
        && weights.symmetric
        && !weights.dynamic
        && matches!(
            weights.strategy,
            Strategy::Tensor | Strategy::Channel | Strategy::Block
        )
    {
        return weights.fp8(static_input);
    }
    let static_tensor = weights.bits == 8
        && input.bits == 8
        && weights.is_tensor_or_channel()
        && input.strategy == Strategy::Tensor
        && weights.symmetric
        && !weights.dynamic
        && static_input;
    if static_tensor || eight_bits_a_token(weights, input) {
        return Ok(Scheme::Int8 {
            per_channel: weights.strategy == Strategy::Channel,
            static_input,
            input_zero: !input.symmetric,
        });
    }
    if four_bits_with_int8(weights, input) {
        return Ok(Scheme::Int4InBytes {
            group: weights.groups(),
        });
    }
    unknown()
}

/// The scheme of routed experts (vLLM 0.32.0, `CompressedTensorsMoEMethod.get_moe_method`).
pub(super) fn experts(weights: &Args, input: Option<&Args>, format: &str) -> Choice {
    if weights.is_microscaled(4) {
        return Ok(Scheme::Mxfp4);
    }
    if weights.is_mxfp8() {
        return Ok(Scheme::Mxfp8);
    }
    if input.is_none() && weights.is_channel_or_group() && !weights.dynamic {
        return if format == "pack-quantized" && (2..=8).contains(&weights.bits) {
            Ok(weights.packed(!weights.symmetric))
        } else {
            Err(format!(
                "For Fused MoE layers, only format: pack-quantized is supported but got format {format:?} and bits: {}",
                weights.bits
            ))
        };
    }
    if weights.is_nvfp4() {
        return match input {
            None => Ok(Scheme::Nvfp4(InputScale::F32)),
            Some(input) if input.is_nvfp4() => Ok(Scheme::Nvfp4(InputScale::F32)),
            Some(_) => Err(
                "For NVFP4 weights, input quantization must also be NVFP4 format or None for NVFP4A16".into(),
            ),
        };
    }
    let unknown = || Err("Unsupported FusedMoe scheme".to_owned());
    let Some(input) = input else {
        return unknown();
    };
    if mxfp4_with_fp8(weights, input) {
        return Ok(Scheme::Mxfp4);
    }
    if fp8_both(weights, input) {
        return match (weights.strategy, input.strategy) {
            (Strategy::Channel, Strategy::Token) if !input.dynamic => Err(
                "For FP8 Fused MoE layer, we require either per tensor or channelwise, dynamic per token quantization."
                    .to_owned(),
            ),
            (Strategy::Tensor, Strategy::Tensor) | (Strategy::Channel, Strategy::Token) | (Strategy::Block, _) => {
                weights.fp8(!input.dynamic)
            }
            _ => Err(
                "experts in FP8 have scales per tensor for weights and activations, or channelwise with dynamic ones \
                 per token"
                    .to_owned(),
            ),
        };
    }
    if eight_bits_a_token(weights, input) {
        return if weights.strategy == Strategy::Channel {
            Ok(Scheme::Int8 {
                per_channel: true,
                static_input: false,
                input_zero: false,
            })
        } else {
            Err(
                "For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization."
                    .to_owned(),
            )
        };
    }
    if four_bits_with_fp8(weights, input) {
        return Ok(weights.packed(false));
    }
    if four_bits_with_int8(weights, input) {
        return Ok(Scheme::Int4InBytes {
            group: weights.groups(),
        });
    }
    unknown()
}

/// The scheme of token embeddings (vLLM 0.32.0, `CompressedTensorsEmbeddingWNA16Int`).
pub(super) fn embedding(weights: &Args, _input: Option<&Args>) -> Choice {
    if !weights.float && weights.is_channel_or_group() && !weights.dynamic && (2..=8).contains(&weights.bits)
    {
        return Ok(weights.packed(false));
    }
    Err(
        "compressed-tensors embeddings only support weight-only INT group/channel (WNA16) quantization"
            .to_owned(),
    )
}
