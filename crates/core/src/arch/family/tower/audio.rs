//! Audio encoders: Whisper's, those of Qwen's and NVIDIA's models, and Granite's conformer.

use super::super::text::Text;
use super::blocks::{
    Blocks, column, convolution, factor, factor_or, layer_norm, plain, repeated, row, two_channels, whole,
};
use super::qformer::qformer;
use crate::Result;
use crate::arch::{Config, Weight};
use crate::dtype::Dtype;

/// Whisper's encoder under `path`: two convolutions, positions (fixed, but a parameter), layers, a norm
/// (vLLM 0.32.0, `WhisperEncoder` in `whisper.py`).
pub(super) fn whisper_encoder(audio: &Config, path: &'static str) -> Result<Vec<Weight>> {
    let width = audio.dim("d_model")?;
    let mels = audio.dim_or("num_mel_bins", 80)?;
    let blocks = Blocks {
        path,
        layers: audio.dim("encoder_layers")?,
        hidden: width,
        attention: width,
        heads: audio.dim("encoder_attention_heads")?,
        width: audio.dim("encoder_ffn_dim")?,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mut all = Vec::with_capacity(16);
    all.extend(convolution(&format!("{path}.conv1"), &[width, mels, 3]));
    all.extend(convolution(&format!("{path}.conv2"), &[width, width, 3]));
    all.push(plain(
        &format!("{path}.embed_positions"),
        &[audio.dim_or("max_source_positions", 1500)?, width],
    ));
    all.push(layer_norm(&format!("{path}.layer_norm"), width));
    all.extend(blocks.weights());
    Ok(all)
}

/// Whisper's encoder as the Transformers library builds it: nothing is divided, and keys have no bias.
pub(super) fn library_encoder(audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim("d_model")?;
    let mut all = whisper_encoder(audio, "audio_tower")?;
    // Queries, keys and values are three matrices; only the keys' has no bias.
    let layers = audio.dim("encoder_layers")?;
    for w in &mut all {
        if w.name.ends_with("qkv_proj") {
            *w = w.clone().bias(false);
        }
    }
    all.push(plain("audio_tower.layers.0.self_attn.biases", &[width]).times(2 * layers));
    Ok(all.into_iter().map(Weight::undivided).collect())
}

/// Audio Flamingo 3 (vLLM 0.32.0, `audioflamingo3.py`).
pub(super) fn audioflamingo3(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let bias = t.top.flag("projector_bias", true)?;
    let mut all = library_encoder(audio)?;
    all.push(whole("multi_modal_projector.linear_1", audio.dim("d_model")?, text).bias(bias));
    all.push(whole("multi_modal_projector.linear_2", text, text).bias(bias));
    Ok(all)
}

/// Qwen2-Audio (vLLM 0.32.0, `qwen2_audio.py`).
pub(super) fn qwen2_audio(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let mut all = library_encoder(audio)?;
    all.push(whole(
        "multi_modal_projector.linear",
        audio.dim("d_model")?,
        t.hidden()?,
    ));
    Ok(all)
}

/// Qwen2.5-Omni (vLLM 0.32.0, `qwen2_5_omni_thinker.py`): the library's encoder with positions that are no parameter,
/// and vectors for an audio's begin and end.
pub(super) fn qwen2_5_omni(_: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let out = audio.dim("output_dim")?;
    let mut all = library_encoder(audio)?;
    all.retain(|w| !w.name.ends_with("embed_positions"));
    all.push(plain("audio_tower.audio_bos_eos_token", &[2, out]));
    all.push(whole("audio_tower.proj", audio.dim("d_model")?, out));
    Ok(all)
}

/// Ultravox (vLLM 0.32.0, `ultravox.py`): Whisper's encoder and a gated projection of stacked frames.
pub(super) fn ultravox(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let stacked = audio.dim("d_model")? * factor_or(&t.top, "stack_factor", 8)?;
    let width = t.top.dim_or("hidden_size", 4096)?;
    // A gated activation halves what the second matrix takes in.
    let inner = match t.top.str("projector_act")?.unwrap_or("swiglu") {
        "swiglu" => width / 2,
        _ => width,
    };
    let norm_in_middle = t.top.flag("projector_ln_mid", false)?;
    let mut all = whisper_encoder(audio, "audio_tower")?;
    let name = |part: &str| format!("multi_modal_projector.{part}");
    all.push(plain(&name("ln_pre"), &[stacked]));
    all.push(whole(name("linear_1"), stacked, width).bias(false));
    all.push(whole(name("linear_2"), inner, text).bias(false));
    all.push(plain(&name("ln"), &[if norm_in_middle { inner } else { text }]));
    Ok(all)
}

/// The encoder of Qwen3-ASR and Qwen3-Omni (vLLM 0.32.0, `qwen3_omni_moe_thinker.py`): three convolutions over
/// time and frequency, each halving both.
pub(super) fn qwen3_audio(_: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim("d_model")?;
    let channels = audio.dim_or("downsample_hidden_size", 480)?;
    let halves = (0..3).fold(audio.dim_or("num_mel_bins", 128)?, |n, _| n.div_ceil(2));
    let path = "audio_tower";
    let mut all = Vec::with_capacity(24);
    all.extend(convolution("audio_tower.conv2d1", &[channels, 1, 3, 3]));
    all.extend(convolution("audio_tower.conv2d2", &[channels, channels, 3, 3]));
    all.extend(convolution("audio_tower.conv2d3", &[channels, channels, 3, 3]));
    all.push(whole("audio_tower.conv_out", channels * halves, width).bias(false));
    let blocks = Blocks {
        path,
        layers: audio.dim("encoder_layers")?,
        hidden: width,
        attention: width,
        heads: audio.dim("encoder_attention_heads")?,
        width: audio.dim("encoder_ffn_dim")?,
        names: ["self_attn.qkv_proj", "self_attn.out_proj", "fc1", "fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    all.extend(blocks.weights());
    all.push(layer_norm("audio_tower.ln_post", width));
    all.push(whole("audio_tower.proj1", width, width));
    all.push(whole("audio_tower.proj2", width, audio.dim("output_dim")?));
    Ok(all)
}

/// Granite-Speech (vLLM 0.32.0, `granite_speech.py`): a conformer, of which only the feed-forward parts and the
/// two output layers are divided, and a Q-Former.
pub(super) fn granite_speech(t: &Text, encoder: &Config) -> Result<Vec<Weight>> {
    let hidden = encoder.dim("hidden_dim")?;
    let inner = factor(encoder, "feedforward_mult")? * hidden;
    let head_dim = encoder.dim("dim_head")?;
    let heads = encoder.dim("num_heads")? * head_dim;
    let expanded = hidden * factor_or(encoder, "conv_expansion_factor", 2)?;
    let kernel = encoder.dim("conv_kernel_size")?;
    let out = encoder.dim("output_dim")?;
    let positions = 2 * encoder.dim("max_pos_emb")? + 1;
    let layers = encoder.dim("num_layers")?;
    let name = |part: &str| format!("encoder.layers.0.{part}");
    let mut layer = vec![
        layer_norm(&name("norms"), hidden).times(10),
        column(name("ff1.up_proj"), hidden, inner).times(2),
        row(name("ff1.down_proj"), inner, hidden).times(2),
        whole(name("attn.to_q"), hidden, heads).bias(false),
        whole(name("attn.to_kv"), hidden, 2 * heads).bias(false),
        whole(name("attn.to_out"), heads, hidden),
        plain(&name("attn.rel_pos_emb"), &[positions, head_dim]),
        plain(&name("conv.depth_conv.conv"), &[expanded, 1, kernel]),
        plain(&name("conv.batch_norm"), &[expanded]).times(2),
    ];
    layer.extend(convolution(&name("conv.up_conv"), &[2 * expanded, hidden, 1]));
    layer.extend(convolution(&name("conv.down_conv"), &[hidden, expanded, 1]));
    let mut all = vec![
        whole("encoder.input_linear", encoder.dim("input_dim")?, hidden),
        column("encoder.out", hidden, out),
        row("encoder.out_mid", out, hidden),
    ];
    all.extend(repeated(layers, layer));
    if let Some(projector) = t.top.sub("projector_config")? {
        let width = projector.dim("hidden_size")?;
        let queries = t
            .top
            .dim_or("window_size", 15)?
            .checked_div(t.top.dim_or("downsample_rate", 5)?)
            .unwrap_or(0);
        all.push(plain("projector.query", &[queries, width]));
        all.extend(qformer(
            "projector.qformer",
            &projector,
            projector.dim("encoder_hidden_size")?,
        )?);
        all.push(whole("projector.linear", width, t.hidden()?));
    }
    Ok(all)
}

/// GLM-ASR (vLLM 0.32.0, `glmasr.py`): Whisper's encoder with rotary positions, and a divided projector of four
/// joined frames.
pub(super) fn glm_asr(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim("hidden_size")?;
    let inner = audio.dim("intermediate_size")?;
    let text = t.hidden()?;
    let blocks = Blocks {
        path: "audio_tower.layers",
        layers: audio.dim("num_hidden_layers")?,
        hidden: width,
        attention: width,
        heads: audio.dim("num_attention_heads")?,
        width: inner,
        names: ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.fc1", "mlp.fc2"],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    let mels = audio.dim_or("num_mel_bins", 128)?;
    let mut all = convolution("audio_tower.conv1", &[width, mels, 3]).to_vec();
    all.extend(convolution("audio_tower.conv2", &[width, width, 3]));
    all.push(layer_norm("audio_tower.norm", width));
    all.push(column("multi_modal_projector.linear_1", inner, 2 * text));
    all.push(row("multi_modal_projector.linear_2", 2 * text, text));
    all.extend(blocks.weights());
    Ok(all)
}

/// Voxtral (vLLM 0.32.0, `voxtral.py`): Whisper's encoder, with positions in 32 bits, and an adapter over joined
/// frames.
pub(super) fn voxtral(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let joined = audio.dim("d_model")? * factor_or(audio, "downsample_factor", 4)?;
    let text = t.hidden()?;
    let mut all: Vec<Weight> = whisper_encoder(audio, "whisper_encoder.whisper_encoder")?
        .into_iter()
        .map(|w| {
            if w.name.ends_with("embed_positions") {
                w.of(Dtype::F32)
            } else {
                w
            }
        })
        .collect();
    all.push(whole("audio_language_adapter.w_in", joined, text).bias(false));
    all.push(whole("audio_language_adapter.w_out", text, text).bias(false));
    Ok(all)
}

/// Gemma-4's audio tower (vLLM 0.32.0, `gemma4_mm.py`): transformers' own conformer, whole on every rank, and a
/// projection into the language model.
pub(super) fn gemma4(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    /// Frequencies of the input, which two convolutions of stride 2 divide by four.
    const MELS: u64 = 128;
    let hidden = audio.dim("hidden_size")?;
    let heads = audio.dim("num_attention_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let kernel = factor(audio, "conv_kernel_size")?;
    let (first, second) = two_channels(audio, "subsampling_conv_channels")?.ok_or_else(|| {
        crate::Error::input(format!(
            "{} is missing from the configuration",
            audio.name("subsampling_conv_channels")
        ))
    })?;
    let out = audio.dim_or("output_proj_dims", 1536)?;
    let name = |part: &str| format!("audio_tower.layers.0.{part}");
    let linear = |part: &str, inputs, outputs| whole(name(part), inputs, outputs).bias(false);
    let layer = [
        linear("feed_forward.ffw_layer_1", hidden, 4 * hidden).times(2),
        linear("feed_forward.ffw_layer_2", 4 * hidden, hidden).times(2),
        linear("self_attn.proj", hidden, hidden).times(5),
        plain(&name("self_attn.per_dim_scale"), &[head_dim]),
        linear("lconv1d.linear_start", hidden, 2 * hidden),
        linear("lconv1d.linear_end", hidden, hidden),
        plain(&name("lconv1d.depthwise_conv1d"), &[hidden, 1, kernel]),
        plain(&name("norms"), &[hidden]).times(9),
    ];
    let path = "audio_tower.subsample_conv_projection";
    let mut all = vec![
        plain(&format!("{path}.layer0.conv"), &[first, 1, 3, 3]),
        plain(&format!("{path}.layer0.norm"), &[first]),
        plain(&format!("{path}.layer1.conv"), &[second, first, 3, 3]),
        plain(&format!("{path}.layer1.norm"), &[second]),
        whole(format!("{path}.input_proj_linear"), second * (MELS / 4), hidden).bias(false),
        whole("audio_tower.output_proj", hidden, out),
        whole("embed_audio.embedding_projection", out, t.hidden()?).bias(false),
    ];
    all.extend(repeated(audio.dim("num_hidden_layers")?, layer));
    Ok(all)
}
