//! `kvwise recommend` from the outside.

use super::{kvwise, kvwise_table};

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
fn the_answer_for_people_begins_with_three_sentences_and_the_command() {
    let mut args = SMALL.to_vec();
    args.extend(["l40s,h100", "--max-gpus", "2"]);
    insta::assert_snapshot!(String::from_utf8(kvwise_table(&args).stdout).unwrap());
}

#[test]
fn a_stopped_search_goes_on_and_modes_need_requests_at_once() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("answers.jsonl");
    let mut args = SMALL.to_vec();
    args.extend(["h100", "--max-gpus", "1", "--resume", file.to_str().unwrap()]);
    let first = kvwise(&args);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    let kept = std::fs::read(&file).unwrap();
    assert_eq!(kvwise(&args).stdout, first.stdout);
    assert_eq!(std::fs::read(&file).unwrap(), kept, "nothing was simulated again");
    std::fs::write(&file, "my notes\n").unwrap();
    let refused = kvwise(&args);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a file of answers"));
    args[3] = "input=400,output=40,rate=3,mode=latency";
    let no = kvwise(&args);
    assert_eq!(no.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&no.stderr).contains("give concurrency=N"),
        "{no:?}"
    );
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

#[test]
fn what_is_recommended_can_be_generated_word_for_word() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("deploy");
    for (model, more, holds) in [
        ("llama-3.1-8b", "--gpus-from l40s,h100", "--max-model-len"),
        ("qwen3-8b", "--gpus-from h100 --engine sglang", "--engine sglang"),
        (
            "qwen3-8b",
            "--gpus-from h100 --max-gpus 1 --slo-tpot-ms 5 --drafter ngram=0.8",
            "ngram",
        ),
        (
            "zai-org/GLM-4.5-Air",
            "--gpus-from h200 --max-gpus 4 --engine sglang --slo-tpot-ms 6 --acceptance-rate 0.8",
            "--speculative-algorithm EAGLE",
        ),
        (
            "deepseek-v3",
            "--gpus-from h100 --gpus-per-node 4 --network 25GB/s --slo-tpot-ms 500",
            "--gpus-per-node 4",
        ),
    ] {
        let mut args = vec![
            "recommend",
            model,
            "--workload",
            "input=400,output=40,rate=1,requests=12",
        ];
        args.extend(["--slo-ttft-ms", "20000"]);
        args.extend(more.split_whitespace());
        if !more.contains("--slo-tpot-ms") {
            args.extend(["--slo-tpot-ms", "60"]);
        }
        let output = kvwise(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let best = &answer["recommended"];
        let flags: Vec<&str> = best["flags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f.as_str().unwrap())
            .collect();
        assert!(flags.join(" ").contains(holds), "{flags:?}");
        let mut words = vec![
            "generate",
            model,
            "--gpu",
            best["gpu"].as_str().unwrap(),
            "--dry-run",
        ];
        words.extend(&flags);
        words.extend(["--output-dir", out.to_str().unwrap()]);
        let made = kvwise(&words);
        assert_eq!(made.status.code(), Some(0), "{words:?}: {made:?}");
    }
}
