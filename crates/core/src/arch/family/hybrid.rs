//! Models that mix attention with Mamba or convolution layers.

use super::dense::{Attention, Decoder, Ends, Mlp, Norm, QkNorm};
use super::mamba::{Mamba1, Mamba2, dt_rank, expanded, short_conv};
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Layer, Role, Weight};
use crate::{Error, Result};

/// Adds the parts outside of the layers.
pub(super) fn finish(t: &Text, layers: Vec<Layer>, tied: bool) -> Result<Decoder> {
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
pub(super) fn is_attention(kind: &str) -> bool {
    matches!(kind, "attention" | "full_attention" | "sliding_attention")
}

/// The kinds of all layers under the first of `keys` that is present.
pub(super) fn kinds<'a>(t: &'a Text, keys: &[&str]) -> Result<Option<Vec<&'a str>>> {
    for key in keys {
        if let Some(list) = t.config.strs(key)? {
            return Ok(Some(list));
        }
    }
    Ok(None)
}

pub(super) fn check_length(t: &Text, key: &str, have: usize) -> Result<()> {
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
                    weights: attention.weights(hidden).into(),
                }
            } else {
                Layer {
                    caches: vec![mixer.cache()],
                    weights: mixer.weights(hidden).into(),
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
    // The class looks at neither `attention_bias` nor `mlp_bias`.
    let attention = Attention::read(t)?;
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
                weights: weights.into(),
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
        ))
        .hint(format!(
            "correct mamba_n_heads or mamba_d_head, whose product has to be {inner}"
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
                    weights: attention.weights(hidden).into(),
                }
            } else {
                Layer {
                    caches: vec![mixer.cache()],
                    weights: mixer.weights(hidden).into(),
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
        let m = Moe {
            router_quantizable: true,
            ..Moe::new(
                "feed_forward",
                experts,
                c.dim("num_experts_per_tok")?,
                c.dim("moe_intermediate_size")?,
            )
        };
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
                    weights: attention.weights(hidden).into(),
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
    // The classes tie embedding and head whatever the file says.
    finish(t, layers, true)
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
