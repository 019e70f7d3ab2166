//! Which decoders' graphs are built here, and the few places in which they differ from Llama's
//! (llama.cpp b11434, `src/models/{llama,qwen2,qwen3,qwen3moe,gemma2,gemma3,openai-moe,phi3}.cpp`).

use super::forward::Builder;
use super::tensor::Graph;
use crate::engine::llamacpp::place::Weights;
use crate::engine::llamacpp::{Caches, Hparams, Settings};

/// Most experts of one token (`LLAMA_MAX_EXPERTS`).
const MAX_EXPERTS: u64 = 512;

/// One forward pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub(super) tokens: u64,
    pub(super) outputs: u64,
    pub(super) all_on_gpus: bool,
}

/// What the token embedding is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbeddingScale {
    None,
    /// One number.
    Number,
    /// A number for each token, which is an input.
    Tokens,
}

/// The places in which an architecture differs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) query_norms: bool,
    pub(super) query_scale: bool,
    pub(super) post_norms: bool,
    pub(super) embedding_scale: EmbeddingScale,
    pub(super) score_cap: bool,
    pub(super) final_cap: bool,
    /// Weights of the experts are normalised after the choice, biases everywhere, sinks in attention.
    pub(super) gpt_oss: bool,
    pub(super) fused: bool,
}

/// Sizes and style of a decoder whose graph is known.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) style: Style,
    pub(super) embedding: u64,
    pub(super) feed_forward: u64,
    pub(super) expert: u64,
    pub(super) experts: (u64, u64),
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head: u64,
    pub(super) vocabulary: u64,
    pub(super) slides: Vec<bool>,
    /// Whether there is a second cache for windows, even if no layer slides.
    pub(super) windows: bool,
    pub(super) rope_factors: bool,
    pub(super) attention_bias: bool,
    /// Queries, keys and values are one product.
    pub(super) fused_qkv: bool,
}

fn style(architecture: &str) -> Option<Style> {
    let llama = Style {
        query_norms: false,
        query_scale: false,
        post_norms: false,
        embedding_scale: EmbeddingScale::None,
        score_cap: false,
        final_cap: false,
        gpt_oss: false,
        fused: false,
    };
    Some(match architecture {
        "llama" | "qwen2" | "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM"
        | "Qwen2ForCausalLM" => llama,
        "qwen3" | "qwen3moe" | "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM" => Style {
            query_norms: true,
            ..llama
        },
        "gemma2" | "Gemma2ForCausalLM" => Style {
            query_scale: true,
            post_norms: true,
            embedding_scale: EmbeddingScale::Number,
            score_cap: true,
            final_cap: true,
            ..llama
        },
        "gemma3" | "Gemma3ForCausalLM" | "Gemma3ForConditionalGeneration" => Style {
            query_norms: true,
            query_scale: true,
            post_norms: true,
            embedding_scale: EmbeddingScale::Tokens,
            ..llama
        },
        "gpt-oss" | "GptOssForCausalLM" => Style {
            gpt_oss: true,
            ..llama
        },
        "phi3" | "Phi3ForCausalLM" => Style {
            query_scale: true,
            fused: true,
            ..llama
        },
        _ => return None,
    })
}

impl Decoder {
    /// The decoder of a model, if its graph is built here.
    pub fn of(model: &Hparams, weights: &Weights) -> Option<Self> {
        let style = style(&model.architecture)?;
        let first = model.layers.first()?.attention?;
        let (head, values) = model.head_widths;
        let plain = model.layers.iter().all(|layer| {
            layer.recurrent.is_none()
                && layer
                    .attention
                    .is_some_and(|a| a.keys == first.keys && a.values == first.keys)
        });
        let sized = head > 0
            && head == values
            && first.keys.is_multiple_of(head)
            && first.keys > 0
            && model.heads > 0
            && model.heads.is_multiple_of(first.keys / head)
            && model.embedding > 0
            && model.vocabulary > 0;
        let (experts, used) = model.experts;
        let mixed = if experts > 0 {
            used > 0 && used <= experts.min(MAX_EXPERTS) && model.dense_feed_forward == 0
        } else {
            model.feed_forward > 0
        };
        if !plain || !sized || !mixed || style.gpt_oss && experts == 0 {
            return None;
        }
        Some(Self {
            style,
            embedding: model.embedding,
            feed_forward: model.feed_forward,
            expert: match model.expert_feed_forward {
                0 => model.feed_forward,
                width => width,
            },
            experts: model.experts,
            heads: model.heads,
            kv_heads: first.keys / head,
            head,
            vocabulary: model.vocabulary,
            slides: model
                .layers
                .iter()
                .map(|l| l.attention.is_some_and(|a| a.sliding))
                .collect(),
            windows: model.sliding.is_some(),
            rope_factors: weights.tensors.contains_key("rope_freqs.weight"),
            attention_bias: style.gpt_oss || weights.tensors.contains_key("blk.0.attn_q.bias"),
            fused_qkv: style.fused,
        })
    }

    /// The graph of one batch, with weights and caches on the devices of their layers.
    pub(super) fn build(
        &self,
        weights: &Weights,
        settings: &Settings,
        caches: &Caches,
        devices: &[usize],
        host: usize,
        batch: Batch,
    ) -> Graph {
        Builder {
            decoder: self,
            weights,
            settings,
            caches,
            devices,
            host,
            batch,
            graph: Graph::default(),
            factors: Vec::new(),
        }
        .run()
    }
}
