//! How much memory a trace will take, said before it is read: from the sizes of its files and a sample of its requests.
//!
//! A plain file is sampled at its start and at [`WINDOWS`] other places up to its end; a compressed one, which can only be
//! read from the start, at its start; a folder by whole files spread over it. Requests, tokens and block accesses are then
//! as many a byte of text as in the sample. Distinct blocks are not, since prefixes repeat: they grow by a power of the
//! accesses (Heaps' law) that is measured between a quarter of the sample's start and all of it; where ids are numbered
//! as they first appear, the ids near the file's end say it better. Traces whose sharing changes on the way are judged
//! wrongly by as much; the check while reading stays.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{BlockPaths, Content, Trace, TraceFormat, TraceSize, table_bytes};

use super::lines::LineReader;
use super::{ReadOptions, Source, agentic, detect, parquet, text};

/// Text that is read for a forecast.
pub const SAMPLE_BYTES: u64 = 16 << 20;
/// Text that is tokenised for a forecast: a tokenizer reads one or two million bytes a second.
const TOKENIZED_BYTES: u64 = 1 << 20;
/// Rows of a Parquet file that are read for a forecast.
const SAMPLE_ROWS: usize = 4096;
/// Places of a plain file that are looked at, besides its start.
const WINDOWS: u64 = 7;
/// The program itself, its buffers and the decompressor's window.
const PROGRAM_BYTES: u64 = 16 << 20;
/// An archive's files are put in the order of their names when all are read, from parts that lie scattered in the heap:
/// 207 and 218 MiB were seen where the trace takes 29 and 35.
pub(super) const ARCHIVE_COPIES: u64 = 7;
/// Ids are numbered as they appear if the largest is at most so many times their number.
const DENSE: f64 = 1.25;

/// The table that finds blocks while a trace is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Table {
    /// None: lengths, tokens, or ids that mean something inside one file only.
    None,
    /// A word for each id up to the largest, which is so many times the number of ids.
    Dense(f64),
    /// A hash table of all ids.
    Sparse,
    /// A hash table of branches.
    Branches,
}

/// What a trace will be like.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The counts of the whole trace, or of as many requests as are to be read.
    pub size: TraceSize,
    /// Bytes of the files.
    pub file_bytes: u64,
    /// Text that was read for this, in bytes.
    pub sampled_bytes: u64,
    /// How distinct blocks grow with the trace: 1 as fast, 0 not at all.
    growth: f64,
    table: Table,
    /// Bytes that are held while reading besides the trace and its table.
    buffered_bytes: u64,
    /// How many times the trace is held at the end of reading.
    copies: u64,
    /// Whether all requests are read even where a limit keeps only the first: conversations are put in order by time.
    pub reads_all: bool,
}

/// A part of a trace that was read.
#[derive(Debug, Clone, Copy)]
struct Sample {
    size: TraceSize,
    growth: f64,
    table: Table,
    largest_id: u64,
    text_bytes: u64,
}

impl Forecast {
    /// Bytes of memory at the peak, with `beside` bytes for what is computed from the trace.
    pub fn peak_bytes(&self, beside: &dyn Fn(&TraceSize) -> u64) -> u64 {
        self.peak_of(&self.size, beside)
    }

    /// How many requests from the start fit `limit_bytes`; `None` if all do.
    pub fn requests_within(&self, limit_bytes: u64, beside: &dyn Fn(&TraceSize) -> u64) -> Option<u64> {
        let fits = |requests: u64| {
            let part = requests as f64 / self.size.requests.max(1) as f64;
            self.peak_of(&self.size.scaled(part, self.growth), beside) <= limit_bytes
        };
        if fits(self.size.requests) {
            return None;
        }
        let (mut some, mut too_many) = (0, self.size.requests);
        while too_many - some > 1 {
            let middle = some + (too_many - some) / 2;
            if fits(middle) {
                some = middle;
            } else {
                too_many = middle;
            }
        }
        Some(some)
    }

    fn peak_of(&self, size: &TraceSize, beside: &dyn Fn(&TraceSize) -> u64) -> u64 {
        let held = size.held_bytes();
        let trace = held
            .saturating_mul(self.copies)
            .saturating_add(self.buffered_bytes);
        let reading = match self.table {
            Table::None => trace,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a cast saturates"
            )]
            Table::Dense(slack) => {
                let largest = (size.distinct_blocks as f64 * slack) as u64;
                let words = largest.checked_next_power_of_two().unwrap_or(u64::MAX);
                trace.saturating_add(words.saturating_mul(4))
            }
            Table::Sparse => Self::beside_table(trace, size.distinct_blocks, 16),
            Table::Branches => Self::beside_table(trace, size.runs, 24),
        };
        PROGRAM_BYTES.saturating_add(reading.max(held.saturating_add(beside(size))))
    }

    /// The most that a trace and its hash table take: at the end, or when the table doubled the last time and its old half
    /// was there too.
    fn beside_table(trace: u64, entries: u64, entry_bytes: u64) -> u64 {
        let table = table_bytes(entries, entry_bytes);
        let buckets = table / (entry_bytes + 1);
        let then = scale(trace, (buckets / 16).saturating_mul(7).min(entries), entries);
        trace
            .saturating_add(table)
            .max(then.saturating_add(table / 2).saturating_add(table))
    }
}

/// Bytes of the files that a trace is read from; `None` where that is not known before reading.
pub fn trace_file_bytes(path: &Path) -> Option<u64> {
    if path.is_dir() {
        let files = agentic::json_files(path).ok()?;
        return Some(files.iter().map(|f| f.metadata().map_or(0, |m| m.len())).sum());
    }
    path.metadata()
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
}

/// Forecasts the trace at `path` from about `sample_bytes` of its text; tokens are cut into blocks of `block_tokens`
/// tokens (16 by default). `None` where nothing can be said before reading: standard input, recordings, and files in which
/// the sample finds no readable request (reading says why).
///
/// # Errors
/// If the file or folder cannot be opened, or its format is not recognised.
pub fn forecast(
    path: &Path,
    options: &ReadOptions<'_>,
    sample_bytes: u64,
    block_tokens: Option<u32>,
) -> Result<Option<Forecast>> {
    // times that run backwards between two windows are no error, nor are lines that reading will name
    let options = &ReadOptions {
        sort: true,
        skip_bad: true,
        progress: None,
        beside: None,
        max_memory_bytes: u64::MAX,
        ..*options
    };
    let found = if path.as_os_str() == "-" {
        None
    } else if path.is_dir() {
        let recording = options.format == Some(TraceFormat::Session)
            || (options.format.is_none() && crate::session::Session::is_folder(path));
        if recording {
            None
        } else {
            of_folder(path, options, sample_bytes)?
        }
    } else if options.format == Some(TraceFormat::Parquet)
        || (options.format.is_none() && parquet::is_parquet(path))
    {
        of_parquet(path, options)?
    } else {
        of_file(path, options, sample_bytes, block_tokens)?
    };
    Ok(found.map(|found| limited(found, options.limit)))
}

/// Only so many requests will be read.
fn limited(mut found: Forecast, limit: Option<usize>) -> Forecast {
    let cut = limit
        .map(|l| l as u64)
        .filter(|&l| l < found.size.requests && !found.reads_all);
    if let Some(limit) = cut {
        let part = limit as f64 / found.size.requests as f64;
        found.size = found.size.scaled(part, found.growth);
        found.size.requests = limit;
    }
    found
}

fn of_file(
    path: &Path,
    options: &ReadOptions<'_>,
    sample_bytes: u64,
    block_tokens: Option<u32>,
) -> Result<Option<Forecast>> {
    let Some(file_bytes) = trace_file_bytes(path) else {
        Source::open(path)?; // what is not there is said as elsewhere
        return Ok(None); // a pipe, which can be read once
    };
    let format = match options.format {
        Some(format) => format,
        None => detect(&mut Source::open(path)?)?,
    };
    let mut source = Source::open_to_sample(path)?;
    let compressed = source.compressed;
    let (start, whole, columns) = match format {
        TraceFormat::Agentic => return Ok(of_archive(source, file_bytes, options, sample_bytes)),
        TraceFormat::ShareGpt | TraceFormat::OpenAi => {
            let budget = sample_bytes.min(TOKENIZED_BYTES);
            let (trace, text_bytes, whole) = text::sample(&mut source, options, format, budget)?;
            (Sample::of(&trace, text_bytes, block_tokens)?, whole, None)
        }
        _ => {
            let mut reader = LineReader::new(&source.name, format, options);
            let budget = if compressed {
                sample_bytes
            } else {
                sample_bytes / 2
            };
            let (text_bytes, whole) = take_lines(&mut source, &mut reader, options, budget);
            let columns = reader.columns.clone();
            (
                Sample::of(&reader.builder.finish(), text_bytes, block_tokens)?,
                whole,
                columns,
            )
        }
    };
    if start.size.requests == 0 {
        return Ok(None);
    }
    let total_text = if whole {
        start.text_bytes
    } else if compressed {
        scale(start.text_bytes, file_bytes, source.bytes_read())
    } else {
        file_bytes
    };
    let mut parts = vec![start];
    if !whole && !compressed && !matches!(format, TraceFormat::ShareGpt | TraceFormat::OpenAi) {
        let width = sample_bytes / 2 / WINDOWS;
        for window in 1..=WINDOWS {
            let end = scale(file_bytes, window, WINDOWS);
            let mut reader = LineReader::new(&source.name, format, options);
            reader.columns.clone_from(&columns);
            let text_bytes = window_lines(path, end.saturating_sub(width), &mut reader, options, width)?;
            if text_bytes > 0 {
                parts.push(Sample::of(&reader.builder.finish(), text_bytes, block_tokens)?);
            }
        }
    }
    Ok(Some(extrapolated(&parts, total_text, file_bytes)))
}

/// `of` times `count` of `total`.
fn scale(of: u64, count: u64, total: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(count) / u128::from(total.max(1))).unwrap_or(u64::MAX)
}

/// The whole of which `parts` are equally much, the first its beginning.
fn extrapolated(parts: &[Sample], total_text: u64, file_bytes: u64) -> Forecast {
    let start = &parts[0];
    let share = total_text as f64 / parts.len() as f64;
    let mut size = TraceSize::default();
    for part in parts {
        size = size.plus(&part.size.scaled(share / part.text_bytes.max(1) as f64, 1.0));
    }
    let ratio = |whole: u64, part: u64| whole as f64 / part.max(1) as f64;
    let grown = start
        .size
        .scaled(ratio(size.requests, start.size.requests), start.growth);
    size.distinct_blocks = grown.distinct_blocks.min(size.block_accesses);
    size.runs = grown.runs;
    let mut growth = start.growth;
    if let (Table::Dense(slack), [_, _, ..]) = (start.table, parts) {
        // one window ends with the file, so its largest id is nearly the file's
        let largest = parts.iter().map(|part| part.largest_id).max().unwrap_or(0);
        let numbered = largest as f64 / slack / start.size.distinct_blocks.max(1) as f64;
        let most = start.size.distinct_blocks.max(size.block_accesses);
        size.distinct_blocks = start
            .size
            .scaled(numbered, 1.0)
            .distinct_blocks
            .clamp(start.size.distinct_blocks, most);
        let steps = ratio(size.requests, start.size.requests).ln();
        if steps > 0.0 {
            growth = (ratio(size.distinct_blocks, start.size.distinct_blocks).ln() / steps).clamp(0.0, 1.0);
        }
    }
    Forecast {
        size,
        file_bytes,
        sampled_bytes: parts.iter().map(|part| part.text_bytes).sum(),
        growth,
        table: start.table,
        buffered_bytes: 0,
        copies: 1,
        reads_all: false,
    }
}

impl Sample {
    fn of(trace: &Trace, text_bytes: u64, block_tokens: Option<u32>) -> Result<Self> {
        let mut sample = Self {
            size: trace.size(),
            growth: 1.0,
            table: Table::None,
            largest_id: 0,
            text_bytes,
        };
        match trace.content() {
            Content::Tokens(_) => {
                let paths = trace.to_blocks(block_tokens)?;
                sample.size.block_tokens = paths.block_tokens();
                sample.size.block_accesses = paths.block_accesses();
                sample.size.distinct_blocks = u64::from(paths.unique_blocks());
                sample.size.runs = paths.run_count() as u64;
                sample.growth = growth(&paths);
            }
            Content::Blocks(paths) => {
                sample.growth = growth(paths);
                sample.largest_id = paths.raw_ids().iter().copied().max().unwrap_or(0);
                let slack = (sample.largest_id as f64 + 1.0) / f64::from(paths.unique_blocks().max(1));
                sample.table = match trace.format() {
                    TraceFormat::Tokens => Table::Branches,
                    _ if slack <= DENSE => Table::Dense(slack),
                    _ => Table::Sparse,
                };
            }
            Content::None => {}
        }
        Ok(sample)
    }
}

/// The power of the requests by which distinct blocks grew after the first quarter of them. (Not of the accesses: in a
/// trace of chats requests grow longer at first, with what was there before.)
fn growth(paths: &BlockPaths) -> f64 {
    let quarter = paths.len() / 4;
    // nodes are numbered as they first appear
    let distinct = (0..quarter)
        .flat_map(|index| paths.get(index).runs())
        .map(|run| run.first + run.len)
        .max()
        .unwrap_or(0);
    let ratio = |whole: f64, part: f64| (whole / part).ln();
    let steps = ratio(paths.len() as f64, quarter as f64);
    let power = ratio(f64::from(paths.unique_blocks()), f64::from(distinct)) / steps;
    if power.is_finite() {
        power.clamp(0.0, 1.0)
    } else {
        1.0
    }
}

/// Reads lines up to `budget` bytes; answers the bytes of text and whether the file ended. What cannot be read is passed
/// over: reading will name it.
fn take_lines(
    source: &mut Source,
    reader: &mut LineReader,
    options: &ReadOptions<'_>,
    budget: u64,
) -> (u64, bool) {
    let (mut line, mut text_bytes) = (Vec::new(), 0);
    while text_bytes < budget {
        match source.next_line(&mut line, options.max_line_bytes) {
            Ok(true) => {}
            Ok(false) => return (text_bytes, true),
            Err(_) => break,
        }
        text_bytes += line.len() as u64 + 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let read = if reader.expects_header() {
            reader.header(&line)
        } else {
            reader.line(&line)
        };
        if read.is_err() && reader.expects_header() {
            break;
        }
    }
    (text_bytes, false)
}

/// Reads the lines that begin in a window of a plain file.
fn window_lines(
    path: &Path,
    from: u64,
    reader: &mut LineReader,
    options: &ReadOptions<'_>,
    width: u64,
) -> Result<u64> {
    let name = path.display().to_string();
    let fail = |e: std::io::Error| Error::io(format!("{name}: cannot read: {e}"));
    let mut file = File::open(path).map_err(fail)?;
    file.seek(SeekFrom::Start(from)).map_err(fail)?;
    let mut file = BufReader::with_capacity(256 << 10, file);
    // the line that the window begins in belongs to what is before it
    let mut rest = Vec::new();
    std::io::Read::take(&mut file, 4 * width.max(1 << 20))
        .read_until(b'\n', &mut rest)
        .map_err(fail)?;
    if rest.last() != Some(&b'\n') {
        return Ok(0); // the file's last line, or one far longer than a sample
    }
    let mut source = Source::from_reader(&name, Box::new(file), None)?;
    Ok(take_lines(&mut source, reader, options, width).0)
}

fn of_folder(folder: &Path, options: &ReadOptions<'_>, sample_bytes: u64) -> Result<Option<Forecast>> {
    let files = agentic::json_files(folder)?;
    let sizes: Vec<u64> = files
        .iter()
        .map(|f| f.metadata().map_or(0, |m| m.len()))
        .collect();
    let total: u64 = sizes.iter().sum();
    // whole files, spread evenly, about as many as the budget allows but at least eight
    let mean = total / (files.len() as u64).max(1);
    let count = (sample_bytes / mean.max(1)).clamp(8, files.len().max(8) as u64);
    let step = (files.len() as u64).div_ceil(count).max(1);
    let picked = files
        .iter()
        .zip(&sizes)
        .step_by(usize::try_from(step).unwrap_or(usize::MAX));
    let (mut size, mut read, mut text, mut sampled) = (TraceSize::default(), 0, 0, 0);
    for (file, bytes) in picked {
        if let Ok((trace, text_bytes)) = agentic::file(file, options) {
            size = size.plus(&trace.size());
            read += bytes;
            text += text_bytes;
            sampled += 1;
        }
    }
    if size.requests == 0 {
        return Ok(None);
    }
    Ok(Some(Forecast {
        size: size.scaled(total as f64 / read.max(1) as f64, 1.0),
        file_bytes: total,
        sampled_bytes: text,
        growth: 1.0,
        table: Table::None,
        // some files are read at once, each as text and as requests
        buffered_bytes: scale(text + size.held_bytes(), agentic::BATCH as u64, sampled),
        copies: 1,
        reads_all: true,
    }))
}

fn of_archive(
    mut source: Source,
    file_bytes: u64,
    options: &ReadOptions<'_>,
    sample_bytes: u64,
) -> Option<Forecast> {
    let (mut size, mut text, mut longest) = (TraceSize::default(), 0, 0);
    let mut whole = false;
    while text < sample_bytes {
        match agentic::next_file(&mut source, options) {
            Ok(Some((name, bytes))) => {
                text += (bytes.len() as u64).next_multiple_of(512) + 512;
                longest = longest.max(bytes.len() as u64);
                if let Ok(trace) = agentic::conversation(&name, &bytes) {
                    size = size.plus(&trace.size());
                }
            }
            Ok(None) => {
                whole = true;
                break;
            }
            Err(_) => break,
        }
    }
    if size.requests == 0 {
        return None;
    }
    let factor = match (whole, source.compressed) {
        (true, _) => 1.0,
        (false, true) => file_bytes as f64 / source.bytes_read().max(1) as f64,
        (false, false) => file_bytes as f64 / text.max(1) as f64,
    };
    Some(Forecast {
        size: size.scaled(factor, 1.0),
        file_bytes,
        sampled_bytes: text,
        growth: 1.0,
        table: Table::None,
        buffered_bytes: longest * agentic::BATCH as u64,
        copies: ARCHIVE_COPIES,
        reads_all: true,
    })
}

fn of_parquet(path: &Path, options: &ReadOptions<'_>) -> Result<Option<Forecast>> {
    let Some(rows) = parquet::rows(path) else {
        return Ok(None);
    };
    let limit = options.limit.map_or(SAMPLE_ROWS, |limit| limit.min(SAMPLE_ROWS));
    let part = ReadOptions {
        limit: Some(limit),
        ..*options
    };
    let loaded = parquet::read(path, &part)?;
    let read = loaded.trace.len() as u64 + loaded.skipped;
    let sample = Sample::of(&loaded.trace, read, None)?;
    let file_bytes = path.metadata().map_or(0, |m| m.len());
    Ok(Some(extrapolated(&[sample], rows.max(read), file_bytes)))
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
