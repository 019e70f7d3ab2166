//! Mixtures of experts without a shared expert: Mixtral and those like it.

use super::dense::{Decoder, Dense, Norm, QkNorm};
use super::moe::{Moe, experts, stepped, top_k};
use super::text::{Attend, Text};
use crate::arch::{Role, Weight};
use crate::{Error, Result};

/// Routed experts of `intermediate_size` in every layer.
fn everywhere(t: &Text, path: &'static str) -> Result<Moe> {
    Ok(Moe::new(path, experts(t)?, top_k(t)?, t.intermediate()?))
}

/// Mixtral (vLLM 0.32.0, `mixtral.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn mixtral(t: &Text) -> Result<Decoder> {
    Dense::llama(t)?.build_moe(&everywhere(t, "block_sparse_moe")?, &[])
}

/// Granite's mixture of experts, with a shared expert or attention sinks where the class has them (vLLM 0.32.0, `granitemoe.py`,
/// `granitemoeshared.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn granite(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = false;
    let shared = t.config.dim_or("shared_intermediate_size", 0)?;
    let has_sinks = t.class == "GraniteMoeSWAForCausalLM";
    let shared = if t.class == "GraniteMoeForCausalLM" {
        0
    } else {
        shared
    };
    let moe = everywhere(t, "block_sparse_moe")?.shared("shared_mlp", shared);
    if t.model_type()? != "granitemoe_swa" {
        d.attends.fill(t.attend_of_all()?);
    }
    d.build_with(|_, layer| {
        layer.weights.extend(moe.weights(d.hidden));
        if has_sinks {
            layer.weights.push(Weight::tensor(
                "self_attn.sinks",
                Role::Attention,
                &[d.attention.heads],
                Some(0),
            ));
        }
        Ok(())
    })
}

/// Phi-3.5-MoE in the engine's own class: biases in attention and head (vLLM 0.32.0, `phimoe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn phimoe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    d.norm = Norm::ScaleAndShift;
    d.ends.final_norm = Norm::ScaleAndShift;
    d.ends.head_bias = true;
    d.build_moe(&everywhere(t, "block_sparse_moe")?, &[])
}

/// `OLMoE`: norms over whole queries and keys (vLLM 0.32.0, `olmoe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn olmoe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qk_norm = QkNorm::Whole(Norm::Scale);
    d.build_moe(&everywhere(t, "mlp")?, &[])
}

/// DBRX (vLLM 0.32.0, `dbrx.py`): sizes in `attn_config` and `ffn_config`.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn dbrx(t: &Text) -> Result<Decoder> {
    let part = |key: &str| {
        t.config.sub(key)?.ok_or_else(|| {
            Error::input(format!(
                "{} is missing from the configuration",
                t.config.name(key)
            ))
        })
    };
    let (attn, ffn) = (part("attn_config")?, part("ffn_config")?);
    let mlp = super::dense::Mlp::gated(ffn.dim("ffn_hidden_size")?);
    let mut d = Dense::with_mlp(t, mlp)?;
    d.attention.kv_heads = attn.dim("kv_n_heads")?;
    d.norm = Norm::Scale;
    d.layers_path = "transformer.blocks";
    let moe = Moe {
        router: "router.layer",
        ..Moe::new(
            "ffn",
            ffn.dim("moe_num_experts")?,
            ffn.dim("moe_top_k")?,
            mlp.width,
        )
    };
    let mut decoder = d.build_moe(&moe, &[])?;
    decoder.kv_heads = Some(d.attention.kv_heads);
    Ok(decoder)
}

/// gpt-oss: biases everywhere, attention sinks, a window in every other layer (vLLM 0.32.0, `gpt_oss.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn gpt_oss(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.path = "attn";
    d.attention.qkv_bias = true;
    d.attention.o_bias = true;
    if let Some(window) = t.window()? {
        d.attends = (0..d.attends.len())
            .map(|i| {
                if i % 2 == 0 {
                    Attend::Sliding(window)
                } else {
                    Attend::Full
                }
            })
            .collect();
    }
    let moe = Moe {
        router: "router",
        router_bias: true,
        bias: true,
        ..everywhere(t, "mlp")?
    };
    d.build_with(|_, layer| {
        layer.weights.push(Weight::tensor(
            "attn.sinks",
            Role::Attention,
            &[d.attention.heads],
            Some(0),
        ));
        layer.weights.extend(moe.weights(d.hidden));
        Ok(())
    })
}

/// Qwen2-MoE: a gated shared expert (vLLM 0.32.0, `qwen2_moe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn qwen2_moe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = super::qwen::windows(t)?;
    d.attention.qkv_bias = t.config.flag("qkv_bias", true)?;
    d.build_moe(&qwen_moe(t)?, &stepped(t)?)
}

/// Qwen3-MoE: norms of queries and keys (vLLM 0.32.0, `qwen3_moe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn qwen3_moe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = super::qwen::windows(t)?;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let moe = Moe {
        router_quantizable: true,
        ..qwen_moe(t)?
    };
    d.build_moe(&moe, &stepped(t)?)
}

/// Qwen's experts, with a gated shared expert where `shared_expert_intermediate_size` is positive.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn qwen_moe(t: &Text) -> Result<Moe> {
    let shared = t.config.dim_or("shared_expert_intermediate_size", 0)?;
    let mut moe = Moe::read(t, "mlp")?.shared("mlp.shared_expert", shared);
    if let Some(shared) = &mut moe.shared {
        shared.gate = true;
    }
    Ok(moe)
}
