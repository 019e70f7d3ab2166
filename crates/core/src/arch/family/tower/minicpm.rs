//! MiniCPM-V and MiniCPM-o: `SigLIP`, a resampler or merger, and in MiniCPM-o an audio encoder.

use super::super::text::Text;
use super::audio::library_encoder;
use super::blocks::{layer_norm, plain, whole};
use super::siglip::Siglip;
use crate::Result;
use crate::arch::{Config, Weight};

/// MiniCPM-V up to 4.5 (vLLM 0.32.0, `minicpmv.py`): a resampler, whole on every rank.
pub(super) fn vision(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    let seen = vision.dim("hidden_size")?;
    let text = t.hidden()?;
    let mut tower = Siglip::whole("vpm.encoder.layers");
    tower.without_last = u64::from(t.top.flag("drop_vision_last_layer", false)?);
    let mut all = tower.weights(vision)?;
    let name = |part: &str| format!("resampler.{part}");
    all.push(plain(&name("query"), &[t.top.dim_or("query_num", 64)?, text]));
    all.push(plain(&name("proj"), &[text, text]));
    if seen != text {
        all.push(whole(name("kv_proj"), seen, text).bias(false));
    }
    all.push(whole(name("attn.in_proj"), text, 3 * text));
    all.push(whole(name("attn.out_proj"), text, text));
    all.push(layer_norm(&name("ln"), text).times(6));
    Ok(all)
}

/// MiniCPM-o's audio part (vLLM 0.32.0, `minicpmo.py`).
pub(super) fn audio(t: &Text, audio: &Config) -> Result<Vec<Weight>> {
    let text = t.hidden()?;
    let width = audio.dim("d_model")?;
    let mut all = library_encoder(audio)?;
    all.push(whole("audio_projection_layer.linear1", width, text));
    all.push(whole("audio_projection_layer.linear2", text, text));
    Ok(all)
}

/// MiniCPM-V 4.6 and 4.7 (vLLM 0.32.0, `minicpmv4_6.py`): windows of patches merge twice.
pub(super) fn merging(t: &Text, vision: &Config) -> Result<Vec<Weight>> {
    use super::blocks::row;
    let hidden = vision.dim("hidden_size")?;
    let heads = vision.dim("num_attention_heads")?;
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let joined = 4 * hidden;
    let inner = 4 * vision.dim("intermediate_size")?;
    let mut all = Siglip::whole("vpm.encoder.layers").weights(vision)?;
    let name = |part: &str| format!("vit_merger.{part}");
    all.push(
        Weight::qkv(name("self_attn.qkv_proj"), hidden, heads, heads, head_dim)
            .role(crate::arch::Role::Tower)
            .bias(true),
    );
    all.push(row(name("self_attn.out_proj"), hidden, hidden));
    all.push(layer_norm(&name("layer_norm1"), hidden));
    all.push(layer_norm(&name("pre_norm"), joined));
    all.push(whole(name("linear_1"), joined, inner));
    all.push(whole(name("linear_2"), inner, hidden));
    all.push(layer_norm("merger.mlp.0.pre_norm", joined));
    all.push(whole("merger.mlp.0.linear_1", joined, joined));
    all.push(whole("merger.mlp.0.linear_2", joined, t.hidden()?));
    Ok(all)
}
