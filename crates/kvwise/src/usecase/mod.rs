//! The order of steps behind each command; no printing here.

pub mod attach;
pub mod catalogue;
pub mod compare;
pub mod curve;
pub mod demo;
pub mod deployment;
pub mod effect;
pub mod export;
pub mod exporter;
pub mod generate;
pub mod gpus;
pub mod kv_room;
pub mod lint;
pub mod lookup;
pub mod plan;
pub mod probe;
pub mod profile;
pub mod progress;
pub mod replay_sglang;
pub mod replay_vllm;
pub mod session;
pub mod simulate;
pub mod size;
pub mod trace_info;
pub mod watch;
