//! Dense Qwen models.

use super::dense::{Decoder, Dense, Norm, QkNorm};
use super::text::{Attend, Text};
use crate::{Error, Result};

/// Windows of a configuration of the Qwen2 class: it drops the window unless `use_sliding_window` is true, and the
/// layers from `max_window_layers` on have it (transformers 5.19.0, `configuration_qwen2.py`).
///
/// # Errors
/// If the list of layers is wrong.
pub(crate) fn windows(t: &Text) -> Result<Vec<Attend>> {
    let layers = t.layers()?;
    if matches!(
        t.model_type()?,
        "qwen3_omni_moe_text" | "qwen3_vl_moe_text" | "qwen3_vl_text"
    ) {
        // These classes keep the window whatever `use_sliding_window` says.
        return Ok(vec![t.attend_of_all()?; usize::try_from(layers).unwrap_or(0)]);
    }
    let window = t
        .window()?
        .filter(|_| matches!(t.config.bool("use_sliding_window"), Ok(Some(true))));
    t.config.bool("use_sliding_window")?;
    let Some(window) = window else {
        return Ok(vec![Attend::Full; usize::try_from(layers).unwrap_or(0)]);
    };
    if let Some(types) = t.layer_types()? {
        return Ok(types
            .iter()
            .zip(0..layers)
            .map(|(kind, _)| match *kind {
                "sliding_attention" => Attend::Sliding(window),
                _ => Attend::Full,
            })
            .collect());
    }
    let first = t.config.dim_or("max_window_layers", layers)?;
    Ok((0..layers)
        .map(|i| {
            if i >= first {
                Attend::Sliding(window)
            } else {
                Attend::Full
            }
        })
        .collect())
}

/// Qwen2 (vLLM 0.32.0, `qwen2.py`), which takes one window for all layers or none.
///
/// # Errors
/// If a size is missing or out of range, or some layers have a window and others not.
pub(crate) fn qwen2(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = windows(t)?;
    let first = t.config.dim_or("max_window_layers", 0)?;
    let layers = t.layers()?;
    if t.config.flag("use_sliding_window", false)? && t.window()?.is_some() && first > 0 && first < layers {
        return Err(Error::unsupported(format!(
            "Sliding window for some but all layers is not supported. This model uses sliding window but \
             `max_window_layers` = {first} is less than `num_hidden_layers` = {layers}"
        ))
        .hint(format!(
            "set use_sliding_window to false, or max_window_layers to {layers}"
        )));
    }
    d.attention.qkv_bias = true;
    // Bagel's language model.
    if t.config.flag("qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    }
    let mut decoder = d.build()?;
    // MiMo shares the class and has prediction modules.
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

/// Qwen3 (vLLM 0.32.0, `qwen3.py`): norms of queries and keys, biases only if `attention_bias`.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn qwen3(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = windows(t)?;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.build()
}
