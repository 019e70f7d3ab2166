//! What the commands print: whole outputs as snapshots, and the fields that others rely on.

use serde_json::Value;

use super::{kvwise, kvwise_table, plan};

fn table(args: &[&str]) -> String {
    let output = kvwise_table(args);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    format!("status {}\n{text}", output.status.code().unwrap())
}

#[test]
fn a_plan_for_people_begins_with_the_verdict() {
    insta::assert_snapshot!(table(&[
        "plan",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--context",
        "8k",
        "--concurrency",
        "4"
    ]));
}

#[test]
fn what_does_not_fit_says_how_much_is_missing_and_what_would_help() {
    let text = table(&["plan", "meta-llama/Llama-3.1-70B", "--gpu", "h100"]);
    assert!(text.starts_with("status 1\ndoes not fit: "), "{text}");
    assert!(text.contains("\nfix: --tensor-parallel-size "), "{text}");
}

#[test]
fn explain_derives_every_number() {
    insta::assert_snapshot!(table(&[
        "plan",
        "Qwen/Qwen3-32B",
        "--gpu",
        "h100",
        "--tp",
        "2",
        "--kv-cache-memory-bytes",
        "10000000000",
        "--explain"
    ]));
}

#[test]
fn the_start_is_useful_without_arguments() {
    let output = kvwise(&[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("kvwise plan "));
}

#[test]
fn the_fields_of_the_schema_are_there() {
    let (plan, status) = plan(&["llama-3.1-8b", "--gpu", "h100"]);
    assert_eq!(status, 0);
    assert_eq!(plan["schema"], "kvwise.plan/1");
    for path in [
        "/inputs",
        "/model/name",
        "/model/architecture",
        "/model/params",
        "/model/params_active",
        "/engine/name",
        "/engine/version",
        "/gpu/name",
        "/gpu/count",
        "/gpu/memory_bytes",
        "/weights/total_bytes",
        "/weights/bytes_per_rank/0",
        "/weights/source",
        "/kv_cache/dtype",
        "/kv_cache/block_size",
        "/kv_cache/bytes_per_block/0",
        "/kv_cache/num_blocks",
        "/kv_cache/capacity_tokens",
        "/kv_cache/max_concurrency",
        "/kv_cache/available_bytes",
        "/kv_cache/bytes_per_token",
        "/kv_cache/groups/0/kind",
        "/kv_cache/groups/0/layers",
        "/kv_cache/groups/0/block_size",
        "/kv_cache/groups/0/page_bytes",
        "/kv_cache/groups/0/blocks_per_request",
        "/memory/gpu_bytes",
        "/memory/budget_bytes",
        "/memory/components/0/name",
        "/memory/components/0/bytes",
        "/memory/components/0/low_bytes",
        "/memory/components/0/high_bytes",
        "/memory/components/0/basis",
        "/memory/components/0/formula",
        "/memory/headroom_bytes",
        "/feasibility/fits",
        "/feasibility/oom_risk",
        "/feasibility/vram_total_gb",
        "/feasibility/vram_target_alloc_gb",
        "/feasibility/weights_gb",
        "/feasibility/kv_cache_gb",
        "/feasibility/overhead_gb",
        "/feasibility/headroom_gb",
        "/feasibility/max_concurrency_at_context",
        "/feasibility/max_context_at_concurrency",
        "/feasibility/refused",
        "/feasibility/warnings",
        "/recommended",
        "/performance/prefill_tokens_per_s/low",
        "/performance/decode_tokens_per_s/high",
        "/performance/ttft_ms/low",
        "/performance/basis",
    ] {
        assert!(plan.pointer(path).is_some(), "{path} is missing");
    }
}

#[test]
fn components_add_up_to_the_memory_of_the_gpu() {
    for args in [
        &["llama-3.1-8b", "--gpu", "h100"][..],
        &["Qwen/Qwen3-32B", "--gpu", "l40s", "--tp", "4"],
        &[
            "llama-2-7b",
            "--engine",
            "generic",
            "--gpu",
            "rtx-4090",
            "--context",
            "4096",
        ],
    ] {
        let (plan, _) = plan(args);
        let components = plan["memory"]["components"].as_array().unwrap();
        let sum: u64 = components.iter().map(|c| c["bytes"].as_u64().unwrap()).sum();
        assert_eq!(sum, plan["memory"]["gpu_bytes"].as_u64().unwrap(), "{args:?}");
        for c in components {
            let ends = (
                c["low_bytes"].as_u64(),
                c["bytes"].as_u64(),
                c["high_bytes"].as_u64(),
            );
            assert!(ends.0 <= ends.1 && ends.1 <= ends.2, "{c}");
            assert_eq!(c["basis"] == "exact", ends.0 == ends.2, "{c}");
        }
    }
}

#[test]
fn vllms_own_figures_are_met_with_a_given_pool() {
    // vLLM 0.32.0's own planner, 60 GiB a rank, TP 8: 122,880 blocks of 524,288 bytes, 48 requests of 40,960 tokens.
    let (plan, status) = plan(&[
        "Qwen/Qwen3-32B",
        "--gpu",
        "h100",
        "--tp",
        "8",
        "--kv-cache-memory-bytes",
        "64424509440",
    ]);
    assert_eq!(status, 0);
    let kv = &plan["kv_cache"];
    assert_eq!(kv["num_blocks"], 122_880);
    assert_eq!(kv["bytes_per_block"], serde_json::json!([524_288]));
    assert_eq!(kv["capacity_tokens"], 1_966_080);
    assert_eq!(kv["max_concurrency"], 48.0);
    assert_eq!(kv["available_bytes"], 64_424_509_440_u64);
    assert_eq!(
        plan["weights"]["bytes_per_rank"],
        serde_json::json!([8_191_715_328_u64])
    );
}

#[test]
fn the_pool_is_computed_where_the_weights_do_not_fit() {
    let (plan, status) = plan(&[
        "meta-llama/Llama-3.1-70B",
        "--gpu",
        "rtx-4090",
        "--kv-cache-memory-bytes",
        "10737418240",
    ]);
    assert_eq!(status, 1);
    assert_eq!(plan["feasibility"]["fits"], false);
    assert_eq!(plan["kv_cache"]["available_bytes"], 10_737_418_240_u64);
    assert!(plan["kv_cache"]["num_blocks"].as_u64().unwrap() > 0);
}

#[test]
fn what_the_engine_would_refuse_is_an_answer() {
    let (plan, status) = plan(&["Qwen/Qwen2.5-0.5B-Instruct", "--gpu", "h100", "--tp", "4"]);
    assert_eq!(status, 1);
    // 14 heads cannot be divided by 4 ranks.
    assert!(
        plan["feasibility"]["refused"].as_str().unwrap().contains("14"),
        "{}",
        plan["feasibility"]
    );
    let (plan, status) = super::plan(&["llama-3.1-8b", "--gpu", "h100", "--max-model-len", "200000"]);
    assert_eq!(status, 1);
    assert!(plan["feasibility"]["refused"].is_string());
}

#[test]
fn several_loads_make_a_grid() {
    let (plan, _) = plan(&[
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--context",
        "4096,8192",
        "--concurrency",
        "1,8",
    ]);
    let grid = plan["grid"].as_array().unwrap();
    let pairs: Vec<(u64, u64)> = grid
        .iter()
        .map(|row| {
            (
                row["context"].as_u64().unwrap(),
                row["concurrency"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(pairs, [(4096, 1), (4096, 8), (8192, 1), (8192, 8)]);
    let kv = |i: usize| grid[i]["kv_bytes"].as_u64().unwrap();
    assert_eq!(kv(1), 8 * kv(0));
    assert_eq!(kv(2), 2 * kv(0));
}

#[test]
fn formats_agree_on_the_numbers() {
    let args = ["plan", "llama-3.1-8b", "--gpu", "h100", "--format"];
    let run = |format: &str| {
        let words: Vec<&str> = args.iter().copied().chain([format]).collect();
        String::from_utf8(kvwise(&words).stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&run("json")).unwrap();
    let weights = json["memory"]["components"][0]["bytes"].to_string();
    assert!(
        run("csv")
            .lines()
            .nth(1)
            .unwrap()
            .starts_with(&format!("weights,{weights},{weights},"))
    );
    assert!(run("markdown").contains("| K KV cache |"));
}

#[test]
fn a_profile_written_by_one_run_is_read_by_the_next_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.yaml");
    let file = file.to_str().unwrap();
    let (first, _) = plan(&[
        "Qwen/Qwen3-32B",
        "--gpu",
        "h100",
        "--tp",
        "2",
        "--max-num-seqs",
        "64",
        "--enforce-eager",
        "--save-profile",
        file,
    ]);
    let (second, _) = plan(&["--profile", file]);
    assert_eq!(first, second);
    let (third, _) = plan(&["--profile", file, "--gpu", "h200"]);
    assert_eq!(third["gpu"]["name"], "h200");
}

#[test]
fn catalogues_list_and_search() {
    let gpus = table(&["gpus", "h100"]);
    assert!(gpus.contains("h100-nvl") && !gpus.contains("rtx-4090"), "{gpus}");
    let all: Value = serde_json::from_slice(&kvwise(&["models"]).stdout).unwrap();
    let models = all["models"].as_array().unwrap();
    assert!(models.len() >= 100);
    assert!(
        models
            .iter()
            .all(|m| m["source"].is_string() && m["date"].is_string())
    );
}

#[test]
fn completions_and_manual_pages_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = kvwise(&["completions", shell]);
        assert!(
            String::from_utf8_lossy(&script.stdout).contains("kvwise"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let output = kvwise(&["man", "--output-dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    for page in ["kvwise.1", "kvwise-plan.1", "kvwise-gpus.1"] {
        assert!(dir.path().join(page).is_file(), "{page}");
    }
}
