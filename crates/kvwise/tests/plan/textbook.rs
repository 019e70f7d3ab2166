//! Worked examples that textbooks and earlier planners print, with their right values. The published figures that were
//! wrong are listed on the page docs/src/reference/textbook-examples.md.
#![expect(clippy::float_cmp, reason = "whole numbers and exact powers of two")]

use serde_json::Value;

use super::plan;

const GIB: f64 = 1_073_741_824.0;

/// A 24 GiB card, nine tenths of it used, 16-bit weights.
fn card<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        model,
        "--engine",
        "generic",
        "--gpu-memory",
        "24GiB",
        "--gpu-memory-utilization",
        "0.9",
        "--dtype",
        "fp16",
        "--context",
        "4096",
    ];
    args.extend_from_slice(more);
    args
}

fn number(plan: &Value, path: &str) -> f64 {
    plan.pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} is not a number in {plan:#}"))
}

#[track_caller]
fn near(actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 0.006, "{actual} is not {expected}");
}

#[test]
fn llama_2_7b_has_2_gib_of_cache_at_4096_tokens_and_2_3_with_the_margin() {
    let (plain, _) = plan(&card("llama-2-7b", &["--fragmentation-factor", "1"]));
    assert_eq!(number(&plain, "/feasibility/kv_cache_gb"), 2.0);
    let (with, status) = plan(&card("llama-2-7b", &["--params-b", "7"]));
    assert_eq!(status, 0);
    assert_eq!(
        (number(&with, "/feasibility/kv_cache_gb") * GIB).round(),
        2_469_606_195.0
    );
    // 7.0 billion parameters in 16 bits are 14.0 GB, which are 13.04 GiB.
    assert_eq!(number(&with, "/weights/total_bytes"), 14e9);
    near(number(&with, "/feasibility/weights_gb"), 13.04);
    near(number(&with, "/feasibility/overhead_gb"), 1.0);
    near(number(&with, "/feasibility/vram_target_alloc_gb"), 21.6);
    near(number(&with, "/feasibility/headroom_gb"), 5.26);
    assert_eq!(with["feasibility"]["oom_risk"], "low");
    assert_eq!(with["feasibility"]["max_concurrency_at_context"], 3);
}

#[test]
fn the_true_parameter_count_of_llama_2_7b_is_6_738_billion() {
    let (plan, _) = plan(&card("llama-2-7b", &[]));
    assert_eq!(number(&plan, "/model/params"), 6_738_415_616.0);
    near(number(&plan, "/feasibility/weights_gb"), 12.55);
}

#[test]
fn an_8_bit_cache_halves_and_grouped_heads_quarter_it() {
    let (fp8, _) = plan(&card("llama-2-7b", &["--kv-cache-dtype", "fp8_e4m3fn"]));
    near(number(&fp8, "/feasibility/kv_cache_gb"), 1.15);
    let (gqa, _) = plan(&card("llama-3-8b", &[]));
    near(number(&gqa, "/feasibility/kv_cache_gb"), 0.575);
    let (both, _) = plan(&card(
        "llama-3-8b",
        &["--kv-cache-dtype", "fp8", "--params-b", "8"],
    ));
    near(number(&both, "/feasibility/kv_cache_gb"), 0.2875);
    near(number(&both, "/feasibility/weights_gb"), 14.90);
    near(number(&both, "/feasibility/headroom_gb"), 5.41);
    let (own, _) = plan(&card("llama-3-8b", &["--kv-cache-dtype", "fp8"]));
    near(number(&own, "/feasibility/headroom_gb"), 5.35);
}

#[test]
fn four_bit_weights_of_7_billion_are_3_59_gib_and_8_bit_ones_6_52() {
    for (method, expected) in [("awq", 3.59), ("gptq", 3.59), ("int8", 6.52), ("fp8", 6.52)] {
        let (plan, _) = plan(&card(
            "llama-2-7b",
            &["--params-b", "7", "--quantization", method],
        ));
        near(number(&plan, "/feasibility/weights_gb"), expected);
    }
}

#[test]
fn overhead_is_a_gib_or_two_percent_and_a_quarter_for_each_further_rank() {
    let overhead = |memory: &str, tp: &str| {
        let (plan, _) = plan(&[
            "llama-2-7b",
            "--engine",
            "generic",
            "--gpu-memory",
            memory,
            "--tp",
            tp,
            "--context",
            "4096",
        ]);
        number(&plan, "/feasibility/overhead_gb")
    };
    near(overhead("24GiB", "1"), 1.0);
    near(overhead("80GiB", "1"), 1.6);
    near(overhead("24GiB", "2"), 1.25);
}

#[test]
fn a_70b_model_takes_320_kib_a_token_1_25_gib_at_4k_and_10_gib_at_32k() {
    let (plan, _) = plan(&[
        "llama-3.1-70b",
        "--engine",
        "generic",
        "--gpu",
        "h200",
        "--gpus",
        "4",
        "--tp",
        "1",
        "--pp",
        "4",
        "--fragmentation-factor",
        "1",
        "--context",
        "4096,32768",
        "--headroom",
        "0B",
    ]);
    // Four stages hold a quarter of the layers each.
    assert_eq!(plan["grid"][0]["kv_bytes"], 5 * (1_u64 << 30) / 4 / 4);
    assert_eq!(plan["grid"][1]["kv_bytes"], 10 * (1_u64 << 30) / 4);
    assert_eq!(plan["kv_cache"]["bytes_per_token"], 327_680 / 4);
}

#[test]
fn the_published_parameter_totals_are_met() {
    // Totals that the model hub shows for these checkpoints.
    for (model, params) in [
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320_u64),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552),
        ("mistralai/Mistral-Nemo-Instruct-2407", 12_247_782_400),
        ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552),
        ("microsoft/phi-4", 14_659_507_200),
        ("google/gemma-2-2b", 2_614_341_888),
        ("google/gemma-2-9b", 9_241_705_984),
        ("google/gemma-2-27b", 27_227_128_320),
    ] {
        let (plan, _) = plan(&[model, "--engine", "generic", "--gpu", "b300", "--context", "1024"]);
        assert_eq!(plan["model"]["params"], params, "{model}");
    }
}

/// What 480 GB hold, which is where the textbook's division by hand begins: 60 GB on each of eight GPUs.
#[test]
fn memory_of_480_gb_holds_357_requests_of_a_70b_model_at_4k_and_11_at_128k() {
    let (plan, status) = plan(&[
        "llama-3.1-70b",
        "--gpu",
        "h100",
        "--tp",
        "8",
        "--kv-cache-memory-bytes",
        "60000000000",
        "--context",
        "4096,8192,32768,131072",
    ]);
    assert_eq!(status, 0);
    let most: Vec<_> = (0..4)
        .map(|i| plan["grid"][i]["max_concurrency_at_context"].as_u64().unwrap())
        .collect();
    assert_eq!(most, [357, 178, 44, 11]);
    // 480 GB over 327,680 B a token, in whole blocks of 16 tokens.
    assert_eq!(plan["kv_cache"]["capacity_tokens"], 1_464_843 / 16 * 16);
}

#[test]
fn ranks_divide_weights_and_memory_alike() {
    // Weights of one rank against the memory of four cards gave 176 requests.
    let (plan, _) = plan(&[
        "llama-2-70b",
        "--engine",
        "generic",
        "--gpu-memory",
        "80GiB",
        "--tp",
        "4",
        "--context",
        "4096",
    ]);
    assert_eq!(plan["feasibility"]["max_concurrency_at_context"], 104);
    near(number(&plan, "/feasibility/headroom_gb"), 37.17);
}

#[test]
fn heads_are_those_of_the_model_and_not_of_its_successor() {
    for (model, bytes) in [
        ("Qwen/Qwen1.5-72B", 655_360 * 4),
        ("Qwen/Qwen2-72B-Instruct", 81_920 * 4),
    ] {
        let (plan, _) = plan(&[
            model,
            "--engine",
            "generic",
            "--gpu",
            "h100",
            "--tp",
            "4",
            "--context",
            "4096",
        ]);
        assert_eq!(
            number(&plan, "/kv_cache/bytes_per_token") * 4.0,
            f64::from(bytes),
            "{model}"
        );
    }
}

#[test]
fn gpt_2_has_36_kib_a_token_and_no_request_of_2048() {
    let (plan, status) = plan(&["gpt2", "--gpu", "l4", "--context", "2048"]);
    assert_eq!(status, 1);
    assert_eq!(number(&plan, "/feasibility/kv_cache_gb") * GIB, 75_497_472.0);
    assert_eq!(plan["feasibility"]["max_context_at_concurrency"], 1024);
}

#[test]
fn the_pool_does_not_depend_on_the_longest_request_and_a_block_more_is_all_that_is_lost() {
    let pool = |length: &str| {
        let (plan, _) = plan(&[
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "--max-model-len",
            length,
            "--context",
            "100",
        ]);
        // 100 tokens are seven blocks of 16: 112 tokens at 128 KiB.
        assert_eq!(
            number(&plan, "/feasibility/kv_cache_gb") * GIB,
            f64::from(112 * 131_072)
        );
        plan["kv_cache"]["num_blocks"].as_u64().unwrap()
    };
    assert_eq!(pool("8192"), pool("32768"));
}

#[test]
fn the_share_of_a_gpu_is_092_unless_a_version_or_the_user_says_otherwise() {
    for (version, share) in [("0.32.0", 0.92), ("0.8.5", 0.9)] {
        let (plan, _) = plan(&["llama-3.1-8b", "--gpu", "h100", "--engine-version", version]);
        let budget = number(&plan, "/memory/budget_bytes") / number(&plan, "/memory/gpu_bytes");
        assert!((budget - share).abs() < 1e-6, "{version}: {budget}");
    }
}

/// The log of a real server (vLLM 0.15.0, gpt-oss-120b on four GPUs) says 5,863,776 tokens and 84.12 requests of 131,072
/// tokens, where tokens divided by length are 44.74.
#[test]
fn windows_let_gpt_oss_serve_84_requests_where_tokens_over_length_are_45() {
    let (plan, _) = plan(&[
        "openai/gpt-oss-120b",
        "--gpu",
        "h200",
        "--tp",
        "4",
        "--engine-version",
        "0.15.0",
        "--num-gpu-blocks-override",
        "732972",
    ]);
    assert_eq!(plan["kv_cache"]["bytes_per_block"][0], 147_456);
    assert_eq!(plan["kv_cache"]["capacity_tokens"], 5_863_776);
    near(number(&plan, "/kv_cache/max_concurrency"), 84.12);
}
