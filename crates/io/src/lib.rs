//! Everything of kvwise that touches files and sockets.

pub mod atomic;
pub mod prometheus;
pub mod session;
pub mod trace;
