//! Headers of GGUF files: metadata and tensors' names, types and shapes, never the tensors themselves.
//!
//! The format (llama.cpp 0c1e570, `ggml/docs/gguf.md` and `ggml/src/gguf.cpp`): the magic `GGUF`, a version (1 to 3, in
//! either byte order), the numbers of tensors and of metadata values, the values, the tensors, and after padding the
//! data. Models too large for one file are split into `NAME-00001-of-00003.gguf` and so on; all parts are read.

mod reader;
mod split;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use kvwise_core::engine::llamacpp::Header;
use kvwise_core::{Error, Result};

pub use reader::{MAX_HEADER_BYTES, read_header};
pub(crate) use split::with_other_parts;

/// Reads the header of a file, and of the other parts if it is split.
///
/// # Errors
/// If a file cannot be read or breaks a rule of the format, or a part is missing; the message names the file.
pub fn read(path: &Path) -> Result<Header> {
    let first = read_one(path)?;
    with_other_parts(path, first, Path::is_file, read_one)
}

fn read_one(path: &Path) -> Result<Header> {
    let io = |e: std::io::Error| Error::io(format!("{}: cannot read: {e}", path.display()));
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    read_header(&mut BufReader::with_capacity(1 << 16, file), bytes).map_err(|e| e.at(path.display()))
}
