//! Models whose layers or caches are unlike any other's.

use super::dense::{Attention, Decoder, Dense, Ends, Mlp, Norm, QkNorm, part};
use super::generic;
use super::llama;
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Cache, CacheKind, Heads, Layer, Place, Role, Weight};
use crate::{Error, Result};

/// Most passes through one layer that are read.
const MAX_PASSES: u64 = 64;

fn passes(t: &Text, key: &str, default: u64) -> Result<u64> {
    let n = t.config.dim_or(key, default)?;
    if n == 0 || n > MAX_PASSES {
        return Err(Error::input(format!(
            "{} is {n}, expected 1 to {MAX_PASSES}",
            t.config.name(key)
        )));
    }
    Ok(n)
}

/// HRM-Text (vLLM 0.32.0, `hrm_text.py`): two stacks that are run through several times, with a cache a pass.
pub(crate) fn hrm(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let stack = t.count_of_layers(&["num_layers_per_stack", "num_hidden_layers"])?;
    let (high, low) = (passes(t, "H_cycles", 1)?, passes(t, "L_cycles", 1)?);
    let attention = Attention::read(t)?;
    let (queries, keys) = (
        attention.heads * attention.head_dim,
        attention.kv_heads * attention.head_dim,
    );
    let mlp = Mlp {
        bias: c.flag("mlp_bias", false)?,
        ..Mlp::gated(t.intermediate()?)
    };
    let make = |runs: u64| {
        let mut weights = vec![
            Weight::column(
                "self_attn.gqkv_proj",
                Role::Attention,
                hidden,
                &[queries, queries, keys, keys],
            ),
            Weight::row("self_attn.o_proj", Role::Attention, queries, hidden),
        ];
        weights.extend(mlp.weights(hidden));
        Layer {
            caches: (0..runs).map(|_| attention.cache(Attend::Full)).collect(),
            weights,
        }
    };
    let mut ends = Ends::read(t)?;
    ends.final_norm = Norm::None;
    let mut outside = ends.outside(hidden);
    outside.push(part(Place::First, vec![Weight::norm("model.z_L_init", hidden)]));
    let layers = (0..stack)
        .map(|_| make(high * low))
        .chain((0..stack).map(|_| make(high)))
        .collect();
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside,
        ..Decoder::default()
    })
}

/// `IQuest` LoopCoder (vLLM 0.32.0, `iquest_loopcoder.py`): later passes see a window beside the first pass's cache.
pub(crate) fn loopcoder(t: &Text) -> Result<Decoder> {
    let d = Dense::llama(t)?;
    let loops = passes(t, "loop_num", 2)?;
    let window = t.config.dim_or("loop_window_size", 64)?.max(1);
    let mut decoder = d.build()?;
    for layer in &mut decoder.layers {
        layer
            .caches
            .extend((1..loops).map(|_| d.attention.cache(Attend::Sliding(window))));
        let gate = Weight::column(
            "gate_projections.gate_proj",
            Role::Attention,
            d.attention.head_dim,
            &[d.attention.heads],
        );
        layer.weights.push(gate.bias(true));
    }
    Ok(decoder)
}

/// Nemotron-NAS, also called `DeciLM` (vLLM 0.32.0, `nemotron_nas.py`): `block_configs` gives each layer its
/// key/value heads and feed-forward width, or leaves a part out.
pub(crate) fn nas(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let base = {
        let mlp = Mlp::gated(1);
        let mut d = Dense::with_mlp(t, mlp)?;
        let bias = c.flag("attention_bias", false)? || c.flag("bias", false)?;
        d.attention.o_bias = bias;
        d.attention.qkv_bias = c.flag("qkv_bias", bias)?;
        d
    };
    let mlp_bias = c.flag("mlp_bias", false)?;
    let blocks = c.array("block_configs")?.ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the configuration",
            c.name("block_configs")
        ))
    })?;
    if (blocks.len() as u64) < t.layers()? {
        return Err(Error::input(format!(
            "{} describes {} layers, but the model has {}",
            c.name("block_configs"),
            blocks.len(),
            t.layers()?
        )));
    }
    let mut layers = Vec::new();
    let mut first_kv_heads = None;
    for (i, block) in blocks
        .iter()
        .enumerate()
        .take(usize::try_from(t.layers()?).unwrap_or(0))
    {
        let at = format!("block_configs[{i}]");
        let serde_json::Value::Object(map) = block else {
            return Err(Error::input(format!("{} is not an object", c.name(&at))));
        };
        let block = c.child(&at, map.clone());
        let missing =
            |part: &str| Error::input(format!("{} is missing from the configuration", block.name(part)));
        let attention = block.sub("attention")?.ok_or_else(|| missing("attention"))?;
        let ffn = block.sub("ffn")?.ok_or_else(|| missing("ffn"))?;
        let mut layer = Layer::default();
        if attention.flag("replace_with_linear", false)? || ffn.flag("replace_with_linear", false)? {
            return Err(Error::unsupported(format!(
                "layer {i} replaces a part by one linear layer, which vLLM's DeciLM class cannot build"
            )));
        }
        if !attention.flag("no_op", false)? {
            let own = Attention {
                kv_heads: base.attention.heads / attention.dim("n_heads_in_group")?,
                ..base.attention.clone()
            };
            if own.kv_heads == 0 {
                return Err(Error::input(format!(
                    "{} is larger than the number of heads, {}",
                    attention.name("n_heads_in_group"),
                    base.attention.heads
                )));
            }
            first_kv_heads.get_or_insert(own.kv_heads);
            layer.caches.push(own.cache(Attend::Full));
            layer.weights.extend(own.weights(hidden));
            layer.weights.push(Weight::norm("input_layernorm", hidden));
        }
        if !ffn.flag("no_op", false)? {
            let mlp = Mlp {
                bias: mlp_bias,
                ..Mlp::gated(nas_width(&ffn, hidden)?)
            };
            layer.weights.extend(mlp.weights(hidden));
            layer
                .weights
                .push(Weight::norm("post_attention_layernorm", hidden));
        }
        layers.push(layer);
    }
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside: base.ends.outside(hidden),
        kv_heads: first_kv_heads,
        ..Decoder::default()
    })
}

/// The feed-forward width: given outright, or two thirds of `ffn_mult` times the width, rounded up to 256.
fn nas_width(ffn: &crate::arch::Config, hidden: u64) -> Result<u64> {
    let Some(mult) = ffn.f64("ffn_mult")? else {
        return ffn.dim("intermediate_size");
    };
    let width = 2.0 * mult * hidden as f64 / 3.0;
    if !(1.0..1e9).contains(&width) {
        return Err(Error::input(format!(
            "{} is {mult}, which makes the feed-forward part {width} wide",
            ffn.name("ffn_mult")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: between 1 and 10^9"
    )]
    let width = width as u64;
    Ok(width.next_multiple_of(256))
}

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
        return d.build_moe(&moe, &[]);
    }
    let mut d = Dense::llama(t)?;
    d.ends.tied = t.config.flag("tie_word_embeddings", true)?;
    d.build()
}

/// MiniCPM 3 (vLLM 0.32.0, `minicpm3.py`): latent projections, but the cache holds expanded heads, values padded
/// to the width of keys.
pub(crate) fn minicpm3(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mut d = llama::base(t)?;
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
        ];
        layer
            .weights
            .extend(d.norms.iter().map(|name| Weight::norm(*name, hidden)));
        layer.weights.extend(d.mlp.weights(hidden));
        Ok(())
    })?;
    decoder.kv_heads = Some(heads);
    Ok(decoder)
}

/// Inkling (vLLM 0.32.0, `models/inkling`): attention with relative positions, short convolutions whose state is
/// published as a window of the convolution's length, experts with sinks. The token embedding is not divided.
pub(crate) fn inkling(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let kernel = t.first_dim(&["sconv_kernel_size", "conv_kernel_size"])?;
    let rel = c.dim_or("d_rel", 16)?;
    let global = Attention {
        path: "attn",
        ..Attention::read(t)?
    };
    let local = Attention {
        heads: c.dim_or("swa_num_attention_heads", global.heads)?,
        kv_heads: c.dim_or("swa_num_key_value_heads", global.kv_heads)?,
        head_dim: c.dim_or("swa_head_dim", global.head_dim)?,
        head_dim_v: c.dim_or("swa_head_dim", global.head_dim)?,
        ..global.clone()
    };
    let window = c.dim_or("sliding_window_size", 512)?.max(1);
    let extent = c.dim_or("rel_extent", 1024)?;
    let locals = c.u64s("local_layer_ids")?.unwrap_or_default();
    let first_moe = c.dim_or("dense_mlp_idx", 0)?;
    let moe_width = t.first_dim(&["moe_intermediate_size", "intermediate_size"])?;
    let experts = c.dim("n_routed_experts")?;
    let shared = c.dim_or("n_shared_experts", 0)?;
    let top_k = c.dim("num_experts_per_tok")?;
    let mut layers = Vec::new();
    for i in 0..t.layers()? {
        let is_local = locals.contains(&i);
        let attention = if is_local { &local } else { &global };
        if attention.kv_heads == 0 || attention.heads == 0 || attention.head_dim == 0 {
            return Err(Error::input(
                "a layer of Inkling has no heads, or heads without elements",
            ));
        }
        let streams = 2 * attention.head_dim + 2 * (hidden / attention.kv_heads);
        let conv = Heads {
            kv_heads: attention.kv_heads,
            head_dim: streams.next_power_of_two(),
            head_dim_v: 0,
            follows_kv_dtype: false,
        };
        let (queries, keys) = (
            attention.heads * attention.head_dim,
            attention.kv_heads * attention.head_dim,
        );
        let mut weights = vec![
            Weight::norm("attn_norm", hidden),
            Weight::column(
                "attn.qkvr",
                Role::Attention,
                hidden,
                &[queries, keys, keys, attention.heads * rel],
            ),
            Weight::row("attn.wo_ud", Role::Attention, queries, hidden),
            Weight::tensor(
                "attn.rel_logits_proj.proj",
                Role::Attention,
                &[rel, if is_local { window } else { extent }],
                None,
            ),
            Weight::norm("attn.q_norm", attention.head_dim),
            Weight::norm("attn.k_norm", attention.head_dim),
            Weight::tensor("attn.k_sconv", Role::State, &[keys, kernel], Some(0)),
            Weight::tensor("attn.v_sconv", Role::State, &[keys, kernel], Some(0)),
            Weight::norm("mlp_norm", hidden),
            Weight::tensor("attn_sconv", Role::State, &[hidden, kernel], Some(0)),
            Weight::tensor("mlp_sconv", Role::State, &[hidden, kernel], Some(0)),
        ];
        if i < first_moe {
            let width = t.first_dim(&["dense_intermediate_size", "intermediate_size"])?;
            weights.extend(Mlp::gated(width).weights(hidden));
        } else {
            // The router's rows are padded to a multiple of eight.
            let rows = (experts + shared).next_multiple_of(8);
            weights.push(Weight::replicated("mlp.gate", Role::Router, hidden, &[rows]).unquantized());
            weights.push(Weight::experts("mlp.experts", experts, top_k, hidden, moe_width));
            if shared > 0 {
                let into = [moe_width * shared, moe_width * shared];
                weights.push(Weight::column(
                    "mlp.sink_experts.w13",
                    Role::SharedExpert,
                    hidden,
                    &into,
                ));
                weights.push(Weight::row(
                    "mlp.sink_experts.w2",
                    Role::SharedExpert,
                    moe_width * shared,
                    hidden,
                ));
            }
        }
        layers.push(Layer {
            caches: vec![
                Cache {
                    name: "conv_state".to_owned(),
                    kind: CacheKind::ConvWindow {
                        heads: conv,
                        window: kernel,
                    },
                },
                attention.cache(if is_local {
                    Attend::Sliding(window)
                } else {
                    Attend::Full
                }),
            ],
            weights,
        });
    }
    let ends = Ends::read(t)?;
    let mut outside = ends.outside(hidden);
    for weight in outside.iter_mut().flat_map(|part| &mut part.weights) {
        if weight.role == Role::Embedding {
            *weight = Weight::tensor(weight.name.as_str(), Role::Embedding, &[ends.vocab, hidden], None);
        }
    }
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside,
        ..Decoder::default()
    })
}

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
        ],
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
    let width = if hunyuan {
        t.intermediate()?
    } else {
        t.first_dim(&["moe_intermediate_size", "intermediate_size"])?
    };
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
        moe = moe.shared("mlp.shared_mlp", width);
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
    let linear = |name: &str, inputs: u64, outputs: u64| {
        Weight::replicated(name, Role::Attention, inputs, &[outputs]).unquantized()
    };
    let mut weights = vec![
        Weight::replicated("self_attn.o_proj", Role::Attention, queries, &[hidden]),
        linear("self_attn.qkv_proj.q_proj", hidden, queries),
        linear("self_attn.qkv_proj.k_proj", hidden, keys),
        linear("self_attn.qkv_proj.v_proj_current", hidden, keys / 2),
        linear("self_attn.qkv_proj.v_proj_delayed", hidden, keys / 2),
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
        layer.weights.clone_from(&weights);
        if i > 0 {
            layer.weights.push(vector("mlp.gate.router_states_scale", router));
        }
        Ok(())
    })?;
    decoder.outside.push(part(
        Place::First,
        vec![vector("model.input_hidden_states", hidden).times(2)],
    ));
    Ok(decoder)
}
