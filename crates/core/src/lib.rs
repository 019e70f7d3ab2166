//! Exact models of how LLM inference engines lay out KV caches and weights.
//!
//! Pure: no IO, clock, thread or float in a byte count.

pub mod arch;
pub mod catalogue;
pub mod drafters;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod hardware;
pub mod names;
pub mod plan;
pub mod quant;
pub mod units;

pub use error::{Error, ErrorKind, Result};
