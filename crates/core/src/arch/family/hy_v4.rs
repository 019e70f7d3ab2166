//! HY-V4: DeepSeek-V3.2's attention with gates, sinks and several residual channels.

use super::deepseek::latent;
use super::dense::{Decoder, TWO_NORMS, part};
use super::mla::Mla;
use super::moe::{Moe, after_dense};
use super::text::Text;
use crate::arch::{CacheKind, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// HY-V4 (vLLM 0.32.0, `vllm/models/hy_v4/nvidia`). Layers that `indexer_types` calls `shared` reuse the choice of an
/// earlier layer and hold no indexer.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn hy_v4(t: &Text) -> Result<Decoder> {
    let mla = Mla::read(t)?;
    let hidden = t.hidden()?;
    let moe = Moe::read(t, "mlp")?.f32_router().corrected("expert_bias");
    let shared = moe.width * t.config.dim_or("n_shared_experts", 0)?;
    let moe = moe.shared("mlp.shared_experts", shared);
    let sparse = match t.config.strs("mlp_layer_types")? {
        Some(kinds) => kinds.iter().map(|k| *k != "dense").collect(),
        None => after_dense(t, 1)?,
    };
    let mut decoder = latent(t, &mla, TWO_NORMS, Some(&moe), &sparse)?;
    let shares: Vec<bool> = t
        .config
        .strs("indexer_types")?
        .unwrap_or_default()
        .iter()
        .map(|k| *k == "shared")
        .collect();
    let gate = match t.config.str("gating_type")?.unwrap_or("elementwise") {
        _ if !t.config.flag("gated_mla", true)? => 0,
        "headwise" => mla.heads,
        "elementwise" => mla.heads * mla.value,
        other => {
            return Err(Error::input(format!(
                "{} is {other:?}, expected headwise or elementwise",
                t.config.name("gating_type")
            )));
        }
    };
    let sinks = t.config.flag("learnable_sink", true)?;
    let channels = if t.config.flag("enable_ihc", true)? {
        t.config.dim_or("hc_mult", 4)?
    } else {
        0
    };
    let f32 = Dtype::F32;
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        if shares.get(i).copied().unwrap_or(false) {
            layer
                .caches
                .retain(|c| !matches!(c.kind, CacheKind::Indexer { .. }));
            layer.weights.retain(|w| !w.name.contains(".indexer."));
        }
        if gate > 0 {
            layer.weights.push(Weight::column(
                "self_attn.linear_gate",
                Role::Attention,
                hidden,
                &[gate],
            ));
        }
        if sinks {
            let name = "self_attn.learnable_sink_param";
            layer
                .weights
                .push(Weight::tensor(name, Role::Attention, &[mla.heads], Some(0)).of(f32));
        }
        if channels > 0 {
            // Before attention and before the feed-forward part: logits for reading and writing each channel.
            let mix = 2 * channels;
            let name = |p: &str| format!("hc_attn_layer.hc_pre.{p}");
            let inputs = channels * hidden;
            layer.weights.push(
                Weight::replicated(name("hc_fn"), Role::Norm, inputs, &[mix])
                    .of(f32)
                    .unquantized()
                    .times(2),
            );
            layer.weights.push(
                Weight::tensor(name("hc_base"), Role::Norm, &[mix + 2], None)
                    .of(f32)
                    .times(2),
            );
        }
    }
    if channels > 0 {
        let inputs = channels * hidden;
        let head = Weight::replicated("model.hc_head.hc_head_fn", Role::Norm, inputs, &[channels]);
        let base = Weight::tensor("model.hc_head.hc_head_base", Role::Norm, &[channels + 1], None);
        decoder
            .outside
            .push(part(Place::Last, vec![head.of(f32).unquantized(), base.of(f32)]));
    }
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}
