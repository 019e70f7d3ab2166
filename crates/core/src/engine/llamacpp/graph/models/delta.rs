//! Gated delta networks with attention in every nth layer
//! (llama.cpp b11434, `src/models/qwen3next.cpp`, `src/models/qwen35.cpp`, `src/models/qwen35moe.cpp`).

use super::plain::fed;
use crate::engine::llamacpp::graph::attention::{Asked, Inputs};
use crate::engine::llamacpp::graph::builder::{Builder, times};
use crate::engine::llamacpp::graph::tensor::Id;

pub(super) fn run(b: &mut Builder) {
    let layers = b.decoder.layers;
    let mut x = b.embeddings();
    let states = b.states();
    let cache = b.inputs(false);
    let positions = b.positions();
    let wanted = b.integers("i32", b.batch.outputs);
    let repeats = b.model.architecture == "qwen3next";
    for layer in 0..layers {
        let mut residual = x;
        let normed = b.norm(x, layer, "attn_norm.weight", true);
        b.graph.expand(normed);
        let recurrent = b.model.layers[layer].recurrent.is_some();
        let mut out = if recurrent {
            b.delta_layer(normed, layer, &states, repeats)
        } else {
            attention(b, normed, layer, positions, &cache)
        };
        b.outputs_of(layer, wanted, &mut [&mut out, &mut residual]);
        let middle = b.both(out, residual);
        let normed = b.norm(middle, layer, "post_attention_norm.weight", true);
        let out = fed(b, normed, layer);
        x = b.both(out, middle);
    }
    b.logits(x, "output_norm.weight");
}

/// Attention whose result is gated by a part of the query projection.
fn attention(b: &mut Builder, x: Id, layer: usize, positions: Id, cache: &Inputs) -> Id {
    let tokens = b.batch.tokens;
    let (kv, head, values) = b.cache_heads(layer);
    let heads = b.query_heads(layer, values);
    let sizes = [(heads, head.saturating_mul(2)), (kv, head), (kv, values)];
    let [both, k, v] = b.projected_rows(x, layer, sizes);
    let both = b.shaped(both, [head.saturating_mul(2), heads, tokens, 1]);
    let q = b.part(both, [head, heads, tokens, 1]);
    let gate = b.part(both, [head, heads, tokens, 1]);
    let k = b.shaped(k, [head, kv, tokens, 1]);
    let v = b.shaped(v, [values, kv, tokens, 1]);
    let q = b.norm(q, layer, "attn_q_norm.weight", true);
    let k = b.norm(k, layer, "attn_k_norm.weight", true);
    let q = b.rotated(q, layer, positions, false);
    let k = b.rotated(k, layer, positions, false);
    let asked = Asked {
        q,
        new: Some((k, v)),
        layer,
        cache_of: layer,
        latent: false,
    };
    let out = b.attend(asked, cache);
    let gate = b.copy_as(gate, [times(&[head, heads]), tokens, 1, 1]);
    let gate = b.each(gate);
    let out = b.both(out, gate);
    b.attention_output(out, layer)
}
