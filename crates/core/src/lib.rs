//! Exact models of how LLM inference engines lay out KV caches and weights.
//!
//! Pure: no IO, clock, thread or float in a byte count.

pub mod arch;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod quant;

pub use error::{Error, ErrorKind, Result};
