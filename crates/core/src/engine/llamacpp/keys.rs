//! Keys of a file's metadata that decide which operations its graph has, beside the sizes of [`Hparams`](super::Hparams)
//! (llama.cpp b11434, `src/llama-model.cpp`, `load_hparams`, and `load_arch_hparams` of each file of `src/models`).

use super::gguf::{Header, Meta};
use crate::Result;

/// How a router's outputs become the shares of experts (`llama_expert_gating_func_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gating {
    /// The file does not say.
    #[default]
    Unsaid,
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// Softmax over the chosen ones.
    SoftmaxOfChosen,
}

/// Sizes of recurrent layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ssm {
    /// Taps of the convolution.
    pub kernel: u64,
    /// Inner width.
    pub inner: u64,
    /// Elements of the state of one channel or head.
    pub state: u64,
    /// Rank of the time step, or heads.
    pub rank: u64,
    /// Groups, or key heads.
    pub groups: u64,
}

/// What decides about operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Layers of the trunk; those behind predict further tokens.
    pub trunk: usize,
    /// Layers with a cache of their own; the others read an earlier one's.
    pub keeps: usize,
    /// Which layers slide, those without a cache of their own among them; empty where the layers' caches say it.
    pub slides: Vec<bool>,
    /// How shares of experts are made.
    pub gating: Gating,
    /// Whether shares of the chosen experts are normalised.
    pub expert_norm: bool,
    /// Whether they are scaled.
    pub expert_scale: bool,
    /// Groups of experts, and groups that are used.
    pub expert_groups: (u64, u64),
    /// Whether logits are scaled.
    pub logit_scale: bool,
    /// Whether outputs of attention and feed-forward are scaled.
    pub residual_scale: bool,
    /// Whether embeddings are scaled.
    pub embedding_scale: bool,
    /// Whether logits are capped.
    pub final_cap: bool,
    /// Whether queries are scaled by their position.
    pub temperature: bool,
    /// Whether positions rotate queries and keys, where the architecture leaves it to the file.
    pub rotates: bool,
    /// Elements of a head that are rotated.
    pub rope_width: u64,
    /// Whether rotations have sections for several dimensions of positions.
    pub rope_sections: bool,
    /// Context that rotations were trained for.
    pub rope_context: u64,
    /// Whether time steps and projections of a first-generation Mamba are normalised.
    pub mamba_norms: bool,
    /// Recurrent layers.
    pub ssm: Ssm,
    /// Copies of the residual stream (Gemma 3n).
    pub streams: u64,
    /// Width of embeddings that each layer has of its own (Gemma 3n and 4).
    pub per_layer: u64,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            trunk: usize::MAX,
            keeps: usize::MAX,
            slides: Vec::new(),
            gating: Gating::Unsaid,
            expert_norm: false,
            expert_scale: false,
            expert_groups: (0, 0),
            logit_scale: false,
            residual_scale: false,
            embedding_scale: false,
            final_cap: false,
            temperature: false,
            rotates: true,
            rope_width: 0,
            rope_sections: false,
            rope_context: 0,
            mamba_norms: false,
            ssm: Ssm::default(),
            streams: 0,
            per_layer: 0,
        }
    }
}

impl Keys {
    /// Reads them.
    ///
    /// # Errors
    /// If a size makes no sense; the key is named.
    pub(super) fn read(header: &Header, trunk: usize, keeps: u64, slides: Vec<bool>) -> Result<Self> {
        let size = |key: &str| Ok::<_, crate::Error>(header.size(key)?.unwrap_or(0));
        let value = |key: &str| {
            let name = format!("{}.{key}", header.architecture().unwrap_or_default());
            header.metadata.get(&name)
        };
        // Scales count where they are not 0; 1 is left out for experts alone.
        let number = |key: &str| match value(key) {
            Some(Meta::Float(x)) => *x,
            Some(Meta::Int(n)) => f64::from(i32::try_from(*n).unwrap_or(i32::MAX)),
            _ => 0.0,
        };
        let flag = |key: &str, default: bool| match value(key) {
            Some(Meta::Bool(flag)) => *flag,
            Some(Meta::Int(n)) => *n != 0,
            _ => default,
        };
        let expert_scale = number("expert_weights_scale");
        #[expect(
            clippy::float_cmp,
            reason = "the engine too leaves out the operation for exactly one"
        )]
        let expert_scale = expert_scale != 0.0 && expert_scale != 1.0;
        Ok(Self {
            trunk,
            keeps: usize::try_from(keeps).unwrap_or(usize::MAX),
            slides,
            gating: match size("expert_gating_func")? {
                1 => Gating::Softmax,
                2 => Gating::Sigmoid,
                3 => Gating::SoftmaxOfChosen,
                _ => Gating::Unsaid,
            },
            expert_norm: flag("expert_weights_norm", false),
            expert_scale,
            expert_groups: (size("expert_group_count")?, size("expert_group_used_count")?),
            logit_scale: number("logit_scale") != 0.0,
            residual_scale: number("residual_scale") != 0.0,
            embedding_scale: number("embedding_scale") != 0.0,
            final_cap: number("final_logit_softcapping") != 0.0,
            temperature: number("attention.temperature_scale") != 0.0,
            rotates: flag("rope.scaling.finetuned", true),
            rope_width: size("rope.dimension_count")?,
            rope_sections: header
                .list("rope.dimension_sections")?
                .is_some_and(|list| list.len() > 1 && list[0] > 0 && list[1] > 0),
            rope_context: match header.size("rope.scaling.original_context_length")? {
                Some(n) => n,
                None => size("context_length")?,
            },
            mamba_norms: flag("ssm.dt_b_c_rms", false),
            ssm: Ssm {
                kernel: size("ssm.conv_kernel")?,
                inner: size("ssm.inner_size")?,
                state: size("ssm.state_size")?,
                rank: size("ssm.time_step_rank")?,
                groups: size("ssm.group_count")?,
            },
            streams: size("altup.num_inputs")?,
            per_layer: size("embedding_length_per_layer_input")?,
        })
    }
}
