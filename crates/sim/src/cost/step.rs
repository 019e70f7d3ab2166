//! The time of one engine step for a batch of prefill chunks and decoding sequences.

use kvwise_core::arch::{Model, Parallel};
use kvwise_core::{Error, Result};

use super::calibration::{AllReduce, Calibration, Engine, Gemm, GpuSpec};
use super::kernel::{self, Format};
use super::network::Network;
use super::precision::Precision;
use super::stack::{Attention, Product, Stack, attention_time, stacks};
use super::tuning::Tuning;

/// Drafted tokens that the model checks together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speculation {
    /// Drafted tokens in a row: as many as can be accepted in a step.
    pub tokens: u32,
    /// Tokens of a sequence that one pass of the model checks, the one that the drafts hang on among them: one more than
    /// `tokens` for a chain, more for a tree of drafts.
    pub checked: u32,
    /// Probability that a drafted token is accepted, given that all before it were.
    pub acceptance: f64,
    /// Time of drafting one token as a share of the model's own decode step (0 for n-grams, one layer of the
    /// model's for MTP and EAGLE).
    pub draft_share: f64,
}

impl Speculation {
    /// A chain of drafts.
    pub fn chain(tokens: u32, acceptance: f64, draft_share: f64) -> Self {
        Self {
            tokens,
            checked: tokens.saturating_add(1),
            acceptance,
            draft_share,
        }
    }

    /// Tokens a sequence gains in a step on average: `1 + a + a^2 + … + a^k`.
    pub fn tokens_per_step(&self) -> f64 {
        (0..=self.tokens)
            .map(|i| self.acceptance.powi(i32::try_from(i).unwrap_or(i32::MAX)))
            .sum()
    }
}

/// Which steps replay a CUDA graph; others launch every kernel from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Graphs {
    /// All: decoding in whole graphs, prompts in pieces or in kernels that take longer than their launch.
    #[default]
    All,
    /// Those that only decode (vLLM's `cudagraph_mode` `FULL_DECODE_ONLY`).
    Decode,
    /// None (`--enforce-eager`).
    None,
}

/// How the model is spread and in which formats it computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Whose kernels.
    pub engine: Engine,
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Expert-parallel ranks inside a tensor-parallel group (1 if experts are cut like other matrices).
    pub ep: u64,
    /// Data-parallel ranks that share the experts and step together (1 if replicas are independent).
    pub expert_dp: u64,
    /// Pipeline stages.
    pub pp: u64,
    /// Prefill tokens of one micro-batch under pipeline parallelism.
    pub max_batched_tokens: u64,
    /// Format of the linear layers.
    pub linear: Precision,
    /// Format of the routed experts.
    pub experts: Precision,
    /// Whether keys and values are 8-bit.
    pub kv_fp8: bool,
    /// Which steps replay a graph.
    pub graphs: Graphs,
    /// Speculative decoding.
    pub speculation: Option<Speculation>,
    /// What joins the machines, where there are several.
    pub network: Option<Network>,
}

impl StepOptions {
    /// One engine with `tp` ranks, 16-bit.
    pub fn new(engine: Engine, tp: u64) -> Self {
        Self {
            engine,
            tp,
            ep: 1,
            expert_dp: 1,
            pp: 1,
            max_batched_tokens: 8192,
            linear: Precision::Bf16,
            experts: Precision::Bf16,
            kv_fp8: false,
            graphs: Graphs::All,
            speculation: None,
            network: None,
        }
    }

    pub(super) fn parallel(&self) -> Parallel {
        Parallel {
            tp: self.tp,
            expert_parallel: self.ep > 1,
            ..Parallel::default()
        }
    }

    /// Ranks over which whole experts are spread.
    pub(super) fn expert_ranks(&self) -> u64 {
        self.ep * self.expert_dp
    }

    /// Whether this engine has no tuned kernels for whole experts in this format on this generation.
    pub(super) fn untuned_whole_experts(&self, calibration: &Calibration) -> bool {
        self.engine == Engine::Vllm && self.experts == Precision::Fp8Block && calibration.spec.f4.is_none()
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
    /// Tokens that other data-parallel ranks bring to the shared experts in this step.
    pub peer_tokens: f64,
}

impl<'a> Batch<'a> {
    /// A batch of one rank alone.
    pub fn new(decode_sequences: u64, decode_context_tokens: f64, prefills: &'a [Prefill]) -> Self {
        Self {
            decode_sequences,
            decode_context_tokens,
            prefills,
            peer_tokens: 0.0,
        }
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> f64 {
        self.decode_sequences as f64 + self.prefill_tokens()
    }

    pub(super) fn prefill_tokens(&self) -> f64 {
        self.prefills.iter().map(|p| p.new_tokens as f64).sum()
    }

    pub(super) fn mean_context(&self) -> f64 {
        if self.decode_sequences > 0 {
            self.decode_context_tokens / self.decode_sequences as f64
        } else {
            0.0
        }
    }
}

/// Where time goes, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
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

    /// Adds `n` times `other`.
    pub fn add(&mut self, other: &Self, n: f64) {
        self.linear_s += other.linear_s * n;
        self.experts_s += other.experts_s * n;
        self.attention_s += other.attention_s * n;
        self.state_s += other.state_s * n;
        self.communication_s += other.communication_s * n;
        self.elementwise_s += other.elementwise_s * n;
    }

    fn scaled(&self, n: f64) -> Self {
        let mut scaled = Self::default();
        scaled.add(self, n);
        scaled
    }
}

/// The kernels of a model on one GPU, ready to be timed for any batch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepModel {
    pub(super) gpu: GpuSpec,
    pub(super) options: StepOptions,
    pub(super) tuning: Tuning,
    floor_s: f64,
    slowdown: f64,
    elementwise_bandwidth: f64,
    gemm: Gemm,
    gemm16: Gemm,
    pub(super) linear: Format,
    pub(super) linear16: Format,
    pub(super) experts: Format,
    reduce: Option<AllReduce>,
    exchange: Option<AllReduce>,
    pub(super) hidden: f64,
    pub(super) head: Product,
    pub(super) stacks: Vec<Stack>,
}

impl StepModel {
    /// Lists the kernels of `model` under `options`, timed by `calibration`.
    ///
    /// # Errors
    /// If the parallel sizes are zero, or the calibration lacks a kernel that the model needs.
    pub fn new(model: &Model, calibration: &Calibration, options: StepOptions) -> Result<Self> {
        Self::tuned(model, calibration, options, Tuning::default())
    }

    /// The same with other factors between kernels and server.
    ///
    /// # Errors
    /// As [`StepModel::new`].
    pub fn tuned(
        model: &Model,
        calibration: &Calibration,
        options: StepOptions,
        tuning: Tuning,
    ) -> Result<Self> {
        if [options.tp, options.ep, options.pp, options.expert_dp].contains(&0) {
            return Err(Error::input("parallel sizes must be at least 1"));
        }
        if let Some(s) = options.speculation
            && !((0.0..=1.0).contains(&s.acceptance)
                && (1..=64).contains(&s.tokens)
                && (s.tokens + 1..=1024).contains(&s.checked))
        {
            return Err(Error::input(format!(
                "speculation of {} tokens, {} checked, with acceptance {} cannot be timed: expected 1 to 64 tokens, more that are checked, and 0 to 1",
                s.tokens, s.checked, s.acceptance
            )));
        }
        let gpu = calibration.spec;
        if options.network.is_some_and(|n| {
            n.gpus_per_machine == 0 || !(n.bandwidth_bytes_per_s > 0.0 && n.latency_s >= 0.0)
        }) {
            return Err(Error::input(
                "a network needs at least one GPU a machine, a bandwidth above 0 and a latency from 0 on",
            ));
        }
        // Inside of a machine; what goes between machines comes on top.
        let reduce = |ranks: u64| -> Result<Option<AllReduce>> {
            let ranks = options.network.map_or(ranks, |n| n.together(ranks));
            (ranks > 1)
                .then(|| calibration.all_reduce(options.engine, ranks))
                .transpose()
        };
        Ok(Self {
            gpu,
            options,
            tuning,
            floor_s: calibration.defaults.kernel_floor_s,
            slowdown: calibration.slowdown.unwrap_or(1.0),
            elementwise_bandwidth: tuning
                .elementwise_bandwidth
                .unwrap_or(calibration.defaults.elementwise_bw_eff),
            gemm: calibration.gemm(options.linear.gemm_key())?,
            gemm16: calibration.gemm("bfloat16")?,
            linear: options.linear.format(&gpu),
            linear16: Precision::Bf16.format(&gpu),
            experts: options.experts.format(&gpu),
            reduce: reduce(options.tp)?,
            exchange: reduce(options.expert_dp)?,
            hidden: model.hidden_size as f64,
            head: Product {
                n: model.vocab_size.div_ceil(options.tp) as f64,
                k: model.hidden_size as f64,
                count: 1.0,
            },
            stacks: stacks(model, calibration, options, &tuning)?,
        })
    }

    /// Tokens that a decoding sequence gains in one step on average; 1 without speculation.
    pub fn tokens_per_step(&self) -> f64 {
        self.options.speculation.map_or(1.0, |s| s.tokens_per_step())
    }

    /// The time of one step; zero for an empty batch.
    ///
    /// Under pipeline parallelism a step is one round in which every micro-batch passes all stages: its length is the
    /// full depth for the largest micro-batch. Under speculation a step stands for one token a sequence, so that what
    /// decoding costs is divided by the tokens gained.
    pub fn time(&self, batch: &Batch<'_>) -> StepTime {
        if batch.tokens() <= 0.0 {
            return StepTime::default();
        }
        self.slowed(self.round(batch))
    }

    /// The same on a GPU that takes longer than its datasheet and the relative's efficiencies say.
    pub(super) fn slowed(&self, time: StepTime) -> StepTime {
        if self.slowdown > 1.0 {
            time.scaled(self.slowdown)
        } else {
            time
        }
    }

    /// All stages once.
    fn round(&self, batch: &Batch<'_>) -> StepTime {
        if self.options.pp <= 1 {
            return self.speculative(batch);
        }
        let stages = self.options.pp;
        let chunks = (batch.prefill_tokens() / self.options.max_batched_tokens as f64)
            .ceil()
            .clamp(1.0, stages as f64);
        let share: Vec<Prefill> = batch
            .prefills
            .iter()
            .map(|p| Prefill {
                new_tokens: p.new_tokens.div_ceil(whole(chunks)),
                past_tokens: p.past_tokens,
            })
            .collect();
        let micro = Batch {
            decode_sequences: batch.decode_sequences.div_ceil(stages),
            decode_context_tokens: batch.mean_context() * batch.decode_sequences.div_ceil(stages) as f64,
            prefills: &share,
            peer_tokens: batch.peer_tokens / stages as f64,
        };
        let mut t = self.speculative(&micro);
        // Point-to-point sends of the hidden states between stages.
        let bytes = micro.tokens() * self.hidden * 2.0;
        let crossings = self
            .options
            .network
            .map_or(0, |n| n.crossings(self.options.tp, stages));
        t.communication_s += (stages - 1) as f64 * self.floor_s * 2.0
            + (stages - 1 - crossings) as f64 * bytes / self.gpu.link
            + crossings as f64
                * self
                    .options
                    .network
                    .map_or(0.0, |n| n.hand_over_s(self.options.tp, bytes));
        t
    }

    /// Seconds of a sum over `ranks` consecutive ranks: inside of machines by the measured `links`, and between them.
    fn sum_s(&self, links: Option<&AllReduce>, ranks: u64, bytes: f64) -> f64 {
        links.map_or(0.0, |links| kernel::all_reduce(links, bytes))
            + self.options.network.map_or(0.0, |n| n.sum_s(ranks, bytes))
    }

    fn speculative(&self, batch: &Batch<'_>) -> StepTime {
        let Some(s) = self.options.speculation else {
            return self.forward(batch, 1.0);
        };
        if batch.decode_sequences == 0 {
            return self.forward(batch, 1.0);
        }
        let width = f64::from(s.checked);
        let decode = Batch {
            prefills: &[],
            ..*batch
        };
        let checked = self.forward(&decode, width);
        let mut t = self.forward(batch, width);
        // The prompt's part counts once, the decoding part once for every token it yields.
        let gained = self.tokens_per_step();
        t.add(&checked, 1.0 / gained - 1.0);
        let drafted = self
            .forward(&decode, 1.0)
            .scaled(s.draft_share * f64::from(s.tokens) / gained);
        t.add(&drafted, 1.0);
        t
    }

    /// One pass through all layers, with `width` tokens for each decoding sequence.
    fn forward(&self, batch: &Batch<'_>, width: f64) -> StepTime {
        let mut total = self.without_attention(batch, width);
        self.add_attention(batch, &mut total);
        self.wait_for_launches(batch, &mut total);
        total
    }

    /// Lets a pass without a CUDA graph take as long as the host needs to launch its kernels: the GPU waits wherever one is
    /// done before the next is launched.
    pub(super) fn wait_for_launches(&self, batch: &Batch<'_>, total: &mut StepTime) {
        let launched = match self.options.graphs {
            Graphs::All => false,
            Graphs::Decode => !batch.prefills.is_empty(),
            Graphs::None => true,
        };
        if launched && batch.tokens() > 0.0 {
            let layers: f64 = self.stacks.iter().map(|s| s.layers).sum();
            let least = layers * self.tuning.launch_s_per_layer;
            total.elementwise_s += (least - total.total_s()).max(0.0);
        }
    }

    /// Whether a step is one pass of one token a decoding sequence.
    pub(super) fn is_one_pass(&self) -> bool {
        self.options.pp <= 1 && self.options.speculation.is_none()
    }

    /// What a pass spends on attention and states, added to `total`.
    pub(super) fn add_attention(&self, batch: &Batch<'_>, total: &mut StepTime) {
        if batch.tokens() <= 0.0 {
            return;
        }
        for stack in &self.stacks {
            let (mut attention_s, mut state_s) = (0.0, 0.0);
            for attention in &stack.attention {
                let seconds = attention_time(attention, &self.gpu, self.floor_s, &self.tuning, batch);
                if matches!(attention, Attention::State { .. }) {
                    state_s += seconds;
                } else {
                    attention_s += seconds;
                }
            }
            total.attention_s += attention_s * stack.layers;
            total.state_s += state_s * stack.layers;
        }
    }

    /// What a pass spends on everything else: decided by its numbers of tokens alone.
    pub(super) fn without_attention(&self, batch: &Batch<'_>, width: f64) -> StepTime {
        let tokens = batch.decode_sequences as f64 * width + batch.prefill_tokens();
        let mut total = StepTime::default();
        if tokens <= 0.0 {
            return total;
        }
        let gpu = &self.gpu;
        for stack in &self.stacks {
            let product =
                |c: &Gemm, f: Format, p: &Product| kernel::gemm(c, gpu, f, tokens, p.n, p.k) * p.count;
            let linear = |c: &Gemm, f: Format, products: &[Product]| -> f64 {
                products.iter().map(|p| product(c, f, p)).sum()
            };
            let mut t = StepTime {
                linear_s: linear(&self.gemm, self.linear, &stack.products)
                    + linear(&self.gemm16, self.linear16, &stack.router),
                elementwise_s: self.tuning.small_kernels * self.floor_s
                    + tokens * stack.elementwise_bytes_per_token / (gpu.bw * self.elementwise_bandwidth),
                ..StepTime::default()
            };
            if let Some(experts) = &stack.experts {
                let all = tokens + batch.peer_tokens;
                t.experts_s = experts.penalty
                    * experts
                        .fits
                        .iter()
                        .map(|fit| kernel::experts(fit, gpu, self.experts, experts.shape, all))
                        .fold(f64::INFINITY, f64::min);
                if self.options.expert_dp > 1 {
                    // Tokens are gathered from all ranks before the experts and scattered after them: together as
                    // much traffic as one sum.
                    let ranks = self.options.expert_dp * self.options.tp;
                    t.communication_s += self.sum_s(self.exchange.as_ref(), ranks, all * self.hidden * 2.0);
                }
            }
            if self.options.tp > 1 {
                let sum = |bytes: f64| self.sum_s(self.reduce.as_ref(), self.options.tp, bytes);
                t.communication_s += stack.reductions * sum(tokens * self.hidden * 2.0);
                // Two 32-bit sums of squares a token, a kernel that makes them and one that applies them.
                t.communication_s += stack.norm_sums * sum(tokens * 8.0);
                t.elementwise_s += stack.norm_sums * 2.0 * self.floor_s;
            }
            total.add(&t, stack.layers);
        }
        // Logits are computed for the sampled positions only, in 16 bits.
        let sampled = (batch.decode_sequences as f64 * width + batch.prefills.len() as f64).max(1.0);
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small positive whole number"
)]
fn whole(x: f64) -> u64 {
    x as u64
}
