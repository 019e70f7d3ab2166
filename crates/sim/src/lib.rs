//! kvwise-sim

pub mod demo;
pub mod sched;
