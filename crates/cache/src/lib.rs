//! KV cache structures of LLM inference engines, as a library to embed.

pub mod error;

pub use error::{Error, ErrorKind, Result};
