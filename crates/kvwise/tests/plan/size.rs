//! `kvwise size`: its answers hold what the plan of their settings says.

use serde_json::Value;

use super::{kvwise, kvwise_table, plan};

fn size(args: &[&str]) -> (Value, i32) {
    let mut words = vec!["size"];
    words.extend_from_slice(args);
    let output = kvwise(&words);
    let value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
    (value, output.status.code().unwrap())
}

#[test]
fn a_sizing_for_people_begins_with_the_verdict() {
    let output = kvwise_table(&[
        "size",
        "llama-3.1-8b",
        "--gpu",
        "l4",
        "--context",
        "8k",
        "--concurrency",
        "4",
        "--probability",
        "0.9",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    insta::assert_snapshot!(format!("status {}\n{text}", output.status.code().unwrap()));
}

#[test]
fn the_fewest_gpus_fit_and_half_of_them_do_not() {
    let need = [
        "llama-3.1-70b",
        "--gpu",
        "h100",
        "--context",
        "32k",
        "--concurrency",
        "16",
    ];
    let (sizing, status) = size(&need);
    assert_eq!(status, 0);
    let gpus = sizing["fewest_gpus"]["count"].as_u64().unwrap();
    assert!(gpus > 1);
    let fits = |tp: u64| {
        let tp = tp.to_string();
        let mut args = need.to_vec();
        args.extend(["--max-model-len", "auto", "--tp", &tp]);
        plan(&args).0["feasibility"]["fits"].as_bool().unwrap()
    };
    assert!(fits(gpus));
    assert!(!fits(gpus / 2));
}

#[test]
fn the_smallest_utilisation_fits_and_a_hundredth_less_does_not() {
    let need = [
        "llama-3.1-8b",
        "--gpu",
        "h100",
        "--context",
        "8k",
        "--concurrency",
        "8",
    ];
    let (sizing, _) = size(&need);
    let share = sizing["smallest_utilization"].as_f64().unwrap();
    let fits = |share: f64| {
        let share = format!("{share:.2}");
        let mut args = need.to_vec();
        args.extend(["--max-model-len", "auto", "--gpu-memory-utilization", &share]);
        plan(&args).0["feasibility"]["fits"].as_bool().unwrap()
    };
    assert!(fits(share), "{share}");
    assert!(!fits(share - 0.01), "{share}");
}

#[test]
fn the_longest_context_and_the_most_requests_are_those_of_the_plan() {
    let need = [
        "qwen3-8b",
        "--gpu",
        "l40s",
        "--context",
        "16k",
        "--concurrency",
        "3",
    ];
    let (sizing, _) = size(&need);
    let mut args = need.to_vec();
    args.extend(["--max-model-len", "auto"]);
    let (plan, _) = plan(&args);
    assert_eq!(
        sizing["most_requests"],
        plan["feasibility"]["max_concurrency_at_context"]
    );
    assert_eq!(
        sizing["longest_context"],
        plan["feasibility"]["max_context_at_concurrency"]
    );
}

#[test]
fn a_need_that_nothing_meets_is_the_answer_no() {
    let (sizing, status) = size(&[
        "deepseek-ai/DeepSeek-V3",
        "--gpu",
        "l4",
        "--context",
        "8k",
        "--concurrency",
        "4",
        "--max-gpus",
        "8",
    ]);
    assert_eq!(status, 1);
    assert_eq!(sizing["satisfiable"], false);
    assert!(sizing["fewest_gpus"].is_null());
}

#[test]
fn a_need_without_a_length_or_with_an_absurd_probability_is_an_error() {
    for (args, text) in [
        (&["llama-3.1-8b", "--gpu", "h100"][..], "--context is missing"),
        (
            &[
                "llama-3.1-8b",
                "--gpu",
                "h100",
                "--context",
                "8k",
                "--probability",
                "2",
            ][..],
            "--probability is 2",
        ),
        (
            &[
                "llama-3.1-8b",
                "--gpu",
                "h100",
                "--context",
                "8k",
                "--probability",
                "NaN",
            ][..],
            "--probability is NaN",
        ),
        (
            &[
                "llama-3.1-8b",
                "--gpu",
                "h100",
                "--context",
                "8k",
                "--max-gpus",
                "0",
            ][..],
            "--max-gpus is 0",
        ),
        (
            &["llama-3.1-8b", "--gpu", "h100", "--context", "8k,16k"][..],
            "for one need",
        ),
    ] {
        let mut words = vec!["size"];
        words.extend_from_slice(args);
        let output = kvwise(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(text), "{said}");
    }
}
