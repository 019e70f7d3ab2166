//! MiniMax-M2 and M3.

use super::dense::{Decoder, Dense, Norm, QkNorm};
use super::moe::{Moe, experts, sparse_layers, top_k};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Cache, CacheKind, Op, Part, Role, Split, Weight};

/// MiniMax-M2 (vLLM 0.32.0, `minimax_m2.py`): float32 router, norms over whole queries and keys.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn m2(t: &Text) -> Result<Decoder> {
    let mut d = Dense::llama(t)?;
    d.attends.fill(t.attend_of_all()?);
    d.attention.qkv_bias = t.config.flag("attention_bias", false)?;
    d.attention.qk_norm = QkNorm::Split(Norm::Scale);
    let mut moe = Moe::new("block_sparse_moe", experts(t)?, top_k(t)?, t.intermediate()?).f32_router();
    if t.config.flag("use_routing_bias", false)? {
        moe = moe.corrected("e_score_correction_bias");
    }
    d.build_moe(&moe, &[])
}

/// MiniMax-M3 (vLLM 0.32.0, `vllm/models/minimax_m3/nvidia/model.py`): most layers hold an indexer whose heads are
/// fused in the projection of queries, keys and values and whose key cache stays in the model's element type.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn m3(t: &Text) -> Result<Decoder> {
    let mut d = Dense::with_mlp(
        t,
        super::dense::Mlp::gated(t.config.dim("dense_intermediate_size")?),
    )?;
    d.attends = vec![Attend::Full; d.attends.len()];
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let mut moe = Moe::new("block_sparse_moe", experts(t)?, top_k(t)?, t.intermediate()?).f32_router();
    if t.config.flag("use_routing_bias", false)? {
        moe = moe.corrected("e_score_correction_bias");
    }
    // Whatever `shared_intermediate_size` says.
    let shared = moe.width * t.config.dim_or("n_shared_experts", 0)?;
    let moe = moe.shared("block_sparse_moe.shared_experts", shared);
    let listed = t.config.u64s("moe_layer_freq")?;
    let at = |list: &Option<Vec<u64>>, i: u64, missing: bool| {
        list.as_ref().map_or(missing, |l| {
            usize::try_from(i)
                .ok()
                .and_then(|i| l.get(i))
                .is_some_and(|&n| n != 0)
        })
    };
    let sparse = sparse_layers(t, |i| at(&listed, i, true))?;
    let index = t.config.sub("sparse_attention_config")?;
    let (index_dim, index_heads, index_layers) = match &index {
        None => (0, 0, None),
        Some(c) => (
            c.dim("sparse_index_dim")?,
            c.dim("sparse_num_index_heads")?,
            c.u64s("sparse_attention_freq")?,
        ),
    };
    let a = d.attention.clone();
    let mut decoder = d.build_with(|i, layer| {
        if index_dim > 0 && at(&index_layers, i as u64, false) {
            layer.caches.push(Cache {
                name: "self_attn.indexer.index_cache".to_owned(),
                // 16 bits an element, whatever --kv-cache-dtype says.
                kind: CacheKind::Indexer {
                    bytes_per_token: 2 * index_dim,
                    kernel_block: 128,
                },
            });
            for w in &mut layer.weights {
                if matches!(w.op, Op::Qkv { .. }) {
                    let outputs = vec![
                        Part::Even(a.heads * a.head_dim),
                        Part::Groups {
                            units: a.kv_heads,
                            width: a.head_dim,
                        },
                        Part::Groups {
                            units: a.kv_heads,
                            width: a.head_dim_v,
                        },
                        Part::Groups {
                            units: index_heads,
                            width: index_dim,
                        },
                        Part::Whole(index_dim),
                    ];
                    *w = Weight::parts("self_attn.qkv_proj", Role::Attention, d.hidden, outputs);
                }
            }
            layer
                .weights
                .push(Weight::norm("self_attn.index_q_norm", index_dim));
            layer
                .weights
                .push(Weight::norm("self_attn.index_k_norm", index_dim));
        }
        let sparse = sparse.get(i).copied().unwrap_or(true);
        layer.weights.extend(if sparse {
            moe.weights(d.hidden)
        } else {
            d.mlp.weights(d.hidden)
        });
        Ok(())
    })?;
    // Of the language model alone the engine makes no drafter (vLLM 0.32.0, `hf_config_override` in `config/speculative.py`).
    if t.class != "MiniMaxM3SparseForCausalLM" {
        decoder.mtp_layers = t.config.dim_or("num_mtp_modules", 0)?;
    }
    Ok(decoder)
}

/// MiniMax-M3 as the generic backend builds it from transformers' class: ordinary attention and, as weights only, the
/// indexer's projections.
///
/// # Errors
/// If a size is missing or out of range.
pub(crate) fn m3_generic(t: &Text) -> Result<Decoder> {
    let mut d = Dense::with_mlp(
        t,
        super::dense::Mlp::gated(t.config.dim("dense_intermediate_size")?),
    )?;
    d.attends = vec![Attend::Full; d.attends.len()];
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    let moe = Moe::new("mlp", experts(t)?, top_k(t)?, t.intermediate()?);
    let moe = moe.shared(
        "mlp.shared_experts",
        t.config.dim_or("shared_intermediate_size", 0)?,
    );
    let sparse: Vec<bool> = match t.config.strs("mlp_layer_types")? {
        Some(kinds) => kinds.iter().map(|k| *k == "sparse").collect(),
        None => vec![true; d.attends.len()],
    };
    let mut decoder = d.build_moe(&moe, &sparse)?;
    // The generic backend's plan does not cut shared experts.
    for weight in decoder
        .layers
        .iter_mut()
        .flat_map(|l| &mut l.weights)
        .filter(|w| w.role == Role::SharedExpert)
    {
        if let Op::Linear { split, .. } = &mut weight.op {
            *split = Split::Replicated;
        }
    }
    Ok(decoder)
}
