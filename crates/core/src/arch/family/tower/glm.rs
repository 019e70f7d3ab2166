//! Towers of GLM's vision models.

use super::super::text::Text;
use super::blocks::{
    Blocks, CHANNELS, column, convolution, factor, factor_or, layer_norm, merged, plain, repeated, row, side,
    whole,
};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// GLM-4.1V, GLM-4.5V, GLM-OCR and GLM-5-Next (vLLM 0.32.0, `glm4_1v.py`, `glm_ocr.py`,
/// `vllm/models/glm5next/common/multimodal.py`): patches are joined by a convolution and go through a gated merger.
/// GLM-OCR and GLM-5-Next have biases and norms of queries and keys, and no learned positions.
pub(super) fn glm4v(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let next = t.class == "Glm5NextForConditionalGeneration";
    let ocr = next || t.class == "GlmOcrForConditionalGeneration";
    let hidden = vision.dim("hidden_size")?;
    let heads = vision.dim("num_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let patch = factor(vision, "patch_size")?;
    let out = vision.dim("out_hidden_size")?;
    let merge = factor_or(vision, "spatial_merge_size", 2)?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let bias = vision.flag("attention_bias", ocr)?;
    let role = Role::Tower;
    // GLM-4.xV's blocks are as wide as the language model's output, GLM-OCR's as the file says.
    let width = if ocr {
        vision.dim("intermediate_size")?
    } else {
        out
    };
    // GLM-OCR's merger is as wide as the language model's feed-forward parts.
    let context = if next {
        vision.dim("projection_intermediate_size")?
    } else if ocr {
        t.intermediate()?
    } else {
        vision.dim("intermediate_size")?
    };
    let name = |part: &str| format!("visual.blocks.0.{part}");
    let mut layer = vec![
        Weight::qkv(name("attn.qkv"), hidden, heads, heads, head_dim).bias(bias),
        Weight::row(name("attn.proj"), role, hidden, hidden).bias(bias),
        Weight::column(name("mlp.gate_up_proj"), role, hidden, &[width, width]).bias(ocr),
        Weight::row(name("mlp.down_proj"), role, width, hidden).bias(ocr),
        plain(&name("norm"), &[hidden]).times(2),
    ];
    if ocr {
        layer.push(plain(&name("attn.q_norm"), &[head_dim]).times(2));
    }
    let mut all = convolution(
        "visual.patch_embed.proj",
        &[
            hidden,
            factor_or(vision, "in_channels", CHANNELS)?,
            time,
            patch,
            patch,
        ],
    )
    .to_vec();
    all.extend(convolution("visual.downsample", &[out, hidden, merge, merge]));
    all.push(plain("visual.post_layernorm", &[hidden]));
    if !ocr {
        let side = side(vision)?;
        all.push(plain(
            "visual.embeddings.position_embedding",
            &[side * side, hidden],
        ));
        all.push(plain("visual.post_conv_layernorm", &[hidden]));
    }
    all.push(Weight::column("visual.merger.proj", role, out, &[out]));
    all.push(layer_norm("visual.merger.post_projection_norm", out));
    all.push(Weight::column(
        "visual.merger.gate_up_proj",
        role,
        out,
        &[context, context],
    ));
    all.push(Weight::row("visual.merger.down_proj", role, context, out));
    all.extend(repeated(vision.dim("depth")?, layer));
    Ok(all)
}

/// GLM-4V-9B (vLLM 0.32.0, `glm4v.py`): EVA-CLIP, a convolution over four patches, a gated projection.
pub(super) fn glm4v_9b(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let text = t.hidden()?;
    let inner = t.config.dim("ffn_hidden_size")?;
    let path = "transformer.vision";
    let name = |part: &str| format!("{path}.{part}");
    let channels = factor_or(vision, "in_channels", CHANNELS)?;
    let blocks = Blocks {
        path: "transformer.vision.transformer.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: vision.dim("intermediate_size")?,
        names: [
            "attention.query_key_value",
            "attention.dense",
            "mlp.fc1",
            "mlp.fc2",
        ],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain(&name("ends"), &[text]).times(2),
        plain(&name("patch_embedding.cls_embedding"), &[hidden]),
        plain(
            &name("patch_embedding.position_embedding"),
            &[vision.dim("num_positions")?, hidden],
        ),
        whole(name("linear_proj.linear_proj"), text, text).bias(false),
        layer_norm(&name("linear_proj.norm1"), text),
        Weight::column(
            name("linear_proj.merged_proj"),
            Role::Tower,
            text,
            &[inner, inner],
        ),
        Weight::row(name("linear_proj.dense_4h_to_h"), Role::Tower, inner, text),
    ];
    all.extend(convolution(
        &name("patch_embedding.proj"),
        &[hidden, channels, patch, patch],
    ));
    all.extend(convolution(&name("conv"), &[text, hidden, 2, 2]));
    all.extend(blocks.weights());
    Ok(all)
}

/// ERNIE-4.5-VL (vLLM 0.32.0, `ernie45_vl.py`): plain blocks and a resampler over space and time.
pub(super) fn ernie_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let spatial = factor_or(&t.top, "spatial_conv_size", 2)?;
    let temporal = factor_or(&t.top, "temporal_conv_size", 2)?;
    let seen = t.top.dim_or("pixel_hidden_size", hidden)?;
    let joined = seen * spatial * spatial;
    let text = t.hidden()?;
    let blocks = Blocks {
        path: "vision_model.blocks",
        layers: vision.dim("depth")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: hidden * factor_or(vision, "mlp_ratio", 4)?,
        names: ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let channels = factor_or(vision, "in_channels", CHANNELS)?;
    let name = |part: &str| format!("resampler_model.{part}");
    let mut all = vec![
        whole("vision_model.patch_embed.proj", patch * patch * channels, hidden).bias(false),
        layer_norm("vision_model.ln", hidden),
        column(name("spatial_linear1"), joined, joined),
        column(name("spatial_linear2"), joined, joined),
        layer_norm(&name("spatial_norm"), joined),
    ];
    if t.top.flag("use_temporal_conv", true)? {
        all.push(column(name("temporal_linear1"), joined * temporal, joined));
        all.push(column(name("temporal_linear2"), joined, joined));
        all.push(layer_norm(&name("temporal_norm"), joined));
    }
    all.push(column(name("mlp"), joined, text));
    all.push(plain(&name("after_norm"), &[text]));
    all.extend(blocks.weights());
    Ok(all)
}

/// The merger of dots.ocr and Keye-like towers: a norm, and two divided projections of joined patches.
pub(super) fn merger(path: &str, vision: &Config, hidden: u64, norm: u64, out: u64) -> Result<Vec<Weight>> {
    let joined = hidden * merged(vision)?;
    Ok(vec![
        plain(&format!("{path}.ln_q"), &[hidden]).times(norm),
        column(format!("{path}.mlp.0"), joined, joined),
        row(format!("{path}.mlp.2"), joined, out),
    ])
}
