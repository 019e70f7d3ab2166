//! Towers of Step's vision models, and Muse-Glimmer's, which is built alike.

use super::super::text::Text;
use super::blocks::{
    Blocks, CHANNELS, column, convolution, factor, factor_or, layer_norm, plain, repeated, side, whole,
};
use crate::arch::{Config, Weight};
use crate::{Error, Result};

/// Step-3 (vLLM 0.32.0, `step3_vl.py`): norms after each part, two convolutions, one projection.
pub(super) fn step3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let side = side(vision)?;
    let out = vision.dim_or("output_hidden_size", 4096)?;
    let channels = factor_or(vision, "num_channels", CHANNELS)?;
    let blocks = Blocks {
        path: "vision_model.transformer.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain("vision_model.embeddings.class_embedding", &[hidden]),
        plain(
            "vision_model.embeddings.position_embedding",
            &[side * side + 1, hidden],
        ),
        whole("vit_large_projector", 2 * out, t.hidden()?).bias(t.top.flag("projector_bias", true)?),
    ];
    all.extend(convolution(
        "vision_model.embeddings.patch_embedding",
        &[hidden, channels, patch, patch],
    ));
    all.extend(convolution("vit_downsampler", &[out, hidden, 2, 2]));
    all.extend(convolution("vit_downsampler2", &[2 * out, out, 3, 3]));
    all.extend(blocks.weights());
    Ok(all)
}

/// Step-VL and Step-3.7 (vLLM 0.32.0, `step_vl.py`): a perception encoder and two convolutions.
pub(super) fn step_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let width = vision.dim("width")?;
    let patch = factor(vision, "patch_size")?;
    let side = side(vision)?;
    let heads = vision.dim("heads")?;
    let blocks = Blocks {
        path: "vision_model.transformer.resblocks",
        layers: vision.dim("layers")?,
        hidden: width,
        attention: width,
        heads,
        width: product(vision, width, "mlp_ratio")?,
        names: ["attn.qkv_proj", "attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain("vision_model.conv1", &[width, CHANNELS, patch, patch]),
        column("vit_large_projector", 4 * width, t.hidden()?).bias(t.top.flag("projector_bias", true)?),
    ];
    let class = u64::from(vision.flag("use_cls_token", false)?);
    if class > 0 {
        all.push(plain("vision_model.class_embedding", &[width]));
    }
    if vision.flag("use_abs_posemb", true)? {
        all.push(plain(
            "vision_model.positional_embedding",
            &[side * side + class, width],
        ));
    }
    for (key, default) in [("use_ln_pre", true), ("use_ln_post", true)] {
        if vision.flag(key, default)? {
            all.push(layer_norm(&format!("vision_model.{key}"), width));
        }
    }
    if vision.get("ls_init_value").is_some() {
        let scales = [plain("vision_model.transformer.resblocks.0.ls", &[width]).times(2)];
        all.extend(repeated(blocks.layers, scales));
    }
    all.extend(convolution(
        "vision_model.vit_downsampler1",
        &[2 * width, width, 3, 3],
    ));
    all.extend(convolution(
        "vision_model.vit_downsampler2",
        &[4 * width, 2 * width, 3, 3],
    ));
    all.extend(blocks.weights());
    Ok(all)
}

/// `size` times a factor that may be a fraction, rounded down as the engine does.
fn product(vision: &Config, size: u64, key: &str) -> Result<u64> {
    let factor = vision.f64(key)?.unwrap_or(4.0);
    let value = size as f64 * factor;
    if !(1.0..=crate::arch::config::MAX_DIMENSION as f64).contains(&value) {
        return Err(Error::input(format!(
            "{} is {factor}, which makes the feed-forward part {value} wide",
            vision.name(key)
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 1 and the largest size"
    )]
    Ok(value as u64)
}
