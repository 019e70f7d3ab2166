//! The description of one model that everything else is computed from.

use super::{Cache, Weight};
use crate::dtype::Dtype;

/// A model as its configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What the user called it (hub id, folder or file).
    pub name: String,
    /// Class name from `architectures`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// `model_type` of the outermost configuration.
    pub model_type: String,
    /// `torch_dtype`/`dtype` of the configuration; engines turn float32 into a 16-bit type.
    pub dtype: Option<Dtype>,
    /// Longest sequence in tokens that the configuration allows (the engine's derived maximum).
    pub max_position: Option<u64>,
    /// Query heads; tensor parallelism must divide them.
    pub num_attention_heads: u64,
    /// Key/value heads as the engine's configuration reports them (before tensor parallelism).
    pub num_kv_heads: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Tokens in the vocabulary, unpadded.
    pub vocab_size: u64,
    /// Decoder layers in order; pipeline stages are contiguous runs of these.
    pub layers: Vec<Layer>,
    /// Everything outside of the layers.
    pub outside: Vec<Outside>,
    /// Layers of a built-in multi-token-prediction drafter (`num_nextn_predict_layers`), 0 if none.
    pub mtp_layers: u64,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layer {
    /// What it keeps between tokens; empty for layers that share an earlier layer's cache or keep nothing.
    pub caches: Vec<Cache>,
    /// Its parameters.
    pub weights: Vec<Weight>,
}

/// Weights outside of the decoder layers and the pipeline stages that hold them.
#[derive(Debug, Clone, PartialEq)]
pub struct Outside {
    /// Which pipeline stages hold it.
    pub place: Place,
    /// Whether it belongs to a vision or audio tower, which `--language-model-only` leaves out.
    pub tower: bool,
    /// The parameters.
    pub weights: Vec<Weight>,
}

/// Which pipeline stages hold a part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first stage only (token embedding).
    First,
    /// The last stage only (final norm, untied head).
    Last,
    /// The first and the last stage, once if they are the same (tied embedding).
    FirstAndLast,
    /// Every stage.
    Every,
}
