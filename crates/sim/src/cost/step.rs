//! The time of one engine step for a batch of prefill chunks and decoding sequences.

use kvwise_core::arch::weight::Shard;
use kvwise_core::arch::{CacheKind, Heads, Layer, Model, Op, Parallel, Role, Split, State, Weight};
use kvwise_core::{Error, Result};

use super::calibration::{AllReduce, Calibration, Context, Decode, Engine, Gemm, GpuSpec, Moe};
use super::kernel::{self, AttentionShape, ExpertShape, Format};

/// Number format of the matrix products of a part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 16-bit weights and activations.
    Bf16,
    /// 8-bit float weights and activations, per tensor or per channel.
    Fp8,
    /// 8-bit float with 128 x 128 blocks.
    Fp8Block,
    /// NVIDIA 4-bit float weights and activations.
    Nvfp4,
    /// OCP 4-bit float weights, 16-bit activations.
    Mxfp4A16,
    /// OCP 4-bit float weights, 8-bit activations.
    Mxfp4A8,
    /// 4-bit integer weights, 16-bit activations (AWQ, GPTQ, compressed-tensors W4A16).
    Int4A16,
}

impl Precision {
    /// Key of the routed-expert coefficients.
    fn moe_key(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::Fp8 => "fp8",
            Self::Fp8Block => "fp8_block",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4A16 => "w4a16_mxfp4",
            Self::Mxfp4A8 => "w4a8_mxfp4_mxfp8",
            Self::Int4A16 => "int4_wo",
        }
    }

    /// Key of the matrix-product coefficients: block-wise fp8 uses those of fp8, whose fit does not contain the
    /// quantisation launches of the micro-benchmark; weight-only formats compute in 16 bits.
    fn gemm_key(self) -> &'static str {
        match self {
            Self::Fp8 | Self::Fp8Block => "fp8",
            Self::Nvfp4 => "nvfp4",
            Self::Bf16 | Self::Mxfp4A16 | Self::Mxfp4A8 | Self::Int4A16 => "bfloat16",
        }
    }

    fn format(self, gpu: &GpuSpec) -> Format {
        let f8 = gpu.f8.unwrap_or(gpu.f16);
        let (weight_bytes, activation_bytes, rate) = match self {
            Self::Bf16 => (2.0, 2.0, gpu.f16),
            Self::Fp8 | Self::Fp8Block => (1.0, 1.0, f8),
            Self::Nvfp4 => (0.5625, 0.5625, gpu.f4.unwrap_or(f8)),
            Self::Mxfp4A16 => (0.53125, 2.0, gpu.f16),
            Self::Mxfp4A8 => (0.53125, 1.0, f8),
            Self::Int4A16 => (0.53, 2.0, gpu.f16),
        };
        Format {
            weight_bytes,
            activation_bytes,
            rate,
        }
    }
}

/// How the model is spread and in which formats it computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Whose kernels.
    pub engine: Engine,
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Expert-parallel ranks (1 if experts are cut like other matrices).
    pub ep: u64,
    /// Format of the linear layers.
    pub linear: Precision,
    /// Format of the routed experts.
    pub experts: Precision,
    /// Whether keys and values are 8-bit.
    pub kv_fp8: bool,
}

impl StepOptions {
    fn parallel(&self) -> Parallel {
        Parallel {
            tp: self.tp,
            expert_parallel: self.ep > 1,
            ..Parallel::default()
        }
    }
}

/// One prefill chunk of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens computed in this step.
    pub new_tokens: u64,
    /// Tokens already in the cache.
    pub past_tokens: u64,
}

/// What one step computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batch<'a> {
    /// Sequences that decode one token each.
    pub decode_sequences: u64,
    /// Sum of their cached tokens.
    pub decode_context_tokens: f64,
    /// Prefill chunks.
    pub prefills: &'a [Prefill],
}

impl Batch<'_> {
    fn tokens(&self) -> f64 {
        self.decode_sequences as f64 + self.prefills.iter().map(|p| p.new_tokens as f64).sum::<f64>()
    }
}

/// Where the time of one step goes, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTime {
    /// Matrix products of attention, feed-forward and head.
    pub linear_s: f64,
    /// Routed experts.
    pub experts_s: f64,
    /// Attention over the cache, prefill and decode.
    pub attention_s: f64,
    /// Recurrent state.
    pub state_s: f64,
    /// Collectives.
    pub communication_s: f64,
    /// Norms, activations, quantisation and their launches.
    pub elementwise_s: f64,
}

impl StepTime {
    /// Total, seconds.
    pub fn total_s(&self) -> f64 {
        self.linear_s
            + self.experts_s
            + self.attention_s
            + self.state_s
            + self.communication_s
            + self.elementwise_s
    }
}

/// Factors fitted to served traffic, on top of the kernel calibrations.
///
/// Kernel benchmarks launch a mixture of experts eagerly, a server replays it from a graph: of its launch floor
/// about half remains. The elementwise share and kernel count are typical of fused decoder layers.
mod tuned {
    /// Share of the experts' launch floor that a graph replay keeps.
    pub const MOE_FLOOR: f64 = 0.5;
    /// Small kernels a layer besides products and attention.
    pub const SMALL_KERNELS: f64 = 6.0;
    /// Share of the bandwidth that small kernels reach.
    pub const ELEMENTWISE_BANDWIDTH: f64 = 0.5;
    /// Share of the bandwidth that state updates reach.
    pub const STATE_BANDWIDTH: f64 = 0.6;
    /// Share of the 16-bit rate that chunked state prefill reaches.
    pub const STATE_RATE: f64 = 0.15;
    /// Tokens that a sparse indexer lets attention see (`index_topk` of DeepSeek-V3.2).
    pub const SPARSE_TOKENS: f64 = 2048.0;
}

#[derive(Debug, Clone, PartialEq)]
struct Product {
    n: f64,
    k: f64,
    count: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Attention {
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

#[derive(Debug, Clone, PartialEq)]
struct Stack {
    layers: f64,
    products: Vec<Product>,
    router: Vec<Product>,
    experts: Option<(ExpertShape, Moe)>,
    attention: Vec<Attention>,
    elementwise_bytes_per_token: f64,
    reductions: f64,
}

/// The kernels of a model on one GPU, ready to be timed for any batch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepModel {
    gpu: GpuSpec,
    floor_s: f64,
    gemm: Gemm,
    gemm16: Gemm,
    linear: Format,
    linear16: Format,
    experts: Format,
    reduce: Option<AllReduce>,
    hidden: f64,
    head: Product,
    stacks: Vec<Stack>,
}

impl StepModel {
    /// Lists the kernels of `model` under `options`, timed by `calibration`.
    ///
    /// # Errors
    /// If the parallel sizes are zero, or the calibration lacks a kernel that the model needs.
    pub fn new(model: &Model, calibration: &Calibration, options: StepOptions) -> Result<Self> {
        if options.tp == 0 || options.ep == 0 {
            return Err(Error::input("parallel sizes must be at least 1"));
        }
        let gpu = calibration.spec;
        let mut stacks: Vec<(&Layer, Stack)> = Vec::new();
        for layer in &model.layers {
            if let Some((_, stack)) = stacks.iter_mut().find(|(seen, _)| *seen == layer) {
                stack.layers += 1.0;
            } else {
                stacks.push((layer, stack(model, layer, calibration, options)?));
            }
        }
        let reduce = if options.tp > 1 {
            Some(calibration.all_reduce(options.engine, options.tp)?)
        } else {
            None
        };
        Ok(Self {
            gpu,
            floor_s: calibration.defaults.kernel_floor_s,
            gemm: calibration.gemm(options.linear.gemm_key())?,
            gemm16: calibration.gemm("bfloat16")?,
            linear: options.linear.format(&gpu),
            linear16: Precision::Bf16.format(&gpu),
            experts: options.experts.format(&gpu),
            reduce,
            hidden: model.hidden_size as f64,
            head: Product {
                n: model.vocab_size.div_ceil(options.tp) as f64,
                k: model.hidden_size as f64,
                count: 1.0,
            },
            stacks: stacks.into_iter().map(|(_, stack)| stack).collect(),
        })
    }

    /// The time of one step; zero for an empty batch.
    pub fn time(&self, batch: &Batch<'_>) -> StepTime {
        let tokens = batch.tokens();
        let mut total = StepTime::default();
        if tokens <= 0.0 {
            return total;
        }
        let gpu = &self.gpu;
        for stack in &self.stacks {
            let product =
                |c: &Gemm, f: Format, p: &Product| kernel::gemm(c, gpu, f, tokens, p.n, p.k) * p.count;
            let mut t = StepTime {
                linear_s: stack
                    .products
                    .iter()
                    .map(|p| product(&self.gemm, self.linear, p))
                    .sum::<f64>()
                    + stack
                        .router
                        .iter()
                        .map(|p| product(&self.gemm16, self.linear16, p))
                        .sum::<f64>(),
                elementwise_s: tuned::SMALL_KERNELS * self.floor_s
                    + tokens * stack.elementwise_bytes_per_token / (gpu.bw * tuned::ELEMENTWISE_BANDWIDTH),
                ..StepTime::default()
            };
            if let Some((shape, moe)) = &stack.experts {
                t.experts_s = kernel::experts(moe, gpu, self.experts, *shape, tokens);
            }
            for attention in &stack.attention {
                let seconds = attention_time(attention, gpu, self.floor_s, batch);
                if matches!(attention, Attention::State { .. }) {
                    t.state_s += seconds;
                } else {
                    t.attention_s += seconds;
                }
            }
            if let Some(reduce) = &self.reduce {
                t.communication_s = stack.reductions * kernel::all_reduce(reduce, tokens * self.hidden * 2.0);
            }
            total.linear_s += t.linear_s * stack.layers;
            total.experts_s += t.experts_s * stack.layers;
            total.attention_s += t.attention_s * stack.layers;
            total.state_s += t.state_s * stack.layers;
            total.communication_s += t.communication_s * stack.layers;
            total.elementwise_s += t.elementwise_s * stack.layers;
        }
        // Logits are computed for the sampled positions only, in 16 bits.
        let sampled = (batch.decode_sequences as f64 + batch.prefills.len() as f64).max(1.0);
        total.linear_s += kernel::gemm(
            &self.gemm16,
            gpu,
            self.linear16,
            sampled,
            self.head.n,
            self.head.k,
        );
        total
    }
}

fn attention_time(attention: &Attention, gpu: &GpuSpec, floor_s: f64, batch: &Batch<'_>) -> f64 {
    let sequences = batch.decode_sequences as f64;
    let context = if sequences > 0.0 {
        batch.decode_context_tokens / sequences
    } else {
        0.0
    };
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
                context.min(tuned::SPARSE_TOKENS)
            } else {
                context
            };
            if sequences > 0.0 {
                seconds += kernel::latent_decode(decode, gpu, *heads, *width, *kv_bytes, sequences, seen);
            }
            // Prefill expands the latent to ordinary heads of 192/128.
            let shape = AttentionShape {
                heads: *heads,
                kv_heads: *heads,
                head_dim: 160.0,
                kv_bytes: 2.0,
            };
            let window = sparse.then_some(tuned::SPARSE_TOKENS);
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
            seconds += 2.0 * floor_s + 2.0 * active * bytes_per_sequence / (gpu.bw * tuned::STATE_BANDWIDTH);
            let prefill: f64 = batch.prefills.iter().map(|p| p.new_tokens as f64).sum();
            seconds += prefill * flops_per_token / (gpu.f16 * tuned::STATE_RATE);
        }
    }
    seconds
}

/// Share of `n` that one of `ranks` holds.
fn share(n: u64, ranks: u64) -> f64 {
    n.div_ceil(ranks) as f64
}

fn stack(model: &Model, layer: &Layer, calibration: &Calibration, o: StepOptions) -> Result<Stack> {
    let mut s = Stack {
        layers: 1.0,
        products: Vec::new(),
        router: Vec::new(),
        experts: None,
        attention: Vec::new(),
        elementwise_bytes_per_token: model.hidden_size as f64 * 2.0 * 8.0,
        reductions: 0.0,
    };
    let mut query_heads = model.num_attention_heads;
    for weight in &layer.weights {
        // Where queries carry an output gate, their projection counts every head twice.
        if let Op::Qkv { heads, .. } = weight.op
            && heads != 2 * model.num_attention_heads
        {
            query_heads = heads;
        }
        add_weight(&mut s, weight, calibration, o)?;
    }
    for cache in &layer.caches {
        add_cache(&mut s, &cache.kind, query_heads, calibration, o)?;
    }
    Ok(s)
}

fn add_weight(s: &mut Stack, weight: &Weight, calibration: &Calibration, o: StepOptions) -> Result<()> {
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
            let (moe, _) = calibration.moe(o.engine, o.experts.moe_key())?;
            let shape = ExpertShape {
                experts: experts as f64,
                top_k: top_k as f64,
                hidden: hidden as f64,
                intermediate: intermediate as f64,
                matrices: if gated { 3.0 } else { 2.0 },
                tp: if o.ep > 1 { 1.0 } else { o.tp as f64 },
                ep: o.ep as f64,
            };
            s.reductions += 1.0;
            s.experts = Some((
                shape,
                Moe {
                    t0_s: moe.t0_s * tuned::MOE_FLOOR,
                    ..moe
                },
            ));
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
            let (elements, flops_per_token) = state_work(state);
            Attention::State {
                bytes_per_sequence: elements * 2.0 / o.tp as f64,
                flops_per_token: flops_per_token / o.tp as f64,
            }
        }
        // Other caches (compressed, convolution windows) are read like a latent of their own size.
        _ => return Ok(()),
    };
    s.attention.push(attention);
    Ok(())
}

/// Elements of a recurrent state and floating-point operations a token of its update.
fn state_work(state: &State) -> (f64, f64) {
    let (a, b, c) = match state {
        State::Mamba1 { inner, state, .. } => (*inner, *state, 1),
        State::Mamba2 {
            heads,
            head_dim,
            state,
            ..
        } => (*heads, *head_dim, *state),
        State::GatedDelta {
            v_heads,
            v_dim,
            k_dim,
            ..
        } => (*v_heads, *v_dim, *k_dim),
        State::Kda { heads, dim, .. } | State::Linear { heads, dim, .. } => (*heads, *dim, *dim),
        State::ShortConv { hidden, kernel } => (*hidden, *kernel, 1),
    };
    let elements = a as f64 * b as f64 * c as f64;
    (elements, 6.0 * elements)
}
