//! MiMo-V2: value heads narrower than keys, sliding layers with their own heads and sinks.

use super::dense::{Attention, Decoder, Dense};
use super::moe::{Moe, sparse_layers};
use super::text::{Attend, Text};
use crate::arch::{Role, Weight};
use crate::{Error, Result};

/// MiMo-V2-Flash (vLLM 0.32.0, `mimo_v2.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn flash(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.head_dim_v = t.config.dim_or("v_head_dim", d.attention.head_dim)?;
    let head_dim = t.config.dim_or("swa_head_dim", d.attention.head_dim)?;
    let sliding = Attention {
        heads: t.config.dim_or("swa_num_attention_heads", d.attention.heads)?,
        kv_heads: t.config.dim_or("swa_num_key_value_heads", d.attention.kv_heads)?,
        head_dim,
        head_dim_v: t.config.dim_or("swa_v_head_dim", head_dim)?,
        ..d.attention.clone()
    };
    let windowed = t.config.u64s("hybrid_layer_pattern")?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the configuration",
            t.config.name("hybrid_layer_pattern")
        ))
    })?;
    let window = t.first_dim(&["sliding_window_size", "sliding_window"])?;
    let sinks = t.config.flag("add_swa_attention_sink_bias", false)?;
    let moe = Moe::read(t, "mlp")?.corrected("gate.e_score_correction_bias");
    let moe = match t.config.str("moe_router_dtype")?.unwrap_or("float32") {
        "float32" | "fp32" => moe.f32_router(),
        _ => moe,
    };
    let listed = t.config.u64s("moe_layer_freq")?.unwrap_or_default();
    let sparse = sparse_layers(t, |i| {
        usize::try_from(i)
            .ok()
            .and_then(|i| listed.get(i))
            .is_some_and(|&n| n != 0)
    })?;
    let base = d.clone();
    d.build_with(|i, layer| {
        let is_windowed = windowed.get(i).is_some_and(|&n| n == 1);
        let (attention, attend) = if is_windowed {
            (&sliding, Attend::Sliding(window))
        } else {
            (&base.attention, Attend::Full)
        };
        layer.caches = vec![attention.cache(attend)];
        let norms: Vec<Weight> = layer.weights.drain(..).filter(|w| w.role == Role::Norm).collect();
        layer.weights = attention.weights(base.hidden).into();
        layer.weights.extend(norms);
        if is_windowed && sinks {
            let name = "self_attn.attention_sink_bias";
            layer
                .weights
                .push(Weight::tensor(name, Role::Attention, &[attention.heads], Some(0)));
        }
        let sparse = sparse.get(i).copied().unwrap_or(false);
        layer.weights.extend(if sparse {
            moe.weights(base.hidden)
        } else {
            base.mlp.weights(base.hidden)
        });
        Ok(())
    })
}
