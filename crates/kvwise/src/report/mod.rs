//! Plain structs of every answer, rendered as table, JSON, CSV, Markdown or HTML.

pub mod replay;
pub mod replay_vllm;
pub mod catalogue;
pub mod plan;
pub mod session;
pub mod table;
pub mod time;
pub mod watch;
