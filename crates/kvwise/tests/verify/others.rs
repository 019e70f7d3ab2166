//! Logs of SGLang and llama.cpp.

use super::*;

/// Public logs of SGLang: what follows from logged memory by the engine's own rule is equal within the log's rounding.
#[test]
fn the_pool_of_a_sglang_server_follows_from_the_memory_it_logged() {
    let folder = folder();
    for (args, log, tokens, per_token) in [
        (vec!["--gpu", "rtx4090"], "sglang-qwen3-14b.log", 298_447, 40_960),
        (
            vec!["Qwen/Qwen2.5-32B-Instruct", "--gpu", "l4"],
            "sglang-qwq-32b.log",
            46_611,
            65_536,
        ),
    ] {
        let log = data(log);
        let args: Vec<&str> = args.into_iter().chain(["--log", &log]).collect();
        let (answer, status) = verify(folder.path(), &args);
        assert_eq!(answer["log"]["engine"], "sglang");
        let of_memory = row(&answer, "kv_tokens_of_logged_memory");
        assert_eq!(of_memory["actual"], tokens);
        assert_eq!(of_memory["status"], "equal", "{of_memory:#}");
        let (low, high) = (&of_memory["predicted_low"], &of_memory["predicted_high"]);
        // The interval is that of two decimals of a GiB, no wider.
        assert!(
            high.as_i64().unwrap() - low.as_i64().unwrap() < 400,
            "{of_memory:#}"
        );
        assert_eq!(row(&answer, "kv_bytes_per_token")["predicted"], per_token);
        assert_eq!(row(&answer, "kv_bytes_per_token")["status"], "equal");
        for name in ["weights", "available_kv", "kv_tokens"] {
            assert_eq!(row(&answer, name)["status"], "inside", "{name}: {answer:#}");
        }
        // Four cards over PCIe: NCCL's few channels, none of the engine's own all-reduce.
        assert_eq!(row(&answer, "free_before_load")["status"], "inside", "{answer:#}");
        assert_eq!(status, 0, "{answer:#}");
        let nvlink: Vec<&str> = args.iter().copied().chain(["--interconnect", "nvlink"]).collect();
        let (other, status) = verify(folder.path(), &nvlink);
        assert_eq!(row(&other, "free_before_load")["status"], "outside");
        assert_eq!(
            (&other["causes"][0]["term"], status),
            (&"free_before_load".into(), 1)
        );
        let inputs = &answer["deployment"]["inputs"];
        assert_eq!(inputs["tensor_parallel_size"], 4);
        assert_eq!(inputs["chunked_prefill_size"], 2048);
    }
    let (answer, status) = verify(
        folder.path(),
        &[
            "--gpu",
            "rtx4090",
            "--overhead",
            "0.44GiB",
            "--log",
            &data("sglang-qwen3-14b.log"),
        ],
    );
    let kv = &row(&answer, "available_kv")["error_of_gpu_percent"];
    assert!(kv.as_f64().unwrap().abs() < 1.0, "{kv}");
    assert_eq!(status, 0, "{answer:#}");
    assert_eq!(answer["agrees"], true, "{answer:#}");
    let log = data("sglang-qwen3-14b.log");
    let args = [
        "verify",
        "--gpu",
        "rtx4090",
        "--overhead",
        "0.44GiB",
        "--log",
        &log,
        "--format",
        "table",
    ];
    let text = kvwise(folder.path(), &args);
    insta::assert_snapshot!("verify_of_an_sglang_log", String::from_utf8(text.stdout).unwrap());
}

/// What the engine prints is not what was planned: the wrong type is found out.
#[test]
fn a_wrong_cache_type_is_found_out_in_the_other_engines_logs() {
    let folder = folder();
    let sglang = data("sglang-qwen3-14b.log");
    let (answer, status) = verify(
        folder.path(),
        &[
            "--gpu",
            "rtx4090",
            "--kv-cache-dtype",
            "fp8_e4m3",
            "--log",
            &sglang,
        ],
    );
    assert_eq!(status, 1);
    assert_eq!(row(&answer, "kv_bytes_per_token")["status"], "differs");
    assert_eq!(row(&answer, "kv_tokens_of_logged_memory")["status"], "differs");
    let llamacpp = data("llamacpp-30b.log");
    let (answer, status) = verify(
        folder.path(),
        &["Qwen/Qwen3-30B-A3B", "--cache-type-k", "q8_0", "--log", &llamacpp],
    );
    assert_eq!(status, 1);
    assert_eq!(row(&answer, "kv_cache")["status"], "differs");
}

/// Public logs of llama.cpp: caches are exact, weights of a mix within its interval.
#[test]
fn the_caches_of_a_llama_cpp_server_are_equal_to_the_byte() {
    let folder = folder();
    let log = data("llamacpp-30b.log");
    let (answer, status) = verify(folder.path(), &["Qwen/Qwen3-30B-A3B", "--log", &log]);
    assert_eq!(
        (status, answer["agrees"].as_bool()),
        (0, Some(true)),
        "{answer:#}"
    );
    assert_eq!(answer["deployment"]["gpu"], "a100-40gb-pcie");
    assert_eq!(answer["deployment"]["inputs"]["quantization"], "q8_0");
    assert_eq!(answer["deployment"]["inputs"]["kv_unified"], true);
    assert_eq!(row(&answer, "kv_cache")["predicted"], 6_442_450_944_i64);
    assert_eq!(row(&answer, "kv_cache")["status"], "equal");
    assert_eq!(row(&answer, "kv_cells")["status"], "equal");
    let weights = &row(&answer, "weights")["error_of_gpu_percent"];
    assert!(weights.as_f64().unwrap().abs() < 0.2, "{weights}");

    let log = data("llamacpp-4b.log");
    let (answer, status) = verify(folder.path(), &["--gpu", "rtx4090", "--log", &log]);
    assert_eq!(answer["deployment"]["model"], "Qwen/Qwen3-4B");
    assert_eq!(answer["deployment"]["inputs"]["quantization"], "q4_k_m");
    assert_eq!(row(&answer, "kv_cache")["predicted"], 1_207_959_552_i64);
    assert_eq!(row(&answer, "kv_cache")["status"], "equal");
    assert_eq!(row(&answer, "weights")["status"], "inside");
    // The log does not say whether logits of every token were reserved: the interval holds both.
    assert_eq!(row(&answer, "compute_buffer")["status"], "inside");
    assert_eq!(status, 0, "{answer:#}");
}

/// A start of llama.cpp b11549 on a CPU, of a file with the shape of Gemma-3-1B and two sequences of 1536 tokens.
#[test]
fn windows_that_llama_cpp_kept_in_full_are_planned_in_full() {
    let folder = folder();
    let log = data("llamacpp-swa-full.log");
    let (answer, _) = verify(
        folder.path(),
        &["google/gemma-3-1b-it", "--gpu", "rtx4090", "--log", &log],
    );
    assert_eq!(answer["deployment"]["inputs"]["swa_full"], true, "{answer:#}");
    assert_eq!(row(&answer, "kv_cache")["predicted"], 81_788_928_i64);
    assert_eq!(row(&answer, "kv_cache")["status"], "equal");
    assert_eq!(row(&answer, "kv_cells")["status"], "equal");
}

#[test]
fn what_the_other_engines_logs_leave_open_is_asked_for() {
    let folder = folder();
    let text = error(folder.path(), &["verify", "--log", &data("sglang-qwen3-14b.log")]);
    assert!(
        text.contains("which GPU?") && text.contains("the log does not say"),
        "{text}"
    );
    let log = std::fs::read_to_string(data("llamacpp-30b.log")).unwrap();
    let unheard = log.replace("Qwen3-Coder-30B-A3B-Instruct", "Unheard-30B-Instruct");
    let path = folder.path().join("unheard.log");
    std::fs::write(&path, unheard).unwrap();
    let text = error(folder.path(), &["verify", "--log", path.to_str().unwrap()]);
    assert!(text.contains("Unheard-30B-Instruct-Q8_0.gguf"), "{text}");
    assert!(text.contains("give its catalogue name"), "{text}");
    // The file's own name is enough where the catalogue has it.
    let (answer, status) = verify(folder.path(), &["--log", &data("llamacpp-30b.log")]);
    assert_eq!((&answer["agrees"], status), (&Value::Bool(true), 0), "{answer:#}");
}

/// Lines of a server of the autumn of 2024, set into that time's wordings: buffers of weights without a word of their own,
/// all of the cache in one line, logits reserved for every token.
#[test]
fn the_wordings_of_earlier_llama_cpp_builds_are_read() {
    let folder = folder();
    let log = data("llamacpp-2024.log");
    let (answer, status) = verify(folder.path(), &["--gpu", "rtx4090", "--log", &log]);
    assert_eq!(
        answer["deployment"]["model"],
        "mistralai/Mistral-7B-Instruct-v0.3"
    );
    assert_eq!(answer["deployment"]["inputs"]["quantization"], "q4_k_m");
    assert_eq!(row(&answer, "kv_cache")["status"], "equal", "{answer:#}");
    assert_eq!(row(&answer, "compute_buffer")["status"], "inside", "{answer:#}");
    let error = row(&answer, "compute_buffer")["error_of_gpu_percent"]
        .as_f64()
        .unwrap();
    assert!(error.abs() < 0.2, "{error}");
    assert_eq!(row(&answer, "weights")["status"], "inside", "{answer:#}");
    assert_eq!(status, 0, "{answer:#}");
}

/// Lines of logs as others quote them (the folder's README says where): recurrent layers beside quantised keys and values, and
/// the cache under its name of mid 2025.
#[test]
fn states_and_the_unified_cache_of_quoted_llama_cpp_logs_are_planned_as_logged() {
    for (args, log, cache) in [
        (
            // The lines name no file: what the log leaves open is given.
            &["Qwen/Qwen3.5-27B", "--quantization", "iq4_xs"][..],
            "llamacpp-recurrent.log",
            6_969_884_672_i64,
        ),
        (
            &["microsoft/Phi-3-mini-4k-instruct"][..],
            "llamacpp-unified.log",
            1_610_612_736,
        ),
    ] {
        let folder = folder();
        let log = data(log);
        let (answer, _) = verify(folder.path(), &[args, &["--log", &log]].concat());
        assert_eq!(row(&answer, "kv_cache")["predicted"], cache, "{answer:#}");
        assert_eq!(row(&answer, "kv_cache")["status"], "equal", "{answer:#}");
        if log.ends_with("recurrent.log") {
            assert_eq!(row(&answer, "state_cache")["status"], "equal", "{answer:#}");
        }
        assert_eq!(row(&answer, "compute_buffer")["status"], "inside", "{answer:#}");
    }
}

/// Lines of a start that was refused, in the words of 0.5.18 and later, on two ranks.
const REFUSED: &str = "\
[2026-09-12 00:22:11] server_args=ServerArgs(model_path='meta-llama/Llama-3.1-70B-Instruct', tp_size=2, mem_fraction_static=0.8, chunked_prefill_size=8192, page_size=1, quantization=None)
[2026-09-12 00:22:20 TP0] Load weight begin. avail mem=77.20 GB
[2026-09-12 00:22:20 TP1] Load weight begin. avail mem=77.20 GB
[2026-09-12 00:22:40 TP0] Load weight end. elapsed=36.9 s, type=LlamaForCausalLM, avail mem=11.42 GB, mem usage=65.78 GB.
[2026-09-12 00:22:40 TP1] Load weight end. elapsed=36.9 s, type=LlamaForCausalLM, avail mem=11.42 GB, mem usage=65.78 GB.
[2026-09-12 00:22:41 TP0] ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.8. Raise --mem-fraction-static above 0.853 (minimum viable = 1 - available/pre = 0.8521).
";

#[test]
fn a_refused_start_of_sglang_is_compared_with_the_plans_answer() {
    let folder = folder();
    let log = folder.path().join("refused.log");
    std::fs::write(&log, REFUSED).unwrap();
    let log = log.to_str().unwrap();
    let (answer, status) = verify(folder.path(), &["--gpu", "h100", "--log", log]);
    assert_eq!(answer["log"]["recognised"], 6, "{answer:#}");
    assert!(answer.to_string().contains("refused, as planned"), "{answer:#}");
    assert_eq!(row(&answer, "weights")["status"], "inside", "{answer:#}");
    assert_eq!(status, 0, "{answer:#}");
}

/// The lines of 0.4.3, which say neither what the weights took nor how many tokens the pool has (a start of 2025-02).
const OLD: &str = "\
[2025-02-04 05:21:40] server_args=ServerArgs(model_path='Qwen/Qwen2.5-7B-Instruct', tp_size=1, mem_fraction_static=0.88, chunked_prefill_size=2048)
[2025-02-04 05:21:40 TP0] Load weight begin. avail mem=22.76 GB
[2025-02-04 05:29:17 TP0] Load weight end. type=Qwen2ForCausalLM, dtype=torch.bfloat16, avail mem=8.37 GB
[2025-02-04 05:29:17 TP0] KV Cache is allocated. K size: 2.82 GB, V size: 2.82 GB.
[2025-02-04 05:29:17 TP0] Memory pool end. avail mem=1.68 GB
[2025-02-04 05:29:20 TP0] max_total_num_tokens=105531, chunked_prefill_size=2048, max_prefill_tokens=16384, max_running_requests=2049, context_len=131072
";

#[test]
fn a_log_of_an_old_sglang_says_what_the_weights_took_by_what_is_left() {
    let folder = folder();
    let log = folder.path().join("old.log");
    std::fs::write(&log, OLD).unwrap();
    let log = log.to_str().unwrap();
    let (answer, _) = verify(folder.path(), &["--gpu", "rtx-4090", "--log", log]);
    let weights = row(&answer, "weights")["actual"].as_f64().unwrap();
    assert!((weights / f64::from(1 << 30) - 14.39).abs() < 0.01, "{answer:#}");
    let tokens = row(&answer, "kv_tokens_of_logged_memory");
    assert_eq!(tokens["actual"], 105_531);
    assert_eq!(tokens["status"], "equal", "{tokens:#}");
}

/// What the log of a GPU's own name says is enough to find it.
#[test]
fn the_gpu_of_an_sglang_server_is_found_in_the_names_of_its_tuned_kernels() {
    let folder = folder();
    let log = data("sglang-grok.log");
    let (answer, _) = verify(folder.path(), &["Qwen/Qwen3-30B-A3B", "--log", &log]);
    assert_eq!(answer["deployment"]["gpu"], "h100");
    assert_eq!(row(&answer, "free_before_load")["status"], "inside", "{answer:#}");
}

/// A saved log brings the plan of the same deployment to what was measured.
#[test]
fn saved_logs_of_the_other_engines_correct_their_plans() {
    for (args, log, term) in [
        (vec!["--gpu", "rtx4090"], "sglang-qwen3-14b.log", "available_kv"),
        (vec!["Qwen/Qwen3-30B-A3B"], "llamacpp-30b.log", "compute_buffer"),
    ] {
        let folder = folder();
        let log = data(log);
        let args: Vec<&str> = args.into_iter().chain(["--log", &log]).collect();
        let (before, _) = verify(folder.path(), &args);
        assert_eq!(before["calibration"], Value::Null);
        let (saved, _) = verify(folder.path(), &[args.clone(), vec!["--save"]].concat());
        assert_eq!(saved["saved"]["id"], 1, "{saved:#}");
        let (after, status) = verify(folder.path(), &args);
        assert_eq!(after["calibration"]["scope"], "deployment", "{after:#}");
        let error = row(&after, term)["error_of_gpu_percent"].as_f64().unwrap();
        assert!(error.abs() < 1.0, "{error}");
        assert_eq!(status, 0, "{after:#}");
    }
}
