//! kv-cache-tester: a folder (or a tar archive) of JSON files, one coding-agent conversation each.
//!
//! A file: `block_size`, `hash_id_scope` ("local": ids mean something inside the file only), `requests[]` with `t`
//! (seconds from the start of the conversation), `in`, `out`, `hash_ids` of the full blocks. An entry of type
//! `subagent` has its own `requests[]`, whose times count from the entry's. Requests without `hash_ids` are left out.
//! Conversations start together at time 0; the trace is sorted by time, then file name, then place in the file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder, TraceFormat};
use rayon::prelude::*;

use super::forecast::ARCHIVE_COPIES;
use super::json::{JsonError, Repeat, Scan, Scanner};
use super::memory::check_bytes;
use super::{EXAMPLES, Loaded, Progress, ReadOptions, Source, check_memory, finish};

/// Files parsed in parallel between two merges: bounds the memory for raw text.
pub(super) const BATCH: usize = 16;
/// Sub-agents inside sub-agents that are followed.
const MAX_SUBAGENTS: u32 = 32;

/// Reads all `.json` files (plain, gzip or zstd) of a folder.
pub(super) fn read_folder(folder: &Path, options: &ReadOptions<'_>) -> Result<Loaded> {
    let name = folder.display().to_string();
    let files = json_files(folder)?;
    if files.is_empty() {
        return Err(Error::input(format!("{name}: the folder has no .json file"))
            .hint("a folder is read as a kv-cache-tester trace; name single files of other formats"));
    }
    let total: u64 = files
        .iter()
        .filter_map(|f| f.metadata().ok())
        .map(|m| m.len())
        .sum();
    let read = AtomicU64::new(0);
    let mut merge = Merge::new(&name, options);
    for batch in files.chunks(BATCH) {
        let parts: Vec<Result<Trace>> = batch
            .par_iter()
            .map(|path| {
                let part = file(path, options);
                read.fetch_add(path.metadata().map_or(0, |m| m.len()), Ordering::Relaxed);
                part.map(|(trace, _)| trace)
            })
            .collect();
        for part in parts {
            merge.take(part)?;
        }
        if let Some(progress) = options.progress {
            let read_bytes = read.load(Ordering::Relaxed);
            progress(Progress {
                read_bytes,
                total_bytes: Some(total),
                requests: merge.builder.len() as u64,
            });
        }
    }
    merge.finish()
}

/// The files of a folder that are read, in the order of their names.
pub(super) fn json_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::io(format!("{}: cannot list the folder: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if [".json", ".json.gz", ".json.zst"]
            .iter()
            .any(|end| name.ends_with(end))
            && path.is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one file; answers its requests and the bytes of its text.
pub(super) fn file(path: &Path, options: &ReadOptions<'_>) -> Result<(Trace, u64)> {
    let mut source = Source::open(path)?;
    let mut text = Vec::new();
    source.read_rest(&mut text, options.max_line_bytes)?;
    Ok((conversation(&source.name, &text)?, text.len() as u64))
}

/// Reads a tar archive (perhaps compressed) with such files inside.
pub(super) fn read_tar(mut source: Source, options: &ReadOptions<'_>) -> Result<Loaded> {
    let name = source.name.clone();
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut merge = Merge::new(&name, options);
    let mut waiting_bytes = 0;
    loop {
        let next = next_file(&mut source, options)?;
        let done = next.is_none();
        files.extend(next);
        if files.len() == BATCH || (done && !files.is_empty()) {
            let parts: Vec<_> = files.par_iter().map(|(f, t)| conversation(f, t)).collect();
            waiting_bytes += parts
                .iter()
                .flatten()
                .map(|part| part.size().held_bytes())
                .sum::<u64>();
            merge.waiting.extend(parts);
            merge.names.extend(files.drain(..).map(|(f, _)| f));
            // the parts are put together in a second copy, when much of the first is scattered
            check_bytes(&merge.builder, ARCHIVE_COPIES * waiting_bytes, options, &name)?;
        }
        if done {
            break;
        }
    }
    merge.take_waiting()?;
    merge.finish()
}

/// The next file of an archive that is a conversation: its name and text; `None` at the end.
///
/// # Errors
/// If the archive is damaged, cut off, or has a file larger than a line may be.
pub(super) fn next_file(source: &mut Source, options: &ReadOptions<'_>) -> Result<Option<(String, Vec<u8>)>> {
    loop {
        let name = source.name.clone();
        let damaged = |what: &str| Error::input(format!("{name}: the tar archive is damaged: {what}"));
        let mut header = [0u8; 512];
        let n = source.read_some(&mut header)?;
        if n == 0 || header.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        if n < header.len() || &header[257..262] != b"ustar" {
            return Err(damaged("an entry has no header"));
        }
        let octal = std::str::from_utf8(&header[124..136]).unwrap_or_default();
        let octal = octal.trim_matches(['\0', ' ']);
        let size = u64::from_str_radix(octal, 8).map_err(|_| damaged("an entry has no size"))?;
        let cap = options.max_line_bytes as u64;
        if size > cap {
            return Err(damaged(&format!("an entry is larger than {cap} bytes")));
        }
        let end = header.iter().take(100).position(|&b| b == 0).unwrap_or(100);
        let file = String::from_utf8_lossy(&header[..end]).into_owned();
        let mut text = Vec::new();
        source.take(size.next_multiple_of(512), &mut text)?;
        text.truncate(usize::try_from(size).expect("bounded by max_line_bytes"));
        if text.len() as u64 != size {
            return Err(damaged("it is cut off"));
        }
        // type 0: a file. macOS puts "._name" files beside the real ones.
        let hidden = Path::new(&file)
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let is_json = Path::new(&file)
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("json"));
        if matches!(header[156], b'0' | 0) && is_json && !hidden {
            return Ok(Some((file, text)));
        }
    }
}

/// Puts conversations together.
struct Merge<'o> {
    builder: TraceBuilder,
    options: &'o ReadOptions<'o>,
    name: String,
    files: u32,
    skipped: u64,
    examples: Vec<String>,
    /// Parts of an archive, whose files need not be in the order of their names.
    waiting: Vec<Result<Trace>>,
    names: Vec<String>,
}

impl<'o> Merge<'o> {
    fn new(name: &str, options: &'o ReadOptions<'o>) -> Self {
        Self {
            builder: TraceBuilder::new(name, 64, IdMeaning::Prefix).format(TraceFormat::Agentic),
            options,
            name: name.to_owned(),
            files: 0,
            skipped: 0,
            examples: Vec::new(),
            waiting: Vec::new(),
            names: Vec::new(),
        }
    }

    fn take_waiting(&mut self) -> Result<()> {
        let mut parts: Vec<_> = std::mem::take(&mut self.names)
            .into_iter()
            .zip(std::mem::take(&mut self.waiting))
            .collect();
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        parts.into_iter().try_for_each(|(_, part)| self.take(part))
    }

    fn take(&mut self, part: Result<Trace>) -> Result<()> {
        let session = self.files;
        self.files += 1;
        let result = part.and_then(|trace| self.builder.append(&trace, Some(session)));
        if let Err(e) = result {
            if !self.options.skip_bad {
                return Err(e.hint("to leave out unreadable files, add --skip-bad"));
            }
            self.skipped += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(e.to_string());
            }
        }
        check_memory(&self.builder, self.options, &self.name)
    }

    fn finish(self) -> Result<Loaded> {
        let options = ReadOptions {
            sort: true,
            ..*self.options
        };
        let mut loaded = finish(self.builder, &options, self.skipped, self.examples, &self.name)?;
        if let Some(limit) = self.options.limit.and_then(|l| u32::try_from(l).ok())
            && limit < loaded.trace.request_count()
        {
            loaded.trace = loaded.trace.select(&(0..limit).collect::<Vec<u32>>());
        }
        Ok(loaded)
    }
}

/// Parses one file.
#[expect(clippy::naive_bytecount, reason = "only on the way to an error message")]
pub(super) fn conversation(name: &str, text: &[u8]) -> Result<Trace> {
    let place = |e: &JsonError| {
        let line = 1 + text[..e.offset.min(text.len())]
            .iter()
            .filter(|&&b| b == b'\n')
            .count();
        Error::input(e.what.clone()).at(format_args!("{name}: line {line}, byte {}", e.offset + 1))
    };
    let new_builder =
        |block: u32| TraceBuilder::new(name, block, IdMeaning::Prefix).format(TraceFormat::Agentic);
    let mut block_size: Option<u32> = None;
    let mut builder: Option<TraceBuilder> = None;
    // a list that stands before the block size is passed over and read afterwards
    let mut early: Option<Scanner<'_>> = None;
    let mut scanner = Scanner::new(text);
    let head = scanner.object(|key, s| match key {
        "block_size" => super::jsonl::once(key, &mut block_size, s, |s| {
            let size = s.uint()?;
            match u32::try_from(size) {
                Ok(size) if size > 0 => Ok(size),
                _ => s.fail(format!("{size} tokens are no block, expected 1 to {}", u32::MAX)),
            }
        }),
        "hash_id_scope" => match s.string()?.as_ref() {
            "local" => Ok(()),
            other => s.fail(format!(
                "field \"hash_id_scope\" is \"{other}\", expected \"local\""
            )),
        },
        "requests" if builder.is_some() || early.is_some() => s.fail("field \"requests\" stands twice"),
        "requests" => {
            if let Some(block) = block_size {
                return requests(s, 0.0, 0, builder.insert(new_builder(block)));
            }
            early = Some(s.clone());
            s.skip_fast()
        }
        _ => s.skip(),
    });
    head.and_then(|()| scanner.end()).map_err(|e| place(&e))?;
    if let Some(mut list) = early {
        let block =
            block_size.ok_or_else(|| Error::input(format!("{name}: field \"block_size\" is missing")))?;
        requests(&mut list, 0.0, 0, builder.insert(new_builder(block))).map_err(|e| place(&e))?;
    }
    let builder = builder.ok_or_else(|| Error::input(format!("{name}: field \"requests\" is missing")))?;
    Ok(builder.finish())
}

/// Reads a list of requests, and those of sub-agents in their place; times count from `start`.
fn requests(scanner: &mut Scanner<'_>, start: f64, depth: u32, builder: &mut TraceBuilder) -> Scan<()> {
    if depth > MAX_SUBAGENTS {
        return scanner.fail(format!("sub-agents are nested more than {MAX_SUBAGENTS} deep"));
    }
    // a conversation's prompt begins with the one before
    let mut ids = Repeat::default();
    scanner.array(|s| {
        let (mut t, mut input, mut output, mut has_ids) = (None, None, None, false);
        let (mut early, mut has_requests) = (None, false);
        let at = s.offset();
        s.object(|key, s| match key {
            "t" => super::jsonl::once(key, &mut t, s, Scanner::number),
            "in" => super::jsonl::once(key, &mut input, s, Scanner::uint),
            "out" => super::jsonl::once(key, &mut output, s, Scanner::uint),
            "hash_ids" if has_ids => s.fail("field \"hash_ids\" stands twice"),
            "hash_ids" if !s.null()? => {
                has_ids = true;
                super::jsonl::named(key, s, |s| s.uints_repeating(&mut ids).map(drop))
            }
            "hash_ids" => Ok(()),
            "requests" if has_requests => s.fail("field \"requests\" stands twice"),
            "requests" => {
                has_requests = true;
                if let Some(t) = t {
                    return requests(s, start + t, depth + 1, builder);
                }
                early = Some(s.clone());
                s.skip_fast()
            }
            _ => s.skip(),
        })?;
        let fail = |what: String| {
            Err(JsonError {
                offset: at,
                what: what.into(),
            })
        };
        let Some(t) = t else {
            return fail("a request has no field \"t\"".to_owned());
        };
        if let Some(mut list) = early {
            return requests(&mut list, start + t, depth + 1, builder);
        }
        if has_requests || !has_ids || ids.values().is_empty() {
            return Ok(());
        }
        let request = NewRequest {
            arrival: Some(start + t),
            input_len: input,
            output_len: output,
            prompt: PromptIds::Blocks(ids.values()),
            ..NewRequest::default()
        };
        if input.is_none() || output.is_none() {
            return fail("a request has no field \"in\" or \"out\"".to_owned());
        }
        builder.push(&request).or_else(|e| fail(e.to_string()))
    })
}
