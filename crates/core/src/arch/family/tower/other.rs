//! Towers that one family uses alone.

use super::super::text::Text;
use super::blocks::{Blocks, CHANNELS, factor, factor_or, layer_norm, plain, repeated};
use crate::Result;
use crate::arch::{Config, Role, Weight};
use crate::dtype::Dtype;

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

/// Gemma-4 Unified (vLLM 0.32.0, `gemma4_unified.py`): patches go into the language model through one divided
/// projection; the class builds it with `--language-model-only` too.
pub(super) fn gemma4_unified(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let patch = match vision.get("model_patch_size") {
        Some(_) => factor(vision, "model_patch_size")?,
        None => factor_or(vision, "patch_size", 16)? * factor_or(vision, "pooling_kernel_size", 3)?,
    };
    let pixels = patch * patch * CHANNELS;
    let width = vision.dim_or("mm_embed_dim", 3840)?;
    let name = |part: &str| format!("vision_embedder.{part}");
    let role = Role::Tower;
    Ok(vec![
        layer_norm(&name("patch_ln1"), pixels),
        Weight::column(name("patch_dense"), role, pixels, &[width]).bias(true),
        layer_norm(&name("patch_ln2"), width),
        plain(
            &name("pos_embedding"),
            &[vision.dim_or("mm_posemb_size", 1120)?, 2, width],
        ),
        layer_norm(&name("pos_norm"), width),
        Weight::replicated("embed_vision.embedding_projection", role, width, &[t.hidden()?]),
    ])
}

/// The sound of Gemma-4 Unified: one projection.
pub(super) fn gemma4_unified_audio(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim_or("audio_embed_dim", 640)?;
    let name = "embed_audio.embedding_projection";
    Ok(vec![Weight::replicated(name, Role::Tower, width, &[t.hidden()?])])
}

/// DeepSeek-V4 with images (vLLM 0.32.0, `vllm/models/deepseek_v4/common/vision.py`), with a vector in 32 bits for each kind of
/// place in the text. The keys lie in the file itself; no
/// layers are no tower.
pub(super) fn deepseek_v4(t: &Text, file: &Config) -> Result<Vec<Weight>> {
    // Start, end, end of a line, padding.
    const MARKS: u64 = 4;
    if file.u64("vision_n_layers")?.unwrap_or(0) == 0 {
        return Ok(Vec::new());
    }
    let sizes = SeenByDeepSeek {
        layers: file.dim("vision_n_layers")?,
        hidden: file.dim("vision_dim")?,
        heads: file.dim("vision_n_heads")?,
        width: file.dim("vision_inter_dim")?,
        patch: factor(file, "vision_patch_size")?,
        side: factor(file, "vision_downsample_ratio")?,
    };
    let text = t.hidden()?;
    let mut all = sizes.weights(text);
    all.push(
        plain("image_start", &[text])
            .of(Dtype::F32)
            .times(MARKS)
            .unquantized(),
    );
    Ok(all)
}

/// DeepSeek-V4.1 (vLLM 0.32.0, `vllm/models/deepseek_v41/nvidia/vl_model.py`, `transformers_utils/configs/deepseek_v41.py`): the
/// same tower, with the keys in a part of their own. Its vectors for places in the text are the decoder's: it has them without
/// images too.
pub(super) fn deepseek_v41(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let sizes = SeenByDeepSeek {
        layers: vision.dim_or("num_hidden_layers", 0)?,
        hidden: vision.dim_or("hidden_size", 1024)?,
        heads: vision.dim_or("num_attention_heads", 16)?,
        width: vision.dim_or("intermediate_size", 2816)?,
        patch: factor_or(vision, "patch_size", 14)?,
        side: factor_or(vision, "downsample_ratio", 3)?,
    };
    Ok(sizes.weights(t.hidden()?))
}

/// Sizes of the tower of DeepSeek-V4 and V4.1: layers with gates, norms as the file's type although they are made in 32 bits,
/// and an aligner over joined patches.
struct SeenByDeepSeek {
    layers: u64,
    hidden: u64,
    heads: u64,
    width: u64,
    patch: u64,
    side: u64,
}

impl SeenByDeepSeek {
    fn weights(&self, text: u64) -> Vec<Weight> {
        let Self {
            layers,
            hidden,
            heads,
            width,
            patch,
            side,
        } = *self;
        let joined = hidden * side * side;
        let name = |part: &str| format!("vision.blocks.0.{part}");
        let role = Role::Tower;
        let divided = |w: Weight| w.whole_unless_divides(heads);
        let mut all = vec![
            Weight::replicated(
                "vision.patch_embed.proj",
                role,
                CHANNELS * patch * patch,
                &[hidden],
            )
            .bias(true),
            plain("vision.norm", &[hidden]),
            divided(Weight::column("aligner.w1", role, joined, &[text]).bias(true)),
            divided(Weight::row("aligner.w2", role, text, text).bias(true)),
        ];
        all.extend(repeated(
            layers,
            [
                divided(
                    Weight::qkv(
                        name("attn.wqkv"),
                        hidden,
                        heads,
                        heads,
                        hidden.checked_div(heads).unwrap_or(0),
                    )
                    .bias(true),
                ),
                divided(Weight::row(name("attn.wo"), role, hidden, hidden).bias(true)),
                divided(Weight::column(name("mlp.w1"), role, hidden, &[width, width])),
                divided(Weight::row(name("mlp.w2"), role, width, hidden)),
                plain(&name("norm"), &[hidden]).times(2),
            ],
        ));
        all.into_iter().map(Weight::unquantized).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(layers: u64) -> u64 {
        let file = format!(
            r#"{{"hidden_size": 32, "vision_n_layers": {layers}, "vision_dim": 64, "vision_n_heads": 4,
                "vision_inter_dim": 128, "vision_patch_size": 14, "vision_downsample_ratio": 3}}"#
        );
        let file = Config::parse(file.as_bytes()).unwrap();
        let text = Text::find("DeepseekV4ForConditionalGeneration", &file).unwrap();
        let all = deepseek_v4(&text, &file).unwrap();
        all.iter().map(|w| w.elements().unwrap()).sum()
    }

    #[test]
    fn a_file_of_deepseek_v4_without_vision_layers_has_no_tower() {
        assert_eq!(seen(0), 0);
    }

    #[test]
    fn the_tower_of_deepseek_v4_has_the_elements_that_its_modules_declare() {
        let layer = (64 * 192 + 192) + (64 * 64 + 64) + 64 * 256 + 128 * 64 + 2 * 64;
        let aligner = (9 * 64 * 32 + 32) + (32 * 32 + 32);
        let ends = (3 * 14 * 14 * 64 + 64) + 64 + 4 * 32;
        assert_eq!(seen(2), 2 * layer + aligner + ends);
    }
}
