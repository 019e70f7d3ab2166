//! The flags that every command reading a trace shares.

use std::path::{Path, PathBuf};

use clap::Args;
use kvwise_core::units::parse_bytes;
use kvwise_core::{Error, Result};
use kvwise_io::trace::{Loaded, ReadOptions, default_memory_limit, example, open, open_tokenizer};
use kvwise_sim::trace::TraceFormat;

use crate::printer::Printer;
use crate::usecase::progress::ReadProgress;
use crate::usecase::trace_memory::{self, Need};

/// Which trace, and how to read it.
#[derive(Debug, Clone, Args)]
pub struct TraceInput {
    /// The trace: a file (plain, .gz or .zst), a folder of kv-cache-tester files or their .tar archive, a recording of
    /// kvwise, or - for standard input.
    #[arg(value_name = "TRACE", required_unless_present = "example")]
    pub trace: Option<PathBuf>,

    /// Use the built-in example: the first 1,000 requests of Mooncake's arXiv trace.
    #[arg(long, conflicts_with = "trace", help_heading = "Trace")]
    pub example: bool,

    /// How it is read.
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// How a trace is read.
#[derive(Debug, Clone, Default, Args)]
pub struct ReadingArgs {
    /// Format of the trace: mooncake, tokens, agentic, azure, bailian, burstgpt, sharegpt, openai, parquet,
    /// session [default: detected].
    #[arg(long, value_name = "FORMAT", help_heading = "Trace")]
    pub trace_format: Option<TraceFormat>,

    /// Tokenizer of formats that hold text (sharegpt, openai): a tokenizer.json, or a model's folder that has one.
    #[arg(long, value_name = "FILE", help_heading = "Trace")]
    pub tokenizer: Option<PathBuf>,

    /// Tokens that a hash id stands for [default: what the format says: 512, Bailian 16].
    #[arg(long, value_name = "TOKENS", help_heading = "Trace")]
    pub hash_block: Option<u32>,

    /// Leave out unreadable lines (or files) and count them.
    #[arg(long, help_heading = "Trace")]
    pub skip_bad: bool,

    /// Accept times that run backwards and sort the requests by time.
    #[arg(long, help_heading = "Trace")]
    pub sort: bool,

    /// Read at most so many requests.
    #[arg(long, value_name = "N", help_heading = "Trace")]
    pub limit: Option<usize>,

    /// Refuse a trace that would take more memory than this, in GiB or with a unit (500MiB) [default: three quarters of
    /// what is available].
    #[arg(long, value_name = "GIB", help_heading = "Trace", value_parser = memory)]
    pub max_memory: Option<u64>,
}

/// Bytes of a number of GiB, or of a size with a unit.
fn memory(text: &str) -> Result<u64> {
    match text.parse::<u64>() {
        Ok(gib) => gib
            .checked_mul(1 << 30)
            .ok_or_else(|| Error::input(format!("{gib} GiB is more than 64 bits hold"))),
        Err(_) => parse_bytes(text),
    }
}

impl TraceInput {
    /// Reads the trace, with progress on stderr when it takes long, and a warning about what was left out. What it will
    /// take in memory, together with what the command computes from it, is judged before.
    ///
    /// # Errors
    /// If it cannot be read or is too large; see [`kvwise_io::trace::open`].
    pub fn load(&self, printer: Printer, need: &Need<'_>) -> Result<Loaded> {
        self.reading.load(self.trace.as_deref(), printer, need)
    }
}

impl ReadingArgs {
    /// As [`TraceInput::load`]; the built-in example where there is no `path`.
    ///
    /// # Errors
    /// As there.
    pub fn load(&self, path: Option<&Path>, printer: Printer, need: &Need<'_>) -> Result<Loaded> {
        if self.hash_block == Some(0) {
            return Err(Error::input("--hash-block is 0, expected at least 1 token"));
        }
        let tokenizer = self.tokenizer.as_deref().map(open_tokenizer).transpose()?;
        let progress = ReadProgress::new(printer);
        let report = |p| progress.update(p);
        let options = ReadOptions {
            format: self.trace_format,
            hash_block_tokens: self.hash_block,
            skip_bad: self.skip_bad,
            sort: self.sort,
            limit: self.limit,
            max_memory_bytes: self.max_memory.unwrap_or_else(default_memory_limit),
            tokenizer: tokenizer.as_deref(),
            beside: Some(need.beside),
            progress: Some(&report),
            ..ReadOptions::default()
        };
        let loaded = match path {
            Some(path) => {
                trace_memory::check(path, &options, need, printer).and_then(|()| open(path, &options))
            }
            None => example(&options),
        };
        progress.finish();
        let loaded = loaded?;
        // what is not forecast (small files, pipes, the example) may still be asked into a pool of any size
        trace_memory::check_read(&loaded.trace, options.max_memory_bytes, need)?;
        if loaded.skipped > 0 {
            let first = loaded.skipped_examples.first().map_or("", String::as_str);
            printer.warn(&format!(
                "{} unreadable entries left out, the first: {first}",
                loaded.skipped
            ));
        }
        Ok(loaded)
    }
}
