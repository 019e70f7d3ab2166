//! Zamba-2: Mamba-2 layers, some with a transformer that many of them share.

use super::dense::{Attention, Decoder, Mlp, QkNorm};
use super::hybrid::{finish, kinds};
use super::mamba::{Mamba2, expanded};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Layer, Role, Weight};

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
            weights: mixer.weights(hidden).into(),
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
