//! Which decoders' graphs are built here, and the places in which they differ
//! (llama.cpp b11434, `src/models/*.cpp`).

use std::collections::HashMap;

use super::builder::Builder;
use super::feed::Act;
use super::models;
use super::tensor::Graph;
use crate::engine::llamacpp::hparams::Layer;
use crate::engine::llamacpp::keys::Gating;
use crate::engine::llamacpp::place::Weights;
use crate::engine::llamacpp::{Caches, Hparams, Settings};

/// Most experts of one token (`LLAMA_MAX_EXPERTS`).
const MAX_EXPERTS: u64 = 512;
/// Most layers times experts of one token that a graph is made for.
const MAX_CHOICES: u64 = 20_000;
/// Most copies of the residual stream that a graph is made for.
const MAX_STREAMS: u64 = 16;

/// Architectures that scale their logits where the file says so.
const SCALED_LOGITS: [&str; 7] = [
    "granite",
    "granitemoe",
    "granitehybrid",
    "cohere2",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "Cohere2ForCausalLM",
];

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

/// How norms are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// By the root mean square; may lie where its input was.
    Rms,
    /// By mean and variance.
    Layer,
}

/// Where queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryNorms {
    /// Nowhere.
    None,
    /// Each head, before the rotation.
    Heads,
    /// Each head, if the file has the weights.
    HeadsIfThere,
    /// Each head, after the rotation.
    AfterRotation,
    /// All heads together.
    Rows,
}

/// Which layers rotate queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotates {
    All,
    /// Those with a window, or all where none has.
    Sliding,
    /// Those with a window, which normalise both afterwards; the others scale queries by their position (Llama 4).
    SlidingNormed,
    /// As the file says.
    Said,
    /// None.
    Never,
}

/// How shares of experts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// `None`: as the file says.
    pub(super) normalised: Option<bool>,
    /// Where the file does not say.
    pub(super) gating: Gating,
    /// Whether the file's word about that counts.
    pub(super) said: bool,
    pub(super) before: bool,
}

/// Experts that every token uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shared {
    /// Added as they are.
    Plain,
    /// Times a share of their own.
    Gated,
    /// The same, made in two operations (Qwen 2).
    GatedInTwo,
}

/// The places in which decoders with attention and feed-forward in turn differ.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) query_norms: QueryNorms,
    pub(super) query_scale: bool,
    /// Norms before attention and feed-forward.
    pub(super) pre_norms: bool,
    pub(super) post_norms: bool,
    /// Whether the last of them counts as one of its layer.
    pub(super) post_norm_inside: bool,
    /// Name of the norm before the feed-forward part.
    pub(super) middle_norm: &'static str,
    /// Attention and feed-forward side by side.
    pub(super) parallel: bool,
    pub(super) rotates: Rotates,
    pub(super) embedding_scale: EmbeddingScale,
    pub(super) norm: Norm,
    pub(super) score_cap: bool,
    pub(super) final_cap: bool,
    /// Sinks in attention, biases everywhere.
    pub(super) sinks: bool,
    /// Queries, keys and values are one product.
    pub(super) fused_qkv: bool,
    pub(super) act: Act,
    /// Whether the feed-forward part is added to the residual, and not the residual to it.
    pub(super) onto_residual: bool,
    pub(super) shares: Shares,
    pub(super) shared: Shared,
}

/// How the layers of an architecture are made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Family {
    /// Attention and feed-forward in turn.
    Plain,
    /// Latent attention (DeepSeek 2 and 3).
    Latent,
    /// Gemma 3n.
    Altup,
    /// Gemma 4.
    PerLayer,
    /// Gated delta networks and attention.
    Delta,
    /// Mamba or short convolutions, with or without attention.
    Recurrent,
}

/// Sizes and style of a decoder whose graph is known.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) family: Family,
    pub(super) style: Style,
    pub(super) norm: Norm,
    pub(super) layers: usize,
    pub(super) embedding: u64,
    pub(super) feed_forward: u64,
    pub(super) expert: u64,
    pub(super) experts: (u64, u64),
    pub(super) heads: u64,
    pub(super) head: u64,
    pub(super) vocabulary: u64,
    pub(super) slides: Vec<bool>,
    /// Whether there is a second cache for windows, even if no layer slides.
    pub(super) windows: bool,
    pub(super) rope_factors: Option<&'static str>,
    pub(super) position_sections: bool,
    pub(super) attention_bias: bool,
    pub(super) fused_qkv: bool,
    pub(super) sinks: bool,
    pub(super) score_cap: bool,
    pub(super) final_cap: bool,
    pub(super) logit_scale: bool,
    pub(super) embedding_scale: EmbeddingScale,
}

const LLAMA: Style = Style {
    query_norms: QueryNorms::None,
    query_scale: false,
    pre_norms: true,
    post_norms: false,
    post_norm_inside: false,
    middle_norm: "ffn_norm.weight",
    parallel: false,
    rotates: Rotates::All,
    embedding_scale: EmbeddingScale::None,
    norm: Norm::Rms,
    score_cap: false,
    final_cap: false,
    sinks: false,
    fused_qkv: false,
    act: Act::Gated,
    onto_residual: false,
    shares: Shares {
        normalised: Some(true),
        gating: Gating::Softmax,
        said: false,
        before: false,
    },
    shared: Shared::Plain,
};

/// Shares as the file says, and so if it does not.
const fn said(normalised: Option<bool>, gating: Gating) -> Shares {
    Shares {
        normalised,
        gating,
        said: true,
        before: false,
    }
}

fn style(architecture: &str) -> Option<(Family, Style)> {
    let heads = Style {
        query_norms: QueryNorms::Heads,
        ..LLAMA
    };
    let plain = match architecture {
        "llama"
        | "qwen2"
        | "LlamaForCausalLM"
        | "MistralForCausalLM"
        | "MixtralForCausalLM"
        | "Qwen2ForCausalLM"
        | "ernie4_5"
        | "ernie4_5-moe"
        | "mistral3"
        | "Ernie4_5ForCausalLM"
        | "Ernie4_5_ForCausalLM" => LLAMA,
        "qwen3" | "qwen3moe" | "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM" => heads,
        "gemma2" | "Gemma2ForCausalLM" => Style {
            query_scale: true,
            post_norms: true,
            embedding_scale: EmbeddingScale::Number,
            score_cap: true,
            final_cap: true,
            ..LLAMA
        },
        "gemma3" | "Gemma3ForCausalLM" | "Gemma3ForConditionalGeneration" => Style {
            query_scale: true,
            post_norms: true,
            embedding_scale: EmbeddingScale::Tokens,
            ..heads
        },
        "gemma" | "GemmaForCausalLM" => Style {
            query_scale: true,
            embedding_scale: EmbeddingScale::Number,
            ..LLAMA
        },
        "gpt-oss" | "GptOssForCausalLM" => Style {
            sinks: true,
            middle_norm: "post_attention_norm.weight",
            shares: Shares {
                normalised: Some(false),
                gating: Gating::SoftmaxOfChosen,
                ..LLAMA.shares
            },
            ..LLAMA
        },
        "phi3" | "Phi3ForCausalLM" => Style {
            query_scale: true,
            fused_qkv: true,
            act: Act::Double,
            onto_residual: true,
            ..LLAMA
        },
        "glm4" | "Glm4ForCausalLM" => Style {
            post_norms: true,
            post_norm_inside: true,
            act: Act::Double,
            ..LLAMA
        },
        "glm4moe" => Style {
            query_norms: QueryNorms::HeadsIfThere,
            middle_norm: "post_attention_norm.weight",
            shares: said(None, Gating::Sigmoid),
            ..LLAMA
        },
        "seed_oss" | "SeedOssForCausalLM" => Style {
            middle_norm: "post_attention_norm.weight",
            ..LLAMA
        },
        "minimax-m2" | "MiniMaxM2ForCausalLM" => Style {
            query_norms: QueryNorms::Rows,
            shares: said(Some(true), Gating::Softmax),
            ..LLAMA
        },
        "olmo2" | "Olmo2ForCausalLM" | "Olmo3ForCausalLM" => Style {
            query_norms: QueryNorms::Rows,
            pre_norms: false,
            post_norms: true,
            ..LLAMA
        },
        "exaone4" | "Exaone4ForCausalLM" => Style {
            pre_norms: false,
            post_norms: true,
            rotates: Rotates::Sliding,
            ..heads
        },
        "starcoder2" | "Starcoder2ForCausalLM" => Style {
            norm: Norm::Layer,
            act: Act::Plain,
            ..LLAMA
        },
        "cohere2" | "Cohere2ForCausalLM" => Style {
            norm: Norm::Layer,
            parallel: true,
            rotates: Rotates::Sliding,
            ..LLAMA
        },
        "granite" | "granitemoe" | "GraniteForCausalLM" | "GraniteMoeForCausalLM" => Style {
            rotates: Rotates::Said,
            ..LLAMA
        },
        "hunyuan-moe" => Style {
            query_norms: QueryNorms::AfterRotation,
            ..LLAMA
        },
        "qwen2moe" => Style {
            shares: Shares {
                normalised: Some(false),
                ..LLAMA.shares
            },
            shared: Shared::GatedInTwo,
            ..LLAMA
        },
        "bailingmoe2" => Style {
            shares: said(None, Gating::Softmax),
            ..heads
        },
        "llama4" => Style {
            rotates: Rotates::SlidingNormed,
            shares: Shares {
                normalised: Some(false),
                gating: Gating::Sigmoid,
                said: false,
                before: true,
            },
            ..LLAMA
        },
        _ => return other(architecture),
    };
    Some((Family::Plain, plain))
}

/// Architectures whose layers are not attention and feed-forward in turn.
fn other(architecture: &str) -> Option<(Family, Style)> {
    let delta = Style {
        shared: Shared::Gated,
        ..LLAMA
    };
    let heads = Style {
        query_norms: QueryNorms::Heads,
        ..LLAMA
    };
    let gemma = Style {
        embedding_scale: EmbeddingScale::Tokens,
        final_cap: true,
        ..LLAMA
    };
    Some(match architecture {
        "deepseek2" => (
            Family::Latent,
            Style {
                shares: said(None, Gating::Softmax),
                ..LLAMA
            },
        ),
        "gemma3n" => (Family::Altup, gemma),
        "gemma4" => (Family::PerLayer, gemma),
        "qwen3next" | "qwen35" | "qwen35moe" => (Family::Delta, delta),
        "mamba" | "mamba2" | "falcon-h1" => (Family::Recurrent, LLAMA),
        "granitehybrid" => (
            Family::Recurrent,
            Style {
                rotates: Rotates::Said,
                ..LLAMA
            },
        ),
        "jamba" => (
            Family::Recurrent,
            Style {
                rotates: Rotates::Never,
                onto_residual: true,
                shares: Shares {
                    normalised: Some(false),
                    ..LLAMA.shares
                },
                ..LLAMA
            },
        ),
        "lfm2" | "lfm2moe" => (
            Family::Recurrent,
            Style {
                shares: said(Some(true), Gating::Softmax),
                onto_residual: true,
                ..heads
            },
        ),
        "nemotron_h" | "nemotron_h_moe" => (
            Family::Recurrent,
            Style {
                rotates: Rotates::Never,
                act: Act::Squared,
                shares: Shares {
                    normalised: None,
                    gating: Gating::Sigmoid,
                    said: false,
                    before: false,
                },
                ..LLAMA
            },
        ),
        _ => return None,
    })
}

impl Decoder {
    /// The decoder of a model, if its graph is built here.
    pub fn of(model: &Hparams, weights: &Weights) -> Option<Self> {
        let (family, style) = style(&model.architecture)?;
        let layers = model.layers.len().min(model.keys.trunk);
        let from_file = !weights.tensors.is_empty();
        let sized = model.embedding > 0 && model.vocabulary > 0 && layers > 0;
        let (experts, used) = model.experts;
        let mixed = experts == 0 || used > 0 && used <= experts.min(MAX_EXPERTS);
        // A graph that large is a mistake of the file.
        let small = (layers as u64).saturating_mul(used) <= MAX_CHOICES && model.keys.streams <= MAX_STREAMS;
        if !sized || !mixed || !small || style.sinks && experts == 0 {
            return None;
        }
        // Without a file the sizes of all layers must be the same, and known.
        let alike = matches!(family, Family::Plain) && model.architecture != "llama4" && Self::uniform(model);
        if !from_file && !alike {
            return None;
        }
        let factors = |name: &str| weights.tensors.contains_key(name);
        let context = model.keys.rope_context;
        let long = context > 0 && model.context_length > context;
        Some(Self {
            family,
            style,
            norm: style.norm,
            layers,
            embedding: model.embedding,
            feed_forward: model.feed_forward,
            expert: match model.expert_feed_forward {
                0 => model.feed_forward,
                width => width,
            },
            experts: model.experts,
            heads: model.heads,
            head: model.head_widths.0,
            vocabulary: model.vocabulary,
            slides: if model.keys.slides.is_empty() {
                let of = |l: &Layer| l.attention.is_some_and(|a| a.sliding);
                model.layers.iter().map(of).collect()
            } else {
                model.keys.slides.clone()
            },
            windows: model.sliding.is_some(),
            rope_factors: if factors("rope_freqs.weight") {
                Some("rope_freqs.weight")
            } else if factors("rope_factors_long.weight") && long {
                Some("rope_factors_long.weight")
            } else if factors("rope_factors_short.weight") {
                Some("rope_factors_short.weight")
            } else {
                None
            },
            position_sections: model.keys.rope_sections
                && ["qwen35", "qwen35moe", "glm4", "glm4moe"].contains(&model.architecture.as_str()),
            attention_bias: style.sinks,
            fused_qkv: style.fused_qkv,
            sinks: style.sinks,
            score_cap: style.score_cap,
            final_cap: match family {
                Family::PerLayer => model.keys.final_cap,
                _ => style.final_cap,
            },
            logit_scale: model.keys.logit_scale && SCALED_LOGITS.contains(&model.architecture.as_str()),
            embedding_scale: if model.keys.embedding_scale {
                EmbeddingScale::Number
            } else {
                style.embedding_scale
            },
        })
    }

    /// Whether all layers attend with heads of one width and have feed-forward parts of one kind.
    fn uniform(model: &Hparams) -> bool {
        let Some(first) = model.layers.first().and_then(|l| l.attention) else {
            return false;
        };
        let (head, values) = model.head_widths;
        let plain = model.layers.iter().all(|layer| {
            layer.recurrent.is_none()
                && layer
                    .attention
                    .is_some_and(|a| a.keys == first.keys && a.values == first.keys)
        });
        let (experts, _) = model.experts;
        let mixed = if experts > 0 {
            model.dense_feed_forward == 0
        } else {
            model.feed_forward > 0
        };
        plain
            && mixed
            && head > 0
            && head == values
            && first.keys.is_multiple_of(head)
            && first.keys > 0
            && model.heads > 0
            && model.heads.is_multiple_of(first.keys / head)
    }

    /// The graph of one batch, with weights and caches on the devices of their layers; `None` if the file lacks a tensor.
    #[expect(clippy::too_many_arguments, reason = "what a graph depends on")]
    pub(super) fn build(
        &self,
        model: &Hparams,
        weights: &Weights,
        settings: &Settings,
        caches: &Caches,
        devices: &[usize],
        host: usize,
        batch: Batch,
    ) -> Option<Graph> {
        let mut builder = Builder {
            model,
            decoder: self,
            weights,
            settings,
            caches,
            devices,
            host,
            batch,
            graph: Graph::default(),
            known: HashMap::new(),
            missing: false,
        };
        models::run(&mut builder);
        (!builder.missing).then_some(builder.graph)
    }
}
