//! Start-up logs of serving engines: what was asked for, what the engine measured, how it ended.
//!
//! [`read`] takes any mixture that reaches a terminal, a container runtime or a journal: colours, time stamps, worker
//! names and JSON envelopes are looked through ([`mod@line`]), lines about requests are passed over ([`traffic`]), and the wordings of each engine are rows of a table
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
pub mod traffic;
pub mod vllm;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use kvwise_core::{Error, Result};

pub use boot::{Boot, Cache, EngineKind, Evidence, Rank, Refusal};
pub use figure::Figure;
use line::Lines;
pub use python::Value;

use crate::trace::Source;

/// Most bytes that are read of one log (after decompression). Servers run for weeks, and the last start counts.
pub const MAX_BYTES: u64 = 16 << 30;
/// Most starts that are kept; of more, the first ones are dropped.
pub const MAX_BOOTS: usize = 256;
/// Most containers whose lines are told apart.
const MAX_SOURCES: usize = 64;

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
    // Starts that go on, of one server or of several whose lines are mixed.
    let mut open: BTreeMap<String, Boot> = BTreeMap::new();
    let mut at = String::new();
    let mut recognised = 0_u64;
    while let Some(line) = lines
        .next_line()
        .map_err(|e| Error::io(format!("{name}: cannot read: {e}")))?
    {
        if line.source != at && !line.source.is_empty() {
            // What was there before the first name is that container's, too.
            let unnamed = if at.is_empty() { open.remove("") } else { None };
            if open.contains_key(&line.source) || open.len() < MAX_SOURCES {
                at.clone_from(&line.source);
                let boot = open
                    .entry(at.clone())
                    .or_insert_with(|| unnamed.unwrap_or_default());
                boot.source.clone_from(&at);
            }
        }
        let current = open.entry(at.clone()).or_default();
        if begins_boot(&line.text, current) {
            let finished = std::mem::replace(current, Boot::of(&at));
            if boots.len() == MAX_BOOTS {
                boots.remove(0);
            }
            boots.push(finished);
        }
        let known = vllm::read_line(current, &line)
            || sglang::read_line(current, &line)
            || llamacpp::read_line(current, &line);
        if known {
            recognised += 1;
            current.first_line.get_or_insert(line.number);
            current.last_line = line.number;
        }
    }
    let (count, cut_lines, cut) = (lines.count(), lines.cut_lines(), lines.is_cut());
    boots.extend(open.into_values());
    boots.retain(Boot::says_something);
    boots.sort_by_key(|boot| boot.first_line);
    gather_nodes(&mut boots);
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

/// Gives the workers of further machines to the start that they belong to: their containers run no engine of their own.
fn gather_nodes(boots: &mut Vec<Boot>) {
    let heads = boots.iter().filter(|boot| boot.has_engine_line).count();
    let without = |boot: &Boot| {
        !boot.source.is_empty() && !boot.has_engine_line && !boot.is_finished() && !boot.ranks.is_empty()
    };
    if heads != 1 || !boots.iter().any(without) {
        return;
    }
    let (others, mut rest): (Vec<Boot>, Vec<Boot>) = std::mem::take(boots).into_iter().partition(without);
    for boot in rest.iter_mut().filter(|boot| boot.has_engine_line) {
        for rank in others.iter().flat_map(|other| &other.ranks) {
            if !boot.ranks.iter().any(|known| known.worker == rank.worker) {
                boot.ranks.push(rank.clone());
            }
        }
    }
    *boots = rest;
}

/// Whether a line is the beginning of another start, given what the present one already said.
fn begins_boot(text: &str, current: &Boot) -> bool {
    let server = vllm::begins_server(text) || sglang::begins_server(text) || llamacpp::begins_server(text);
    let engine = vllm::begins_engine(text);
    (server && (current.has_engine_line || current.is_finished())) || (engine && current.is_finished())
}
