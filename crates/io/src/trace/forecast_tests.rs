use std::fmt::Write as _;
use std::io::Write as _;

use super::*;
use crate::trace::open;

/// Mooncake lines of chats that come back, `chats` at a time: what follows is what the turn before had and two new blocks.
fn chats(requests: u64, id: impl Fn(u64) -> u64) -> String {
    let (mut text, mut next) = (String::new(), 0);
    let mut paths: Vec<Vec<u64>> = Vec::new();
    for request in 0..requests {
        let chat = usize::try_from(request * 7 % 50).unwrap();
        if paths.len() <= chat {
            paths.resize(50, vec![u64::MAX]);
        }
        if paths[chat].len() > 20 {
            paths[chat].truncate(1);
        }
        for _ in 0..2 {
            paths[chat].push(id(next));
            next += 1;
        }
        let ids = &paths[chat][1..];
        writeln!(
            text,
            "{{\"timestamp\": {request}, \"input_length\": {}, \"output_length\": 5, \"hash_ids\": {ids:?}}}",
            512 * ids.len()
        )
        .unwrap();
    }
    text
}

fn check(text: &str, name: &str, within: f64) -> (Forecast, Trace) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut file = File::create(&path).unwrap();
    match name.rsplit('.').next() {
        Some("gz") => {
            let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            out.write_all(text.as_bytes()).unwrap();
            out.finish().unwrap();
        }
        Some("zst") => zstd::stream::copy_encode(text.as_bytes(), file, 1).unwrap(),
        _ => file.write_all(text.as_bytes()).unwrap(),
    }
    let options = ReadOptions::default();
    // the decompressor is up to 384 KiB of text ahead of what is sampled: 2 % of a usual sample, much of this one
    let compressed = !name.ends_with("jsonl") && !name.ends_with("csv");
    let (sample, within) = if compressed {
        (1_000_000, within + 0.2)
    } else {
        (300_000, within)
    };
    let found = forecast(&path, &options, sample, None).unwrap().unwrap();
    let trace = open(&path, &options).unwrap().trace;
    let real = trace.size();
    for (what, said, is) in [
        ("requests", found.size.requests, real.requests),
        ("columns", found.size.column_bytes, real.column_bytes),
        ("tokens", found.size.input_tokens, real.input_tokens),
        ("held", found.size.held_bytes(), real.held_bytes()),
    ] {
        let off = said as f64 / is as f64;
        assert!(
            (1.0 / within..within).contains(&off),
            "{name}: {what}: {said} said, {is} real"
        );
    }
    (found, trace)
}

#[test]
fn the_sizes_of_a_file_are_told_from_a_sample_of_it() {
    let (random, dense) = (
        chats(20_000, |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        chats(20_000, |n| n),
    );
    for name in ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"] {
        let (random, _) = check(&random, name, 1.2);
        assert_eq!(random.table, Table::Sparse);
        let (dense, trace) = check(&dense, name, 1.2);
        assert!(matches!(dense.table, Table::Dense(_)));
        let distinct = dense.size.distinct_blocks as f64 / trace.size().distinct_blocks as f64;
        assert!((0.8..1.25).contains(&distinct), "{name}: {distinct}");
        assert!(random.sampled_bytes < 1_100_000);
    }
}

#[test]
fn prefixes_that_repeat_are_not_counted_again() {
    // ten prompts of ten blocks, ever again
    let mut text = String::new();
    for request in 0..30_000u64 {
        let first = request % 10 * 10;
        let ids: Vec<u64> = (first..first + 10)
            .map(|id| id.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        writeln!(
            text,
            "{{\"timestamp\": {request}, \"input_length\": 5120, \"output_length\": 5, \"hash_ids\": {ids:?}}}"
        )
        .unwrap();
    }
    let (found, _) = check(&text, "t.jsonl.zst", 1.2);
    assert_eq!(found.size.distinct_blocks, 100);
}

#[test]
fn tokens_and_tables_of_lengths_are_told_from_a_sample() {
    let mut tokens = String::new();
    for request in 0..5_000u64 {
        let ids: Vec<u64> = (0..40 + request % 60).map(|k| k * request % 50_000).collect();
        writeln!(
            tokens,
            "{{\"id\": \"r{request}\", \"arrival\": 1, \"tokens\": {ids:?}, \"output_len\": 9}}"
        )
        .unwrap();
    }
    let (found, trace) = check(&tokens, "t.jsonl", 1.2);
    let paths = trace.to_blocks(None).unwrap();
    let distinct = found.size.distinct_blocks as f64 / f64::from(paths.unique_blocks());
    assert!((0.7..1.4).contains(&distinct), "{distinct}");

    let mut table = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for request in 0..40_000 {
        writeln!(
            table,
            "2023-11-16 {:02}:{:02}:{:02}.5,{},{}",
            request / 3600,
            request / 60 % 60,
            request % 60,
            100 + request,
            7
        )
        .unwrap();
    }
    check(&table, "t.csv", 1.2);
}

#[test]
fn a_folder_and_an_archive_are_told_from_some_of_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Vec::new();
    for file in 0..60u64 {
        let mut text = r#"{"block_size": 64, "hash_id_scope": "local", "requests": ["#.to_owned();
        for turn in 1..30 + file % 7 {
            let ids: Vec<u64> = (0..turn * 5).collect();
            let comma = if turn > 1 { "," } else { "" };
            write!(
                text,
                r#"{comma}{{"t": {turn}, "in": {}, "out": 3, "hash_ids": {ids:?}}}"#,
                turn * 320
            )
            .unwrap();
        }
        text.push_str("]}");
        std::fs::write(folder.path().join(format!("{file:02}.json")), &text).unwrap();
        let mut header = [0u8; 512];
        let name = format!("{file:02}.json");
        header[..name.len()].copy_from_slice(name.as_bytes());
        let size = format!("{:011o}\0", text.len());
        header[124..136].copy_from_slice(size.as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        archive.extend_from_slice(&header);
        archive.extend_from_slice(text.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    let tar = tempfile::tempdir().unwrap();
    let tar_path = tar.path().join("t.tar");
    std::fs::write(&tar_path, archive).unwrap();
    let options = ReadOptions::default();
    for path in [folder.path(), &tar_path] {
        let found = forecast(path, &options, 100_000, None).unwrap().unwrap();
        let real = open(path, &options).unwrap().trace.size();
        // the archive's headers and all of its files' ends are bytes too
        for (said, is) in [
            (found.size.requests, real.requests),
            (found.size.held_bytes(), real.held_bytes()),
        ] {
            let off = said as f64 / is as f64;
            assert!(
                (0.8..1.25).contains(&off),
                "{}: {said} said, {is} real",
                path.display()
            );
        }
    }
}

#[test]
fn the_largest_part_that_fits_is_known() {
    let (found, _) = check(&chats(20_000, |n| n), "t.jsonl", 1.2);
    let beside = |size: &TraceSize| 100 * size.requests;
    let peak = found.peak_bytes(&beside);
    assert_eq!(found.requests_within(peak, &beside), None);
    let half = found
        .requests_within(PROGRAM_BYTES + (peak - PROGRAM_BYTES) / 2, &beside)
        .unwrap();
    assert!((8_000..12_000).contains(&half), "{half}");
    assert_eq!(found.requests_within(0, &beside), Some(0));
    let first = limited(found.clone(), Some(5_000));
    assert_eq!(first.size.requests, 5_000);
    assert!(first.peak_bytes(&beside) < peak / 2 + PROGRAM_BYTES);
}

#[test]
fn nothing_is_said_of_what_cannot_be_sampled() {
    let options = ReadOptions::default();
    assert_eq!(forecast("-".as_ref(), &options, 1000, None).unwrap(), None);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    std::fs::write(&path, "{\"timestamp\": 1, \"hash_ids\": [}\n").unwrap();
    assert_eq!(forecast(&path, &options, 1000, None).unwrap(), None);
    assert!(forecast(&folder.path().join("missing"), &options, 1000, None).is_err());
}
