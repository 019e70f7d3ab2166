//! Writes traces: Mooncake and `tokens` JSON lines, streamed to a file that appears whole or not at all.

use std::io::{self, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use kvwise_core::{Error, Result};
use kvwise_sim::trace::{Prompt, Trace};

use crate::atomic::AtomicFile;

/// A format that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFormat {
    /// Mooncake JSON lines; needs content and times (0 where the trace has none).
    Mooncake,
    /// The `tokens` format of the engines' reference scripts.
    Tokens,
}

/// Writes `trace` to `out`. Mooncake lines need blocks: tokens are cut into blocks of `block_tokens` (default 512).
///
/// # Errors
/// If the format needs content that the trace does not have, or `out` cannot be written.
pub fn write(
    trace: &Trace,
    format: WriteFormat,
    block_tokens: Option<u32>,
    out: &mut dyn Write,
) -> Result<()> {
    let fail = |e: io::Error| Error::io(format!("cannot write the trace: {e}"));
    write_lines(trace, format, block_tokens, out, &fail)
}

/// As [`write()`]; `fail` says where it could not write.
fn write_lines(
    trace: &Trace,
    format: WriteFormat,
    block_tokens: Option<u32>,
    out: &mut dyn Write,
    fail: &dyn Fn(io::Error) -> Error,
) -> Result<()> {
    let mut line = Vec::new();
    match format {
        WriteFormat::Mooncake => {
            let own = trace.block_tokens();
            let paths = trace.to_blocks(block_tokens.or(own).or(Some(512)))?;
            for index in 0..trace.len() {
                line.clear();
                let time_ms = trace.arrival(index).unwrap_or(0.0) * 1000.0;
                write!(
                    line,
                    "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {}, \"hash_ids\": [",
                    number(time_ms),
                    trace.input_len(index),
                    trace.output_len(index)
                )
                .map_err(fail)?;
                list(&mut line, paths.get(index).iter().map(u64::from));
                line.extend_from_slice(b"]}\n");
                out.write_all(&line).map_err(fail)?;
            }
        }
        WriteFormat::Tokens => {
            for index in 0..trace.len() {
                line.clear();
                tokens_line(trace, index, &mut line)?;
                out.write_all(&line).map_err(fail)?;
            }
        }
    }
    out.flush().map_err(fail)
}

fn tokens_line(trace: &Trace, index: usize, line: &mut Vec<u8>) -> Result<()> {
    let fail = |e: io::Error| Error::io(format!("cannot write the trace: {e}"));
    write!(line, "{{\"id\": {}", trace.id_json(index)).map_err(fail)?;
    if let Some(arrival) = trace.arrival(index) {
        write!(line, ", \"arrival\": {}", number(arrival)).map_err(fail)?;
    }
    match trace.prompt(index) {
        Prompt::Unknown => {
            return Err(Error::input(format!(
                "{}: the trace has lengths only; the formats tokens and mooncake need tokens or hash ids",
                trace.name()
            )));
        }
        Prompt::Tokens(tokens) => {
            line.extend_from_slice(b", \"tokens\": [");
            list(line, tokens.iter().map(|&t| u64::from(t)));
        }
        Prompt::Blocks(path) => {
            line.extend_from_slice(b", \"hash_ids\": [");
            list(line, path.iter().map(u64::from));
        }
    }
    line.push(b']');
    let (input, output) = (trace.input_len(index), trace.output_len(index));
    write!(line, ", \"input_length\": {input}, \"output_length\": {output}").map_err(fail)?;
    if let Some(tokens) = trace.output_tokens(index) {
        line.extend_from_slice(b", \"output_tokens\": [");
        list(line, tokens.iter().map(|&t| u64::from(t)));
        line.push(b']');
    }
    if trace.priority(index) != 0 {
        write!(line, ", \"priority\": {}", trace.priority(index)).map_err(fail)?;
    }
    for (key, value) in [
        ("cache_salt", trace.cache_salt(index)),
        ("extra_key", trace.extra_key(index)),
        ("lora", trace.lora(index)),
    ] {
        if let Some(value) = value {
            write!(line, ", \"{key}\": {}", serde_json::Value::from(value)).map_err(fail)?;
        }
    }
    line.extend_from_slice(b"}\n");
    Ok(())
}

/// A whole number without a fraction, others as short as they read back exactly.
fn number(value: f64) -> String {
    let nearest = value.round();
    // times in milliseconds come from a division by 1000: undo its rounding
    if (value - nearest).abs() < 1e-6 {
        // as an integer, which is written ten times as fast
        #[expect(clippy::cast_possible_truncation, reason = "whole, and below 2^53")]
        if nearest.abs() < 9e15 {
            return (nearest as i64).to_string();
        }
        format!("{nearest:.0}")
    } else {
        value.to_string()
    }
}

/// Numbers with commas between them: most of what is written, so made without the formatting machinery.
fn list(line: &mut Vec<u8>, numbers: impl Iterator<Item = u64>) {
    for (k, n) in numbers.enumerate() {
        if k > 0 {
            line.extend_from_slice(b", ");
        }
        digits(line, n);
    }
}

/// A number in decimal digits.
fn digits(line: &mut Vec<u8>, number: u64) {
    // 2^64 has 20 digits
    let mut buffer = [0_u8; 20];
    let mut at = buffer.len();
    let mut left = number;
    loop {
        at -= 1;
        buffer[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    line.extend_from_slice(&buffer[at..]);
}

/// Writes `trace` to the file `path`, compressed if its name ends in `.gz` or `.zst`.
///
/// # Errors
/// As [`write()`]; the file is then unchanged or absent.
pub fn write_file(trace: &Trace, format: WriteFormat, block_tokens: Option<u32>, path: &Path) -> Result<()> {
    let fail = |e: io::Error| Error::io(format!("{}: cannot write: {e}", path.display()));
    let mut file = AtomicFile::create(path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => {
            let mut out = GzEncoder::new(&mut file, flate2::Compression::default());
            write_lines(trace, format, block_tokens, &mut out, &fail)?;
            out.finish().map_err(fail)?;
        }
        Some("zst") => {
            let mut out = zstd::Encoder::new(&mut file, 6).map_err(fail)?;
            write_lines(trace, format, block_tokens, &mut out, &fail)?;
            out.finish().map_err(fail)?;
        }
        _ => write_lines(trace, format, block_tokens, &mut file, &fail)?,
    }
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal_with_commas_between_them() {
        let mut line = Vec::new();
        list(
            &mut line,
            [0, 7, 10, 909, u64::from(u32::MAX), u64::MAX].into_iter(),
        );
        assert_eq!(line, b"0, 7, 10, 909, 4294967295, 18446744073709551615");
    }
}
