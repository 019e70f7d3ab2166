//! kvwise-cache
