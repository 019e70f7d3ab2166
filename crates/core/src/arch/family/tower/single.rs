//! Towers that one wrapper class each uses.

use super::super::text::Text;
use super::blocks::{
    Blocks, CHANNELS, area, column, convolution, factor, factor_or, layer_norm, plain, repeated, row, side,
    whole,
};
use super::glm::merger;
use super::qformer::qformer;
use super::siglip::{Siglip, clip_layers};
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Aria (vLLM 0.32.0, `aria.py`): an Idefics-3 tower without its last norm, and a projector of learned queries.
pub(super) fn aria(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let mut tower = Siglip::whole("vision_tower.encoder.layers");
    tower.post_norm = false;
    let mut all = tower.weights(vision)?;
    let queries = t.top.sub("projector_patch_to_query_dict")?.map_or(Ok(0), |map| {
        let keys: Vec<String> = map.map().keys().cloned().collect();
        keys.iter().try_fold(0, |most, key| {
            Ok::<u64, crate::Error>(map.dim_or(key, 0)?.max(most))
        })
    })?;
    let text = t.hidden()?;
    let name = |part: &str| format!("multi_modal_projector.{part}");
    all.push(plain(&name("query"), &[queries, hidden]));
    all.push(whole(name("cross_attn.qkv_proj"), hidden, 3 * hidden).bias(false));
    all.push(whole(
        name("cross_attn.multihead_attn.in_proj"),
        hidden,
        3 * hidden,
    ));
    all.push(whole(name("cross_attn.out_proj"), hidden, hidden).times(2));
    all.push(layer_norm(&name("cross_attn.layer_norm"), hidden).times(6));
    all.push(Weight::column(
        name("feed_forward.linear_in"),
        Role::Tower,
        hidden,
        &[text],
    ));
    all.push(Weight::row(
        name("feed_forward.linear_out"),
        Role::Tower,
        text,
        text,
    ));
    Ok(all)
}

/// `AIMv2` (vLLM 0.32.0, `aimv2.py`), as Ovis-2 uses it: without its last norm.
pub(super) fn aimv2(c: &Config) -> Result<Vec<Weight>> {
    let hidden = c.dim("hidden_size")?;
    let heads = c.dim("num_attention_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let width = c.dim("intermediate_size")?;
    let patch = factor(c, "patch_size")?;
    let side = side(c)?;
    let bias = c.flag("use_bias", false)?;
    let channels = factor_or(c, "num_channels", CHANNELS)?;
    let path = "visual_tokenizer.backbone";
    let name = |part: &str| format!("{path}.trunk.blocks.0.{part}");
    let role = Role::Tower;
    let mut all = convolution(
        &format!("{path}.preprocessor.patchifier.proj"),
        &[hidden, channels, patch, patch],
    )
    .to_vec();
    all.push(plain(&format!("{path}.preprocessor.patchifier.norm"), &[hidden]));
    all.push(plain(
        &format!("{path}.preprocessor.pos_embed"),
        &[side * side, hidden],
    ));
    all.extend(repeated(
        c.dim("num_hidden_layers")?,
        [
            Weight::qkv(name("attn.qkv"), hidden, heads, heads, head_dim).bias(c.flag("qkv_bias", false)?),
            Weight::row(name("attn.proj"), role, hidden, hidden).bias(bias),
            Weight::column(name("mlp.fc13"), role, hidden, &[width, width]).bias(bias),
            Weight::row(name("mlp.fc2"), role, width, hidden).bias(bias),
            plain(&name("norm"), &[hidden]).times(2),
        ],
    ));
    Ok(all)
}

/// dots.ocr (vLLM 0.32.0, `dots_ocr.py`).
pub(super) fn dots_ocr(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("embed_dim")?;
    let heads = vision.dim("num_attention_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let width = vision.dim("intermediate_size")?;
    let patch = factor(vision, "patch_size")?;
    let bias = vision.flag("use_bias", false)?;
    let channels = factor_or(vision, "num_channels", CHANNELS)?;
    let name = |part: &str| format!("vision_tower.blocks.0.{part}");
    let role = Role::Tower;
    let mut all = convolution(
        "vision_tower.patch_embed.patchifier.proj",
        &[hidden, channels, patch, patch],
    )
    .to_vec();
    all.push(plain("vision_tower.patch_embed.patchifier.norm", &[hidden]));
    if vision.flag("post_norm", true)? {
        all.push(plain("vision_tower.post_trunk_norm", &[hidden]));
    }
    all.extend(merger(
        "vision_tower.merger",
        vision,
        hidden,
        2,
        vision.dim_or("hidden_size", t.hidden()?)?,
    )?);
    all.extend(repeated(
        vision.dim("num_hidden_layers")?,
        [
            Weight::qkv(name("attn.qkv"), hidden, heads, heads, head_dim).bias(bias),
            Weight::row(name("attn.proj"), role, hidden, hidden).bias(bias),
            Weight::column(name("mlp.fc13"), role, hidden, &[width, width]).bias(bias),
            Weight::row(name("mlp.fc2"), role, width, hidden).bias(bias),
            plain(&name("norm"), &[hidden]).times(2),
        ],
    ));
    Ok(all)
}

/// EXAONE-4.5 (vLLM 0.32.0, `exaone4_5.py`): Qwen2.5-VL's tower with fewer key and value heads than query heads.
pub(super) fn exaone4_5(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let heads = vision.dim("num_heads")?;
    let kv = vision.dim_or("num_key_value_heads", heads)?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let width = vision.dim("intermediate_size")?;
    let patch = factor(vision, "patch_size")?;
    let time = factor_or(vision, "temporal_patch_size", 2)?;
    let channels = factor_or(vision, "in_channels", factor_or(vision, "in_chans", CHANNELS)?)?;
    let name = |part: &str| format!("visual.blocks.0.{part}");
    let mut all = vec![plain(
        "visual.patch_embed.proj",
        &[hidden, channels, time, patch, patch],
    )];
    all.extend(merger(
        "visual.merger",
        vision,
        hidden,
        1,
        vision.dim("out_hidden_size")?,
    )?);
    all.extend(repeated(
        vision.dim("depth")?,
        [
            Weight::qkv(name("attn.qkv"), hidden, heads, kv, head_dim).bias(true),
            row(name("attn.proj"), hidden, hidden),
            Weight::column(name("mlp.gate_up_proj"), Role::Tower, hidden, &[width, width]).bias(true),
            row(name("mlp.down_proj"), width, hidden),
            plain(&name("norm"), &[hidden]).times(2),
        ],
    ));
    Ok(all)
}

/// Kimi-VL (vLLM 0.32.0, `kimi_vl.py`, `moonvit.py`): `MoonViT` in two dimensions, a projector whole on every rank.
pub(super) fn kimi_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let heads = vision.dim("num_attention_heads")?;
    let patch = factor(vision, "patch_size")?;
    let merge = area(vision, "merge_kernel_size")?;
    let blocks = Blocks {
        path: "vision_tower.encoder.blocks",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads,
        width: vision.dim("intermediate_size")?,
        names: ["wqkv", "wo", "mlp.fc0", "mlp.fc1"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let positions = [
        vision.dim_or("init_pos_emb_height", 64)?,
        vision.dim_or("init_pos_emb_width", 64)?,
        hidden,
    ];
    let mut all = convolution("vision_tower.patch_embed.proj", &[hidden, CHANNELS, patch, patch]).to_vec();
    all.push(plain("vision_tower.patch_embed.pos_emb", &positions));
    all.push(layer_norm("vision_tower.encoder.final_layernorm", hidden));
    let joined = hidden * merge;
    all.push(layer_norm("multi_modal_projector.pre_norm", hidden));
    all.push(whole("multi_modal_projector.linear_1", joined, joined));
    all.push(whole("multi_modal_projector.linear_2", joined, t.hidden()?));
    all.extend(
        blocks
            .weights()
            .into_iter()
            .map(|w| w.whole_unless_divides(heads)),
    );
    Ok(all)
}

/// Muse-Glimmer (vLLM 0.32.0, `muse_glimmer.py`).
pub(super) fn muse_glimmer(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let width = vision.dim("intermediate_size")?;
    let positions = vision.dim("pos_emb_height")? * vision.dim("pos_emb_width")?;
    let time = factor_or(vision, "patch_temporal", 2)?;
    let joined = t.top.dim_or("out_hidden_size", 6144)?;
    let out = t.top.dim_or("projector_hidden_size", 4096)?;
    let blocks = Blocks {
        path: "vision_encoder.transformer",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width,
        names: ["attn.qkv_proj", "attn.o_proj", "mlp.c_fc", "mlp.c_proj"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = vec![
        plain("vision_encoder.positional_embedding_vlm", &[positions, hidden]),
        whole(
            "vision_encoder.conv1_linear",
            CHANNELS * time * patch * patch,
            hidden,
        )
        .bias(false),
        layer_norm("vision_encoder.ln", hidden).times(4),
        whole("vision_adapter.c_fc", joined, out).bias(false),
        whole("vision_adapter.c_proj", out, out).bias(false),
        whole("vision_projection", out, t.hidden()?).bias(false),
    ];
    all.extend(blocks.weights().into_iter().map(|w| {
        if w.name.contains(".mlp.") {
            w.undivided()
        } else {
            w
        }
    }));
    Ok(all)
}

/// BLIP-2 (vLLM 0.32.0, `blip2.py`, `blip.py`): ViT-g without its last layer, a Q-Former, a projection.
pub(super) fn blip2(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
    let side = side(vision)?;
    let blocks = Blocks {
        path: "vision_model.encoder.layers",
        layers: vision.dim("num_hidden_layers")?,
        hidden,
        attention: hidden,
        heads: vision.dim("num_attention_heads")?,
        width: vision.dim("intermediate_size")?,
        names: ["self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = convolution(
        "vision_model.embeddings.patch_embedding",
        &[hidden, factor_or(vision, "num_channels", CHANNELS)?, patch, patch],
    )
    .to_vec();
    all.push(plain("vision_model.embeddings.class_embedding", &[hidden]));
    all.push(plain(
        "vision_model.embeddings.position_embedding",
        &[side * side + 1, hidden],
    ));
    all.push(layer_norm("vision_model.post_layernorm", hidden));
    all.extend(blocks.weights());
    if let Some(c) = t.top.sub("qformer_config")? {
        all.extend(qformer("qformer", &c, c.dim_or("encoder_hidden_size", hidden)?)?);
        all.push(whole("language_projection", c.dim("hidden_size")?, t.hidden()?));
    }
    Ok(all)
}

/// Phi-3-Vision (vLLM 0.32.0, `phi3v.py`): CLIP ViT-L/14 at 336 pixels, fixed in the class, without its last layer.
pub(super) fn phi3v(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    const HIDDEN: u64 = 1024;
    const JOINED: u64 = 4 * HIDDEN;
    let text = t.hidden()?;
    let path = "vision_embed_tokens.img_processor.vision_model";
    let mut all = clip_layers(
        "vision_embed_tokens.img_processor.vision_model.encoder.layers",
        23,
        HIDDEN,
        16,
        4096,
    );
    all.push(plain(&format!("{path}.embeddings.class_embedding"), &[HIDDEN]));
    all.push(plain(
        &format!("{path}.embeddings.patch_embedding"),
        &[HIDDEN, CHANNELS, 14, 14],
    ));
    all.push(plain(
        &format!("{path}.embeddings.position_embedding"),
        &[577, HIDDEN],
    ));
    all.push(layer_norm(&format!("{path}.pre_layrnorm"), HIDDEN));
    all.push(plain("vision_embed_tokens.GN", &[JOINED]).times(2));
    // A second token embedding, which only the images' placeholders look at.
    all.push(Weight::vocab("embed_tokens", Role::Tower, t.vocab()?, text));
    all.push(whole("vision_embed_tokens.img_projection.0", JOINED, text));
    all.push(whole("vision_embed_tokens.img_projection.2", text, text));
    Ok(all)
}

/// Phi-4-multimodal (vLLM 0.32.0, `phi4mm.py`, `phi4mm_audio.py`): `SigLIP` fixed in the class, without its last
/// layer, and a conformer, whole on every rank. Its `LoRA`s are loaded as adapters and not part of this.
pub(super) fn phi4mm(t: &Text, file: &Config) -> Result<Vec<Weight>> {
    const SEEN: u64 = 1152;
    let text = t.hidden()?;
    let mut vision = file.child("img_processor", serde_json::Map::new()).into_map();
    for (key, value) in [
        ("hidden_size", SEEN),
        ("intermediate_size", 4304),
        ("num_hidden_layers", 27),
        ("num_attention_heads", 16),
        ("image_size", 448),
        ("patch_size", 14),
    ] {
        vision.insert(key.to_owned(), serde_json::Value::from(value));
    }
    let tower = Siglip {
        path: "vision_encoder.img_processor.encoder.layers",
        without_last: 1,
        post_norm: false,
        positions: None,
    };
    let mut all = tower.weights(&Config::from_map(vision))?;
    all.push(plain("vision_encoder.GN", &[SEEN]).times(2));
    all.push(whole("vision_encoder.img_projection.0", SEEN, text));
    all.push(whole("vision_encoder.img_projection.2", text, text));
    if let Some(audio) = file
        .sub("audio_processor")?
        .map(|a| a.sub("config"))
        .transpose()?
        .flatten()
    {
        all.extend(cascades(&audio, text)?);
    }
    Ok(all)
}

/// The conformer of Phi-4-multimodal.
fn cascades(c: &Config, text: u64) -> Result<Vec<Weight>> {
    /// Distances of the relative attention bias.
    const DISTANCES: u64 = 1000;
    let width = c.dim("attention_dim")?;
    let inner = c.dim("linear_units")?;
    let heads = c.dim("attention_heads")?;
    let mels = c.dim_or("input_size", 80)?;
    let reduction = c.dim_or("time_reduction", 8)?;
    let channels = match c.sub("nemo_conv_settings")? {
        Some(settings) => settings.dim_or("conv_channels", width)?,
        None => width,
    };
    let kernel = c.dim_or("kernel_size", 3)?;
    let layers = c.dim("num_blocks")?;
    let path = "embed_tokens_extend.encoder";
    let name = |part: &str| format!("{path}.encoders.0.{part}");
    let halvings = u64::from(reduction.max(1).ilog2());
    let mut all = convolution(&format!("{path}.embed.conv.0"), &[channels, 1, 3, 3]).to_vec();
    // Each further halving: one convolution a channel, one over channels.
    for step in 1..halvings {
        all.extend(convolution(
            &format!("{path}.embed.conv.{step}.0"),
            &[channels, 1, 3, 3],
        ));
        all.extend(convolution(
            &format!("{path}.embed.conv.{step}.1"),
            &[channels, channels, 1, 1],
        ));
    }
    all.push(whole(
        format!("{path}.embed.out"),
        channels * mels.div_ceil(reduction.max(1)),
        width,
    ));
    all.push(plain(
        &format!("{path}.relative_attention_bias_layer.bias_values"),
        &[DISTANCES, heads],
    ));
    all.push(plain(&format!("{path}.encoder_embedding"), &[mels]).times(2));
    let out = c.dim_or("ext_pw_out_channel", width)?;
    let mut layer = vec![
        layer_norm(&name("norms"), width).times(10),
        whole(name("feed_forward.net.0.linear"), width, 2 * inner).times(2),
        whole(name("feed_forward.net.2"), inner, width).times(2),
        whole(name("self_attn.linear"), width, width).times(4),
        plain(&name("conv.glu.b"), &[out]).times(2),
    ];
    layer.extend(convolution(
        &name("conv.glu.ext_pw_conv_1d"),
        &[2 * out, width, 1],
    ));
    layer.extend(convolution(&name("conv.ext_pw_conv_1d"), &[out, width, 1]));
    layer.extend(convolution(
        &name("conv.dw_sep_conv_1d.dw_conv"),
        &[width, 1, kernel],
    ));
    layer.extend(convolution(
        &name("conv.dw_sep_conv_1d.pw_conv"),
        &[out, width, 1],
    ));
    all.extend(repeated(layers, layer));
    for projection in ["audio_projection", "audio_projection_for_vision"] {
        all.push(whole(format!("embed_tokens_extend.{projection}.0"), width, text));
        all.push(whole(format!("embed_tokens_extend.{projection}.2"), text, text));
    }
    Ok(all)
}

/// The pooling by attention of timm's `SigLIP` under `path`; only its feed-forward part is divided.
pub(super) fn attention_pool(path: &str, hidden: u64, width: u64) -> [Weight; 5] {
    let pool = |part: &str| format!("{path}.attn_pool.{part}");
    [
        plain(&pool("latent"), &[hidden]),
        whole(pool("attention"), hidden, hidden).times(4),
        layer_norm(&pool("norm"), hidden),
        column(pool("mlp.fc1"), hidden, width),
        row(pool("mlp.fc2"), width, hidden),
    ]
}

/// DeepSeek-VL2 (vLLM 0.32.0, `deepseek_vl2.py`): the timm library's `vit_so400m_patch14_siglip_384` with its pooling,
/// fixed in the class, of which only the feed-forward parts are divided, and a projector of joined patches.
pub(super) fn deepseek_vl2(t: &Text, _: &Config) -> Result<Vec<Weight>> {
    const SEEN: u64 = 1152;
    const WIDTH: u64 = 4304;
    const POSITIONS: u64 = 27 * 27;
    let path = "vision.blocks";
    let mut all = convolution("vision.patch_embed.proj", &[SEEN, CHANNELS, 14, 14]).to_vec();
    all.push(plain("vision.pos_embed", &[POSITIONS, SEEN]));
    all.push(layer_norm("vision.norm", SEEN));
    all.extend(clip_layers(path, 27, SEEN, 16, WIDTH).into_iter().map(|w| {
        if w.name.contains(".mlp.") {
            w
        } else {
            w.undivided()
        }
    }));
    all.extend(attention_pool("vision", SEEN, WIDTH));
    if let Some(c) = t.top.sub("projector_config")? {
        let side = factor_or(&c, "downsample_ratio", 2)?;
        let (seen, out) = (c.dim_or("input_dim", SEEN)?, c.dim_or("n_embed", t.hidden()?)?);
        all.push(whole("projector.layers.0", seen * side * side, out));
        let depth = c.dim_or("depth", 2)?.max(1);
        all.push(whole("projector.layers.2", out, out).times(depth - 1));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vision_model_of_deepseek_vl2_has_the_parameters_of_siglip_so400m() {
        let file = Config::parse(br#"{"language_config": {"hidden_size": 8}}"#).unwrap();
        let text = Text::find("DeepseekVLV2ForCausalLM", &file).unwrap();
        let all = deepseek_vl2(&text, &file).unwrap();
        let total: u64 = all.iter().map(|w| w.elements().unwrap()).sum();
        // google/siglip-so400m-patch14-384's vision model, as its card counts it.
        assert_eq!(total, 428_225_600);
    }
}
