//! Reads request traces: detection of the format, decompression, errors with line numbers.
//!
//! [`open`] takes a file, a folder or `-` and answers a [`Trace`]. Files may be plain, gzip or zstd, whatever their
//! names end in. Memory: a trace of hash ids takes about 50 bytes a request and 12 a distinct block, one of tokens 4
//! bytes a token. [`forecast()`] says from a sample what a trace will take before it is read, and
//! [`ReadOptions::max_memory_bytes`] stops one that takes more all the same.
//!
//! ```no_run
//! use kvwise_io::trace::{ReadOptions, open};
//!
//! let loaded = open("conversation_trace.jsonl.zst".as_ref(), &ReadOptions::default())?;
//! println!("{} requests", loaded.trace.len());
//! # Ok::<(), kvwise_core::Error>(())
//! ```

mod agentic;
mod ahead;
mod csv;
mod forecast;
pub mod json;
mod jsonl;
mod lines;
mod memory;
mod parquet;
mod session;
mod source;
mod text;
mod tokenizer;
mod write;

use std::fmt;
use std::path::Path;

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{Trace, TraceBuilder, TraceFormat, TraceSize};

use memory::check_memory;

pub use forecast::{Forecast, SAMPLE_BYTES, forecast, trace_file_bytes};
pub use memory::{default_memory_limit, too_small_to_matter};
pub use source::Source;
pub use tokenizer::{Tokenize, open_tokenizer};
pub use write::{WriteFormat, write, write_file};

/// How to read a trace.
#[derive(Clone, Copy)]
pub struct ReadOptions<'a> {
    /// The format; detected from the content if `None`.
    pub format: Option<TraceFormat>,
    /// Tokens a hash id stands for; by default what the format says (Mooncake and `tokens` 512, Bailian 16).
    pub hash_block_tokens: Option<u32>,
    /// Leave out unreadable lines and count them, instead of failing at the first.
    pub skip_bad: bool,
    /// Accept times that run backwards and sort the requests by time.
    pub sort: bool,
    /// Read at most so many requests.
    pub limit: Option<usize>,
    /// Stop with an error when the trace, with what is computed from it, would take more memory than this.
    pub max_memory_bytes: u64,
    /// Bytes that will be held beside the trace once it is read; they count towards the limit.
    pub beside: Option<&'a (dyn Fn(&TraceSize) -> u64 + Sync)>,
    /// Longest line that is accepted, in bytes.
    pub max_line_bytes: usize,
    /// Tokenizer of formats that hold text.
    pub tokenizer: Option<&'a dyn Tokenize>,
    /// Called now and then with what was read and the file's size.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl Default for ReadOptions<'_> {
    fn default() -> Self {
        Self {
            format: None,
            hash_block_tokens: None,
            skip_bad: false,
            sort: false,
            limit: None,
            max_memory_bytes: 16 << 30,
            beside: None,
            max_line_bytes: 256 << 20,
            tokenizer: None,
            progress: None,
        }
    }
}

impl fmt::Debug for ReadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOptions")
            .field("format", &self.format)
            .field("hash_block_tokens", &self.hash_block_tokens)
            .field("skip_bad", &self.skip_bad)
            .field("sort", &self.sort)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// How far reading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read from the files, before decompression.
    pub read_bytes: u64,
    /// Bytes of all files together, if known.
    pub total_bytes: Option<u64>,
    /// Requests so far.
    pub requests: u64,
}

/// A trace and what was left out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The requests.
    pub trace: Trace,
    /// Unreadable lines that were left out.
    pub skipped: u64,
    /// What was wrong with the first of them.
    pub skipped_examples: Vec<String>,
}

/// How many examples of unreadable lines are kept.
const EXAMPLES: usize = 5;
/// Requests between two looks at memory and progress.
const CHECK_EVERY: usize = 1024;

/// Reads the trace at `path`.
///
/// # Errors
/// If the file cannot be read, its format is not recognised, or (without [`ReadOptions::skip_bad`]) a line is
/// unreadable; the message names file, line and field.
pub fn open(path: &Path, options: &ReadOptions<'_>) -> Result<Loaded> {
    if path.is_dir() {
        return match options.format {
            None if crate::session::Session::is_folder(path) => session::read(path, options),
            Some(TraceFormat::Session) => session::read(path, options),
            None | Some(TraceFormat::Agentic) => agentic::read_folder(path, options),
            Some(other) => Err(Error::input(format!(
                "{}: a folder is read as the format agentic or session, not {other}; name a file",
                path.display()
            ))),
        };
    }
    let asked = options.format == Some(TraceFormat::Parquet);
    if asked || (options.format.is_none() && parquet::is_parquet(path)) {
        return parquet::read(path, options);
    }
    open_source(Source::open(path)?, options)
}

/// The built-in example: the first 1,000 requests of Mooncake's arXiv trace (Apache-2.0; see `data/traces/README.md`).
///
/// # Errors
/// Only for options that do not suit it.
pub fn example(options: &ReadOptions<'_>) -> Result<Loaded> {
    const ROWS: &[u8] = include_bytes!("../../data/traces/mooncake_arxiv_trace_first1000.jsonl.zst");
    let source = Source::from_reader(
        "mooncake-arxiv-first1000",
        Box::new(ROWS),
        Some(ROWS.len() as u64),
    )?;
    open_source(source, options)
}

/// Reads the trace in an open source.
///
/// # Errors
/// As [`open`].
pub fn open_source(mut source: Source, options: &ReadOptions<'_>) -> Result<Loaded> {
    let format = match options.format {
        Some(format) => format,
        None => detect(&mut source)?,
    };
    match format {
        TraceFormat::Agentic => agentic::read_tar(source, options),
        TraceFormat::Mooncake
        | TraceFormat::Bailian
        | TraceFormat::Tokens
        | TraceFormat::Azure
        | TraceFormat::BurstGpt => lines::read(source, options, format),
        TraceFormat::ShareGpt | TraceFormat::OpenAi => text::read(source, options, format),
        TraceFormat::Session => Err(Error::input(format!(
            "{}: a recording is a folder, name the folder that holds session.sqlite",
            source.name
        ))),
        TraceFormat::Parquet => Err(Error::input(format!(
            "{}: Parquet is read from its end, so it needs a file",
            source.name
        ))),
        other => Err(Error::unsupported(format!(
            "{}: the format {other} is not read from files",
            source.name
        ))),
    }
}

/// Where the keys of an object of text are looked for, in bytes.
const TEXT_START: usize = 16 << 10;

/// Guesses the format from the first line.
fn detect(source: &mut Source) -> Result<TraceFormat> {
    let name = source.name.clone();
    let start = source.peek()?;
    if start.len() >= 262 && &start[257..262] == b"ustar" {
        return Ok(TraceFormat::Agentic);
    }
    let first = start
        .split(|&b| b == b'\n')
        .find(|line| !line.trim_ascii().is_empty())
        .unwrap_or(&[]);
    let line = String::from_utf8_lossy(first);
    let line = line.trim_start_matches('\u{feff}').trim_end();
    let has = |key: &str| line.contains(&format!("\"{key}\""));
    if line.is_empty() {
        let what = if start.is_empty() {
            "is empty"
        } else {
            "begins with nothing but blanks"
        };
        return Err(Error::input(format!("{name}: the file {what}")));
    }
    if let Some(format) = csv::detect(line) {
        return Ok(format);
    }
    let text = &start[..start.len().min(TEXT_START)];
    if let Some(format) = detect_text(&String::from_utf8_lossy(text)) {
        return Ok(format);
    }
    if line.trim_start().starts_with('{') {
        if has("chat_id") && has("hash_ids") {
            return Ok(TraceFormat::Bailian);
        }
        // what `kvwise export --to trace` writes has both clocks: the exact lengths' names tell
        if has("timestamp") && has("hash_ids") && !has("input_len") {
            return Ok(TraceFormat::Mooncake);
        }
        if has("tokens") || has("hash_ids") {
            return Ok(TraceFormat::Tokens);
        }
    }
    Err(
        Error::input(format!("{name}: the format of the trace is not recognised"))
            .hint(
                "name it with --trace-format (mooncake, tokens, agentic, azure, bailian, burstgpt, sharegpt, openai, parquet)",
            ),
    )
}

/// Whether the text holds conversations, from the keys near its start: in a list of objects they may stand on any line.
fn detect_text(text: &str) -> Option<TraceFormat> {
    let start = text.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
    if !start.starts_with(['[', '{']) {
        return None;
    }
    let at = |key: &str| start.find(&format!("\"{key}\""));
    let first = |keys: &[&str]| keys.iter().filter_map(|key| at(key)).min();
    let trace = first(&["hash_ids", "tokens", "input_length", "input_len"]).unwrap_or(usize::MAX);
    let sharegpt = first(&["conversations", "conversation"]).filter(|&at| at < trace);
    let openai = first(&["messages", "prompt"]).filter(|&at| at < trace);
    match (sharegpt, openai) {
        (Some(a), Some(b)) if b < a => Some(TraceFormat::OpenAi),
        (Some(_), _) => Some(TraceFormat::ShareGpt),
        (None, Some(_)) => Some(TraceFormat::OpenAi),
        (None, None) => None,
    }
}

fn finish(
    builder: TraceBuilder,
    options: &ReadOptions<'_>,
    skipped: u64,
    skipped_examples: Vec<String>,
    name: &str,
) -> Result<Loaded> {
    if builder.is_empty() {
        let mut e = Error::input(format!("{name}: the trace has no readable request"));
        for example in &skipped_examples {
            e = e.hint(example.clone());
        }
        return Err(e);
    }
    let mut trace = builder.finish();
    if options.sort
        && let Some(order) = trace.arrival_order()
        && order.windows(2).any(|pair| pair[0] > pair[1])
    {
        trace = trace.into_order(&order);
    }
    Ok(Loaded {
        trace,
        skipped,
        skipped_examples,
    })
}

#[cfg(test)]
mod tests;
