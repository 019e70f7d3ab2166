//! `plan` for SGLang and llama.cpp, from the outside.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{kvwise, kvwise_table, plan};

#[test]
fn sglang_turns_given_bytes_into_as_many_tokens_as_its_own_code() {
    // Rows of crates/core/tests/data/sglang_pools.jsonl, made by SGLang 0.5.23 itself.
    for (model, gpu, tp, bytes, tokens, page) in [
        ("Qwen/Qwen3-8B", "b200", "2", "84783083919", 1_149_888, 64),
        ("openai/gpt-oss-20b", "h200", "2", "97570296776", 4_411_272, 1),
        ("deepseek-ai/DeepSeek-V3", "h100", "4", "47951430811", 682_368, 1),
    ] {
        let (answer, _) = plan(&[
            model,
            "--gpu",
            gpu,
            "--tp",
            tp,
            "--engine",
            "sglang",
            "--kv-cache-memory-bytes",
            bytes,
        ]);
        assert_eq!(answer["kv_cache"]["capacity_tokens"], tokens, "{model}");
        assert_eq!(answer["kv_cache"]["block_size"], page, "{model}");
        assert_eq!(answer["engine"]["name"], "sglang");
    }
}

#[test]
fn sglang_reserves_by_its_rule_and_says_so() {
    let (answer, status) = plan(&[
        "Qwen/Qwen3-8B",
        "--gpu",
        "h100",
        "--engine",
        "sglang",
        "--explain",
    ]);
    assert_eq!(status, 0);
    let steps = answer["steps"].as_array().unwrap();
    let fraction = steps
        .iter()
        .find(|s| s["what"] == "static share (mem_fraction_static)")
        .unwrap();
    // round((81559 - (512 + 8192 x 1.5 + 128 + 512 + 464)) / 81559, 3), as its own code resolves it.
    assert_eq!(fraction["result"], "0.830");
    assert!(steps.iter().any(|s| s["what"] == "vLLM on the same GPU"));
    let names: Vec<&str> = answer["memory"]["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["weights", "cuda_context", "runtime_reserve", "kv_cache", "unused"]
    );
}

#[test]
fn the_parts_of_the_difference_to_vllm_add_up_and_name_what_the_model_has() {
    for (words, reason) in [
        ("llama-3.1-8b --gpu h100", "whole blocks and pages"),
        ("deepseek-v3 --gpu h200 --tp 8", "whole blocks and pages"),
        ("gpt-oss-20b --gpu h100", "--swa-full-tokens-ratio"),
        (
            "qwen3-next-80b-a3b-instruct --gpu h200 --tp 2",
            "--mamba-full-memory-ratio",
        ),
    ] {
        let mut args: Vec<&str> = words.split(' ').collect();
        args.extend(["--engine", "sglang", "--explain"]);
        let (answer, _) = plan(&args);
        let steps = answer["steps"].as_array().unwrap();
        let of = |what: &str| {
            let step = steps.iter().find(|s| s["what"] == what).unwrap();
            let result = step["result"].as_str().unwrap();
            let number: i64 = result
                .chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap();
            (
                if result.ends_with("fewer") {
                    -number
                } else {
                    number
                },
                step["how"].to_string(),
            )
        };
        let (whole, memory, rest) = (
            of("difference"),
            of("of it by memory"),
            of("of it by what the memory holds"),
        );
        assert_eq!(whole.0, memory.0 + rest.0, "{words}");
        assert!(rest.1.contains(reason), "{words}: {}", rest.1);
    }
}

#[test]
fn flags_of_another_engine_are_refused_with_the_engines_own_name_for_them() {
    for (words, says) in [
        (
            vec!["--engine", "sglang", "--gpu-memory-utilization", "0.9"],
            "--mem-fraction-static",
        ),
        (
            vec!["--engine", "vllm", "--page-size", "16"],
            "--page-size means nothing",
        ),
        (vec!["--engine", "llamacpp", "--tp", "2"], "--tensor-split"),
        (
            vec!["--engine", "llamacpp", "--cache-type-k", "q8"],
            "did you mean q8_0",
        ),
        (vec!["--engine", "llamacpp", "--quantization", "q4_k"], "q4_k_m"),
        (
            vec!["--engine", "sglang", "--chunked-prefill-size", "0"],
            "--chunked-prefill-size is 0",
        ),
        (
            vec!["--engine", "sglang", "--mem-fraction-static", "1.2"],
            "--mem-fraction-static is 1.2",
        ),
    ] {
        let mut all = vec!["plan", "Qwen/Qwen3-8B", "--gpu", "h100"];
        all.extend(&words);
        let output = kvwise(&all);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(says), "{words:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}

/// Writes a GGUF file of a Llama-like model; its data is a hole.
fn gguf(dir: &Path, name: &str) -> PathBuf {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let (layers, width, ff, vocabulary) = (32_u64, 4096_u64, 14_336_u64, 128_256_u64);
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![width, vocabulary], 12_u32),
        ("output.weight".to_owned(), vec![width, vocabulary], 14),
        ("output_norm.weight".to_owned(), vec![width], 0),
    ];
    for i in 0..layers {
        for (part, shape, kind) in [
            ("attn_q", vec![width, width], 12),
            ("attn_k", vec![width, 1024], 12),
            ("attn_v", vec![width, 1024], 14),
            ("attn_output", vec![width, width], 12),
            ("ffn_gate", vec![width, ff], 12),
            ("ffn_up", vec![width, ff], 12),
            ("ffn_down", vec![ff, width], 14),
            ("attn_norm", vec![width], 0),
            ("ffn_norm", vec![width], 0),
        ] {
            tensors.push((format!("blk.{i}.{part}.weight"), shape, kind));
        }
    }
    let numbers = [
        ("llama.block_count", 32_u32),
        ("llama.context_length", 131_072),
        ("llama.embedding_length", 4096),
        ("llama.feed_forward_length", 14_336),
        ("llama.attention.head_count", 32),
        ("llama.attention.head_count_kv", 8),
        ("llama.vocab_size", 128_256),
    ];
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 2).to_le_bytes());
    for (key, value) in [("general.architecture", "llama"), ("general.name", "Some 8B")] {
        text(&mut out, key);
        out.extend(8_u32.to_le_bytes());
        text(&mut out, value);
    }
    for (key, n) in numbers {
        text(&mut out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend(n.to_le_bytes());
    }
    let mut offset = 0_u64;
    for (name, shape, kind) in &tensors {
        text(&mut out, name);
        out.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        for n in shape {
            out.extend(n.to_le_bytes());
        }
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let (block, bytes) = match kind {
            0 => (1, 4),
            12 => (256, 144),
            _ => (256, 210),
        };
        offset = (offset + shape.iter().product::<u64>() / block * bytes).next_multiple_of(32);
    }
    let path = dir.join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(&out).unwrap();
    file.set_len((out.len() as u64).next_multiple_of(32) + offset)
        .unwrap();
    path
}

#[test]
fn a_gguf_file_is_planned_for_llama_cpp_from_its_header_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(dir.path(), "some-8b.gguf");
    let file = path.to_str().unwrap();
    let (answer, status) = plan(&[file, "--gpu", "rtx-4090", "--context", "32768", "-c", "4"]);
    assert_eq!(status, 0, "{answer}");
    assert_eq!(answer["engine"]["name"], "llamacpp");
    assert_eq!(answer["model"]["name"], "Some 8B");
    assert_eq!(answer["weights"]["source"], "gguf");
    let total = answer["weights"]["total_bytes"].as_u64().unwrap();
    assert_eq!(
        total,
        295_501_824
            + 430_940_160
            + 16_384
            + 32 * (2 * 9_437_184 + 2_359_296 + 3_440_640 + 2 * 33_030_144 + 48_168_960 + 2 * 16_384)
    );
    // The token embedding stays with the host.
    assert_eq!(answer["weights"]["bytes_per_rank"][0], total - 295_501_824);
    assert_eq!(answer["kv_cache"]["capacity_tokens"], 131_072);
    assert_eq!(answer["kv_cache"]["bytes_per_token"], 131_072);

    let (smaller, _) = plan(&[
        file,
        "--gpu",
        "rtx-4090",
        "--context",
        "32768",
        "-c",
        "4",
        "--cache-type-k",
        "q8_0",
        "--cache-type-v",
        "q4_0",
    ]);
    assert_eq!(smaller["kv_cache"]["bytes_per_token"], 32 * 1024 * (34 + 18) / 32);

    let (half, _) = plan(&[file, "--gpu", "rtx-4090", "--context", "4096", "--ngl", "16"]);
    assert!(
        half["feasibility"]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("17 of 33 layers stay with the host")
    );

    let output = kvwise(&["plan", file, "--gpu", "rtx-4090", "--engine", "vllm"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("planned for llama.cpp"));
}

#[test]
fn a_broken_gguf_file_is_one_sentence_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(dir.path(), "cut.gguf");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5000)
        .unwrap();
    let output = kvwise(&["plan", path.to_str().unwrap(), "--gpu", "l4"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("cut.gguf: the GGUF file is cut off"), "{error}");
}

#[test]
fn tensors_lie_where_their_names_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = gguf(dir.path(), "some-8b.gguf");
    let all = ["--gpu", "rtx-4090", "--context", "8192"];
    let with = |more: &[&str]| plan(&[&[path.to_str().unwrap()], &all[..], more].concat());
    let (layer, down, embedding) = (
        2 * 9_437_184_u64 + 2_359_296 + 3_440_640 + 2 * 33_030_144 + 48_168_960 + 2 * 16_384,
        48_168_960,
        295_501_824,
    );
    let whole = 430_940_160 + 16_384 + 32 * layer;
    let (answer, _) = with(&["--override-tensor", "ffn_down=CPU"]);
    assert_eq!(answer["weights"]["bytes_per_rank"][0], whole - 32 * down);
    let warning = answer["feasibility"]["warnings"].to_string();
    assert!(
        warning.contains("stay with the host by their names: 1.44 GiB"),
        "{warning}"
    );
    assert_eq!(
        answer["performance"],
        serde_json::Value::Null,
        "the host decides the speed"
    );
    assert!(
        answer["inputs"]["override_tensor"]
            .to_string()
            .contains("ffn_down=CPU")
    );

    // The first pattern that matches decides; caches stay with their layers.
    let (answer, _) = with(&[
        "--gpus",
        "2",
        "--ot",
        r"blk\.0\.ffn_down=CUDA1,blk\.0\.=CPU",
        "--ot",
        "token_embd=CUDA1",
    ]);
    let bytes = &answer["weights"]["bytes_per_rank"];
    assert_eq!(bytes[0], 16 * layer);
    assert_eq!(bytes[1], whole - 17 * layer + down + embedding);

    let config = [
        "plan",
        "Qwen/Qwen3-8B",
        "--engine",
        "llamacpp",
        "--gpu",
        "rtx-4090",
    ];
    for (more, says) in [
        (&["--ot", "exps=CPU"][..], "a configuration has none"),
        (&["--ot", "exps=CUDA1"][..], "\"CUDA1\", which is no buffer here"),
        (&["--ot", "exps"][..], "which is not PATTERN=BUFFER"),
        (&["--split-mode", "rows"][..], "--split-mode is \"rows\""),
        (
            &["--split-mode", "tensor"][..],
            "--split-mode tensor is not planned",
        ),
    ] {
        let output = kvwise(&[&config[..], more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains(says), "{error}");
    }
}

#[test]
fn what_is_spread_over_gpus_is_what_the_mode_says() {
    let with = |more: &[&str]| {
        plan(
            &[
                &[
                    "Qwen/Qwen3-8B",
                    "--engine",
                    "llamacpp",
                    "--gpu",
                    "rtx-4090",
                    "--context",
                    "8192",
                ],
                more,
            ]
            .concat(),
        )
    };
    let (one, _) = with(&[]);
    let (alone, status) = with(&["--gpus", "2", "--sm", "none", "--mg", "1"]);
    assert_eq!(status, 0, "{alone}");
    assert_eq!(
        alone["weights"]["bytes_per_rank"],
        one["weights"]["bytes_per_rank"]
    );
    let warnings = alone["feasibility"]["warnings"].to_string();
    assert!(
        warnings.contains("GPU 1 has all of it, 1 more stay empty"),
        "{warnings}"
    );
    for (more, says) in [
        (
            &["--gpus", "2", "--sm", "row"][..],
            "no longer has; --split-mode layer starts",
        ),
        (
            &["--gpus", "2", "--sm", "none", "--mg", "2"][..],
            "--main-gpu is 2, but there are GPUs 0 to 1",
        ),
    ] {
        let (answer, status) = with(more);
        assert!(status == 1 && answer.to_string().contains(says), "{answer}");
    }
    // What is said to do instead starts; where nothing of the list does, no other load is offered.
    let (row, _) = with(&["--gpus", "2", "--sm", "row"]);
    let fix = row["fix"].as_str().unwrap();
    assert!(fix.starts_with("--split-mode layer "), "{fix}");
    let (quantised, _) = with(&["--no-flash-attn", "--cache-type-v", "q8_0"]);
    assert_eq!(quantised["fix"], serde_json::Value::Null, "{quantised}");
    let (uneven, _) = with(&["--gpus", "3", "--tensor-split", "3,1"]);
    assert_eq!(uneven["weights"]["bytes_per_rank"][2], 0, "{uneven}");
    let (first, _) = with(&["--gpus", "2", "--mg", "1"]);
    assert!(
        first["feasibility"]["warnings"]
            .to_string()
            .contains("--main-gpu changes nothing")
    );
}

#[test]
fn what_does_not_fit_is_told_how_many_layers_would() {
    let (answer, status) = plan(&[
        "Qwen/Qwen3-32B",
        "--engine",
        "llamacpp",
        "--quantization",
        "q8_0",
        "--gpu",
        "rtx-4090",
        "--context",
        "8192",
    ]);
    assert_eq!(status, 1);
    let fix = answer["fix"].as_str().unwrap();
    assert!(fix.starts_with("--n-gpu-layers "), "{fix}");
    let layers = fix.split_whitespace().nth(1).unwrap().to_owned();
    let (with, status) = plan(&[
        "Qwen/Qwen3-32B",
        "--engine",
        "llamacpp",
        "--quantization",
        "q8_0",
        "--gpu",
        "rtx-4090",
        "--context",
        "8192",
        "--ngl",
        &layers,
    ]);
    assert_eq!(status, 0, "{with}");
}

#[test]
fn the_answer_for_sglang_reads_well() {
    let output = kvwise_table(&[
        "plan",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "--gpu",
        "h100",
        "--engine",
        "sglang",
        "--context",
        "32k",
        "--concurrency",
        "16",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_answer_for_llama_cpp_reads_well() {
    let output = kvwise_table(&[
        "plan",
        "google/gemma-3-27b-it",
        "--engine",
        "llamacpp",
        "--quantization",
        "q4_k_m",
        "--gpu",
        "rtx-4090",
        "--context",
        "32768",
        "--explain",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_generic_engine_reads_how_a_checkpoint_is_quantised() {
    for (model, gib) in [
        ("openai/gpt-oss-20b", 12.0..13.5),
        ("deepseek-ai/DeepSeek-V3", 620.0..660.0),
    ] {
        let (answer, status) = plan(&[
            model,
            "--engine",
            "generic",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--context",
            "8192",
        ]);
        assert_eq!(status, 0, "{model}");
        let total = answer["weights"]["total_bytes"].as_f64().unwrap() / f64::from(1 << 30);
        assert!(gib.contains(&total), "{model}: {total}");
        let formula = answer["memory"]["components"][0]["formula"].as_str().unwrap();
        assert!(formula.contains("as the checkpoint says / 8 ranks"), "{formula}");
    }
    let (answer, _) = plan(&[
        "openai/gpt-oss-20b",
        "--engine",
        "generic",
        "--quantization",
        "none",
        "--gpu",
        "h200",
        "--context",
        "8192",
    ]);
    assert_eq!(answer["weights"]["total_bytes"], 20_914_757_184_u64 * 2);
}
