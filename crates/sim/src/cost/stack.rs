//! The kernels of one kind of layer, as one rank runs them, and what attention costs.

use kvwise_core::Result;
use kvwise_core::arch::weight::Shard;
use kvwise_core::arch::{CacheKind, Heads, Layer, Model, Op, Role, Split, State, Weight};

use super::calibration::{Calibration, Context, Decode, GpuSpec, Moe};
use super::kernel::{self, AttentionShape, ExpertShape};
use super::step::{Batch, StepOptions};
use super::tuning::Tuning;

/// Tokens that a sparse indexer lets attention see (`index_topk` of DeepSeek-V3.2).
pub(super) const SPARSE_TOKENS: f64 = 2048.0;
/// Heads of latent attention in prefill are expanded to 192 and 128 elements.
pub(super) const EXPANDED_HEAD_DIM: f64 = 160.0;

/// A matrix product: outputs, inputs, how many alike.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Product {
    pub(super) n: f64,
    pub(super) k: f64,
    pub(super) count: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attention {
    Heads {
        shape: AttentionShape,
        decode: Decode,
        context: Context,
        window: Option<f64>,
    },
    Latent {
        heads: f64,
        width: f64,
        kv_bytes: f64,
        decode: Decode,
        context: Context,
        sparse: bool,
    },
    Indexer {
        bytes_per_token: f64,
    },
    State {
        bytes_per_sequence: f64,
        flops_per_token: f64,
    },
}

/// Routed experts with every set of coefficients that may hold: the fastest counts, as servers choose by shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Experts {
    pub(super) shape: ExpertShape,
    pub(super) fits: Vec<Moe>,
    pub(super) penalty: f64,
}

/// Layers that are alike.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stack {
    pub(super) layers: f64,
    pub(super) products: Vec<Product>,
    pub(super) router: Vec<Product>,
    pub(super) experts: Option<Experts>,
    pub(super) attention: Vec<Attention>,
    pub(super) elementwise_bytes_per_token: f64,
    pub(super) reductions: f64,
    /// Sums of a few numbers a token over the ranks: norms of queries and keys that span all heads (vLLM 0.32.0,
    /// `minimax_m2.py`, `MiniMaxText01RMSNormTP`; SGLang 0.5.23, `minimax_m2.py`, `MiniMaxM2QKRMSNorm`).
    pub(super) norm_sums: f64,
}

/// The layers of `model`, those that are alike put together.
pub(super) fn stacks(
    model: &Model,
    calibration: &Calibration,
    o: StepOptions,
    tuning: &Tuning,
) -> Result<Vec<Stack>> {
    let mut stacks: Vec<(&Layer, Stack)> = Vec::new();
    for layer in &model.layers {
        if let Some((_, stack)) = stacks.iter_mut().find(|(seen, _)| *seen == layer) {
            stack.layers += 1.0;
        } else {
            stacks.push((layer, stack(model, layer, calibration, o, tuning)?));
        }
    }
    Ok(stacks.into_iter().map(|(_, stack)| stack).collect())
}

/// Share of `n` that one of `ranks` holds.
fn share(n: u64, ranks: u64) -> f64 {
    n.div_ceil(ranks) as f64
}

fn stack(
    model: &Model,
    layer: &Layer,
    calibration: &Calibration,
    o: StepOptions,
    tuning: &Tuning,
) -> Result<Stack> {
    let mut s = Stack {
        layers: 1.0,
        products: Vec::new(),
        router: Vec::new(),
        experts: None,
        attention: Vec::new(),
        elementwise_bytes_per_token: model.hidden_size as f64 * 2.0 * 8.0,
        reductions: 0.0,
        norm_sums: 0.0,
    };
    // Queries and keys are summed in one go. A norm over all heads is cut as they are.
    if layer.weights.iter().any(|w| {
        w.role == Role::Norm
            && matches!(
                w.op,
                Op::Linear {
                    split: Split::Column,
                    ..
                } | Op::Tensor { split: Some(_), .. }
            )
    }) {
        s.norm_sums = 1.0;
    }
    let mut query_heads = model.num_attention_heads;
    for weight in &layer.weights {
        // Where queries carry an output gate, their projection counts every head twice.
        if let Op::Qkv { heads, .. } = weight.op
            && heads != 2 * model.num_attention_heads
        {
            query_heads = heads;
        }
        add_weight(&mut s, weight, calibration, o, tuning)?;
    }
    for cache in &layer.caches {
        add_cache(&mut s, &cache.kind, query_heads, calibration, o)?;
    }
    // Routed and shared experts are added up before the ranks are: one reduction for both.
    if s.experts.is_some() {
        let shared = layer.weights.iter().any(|w| {
            w.role == Role::SharedExpert
                && matches!(
                    w.op,
                    Op::Linear {
                        split: Split::Row,
                        ..
                    }
                )
        });
        if shared {
            s.reductions -= 1.0;
        }
    }
    Ok(s)
}

fn add_weight(
    s: &mut Stack,
    weight: &Weight,
    calibration: &Calibration,
    o: StepOptions,
    tuning: &Tuning,
) -> Result<()> {
    if matches!(
        weight.role,
        Role::Tower | Role::Embedding | Role::Head | Role::Norm
    ) {
        return Ok(());
    }
    let count = weight.count as f64;
    match weight.shard(&o.parallel())? {
        Shard::Linear { inputs, outputs, .. } => {
            let n: u64 = outputs.iter().sum();
            if matches!(
                weight.op,
                Op::Linear {
                    split: Split::Row,
                    ..
                }
            ) {
                s.reductions += 1.0;
            }
            // A small kernel reads and writes what comes out of a fused projection (rotary embedding, activation).
            s.elementwise_bytes_per_token += n as f64 * 2.0 * 1.5;
            let product = Product {
                n: n as f64,
                k: inputs as f64,
                count,
            };
            if weight.role == Role::Router {
                s.router.push(product);
            } else {
                s.products.push(product);
            }
        }
        Shard::Experts { hidden, .. } => {
            let Op::Experts {
                experts,
                top_k,
                intermediate,
                gated,
                ..
            } = weight.op
            else {
                return Ok(());
            };
            let whole = o.expert_ranks() > 1;
            let shape = ExpertShape {
                experts: experts as f64,
                top_k: top_k as f64,
                hidden: hidden as f64,
                intermediate: intermediate as f64,
                matrices: if gated { 3.0 } else { 2.0 },
                tp: if whole { 1.0 } else { o.tp as f64 },
                ep: o.expert_ranks() as f64,
                imbalance: tuning.expert_imbalance,
            };
            s.reductions += 1.0;
            let floor = |mut moe: Moe| {
                moe.t0_s *= tuning.expert_floor;
                moe
            };
            s.experts = Some(Experts {
                shape,
                fits: calibration
                    .moe(o.engine, o.experts.moe_key())?
                    .into_iter()
                    .map(floor)
                    .collect(),
                penalty: if whole && o.untuned_whole_experts(calibration) {
                    tuning.whole_expert_penalty
                } else {
                    1.0
                },
            });
        }
        Shard::Vocab { .. } | Shard::Plain { .. } => {}
    }
    Ok(())
}

fn add_cache(
    s: &mut Stack,
    kind: &CacheKind,
    query_heads: u64,
    calibration: &Calibration,
    o: StepOptions,
) -> Result<()> {
    let heads_of = |h: &Heads, window: Option<u64>| -> Result<Attention> {
        let fp8 = o.kv_fp8 && h.follows_kv_dtype;
        Ok(Attention::Heads {
            shape: AttentionShape {
                heads: share(query_heads, o.tp),
                kv_heads: share(h.kv_heads, o.tp).max(1.0),
                head_dim: u64::midpoint(h.head_dim, h.head_dim_v) as f64,
                kv_bytes: if fp8 { 1.0 } else { 2.0 },
            },
            decode: calibration.decode(fp8, h.head_dim)?,
            context: calibration.context(h.head_dim)?,
            window: window.map(|w| w as f64),
        })
    };
    let attention = match kind {
        CacheKind::Full(h) | CacheKind::Cross(h) => heads_of(h, None)?,
        CacheKind::Sliding { heads, window } => heads_of(heads, Some(*window))?,
        CacheKind::Chunked { heads, chunk } => heads_of(heads, Some(*chunk))?,
        CacheKind::Latent { width, sparse, .. } => Attention::Latent {
            heads: share(query_heads, o.tp),
            width: *width as f64,
            kv_bytes: if o.kv_fp8 { 1.0 } else { 2.0 },
            decode: calibration.latent_decode(o.kv_fp8)?,
            context: calibration.context(128)?,
            sparse: *sparse,
        },
        CacheKind::Indexer { bytes_per_token, .. } => Attention::Indexer {
            bytes_per_token: *bytes_per_token as f64,
        },
        CacheKind::State(state) => {
            let (elements, element_bytes) = state_size(state);
            Attention::State {
                bytes_per_sequence: elements * element_bytes / o.tp as f64,
                flops_per_token: 6.0 * elements / o.tp as f64,
            }
        }
        // Other caches (compressed, convolution windows) are read like a latent of their own size.
        _ => return Ok(()),
    };
    s.attention.push(attention);
    Ok(())
}

/// Elements of a recurrent state and bytes of one.
fn state_size(state: &State) -> (f64, f64) {
    let bytes = |dtype: Option<kvwise_core::dtype::Dtype>| dtype.map_or(2.0, |d| d.bits() as f64 / 8.0);
    match state {
        State::Mamba1 {
            inner, state, ssm, ..
        } => (*inner as f64 * *state as f64, bytes(*ssm)),
        State::Mamba2 {
            heads,
            head_dim,
            state,
            ssm,
            ..
        } => (*heads as f64 * *head_dim as f64 * *state as f64, bytes(*ssm)),
        State::GatedDelta {
            v_heads,
            v_dim,
            k_dim,
            ssm,
            ..
        } => (*v_heads as f64 * *v_dim as f64 * *k_dim as f64, bytes(*ssm)),
        State::Kda { heads, dim, ssm, .. } => (*heads as f64 * (*dim * *dim) as f64, bytes(*ssm)),
        State::Linear { heads, dim, dtype } => (*heads as f64 * (*dim * *dim) as f64, bytes(*dtype)),
        State::ShortConv { hidden, kernel, .. } => (*hidden as f64 * *kernel as f64, 2.0),
    }
}

/// Seconds of one layer's attention over `batch`.
pub(super) fn attention_time(
    attention: &Attention,
    gpu: &GpuSpec,
    floor_s: f64,
    tuning: &Tuning,
    batch: &Batch<'_>,
) -> f64 {
    let sequences = batch.decode_sequences as f64;
    let context = batch.mean_context();
    let mut seconds = 0.0;
    match attention {
        Attention::Heads {
            shape,
            decode,
            context: prefill,
            window,
        } => {
            let seen = window.map_or(context, |w| context.min(w));
            if sequences > 0.0 {
                seconds += kernel::attention_decode(decode, gpu, *shape, sequences, seen);
            }
            for p in batch.prefills {
                let (new, past) = (p.new_tokens as f64, p.past_tokens as f64);
                seconds += kernel::attention_prefill(prefill, gpu, *shape, new, past, *window);
            }
        }
        Attention::Latent {
            heads,
            width,
            kv_bytes,
            decode,
            context: prefill,
            sparse,
        } => {
            let seen = if *sparse {
                context.min(SPARSE_TOKENS)
            } else {
                context
            };
            if sequences > 0.0 {
                seconds += kernel::latent_decode(decode, gpu, *heads, *width, *kv_bytes, sequences, seen);
            }
            let shape = AttentionShape {
                heads: *heads,
                kv_heads: *heads,
                head_dim: EXPANDED_HEAD_DIM,
                kv_bytes: 2.0,
            };
            let window = sparse.then_some(SPARSE_TOKENS);
            for p in batch.prefills {
                let (new, past) = (p.new_tokens as f64, p.past_tokens as f64);
                seconds += kernel::attention_prefill(prefill, gpu, shape, new, past, window);
            }
        }
        Attention::Indexer { bytes_per_token } => {
            seconds += floor_s + batch.decode_context_tokens * bytes_per_token / (gpu.bw * 0.7);
            for p in batch.prefills {
                let pairs = (p.past_tokens as f64 + p.new_tokens as f64 / 2.0) * p.new_tokens as f64;
                seconds += pairs * bytes_per_token * 64.0 / (gpu.f16 * 0.5);
            }
        }
        Attention::State {
            bytes_per_sequence,
            flops_per_token,
        } => {
            let active = sequences + batch.prefills.len() as f64;
            seconds += 2.0 * floor_s + 2.0 * active * bytes_per_sequence / (gpu.bw * tuning.state_bandwidth);
            let prefill: f64 = batch.prefills.iter().map(|p| p.new_tokens as f64).sum();
            seconds += prefill * flops_per_token / (gpu.f16 * tuning.state_rate);
        }
    }
    seconds
}

#[cfg(test)]
mod tests {
    use kvwise_core::arch::{Config, family};
    use kvwise_core::catalogue;

    use super::*;
    use crate::cost::calibration::Engine;

    fn stacks_of(name: &str) -> Vec<Stack> {
        let text = catalogue::find(name).unwrap().config_text().unwrap();
        let family::Reading::Model(model) =
            family::read(name, &Config::parse(text.as_bytes()).unwrap()).unwrap()
        else {
            panic!("{name} is refused");
        };
        let calibration = Calibration::embedded("h100_sxm").unwrap();
        stacks(
            &model,
            &calibration,
            StepOptions::new(Engine::Vllm, 4),
            &Tuning::default(),
        )
        .unwrap()
    }

    #[test]
    fn norms_over_all_heads_are_summed_over_the_ranks_and_norms_of_each_head_are_not() {
        let summed = |name: &str| {
            stacks_of(name)
                .iter()
                .map(|s| s.norm_sums * s.layers)
                .sum::<f64>()
        };
        assert!((summed("MiniMaxAI/MiniMax-M2.5") - 62.0).abs() < 1e-9);
        assert!(summed("Qwen/Qwen3-32B").abs() < 1e-9);
        assert!(summed("meta-llama/Llama-3.1-8B").abs() < 1e-9);
    }
}
