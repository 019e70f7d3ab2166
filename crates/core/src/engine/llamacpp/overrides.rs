//! Tensors that their names place: `--override-tensor PATTERN=BUFFER,...` (llama.cpp b11434, `common/arg.cpp`,
//! `parse_tensor_buffer_overrides`; `src/llama-model-loader.cpp`, `buft_for_tensor`).
//!
//! The first pattern that is found in a tensor's name decides; it says nothing about caches, which stay with their layer. While
//! there is any pattern, batches are not pipelined over GPUs.

use regex_lite::Regex;

use crate::{Error, Result};

/// Most patterns of one server; llama.cpp's own limit is 4096 (`llama_max_tensor_buft_overrides`).
const MAX_PATTERNS: usize = 4096;
/// Longest pattern in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// Patterns with the device of what they match, in the order they are asked; `None` is the host.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Debug, Clone)]
struct Override {
    pattern: Regex,
    device: Option<u64>,
}

impl PartialEq for Overrides {
    fn eq(&self, other: &Self) -> bool {
        self.texts().eq(other.texts())
    }
}

impl Overrides {
    /// Reads values of the flag: each one or more of `PATTERN=BUFFER`, apart by commas. Buffers are `CPU`, and `CUDA0` (`ROCm0`) up to
    /// the last of `gpus`.
    ///
    /// # Errors
    /// If a part has no `=`, names a buffer that is not there, or has a pattern that cannot be read.
    pub fn read(values: &[String], gpus: u64) -> Result<Self> {
        let mut out = Vec::new();
        for part in values.iter().flat_map(|value| value.split(',')) {
            let Some((pattern, buffer)) = part.split_once('=') else {
                return Err(Error::input(format!(
                    "--override-tensor has \"{part}\", which is not PATTERN=BUFFER"
                ))
                .hint("commas part patterns from each other, so no pattern can hold one"));
            };
            if out.len() == MAX_PATTERNS || pattern.len() > MAX_PATTERN_BYTES {
                return Err(Error::input(format!(
                    "--override-tensor has more than {MAX_PATTERNS} patterns or one of more than {MAX_PATTERN_BYTES} bytes"
                )));
            }
            let device = match buffer {
                "CPU" => None,
                other => Some(gpu(other).filter(|&n| n < gpus).ok_or_else(|| {
                    Error::input(format!(
                        "--override-tensor places \"{pattern}\" in \"{buffer}\", which is no buffer here"
                    ))
                    .hint(format!("write CPU, or CUDA0 to CUDA{}", gpus.saturating_sub(1)))
                })?),
            };
            let pattern = Regex::new(pattern).map_err(|e| {
                Error::input(format!(
                    "--override-tensor has the pattern \"{pattern}\", which cannot be read: {e}"
                ))
                .hint("look-ahead and back references are not understood here")
            })?;
            out.push(Override { pattern, device });
        }
        Ok(Self(out))
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The device that the name of a tensor says: `Some(None)` is the host, `None` that no pattern matches.
    pub fn of(&self, name: &str) -> Option<Option<u64>> {
        self.0.iter().find(|o| o.pattern.is_match(name)).map(|o| o.device)
    }

    /// The patterns as one value of the flag.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|o| {
            let buffer = o
                .device
                .map_or_else(|| "CPU".to_owned(), |gpu| format!("CUDA{gpu}"));
            format!("{}={buffer}", o.pattern)
        })
    }
}

/// The number of a GPU by its buffer's name.
fn gpu(buffer: &str) -> Option<u64> {
    let digits = buffer
        .strip_prefix("CUDA")
        .or_else(|| buffer.strip_prefix("ROCm"))?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Overrides> {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        Overrides::read(&values, 2)
    }

    #[test]
    fn the_first_pattern_that_is_found_in_a_name_decides() {
        let made = read(&[r"blk\.1\.ffn=CUDA1,ffn_.*_exps=CPU", "attn=ROCm0"]).unwrap();
        assert_eq!(made.of("blk.1.ffn_up_exps.weight"), Some(Some(1)));
        assert_eq!(made.of("blk.11.ffn_up_exps.weight"), Some(None));
        assert_eq!(made.of("blk.2.attn_q.weight"), Some(Some(0)));
        assert_eq!(made.of("output.weight"), None);
        let texts: Vec<String> = made.texts().collect();
        assert_eq!(texts[1..], ["ffn_.*_exps=CPU", "attn=CUDA0"]);
        let again: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(read(&again).unwrap(), made);
    }

    #[test]
    fn what_the_engines_parser_would_not_take_is_named() {
        for (value, says) in [
            ("exps", "\"exps\", which is not PATTERN=BUFFER"),
            ("exps=CPU,", "\"\", which is not PATTERN=BUFFER"),
            ("a{1,3}=CPU", "\"a{1\", which is not"),
            ("exps=CUDA2", "\"CUDA2\", which is no buffer here"),
            ("exps=CUDA", "\"CUDA\", which is no buffer"),
            ("exps=CUDA+1", "\"CUDA+1\", which is no buffer"),
            ("exps=cpu", "\"cpu\", which is no buffer"),
            ("(=CPU", "cannot be read"),
            ("a(?=b)=CPU", "cannot be read"),
        ] {
            let e = read(&[value]).unwrap_err().to_string();
            // The first `=` ends a pattern, as in the engine.
            assert!(
                e.contains(says) || value.contains("?=") && e.contains("no buffer"),
                "{e}"
            );
        }
    }
}
