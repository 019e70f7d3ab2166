//! Towers that one family uses alone.

use super::super::text::Text;
use super::blocks::{Blocks, CHANNELS, factor, factor_or, layer_norm, plain};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Llama-4 (vLLM 0.32.0, `mllama4.py`).
pub(super) fn llama4(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let side = vision.dim("image_size")?.checked_div(patch).unwrap_or(0);
    let width = vision.dim("intermediate_size")?;
    let adapted = vision.dim("projector_input_dim")?;
    let projected = vision.dim_or("projector_output_dim", adapted)?;
    let seen = vision.dim_or("vision_output_dim", 7680)?;
    let blocks = Blocks {
        path: "vision_model.model.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width,
        names: ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let role = Role::Tower;
    let pixels = factor_or(vision, "num_channels", CHANNELS)? * patch * patch;
    let mut all = vec![
        plain("vision_model.class_embedding", &[hidden]),
        plain(
            "vision_model.positional_embedding_vlm",
            &[side * side + 1, hidden],
        ),
        Weight::column("vision_model.patch_embedding.linear", role, pixels, &[hidden]),
        layer_norm("vision_model.layernorm_pre", hidden),
        layer_norm("vision_model.layernorm_post", hidden),
        Weight::column("vision_model.vision_adapter.mlp.fc1", role, width, &[adapted]),
        Weight::row("vision_model.vision_adapter.mlp.fc2", role, adapted, projected),
        Weight::column("multi_modal_projector.linear_1", role, seen, &[t.hidden()?]),
    ];
    all.extend(blocks.weights());
    Ok(all)
}

/// Gemma-4 (vLLM 0.32.0, `gemma4_mm.py`): transformers' own tower, whole on every rank.
pub(super) fn gemma4(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let layers = vision.dim("num_hidden_layers")?;
    let heads = vision.dim("num_attention_heads")?;
    let kv = vision.dim_or("num_key_value_heads", heads)?;
    let head_dim = vision.dim_or("head_dim", hidden.checked_div(heads).unwrap_or(0))?;
    let width = vision.dim("intermediate_size")?;
    let patch = factor(vision, "patch_size")?;
    let name = |part: &str| format!("vision_tower.encoder.layers.0.{part}");
    Ok(vec![
        plain(
            "vision_tower.patch_embedder.position_embedding_table",
            &[2, vision.dim("position_embedding_size")?, hidden],
        ),
        plain(
            "vision_tower.patch_embedder.input_proj",
            &[hidden, CHANNELS * patch * patch],
        ),
        plain(&name("self_attn.q_proj"), &[heads * head_dim, hidden]).times(layers),
        plain(&name("self_attn.k_proj"), &[kv * head_dim, hidden]).times(2 * layers),
        plain(&name("self_attn.o_proj"), &[hidden, heads * head_dim]).times(layers),
        plain(&name("self_attn.q_norm"), &[head_dim]).times(2 * layers),
        plain(&name("mlp.gate_proj"), &[width, hidden]).times(3 * layers),
        plain(&name("input_layernorm"), &[hidden]).times(4 * layers),
        Weight::replicated(
            "embed_vision.embedding_projection",
            Role::Tower,
            hidden,
            &[t.hidden()?],
        ),
    ])
}

/// MiniMax-M3 (vLLM 0.32.0, `vllm/models/minimax_m3/common/vision_tower.py`).
pub(super) fn minimax_m3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let text = t.hidden()?;
    let projected = t.top.dim_or("projector_hidden_size", text)?;
    let (side, time) = match vision.sub("img_token_compression_config")? {
        None => (2, 2),
        Some(c) => (
            factor_or(&c, "spatial_merge_size", 2)?,
            factor_or(&c, "temporal_patch_size", 2)?,
        ),
    };
    let blocks = Blocks {
        path: "vision_tower.vision_model.encoder.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "fc1", "fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let bias = t.top.flag("multimodal_projector_bias", true)?;
    let name = |part: &str| format!("vision_tower.{part}");
    let channels = factor_or(vision, "num_channels", CHANNELS)?;
    let role = Role::Tower;
    let mut all = vec![
        plain(
            &name("vision_model.embeddings.patch_embedding"),
            &[hidden, channels, time, patch, patch],
        ),
        layer_norm(&name("vision_model.pre_layrnorm"), hidden),
        Weight::column(name("multi_modal_projector.linear_1"), role, hidden, &[projected]).bias(bias),
        Weight::row(name("multi_modal_projector.linear_2"), role, projected, text).bias(bias),
        Weight::column(
            name("patch_merge_mlp.linear_1"),
            role,
            text * side * side,
            &[projected],
        )
        .bias(bias),
        Weight::row(name("patch_merge_mlp.linear_2"), role, projected, text).bias(bias),
    ];
    all.extend(blocks.weights());
    Ok(all)
}
