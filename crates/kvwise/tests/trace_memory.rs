//! What traces take in memory: told before they are read, and told rightly.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kvwise::usecase::trace_memory::simulation_bytes;
use kvwise_io::trace::{ReadOptions, SAMPLE_BYTES, forecast};

fn kvwise(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(arguments)
        .env_remove("KVWISE_FORMAT")
        .output()
        .unwrap()
}

/// Requests that share nothing: `requests` lines of twenty blocks.
fn unshared(path: &Path, requests: u64) {
    let mut text = String::new();
    for request in 0..requests {
        let ids: Vec<u64> = (0..20)
            .map(|k| (request * 20 + k) * 0x9e37_79b9 % (1 << 40))
            .collect();
        writeln!(
            text,
            "{{\"timestamp\": {request}, \"input_length\": 10240, \"output_length\": 5, \"hash_ids\": {ids:?}}}"
        )
        .unwrap();
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_trace_that_is_too_large_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    unshared(&path, 12_000);
    let name = path.to_str().unwrap();
    let commands: [&[&str]; 7] = [
        &["curve", name],
        &["tree", name],
        &["trace", "info", name],
        &["trace", "convert", name, "--to", "tokens"],
        &["replay", name, "--num-blocks", "1000"],
        &["replay", name, "--engine", "sglang", "--capacity", "100000"],
        &[
            "replay",
            name,
            "--engine",
            "sglang",
            "--capacity",
            "100000",
            "--scheduler",
            "batch",
        ],
    ];
    for command in commands {
        let output = kvwise(&[command, &["--max-memory", "18MiB"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {stderr}");
        assert!(output.stdout.is_empty());
        for word in [
            "about 12",
            "of memory, more than the limit of 18.0 MiB",
            "--limit",
            "--max-memory",
        ] {
            assert!(stderr.contains(word), "{command:?}: {word}: {stderr}");
        }
        // the number of requests that it names does fit
        let fit = stderr
            .split("--limit ")
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        let part = kvwise(&[command, &["--max-memory", "18MiB", "--limit", fit]].concat());
        assert!(
            part.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&part.stderr)
        );
    }
}

#[test]
fn a_trace_that_takes_much_of_the_limit_is_remarked_on_and_a_small_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    unshared(&path, 4_000);
    let name = path.to_str().unwrap();
    let remark = "of memory (limit 50.0 MiB)";
    let output = kvwise(&["curve", name, "--max-memory", "50MiB"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains(remark), "{stderr}");
    let quiet = kvwise(&["curve", name, "--max-memory", "50MiB", "--quiet"]);
    assert!(quiet.stderr.is_empty());
    let roomy = kvwise(&["curve", name, "--max-memory", "2"]);
    assert!(
        roomy.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&roomy.stderr)
    );
    let output = kvwise(&["curve", name, "--max-memory", "50"]);
    assert!(output.status.success());
    for bad in ["5M", "-1", "99999999999999999999", "0x10"] {
        let output = kvwise(&["curve", name, &format!("--max-memory={bad}")]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}

/// Peak resident memory of a command in bytes, by GNU time.
fn peak_bytes(arguments: &[&str]) -> u64 {
    let output = Command::new("/usr/bin/time")
        .args(["-f", "%M", env!("CARGO_BIN_EXE_kvwise")])
        .args(arguments)
        .output()
        .expect("GNU time is there");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    1024 * stderr.lines().last().unwrap().trim().parse::<u64>().unwrap()
}

/// What the program says a command will take, from the error it makes under a limit that is too low.
fn said_bytes(arguments: &[&str]) -> Option<u64> {
    let output = kvwise(&[arguments, &["--max-memory", "1B"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let said = stderr
        .split("takes about ")
        .nth(1)?
        .split(" of memory")
        .next()?
        .to_owned();
    Some(kvwise_core::units::parse_bytes(&said).unwrap())
}

/// What a simulation of the trace will take, as it judges itself; its command has no limit to lower.
fn said_of_simulation(trace: &Path) -> u64 {
    let found = forecast(trace, &ReadOptions::default(), SAMPLE_BYTES, None).unwrap();
    found.unwrap().peak_bytes(&simulation_bytes)
}

/// The commands that are judged, for the trace `name`; `content`: whether it says more of prompts than their lengths.
fn commands(name: &str, content: bool) -> Vec<Vec<&str>> {
    let replay = [
        "replay",
        name,
        "--num-blocks",
        "20000",
        "--max-model-len",
        "131072",
    ];
    let mut commands = vec![vec!["trace", "info", name], replay.to_vec()];
    if content {
        commands.push(vec!["curve", name]);
        commands.push(vec!["tree", name]);
        commands.push(vec!["trace", "convert", name, "--to", "mooncake"]);
        commands.push(vec!["trace", "convert", name, "--to", "tokens"]);
        commands.push([&replay[..], &["--groups", "full:1,swa1024:3"]].concat());
        let sglang = ["replay", name, "--engine", "sglang", "--capacity", "1000000"];
        commands.push(sglang.to_vec());
        commands.push([&sglang[..], &["--scheduler", "batch"]].concat());
    }
    commands
}

/// Traces of the formats that can be made here: ids that share nothing, tokens of chats, lengths; the first two compressed, too.
fn generated(folder: &Path) -> Vec<(PathBuf, bool)> {
    let path = |name: &str| folder.join(name);
    unshared(&path("mooncake.jsonl"), 100_000);
    let chats = path("tokens.jsonl");
    let output = kvwise(&[
        "trace",
        "generate",
        "--requests",
        "4000",
        "--shape",
        "chat",
        "-o",
        chats.to_str().unwrap(),
    ]);
    assert!(output.status.success());
    let mut azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for request in 0..600_000_u64 {
        let (minute, second) = (request / 60_000, request % 60_000 / 1000);
        let (input, output) = (request * 7919 % 8000 + 1, request * 104_729 % 500 + 1);
        writeln!(
            azure,
            "2023-11-16 18:{minute:02}:{second:02}.{:03}0000,{input},{output}",
            request % 1000
        )
        .unwrap();
    }
    std::fs::write(path("azure.csv"), azure).unwrap();
    let mut traces = vec![
        (path("mooncake.jsonl"), true),
        (chats.clone(), true),
        (path("azure.csv"), false),
    ];
    for (from, to, compressed) in [
        (path("mooncake.jsonl"), "mooncake", path("mooncake.jsonl.zst")),
        (chats, "tokens", path("tokens.jsonl.gz")),
    ] {
        let (from, name) = (from.to_str().unwrap(), compressed.to_str().unwrap());
        let output = kvwise(&["trace", "convert", from, "--to", to, "-o", name]);
        assert!(output.status.success());
        traces.push((compressed, true));
    }
    traces
}

/// Opt-in (`KVWISE_MEMORY_TRACES=a:b cargo test -p kvwise --test trace_memory -- --ignored`): what is said of every command
/// that reads traces against the peaks that GNU time sees: never a tenth below, at most half above, but for 8 MiB of the
/// program itself. Beside the traces of the variable, whose prompts must be known, generated ones are judged.
#[test]
#[ignore = "takes minutes, and GNU time"]
#[expect(clippy::print_stderr, reason = "the figures of an opt-in measurement")]
fn what_is_said_is_what_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut traces = generated(folder.path());
    if let Some(paths) = std::env::var_os("KVWISE_MEMORY_TRACES") {
        traces.extend(std::env::split_paths(&paths).map(|path| (path, true)));
    }
    let mut wrong = Vec::new();
    let mut judge = |said: u64, real: u64, what: &[&str]| {
        let ratio = said as f64 / real as f64;
        eprintln!("{ratio:.2} = {} / {} MiB  {what:?}", said >> 20, real >> 20);
        let slack = 8 << 20;
        if said + slack < real / 10 * 9 || said > real / 2 * 3 + slack {
            wrong.push(format!("{ratio:.2} {what:?}"));
        }
    };
    for (trace, content) in &traces {
        let name = trace.to_str().unwrap();
        for command in commands(name, *content) {
            let (Some(said), real) = (said_bytes(&command), peak_bytes(&command)) else {
                panic!("{command:?}: nothing is said");
            };
            judge(said, real, &command);
        }
        let command = ["simulate", name, "--model", "llama-3.1-8b", "--gpu", "h100"];
        judge(said_of_simulation(trace), peak_bytes(&command), &command);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_pool_that_no_machine_holds_is_refused_for_a_small_trace_too() {
    for pool in [
        &["--num-blocks", "2000000000"][..],
        &["--engine", "sglang", "--capacity", "2000000000"],
    ] {
        let output = kvwise(&[&["replay", "--example", "--max-memory", "1"], pool].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{pool:?}: {stderr}");
        for word in ["the replay takes about", "more than the limit of 1.00 GiB"] {
            assert!(stderr.contains(word), "{pool:?}: {word}: {stderr}");
        }
    }
}

#[test]
fn what_comes_through_a_pipe_is_stopped_at_the_limit_while_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    unshared(&path, 6_000);
    let commands: [&[&str]; 4] = [
        &["curve", "-"],
        &["tree", "-"],
        &["trace", "info", "-"],
        &["replay", "-", "--num-blocks", "1000"],
    ];
    for command in commands {
        let through = |limit: &str| {
            Command::new(env!("CARGO_BIN_EXE_kvwise"))
                .args(command)
                .args(["--max-memory", limit])
                .env_remove("KVWISE_FORMAT")
                .stdin(std::fs::File::open(&path).unwrap())
                .output()
                .unwrap()
        };
        let output = through("3MiB");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{command:?}");
        for word in [
            "after ",
            "more than the limit of 3.0 MiB",
            "--limit",
            "--max-memory",
        ] {
            assert!(stderr.contains(word), "{command:?}: {word}: {stderr}");
        }
        let output = through("60MiB");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{command:?}: {stderr}");
    }
}
