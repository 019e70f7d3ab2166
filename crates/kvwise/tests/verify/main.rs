//! `kvwise verify` and `kvwise config` from the outside, on the logs in `tests/data/verify`.

mod others;
mod published;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn data(name: &str) -> String {
    let path = Path::new("tests/data/verify").join(name);
    assert!(path.exists(), "{}", path.display());
    path.display().to_string()
}

/// Runs the program with settings in `folder`.
fn kvwise(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(args)
        .env_remove("KVWISE_FORMAT")
        .env_remove("KVWISE_GPU")
        .env("KVWISE_CONFIG_DIR", folder)
        .env("HF_HUB_OFFLINE", "1")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!(
            "not JSON ({e}): {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn verify(folder: &Path, args: &[&str]) -> (Value, i32) {
    let mut words = vec!["verify"];
    words.extend_from_slice(args);
    let output = kvwise(folder, &words);
    let status = output.status.code().unwrap();
    assert!(
        status < 2,
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (json(&output), status)
}

fn row<'a>(answer: &'a Value, name: &str) -> &'a Value {
    answer["terms"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {answer:#}"))
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = kvwise(folder, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// vLLM 0.32.0 itself, with the cache given: nothing is estimated, so everything must be equal.
#[test]
fn every_kv_figure_of_a_real_server_is_equal() {
    let folder = folder();
    for (log, model, tokens, concurrency) in [
        ("default.log", "tiny-llama.json", 1_048_576, 512.0),
        ("gemma.log", "tiny-gemma.json", 500_812, 244.54),
        ("override.log", "tiny-llama.json", 2080, 1.02),
        ("bytes.log", "tiny-llama.json", 102_400, 50.0),
        ("fp8.log", "tiny-llama.json", 2_097_152, 1024.0),
    ] {
        let (answer, status) = verify(folder.path(), &[&data(model), "--log", &data(log)]);
        assert_eq!(status, 0, "{log}: {answer:#}");
        assert_eq!(answer["schema"], "kvwise.verification/1");
        let row_of = |name| row(&answer, name);
        assert_eq!(row_of("kv_tokens")["predicted"], tokens, "{log}");
        assert_eq!(row_of("kv_tokens")["status"], "equal", "{log}");
        assert_eq!(row_of("max_concurrency")["actual"], concurrency, "{log}");
        assert_eq!(row_of("max_concurrency")["status"], "equal", "{log}");
        assert_eq!(row_of("available_kv")["status"], "equal", "{log}");
        assert_eq!(row_of("max_model_len")["status"], "equal", "{log}");
        assert_eq!(answer["agrees"], true);
    }
}

/// Without a given size, vLLM takes its process's size off: the tokens of the logged memory are still exact.
#[test]
fn a_measured_cache_is_inside_of_its_interval_and_exact_for_the_logged_memory() {
    let folder = folder();
    let (answer, status) = verify(
        folder.path(),
        &[&data("tiny-llama.json"), "--log", &data("auto.log")],
    );
    assert_eq!(status, 0, "{answer:#}");
    assert_eq!(row(&answer, "available_kv")["status"], "inside");
    assert_eq!(row(&answer, "budget")["status"], "equal");
    assert_eq!(row(&answer, "kv_tokens_of_logged_memory")["status"], "equal");
    assert_eq!(row(&answer, "kv_tokens_of_logged_memory")["actual"], 6_449_664);
}

#[test]
fn a_refusal_is_planned_with_the_same_estimated_length() {
    let folder = folder();
    let (answer, status) = verify(
        folder.path(),
        &[&data("tiny-llama.json"), "--log", &data("refused.log")],
    );
    assert_eq!(status, 0, "{answer:#}");
    assert_eq!(answer["refusal"]["agrees"], true);
    assert_eq!(row(&answer, "estimated_max_model_len")["predicted"], 928);
    assert_eq!(row(&answer, "estimated_max_model_len")["status"], "equal");
    assert!(
        answer["refusal"]["predicted"]
            .as_str()
            .unwrap()
            .contains("estimated maximum model length is 928")
    );
}

#[test]
fn a_log_for_people_names_what_was_found_and_how_it_compares() {
    let folder = folder();
    let output = kvwise(
        folder.path(),
        &["verify", "--log", &data("a100.log"), "--format", "table"],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    insta::assert_snapshot!(format!("status {}\n{text}", output.status.code().unwrap()));
}

#[test]
fn memory_of_other_processes_is_the_cause_and_no_mistake_of_the_plan() {
    let folder = folder();
    let (answer, status) = verify(folder.path(), &["--log", &data("free.log")]);
    assert_eq!(status, 0, "{answer:#}");
    assert_eq!(answer["refusal"]["actual"]["kind"], "free_memory");
    assert_eq!(answer["refusal"]["agrees"], Value::Null);
    let comment = answer["refusal"]["comment"].as_str().unwrap();
    assert!(
        comment.contains("15.94 GiB of 47.38 GiB were in use"),
        "{comment}"
    );
    assert!(comment.contains("--gpu-memory-utilization 0.66"), "{comment}");
}

#[test]
fn flags_win_over_the_log_and_a_wrong_one_is_found_out() {
    let folder = folder();
    let (answer, status) = verify(
        folder.path(),
        &["--log", &data("a100.log"), "--kv-cache-dtype", "fp8"],
    );
    assert_eq!(status, 1);
    let tokens = row(&answer, "kv_tokens_of_logged_memory");
    assert_eq!(tokens["status"], "differs");
    assert!(answer["deployment"]["from_log"].get("kv_cache_dtype").is_none());
    assert!(answer["deployment"]["from_log"].get("model").is_some());
    let causes = answer["causes"].to_string();
    assert!(
        causes.contains("a 16-bit KV cache was planned as 8 bits"),
        "{causes}"
    );
}

#[test]
fn the_other_formats_have_one_row_a_figure() {
    let folder = folder();
    for (format, begins, separator) in [
        ("csv", "name,unit,predicted,", "weights,bytes,"),
        ("markdown", "**", "| weights |"),
    ] {
        let output = kvwise(
            folder.path(),
            &["verify", "--log", &data("a100.log"), "--format", format],
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(begins) && text.contains(separator), "{text}");
    }
}

#[test]
fn what_cannot_be_compared_is_an_error_with_one_sentence() {
    let folder = folder();
    let nothing = folder.path().join("nothing.log");
    fs::write(&nothing, "hello\n").unwrap();
    let nothing = nothing.display().to_string();
    let cut = folder.path().join("cut.log");
    fs::write(&cut, "INFO vLLM API server version 0.9.2\n").unwrap();
    let cut = cut.display().to_string();
    let folder = folder.path();
    for (args, says) in [
        (vec!["verify", "--log", &nothing], "none of its 1 lines"),
        (
            vec!["verify", "--log", &cut],
            "no line says what memory was measured",
        ),
        (
            vec!["verify", "--log", "missing.log"],
            "missing.log: no such file",
        ),
        (vec!["verify", "--log", "tests"], "tests: a folder"),
        (
            vec!["verify", "--log", "tests/data/verify/a100.log", "--boot", "7"],
            "--boot is 7",
        ),
        (
            vec!["verify", "--log", "tests/data/verify/a100.log", "--boot", "0"],
            "--boot is 0",
        ),
        (
            vec!["verify", "--log", "tests/data/verify/a100.log", "--gpu", "h10"],
            "the GPU \"h10\"",
        ),
        (
            vec!["verify", "--log", "tests/data/verify/default.log"],
            "/models/tiny-llama",
        ),
        (
            vec![
                "verify",
                "tests/data/verify/tiny-llama.json",
                "--log",
                "tests/data/verify/default.log",
                "--save",
            ],
            "nothing to save",
        ),
    ] {
        let text = error(folder, &args);
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

#[test]
fn a_saved_calibration_is_used_by_later_plans_and_said() {
    let folder = folder();
    let plan = |extra: &[&str]| {
        let mut words = vec![
            "plan",
            "llama-3.1-8b",
            "--gpu",
            "a100-80gb",
            "--engine-version",
            "0.31.0",
        ];
        words.extend_from_slice(extra);
        json(&kvwise(folder.path(), &words))
    };
    let before = plan(&[]);
    assert_eq!(before["inputs"]["site_calibration"], Value::Null);
    let (saved, _) = verify(folder.path(), &["--log", &data("a100.log"), "--save"]);
    assert_eq!(saved["saved"]["id"], 1);
    let after = plan(&[]);
    assert_eq!(after["inputs"]["site_calibration"]["scope"], "deployment");
    assert_eq!(after["inputs"]["site_calibration"]["logs"], 1);
    let bytes = |plan: &Value| plan["kv_cache"]["available_bytes"].as_i64().unwrap();
    // The log says 56.21 GiB of 79.25; the catalogue's card may differ by its rounding.
    let logged = 60_354_028_503_i64;
    assert!((bytes(&after) - logged).abs() < 30 << 20, "{}", bytes(&after));
    assert_ne!(bytes(&before), bytes(&after));
    let formulas = after["memory"]["components"].to_string();
    assert!(formulas.contains("a log of this deployment shows"), "{formulas}");
    assert!(
        after["feasibility"]["warnings"]
            .to_string()
            .contains("site calibration")
    );
    assert_eq!(plan(&["--no-calibration"]), before);
    // Another model of the family is scaled, another release is not touched.
    let other = json(&kvwise(
        folder.path(),
        &[
            "plan",
            "llama-2-7b",
            "--gpu",
            "a100-80gb",
            "--engine-version",
            "0.31.0",
        ],
    ));
    assert_eq!(other["inputs"]["site_calibration"]["scope"], "family");
    let list = json(&kvwise(folder.path(), &["config", "calibration", "list"]));
    assert_eq!(list[0]["site"]["gpu"], "a100-80gb");
    assert_eq!(list[0]["site"]["engine_version"], "0.31");
    let removed = kvwise(folder.path(), &["config", "calibration", "remove", "1"]);
    assert_eq!(removed.status.code(), Some(0));
    assert_eq!(plan(&[]), before);
    assert!(
        error(folder.path(), &["config", "calibration", "remove", "1"])
            .contains("no calibration has the number 1")
    );
}

/// Public logs of the same deployments: one is saved, the others are then predicted within 1 % of the GPU's memory.
#[test]
fn one_log_of_a_deployment_brings_its_others_under_one_percent() {
    let text = fs::read_to_string(data("boots.csv")).unwrap();
    let boots: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split(',').collect()).collect();
    let log = |folder: &Path, boot: &[&str]| -> PathBuf {
        let [
            _,
            model,
            _,
            version,
            tp,
            utilization,
            length,
            batched,
            total,
            load,
            available,
        ] = boot
        else {
            panic!("{boot:?}");
        };
        let engine = if *version == "0.6.4" { "an LLM" } else { "a V1 LLM" };
        let path = folder.join("server.log");
        fs::write(
            &path,
            format!(
                "INFO Initializing {engine} engine (v{version}) with config: model='{model}', tensor_parallel_size={tp}, max_seq_len={length}\n\
                 INFO Chunked prefill is enabled with max_num_batched_tokens={batched}.\n\
                 INFO Model loading took {load} GiB and 5.0 seconds\n\
                 INFO Available KV cache memory: {available} GiB\n\
                 INFO total_gpu_memory ({total}GiB) x gpu_memory_utilization ({utilization}) = 1.00GiB\n"
            )
            .replace(" = 1.00GiB", ""),
        )
        .unwrap();
        path
    };
    let error_percent = |folder: &Path, boot: &[&str], save: bool| {
        let path = log(folder, boot).display().to_string();
        let mut words = vec!["--log", &path, "--gpu", boot[2]];
        if save {
            words.push("--save");
        }
        let (answer, _) = verify(folder, &words);
        row(&answer, "available_kv")["error_of_gpu_percent"]
            .as_f64()
            .unwrap()
    };
    let mut compared = 0;
    for saved in &boots {
        let folder = folder();
        error_percent(folder.path(), saved, true);
        for other in boots.iter().filter(|b| b[0] == saved[0] && *b != saved) {
            let percent = error_percent(folder.path(), other, false);
            assert!(percent.abs() < 1.0, "{saved:?} -> {other:?}: {percent} %");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 + 2 + 20);
}

#[test]
fn the_reference_lists_every_wording_that_is_looked_for() {
    let page = fs::read_to_string("../../docs/src/reference/log-lines.md").unwrap();
    for wording in kvwise_io::log::vllm::WORDINGS.iter().copied().flatten() {
        let row = format!("| `{}` | {} |", wording.phrase.trim(), wording.source);
        assert!(
            page.contains(&row),
            "docs/src/reference/log-lines.md lacks: {row}"
        );
    }
}
