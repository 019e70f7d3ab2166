//! `kvwise replay --engine sglang` line by line against what SGLang 0.5.23's own code did (see
//! `data/sglang/SOURCES.md`), and its manners with bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kvwise_io::trace::Source;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/sglang")
        .join(name)
}

fn lines(path: &Path) -> Vec<String> {
    let mut source = Source::open(path).unwrap();
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    while source.next_line(&mut line, 1 << 20).unwrap() {
        lines.push(String::from_utf8(line.clone()).unwrap().trim_end().to_owned());
    }
    lines
}

fn kvwise(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(arguments)
        .output()
        .unwrap()
}

fn replay(trace: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["replay", trace.to_str().unwrap(), "--engine", "sglang"];
    arguments.extend(more);
    kvwise(&arguments)
}

#[test]
fn events_are_those_of_sglang_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    for (name, policy, page, capacity, running) in [
        ("lru_p1_c60000_r1", "lru", "1", "60000", "1"),
        ("lru_p64_c60032_r1", "lru", "64", "60032", "1"),
        ("slru_p1_c60000_r1", "slru", "1", "60000", "1"),
        ("priority_p1_c120000_r4", "priority", "1", "120000", "4"),
    ] {
        let events = folder.path().join(name);
        let output = replay(
            &data("trace.jsonl.zst"),
            &[
                "--hash-block",
                "64",
                "--policy",
                policy,
                "--page",
                page,
                "--capacity",
                capacity,
                "--running",
                running,
                "--format",
                "json",
                "--events",
                events.to_str().unwrap(),
            ],
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (ours, theirs) = (lines(&events), lines(&data(&format!("{name}.jsonl.zst"))));
        assert_eq!(ours.len(), theirs.len());
        for (at, (own, their)) in ours.iter().zip(&theirs).enumerate() {
            // which of its cores the reference took is no event
            let their = their.replace("\"impl\": \"rust\", ", "");
            assert_eq!(*own, their, "{name}, line {}", at + 1);
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["schema"], "kvwise.replay/1");
        assert_eq!(report["requests"], 600);
    }
}

#[test]
fn every_policy_page_size_and_number_running_gives_sglangs_events() {
    let folder = tempfile::tempdir().unwrap();
    for line in lines(&data("small.jsonl.zst")) {
        let job: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| job[name].as_str().unwrap().to_owned();
        let list = |name: &str| -> Vec<String> {
            job[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| l.as_str().unwrap().to_owned())
                .collect()
        };
        let (trace, events) = (
            folder.path().join("trace.jsonl"),
            folder.path().join("events.jsonl"),
        );
        std::fs::write(&trace, list("requests").join("\n")).unwrap();
        let output = replay(
            &trace,
            &[
                "--policy",
                &text("policy"),
                "--policy-config",
                &text("config"),
                "--page",
                &job["page"].to_string(),
                "--capacity",
                &job["capacity"].to_string(),
                "--running",
                &job["running"].to_string(),
                "--events",
                events.to_str().unwrap(),
            ],
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let ours = lines(&events);
        for (at, (own, their)) in ours.iter().zip(list("events")).enumerate() {
            assert_eq!(
                *own,
                their,
                "{} of page {}, line {}",
                job["policy"],
                job["page"],
                at + 1
            );
        }
        assert_eq!(ours.len(), list("events").len());
    }
}

#[test]
fn bad_flags_and_traces_are_refused_with_a_sentence_and_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = file(
        "good.jsonl",
        "{\"id\": 1, \"tokens\": [1, 2, 3], \"output_length\": 2}\n",
    );
    let empty = file("empty.jsonl", "");
    let odd = file("odd.jsonl", "{\"id\": 1, \"tokens\": [1, 2\n");
    let events = folder.path().join("events.jsonl");
    for (trace, flags, word) in [
        (&good, &[][..], "--capacity"),
        (&good, &["--capacity", "10", "--page", "4"], "multiple"),
        (&good, &["--capacity", "0"], "capacity"),
        (&good, &["--capacity", "10", "--page", "0"], "page"),
        (&good, &["--capacity", "10", "--running", "0"], "running"),
        (&good, &["--capacity", "99999999999999"], "2^31"),
        (&good, &["--capacity", "10", "--policy", "arc"], "arc"),
        (&good, &["--capacity", "10", "--policy-config", "{\"x\": 1}"], "x"),
        (&empty, &["--capacity", "10"], "empty"),
        (&odd, &["--capacity", "10"], "line 1"),
    ] {
        let mut flags = flags.to_vec();
        flags.extend(["--events", events.to_str().unwrap()]);
        let output = replay(trace, &flags);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(
            said.contains(word) && !said.contains("panicked"),
            "{flags:?}: {said}"
        );
        assert!(!events.exists(), "{flags:?} left a file of events");
    }
}

#[test]
fn a_request_that_never_fits_is_refused_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("t.jsonl");
    std::fs::write(
        &trace,
        "{\"id\": \"long\", \"tokens\": [1, 2, 3, 4, 5, 6, 7, 8, 9], \"output_length\": 1}\n\
         {\"id\": \"short\", \"tokens\": [1, 2], \"output_length\": 1}\n",
    )
    .unwrap();
    let events = folder.path().join("e.jsonl");
    let output = replay(&trace, &["--capacity", "8", "--events", events.to_str().unwrap()]);
    assert!(output.status.success());
    let lines = lines(&events);
    assert_eq!(lines[0], "{\"id\": \"long\", \"refused\": true}");
    assert!(
        lines[1].starts_with("{\"id\": \"short\", \"input\": 2, \"matched\": 0"),
        "{}",
        lines[1]
    );
}
