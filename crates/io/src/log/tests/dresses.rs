//! One boot in all the dresses that logs come in: what a terminal, a container runtime, a cluster and a log shipper make of it.

use super::{gib, read_text};
use crate::log::{Boot, Value};

/// Lines of a start of vLLM 0.10.2 on four H100, with two workers shown; derived from the sources' format strings.
const LINES: [&str; 10] = [
    "(APIServer pid=7) INFO 09-15 04:40:02 [api_server.py:1896] vLLM API server version 0.10.2",
    "(APIServer pid=7) INFO 09-15 04:40:02 [utils.py:328] non-default args: {'model_tag': 'Qwen/Qwen3-32B', 'max_model_len': 32768, 'tensor_parallel_size': 2, 'gpu_memory_utilization': 0.85}",
    "(EngineCore_DP0 pid=91) INFO 09-15 04:40:20 [core.py:76] Initializing a V1 LLM engine (v0.10.2) with config: model='Qwen/Qwen3-32B', dtype=torch.bfloat16, max_seq_len=32768, tensor_parallel_size=2, kv_cache_dtype=auto",
    "(Worker_TP0 pid=120) INFO 09-15 04:41:09 [gpu_model_runner.py:2392] Model loading took 30.5900 GiB and 12.3 seconds",
    "(Worker_TP1 pid=121) INFO 09-15 04:41:09 [gpu_model_runner.py:2392] Model loading took 30.5900 GiB and 12.4 seconds",
    "(Worker_TP1 pid=121) INFO 09-15 04:41:40 [gpu_worker.py:298] Available KV cache memory: 30.41 GiB",
    "(Worker_TP0 pid=120) INFO 09-15 04:41:40 [gpu_worker.py:298] Available KV cache memory: 30.52 GiB",
    "(EngineCore_DP0 pid=91) INFO 09-15 04:41:41 [kv_cache_utils.py:864] GPU KV cache size: 249,104 tokens",
    "(EngineCore_DP0 pid=91) INFO 09-15 04:41:41 [kv_cache_utils.py:868] Maximum concurrency for 32,768 tokens per request: 7.60x",
    "(APIServer pid=7) INFO:     Application startup complete.",
];

/// What every dress must leave readable.
fn check(dress: &str, text: &str) {
    let log = read_text(text).unwrap_or_else(|error| panic!("{dress}: {error}\n{text}"));
    assert_eq!(log.boots.len(), 1, "{dress}");
    let boot: &Boot = &log.boots[0];
    assert_eq!(boot.tokens, Some(249_104), "{dress}");
    assert_eq!(
        boot.setting("tensor_parallel_size").and_then(Value::number),
        Some(2.0),
        "{dress}"
    );
    assert_eq!(boot.utilization, Some(0.85), "{dress}");
    assert_eq!(boot.ranks.len(), 2, "{dress}");
    assert_eq!(gib(boot.smallest(|rank| rank.available_kv)), "30.41", "{dress}");
    assert_eq!(gib(boot.largest(|rank| rank.model_load)), "30.59", "{dress}");
    assert!(boot.is_up, "{dress}");
}

fn dressed(with: impl Fn(usize, &str) -> String) -> String {
    LINES.iter().enumerate().map(|(i, line)| with(i, line)).collect()
}

#[test]
fn a_boot_is_read_alike_in_every_dress() {
    check("plain", &dressed(|_, line| format!("{line}\n")));
    check("carriage returns", &dressed(|_, line| format!("{line}\r\n")));
    check(
        "docker compose",
        &dressed(|_, line| format!("vllm-1  | {line}\n")),
    );
    check(
        "docker compose, coloured",
        &dressed(|_, line| format!("\x1b[36mvllm-1  |\x1b[0m {line}\n")),
    );
    check(
        "kubernetes",
        &dressed(|i, line| format!("2026-09-15T04:40:{i:02}.123456789Z stdout F {line}\n")),
    );
    check(
        "kubectl with pod names",
        &dressed(|_, line| format!("[pod/vllm-0/server] {line}\n")),
    );
    check(
        "timestamps of docker",
        &dressed(|i, line| format!("2025-11-24 14:00:{i:02}.380 | {line}\n")),
    );
    check(
        "journal",
        &dressed(|i, line| format!("Sep 15 04:40:{i:02} host vllm[812]: {line}\n")),
    );
    check(
        "docker's json-file driver",
        &dressed(|_, line| {
            let text = serde_json::to_string(&format!("{line}\n")).unwrap();
            format!("{{\"log\":{text},\"stream\":\"stderr\",\"time\":\"2026-09-15T04:40:00Z\"}}\n")
        }),
    );
    check(
        "colours of the workers",
        &dressed(|_, line| {
            let (who, rest) = line.split_once(") ").unwrap();
            format!("\x1b[1;36m{who})\x1b[0;0m {rest}\n")
        }),
    );
    check(
        "colours whose escapes were lost",
        &dressed(|_, line| {
            let (who, rest) = line.split_once(") ").unwrap();
            format!("[1;36m{who})[0;0m {rest}\n")
        }),
    );
}

#[test]
fn progress_bars_between_and_before_lines_hide_none_of_them() {
    let bar = "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.04it/s]";
    check(
        "bars on lines of their own",
        &dressed(|_, line| format!("{bar}\r{bar}\n{line}\n")),
    );
    check(
        "bars that end in the next line",
        &dressed(|_, line| format!("{bar}\r{line}\n")),
    );
    check(
        "lines of another service between",
        &dressed(|i, line| {
            format!("{line}\nredis-1  | {i}:M 15 Sep 2026 04:40:00.000 * Ready to accept connections\n")
        }),
    );
}

#[test]
fn a_log_that_was_cut_in_a_line_keeps_what_was_printed_before() {
    let whole = dressed(|_, line| format!("{line}\n"));
    let at = whole.find("249,104").unwrap() + 3;
    let log = read_text(&whole[..at]).unwrap();
    let boot = &log.boots[0];
    // `249` of `249,104`: the number cannot be told from a whole one, but the line lacks the word behind it.
    assert_eq!(boot.tokens, None);
    assert_eq!(gib(boot.smallest(|rank| rank.available_kv)), "30.41");
    let beginning = whole.find("non-default").unwrap();
    let tail = read_text(&whole[beginning + 20..]).unwrap();
    assert_eq!(
        tail.boots[0].tokens,
        Some(249_104),
        "the first line is cut instead"
    );
}

#[test]
fn every_cut_of_a_log_is_read_or_refused_without_a_panic() {
    let whole = dressed(|_, line| format!("{line}\n"));
    for at in (0..whole.len())
        .step_by(7)
        .filter(|at| whole.is_char_boundary(*at))
    {
        let _ = read_text(&whole[..at]);
        let _ = read_text(&whole[at..]);
    }
}
