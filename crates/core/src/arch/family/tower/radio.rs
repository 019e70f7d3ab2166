//! NVIDIA's RADIO and the wrappers around it; Parakeet, which hears beside it.

use super::super::text::Text;
use super::blocks::{
    CHANNELS, column, convolution, divisor_or, factor_or, layer_norm, merged_by_ratio, plain, repeated, row,
    square, whole,
};
use super::library::{Conformer, conformer, halving};
use crate::arch::{Config, Role, Weight};
use crate::{Error, Result};

/// Width, layers, heads and feed-forward width of the models that RADIO is made of (vLLM 0.32.0,
/// `VIT_TIMM_DIM_BY_NAME` in `transformers_utils/configs/radio.py`).
const SIZES: [(&str, [u64; 4]); 4] = [
    ("vit_small_patch16_224", [384, 12, 6, 1536]),
    ("vit_base_patch16_224", [768, 12, 12, 3072]),
    ("vit_large_patch16_224", [1024, 24, 16, 4096]),
    ("vit_huge_patch16_224", [1280, 32, 16, 5120]),
];

/// How many pixels of an image's side have positions where the file does not say.
const POSITIONS: u64 = 2048;

/// RADIO under `path`, and its width (vLLM 0.32.0, `radio.py`): `InternViT`'s layers behind a linear patch embedding,
/// positions for the largest image, one token a teacher and registers.
fn radio(vision: &Config, path: &str) -> Result<(Vec<Weight>, u64)> {
    let args = vision
        .sub("args")?
        .unwrap_or_else(|| vision.child("args", serde_json::Map::new()));
    let name = args.str("model")?.unwrap_or_default();
    let Some((_, [hidden, layers, heads, width])) = SIZES.iter().find(|(known, _)| *known == name) else {
        return Err(Error::input(format!(
            "{} is {name:?}, expected one of {}",
            args.name("model"),
            SIZES.map(|(known, _)| known).join(", ")
        )));
    };
    let (hidden, layers, heads, width) = (*hidden, *layers, *heads, *width);
    let patch = divisor_or(vision, "patch_size", 16)?;
    let side = side_of_positions(&args, patch)?;
    let teachers = args
        .array("teachers")?
        .unwrap_or_default()
        .iter()
        .filter_map(|teacher| teacher.get("name")?.as_str())
        .collect::<std::collections::BTreeSet<_>>()
        .len() as u64;
    let summaries = if args.flag("cls_token_per_teacher", false)? {
        teachers
    } else {
        1
    };
    let registers = match (
        args.dim_or("num_registers", 0)?,
        args.dim_or("register_multiple", 0)?,
    ) {
        (0, 0) => 0,
        (0, multiple) => multiple - summaries % multiple,
        (n, _) => n,
    };
    let frames = factor_or(vision, "video_temporal_patch_size", 1)?;
    let part = |part: &str| format!("{path}.{part}");
    let block = |part: &str| format!("{path}.encoder.layers.0.{part}");
    let pixels = CHANNELS * patch * patch;
    let mut all = vec![
        plain(&part("patch_generator.pos_embed"), &[side * side, hidden]),
        whole(part("patch_generator.embedder"), pixels, hidden).bias(false),
        plain(
            &part("patch_generator.cls_token"),
            &[summaries + registers, hidden],
        ),
    ];
    if frames > 1 && vision.flag("separate_video_embedder", true)? {
        all.push(whole(part("patch_generator.video_embedder"), frames * pixels, hidden).bias(false));
    }
    let head_dim = hidden / heads;
    let norm = match args.str("norm_type")?.unwrap_or("layer_norm") {
        "rms_norm" => 1,
        _ => 2,
    };
    let mut layer = vec![
        Weight::qkv(block("attn.qkv"), hidden, heads, heads, head_dim).bias(args.flag("qkv_bias", true)?),
        row(block("attn.proj"), hidden, hidden),
        column(block("mlp.fc1"), hidden, width),
        row(block("mlp.fc2"), width, hidden),
        plain(&block("norm"), &[hidden]).times(2 * norm),
        plain(&block("ls"), &[hidden]).times(2),
    ];
    if args.flag("qk_normalization", false)? {
        layer.push(plain(&block("attn.q_norm"), &[hidden]).times(2));
    }
    all.extend(repeated(layers, layer).map(|w| {
        if w.name.contains(".attn.") {
            w.whole_unless_divides(heads)
        } else {
            w
        }
    }));
    Ok((all, hidden))
}

/// Patches along the side of the largest image: `cpe_max_size` rounded to whole patches.
fn side_of_positions(args: &Config, patch: u64) -> Result<u64> {
    let pixels = match args.get("cpe_max_size") {
        Some(_) => square(args, "cpe_max_size")?,
        None => POSITIONS,
    };
    // Python rounds a half to the even number of patches.
    let (patches, rest) = (pixels / patch, pixels % patch);
    Ok(match (2 * rest).cmp(&patch) {
        std::cmp::Ordering::Less => patches,
        std::cmp::Ordering::Greater => patches + 1,
        std::cmp::Ordering::Equal => patches + patches % 2,
    }
    .max(1))
}

/// Nemotron Nano VL and the Nemotron Omni models (vLLM 0.32.0, `nano_nemotron_vl.py`): RADIO and two projections of
/// joined patches. Files with a drafter also keep a norm behind RADIO.
pub(super) fn nano_nemotron(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let (mut all, _) = radio(vision, "vision_model.model")?;
    let seen = t
        .top
        .dim_or("vit_hidden_size", t.top.dim_or("vision_hidden_size", 1280)?)?;
    let inner = t.top.dim("projector_hidden_size")?;
    let joined = seen * merged_by_ratio(&t.top)?;
    if t.config.dim_or("num_nextn_predict_layers", 0)? > 0 {
        all.push(layer_norm("vision_final_layernorm", seen));
    }
    all.push(plain("mlp1.0", &[joined]));
    all.push(whole("mlp1.1", joined, inner).bias(false));
    all.push(whole("mlp1.3", inner, t.hidden()?).bias(false));
    Ok(all)
}

/// The sound of the Nemotron Omni models (vLLM 0.32.0, `parakeet.py`): the Transformers library's Parakeet, whose
/// attention has no biases here, and a projection.
pub(super) fn parakeet(t: &Text, sound: &Config) -> Result<Vec<Weight>> {
    let hidden = sound.dim("hidden_size")?;
    let inner = sound.dim("projection_hidden_size")?;
    let bias = sound.flag("projection_bias", false)?;
    let channels = super::blocks::channels(sound, "subsampling_conv_channels", 256)?;
    let factor = factor_or(sound, "subsampling_factor", 8)?;
    let mels = factor_or(sound, "num_mel_bins", 80)?;
    let mut all = halving(
        "sound_encoder.encoder.subsampling",
        channels,
        factor,
        mels,
        hidden,
    );
    all.extend(conformer(&Conformer {
        path: "sound_encoder.encoder.layers",
        layers: sound.dim("num_hidden_layers")?,
        hidden,
        width: sound.dim("intermediate_size")?,
        heads: sound.dim("num_attention_heads")?,
        kernel: factor_or(sound, "conv_kernel_size", 9)?,
        bias: false,
        convolution_bias: sound.flag("convolution_bias", true)?,
    }));
    all.push(plain("sound_encoder.projection.norm", &[hidden]));
    all.push(whole("sound_encoder.projection.linear1", hidden, inner).bias(bias));
    all.push(whole("sound_encoder.projection.linear2", inner, t.hidden()?).bias(bias));
    Ok(all)
}

/// Llama Nemotron Nano VL (vLLM 0.32.0, `nemotron_vl.py`): the Transformers library's own RADIO (5.19.0,
/// `modeling_radio.py`), whole on every rank.
pub(super) fn llama_nemotron(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let hidden = vision.dim_or("hidden_size", 1280)?;
    let patch = divisor_or(vision, "patch_size", 16)?;
    let width = hidden * factor_or(vision, "mlp_ratio", 4)?;
    let side = match vision.get("max_img_size") {
        Some(_) => square(vision, "max_img_size")?,
        None => POSITIONS,
    } / patch;
    let tokens = vision.dim_or("num_cls_tokens", 3)? + vision.dim_or("num_registers", 7)?;
    let pixels = factor_or(vision, "num_channels", CHANNELS)? * patch * patch;
    let name = |part: &str| format!("vision_model.encoder.layer.0.{part}");
    let bias = vision.flag("qkv_bias", true)?;
    let mut all = vec![
        plain(
            "vision_model.embeddings.position_embedding",
            &[side * side, hidden],
        ),
        plain("vision_model.embeddings.cls_register_token", &[tokens, hidden]),
        whole("vision_model.embeddings.patch_projection", pixels, hidden).bias(false),
    ];
    all.extend(repeated(
        vision.dim_or("num_hidden_layers", 32)?,
        [
            whole(name("attention.q_proj"), hidden, hidden)
                .bias(bias)
                .times(3),
            whole(name("attention.o_proj"), hidden, hidden),
            whole(name("mlp.fc1"), hidden, width),
            whole(name("mlp.fc2"), width, hidden),
            layer_norm(&name("norm"), hidden).times(4),
            plain(&name("layer_scale"), &[hidden]).times(2),
        ],
    ));
    let seen = t.top.dim_or("vit_hidden_size", hidden)?;
    let inner = t.top.dim("projector_hidden_size")?;
    let joined = seen * merged_by_ratio(&t.top)?;
    all.push(layer_norm("mlp1.0", joined));
    all.push(whole("mlp1.1", joined, inner));
    all.push(whole("mlp1.3", inner, t.hidden()?));
    Ok(all)
}

/// Nemotron-Parse (vLLM 0.32.0, `nemotron_parse.py`): RADIO and a neck that joins four patches of a row. The neck's
/// sizes are fixed in the class.
pub(super) fn nemotron_parse(_: &Text, vision: &Config) -> Result<Vec<Weight>> {
    const SEEN: u64 = 1280;
    const OUT: u64 = 1024;
    let (mut all, hidden) = radio(vision, "encoder.model_encoder.model")?;
    if hidden != SEEN {
        return Err(Error::unsupported(format!(
            "the neck of NemotronParseForConditionalGeneration takes vectors of {SEEN}, not of {hidden}"
        )));
    }
    all.extend(convolution("encoder.conv1", &[OUT, SEEN, 1]));
    all.push(plain("encoder.conv2", &[OUT, OUT, 1, 4]));
    all.push(layer_norm("encoder.layer_norm", OUT).times(6));
    // A summary token of each teacher.
    all.push(Weight::column("encoder.sum_proj", Role::Tower, 3 * SEEN, &[OUT]).bias(true));
    Ok(all)
}
