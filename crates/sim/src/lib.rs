//! kvwise-sim
