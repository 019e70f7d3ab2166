//! Mamba and short convolutions, with or without attention (llama.cpp b11434, `src/models/{mamba,jamba,falcon-h1,
//! granite-hybrid,nemotron-h,lfm2}.cpp`).

use super::plain::{Common, attention, fed};
use crate::engine::llamacpp::graph::attention::AllInputs;
use crate::engine::llamacpp::graph::builder::Builder;
use crate::engine::llamacpp::graph::recurrent::States;
use crate::engine::llamacpp::graph::tensor::Id;

pub(super) fn run(b: &mut Builder) {
    let layers = b.decoder.layers;
    let x = b.embeddings();
    let states = b.states();
    let attends = b.model.layers.iter().any(|l| l.attention.is_some());
    let positions = b.positions();
    let full = b.inputs(false);
    let window = (attends && b.decoder.windows).then(|| b.inputs(true));
    let common = Common {
        positions,
        cache: AllInputs { full, window },
        temperatures: None,
    };
    let wanted = b.integers("i32", b.batch.outputs);
    let architecture = b.model.architecture.clone();
    let mut x = x;
    match architecture.as_str() {
        "falcon-h1" => {
            for layer in 0..layers {
                x = side_by_side(b, x, layer, &common, &states, wanted);
            }
        }
        "nemotron_h" | "nemotron_h_moe" => {
            // Every layer is one part: recurrent, attention or feed-forward.
            for layer in 0..layers {
                let normed = b.norm(x, layer, "attn_norm.weight", true);
                let of = b.model.layers[layer];
                let mut out = if of.recurrent.is_some() {
                    b.mamba2(normed, layer, &states)
                } else if of.attention.is_some() {
                    attention(b, normed, layer, &common)
                } else {
                    latent_experts(b, normed, layer)
                };
                b.outputs_of(layer, wanted, &mut [&mut out, &mut x]);
                x = b.both(out, x);
            }
        }
        _ => {
            for layer in 0..layers {
                x = mixer_and_feed_forward(b, x, layer, &common, &states, wanted);
            }
        }
    }
    // LFM2's final norm has another name in its files.
    let norm = if architecture.starts_with("lfm2") && b.has(b.output_layer(), "token_embd_norm.weight") {
        "token_embd_norm.weight"
    } else {
        "output_norm.weight"
    };
    b.logits(x, norm);
}

/// A mixer, and a feed-forward part where the architecture has one.
fn mixer_and_feed_forward(
    b: &mut Builder,
    x: Id,
    layer: usize,
    common: &Common,
    states: &States,
    wanted: Id,
) -> Id {
    let architecture = b.model.architecture.as_str();
    let (lfm, jamba) = (architecture.starts_with("lfm2"), architecture == "jamba");
    let first_generation = jamba || architecture == "mamba";
    let alone = architecture.starts_with("mamba");
    let mut residual = x;
    let normed = b.norm(x, layer, "attn_norm.weight", true);
    let recurrent = b.model.layers[layer].recurrent.is_some();
    let mut out = match (recurrent, lfm) {
        (true, true) => b.short_convolution(normed, layer, states),
        (true, false) if first_generation => b.mamba(normed, layer, states),
        (true, false) => b.mamba2(normed, layer, states),
        (false, _) => attention(b, normed, layer, common),
    };
    b.outputs_of(layer, wanted, &mut [&mut out, &mut residual]);
    if b.model.keys.residual_scale {
        out = b.each(out);
    }
    let middle = if lfm || jamba {
        b.both(residual, out)
    } else {
        b.both(out, residual)
    };
    if alone {
        return middle;
    }
    let normed = b.norm(middle, layer, "ffn_norm.weight", true);
    let mut out = fed(b, normed, layer);
    if b.model.keys.residual_scale {
        out = b.each(out);
    }
    if b.decoder.style.onto_residual {
        b.both(middle, out)
    } else {
        b.both(out, middle)
    }
}

/// Attention and a recurrent part of the same input (Falcon-H1).
fn side_by_side(b: &mut Builder, x: Id, layer: usize, common: &Common, states: &States, wanted: Id) -> Id {
    let normed = b.norm(x, layer, "attn_norm.weight", true);
    let attended = attention(b, normed, layer, common);
    let normed = b.norm(x, layer, "attn_norm.weight", true);
    let mixed = b.mamba2(normed, layer, states);
    let sum = b.both(attended, mixed);
    let mut middle = b.both(sum, x);
    b.outputs_of(layer, wanted, &mut [&mut middle]);
    let name = if b.has(layer, "ffn_norm") {
        "ffn_norm"
    } else {
        "ffn_norm.weight"
    };
    let normed = b.norm(middle, layer, name, true);
    let out = fed(b, normed, layer);
    b.both(out, middle)
}

/// Experts that may work in a narrower space (Nemotron 3).
fn latent_experts(b: &mut Builder, x: Id, layer: usize) -> Id {
    if !b.has(layer, "ffn_gate_inp.weight") || !b.has(layer, "ffn_latent_down.weight") {
        return fed(b, x, layer);
    }
    let narrow = b.product(x, layer, "ffn_latent_down.weight");
    let logits = b.product(x, layer, "ffn_gate_inp.weight");
    let router = b.router(Some(logits));
    let out = b.experts(narrow, layer, router);
    let out = b.product(out, layer, "ffn_latent_up.weight");
    let act = b.decoder.style.act;
    let shared = b.feed_forward(x, layer, "_shexp", act);
    b.both(out, shared)
}
