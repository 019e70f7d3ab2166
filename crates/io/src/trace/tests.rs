use std::io::Write;
use std::path::PathBuf;

use kvwise_sim::trace::Prompt;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }
}

const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}

{"timestamp": 2500, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 2], "extra": {"a": [1]}}
"#;

fn message(bytes: &[u8], options: &ReadOptions<'_>) -> String {
    let folder = Folder::new();
    let path = folder.file("t.jsonl", bytes);
    let text = open(&path, options).unwrap_err().to_string();
    text.replace(&path.display().to_string(), "FILE")
}

#[test]
fn mooncake_lines_are_read_and_detected() {
    let folder = Folder::new();
    let loaded = open(
        &folder.file("t.jsonl", MOONCAKE.as_bytes()),
        &ReadOptions::default(),
    )
    .unwrap();
    let trace = loaded.trace;
    assert_eq!(trace.format(), TraceFormat::Mooncake);
    assert_eq!(trace.input_lens(), [1000, 1100]);
    assert_eq!(trace.output_lens(), [5, 7]);
    assert_eq!(trace.arrival(1), Some(2.5));
    assert_eq!(trace.block_tokens(), Some(512));
    let Prompt::Blocks(path) = trace.prompt(1) else {
        panic!("no blocks")
    };
    assert_eq!(path.raw_ids().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn compressed_files_read_as_plain_ones_whatever_their_name() {
    let folder = Folder::new();
    let plain = open(&folder.file("t", MOONCAKE.as_bytes()), &ReadOptions::default())
        .unwrap()
        .trace;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(MOONCAKE.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(MOONCAKE.as_bytes(), 3).unwrap();
    for bytes in [&gz, &zst] {
        let read = open(&folder.file("t", bytes), &ReadOptions::default())
            .unwrap()
            .trace;
        assert_eq!(read, plain);
        let cut = open(
            &folder.file("cut", &bytes[..bytes.len() - 9]),
            &ReadOptions::default(),
        )
        .unwrap_err();
        assert!(cut.to_string().contains("compressed data is"), "{cut}");
    }
}

#[test]
fn token_lines_are_read_as_the_reference_scripts_take_them() {
    let folder = Folder::new();
    let text = r#"{"id": "r0", "arrival": 0.5, "tokens": [1, 2, 3], "output_len": 2, "output_tokens": [8, 9]}
{"id": 7, "arrival": 0.25, "tokens": [1, 4], "output_length": 3, "priority": -2, "cache_salt": "x", "lora": null}
"#;
    let trace = open(&folder.file("t.jsonl", text.as_bytes()), &ReadOptions::default())
        .unwrap()
        .trace;
    assert_eq!(trace.format(), TraceFormat::Tokens);
    let Prompt::Tokens(tokens) = trace.prompt(0) else {
        panic!("no tokens")
    };
    assert_eq!(tokens, [1, 2, 3]);
    assert_eq!(trace.output_tokens(0), Some(&[8, 9][..]));
    assert_eq!(trace.output_tokens(1), None);
    assert_eq!(trace.output_lens(), [2, 3]);
    assert_eq!((trace.id(0), trace.id(1)), ("r0".to_owned(), "7".to_owned()));
    assert_eq!(
        (trace.priority(1), trace.cache_salt(1), trace.extra_key(1)),
        (-2, Some("x"), None)
    );
    assert_eq!(trace.arrival_order().unwrap(), [1, 0]);
}

#[test]
fn errors_name_file_line_field_and_value() {
    let default = ReadOptions::default();
    let mooncake = |line: &str| {
        let first = MOONCAKE.lines().next().unwrap();
        message(format!("{first}\n{line}\n").as_bytes(), &default)
    };
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_length": -5, "output_length": 5, "hash_ids": [0]}"#),
        "FILE: line 2: field \"input_length\": expected an integer of 0 or more (byte 34)"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_length": 0, "output_length": 5, "hash_ids": []}"#),
        "FILE: line 2: the input length is 0, expected at least 1 token"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": -3, "input_length": 9, "output_length": 5, "hash_ids": [0]}"#),
        "FILE: line 2: the time -0.003 s is earlier than the line before (0 s)"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_length": 9000, "output_length": 5, "hash_ids": [0]}"#),
        "FILE: line 2: input length is 9000, but 1 hash ids of 512 tokens are given (expected 18)"
    );
    assert_eq!(
        mooncake(
            r#"{"timestamp": 0, "input_length": 9, "output_length": 5, "hash_ids": [18446744073709551616]}"#
        ),
        "FILE: line 2: field \"hash_ids\": the number 18446744073709551616 is larger than 64 bits hold (byte 70)"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_length": 9, "hash_ids": [1]}"#),
        "FILE: line 2: field \"output_length\" is missing"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_len"#),
        "FILE: line 2: the string does not end (byte 28)"
    );
    assert_eq!(
        mooncake(r#"{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [1, 0]}"#),
        "FILE: line 2: hash id 1 stands at the start here but after id 0 in an earlier request, but an id names one \
         whole prefix"
    );
    assert_eq!(
        message(br#"{"id": 1, "tokens": [1, 4294967296]}"#, &default),
        "FILE: line 1: field \"tokens\": the token id 4294967296 is larger than 32 bits hold (byte 25)"
    );
    assert_eq!(message(b"", &default), "FILE: the file is empty");
    assert_eq!(
        message(b"hello\n", &default),
        "FILE: the format of the trace is not recognised"
    );
}

#[test]
fn unreadable_lines_are_skipped_and_counted_on_request() {
    let folder = Folder::new();
    let text = format!(
        "{MOONCAKE}nonsense\n{{}}\n{}",
        r#"{"timestamp": 2600, "input_length": 8, "output_length": 1, "hash_ids": [9]}"#
    );
    let path = folder.file("t.jsonl", text.as_bytes());
    let loaded = open(
        &path,
        &ReadOptions {
            skip_bad: true,
            ..ReadOptions::default()
        },
    )
    .unwrap();
    assert_eq!((loaded.trace.len(), loaded.skipped), (3, 2));
    assert!(
        loaded.skipped_examples[0].contains("line 4"),
        "{:?}",
        loaded.skipped_examples
    );
}

#[test]
fn times_that_run_backwards_can_be_sorted() {
    let folder = Folder::new();
    let lines: Vec<&str> = MOONCAKE.lines().filter(|l| !l.is_empty()).collect();
    let path = folder.file("t.jsonl", format!("{}\n{}\n", lines[1], lines[0]).as_bytes());
    assert!(
        open(&path, &ReadOptions::default())
            .unwrap_err()
            .to_string()
            .contains("earlier than the line before")
    );
    let trace = open(
        &path,
        &ReadOptions {
            sort: true,
            ..ReadOptions::default()
        },
    )
    .unwrap()
    .trace;
    assert_eq!(trace.input_lens(), [1000, 1100]);
}

#[test]
fn endless_lines_and_traces_beyond_the_memory_limit_are_refused() {
    let options = ReadOptions {
        max_line_bytes: 64,
        ..ReadOptions::default()
    };
    assert_eq!(
        message(MOONCAKE.as_bytes(), &options),
        "FILE: a line is longer than 64 bytes"
    );
    let mut text = String::new();
    for k in 0..4096 {
        text.push_str(&format!("{{\"id\": {k}, \"tokens\": [1, 2, 3]}}\n"));
    }
    let options = ReadOptions {
        max_memory_bytes: 1 << 14,
        ..ReadOptions::default()
    };
    assert!(message(text.as_bytes(), &options).contains("bytes of memory, more than the limit of 16384"));
}
