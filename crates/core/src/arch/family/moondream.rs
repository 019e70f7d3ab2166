//! Moondream-3: a parallel decoder with gated heads, and experts from the fifth layer on.

use serde_json::{Map, Value};

use super::dense::{Attention, Decoder, Dense, Ends, Mlp, Norm, QkNorm};
use super::text::Text;
use crate::Result;
use crate::arch::{Config, Role, Weight};

/// The language model's part of a file (`config.text`, in the names of the original code) under the usual names, with
/// the defaults of vLLM's class (0.32.0, `transformers_utils/configs/moondream3.py`).
///
/// # Errors
/// If a part is not an object.
pub(crate) fn text(file: &Config) -> Result<Config> {
    let empty = || file.child("config.text", Map::new());
    let part = match file.sub("config")? {
        Some(config) => config.sub("text")?,
        None => file.sub("text_config")?,
    }
    .unwrap_or_else(empty);
    let mut map = part.map().clone();
    for (name, usual, default) in [
        ("dim", "hidden_size", 2048u64),
        ("ff_dim", "intermediate_size", 8192),
        ("n_layers", "num_hidden_layers", 24),
        ("n_heads", "num_attention_heads", 32),
        ("n_kv_heads", "num_key_value_heads", 32),
        ("vocab_size", "vocab_size", 51_200),
        ("max_context", "max_position_embeddings", 4096),
    ] {
        let value = part.get(name).cloned().unwrap_or_else(|| Value::from(default));
        map.insert(usual.to_owned(), value);
    }
    Ok(part.with_map(map))
}

/// Moondream-3 (vLLM 0.32.0, `moondream3.py`; defaults of `transformers_utils/configs/moondream3.py`).
///
/// # Errors
/// If a size is out of range.
pub(crate) fn moondream3(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let moe = c.sub("moe")?;
    let expert = |key: &str, default: u64| moe.as_ref().map_or(Ok(default), |m| m.dim_or(key, default));
    let hidden = t.hidden()?;
    let (heads, kv_heads) = (t.heads()?, t.kv_heads()?);
    let head_dim = hidden.checked_div(heads).unwrap_or(0);
    let attention = Attention {
        path: "attn",
        heads,
        kv_heads,
        head_dim,
        head_dim_v: head_dim,
        qkv_bias: true,
        o_bias: true,
        qk_norm: QkNorm::None,
        follows_kv_dtype: true,
    };
    let d = Dense {
        hidden,
        attends: t.attends(None)?,
        attention,
        mlp: Mlp {
            path: "mlp",
            width: t.intermediate()?,
            gated: false,
            bias: true,
        },
        norms: &["ln"],
        norm: Norm::ScaleAndShift,
        ends: Ends {
            vocab: t.vocab()?,
            embed_width: hidden,
            tied: false,
            head_bias: true,
            positions: 0,
            final_norm: Norm::ScaleAndShift,
        },
        layers_path: "text.blocks",
    };
    // Temperatures of queries and values, from all of a token's queries, keys and values.
    let fused = (heads + 2 * kv_heads) * head_dim;
    let scale = |name: &str, shape: &[u64]| Weight::tensor(name, Role::Attention, shape, Some(0));
    let temperatures = [
        scale("attn.tau_alpha", &[heads]),
        scale("attn.tau_wq", &[heads, fused]),
        scale("attn.tau_wv", &[heads, fused]),
    ];
    let (experts, width) = (expert("n_experts", 64)?, expert("expert_inner_dim", 1024)?);
    let sparse = [
        Weight::replicated("mlp.gate", Role::Router, hidden, &[experts])
            .bias(true)
            .unquantized(),
        // Whole experts are dealt out to the ranks.
        Weight::tensor(
            "mlp.fc1_weight",
            Role::Experts,
            &[experts, 2 * width, hidden],
            Some(0),
        ),
        Weight::tensor(
            "mlp.fc2_weight",
            Role::Experts,
            &[experts, hidden, width],
            Some(0),
        ),
    ];
    let dense = d.mlp.weights(hidden);
    let first = expert("start_layer", 4)?;
    let mut decoder = d.build_with(|i, layer| {
        layer.weights.extend(temperatures.iter().cloned());
        if (i as u64) < first {
            layer.weights.extend(dense.iter().cloned());
        } else {
            layer.weights.extend(sparse.iter().cloned());
        }
        Ok(())
    })?;
    decoder.kv_heads = Some(kv_heads);
    Ok(decoder)
}
