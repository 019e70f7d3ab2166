//! Step-3 and Step-3.5.

use super::dense::{Attention, Decoder, Dense, Norm, QkNorm};
use super::moe::{Moe, enumerated, experts, top_k};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Role, Weight};

/// Step-3 (vLLM 0.32.0, `step3_text.py`): one key/value head, queries through a shared low-rank projection.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn step3(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends.fill(t.attend_of_all()?);
    d.attention.kv_heads = 1;
    let shared_q = t.config.dim_or("share_q_dim", 0)?;
    let a = d.attention.clone();
    let rank = if shared_q > 0 { shared_q } else { a.head_dim };
    let moe = Moe::new(
        "moe",
        experts(t)?,
        top_k(t)?,
        t.config.dim("moe_intermediate_size")?,
    );
    let moe = moe.shared(
        "share_expert",
        t.first_dim(&["share_expert_dim", "share_expert_dims"])?,
    );
    let sparse = enumerated(t)?;
    d.build_with(|i, layer| {
        let role = Role::Attention;
        let norms: Vec<Weight> = layer.weights.drain(..).filter(|w| w.role == Role::Norm).collect();
        let outputs = [rank, a.head_dim, a.head_dim];
        layer
            .weights
            .push(Weight::replicated("self_attn.qkv_proj", role, d.hidden, &outputs));
        layer.weights.push(Weight::row(
            "self_attn.o_proj",
            role,
            a.heads * a.head_dim,
            d.hidden,
        ));
        layer.weights.push(Weight::norm("self_attn.inter_norm", rank));
        layer.weights.push(Weight::column(
            "self_attn.wq",
            role,
            rank,
            &[a.heads * a.head_dim],
        ));
        layer.weights.extend(norms);
        let sparse = sparse.get(i).copied().unwrap_or(true);
        layer.weights.extend(if sparse {
            moe.weights(d.hidden)
        } else {
            d.mlp.weights(d.hidden)
        });
        Ok(())
    })
}

/// Step-3.5 (vLLM 0.32.0, `step3p5.py`): sliding layers may have their own number of heads, gates a head.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn step3p5(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.attention.kv_heads = t.config.dim_or("num_attention_groups", d.attention.kv_heads)?;
    let window = t.window()?;
    let types = t.layer_types()?;
    let other = t.config.sub("attention_other_setting")?;
    let gated = t.config.flag("use_head_wise_attn_gate", false)?;
    let moe = Moe::new(
        "moe",
        experts(t)?,
        top_k(t)?,
        t.config.dim("moe_intermediate_size")?,
    )
    .f32_router()
    .corrected("router_bias")
    .shared(
        "moe.share_expert",
        t.first_dim(&["share_expert_dim", "share_expert_dims"])?,
    );
    let sparse = enumerated(t)?;
    let base = d.clone();
    d.build_with(|i, layer| {
        let kind = types.as_ref().and_then(|k| k.get(i).copied());
        let mut a: Attention = base.attention.clone();
        if let Some(other) = &other
            && kind.is_some()
            && other.str("attention_type")? == kind
        {
            a.heads = other.dim_or("num_attention_heads", a.heads)?;
            a.kv_heads = other.dim_or("num_attention_groups", a.kv_heads)?;
            a.head_dim = other.dim_or("head_dim", a.head_dim)?;
            a.head_dim_v = a.head_dim;
        }
        let sliding = kind.map_or(i % 2 == 0, |k| k == "sliding_attention");
        let attend = match window {
            Some(w) if sliding => Attend::Sliding(w),
            _ => Attend::Full,
        };
        layer.caches = vec![a.cache(attend)];
        let norms: Vec<Weight> = layer
            .weights
            .drain(..)
            .filter(|w| base.norms.contains(&w.name.as_str()))
            .collect();
        layer.weights = a.weights(base.hidden).into();
        layer.weights.extend(norms);
        if gated {
            layer.weights.push(Weight::column(
                "self_attn.g_proj",
                Role::Attention,
                base.hidden,
                &[a.heads],
            ));
        }
        let sparse = sparse.get(i).copied().unwrap_or(true);
        layer.weights.extend(if sparse {
            moe.weights(base.hidden)
        } else {
            base.mlp.weights(base.hidden)
        });
        Ok(())
    })
}
