//! What reading a trace and computing from it takes in memory, said before it starts.

use std::path::Path;

use kvwise_core::units::human_bytes;
use kvwise_core::{Error, Result};
use kvwise_io::trace::{
    ReadOptions, SAMPLE_BYTES, default_memory_limit, forecast, open, too_small_to_matter, trace_file_bytes,
};
use kvwise_sim::replay::vllm as replay_vllm;
use kvwise_sim::simulate::Record;
use kvwise_sim::trace::{Trace, TraceSize};

use crate::printer::Printer;

/// What a command will hold beside the trace.
pub struct Need<'a> {
    /// What is done with the trace, for messages: `the curve`.
    pub what: &'a str,
    /// Tokens of the blocks that tokens are cut into, if it says.
    pub block_tokens: Option<u32>,
    /// Bytes beside the trace, of a trace of that size.
    pub beside: &'a (dyn Fn(&TraceSize) -> u64 + Sync),
}

/// Refuses a trace that will not fit `options.max_memory_bytes`, and remarks on one that takes more than a quarter of it.
/// Small files are not looked at: see [`too_small_to_matter`].
///
/// # Errors
/// If the trace is too large, or cannot be opened.
pub fn check(path: &Path, options: &ReadOptions<'_>, need: &Need<'_>, printer: Printer) -> Result<()> {
    let limit = options.max_memory_bytes;
    if trace_file_bytes(path).is_none_or(|bytes| too_small_to_matter(bytes, limit)) {
        return Ok(());
    }
    let Some(found) = forecast(path, options, SAMPLE_BYTES, need.block_tokens)? else {
        return Ok(());
    };
    let needed = found.peak_bytes(need.beside);
    let size = &found.size;
    let like = format!(
        "about {} requests{}",
        size.requests,
        if size.distinct_blocks > 0 {
            format!(" with {} distinct blocks", size.distinct_blocks)
        } else {
            String::new()
        }
    );
    if needed > limit {
        let mut error = Error::input(format!(
            "{}: {} of {like} takes about {} of memory, more than the limit of {}",
            path.display(),
            need.what,
            human_bytes(needed),
            human_bytes(limit)
        ));
        if !found.reads_all
            && let Some(fit @ 1..) = found.requests_within(limit, need.beside)
        {
            error = error.hint(format!("the first {fit} requests fit: --limit {fit}"));
        } else {
            error = error.hint("take a part of its files");
        }
        return Err(error.hint("if this machine has more memory, raise --max-memory (GiB)"));
    }
    if needed > limit / 4 {
        printer.note(&format!(
            "{}: {} of {like} takes about {} of memory (limit {})",
            path.display(),
            need.what,
            human_bytes(needed),
            human_bytes(limit)
        ));
    }
    Ok(())
}

/// Refuses what would be computed from a trace that was read if it and the trace will not fit `limit_bytes`.
///
/// # Errors
/// If they do not fit.
pub fn check_read(trace: &Trace, limit_bytes: u64, need: &Need<'_>) -> Result<()> {
    let size = trace.size();
    let needed = size.held_bytes().saturating_add((need.beside)(&size));
    if needed <= limit_bytes {
        return Ok(());
    }
    Err(Error::input(format!(
        "{}: {} takes about {} of memory, more than the limit of {}",
        trace.name(),
        need.what,
        human_bytes(needed),
        human_bytes(limit_bytes)
    ))
    .hint("ask for a smaller pool or a part of the trace, or raise --max-memory (GiB)"))
}

/// Reads a trace that will be simulated.
///
/// # Errors
/// If it cannot be read or is too large.
pub fn open_for_simulation(path: &Path, printer: Printer) -> Result<Trace> {
    let options = ReadOptions {
        max_memory_bytes: default_memory_limit(),
        beside: Some(&simulation_bytes),
        ..ReadOptions::default()
    };
    check(path, &options, &for_simulation(), printer)?;
    Ok(open(path, &options)?.trace)
}

/// What a simulation needs beside its trace.
pub fn for_simulation() -> Need<'static> {
    Need {
        what: "the simulation",
        block_tokens: None,
        beside: &simulation_bytes,
    }
}

/// Bytes that a simulation holds beside its trace: the names of blocks, as a replay has them, and a record a request.
pub fn simulation_bytes(size: &TraceSize) -> u64 {
    const BLOCK_TOKENS: u32 = 16; // the engines' usual block; a larger one takes less
    replay_vllm::working_bytes(size, 0, BLOCK_TOKENS, 1)
        .saturating_add(std::mem::size_of::<Record>() as u64 * size.requests)
}
