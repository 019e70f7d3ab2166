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
fn a_sweep_that_was_killed_goes_on_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let file = results.to_str().unwrap();
    let asked = |results: &[&str]| {
        let mut arguments = vec![
            "sweep",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "--format",
            "json",
        ];
        arguments.extend(["--input-len", "256", "--output-len", "64", "--requests", "400"]);
        arguments.extend(["--concurrency", "1,2,3,4,5,6,7,8,9,10,11,12"]);
        arguments.extend(results);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
        command.args(arguments);
        command
    };
    let lines = || std::fs::read_to_string(&results).map_or(0, |t| t.lines().count());
    let mut child = asked(&["--results", file])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Killed as soon as there is something to go on from; a machine that was faster than this has nothing left to do, and
    // the answers must be the same all the more.
    while lines() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = lines();
    assert!(before >= 1, "the first result was written before the kill");
    let resumed = asked(&["--results", file]).output().unwrap();
    let whole = asked(&[]).output().unwrap();
    assert_eq!(text(&resumed.stdout), text(&whole.stdout));
    assert_eq!(resumed.status.code(), Some(0));
    assert_eq!(lines(), 12);
}

#[test]
fn a_sweep_becomes_a_page_by_its_format_or_its_files_name() {
    let page = text(&sweep(&["--format", "html"]).stdout);
    assert!(
        page.starts_with("<!doctype html>") && page.contains("<svg"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.html");
    assert!(sweep(&["-o", file.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), page);
    // Builds without Parquet say so and leave no file; no build writes it to the standard output.
    let table = folder.path().join("sweep.parquet");
    let output = sweep(&["-o", table.to_str().unwrap()]);
    if cfg!(feature = "parquet") {
        assert_eq!(&std::fs::read(&table).unwrap()[..4], b"PAR1");
    } else {
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains("does not write Parquet"),
            "{}",
            text(&output.stderr)
        );
        assert!(!table.exists());
    }
    assert_eq!(sweep(&["--format", "parquet"]).status.code(), Some(2));
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

const APART: [&str; 15] = [
    "simulate",
    "--model",
    "llama-3.1-8b",
    "--gpu",
    "h100",
    "--input-len",
    "2000",
    "--output-len",
    "50",
    "--rate",
    "8",
    "--requests",
    "40",
    "--disaggregate",
    "prefill=2,decode=1",
];

#[test]
fn prefill_and_decode_apart_for_people() {
    let output = kvwise(&[&APART[..], &["--format", "table"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    insta::assert_snapshot!("apart", text(&output.stdout));
}

#[test]
fn prefill_and_decode_apart_move_each_prompt_once_and_a_slow_link_shows() {
    let fast = json(&[&APART[..], &["--format", "json"]].concat());
    let slow = json(&[&APART[..], &["--format", "json", "--transfer-bandwidth", "1GB/s"]].concat());
    let d = &fast["disaggregation"];
    assert_eq!(
        (d["prefill_gpus"].as_u64(), d["decode_gpus"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(fast["gpus"].as_u64(), Some(3));
    // 40 prompts of 125 blocks of 2 MiB.
    assert_eq!(d["blocks"].as_u64(), Some(40 * 125));
    assert_eq!(d["bytes"].as_u64(), Some(40 * 125 * (2 << 20)));
    let handed = |a: &Value| a["disaggregation"]["transfer_ms"]["p50"].as_f64().unwrap();
    assert!(
        handed(&slow) > handed(&fast) + 200.0,
        "{} {}",
        handed(&slow),
        handed(&fast)
    );
    assert_ne!(fast["inputs_hash"], slow["inputs_hash"]);
}

#[test]
fn tiers_find_what_a_small_pool_lost() {
    let sessions = [
        "simulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--input-len",
        "500",
        "--output-len",
        "50",
        "--concurrency",
        "8",
        "--turns",
        "5",
        "--think-time",
        "5",
        "--requests",
        "16",
        "--max-model-len",
        "4096",
        "--kv-cache-memory-bytes",
        "1GiB",
        "--format",
        "json",
    ];
    let without = json(&sessions);
    let with = json(&[&sessions[..], &["--tiers", "host=2GiB,disk=50GiB"]].concat());
    assert!(without.get("tiers").is_none());
    let found = |i: usize| with["tiers"][i]["hit_tokens"].as_u64().unwrap();
    assert!(found(0) > 0 && found(1) > 0, "{}", with["tiers"]);
    assert!(with["ttft_ms"]["mean"].as_f64() < without["ttft_ms"]["mean"].as_f64());
}

#[test]
fn what_cannot_be_apart_or_behind_the_pool_is_refused_in_one_sentence() {
    for (more, word) in [
        (&["--disaggregate", "prefill=2"][..], "both sides"),
        (
            &["--disaggregate", "prefill=1,decode=1", "--replicas", "2"],
            "--replicas",
        ),
        (
            &["--disaggregate", "prefill=1,decode=1", "--engine", "sglang"],
            "vLLM only",
        ),
        (
            &[
                "--disaggregate",
                "prefill=1,decode=1",
                "--decode-flags",
                "kv-cache-dtype=fp8",
            ],
            "blocks cannot move",
        ),
        (
            &["--disaggregate", "prefill=1,decode=1", "--prefill-flags", "tpp=2"],
            "tpp",
        ),
        (
            &["--disaggregate", "prefill=1,decode=1", "--tiers", "host=5GiB"],
            "--tiers",
        ),
        (&["--tiers", "gpu=50GiB"], "gpu"),
        (&["--tiers", "attic=50GiB"], "attic"),
        (&["--tiers", "host=1GiB,host=2GiB"], "twice"),
        (
            &["--tiers", "host=50GiB", "--no-enable-prefix-caching"],
            "prefix caching",
        ),
        (
            &["--tiers", "host=50GiB", "--tier-bandwidth", "disk=4GB/s"],
            "--tier-bandwidth",
        ),
        (&["--tiers", "host=50GiB", "--engine", "sglang"], "vLLM only"),
    ] {
        let output = kvwise(&with(&[&["--concurrency", "2"], more].concat()));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains(word), "{more:?}: {said}");
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
