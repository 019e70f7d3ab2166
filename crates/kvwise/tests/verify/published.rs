//! Lines of start-up logs that others published, of seven deployments: what a new user sees who pastes one.

use super::{data, folder, row, verify};

/// One log: what must be given besides it, and what must come out.
struct Published {
    log: &'static str,
    given: &'static [&'static str],
    /// Exit status: 0 if it agrees.
    status: i32,
    /// Figures that the log's own memory must give exactly.
    equal: &'static [&'static str],
    /// Figures that must be inside of their interval.
    inside: &'static [&'static str],
    /// Words that a cause, or the comment on the refusal, must have.
    words: &'static [&'static str],
}

const LOGS: [Published; 7] = [
    Published {
        log: "published-l40s-awq.log",
        given: &[
            "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
            "--gpu",
            "l40s",
        ],
        status: 0,
        equal: &["weights", "kv_tokens_of_logged_memory"],
        inside: &["available_kv", "kv_tokens"],
        words: &[],
    },
    // 153,600 tokens of one video are kept beside the language model's step.
    Published {
        log: "published-qwen3-vl.log",
        given: &[],
        status: 0,
        equal: &["weights", "kv_tokens_of_logged_memory"],
        inside: &["available_kv", "kv_tokens"],
        words: &[],
    },
    // 114,688 tokens of one video take 15 GiB in the tower.
    Published {
        log: "published-qwen2.5-vl.log",
        given: &["--gpu", "a100-80gb"],
        status: 0,
        equal: &["weights"],
        inside: &["available_kv"],
        words: &["refused, as planned"],
    },
    Published {
        log: "published-gemma-4.log",
        given: &["--gpu", "rtx-5090", "--gpu-memory", "31.84GiB"],
        status: 0,
        equal: &["weights"],
        inside: &["available_kv", "kv_tokens"],
        words: &[],
    },
    // The first engine splits the prompts of a model with 131,072 tokens.
    Published {
        log: "published-v0.log",
        given: &["--gpu", "l4", "--gpu-memory", "22.07GiB"],
        status: 0,
        equal: &["gpu_memory", "budget", "weights"],
        inside: &["available_kv"],
        words: &["refused, as planned"],
    },
    Published {
        log: "published-mtp.log",
        given: &["--gpu", "gb10"],
        status: 1,
        equal: &["block_size", "kv_tokens_of_logged_memory"],
        inside: &["available_kv", "kv_tokens"],
        words: &["buffers, converted or padded weights"],
    },
    Published {
        log: "published-amd.log",
        given: &["meta-llama/Llama-3.1-8B", "--gpu", "r9700"],
        status: 0,
        equal: &["weights", "kv_tokens_of_logged_memory"],
        inside: &["available_kv"],
        words: &[],
    },
];

#[test]
fn published_logs_are_read_planned_and_explained() {
    let folder = folder();
    for log in &LOGS {
        let file = data(log.log);
        let mut words = log.given.to_vec();
        words.extend(["--log", &file]);
        let (answer, status) = verify(folder.path(), &words);
        assert_eq!(status, log.status, "{}: {}", log.log, answer["verdict"]);
        for name in log.equal {
            assert_eq!(row(&answer, name)["status"], "equal", "{}: {name}", log.log);
        }
        for name in log.inside {
            assert_eq!(row(&answer, name)["status"], "inside", "{}: {name}", log.log);
        }
        let said = format!("{}{}", answer["causes"], answer["refusal"]);
        for word in log.words {
            assert!(said.contains(word), "{}: {said}", log.log);
        }
    }
}
