//! `kvwise compare`: the tables of the book's calculator with right numbers, and the view of capacity.

use serde_json::Value;

use super::{kvwise, kvwise_table};

/// Models of the calculator (mlsys-for-dummies, `kv_cache_calculator.py`).
const MODELS: [&str; 6] = [
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "mistral-7b-v0.1",
    "qwen1.5-72b",
    "deepseek-llm-67b-base",
];

fn json(args: &[&str]) -> (Value, i32) {
    let output = kvwise(args);
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
    (value, output.status.code().unwrap())
}

#[test]
fn the_calculators_model_table_has_its_right_numbers() {
    let mut args = vec!["compare"];
    args.extend(MODELS);
    args.extend(["--context", "8192,32768"]);
    let (value, status) = json(&args);
    assert_eq!(status, 0);
    let kib = 1024;
    let gib = 1_073_741_824;
    // The calculator prints 512, 800, 320, 128, 320 and 380 KB a token. Qwen1.5-72B has no grouped heads: 2,560 KiB.
    // One more token of a long sequence takes nothing under Mistral's window; up to there it takes 128 KiB.
    let a_token = [512, 800, 320, 0, 2560, 380].map(|n| n * kib);
    // At 8,192 tokens: 4, 6.25, 2.5, (1), (2.5), 2.97 GB; Mistral's window of 4,096 bounds its cache.
    let at_8k: [Option<u64>; 6] = [
        Some(4 * gib),
        Some(6 * gib + gib / 4),
        Some(2 * gib + gib / 2),
        None,
        Some(20 * gib),
        Some(380 * kib * 8192),
    ];
    for (i, row) in value["rows"].as_array().unwrap().iter().enumerate() {
        assert_eq!(row["kv_bytes_per_token"], a_token[i], "{}", MODELS[i]);
        let cell = &row["contexts"][0]["request_bytes_per_gpu"];
        if let Some(bytes) = at_8k[i] {
            assert_eq!(cell, bytes, "{}", MODELS[i]);
        } else {
            let long = row["contexts"][1]["request_bytes_per_gpu"].as_u64().unwrap();
            assert!(long < 4 * gib, "the window bounds the cache: {long}");
        }
    }
    // Llama 2 accepts 4,096 tokens: the calculator's figures at 8K and 32K are for requests that it refuses.
    assert_eq!(value["rows"][0]["contexts"][0]["accepted"], false);
}

#[test]
fn paging_saves_what_the_calculator_says_for_models_without_windows() {
    let (value, _) = json(&["compare", "llama-2-70b", "--view", "fragmentation"]);
    let saved: Vec<String> = value["rows"][0]["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let bytes = |key: &str| s[key].as_f64().unwrap();
            format!(
                "{:.1}",
                100.0 * (1.0 - bytes("paged_bytes") / bytes("reserved_bytes"))
            )
        })
        .collect();
    assert_eq!(saved, ["93.8", "75.0", "87.5", "93.8"]);
    assert_eq!(value["rows"][0]["scenarios"][0]["reserved_bytes"], 250_u64 << 30);
}

#[test]
fn capacity_takes_the_fewest_gpus_that_fit() {
    let (value, status) = json(&[
        "compare",
        "llama-3.1-8b",
        "llama-3.1-70b",
        "--gpu",
        "h100,h200",
        "--context",
        "8k",
    ]);
    assert_eq!(status, 0);
    let gpus: Vec<u64> = value["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["gpus"].as_u64().unwrap())
        .collect();
    assert_eq!((gpus[0], gpus[1]), (1, 1));
    assert!(gpus[2] > gpus[3] && gpus[2] >= 2, "{gpus:?}");
    // The same number as a plan gives.
    let (plan, _) = super::plan(&["llama-3.1-8b", "--gpu", "h100", "--context", "8k"]);
    assert_eq!(
        value["rows"][0]["contexts"][0]["max_concurrency"],
        plan["feasibility"]["max_concurrency_at_context"]
    );
}

#[test]
fn the_table_stays_within_a_terminal_and_says_what_does_not_fit() {
    let output = kvwise_table(&[
        "compare",
        "deepseek-ai/DeepSeek-V3",
        "qwen3-8b",
        "--gpu",
        "l4",
        "--context",
        "4k",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
    let none = kvwise(&[
        "compare",
        "deepseek-ai/DeepSeek-V3",
        "--gpu",
        "l4",
        "--context",
        "4k",
    ]);
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn nonsense_is_named() {
    for (args, says) in [
        (vec!["compare", "nope-nope"], "nope-nope"),
        (vec!["compare", "qwen3-8b", "--view", "capacity"], "give --gpu"),
        (
            vec!["compare", "qwen3-8b", "--scenario", "1:2:3"],
            "--view fragmentation",
        ),
        (
            vec![
                "compare",
                "qwen3-8b",
                "--view",
                "fragmentation",
                "--scenario",
                "1:9:3",
            ],
            "--scenario is",
        ),
        (vec!["compare", "qwen3-8b", "--context", "x"], "--context"),
    ] {
        let output = kvwise(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(says),
            "{args:?}: {output:?}"
        );
    }
}

#[test]
fn a_shape_is_compared_like_a_model_and_may_stand_alone() {
    let (value, status) = json(&[
        "compare",
        "llama-2-70b",
        "--shape",
        "layers=80,heads=64,kv-heads=8,intermediate=28672",
        "--context",
        "4096",
    ]);
    assert_eq!(status, 0);
    let rows = value["rows"].as_array().unwrap();
    for field in ["kv_bytes_per_token", "params", "layers"] {
        assert_eq!(rows[0][field], rows[1][field], "{field}");
    }
    let (value, status) = json(&[
        "compare",
        "--shape",
        "layers=80,heads=8,dim=128",
        "--context",
        "8192",
    ]);
    // The book's own example: 320 KB a token.
    assert_eq!(
        (status, value["rows"][0]["kv_bytes_per_token"].as_u64()),
        (0, Some(320 * 1024))
    );
    let wrong = kvwise(&["compare", "--shape", "layers=80,heads=0"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("--shape: the shape's heads is \"0\""));
    // A shape can be planned, but not served.
    let (plan, _) = json(&["plan", "layers=32,heads=32", "--gpu", "h100"]);
    assert_eq!(plan["model"]["source"], "a shape in words");
    let serve = kvwise(&[
        "generate",
        "layers=32,heads=32,context=4k",
        "--gpu",
        "h100",
        "--print",
        "plan.json",
    ]);
    assert!(
        String::from_utf8_lossy(&serve.stderr).contains("no checkpoint"),
        "{serve:?}"
    );
}

#[test]
fn engines_stand_side_by_side_and_a_picture_shows_them() {
    let root = tempfile::tempdir().unwrap();
    let picture = root.path().join("room.svg");
    let (value, status) = json(&[
        "compare",
        "qwen3-8b",
        "--engine",
        "vllm,sglang,llamacpp",
        "--gpu",
        "h100",
        "--context",
        "4096,16384",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    assert_eq!(status, 0);
    let engines: Vec<&str> = value["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            assert_eq!(row["fits"], true, "{row}");
            row["engine"].as_str().unwrap()
        })
        .collect();
    assert_eq!(engines, ["vllm", "sglang", "llamacpp"]);
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(
        svg.starts_with("<svg") && svg.contains("llamacpp"),
        "{}",
        &svg[..200]
    );
    let nothing = kvwise(&["compare", "qwen3-8b", "--view", "fragmentation", "--svg", "x.svg"]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn a_chart_of_characters_is_for_people_and_for_what_depends_on_the_context() {
    let with = |more: &[&str]| {
        let mut args = vec!["compare", "qwen3-8b", "qwen3-32b", "--plot"];
        args.extend(more);
        super::kvwise_table(&args)
    };
    let drawn = with(&["--gpu", "h100", "--context", "2k,8k,32k"]);
    assert_eq!(drawn.status.code(), Some(0), "{drawn:?}");
    let text = String::from_utf8(drawn.stdout).unwrap();
    let braille = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
    assert!(
        text.contains("Requests that fit at once") && text.contains(braille),
        "{text}"
    );
    for wrong in [
        &["--view", "fragmentation"][..],
        &["--gpu", "h100", "--context", "8k", "--format", "json"],
    ] {
        let no = with(wrong);
        assert_eq!(no.status.code(), Some(2), "{no:?}");
        assert!(
            String::from_utf8_lossy(&no.stderr).contains("--plot draws"),
            "{no:?}"
        );
    }
}
