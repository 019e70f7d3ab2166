//! vLLM's KV cache, laid out as the engine does it.
//!
//! [`layout`] takes a [`Model`](crate::arch::Model), [`Settings`], a [`Gpu`] and the bytes available for the cache, and
//! gives what the engine would log and refuse: block size, groups of layers, bytes per block, number of blocks,
//! tokens, concurrency. The rules are those of vLLM 0.32.0; each function names the file they were read in, and
//! [`version`] lists what older releases do otherwise.
//!
//! The steps, one module each: [`backend`] picks the attention backend of every kind of layer; [`block_size`] settles
//! the block size from their kernels and from recurrent states; [`publish`] makes each cache's [`spec`]; [`group`]
//! divides the specs into groups (with `unify` and `packed` for pages of different size); [`request`] counts the
//! blocks of one request; `startup` sizes the pools of all pipeline stages and checks them.
//!
//! Cost: one pass over the caches and a few comparisons each; a catalogue model takes some tens of microseconds
//! (benchmark `layout`).

mod adapters;
pub mod backend;
pub mod block_size;
#[cfg(test)]
mod cases;
mod class_backend;
mod deepseek_v4;
mod deepseek_v41;
mod drafter_rules;
#[cfg(test)]
mod golden;
pub mod gpu;
pub mod group;
mod kernel_fit;
pub mod kv_dtype;
mod layout;
pub mod multimodal;
mod packed;
mod parallel;
#[cfg(test)]
mod properties;
pub mod publish;
pub mod refusal;
pub mod request;
pub mod runner;
pub mod settings;
pub mod spec;
pub mod speculative;
pub mod stages;
mod startup;
pub mod state;
mod unify;
pub mod version;

pub use adapters::AdapterClass;
pub use backend::Backend;
pub use gpu::Gpu;
pub use kv_dtype::KvDtype;
pub use layout::{GroupShare, Layout, Outcome, Stage, keeps_states_only, layout, step_limits};
pub use multimodal::Multimodal;
pub use refusal::{Refusal, RefusalKind};
pub use runner::Runner;
pub use settings::{MaxModelLen, Settings};
pub use speculative::{Draft, DrafterWeights, Method, Speculative};
pub(crate) use version::SORTING_SAMPLER;
pub use version::{Rules, StateCaching, Version};
