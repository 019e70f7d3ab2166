//! Towers of speech models: encoders over sound whose language model is a plain decoder.

use super::super::text::Text;
use super::audio::whisper_encoder;
use super::blocks::{
    Blocks, channels, column, convolution, factor_or, layer_norm, pair, plain, repeated, row, whole,
};
use super::library::{Conformer, Qwen2, conformer, halving, qwen2};
use crate::arch::{Config, Role, Weight};
use crate::{Error, Result};

/// Fun-Audio-Chat (vLLM 0.32.0, `funaudiochat.py`): Whisper's layers, of which only attention is divided, and an
/// embedding of sound tokens.
pub(super) fn funaudiochat(_: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim_or("d_model", 1280)?;
    let inner = audio.dim_or("encoder_ffn_dim", 5120)?;
    let heads = audio.dim_or("encoder_attention_heads", 20)?;
    let out = audio.dim_or("output_dim", 3584)?;
    let path = "continuous_audio_tower";
    let name = |part: &str| format!("{path}.layers.0.{part}");
    let mut all = Vec::with_capacity(16);
    all.extend(convolution(
        "continuous_audio_tower.conv1",
        &[width, audio.dim_or("num_mel_bins", 128)?, 3],
    ));
    all.extend(convolution("continuous_audio_tower.conv2", &[width, width, 3]));
    all.extend(repeated(
        audio.dim_or("encoder_layers", 32)?,
        [
            Weight::qkv(
                name("self_attn.qkv_proj"),
                width,
                heads,
                heads,
                width.checked_div(heads).unwrap_or(0),
            )
            .bias(true),
            row(name("self_attn.out_proj"), width, width),
            whole(name("fc1"), width, inner),
            whole(name("fc2"), inner, width),
            layer_norm(&name("norm"), width).times(4),
        ],
    ));
    all.push(layer_norm("continuous_audio_tower.ln_post", width));
    all.push(whole("continuous_audio_tower.proj", width, out));
    all.push(plain("continuous_audio_tower.audio_bos_eos_token", &[2, out]));
    all.push(plain(
        "audio_tower.embed_tokens",
        &[audio.dim("codebook_size")?, out],
    ));
    all.push(
        whole("audio_tower.output_matching", out, out)
            .bias(false)
            .times(2),
    );
    Ok(all)
}

/// MOSS-Transcribe-Diarize (vLLM 0.32.0, `moss_transcribe_diarize.py`): Whisper's encoder and an adaptor over joined
/// frames.
pub(super) fn moss_transcribe(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let joined = audio.dim("d_model")? * factor_or(&t.top, "audio_merge_size", 4)?;
    let mut all = whisper_encoder(audio, "whisper_encoder.layers")?;
    all.push(whole(
        "vq_adaptor.layers.0",
        t.top.dim_or("adaptor_input_dim", joined)?,
        text,
    ));
    all.push(whole("vq_adaptor.layers.2", text, text));
    all.push(layer_norm("vq_adaptor.layers.3", text));
    Ok(all)
}

/// MOSS-Audio (vLLM 0.32.0, `moss_audio.py`): three convolutions over time and frequency, layers whose keys have no
/// bias, and a gated adaptor for the output and for each layer that the language model sees too.
pub(super) fn moss_audio(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim_or("d_model", 1280)?;
    let inner = audio.dim_or("encoder_ffn_dim", 5120)?;
    let filters = channels(audio, "downsample_hidden_size", 480)?;
    let mels = factor_or(audio, "num_mel_bins", 128)?;
    let out = audio.dim_or("output_dim", width)?;
    let text = t.hidden()?;
    let adapter = t.top.dim_or("adapter_hidden_size", 8192)?;
    let name = |part: &str| format!("audio_encoder.layers.0.{part}");
    let left = (0..3).fold(mels, |n, _| n.div_ceil(2));
    let mut all = Vec::with_capacity(24);
    all.extend(convolution("audio_encoder.conv1", &[filters, 1, 3, 3]));
    all.extend(convolution("audio_encoder.conv2", &[filters, filters, 3, 3]));
    all.extend(convolution("audio_encoder.conv3", &[filters, filters, 3, 3]));
    all.push(whole("audio_encoder.stem_proj", filters * left, width));
    all.extend(repeated(
        audio.dim_or("encoder_layers", 32)?,
        [
            column(name("self_attn.q_proj"), width, width).times(2),
            column(name("self_attn.k_proj"), width, width).bias(false),
            row(name("self_attn.out_proj"), width, width),
            column(name("fc1"), width, inner),
            row(name("fc2"), inner, width),
            layer_norm(&name("norm"), width).times(4),
        ],
    ));
    all.push(layer_norm("audio_encoder.layer_norm", width));
    if out != width {
        all.push(whole("audio_encoder.out_proj", width, out).bias(false));
    }
    let seen = audio
        .u64s("deepstack_encoder_layer_indexes")?
        .unwrap_or_default()
        .len() as u64;
    let injected = match t.top.u64("deepstack_num_inject_layers")? {
        Some(most) => seen.min(most),
        None => seen,
    };
    let gate = Weight::column(
        "audio_adapter.gate_up_proj",
        Role::Tower,
        out,
        &[adapter, adapter],
    );
    all.push(gate.times(1 + injected));
    all.push(
        row("audio_adapter.down_proj", adapter, text)
            .bias(false)
            .times(1 + injected),
    );
    Ok(all)
}

/// `MiDashengLM` (vLLM 0.32.0, `midashenglm.py`): a vision transformer over spectrograms and a projection of joined
/// frames.
pub(super) fn midasheng(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let width = audio.dim_or("embed_dim", 768)?;
    let heads = audio.dim_or("num_heads", 12)?;
    let text = t.hidden()?;
    let mels = factor_or(audio, "n_mels", 64)?;
    let (high, wide) = pair(audio, "patch_size", 16)?;
    let (down, along) = pair(audio, "patch_stride", 16)?;
    let frames = channels(audio, "target_length", 1012)?;
    let inner = width * factor_or(audio, "mlp_ratio", 4)?;
    let name = |part: &str| format!("audio_encoder.blocks.0.{part}");
    let mut layer = vec![
        Weight::qkv(
            name("attn.qkv"),
            width,
            heads,
            heads,
            width.checked_div(heads).unwrap_or(0),
        )
        .bias(audio.flag("qkv_bias", true)?),
        row(name("attn.proj"), width, width),
        column(name("mlp.fc1"), width, inner),
        row(name("mlp.fc2"), inner, width),
        layer_norm(&name("norm"), width).times(4),
    ];
    if audio.f64("init_values")?.is_some_and(|n| n != 0.0) {
        layer.push(plain(&name("ls"), &[width]).times(2));
    }
    let mut all: Vec<Weight> = repeated(audio.dim_or("depth", 12)?, layer).collect();
    all.extend(convolution(
        "audio_encoder.patch_embed.proj",
        &[width, factor_or(audio, "input_channels", 1)?, high, wide],
    ));
    all.push(layer_norm("audio_encoder.init_bn", mels));
    all.push(plain("audio_encoder.time_pos_embed", &[width, frames / along]));
    all.push(plain("audio_encoder.freq_pos_embed", &[width, mels / down]));
    all.push(layer_norm("audio_encoder.norm", width));
    let joined = width * factor_or(&t.top, "subsample_factor", 5)?;
    all.push(column("audio_projector.net.0", joined, text));
    all.push(row("audio_projector.net.2", text, text));
    Ok(all)
}

/// Kimi-Audio (vLLM 0.32.0, `kimi_audio.py`): the encoder of Whisper large-v3, whose configuration lies in a folder of
/// its own beside the file, and an adaptor. The sizes are those of that public model (`openai/whisper-large-v3`).
pub(super) fn kimi_audio(t: &Text, file: &Config) -> Result<Vec<Weight>> {
    let mut whisper = serde_json::Map::new();
    for (key, value) in [
        ("d_model", 1280),
        ("encoder_layers", 32),
        ("encoder_attention_heads", 20),
        ("encoder_ffn_dim", 5120),
        ("num_mel_bins", 128),
        ("max_source_positions", 1500),
    ] {
        whisper.insert(key.to_owned(), serde_json::Value::from(value));
    }
    let text = t.hidden()?;
    let mut all = whisper_encoder(&Config::from_map(whisper), "audio_tower.layers")?;
    all.push(whole(
        "multi_modal_projector.vq_adaptor_layers_0",
        file.dim_or("kimia_adaptor_input_dim", 5120)?,
        text,
    ));
    all.push(whole("multi_modal_projector.vq_adaptor_layers_3", text, text));
    all.push(layer_norm("multi_modal_projector.vq_adaptor_layers_4", text));
    Ok(all)
}

/// Fun-ASR (vLLM 0.32.0, `funasr.py`): attention with a memory over time, of which only the feed-forward parts are
/// divided, and an adaptor whose sizes are fixed in the class.
pub(super) fn funasr(_: &Text, encoder: &Config) -> Result<Vec<Weight>> {
    /// Seven joined frames of 80 frequencies.
    const INPUT: u64 = 560;
    const ADAPTED: u64 = 512;
    const ADAPTOR: u64 = 2048;
    const TEXT: u64 = 1024;
    let width = encoder.dim_or("output_size", 256)?;
    let inner = encoder.dim_or("linear_units", 2048)?;
    let kernel = factor_or(encoder, "kernel_size", 11)?;
    let layers = encoder.dim_or("num_blocks", 6)?;
    let more = encoder.dim_or("tp_blocks", 0)?;
    let name = |part: &str| format!("model.encoder.audio_encoder.encoders.0.{part}");
    let layer = |seen: u64| {
        [
            whole(name("self_attn.linear_q_k_v"), seen, 3 * width),
            whole(name("self_attn.out_proj"), width, width),
            plain(&name("self_attn.fsmn_block"), &[width, 1, kernel]),
            column(name("feed_forward.w_1"), width, inner),
            row(name("feed_forward.w_2"), inner, width),
            layer_norm(&name("norm1"), seen),
            layer_norm(&name("norm2"), width),
        ]
    };
    let mut all: Vec<Weight> = repeated(1, layer(INPUT)).collect();
    all.extend(repeated(layers.saturating_sub(1) + more, layer(width)));
    all.push(layer_norm("model.encoder.audio_encoder.norm", width).times(4));
    let name = |part: &str| format!("model.encoder.audio_adaptor.{part}");
    all.push(column(name("linear1"), ADAPTED, ADAPTOR));
    all.push(row(name("linear2"), ADAPTOR, TEXT));
    let blocks = Blocks {
        path: "model.encoder.audio_adaptor.blocks",
        layers: 2,
        hidden: TEXT,
        attention: TEXT,
        heads: 8,
        width: TEXT / 4,
        names: [
            "self_attn.qkv",
            "self_attn.out_proj",
            "feed_forward.w_1",
            "feed_forward.w_2",
        ],
        attention_bias: true,
        mlp_bias: true,
        norm_shift: true,
    };
    all.extend(blocks.weights());
    Ok(all)
}

/// FireRedASR-2 (vLLM 0.32.0, `fireredasr2.py`, `conformer_encoder.py`): a conformer, whole on every rank, and an
/// adaptor over joined frames.
pub(super) fn fireredasr2(t: &Text, encoder: &Config) -> Result<Vec<Weight>> {
    const CHANNELS: u64 = 32;
    let width = encoder.dim("d_model")?;
    let heads = encoder.dim("n_head")?;
    let mels = factor_or(encoder, "idim", 80)?;
    let kernel = factor_or(encoder, "kernel_size", 33)?;
    let text = t.hidden()?;
    let name = |part: &str| format!("model.encoder.audio_encoder.layer_stack.0.{part}");
    let linear = |part: &str, inputs, outputs| whole(name(part), inputs, outputs).bias(false);
    let path = "model.encoder.audio_encoder.input_preprocessor";
    // Two convolutions of stride 2 without padding.
    let left = (mels.saturating_sub(1) / 2).saturating_sub(1) / 2;
    let mut all = Vec::with_capacity(24);
    all.extend(convolution(&format!("{path}.conv.0"), &[CHANNELS, 1, 3, 3]));
    all.extend(convolution(
        &format!("{path}.conv.2"),
        &[CHANNELS, CHANNELS, 3, 3],
    ));
    all.push(whole(format!("{path}.out"), CHANNELS * left, width));
    all.extend(repeated(
        encoder.dim("n_layers_enc")?,
        [
            whole(name("ffn1.linear_expand"), width, 4 * width).times(2),
            whole(name("ffn1.linear_project"), 4 * width, width).times(2),
            linear("mhsa.w_qs", width, width).times(5),
            plain(
                &name("mhsa.pos_bias"),
                &[heads, width.checked_div(heads).unwrap_or(0)],
            )
            .times(2),
            linear("conv.pointwise_conv1", width, 4 * width),
            plain(&name("conv.depthwise_conv"), &[2 * width, 1, kernel]),
            linear("conv.pointwise_conv2", 2 * width, width),
            layer_norm(&name("conv.batch_norm"), 2 * width),
            // Before both feed-forward parts, of queries, keys and values, before the convolution, at the end.
            layer_norm(&name("norms"), width).times(14),
        ],
    ));
    let joined = width * factor_or(&t.top, "encoder_downsample_rate", 2)?;
    all.push(whole("model.encoder_projector.linear1", joined, text));
    all.push(whole("model.encoder_projector.linear2", text, text));
    Ok(all)
}

/// The encoder of Cohere-ASR (vLLM 0.32.0, `cohere_asr.py`): a conformer, whole on every rank.
pub(super) fn cohere_asr(t: &Text, encoder: &Config) -> Result<Vec<Weight>> {
    let hidden = encoder.dim("d_model")?;
    let heads = encoder.dim("n_heads")?;
    let bias = encoder.flag("use_bias", true)?;
    // -1 stands for the model's own width.
    let filters = match encoder
        .get("subsampling_conv_channels")
        .and_then(serde_json::Value::as_i64)
    {
        Some(-1) => hidden.min(1 << 20),
        _ => channels(encoder, "subsampling_conv_channels", 256)?,
    };
    let factor = factor_or(encoder, "subsampling_factor", 8)?;
    let mut all = halving(
        "model.encoder.pre_encode",
        filters,
        factor,
        factor_or(encoder, "feat_in", 128)?,
        hidden,
    );
    let layers = encoder.dim("n_layers")?;
    let mut inside = conformer(&Conformer {
        path: "model.encoder.layers",
        layers,
        hidden,
        width: hidden * factor_or(encoder, "ff_expansion_factor", 4)?,
        heads,
        kernel: factor_or(encoder, "conv_kernel_size", 9)?,
        bias,
        convolution_bias: bias,
    });
    if !encoder.flag("untie_biases", true)? {
        // Shared biases of positions are buffers.
        inside.retain(|w| !w.name.ends_with("self_attn.bias_u"));
    }
    all.extend(inside);
    // The projection of the output (-1: none), which the decoder's own does not look at.
    if let Some(out) = encoder.get("feat_out").and_then(serde_json::Value::as_u64)
        && out != 0
        && out != hidden
    {
        all.push(whole("model.encoder.out_proj", hidden, encoder.dim("feat_out")?));
    }
    let text = t.hidden()?;
    if hidden != text {
        all.push(whole("model.encoder_decoder_proj", hidden, text));
    }
    Ok(all)
}

/// The numbers that a file writes as text with dashes between them (`1025-1025-129`), or as one for `count` of them.
fn dashed(c: &Config, key: &str, count: u64, default: &str) -> Result<Vec<u64>> {
    let wrong = |value: &str| {
        Error::input(format!(
            "{} is {value:?}, expected a number or numbers with dashes between them",
            c.name(key)
        ))
    };
    let text = match c.get(key) {
        None | Some(serde_json::Value::Null) => default.to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(_) => c.dim(key)?.to_string(),
    };
    let list = text
        .split('-')
        .map(|part| part.parse::<u64>().ok().filter(|n| (1..1 << 26).contains(n)))
        .collect::<Option<Vec<u64>>>()
        .ok_or_else(|| wrong(&text))?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    match list.as_slice() {
        [one] => Ok(vec![*one; count.min(4096)]),
        _ if list.len() < count => Err(Error::input(format!(
            "{} names {} vocabularies for {count} channels",
            c.name(key),
            list.len()
        ))),
        _ => Ok(list.into_iter().take(count).collect()),
    }
}

/// The sound of MiMo-V2-Omni (vLLM 0.32.0, `mimo_audio.py`): an embedding for each channel of tokens, a Qwen2 of the
/// Transformers library with its own unused embedding, and a projection of joined tokens.
pub(super) fn mimo_audio(_: &Text, audio: &Config) -> Result<Vec<Weight>> {
    /// Rows of the embedding that a Qwen2 without `vocab_size` makes.
    const VOCABULARY: u64 = 151_936;
    let width = audio.dim_or("input_local_dim", 1024)?;
    let heads = audio.dim_or("input_local_attn_heads", 64)?;
    let out = audio.dim_or("out_hidden_size", 4096)?;
    let streams = factor_or(audio, "audio_channels", 8)?;
    let joined = width * factor_or(audio, "group_size", 4)?;
    let mut all = qwen2(&Qwen2 {
        path: "audio_encoder.input_local_transformer",
        hidden: width,
        layers: audio.dim_or("input_local_layers", 6)?,
        heads,
        kv_heads: heads,
        width: audio.dim_or("input_local_intermediate_size", 4096)?,
        final_norm: audio.flag("add_post_norm", false)?,
    });
    all.push(plain(
        "audio_encoder.input_local_transformer.embed_tokens",
        &[VOCABULARY, width],
    ));
    let rows = dashed(
        audio,
        "speech_vocab_size",
        streams,
        "1025-1025-129-129-129-129-129-129",
    )?;
    all.extend(
        rows.iter()
            .map(|&rows| plain("audio_encoder.speech_embeddings", &[rows, width])),
    );
    match audio.dim_or("projection_layers", 1)? {
        1 => all.push(whole("audio_encoder.projection", joined, out).bias(false)),
        2 => {
            all.push(whole("audio_encoder.projection.mlp.0", joined, 4 * joined).bias(false));
            all.push(whole("audio_encoder.projection.mlp.2", 4 * joined, out).bias(false));
        }
        other => {
            return Err(Error::unsupported(format!("Invalid projection_layers: {other}")));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabularies(text: &str) -> Result<Vec<u64>> {
        dashed(&Config::parse(text.as_bytes()).unwrap(), "v", 3, "4-5-6")
    }

    #[test]
    fn vocabularies_are_read_from_text_from_one_number_and_from_the_default() {
        assert_eq!(vocabularies("{}").unwrap(), [4, 5, 6]);
        assert_eq!(vocabularies(r#"{"v": 7}"#).unwrap(), [7, 7, 7]);
        assert_eq!(vocabularies(r#"{"v": "1-2-3-9"}"#).unwrap(), [1, 2, 3]);
        for wrong in [
            r#"{"v": "1-2"}"#,
            r#"{"v": "a-b-c"}"#,
            r#"{"v": "0-1-2"}"#,
            r#"{"v": -1}"#,
        ] {
            assert!(
                vocabularies(wrong).unwrap_err().to_string().contains('v'),
                "{wrong}"
            );
        }
    }
}
