//! The Q-Former: a small BERT whose queries look at an encoder's output.

use super::blocks::{layer_norm, repeated, whole};
use crate::Result;
use crate::arch::{Config, Weight};

/// A Q-Former's parameters behind an encoder of width `seen`, whole on every rank (vLLM 0.32.0,
/// `Blip2QFormerModel` in `blip2.py`).
pub(super) fn qformer(path: &str, c: &Config, seen: u64) -> Result<Vec<Weight>> {
    let hidden = c.dim("hidden_size")?;
    let inner = c.dim("intermediate_size")?;
    let layers = c.dim("num_hidden_layers")?;
    // Every so many layers, also the encoder's output is attended to.
    let crossed = layers.div_ceil(c.dim_or("cross_attention_frequency", 2)?.max(1));
    let name = |part: &str| format!("{path}.encoder.layer.0.{part}");
    let attention = |part: &str, seen: u64| {
        [
            whole(name(&format!("{part}.attention.query")), hidden, hidden),
            whole(name(&format!("{part}.attention.key")), seen, hidden).times(2),
            whole(name(&format!("{part}.output.dense")), hidden, hidden),
            layer_norm(&name(&format!("{part}.output.LayerNorm")), hidden),
        ]
    };
    let mut all = vec![layer_norm(&format!("{path}.layernorm"), hidden)];
    all.extend(repeated(layers, attention("attention", hidden)));
    all.extend(repeated(crossed, attention("crossattention", seen)));
    all.extend(repeated(
        layers,
        [
            whole(name("intermediate_query.dense"), hidden, inner),
            whole(name("output_query.dense"), inner, hidden),
            layer_norm(&name("output_query.LayerNorm"), hidden),
        ],
    ));
    Ok(all)
}
