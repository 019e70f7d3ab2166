//! Models of the hub through the program: the hub's cache on disk, and a server that stands in for the hub.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":1024,"num_attention_heads":16,"num_key_value_heads":4,"num_hidden_layers":4,"intermediate_size":2048,"vocab_size":1000,"max_position_embeddings":4096,"torch_dtype":"bfloat16"}"#;

fn kvwise(home: &Path, endpoint: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
    command
        .args(["plan", "some-lab/tiny", "--gpu", "l4", "--format", "json"])
        .args(more);
    for name in [
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "KVWISE_CACHE",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    command
        .env("HOME", home)
        .env("HF_HOME", home.join("hf"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("HF_ENDPOINT", endpoint)
        .env("NO_COLOR", "1")
        .output()
        .expect("the program starts")
}

/// Answers what a hub would, for a repository with a configuration and no tensors.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            let mut rest = String::new();
            while reader.read_line(&mut rest).unwrap_or(0) > 2 {
                rest.clear();
            }
            let (status, body) = if line.contains("/api/models/some-lab/tiny/revision/main ") {
                (
                    200,
                    format!(r#"{{"sha":"{SHA}","siblings":[{{"rfilename":"config.json"}}]}}"#),
                )
            } else if line.contains(&format!("/some-lab/tiny/resolve/{SHA}/config.json ")) {
                (200, CONFIG.to_owned())
            } else {
                (404, String::new())
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    url
}

#[test]
fn a_model_of_the_hub_is_planned_and_the_second_time_without_network() {
    let home = tempfile::tempdir().unwrap();
    let hub = hub();
    let first = kvwise(home.path(), &hub, &[]);
    let stderr = String::from_utf8_lossy(&first.stderr);
    assert_eq!(first.status.code(), Some(0), "{stderr}");
    let plan: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(plan["model"]["name"], "some-lab/tiny");
    assert!(
        plan.to_string()
            .contains("hub: some-lab/tiny at main (0123456789ab)"),
        "{plan}"
    );
    let second = kvwise(home.path(), &hub, &["--offline"]);
    let again: serde_json::Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(again["memory"], plan["memory"]);
    // another hub has another cache
    let none = kvwise(home.path(), "http://127.0.0.1:9", &["--offline"]);
    assert_eq!(none.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&none.stderr);
    assert!(
        stderr.contains("--offline forbids") && stderr.contains("127.0.0.1_9"),
        "{stderr}"
    );
}

#[test]
fn the_hubs_own_cache_is_enough() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("hf/hub/models--some-lab--tiny");
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::create_dir_all(folder.join("snapshots").join(SHA)).unwrap();
    fs::write(folder.join("refs/main"), SHA).unwrap();
    fs::write(folder.join("snapshots").join(SHA).join("config.json"), CONFIG).unwrap();
    let done = kvwise(home.path(), "http://127.0.0.1:9", &[]);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let plan: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(
        plan.to_string().contains("hub cache: some-lab/tiny at main"),
        "{plan}"
    );
}

#[test]
fn a_hub_that_is_not_there_is_one_sentence_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let done = kvwise(home.path(), "http://127.0.0.1:9", &[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(done.stdout.is_empty());
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(
        stderr.contains("nor in the catalogue; on the hub: http://127.0.0.1:9/api"),
        "{stderr}"
    );
    assert!(stderr.contains("HTTPS_PROXY"), "{stderr}");
}
