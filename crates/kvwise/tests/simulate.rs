//! `kvwise simulate` and `kvwise sweep` as a user meets them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn kvwise(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(arguments)
        .env_remove("KVWISE_FORMAT")
        .output()
        .expect("kvwise starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn json(arguments: &[&str]) -> Value {
    let output = kvwise(arguments);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", text(&output.stderr)))
}

const LLAMA: [&str; 11] = [
    "simulate",
    "--model",
    "llama-3.1-8b",
    "--gpu",
    "h100",
    "--input-len",
    "512",
    "--output-len",
    "64",
    "--format",
    "json",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    LLAMA.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn a_simulation_for_people() {
    let output = kvwise(&[
        "simulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--input-len",
        "512",
        "--output-len",
        "64",
        "--concurrency",
        "8",
        "--roofline",
        "--format",
        "table",
    ]);
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!("simulation", text(&output.stdout));
}

#[test]
fn the_promised_fields_are_there_and_times_lie_inside_their_range() {
    let answer = json(&with(&["--concurrency", "8"]));
    assert_eq!(answer["schema"], "kvwise.simulation/1");
    for time in ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"] {
        for field in ["mean", "p50", "p90", "p99"] {
            assert!(answer[time][field].as_f64().unwrap() > 0.0, "{time}.{field}");
        }
    }
    for field in ["output_tokens_per_s", "requests_per_s", "goodput_requests_per_s"] {
        assert!(answer[field].as_f64().unwrap() > 0.0, "{field}");
    }
    for field in [
        "prefix_hit_rate_tokens",
        "preemptions",
        "seed",
        "version",
        "inputs_hash",
        "series",
        "worst",
    ] {
        assert!(!answer[field].is_null(), "{field}");
    }
    assert!(answer["kv_usage"]["mean"].as_f64() <= answer["kv_usage"]["peak"].as_f64());
    let mean = answer["tpot_ms"]["mean"].as_f64().unwrap();
    let range = &answer["tpot_mean_interval_ms"];
    assert!(range["low"].as_f64().unwrap() < mean && mean < range["high"].as_f64().unwrap());
}

#[test]
fn every_engine_and_arrangement_answers() {
    for more in [
        &["--concurrency", "8", "--engine", "sglang"][..],
        &[
            "--concurrency",
            "8",
            "--replicas",
            "2",
            "--routing",
            "prefix-aware",
        ],
        &["--concurrency", "8", "--dp", "2"],
        &["--concurrency", "8", "--pp", "2"],
        &[
            "--concurrency",
            "4",
            "--turns",
            "3",
            "--think-time",
            "0.5",
            "--requests",
            "8",
        ],
        &["--rate", "20", "--requests", "40", "--burstiness", "0.3"],
        &["--rate", "20", "--requests", "40", "--seeds", "3"],
    ] {
        let answer = json(&with(more));
        assert_eq!(answer["finished"], answer["requests"], "{more:?}");
        assert!(answer["output_tokens_per_s"].as_f64().unwrap() > 0.0, "{more:?}");
    }
    let spread = json(&with(&["--rate", "20", "--requests", "40", "--seeds", "3"]));
    assert_eq!(spread["seeds"]["seeds"], 3);
    assert!(spread["seeds"]["ttft_p99_ms"]["half_width_95"].as_f64().unwrap() > 0.0);
}

#[test]
fn experts_over_data_parallel_ranks_and_states_are_simulated() {
    for more in [
        &[
            "deepseek-ai/DeepSeek-R1",
            "--gpu",
            "h200",
            "--dp",
            "8",
            "--enable-expert-parallel",
        ][..],
        &[
            "Qwen/Qwen3.5-397B-A17B",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--quantization",
            "fp8",
            "--no-enable-prefix-caching",
        ],
        &[
            "openai/gpt-oss-120b",
            "--gpu",
            "b200",
            "--tp",
            "2",
            "--engine",
            "sglang",
        ],
    ] {
        let mut arguments = vec![
            "simulate",
            "--format",
            "json",
            "--input-len",
            "512",
            "--output-len",
            "32",
            "--concurrency",
            "16",
            "--max-model-len",
            "4096",
            "--model",
        ];
        arguments.extend(more);
        let answer = json(&arguments);
        assert_eq!(answer["finished"], 160, "{more:?}");
    }
}

#[test]
fn a_faster_gpu_a_smaller_cache_type_and_accepted_drafts_never_cost_throughput() {
    let rate = |more: &[&str]| json(&with(more))["output_tokens_per_s"].as_f64().unwrap();
    let plain = rate(&["--concurrency", "16"]);
    assert!(rate(&["--concurrency", "16", "--kv-cache-dtype", "fp8"]) > 0.98 * plain);
    let mtp = r#"{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4}"#;
    assert!(
        rate(&[
            "--concurrency",
            "16",
            "--speculative-config",
            mtp,
            "--acceptance-rate",
            "0.8"
        ]) > 1.5 * plain
    );
}

#[test]
fn questions_without_an_answer_name_the_flag() {
    for (more, words) in [
        (&["--concurrency", "0"][..], "--concurrency"),
        (&["--rate", "0"], "--rate"),
        (&["--rate", "1", "--concurrency", "2"], "--rate"),
        (&[], "--concurrency"),
        (&["--rate", "1", "--slo-ttft-ms", "-3"], "--slo-ttft-ms"),
        (&["--rate", "1", "--seeds", "0"], "--seeds"),
        (&["--concurrency", "1", "--replicas", "0"], "--replicas"),
        (
            &["--concurrency", "1", "--acceptance-rate", "0.5"],
            "--acceptance-rate",
        ),
        (&["--concurrency", "1", "--turns", "0"], "--turns"),
        (&["--find-rate"], "--find-rate"),
        (
            &["--find-rate", "--rate", "1", "--slo-ttft-ms", "100"],
            "--find-rate",
        ),
        (
            &["--concurrency", "1", "--compare", "kv-cache-dtyp=fp8"],
            "kv-cache-dtype",
        ),
    ] {
        let output = kvwise(&with(more));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {error}");
        assert!(error.contains(words), "{more:?}: {error}");
        assert!(output.stdout.is_empty(), "{more:?}");
    }
}

#[test]
fn the_highest_rate_meets_the_objective_and_a_little_more_does_not() {
    let found = json(&with(&[
        "--requests",
        "60",
        "--find-rate",
        "--slo-ttft-ms",
        "400",
    ]));
    let rate = found["rate_per_s"].as_f64().unwrap();
    let p99 = |rate: f64| {
        let rate = rate.to_string();
        json(&with(&["--requests", "60", "--rate", &rate]))["ttft_ms"]["p99"]
            .as_f64()
            .unwrap()
    };
    assert!(p99(rate) <= 400.0, "{rate}");
    assert!(p99(rate * 1.05) > 400.0, "{rate}");
    // What nothing reaches is a no, with what would be reached.
    let output = kvwise(&with(&["--requests", "20", "--find-rate", "--slo-ttft-ms", "1"]));
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["rate_per_s"].is_null() && answer["alone"]["ttft_p99_ms"].as_f64().unwrap() > 1.0);
}

fn sweep(more: &[&str]) -> Output {
    let mut arguments = vec![
        "sweep",
        "--model",
        "llama-3.1-8b",
        "--input-len",
        "256",
        "--output-len",
        "32",
        "--vary",
        "gpu=h100,l40s",
        "--concurrency",
        "1,8",
    ];
    arguments.extend(more);
    kvwise(&arguments)
}

#[test]
fn a_sweep_for_people_and_for_spreadsheets() {
    let table = sweep(&["--format", "table", "--slo-tpot-ms", "10"]);
    assert_eq!(table.status.code(), Some(0), "{}", text(&table.stderr));
    insta::assert_snapshot!("sweep", text(&table.stdout));
    let csv = text(&sweep(&["--format", "csv"]).stdout);
    assert_eq!(csv.lines().count(), 5);
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    assert!(csv.lines().all(|l| l.split(',').count() == header.len()), "{csv}");
}

#[test]
fn a_sweep_goes_on_where_it_stopped_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let file = results.to_str().unwrap();
    let whole = sweep(&["--format", "json", "--results", file]);
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(lines(&results), 4);
    // The last result was cut off in the middle, as by a loss of power.
    let full = std::fs::read_to_string(&results).unwrap();
    std::fs::write(&results, &full[..full.len() - 40]).unwrap();
    let again = sweep(&["--format", "json", "--results", file]);
    assert_eq!(text(&whole.stdout), text(&again.stdout));
    assert_eq!(again.status.code(), Some(0));
    let third = sweep(&["--format", "json", "--results", file]);
    assert_eq!(text(&whole.stdout), text(&third.stdout));
    // What is no result is not written over.
    std::fs::write(&results, "not a result\n{}\n").unwrap();
    let refused = sweep(&["--format", "json", "--results", file]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("line 1"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn a_sweep_whose_points_all_miss_says_which_comes_nearest() {
    let output = sweep(&["--format", "json", "--slo-ttft-ms", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["best"].is_null());
    let nearest = usize::try_from(answer["nearest"].as_u64().unwrap()).unwrap();
    let ttft = |i: usize| answer["points"][i]["ttft_ms"]["p99"].as_f64().unwrap();
    assert!((0..4).all(|i| ttft(nearest) <= ttft(i)));
}

#[test]
fn pictures_and_pages_need_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (svg, page, report) = (path("a.svg"), path("sweep.html"), path("simulation.html"));
    let output = sweep(&["--format", "json", "--svg", &svg, "--html", &page]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        kvwise(&with(&["--concurrency", "4", "--html", &report]))
            .status
            .success()
    );
    assert!(std::fs::read_to_string(svg).unwrap().contains("<svg"));
    for file in [page, report] {
        let html = std::fs::read_to_string(file).unwrap();
        assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
        for loading in ["<link", "src=\"http", "@import", "fetch("] {
            assert!(!html.contains(loading), "{loading}");
        }
    }
}
