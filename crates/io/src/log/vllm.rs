//! The lines of vLLM, 0.6 to 0.33, both engines (V0 and V1), with the version and file in which each was read.
//!
//! Sizes are GiB; old versions call them GB. Versions round to two decimals (`round(x, 2)`, so `15.0` is 15.00) or four.

use super::boot::{Boot, EngineKind};
use super::figure::after;
use super::line::Line;

mod read;
mod wordings;

use read::{command, set_gpu};
pub use wordings::WORDINGS;

/// What a wording says; `rest` is the text behind the phrase.
type Read = fn(boot: &mut Boot, line: &Line, rest: &str) -> Option<()>;

/// One wording.
pub struct Wording {
    /// Text that the line must contain.
    pub phrase: &'static str,
    /// Versions and files where it was read.
    pub source: &'static str,
    read: Read,
}

/// Lines of `collect_env`, `nvidia-smi` and `rocm-smi`, which users and containers print in front of the log.
fn hardware(boot: &mut Boot, text: &str) -> bool {
    if let Some(rest) =
        after(text, "GPU 0: ").or_else(|| after(text, "GPU models and configuration: GPU 0: "))
    {
        let name = rest.split(" (UUID").next().unwrap_or(rest);
        return set_gpu(boot, name).is_some();
    }
    false
}

/// Reads one line; true if it is one of vLLM's.
pub fn read_line(boot: &mut Boot, line: &Line) -> bool {
    if boot.engine.is_some_and(|engine| engine != EngineKind::Vllm) {
        return false;
    }
    if boot.engine == Some(EngineKind::Vllm) && line.text.contains("Application startup complete") {
        boot.is_up = true;
        return true;
    }
    for wording in WORDINGS.iter().copied().flatten() {
        if let Some(rest) = after(&line.text, wording.phrase)
            && (wording.read)(boot, line, rest).is_some()
        {
            return true;
        }
    }
    hardware(boot, &line.text) || command(boot, &line.text)
}

/// Whether the line is the first of a server's start.
pub fn begins_server(text: &str) -> bool {
    text.contains("vLLM API server version ")
        || text.contains("vLLM server version ")
        || text.contains("█  version ")
}

/// Whether the line is the one with the engine's configuration.
pub fn begins_engine(text: &str) -> bool {
    text.contains(" LLM engine (v")
}
