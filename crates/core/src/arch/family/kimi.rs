//! Kimi-Linear and Kimi-K3: Kimi delta attention beside latent attention without positions.

use super::dense::{Decoder, Dense, part};
use super::mla::Mla;
use super::moe::Moe;
use super::text::Text;
use crate::arch::weight::Part;
use crate::arch::{Cache, CacheKind, Config, Place, Role, State, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Least width of one expert on a rank where experts are sliced; narrower slices are filled up with zeros
/// (vLLM 0.32.0, `KimiMoE` in `models/kimi_k3/nvidia/model.py`).
const LEAST_EXPERT_WIDTH: u64 = 256;

/// What Kimi-K3 fills a rank's outputs of the fused projection up to a multiple of (vLLM 0.32.0,
/// `models/kimi_k3/nvidia/kda.py`).
const FILLED_OUTPUTS: u64 = 16;

/// The state of a Kimi delta attention; the recurrent part is float32 unless the model says otherwise.
pub(crate) fn kda_cache(heads: u64, dim: u64, kernel: u64, checkpoint: bool) -> Cache {
    Cache {
        name: "self_attn".to_owned(),
        kind: CacheKind::State(State::Kda {
            heads,
            dim,
            kernel,
            checkpoint,
            conv: None,
            ssm: None,
        }),
    }
}

/// A Kimi delta attention as `linear_attn_config` describes it.
struct Delta {
    heads: u64,
    dim: u64,
    kernel: u64,
    /// Whether the output gate is one full matrix (Kimi-K3) instead of two of low rank (Kimi-Linear).
    full_gate: bool,
    /// Whether the decay is bounded, which the kernel that exports checkpoints needs.
    bounded: bool,
    /// Layers that have it, counted from 1.
    layers: Vec<u64>,
}

impl Delta {
    fn read(c: &Config) -> Result<Self> {
        let linear = c.sub("linear_attn_config")?.ok_or_else(|| {
            Error::input(format!(
                "{} is missing from the configuration",
                c.name("linear_attn_config")
            ))
        })?;
        Ok(Self {
            heads: linear.dim("num_heads")?,
            dim: linear.dim("head_dim")?,
            kernel: linear.dim("short_conv_kernel_size")?,
            full_gate: linear.flag("use_full_rank_gate", false)?,
            bounded: linear.f64("gate_lower_bound")?.is_some(),
            layers: linear.u64s("kda_layers")?.unwrap_or_default(),
        })
    }

    /// Its state. Kimi-K3's layers take `FlashKDA`, and with it a checkpoint inside a prefill, for heads of 128 and a
    /// bounded decay (`resolve_kda_prefill_backend` in `models/kimi_k3/nvidia/kda.py`, on Hopper and later).
    fn cache(&self) -> Cache {
        let checkpoint = self.full_gate && self.bounded && self.dim == 128;
        kda_cache(self.heads, self.dim, self.kernel, checkpoint)
    }

    fn weights(&self, hidden: u64) -> Vec<Weight> {
        let (heads, dim) = (self.heads, self.dim);
        let width = heads * dim;
        // Queries, keys, values, in Kimi-K3 the output gate, then the decay's first half and the step sizes.
        let wide = if self.full_gate { 4 } else { 3 };
        let mut inputs = vec![Part::Even(width); wide];
        inputs.extend([Part::Even(heads), Part::Whole(dim)]);
        let filled = if self.full_gate { FILLED_OUTPUTS } else { 1 };
        let mut all = vec![
            Weight::parts("self_attn.in_proj_qkvgfab", Role::Attention, hidden, inputs)
                .outputs_multiple(filled),
            Weight::column("self_attn.f_b_proj", Role::Attention, dim, &[width]),
            Weight::tensor("self_attn.dt_bias", Role::State, &[width], Some(0)).of(Dtype::F32),
            Weight::column("self_attn.conv1d", Role::State, self.kernel, &[width; 3])
                .of(Dtype::F32)
                .unquantized(),
            Weight::tensor("self_attn.A_log", Role::State, &[heads], Some(0)).of(Dtype::F32),
        ];
        if !self.full_gate {
            all.push(Weight::replicated(
                "self_attn.g_a_proj",
                Role::Attention,
                hidden,
                &[dim],
            ));
            all.push(Weight::column(
                "self_attn.g_b_proj",
                Role::Attention,
                dim,
                &[width],
            ));
        }
        all.push(Weight::norm("self_attn.o_norm", dim));
        all.push(Weight::row("self_attn.o_proj", Role::Attention, width, hidden));
        all
    }
}

/// Parameters of a latent attention; with `mla_use_output_gate`, a gate is part of its first projection or,
/// without a low rank of the queries, stands beside it.
fn latent_weights(mla: &Mla, hidden: u64, gated: bool) -> Vec<Weight> {
    let mut all = mla.weights(hidden, false);
    if gated {
        let gate = mla.heads * mla.value;
        match mla.q_lora {
            Some(rank) => {
                all.retain(|w| w.name != "self_attn.fused_qkv_a_proj");
                all.push(Weight::parts(
                    "self_attn.fused_qkv_a_g_proj",
                    Role::Attention,
                    hidden,
                    vec![
                        Part::Whole(rank),
                        Part::Whole(mla.kv_lora + mla.rope),
                        Part::Even(gate),
                    ],
                ));
            }
            None => all.push(Weight::column(
                "self_attn.g_proj",
                Role::Attention,
                hidden,
                &[gate],
            )),
        }
    }
    all
}

/// Router, experts and shared expert; where `routed_expert_hidden_size` is set, routed experts work in that width,
/// between two whole projections.
fn experts(t: &Text, hidden: u64) -> Result<Option<Vec<Weight>>> {
    const PATH: &str = "block_sparse_moe";
    let c = &t.config;
    let count = c.dim_or("num_experts", 0)?;
    if count == 0 {
        return Ok(None);
    }
    let each = c.dim("moe_intermediate_size")?;
    let top_k = t.first_dim(&["num_experts_per_token", "num_experts_per_tok"])?;
    let moe = Moe::new(PATH, count, top_k, each)
        .corrected("gate.e_score_correction_bias")
        .shared(
            "block_sparse_moe.shared_experts",
            each * c.dim_or("num_shared_experts", 0)?,
        );
    let mut all = moe.weights(hidden);
    let least = c.dim_or("min_moe_intermediate_per_partition", LEAST_EXPERT_WIDTH)?;
    let width = match c.dim_or("routed_expert_hidden_size", 0)? {
        0 => hidden,
        latent => {
            let name = |part: &str| format!("{PATH}.{part}");
            let role = Role::Mlp;
            // Kimi-K3's checkpoints, of experts in MXFP4, leave both in 16 bits as vLLM 0.32.0 builds them.
            let down = Weight::replicated(name("routed_expert_down_proj"), role, hidden, &[latent]);
            let up = Weight::replicated(name("routed_expert_up_proj"), role, latent, &[hidden]);
            all.extend([down, up].map(Weight::unquantized));
            if c.flag("latent_moe_use_norm", false)? {
                all.push(Weight::norm(name("routed_expert_norm"), latent));
            }
            latent
        }
    };
    all.retain(|w| w.role != Role::Experts);
    all.push(Weight::experts(format!("{PATH}.experts"), count, top_k, width, each).least_width(least));
    Ok(Some(all))
}

/// Kimi-Linear and the language model of Kimi-K3 (vLLM 0.32.0, `models/kimi_k3/nvidia/model.py`).
pub(crate) fn kimi(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let hidden = t.hidden()?;
    let delta = Delta::read(c)?;
    let mla = Mla::read(t)?;
    let mut d = Dense::llama(t)?;
    d.attends.fill(super::text::Attend::Full);
    // Attention over the residuals of earlier blocks of layers: norms and one-output projections.
    let residual = c.get("attn_res_block_size").is_some();
    let over_residuals = |path: &str| {
        [
            Weight::norm(format!("{path}_norm"), hidden),
            Weight::replicated(format!("{path}_proj"), Role::Norm, hidden, &[1]).unquantized(),
        ]
    };
    let mut norms: Vec<Weight> = d.norms.iter().map(|name| Weight::norm(*name, hidden)).collect();
    if residual {
        norms.extend(over_residuals("self_attention_res"));
        norms.extend(over_residuals("mlp_res"));
    }
    // Layers of a kind are alike: made once and copied.
    let attention = [
        latent_weights(&mla, hidden, c.flag("mla_use_output_gate", false)?),
        delta.weights(hidden),
    ];
    let experts = experts(t, hidden)?;
    let dense = d.mlp.weights(hidden);
    let first = c.dim_or("first_k_dense_replace", 0)?;
    let frequency = c.dim_or("moe_layer_freq", 1)?.max(1);
    let mut decoder = d.build_with(|i, layer| {
        let index = i as u64;
        let recurrent = delta.layers.contains(&(index + 1));
        layer.caches = if recurrent {
            vec![delta.cache()]
        } else {
            mla.caches(false)
        };
        layer.weights = attention[usize::from(recurrent)].clone().into();
        layer.weights.extend(norms.iter().cloned());
        let feed = match &experts {
            Some(experts) if index >= first && index.is_multiple_of(frequency) => experts,
            _ => &dense,
        };
        layer.weights.extend(feed.iter().cloned());
        Ok(())
    })?;
    if residual {
        let weights = over_residuals("model.output_attn_res").to_vec();
        decoder.outside.push(part(Place::Last, weights));
    }
    decoder.mtp_layers = c.dim_or("num_nextn_predict_layers", 0)?;
    Ok(decoder)
}
