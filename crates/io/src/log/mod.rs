//! Start-up logs of serving engines: what was asked for, what the engine measured, how it ended.
//!
//! [`read`] takes any mixture that reaches a terminal, a container runtime or a journal: colours, time stamps, worker
//! names and JSON envelopes are looked through ([`mod@line`]), and the wordings of each engine are rows of a table
//! ([`vllm`], [`sglang`], [`llamacpp`]) that name the versions they were read in. A file may hold several starts of the
//! server; each becomes a [`Boot`]. Everything is read once, line by line, within fixed limits.

pub mod boot;
pub mod figure;
pub mod line;
pub mod llamacpp;
pub mod python;
pub mod sglang;
#[cfg(test)]
mod tests;
pub mod vllm;

use std::io::BufRead;
use std::path::Path;

use kvwise_core::{Error, Result};

pub use boot::{Boot, Cache, EngineKind, Evidence, Rank, Refusal};
pub use figure::Figure;
use line::Lines;
pub use python::Value;

use crate::trace::Source;

/// Most bytes that are read of one log (after decompression); a start-up is in the first megabyte of each boot.
pub const MAX_BYTES: u64 = 1 << 30;
/// Most starts that are kept; of more, the first ones are dropped.
pub const MAX_BOOTS: usize = 256;

/// A log that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The file's name, `standard input` for `-`.
    pub name: String,
    /// Starts of a server, in order; at least one.
    pub boots: Vec<Boot>,
    /// Lines read.
    pub lines: u64,
    /// Lines that say something about memory or settings.
    pub recognised: u64,
    /// Lines longer than [`line::MAX_LINE_BYTES`], of which only the beginning was read.
    pub cut_lines: u64,
    /// Whether the file was longer than [`MAX_BYTES`] and its rest was not read.
    pub cut: bool,
}

/// Reads a log file (`-` is standard input; gzip and zstd are decompressed).
///
/// # Errors
/// If it cannot be read, or no line is one of a known engine's start-up.
pub fn open(path: &Path) -> Result<Log> {
    if path.is_dir() {
        return Err(Error::input(format!(
            "{}: a folder; give the engine's log file, or - for standard input",
            path.display()
        )));
    }
    let mut source = Source::open(path)?;
    let name = source.name.clone();
    read(&name, source.reader())
}

/// Reads a log from any source of lines.
///
/// # Errors
/// If it cannot be read, or no line is one of a known engine's start-up.
pub fn read(name: &str, source: &mut dyn BufRead) -> Result<Log> {
    let mut lines = Lines::new(source, MAX_BYTES);
    let mut boots: Vec<Boot> = Vec::new();
    let mut current = Boot::default();
    let mut recognised = 0_u64;
    while let Some(line) = lines
        .next_line()
        .map_err(|e| Error::io(format!("{name}: cannot read: {e}")))?
    {
        if begins_boot(&line.text, &current) {
            let finished = std::mem::take(&mut current);
            if boots.len() == MAX_BOOTS {
                boots.remove(0);
            }
            boots.push(finished);
        }
        let known = vllm::read_line(&mut current, &line)
            || sglang::read_line(&mut current, &line)
            || llamacpp::read_line(&mut current, &line);
        if known {
            recognised += 1;
            current.first_line.get_or_insert(line.number);
            current.last_line = line.number;
        }
    }
    let (count, cut_lines, cut) = (lines.count(), lines.cut_lines(), lines.is_cut());
    boots.push(current);
    boots.retain(Boot::says_something);
    for boot in &mut boots {
        boot.settle();
    }
    if boots.is_empty() {
        return Err(Error::input(format!(
            "{name}: none of its {count} lines is one that vLLM, SGLang or llama.cpp writes when it starts"
        ))
        .hint("give the server's own output from its beginning, e.g. `docker logs NAME 2>&1 | kvwise verify --log -`")
        .hint("docs: the reference \"Log lines that are understood\" lists what is looked for"));
    }
    Ok(Log {
        name: name.to_owned(),
        boots,
        lines: count,
        recognised,
        cut_lines,
        cut,
    })
}

/// Whether a line is the beginning of another start, given what the present one already said.
fn begins_boot(text: &str, current: &Boot) -> bool {
    let server = vllm::begins_server(text) || sglang::begins_server(text) || llamacpp::begins_server(text);
    let engine = vllm::begins_engine(text);
    (server && (current.has_engine_line || current.is_finished())) || (engine && current.is_finished())
}
