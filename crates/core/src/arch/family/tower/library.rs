//! Encoders that the Transformers library itself builds: nothing in them is divided.

use super::blocks::{layer_norm, plain, repeated, whole};
use crate::Result;
use crate::arch::{Config, Weight};

/// A Qwen2 without its token embedding.
pub(super) struct Qwen2 {
    /// Module path of the model.
    pub(super) path: &'static str,
    pub(super) hidden: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    /// Width of the feed-forward part.
    pub(super) width: u64,
    pub(super) final_norm: bool,
}

/// The parameters of a Qwen2 of the library (transformers 5.19.0, `modeling_qwen2.py`), whole on every rank.
pub(super) fn qwen2(model: &Qwen2) -> Vec<Weight> {
    let Qwen2 { hidden, width, .. } = *model;
    let head_dim = hidden.checked_div(model.heads).unwrap_or(0);
    let (queries, keys) = (model.heads * head_dim, model.kv_heads * head_dim);
    let name = |part: &str| format!("{}.layers.0.{part}", model.path);
    let mut all: Vec<Weight> = repeated(
        model.layers,
        [
            whole(name("self_attn.q_proj"), hidden, queries),
            whole(name("self_attn.k_proj"), hidden, keys).times(2),
            whole(name("self_attn.o_proj"), queries, hidden).bias(false),
            whole(name("mlp.gate_proj"), hidden, width).bias(false).times(2),
            whole(name("mlp.down_proj"), width, hidden).bias(false),
            plain(&name("norm"), &[hidden]).times(2),
        ],
    )
    .collect();
    if model.final_norm {
        all.push(plain(&format!("{}.norm", model.path), &[hidden]));
    }
    all
}

/// Sizes of a conformer layer whose convolution works on the model's own width.
pub(super) struct Conformer {
    /// Module path of the layers.
    pub(super) path: &'static str,
    pub(super) layers: u64,
    pub(super) hidden: u64,
    /// Width of the feed-forward parts.
    pub(super) width: u64,
    pub(super) heads: u64,
    /// Frames that the convolution over time sees.
    pub(super) kernel: u64,
    /// Whether the feed-forward parts and attention have biases.
    pub(super) bias: bool,
    /// Whether the convolutions have biases.
    pub(super) convolution_bias: bool,
}

/// The layers of a conformer with relative positions, as the library's Parakeet (transformers 5.19.0,
/// `modeling_parakeet.py`) and vLLM's Cohere-ASR (vLLM 0.32.0, `cohere_asr.py`) have it, whole on every rank.
pub(super) fn conformer(c: &Conformer) -> Vec<Weight> {
    let (hidden, width) = (c.hidden, c.width);
    let name = |part: &str| format!("{}.0.{part}", c.path);
    let convolution = |part: &str, shape: [u64; 3]| {
        let mut weights = vec![plain(&name(part), &shape)];
        if c.convolution_bias {
            weights.push(plain(&name(&format!("{part}.bias")), &shape[..1]));
        }
        weights
    };
    let mut layer = vec![
        whole(name("feed_forward1.linear1"), hidden, width)
            .bias(c.bias)
            .times(2),
        whole(name("feed_forward1.linear2"), width, hidden)
            .bias(c.bias)
            .times(2),
        whole(name("self_attn.q_proj"), hidden, hidden)
            .bias(c.bias)
            .times(4),
        whole(name("self_attn.relative_k_proj"), hidden, hidden).bias(false),
        plain(
            &name("self_attn.bias_u"),
            &[c.heads, hidden.checked_div(c.heads).unwrap_or(0)],
        )
        .times(2),
        // The norm of the convolution is one over the batch: a scale and a shift too.
        layer_norm(&name("norms"), hidden).times(12),
    ];
    layer.extend(convolution("conv.pointwise_conv1", [2 * hidden, hidden, 1]));
    layer.extend(convolution("conv.depthwise_conv", [hidden, 1, c.kernel]));
    layer.extend(convolution("conv.pointwise_conv2", [hidden, hidden, 1]));
    repeated(c.layers, layer).collect()
}

/// Convolutions that halve time and frequency until `factor` is reached: one over both, then one a channel and one
/// over channels each time; a projection of what is left of `mels` frequencies.
///
/// # Errors
/// None of its own; sizes were checked where they were read.
pub(super) fn halving(path: &str, channels: u64, factor: u64, mels: u64, hidden: u64) -> Vec<Weight> {
    let halvings = u64::from(factor.max(1).ilog2());
    let left = (0..halvings).fold(mels, |n, _| n.div_ceil(2));
    let each = halvings.saturating_sub(1);
    let name = |part: &str| format!("{path}.{part}");
    vec![
        plain(&name("layers.0"), &[channels, 1, 3, 3]),
        plain(&name("layers.0.bias"), &[channels]),
        plain(&name("layers.2"), &[channels, 1, 3, 3]).times(each),
        plain(&name("layers.3"), &[channels, channels, 1, 1]).times(each),
        plain(&name("layers.2.bias"), &[channels]).times(2 * each),
        whole(name("linear"), channels * left, hidden),
    ]
}

/// Gemma-3n's conformer (transformers 5.19.0, `modeling_gemma3n.py`), whole on every rank.
pub(super) fn gemma3n_audio(audio: &Config) -> Result<Vec<Weight>> {
    let hidden = audio.dim_or("hidden_size", 1536)?;
    let heads = audio.dim_or("conf_num_attention_heads", 8)?;
    let kernel = super::blocks::factor_or(audio, "conf_conv_kernel_size", 5)?;
    let mels = super::blocks::factor_or(audio, "input_feat_size", 128)?;
    let (first, second) = super::blocks::two_channels(audio, "sscp_conv_channel_size")?.unwrap_or((128, 32));
    let name = |part: &str| format!("audio_tower.conformer.0.{part}");
    let linear = |part: &str, inputs, outputs| whole(name(part), inputs, outputs).bias(false);
    let path = "audio_tower.subsample_conv_projection";
    let mut all = vec![
        plain(&format!("{path}.conv_0.conv"), &[first, 1, 3, 3]),
        plain(&format!("{path}.conv_0.norm"), &[first]),
        plain(&format!("{path}.conv_1.conv"), &[second, first, 3, 3]),
        plain(&format!("{path}.conv_1.norm"), &[second]),
        // Two convolutions of stride 2 leave a quarter of the frequencies.
        whole(
            format!("{path}.input_proj_linear"),
            second * mels.div_ceil(2).div_ceil(2),
            hidden,
        )
        .bias(false),
    ];
    all.extend(repeated(
        audio.dim_or("conf_num_hidden_layers", 12)?,
        [
            linear("ffw_layer_start.ffw_layer_1", hidden, 4 * hidden).times(2),
            linear("ffw_layer_start.ffw_layer_2", 4 * hidden, hidden).times(2),
            linear("attention.attn.proj", hidden, hidden).times(5),
            plain(
                &name("attention.attn.per_dim_scale"),
                &[hidden.checked_div(heads).unwrap_or(0)],
            ),
            linear("lconv1d.linear_start", hidden, 2 * hidden),
            linear("lconv1d.linear_end", hidden, hidden),
            plain(&name("lconv1d.depthwise_conv1d"), &[hidden, 1, kernel]),
            plain(&name("norms"), &[hidden]).times(9),
        ],
    ));
    Ok(all)
}
