//! Decoders of the GPT-2 generation: no gate, layer norms with a shift, learned positions or ALiBi.

use super::dense::{Decoder, Dense, Mlp, Norm, part};
use super::text::Text;
use crate::Result;
use crate::arch::{Place, Role, Weight};

/// What these models share: one inner projection of `width` with biases everywhere.
fn base(t: &Text, width: u64) -> Result<Dense> {
    let mlp = Mlp {
        path: "mlp",
        width,
        gated: false,
        bias: true,
    };
    let mut d = Dense::with_mlp(t, mlp)?;
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.layers_path = "transformer.h";
    Ok(d)
}

/// Four times the width where `n_inner` is missing.
fn inner(t: &Text) -> Result<u64> {
    t.config.dim_or("n_inner", 4 * t.hidden()?)
}

/// GPT-2 (vLLM 0.32.0, `gpt2.py`).
pub(crate) fn gpt2(t: &Text) -> Result<Decoder> {
    let mut d = base(t, inner(t)?)?;
    d.attention.path = "attn";
    d.ends.positions = t.first_dim(&["n_positions", "max_position_embeddings"])?;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.build()
}

/// GPT-J (vLLM 0.32.0, `gpt_j.py`): attention and feed-forward share one norm, the head has a bias.
pub(crate) fn gptj(t: &Text) -> Result<Decoder> {
    let mut d = base(t, inner(t)?)?;
    d.attention.path = "attn";
    d.attention.qkv_bias = false;
    d.attention.o_bias = false;
    d.norms = &["ln_1"];
    d.ends.head_bias = true;
    d.build()
}

/// BLOOM (vLLM 0.32.0, `bloom.py`): a norm over the embedding.
pub(crate) fn bloom(t: &Text) -> Result<Decoder> {
    let mut d = base(t, 4 * t.hidden()?)?;
    d.attention.path = "self_attention";
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    let mut decoder = d.build()?;
    let norm = Norm::ScaleAndShift.weights("transformer.word_embeddings_layernorm", d.hidden);
    decoder
        .outside
        .push(part(Place::First, norm.into_iter().collect()));
    Ok(decoder)
}

/// OPT (vLLM 0.32.0, `opt.py`): two extra position rows, and projections where embedding rows are narrower.
pub(crate) fn opt(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = base(t, c.dim("ffn_dim")?)?;
    let bias = c.flag("enable_bias", true)?;
    let affine = c.flag("layer_norm_elementwise_affine", true)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.mlp.bias = bias;
    d.norm = if affine { Norm::ScaleAndShift } else { Norm::None };
    let final_norm = c.flag("do_layer_norm_before", true)? && !c.flag("_remove_final_layer_norm", false)?;
    d.ends.final_norm = if final_norm { d.norm } else { Norm::None };
    d.ends.positions = c.dim("max_position_embeddings")? + 2;
    d.ends.tied = c.flag("tie_word_embeddings", true)?;
    d.ends.embed_width = c.dim_or("word_embed_proj_dim", d.hidden)?;
    d.layers_path = "model.decoder.layers";
    let mut decoder = d.build()?;
    let narrow = d.ends.embed_width;
    if narrow != d.hidden {
        let into = Weight::replicated("model.decoder.project_in", Role::Embedding, narrow, &[d.hidden]);
        let out = Weight::replicated("model.decoder.project_out", Role::Embedding, d.hidden, &[narrow]);
        decoder.outside.push(part(Place::First, vec![into]));
        decoder.outside.push(part(Place::Last, vec![out]));
    }
    Ok(decoder)
}

/// Falcon (vLLM 0.32.0, `falcon.py`): its attention is built without the cache configuration, so the cache keeps
/// the model's element type and knows no window.
pub(crate) fn falcon(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    // The class of the oldest files (vLLM 0.32.0, `transformers_utils/configs/falcon.py`) knows Falcon-40B by its
    // width.
    let oldest = t.model_type()?.starts_with("RefinedWeb");
    let new = c.flag("new_decoder_architecture", false)? || (oldest && t.hidden()? == 8192);
    let width = c.dim_or("ffn_hidden_size", 4 * t.hidden()?)?;
    let mut d = base(t, width)?;
    let bias = c.flag("bias", false)?;
    d.attention.path = "self_attention";
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.attention.follows_kv_dtype = false;
    d.mlp.bias = bias;
    d.attention.head_dim = t.hidden()? / d.attention.heads.max(1);
    d.attention.head_dim_v = d.attention.head_dim;
    d.attention.kv_heads = if new {
        t.kv_heads()?
    } else if c.flag("multi_query", false)? {
        1
    } else {
        d.attention.heads
    };
    d.attends.fill(super::text::Attend::Full);
    let parallel_norms = c.dim_or("num_ln_in_parallel_attn", if new { 2 } else { 1 })?;
    d.norms = if !c.flag("parallel_attn", true)? {
        &["post_attention_layernorm", "input_layernorm"]
    } else if parallel_norms == 2 {
        &["ln_attn", "ln_mlp"]
    } else {
        &["input_layernorm"]
    };
    d.ends.tied = c.flag("tie_word_embeddings", true)?;
    let mut decoder = d.build()?;
    decoder.kv_heads = Some(d.attention.kv_heads);
    Ok(decoder)
}
