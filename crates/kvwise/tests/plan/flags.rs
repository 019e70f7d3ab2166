//! No flag of `plan` is ignored: each changes the answer, or refuses, or says that it means nothing.

use serde_json::Value;

use super::{kvwise, plan};

/// A plan without what only repeats the words.
fn answer(args: &[&str]) -> Value {
    let (mut plan, _) = plan(args);
    plan.as_object_mut().unwrap().remove("inputs");
    plan
}

#[test]
fn every_flag_changes_the_answer() {
    // Base with what makes the flag matter, the flag. --revision chooses among the hub's and has tests of its own.
    let cases: &[(&[&str], &[&str])] = &[
        (&["llama-3.1-8b"], &["--engine-version", "0.11.0"]),
        (&["llama-3.1-8b"], &["--tensor-parallel-size", "2"]),
        (&["llama-3.1-8b"], &["--pipeline-parallel-size", "2"]),
        (
            &["qwen3-30b-a3b"],
            &["--data-parallel-size", "2", "--enable-expert-parallel"],
        ),
        (
            &["deepseek-v3", "--tp", "8"],
            &["--decode-context-parallel-size", "8"],
        ),
        (&["llama-3.1-8b"], &["--dtype", "float16"]),
        (&["llama-3.1-8b"], &["--quantization", "fp8"]),
        (&["llama-3.1-8b"], &["--kv-cache-dtype", "fp8"]),
        (
            &["gpt-oss-20b", "--kv-cache-dtype", "fp8"],
            &["--kv-cache-dtype-skip-layers", "sliding_window"],
        ),
        (&["llama-3.1-8b"], &["--block-size", "32"]),
        (&["llama-3.1-8b"], &["--max-model-len", "4096"]),
        (&["llama-3.1-8b"], &["--max-num-seqs", "16"]),
        (&["llama-3.1-8b"], &["--max-num-batched-tokens", "65536"]),
        (&["llama-3.1-8b"], &["--gpu-memory-utilization", "0.5"]),
        (&["llama-3.1-8b"], &["--kv-cache-memory-bytes", "20000000000"]),
        (&["llama-3.1-8b"], &["--num-gpu-blocks-override", "20000"]),
        (&["llama-3.1-8b"], &["--enforce-eager"]),
        (
            &["qwen2.5-vl-7b-instruct"],
            &["--limit-mm-per-prompt", "image=0,video=0"],
        ),
        (
            &["qwen2.5-vl-7b-instruct", "--limit-mm-per-prompt", "video=0"],
            &["--mm-processor-kwargs", "{\"max_pixels\":1003520}"],
        ),
        (&["qwen2.5-vl-7b-instruct"], &["--skip-mm-profiling"]),
        (
            &["qwen3-next-80b-a3b-instruct", "--tp", "4"],
            &["--no-enable-prefix-caching"],
        ),
        (&["gemma-3-27b-it"], &["--no-async-scheduling"]),
        (&["gemma-3-27b-it"], &["--disable-hybrid-kv-cache-manager"]),
        (
            &["deepseek-v3", "--tp", "8"],
            &["--attention-backend", "FLASHMLA"],
        ),
        (&["qwen3-vl-8b-instruct"], &["--language-model-only"]),
        (
            &["deepseek-v3", "--tp", "8"],
            &[
                "--speculative-config",
                r#"{"method":"mtp","num_speculative_tokens":1}"#,
            ],
        ),
        (
            &["qwen3-32b", "--tp", "2"],
            &[
                "--speculative-config",
                r#"{"model":"qwen/qwen3-0.6b","num_speculative_tokens":4}"#,
            ],
        ),
        (&["llama-3.1-8b"], &["--enable-lora"]),
        (&["llama-3.1-8b", "--enable-lora"], &["--max-loras", "8"]),
        (&["llama-3.1-8b", "--enable-lora"], &["--max-lora-rank", "64"]),
        (&["llama-3.1-8b"], &["--gpu-memory", "40GiB"]),
        (&["llama-3.1-8b", "--tp", "2"], &["--interconnect", "pcie"]),
        (&["llama-3.1-8b"], &["--context", "8192"]),
        (&["llama-3.1-8b"], &["--concurrency", "3"]),
        (
            &["llama-3.1-8b"],
            &["--prompt-tokens", "1000", "--gen-tokens", "200"],
        ),
        (&["llama-3.1-8b", "--context", "8k"], &["--mode", "throughput"]),
        (
            &["llama-3.1-8b", "--engine", "generic", "--context", "8k"],
            &["--mode", "latency"],
        ),
        (
            &["llama-3.1-8b", "--context", "8k", "--mode", "throughput"],
            &["--mode", "latency"],
        ),
        (&["llama-3.1-8b"], &["--overhead", "5GiB"]),
        (
            &["llama-3.1-8b", "--context", "8k"],
            &["--fragmentation-factor", "1.5"],
        ),
        (&["llama-3.1-8b", "--context", "8k"], &["--headroom", "60GiB"]),
        (&["llama-3.1-8b"], &["--params-b", "9"]),
        (&["llama-3.1-8b"], &["--gpus", "4"]),
        (&["llama-3.1-8b"], &["--explain"]),
        (
            &["llama-3.1-8b", "--engine", "sglang"],
            &["--mem-fraction-static", "0.7"],
        ),
        (&["llama-3.1-8b", "--engine", "sglang"], &["--page-size", "64"]),
        (
            &["llama-3.1-8b", "--engine", "sglang"],
            &["--chunked-prefill-size", "2048"],
        ),
        (
            &["llama-3.1-8b", "--engine", "sglang"],
            &["--max-running-requests", "3"],
        ),
        (
            &["llama-3.1-8b", "--engine", "sglang"],
            &["--max-total-tokens", "40000"],
        ),
        (
            &["gpt-oss-20b", "--engine", "sglang"],
            &["--swa-full-tokens-ratio", "0.2"],
        ),
        (
            &["qwen3-next-80b-a3b-instruct", "--engine", "sglang", "--tp", "4"],
            &["--mamba-full-memory-ratio", "0.3"],
        ),
        (&["llama-3.1-8b", "--engine", "llamacpp"], &["--ctx-size", "8192"]),
        (
            &["llama-3.1-8b", "--engine", "llamacpp", "--ctx-size", "8192"],
            &["--parallel", "4"],
        ),
        (
            &[
                "llama-3.1-8b",
                "--engine",
                "llamacpp",
                "--ctx-size",
                "8192",
                "--parallel",
                "4",
            ],
            &["--kv-unified"],
        ),
        (
            &["llama-3.1-8b", "--engine", "llamacpp"],
            &["--cache-type-k", "q8_0"],
        ),
        (
            &["llama-3.1-8b", "--engine", "llamacpp"],
            &["--cache-type-v", "q4_0"],
        ),
        (
            &["llama-3.1-8b", "--engine", "llamacpp"],
            &["--n-gpu-layers", "10"],
        ),
        (
            &["llama-3.1-8b", "--engine", "llamacpp", "--gpus", "2"],
            &["--tensor-split", "3,1"],
        ),
        (
            &["llama-3.1-8b", "--engine", "llamacpp"],
            &["--ubatch-size", "2048"],
        ),
        (&["gemma-3-27b-it", "--engine", "llamacpp"], &["--swa-full"]),
        (&["llama-3.1-8b", "--engine", "llamacpp"], &["--no-flash-attn"]),
        (&["llama-3.1-8b", "--engine", "llamacpp"], &["--no-kv-offload"]),
        (
            &["llama-3.1-8b", "--engine", "llamacpp"],
            &["--quantization", "q8_0"],
        ),
    ];
    for (base, flag) in cases {
        let mut without = vec!["--gpu", "h100"];
        without.extend_from_slice(base);
        let mut with = without.clone();
        // A flag that is given twice is another value of the same flag.
        if let Some(place) = with.iter().position(|word| *word == flag[0]) {
            with.splice(place..place + flag.len(), flag.iter().copied());
        } else {
            with.extend_from_slice(flag);
        }
        assert_ne!(
            answer(&without),
            answer(&with),
            "{base:?} {flag:?} changes nothing"
        );
    }
}

#[test]
fn what_cannot_be_meant_is_an_error_that_names_the_flag() {
    for (args, text) in [
        (&["--mode", "fast"][..], "--mode is \"fast\""),
        (
            &["--interconnect", "ethernet"][..],
            "--interconnect is \"ethernet\"",
        ),
        (
            &["--kv-cache-dtype-skip-layers", "first"][..],
            "--kv-cache-dtype-skip-layers has \"first\"",
        ),
        (
            &["--speculative-config", "{"][..],
            "--speculative-config is not the JSON object",
        ),
        (
            &["--speculative-config", r#"{"method":"mtp"}"#][..],
            "num_speculative_tokens",
        ),
        (
            &[
                "--speculative-config",
                r#"{"method":"ngram","num_speculative_tokens":2,"colour":1}"#,
            ][..],
            "the key colour",
        ),
        (
            &[
                "--speculative-config",
                r#"{"method":"eagle3","model":"/nowhere","num_speculative_tokens":2}"#,
            ][..],
            "/nowhere",
        ),
    ] {
        let mut words = vec!["plan", "llama-3.1-8b", "--gpu", "h100"];
        words.extend_from_slice(args);
        let output = kvwise(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    }
}

#[test]
fn a_drafter_that_the_model_does_not_have_is_refused_in_the_engines_terms() {
    let (plan, status) = plan(&[
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--speculative-config",
        r#"{"method":"mtp","num_speculative_tokens":1}"#,
    ]);
    assert_eq!(status, 1);
    let refused = plan["feasibility"]["refused"].as_str().unwrap();
    assert!(refused.contains("multi-token-prediction"), "{refused}");
}

#[test]
fn a_drafter_of_whole_blocks_is_read_from_a_folder_and_shares_the_targets_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "hidden_size": 4096,
        "num_hidden_layers": 5, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 12288, "vocab_size": 151936, "max_position_embeddings": 40960, "block_size": 16,
        "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let speculative = format!(
        r#"{{"method":"dflash","model":"{}","num_speculative_tokens":15}}"#,
        folder.path().display()
    );
    let args = ["qwen/qwen3-8b", "--gpu", "h100"];
    let (alone, _) = plan(&args);
    let (drafted, status) = plan(&[&args[..], &["--speculative-config", &speculative]].concat());
    assert_eq!(status, 0);
    let terms = drafted["memory"]["components"].as_array().unwrap();
    let term = terms.iter().find(|term| term["name"] == "drafter").unwrap();
    // vLLM 0.32.0's own class: 4,586,580,480 bytes with an embedding and a head of 1,244,659,712 each, which are the
    // target's, and 83,886,080 + 1,280 bytes of joined projections and norms.
    assert_eq!(term["bytes"], 4_586_580_480_u64 - 2 * 1_244_659_712 + 83_887_360);
    let per_block = |plan: &serde_json::Value| plan["kv_cache"]["bytes_per_block"][0].as_u64().unwrap();
    assert_eq!(per_block(&drafted) * 36, per_block(&alone) * 41);
}

#[test]
fn a_narrow_miss_says_what_it_rests_on_and_how_likely_it_is() {
    let (plan, _) = plan(&[
        "qwen3-32b",
        "--gpu",
        "h100",
        "--max-model-len",
        "36000",
        "--context",
        "36000",
    ]);
    let p = plan["feasibility"]["fit_probability"].as_f64().unwrap();
    assert!((0.05..0.95).contains(&p), "{p}");
    let verdict = plan["verdict"].as_str().unwrap();
    assert!(verdict.contains("probability"), "{verdict}");
    let risk = plan["feasibility"]["oom_risk"].as_str().unwrap();
    assert_eq!(
        risk,
        if p >= 0.9 {
            "low"
        } else if p >= 0.5 {
            "medium"
        } else {
            "high"
        }
    );
}
