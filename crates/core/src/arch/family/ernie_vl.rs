//! ERNIE-4.5-VL: experts for text and experts for images side by side in one layer.

use super::dense::{Decoder, Dense, Mlp};
use super::moe::{sparse_layers, top_k};
use super::text::Text;
use crate::arch::{Config, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// The two values of a key, for text and for images.
fn pair(c: &Config, key: &str) -> Result<[u64; 2]> {
    let list = c
        .u64s(key)?
        .ok_or_else(|| Error::input(format!("{} is missing from the configuration", c.name(key))))?;
    match list.as_slice() {
        [text, image, ..] if *text.max(image) <= crate::arch::config::MAX_DIMENSION => Ok([*text, *image]),
        _ => Err(Error::input(format!(
            "{} has {} usable values, expected one for text and one for images",
            c.name(key),
            list.len().min(1)
        ))),
    }
}

/// ERNIE-4.5-VL (vLLM 0.32.0, `ernie45_vl_moe.py`).
///
/// # Errors
/// If a size is missing or out of range, and where the engine demands as many experts for images as for text.
pub(crate) fn ernie_vl(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    let bias = c.flag("use_bias", false)?;
    d.attention.qkv_bias = bias;
    d.mlp.bias = bias;
    let hidden = d.hidden;
    let [experts, for_images] = pair(c, "moe_num_experts")?;
    if experts != for_images {
        return Err(Error::unsupported(format!(
            "moe_num_experts is [{experts}, {for_images}]: ERNIE-4.5-VL needs as many experts for images as for text"
        ))
        .hint(format!("set moe_num_experts to [{experts}, {experts}]")));
    }
    let widths = pair(c, "moe_intermediate_size")?;
    let first = pair(c, "moe_layer_start_index")?;
    let last = match c.get("moe_layer_end_index") {
        Some(_) => pair(c, "moe_layer_end_index")?,
        None => [t.layers()?.saturating_sub(1); 2],
    };
    let every = c.dim_or("moe_layer_interval", 1)?.max(1);
    let top_k = top_k(t)?;
    let mlp = |path, width| {
        Mlp {
            path,
            width,
            gated: true,
            bias,
        }
        .weights(hidden)
    };
    let shared = widths[0] * c.dim_or("moe_num_shared_experts", 0)?;
    let kinds: [(&'static str, &'static str, u64); 2] = [
        ("mlp.text_experts", "mlp.text_experts_gate", widths[0]),
        ("mlp.vision_experts", "mlp.vision_experts_gate", widths[1]),
    ];
    let routed = kinds.map(|(path, gate, width)| {
        vec![
            Weight::replicated(gate, Role::Router, hidden, &[experts]).of(Dtype::F32),
            Weight::experts(path, experts, top_k, hidden, width),
        ]
    });
    let dense = d.mlp.weights(hidden);
    let sparse = sparse_layers(t, |i| {
        experts > 0
            && (i + 1).is_multiple_of(every)
            && i >= first[0].min(first[1])
            && i <= last[0].max(last[1])
    })?;
    d.build_with(|i, layer| {
        if !sparse.get(i).copied().unwrap_or(false) {
            layer.weights.extend(dense.iter().cloned());
            return Ok(());
        }
        let correction = Weight::tensor("mlp.e_score_correction_bias", Role::Router, &[2, experts], None);
        layer.weights.push(correction.of(Dtype::F32));
        if shared > 0 {
            let weights = mlp("mlp.shared_experts", shared).into_iter();
            layer.weights.extend(weights.map(|w| w.role(Role::SharedExpert)));
        }
        for (kind, &(path, _, _)) in kinds.iter().enumerate() {
            if (first[kind]..=last[kind]).contains(&(i as u64)) {
                layer.weights.extend(routed[kind].iter().cloned());
            } else {
                // Outside of its layers, a kind of experts is one dense part.
                layer.weights.extend(mlp(path, d.mlp.width));
            }
        }
        Ok(())
    })
}
