//! Any bytes as a trace file of each line format: an error or a trace, never a panic.
#![no_main]

use std::io::Cursor;

use kvwise_io::trace::{ReadOptions, Source, open_source};
use kvwise_sim::curve::{Semantics, curve};
use kvwise_sim::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, bool, Vec<u8>)| {
    let (format, skip_bad, bytes) = input;
    let format = match format % 8 {
        0 => None,
        1 => Some(TraceFormat::Mooncake),
        2 => Some(TraceFormat::Tokens),
        3 => Some(TraceFormat::Bailian),
        4 => Some(TraceFormat::Azure),
        5 => Some(TraceFormat::BurstGpt),
        _ => Some(TraceFormat::Agentic),
    };
    let options = ReadOptions {
        format,
        skip_bad,
        sort: skip_bad,
        max_line_bytes: 1 << 20,
        max_memory_bytes: 1 << 26,
        ..ReadOptions::default()
    };
    let Ok(source) = Source::from_reader("fuzz", Box::new(Cursor::new(bytes)), None) else { return };
    if let Ok(loaded) = open_source(source, &options) {
        for semantics in [Semantics::PrefixLru, Semantics::Vllm] {
            let _ = curve(&loaded.trace, None, semantics);
        }
    }
});
