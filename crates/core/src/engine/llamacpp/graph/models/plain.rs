//! Decoders whose layers are attention and feed-forward (llama.cpp b11434, `src/models/llama.cpp` and its likes).

use crate::engine::llamacpp::graph::attention::{AllInputs, Asked};
use crate::engine::llamacpp::graph::builder::Builder;
use crate::engine::llamacpp::graph::decoder::{QueryNorms, Rotates, Shared};
use crate::engine::llamacpp::graph::feed::{Act, Router};
use crate::engine::llamacpp::graph::tensor::{Id, Op};
use crate::engine::llamacpp::keys::Gating;

/// What all layers read.
#[derive(Clone, Copy)]
pub(super) struct Common {
    pub(super) positions: Id,
    pub(super) cache: AllInputs,
    /// Scales of queries by position.
    pub(super) temperatures: Option<Id>,
}

pub(super) fn run(b: &mut Builder) {
    let (style, layers) = (b.decoder.style, b.decoder.layers);
    let mut x = b.embeddings();
    let positions = b.positions();
    let temperatures = (style.rotates == Rotates::SlidingNormed).then(|| b.temperatures());
    let cache = b.all_inputs();
    let wanted = b.integers("i32", b.batch.outputs);
    let common = Common {
        positions,
        cache,
        temperatures,
    };
    for layer in 0..layers {
        let mut residual = x;
        let mut normed = if style.pre_norms {
            b.norm(x, layer, "attn_norm.weight", true)
        } else {
            x
        };
        let mut out = attention(b, normed, layer, &common);
        if style.parallel {
            b.outputs_of(layer, wanted, &mut [&mut out, &mut residual, &mut normed]);
            let fed = b.feed_forward(normed, layer, "", style.act);
            let sum = b.both(fed, residual);
            x = b.both(sum, out);
            continue;
        }
        b.outputs_of(layer, wanted, &mut [&mut out, &mut residual]);
        if style.post_norms {
            out = b.norm(out, layer, "post_attention_norm.weight", true);
        }
        if b.model.keys.residual_scale {
            out = b.each(out);
        }
        let middle = b.both(out, residual);
        let normed = if style.pre_norms {
            b.norm(middle, layer, style.middle_norm, true)
        } else {
            middle
        };
        let mut out = fed(b, normed, layer);
        if style.post_norms {
            out = b.norm(out, layer, "post_ffw_norm.weight", style.post_norm_inside);
        }
        if b.model.keys.residual_scale {
            out = b.each(out);
        }
        x = if style.onto_residual {
            b.both(middle, out)
        } else {
            b.both(out, middle)
        };
    }
    b.logits(x, "output_norm.weight");
}

impl Builder<'_> {
    /// Scales of queries, one a token.
    pub(super) fn temperatures(&mut self) -> Id {
        let tokens = self.batch.tokens;
        self.input(crate::engine::llamacpp::GgmlType::F32, [1, 1, tokens, 1])
    }

    /// How this architecture makes the shares of experts.
    pub(super) fn router(&self, logits: Option<Id>) -> Router {
        let (style, keys) = (self.decoder.style.shares, &self.model.keys);
        Router {
            gating: match keys.gating {
                Gating::Unsaid => style.gating,
                said if style.said => said,
                _ => style.gating,
            },
            normalised: style.normalised.unwrap_or(keys.expert_norm),
            scaled: keys.expert_scale,
            before: style.before,
            logits,
            act: self.decoder.style.act,
        }
    }
}

/// Attention of one layer, with its output projection.
pub(super) fn attention(b: &mut Builder, x: Id, layer: usize, common: &Common) -> Id {
    let style = b.decoder.style;
    let (kv, head, head_v) = b.cache_heads(layer);
    let slides = b.decoder.slides[layer];
    let heads = b.query_heads(layer, head_v);
    let sizes = [(heads, head), (kv, head), (kv, head_v)];
    let tokens = b.batch.tokens;
    let [mut q, mut k, v] = if style.query_norms == QueryNorms::Rows {
        let [q, k, v] = b.projected_rows(x, layer, sizes);
        let q = b.norm(q, layer, "attn_q_norm.weight", true);
        let k = b.norm(k, layer, "attn_k_norm.weight", true);
        let mut i = 0;
        [q, k, v].map(|x| {
            let (heads, head) = sizes[i];
            i += 1;
            b.shaped(x, [head, heads, tokens, 1])
        })
    } else {
        b.projections(x, layer, sizes)
    };
    let norms = match style.query_norms {
        QueryNorms::Heads => true,
        QueryNorms::HeadsIfThere => b.has(layer, "attn_q_norm.weight"),
        _ => false,
    };
    if norms {
        q = b.norm(q, layer, "attn_q_norm.weight", true);
        k = b.norm(k, layer, "attn_k_norm.weight", true);
    }
    let rotates = match style.rotates {
        Rotates::All => true,
        Rotates::Sliding => slides || !b.decoder.windows,
        Rotates::SlidingNormed => !(layer + 1).is_multiple_of(4) || !b.decoder.windows,
        Rotates::Said => b.model.keys.rotates,
        Rotates::Never => false,
    };
    if rotates {
        q = b.rotated(q, layer, common.positions, true);
        k = b.rotated(k, layer, common.positions, true);
    } else if let Some(scales) = common.temperatures {
        q = b.both(q, scales);
    }
    if style.rotates == Rotates::SlidingNormed && rotates && b.decoder.experts.0 != 128 {
        [q, k] = [q, k].map(|x| b.each(x));
    }
    if style.query_norms == QueryNorms::AfterRotation {
        k = b.norm(k, layer, "attn_k_norm.weight", true);
        q = b.norm(q, layer, "attn_q_norm.weight", true);
    }
    if style.query_scale {
        q = b.each(q);
    }
    let asked = Asked {
        q,
        new: Some((k, v)),
        layer,
        cache_of: layer,
        latent: false,
    };
    let out = b.attend(asked, &common.cache.of(slides));
    b.attention_output(out, layer)
}

/// The feed-forward part of one layer: dense, or experts with those that every token uses.
pub(super) fn fed(b: &mut Builder, x: Id, layer: usize) -> Id {
    let style = b.decoder.style;
    let routed = if b.weights.tensors.is_empty() {
        b.decoder.experts.0 > 0
    } else {
        b.has(layer, "ffn_gate_inp.weight")
    };
    if !routed {
        return b.feed_forward(x, layer, "", style.act);
    }
    let router = b.router(None);
    let out = b.experts(x, layer, router);
    if !b.has(layer, "ffn_up_shexp.weight") {
        return out;
    }
    let share = |b: &mut Builder| b.product(x, layer, "ffn_gate_inp_shexp.weight");
    let shared = match style.shared {
        Shared::Plain => b.feed_forward(x, layer, "_shexp", shared_act(style.act)),
        Shared::Gated => {
            let shared = b.feed_forward(x, layer, "_shexp", shared_act(style.act));
            let share = share(b);
            let share = b.each(share);
            b.both(shared, share)
        }
        Shared::GatedInTwo => {
            let raw = share(b);
            let act = b.each(raw);
            let share = b.graph.map(Op::InPlace, &[act, raw]);
            let shared = b.feed_forward(x, layer, "_shexp", shared_act(style.act));
            b.both(shared, share)
        }
    };
    b.both(out, shared)
}

fn shared_act(act: Act) -> Act {
    match act {
        Act::Squared => Act::Squared,
        _ => Act::Gated,
    }
}
