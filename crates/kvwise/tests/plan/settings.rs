//! Every setting: the flag wins over the environment, that over the file, that over the default.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A setting, its flag, a value for each place, and where a plan shows it.
struct Case {
    name: &'static str,
    flag: &'static str,
    values: [&'static str; 3],
    shown: fn(&Value) -> Value,
    /// Words that the plan needs besides.
    more: &'static [&'static str],
}

const CASES: [Case; 6] = [
    Case {
        name: "gpu",
        flag: "--gpu",
        values: ["h100", "l40s", "h200"],
        shown: |plan| plan["gpu"]["name"].clone(),
        more: &[],
    },
    Case {
        name: "gpu_memory",
        flag: "--gpu-memory",
        values: ["70GiB", "60GiB", "50GiB"],
        shown: |plan| plan["gpu"]["memory_bytes"].clone(),
        // A card that is named does not get the memory of another.
        more: &[],
    },
    Case {
        name: "interconnect",
        flag: "--interconnect",
        values: ["pcie", "nvlink", "pcie"],
        shown: |plan| plan["inputs"]["interconnect"].clone(),
        more: &["--gpu", "h100", "--tp", "2"],
    },
    Case {
        name: "engine",
        flag: "--engine",
        values: ["sglang", "generic", "vllm"],
        shown: |plan| plan["engine"]["name"].clone(),
        more: &["--gpu", "h100"],
    },
    Case {
        name: "engine_version",
        flag: "--engine-version",
        values: ["0.21.0", "0.20.0", "0.19.0"],
        shown: |plan| plan["engine"]["version"].clone(),
        more: &["--gpu", "h100"],
    },
    Case {
        name: "gpu_memory_utilization",
        flag: "--gpu-memory-utilization",
        values: ["0.8", "0.7", "0.6"],
        shown: |plan| plan["memory"]["budget_bytes"].clone(),
        more: &["--gpu", "h100"],
    },
];

/// Runs the program with this folder of settings and these variables.
fn run(folder: &Path, variables: &[(&str, &str)], words: &[&str]) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
    command.args(words).env_remove("KVWISE_FORMAT");
    for case in &CASES {
        command.env_remove(format!("KVWISE_{}", case.name.to_uppercase()));
    }
    let output = command
        .env("HF_HUB_OFFLINE", "1")
        .env("KVWISE_CONFIG_DIR", folder)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.stderr.is_empty() || output.status.success(),
        "{words:?}: {output:?}"
    );
    output.stdout
}

fn plan(folder: &Path, variables: &[(&str, &str)], case: &Case, flag: Option<&str>) -> Value {
    let mut words = vec!["plan", "llama-3.1-8b", "--context", "2048"];
    // What the setting itself says is not said twice.
    for pair in case.more.chunks(2).filter(|pair| pair[0] != case.flag) {
        words.extend(pair);
    }
    if let Some(value) = flag {
        words.extend([case.flag, value]);
    }
    serde_json::from_slice(&run(folder, variables, &words)).unwrap()
}

/// Where `kvwise config` says that the value is from.
fn origin(folder: &Path, variables: &[(&str, &str)], name: &str) -> (Value, String) {
    let shown: Value =
        serde_json::from_slice(&run(folder, variables, &["config", "--format", "json"])).unwrap();
    let all = shown["settings"].as_array().unwrap();
    let one = all.iter().find(|s| s["name"] == name).unwrap();
    (one["value"].clone(), one["origin"].as_str().unwrap().to_owned())
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = folder.join("config.toml");
    for case in &CASES {
        let [by_flag, by_variable, by_file] = case.values;
        let variable = format!("KVWISE_{}", case.name.to_uppercase());
        let variables = [(variable.as_str(), by_variable)];
        // What a plan shows for a value is what it shows for the flag with that value.
        let shows = |value: &str| (case.shown)(&plan(folder, &[], case, Some(value)));
        let _ = std::fs::remove_file(&file);
        let wanted = [by_flag, by_variable, by_file].map(shows);
        assert_ne!(
            wanted[0], wanted[1],
            "{}: the flag's value shows nothing",
            case.name
        );
        assert_ne!(
            wanted[1], wanted[2],
            "{}: the variable's value shows nothing",
            case.name
        );
        let quoted = if by_file.parse::<f64>().is_ok() {
            by_file.to_owned()
        } else {
            format!("\"{by_file}\"")
        };
        std::fs::write(&file, format!("{} = {quoted}\n", case.name)).unwrap();
        let all = plan(folder, &variables, case, Some(by_flag));
        assert_eq!((case.shown)(&all), wanted[0], "{}: flag", case.name);
        let without_flag = plan(folder, &variables, case, None);
        assert_eq!(
            (case.shown)(&without_flag),
            wanted[1],
            "{}: environment",
            case.name
        );
        let from_file = plan(folder, &[], case, None);
        assert_eq!((case.shown)(&from_file), wanted[2], "{}: file", case.name);
        let (value, from) = origin(folder, &variables, case.name);
        assert_eq!(value, by_variable, "{}", case.name);
        assert!(from.contains(&variable), "{from}");
        let (_, from) = origin(folder, &[], case.name);
        assert!(from.contains("config.toml") || from.contains("file"), "{from}");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(origin(folder, &[], case.name).1, "default");
    }
}

#[test]
fn the_format_follows_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.toml"), "format = \"csv\"\n").unwrap();
    let words = ["plan", "llama-3.1-8b", "--gpu", "h100"];
    let with = |variables: &[(&str, &str)], more: &[&str]| {
        let words: Vec<&str> = words.iter().chain(more).copied().collect();
        String::from_utf8(run(folder.path(), variables, &words)).unwrap()
    };
    let plain = with(&[], &[]);
    assert!(
        !plain.starts_with('{') && plain.lines().next().unwrap().contains(','),
        "{plain}"
    );
    let markdown = with(&[("KVWISE_FORMAT", "markdown")], &[]);
    assert!(markdown.contains("| "), "{markdown}");
    assert!(with(&[("KVWISE_FORMAT", "markdown")], &["--format", "json"]).starts_with('{'));
}
