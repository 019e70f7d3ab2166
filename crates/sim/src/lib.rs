//! Deterministic replay, hit-rate curves and simulation of LLM serving.
//!
//! Everything here is a pure function of its arguments: no clock, file, socket or thread-dependent order.

pub mod cost;
pub mod curve;
pub mod demo;
pub mod generate;
pub mod replay;
pub mod sched;
pub mod simulate;
pub mod trace;
pub mod tree;
