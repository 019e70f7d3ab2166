//! `kvwise demo` through the binary: figures, formats and refusals.

use std::process::{Command, Output};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .arg("demo")
        .args(arguments)
        .output()
        .unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = demo(arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn capacity_counts_the_chapters_70b_model_with_whole_blocks() {
    let report = json(&["capacity", "--contexts", "4096,32768", "--format", "json"]);
    assert_eq!(report["capacity_tokens"], 1_464_843);
    assert_eq!(report["rows"][0]["paged_requests"], 357);
    assert_eq!(report["rows"][1]["paged_requests"], 44);
}

#[test]
fn sharing_saves_less_than_the_token_trie_by_whole_blocks() {
    let report = json(&["sharing", "--format", "json"]);
    let system = &report["rows"][0];
    assert_eq!(system["computed_tokens"], 600 + 99 * 104);
    let (real, trie) = (&system["saved_percent"], &system["tutorial_saved_percent"]);
    assert!(real.as_f64().unwrap() < trie.as_f64().unwrap());
    assert!((trie.as_f64().unwrap() - 82.5).abs() < 1e-9);
}

#[test]
fn fragmentation_is_the_same_for_the_same_seed_and_ordered_as_in_the_paper() {
    let flags = [
        "fragmentation",
        "--steps",
        "3000",
        "--seed",
        "7",
        "--format",
        "json",
    ];
    let report = json(&flags);
    assert_eq!(report, json(&flags));
    let shares: Vec<f64> = (0..4)
        .map(|at| report["rows"][at]["token_states_percent"].as_f64().unwrap())
        .collect();
    assert!(shares.is_sorted(), "{shares:?}");
    assert!(shares[3] > 95.0);
}

#[test]
fn every_format_comes_out_and_nonsense_is_refused_with_exit_2() {
    for (format, start) in [
        ("csv", "context,"),
        ("markdown", "**"),
        ("html", "<!doctype"),
        ("table", "1464843"),
    ] {
        let output = demo(&["capacity", "--format", format]);
        assert!(
            String::from_utf8(output.stdout).unwrap().starts_with(start),
            "{format}"
        );
    }
    for arguments in [
        &["capacity", "--block-size", "0"][..],
        &["capacity", "--contexts", "99999999"],
        &["fragmentation", "--pool", "10"],
        &["fragmentation", "--sigma", "NaN"],
        &["sharing", "--requests", "0"],
        &["sharing", "--requests", "4000000000"],
    ] {
        let output = demo(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            !said.contains("panicked") && output.stdout.is_empty(),
            "{arguments:?}: {said}"
        );
    }
}
