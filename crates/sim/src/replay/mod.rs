//! Traces through an engine's scheduler and cache, event for event.

pub mod vllm;
