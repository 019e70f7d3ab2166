//! Bad input: one sentence on stderr, exit status 2, nothing on stdout.

use std::fs;

use super::kvwise;

#[track_caller]
fn refuses(args: &[&str], says: &str) {
    let output = kvwise(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
    assert!(
        stderr.contains(says),
        "{args:?}: expected \"{says}\" in: {stderr}"
    );
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

#[test]
fn unknown_names_come_with_the_nearest() {
    refuses(
        &["plan", "llama-3.1-8", "--gpu", "h100"],
        "meta-llama/Llama-3.1-8B",
    );
    refuses(&["plan", "llama-3.1-8b", "--gpu", "h10"], "h100-nvl");
    refuses(
        &["plan", "llama-3.1-8b", "--gpu", "rtx-4099"],
        "did you mean rtx-4090",
    );
    refuses(&["plan", "llama-3.1-8b", "--gpu", "a"], "not in the catalogue");
    refuses(&["plan", "llama-3.1-8b", "--gpu", "a100"], "a100-80gb");
    refuses(&["gpus", "rtx-4099"], "rtx-4090");
    refuses(&["models", "quen3-32"], "did you mean Qwen/Qwen3-32B");
    refuses(
        &["plan", "llama-3.1-8b", "--gpu", "h100", "--kv-cache-dtpe", "fp8"],
        "--kv-cache-dtype",
    );
}

#[test]
fn values_that_mean_nothing_name_their_flag() {
    let base = ["plan", "llama-3.1-8b", "--gpu", "h100"];
    for (more, says) in [
        (&["--tp", "0"][..], "parallel sizes"),
        (&["--context", "0"], "--context is 0"),
        (&["--context", "1.5"], "--context"),
        (&["--concurrency", "99999999999999999999"], "--concurrency"),
        (&["--gpu-memory", "24"], "--gpu-memory"),
        (&["--gpu-memory", "0GiB"], "--gpu-memory"),
        (&["--gpu-memory-utilization", "NaN"], "--gpu-memory-utilization"),
        (&["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
        (&["--max-model-len", "0"], "--max-model-len"),
        (&["--max-model-len", "-5"], "--max-model-len"),
        (&["--fragmentation-factor", "0.5"], "--fragmentation-factor"),
        (&["--kv-cache-dtype", "fp3"], "--kv-cache-dtype"),
        (&["--engine", "tgi"], "--engine is \"tgi\""),
        (&["--engine-version", "banana"], "banana"),
        (&["--speculative-config", "{"], "--speculative-config"),
        (&["--context", "100", "--prompt-tokens", "5"], "give one of them"),
        (&["--gpus", "1", "--tp", "2"], "--gpus is 1"),
        (&["--quantization", "q9"], "--quantization"),
        (&["--attention-backend", "FLASHBANANA"], "FLASH_ATTN"),
        (&["--engine", "llamacpp", "--tp", "2"], "--tensor-split"),
        (&["--max-model-len", "99999999999999999999"], "--max-model-len"),
        (
            &["--kv-cache-memory-bytes", "99999999999999999999999"],
            "--kv-cache-memory-bytes",
        ),
    ] {
        let args: Vec<&str> = base.iter().chain(more).copied().collect();
        refuses(&args, says);
    }
}

#[test]
fn files_that_are_no_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (name, text, says) in [
        ("truncated.json", "{\"architectures\": [\"Lla", "truncated.json"),
        ("list.json", "[]", "not an object"),
        (
            "negative.json",
            r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":-4096}"#,
            "hidden_size",
        ),
        (
            "text.json",
            r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":"many","num_attention_heads":32,"num_hidden_layers":2,"intermediate_size":11,"vocab_size":100}"#,
            "hidden_size is \"many\"",
        ),
        ("empty.json", "{}", "architectures"),
        ("model.gguf", "GGUF", "GGUF"),
    ] {
        fs::write(path(name), text).unwrap();
        refuses(&["plan", &path(name), "--gpu", "h100"], says);
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    fs::write(path("deep.json"), deep).unwrap();
    refuses(&["plan", &path("deep.json"), "--gpu", "h100"], "deep.json");
    refuses(&["plan", &path("gone.json"), "--gpu", "h100"], "no such file");
    refuses(
        &["plan", dir.path().to_str().unwrap(), "--gpu", "h100"],
        "config.json: no such file",
    );
}

/// A small Llama with one piece of its text exchanged.
fn llama_but(what: &str, instead: &str) -> String {
    let whole = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,"num_hidden_layers":2,"intermediate_size":11008,"vocab_size":32000,"max_position_embeddings":4096}"#;
    assert!(whole.contains(what), "{what}");
    whole.replace(what, instead)
}

#[test]
fn numbers_that_are_no_sizes_are_named_with_their_value() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    for (what, instead, says) in [
        (
            r#""num_hidden_layers":2"#,
            r#""num_hidden_layers":0"#,
            "num_hidden_layers is 0",
        ),
        (
            r#""num_attention_heads":32"#,
            r#""num_attention_heads":0"#,
            "num_attention_heads is 0",
        ),
        (
            r#""num_key_value_heads":8"#,
            r#""num_key_value_heads":-8"#,
            "num_key_value_heads is -8",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":NaN"#,
            "hidden_size is \"NaN\"",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":-Infinity"#,
            "hidden_size is \"-Infinity\"",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":1e400"#,
            "number out of range",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":99999999999999999999999999"#,
            "hidden_size is 1e+26",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":4096.5"#,
            "hidden_size is 4096.5",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":"4096""#,
            "hidden_size is \"4096\"",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":true"#,
            "hidden_size is true",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":null"#,
            "hidden_size is null, expected an integer",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":4096,"tie_word_embeddings":null"#,
            "tie_word_embeddings is null, expected true or false",
        ),
        (
            r#""hidden_size":4096"#,
            r#""hidden_size":4096,"rope_theta":"10000""#,
            "rope_theta is \"10000\", expected a positive number",
        ),
        (r#"["LlamaForCausalLM"]"#, "7", "architectures"),
    ] {
        fs::write(&file, llama_but(what, instead)).unwrap();
        refuses(&["plan", file.to_str().unwrap(), "--gpu", "h100"], says);
    }
}

/// What vLLM's own configuration classes say of a file is an answer: no, and why.
#[test]
fn what_the_engines_configuration_class_refuses_is_an_answer_with_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    // The file is named unless it is the engine that speaks of what it was told.
    for (what, instead, says, fix, of_file) in [
        (
            r#""model_type":"llama","#,
            "",
            "Unrecognized model",
            "add \"model_type\" to the file",
            false,
        ),
        (
            r#""num_attention_heads":32"#,
            r#""num_attention_heads":30"#,
            "hidden_size is 4096, which is not a multiple of num_attention_heads (30)",
            "correct hidden_size or num_attention_heads",
            true,
        ),
        (
            r#""num_hidden_layers":2"#,
            r#""num_hidden_layers":2,"mlp_layer_types":["dense"],"layer_types":["full_attention","sliding"]"#,
            "layer_types names a layer \"sliding\", which is no kind of layer that the configuration class knows",
            "write one of hybrid_sliding, sliding_attention for it",
            true,
        ),
        (
            r#""num_hidden_layers":2"#,
            r#""num_hidden_layers":2,"rope_scaling":{"rope_type":"yarn"}"#,
            "rope_scaling.factor is missing, which rotary embeddings of type yarn need",
            "add rope_scaling.factor",
            true,
        ),
        (
            r#""num_key_value_heads":8"#,
            r#""num_key_value_heads":12"#,
            "num_heads (32) is not divisible by num_kv_heads (12)",
            "correct num_attention_heads (32) or num_key_value_heads (12)",
            false,
        ),
        (
            r#""num_hidden_layers":2"#,
            r#""num_hidden_layers":2,"is_encoder_decoder":true"#,
            "is_encoder_decoder is true, and Encoder-decoder models are expected to implement the multimodal interface",
            "leave is_encoder_decoder out",
            true,
        ),
    ] {
        fs::write(&file, llama_but(what, instead)).unwrap();
        let name = file.to_str().unwrap();
        let output = kvwise(&["plan", name, "--gpu", "h100"]);
        assert_eq!(output.status.code(), Some(1), "{instead}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let refused = answer["feasibility"]["refused"].as_str().unwrap();
        assert!(refused.contains(says), "{refused}");
        assert_eq!(refused.starts_with(name), of_file, "{refused}");
        let said = answer["fix"].as_str().unwrap();
        assert!(said.starts_with(fix), "{instead}: {said}");
        assert!(
            answer["weights"]["total_bytes"].as_u64().unwrap() > 1_000_000,
            "{instead}"
        );
        assert!(
            answer["kv_cache"]["num_blocks"].as_u64().unwrap() > 1000,
            "{instead}"
        );
    }
    let written = dir.path().join("out");
    let output = kvwise(
        &[
            "generate",
            file.to_str().unwrap(),
            "--gpu",
            "h100",
            "--format",
            "table",
            "--output-dir",
        ]
        .iter()
        .copied()
        .chain([written.to_str().unwrap()])
        .collect::<Vec<_>>(),
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("fix: leave is_encoder_decoder out") && text.contains("nothing was written"),
        "{text}"
    );
    assert!(!written.exists());
    // Of layers that are not all named nothing can be said.
    let short = llama_but(
        r#""num_hidden_layers":2"#,
        r#""num_hidden_layers":2,"layer_types":["full_attention"]"#,
    );
    fs::write(&file, short).unwrap();
    let output = kvwise(&["plan", file.to_str().unwrap(), "--gpu", "h100"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let refused = answer["feasibility"]["refused"].as_str().unwrap();
    assert!(
        refused.ends_with("layer_types names 1 layers, but num_hidden_layers is 2"),
        "{refused}"
    );
    assert_eq!(
        answer["fix"],
        "give layer_types one entry for each of the 2 layers, or set num_hidden_layers to 1"
    );
}

#[test]
fn a_configuration_that_is_no_text_or_a_gigabyte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let name = file.to_str().unwrap();
    fs::write(&file, b"\xff\xfe{\"architectures\": [\"LlamaForCausalLM\"]}").unwrap();
    refuses(&["plan", name, "--gpu", "h100"], "not valid JSON");
    fs::write(&file, b"{\"architectures\": [\"Llama\xff\"]}").unwrap();
    refuses(&["plan", name, "--gpu", "h100"], "invalid unicode");
    // A file with a hole: nothing is written, and nothing of it is read.
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    refuses(&["plan", name, "--gpu", "h100"], "longer than the 67108864 bytes");
}

#[test]
fn a_tensor_header_that_lies_about_its_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = llama_but("4096}", "4096}");
    fs::write(dir.path().join("config.json"), config).unwrap();
    let mut header = (1_u64 << 62).to_le_bytes().to_vec();
    header.extend_from_slice(b"{}");
    fs::write(dir.path().join("model.safetensors"), header).unwrap();
    refuses(
        &["plan", dir.path().to_str().unwrap(), "--gpu", "h100"],
        "it claims a header of 4611686018427387904 bytes",
    );
}

#[test]
fn drafters_and_classes_without_a_description_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    for (class, says) in [
        ("Eagle3LlamaForCausalLM", "drafts for another model"),
        ("Terratorch", "says nothing of layers"),
        ("NoSuchForCausalLM", "is not described here yet"),
    ] {
        fs::write(&file, llama_but("LlamaForCausalLM", class)).unwrap();
        refuses(&["plan", file.to_str().unwrap(), "--gpu", "h100"], says);
    }
}

#[test]
fn absurd_sizes_are_an_error_and_not_a_wrap() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4611686018427387904,"num_attention_heads":2,"num_key_value_heads":2,"num_hidden_layers":2,"intermediate_size":4611686018427387904,"vocab_size":4611686018427387904,"max_position_embeddings":4096}"#;
    fs::write(&file, config).unwrap();
    refuses(
        &["plan", file.to_str().unwrap(), "--gpu", "h100"],
        "more than the largest size",
    );
}

#[test]
fn an_output_file_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plan.json");
    let name = file.to_str().unwrap();
    refuses(
        &["plan", "nothing-like-it", "--gpu", "h100", "-o", name],
        "nor in the catalogue",
    );
    assert!(!file.exists());
    let done = kvwise(&["plan", "llama-3.1-8b", "--gpu", "h100", "-o", name]);
    assert_eq!(done.status.code(), Some(0));
    assert!(done.stdout.is_empty());
    let value: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(value["schema"], "kvwise.plan/1");
    refuses(
        &[
            "plan",
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "-o",
            "/nowhere/plan.json",
        ],
        "/nowhere/plan.json",
    );
}

#[test]
fn a_part_of_a_name_that_is_mistyped_is_corrected_word_by_word() {
    refuses(&["models", "lamma"], "Llama");
    refuses(
        &["models", "deepsek", "v3"],
        "did you mean deepseek-ai/DeepSeek-V3",
    );
    refuses(
        &["models", "xyzzyx"],
        "no model in the catalogue matches \"xyzzyx\"",
    );
}

#[test]
fn a_size_alone_is_planned_without_a_name() {
    refuses(
        &["plan", "mystery", "--params-b", "8", "--gpu", "h100"],
        "leave the name out: kvwise plan --params-b 8 --engine generic --gpu h100",
    );
    let output = kvwise(&["plan", "llama-3.1-8b", "--params-b", "20", "--gpu", "h100"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["model"]["params"], 8_030_261_248_u64);
    assert!(
        plan["feasibility"]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("--params-b is not used")
    );
    let output = kvwise(&["plan", "llama-3.1-8b", "--quantization", "awq", "--gpu", "h100"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        plan["feasibility"]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("vLLM makes none while it loads")
    );
}

#[test]
fn a_negative_value_is_refused_by_the_name_of_its_flag() {
    for (flag, value) in [
        ("--context", "-5"),
        ("--tp", "-1"),
        ("--headroom", "-1GiB"),
        ("--overhead", "-1GiB"),
        ("--gpu-memory", "-24GiB"),
        ("--params-b", "-8"),
        ("--gpu-memory-utilization", "-0.5"),
        ("--kv-cache-memory-bytes", "-5"),
        ("--gpus", "-2"),
        ("--fragmentation-factor", "-2"),
        ("--concurrency", "-1"),
        ("--block-size", "-16"),
    ] {
        let name = if flag == "--tp" {
            "--tensor-parallel-size"
        } else {
            flag
        };
        let output = kvwise(&["plan", "llama-3.1-8b", "--gpu", "h100", flag, value]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {stderr}");
        let first = stderr.lines().next().unwrap_or_default();
        assert!(
            first.contains(name) && first.contains(value),
            "{flag} {value}: {first}"
        );
    }
}
