//! Vision towers and projectors beside a language model.
//!
//! Every pipeline stage holds them (vLLM 0.32.0 builds the tower on each), and `--language-model-only` leaves them
//! out. A block that repeats is written once with the number of layers as its count.

use super::text::Text;
use crate::Result;
use crate::arch::{Config, Outside, Place, Role, Weight};

/// Elements of one pixel: red, green and blue.
const CHANNELS: u64 = 3;

/// Makes a tower's parameters from the whole file and the tower's part.
type Reader = fn(&Text, &Config) -> Result<Vec<Weight>>;

/// The reader of a wrapper class's vision tower.
fn reader(class: &str) -> Option<Reader> {
    Some(match class {
        "Qwen3VLForConditionalGeneration"
        | "Qwen3VLMoeForConditionalGeneration"
        | "Qwen3_5ForConditionalGeneration"
        | "Qwen3_5MoeForConditionalGeneration" => qwen3_vl,
        "Llama4ForConditionalGeneration" => llama4,
        "Gemma4ForConditionalGeneration" => gemma4,
        "MiniMaxM3SparseForConditionalGeneration" => minimax_m3,
        "KimiK25ForConditionalGeneration" | "KimiK3ForConditionalGeneration" => moonvit_3d,
        "Qwen2VLForConditionalGeneration" => qwen2_vl,
        "Qwen2_5_VLForConditionalGeneration" => qwen2_5_vl,
        "Gemma3ForConditionalGeneration" => gemma3,
        "Mistral3ForConditionalGeneration" => mistral3,
        "LlavaForConditionalGeneration"
        | "LlavaNextForConditionalGeneration"
        | "LlavaNextVideoForConditionalGeneration" => llava,
        "Cohere2VisionForConditionalGeneration" => cohere2_vision,
        "Idefics3ForConditionalGeneration" | "SmolVLMForConditionalGeneration" => idefics3,
        _ => return None,
    })
}

/// The part of a file that describes a tower whose parameters are not counted, if there is one.
pub(crate) fn unread(class: &str, file: &Config) -> Option<&'static str> {
    // The generic backend counts both parts of this class to its language model.
    if class == "Phi4MultimodalForCausalLM" {
        return None;
    }
    ["vision_config", "audio_config"]
        .into_iter()
        .find(|key| file.get(key).is_some() && (*key == "audio_config" || reader(class).is_none()))
}

/// The towers of a wrapper class, in the tower's own part of `t.top`.
///
/// # Errors
/// If a size in the tower's configuration is missing or out of range.
pub(crate) fn read(class: &str, t: &Text) -> Result<Vec<Outside>> {
    let Some(reader) = reader(class) else {
        return Ok(Vec::new());
    };
    let Some(vision) = t.top.sub("vision_config")? else {
        return Ok(Vec::new());
    };
    let weights = reader(t, &vision)?;
    Ok(if weights.is_empty() {
        Vec::new()
    } else {
        vec![Outside {
            place: Place::Every,
            tower: true,
            weights,
        }]
    })
}

/// A transformer encoder's blocks, which differ between towers in names, biases and norms only.
struct Blocks {
    path: &'static str,
    layers: u64,
    hidden: u64,
    /// Width of all heads together; the model's in most.
    attention: u64,
    heads: u64,
    width: u64,
    /// Names of query/key/value projection, output projection, first and second feed-forward matrix.
    names: [&'static str; 4],
    attention_bias: bool,
    mlp_bias: bool,
    /// Two norms a layer, each with a shift where `norm_shift`.
    norm_shift: bool,
}

impl Blocks {
    fn weights(&self) -> Vec<Weight> {
        let name = |part: &str| format!("{}.0.{part}", self.path);
        let head_dim = self.attention.checked_div(self.heads).unwrap_or(0);
        let [qkv, out, up, down] = self.names;
        let norms = if self.norm_shift { 4 } else { 2 };
        [
            Weight::qkv(name(qkv), self.hidden, self.heads, self.heads, head_dim).bias(self.attention_bias),
            Weight::row(name(out), Role::Tower, self.attention, self.hidden).bias(self.attention_bias),
            Weight::column(name(up), Role::Tower, self.hidden, &[self.width]).bias(self.mlp_bias),
            Weight::row(name(down), Role::Tower, self.width, self.hidden).bias(self.mlp_bias),
            Weight::norm(name("norm"), self.hidden).times(norms),
        ]
        .into_iter()
        .map(|w| {
            let count = w.count * self.layers;
            w.role(Role::Tower).times(count)
        })
        .collect()
    }
}

/// A layer norm over `width`: scale and shift.
fn layer_norm(name: &str, width: u64) -> Weight {
    plain(name, &[width]).times(2)
}

/// A parameter that every rank holds whole.
fn plain(name: &str, shape: &[u64]) -> Weight {
    Weight::tensor(name, Role::Tower, shape, None)
}

/// `spatial_merge_size` squared, patches that the projector joins.
fn merged(vision: &Config) -> Result<u64> {
    let side = vision.dim_or("spatial_merge_size", 2)?;
    Ok(side * side)
}

/// Qwen3-VL and Qwen3.5 (vLLM 0.32.0, `qwen3_vl.py`): mergers also after the layers of `deepstack_visual_indexes`.
fn qwen3_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let out = vision.dim("out_hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let blocks = Blocks {
        path: "visual.blocks",
        layers: vision.dim("depth")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let merge = hidden * merged(vision)?;
    let time = vision.dim_or("temporal_patch_size", 2)?;
    let mut all = vec![
        plain(
            "visual.patch_embed.proj",
            &[
                hidden,
                vision.dim_or("in_channels", CHANNELS)?,
                time,
                patch,
                patch,
            ],
        ),
        plain("visual.patch_embed.proj.bias", &[hidden]),
        plain(
            "visual.pos_embed",
            &[vision.dim("num_position_embeddings")?, hidden],
        ),
        layer_norm("visual.merger.norm", hidden),
        Weight::column("visual.merger.linear_fc1", Role::Tower, merge, &[merge]).bias(true),
        Weight::row("visual.merger.linear_fc2", Role::Tower, merge, out).bias(true),
    ];
    let deep = vision.u64s("deepstack_visual_indexes")?.unwrap_or_default().len() as u64;
    if deep > 0 {
        let name = |part: &str| format!("visual.deepstack_merger_list.0.{part}");
        all.push(plain(&name("norm"), &[merge]).times(2 * deep));
        all.push(
            Weight::column(name("linear_fc1"), Role::Tower, merge, &[merge])
                .bias(true)
                .times(deep),
        );
        all.push(
            Weight::row(name("linear_fc2"), Role::Tower, merge, out)
                .bias(true)
                .times(deep),
        );
    }
    all.extend(blocks.weights());
    Ok(all)
}

/// Qwen2-VL (vLLM 0.32.0, `qwen2_vl.py`); `hidden_size` of its tower is the language model's.
fn qwen2_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("embed_dim")?;
    let patch = vision.dim("patch_size")?;
    let blocks = Blocks {
        path: "visual.blocks",
        layers: vision.dim("depth")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_heads")?,
        width: hidden * vision.dim_or("mlp_ratio", 4)?,
        names: ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let merge = hidden * merged(vision)?;
    let time = vision.dim_or("temporal_patch_size", 2)?;
    let channels = vision.dim_or("in_channels", vision.dim_or("in_chans", CHANNELS)?)?;
    let mut all = vec![
        plain("visual.patch_embed.proj", &[hidden, channels, time, patch, patch]),
        layer_norm("visual.merger.ln_q", hidden),
        Weight::column("visual.merger.mlp.0", Role::Tower, merge, &[merge]).bias(true),
        Weight::row(
            "visual.merger.mlp.2",
            Role::Tower,
            merge,
            vision.dim("hidden_size")?,
        )
        .bias(true),
    ];
    all.extend(blocks.weights());
    Ok(all)
}

/// Qwen2.5-VL (vLLM 0.32.0, `qwen2_5_vl.py`): a gated feed-forward part and norms without shifts.
fn qwen2_5_vl(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let layers = vision.dim("depth")?;
    let heads = vision.dim("num_heads")?;
    let width = vision.dim("intermediate_size")?;
    let merge = hidden * merged(vision)?;
    let time = vision.dim_or("temporal_patch_size", 2)?;
    let channels = vision.dim_or("in_channels", vision.dim_or("in_chans", CHANNELS)?)?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let role = Role::Tower;
    let name = |part: &str| format!("visual.blocks.0.{part}");
    Ok(vec![
        plain("visual.patch_embed.proj", &[hidden, channels, time, patch, patch]),
        plain("visual.merger.ln_q", &[hidden]),
        Weight::column("visual.merger.mlp.0", role, merge, &[merge]).bias(true),
        Weight::row("visual.merger.mlp.2", role, merge, vision.dim("out_hidden_size")?).bias(true),
        Weight::qkv(name("attn.qkv"), hidden, heads, heads, head_dim)
            .role(role)
            .bias(true)
            .times(layers),
        Weight::row(name("attn.proj"), role, hidden, hidden)
            .bias(true)
            .times(layers),
        Weight::column(name("mlp.gate_up_proj"), role, hidden, &[width, width])
            .bias(true)
            .times(layers),
        Weight::row(name("mlp.down_proj"), role, width, hidden)
            .bias(true)
            .times(layers),
        plain(&name("norms"), &[hidden]).times(2 * layers),
    ])
}

/// Gemma-3 (vLLM 0.32.0, `gemma3_mm.py`): `SigLIP` and a projection of pooled patches.
fn gemma3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let mut all = siglip(vision)?;
    all.push(plain(
        "multi_modal_projector.mm_input_projection_weight",
        &[hidden, t.hidden()?],
    ));
    all.push(plain("multi_modal_projector.mm_soft_emb_norm", &[hidden]));
    Ok(all)
}

/// Cohere2-Vision (vLLM 0.32.0, `cohere2_vision.py`): `SigLIP` and a gated projection of joined patches.
fn cohere2_vision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let side = t.top.dim_or("downsample_factor", 2)?;
    let joined = vision.dim("hidden_size")? * side * side;
    let width = t.top.dim("alignment_intermediate_size")?;
    let mut all = siglip(vision)?;
    let role = Role::Tower;
    all.push(
        Weight::column(
            "multi_modal_projector.linear_1",
            role,
            joined,
            &[width / 2, width / 2],
        )
        .bias(true),
    );
    all.push(Weight::row("multi_modal_projector.linear_2", role, width / 2, t.hidden()?).bias(true));
    Ok(all)
}

/// Idefics3 and `SmolVLM` (vLLM 0.32.0, `idefics3.py`): a `SigLIP`-like tower and one projection of joined patches.
fn idefics3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let scale = t.top.dim_or("scale_factor", 2)?;
    let joined = vision.dim("hidden_size")? * scale * scale;
    let mut all = siglip(vision)?;
    let name = "model.connector.modality_projection.proj";
    all.push(Weight::replicated(name, Role::Tower, joined, &[t.hidden()?]));
    Ok(all)
}

/// `SigLIP`'s vision model without its pooling head (vLLM 0.32.0, `siglip.py`).
fn siglip(vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let side = vision.dim("image_size")?.checked_div(patch).unwrap_or(0);
    let blocks = Blocks {
        path: "vision_tower.vision_model.encoder.layers",
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
    let name = |part: &str| format!("vision_tower.vision_model.{part}");
    let mut all = vec![
        plain(
            &name("embeddings.patch_embedding"),
            &[hidden, vision.dim_or("num_channels", CHANNELS)?, patch, patch],
        ),
        plain(&name("embeddings.patch_embedding.bias"), &[hidden]),
        plain(&name("embeddings.position_embedding"), &[side * side, hidden]),
        layer_norm(&name("post_layernorm"), hidden),
    ];
    all.extend(blocks.weights());
    Ok(all)
}

/// Llama-4 (vLLM 0.32.0, `mllama4.py`).
fn llama4(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
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
    let pixels = vision.dim_or("num_channels", CHANNELS)? * patch * patch;
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
fn gemma4(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let layers = vision.dim("num_hidden_layers")?;
    let heads = vision.dim("num_attention_heads")?;
    let kv = vision.dim_or("num_key_value_heads", heads)?;
    let head_dim = vision.dim_or("head_dim", hidden.checked_div(heads).unwrap_or(0))?;
    let width = vision.dim("intermediate_size")?;
    let patch = vision.dim("patch_size")?;
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
fn minimax_m3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let text = t.hidden()?;
    let projected = t.top.dim_or("projector_hidden_size", text)?;
    let (side, time) = match vision.sub("img_token_compression_config")? {
        None => (2, 2),
        Some(c) => (
            c.dim_or("spatial_merge_size", 2)?,
            c.dim_or("temporal_patch_size", 2)?,
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
    let channels = vision.dim_or("num_channels", CHANNELS)?;
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

/// Kimi-K2.5 and K3 (vLLM 0.32.0, `kimi_k25_vit.py`): `MoonViT` and a projector over merged patches.
fn moonvit_3d(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let either = |a: &str, b: &str| {
        if vision.get(a).is_some() {
            vision.dim(a)
        } else {
            vision.dim(b)
        }
    };
    let hidden = either("vt_hidden_size", "hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let merge: u64 = vision
        .u64s("merge_kernel_size")?
        .unwrap_or_else(|| vec![2, 2])
        .iter()
        .product();
    let blocks = Blocks {
        path: "vision_tower.encoder.blocks",
        layers: either("vt_num_hidden_layers", "num_hidden_layers")?,
        hidden,
        attention: vision.dim_or("qkv_hidden_size", hidden)?,
        heads: either("vt_num_attention_heads", "num_attention_heads")?,
        width: either("vt_intermediate_size", "intermediate_size")?,
        names: ["wqkv", "wo", "mlp.fc0", "mlp.fc1"],
        attention_bias: vision.flag("attn_bias", true)?,
        mlp_bias: vision.flag("linear_bias", true)?,
        norm_shift: vision.str("norm_type")?.unwrap_or("layernorm") == "layernorm",
    };
    let text = t.hidden()?;
    let positions = [
        vision.dim_or("init_pos_emb_height", 64)?,
        vision.dim_or("init_pos_emb_width", 64)?,
        hidden,
    ];
    let mut all = vec![
        plain("vision_tower.patch_embed.proj", &[hidden, CHANNELS, patch, patch]),
        plain("vision_tower.patch_embed.pos_emb", &positions),
    ];
    if vision.flag("patch_embed_proj_bias", true)? {
        all.push(plain("vision_tower.patch_embed.proj.bias", &[hidden]));
    }
    let norms = if blocks.norm_shift { 2 } else { 1 };
    let heads = blocks.heads;
    all.push(plain("vision_tower.encoder.final_layernorm", &[hidden]).times(norms));
    let second = vision.str("mm_projector_type")? == Some("patchmergerv2");
    let joined = hidden * merge;
    let role = Role::Tower;
    all.push(Weight::replicated("mm_projector.linear_1", role, joined, &[joined]).bias(!second));
    all.push(Weight::replicated("mm_projector.linear_2", role, joined, &[text]).bias(!second));
    all.push(if second {
        plain("mm_projector.post_norm", &[text])
    } else {
        layer_norm("mm_projector.pre_norm", hidden)
    });
    all.extend(
        blocks
            .weights()
            .into_iter()
            .map(|w| w.whole_unless_divides(heads)),
    );
    Ok(all)
}

/// Pixtral's tower as `transformers` configures it (vLLM 0.32.0, `pixtral.py`).
fn pixtral_hf(vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let width = vision.dim("intermediate_size")?;
    let layers = vision.dim("num_hidden_layers")?;
    let heads = vision.dim("num_attention_heads")?;
    let head_dim = vision.dim_or("head_dim", hidden.checked_div(heads).unwrap_or(0))?;
    let name = |part: &str| format!("vision_tower.transformer.layers.0.{part}");
    let role = Role::Tower;
    Ok(vec![
        plain(
            "vision_tower.patch_conv",
            &[hidden, vision.dim_or("num_channels", CHANNELS)?, patch, patch],
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
fn mistral3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let merge = t.top.dim_or("spatial_merge_size", 2)?;
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

/// `LLaVA` (vLLM 0.32.0, `llava.py`) with a CLIP or Pixtral tower, cut after `vision_feature_layer`.
fn llava(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let role = Role::Tower;
    let mut all = match vision.str("model_type")?.unwrap_or_default() {
        "pixtral" => pixtral_hf(vision)?,
        _ => clip(vision, &t.top)?,
    };
    let bias = t.top.flag("multimodal_projector_bias", true)?;
    all.push(Weight::column("multi_modal_projector.linear_1", role, hidden, &[text]).bias(bias));
    all.push(Weight::row("multi_modal_projector.linear_2", role, text, text).bias(bias));
    Ok(all)
}

/// CLIP's vision model (vLLM 0.32.0, `clip.py`) up to the layer whose output is used.
fn clip(vision: &Config, top: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = vision.dim("patch_size")?;
    let side = vision.dim("image_size")?.checked_div(patch).unwrap_or(0);
    let depth = vision.dim("num_hidden_layers")?;
    // A feature layer counts from the end; -2 leaves the last layer out.
    let layers = match top
        .get("vision_feature_layer")
        .and_then(serde_json::Value::as_i64)
    {
        Some(n) if n < 0 => (depth + 1).saturating_sub(n.unsigned_abs()),
        Some(n) => n.unsigned_abs().min(depth),
        None => depth.saturating_sub(1),
    };
    let blocks = Blocks {
        path: "vision_tower.vision_model.encoder.layers",
        layers,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let name = |part: &str| format!("vision_tower.vision_model.{part}");
    let mut all = vec![
        plain(&name("embeddings.class_embedding"), &[hidden]),
        plain(
            &name("embeddings.patch_embedding"),
            &[hidden, vision.dim_or("num_channels", CHANNELS)?, patch, patch],
        ),
        plain(&name("embeddings.position_embedding"), &[side * side + 1, hidden]),
        layer_norm(&name("pre_layrnorm"), hidden),
    ];
    if layers == depth {
        all.push(layer_norm(&name("post_layernorm"), hidden));
    }
    all.extend(blocks.weights());
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tower_that_is_not_counted_is_named() {
        let file = |text: &str| Config::parse(text.as_bytes()).unwrap();
        let both = file(r#"{"vision_config": {}, "audio_config": {}}"#);
        assert_eq!(
            unread("Gemma4ForConditionalGeneration", &both),
            Some("audio_config")
        );
        assert_eq!(
            unread("AriaForConditionalGeneration", &both),
            Some("vision_config")
        );
        assert_eq!(unread("Phi4MultimodalForCausalLM", &both), None);
        assert_eq!(unread("LlamaForCausalLM", &file("{}")), None);
    }
}
