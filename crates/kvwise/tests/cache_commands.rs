//! `kvwise curve`, `tree`, `trace` and `replay` through the binary: what a deployment's cache would gain, and answers that do
//! not depend on the number of threads.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn kvwise(arguments: &[&str], threads: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(arguments)
        .env("RAYON_NUM_THREADS", threads)
        .env_remove("KVWISE_FORMAT")
        .output()
        .unwrap()
}

fn success(arguments: &[&str], threads: &str) -> String {
    let output = kvwise(arguments, threads);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&success(arguments, "2")).unwrap()
}

/// Conversations whose requests repeat the ones before, with a sub-agent in every third file.
fn agentic_folder(folder: &Path) {
    for file in 0..40u32 {
        let request = |turn: u32, t: f64| {
            let ids: Vec<String> = (0..8 + 3 * turn).map(|i| (i + file % 5).to_string()).collect();
            format!(
                r#"{{"t":{t},"type":"n","in":{},"out":{},"hash_ids":[{}]}}"#,
                (8 + 3 * turn) * 64 + file,
                5 + turn,
                ids.join(",")
            )
        };
        let mut requests: Vec<String> = (0..6)
            .map(|turn| request(turn, f64::from(turn) * 2.5 + f64::from(file)))
            .collect();
        if file % 3 == 0 {
            let inner = [request(1, 0.5), request(2, 0.75)].join(",");
            requests.insert(
                2,
                format!(r#"{{"t":3.5,"type":"subagent","requests":[{inner}]}}"#),
            );
        }
        let text = format!(
            r#"{{"id":"c{file}","block_size":64,"hash_id_scope":"local","requests":[{}]}}"#,
            requests.join(",")
        );
        std::fs::write(folder.join(format!("c{file:02}.json")), text).unwrap();
    }
}

#[test]
fn answers_are_the_same_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    agentic_folder(folder.path());
    let path = folder.path().to_str().unwrap();
    for arguments in [
        &["curve", path, "--belady", "--format", "json"][..],
        &[
            "curve",
            path,
            "--semantics",
            "vllm",
            "--capacities",
            "40,60,200",
            "--format",
            "json",
        ],
        &["curve", "--example", "--every-step", "--format", "csv"],
        &["tree", path, "--format", "json"],
        &["trace", "info", path, "--format", "json"],
        &["trace", "convert", path, "--to", "mooncake"],
        &[
            "replay",
            path,
            "--num-blocks",
            "400",
            "--block-size",
            "64",
            "--format",
            "json",
        ],
    ] {
        let one = success(arguments, "1");
        assert!(one.len() > 100, "{arguments:?}: {one}");
        for threads in ["2", "7"] {
            assert_eq!(
                one,
                success(arguments, threads),
                "{arguments:?} with {threads} threads"
            );
        }
    }
}

/// With a stated pool, so that no estimate of overhead decides.
const LLAMA: [&str; 6] = [
    "--model",
    "meta-llama/Llama-3.1-8B",
    "--gpu",
    "h100",
    "--kv-cache-memory-bytes",
    "40GiB",
];

#[test]
fn a_deployment_is_marked_and_what_more_room_would_buy_is_said() {
    let mut arguments = vec![
        "curve",
        "--example",
        "--tiers",
        "host=200GiB,disk=1TiB",
        "--format",
        "json",
    ];
    arguments.extend(LLAMA);
    let report = json(&arguments);
    let own = &report["deployment"];
    assert_eq!(report["kv_bytes_per_token"], 131_072);
    let blocks = own["capacity_blocks"].as_u64().unwrap();
    // the plan's tokens in whole blocks of the trace
    let mut plan = vec!["plan", "--format", "json", LLAMA[1]];
    plan.extend(&LLAMA[2..]);
    let plan = json(&plan);
    assert_eq!(
        blocks,
        plan["kv_cache"]["capacity_tokens"].as_u64().unwrap() / 512
    );
    let buys = own["buys"].as_array().unwrap();
    let names: Vec<&str> = buys.iter().map(|b| b["what"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names[0].starts_with("2x") && names[1].contains("host") && names[2].contains("disk"));
    // 200 GiB of 128 KiB tokens in blocks of 512
    assert_eq!(
        buys[1]["capacity_blocks"].as_u64().unwrap(),
        blocks + (200 << 30) / (131_072 * 512)
    );
    let rates: Vec<f64> = std::iter::once(own)
        .chain(buys)
        .map(|row| row["hit_rate_tokens"].as_f64().unwrap())
        .collect();
    assert!(
        rates[1] >= rates[0] && rates[2] >= rates[1] && rates[3] >= rates[2],
        "{rates:?}"
    );
    assert!((rates[4] - report["ideal"]["hit_rate_tokens"].as_f64().unwrap()).abs() < 1e-12);
    // the GPU's tier is put in front of those that were named
    assert_eq!(report["tiers"][0]["name"], "gpu");
    assert_eq!(report["tiers"][0]["capacity_blocks"], blocks);
}

#[test]
fn two_gpus_share_a_token_and_the_host_keeps_all_of_it() {
    let arguments = |tiers| {
        let mut all = vec![
            "curve",
            "--example",
            "--tp",
            "2",
            "--tiers",
            tiers,
            "--format",
            "json",
        ];
        all.extend(LLAMA);
        json(&all)
    };
    let report = arguments("gpu=10GiB,host=10GiB");
    assert_eq!(report["kv_bytes_per_token"], 65_536);
    let [gpu, host] = [0, 1].map(|t| report["tiers"][t]["capacity_blocks"].as_u64().unwrap());
    assert_eq!(
        gpu,
        2 * host,
        "10 GiB on each of two GPUs, 10 GiB of host memory in all"
    );
}

#[test]
fn what_the_curve_shows_of_a_deployment() {
    let mut arguments = vec![
        "curve",
        "--example",
        "--capacities",
        "100,1000",
        "--tiers",
        "host=200GiB",
        "--format",
        "table",
    ];
    arguments.extend(LLAMA);
    insta::assert_snapshot!("curve_of_a_deployment", success(&arguments, "2"));
}

#[test]
fn a_stated_cache_answers_the_same_question_without_a_model() {
    let report = json(&["curve", "--example", "--have", "2000", "--format", "json"]);
    let own = &report["deployment"];
    assert_eq!(own["capacity_blocks"], 2000);
    let doubled = json(&["curve", "--example", "--capacities", "4000", "--format", "json"]);
    assert_eq!(own["buys"][0]["hit_tokens"], doubled["points"][0]["hit_tokens"]);
}

#[test]
fn a_deployment_that_would_not_start_still_has_a_curve_in_bytes_but_the_answer_is_no() {
    let output = kvwise(
        &[
            "curve",
            "--example",
            "--model",
            "meta-llama/Llama-3.1-8B",
            "--gpu",
            "t4",
            "--format",
            "json",
        ],
        "2",
    );
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report.get("deployment").is_none());
    assert_eq!(report["kv_bytes_per_token"], 131_072);
    assert!(String::from_utf8_lossy(&output.stderr).contains("would not start"));
}

#[test]
fn prefixes_have_bytes_of_the_model() {
    let mut arguments = vec!["tree", "--example", "--top", "1", "--format", "json"];
    arguments.extend(LLAMA);
    let report = json(&arguments);
    let first = &report["prefixes"][0];
    assert_eq!(
        first["cached_bytes"].as_u64().unwrap(),
        first["own_tokens"].as_u64().unwrap() * 131_072
    );
}

#[test]
fn an_older_release_frees_in_another_order_and_hits_less() {
    let replay = |version| {
        json(&[
            "replay",
            "--example",
            "--num-blocks",
            "8000",
            "--max-model-len",
            "131072",
            "--engine-version",
            version,
            "--format",
            "json",
        ])
    };
    let (new, old) = (replay("0.32.0"), replay("0.22.1"));
    assert_eq!(replay("0.24"), new);
    assert_eq!(replay("0.23"), old);
    assert_ne!(new["hit_tokens"], old["hit_tokens"]);
    let error = kvwise(
        &[
            "replay",
            "--example",
            "--num-blocks",
            "80",
            "--engine-version",
            "new",
        ],
        "1",
    );
    assert_eq!(error.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&error.stderr).contains("--engine-version"));
}

#[test]
fn text_without_a_tokenizer_is_refused_with_the_flag_to_give() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chats.json");
    std::fs::write(
        &path,
        r#"[{"id":"a","conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"hello"}]}]"#,
    )
    .unwrap();
    let output = kvwise(&["trace", "info", path.to_str().unwrap()], "1");
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("--tokenizer"), "{message}");
}

#[test]
fn the_page_of_a_curve_has_one_picture_and_the_text_without_a_second_one() {
    let mut arguments = vec![
        "curve",
        "--example",
        "--belady",
        "--capacities",
        "1000",
        "--format",
        "html",
    ];
    arguments.extend(LLAMA);
    let page = success(&arguments, "2");
    assert_eq!(page.matches("<svg").count(), 1);
    assert!(page.contains("this deployment") && page.contains("Belady") && page.contains("2x the KV memory"));
    assert!(!page.contains('│'), "a plot of characters on a page");
}

#[test]
#[cfg(unix)]
fn an_interrupt_takes_what_is_half_written_away() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("t.jsonl");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(["trace", "generate", "--requests", "3000", "-o"])
        .arg(&output)
        .spawn()
        .unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    while files() == 0 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it wrote anything"
        );
        std::thread::yield_now();
    }
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let status = child.wait().unwrap();
    // whole, if it was faster than the interrupt, or nothing at all
    match status.code() {
        Some(0) => assert_eq!((files(), output.exists()), (1, true)),
        code => assert_eq!((code, files()), (Some(130), 0)),
    }
}
