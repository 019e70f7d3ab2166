//! `SigLIP` and CLIP, and the wrappers that put a projector behind one of them.

use super::super::text::Text;
use super::blocks::{
    Blocks, CHANNELS, column, convolution, factor, factor_or, layer_norm, merged, plain, repeated, row, side,
    square, whole,
};
use super::pixtral::pixtral_hf;
use super::qformer::qformer;
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Gemma-3 (vLLM 0.32.0, `gemma3_mm.py`): `SigLIP` and a projection of pooled patches.
pub(super) fn gemma3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
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
pub(super) fn cohere2_vision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let side = factor_or(&t.top, "downsample_factor", 2)?;
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
pub(super) fn idefics3(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let scale = factor_or(&t.top, "scale_factor", 2)?;
    let joined = vision.dim("hidden_size")? * scale * scale;
    let mut all = siglip(vision)?;
    let name = "model.connector.modality_projection.proj";
    all.push(Weight::replicated(name, Role::Tower, joined, &[t.hidden()?]));
    Ok(all)
}

/// Which parts of `SigLIP` a wrapper keeps.
#[derive(Clone, Copy)]
pub(super) struct Siglip {
    /// Module path of the vision model.
    pub(super) path: &'static str,
    /// Layers at the end that are not built, because an earlier layer's output is used.
    pub(super) without_last: u64,
    /// Whether the norm after the last layer is kept.
    pub(super) post_norm: bool,
    /// Positions, where they are not those of a square image (`num_patches` of `SigLIP` 2).
    pub(super) positions: Option<u64>,
}

impl Siglip {
    /// All layers and the norm after them.
    pub(super) fn whole(path: &'static str) -> Self {
        Self {
            path,
            without_last: 0,
            post_norm: true,
            positions: None,
        }
    }

    /// The parameters, without a pooling head (vLLM 0.32.0, `siglip.py`, `siglip2.py`).
    pub(super) fn weights(self, vision: &Config) -> Result<Vec<Weight>> {
        let hidden = vision.dim("hidden_size")?;
        let patch = square(vision, "patch_size")?;
        let positions = if let Some(n) = self.positions {
            n
        } else {
            let side = side(vision)?;
            side * side
        };
        let blocks = Blocks {
            path: self.path,
            layers: vision.dim("num_hidden_layers")?.saturating_sub(self.without_last),
            hidden,
            attention: hidden,
            heads: vision.dim("num_attention_heads")?,
            width: vision.dim("intermediate_size")?,
            names: ["self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"],
            attention_bias: true,
            mlp_bias: true,
            norm_shift: true,
        };
        let name = |part: &str| format!("{}.{part}", self.path);
        let channels = factor_or(vision, "num_channels", CHANNELS)?;
        let mut all = convolution(
            &name("embeddings.patch_embedding"),
            &[hidden, channels, patch, patch],
        )
        .to_vec();
        all.push(plain(
            &name("embeddings.position_embedding"),
            &[positions, hidden],
        ));
        if self.post_norm {
            all.push(layer_norm(&name("post_layernorm"), hidden));
        }
        all.extend(blocks.weights());
        Ok(all)
    }
}

/// `SigLIP` under the usual name.
fn siglip(vision: &Config) -> Result<Vec<Weight>> {
    Siglip::whole("vision_tower.vision_model.encoder.layers").weights(vision)
}

/// The tower of LLaVA-OneVision and its relatives: `SigLIP` up to `vision_feature_layer`. Bee and
/// `RForConditionalGeneration` make their projectors part of the language model.
pub(super) fn onevision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut tower = Siglip::whole("vision_tower.vision_model.encoder.layers");
    tower.post_norm = false;
    tower.without_last = unused_layers(&t.top, 1);
    tower.weights(vision)
}

/// Layers behind the one that `vision_feature_layer` (negative: from the end) names; `otherwise` where it is missing.
fn unused_layers(top: &Config, otherwise: u64) -> u64 {
    match top
        .get("vision_feature_layer")
        .and_then(serde_json::Value::as_i64)
    {
        Some(n) if n < 0 => n.unsigned_abs() - 1,
        _ => otherwise.saturating_sub(1),
    }
}

/// LLaVA-OneVision (vLLM 0.32.0, `llava_onevision.py`).
pub(super) fn llava_onevision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let (hidden, text) = (vision.dim("hidden_size")?, t.hidden()?);
    let mut all = onevision(t, vision)?;
    all.push(whole("multi_modal_projector.linear_1", hidden, text));
    all.push(whole("multi_modal_projector.linear_2", text, text));
    Ok(all)
}

/// `PaliGemma` (vLLM 0.32.0, `paligemma.py`): `SigLIP` and one projection.
pub(super) fn paligemma(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut all = siglip(vision)?;
    let hidden = vision.dim("hidden_size")?;
    let out = vision.dim_or("projection_dim", t.hidden()?)?;
    all.push(whole("multi_modal_projector.linear", hidden, out));
    Ok(all)
}

/// PaddleOCR-VL (vLLM 0.32.0, `paddleocr_vl.py`): `SigLIP` and a projector of joined patches.
pub(super) fn paddleocr(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let joined = hidden * merged(vision)?;
    let mut all = Siglip::whole("visual.vision_model.encoder.layers").weights(vision)?;
    all.push(layer_norm("mlp_AR.pre_norm", hidden));
    all.push(whole("mlp_AR.linear_1", joined, joined));
    all.push(whole("mlp_AR.linear_2", joined, t.hidden()?));
    Ok(all)
}

/// Bagel's understanding tower (vLLM 0.32.0, `bagel.py`): all but the last layer of `SigLIP`.
pub(super) fn bagel(t: &Text, vit: &Config) -> Result<Vec<Weight>> {
    let (hidden, text) = (vit.dim("hidden_size")?, t.hidden()?);
    let mut tower = Siglip::whole("vit_model.vision_model.encoder.layers");
    tower.without_last = 1;
    let mut all = tower.weights(vit)?;
    all.push(column("connector.fc1", hidden, text));
    all.push(row("connector.fc2", text, text));
    Ok(all)
}

/// Eagle 2.5 (vLLM 0.32.0, `eagle2_5_vl.py`): `SigLIP` and two projections of joined patches.
pub(super) fn eagle2_5(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    // `downsample_ratio` is one half in every published file.
    let joined = 4 * vision.dim("hidden_size")?;
    let mut all = Siglip::whole("vision_model.vision_model.encoder.layers").weights(vision)?;
    all.push(layer_norm("mlp1.0", joined));
    all.push(whole("mlp1.1", joined, text));
    all.push(whole("mlp1.3", text, text));
    Ok(all)
}

/// LFM2-VL (vLLM 0.32.0, `lfm2_vl.py`): `SigLIP` 2 and two projections of joined patches.
pub(super) fn lfm2_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let factor = factor_or(&t.top, "downsample_factor", 2)?;
    let joined = vision.dim("hidden_size")? * factor * factor;
    let width = t.top.dim("projector_hidden_size")?;
    let bias = t.top.flag("projector_bias", true)?;
    let mut tower = Siglip::whole("vision_tower.vision_model.encoder.layers");
    tower.positions = Some(vision.dim_or("num_patches", 256)?);
    let mut all = tower.weights(vision)?;
    if t.top.flag("projector_use_layernorm", true)? {
        all.push(layer_norm("multi_modal_projector.layer_norm", joined));
    }
    all.push(whole("multi_modal_projector.linear_1", joined, width).bias(bias));
    all.push(whole("multi_modal_projector.linear_2", width, t.hidden()?).bias(bias));
    Ok(all)
}

/// Phi-4 with `SigLIP` 2 (vLLM 0.32.0, `phi4siglip.py`), without its last layer and norm.
pub(super) fn phi4_siglip(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let seen = t.top.dim_or("mm_hidden_size", vision.dim("hidden_size")?)?;
    let tower = Siglip {
        path: "vision_tower.vision_model.encoder.layers",
        without_last: 1,
        post_norm: false,
        positions: Some(vision.dim_or("num_patches", 256)?),
    };
    let mut all = tower.weights(vision)?;
    all.push(column("multi_modal_projector.linear_1", seen, text));
    all.push(row("multi_modal_projector.linear_2", text, text));
    Ok(all)
}

/// Cosmos-3 Edge (vLLM 0.32.0, `cosmos3_edge.py`): `SigLIP` 2 and a divided projector over joined patches.
pub(super) fn cosmos3_edge(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut tower = Siglip::whole("visual.encoder.encoder.layers");
    tower.positions = Some(vision.dim_or("num_patches", 256)?);
    let mut all = tower.weights(vision)?;
    // Defaults of vLLM's own class, which reads no projector of the Transformers library's form.
    let c = t
        .top
        .sub("projector_config")?
        .unwrap_or_else(|| t.top.child("projector_config", serde_json::Map::new()));
    let hidden = c.dim_or("input_hidden_size", 1024)?;
    let joined = hidden * merged(&c)?;
    let inner = c.dim_or("merger_intermediate_size", 11_520)?;
    let normed = if c.flag("use_postshuffle_norm", false)? {
        joined
    } else {
        hidden
    };
    all.push(layer_norm("visual.projector.norm", normed));
    all.push(column("visual.projector.linear_fc1", joined, inner));
    all.push(row(
        "visual.projector.linear_fc2",
        inner,
        c.dim_or("out_hidden_size", 1024)?,
    ));
    Ok(all)
}

/// Keye (vLLM 0.32.0, `keye.py`, `keye_vl1_5.py`): `SigLIP` with positions for packed images too; 1.5 norms joined
/// patches instead of single ones.
pub(super) fn keye(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    /// Rows of the positions of packed images.
    const PACKED: u64 = 32_768;
    let hidden = vision.dim("hidden_size")?;
    let joined = hidden * merged(vision)?;
    let mut all = Siglip::whole("visual.vision_model.encoder.layers").weights(vision)?;
    all.push(plain(
        "visual.vision_model.embeddings.packing_position_embedding",
        &[PACKED, hidden],
    ));
    let normed = if t.class.contains("1_5") { joined } else { hidden };
    all.push(layer_norm("mlp_AR.pre_norm", normed));
    all.push(column("mlp_AR.linear_1", joined, joined));
    all.push(row("mlp_AR.linear_2", joined, t.hidden()?));
    Ok(all)
}

/// Isaac (vLLM 0.32.0, `isaac.py`): `SigLIP` 2 and a divided projector over shuffled patches.
pub(super) fn isaac(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let side = factor_or(vision, "pixel_shuffle_scale_factor", 1)?;
    let joined = vision.dim("hidden_size")? * side * side;
    let mut tower = Siglip::whole("vision_embedding.transformer.encoder.layers");
    tower.positions = Some(vision.dim_or("num_patches", 256)?);
    let mut all = tower.weights(vision)?;
    all.push(column("vision_embedding.linear_fc1", joined, 4 * joined).bias(false));
    all.push(row("vision_embedding.linear_fc2", 4 * joined, t.hidden()?).bias(false));
    Ok(all)
}

/// Granite-4-Vision (vLLM 0.32.0, `granite4_vision.py`): `SigLIP` without its last norm, and a Q-Former over windows
/// for each layer that the language model sees, four of them for parts of one image.
pub(super) fn granite4_vision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    const PARTS: u64 = 4;
    let hidden = vision.dim("hidden_size")?;
    let rate = t.top.str("downsample_rate")?.unwrap_or("4/8");
    let sides = rate
        .split_once('/')
        .and_then(|(query, window)| Some((query.parse::<u64>().ok()?, window.parse::<u64>().ok()?)));
    let Some((query, window)) = sides.filter(|(q, w)| (1..=1024).contains(q) && (1..=1024).contains(w))
    else {
        return Err(crate::Error::input(format!(
            "{} is {rate:?}, expected two sides of windows such as \"4/8\"",
            t.top.name("downsample_rate")
        )));
    };
    let layers = t.top.array("deepstack_layer_map")?.unwrap_or_default().len() as u64;
    let mut tower = Siglip::whole("vision_tower.vision_model.encoder.layers");
    tower.post_norm = false;
    let mut all = tower.weights(vision)?;
    let former = t
        .top
        .sub("qformer_config")?
        .unwrap_or_else(|| t.top.child("qformer_config", serde_json::Map::new()));
    let mut projector = qformer(
        "layerwise_projectors.0.qformer",
        &former,
        former.dim_or("encoder_hidden_size", hidden)?,
    )?;
    projector.extend([
        plain("layerwise_projectors.0.query", &[query * query, hidden]),
        plain(
            "layerwise_projectors.0.image_positions",
            &[window * window, hidden],
        ),
        layer_norm("layerwise_projectors.0.norm", hidden),
        whole("layerwise_projectors.0.out_linear", hidden, t.hidden()?),
    ]);
    all.extend(repeated(layers + PARTS, projector));
    Ok(all)
}

/// Ovis-2.5 and 2.6 (vLLM 0.32.0, `ovis2_5.py`, `siglip2navit.py`): `SigLIP` 2 with positions where they are kept, a
/// head over a visual vocabulary, and its embedding.
pub(super) fn ovis2_5(t: &Text, vit: &Config) -> Result<Vec<Weight>> {
    /// Visual tokens that only mark places in the text.
    const INDICATORS: u64 = 4;
    let hidden = vit.dim("hidden_size")?;
    let stride = factor_or(vit, "hidden_stride", 1)?;
    let vocab = t.top.dim("visual_vocab_size")?;
    let mut tower = Siglip::whole("visual_tokenizer.vit.vision_model.encoder.layers");
    if let Some(n) = vit
        .get("num_patches")
        .and_then(serde_json::Value::as_u64)
        .filter(|&n| n > 0)
    {
        tower.positions = Some(n);
    }
    let mut all = tower.weights(vit)?;
    if !vit.flag("preserve_original_pe", false)? {
        all.retain(|w| !w.name.ends_with("position_embedding"));
    }
    let rows = vocab.saturating_sub(INDICATORS);
    all.push(whole("visual_tokenizer.head.0", hidden * stride * stride, rows).bias(false));
    all.push(layer_norm("visual_tokenizer.head.1", rows));
    all.push(plain("vte", &[vocab, t.top.dim_or("hidden_size", t.hidden()?)?]));
    Ok(all)
}

/// Ovis-2 (vLLM 0.32.0, `ovis.py`): `AIMv2` or `SigLIP`, a head over a visual vocabulary, and its embedding.
pub(super) fn ovis(t: &Text, tokenizer: &Config) -> Result<Vec<Weight>> {
    /// Visual tokens that only mark places in the text.
    const INDICATORS: u64 = 5;
    let missing = || {
        crate::Error::input(format!(
            "{} is missing from the configuration",
            tokenizer.name("backbone_config")
        ))
    };
    let backbone = tokenizer.sub("backbone_config")?.ok_or_else(missing)?;
    let stride = factor_or(tokenizer, "hidden_stride", 1)?;
    let hidden = backbone.dim("hidden_size")?;
    let vocab = tokenizer.dim_or("vocab_size", 16_384)?;
    let mut all = match tokenizer.str("model_type")?.unwrap_or_default() {
        "siglip_visual_tokenizer" => {
            Siglip::whole("visual_tokenizer.backbone.vision_model.encoder.layers").weights(&backbone)?
        }
        _ => super::single::aimv2(&backbone)?,
    };
    let rows = vocab.saturating_sub(INDICATORS);
    all.push(whole("visual_tokenizer.head.0", hidden * stride * stride, rows).bias(false));
    all.push(layer_norm("visual_tokenizer.head.1", rows));
    all.push(plain("vte", &[vocab, t.hidden()?]));
    Ok(all)
}

/// `LLaVA` (vLLM 0.32.0, `llava.py`) with a CLIP or Pixtral tower, cut after `vision_feature_layer`.
pub(super) fn llava(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let role = Role::Tower;
    let mut all = match vision.str("model_type")?.unwrap_or_default() {
        "pixtral" => pixtral_hf(vision)?,
        _ => clip(vision, &t.top)?,
    };
    let bias = t.top.flag("multimodal_projector_bias", true)?;
    let linears = [
        Weight::column("multi_modal_projector.linear_1", role, hidden, &[text]).bias(bias),
        Weight::row("multi_modal_projector.linear_2", role, text, text).bias(bias),
    ];
    // LLaVA-NeXT-Video's projector is whole on every rank.
    let video = t.class == "LlavaNextVideoForConditionalGeneration";
    all.extend(linears.map(|w| if video { w.undivided() } else { w }));
    Ok(all)
}

/// CLIP's vision model (vLLM 0.32.0, `clip.py`) up to the layer whose output is used.
pub(super) fn clip(vision: &Config, top: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim("hidden_size")?;
    let patch = factor(vision, "patch_size")?;
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
    let name = |part: &str| format!("vision_tower.vision_model.{part}");
    let mut all = vec![
        plain(&name("embeddings.class_embedding"), &[hidden]),
        plain(
            &name("embeddings.patch_embedding"),
            &[hidden, factor_or(vision, "num_channels", CHANNELS)?, patch, patch],
        ),
        plain(&name("embeddings.position_embedding"), &[side * side + 1, hidden]),
        layer_norm(&name("pre_layrnorm"), hidden),
    ];
    if layers == depth {
        all.push(layer_norm(&name("post_layernorm"), hidden));
    }
    let (heads, width) = (
        vision.dim("num_attention_heads")?,
        vision.dim("intermediate_size")?,
    );
    let path = "vision_tower.vision_model.encoder.layers";
    all.extend(clip_layers(path, layers, hidden, heads, width));
    Ok(all)
}

/// One block of a text model that is built like CLIP's.
pub(crate) fn text_blocks(hidden: u64, heads: u64, width: u64) -> Vec<Weight> {
    let mut weights = clip_layers("", 1, hidden, heads, width);
    for weight in &mut weights {
        // Names are below the layer, as those of a decoder.
        weight.name = weight.name.trim_start_matches(".0.").to_owned();
        weight.role = if weight.name.starts_with("mlp") {
            Role::Mlp
        } else {
            Role::Attention
        };
    }
    weights
}

/// CLIP's image model beside its text model (vLLM 0.32.0, `clip.py`): all layers, and a projection.
pub(super) fn clip_embedding(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut map = serde_json::Map::new();
    map.insert("vision_feature_layer".to_owned(), serde_json::Value::from(-1));
    let mut all = clip(vision, &Config::from_map(map))?;
    let shared = t.top.dim_or("projection_dim", 512)?;
    all.push(whole("visual_projection", vision.dim("hidden_size")?, shared).bias(false));
    Ok(all)
}

/// `SigLIP`'s image model beside its text model (vLLM 0.32.0, `siglip.py`), with the head that pools patches unless
/// the file says there is none.
pub(super) fn siglip_embedding(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let mut all = Siglip::whole("vision_model.encoder.layers").weights(vision)?;
    if vision.flag("vision_use_head", true)? {
        let hidden = vision.dim("hidden_size")?;
        let width = vision.dim("intermediate_size")?;
        let whole = |name: &str, inputs, outputs| whole(name, inputs, outputs).unquantized();
        all.extend([
            plain("vision_model.head.probe", &[hidden]),
            whole("vision_model.head.attention.in_proj", hidden, 3 * hidden),
            whole("vision_model.head.attention.out_proj", hidden, hidden),
            layer_norm("vision_model.head.layernorm", hidden),
            column("vision_model.head.mlp.fc1", hidden, width),
            row("vision_model.head.mlp.fc2", width, hidden),
        ]);
    }
    Ok(all)
}

/// `ColModernVBERT`'s `SigLIP` and its projection of shuffled patches (vLLM 0.32.0, `colmodernvbert.py`), with the
/// defaults of the class's own configuration.
pub(super) fn col_modern_vbert(t: &Text, file: &Config) -> Result<Vec<Weight>> {
    let given = file
        .sub("vision_config")?
        .unwrap_or_else(|| file.child("vision_config", serde_json::Map::new()));
    let mut map = serde_json::Map::new();
    for (key, otherwise) in [
        ("hidden_size", 768),
        ("image_size", 512),
        ("patch_size", 16),
        ("num_hidden_layers", 12),
        ("intermediate_size", 3072),
        ("num_attention_heads", 12),
    ] {
        map.insert(
            key.to_owned(),
            serde_json::Value::from(given.dim_or(key, otherwise)?),
        );
    }
    let vision = file.child("vision_config", map);
    let side = factor_or(file, "pixel_shuffle_factor", 4)?;
    let joined = vision.dim("hidden_size")? * side * side;
    let text = match t.top.sub("text_config")? {
        Some(text) => text.dim_or("hidden_size", 768)?,
        None => 768,
    };
    let mut all = Siglip::whole("vision_model.vision_model.encoder.layers").weights(&vision)?;
    all.push(whole("connector.proj", joined, text).bias(false));
    Ok(all)
}

/// Llama-Nemotron-VL's `SigLIP` and two projections of joined patches (vLLM 0.32.0, `nemotron_vl.py`).
pub(super) fn llama_nemotron_vl(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let ratio = t.top.f64("downsample_ratio")?.unwrap_or(0.5);
    // Shuffling joins whole squares of patches.
    let side = [1_u64, 2, 4, 8, 16]
        .into_iter()
        .find(|&side| (ratio * side as f64 - 1.0).abs() < 1e-9);
    let Some(side) = side else {
        return Err(crate::Error::input(format!(
            "{} is {ratio}, expected 1, 0.5, 0.25, 0.125 or 0.0625",
            t.top.name("downsample_ratio")
        )));
    };
    let text = t.hidden()?;
    let joined = vision.dim("hidden_size")? * side * side;
    let mut all = Siglip::whole("vision_model.vision_model.encoder.layers").weights(vision)?;
    all.push(layer_norm("mlp1.0", joined));
    all.push(whole("mlp1.1", joined, text).unquantized());
    all.push(whole("mlp1.3", text, text).unquantized());
    Ok(all)
}

/// CLIP's layers.
pub(super) fn clip_layers(
    path: &'static str,
    layers: u64,
    hidden: u64,
    heads: u64,
    width: u64,
) -> Vec<Weight> {
    Blocks {
        path,
        layers,
        hidden,
        attention: hidden,
        heads,
        width,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    }
    .weights()
}
