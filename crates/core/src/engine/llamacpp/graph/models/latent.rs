//! Latent attention (llama.cpp b11434, `src/models/deepseek2.cpp`): files whose products are absorbed keep one latent head,
//! older ones keep keys and values of every head.

use super::plain::fed;
use crate::engine::llamacpp::graph::attention::Asked;
use crate::engine::llamacpp::graph::builder::Builder;
use crate::engine::llamacpp::graph::tensor::Id;

pub(super) fn run(b: &mut Builder) {
    let layers = b.decoder.layers;
    let mut x = b.embeddings();
    let temperatures = b.model.keys.temperature.then(|| b.temperatures());
    let positions = b.positions();
    let cache = b.inputs(false);
    let wanted = b.integers("i32", b.batch.outputs);
    for layer in 0..layers {
        let mut residual = x;
        let normed = b.norm(x, layer, "attn_norm.weight", true);
        let asked = projected(b, normed, layer, positions, temperatures);
        let out = b.attend(asked, &cache);
        let mut out = b.attention_output(out, layer);
        b.outputs_of(layer, wanted, &mut [&mut out, &mut residual]);
        let middle = b.both(out, residual);
        let normed = b.norm(middle, layer, "ffn_norm.weight", true);
        let out = fed(b, normed, layer);
        x = b.both(out, middle);
    }
    b.logits(x, "output_norm.weight");
}

fn projected(b: &mut Builder, x: Id, layer: usize, positions: Id, temperatures: Option<Id>) -> Asked {
    let tokens = b.batch.tokens;
    let heads = b.decoder.heads;
    let latent = b.size_of(layer, "attn_kv_a_norm.weight", 0);
    let rope = b.size_of(layer, "attn_kv_a_mqa.weight", 1).saturating_sub(latent);
    let q = if b.has(layer, "attn_q.weight") {
        b.product(x, layer, "attn_q.weight")
    } else {
        let low = b.product(x, layer, "attn_q_a.weight");
        let low = b.norm(low, layer, "attn_q_a_norm.weight", true);
        b.product(low, layer, "attn_q_b.weight")
    };
    let head = b.graph.ne(q)[0] / heads.max(1);
    let nope = head.saturating_sub(rope);
    let q = b.shaped(q, [head, heads, tokens, 1]);
    let both = b.product(x, layer, "attn_kv_a_mqa.weight");
    let row = b.graph.tensors[both].nb[1];
    let compressed = b.part(both, [latent, tokens, 1, 1]);
    let all = row.saturating_mul(tokens);
    let rotated = b.graph.view(both, [rope, 1, tokens, 1], Some([4, row, row, all]));
    let rotated = b.rotated(rotated, layer, positions, false);
    let compressed = b.norm(compressed, layer, "attn_kv_a_norm.weight", true);
    let scaled = |b: &mut Builder, q: Id| temperatures.map_or(q, |t| b.both(q, t));
    let asked = |q: Id, k: Id, v: Id, latent: bool| Asked {
        q,
        new: Some((k, v)),
        layer,
        cache_of: layer,
        latent,
    };
    if b.model.mla {
        let plain = b.part(q, [nope, heads, tokens, 1]);
        let turned = b.part(q, [rope, heads, tokens, 1]);
        let turned = b.rotated(turned, layer, positions, false);
        let plain = b.graph.exchange(plain);
        let absorb = b.given(layer, "attn_k_b.weight");
        let absorbed = b.graph.product(absorb, plain);
        let absorbed = b.graph.exchange(absorbed);
        let q = b.joined(absorbed, turned, 0);
        let compressed = b.shaped(compressed, [latent, 1, tokens, 1]);
        let k = b.joined(compressed, rotated, 0);
        let q = scaled(b, q);
        return asked(q, k, compressed, true);
    }
    let unfolded = b.product(compressed, layer, "attn_kv_b.weight");
    let each = b.graph.ne(unfolded)[0] / heads.max(1);
    let row = b.graph.tensors[unfolded].nb[1];
    let steps = Some([4, each.saturating_mul(4), row, row.saturating_mul(tokens)]);
    let keys = b.graph.view(unfolded, [nope, heads, tokens, 1], steps);
    let values = b
        .graph
        .view(unfolded, [each.saturating_sub(nope), heads, tokens, 1], steps);
    let values = b.copy(values);
    let q = b.rotated(q, layer, positions, false);
    let repeated = b.copy_as(rotated, [rope, heads, tokens, 1]);
    let k = b.joined(keys, repeated, 0);
    let q = scaled(b, q);
    asked(q, k, values, false)
}
