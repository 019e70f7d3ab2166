//! `kvwise recommend` from the outside.

use super::kvwise;

const SMALL: [&str; 9] = [
    "recommend",
    "llama-3.1-8b",
    "--workload",
    "input=400,output=40,rate=3,requests=60",
    "--slo-ttft-ms",
    "1500",
    "--slo-tpot-ms",
    "60",
    "--gpus-from",
];

#[test]
fn the_same_question_has_the_same_answer_and_own_prices_count() {
    let with = |more: &[&str]| {
        let mut args = SMALL.to_vec();
        args.extend(more);
        let output = kvwise(&args);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let first = with(&["l40s,h100"]);
    assert_eq!(first, with(&["l40s,h100"]));
    let value: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(
        (value["schema"].as_str(), value["recommended"]["gpu"].as_str()),
        (Some("kvwise.recommendation/1"), Some("l40s"))
    );
    assert_eq!(value["explanation"].as_array().unwrap().len(), 3);
    let dear: serde_json::Value = serde_json::from_str(&with(&["l40s,h100", "--price", "l40s=50"])).unwrap();
    assert_eq!(dear["recommended"]["gpu"], "h100");
}

#[test]
fn what_cannot_be_meant_is_named() {
    for (args, says) in [
        (
            vec![
                "recommend",
                "llama-3.1-8b",
                "--workload",
                "input=1,output=1,rate=1",
            ],
            "which objective?",
        ),
        (
            vec![
                "recommend",
                "llama-3.1-8b",
                "--workload",
                "input=1,output=1",
                "--slo-tpot-ms",
                "9",
            ],
            "how much traffic?",
        ),
        (
            vec![
                "recommend",
                "llama-3.1-8b",
                "--workload",
                "input=1,speed=1",
                "--slo-tpot-ms",
                "9",
            ],
            "speed=1",
        ),
        (
            vec![
                "recommend",
                "llama-3.1-8b",
                "--workload",
                "nothing.jsonl",
                "--slo-tpot-ms",
                "9",
            ],
            "no such file",
        ),
        (
            vec![
                "recommend",
                "nope-7b",
                "--workload",
                "input=1,output=1,rate=1",
                "--slo-tpot-ms",
                "9",
            ],
            "nope-7b",
        ),
        (
            vec![
                "recommend",
                "llama-3.1-8b",
                "--workload",
                "input=1,output=1,rate=1",
                "--slo-tpot-ms",
                "-9",
            ],
            "slo-tpot-ms",
        ),
    ] {
        let output = kvwise(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(says),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
