//! Memory models of the engines, by version.

pub mod flags;
pub mod vllm;
