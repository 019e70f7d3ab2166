//! Pixtral's tower, and Mistral-3's projector behind it.

use super::super::text::Text;
use super::blocks::{CHANNELS, factor, factor_or, plain, whole};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Pixtral's tower as `transformers` configures it (vLLM 0.32.0, `pixtral.py`).
pub(super) fn pixtral_hf(vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let width = vision.dim("intermediate_size")?;
    let layers = vision.dim("num_hidden_layers")?;
    let heads = vision.dim("num_attention_heads")?;
    let head_dim = vision.dim_or("head_dim", hidden.checked_div(heads).unwrap_or(0))?;
    let name = |part: &str| format!("vision_tower.transformer.layers.0.{part}");
    let role = Role::Tower;
    Ok(vec![
        plain(
            "vision_tower.patch_conv",
            &[hidden, factor_or(vision, "num_channels", CHANNELS)?, patch, patch],
        ),
        plain("vision_tower.ln_pre", &[hidden]),
        Weight::qkv(name("attention.qkv_proj"), hidden, heads, heads, head_dim)
            .role(role)
            .times(layers),
        Weight::row(name("attention.o_proj"), role, heads * head_dim, hidden).times(layers),
        Weight::column(name("feed_forward.gate_up_proj"), role, hidden, &[width, width]).times(layers),
        Weight::row(name("feed_forward.down_proj"), role, width, hidden).times(layers),
        plain(&name("attention_norm"), &[hidden]).times(2 * layers),
    ])
}

/// Mistral-3 (vLLM 0.32.0, `mistral3.py`): Pixtral and a projector over merged patches.
pub(super) fn mistral3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let merge = factor_or(&t.top, "spatial_merge_size", 2)?;
    let bias = t.top.flag("multimodal_projector_bias", false)?;
    let role = Role::Tower;
    let mut all = pixtral_hf(vision)?;
    all.push(plain("multi_modal_projector.norm", &[hidden]));
    let joined = hidden * merge * merge;
    all.push(Weight::replicated(
        "multi_modal_projector.patch_merger.merging_layer",
        role,
        joined,
        &[hidden],
    ));
    all.push(Weight::column("multi_modal_projector.linear_1", role, hidden, &[text]).bias(bias));
    all.push(Weight::row("multi_modal_projector.linear_2", role, text, text).bias(bias));
    Ok(all)
}

/// Pixtral in Mistral's own form (vLLM 0.32.0, `pixtral.py`): tower, and an adapter, behind a merger where patches
/// are joined.
pub(super) fn pixtral(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let bias = vision.flag("adapter_bias", true)?;
    let merge = factor_or(vision, "spatial_merge_size", 1)?;
    let mut all = pixtral_hf(vision)?;
    if vision.flag("add_pre_mm_projector_layer_norm", false)? {
        all.push(plain("pre_mm_projector_norm", &[hidden]));
    }
    if vision.str("mm_projector_id")? == Some("patch_merge") {
        let joined = hidden * merge * merge;
        all.push(whole("patch_merger.merging_layer", joined, hidden).bias(false));
    }
    all.push(whole("vision_language_adapter.w_in", hidden, text).bias(bias));
    all.push(whole("vision_language_adapter.w_out", text, text).bias(bias));
    Ok(all)
}
