//! Mixtures of experts beside ordinary attention, with shared experts and float32 routers.

use super::deepseek::experts_of;
use super::dense::{Decoder, Dense, Norm, QkNorm};
use super::llama;
use super::moe::{Moe, after_dense, experts, sparse_layers, top_k};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Op, Role, Weight};

const CORRECTION: &str = "gate.e_score_correction_bias";

/// The feed-forward width of the dense layers, which files without dense layers leave out.
fn with_optional_mlp(t: &Text) -> Result<Dense> {
    let width = t.config.dim_or("intermediate_size", 0)?;
    Dense::with_mlp(t, super::dense::Mlp::gated(width))
}

/// GLM-4.5 and 4.6 (vLLM 0.32.0, `glm4_moe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn glm4(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    if t.config.flag("use_qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    }
    let moe = experts_of(t)?.f32_router().corrected(CORRECTION);
    let mut decoder = d.build_moe(&moe, &after_dense(t, 1)?)?;
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

/// Solar Open, which the generic backend builds: GLM's layers with a 16-bit router.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn solar_open(t: &Text) -> Result<Decoder> {
    let mut d = with_optional_mlp(t)?;
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    // The generic backend keeps the correction as a buffer, which is no parameter.
    d.build_moe(&experts_of(t)?, &after_dense(t, 0)?)
}

/// ERNIE 4.5 (vLLM 0.32.0, `ernie45_moe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn ernie(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    let bias = t.config.flag("use_bias", false)?;
    d.attention.qkv_bias = bias;
    d.mlp.bias = bias;
    let moe = Moe::read(t, "mlp")?.f32_router().corrected(CORRECTION);
    let shared = moe.width * t.config.dim_or("moe_num_shared_experts", 0)?;
    let moe = moe.shared("mlp.shared_experts", shared);
    let first = t.config.dim_or("moe_layer_start_index", 0)?;
    // The class turns a negative end into the last layer.
    let last = match t.config.get("moe_layer_end_index") {
        Some(v) if v.as_i64().is_some_and(|n| n < 0) => u64::MAX,
        Some(_) => t.config.dim_or("moe_layer_end_index", 0)?,
        None => u64::MAX,
    };
    let every = t.config.dim_or("moe_layer_interval", 1)?.max(1);
    d.build_moe(
        &moe,
        &sparse_layers(t, |i| (i + 1).is_multiple_of(every) && i >= first && i <= last)?,
    )
}

/// Arcee's AFM (vLLM 0.32.0, `afmoe.py`): four norms, a gate beside the queries, a window in most layers.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn afmoe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = t.attends(Some(t.config.dim_or("global_attn_every_n_layers", 4)?))?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.norms = &[
        "input_layernorm",
        "post_attention_layernorm",
        "pre_mlp_layernorm",
        "post_mlp_layernorm",
    ];
    let moe = Moe::read(t, "mlp")?.f32_router().corrected("expert_bias");
    let shared = moe.width * t.config.dim_or("num_shared_experts", 0)?;
    let moe = moe.shared("mlp.shared_experts", shared);
    let dense = t.config.dim_or("num_dense_layers", 0)?;
    let gate = d.attention.heads * d.attention.head_dim;
    d.build_with(|i, layer| {
        layer.weights.push(Weight::column(
            "self_attn.gate_proj",
            Role::Attention,
            d.hidden,
            &[gate],
        ));
        layer.weights.extend(if (i as u64) < dense {
            d.mlp.weights(d.hidden)
        } else {
            moe.weights(d.hidden)
        });
        Ok(())
    })
}

/// Ling and Ring with ordinary attention (vLLM 0.32.0, `bailing_moe.py`) and Sarvam, which shares the class.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn bailing(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends.fill(t.attend_of_all()?);
    d.attention.path = "attention";
    let bias = t.config.flag("use_bias", false)?;
    d.attention.qkv_bias = bias || t.config.flag("use_qkv_bias", false)?;
    d.attention.o_bias = bias;
    d.mlp.bias = bias;
    if t.config.flag("use_qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    }
    let moe = bailing_moe(t)?;
    d.build_moe(&moe, &after_dense(t, 0)?)
}

/// Experts of the Bailing family: `router_dtype`, expert bias and shared experts as the file says.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn bailing_moe(t: &Text) -> Result<Moe> {
    let mut moe = Moe::read(t, "mlp")?;
    let width = t
        .config
        .dim_or("moe_shared_expert_intermediate_size", moe.width)?;
    moe = moe.shared(
        "mlp.shared_experts",
        width * t.config.dim_or("num_shared_experts", 0)?,
    );
    if t.config.str("router_dtype")? == Some("fp32") {
        moe = moe.f32_router();
    }
    if t.config.flag("moe_router_enable_expert_bias", false)? {
        moe = moe.corrected("gate.expert_bias");
    }
    Ok(moe)
}

/// Param-2 (vLLM 0.32.0, `param2moe.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn param2(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attention.qkv_bias = t.config.flag("use_qkv_bias", false)?;
    d.attention.o_bias = t.config.flag("use_bias", false)?;
    if t.config.flag("use_qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    }
    let moe = Moe::read(t, "mlp")?.f32_router();
    let shared = match t.config.dim_or("moe_shared_expert_intermediate_size", 0)? {
        0 => moe.width * t.config.dim_or("num_shared_experts", 1)?,
        n => n,
    };
    let shared = if t.config.dim_or("num_shared_experts", 1)? == 0 {
        0
    } else {
        shared
    };
    let mut moe = moe.shared("mlp.shared_experts", shared);
    if t.config.flag("moe_router_enable_expert_bias", true)? {
        moe = moe.corrected(CORRECTION);
    }
    d.build_moe(&moe, &after_dense(t, 1)?)
}

/// HY-V3 (vLLM 0.32.0, `hy_v3.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn hy_v3(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    if t.config.flag("qk_norm", false)? {
        d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    }
    let width = t.first_dim(&["expert_hidden_dim", "moe_intermediate_size"])?;
    let moe = Moe::new("mlp", experts(t)?, top_k(t)?, width)
        .f32_router()
        .corrected("expert_bias");
    let moe = moe.shared(
        "mlp.shared_mlp",
        width * t.config.dim_or("num_shared_experts", 0)?,
    );
    let mut decoder = d.build_moe(&moe, &after_dense(t, 0)?)?;
    decoder.mtp_layers = t.config.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

/// EXAONE-MoE (vLLM 0.32.0, `exaone_moe.py`): EXAONE-4's layers with experts where `is_moe_layer` says.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn exaone_moe(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = t.attends(Some(4))?;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let moe = Moe::read(t, "mlp")?.corrected("e_score_correction_bias");
    let shared = moe.width * t.config.dim_or("num_shared_experts", 0)?;
    let moe = moe.shared("mlp.shared_experts", shared);
    let sparse = match t.config.strs("mlp_layer_types")? {
        Some(types) => types.iter().map(|k| *k == "sparse").collect(),
        None => after_dense(t, 1)?,
    };
    d.build_moe(&moe, &sparse)
}

/// Laguna (vLLM 0.32.0, `laguna.py`): a gate beside the queries, heads a layer, sinks in sliding layers.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn laguna(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends = match t.layer_types()? {
        Some(_) => t.attends(None)?,
        None => vec![Attend::Full; d.attends.len()],
    };
    let bias = t.config.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let heads = t.config.u64s("num_attention_heads_per_layer")?;
    let sinks = t.config.flag("swa_attention_sink_enabled", false)?;
    let shared = t.config.dim_or("shared_expert_intermediate_size", 0)?;
    let moe = Moe::read(t, "mlp")?
        .corrected("experts.e_score_correction_bias")
        .shared("mlp.shared_expert", shared);
    let sparse: Option<Vec<bool>> = t
        .config
        .strs("mlp_layer_types")?
        .map(|types| types.iter().map(|k| *k == "sparse").collect());
    let (gated, per_head) = match t.config.get("gating") {
        Some(serde_json::Value::String(s)) => (true, s == "per-head"),
        Some(serde_json::Value::Bool(b)) => (*b, *b),
        _ => (false, false),
    };
    let base = d.clone();
    d.build_with(|i, layer| {
        let mut attention = base.attention.clone();
        if let Some(n) = heads.as_ref().and_then(|h| h.get(i)) {
            attention.heads = *n;
        }
        let norms: Vec<Weight> = layer
            .weights
            .drain(..)
            .filter(|w| base.norms.contains(&w.name.as_str()))
            .collect();
        layer.weights = attention.weights(base.hidden).into();
        layer.weights.extend(norms);
        if gated {
            let width = if per_head {
                attention.heads
            } else {
                attention.heads * attention.head_dim
            };
            layer.weights.push(Weight::column(
                "self_attn.g_proj",
                Role::Attention,
                base.hidden,
                &[width],
            ));
        }
        if sinks && matches!(base.attends.get(i), Some(Attend::Sliding(_))) {
            layer.weights.push(Weight::tensor(
                "self_attn.sink",
                Role::Attention,
                &[attention.heads],
                Some(0),
            ));
        }
        let sparse = sparse.as_ref().and_then(|s| s.get(i).copied()).unwrap_or(i > 0);
        layer.weights.extend(apart(if sparse {
            moe.weights(base.hidden)
        } else {
            base.mlp.weights(base.hidden)
        }));
        Ok(())
    })
}

/// The same weights with gate and up projections as two modules each.
fn apart(weights: Vec<Weight>) -> impl Iterator<Item = Weight> {
    weights.into_iter().flat_map(|weight| {
        let parts = match (weight.name.strip_suffix("gate_up_proj"), &weight.op) {
            (Some(path), Op::Linear { outputs, .. }) => {
                let names = [format!("{path}gate_proj"), format!("{path}up_proj")];
                names.into_iter().zip(outputs.clone()).collect::<Vec<_>>()
            }
            _ => return vec![weight],
        };
        parts
            .into_iter()
            .map(|(name, output)| {
                let mut one = weight.clone();
                one.name = name;
                if let Op::Linear { outputs, .. } = &mut one.op {
                    *outputs = vec![output];
                }
                one
            })
            .collect()
    })
}

/// Aria's language model (vLLM 0.32.0, `aria.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn aria(t: &Text) -> Result<Decoder> {
    let d = llama::base(t)?;
    let width = t.intermediate()?;
    let shared = width * t.config.dim_or("moe_num_shared_experts", 0)?;
    let moe = Moe::new("mlp", experts(t)?, top_k(t)?, width).shared("mlp.shared_experts", shared);
    let mut decoder = d.build_moe(&moe, &[])?;
    if d.mlp.bias {
        // Routed experts have none.
        let layers = decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights);
        for weight in layers.filter(|w| w.role == Role::SharedExpert) {
            *weight = weight.clone().bias(true);
        }
    }
    Ok(decoder)
}
