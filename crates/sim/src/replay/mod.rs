//! Traces through an engine's scheduler and cache, event for event.

mod clock;
pub mod sglang;
pub mod vllm;
