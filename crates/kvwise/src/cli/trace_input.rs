//! The flags that every command reading a trace shares.

use std::path::PathBuf;

use clap::Args;
use kvwise_core::{Error, Result};
use kvwise_io::trace::{Loaded, ReadOptions, default_memory_limit, example, open, open_tokenizer};
use kvwise_sim::trace::TraceFormat;

use crate::printer::Printer;
use crate::usecase::progress::ReadProgress;

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

    /// Stop when the trace would take more memory than this, in GiB [default: three quarters of what is available].
    #[arg(long, value_name = "GIB", help_heading = "Trace")]
    pub max_memory: Option<u64>,
}

impl TraceInput {
    /// Reads the trace, with progress on stderr when it takes long, and a warning about what was left out.
    ///
    /// # Errors
    /// If it cannot be read; see [`kvwise_io::trace::open`].
    pub fn load(&self, printer: Printer) -> Result<Loaded> {
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
            max_memory_bytes: self
                .max_memory
                .map_or_else(default_memory_limit, |gib| gib.saturating_mul(1 << 30)),
            tokenizer: tokenizer.as_deref(),
            progress: Some(&report),
            ..ReadOptions::default()
        };
        let loaded = match &self.trace {
            Some(path) => open(path, &options),
            None => example(&options),
        };
        progress.finish();
        let loaded = loaded?;
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
