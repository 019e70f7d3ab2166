//! MiniCPM's language models.

use super::dense::{Decoder, Dense};
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Heads, Role, Weight};

/// MiniCPM, dense or with experts (vLLM 0.32.0, `minicpm.py`).
pub(crate) fn minicpm(t: &Text) -> Result<Decoder> {
    if t.config.dim_or("num_experts", 0)? > 0 {
        let mut d = Dense::llama(t)?;
        d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
        let moe = Moe::new(
            "mlp",
            t.config.dim("num_experts")?,
            t.config.dim("num_experts_per_tok")?,
            d.mlp.width,
        );
        let mut decoder = d.build_moe(&moe, &[])?;
        // Its experts are plain tensors to the engine, which no checkpoint quantises.
        let experts = (decoder.layers.iter_mut())
            .flat_map(|layer| &mut layer.weights)
            .filter(|weight| weight.role == Role::Experts);
        for weight in experts {
            weight.quantizable = false;
        }
        return Ok(decoder);
    }
    let mut d = Dense::llama(t)?;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.build()
}

/// MiniCPM 3 (vLLM 0.32.0, `minicpm3.py`): latent projections, but the cache holds expanded heads, values padded
/// to the width of keys.
pub(crate) fn minicpm3(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::llama(t)?;
    let (nope, rope) = (c.dim("qk_nope_head_dim")?, c.dim("qk_rope_head_dim")?);
    let (q_rank, kv_rank) = (c.dim("q_lora_rank")?, c.dim("kv_lora_rank")?);
    let heads = d.attention.heads;
    let value = match c.get("v_head_dim") {
        Some(_) => c.dim("v_head_dim")?,
        None => d.hidden / heads,
    };
    let cached = Heads {
        kv_heads: heads,
        head_dim: nope + rope,
        head_dim_v: nope + rope,
        follows_kv_dtype: true,
    };
    d.ends.tied = c.flag("tie_word_embeddings", true)?;
    let hidden = d.hidden;
    let mut decoder = d.build_with(|i, layer| {
        let attend = d.attends.get(i).copied().unwrap_or(Attend::Full);
        layer.caches = vec![d.attention.cache_of(attend.cache(cached))];
        layer.weights = vec![
            Weight::replicated("self_attn.q_a_proj", Role::Attention, hidden, &[q_rank]),
            Weight::norm("self_attn.q_a_layernorm", q_rank),
            Weight::column(
                "self_attn.q_b_proj",
                Role::Attention,
                q_rank,
                &[heads * (nope + rope)],
            ),
            Weight::replicated(
                "self_attn.kv_a_proj_with_mqa",
                Role::Attention,
                hidden,
                &[kv_rank + rope],
            ),
            Weight::norm("self_attn.kv_a_layernorm", kv_rank),
            Weight::column(
                "self_attn.kv_b_proj",
                Role::Attention,
                kv_rank,
                &[heads * (nope + value)],
            ),
            Weight::row("self_attn.o_proj", Role::Attention, heads * value, hidden),
        ]
        .into();
        layer
            .weights
            .extend(d.norms.iter().map(|name| Weight::norm(*name, hidden)));
        layer.weights.extend(d.mlp.weights(hidden));
        Ok(())
    })?;
    decoder.kv_heads = Some(heads);
    Ok(decoder)
}
