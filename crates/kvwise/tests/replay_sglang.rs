//! `kvwise replay --engine sglang` line by line against what SGLang 0.5.23's own code did (see
//! `data/sglang/SOURCES.md`), and its manners with bad input.

#[path = "../../sim/tests/asking/mod.rs"]
mod asking;
#[path = "../../sim/tests/golden/mod.rs"]
mod golden;
mod random;
mod replay_sglang_cases;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use asking::Script;
use kvwise_io::trace::Source;
use serde_json::Value;

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
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["schema"], "kvwise.replay/1");
        assert_eq!(report["requests"], 600);
    }
}

#[test]
fn every_policy_page_size_and_number_running_gives_sglangs_events() {
    let folder = tempfile::tempdir().unwrap();
    for line in lines(&data("small.jsonl.zst")) {
        let job: Value = serde_json::from_str(&line).unwrap();
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
        (
            &good,
            &["--capacity", "90", "--scheduler", "batch", "--running", "2"],
            "--running",
        ),
        (
            &good,
            &[
                "--capacity",
                "90",
                "--scheduler",
                "one-by-one",
                "--enable-mixed-chunk",
            ],
            "--enable-mixed-chunk",
        ),
        (
            &good,
            &["--capacity", "90", "--chunked-prefill-size", "0"],
            "--chunked-prefill-size is 0",
        ),
        (
            &good,
            &[
                "--capacity",
                "90",
                "--schedule-policy",
                "lpm",
                "--enable-priority-scheduling",
            ],
            "--schedule-policy is lpm",
        ),
        (
            &good,
            &["--capacity", "90", "--schedule-policy", "random"],
            "random",
        ),
        (
            &good,
            &["--capacity", "90", "--retraction-policy", "priority"],
            "--enable-priority-scheduling",
        ),
        (
            &good,
            &["--capacity", "90", "--schedule-conservativeness", "0"],
            "--schedule-conservativeness is 0",
        ),
        (
            &good,
            &["--capacity", "90", "--page", "4", "--scheduler", "batch"],
            "multiple",
        ),
        (
            &good,
            &["--capacity", "90", "--max-running-requests", "0"],
            "--max-running-requests is 0",
        ),
        (&good, &["--capacity", "90", "--clock", "step"], "--clock"),
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

#[test]
fn a_request_whose_output_never_fits_is_aborted_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, events) = (folder.path().join("t.jsonl"), folder.path().join("e.jsonl"));
    std::fs::write(
        &trace,
        "{\"id\": \"a\", \"tokens\": [1, 2, 3, 4, 5, 6, 7, 8, 9], \"output_length\": 6000}\n\
         {\"id\": \"b\", \"tokens\": [1, 2, 3, 4, 5, 7], \"output_length\": 20, \"cache_salt\": \"x\"}\n",
    )
    .unwrap();
    let flags = ["--capacity", "5000", "--running", "2", "--policy", "slru"];
    let output = replay(
        &trace,
        &[&flags[..], &["--events", events.to_str().unwrap()]].concat(),
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // As the reference script driving SGLang 0.5.23's own code answers.
    assert_eq!(
        lines(&events),
        [
            r#"{"id": "a", "input": 9, "matched": 0, "new": 9, "evicted": [], "slots": [], "free": 4991, "evictable": 0, "protected": 9}"#,
            r#"{"id": "b", "input": 6, "matched": 0, "new": 6, "evicted": [], "slots": [], "free": 4985, "evictable": 0, "protected": 15}"#,
            r#"{"id": "b", "retracted": true}"#,
            r#"{"id": "a", "aborted": true}"#,
            r#"{"id": "b", "input": 6, "matched": 0, "new": 6, "evicted": [], "slots": [], "free": 4985, "evictable": 9, "protected": 6, "again": true}"#,
            r#"{"summary": {"requests": 2, "refused": 0, "input": 15, "matched": 0, "evicted": 0, "evicted_nodes": 0, "policy": "slru", "page": 1, "capacity": 5000, "retracted": 1, "aborted": 1}}"#,
        ]
    );
}

/// What `kvwise replay` makes of a case, as lines.
fn events_of(case: &Value, folder: &Path) -> Vec<String> {
    let (trace, events) = (folder.join("trace.jsonl"), folder.join("events.jsonl"));
    let rows = case["rows"].as_array().unwrap();
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&trace, text.concat()).unwrap();
    let settings = &case["settings"];
    let mut flags = vec![
        "--policy".to_owned(),
        settings["policy"].as_str().unwrap().to_owned(),
    ];
    for (flag, name) in [
        ("--page", "page"),
        ("--capacity", "capacity"),
        ("--running", "running"),
        ("--hash-block", "hash_block"),
        ("--max-context", "max_context"),
    ] {
        flags.extend([flag.to_owned(), settings[name].to_string()]);
    }
    if !settings["policy_config"].is_null() {
        flags.extend([
            "--policy-config".to_owned(),
            settings["policy_config"].to_string(),
        ]);
    }
    flags.extend(["--events".to_owned(), events.to_str().unwrap().to_owned()]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = replay(&trace, &flags);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", case["name"]);
    lines(&events)
}

/// New cases against a real SGLang: set `KVWISE_SGLANG_PYTHON` to a Python that has it (tested with sglang 0.5.23), and
/// `KVWISE_SGLANG_RANDOM` to a number of random cases (`KVWISE_SGLANG_FIRST` to begin with others than case 0). All cases are
/// compared before the test fails.
#[test]
#[expect(clippy::print_stderr, reason = "the counts of an opt-in comparison")]
fn reference_replay_sglang() {
    if std::env::var_os("KVWISE_SGLANG_PYTHON").is_none() {
        return;
    }
    let first = asking::number("KVWISE_SGLANG_FIRST", 0);
    let count = asking::number("KVWISE_SGLANG_RANDOM", 300);
    let folder = tempfile::tempdir().unwrap();
    let mut sglang = Script::start("KVWISE_SGLANG_PYTHON", "sglang_replay.py", &[]);
    let (mut wrong, mut seen) = (Vec::new(), [0_usize; 4]);
    for seed in first..first + count {
        let case = replay_sglang_cases::case(seed);
        let theirs: Vec<String> = serde_json::from_str(&sglang.answer(&case)).unwrap();
        let ours = events_of(&case, folder.path());
        for (count, what) in
            seen.iter_mut()
                .zip(["refused\": true", "retracted\": true", "aborted\": true", "again"])
        {
            *count += theirs.iter().filter(|line| line.contains(what)).count();
        }
        if ours != theirs {
            let at = ours
                .iter()
                .zip(&theirs)
                .take_while(|(own, their)| own == their)
                .count();
            wrong.push(format!(
                "case {seed}, {}, line {}:\n  ours   {:?}\n  theirs {:?}",
                case["settings"],
                at + 1,
                ours.get(at),
                theirs.get(at)
            ));
        }
    }
    sglang.end();
    eprintln!("{count} cases compared; refused, retracted, aborted and admitted again: {seen:?}");
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What `kvwise replay --scheduler batch` makes of a case, as lines.
fn batch_events_of(case: &Value, folder: &Path) -> Result<Vec<String>, String> {
    let (trace, events) = (folder.join("trace.jsonl"), folder.join("events.jsonl"));
    let rows = case["rows"].as_array().unwrap();
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&trace, text.concat()).unwrap();
    let given = case["flags"].as_array().unwrap();
    let mut flags: Vec<&str> = given.iter().map(|flag| flag.as_str().unwrap()).collect();
    flags.extend(["--events", events.to_str().unwrap()]);
    let output = replay(&trace, &flags);
    if output.status.success() {
        Ok(lines(&events))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The settings of a case, without its requests.
fn settings_of(case: &Value) -> String {
    let mut settings = case.as_object().unwrap().clone();
    for long in ["requests", "rows", "flags"] {
        settings.remove(long);
    }
    Value::Object(settings).to_string()
}

/// Cases whose fingerprints are stored.
const STORED_BATCHES: u64 = 120;

fn fingerprints() -> PathBuf {
    data("batches.txt")
}

/// Of event lines.
fn fingerprint(lines: &[String]) -> String {
    let text = lines.iter().flat_map(|line| line.bytes().chain([b'\n']));
    golden::fingerprint(lines.len(), text)
}

#[test]
fn the_schedulers_events_are_those_that_equalled_sglangs_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let stored = std::fs::read_to_string(fingerprints()).unwrap();
    assert_eq!(stored.lines().count() as u64, STORED_BATCHES);
    for (seed, line) in (0..).zip(stored.lines()) {
        let case = replay_sglang_cases::batch_case(seed);
        let ours = batch_events_of(&case, folder.path()).unwrap();
        assert_eq!(
            fingerprint(&ours),
            line,
            "case {seed} differs now: compare with SGLang (reference_replay_sglang_batches), {}",
            settings_of(&case)
        );
    }
}

/// SGLang's scheduler against a real SGLang: as [`reference_replay_sglang`], with `KVWISE_SGLANG_WRITE` to store
/// fingerprints of SGLang's answers to the first cases anew.
#[test]
#[expect(clippy::print_stderr, reason = "the counts of an opt-in comparison")]
fn reference_replay_sglang_batches() {
    if std::env::var_os("KVWISE_SGLANG_PYTHON").is_none() {
        return;
    }
    let first = asking::number("KVWISE_SGLANG_FIRST", 0);
    let count = asking::number("KVWISE_SGLANG_RANDOM", 300);
    let folder = tempfile::tempdir().unwrap();
    let mut sglang = Script::start("KVWISE_SGLANG_PYTHON", "sglang_scheduler.py", &[]);
    let words = [
        "rejected\"",
        "retract\"",
        "preempt\"",
        "evict\"",
        "abort\"",
        "resumed\": true",
    ];
    let (mut wrong, mut seen, mut stored) = (Vec::new(), [0_usize; 6], Vec::new());
    for seed in first..first + count {
        let case = replay_sglang_cases::batch_case(seed);
        let answer = sglang.answer(&case);
        let theirs: Vec<String> = serde_json::from_str(&answer).unwrap();
        for (count, word) in seen.iter_mut().zip(words) {
            *count += theirs.iter().filter(|line| line.contains(word)).count();
        }
        if seed < STORED_BATCHES {
            stored.push(fingerprint(&theirs) + "\n");
        }
        let ours = batch_events_of(&case, folder.path()).unwrap_or_else(|said| vec![said]);
        if ours != theirs {
            let same = ours.iter().zip(&theirs).take_while(|(own, their)| own == their);
            let at = same.count();
            wrong.push(format!(
                "case {seed}, {}, line {} of {}:\n  ours   {:?}\n  theirs {:?}",
                settings_of(&case),
                at + 1,
                theirs.len(),
                ours.get(at),
                theirs.get(at)
            ));
        }
    }
    sglang.end();
    eprintln!("{count} cases compared; lines of {words:?}: {seen:?}");
    if std::env::var_os("KVWISE_SGLANG_WRITE").is_some() {
        std::fs::write(fingerprints(), stored.concat()).unwrap();
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn random_cases_are_the_same_on_every_machine_and_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..6 {
        let case = replay_sglang_cases::case(seed);
        assert_eq!(case, replay_sglang_cases::case(seed));
        let events = events_of(&case, folder.path());
        assert!(events.last().unwrap().contains("summary"), "{case}");
    }
}
