//! openPangu (vLLM 0.32.0, `openpangu.py`): one layer class for three kinds of attention, chosen by the file's keys.

use super::deepseek::{experts_of, latent};
use super::dense::{Decoder, Dense, FOUR_NORMS, QkNorm, TWO_NORMS};
use super::llama::interleaved_windows;
use super::mla::Mla;
use super::moe::{Moe, after_dense};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Role, Weight};

/// Norms of a layer; with `sandwich_norm` also after both parts.
fn norms(t: &Text) -> Result<&'static [&'static str]> {
    Ok(if t.config.flag("sandwich_norm", false)? {
        FOUR_NORMS
    } else {
        TWO_NORMS
    })
}

/// Experts, where the file has any; the class looks at `router_enable_expert_bias` for their correction.
fn experts(t: &Text) -> Result<Option<Moe>> {
    if t.config.get("n_routed_experts").is_none() {
        return Ok(None);
    }
    let mut moe = experts_of(t)?;
    moe.correction = t
        .config
        .flag("router_enable_expert_bias", false)?
        .then_some("gate.e_score_correction_bias");
    Ok(Some(moe))
}

/// Pangu Embedded, Pangu Ultra and Pangu Pro V2.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn pangu(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let moe = experts(t)?;
    let keys = [
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "kv_lora_rank",
    ];
    if keys.iter().all(|key| c.get(key).is_some()) {
        let sparse = if moe.is_some() {
            after_dense(t, 0)?
        } else {
            Vec::new()
        };
        return latent(t, &Mla::read(t)?, norms(t)?, moe.as_ref(), &sparse);
    }
    let mut d = Dense::llama(t)?;
    d.norms = norms(t)?;
    let bias = c.flag("attention_bias", false)? || c.flag("bias", false)?;
    d.attention.qkv_bias = c.flag("qkv_bias", bias)?;
    d.attention.o_bias = bias;
    d.mlp.bias = c.flag("mlp_bias", false)?;
    let sinks = c.dim_or("param_sink_number", 0)?;
    if sinks > 0 {
        // Its layers publish full attention whatever the windows say.
        d.attends.fill(Attend::Full);
        return with_sinks(t, d, sinks, moe.as_ref());
    }
    if let Some(attends) = interleaved_windows(t)? {
        d.attends = attends;
    }
    match &moe {
        None => d.build(),
        Some(moe) => d.build_moe(moe, &after_dense(t, 0)?),
    }
}

/// Attention with learned keys (and values) before the first token: key and value heads are never replicated, and
/// values may be narrower than keys (`OpenPanguSinkAttention`). The cache keeps the sinks in blocks of its own.
fn with_sinks(t: &Text, mut d: Dense, sinks: u64, moe: Option<&Moe>) -> Result<Decoder> {
    let c = &t.config;
    d.attention.head_dim = c.dim("qk_nope_dim")? + c.dim("qk_rope_dim")?;
    d.attention.head_dim_v = c.dim("v_channels")?;
    d.attention.qk_norm = QkNorm::None;
    let a = &d.attention;
    let (heads, keys, values) = (a.kv_heads, a.head_dim, a.head_dim_v);
    let role = Role::Attention;
    let outputs = [a.heads * keys, heads * keys, heads * values];
    let mut own = vec![
        Weight::column("self_attn.qkv_proj", role, d.hidden, &outputs).bias(a.qkv_bias),
        Weight::norm("self_attn.k_layernorm", keys),
        Weight::tensor("self_attn.param_sink_key", role, &[sinks, heads, keys], Some(1)),
    ];
    if c.flag("param_sink_with_value", false)? {
        own.push(Weight::tensor(
            "self_attn.param_sink_value",
            role,
            &[sinks, heads, values],
            Some(1),
        ));
    }
    let sparse = after_dense(t, 0)?;
    let experts = moe.map(|moe| moe.weights(d.hidden));
    let dense = d.mlp.weights(d.hidden);
    d.build_with(|i, layer| {
        layer.weights.retain(|w| w.name != "self_attn.qkv_proj");
        layer.weights.extend(own.iter().cloned());
        let feed = match &experts {
            Some(experts) if sparse.get(i).copied().unwrap_or(true) => experts,
            _ => &dense,
        };
        layer.weights.extend(feed.iter().cloned());
        Ok(())
    })
}
