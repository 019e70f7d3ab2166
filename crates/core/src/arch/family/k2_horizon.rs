//! K2-Horizon: mixtures of experts in the feed-forward part and, in the same layers, among the value projections.

use super::dense::{Decoder, Dense, Mlp, Norm, QkNorm};
use super::moe::{Moe, stepped};
use super::text::Text;
use crate::Result;
use crate::arch::weight::Part;
use crate::arch::{Role, Weight};
use crate::dtype::Dtype;

/// K2-Horizon (vLLM 0.32.0, `k2_horizon.py`).
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn k2_horizon(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = Dense::with_mlp(t, Mlp::gated(c.dim_or("intermediate_size", 0)?))?;
    let bias = c.flag("attention_bias", false)?;
    d.attention.qkv_bias = bias;
    d.attention.o_bias = bias;
    if c.flag("query_key_norm", false)? {
        d.attention.qk_norm = QkNorm::Split(Norm::Scale);
    }
    let (hidden, queries) = (d.hidden, d.attention.heads * d.attention.head_dim);
    let gate = c
        .str("attention_gate_func")?
        .map(|_| Weight::column("self_attn.gate_proj", Role::Attention, hidden, &[queries]));
    let experts = c.dim_or("num_experts", 0)?;
    let sparse = if experts > 0 {
        stepped(t)?
    } else {
        vec![false; d.attends.len()]
    };
    let router_bias = c.flag("moe_gate_bias", false)?;
    let values = match c.dim_or("mova_num_experts", 0)? {
        0 => None,
        n => Some(value_experts(&d, n, router_bias)),
    };
    let feed = if experts == 0 {
        Vec::new()
    } else {
        let mut moe = Moe::read(t, "mlp")?;
        moe.router_quantizable = true;
        let shared = moe.width * c.dim_or("num_shared_experts", 0)?;
        moe = moe.shared("mlp.shared_experts", shared);
        if router_bias {
            moe = moe.corrected("gate.bias");
        }
        moe.weights(hidden)
    };
    let dense = d.mlp.weights(hidden);
    d.build_with(|i, layer| {
        layer.weights.extend(gate.clone());
        let sparse = sparse.get(i).copied().unwrap_or(false);
        if let Some(values) = values.as_ref().filter(|_| sparse) {
            layer.weights.retain(|w| w.name != "self_attn.qkv_proj");
            layer.weights.extend(values.iter().cloned());
        }
        layer
            .weights
            .extend(if sparse { &feed } else { &dense }.iter().cloned());
        Ok(())
    })
}

/// Queries and keys in one projection, and `experts` value projections behind a router of their own
/// (`K2HorizonMoVAAttention`).
fn value_experts(d: &Dense, experts: u64, router_bias: bool) -> Vec<Weight> {
    let a = &d.attention;
    let heads = Part::Groups {
        units: a.kv_heads,
        width: a.head_dim,
    };
    let queries = Part::Even(a.heads * a.head_dim);
    let role = Role::Attention;
    let mut all = vec![
        Weight::parts("self_attn.qk_proj", role, d.hidden, vec![queries, heads]).bias(a.qkv_bias),
        Weight::replicated("self_attn.v_router", Role::Router, d.hidden, &[experts]),
        Weight::parts("self_attn.v_experts.0", role, d.hidden, vec![heads]).times(experts),
    ];
    if router_bias {
        let bias = Weight::tensor("self_attn.v_router.bias", Role::Router, &[experts], None);
        all.push(bias.of(Dtype::F32));
    }
    all
}
