//! The answer, in the shape every surface shows (schema `kvwise.plan/1`).

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::ledger::{Signed, Step, Term};
use super::policy::OomRisk;
use crate::engine::vllm::Layout;

/// Version of the JSON shape.
pub const SCHEMA: &str = "kvwise.plan/1";

/// A whole plan. Byte counts and `_gb` figures (GiB) are per GPU, of the tightest rank, unless named total.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The verdict in one sentence.
    pub verdict: String,
    /// What would make it fit, in one sentence, if it does not.
    pub fix: Option<String>,
    /// Whether the engine would start with more memory, where it is refused; no part of the JSON.
    #[serde(skip)]
    pub refused_for_memory: bool,
    /// Every setting that was used, resolved.
    pub inputs: Map<String, Value>,
    /// The model.
    pub model: ModelPart,
    /// The engine.
    pub engine: EnginePart,
    /// The hardware.
    pub gpu: GpuPart,
    /// Weights.
    pub weights: Weights,
    /// KV cache; `null` if the model's layers are not known or the engine cannot lay them out.
    pub kv_cache: Option<KvCache>,
    /// Where the memory goes.
    pub memory: Memory,
    /// Whether it fits, and how far it reaches.
    pub feasibility: Feasibility,
    /// Settings worth changing.
    pub recommended: Map<String, Value>,
    /// How fast the load is served; `null` where the hardware's rates are not known.
    pub performance: Option<Performance>,
    /// One row for each asked pair of context and concurrency, where several were asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grid: Vec<GridRow>,
    /// The derivation, step by step (`--explain`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// vLLM's layout behind `kv_cache`, for what is built upon it; no part of the JSON.
    #[serde(skip)]
    pub layout: Option<Arc<Layout>>,
}

/// What is known of the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPart {
    /// Hub id, path, or what the user called it.
    pub name: String,
    /// Class name; `null` if only a parameter count is known.
    pub architecture: Option<String>,
    /// Parameters in all.
    pub params: u64,
    /// Parameters that one token uses.
    pub params_active: u64,
    /// Decoder layers.
    pub layers: Option<u64>,
    /// Longest sequence the configuration allows.
    pub max_model_len: Option<u64>,
    /// Where the configuration comes from.
    pub source: String,
}

/// The engine that is modelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnginePart {
    /// `vllm`, `sglang`, `llamacpp` or `generic`.
    pub name: &'static str,
    /// Version whose rules are used.
    pub version: Option<String>,
}

/// The hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuPart {
    /// Catalogue name, or `custom`.
    pub name: String,
    /// How many the plan uses.
    pub count: u64,
    /// Bytes of one as the engine sees them.
    pub memory_bytes: u64,
    /// Bytes of one as the driver reports them.
    pub driver_memory_bytes: u64,
}

/// Weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Weights {
    /// Whole model, all GPUs, each parameter once.
    pub total_bytes: u64,
    /// One tensor-parallel rank of each pipeline stage.
    pub bytes_per_rank: Vec<u64>,
    /// Where the total comes from: safetensors, gguf, index, config or catalogue.
    pub source: &'static str,
}

/// KV cache as the engine lays it out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvCache {
    /// Element format.
    pub dtype: String,
    /// Tokens of one block.
    pub block_size: u64,
    /// Bytes of one block on each pipeline stage.
    pub bytes_per_block: Vec<u64>,
    /// Blocks in the pool.
    pub num_blocks: u64,
    /// Tokens, as the engine logs them.
    pub capacity_tokens: u64,
    /// Requests of the maximum length, as the engine logs them.
    pub max_concurrency: f64,
    /// Bytes that the pool may take.
    pub available_bytes: u64,
    /// Bytes that one more token takes in a long sequence.
    pub bytes_per_token: u64,
    /// Longest request the engine is started for.
    pub max_model_len: u64,
    /// Requests that one scheduler runs at once at most, where the engine derives it from the pool (SGLang).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running_requests: Option<u64>,
    /// Groups of layers that share a block table.
    pub groups: Vec<GroupPart>,
}

/// One group of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupPart {
    /// Rule by which it grows.
    pub kind: String,
    /// Caches in it.
    pub layers: u64,
    /// Tokens of one block.
    pub block_size: u64,
    /// Bytes of one block of one layer.
    pub page_bytes: u64,
    /// Blocks of a request of the maximum length.
    pub blocks_per_request: u64,
}

/// Where the memory of one GPU goes; the components add up to `gpu_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes of the GPU as the engine sees them.
    pub gpu_bytes: u64,
    /// Bytes that the engine allows itself.
    pub budget_bytes: u64,
    /// The terms.
    pub components: Vec<Term>,
    /// Bytes left after weights, overhead and the KV cache of the load; negative if missing.
    pub headroom_bytes: Signed,
}

/// Whether the load fits (names of an earlier planner; `_gb` are GiB).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Feasibility {
    /// Whether the engine starts and holds the load with the headroom asked for.
    pub fits: bool,
    /// Probability that it does, from the distribution of the estimated terms; never below 0.01 or above 0.99 where it is
    /// memory that decides, 0 where something else stands against it; `null` where nothing is estimated.
    pub fit_probability: Option<f64>,
    /// Risk of running out of memory under the load.
    pub oom_risk: OomRisk,
    /// Memory of one GPU as the engine sees it.
    pub vram_total_gb: f64,
    /// What the engine allows itself of it.
    pub vram_target_alloc_gb: f64,
    /// Weights.
    pub weights_gb: f64,
    /// KV cache of the load.
    pub kv_cache_gb: f64,
    /// Everything else.
    pub overhead_gb: f64,
    /// What is left; negative if missing.
    pub headroom_gb: f64,
    /// Context of the load, tokens.
    pub context: Option<u64>,
    /// Requests of the load.
    pub concurrency: u64,
    /// Most requests of `context` tokens that the pool holds at once.
    pub max_concurrency_at_context: Option<u64>,
    /// Longest context that `concurrency` requests can have at once.
    pub max_context_at_concurrency: Option<u64>,
    /// Why this engine version would not start it.
    pub refused: Option<String>,
    /// What else one should know.
    pub warnings: Vec<String>,
}

/// One row of a grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GridRow {
    /// Tokens of each request.
    pub context: u64,
    /// Requests at once.
    pub concurrency: u64,
    /// Whether they fit.
    pub fits: bool,
    /// KV bytes they need.
    pub kv_bytes: u64,
    /// What is left; negative if missing.
    pub headroom_bytes: Signed,
    /// Most requests of this context.
    pub max_concurrency_at_context: u64,
    /// Longest context at this concurrency.
    pub max_context_at_concurrency: u64,
    /// How fast they are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

/// A range, and what is expected in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// Lower end.
    pub low: f64,
    /// What a model of the kernels says; none where nothing but bounds is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// Upper end.
    pub high: f64,
}

impl Range {
    /// `expected`, and that divided and multiplied by `factor`.
    pub fn around(expected: f64, factor: f64) -> Self {
        Self {
            low: expected / factor,
            expected: Some(expected),
            high: expected * factor,
        }
    }

    /// Two ends with nothing expected between them.
    pub fn between(low: f64, high: f64) -> Self {
        Self {
            low,
            expected: None,
            high,
        }
    }

    /// The ends that `f`, which rises or falls, makes of these.
    #[must_use]
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.low), f(self.high));
        Self {
            low: a.min(b),
            expected: self.expected.map(&f),
            high: a.max(b),
        }
    }
}

/// How fast a load is served.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Prompt tokens per second of the whole deployment, one prompt at a time in each engine.
    pub prefill_tokens_per_s: Range,
    /// Output tokens per second of the whole deployment, all requests of the load together at their full context.
    pub decode_tokens_per_s: Range,
    /// Time to the first token of one prompt of the load, nothing else running.
    pub ttft_ms: Range,
    /// Time of one more token of each request of the load at its full context, nothing else running.
    pub tpot_ms: Range,
}

/// The same at the datasheet's rates, every resource busy all the time: weights that the tokens use and caches are read once,
/// and nothing but matrix products and attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SpeedBound {
    /// Most prompt tokens per second.
    pub prefill_tokens_per_s: f64,
    /// Most output tokens per second.
    pub decode_tokens_per_s: f64,
    /// Least time to the first token.
    pub ttft_ms: f64,
    /// Least time of one more token.
    pub tpot_ms: f64,
}

/// How fast the load is served, without waiting for each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Performance {
    /// Cached tokens of each request.
    pub context: u64,
    /// Requests at once.
    pub concurrency: u64,
    /// Tokens of the prompt that the first token is waited for.
    pub prompt_tokens: u64,
    /// The ranges.
    #[serde(flatten)]
    pub speed: Speed,
    /// What the datasheet allows.
    pub roofline: SpeedBound,
    /// Whether the figures are fitted or assumed, and what the ranges rest on.
    pub basis: String,
    /// Where the rates come from.
    pub source: String,
}
