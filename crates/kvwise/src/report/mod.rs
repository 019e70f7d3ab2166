//! Plain structs of every answer, rendered as table, JSON, CSV, Markdown or HTML.

pub mod catalogue;
pub mod curve;
pub mod demo;
pub mod detected;
pub mod exporter;
pub mod plan;
pub mod replay;
pub mod replay_vllm;
pub mod session;
pub mod sheet;
pub mod simulation;
pub mod size;
pub mod table;
pub mod text;
pub mod time;
pub mod trace_info;
pub mod watch;
