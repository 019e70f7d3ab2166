//! Recordings of kvwise as traces: the requests that the probe saw, with the hashes of their blocks.
//!
//! Times are seconds since the first arrival. `kvwise export --to trace` writes the same requests as a file, with times
//! in scheduler steps too.

use std::path::Path;

use kvwise_core::{Error, Result};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, TraceBuilder, TraceFormat};

use super::{CHECK_EVERY, EXAMPLES, Loaded, ReadOptions, check_memory, finish};
use crate::session::{Session, probe, trace};

/// Reads the requests of a recording, and what the probe wrote since it was last opened.
pub(super) fn read(folder: &Path, options: &ReadOptions<'_>) -> Result<Loaded> {
    let name = folder.display().to_string();
    let mut session = Session::open(folder)?;
    probe::ingest_all(&mut session.db, folder)?;
    let made = trace::read(&session.db).map_err(|e| e.at(&name))?;
    let recorded = u32::try_from(made.hash_block_tokens).map_err(|_| {
        Error::input(format!(
            "{name}: blocks of {} tokens are recorded, expected 1 or more",
            made.hash_block_tokens
        ))
    })?;
    if let Some(asked) = options.hash_block_tokens.filter(|&asked| asked != recorded) {
        return Err(Error::input(format!(
            "{name}: --hash-block is {asked}, but a hash of this recording stands for {recorded} tokens"
        ))
        .hint("leave --hash-block out"));
    }
    let mut builder =
        TraceBuilder::new(name.clone(), recorded, IdMeaning::Content).format(TraceFormat::Session);
    // requests that had not finished when the recording ended are no unreadable lines, but they are missing all the same
    let mut skipped = made.left_out;
    let mut examples = Vec::new();
    if made.left_out > 0 {
        examples.push(format!(
            "{name}: {} requests had not finished or have no hashes",
            made.left_out
        ));
    }
    for request in &made.requests {
        let id = format!("\"{}\"", request.id);
        let lengths = [request.input_len, request.output_len].map(|n| u64::try_from(n).ok());
        let added = match lengths {
            [Some(input), Some(output)] => builder.push(&NewRequest {
                arrival: Some(request.timestamp as f64 / 1000.0),
                input_len: Some(input),
                output_len: Some(output),
                prompt: PromptIds::Blocks(&request.hash_ids),
                priority: request.priority,
                id_json: Some(&id),
                ..NewRequest::default()
            }),
            _ => Err(Error::input("a length is negative")),
        };
        if let Err(e) = added {
            let e = e.at(format_args!("{name}: request {}", request.id));
            if !options.skip_bad {
                return Err(e.hint("to leave out unreadable requests, add --skip-bad"));
            }
            skipped += 1;
            if examples.len() < EXAMPLES {
                examples.push(e.to_string());
            }
        }
        if builder.len().is_multiple_of(CHECK_EVERY) {
            check_memory(&builder, options, &name)?;
        }
        if options.limit.is_some_and(|limit| builder.len() >= limit) {
            break;
        }
    }
    finish(builder, options, skipped, examples, &name)
}

#[cfg(test)]
mod tests {
    use kvwise_sim::trace::Prompt;

    use super::*;
    use crate::session::store::Metadata;

    /// A recording with two finished requests that share a block of 16 tokens, and one that still runs.
    fn recording(folder: &Path) {
        let session = Session::create(folder, Metadata::new("a test", Vec::new(), 0)).unwrap();
        session
            .db
            .execute_batch(
                "PRAGMA foreign_keys = OFF;
                 INSERT INTO request (process_id, request, arrival_us, arrival_step, prompt_tokens, output_tokens, priority,
                                      hash_block_tokens, hash_ids)
                 VALUES (1, 1, 5000000, 3, 40, 7, 0, 16, '[11, 12]'),
                        (1, 2, 5250000, 9, 20, 3, 2, 16, '[11]'),
                        (1, 3, 6000000, 12, 20, NULL, 0, 16, '[11]');",
            )
            .unwrap();
        session.finish(7_000_000).unwrap();
    }

    #[test]
    fn a_recording_is_a_trace_in_seconds_with_its_own_block_size() {
        let folder = tempfile::tempdir().unwrap();
        recording(folder.path());
        let loaded = super::super::open(folder.path(), &ReadOptions::default()).unwrap();
        let trace = loaded.trace;
        assert_eq!((trace.format(), trace.len()), (TraceFormat::Session, 2));
        assert_eq!(loaded.skipped, 1, "one request had not finished");
        assert_eq!((trace.arrival(0), trace.arrival(1)), (Some(0.0), Some(0.25)));
        assert_eq!((trace.block_tokens(), trace.priority(1)), (Some(16), 2));
        let [Prompt::Blocks(first), Prompt::Blocks(second)] = [trace.prompt(0), trace.prompt(1)] else {
            panic!("no blocks")
        };
        assert_eq!(
            first.iter().next(),
            second.iter().next(),
            "the first block is shared"
        );
        assert_eq!(
            (first.len(), second.len()),
            (3, 2),
            "tails are blocks of their own"
        );
        assert_ne!(first.iter().nth(1), second.iter().nth(1));
    }

    #[test]
    fn another_block_size_than_the_recorded_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        recording(folder.path());
        let options = ReadOptions {
            hash_block_tokens: Some(32),
            ..ReadOptions::default()
        };
        let message = super::super::open(folder.path(), &options)
            .unwrap_err()
            .to_string();
        assert!(message.contains("32") && message.contains("16"), "{message}");
    }

    #[test]
    fn what_export_writes_is_detected_and_read() {
        let folder = tempfile::tempdir().unwrap();
        recording(folder.path());
        let session = Session::open(folder.path()).unwrap();
        let lines = trace::to_jsonl(&trace::read(&session.db).unwrap()).unwrap();
        let source =
            super::super::Source::from_reader("t", Box::new(std::io::Cursor::new(lines)), None).unwrap();
        let options = ReadOptions {
            hash_block_tokens: Some(16),
            ..ReadOptions::default()
        };
        let exported = super::super::open_source(source, &options).unwrap().trace;
        assert_eq!(exported.format(), TraceFormat::Tokens);
        assert_eq!(exported.input_lens(), [40, 20]);
        assert_eq!(exported.arrival(1), Some(9.0), "in steps");
    }
}
