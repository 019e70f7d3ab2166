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
        "FILE: line 2: the arrival time is -0.003, expected 0 or later"
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
    let limit = kvwise_core::units::human_bytes(1 << 14);
    assert!(
        message(text.as_bytes(), &options).contains(&format!("of memory, more than the limit of {limit}"))
    );
}

/// Two conversations; the first has a sub-agent whose requests stand before its own time in the text.
const CHATS: [(&str, &str); 2] = [
    (
        "b.json",
        r#"{"id":"b","block_size":4,"hash_id_scope":"local","requests":[
            {"t":1.0,"type":"n","in":9,"out":2,"hash_ids":[1,2]},
            {"t":5.0,"type":"n","in":3,"out":2,"hash_ids":[]}]}"#,
    ),
    (
        "a.json",
        r#"{"id":"a","requests":[
            {"t":0.0,"type":"n","in":9,"out":2,"hash_ids":[1,2]},
            {"type":"subagent","requests":[{"t":0.5,"in":4,"out":1,"hash_ids":[7]}],"t":1.5},
            {"t":0.5,"type":"s","in":13,"out":2,"hash_ids":[1,2,3]}],"block_size":4,"hash_id_scope":"local"}"#,
    ),
];

#[test]
fn a_folder_of_conversations_is_sorted_by_time_and_shares_nothing_between_files() {
    let folder = Folder::new();
    for (name, text) in CHATS {
        folder.file(name, text.as_bytes());
    }
    folder.file("notes.txt", b"not a trace");
    let trace = open(folder.0.path(), &ReadOptions::default()).unwrap().trace;
    assert_eq!(trace.input_lens(), [9, 13, 9, 4]);
    assert_eq!(
        (0..4).map(|i| trace.arrival(i).unwrap()).collect::<Vec<_>>(),
        [0.0, 0.5, 1.0, 2.0]
    );
    assert_eq!(
        (0..4).map(|i| trace.session(i).unwrap()).collect::<Vec<_>>(),
        [0, 0, 1, 0]
    );
    assert_eq!(trace.block_tokens(), Some(4));
    let paths = trace.to_blocks(None).unwrap();
    assert_eq!((paths.unique_blocks(), paths.block_accesses()), (6, 8));
}

#[test]
fn a_compressed_archive_of_conversations_reads_as_the_folder() {
    let folder = Folder::new();
    let mut archive = Vec::new();
    for (name, text) in CHATS {
        folder.file(name, text.as_bytes());
        let mut header = [0u8; 512];
        let path = format!("traces/{name}");
        header[..path.len()].copy_from_slice(path.as_bytes());
        let size = format!("{:011o}", text.len());
        header[124..135].copy_from_slice(size.as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        archive.extend_from_slice(&header);
        archive.extend_from_slice(text.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    let plain = open(folder.0.path(), &ReadOptions::default()).unwrap().trace;
    let other = Folder::new();
    let cut = zstd::encode_all(&archive[..600], 3).unwrap();
    assert!(
        open(&other.file("cut.tar.zst", &cut), &ReadOptions::default())
            .unwrap_err()
            .to_string()
            .contains("cut off")
    );
    archive.resize(archive.len() + 1024, 0);
    let packed = open(
        &other.file("t.tar.zst", &zstd::encode_all(&archive[..], 3).unwrap()),
        &ReadOptions::default(),
    );
    let packed = packed.unwrap().trace;
    assert_eq!(packed.input_lens(), plain.input_lens());
    assert_eq!(packed.content(), plain.content());
}

#[test]
fn broken_conversations_name_their_file_and_can_be_skipped() {
    let folder = Folder::new();
    folder.file(CHATS[0].0, CHATS[0].1.as_bytes());
    folder.file(
        "a.json",
        br#"{"block_size":4,"requests":[{"t":0,"in":9,"out":2,"hash_ids":[1,1]}]}"#,
    );
    folder.file("c.json", b"{\"block_size\":4,\n\"requests\":[{\"t\":0,]}");
    let e = open(folder.0.path(), &ReadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("a.json: line 1") && e.contains("hash id 1 stands twice"),
        "{e}"
    );
    let loaded = open(
        folder.0.path(),
        &ReadOptions {
            skip_bad: true,
            ..ReadOptions::default()
        },
    )
    .unwrap();
    assert_eq!((loaded.trace.len(), loaded.skipped), (1, 2));
    assert!(
        loaded.skipped_examples[1].contains("c.json: line 2"),
        "{:?}",
        loaded.skipped_examples
    );
}

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("data/traces")
        .join(name)
}

#[test]
fn azure_rows_have_times_and_lengths_and_no_content() {
    let trace = open(
        &shipped("azure2023_llm_conv_first500.csv.gz"),
        &ReadOptions::default(),
    )
    .unwrap()
    .trace;
    assert_eq!((trace.format(), trace.len()), (TraceFormat::Azure, 500));
    assert_eq!(
        (trace.input_len(0), trace.output_len(0), trace.arrival(0)),
        (374, 44, Some(0.0))
    );
    // 18:15:46.6805900 and 18:15:50.9951690
    assert_eq!(
        (trace.input_len(1), trace.arrival_ns(1)),
        (396, Some(4_314_579_000))
    );
    assert!(
        trace
            .to_blocks(None)
            .unwrap_err()
            .to_string()
            .contains("lengths only")
    );
}

#[test]
fn burstgpt_and_bailian_rows_are_detected() {
    let folder = Folder::new();
    let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45.5,GPT-4,10.0,0,10,API log\n";
    let trace = open(&folder.file("t.csv", text.as_bytes()), &ReadOptions::default())
        .unwrap()
        .trace;
    assert_eq!(
        (trace.format(), trace.input_lens(), trace.output_lens()),
        (TraceFormat::BurstGpt, &[472, 10][..], &[18, 0][..])
    );
    assert_eq!(trace.arrival(1), Some(45.5));
    let text = r#"{"chat_id": 5, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 20, "output_length": 3, "type": "text", "turn": 1, "hash_ids": [1, 2]}
{"chat_id": 6, "parent_chat_id": -1, "timestamp": 2.5, "input_length": 20, "output_length": 3, "type": "text", "turn": 1, "hash_ids": [1, 9]}
{"chat_id": 7, "parent_chat_id": 5, "timestamp": 3.5, "input_length": 40, "output_length": 3, "type": "text", "turn": 2, "hash_ids": [1, 2, 3]}
"#;
    let trace = open(&folder.file("t.jsonl", text.as_bytes()), &ReadOptions::default())
        .unwrap()
        .trace;
    assert_eq!(
        (trace.format(), trace.block_tokens()),
        (TraceFormat::Bailian, Some(16))
    );
    assert_eq!(
        (0..3).map(|i| trace.session(i).unwrap()).collect::<Vec<_>>(),
        [0, 1, 0]
    );
}

/// Counted with pools of blocks by scripts driving vLLM 0.32.0's own `KVCacheManager` (vllm) and, for prefix-lru,
/// with kvcache-simulator 0.1.3 and prefixlens 0.1.0, on 2026-11-22.
#[test]
fn curves_of_a_real_trace_equal_independent_counts() {
    use kvwise_sim::curve::{Semantics, curve};
    // capacity in usable blocks; prefix-lru hit blocks and tokens; vllm hit blocks and tokens
    const COUNTS: [(u64, u64, u64, u64, u64); 6] = [
        (1000, 5565, 2_849_280, 5566, 2_849_792),
        (2000, 5646, 2_889_689, 5658, 2_896_896),
        (5000, 6286, 3_216_433, 6475, 3_315_200),
        (10_000, 7453, 3_812_890, 7466, 3_822_592),
        (20_000, 7479, 3_826_202, 7468, 3_823_616),
        (200_000, 7479, 3_826_202, 7468, 3_823_616),
    ];
    let trace = example(&ReadOptions::default()).unwrap().trace;
    let paths = trace.to_blocks(None).unwrap();
    assert_eq!(
        (trace.len(), paths.block_accesses(), paths.unique_blocks()),
        (1000, 19_686, 12_207)
    );
    let lru = curve(&trace, None, Semantics::PrefixLru).unwrap();
    let vllm = curve(&trace, None, Semantics::Vllm).unwrap();
    assert_eq!(lru.capacity_needed(), 11_175);
    for (capacity, blocks, tokens, vllm_blocks, vllm_tokens) in COUNTS {
        assert_eq!(
            (lru.hit_blocks(capacity), lru.hit_tokens(capacity)),
            (blocks, tokens),
            "capacity {capacity}"
        );
        let point = vllm.point(&paths, trace.input_lens(), capacity).unwrap();
        assert_eq!(
            (point.hit_blocks, point.hit_tokens),
            (vllm_blocks, vllm_tokens),
            "capacity {capacity}"
        );
    }
}

#[test]
fn a_written_trace_reads_back_the_same() {
    let folder = Folder::new();
    let original = example(&ReadOptions::default()).unwrap().trace;
    for (name, format) in [
        ("t.jsonl", WriteFormat::Mooncake),
        ("t.jsonl.gz", WriteFormat::Mooncake),
        ("u.jsonl.zst", WriteFormat::Tokens),
    ] {
        let path = folder.0.path().join(name);
        write_file(&original, format, None, &path).unwrap();
        let read = open(&path, &ReadOptions::default()).unwrap().trace;
        assert_eq!(read.input_lens(), original.input_lens(), "{name}");
        assert_eq!(read.output_lens(), original.output_lens(), "{name}");
        assert!(
            (0..read.len()).all(|i| read.arrival_ns(i) == original.arrival_ns(i)),
            "{name}"
        );
        let (a, b) = (read.to_blocks(None).unwrap(), original.to_blocks(None).unwrap());
        assert!((0..a.len()).all(|i| a.get(i).runs() == b.get(i).runs()), "{name}");
    }
    assert_eq!(
        std::fs::read_dir(folder.0.path()).unwrap().count(),
        3,
        "no temporary file is left"
    );
}

#[test]
fn a_trace_of_lengths_cannot_become_one_of_content_and_leaves_no_file() {
    let folder = Folder::new();
    let azure = open(
        &shipped("azure2023_llm_code_first300.csv.gz"),
        &ReadOptions::default(),
    )
    .unwrap()
    .trace;
    for format in [WriteFormat::Mooncake, WriteFormat::Tokens] {
        assert!(write_file(&azure, format, None, &folder.0.path().join("t.jsonl")).is_err());
    }
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0);
}
