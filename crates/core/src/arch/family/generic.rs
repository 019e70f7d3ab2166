//! Classes that vLLM 0.32.0 has no module of its own for and builds from the Transformers library
//! (`vllm/model_executor/models/transformers`). It replaces linear layers by parallel ones where the class's
//! configuration has a tensor-parallel plan; without a plan every rank holds them whole, while heads of the cache
//! are divided all the same.

use super::dense::{Decoder, Dense, Mlp, Norm, QkNorm, part};
use super::text::{Attend, Text};
use super::{llama, qwen};
use crate::arch::{Op, Place, Role, Split, Weight};
use crate::{Error, Result};

/// Makes every linear layer of a decoder whole on every rank: the class has no tensor-parallel plan.
fn replicate(decoder: &mut Decoder) {
    for layer in &mut decoder.layers {
        layer.weights = layer.weights.drain(..).map(Weight::undivided).collect();
    }
}

/// Makes the feed-forward part whole on every rank: the backend recognises attention and divides it, but the class
/// has no plan for the rest.
fn replicate_mlp(decoder: &mut Decoder) {
    for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
        if let Op::Linear { split, .. } = &mut weight.op
            && weight.name.starts_with("mlp")
        {
            *split = Split::Replicated;
        }
    }
}

/// Llama-like classes: Arcee (no gate), Seed-OSS (separate output bias), Helium, CWM, SmolLM3, Mistral-like.
pub(crate) fn llama_like(t: &Text) -> Result<Decoder> {
    let mut d = llama::base(t)?;
    d.mlp.gated = t.model_type()? != "arcee";
    d.attention.o_bias = match t.model_type()? {
        "seed_oss" => t.config.flag("attention_out_bias", false)?,
        "helium" | "glm" => false,
        _ => d.attention.o_bias,
    };
    match t.model_type()? {
        "cwm" if t.layer_types()?.is_none() => d.attends = t.attends_where(|i| i.is_multiple_of(4))?,
        // The class has these norms whatever `use_qk_norm` says.
        "hunyuan_v1_dense" | "hunyuan_vl_text" => d.attention.qk_norm = QkNorm::Head(Norm::Scale),
        "smollm3" => d.attends = qwen::windows(t)?,
        _ => {}
    }
    let mut decoder = d.build()?;
    if t.model_type()? == "helium" {
        // Its output projection is square whatever the heads' size.
        for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
            if weight.name == "self_attn.o_proj" {
                *weight = Weight::row("self_attn.o_proj", Role::Attention, d.hidden, d.hidden);
            }
        }
    }
    Ok(decoder)
}

/// Jais-2: no gate, biases, layer norms with a shift.
pub(crate) fn jais2(t: &Text) -> Result<Decoder> {
    let mut d = llama::base(t)?;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// OLMo (norms learn nothing), OLMo-2 and OLMo-3 (norms after both parts and over all queries and keys).
pub(crate) fn olmo(t: &Text) -> Result<Decoder> {
    olmo_base(t)?.build()
}

/// What OLMo models share, for their mixture of experts too.
pub(crate) fn olmo_base(t: &Text) -> Result<Dense> {
    let mut d = llama::base(t)?;
    match t.model_type()? {
        "olmo" => {
            d.norm = Norm::None;
            d.ends.final_norm = Norm::None;
        }
        kind => {
            d.norms = &["post_attention_layernorm", "post_feedforward_layernorm"];
            d.attention.qk_norm = QkNorm::Whole(Norm::Scale);
            if kind == "olmo3" && t.layer_types()?.is_none() {
                d.attends = t.attends(Some(4))?;
            }
        }
    }
    Ok(d)
}

/// Starcoder2: no gate, layer norms with a shift, `use_bias` everywhere.
pub(crate) fn starcoder2(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("use_bias", true)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.mlp.bias = bias;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// Phi-1, Phi-1.5 and Phi-2: attention and feed-forward share one norm. The head's bias is dropped.
pub(crate) fn phi(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.mlp.bias = true;
    d.mlp.gated = false;
    d.norms = &["input_layernorm"];
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    if t.config.flag("qk_layernorm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::ScaleAndShift);
    }
    d.build()
}

/// GPT-NeoX.
pub(crate) fn gpt_neox(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", true)?;
    d.attention.path = "attention";
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.mlp.bias = true;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// GPT-BigCode: attention with one key/value head is divided, with many it is not recognised.
pub(crate) fn gpt_bigcode(t: &Text) -> Result<Decoder> {
    let mlp = Mlp {
        path: "mlp",
        width: t.config.dim_or("n_inner", 4 * t.hidden()?)?,
        gated: false,
        bias: true,
    };
    let mut d = Dense::with_mlp(t, mlp)?;
    let multi_query = t.config.flag("multi_query", true)?;
    d.attention.path = "attn";
    d.attention.kv_heads = if multi_query { 1 } else { d.attention.heads };
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.ends.positions = t.first_dim(&["n_positions", "max_position_embeddings"])?;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.layers_path = "transformer.h";
    let mut decoder = d.build()?;
    if multi_query {
        replicate_mlp(&mut decoder);
    } else {
        replicate(&mut decoder);
    }
    decoder.kv_heads = Some(d.attention.kv_heads);
    Ok(decoder)
}

/// BioGPT: no plan, save for keys and values; positions have two extra rows.
pub(crate) fn biogpt(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.mlp.bias = true;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.ends.positions = t.config.dim("max_position_embeddings")? + 2;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    let mut decoder = d.build()?;
    replicate(&mut decoder);
    for part in &mut decoder.outside {
        if part.weights.iter().any(|w| w.name.ends_with("embed_positions")) {
            part.place = Place::Every;
        }
    }
    // The backend fuses keys and values by itself, and divides what it fuses.
    let (inputs, heads) = (d.hidden, &d.attention);
    let (queries, keys) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    for layer in &mut decoder.layers {
        layer.weights.retain(|w| !w.name.ends_with("qkv_proj"));
        layer
            .weights
            .push(Weight::replicated("self_attn.q_proj", Role::Attention, inputs, &[queries]).bias(true));
        layer.weights.push(
            Weight::column("self_attn.merged_kv_proj", Role::Attention, inputs, &[keys, keys]).bias(true),
        );
    }
    Ok(decoder)
}

/// CTRL: no plan, and the head's bias is dropped.
pub(crate) fn ctrl(t: &Text) -> Result<Decoder> {
    let mlp = Mlp {
        path: "ffn",
        width: t.config.dim("dff")?,
        gated: false,
        bias: true,
    };
    let mut d = Dense::with_mlp(t, mlp)?;
    d.attention.path = "multi_head_attention";
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.layers_path = "model.h";
    let mut decoder = d.build()?;
    replicate(&mut decoder);
    Ok(decoder)
}

/// Persimmon: no plan; norms of queries and keys learn a shift too.
pub(crate) fn persimmon(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.mlp.bias = true;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    if t.config.flag("qk_layernorm", true)? {
        d.attention.qk_norm = QkNorm::Head(Norm::ScaleAndShift);
    }
    let mut decoder = d.build()?;
    replicate(&mut decoder);
    Ok(decoder)
}

/// Moshi's decoder and Kyutai's speech-to-text: no plan, one row of the embedding beyond the vocabulary, and in the
/// latter the audio codebooks' rows too.
pub(crate) fn moshi(t: &Text) -> Result<Decoder> {
    let width = t.config.dim("ffn_dim")?;
    let mut d = Dense::with_mlp(t, Mlp::gated(width / 2))?;
    let codes = match t.model_type()? {
        "kyutai_speech_to_text" => t.config.dim("num_codebooks")? * t.config.dim("codebook_vocab_size")?,
        _ => 0,
    };
    let embedded = d.ends.vocab + codes + 1;
    d.ends.tied &= codes == 0;
    let mut decoder = d.build()?;
    for part in &mut decoder.outside {
        for weight in &mut part.weights {
            if let (Role::Embedding, Op::Vocab { rows, .. }) = (weight.role, &mut weight.op) {
                *rows = embedded;
            }
        }
    }
    replicate(&mut decoder);
    Ok(decoder)
}

/// BitNet: norms inside of both parts; its plan leaves the down projection whole, and the other two where the ranks do not
/// divide them.
pub(crate) fn bitnet(t: &Text) -> Result<Decoder> {
    let d = llama::base(t)?;
    let (hidden, width) = (d.hidden, d.mlp.width);
    d.build_with(|_, layer| {
        layer.weights.extend(
            d.mlp
                .weights(hidden)
                .into_iter()
                .filter(|w| !w.name.ends_with("down_proj"))
                .map(|mut w| {
                    w.whole_unless_divides = Some(width);
                    w
                }),
        );
        layer
            .weights
            .push(Weight::replicated("mlp.down_proj", Role::Mlp, width, &[hidden]).bias(d.mlp.bias));
        layer
            .weights
            .push(Weight::norm("self_attn.attn_sub_norm", hidden));
        layer.weights.push(Weight::norm("mlp.ffn_sub_norm", width));
        Ok(())
    })
}

/// Doge: a learned decay a key/value head, gates of the residual stream.
pub(crate) fn doge(t: &Text) -> Result<Decoder> {
    if t.config.flag("is_moe", false)? {
        return Err(Error::input(format!(
            "{} is true, but Doge is read without experts only",
            t.config.name("is_moe")
        )));
    }
    let mut d = llama::base(t)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let kv_heads = d.attention.kv_heads;
    let kv_width = kv_heads * d.attention.head_dim;
    let bias = t.config.flag("attention_bias", false)?;
    d.build_with(|_, layer| {
        layer.weights.extend(d.mlp.weights(d.hidden));
        layer.weights.push(Weight::norm("input_residual", d.hidden));
        layer
            .weights
            .push(Weight::norm("post_attention_residual", d.hidden));
        layer
            .weights
            .push(Weight::tensor("self_attn.A", Role::Attention, &[kv_heads], None));
        layer
            .weights
            .push(Weight::row("self_attn.dt_proj", Role::Attention, kv_width, kv_heads).bias(bias));
        Ok(())
    })
}

/// NanoChat: no gate, and norms learn nothing.
pub(crate) fn nanochat(t: &Text) -> Result<Decoder> {
    let mut d = llama::base(t)?;
    d.mlp.gated = false;
    d.norm = Norm::None;
    d.ends.final_norm = Norm::None;
    d.build()
}

/// `VaultGemma`: Gemma-2's windows with norms before each part alone.
pub(crate) fn vaultgemma(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.norms = &["input_layernorm", "pre_feedforward_layernorm"];
    if t.layer_types()?.is_none() {
        d.attends = t.attends(Some(2))?;
    }
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.build()
}

/// ModernBERT's decoder: every third layer full, the others a window of half of `local_attention`.
pub(crate) fn modernbert(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    let window = c.dim("local_attention")? / 2;
    let every = c.dim_or("global_attn_every_n_layers", 3)?.max(1);
    // A window of null or 0 in the file switches windows off, though the class would make one.
    let off = c.has("sliding_window") && t.window()?.is_none();
    d.attends = match t.layer_types()? {
        _ if off => vec![Attend::Full; d.attends.len()],
        Some(types) => types
            .iter()
            .map(|kind| {
                if *kind == "sliding_attention" {
                    Attend::Sliding(window)
                } else {
                    Attend::Full
                }
            })
            .collect(),
        None => (0..t.layers()?)
            .map(|i| {
                if i.is_multiple_of(every) {
                    Attend::Full
                } else {
                    Attend::Sliding(window)
                }
            })
            .collect(),
    };
    let bias = c.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.mlp.bias = c.flag("mlp_bias", false)?;
    d.norm = if c.flag("norm_bias", false)? {
        Norm::ScaleAndShift
    } else {
        Norm::Scale
    };
    d.norms = &["mlp_norm"];
    d.ends.final_norm = d.norm;
    let mut decoder = d.build()?;
    // The first layer takes the embedding's norm instead of one of its own.
    for layer in decoder.layers.iter_mut().skip(1) {
        layer.weights.extend(d.norm.weights("attn_norm", d.hidden));
    }
    let norm = d.norm.weights("model.embeddings.norm", d.hidden);
    decoder
        .outside
        .push(part(Place::First, norm.into_iter().collect()));
    replicate_mlp(&mut decoder);
    Ok(decoder)
}
