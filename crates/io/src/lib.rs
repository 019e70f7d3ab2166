//! Everything of kvwise that touches files and sockets.

pub mod answers;
pub mod atomic;
pub mod bundle;
pub mod folders;
pub mod gpu;
pub mod hub;
pub mod kv_events;
pub mod log;
pub mod model;
pub mod parquet_table;
pub mod plan_profile;
pub mod prometheus;
pub mod session;
pub mod settings;
pub mod site;
pub mod trace;
