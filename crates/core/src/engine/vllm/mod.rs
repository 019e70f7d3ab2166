//! vLLM's memory layout.
