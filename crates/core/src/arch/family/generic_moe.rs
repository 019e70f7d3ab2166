//! Mixtures of experts that the generic backend builds, and Cohere's.

use super::dense::{Attention, Decoder, Dense, Ends, Mlp, Norm, QkNorm, part};
use super::generic;
use super::llama;
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Layer, Place, Role, Weight};

/// `JetMoe` (generic backend without a plan): experts in attention too, all whole on every rank.
pub(crate) fn jetmoe(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let head_dim = c.dim("kv_channels")?;
    let experts = c.dim("num_local_experts")?;
    let width = t.intermediate()?;
    let kv_heads = c.dim("num_key_value_heads")?;
    let keys = kv_heads * head_dim;
    let attention = Attention {
        path: "self_attention",
        heads: kv_heads * c.dim_or("num_experts_per_tok", 2)?,
        kv_heads,
        head_dim,
        head_dim_v: head_dim,
        qkv_bias: false,
        o_bias: false,
        qk_norm: QkNorm::None,
        follows_kv_dtype: true,
    };
    let whole = |name: &str, shape: &[u64], role| Weight::tensor(name, role, shape, None);
    let layer = Layer {
        caches: vec![attention.cache(Attend::Full)],
        weights: vec![
            whole("mlp.bias", &[hidden], Role::Norm),
            whole("mlp.input_linear", &[experts, 2 * width, hidden], Role::Experts),
            whole("mlp.output_linear", &[experts, hidden, width], Role::Experts),
            Weight::replicated("mlp.router.layer", Role::Router, hidden, &[experts]),
            whole("self_attention.experts.bias", &[hidden], Role::Norm),
            whole(
                "self_attention.experts.input_linear",
                &[experts, keys, hidden],
                Role::Attention,
            ),
            whole(
                "self_attention.experts.output_linear",
                &[experts, hidden, keys],
                Role::Attention,
            ),
            Weight::replicated(
                "self_attention.experts.router.layer",
                Role::Router,
                hidden,
                &[experts],
            ),
            Weight::replicated("self_attention.kv_proj", Role::Attention, hidden, &[2 * keys]),
            Weight::norm("input_layernorm", hidden),
            Weight::norm("post_attention_layernorm", hidden),
        ]
        .into(),
    };
    let mut ends = Ends::read(t)?;
    ends.tied = c.flag("tie_word_embeddings", true)?;
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers: (0..t.layers()?).map(|_| layer.clone()).collect(),
        outside: ends.outside(hidden),
        ..Decoder::default()
    })
}

/// Mixtures of experts that the generic backend builds: Mellum, FlexOlmo, `HunYuan`, Phi-MoE (whose
/// head's bias is dropped).
pub(crate) fn generic_moe(t: &Text) -> Result<Decoder> {
    let hunyuan = t.model_type()? == "hunyuan_v1_moe";
    let mut d = match t.model_type()? {
        "flex_olmo" => generic::olmo_base(t)?,
        "phimoe" => {
            let mut d = llama::base(t)?;
            d.norm = Norm::ScaleAndShift;
            d.ends.final_norm = Norm::ScaleAndShift;
            d
        }
        _ => {
            let mut d = llama::base(t)?;
            d.attention.qk_norm = QkNorm::Head(Norm::Scale);
            d
        }
    };
    let width = t.first_dim(&["moe_intermediate_size", "intermediate_size"])?;
    d.mlp.width = width;
    let top_k = match t.config.get("moe_topk") {
        Some(serde_json::Value::Array(_)) => t.config.u64s("moe_topk")?.unwrap_or_default().into_iter().max(),
        Some(_) => Some(t.config.dim("moe_topk")?),
        None => None,
    };
    let mut moe = Moe::new(
        "mlp",
        t.first_dim(&["num_experts", "num_local_experts"])?,
        match top_k {
            Some(n) => n,
            None => t.config.dim("num_experts_per_tok")?,
        },
        width,
    );
    if hunyuan {
        moe.router_quantizable = true;
        moe = moe.shared("mlp.shared_mlp", t.intermediate()?);
    }
    d.build_with(|_, layer| {
        layer.weights.extend(moe.weights(d.hidden));
        Ok(())
    })
}

/// Cohere2 with experts (vLLM 0.32.0, `cohere2_moe.py`).
pub(crate) fn cohere2_moe(t: &Text) -> Result<Decoder> {
    let d = llama::cohere(t)?;
    let c = &t.config;
    let width = t.intermediate()?;
    let shared = c.dim_or("num_shared_experts", 0)? * width;
    let moe = Moe::new(
        "mlp",
        t.first_dim(&["num_experts", "num_local_experts"])?,
        c.dim("num_experts_per_tok")?,
        width,
    )
    .shared("mlp.shared_experts", shared);
    let dense_first = c.dim_or("first_k_dense_replace", 0)?;
    let prefix = c.dim_or("prefix_dense_intermediate_size", width)?;
    d.build_with(|i, layer| {
        if (i as u64) < dense_first {
            layer.weights.extend(Mlp::gated(prefix).weights(d.hidden));
        } else {
            layer.weights.extend(moe.weights(d.hidden));
        }
        Ok(())
    })
}

/// Zaya (generic backend): a convolution over queries and keys, which keeps no cache here, and a router with
/// layers of its own.
pub(crate) fn zaya(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let mut attention = Attention::read(t)?;
    attention.qkv_bias = c.flag("attention_bias", false)?;
    let (queries, keys) = (
        attention.heads * attention.head_dim,
        attention.kv_heads * attention.head_dim,
    );
    let experts = c.dim("num_experts")?;
    let router = c.dim("router_hidden_size")?;
    let (first, second) = (c.dim_or("cca_time0", 2)?, c.dim_or("cca_time1", 2)?);
    let vector = |name: &str, width: u64| Weight::norm(name, width);
    let linear =
        |name: &str, inputs: u64, outputs: u64| Weight::replicated(name, Role::Attention, inputs, &[outputs]);
    let bias = attention.qkv_bias;
    let mut weights = vec![
        Weight::replicated("self_attn.o_proj", Role::Attention, queries, &[hidden]).bias(bias),
        linear("self_attn.qkv_proj.q_proj", hidden, queries).bias(bias),
        linear("self_attn.qkv_proj.k_proj", hidden, keys).bias(bias),
        linear("self_attn.qkv_proj.v_proj_current", hidden, keys / 2).bias(bias),
        linear("self_attn.qkv_proj.v_proj_delayed", hidden, keys / 2).bias(bias),
        Weight::tensor(
            "self_attn.qkv_proj.conv_qk_depthwise",
            Role::State,
            &[queries + keys, 1, first],
            None,
        ),
        vector("self_attn.qkv_proj.conv_qk_depthwise.bias", queries + keys),
        Weight::tensor(
            "self_attn.qkv_proj.conv_qk_grouped",
            Role::State,
            &[queries + keys, attention.head_dim, second],
            None,
        ),
        vector("self_attn.qkv_proj.conv_qk_grouped.bias", queries + keys),
        vector("self_attn.qk_norm.temp", attention.kv_heads),
        linear("mlp.gate.down_proj", hidden, router)
            .bias(true)
            .role(Role::Router),
        vector("mlp.gate.router_mlp.norm", router),
        linear("mlp.gate.router_mlp.fc1", router, router)
            .bias(true)
            .role(Role::Router),
        linear("mlp.gate.router_mlp.fc2", router, router)
            .bias(true)
            .role(Role::Router),
        linear("mlp.gate.router_mlp.out_proj", router, experts + 1).role(Role::Router),
        Weight::experts(
            "mlp.experts",
            experts,
            c.dim_or("num_experts_per_tok", 1)?,
            hidden,
            c.dim("moe_intermediate_size")?,
        ),
        vector("input_layernorm", hidden),
        vector("post_attention_layernorm", hidden),
    ];
    for place in ["post_attention_residual_scale", "post_mlp_residual_scale"] {
        weights.push(vector(place, hidden).times(4));
    }
    let d = Dense::with_mlp(t, Mlp::gated(1))?;
    let mut decoder = d.build_with(|i, layer| {
        layer.weights = weights.clone().into();
        if i > 0 {
            layer.weights.push(vector("mlp.gate.router_states_scale", router));
        }
        Ok(())
    })?;
    // Tensors of the model itself, which every stage makes.
    decoder.outside.push(part(
        Place::Every,
        vec![vector("model.input_hidden_states", hidden).times(2)],
    ));
    Ok(decoder)
}
