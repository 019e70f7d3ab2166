//! Llama and the dense models that differ from it in a bias, a norm, a gate or a window.

use super::dense::{Decoder, Dense, FOUR_NORMS, Mlp, Norm, QkNorm, part};
use super::text::{Attend, Text};
use crate::arch::weight::VOCAB_PADDING_ROWS;
use crate::arch::{Op, Place, Role, Weight};
use crate::{Error, Result};

/// The options that Llama's class has (vLLM 0.32.0, `llama.py`): `attention_bias` or `bias` for all four
/// projections, `qkv_bias` for the first three alone, `mlp_bias`.
pub(crate) fn base(t: &Text) -> Result<Dense> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("attention_bias", false)? || t.config.flag("bias", false)?;
    d.attention.o_bias = bias;
    d.attention.qkv_bias = t.config.flag("qkv_bias", bias)?;
    d.mlp.bias = t.config.flag("mlp_bias", false)?;
    Ok(d)
}

/// Llama itself, and classes that vLLM serves with it.
pub(crate) fn llama(t: &Text) -> Result<Decoder> {
    base(t)?.build()
}

/// Step-1: `num_attention_groups` goes before `num_key_value_heads` (vLLM 0.32.0, `step1.py`).
pub(crate) fn step1(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.attention.kv_heads = t.config.dim_or("num_attention_groups", d.attention.kv_heads)?;
    d.build()
}

/// BLIP-2's language model: the wrapper keeps its query tokens beside it.
pub(crate) fn with_query_tokens(t: &Text) -> Result<Decoder> {
    let mut decoder = super::language_model(t)?;
    let former = t.top.sub("qformer_config")?;
    let width = match &former {
        Some(former) => former.dim_or("hidden_size", 768)?,
        None => 768,
    };
    let tokens = t.top.dim_or("num_query_tokens", 32)?;
    let queries = Weight::tensor("query_tokens", Role::Tower, &[1, tokens, width], None);
    decoder.outside.push(part(Place::Every, vec![queries]));
    Ok(decoder)
}

/// MiniCPM-V and MiniCPM-o (vLLM 0.32.0, `minicpmv.py`, `minicpmo.py`): the version tells the language model.
pub(crate) fn minicpm_v(t: &Text) -> Result<Decoder> {
    let audio = t.class == "MiniCPMO";
    let version = match t.top.get("version") {
        None if audio => "2.6".to_owned(),
        None if t.hidden()? == 2304 => "2.0".to_owned(),
        None => "2.5".to_owned(),
        Some(value) => value.to_string().trim_matches('"').to_owned(),
    };
    let class = match version.as_str() {
        "2.0" => "MiniCPMForCausalLM",
        "2.5" | "4" | "4.0" => "LlamaForCausalLM",
        "2.6" => "Qwen2ForCausalLM",
        "4.5" => "Qwen3ForCausalLM",
        other => {
            return Err(crate::Error::unsupported(format!(
                "Currently, MiniCPMV only supports versions 2.0, 2.5, 2.6, 4.0 and 4.5. Got version: {other}"
            )));
        }
    };
    super::decoder(&t.inner(class)?)
}

/// Bee and `RForConditionalGeneration` (vLLM 0.32.0, `bee.py`, `rvl.py`): with the line ends' vector comes a projector
/// that is built outside of the tower, so that `--language-model-only` keeps it.
pub(crate) fn with_projector(t: &Text) -> Result<Decoder> {
    let mut decoder = with_image_newline(t)?;
    let Some(vision) = t.top.sub("vision_config")? else {
        return Ok(decoder);
    };
    let (seen, text) = (vision.dim("hidden_size")?, t.hidden()?);
    let inner = if t.class == "BeeForConditionalGeneration" {
        4 * text
    } else {
        text
    };
    let linear = |name: &str, inputs: u64, outputs: u64| {
        Weight::replicated(name, Role::Tower, inputs, &[outputs]).bias(true)
    };
    decoder.outside.push(part(
        Place::Every,
        vec![
            Weight::norm("multi_modal_projector.pre_norm", seen).times(2),
            linear("multi_modal_projector.linear_1", seen, inner),
            linear("multi_modal_projector.linear_2", inner, text),
        ],
    ));
    Ok(decoder)
}

/// Voxtral Realtime (vLLM 0.32.0, `voxtral_realtime.py`): Voxtral with an embedding of time that holds no parameters.
pub(crate) fn voxtral_realtime(t: &Text) -> Result<Decoder> {
    if let Some(audio) = t.top.sub("audio_config")?
        && audio.flag("is_causal", false)?
    {
        return Err(crate::Error::not_found(format!(
            "{} is true: a causal encoder keeps a cache of its own, which is not described here yet",
            audio.name("is_causal")
        )));
    }
    super::language_model(t)
}

/// Granite-4-Vision's language model (vLLM 0.32.0, `granite4_vision.py`): Granite's decoder whatever class the nested
/// configuration names, and one vector for line ends.
pub(crate) fn granite4_vision(t: &Text) -> Result<Decoder> {
    let decoder = super::decoder(&t.inner("GraniteForCausalLM")?)?;
    newline_beside(t, decoder)
}

/// LLaVA-NeXT's language model: the wrapper keeps one vector for line ends of images beside it.
pub(crate) fn with_image_newline(t: &Text) -> Result<Decoder> {
    newline_beside(t, super::language_model(t)?)
}

fn newline_beside(t: &Text, mut decoder: Decoder) -> Result<Decoder> {
    let newline = Weight::tensor("image_newline", Role::Tower, &[t.hidden()?], None);
    decoder.outside.push(part(Place::Every, vec![newline]));
    Ok(decoder)
}

/// TeleChat2 (vLLM 0.32.0, `telechat2.py`): biases on the output and down projections alone.
pub(crate) fn telechat2(t: &Text) -> Result<Decoder> {
    let mut d = Dense::with_mlp(
        t,
        Mlp::gated(t.first_dim(&["ffn_hidden_size", "intermediate_size"])?),
    )?;
    d.attention.o_bias = true;
    let mlp = d.mlp;
    d.build_with(|_, layer| {
        layer.weights.extend(mlp.weights(d.hidden).into_iter().map(|w| {
            let down = w.name.ends_with("down_proj");
            w.bias(down)
        }));
        Ok(())
    })
}

/// Granite (vLLM 0.32.0, `granite.py`); with `layer_types` every head also has a sink.
pub(crate) fn granite(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    let layered = t.layer_types()?.is_some() || t.model_type()?.ends_with("_swa");
    if t.layer_types()?.is_none() && layered {
        d.attends = t.attends_where(|i| i.is_multiple_of(4))?;
    }
    let sinks = t.config.flag("attention_sinks", layered)?;
    d.build_with(|_, layer| {
        layer.weights.extend(d.mlp.weights(d.hidden));
        if sinks {
            layer.weights.push(Weight::tensor(
                "self_attn.sinks",
                Role::Norm,
                &[d.attention.heads],
                Some(0),
            ));
        }
        Ok(())
    })
}

/// Orion (vLLM 0.32.0, `orion.py`): layer norms with a shift.
pub(crate) fn orion(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// InternLM2 (vLLM 0.32.0, `internlm2.py`), which ignores bias options.
pub(crate) fn plain(t: &Text) -> Result<Decoder> {
    let mut decoder = Dense::llama(t)?.build()?;
    // Exceptions from a quantisation that name an lm_head do not mean this head.
    for weight in decoder.outside.iter_mut().flat_map(|part| &mut part.weights) {
        if weight.name == "lm_head" {
            "output".clone_into(&mut weight.name);
        }
    }
    Ok(decoder)
}

/// EXAONE 4 (vLLM 0.32.0, `exaone4.py`): norms after both parts, norms of queries and keys.
pub(crate) fn exaone4(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.attends = exaone_windows(t)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.build()
}

/// Windows of EXAONE 4 and its mixture of experts: every fourth layer is full, or as `sliding_window_pattern` says.
pub(crate) fn exaone_windows(t: &Text) -> Result<Vec<Attend>> {
    if t.layer_types()?.is_some() {
        return t.attends(None);
    }
    let pattern = match t.config.get("sliding_window_pattern") {
        Some(serde_json::Value::String(letters)) => letters.len() as u64,
        Some(_) => t.config.dim("sliding_window_pattern")?,
        None => 4,
    };
    t.attends(Some(pattern))
}

/// Nemotron (vLLM 0.32.0, `nemotron.py`): no gate, layer norms with a shift.
pub(crate) fn nemotron(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.mlp.gated = false;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// StableLM (vLLM 0.32.0, `stablelm.py`).
pub(crate) fn stablelm(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = t.config.flag("use_qkv_bias", false)?;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.build()
}

/// Cohere and Cohere2 (vLLM 0.32.0, `commandr.py`): one norm a layer, head always tied, and a window that counts
/// the token itself.
pub(crate) fn cohere(t: &Text) -> Result<Dense> {
    let mut d = Dense::llama(t)?;
    d.norms = &["input_layernorm"];
    d.ends.tied = true;
    if t.config.flag("use_qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Split(Norm::Scale);
    }
    if t.model_type()?.starts_with("cohere2") {
        d.attends = match t.layer_types()? {
            Some(_) => t.attends(None)?,
            None => t.attends(Some(t.config.dim_or("sliding_window_pattern", 4)?.max(1)))?,
        };
        for attend in &mut d.attends {
            if let Attend::Sliding(window) = attend {
                *window += 1;
            }
        }
    }
    Ok(d)
}

/// Cohere and Cohere2 without experts.
pub(crate) fn cohere_dense(t: &Text) -> Result<Decoder> {
    cohere(t)?.build()
}

/// Cohere Compass (vLLM 0.32.0, `cohere_compass.py`): Cohere's layers with biases and with windows as they are listed.
/// The wrapper's own `tie_word_embeddings` counts, and has to be true.
pub(crate) fn cohere_compass(t: &Text) -> Result<Decoder> {
    let t = &t.inner(&t.class)?;
    if !t.tied()? {
        return Err(Error::unsupported(format!(
            "{} is false, and vLLM 0.32.0 asserts that it is true",
            t.top.name("tie_word_embeddings")
        ))
        .hint(format!("set {} to true", t.top.name("tie_word_embeddings"))));
    }
    let mut d = Dense::llama(t)?;
    d.norms = &["input_layernorm"];
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.attention.o_bias = d.attention.qkv_bias;
    if t.layer_types()?.is_none() {
        // The class lists full attention for all layers.
        d.attends.fill(Attend::Full);
    }
    d.build()
}

/// GLM-4 (vLLM 0.32.0, `glm4.py`): norms before and after both parts.
pub(crate) fn glm4(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.norms = FOUR_NORMS;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.build()
}

/// ChatGLM (vLLM 0.32.0, `chatglm.py`).
pub(crate) fn chatglm(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::with_mlp(t, Mlp::gated(c.dim("ffn_hidden_size")?))?;
    let linear_bias = c.flag("add_bias_linear", false)?;
    d.attention.path = "self_attention";
    d.attention.head_dim = t.hidden()? / t.heads()?.max(1);
    d.attention.head_dim_v = d.attention.head_dim;
    if !c.flag("multi_query_attention", false)? {
        d.attention.kv_heads = d.attention.heads;
    }
    d.attention.qkv_bias = linear_bias || c.flag("add_qkv_bias", false)?;
    d.attention.o_bias = linear_bias;
    d.mlp.bias = linear_bias;
    d.norm = if c.flag("rmsnorm", true)? {
        Norm::Scale
    } else {
        Norm::ScaleAndShift
    };
    d.ends.vocab = c.dim("padded_vocab_size")?;
    d.ends.final_norm = if c.flag("post_layer_norm", true)? {
        d.norm
    } else {
        Norm::None
    };
    d.layers_path = "transformer.encoder.layers";
    let mut decoder = d.build()?;
    // Ignore lists of quantised checkpoints use the class's own names.
    for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
        for (usual, own) in [
            ("self_attention.qkv_proj", "self_attention.query_key_value"),
            ("self_attention.o_proj", "self_attention.dense"),
            ("mlp.gate_up_proj", "mlp.dense_h_to_4h"),
            ("mlp.down_proj", "mlp.dense_4h_to_h"),
        ] {
            if weight.name == usual {
                own.clone_into(&mut weight.name);
            }
        }
    }
    Ok(decoder)
}

/// HyperCLOVA X (vLLM 0.32.0, `hyperclovax.py`).
pub(crate) fn hyperclovax(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    if t.config.flag("use_post_norm", false)? {
        d.norms = &[
            "input_layernorm",
            "post_attention_layernorm",
            "post_norm1",
            "post_norm2",
        ];
    }
    d.build()
}

/// Apertus (vLLM 0.32.0, `apertus.py`): no gate, two learned numbers in the activation.
pub(crate) fn apertus(t: &Text) -> Result<Decoder> {
    let mut d = base(t)?;
    d.mlp.gated = false;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.norms = &["attention_layernorm", "feedforward_layernorm"];
    d.build_with(|_, layer| {
        layer.weights.extend(d.mlp.weights(d.hidden));
        layer.weights.push(Weight::norm("mlp.act_fn", 2));
        Ok(())
    })
}

/// Muse Glimmer (vLLM 0.32.0, `muse_glimmer.py`): an output gate in attention, every fourth layer full.
pub(crate) fn muse_glimmer(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.norms = FOUR_NORMS;
    if t.layer_types()?.is_none() {
        d.attends = t.attends(Some(4))?;
    }
    let gate = d.attention.heads * d.attention.head_dim;
    d.build_with(|_, layer| {
        layer.weights.extend(d.mlp.weights(d.hidden));
        layer.weights.push(Weight::column(
            "self_attn.output_gate_proj",
            Role::Attention,
            d.hidden,
            &[gate],
        ));
        Ok(())
    })
}

/// PLaMo 3 (vLLM 0.32.0, `plamo3.py`): windows from `interleaved_sliding_window`, else every eighth layer full.
pub(crate) fn plamo3(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.path = "mixer";
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.norms = &[
        "pre_mixer_norm",
        "post_mixer_norm",
        "pre_mlp_norm",
        "post_mlp_norm",
    ];
    d.layers_path = "model.layers.layers";
    d.attends = match interleaved_windows(t)? {
        Some(attends) => attends,
        None => t.attends(Some(t.config.dim_or("sliding_window_pattern", 8)?.max(1)))?,
    };
    let mut decoder = d.build()?;
    // The head's rows are filled up to 16 first, and what that adds is padded as rows of an adapter would be.
    let added = t.vocab()?.next_multiple_of(16) - t.vocab()?;
    for weight in decoder.outside.iter_mut().flat_map(|part| &mut part.weights) {
        if let (Role::Head, Op::Vocab { rows, .. }) = (weight.role, &mut weight.op)
            && added > 0
        {
            *rows = rows.next_multiple_of(VOCAB_PADDING_ROWS) + added;
        }
    }
    Ok(decoder)
}

/// Windows listed in `interleaved_sliding_window`, repeated over the layers; null is full attention.
pub(crate) fn interleaved_windows(t: &Text) -> Result<Option<Vec<Attend>>> {
    let layers = t.layers()?;
    let key = "interleaved_sliding_window";
    let windows: Vec<Option<u64>> = match t.config.get(key) {
        None => return Ok(None),
        Some(serde_json::Value::Array(list)) => list
            .iter()
            .map(|value| match value {
                serde_json::Value::Null => Ok(None),
                _ => value.as_u64().map(Some).ok_or_else(|| {
                    crate::Error::input(format!(
                        "{} holds {value}, expected windows in tokens or null",
                        t.config.name(key)
                    ))
                }),
            })
            .collect::<Result<_>>()?,
        Some(_) => vec![Some(t.config.dim(key)?)],
    };
    if windows.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        windows
            .iter()
            .cycle()
            .zip(0..layers)
            .map(|(window, _)| window.filter(|&w| w > 0).map_or(Attend::Full, Attend::Sliding))
            .collect(),
    ))
}
