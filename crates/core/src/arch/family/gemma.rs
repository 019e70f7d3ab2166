//! Gemma.

use super::dense::{Attention, Decoder, Dense, FOUR_NORMS, Mlp, Norm, QkNorm, part};
use super::text::{Attend, Text};
use crate::arch::{Place, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

fn base(t: &Text) -> Result<Dense> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.norms = FOUR_NORMS;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    Ok(d)
}

/// Gemma (vLLM 0.32.0, `gemma.py`).
pub(crate) fn gemma1(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.build()
}

/// Gemma 2 (vLLM 0.32.0, `gemma2.py`): every other layer has a window.
pub(crate) fn gemma2(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    if t.layer_types()?.is_none() {
        d.attends = t.attends(Some(2))?;
    }
    d.build()
}

/// Gemma 3 and RNJ-1 (vLLM 0.32.0, `gemma3.py`): norms of queries and keys, every sixth layer full.
pub(crate) fn gemma3(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    if t.layer_types()?.is_none() {
        d.attends = t.attends(Some(t.config.dim_or("sliding_window_pattern", 6)?.max(1)))?;
    }
    d.build()
}

/// Gemma 3n (vLLM 0.32.0, `gemma3n.py`): alternating updates, a low-rank branch, per-layer inputs, and last
/// layers that use an earlier layer's cache.
pub(crate) fn gemma3n(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let layers = t.layers()?;
    let widths = match c.get("intermediate_size") {
        Some(serde_json::Value::Array(_)) => c.u64s("intermediate_size")?.unwrap_or_default(),
        _ => vec![t.intermediate()?],
    };
    let first = widths
        .first()
        .copied()
        .ok_or_else(|| Error::input(format!("{} is an empty list", c.name("intermediate_size"))))?;
    let mut d = Dense::with_mlp(t, Mlp::gated(first))?;
    d.norms = FOUR_NORMS;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.attention.qkv_bias = c.flag("attention_bias", false)?;
    d.attention.o_bias = d.attention.qkv_bias;
    d.ends.tied = c.flag("tie_word_embeddings", true)?;
    if t.layer_types()?.is_none() {
        d.attends = t.attends(Some(5))?;
    }
    let hidden = d.hidden;
    let inputs = c.dim("altup_num_inputs")?;
    if inputs > 64 {
        return Err(Error::input(format!(
            "{} is {inputs}, expected at most 64",
            c.name("altup_num_inputs")
        )));
    }
    let rank = c.dim("laurel_rank")?;
    let per_layer = c.dim("hidden_size_per_layer_input")?;
    let shared = c.dim_or("num_kv_shared_layers", 0)?;
    let mut decoder = d.build_with(|i, layer| {
        let mlp = Mlp::gated(*widths.get(i).unwrap_or(&first));
        if i as u64 + shared >= layers {
            layer.caches.clear();
            share(&mut layer.weights, &d.attention, hidden);
        }
        layer.weights.extend(mlp.weights(hidden));
        let whole = |name: &str, inputs, outputs| Weight::replicated(name, Role::Mlp, inputs, &[outputs]);
        layer.weights.extend([
            Weight::norm("altup.correct_output_scale", hidden).of(Dtype::F32),
            whole("altup.correction_coefs", inputs, inputs),
            whole("altup.prediction_coefs", inputs, inputs * inputs),
            whole("altup.modality_router", hidden, inputs),
            Weight::norm("altup.router_norm", hidden),
            Weight::column("laurel.linear_left", Role::Mlp, hidden, &[rank]),
            Weight::row("laurel.linear_right", Role::Mlp, rank, hidden),
            Weight::norm("laurel.post_laurel_norm", hidden),
            whole("per_layer_input_gate", hidden, per_layer),
            whole("per_layer_projection", per_layer, hidden),
            Weight::norm("post_per_layer_input_norm", hidden),
        ]);
        Ok(())
    })?;
    let wide = layers * per_layer;
    let square = |name: &str| Weight::column(name, Role::Embedding, hidden, &[hidden]).times(inputs - 1);
    let rows = c.dim_or("vocab_size_per_layer_input", d.ends.vocab)?;
    decoder.outside.push(part(
        Place::Every,
        vec![
            square("model.altup_unembed_projections"),
            square("model.self_decoder.altup_projections"),
            Weight::vocab(
                "model.self_decoder.embed_tokens_per_layer",
                Role::Embedding,
                rows,
                wide,
            ),
            Weight::column(
                "model.self_decoder.per_layer_model_projection",
                Role::Embedding,
                hidden,
                &[wide],
            ),
            Weight::norm("model.self_decoder.per_layer_projection_norm", per_layer),
        ],
    ));
    Ok(decoder)
}

/// Gemma 4 (vLLM 0.32.0, `gemma4.py`): full layers with their own heads, per-layer inputs, shared caches, experts.
pub(crate) fn gemma4(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = base(t)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let layers = t.layers()?;
    d.attends = gemma4_windows(t)?;
    let shapes = per_layer_attention(t, &d)?;
    let hidden = d.hidden;
    let per_layer = c.dim_or("hidden_size_per_layer_input", 0)?;
    let shared = c.dim_or("num_kv_shared_layers", 0)?;
    let double = c.flag("use_double_wide_mlp", false)?;
    let experts = gemma4_experts(t, hidden)?;
    let mut decoder = d.build_with(|_, _| Ok(()))?;
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        let attention = shapes.get(i).unwrap_or(&d.attention);
        let attend = d.attends.get(i).copied().unwrap_or(Attend::Full);
        let sharing = shared > 0 && i as u64 + shared >= layers;
        let mut weights = attention.weights(hidden);
        if sharing {
            share(&mut weights, attention, hidden);
        } else {
            layer.caches = vec![attention.cache(attend)];
        }
        let width = d.mlp.width * if double && sharing { 2 } else { 1 };
        weights.extend(Mlp::gated(width).weights(hidden));
        weights.extend(FOUR_NORMS.iter().map(|name| Weight::norm(*name, hidden)));
        weights.extend(experts.iter().cloned());
        if per_layer > 0 {
            weights.push(Weight::replicated(
                "per_layer_input_gate",
                Role::Mlp,
                hidden,
                &[per_layer],
            ));
            weights.push(Weight::replicated(
                "per_layer_projection",
                Role::Mlp,
                per_layer,
                &[hidden],
            ));
            weights.push(Weight::norm("post_per_layer_input_norm", hidden));
        }
        if sharing {
            layer.caches.clear();
        }
        layer.weights = weights.into();
    }
    if per_layer > 0 {
        let wide = layers * per_layer;
        let rows = c.dim_or("vocab_size_per_layer_input", d.ends.vocab)?;
        decoder.outside.push(part(
            Place::Every,
            vec![
                Weight::vocab("model.embed_tokens_per_layer", Role::Embedding, rows, wide),
                Weight::column(
                    "model.per_layer_model_projection",
                    Role::Embedding,
                    hidden,
                    &[wide],
                ),
                Weight::norm("model.per_layer_projection_norm", per_layer),
            ],
        ));
    }
    Ok(decoder)
}

/// Leaves the query projection alone in a layer that uses an earlier layer's keys and values.
fn share(weights: &mut Vec<Weight>, attention: &Attention, hidden: u64) {
    weights.retain(|w| !w.name.ends_with("qkv_proj") && !w.name.ends_with("k_norm"));
    let queries = [attention.heads * attention.head_dim];
    let q_proj = Weight::column("self_attn.q_proj", Role::Attention, hidden, &queries);
    weights.push(q_proj.bias(attention.qkv_bias));
}

/// Every sixth layer full, and the last one always (transformers 5.19.0, `configuration_gemma4.py`).
pub(crate) fn gemma4_windows(t: &Text) -> Result<Vec<Attend>> {
    let mut attends = match t.layer_types()? {
        Some(_) => t.attends(None)?,
        None => t.attends(Some(6))?,
    };
    if let Some(last) = attends.last_mut() {
        *last = Attend::Full;
    }
    Ok(attends)
}

/// Heads of each layer: `per_layer_config` where the file has it, else full layers have `global_head_dim` (512)
/// and, where keys are values, `num_global_key_value_heads`.
pub(crate) fn per_layer_attention(t: &Text, d: &Dense) -> Result<Vec<Attention>> {
    let c = &t.config;
    if let Some(listed) = c.sub("per_layer_config")? {
        let mut shapes = vec![d.attention.clone(); d.attends.len()];
        for key in listed.map().keys() {
            let shape = key
                .parse::<usize>()
                .ok()
                .and_then(|i| shapes.get_mut(i))
                .ok_or_else(|| {
                    Error::input(format!(
                        "{} has an entry {key:?}, expected the number of a layer",
                        c.name("per_layer_config")
                    ))
                })?;
            if let Some(entry) = listed.sub(key)? {
                shape.head_dim = entry.dim_or("head_dim", shape.head_dim)?;
                shape.head_dim_v = shape.head_dim;
                shape.kv_heads = entry.dim_or("num_key_value_heads", shape.kv_heads)?;
            }
        }
        return Ok(shapes);
    }
    let head_dim = c.dim_or("global_head_dim", 512)?;
    let kv_heads = if c.flag("attention_k_eq_v", true)? {
        c.dim_or("num_global_key_value_heads", d.attention.kv_heads)?
    } else {
        d.attention.kv_heads
    };
    Ok(d.attends
        .iter()
        .map(|attend| match attend {
            Attend::Full => Attention {
                head_dim,
                head_dim_v: head_dim,
                kv_heads,
                ..d.attention.clone()
            },
            _ => d.attention.clone(),
        })
        .collect())
}

/// The experts beside the dense feed-forward part, with their router and norms.
fn gemma4_experts(t: &Text, hidden: u64) -> Result<Vec<Weight>> {
    let c = &t.config;
    let experts = c.dim_or("num_experts", 0)?;
    if experts == 0 {
        return Ok(Vec::new());
    }
    let width = t.first_dim(&["moe_intermediate_size", "expert_intermediate_size"])?;
    let mut weights = vec![
        Weight::norm("router.scale", hidden),
        Weight::norm("router.per_expert_scale", experts),
        Weight::replicated("router.proj", Role::Router, hidden, &[experts]).unquantized(),
        Weight::experts("experts", experts, c.dim("top_k_experts")?, hidden, width),
    ];
    for name in [
        "post_feedforward_layernorm_1",
        "post_feedforward_layernorm_2",
        "pre_feedforward_layernorm_2",
    ] {
        weights.push(Weight::norm(name, hidden));
    }
    Ok(weights)
}

/// Gemma-4 Unified with images (vLLM 0.32.0, `gemma4_unified.py`): Gemma-4's decoder; the class insists on images.
pub(crate) fn gemma4_unified_seeing(t: &Text) -> Result<Decoder> {
    if t.top.sub("vision_config")?.is_none() {
        return Err(Error::unsupported(
            "Gemma4 Unified requires a vision configuration",
        ));
    }
    super::decoder(&t.inner("Gemma4ForCausalLM")?)
}

/// `Gemma4UnifiedForCausalLM`, which the generic backend builds: Gemma 4's heads without per-layer inputs.
pub(crate) fn gemma4_unified(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.attends = gemma4_windows(t)?;
    let shapes = per_layer_attention(t, &d)?;
    let mut decoder = d.build()?;
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        let global = Dense {
            attention: shapes.get(i).unwrap_or(&d.attention).clone(),
            ..d.clone()
        };
        *layer = global.layer(i);
        layer.weights.extend(global.mlp.weights(global.hidden));
    }
    Ok(decoder)
}

/// `DiffusionGemma` (vLLM 0.32.0, `diffusion_gemma.py`): Gemma-4 whose keys are its values in full layers, and a gated
/// feed-forward part, whole on every rank, for the embeddings of the step before.
pub(crate) fn diffusion_gemma(t: &Text) -> Result<Decoder> {
    let mut inner = t.clone();
    let mut map = inner.config.map().clone();
    map.insert("attention_k_eq_v".to_owned(), serde_json::Value::from(true));
    inner.config = inner.config.with_map(map);
    let mut decoder = gemma4(&inner)?;
    let hidden = t.hidden()?;
    let width = match t.top.dim_or("self_conditioning_size", 0)? {
        0 => t.intermediate()?,
        n => n,
    };
    let whole = |name: &str, inputs, outputs| {
        Weight::replicated(format!("self_conditioning.{name}"), Role::Mlp, inputs, &[outputs]).unquantized()
    };
    decoder.outside.push(part(
        Place::Every,
        vec![
            Weight::norm("self_conditioning.pre_norm", hidden),
            whole("gate_proj", hidden, width),
            whole("up_proj", hidden, width),
            whole("down_proj", width, hidden),
        ],
    ));
    Ok(decoder)
}
