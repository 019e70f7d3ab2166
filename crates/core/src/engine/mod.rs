//! Memory models of the engines, by version.

pub mod flags;
pub mod llamacpp;
pub mod sglang;
pub mod vllm;
