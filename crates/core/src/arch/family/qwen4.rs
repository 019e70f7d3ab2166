//! Qwen4-Exp: Qwen3-Next's layers between hyper-connections, which widen the residual stream.

use super::delta;
use super::dense::{Decoder, part};
use super::text::Text;
use crate::arch::{Place, Role, Weight};
use crate::{Error, Result};

/// Qwen4-Exp (vLLM 0.32.0, `models/qwen4_exp/nvidia/model.py`), without its sparse indexer and its per-layer
/// n-gram embeddings, which published class defaults leave out.
///
/// # Errors
/// If a size is missing or out of range, or the file has one of these two.
pub(crate) fn qwen4(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let ple = c.array("ple_layer_ids")?.is_some_and(|ids| !ids.is_empty());
    for (here, key) in [
        (c.get("indexer_n_heads").is_some(), "indexer_n_heads"),
        (ple, "ple_layer_ids"),
    ] {
        if here {
            return Err(Error::not_found(format!(
                "{} is set: this part of {} is not described here yet",
                c.name(key),
                t.class
            ))
            .hint("--engine generic with --params-b plans without knowing the layers"));
        }
    }
    let mut decoder = delta::qwen(t)?;
    let hidden = t.hidden()?;
    let count = c.dim("hc_count")?;
    let rank = c.dim("hc_lowrank")?;
    let wide = count * hidden;
    // Mixing into the layer's input and the injection into each branch share a projection, filled up to 16 rows.
    let inject = (rank + count).next_multiple_of(16) - rank;
    let connection = |path: &str| {
        [
            Weight::norm(format!("{path}.hc_norm"), wide),
            Weight::replicated(
                format!("{path}.input_mix_weight_down_block_inject"),
                Role::Norm,
                wide,
                &[rank, inject],
            )
            .unquantized(),
            Weight::replicated(format!("{path}.input_mix_weight_up"), Role::Norm, rank, &[wide])
                .unquantized(),
        ]
    };
    for layer in &mut decoder.layers {
        layer.weights.extend(connection("attn_hyper_connection"));
        layer.weights.extend(connection("mlp_hyper_connection"));
        // The hyper-connections' norms stand for the usual two.
        layer
            .weights
            .retain(|w| w.name != "input_layernorm" && w.name != "post_attention_layernorm");
    }
    for outside in &mut decoder.outside {
        outside.weights.retain(|w| w.name != "model.norm");
    }
    decoder.outside.push(part(
        Place::Last,
        vec![
            Weight::norm("model.hyper_connection_mixer.hc_norm", wide),
            Weight::replicated(
                "model.hyper_connection_mixer.input_mix_weight_down",
                Role::Norm,
                wide,
                &[rank],
            ),
            Weight::replicated(
                "model.hyper_connection_mixer.input_mix_weight_up",
                Role::Norm,
                rank,
                &[wide],
            ),
        ],
    ));
    Ok(decoder)
}
