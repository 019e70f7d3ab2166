//! kvwise-sim

pub mod sched;
