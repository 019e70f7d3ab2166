//! The memory of SGLang 0.5.23: which share of the GPU it keeps for weights and KV cache, and what pools it makes of it.
//!
//! SGLang does not profile a forward pass. It reserves memory for activations and graphs by a rule of thumb
//! ([`memory`]), calls the rest of the free memory `mem_fraction_static`, loads the weights, and turns what is left of
//! the static share into token slots ([`pool`]): one pool, or a full and a sliding-window pool, with recurrent states
//! taken off first. All arithmetic is in the engine's own order and in its own floating-point GiB, so that the number of
//! tokens comes out the same to the last one; golden rows made by its own code check that.

mod compressed;
mod context;
mod element;
#[cfg(test)]
mod golden;
pub mod memory;
pub mod pool;
mod rows;
pub mod served;
pub mod settings;
pub mod shape;
pub mod speculative;
mod state;
pub mod tower;

pub use memory::{Card, Defaults, card_chunk_tokens, defaults};
pub use pool::{Pools, Static, pools};
pub use settings::{Chunk, KvDtype, Settings};
pub use shape::{Shape, shape};
pub use speculative::{Algorithm, Drafter, OwnModules, Speculative, own_modules};

/// The version whose rules these are.
pub const VERSION: &str = "0.5.23";
