//! Models that mix attention with gated delta nets, Kimi delta attention or lightning attention.

use serde_json::Value;

use super::dense::{Decoder, Dense, Mlp, Norm, QkNorm, part};
use super::kimi::kda_cache;
use super::mla::Mla;
use super::moe::Moe;
use super::text::{Attend, Text};
use crate::arch::{Cache, CacheKind, Kinds, Layer, Modules, Place, Role, State, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// An element type of a state; `auto` and absence are the engine's default.
fn state_dtype(t: &Text, key: &str) -> Result<Option<Dtype>> {
    match t.config.str(key)? {
        None | Some("auto") => Ok(None),
        Some(name) => Dtype::parse(name).map(Some).ok_or_else(|| {
            Error::input(format!(
                "{} is {name:?}, expected a type such as float32 or bfloat16",
                t.config.name(key)
            ))
        }),
    }
}

/// Beginnings of the classes whose files say which type their states have; all others' are those of the model
/// (vLLM 0.32.0, `MODELS_CONFIG_MAP` in `vllm/model_executor/models/config.py`).
const OWN_STATE_DTYPE: [&str; 2] = ["Qwen3_5", "Qwen4Exp"];

/// A gated delta net (vLLM 0.32.0, `layers/mamba/gdn/`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeltaNet {
    k_heads: u64,
    v_heads: u64,
    k_dim: u64,
    v_dim: u64,
    kernel: u64,
    ssm: Option<Dtype>,
}

impl DeltaNet {
    /// As the configuration describes it (`linear_num_key_heads` and so on).
    pub(crate) fn read(t: &Text) -> Result<Self> {
        let c = &t.config;
        let heads = t.heads()?;
        let k_heads = c.dim_or("linear_num_key_heads", heads)?.max(1);
        let v_heads = c.dim_or("linear_num_value_heads", heads)?.max(1);
        // OLMo-Hybrid's class: three quarters of the width over the key heads, values twice as wide.
        let k_dim = c.dim_or("linear_key_head_dim", 3 * t.hidden()? / 4 / k_heads)?;
        Ok(Self {
            k_heads,
            v_heads,
            k_dim,
            v_dim: c.dim_or("linear_value_head_dim", 2 * k_dim)?,
            kernel: c.dim("linear_conv_kernel_dim")?,
            ssm: match t.file_class()? {
                class if OWN_STATE_DTYPE.iter().any(|own| class.starts_with(own)) => {
                    state_dtype(t, "mamba_ssm_dtype")?
                }
                _ => None,
            },
        })
    }

    fn keys(&self) -> u64 {
        self.k_heads * self.k_dim
    }

    fn values(&self) -> u64 {
        self.v_heads * self.v_dim
    }

    /// Its state.
    pub(crate) fn cache(&self) -> Cache {
        Cache {
            name: "linear_attn".to_owned(),
            kind: CacheKind::State(State::GatedDelta {
                k_heads: self.k_heads,
                v_heads: self.v_heads,
                k_dim: self.k_dim,
                v_dim: self.v_dim,
                kernel: self.kernel,
                conv: None,
                ssm: self.ssm,
            }),
        }
    }

    /// Parameters as Qwen3-Next lays them out.
    pub(crate) fn qwen_weights(&self, hidden: u64) -> Vec<Weight> {
        let (keys, values) = (self.keys(), self.values());
        let heads = self.v_heads;
        vec![
            Weight::tensor("linear_attn.dt_bias", Role::State, &[heads], Some(0)),
            Weight::tensor("linear_attn.A_log", Role::State, &[heads], Some(0)).of(Dtype::F32),
            Weight::column(
                "linear_attn.conv1d",
                Role::State,
                self.kernel,
                &[keys, keys, values],
            )
            .unquantized(),
            Weight::column(
                "linear_attn.in_proj_qkvz",
                Role::Attention,
                hidden,
                &[keys, keys, values, values],
            ),
            Weight::column("linear_attn.in_proj_ba", Role::Attention, hidden, &[heads, heads]),
            Weight::norm("linear_attn.norm", self.v_dim),
            Weight::row("linear_attn.out_proj", Role::Attention, values, hidden),
        ]
    }

    /// Parameters as OLMo-Hybrid lays them out.
    fn olmo_weights(&self, hidden: u64) -> Vec<Weight> {
        let (keys, values) = (self.keys(), self.values());
        let heads = self.v_heads;
        vec![
            Weight::tensor("linear_attn.dt_bias", Role::State, &[heads], Some(0)),
            Weight::tensor("linear_attn.A_log", Role::State, &[heads], Some(0)),
            Weight::column(
                "linear_attn.in_proj_qkvg",
                Role::Attention,
                hidden,
                &[keys, keys, values, values],
            ),
            Weight::column("linear_attn.b_proj", Role::Attention, hidden, &[heads]),
            Weight::column("linear_attn.a_proj", Role::Attention, hidden, &[heads]),
            Weight::column(
                "linear_attn.conv1d",
                Role::State,
                self.kernel,
                &[keys, keys, values],
            )
            .unquantized(),
            Weight::norm("linear_attn.o_norm", self.v_dim),
            Weight::row("linear_attn.o_proj", Role::Attention, values, hidden),
        ]
    }
}

/// Which layers attend: `layer_types`, else every `full_attention_interval`-th.
fn attending(t: &Text) -> Result<Vec<bool>> {
    if let Some(types) = t.layer_types()? {
        return Ok(types
            .iter()
            .zip(0..t.layers()?)
            .map(|(kind, _)| matches!(*kind, "full_attention" | "attention" | "indexed_attention"))
            .collect());
    }
    let interval = t.config.dim_or("full_attention_interval", 4)?.max(1);
    Ok((0..t.layers()?)
        .map(|i| (i + 1).is_multiple_of(interval))
        .collect())
}

/// Qwen3-Next and Qwen3.5, dense or with experts (vLLM 0.32.0, `qwen3_next.py`, `qwen3_5.py`).
pub(crate) fn qwen(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let net = DeltaNet::read(t)?;
    let experts = c.dim_or("num_experts", 0)?;
    let mlp = Mlp::gated(c.dim_or("intermediate_size", 0)?);
    let mut d = Dense::with_mlp(t, mlp)?;
    d.attends.fill(Attend::Full);
    d.attention.qk_norm = QkNorm::Head(Norm::Scale);
    d.attention.qkv_bias = c.flag("qkv_bias", false)?;
    let gated = c.flag("attn_output_gate", true)?;
    let mut moe = None;
    if experts > 0 {
        let mut m = Moe::read(t, "mlp")?;
        let width = c.dim_or("shared_expert_intermediate_size", 0)?;
        m = m.shared("mlp.shared_expert", width);
        if let Some(shared) = &mut m.shared {
            shared.gate = true;
        }
        moe = Some(m);
    }
    let step = c.dim_or("decoder_sparse_step", 1)?.max(1);
    let dense_only = c.u64s("mlp_only_layers")?.unwrap_or_default();
    let hidden = d.hidden;
    let attends = attending(t)?;
    // Queries carry an output gate: twice the heads in the projection, not in the cache.
    let mut projected = d.attention.clone();
    projected.heads *= if gated { 2 } else { 1 };
    let output = |w: &Weight| w.name.ends_with("o_proj");
    let mut attention: Vec<Weight> = projected.weights(hidden);
    attention.retain(|w| !output(w));
    attention.extend(d.attention.weights(hidden).into_iter().filter(output));
    // Layers of a kind are alike: made once and copied.
    let delta = net.qwen_weights(hidden);
    let norms: Vec<Weight> = d.norms.iter().map(|name| Weight::norm(*name, hidden)).collect();
    let experts = moe.map(|moe| moe.weights(hidden));
    let dense = d.mlp.weights(hidden);
    let mut kinds = Kinds::default();
    let mut decoder = d.build_with(|i, layer| {
        let index = i as u64;
        let attends = attends.get(i) == Some(&true);
        if !attends {
            layer.caches = vec![net.cache()];
        }
        let experts = experts
            .as_ref()
            .filter(|_| !dense_only.contains(&index) && (index + 1).is_multiple_of(step));
        layer.weights = kinds.of((attends, experts.is_some()), || {
            let mixer = if attends { &attention } else { &delta };
            let feed = experts.unwrap_or(&dense);
            mixer.iter().chain(&norms).chain(feed).cloned().collect()
        });
        Ok(())
    })?;
    decoder.mtp_layers = c.dim_or("mtp_num_hidden_layers", c.dim_or("num_nextn_predict_layers", 0)?)?;
    Ok(decoder)
}

/// Intern-S2 Mobius (vLLM 0.32.0, `interns2_mobius.py`): Qwen3.5 with a shared expert in each layer, and a few blocks
/// of routed experts that all layers go through in turn.
pub(crate) fn mobius(t: &Text) -> Result<Decoder> {
    let hidden = t.hidden()?;
    let blocks = t.config.dim("num_blocks")?;
    let mut decoder = qwen(t)?;
    let routed = |w: &Weight| matches!(w.role, Role::Router | Role::Experts);
    let mut meta = Vec::new();
    for layer in &mut decoder.layers {
        meta = layer
            .weights
            .iter()
            .filter(|w| routed(w))
            .cloned()
            .collect::<Vec<_>>();
        layer.weights.retain(|w| !routed(w));
        if t.config.flag("layer_scale", false)? {
            layer.weights.push(Weight::norm("layer_scale", hidden).times(2));
        }
    }
    let meta = meta.into_iter().map(|mut w| {
        w.name = w.name.replacen("mlp", "model.meta_mlp.0", 1);
        w.times(blocks)
    });
    decoder.outside.push(part(Place::Every, meta.collect()));
    let modules = mobius_modules(t)?;
    decoder.mtp_layers = modules.layers.len() as u64;
    decoder.modules = (decoder.mtp_layers > 0).then(|| Box::new(modules));
    Ok(decoder)
}

/// Its modules of multi-token prediction, whose experts are their own (`hf_config_override` in `config/speculative.py`).
fn mobius_modules(t: &Text) -> Result<Modules> {
    let hidden = t.hidden()?;
    let count = t.config.u64("mtp_num_hidden_layers")?.unwrap_or(0);
    if count == 0 {
        return Ok(Modules::default());
    }
    let mut map = t.config.map().clone();
    map.insert("num_hidden_layers".to_owned(), Value::from(count));
    map.insert(
        "num_experts".to_owned(),
        Value::from(t.config.dim("mtp_num_experts")?),
    );
    let top_k = t.config.dim("mtp_num_experts_per_tok")?;
    map.insert("num_experts_per_tok".to_owned(), Value::from(top_k));
    map.remove("layer_types");
    map.insert("full_attention_interval".to_owned(), Value::from(1));
    map.remove("mlp_only_layers");
    let own = Text {
        config: t.config.with_map(map),
        ..t.clone()
    };
    let mut layers = qwen(&own)?.layers;
    if t.config.flag("layer_scale", false)? {
        for layer in &mut layers {
            layer.weights.push(Weight::norm("layer_scale", hidden).times(2));
        }
    }
    Ok(Modules {
        layers,
        once: vec![
            Weight::column("mtp.fc", Role::Mlp, 2 * hidden, &[hidden]),
            Weight::norm("norms", hidden).times(3),
        ],
        as_many_as_tokens: false,
    })
}

/// OLMo-Hybrid (vLLM 0.32.0, `olmo_hybrid.py`).
pub(crate) fn olmo(t: &Text) -> Result<Decoder> {
    let net = DeltaNet::read(t)?;
    let mut d = Dense::llama(t)?;
    d.attends.fill(Attend::Full);
    d.attention.qk_norm = QkNorm::Whole(Norm::Scale);
    d.norms = &["post_attention_layernorm", "post_feedforward_layernorm"];
    let mut attends = attending(t)?;
    if t.layer_types()?.is_none()
        && !attends.contains(&true)
        && let Some(last) = attends.last_mut()
    {
        *last = true;
    }
    let hidden = d.hidden;
    let mut decoder = d.build()?;
    for (layer, attends) in decoder.layers.iter_mut().zip(attends) {
        if !attends {
            let mut weights = net.olmo_weights(hidden);
            weights.extend(d.mlp.weights(hidden));
            weights.push(Weight::norm("input_layernorm", hidden));
            weights.push(Weight::norm("post_attention_layernorm", hidden));
            *layer = Layer {
                caches: vec![net.cache()],
                weights: weights.into(),
            };
        }
    }
    Ok(decoder)
}

/// Bailing (Ling, Ring) hybrids: every `layer_group_size`-th layer has latent attention, the others lightning
/// attention (2.5) or Kimi delta attention (3) (vLLM 0.32.0, `bailing_moe_linear.py`, `bailing_moe_v3.py`).
pub(crate) fn bailing(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let heads = t.heads()?;
    let mut mla = Mla::read(t)?;
    mla.output = "dense";
    let head_dim = t.head_dim()?;
    let third = t.class.contains("V3");
    let group = c.dim_or("layer_group_size", 1)?;
    let kernel = if third {
        c.dim_or("short_conv_kernel_size", 4)?
    } else {
        0
    };
    let linear = if third {
        kda_v3(hidden, heads, head_dim, kernel)
    } else {
        lightning(t, hidden, heads, head_dim)?
    };
    let each = c.dim("moe_intermediate_size")?;
    let shared =
        c.dim_or("num_shared_experts", 0)? * c.dim_or("moe_shared_expert_intermediate_size", each)?;
    let mut moe = Moe::read(t, "mlp")?
        .f32_router()
        .shared("mlp.shared_experts", shared);
    if c.flag("moe_router_enable_expert_bias", false)? {
        moe = moe.corrected("gate.expert_bias");
    }
    let first = c.dim_or("first_k_dense_replace", 0)?;
    let d = Dense::llama(t)?;
    let mut decoder = d.build_with(|_, _| Ok(()))?;
    // The third version's layers behind the last whole group attend too (`_is_kda_layer`).
    let whole = match t.layers()?.checked_rem(group) {
        Some(rest) if third => t.layers()? - rest,
        _ => u64::MAX,
    };
    for (i, layer) in decoder.layers.iter_mut().enumerate() {
        let index = i as u64;
        let full = group == 0 || (index + 1).is_multiple_of(group) || index >= whole;
        if full {
            layer.caches = mla.caches(false);
            layer.weights = mla.weights(hidden, false).into();
        } else {
            layer.weights = linear.clone().into();
            layer.caches = vec![if third {
                kda_cache(heads, head_dim, kernel, false)
            } else {
                Cache {
                    name: "self_attn".to_owned(),
                    kind: CacheKind::State(State::Linear {
                        heads,
                        dim: head_dim,
                        dtype: None,
                    }),
                }
            }];
        }
        layer
            .weights
            .extend(d.norms.iter().map(|name| Weight::norm(*name, hidden)));
        if index >= first {
            layer.weights.extend(moe.weights(hidden));
        } else {
            layer.weights.extend(d.mlp.weights(hidden));
        }
    }
    decoder.mtp_layers = c.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}

fn kda_v3(hidden: u64, heads: u64, head_dim: u64, kernel: u64) -> Vec<Weight> {
    let width = heads * head_dim;
    let mut weights = vec![
        Weight::tensor("self_attn.dt_bias", Role::State, &[width], Some(0)).of(Dtype::F32),
        Weight::tensor("self_attn.A_log", Role::State, &[heads], Some(0)).of(Dtype::F32),
        Weight::column(
            "self_attn.qkvb_proj",
            Role::Attention,
            hidden,
            &[width, width, width, heads],
        ),
        Weight::column("self_attn.f_proj", Role::Attention, hidden, &[width]),
        Weight::column("self_attn.g_proj", Role::Attention, hidden, &[width]),
        Weight::norm("self_attn.o_norm", head_dim),
        Weight::row("self_attn.o_proj", Role::Attention, width, hidden),
    ];
    for name in ["q_conv1d", "k_conv1d", "v_conv1d"] {
        let conv = Weight::column(format!("self_attn.{name}"), Role::State, kernel, &[width]);
        weights.push(conv.of(Dtype::F32).unquantized());
    }
    weights
}

fn lightning(t: &Text, hidden: u64, heads: u64, head_dim: u64) -> Result<Vec<Weight>> {
    let c = &t.config;
    let width = heads * head_dim;
    let bias = c.flag("use_bias", false)?;
    let mut weights = vec![
        Weight::qkv("self_attn.query_key_value", hidden, heads, heads, head_dim)
            .bias(bias || c.flag("use_qkv_bias", false)?),
        Weight::column("self_attn.g_proj", Role::Attention, hidden, &[width]),
        Weight::row("self_attn.dense", Role::Attention, width, hidden).bias(bias),
        Weight::tensor("self_attn.g_norm", Role::Norm, &[width], Some(0)),
    ];
    if c.flag("use_qk_norm", false)? {
        weights.push(Weight::norm("self_attn.query_layernorm", head_dim));
        weights.push(Weight::norm("self_attn.key_layernorm", head_dim));
    }
    Ok(weights)
}
