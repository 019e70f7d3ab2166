//! Models whose layers or caches are unlike any other's.

use super::dense::{Attention, Decoder, Dense, Ends, Mlp, Norm, part};
use super::text::{Attend, Text};
use crate::arch::{Layer, Place, Role, Weight};
use crate::{Error, Result};

/// Most passes through one layer that are read.
const MAX_PASSES: u64 = 64;

fn passes(t: &Text, key: &str, default: u64) -> Result<u64> {
    let n = t.config.dim_or(key, default)?;
    if n == 0 || n > MAX_PASSES {
        return Err(Error::input(format!(
            "{} is {n}, expected 1 to {MAX_PASSES}",
            t.config.name(key)
        )));
    }
    Ok(n)
}

/// HRM-Text (vLLM 0.32.0, `hrm_text.py`): two stacks that are run through several times, with a cache a pass.
pub(crate) fn hrm(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let stack = t.count_of_layers(&["num_layers_per_stack", "num_hidden_layers"])?;
    let (high, low) = (passes(t, "H_cycles", 1)?, passes(t, "L_cycles", 1)?);
    // The class has as many key/value heads as query heads, whatever the file says.
    let attention = Attention {
        kv_heads: t.heads()?,
        ..Attention::read(t)?
    };
    let width = attention.heads * attention.head_dim;
    let bias = c.flag("attention_bias", false)?;
    let mlp = Mlp {
        bias: c.flag("mlp_bias", false)?,
        ..Mlp::gated(t.intermediate()?)
    };
    let make = |runs: u64| {
        let mut weights = vec![
            Weight::column("self_attn.gqkv_proj", Role::Attention, hidden, &[width; 4]).bias(bias),
            Weight::row("self_attn.o_proj", Role::Attention, width, hidden).bias(bias),
        ];
        weights.extend(mlp.weights(hidden));
        Layer {
            caches: (0..runs).map(|_| attention.cache(Attend::Full)).collect(),
            weights: weights.into(),
        }
    };
    let mut ends = Ends::read(t)?;
    ends.final_norm = Norm::None;
    let mut outside = ends.outside(hidden);
    outside.push(part(Place::First, vec![Weight::norm("model.z_L_init", hidden)]));
    let layers = (0..stack)
        .map(|_| make(high * low))
        .chain((0..stack).map(|_| make(high)))
        .collect();
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside,
        kv_heads: Some(attention.heads),
        ..Decoder::default()
    })
}

/// `IQuest` LoopCoder (vLLM 0.32.0, `iquest_loopcoder.py`): later passes see a window beside the first pass's cache.
pub(crate) fn loopcoder(t: &Text) -> Result<Decoder> {
    let d = Dense::llama(t)?;
    let loops = passes(t, "loop_num", 2)?;
    let window = t.config.dim_or("loop_window_size", 64)?.max(1);
    let mut decoder = d.build()?;
    for layer in &mut decoder.layers {
        layer
            .caches
            .extend((1..loops).map(|_| d.attention.cache(Attend::Sliding(window))));
        let gate = Weight::column(
            "gate_projections.gate_proj",
            Role::Attention,
            d.attention.head_dim,
            &[d.attention.heads],
        );
        layer.weights.push(gate.bias(true));
    }
    Ok(decoder)
}

/// Nemotron-NAS, also called `DeciLM` (vLLM 0.32.0, `nemotron_nas.py`): `block_configs` gives each layer its
/// key/value heads and feed-forward width, or leaves a part out.
pub(crate) fn nas(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let base = {
        let mlp = Mlp::gated(1);
        let mut d = Dense::with_mlp(t, mlp)?;
        let bias = c.flag("attention_bias", false)? || c.flag("bias", false)?;
        d.attention.o_bias = bias;
        d.attention.qkv_bias = c.flag("qkv_bias", bias)?;
        d
    };
    let mlp_bias = c.flag("mlp_bias", false)?;
    let blocks = c.array("block_configs")?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the configuration",
            c.name("block_configs")
        ))
    })?;
    if (blocks.len() as u64) < t.layers()? {
        return Err(Error::input(format!(
            "{} describes {} layers, but the model has {}",
            c.name("block_configs"),
            blocks.len(),
            t.layers()?
        )));
    }
    let mut layers = Vec::new();
    let mut first_kv_heads = None;
    for (i, block) in blocks
        .iter()
        .enumerate()
        .take(usize::try_from(t.layers()?).unwrap_or(0))
    {
        let at = format!("block_configs[{i}]");
        let serde_json::Value::Object(map) = block else {
            return Err(Error::input(format!("{} is not an object", c.name(&at))));
        };
        let block = c.child(&at, map.clone());
        let missing =
            |part: &str| Error::input(format!("{} is missing from the configuration", block.name(part)));
        let attention = block.sub("attention")?.ok_or_else(|| missing("attention"))?;
        let ffn = block.sub("ffn")?.ok_or_else(|| missing("ffn"))?;
        let mut layer = Layer::default();
        if attention.flag("replace_with_linear", false)? || ffn.flag("replace_with_linear", false)? {
            return Err(Error::unsupported(format!(
                "layer {i} replaces a part by one linear layer, which vLLM's DeciLM class cannot build"
            )));
        }
        if !attention.flag("no_op", false)? {
            let own = Attention {
                kv_heads: base.attention.heads / attention.dim("n_heads_in_group")?,
                ..base.attention.clone()
            };
            if own.kv_heads == 0 {
                return Err(Error::input(format!(
                    "{} is larger than the number of heads, {}",
                    attention.name("n_heads_in_group"),
                    base.attention.heads
                )));
            }
            first_kv_heads.get_or_insert(own.kv_heads);
            layer.caches.push(own.cache(Attend::Full));
            layer.weights.extend(own.weights(hidden));
            layer.weights.push(Weight::norm("input_layernorm", hidden));
        }
        if !ffn.flag("no_op", false)? {
            let mlp = Mlp {
                bias: mlp_bias,
                ..Mlp::gated(nas_width(&ffn, hidden)?)
            };
            layer.weights.extend(mlp.weights(hidden));
            layer
                .weights
                .push(Weight::norm("post_attention_layernorm", hidden));
        }
        layers.push(layer);
    }
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: base.ends.outside(hidden),
        kv_heads: first_kv_heads,
        ..Decoder::default()
    })
}

/// The feed-forward width: given outright, or two thirds of `ffn_mult` times the width, rounded up to 256.
fn nas_width(ffn: &crate::arch::Config, hidden: u64) -> Result<u64> {
    let Some(mult) = ffn.f64("ffn_mult")? else {
        return ffn.dim("intermediate_size");
    };
    let width = 2.0 * mult * hidden as f64 / 3.0;
    if !(1.0..1e9).contains(&width) {
        return Err(Error::input(format!(
            "{} is {mult}, which makes the feed-forward part {width} wide",
            ffn.name("ffn_mult")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 1 and 10^9"
    )]
    let width = width as u64;
    Ok(width.next_multiple_of(256))
}
