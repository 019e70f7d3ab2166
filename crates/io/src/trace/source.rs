//! Files of lines: plain, gzip or zstd, or standard input; with caps against endless lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use kvwise_core::{Error, Result};

use super::ahead::Ahead;

/// Bytes asked from the operating system at once.
const CHUNK: usize = 256 * 1024;
/// As [`CHUNK`], where what was read is to be known exactly.
const SAMPLE_CHUNK: usize = 512;
/// Compressed files of this size are decompressed by another thread.
const WORTH_A_THREAD: u64 = 64 * 1024;
/// Largest zstd window that is accepted: 128 MiB, what `zstd --long` makes. A larger one is refused by the decoder.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A stream of text with a name for messages.
pub struct Source {
    /// The file's name as the user gave it, `standard input` for `-`.
    pub name: String,
    reader: Box<dyn BufRead + Send>,
    read: Arc<AtomicU64>,
    /// Size of the file on disk; unknown for standard input.
    pub total_bytes: Option<u64>,
    /// Whether the file is decompressed on the way.
    pub(super) compressed: bool,
    /// Line ends passed by [`Source::next_object`].
    lines: u64,
}

/// Counts what is read from below, before decompression: that is what progress can be measured in.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Source {
    /// Opens `path` (`-` is standard input) and decompresses what starts like gzip or zstd.
    ///
    /// # Errors
    /// If the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Self::from_reader("standard input", Box::new(io::stdin()), None);
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("{name}: no such file")),
            _ => Error::io(format!("{name}: cannot open: {e}")),
        })?;
        let total = file
            .metadata()
            .ok()
            .filter(std::fs::Metadata::is_file)
            .map(|m| m.len());
        Self::from_reader(&name, Box::new(file), total)
    }

    /// A source over any reader; decompresses what starts like gzip or zstd.
    ///
    /// # Errors
    /// If the first bytes cannot be read.
    pub fn from_reader(name: &str, raw: Box<dyn Read + Send>, total_bytes: Option<u64>) -> Result<Self> {
        Self::buffered(name, raw, total_bytes, CHUNK)
    }

    /// The start of the file `path`, for samples: read in small pieces by this thread, so that
    /// [`Source::bytes_read`] is nearly what the text so far was made of.
    ///
    /// # Errors
    /// If the file cannot be opened or read.
    pub(super) fn open_to_sample(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(format!("{name}: cannot open: {e}")))?;
        // of unknown size: a small file is read by this thread
        Self::buffered(&name, Box::new(file), None, SAMPLE_CHUNK)
    }

    fn buffered(
        name: &str,
        raw: Box<dyn Read + Send>,
        total_bytes: Option<u64>,
        chunk: usize,
    ) -> Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let mut plain = BufReader::with_capacity(
            chunk,
            Counted {
                inner: raw,
                count: Arc::clone(&read),
            },
        );
        let fail = |e: io::Error| Error::io(format!("{name}: cannot read: {e}"));
        let start = plain.fill_buf().map_err(fail)?;
        let compressed = start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        let reader: Box<dyn BufRead + Send> = if start.starts_with(&[0x1f, 0x8b]) {
            decompressed(MultiGzDecoder::new(plain), total_bytes).map_err(fail)?
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut decoder = zstd::Decoder::with_buffer(plain).map_err(fail)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(fail)?;
            decompressed(decoder, total_bytes).map_err(fail)?
        } else {
            Box::new(plain)
        };
        Ok(Self {
            name: name.to_owned(),
            reader,
            read,
            total_bytes,
            compressed,
            lines: 0,
        })
    }

    /// The text itself, for readers with limits of their own.
    pub fn reader(&mut self) -> &mut dyn BufRead {
        &mut self.reader
    }

    /// Bytes read from the file so far, before decompression.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The start of the text (as much as is buffered), without taking it.
    ///
    /// # Errors
    /// If it cannot be read or decompressed.
    pub fn peek(&mut self) -> Result<&[u8]> {
        let name = &self.name;
        self.reader.fill_buf().map_err(|e| unreadable(name, &e))
    }

    /// Reads the next line, without its end, into `line`; `false` at the end of the file.
    ///
    /// # Errors
    /// If it cannot be read or decompressed, or is longer than `max_bytes`.
    pub fn next_line(&mut self, line: &mut Vec<u8>, max_bytes: usize) -> Result<bool> {
        line.clear();
        let cap = max_bytes as u64 + 1;
        let n = (&mut self.reader)
            .take(cap)
            .read_until(b'\n', line)
            .map_err(|e| unreadable(&self.name, &e))?;
        if n == 0 {
            return Ok(false);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        } else if line.len() > max_bytes {
            return Err(
                Error::input(format!("{}: a line is longer than {max_bytes} bytes", self.name))
                    .hint("is this a trace with one request a line?"),
            );
        }
        Ok(true)
    }

    /// Hands lines to `each`, without their ends, until it answers `false` or the file ends. Lines are shown where they
    /// were decompressed to; only one that crosses two pieces is copied.
    ///
    /// # Errors
    /// As [`Source::next_line`], and those of `each`, which hears how many bytes of the file were read too.
    pub fn lines(
        &mut self,
        max_bytes: usize,
        mut each: impl FnMut(&[u8], u64) -> Result<bool>,
    ) -> Result<()> {
        let mut crossing = Vec::new();
        loop {
            let chunk = self.reader.fill_buf().map_err(|e| unreadable(&self.name, &e))?;
            let read = self.read.load(Ordering::Relaxed);
            let mut at = 0;
            while let Some(end) = memchr::memchr(b'\n', &chunk[at..]).filter(|&len| len <= max_bytes) {
                let line = &chunk[at..at + end];
                if !each(line.strip_suffix(b"\r").unwrap_or(line), read)? {
                    self.reader.consume(at + end + 1);
                    return Ok(());
                }
                at += end + 1;
            }
            self.reader.consume(at);
            // the rest begins a line that ends in the next piece, or is the last, or is too long
            if !self.next_line(&mut crossing, max_bytes)? {
                return Ok(());
            }
            let read = self.read.load(Ordering::Relaxed);
            if !each(&crossing, read)? {
                return Ok(());
            }
        }
    }

    /// Reads the next JSON object into `object`, from a list of objects or from text with one object after the other;
    /// answers the line on which it begins, `None` at the end.
    ///
    /// # Errors
    /// If the text cannot be read or decompressed, something else than an object stands between objects, one does not
    /// end or is longer than `max_bytes`.
    pub fn next_object(&mut self, object: &mut Vec<u8>, max_bytes: usize) -> Result<Option<u64>> {
        object.clear();
        let name = &self.name;
        let mut depth = 0u64;
        let (mut in_string, mut escaped) = (false, false);
        let mut begins = self.lines + 1;
        loop {
            let chunk = self.reader.fill_buf().map_err(|e| unreadable(name, &e))?;
            if chunk.is_empty() {
                if depth == 0 {
                    return Ok(None);
                }
                return Err(Error::input(format!(
                    "{name}: line {begins}: a bracket is not closed, the file ends"
                )));
            }
            let mut used = 0;
            let mut from = 0;
            let mut done = false;
            for &byte in chunk {
                used += 1;
                if byte == b'\n' {
                    self.lines += 1;
                }
                if depth == 0 {
                    match byte {
                        b'{' => {
                            begins = self.lines + 1;
                            from = used - 1;
                            depth = 1;
                        }
                        b'[' | b']' | b',' | b' ' | b'\n' | b'\r' | b'\t' | 0xef | 0xbb | 0xbf => {}
                        _ => {
                            return Err(Error::input(format!(
                                "{name}: line {}: expected a JSON object, found \"{}\"",
                                self.lines + 1,
                                char::from(byte).escape_default()
                            )));
                        }
                    }
                    continue;
                }
                if in_string {
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    done = true;
                    break;
                }
            }
            if depth > 0 || done {
                object.extend_from_slice(&chunk[from..used]);
            }
            self.reader.consume(used);
            if object.len() > max_bytes {
                return Err(Error::input(format!(
                    "{name}: line {begins}: an object is longer than {max_bytes} bytes"
                )));
            }
            if done {
                return Ok(Some(begins));
            }
        }
    }

    /// Fills `out` as far as there is text; answers how many bytes.
    ///
    /// # Errors
    /// If it cannot be read or decompressed.
    pub fn read_some(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            match self.reader.read(&mut out[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(&self.name, &e)),
            }
        }
        Ok(filled)
    }

    /// Appends the next `count` bytes (fewer at the end) to `out`.
    ///
    /// # Errors
    /// If they cannot be read or decompressed.
    pub fn take(&mut self, count: u64, out: &mut Vec<u8>) -> Result<()> {
        (&mut self.reader)
            .take(count)
            .read_to_end(out)
            .map_err(|e| unreadable(&self.name, &e))?;
        Ok(())
    }

    /// Reads everything that is left, at most `max_bytes`.
    ///
    /// # Errors
    /// If it cannot be read or decompressed, or is longer than `max_bytes`.
    pub fn read_rest(&mut self, out: &mut Vec<u8>, max_bytes: usize) -> Result<()> {
        let cap = max_bytes as u64 + 1;
        (&mut self.reader)
            .take(cap)
            .read_to_end(out)
            .map_err(|e| unreadable(&self.name, &e))?;
        if out.len() > max_bytes {
            return Err(Error::input(format!(
                "{}: the file is larger than {max_bytes} bytes",
                self.name
            )));
        }
        Ok(())
    }
}

/// Reads a decoder on a thread of its own where that is worth a thread.
fn decompressed(
    decoder: impl Read + Send + 'static,
    total_bytes: Option<u64>,
) -> io::Result<Box<dyn BufRead + Send>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores > 1 && total_bytes.is_some_and(|bytes| bytes >= WORTH_A_THREAD) {
        return Ok(Box::new(Ahead::new(decoder)?));
    }
    Ok(Box::new(BufReader::with_capacity(CHUNK, decoder)))
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn unreadable(name: &str, e: &io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::input(format!("{name}: the compressed data is cut off"))
            .hint("fetch or compress the file again"),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            Error::input(format!("{name}: the compressed data is damaged: {e}"))
                .hint("fetch or compress the file again")
        }
        _ => Error::io(format!("{name}: cannot read: {e}")),
    }
}
