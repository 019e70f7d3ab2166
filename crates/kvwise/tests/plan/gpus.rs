//! GPUs of this machine and of the user's file, through the program; makers' tools are stand-ins on the path.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn nvidia_smi(folder: &Path, rows: &str) {
    let file = folder.join("nvidia-smi");
    fs::write(&file, format!("#!/bin/sh\n/bin/cat <<'END'\n{rows}END\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn kvwise(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(args)
        .env("PATH", folder)
        .env("KVWISE_CONFIG_DIR", folder)
        .env("KVWISE_GPU_TOOLS_ONLY", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("NO_COLOR", "1")
        .env_remove("KVWISE_FORMAT")
        .env_remove("CUDA_VISIBLE_DEVICES")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const IDLE: &str =
    "0, NVIDIA L4, GPU-1, 23034, 22562, [N/A], 8.9\n1, NVIDIA L4, GPU-2, 23034, 22562, [N/A], 8.9\n";

#[test]
fn the_gpus_of_this_machine_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    nvidia_smi(dir.path(), IDLE);
    let done = kvwise(dir.path(), &["gpus", "--detect", "--format", "table"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    insta::assert_snapshot!("gpus_detect", text(&done.stdout));
    let json: serde_json::Value =
        serde_json::from_slice(&kvwise(dir.path(), &["gpus", "--detect"]).stdout).unwrap();
    assert_eq!(json["schema"], "kvwise.detected_gpus/1");
    assert_eq!(json["gpus"][1]["catalogue_name"], "l4");
    assert_eq!(json["gpus"][1]["free_bytes"], 22_562_u64 << 20);
}

#[test]
fn a_gpu_that_others_use_is_named_with_what_still_starts() {
    let dir = tempfile::tempdir().unwrap();
    nvidia_smi(
        dir.path(),
        "0, NVIDIA L4, GPU-1, 23034, 22562, [N/A], 8.9\n1, NVIDIA L4, GPU-2, 23034, 15000, [N/A], 8.9\n",
    );
    let done = kvwise(dir.path(), &["gpus", "--detect", "--format", "table"]);
    assert_eq!(done.status.code(), Some(0));
    insta::assert_snapshot!("gpus_detect_used", text(&done.stderr));
}

#[test]
fn a_machine_without_gpus_is_a_no_for_the_list_and_an_error_for_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let done = kvwise(dir.path(), &["gpus", "--detect"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("no GPU is visible"));
    let done = kvwise(dir.path(), &["plan", "llama-3.1-8b", "--gpu", "auto"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(
        text(&done.stderr).contains("--gpu auto: no GPU is visible"),
        "{}",
        text(&done.stderr)
    );
    assert!(done.stdout.is_empty());
}

#[test]
fn a_plan_for_this_machine_is_the_catalogues_plan_while_the_gpus_are_idle() {
    let dir = tempfile::tempdir().unwrap();
    nvidia_smi(dir.path(), IDLE);
    let plan = |gpu: &str| -> serde_json::Value {
        let done = kvwise(dir.path(), &["plan", "qwen3-4b", "--gpu", gpu, "--tp", "2"]);
        serde_json::from_slice(&done.stdout).unwrap()
    };
    assert_eq!(plan("auto")["memory"], plan("l4")["memory"]);
    assert_eq!(plan("auto")["feasibility"]["fits"], true);
}

#[test]
fn memory_that_others_use_keeps_the_engine_from_starting_and_the_answer_says_at_what_it_would() {
    let dir = tempfile::tempdir().unwrap();
    nvidia_smi(dir.path(), "0, NVIDIA L4, GPU-1, 23034, 15000, [N/A], 8.9\n");
    let done = kvwise(dir.path(), &["plan", "qwen3-4b", "--gpu", "auto"]);
    assert_eq!(done.status.code(), Some(1));
    let plan: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(plan["feasibility"]["fits"], false);
    assert!(
        plan["verdict"]
            .as_str()
            .unwrap()
            .starts_with("does not start: 14.65 GiB of 22.0"),
        "{plan}"
    );
    let advice = plan["feasibility"]["warnings"].to_string();
    let at = advice
        .split("--gpu-memory-utilization ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let args = [
        "plan",
        "qwen3-4b",
        "--gpu",
        "auto",
        "--gpu-memory-utilization",
        at,
    ];
    assert_eq!(kvwise(dir.path(), &args).status.code(), Some(0));
}

#[test]
fn a_users_own_gpu_is_listed_and_planned_with_and_a_broken_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gpus.toml");
    let row = "[[gpu]]\nname = \"lab-card\"\ntitle = \"Card\"\nmemory_mib = 48000\ncompute = \"9.0\"\n\
               bandwidth_gbps = 900\ntflops = { fp16 = 100 }\npcie_gbps = 32\nsource = \"us\"\ndate = \"2026-11-01\"\n";
    fs::write(&file, row).unwrap();
    let listed = kvwise(dir.path(), &["gpus", "--format", "table"]);
    assert!(
        text(&listed.stdout).contains("lab-card"),
        "{}",
        text(&listed.stderr)
    );
    let done = kvwise(dir.path(), &["plan", "qwen3-4b", "--gpu", "lab-card"]);
    let plan: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(plan["gpu"]["driver_memory_bytes"], 48_000_u64 << 20);
    fs::write(&file, row.replace("48000", "\"much\"")).unwrap();
    let done = kvwise(dir.path(), &["plan", "qwen3-4b", "--gpu", "h100"]);
    assert_eq!(done.status.code(), Some(2));
    let stderr = text(&done.stderr);
    assert!(
        stderr.contains("gpus.toml: line 4 (\"memory_mib = \"much\"\")"),
        "{stderr}"
    );
}

#[test]
fn a_slice_is_planned_like_a_small_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let done = kvwise(
        dir.path(),
        &[
            "plan",
            "qwen3-4b",
            "--gpu",
            "h100-1g.20gb",
            "--max-model-len",
            "8192",
        ],
    );
    let plan: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{plan}");
    let listed = kvwise(dir.path(), &["gpus", "h100", "--format", "table"]);
    assert!(text(&listed.stdout).contains("h100-1g.20gb"));
    let all = kvwise(dir.path(), &["gpus", "--format", "table"]);
    assert!(!text(&all.stdout).contains("1g.20gb"));
}
