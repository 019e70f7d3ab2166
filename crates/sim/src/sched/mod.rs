//! The engines' schedulers, one module an engine.

pub mod sglang;
pub mod vllm;
