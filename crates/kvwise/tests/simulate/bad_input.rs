//! Questions that cannot be answered, and traces that cannot be read: one sentence each, and nothing on stdout.

use super::*;

const DESCRIBED: [&str; 8] = [
    "--model",
    "llama-3.1-8b",
    "--gpu",
    "h100",
    "--input-len",
    "100",
    "--output-len",
    "10",
];

fn refused(arguments: &[&str], words: &str) {
    let output = kvwise(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert!(error.contains(words), "{arguments:?}: {error}");
    let sentences = error.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(sentences, 1, "{arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
}

#[test]
fn senseless_numbers_and_contradictions_of_simulate_name_their_flag() {
    let rate = ["--rate", "1", "--requests", "5"];
    for (more, words) in [
        (&["--rate", "0"][..], "--rate is 0"),
        (&["--rate", "-1"], "--rate is -1"),
        (&["--rate", "nan"], "--rate is NaN"),
        (&["--rate", "inf"], "--rate is inf"),
        (&["--rate", "1e-300"], "more than 64-bit nanoseconds hold"),
        (&["--concurrency", "0"], "--concurrency"),
        (&["--concurrency", "99999999999"], "--concurrency is 99999999999"),
        (&["--rate", "1", "--concurrency", "1"], "give one of them"),
        (
            &["--rate", "1", "--requests", "4294967295"],
            "--requests is 4294967295",
        ),
        (&["--rate", "1", "--requests", "0"], "--requests is 0"),
        (&["--concurrency", "2", "--burstiness", "0.5"], "--burstiness"),
        (
            &["--concurrency", "2", "--turns", "2", "--think-time", "-1"],
            "--think-time is -1",
        ),
        (
            &["--concurrency", "2", "--turns", "2", "--think-time", "nan"],
            "--think-time is NaN",
        ),
    ] {
        refused(&[&["simulate"], &DESCRIBED[..], more].concat(), words);
    }
    for (more, words) in [
        (&["--length-ratio", "nan"][..], "--length-ratio is NaN"),
        (&["--length-ratio", "-0.5"], "--length-ratio is -0.5"),
        (&["--burstiness", "0"], "--burstiness is 0"),
        (&["--speed", "2"], "--speed"),
        (&["--slo-ttft-ms", "nan"], "--slo-ttft-ms is NaN"),
        (&["--seeds", "5000"], "--seeds is 5000"),
        (&["--replicas", "5000"], "--replicas is 5000"),
        (&["--gpus", "2", "--tp", "4"], "--gpus is 2"),
        (&["--tiers", "host=-1GiB"], "-1GiB"),
        (&["--prefill-flags", "tp=2"], "--disaggregate"),
        (&["--compare", "tp=x"], "--compare \"tp=x\""),
    ] {
        refused(&[&["simulate"], &DESCRIBED[..], &rate, more].concat(), words);
    }
    refused(
        &[
            "simulate",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h9000",
            "--input-len",
            "9",
            "--output-len",
            "9",
            "--rate",
            "1",
        ],
        "h9000",
    );
}

#[test]
fn senseless_numbers_of_sweep_name_their_flag() {
    for (more, words) in [
        (&["--rates", "0,1"][..], "--rates has 0"),
        (&["--rates", "-1"], "--rates has -1"),
        (&["--rates", "nan"], "--rates has NaN"),
        (&["--concurrency", "0,1"], "--concurrency has 0"),
        (&["--rates", "1", "--vary", "tp="], "--vary tp has no values"),
        (&["--rates", "1", "--vary", "tp=x"], "--vary \"tp=x\""),
        (&["--rates", "1", "--vary", "nosuch=1"], "nosuch"),
        (&["--rates", "1", "--vary", "gpu=h100,h9000"], "gpu=h9000"),
        (&[], "how much traffic"),
    ] {
        refused(
            &[&["sweep"], &DESCRIBED[..], &["--requests", "5"], more].concat(),
            words,
        );
    }
}

#[test]
fn traces_that_cannot_be_read_are_named_with_line_and_field_and_the_hint_is_a_flag_of_this_command() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"timestamp": 0, "input_length": 100, "output_length": 10, "hash_ids": [1]}"#;
    for (name, body, words) in [
        (
            "nolen.jsonl",
            r#"{"timestamp": 0, "hash_ids": [1, 2]}"#.to_owned(),
            "line 1: field \"input_length\" is missing",
        ),
        ("cut.jsonl", format!("{good}\n{}", &good[..40]), "line 2"),
        ("nan.jsonl", good.replace("100", "NaN"), "field \"input_length\""),
        (
            "negative.jsonl",
            good.replace("100", "-5"),
            "field \"input_length\"",
        ),
        (
            "huge.jsonl",
            good.replace("100", "99999999999999999999"),
            "larger than 64 bits hold",
        ),
        ("late.jsonl", good.replace(": 0,", ": 1e400,"), "out of range"),
        ("ids.jsonl", good.replace("100", "2000000000"), "hash ids"),
        ("empty.jsonl", String::new(), "the file is empty"),
        ("missing.jsonl", "\u{0}".to_owned(), "no such file"),
    ] {
        let path = folder.path().join(name);
        if name != "missing.jsonl" {
            std::fs::write(&path, body).unwrap();
        }
        let path = path.to_str().unwrap();
        for command in ["simulate", "sweep"] {
            let mut arguments = vec![command, path, "--model", "llama-3.1-8b", "--gpu", "h100"];
            if command == "sweep" {
                arguments.extend(["--concurrency", "1"]);
            }
            refused(&arguments, words);
            refused(&arguments, name);
        }
    }
    // What the hints name is a flag here, too.
    let cut = folder.path().join("cut.jsonl");
    let output = kvwise(&[
        "simulate",
        cut.to_str().unwrap(),
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--skip-bad",
        "--format",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("1 unreadable"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["finished"], 1);
}

#[test]
fn a_trace_and_a_description_or_two_clocks_contradict_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("one.jsonl");
    std::fs::write(
        &path,
        r#"{"timestamp": 0, "input_length": 100, "output_length": 10, "hash_ids": [1]}"#,
    )
    .unwrap();
    let trace = path.to_str().unwrap();
    for (more, words) in [
        (&["--input-len", "5"][..], "--input-len and a trace"),
        (&["--requests", "5"], "--requests and a trace"),
        (&["--length-ratio", "0.5"], "--length-ratio and a trace"),
        (&["--burstiness", "2"], "--burstiness and a trace"),
        (&["--rate", "2"], "--rate and a trace"),
        (&["--concurrency", "3", "--speed", "2"], "--speed"),
        (&["--speed", "0"], "--speed is 0"),
        (&["--speed", "nan"], "--speed is NaN"),
        (&["--hash-block", "0"], "--hash-block is 0"),
    ] {
        refused(
            &[
                &["simulate", trace, "--model", "llama-3.1-8b", "--gpu", "h100"],
                more,
            ]
            .concat(),
            words,
        );
    }
}

#[test]
fn requests_larger_than_the_pool_and_objectives_that_nothing_meets_are_a_no() {
    // Longer than the model's own context: nobody can be served.
    let output = kvwise(&[
        "simulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--input-len",
        "200000",
        "--output-len",
        "10",
        "--rate",
        "1",
        "--requests",
        "5",
        "--format",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("5 of 5 requests can never run"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["finished"], &answer["rejected"]), (&0.into(), &5.into()));
    // Nothing is faster than one step: a no, with the flag that finds what would be met.
    let output = kvwise(&[
        "simulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--input-len",
        "100",
        "--output-len",
        "10",
        "--rate",
        "1",
        "--requests",
        "5",
        "--slo-ttft-ms",
        "0.001",
        "--format",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--find-rate"));
}

#[test]
fn every_answer_says_its_seed_version_and_inputs() {
    let answers = [
        json(&with(&["--rate", "2", "--requests", "5", "--seed", "9"])),
        json(&with(&[
            "--concurrency",
            "2",
            "--requests",
            "5",
            "--seed",
            "9",
            "--engine",
            "sglang",
        ])),
        json(&with(&[
            "--requests",
            "5",
            "--find-rate",
            "--slo-ttft-ms",
            "500",
            "--seed",
            "9",
        ])),
        serde_json::from_slice(&swept(&["--format", "json", "--seed", "9"]).stdout).unwrap(),
    ];
    let mut names = std::collections::BTreeSet::new();
    for answer in &answers {
        assert_eq!(answer["seed"], 9, "{answer}");
        assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
        let name = answer["inputs_hash"].as_str().unwrap().to_owned();
        assert!(name.len() >= 16, "{name}");
        names.insert(name);
    }
    assert_eq!(names.len(), answers.len(), "other inputs, other name");
}
