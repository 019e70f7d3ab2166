//! `kvwise generate` from the outside: what is written, what is not, and what it says.

use std::fs;

use super::{kvwise, kvwise_table};

#[test]
fn the_script_has_every_flag_with_its_reason() {
    let output = kvwise(&[
        "generate",
        "Qwen/Qwen3-32B",
        "--gpu",
        "h100",
        "--tp",
        "2",
        "--kv-cache-dtype",
        "fp8",
        "--max-model-len",
        "32k",
        "--print",
        "serve_command.sh",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_manifest_is_complete() {
    let output = kvwise(&[
        "generate",
        "Qwen/Qwen3-32B",
        "--gpu",
        "h100",
        "--tp",
        "2",
        "--print",
        "k8s.yaml",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn files_are_written_once_and_replaced_only_by_force() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("out");
    let words = [
        "generate",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--output-dir",
        folder.to_str().unwrap(),
    ];
    assert_eq!(kvwise(&words).status.code(), Some(0));
    let again = kvwise(&words);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("--force"),
        "{again:?}"
    );
    let mut forced = words.to_vec();
    forced.push("--force");
    assert_eq!(kvwise(&forced).status.code(), Some(0));
    let plan: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("plan.json")).unwrap()).unwrap();
    assert_eq!(plan["schema"], "kvwise.plan/1");
}

#[test]
fn nothing_is_written_when_it_does_not_fit_or_is_only_tried() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("out");
    let out = folder.to_str().unwrap();
    let no = kvwise_table(&[
        "generate",
        "meta-llama/Llama-3.1-70B",
        "--gpu",
        "h100",
        "--output-dir",
        out,
    ]);
    assert_eq!(no.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&no.stdout).contains("nearest that fits: --tensor-parallel-size 2"));
    let tried = kvwise(&[
        "generate",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--output-dir",
        out,
        "--dry-run",
    ]);
    assert_eq!(tried.status.code(), Some(0));
    let bad = kvwise(&[
        "generate",
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--output-dir",
        out,
        "--emit",
        "helm",
    ]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(!folder.exists());
}

#[test]
fn the_script_of_llama_cpp_says_what_the_plan_rests_on() {
    let output = kvwise(&[
        "generate",
        "qwen3-8b",
        "--engine",
        "llamacpp",
        "--hf-repo",
        "ggml-org/Qwen3-8B-GGUF:Q4_K_M",
        "--gpu",
        "rtx-4090",
        "--context",
        "8k",
        "-c",
        "4",
        "--cache-type-v",
        "q8_0",
        "--print",
        "docker_command.sh",
    ]);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

/// A file of a server on two machines of eight GPUs.
fn of_two_machines(file: &str, more: &[&str]) -> String {
    let mut words = vec![
        "generate",
        "deepseek-ai/DeepSeek-V3",
        "--gpu",
        "h100",
        "--tp",
        "8",
    ];
    words.extend(["--pp", "2", "--max-model-len", "32k", "--print", file]);
    words.extend(more);
    String::from_utf8(kvwise(&words).stdout).unwrap()
}

#[test]
fn the_script_of_several_nodes_asks_for_rank_and_head() {
    insta::assert_snapshot!(of_two_machines("serve_command.sh", &[]));
}

#[test]
fn the_manifest_of_several_nodes_is_a_leader_worker_set() {
    insta::assert_snapshot!(of_two_machines("k8s.yaml", &[]));
}

#[test]
fn the_script_for_ray_joins_or_starts_a_cluster() {
    let ray = [
        "--distributed-executor-backend",
        "ray",
        "--image",
        "registry.local/vllm-ray:0.32",
    ];
    insta::assert_snapshot!(of_two_machines("docker_command.sh", &ray));
}
