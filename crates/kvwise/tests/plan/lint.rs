//! `kvwise lint` from the outside.

use super::{kvwise, kvwise_table};

#[test]
fn the_findings_for_people_say_what_is_wrong_and_what_to_write_instead() {
    let output = kvwise_table(&[
        "lint",
        "--gpu",
        "h100",
        "vllm",
        "serve",
        "Qwen/Qwen3-32B",
        "-tp",
        "2",
        "--swap-space",
        "4",
        "--kv-cache-dtype",
        "fp8_e4m3fn",
        "--gpu-memory-utilization",
        "0.92",
        "--max-model-len",
        "32k",
        "--max-modl-len",
        "8k",
    ]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[test]
fn a_clean_command_is_clean_and_nothing_to_read_is_an_error() {
    let clean = kvwise(&[
        "lint",
        "--gpu",
        "h100",
        "vllm",
        "serve",
        "Qwen/Qwen3-32B",
        "-tp",
        "2",
    ]);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    let value: serde_json::Value = serde_json::from_slice(&clean.stdout).unwrap();
    assert_eq!(value["errors"], 0);
    let nothing = kvwise(&["lint", "echo", "hello"]);
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
}

#[test]
fn limits_of_images_are_planned_in_both_spellings() {
    let verdict = |words: &[&str]| {
        let command = [
            "lint",
            "--gpu",
            "h100",
            "vllm",
            "serve",
            "Qwen/Qwen2.5-VL-7B-Instruct",
        ];
        let output = kvwise(&[&command[..], words].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        value["servers"][0]["verdict"].to_string()
    };
    let bare = verdict(&[]);
    let json = verdict(&["--limit-mm-per-prompt", r#"{"image": 0, "video": 0}"#]);
    let dotted = verdict(&[
        "--limit-mm-per-prompt.image",
        "0",
        "--limit-mm-per-prompt.video=0",
    ]);
    assert!(bare.contains("KV cache"), "{bare}");
    assert_ne!(bare, json);
    assert_eq!(json, dotted);
}
