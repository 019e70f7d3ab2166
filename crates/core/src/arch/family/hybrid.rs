//! Models that mix attention with Mamba or convolution layers.

use super::dense::{Attention, Decoder, Ends, Mlp, Norm, QkNorm};
use super::mamba::{Mamba1, Mamba2, dt_rank, expanded, short_conv};
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Layer, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Adds the parts outside of the layers.
fn finish(t: &Text, layers: Vec<Layer>, tied: bool) -> Result<Decoder> {
    let mut ends = Ends::read(t)?;
    ends.tied = tied;
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: ends.outside(t.hidden()?),
        ..Decoder::default()
    })
}

/// What a layer is, in the spellings that `layer_types` and `layers_block_type` use.
fn is_attention(kind: &str) -> bool {
    matches!(kind, "attention" | "full_attention" | "sliding_attention")
}

/// The kinds of all layers under the first of `keys` that is present.
fn kinds<'a>(t: &'a Text, keys: &[&str]) -> Result<Option<Vec<&'a str>>> {
    for key in keys {
        if let Some(list) = t.config.strs(key)? {
            return Ok(Some(list));
        }
    }
    Ok(None)
}

fn check_length(t: &Text, key: &str, have: usize) -> Result<()> {
    let layers = t.layers()?;
    if (have as u64) < layers {
        return Err(Error::input(format!(
            "{} names {have} layers, but the model has {layers}",
            t.config.name(key)
        )));
    }
    Ok(())
}

/// Jamba (vLLM 0.32.0, `jamba.py`): Mamba-1 with attention and experts in periods.
pub(crate) fn jamba(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.path = "";
    attention.head_dim = hidden / attention.heads;
    attention.head_dim_v = attention.head_dim;
    let mixer = Mamba1 {
        path: "mamba",
        inner: expanded(t, "mamba_expand")?,
        state: c.dim("mamba_d_state")?,
        kernel: c.dim("mamba_d_conv")?,
        dt_rank: dt_rank(t, "mamba_dt_rank")?,
        conv_bias: c.flag("mamba_conv_bias", true)?,
        bias: c.flag("mamba_proj_bias", false)?,
        norms: true,
    };
    let mlp = Mlp {
        path: "feed_forward",
        ..Mlp::gated(t.intermediate()?)
    };
    let experts = c.dim("num_experts")?;
    let mut moe = Moe::new("feed_forward", experts, c.dim("num_experts_per_tok")?, mlp.width);
    moe.router = "router";
    let every = |period: &str, offset: &str| Ok::<_, Error>((c.dim(period)?, c.dim_or(offset, 0)?));
    let (attn_period, attn_offset) = every("attn_layer_period", "attn_layer_offset")?;
    let (expert_period, expert_offset) = every("expert_layer_period", "expert_layer_offset")?;
    let listed = kinds(t, &["layers_block_type", "layer_types"])?;
    let layers = (0..t.layers()?)
        .map(|i| {
            let attends = match listed.as_ref().and_then(|l| l.get(usize::try_from(i).ok()?)) {
                Some(kind) => is_attention(kind),
                None => i % attn_period == attn_offset,
            };
            let mut layer = if attends {
                Layer {
                    caches: vec![attention.cache(Attend::Full)],
                    weights: attention.weights(hidden),
                }
            } else {
                Layer {
                    caches: vec![mixer.cache()],
                    weights: mixer.weights(hidden),
                }
            };
            if i % expert_period == expert_offset && experts > 1 {
                layer.weights.extend(moe.weights(hidden));
            } else {
                layer.weights.extend(mlp.weights(hidden));
            }
            layer.weights.push(Weight::norm("input_layernorm", hidden));
            layer.weights.push(Weight::norm("pre_ff_layernorm", hidden));
            layer
        })
        .collect();
    // The class gives the head a matrix of its own whatever the file says.
    finish(t, layers, false)
}

/// Falcon-H1 (vLLM 0.32.0, `falcon_h1.py`): attention and Mamba-2 side by side in every layer.
pub(crate) fn falcon_h1(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.qkv_bias = c.flag("attention_bias", false)?;
    attention.o_bias = attention.qkv_bias;
    let inner = match c.get("mamba_d_ssm") {
        Some(_) => c.dim("mamba_d_ssm")?,
        None => expanded(t, "mamba_expand")?,
    };
    let heads = c.dim("mamba_n_heads")?;
    let mixer = Mamba2 {
        path: "mamba.mamba",
        inner,
        groups: c.dim("mamba_n_groups")?,
        heads,
        head_dim: auto_or(t, "mamba_d_head", inner / heads)?,
        state: c.dim("mamba_d_state")?,
        kernel: c.dim("mamba_d_conv")?,
        conv_bias: c.flag("mamba_conv_bias", true)?,
        bias: c.flag("mamba_proj_bias", false)?,
        norm: c.flag("mamba_rms_norm", false)?,
        ssm: None,
    };
    let mlp = Mlp {
        path: "feed_forward",
        bias: c.flag("mlp_bias", false)?,
        ..Mlp::gated(t.intermediate()?)
    };
    let layers = (0..t.layers()?)
        .map(|_| {
            let mut weights = attention.weights(hidden);
            weights.extend(mixer.weights(hidden));
            weights.extend(mlp.weights(hidden));
            weights.push(Weight::norm("input_layernorm", hidden));
            weights.push(Weight::norm("pre_ff_layernorm", hidden));
            Layer {
                caches: vec![attention.cache(Attend::Full), mixer.cache()],
                weights,
            }
        })
        .collect();
    finish(t, layers, t.tied()?)
}

/// A size whose `auto` (or absence) means `derived`.
fn auto_or(t: &Text, key: &str, derived: u64) -> Result<u64> {
    match t.config.get(key) {
        None => Ok(derived),
        Some(value) if value.as_str() == Some("auto") => Ok(derived),
        Some(_) => t.config.dim(key),
    }
}

/// Granite 4 hybrids (vLLM 0.32.0, `granitemoehybrid.py`).
pub(crate) fn granite_hybrid(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.qkv_bias = c.flag("attention_bias", false)?;
    attention.o_bias = attention.qkv_bias;
    let inner = expanded(t, "mamba_expand")?;
    let heads = c.dim("mamba_n_heads")?;
    let head_dim = auto_or(t, "mamba_d_head", inner / heads)?;
    if heads.checked_mul(head_dim) != Some(inner) {
        return Err(Error::unsupported(format!(
            "mamba_n_heads {heads} times mamba_d_head {head_dim} is not mamba_expand times hidden_size, {inner}"
        )));
    }
    let mixer = Mamba2 {
        path: "mamba",
        inner,
        groups: c.dim("mamba_n_groups")?,
        heads,
        head_dim,
        state: c.dim("mamba_d_state")?,
        kernel: c.dim("mamba_d_conv")?,
        conv_bias: c.flag("mamba_conv_bias", true)?,
        bias: c.flag("mamba_proj_bias", false)?,
        norm: true,
        ssm: None,
    };
    let experts = c.dim_or("num_local_experts", 0)?;
    let moe = Moe::new(
        "block_sparse_moe",
        experts,
        c.dim_or("num_experts_per_tok", 0)?,
        t.intermediate()?,
    );
    let shared = c.dim_or("shared_intermediate_size", 0)?;
    let listed = kinds(t, &["layer_types", "layers_block_type"])?;
    if let Some(list) = &listed {
        check_length(t, "layer_types", list.len())?;
    }
    let layers = (0..t.layers()?)
        .map(|i| {
            let kind = listed.as_ref().and_then(|l| l.get(usize::try_from(i).ok()?));
            let mut layer = if kind.is_some_and(|kind| is_attention(kind)) {
                Layer {
                    caches: vec![attention.cache(Attend::Full)],
                    weights: attention.weights(hidden),
                }
            } else {
                Layer {
                    caches: vec![mixer.cache()],
                    weights: mixer.weights(hidden),
                }
            };
            if experts > 0 {
                layer.weights.extend(moe.weights(hidden));
            }
            if shared > 0 {
                let into = [shared, shared];
                layer.weights.push(Weight::column(
                    "shared_mlp.input_linear",
                    Role::Mlp,
                    hidden,
                    &into,
                ));
                layer
                    .weights
                    .push(Weight::row("shared_mlp.output_linear", Role::Mlp, shared, hidden));
            }
            layer.weights.push(Weight::norm("input_layernorm", hidden));
            layer
                .weights
                .push(Weight::norm("post_attention_layernorm", hidden));
            layer
        })
        .collect();
    finish(t, layers, t.tied()?)
}

/// Zamba2 (vLLM 0.32.0, `zamba2.py`): every layer has a Mamba-2 mixer; hybrid layers also pass through one of
/// `num_mem_blocks` shared transformers, whose weights are held once while each pass has a cache of its own.
pub(crate) fn zamba2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let wide = 2 * hidden;
    let heads = t.heads()?;
    let head_dim = wide / heads;
    let attention = Attention {
        path: "shared_transformer.self_attn",
        heads,
        kv_heads: heads,
        head_dim,
        head_dim_v: head_dim,
        qkv_bias: false,
        o_bias: false,
        qk_norm: QkNorm::None,
        follows_kv_dtype: true,
    };
    let inner = expanded(t, "mamba_expand")?;
    let state_heads = c.dim("n_mamba_heads")?;
    let mixer = Mamba2 {
        path: "mamba",
        inner,
        groups: c.dim("mamba_ngroups")?,
        heads: state_heads,
        head_dim: inner / state_heads,
        state: c.dim("mamba_d_state")?,
        kernel: c.dim("mamba_d_conv")?,
        conv_bias: c.flag("use_conv_bias", true)?,
        bias: c.flag("add_bias_linear", false)?,
        norm: true,
        ssm: None,
    };
    let hybrid = zamba2_hybrid_layers(t)?;
    let blocks = c.dim_or("num_mem_blocks", 1)?.max(1);
    let width = c.dim_or("intermediate_size", 4 * hidden)?;
    let rank = c.dim_or("adapter_rank", 128)?;
    let passes = hybrid.len() as u64;
    let attn_adapter = c.flag("use_shared_attention_adapter", false)?;
    let mut layers = Vec::new();
    for i in 0..t.layers()? {
        let mut layer = Layer {
            caches: Vec::new(),
            weights: mixer.weights(hidden),
        };
        layer.weights.push(Weight::norm("input_layernorm", hidden));
        if let Some(pass) = hybrid.iter().position(|&h| h == i) {
            let pass = pass as u64;
            layer.caches.push(attention.cache(Attend::Full));
            layer
                .weights
                .push(Weight::replicated("linear", Role::Attention, hidden, &[hidden]));
            if pass < blocks {
                // The first pass through a shared transformer holds it, with the adapters of all its passes.
                let mine = (pass..passes)
                    .step_by(usize::try_from(blocks).unwrap_or(1))
                    .count() as u64;
                layer.weights.extend(shared_transformer(
                    &attention,
                    hidden,
                    width,
                    c.flag("add_bias_linear", false)?,
                ));
                let lora = |name: &str, inputs: u64, outputs: &[u64]| {
                    [
                        Weight::column(format!("{name}.A"), Role::Attention, inputs, &[rank]).times(mine),
                        Weight::column(format!("{name}.B"), Role::Attention, rank, outputs).times(mine),
                    ]
                };
                layer.weights.extend(lora(
                    "shared_transformer.feed_forward.gate_up_proj_adapter_list",
                    hidden,
                    &[width, width],
                ));
                if attn_adapter {
                    for part in ["q", "k", "v"] {
                        let name = format!("shared_transformer.self_attn.linear_{part}_adapter_list");
                        layer.weights.extend(lora(&name, wide, &[wide]));
                    }
                }
            }
        }
        layer.caches.push(mixer.cache());
        layers.push(layer);
    }
    let mut decoder = finish(t, layers, c.flag("tie_word_embeddings", true)?)?;
    decoder.kv_heads = Some(heads);
    Ok(decoder)
}

fn shared_transformer(attention: &Attention, hidden: u64, width: u64, bias: bool) -> Vec<Weight> {
    let wide = 2 * hidden;
    let path = attention.path;
    let mlp = Mlp {
        path: "shared_transformer.feed_forward",
        bias,
        ..Mlp::gated(width)
    };
    let mut weights = vec![
        Weight::qkv(
            format!("{path}.qkv_proj"),
            wide,
            attention.heads,
            attention.heads,
            attention.head_dim,
        ),
        Weight::row(format!("{path}.o_proj"), Role::Attention, wide, hidden),
        Weight::norm("shared_transformer.input_layernorm", wide),
        Weight::norm("shared_transformer.pre_ff_layernorm", hidden),
    ];
    weights.extend(mlp.weights(hidden));
    weights
}

fn zamba2_hybrid_layers(t: &Text) -> Result<Vec<u64>> {
    let layers = t.layers()?;
    let ids: Vec<u64> = match kinds(t, &["layers_block_type", "layer_types"])? {
        Some(list) => list
            .iter()
            .zip(0..layers)
            .filter(|(kind, _)| **kind == "hybrid")
            .map(|(_, i)| i)
            .collect(),
        // The class's own pattern (transformers 5.19.0, `configuration_zamba2.py`).
        None => (6..layers.min(43))
            .step_by(6)
            .chain([47, 51])
            .filter(|&i| i < layers)
            .collect(),
    };
    Ok(match t.config.u64s("hybrid_layer_ids")? {
        Some(listed) if t.config.get("layers_block_type").is_none() => listed,
        _ => ids,
    })
}

/// Nemotron-H (vLLM 0.32.0, `nemotron_h.py`): one mixer a layer, a Mamba-2, attention, feed-forward or experts.
pub(crate) fn nemotron_h(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.path = "mixer";
    attention.qkv_bias = c.flag("attention_bias", false)?;
    attention.o_bias = attention.qkv_bias;
    if c.get("block_configs").is_some() {
        // Their per-layer sizes are resolved by code that comes with the checkpoint.
        return Err(Error::input(format!(
            "{} gives layers sizes of their own, which this version does not read for Nemotron-H",
            c.name("block_configs")
        )));
    }
    let letters = nemotron_h_pattern(t)?;
    // Files without a state layer need not describe one.
    let mixer = if letters.contains(&'M') {
        let mixer = nemotron_h_mixer(t)?;
        let weights = mixer.weights(hidden);
        Some((mixer, weights))
    } else {
        None
    };
    let widths = match c.get("intermediate_size") {
        Some(serde_json::Value::Array(_)) => c.u64s("intermediate_size")?.unwrap_or_default(),
        _ => vec![c.dim_or("intermediate_size", 0)?],
    };
    let experts = if letters.contains(&'E') {
        Some(nemotron_h_experts(t, hidden)?)
    } else {
        None
    };
    let mut dense_layers = 0;
    let mut layers = Vec::with_capacity(letters.len());
    for kind in letters {
        let mut layer = Layer::default();
        match kind {
            'M' => {
                if let Some((mixer, weights)) = &mixer {
                    layer.caches.push(mixer.cache());
                    layer.weights.clone_from(weights);
                }
            }
            '*' => {
                layer.caches.push(attention.cache(Attend::Full));
                layer.weights = attention.weights(hidden);
            }
            'E' => {
                if let Some(weights) = &experts {
                    layer.weights.clone_from(weights);
                }
            }
            _ => {
                let width = *widths.get(dense_layers).or(widths.first()).unwrap_or(&0);
                dense_layers += 1;
                let mlp = Mlp {
                    path: "mixer",
                    width,
                    gated: false,
                    bias: c.flag("mlp_bias", false)?,
                };
                layer.weights = mlp.weights(hidden);
            }
        }
        layer.weights.push(Weight::norm("norm", hidden));
        layers.push(layer);
    }
    let mut decoder = finish(t, layers, t.tied()?)?;
    decoder.mtp_layers = c.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

fn first_dim(t: &Text, keys: &[&str]) -> Result<u64> {
    t.first_dim(keys)
}

/// The state layers of Nemotron-H.
fn nemotron_h_mixer(t: &Text) -> Result<Mamba2> {
    let c = &t.config;
    let (heads, head_dim) = (c.dim("mamba_num_heads")?, c.dim("mamba_head_dim")?);
    let inner = heads
        .checked_mul(head_dim)
        .filter(|&n| n <= crate::arch::config::MAX_DIMENSION)
        .ok_or_else(|| Error::overflow("mamba_num_heads times mamba_head_dim"))?;
    let ssm = match c.str("mamba_ssm_cache_dtype")? {
        None => Some(Dtype::F32),
        Some("auto") => None,
        Some(name) => Some(Dtype::parse(name).ok_or_else(|| {
            Error::input(format!(
                "{} is {name:?}, expected a type such as float32 or bfloat16",
                c.name("mamba_ssm_cache_dtype")
            ))
        })?),
    };
    Ok(Mamba2 {
        path: "mixer",
        inner,
        groups: first_dim(t, &["mamba_n_groups", "n_groups"])?,
        heads,
        head_dim,
        state: c.dim("ssm_state_size")?,
        kernel: first_dim(t, &["mamba_d_conv", "conv_kernel"])?,
        conv_bias: c.flag("mamba_conv_bias", c.flag("use_conv_bias", true)?)?,
        bias: c.flag("use_bias", false)?,
        norm: true,
        ssm,
    })
}

/// One letter a layer: `M` state, `*` attention, `E` experts, `-` feed-forward.
fn nemotron_h_pattern(t: &Text) -> Result<Vec<char>> {
    let c = &t.config;
    let wrong = |kind: &str| {
        Error::input(format!(
            "{} has a layer {kind:?}, expected M, *, E, - or their names",
            c.name("layers_block_type")
        ))
    };
    if let Some(list) = kinds(t, &["layers_block_type", "layer_types"])? {
        return list
            .iter()
            .map(|kind| match *kind {
                "mamba" | "linear_attention" => Ok('M'),
                "attention" | "full_attention" => Ok('*'),
                "moe" => Ok('E'),
                "mlp" => Ok('-'),
                other => Err(wrong(other)),
            })
            .collect();
    }
    if t.model_type()? == "cosmos3_edge_text" && c.get("hybrid_override_pattern").is_none() {
        // Cosmos-3 Edge counts pairs of attention and feed-forward (vLLM 0.32.0, `configs/cosmos3_edge.py`).
        return Ok((0..t.layers()?).flat_map(|_| ['*', '-']).collect());
    }
    let Some(pattern) = c.str("hybrid_override_pattern")? else {
        return Ok(vec!['M', 'E', '*', '-']);
    };
    let letters: Vec<char> = pattern.chars().filter(|&letter| letter != '|').collect();
    if letters.is_empty() || letters.len() as u64 > super::text::MAX_LAYERS {
        return Err(Error::input(format!(
            "{} names {} layers, expected 1 to {}",
            c.name("hybrid_override_pattern"),
            letters.len(),
            super::text::MAX_LAYERS
        )));
    }
    match letters
        .iter()
        .find(|letter| !matches!(letter, 'M' | '*' | 'E' | '-'))
    {
        Some(other) => Err(wrong(&other.to_string())),
        None => Ok(letters),
    }
}

fn nemotron_h_experts(t: &Text, hidden: u64) -> Result<Vec<Weight>> {
    let c = &t.config;
    let latent = c.dim_or("moe_latent_size", 0)?;
    let shared = c.dim_or("moe_shared_expert_intermediate_size", 0)? * c.dim_or("n_shared_experts", 0)?;
    let mut moe = Moe::new(
        "mixer",
        c.dim("n_routed_experts")?,
        c.dim("num_experts_per_tok")?,
        c.dim("moe_intermediate_size")?,
    )
    .f32_router()
    .corrected("gate.e_score_correction_bias")
    .shared("mixer.shared_experts", shared);
    moe.gated = false;
    let mut weights = moe.weights(hidden);
    if latent > 0 {
        // Routed experts work in a narrower space; the shared expert and the router do not.
        for weight in &mut weights {
            if weight.role == Role::Experts {
                *weight =
                    Weight::experts("mixer.experts", moe.experts, moe.top_k, latent, moe.width).ungated();
            }
        }
        let bias = c.flag("mlp_bias", false)?;
        weights
            .push(Weight::replicated("mixer.fc1_latent_proj", Role::Experts, hidden, &[latent]).bias(bias));
        weights
            .push(Weight::replicated("mixer.fc2_latent_proj", Role::Experts, latent, &[hidden]).bias(bias));
    }
    Ok(weights)
}

/// LFM2 and its mixture of experts (vLLM 0.32.0, `lfm2.py`, `lfm2_moe.py`): short convolutions and attention.
pub(crate) fn lfm2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.qk_norm = QkNorm::Head(Norm::Scale);
    let kernel = c.dim("conv_L_cache")?;
    let bias = c.flag("conv_bias", false)?;
    let experts = c.dim_or("num_experts", 0)?;
    let moe_model = experts > 0 && c.get("moe_intermediate_size").is_some();
    let conv_width = if moe_model {
        hidden
    } else {
        c.dim_or("conv_dim", hidden)?
    };
    let width = if moe_model {
        t.intermediate()?
    } else {
        lfm2_width(t)?
    };
    let mlp = Mlp::gated(width);
    let mut moe = None;
    if moe_model {
        let m = Moe::new(
            "feed_forward",
            experts,
            c.dim("num_experts_per_tok")?,
            c.dim("moe_intermediate_size")?,
        );
        moe = Some(if c.flag("use_expert_bias", true)? {
            m.corrected("gate.e_score_correction_bias")
        } else {
            m
        });
    }
    let dense_layers = c.dim_or("num_dense_layers", 0)?;
    let full = c.u64s("full_attn_idxs")?;
    let listed = t.layer_types()?;
    let layers = (0..t.layers()?)
        .map(|i| {
            let at = usize::try_from(i).unwrap_or(usize::MAX);
            let attends = match (&listed, &full) {
                (Some(list), _) => list.get(at).is_some_and(|kind| is_attention(kind)),
                (None, Some(ids)) => ids.contains(&i),
                (None, None) => true,
            };
            let mut layer = if attends {
                Layer {
                    caches: vec![attention.cache(Attend::Full)],
                    weights: attention.weights(hidden),
                }
            } else {
                short_conv("short_conv", hidden, conv_width, kernel, bias)
            };
            match &moe {
                Some(moe) if i >= dense_layers => layer.weights.extend(moe.weights(hidden)),
                _ => layer.weights.extend(mlp.weights(hidden)),
            }
            layer.weights.push(Weight::norm("operator_norm", hidden));
            layer.weights.push(Weight::norm("ffn_norm", hidden));
            layer
        })
        .collect();
    let tied = c.flag("tie_embedding", c.flag("tie_word_embeddings", true)?)?;
    finish(t, layers, tied)
}

/// The feed-forward width that LFM2 derives from `block_ff_dim`.
fn lfm2_width(t: &Text) -> Result<u64> {
    let c = &t.config;
    let width = t.first_dim(&["block_ff_dim", "intermediate_size"])?;
    if !c.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(width);
    }
    let factor = c.f64("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    let scaled = (2 * width / 3) as f64 * factor;
    if !(1.0..1e9).contains(&scaled) {
        return Err(Error::input(format!(
            "{} is {factor}, which makes the feed-forward part {scaled} wide",
            c.name("block_ffn_dim_multiplier")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 1 and 10^9"
    )]
    let scaled = scaled as u64;
    Ok(scaled.next_multiple_of(c.dim("block_multiple_of")?))
}
