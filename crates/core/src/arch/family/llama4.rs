//! Llama-4.

use super::dense::{Decoder, Dense, Mlp};
use super::moe::{Moe, experts, sparse_layers, top_k};
use super::text::{Attend, Text};
use crate::Result;

/// Llama-4's text model (vLLM 0.32.0, `llama4.py`): layers without rotary embedding attend to everything, the
/// others to their chunk; every `interleave_moe_layer_step`th layer has experts.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn llama4(t: &Text) -> Result<Decoder> {
    // The wrapper's word on tying counts, as for all others.
    let t = &if t.class.ends_with("ForConditionalGeneration") {
        t.inner(&t.class)?
    } else {
        t.clone()
    };
    let width = t.intermediate()?;
    let mlp = Mlp {
        path: "feed_forward",
        ..Mlp::gated(t.config.dim_or("intermediate_size_mlp", width)?)
    };
    let mut d = Dense::with_mlp(t, mlp)?;
    let listed = t.config.u64s("no_rope_layers")?.filter(|l| !l.is_empty());
    let every = t.config.dim_or("no_rope_layer_interval", 4)?.max(1);
    let chunk = t.config.dim_or("attention_chunk_size", 0)?;
    d.attends = (0..d.attends.len())
        .map(|i| {
            let rotates = match &listed {
                Some(list) => list.get(i).is_none_or(|&n| n != 0),
                None => !(i as u64 + 1).is_multiple_of(every),
            };
            if rotates && chunk > 0 {
                Attend::Chunked(chunk)
            } else {
                Attend::Full
            }
        })
        .collect();
    let moe = Moe {
        router: "router",
        ..Moe::new("feed_forward", experts(t)?, top_k(t)?, width)
    }
    .shared("feed_forward.shared_expert", width);
    let step = t.config.dim_or("interleave_moe_layer_step", 1)?;
    d.build_moe(
        &moe,
        &sparse_layers(t, |i| step > 0 && (i + 1).is_multiple_of(step))?,
    )
}
