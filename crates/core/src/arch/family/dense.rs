//! The decoder most models share: attention, feed-forward and norms in every layer.
//!
//! A family starts from [`Dense::llama`] and changes the fields in which it differs; [`Dense::build`] makes the
//! layers. Families whose feed-forward part is a mixture of experts give [`Dense::build_with`] a function for it.

use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{
    AttentionScales, Cache, CacheKind, Heads, Kinds, Layer, Modules, Outside, Part, Place, Role, State,
    Weight, Weights,
};

/// What a family returns: everything of a [`Model`](crate::arch::Model) but its name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decoder {
    /// Module path of the layers.
    pub layers_path: String,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// Embedding, head, final norm, towers.
    pub outside: Vec<Outside>,
    /// Layers of a built-in drafter.
    pub mtp_layers: u64,
    /// That drafter's modules where they are unlike the layers.
    pub modules: Option<Box<Modules>>,
    /// Key/value heads that the engine's configuration reports where they are not [`Text::kv_heads`].
    pub kv_heads: Option<u64>,
    /// What its attention layers hold of a quantised checkpoint's scales.
    pub attention_scales: AttentionScales,
    /// A state for which the engine sizes its pages whether a layer keeps one or not.
    pub sized_for: Option<State>,
    /// Attention that keeps nothing between steps and is aligned with the states beside it all the same.
    pub encoder_heads: Option<Heads>,
}

/// A norm's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Nothing to learn (OLMo).
    None,
    /// A scale (RMS norm, layer norm without bias).
    Scale,
    /// A scale and a shift (layer norm).
    ScaleAndShift,
}

impl Norm {
    /// The parameters of one norm over `width` elements.
    pub fn weights(self, name: &str, width: u64) -> Option<Weight> {
        match self {
            Self::None => None,
            Self::Scale => Some(Weight::norm(name, width)),
            Self::ScaleAndShift => Some(Weight::norm(name, width).times(2)),
        }
    }
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// One of a head's width each, the same for all heads and ranks.
    Head(Norm),
    /// One over all heads each, divided over the ranks.
    Split(Norm),
    /// One over all heads each, whole on every rank.
    Whole(Norm),
}

/// Attention of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Module path below the layer.
    pub path: &'static str,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Elements of a query or key head.
    pub head_dim: u64,
    /// Elements of a value head.
    pub head_dim_v: u64,
    /// Whether the query, key and value projection has a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Whether the cache follows `--kv-cache-dtype`.
    pub follows_kv_dtype: bool,
}

impl Attention {
    /// Plain attention as the configuration describes it, without biases.
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn read(t: &Text) -> Result<Self> {
        let head_dim = t.head_dim()?;
        Ok(Self {
            path: "self_attn",
            heads: t.heads()?,
            kv_heads: t.kv_heads()?,
            head_dim,
            head_dim_v: head_dim,
            qkv_bias: false,
            o_bias: false,
            qk_norm: QkNorm::None,
            follows_kv_dtype: true,
        })
    }

    /// Shape of one cached token.
    pub fn cached(&self) -> Heads {
        Heads {
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v,
            follows_kv_dtype: self.follows_kv_dtype,
        }
    }

    /// The cache of a layer that attends so.
    pub fn cache(&self, attend: Attend) -> Cache {
        self.cache_of(attend.cache(self.cached()))
    }

    /// A cache of this module.
    pub fn cache_of(&self, kind: CacheKind) -> Cache {
        Cache {
            name: format!("{}.attn", self.path),
            kind,
        }
    }

    /// Its parameters in a model of width `hidden`.
    pub fn weights(&self, hidden: u64) -> Vec<Weight> {
        let path = self.path;
        let mut all = vec![
            Weight::qkv(
                format!("{path}.qkv_proj"),
                hidden,
                self.heads,
                self.kv_heads,
                self.head_dim,
            )
            .value_head_dim(self.head_dim_v)
            .bias(self.qkv_bias),
            Weight::row(
                format!("{path}.o_proj"),
                Role::Attention,
                self.heads * self.head_dim_v,
                hidden,
            )
            .bias(self.o_bias),
        ];
        for (name, heads) in [("q_norm", self.heads), ("k_norm", self.kv_heads)] {
            let name = format!("{path}.{name}");
            match self.qk_norm {
                QkNorm::None => {}
                QkNorm::Head(norm) => all.extend(norm.weights(&name, self.head_dim)),
                QkNorm::Whole(norm) => all.extend(norm.weights(&name, heads * self.head_dim)),
                QkNorm::Split(norm) => {
                    // Ranks that share a head hold its part each.
                    let (units, width) = (heads, self.head_dim);
                    let parts = vec![Part::Groups { units, width }];
                    let split = Weight::parts(&name, Role::Norm, 1, parts).unquantized();
                    all.extend(norm.weights(&name, 1).map(|w| split.times(w.count)));
                }
            }
        }
        all
    }
}

/// A dense feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// Module path below the layer.
    pub path: &'static str,
    /// Inner width.
    pub width: u64,
    /// Whether gate and up are both there.
    pub gated: bool,
    /// Whether projections have biases.
    pub bias: bool,
}

impl Mlp {
    /// A gated feed-forward part of this width without biases.
    pub fn gated(width: u64) -> Self {
        Self {
            path: "mlp",
            width,
            gated: true,
            bias: false,
        }
    }

    /// Its parameters in a model of width `hidden`.
    pub fn weights(&self, hidden: u64) -> Vec<Weight> {
        let path = self.path;
        let up = if self.gated {
            Weight::column(
                format!("{path}.gate_up_proj"),
                Role::Mlp,
                hidden,
                &[self.width, self.width],
            )
        } else {
            Weight::column(format!("{path}.up_proj"), Role::Mlp, hidden, &[self.width])
        };
        vec![
            up.bias(self.bias),
            Weight::row(format!("{path}.down_proj"), Role::Mlp, self.width, hidden).bias(self.bias),
        ]
    }
}

/// Token embedding, output head and what lies beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ends {
    /// Tokens in the vocabulary.
    pub vocab: u64,
    /// Width of an embedding row; the model's width in most.
    pub embed_width: u64,
    /// Whether embedding and head are one matrix.
    pub tied: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Rows of a learned position embedding, 0 without one.
    pub positions: u64,
    /// Norm after the last layer.
    pub final_norm: Norm,
}

impl Ends {
    /// As the configuration describes them, with an RMS norm at the end.
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn read(t: &Text) -> Result<Self> {
        Ok(Self {
            vocab: t.vocab()?,
            embed_width: t.hidden()?,
            tied: t.tied()?,
            head_bias: false,
            positions: 0,
            final_norm: Norm::Scale,
        })
    }

    /// The parts outside of the layers of a model of width `hidden`.
    pub fn outside(&self, hidden: u64) -> Vec<Outside> {
        let width = self.embed_width;
        let embed = Weight::vocab("model.embed_tokens", Role::Embedding, self.vocab, width);
        let head = Weight::vocab("lm_head", Role::Head, self.vocab, width).bias(self.head_bias);
        let mut parts = Vec::with_capacity(4);
        if self.tied {
            parts.push(part(Place::FirstAndLast, vec![embed]));
            if self.head_bias {
                let bias = Weight::tensor("lm_head.bias", Role::Head, &[self.vocab], Some(0));
                parts.push(part(Place::Last, vec![bias]));
            }
        } else {
            parts.push(part(Place::First, vec![embed]));
            parts.push(part(Place::Last, vec![head]));
        }
        if self.positions > 0 {
            let rows = Weight::tensor(
                "model.embed_positions",
                Role::Embedding,
                &[self.positions, hidden],
                None,
            );
            parts.push(part(Place::First, vec![rows]));
        }
        parts.extend(
            self.final_norm
                .weights("model.norm", hidden)
                .map(|w| part(Place::Last, vec![w])),
        );
        parts
    }
}

/// A part outside of the layers that is no tower.
pub fn part(place: Place, weights: Vec<Weight>) -> Outside {
    Outside {
        place,
        tower: false,
        weights,
    }
}

/// A decoder whose layers differ at most in what they attend to and in their feed-forward part.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Width of the residual stream.
    pub hidden: u64,
    /// What each layer attends to; its length is the number of layers.
    pub attends: Vec<Attend>,
    /// Attention of every layer.
    pub attention: Attention,
    /// Feed-forward part of every layer.
    pub mlp: Mlp,
    /// Names of a layer's norms over the residual stream.
    pub norms: &'static [&'static str],
    /// What these norms learn.
    pub norm: Norm,
    /// Embedding, head and final norm.
    pub ends: Ends,
    /// Module path of the layers.
    pub layers_path: &'static str,
}

/// Norms before attention and before the feed-forward part.
pub const TWO_NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm"];

/// Norms before and after both parts.
pub const FOUR_NORMS: &[&str] = &[
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
];

impl Dense {
    /// Llama's decoder, and the engine's windows where the configuration has them.
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn llama(t: &Text) -> Result<Self> {
        Self::with_mlp(t, Mlp::gated(t.intermediate()?))
    }

    /// Llama's decoder with another feed-forward part (for files without `intermediate_size`).
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn with_mlp(t: &Text, mlp: Mlp) -> Result<Self> {
        Ok(Self {
            hidden: t.hidden()?,
            attends: t.attends(None)?,
            attention: Attention::read(t)?,
            mlp,
            norms: TWO_NORMS,
            norm: Norm::Scale,
            ends: Ends::read(t)?,
            layers_path: "model.layers",
        })
    }

    /// Attention and norms, which every layer has alike.
    fn shared_weights(&self) -> Vec<Weight> {
        let mut weights = self.attention.weights(self.hidden);
        weights.extend(
            self.norms
                .iter()
                .filter_map(|name| self.norm.weights(name, self.hidden)),
        );
        weights
    }

    /// Attention, caches and norms of layer `i`, without a feed-forward part.
    pub fn layer(&self, i: usize) -> Layer {
        self.layer_of(i, self.shared_weights().into())
    }

    fn layer_of(&self, i: usize, weights: Weights) -> Layer {
        let attend = self.attends.get(i).copied().unwrap_or(Attend::Full);
        Layer {
            caches: vec![self.attention.cache(attend)],
            weights,
        }
    }

    /// The decoder with its dense feed-forward part in every layer.
    ///
    /// # Errors
    /// None of its own; the type is shared with [`Dense::build_with`].
    pub fn build(&self) -> Result<Decoder> {
        let mlp = self.mlp.weights(self.hidden);
        let mut kinds = Kinds::default();
        self.build_with(|_, layer| {
            layer.weights = kinds.of((), || layer.weights.iter().chain(&mlp).cloned().collect());
            Ok(())
        })
    }

    /// The decoder, in which `finish` adds to each layer what is missing (its feed-forward part).
    ///
    /// # Errors
    /// Those of `finish`.
    pub fn build_with(&self, mut finish: impl FnMut(usize, &mut Layer) -> Result<()>) -> Result<Decoder> {
        let mut layers = Vec::with_capacity(self.attends.len());
        let shared = Weights::from(self.shared_weights());
        for i in 0..self.attends.len() {
            let mut layer = self.layer_of(i, shared.clone());
            finish(i, &mut layer)?;
            layer.share(&layers);
            layers.push(layer);
        }
        Ok(Decoder {
            layers_path: self.layers_path.to_owned(),
            layers,
            outside: self.ends.outside(self.hidden),
            ..Decoder::default()
        })
    }
}
