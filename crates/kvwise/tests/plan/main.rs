//! The `plan`, `models` and `gpus` commands from the outside: the built program, its output and its exit status.

mod compare;
mod docs;
mod engines;
mod errors;
mod flags;
mod generate;
mod gpus;
mod help;
mod hub;
mod lint;
mod output;
mod recommend;
mod settings;
mod size;
mod textbook;

use std::process::{Command, Output};

/// Runs the program with these words; the format is what `KVWISE_FORMAT` says, else JSON (stdout is no terminal).
pub fn kvwise(args: &[&str]) -> Output {
    kvwise_with(args, None)
}

/// Runs the program with tables as the default format.
pub fn kvwise_table(args: &[&str]) -> Output {
    kvwise_with(args, Some("table"))
}

fn kvwise_with(args: &[&str], format: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
    command
        .args(args)
        .env_remove("KVWISE_FORMAT")
        .env("HF_HUB_OFFLINE", "1")
        .env("KVWISE_CONFIG_DIR", "/nowhere")
        .env("NO_COLOR", "1");
    if let Some(format) = format {
        command.env("KVWISE_FORMAT", format);
    }
    command.output().expect("the program starts")
}

/// The plan as JSON, and the exit status.
///
/// # Panics
/// If the program does not print JSON.
pub fn plan(args: &[&str]) -> (serde_json::Value, i32) {
    let mut words = vec!["plan"];
    words.extend_from_slice(args);
    let output = kvwise(&words);
    let status = output.status.code().expect("no signal");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!(
            "{args:?}: not JSON ({e}): {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    (value, status)
}
