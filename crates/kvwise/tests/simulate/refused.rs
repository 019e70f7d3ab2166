//! Deployments whose engine would not start: the reason, and what would let it start for this traffic.

use super::{json, kvwise, text};

/// Llama-3.1-70B on two H100: too little room for the model's 131,072 tokens, enough for this traffic.
const TOO_LONG: [&str; 13] = [
    "--model",
    "llama-3.1-70b",
    "--gpu",
    "h100",
    "--tp",
    "2",
    "--input-len",
    "512",
    "--output-len",
    "16",
    "--requests",
    "8",
    "--concurrency=4",
];

fn asked<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command], TOO_LONG.as_slice(), more].concat()
}

#[test]
fn a_refused_deployment_comes_with_a_length_that_starts_and_holds_the_traffic() {
    let refused = json(&asked("simulate", &["--format", "json"]));
    assert!(refused["refused"].as_str().unwrap().contains("max seq len"));
    let fix = refused["fix"].as_str().unwrap();
    let length = fix
        .strip_prefix("--max-model-len ")
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_else(|| panic!("{fix}"));
    let started = json(&asked(
        "simulate",
        &["--format", "json", "--max-model-len", length],
    ));
    assert!(started["refused"].is_null(), "{}", started["refused"]);
    assert_eq!(started["finished"], 8);
}

#[test]
fn a_comparison_keeps_its_columns_and_says_below_why_one_does_not_start() {
    let output = kvwise(&asked(
        "simulate",
        &["--format", "table", "--compare", "max-model-len=2048"],
    ));
    let said = text(&output.stdout);
    let row = said.lines().find(|line| line.starts_with("as asked")).unwrap();
    assert!(row.ends_with('-'), "{said}");
    assert!(said.contains("as asked does not start: "), "{said}");
    assert!(said.contains("fix: --max-model-len "), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
}

#[test]
fn a_sweep_says_each_reason_once() {
    let output = kvwise(
        &[
            &["sweep"],
            &TOO_LONG[..12],
            &["--concurrency", "1,4", "--vary", "tp=2,4", "--format", "table"],
        ]
        .concat(),
    );
    let said = text(&output.stdout);
    assert_eq!(said.matches("not start").count(), 1, "{said}");
    assert!(
        said.contains("tensor-parallel-size=2 does not start: ") || said.contains("tp=2 does not start: "),
        "{said}"
    );
}

#[test]
fn a_model_in_the_place_of_the_trace_is_told_its_flag() {
    let output = kvwise(&["simulate", "llama-3.1-8b", "--gpu", "h100"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--model"),
        "{}",
        text(&output.stderr)
    );
}
