//! Cases of the manager.
