//! `kvwise simulate` and `kvwise sweep` as a user meets them.

mod apart;
mod bad_input;
mod refused;
mod sweep;

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

/// `kvwise sweep` of two GPUs at two concurrencies.
fn swept(more: &[&str]) -> Output {
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

#[test]
fn described_traffic_can_use_adapters() {
    let run = |more: &[&str]| {
        let mut arguments = vec![
            "simulate",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "--format",
            "json",
        ];
        arguments.extend(["--input-len", "256", "--output-len", "32", "--concurrency", "16"]);
        arguments.extend(more);
        let output = kvwise(&arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let shares = [
        "--lora-shares",
        "a=0.4,b=0.3,c=0.3",
        "--enable-lora",
        "--max-loras",
    ];
    let one = run(&[&shares[..], &["1"]].concat());
    let three = run(&[&shares[..], &["3"]].concat());
    let waited = |v: &Value| v["ttft_ms"]["mean"].as_f64().unwrap();
    // With room for one adapter at a time, requests of the others wait.
    assert!(
        waited(&one) > 2.0 * waited(&three),
        "{} {}",
        waited(&one),
        waited(&three)
    );
    assert_ne!(one["inputs_hash"], three["inputs_hash"]);
    let output = kvwise(&[
        "simulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--input-len",
        "9",
        "--output-len",
        "9",
        "--rate",
        "1",
        "--lora-shares",
        "a=2",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--lora-shares"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn pictures_and_pages_need_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (svg, page, report) = (path("a.svg"), path("sweep.html"), path("simulation.html"));
    let output = swept(&["--format", "json", "--svg", &svg, "--html", &page]);
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

#[test]
fn formats_that_the_checkpoint_does_not_have_are_simulated_with_a_warning() {
    let of = |model: &str, format: &str, engine: &str| {
        let output = kvwise(&[
            "simulate",
            "--model",
            model,
            "--gpu",
            "b200",
            "--tp",
            "8",
            "--quantization",
            format,
            "--engine",
            engine,
            "--input-len",
            "128",
            "--output-len",
            "8",
            "--concurrency",
            "2",
            "--max-num-seqs",
            "2",
            "--max-num-batched-tokens",
            "8192",
            "--gpu-memory-utilization",
            "0.85",
            "--format",
            "json",
        ]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{model} {format} {engine}: {said}");
        (
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["tpot_ms"]["mean"]
                .as_f64()
                .unwrap()
                .to_bits(),
            said,
        )
    };
    for engine in ["vllm", "sglang"] {
        let (four_bit, said) = of("deepseek-ai/DeepSeek-R1", "fp4", engine);
        assert!(
            said.contains("as if there were one of the same model in nvfp4"),
            "{said}"
        );
        assert_ne!(four_bit, of("deepseek-ai/DeepSeek-R1", "fp8", engine).0);
        // The four-bit floats that a checkpoint has are meant by "fp4".
        assert_eq!(
            of("openai/gpt-oss-120b", "fp4", engine).0,
            of("openai/gpt-oss-120b", "mxfp4", engine).0
        );
    }
}

#[test]
fn sglang_s_own_sizes_decide_and_it_starts_where_vllm_would_not() {
    let of = |more: &[&str]| {
        json(
            &[
                &[
                    "simulate",
                    "--model",
                    "openai/gpt-oss-120b",
                    "--gpu",
                    "h100",
                    "--engine",
                    "sglang",
                    "--input-len",
                    "4000",
                    "--output-len",
                    "16",
                    "--concurrency",
                    "4",
                    "--format",
                    "json",
                ],
                more,
            ]
            .concat(),
        )
    };
    // One H100 has less room than one request of the longest length: SGLang cuts requests, vLLM refuses.
    let plain = of(&[]);
    assert!(plain["refused"].is_null(), "{}", plain["refused"]);
    let chunked = of(&["--chunked-prefill-size", "1024"]);
    assert!(chunked["steps"].as_u64() > plain["steps"].as_u64());
    assert_eq!(
        chunked["steps"],
        of(&["--max-num-batched-tokens", "1024"])["steps"]
    );
    let one = of(&["--max-running-requests", "1"]);
    assert!(one["queue_ms"]["p90"].as_f64() > plain["queue_ms"]["p90"].as_f64());
}

/// Points of `data/measurements/served_points.csv` whose servers had no room for all clients, with the cache type that
/// explains them (no flag was published): bfloat16 on H100, FP8 on H200.
#[test]
fn servers_without_room_for_all_clients_come_out_as_measured() {
    for (gpu, tp, cache, input, output, clients, ttft_ms, tpot_ms) in [
        ("h100", "2", "auto", "8192", "1024", "32", 6518.3, 52.37),
        ("h100", "2", "auto", "1024", "8192", "64", 30787.1, 41.68),
        ("h200", "1", "fp8", "1024", "8192", "64", 5322.9, 46.27),
        ("h200", "1", "fp8", "8192", "1024", "64", 39807.1, 107.14),
    ] {
        let longest = (input.parse::<u32>().unwrap() + output.parse::<u32>().unwrap() + 256).to_string();
        let answer = json(&[
            "simulate",
            "--model",
            "meta-llama/Llama-3.1-70B",
            "--quantization",
            "fp8",
            "--gpu",
            gpu,
            "--tp",
            tp,
            "--kv-cache-dtype",
            cache,
            "--input-len",
            input,
            "--output-len",
            output,
            "--length-ratio",
            "0.8",
            "--concurrency",
            clients,
            "--max-num-seqs",
            clients,
            "--max-num-batched-tokens",
            "8192",
            "--gpu-memory-utilization",
            "0.9",
            "--no-enable-prefix-caching",
            "--max-model-len",
            &longest,
            "--format",
            "json",
        ]);
        let off = |time: &str, measured: f64| (answer[time]["mean"].as_f64().unwrap() / measured - 1.0).abs();
        assert!(
            off("ttft_ms", ttft_ms) < 0.2,
            "{gpu} {input}/{output}: {}",
            answer["ttft_ms"]
        );
        assert!(
            off("tpot_ms", tpot_ms) < 0.08,
            "{gpu} {input}/{output}: {}",
            answer["tpot_ms"]
        );
        assert!(answer["preemptions"].as_u64() > Some(0));
    }
}
