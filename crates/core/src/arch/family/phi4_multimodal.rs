//! Phi-4-multimodal as the Transformers library builds it (vLLM 0.32.0, generic backend).
//!
//! The backend takes the class for a text model, so its vision and audio encoders are there even under
//! `--language-model-only`: they count as part of the language model. Only attention is divided over ranks.

use super::dense::{Decoder, Dense, part};
use super::text::Text;
use crate::Result;
use crate::arch::{Config, Place, Role, Weight};

const VISION: &str = "model.embed_tokens_extend.image_embed";
const AUDIO: &str = "model.embed_tokens_extend.audio_embed";

/// The class's decoder (that of Phi-3) with both encoders.
pub(crate) fn read(t: &Text) -> Result<Decoder> {
    let d = Dense::llama(t)?;
    let mut decoder = d.build()?;
    let mut weights = Vec::new();
    if let Some(vision) = t.top.sub("vision_config")? {
        weights.extend(image(&vision, d.hidden)?);
    }
    if let Some(audio) = t.top.sub("audio_config")? {
        weights.extend(sound(&audio, d.hidden)?);
    }
    // Its plan of stages does not name them: every stage keeps them.
    decoder.outside.push(part(Place::Every, weights));
    Ok(decoder)
}

fn linear(name: String, inputs: u64, outputs: u64) -> Weight {
    Weight::replicated(name, Role::Tower, inputs, &[outputs]).bias(true)
}

fn norm(name: String, width: u64) -> Weight {
    Weight::norm(name, width).times(2).role(Role::Tower)
}

/// A convolution of these weights a channel, with its bias.
fn convolution(name: &str, shape: &[u64]) -> [Weight; 2] {
    let channels = shape.first().copied().unwrap_or(0);
    [
        Weight::tensor(name, Role::Tower, shape, None),
        Weight::tensor(format!("{name}.bias"), Role::Tower, &[channels], None),
    ]
}

/// Attention, divided over ranks, with biases.
fn attention(path: &str, output: &str, width: u64) -> [Weight; 2] {
    [
        Weight::column(format!("{path}.qkv_proj"), Role::Tower, width, &[width; 3]).bias(true),
        Weight::row(format!("{path}.{output}"), Role::Tower, width, width).bias(true),
    ]
}

/// Repeats what one layer holds.
fn repeat(weights: Vec<Weight>, layers: u64) -> impl Iterator<Item = Weight> {
    weights.into_iter().map(move |w| {
        let count = w.count.saturating_mul(layers);
        w.times(count)
    })
}

fn image(c: &Config, hidden: u64) -> Result<Vec<Weight>> {
    let (width, inner) = (c.dim("hidden_size")?, c.dim("intermediate_size")?);
    let patch = c.dim("patch_size")?;
    let side = c.dim("image_size")? / patch;
    let encoder = format!("{VISION}.img_processor");
    let mut all = vec![
        Weight::tensor(
            format!("{VISION}.global_img_feature_extensor"),
            Role::Tower,
            &[width],
            None,
        ),
        Weight::tensor(
            format!("{VISION}.sub_img_feature_extensor"),
            Role::Tower,
            &[width],
            None,
        ),
        Weight::tensor(
            format!("{encoder}.embeddings.position_embedding"),
            Role::Tower,
            &[side * side, width],
            None,
        ),
        norm(format!("{encoder}.post_layernorm"), width),
        Weight::tensor(format!("{encoder}.head.probe"), Role::Tower, &[width], None),
        linear(format!("{encoder}.head.attention.in_proj"), width, 3 * width),
        linear(format!("{encoder}.head.attention.out_proj"), width, width),
        norm(format!("{encoder}.head.layernorm"), width),
        linear(format!("{encoder}.head.mlp.fc1"), width, inner),
        linear(format!("{encoder}.head.mlp.fc2"), inner, width),
        linear(format!("{VISION}.img_projection_up"), width, hidden),
        linear(format!("{VISION}.img_projection_down"), hidden, hidden),
    ];
    let channels = c.dim_or("num_channels", 3)?;
    let patches = [width, channels, patch, patch];
    all.extend(convolution(
        &format!("{encoder}.embeddings.patch_embedding"),
        &patches,
    ));
    let layers = format!("{encoder}.encoder.layers");
    let mut layer = vec![
        norm(format!("{layers}.layer_norm1"), width),
        norm(format!("{layers}.layer_norm2"), width),
        linear(format!("{layers}.mlp.fc1"), width, inner),
        linear(format!("{layers}.mlp.fc2"), inner, width),
    ];
    layer.extend(attention(&format!("{layers}.self_attn"), "out_proj", width));
    all.extend(repeat(layer, c.dim("num_hidden_layers")?));
    Ok(all)
}

fn sound(c: &Config, hidden: u64) -> Result<Vec<Weight>> {
    let (width, inner) = (c.dim("hidden_size")?, c.dim("intermediate_size")?);
    let channels = c.dim("nemo_conv_channels")?;
    let reduction = c.dim("time_reduction")?;
    let encoder = format!("{AUDIO}.encoder");
    let mut all = vec![
        linear(
            format!("{encoder}.embed.out"),
            channels * c.dim("input_size")?.div_ceil(reduction),
            width,
        ),
        Weight::tensor(
            format!("{encoder}.relative_attention_bias_layer.bias_values"),
            Role::Tower,
            &[2 * c.dim("bias_max_distance")?, c.dim("num_attention_heads")?],
            None,
        ),
    ];
    for name in ["speech", "vision_speech"] {
        all.push(linear(format!("{AUDIO}.up_proj_for_{name}"), width, hidden));
        all.push(linear(format!("{AUDIO}.down_proj_for_{name}"), hidden, hidden));
    }
    // A convolution per halving of the time: the first alone, each later one with a pointwise convolution after it.
    let halvings = u64::from(reduction.ilog2());
    let deep = convolution(&format!("{encoder}.embed.conv"), &[channels, 1, 3, 3]);
    let point = convolution(
        &format!("{encoder}.embed.conv.pointwise"),
        &[channels, channels, 1, 1],
    );
    all.extend(repeat(deep.to_vec(), halvings));
    all.extend(repeat(point.to_vec(), halvings.saturating_sub(1)));
    let blocks = format!("{encoder}.encoders");
    let outer = c.dim("ext_pw_out_channel")?;
    let mut block = Vec::new();
    for place in ["feed_forward_in", "feed_forward_out"] {
        block.push(norm(format!("{blocks}.{place}.layer_norm"), width));
        block.push(linear(format!("{blocks}.{place}.gate_up_proj"), width, 2 * inner));
        block.push(linear(format!("{blocks}.{place}.down_proj"), inner, width));
    }
    block.extend(attention(&format!("{blocks}.self_attn"), "o_proj", width));
    for place in ["conv.layer_norm", "layer_norm_att", "layer_norm"] {
        block.push(norm(format!("{blocks}.{place}"), width));
    }
    block.push(
        Weight::norm(format!("{blocks}.conv.glu.b1"), outer)
            .times(2)
            .role(Role::Tower),
    );
    block.extend(convolution(
        &format!("{blocks}.conv.glu.ext_pw_conv_1d"),
        &[2 * outer, width, 1],
    ));
    let depth = width * c.dim_or("depthwise_multiplier", 1)?;
    let kernel = c.dim("kernel_size")?;
    let separable = c.dim("depthwise_separable_out_channel")?;
    block.extend(convolution(
        &format!("{blocks}.conv.dw_sep_conv_1d.dw_conv"),
        &[depth, 1, kernel],
    ));
    block.extend(convolution(
        &format!("{blocks}.conv.dw_sep_conv_1d.pw_conv"),
        &[separable, depth, 1],
    ));
    block.extend(convolution(
        &format!("{blocks}.conv.ext_pw_conv_1d"),
        &[outer, separable, 1],
    ));
    all.extend(repeat(block, c.dim("num_blocks")?));
    Ok(all)
}
