//! Formats with one request a line: JSON objects, and tables with a header.

use kvwise_core::Result;
use kvwise_sim::trace::{IdMeaning, TraceBuilder, TraceFormat};

use super::{CHECK_EVERY, EXAMPLES, Loaded, Progress, ReadOptions, Source, check_memory, csv, finish, jsonl};

/// Adds lines of one format to a trace.
#[derive(Debug)]
pub(super) struct LineReader {
    pub(super) builder: TraceBuilder,
    format: TraceFormat,
    sort: bool,
    scratch: jsonl::Scratch,
    chats: jsonl::Chats,
    pub(super) columns: Option<csv::Columns>,
}

impl LineReader {
    /// A reader at the start of the file `name`.
    pub(super) fn new(name: &str, format: TraceFormat, options: &ReadOptions<'_>) -> Self {
        let (default_block, meaning) = match format {
            TraceFormat::Bailian => (16, IdMeaning::Prefix),
            TraceFormat::Tokens => (512, IdMeaning::Content),
            _ => (512, IdMeaning::Prefix),
        };
        let block = options.hash_block_tokens.unwrap_or(default_block);
        Self {
            builder: TraceBuilder::new(name, block, meaning).format(format),
            format,
            sort: options.sort,
            scratch: jsonl::Scratch::default(),
            chats: jsonl::Chats::default(),
            columns: None,
        }
    }

    /// Whether the next line is the header of a table.
    pub(super) fn expects_header(&self) -> bool {
        matches!(self.format, TraceFormat::Azure | TraceFormat::BurstGpt) && self.columns.is_none()
    }

    /// Reads the header of a table.
    ///
    /// # Errors
    /// If a column is missing.
    pub(super) fn header(&mut self, line: &[u8]) -> Result<()> {
        self.columns = Some(csv::Columns::of_header(line, self.format)?);
        Ok(())
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be read; the trace is then as before.
    #[inline]
    pub(super) fn line(&mut self, line: &[u8]) -> Result<()> {
        let builder = &mut self.builder;
        match self.format {
            TraceFormat::Mooncake => jsonl::mooncake(line, &mut self.scratch, builder, self.sort),
            TraceFormat::Bailian => {
                jsonl::bailian(line, &mut self.scratch, builder, &mut self.chats, self.sort)
            }
            _ => match &mut self.columns {
                Some(columns) => columns.row(line, builder, self.sort),
                None => jsonl::tokens(line, &mut self.scratch, builder),
            },
        }
    }
}

/// Reads a format with one request a line.
pub(super) fn read(mut source: Source, options: &ReadOptions<'_>, format: TraceFormat) -> Result<Loaded> {
    let mut reader = LineReader::new(&source.name, format, options);
    let (mut skipped, mut skipped_examples) = (0, Vec::new());
    let mut number = 0u64;
    let (name, total) = (source.name.clone(), source.total_bytes);
    source.lines(options.max_line_bytes, |line, read| {
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(true);
        }
        if reader.expects_header() {
            return reader.header(line).map(|()| true).map_err(|e| e.at(&name));
        }
        if let Err(e) = reader.line(line) {
            let e = e.at(format_args!("{name}: line {number}"));
            if !options.skip_bad {
                return Err(e.hint("to leave out unreadable lines, add --skip-bad"));
            }
            skipped += 1;
            if skipped_examples.len() < EXAMPLES {
                skipped_examples.push(e.to_string());
            }
        }
        let requests = reader.builder.len();
        if requests.is_multiple_of(CHECK_EVERY) {
            check_memory(&reader.builder, options, &name)?;
            if let Some(progress) = options.progress {
                progress(Progress {
                    read_bytes: read,
                    total_bytes: total,
                    requests: requests as u64,
                });
            }
        }
        Ok(options.limit.is_none_or(|limit| requests < limit))
    })?;
    finish(reader.builder, options, skipped, skipped_examples, &name)
}
