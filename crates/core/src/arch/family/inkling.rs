//! Inkling: attention with relative positions, short convolutions whose state is published as a window of the
//! convolution's length, experts with sinks; its modules of multi-token prediction are such layers without experts.

use super::dense::{Attention, Decoder, Ends, Mlp};
use super::text::{Attend, Text};
use crate::arch::{Cache, CacheKind, Heads, Layer, Modules, Role, Weight};
use crate::{Error, Result};

/// Most modules that are read; no checkpoint has more.
const MOST_MODULES: u64 = 1 << 10;

/// What all layers of a model have in common.
struct Shapes {
    hidden: u64,
    kernel: u64,
    /// Rank of the relative positions.
    rel: u64,
    /// Distances that full layers tell apart.
    extent: u64,
    window: u64,
    global: Attention,
    local: Attention,
}

impl Shapes {
    fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
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
        for attention in [&global, &local] {
            if attention.kv_heads == 0 || attention.heads == 0 || attention.head_dim == 0 {
                return Err(Error::input(
                    "a layer of Inkling has no heads, or heads without elements",
                ));
            }
        }
        Ok(Self {
            hidden: t.hidden()?,
            kernel: t.first_dim(&["sconv_kernel_size", "conv_kernel_size"])?,
            rel: c.dim_or("d_rel", 16)?,
            extent: c.dim_or("rel_extent", 1024)?,
            window: c.dim_or("sliding_window_size", 512)?.max(1),
            global,
            local,
        })
    }

    /// A layer without its feed-forward part.
    fn layer(&self, is_local: bool) -> Layer {
        let hidden = self.hidden;
        let attention = if is_local { &self.local } else { &self.global };
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
        let distances = if is_local { self.window } else { self.extent };
        let weights = vec![
            Weight::norm("attn_norm", hidden),
            Weight::column(
                "attn.qkvr",
                Role::Attention,
                hidden,
                &[queries, keys, keys, attention.heads * self.rel],
            ),
            Weight::row("attn.wo_ud", Role::Attention, queries, hidden),
            Weight::tensor(
                "attn.rel_logits_proj.proj",
                Role::Attention,
                &[self.rel, distances],
                None,
            ),
            Weight::norm("attn.q_norm", attention.head_dim),
            Weight::norm("attn.k_norm", attention.head_dim),
            Weight::tensor("attn.k_sconv", Role::State, &[keys, self.kernel], Some(0)),
            Weight::tensor("attn.v_sconv", Role::State, &[keys, self.kernel], Some(0)),
            Weight::norm("mlp_norm", hidden),
            Weight::tensor("attn_sconv", Role::State, &[hidden, self.kernel], Some(0)),
            Weight::tensor("mlp_sconv", Role::State, &[hidden, self.kernel], Some(0)),
        ];
        Layer {
            caches: vec![
                Cache {
                    name: "conv_state".to_owned(),
                    kind: CacheKind::ConvWindow {
                        heads: conv,
                        window: self.kernel,
                    },
                },
                attention.cache(if is_local {
                    Attend::Sliding(self.window)
                } else {
                    Attend::Full
                }),
            ],
            weights: weights.into(),
        }
    }
}

/// Width of the feed-forward part of layers without experts.
fn dense_width(t: &Text) -> Result<u64> {
    t.first_dim(&["dense_intermediate_size", "intermediate_size"])
}

/// Inkling (vLLM 0.32.0, `models/inkling`). The token embedding is not divided.
pub(crate) fn inkling(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let shapes = Shapes::read(t)?;
    let hidden = shapes.hidden;
    let locals = c.u64s("local_layer_ids")?.unwrap_or_default();
    let first_moe = c.dim_or("dense_mlp_idx", 0)?;
    let moe_width = t.first_dim(&["moe_intermediate_size", "intermediate_size"])?;
    let experts = c.dim("n_routed_experts")?;
    let shared = c.dim_or("n_shared_experts", 0)?;
    let top_k = c.dim("num_experts_per_tok")?;
    let mut layers = Vec::new();
    for i in 0..t.layers()? {
        let mut layer = shapes.layer(locals.contains(&i));
        if i < first_moe {
            layer.weights.extend(Mlp::gated(dense_width(t)?).weights(hidden));
        } else {
            // The router's rows are padded to a multiple of eight.
            let rows = (experts + shared).next_multiple_of(8);
            let router = Weight::replicated("mlp.gate", Role::Router, hidden, &[rows]);
            layer.weights.push(router.unquantized());
            let routed = Weight::experts("mlp.experts", experts, top_k, hidden, moe_width);
            layer.weights.push(routed);
            if shared > 0 {
                let width = moe_width * shared;
                let role = Role::SharedExpert;
                let up = Weight::column("mlp.sink_experts.w13", role, hidden, &[width, width]);
                let down = Weight::row("mlp.sink_experts.w2", role, width, hidden);
                layer.weights.extend([up, down].map(Weight::unquantized));
            }
        }
        layers.push(layer);
    }
    let ends = Ends::read(t)?;
    let mut outside = ends.outside(hidden);
    for weight in outside.iter_mut().flat_map(|part| &mut part.weights) {
        if weight.role == Role::Embedding {
            *weight = Weight::tensor(weight.name.as_str(), Role::Embedding, &[ends.vocab, hidden], None);
        }
    }
    let modules = modules(t, &shapes)?;
    Ok(Decoder {
        layers_path: "model.layers".to_owned(),
        layers,
        outside,
        mtp_layers: modules.as_ref().map_or(0, |modules| modules.layers.len() as u64),
        modules: modules.map(Box::new),
        ..Decoder::default()
    })
}

/// The modules that `mtp_config` counts (vLLM 0.32.0, `models/inkling/nvidia/mtp.py`): only as many are built as tokens are
/// drafted; embedding and head are the target's, without a transient copy.
fn modules(t: &Text, shapes: &Shapes) -> Result<Option<Modules>> {
    let Some(own) = t.top.sub("mtp_config")? else {
        return Ok(None);
    };
    let count = own.u64("num_nextn_predict_layers")?.unwrap_or(0);
    if count > MOST_MODULES {
        return Err(Error::input(format!(
            "{} is {count}, expected at most {MOST_MODULES}",
            own.name("num_nextn_predict_layers")
        )));
    }
    if count == 0 {
        return Ok(None);
    }
    let hidden = shapes.hidden;
    let locals = own.u64s("local_layer_ids")?.unwrap_or_default();
    let mlp = Mlp::gated(dense_width(t)?).weights(hidden);
    let mut layers = Vec::new();
    for i in 0..count {
        let mut layer = shapes.layer(locals.contains(&i));
        layer.weights.extend(mlp.iter().cloned());
        layer.weights.extend([
            Weight::norm("hidden_norm", hidden),
            Weight::norm("embed_norm", hidden),
            Weight::replicated("input_proj", Role::Mlp, 2 * hidden, &[hidden]),
        ]);
        for weight in &mut layer.weights {
            weight.quantizable = false;
        }
        layer.share(&layers);
        layers.push(layer);
    }
    let mut once = Vec::new();
    if own.flag("chain_hidden_post_norm", false)? {
        once.push(Weight::norm("chain_norm", hidden));
    }
    if t.config.flag("use_embed_norm", false)? {
        once.push(Weight::norm("backbone_embed_norm", hidden));
    }
    Ok(Some(Modules {
        layers,
        once,
        as_many_as_tokens: true,
    }))
}
