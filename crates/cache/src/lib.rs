//! KV cache structures of LLM inference engines, as a library to embed.

pub mod error;
pub mod hash;
pub mod manager;
pub mod policy;
pub mod pool;
pub mod radix;
pub mod store;

pub use error::{Error, ErrorKind, Result};
