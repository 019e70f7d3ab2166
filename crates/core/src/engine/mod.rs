//! Memory models of the engines, by version.

pub mod vllm;
