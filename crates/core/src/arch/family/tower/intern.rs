//! `InternViT` and the wrappers around it.

use super::super::text::Text;
use super::blocks::{
    CHANNELS, column, convolution, factor_or, layer_norm, plain, repeated, row, side, square, whole,
};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// `InternViT` (vLLM 0.32.0, `intern_vit.py`) without its last `without_last` layers, with `dummy_heads` added so that
/// the ranks divide the heads (NVLM-D).
fn intern_vit(vision: &Config, without_last: u64, dummy_heads: u64) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let heads = vision.dim("num_attention_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let width = vision.dim("intermediate_size")?;
    let patch = square(vision, "patch_size")?;
    let side = side(vision)?;
    let layers = vision.dim("num_hidden_layers")?.saturating_sub(without_last);
    let all_heads = heads + dummy_heads;
    let inner = all_heads * head_dim;
    let name = |part: &str| format!("vision_model.encoder.layers.0.{part}");
    let norm = match vision.str("norm_type")?.unwrap_or("rms_norm") {
        "rms_norm" => 1,
        _ => 2,
    };
    let mut layer = vec![
        Weight::qkv(name("attn.qkv"), hidden, all_heads, all_heads, head_dim)
            .bias(vision.flag("qkv_bias", vision.flag("attention_bias", false)?)?),
        row(name("attn.proj"), inner, hidden),
        column(name("mlp.fc1"), hidden, width),
        row(name("mlp.fc2"), width, hidden),
        plain(&name("norm"), &[hidden]).times(2 * norm),
        plain(&name("ls"), &[hidden]).times(2),
    ];
    if vision.flag("qk_normalization", false)? {
        layer.push(plain(&name("attn.q_norm"), &[inner]).times(2));
    }
    let path = "vision_model.embeddings";
    let mut all = vec![
        plain(&format!("{path}.class_embedding"), &[hidden]),
        plain(&format!("{path}.position_embedding"), &[side * side + 1, hidden]),
    ];
    let channels = factor_or(vision, "num_channels", CHANNELS)?;
    all.extend(convolution(
        &format!("{path}.patch_embedding"),
        &[hidden, channels, patch, patch],
    ));
    // Heads that the ranks cannot divide are kept whole on every rank.
    all.extend(repeated(layers, layer).map(|w| {
        if w.name.contains(".attn.") && w.role == Role::Tower {
            w.whole_unless_divides(all_heads)
        } else {
            w
        }
    }));
    Ok(all)
}

/// Layers behind the one that `select_layer` (negative: from the end) names.
fn unselected(top: &Config) -> u64 {
    match top.get("select_layer").and_then(serde_json::Value::as_i64) {
        Some(n) if n < 0 => n.unsigned_abs() - 1,
        _ => 0,
    }
}

/// `InternVL` and its relatives (vLLM 0.32.0, `internvl.py`, `skyworkr1v.py`, `h2ovl.py`).
pub(super) fn internvl_chat(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    // `downsample_ratio` is one half in every published file.
    let joined = 4 * vision.dim("hidden_size")?;
    let mut all = intern_vit(vision, unselected(&t.top), 0)?;
    all.push(layer_norm("mlp1.0", joined));
    all.push(whole("mlp1.1", joined, text));
    all.push(whole("mlp1.3", text, text));
    Ok(all)
}

/// NVLM-D (vLLM 0.32.0, `nvlm_d.py`): seven dummy heads, and a projector as wide as the language model's
/// feed-forward part.
pub(super) fn nvlm_d(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    const DUMMY_HEADS: u64 = 7;
    let width = t.intermediate()?;
    let joined = 4 * vision.dim("hidden_size")?;
    let mut all = intern_vit(vision, unselected(&t.top), DUMMY_HEADS)?;
    all.push(layer_norm("mlp1.0", joined));
    all.push(whole("mlp1.1", joined, width).bias(false));
    all.push(whole("mlp1.3", width, t.hidden()?).bias(false));
    Ok(all)
}

/// `InternVL` as the Transformers library configures it (vLLM 0.32.0, `interns1.py`): image and patch sizes are pairs.
pub(super) fn internvl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let width = vision.dim("intermediate_size")?;
    let patch = square(vision, "patch_size")?;
    let side = side(vision)?;
    let bias = vision.flag("attention_bias", false)?;
    let name = |part: &str| format!("vision_tower.encoder.layer.0.{part}");
    let norm = match vision.str("norm_type")?.unwrap_or("layer_norm") {
        "rms_norm" => 1,
        _ => 2,
    };
    let mut layer = vec![
        // Attention is whole on every rank, feed-forward parts are divided.
        whole(name("attention.qkv_proj"), hidden, 3 * hidden).bias(bias),
        whole(name("attention.projection_layer"), hidden, hidden),
        column(name("mlp.fc1"), hidden, width),
        row(name("mlp.fc2"), width, hidden),
        plain(&name("layernorm"), &[hidden]).times(2 * norm),
        plain(&name("lambda"), &[hidden]).times(2),
    ];
    if vision.flag("use_qk_norm", false)? {
        layer.push(plain(&name("attention.q_norm"), &[hidden]).times(2));
    }
    let channels = factor_or(vision, "num_channels", CHANNELS)?;
    let mut all = convolution(
        "vision_tower.embeddings.patch_embeddings.projection",
        &[hidden, channels, patch, patch],
    )
    .to_vec();
    all.push(plain("vision_tower.embeddings.cls_token", &[hidden]));
    if vision.flag("use_absolute_position_embeddings", true)? {
        all.push(plain(
            "vision_tower.embeddings.position_embeddings",
            &[side * side + 1, hidden],
        ));
    }
    if !vision.flag("use_mean_pooling", true)? {
        all.push(layer_norm("vision_tower.layernorm", hidden));
    }
    all.extend(repeated(vision.dim("num_hidden_layers")?, layer));
    let joined = 4 * hidden;
    let text = t.hidden()?;
    all.push(layer_norm("multi_modal_projector.layer_norm", joined));
    all.push(whole("multi_modal_projector.linear_1", joined, text));
    all.push(whole("multi_modal_projector.linear_2", text, text));
    Ok(all)
}
