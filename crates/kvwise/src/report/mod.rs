//! Plain structs of every answer, rendered as table, JSON, CSV, Markdown or HTML.

pub mod catalogue;
pub mod compare;
pub mod config;
pub mod curve;
pub mod demo;
pub mod detected;
pub mod exporter;
pub mod generate;
pub mod html;
pub mod lint;
pub mod plan;
pub mod quote;
pub mod rate;
pub mod recommend;
pub mod refusal;
pub mod replay;
pub mod replay_vllm;
pub mod session;
pub mod sheet;
pub mod simulation;
pub mod simulation_html;
pub mod size;
pub mod sweep;
pub mod table;
pub mod text;
pub mod time;
pub mod trace_info;
pub mod verify;
pub mod watch;

use kvwise_core::{Error, Result};
use serde::Serialize;

/// Pretty JSON with a final newline.
///
/// # Errors
/// If the value has a map with keys that are not strings (none of ours has).
pub fn json_text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|mut text| {
            text.push('\n');
            text
        })
        .map_err(|e| Error::input(format!("the answer cannot be written as JSON: {e}")))
}
