//! Gemma 3n, with several copies of the residual stream, and Gemma 4, both with embeddings for each layer
//! (llama.cpp b11434, `src/models/gemma3n.cpp`, `src/models/gemma4.cpp`).

use crate::engine::llamacpp::graph::attention::{AllInputs, Asked};
use crate::engine::llamacpp::graph::builder::{Builder, F32};
use crate::engine::llamacpp::graph::feed::Act;
use crate::engine::llamacpp::graph::tensor::{Id, Op};

/// Layers of Gemma 3n whose activations are made sparse.
const SPARSE_LAYERS: usize = 10;

/// The layer whose cache a layer without one reads: the last but one with a cache, or the last, which has the full context.
fn cache_of(b: &Builder, layer: usize) -> usize {
    let keeps = b.model.keys.keeps;
    if layer < keeps {
        return layer;
    }
    let last = keeps.saturating_sub(1);
    if b.decoder.slides[layer] {
        last.saturating_sub(1)
    } else {
        last
    }
}

/// Rows of the table of embeddings for each layer.
fn layer_rows(b: &mut Builder) -> Id {
    let tokens = b.batch.tokens;
    let ids = b.integers("i32", tokens);
    let table = b.weight(None, "per_layer_token_embd.weight", [0; 4]);
    b.rows(table, ids)
}

/// Embeddings of the tokens for each layer, mixed with projections of the embedding: one plane a layer.
fn layer_inputs(b: &mut Builder, x: Id, rows: Id) -> Id {
    let (tokens, layers) = (b.batch.tokens, b.decoder.layers as u64);
    let width = b.model.keys.per_layer;
    // Both weights belong to the first layer.
    let projection = b.weight_of_first_layer("per_layer_model_proj.weight");
    let projected = b.graph.product(projection, x);
    let projected = b.each(projected);
    let projected = b.shaped(projected, [width, layers, tokens, 1]);
    let normed = b.each(projected);
    let weight = b.weight_of_first_layer("per_layer_proj_norm.weight");
    let normed = b.both(normed, weight);
    let sum = b.both(normed, rows);
    let sum = b.each(sum);
    let turned = b.graph.exchange(sum);
    b.copy(turned)
}

impl Builder<'_> {
    /// A weight without a layer in its name that lies with the first one.
    fn weight_of_first_layer(&mut self, name: &str) -> Id {
        let last = self.output_layer();
        self.weight_at(self.devices[0], Some(last), name, [0; 4])
    }

    /// One plane of three dimensions.
    fn plane(&mut self, x: Id) -> Id {
        let n = self.graph.ne(x);
        self.part(x, [n[0], n[1], 1, 1])
    }
}

/// Attention of one layer: queries, and keys and values where it has a cache of its own.
fn attention(b: &mut Builder, x: Id, layer: usize, positions: Id, cache: &AllInputs) -> Id {
    let tokens = b.batch.tokens;
    let slides = b.decoder.slides[layer];
    let reads = cache_of(b, layer);
    let (kv, _, _) = b.cache_heads(reads);
    let head = b.size_of(layer, "attn_q_norm.weight", 0);
    let factors = !slides;
    let keeps = layer < b.model.keys.keeps;
    let fused = b.has(layer, "attn_qkv.weight");
    let fused = fused.then(|| b.product(x, layer, "attn_qkv.weight"));
    let heads = b.query_heads(layer, head);
    let rows = |b: &mut Builder, name: &str, heads: u64| match fused {
        Some(all) => {
            let view = b.part(all, [heads.saturating_mul(head), tokens, 1, 1]);
            b.copy(view)
        }
        None => b.product(x, layer, name),
    };
    let q = rows(b, "attn_q.weight", heads);
    let q = b.shaped(q, [head, heads, tokens, 1]);
    let q = b.norm(q, layer, "attn_q_norm.weight", true);
    let q = b.rotated(q, layer, positions, factors);
    let new = keeps.then(|| {
        let k = rows(b, "attn_k.weight", kv);
        let v = if fused.is_some() || b.has(layer, "attn_v.weight") {
            rows(b, "attn_v.weight", kv)
        } else {
            k
        };
        let k = b.shaped(k, [head, kv, tokens, 1]);
        let v = b.shaped(v, [head, kv, tokens, 1]);
        let k = b.norm(k, layer, "attn_k_norm.weight", true);
        let v = b.each(v);
        (b.rotated(k, layer, positions, factors), v)
    });
    let asked = Asked {
        q,
        new,
        layer,
        cache_of: reads,
        latent: false,
    };
    let out = b.attend(asked, &cache.of(slides));
    b.attention_output(out, layer)
}

/// Gemma 4.
pub(super) fn per_layer(b: &mut Builder) {
    let layers = b.decoder.layers;
    let own = (b.model.keys.per_layer > 0).then(|| {
        let rows = layer_rows(b);
        b.graph.expand(rows);
        rows
    });
    let mut x = b.embeddings();
    let positions = b.positions();
    let cache = b.all_inputs();
    let wanted = b.integers("i32", b.batch.outputs);
    let own = own.map(|rows| {
        let (width, tokens) = (b.model.keys.per_layer, b.batch.tokens);
        let rows = b.each(rows);
        let rows = b.shaped(rows, [width, layers as u64, tokens, 1]);
        layer_inputs(b, x, rows)
    });
    for layer in 0..layers {
        let normed = b.norm(x, layer, "attn_norm.weight", true);
        let mut out = attention(b, normed, layer, positions, &cache);
        b.outputs_of(layer, wanted, &mut [&mut out, &mut x]);
        let out = b.norm(out, layer, "post_attention_norm.weight", true);
        let middle = b.both(out, x);
        let normed = b.norm(middle, layer, "ffn_norm.weight", true);
        let mut out = b.feed_forward(normed, layer, "", Act::Gated);
        if b.has(layer, "ffn_gate_inp.weight") {
            out = b.norm(out, layer, "post_ffw_norm_1.weight", true);
            let input = b.norm(middle, layer, "pre_ffw_norm_2.weight", true);
            let routed = b.each(middle);
            let routed = b.each(routed);
            let scale = b.given(layer, "ffn_gate_inp.scale");
            let routed = b.both(routed, scale);
            let logits = b.product(routed, layer, "ffn_gate_inp.weight");
            let router = b.router(Some(logits));
            let chosen = b.experts(input, layer, router);
            let chosen = b.norm(chosen, layer, "post_ffw_norm_2.weight", true);
            out = b.both(out, chosen);
        }
        let out = b.norm(out, layer, "post_ffw_norm.weight", false);
        x = b.both(out, middle);
        if let Some(own) = own {
            let gate = b.product(x, layer, "inp_gate.weight");
            let gate = b.each(gate);
            let mut plane = b.plane(own);
            b.outputs_of(layer, wanted, &mut [&mut plane]);
            let gated = b.both(gate, plane);
            let out = b.product(gated, layer, "proj.weight");
            let out = b.norm(out, layer, "post_norm.weight", true);
            x = b.both(x, out);
        }
        x = b.scaled_by(x, layer, "layer_output_scale.weight");
    }
    b.logits(x, "output_norm.weight");
}

/// The length of each row.
fn magnitude(b: &mut Builder, x: Id) -> Id {
    let squares = b.each(x);
    let sums = b.sum_rows(squares);
    b.each(sums)
}

/// Which of the copies a token uses how much.
fn modalities(b: &mut Builder, x: Id, layer: usize) -> Id {
    let normed = b.norm(x, layer, "altup_router_norm.weight", true);
    let normed = b.each(normed);
    let out = b.product(normed, layer, "altup_router.weight");
    b.each(out)
}

/// Predictions of all copies.
fn predicted(b: &mut Builder, x: Id, layer: usize) -> Id {
    let (tokens, copies) = (b.batch.tokens, b.model.keys.streams);
    let active = b.plane(x);
    let used = modalities(b, active, layer);
    let shares = b.product(used, layer, "altup_predict_coef.weight");
    let shares = b.shaped(shares, [copies, copies, tokens, 1]);
    let turned = b.permuted(x, [1, 2, 0, 3]);
    let turned = b.copy(turned);
    let out = b.graph.product(turned, shares);
    let out = b.graph.exchange(out);
    let out = b.copy(out);
    b.both(out, x)
}

/// Predictions corrected by what the active copy became.
fn corrected(b: &mut Builder, predictions: Id, active: Id, layer: usize) -> Id {
    let (tokens, copies, width) = (b.batch.tokens, b.model.keys.streams, b.decoder.embedding);
    let used = modalities(b, active, layer);
    let predicted = b.plane(predictions);
    let change = b.both(active, predicted);
    let shares = b.product(used, layer, "altup_correct_coef.weight");
    let shares = b.each(shares);
    let shares = b.permuted(shares, [1, 0, 2, 3]);
    let shares = b.copy_as(shares, [1, tokens, copies, 1]);
    let change = b.copy_as(change, [width, tokens, copies, 1]);
    let change = b.both(change, shares);
    b.both(change, predictions)
}

/// Activations but the largest set to 0.
fn sparse(b: &mut Builder, x: Id) -> Id {
    let mean = b.sum_rows(x);
    let apart = b.both(x, mean);
    let squares = b.each(apart);
    let sums = b.sum_rows(squares);
    let scaled = b.each(sums);
    let spread = b.each(scaled);
    let spread = b.each(spread);
    let cut = b.both(mean, spread);
    let out = b.both(x, cut);
    b.each(out)
}

/// A copy or more, made as large as another.
fn as_large_as(b: &mut Builder, x: Id, target: Id) -> Id {
    let own = magnitude(b, x);
    let scaled = b.both(x, target);
    b.both(scaled, own)
}

/// Gemma 3n.
pub(super) fn altup(b: &mut Builder) {
    let (layers, tokens, width) = (b.decoder.layers, b.batch.tokens, b.decoder.embedding);
    let copies = b.model.keys.streams.max(2);
    let x = b.embeddings();
    let positions = b.positions();
    let cache = b.all_inputs();
    let rows = layer_rows(b);
    let rows = b.shaped(rows, [b.model.keys.per_layer, layers as u64, tokens, 1]);
    let rows = b.each(rows);
    b.graph.expand(rows);
    let own = layer_inputs(b, x, rows);
    let last = b.output_layer();
    let target = magnitude(b, x);
    let repeated = b.copy_as(x, [width, tokens, copies - 1, 1]);
    let added = b.product(repeated, last, "altup_proj.weight");
    let added = as_large_as(b, added, target);
    let mut x = b.joined(x, added, 2);
    for layer in 0..layers {
        let predictions = predicted(b, x, layer);
        let active = b.plane(predictions);
        let normed = b.norm(active, layer, "attn_norm.weight", true);
        let low = b.product(normed, layer, "laurel_l.weight");
        let low = b.product(low, layer, "laurel_r.weight");
        let low = b.norm(low, layer, "laurel_post_norm.weight", true);
        let laurel = b.both(low, normed);
        let out = attention(b, normed, layer, positions, &cache);
        let out = b.norm(out, layer, "post_attention_norm.weight", true);
        let out = b.both(out, active);
        let out = b.both(out, laurel);
        let middle = b.each(out);
        let normed = b.norm(middle, layer, "ffn_norm.weight", true);
        let up = b.product(normed, layer, "ffn_up.weight");
        let mut gate = b.product(normed, layer, "ffn_gate.weight");
        if layer < SPARSE_LAYERS {
            gate = sparse(b, gate);
        }
        let gate = b.each(gate);
        let out = b.both(up, gate);
        let out = b.product(out, layer, "ffn_down.weight");
        let out = b.norm(out, layer, "post_ffw_norm.weight", false);
        let out = b.both(out, middle);
        let corrected = corrected(b, predictions, out, layer);
        let first = b.plane(corrected);
        let scale = b.given(layer, "altup_correct_scale.weight");
        let first = b.both(first, scale);
        let first = b.product(first, layer, "inp_gate.weight");
        let first = b.each(first);
        let plane = b.plane(own);
        let first = b.both(first, plane);
        let first = b.product(first, layer, "proj.weight");
        let first = b.norm(first, layer, "post_norm.weight", true);
        let head = b.plane(corrected);
        let rest = b.part(corrected, [width, tokens, copies - 1, 1]);
        let rest = b.both(rest, first);
        x = b.joined(head, rest, 2);
    }
    let active = b.plane(x);
    let target = magnitude(b, active);
    let others = b.part(x, [width, tokens, copies - 1, 1]);
    let out = b.product(others, last, "altup_unembd_proj.weight");
    let out = as_large_as(b, out, target);
    let mut sum = b.plane(x);
    for _ in 1..copies {
        let plane = b.plane(out);
        sum = b
            .graph
            .compute(Op::InPlace, F32, [width, tokens, 1, 1], &[sum, plane]);
    }
    let sum = b.each(sum);
    let wanted = b.integers("i32", b.batch.outputs);
    let sum = b.rows(sum, wanted);
    b.logits(sum, "output_norm.weight");
}
