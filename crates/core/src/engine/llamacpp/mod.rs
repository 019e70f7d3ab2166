//! The memory of llama.cpp (commit 0c1e570 of 2026-10-01, checked with build b11549): caches, offload, buffers.
//!
//! llama.cpp allocates everything at start: the weights where each layer is placed ([`mod@place`]), a cell of keys and
//! values for every token of the context in every attention layer, smaller windows for sliding layers, and fixed states
//! for recurrent ones ([`cache`]), and a buffer for the intermediate results of its graph on each device, to the byte ([`graph`]) or
//! estimated by the graph's widest place ([`mod@compute`]). What a model is comes from the metadata of its GGUF file ([`gguf`], [`hparams`]), or
//! from a configuration ([`convert`]).

pub mod cache;
pub mod compute;
pub mod convert;
pub mod ggml;
pub mod gguf;
#[cfg(test)]
mod golden;
pub mod graph;
pub mod hparams;
pub mod keys;
#[cfg(test)]
mod logs;
pub mod overrides;
pub mod place;
pub mod settings;

pub use cache::{Caches, caches};
pub use compute::{Compute, Outputs, compute};
pub use ggml::GgmlType;
pub use gguf::{Header, Meta, Tensor};
pub use graph::{Buffers, buffers};
pub use hparams::{Attention, Hparams, Layer, Recurrent, Sliding};
pub use keys::Keys;
pub use overrides::Overrides;
pub use place::{Placement, Weights, place};
pub(crate) use settings::MAX_SEQUENCES;
pub use settings::{Settings, SplitMode};

/// The version whose rules these are.
pub const VERSION: &str = "b11549";
