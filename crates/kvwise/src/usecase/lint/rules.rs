//! What is wrong with a command without knowing the GPU: flags, values, variables, containers.

use kvwise_core::engine::flags::{
    Table,
    parse::{Parsed, Problem},
};
use kvwise_core::names::nearest;

use super::llamacpp;
use super::recognise::Found;
use crate::report::lint::{Finding, Level};

/// Environment variables of vLLM 0.32.0.
const VLLM_ENVIRONMENT: &str = include_str!("../../../../core/data/env_vllm.txt");

/// Flags that are gone from vLLM and what does their work now (read in vLLM 0.32.0's `engine/arg_utils.py` and `config/`).
const INSTEAD: [(&str, &str); 22] = [
    (
        "--swap-space",
        "leave it out: preempted requests are computed again, nothing is swapped; --kv-offloading-size keeps evicted blocks in host memory",
    ),
    (
        "--disable-log-requests",
        "leave it out: requests are logged only with --enable-log-requests",
    ),
    ("--task", "--runner and --convert"),
    ("--guided-decoding-backend", "--structured-outputs-config"),
    ("--rope-scaling", "--hf-overrides with rope_parameters"),
    ("--rope-theta", "--hf-overrides with rope_parameters"),
    (
        "--max-seq-len-to-capture",
        "--max-cudagraph-capture-size, which counts sequences and not tokens",
    ),
    ("--cuda-graph-sizes", "--cudagraph-capture-sizes"),
    (
        "--num-scheduler-steps",
        "leave it out: --async-scheduling is the default",
    ),
    (
        "--use-v2-block-manager",
        "leave it out: there is one block manager",
    ),
    (
        "--preemption-mode",
        "leave it out: preempted requests are computed again",
    ),
    (
        "--num-lookahead-slots",
        "leave it out: speculation reserves its own",
    ),
    ("--device", "leave it out: the build decides"),
    (
        "--enable-reasoning",
        "leave it out: --reasoning-parser alone is enough",
    ),
    (
        "--speculative-model",
        "--speculative-config '{\"model\": ..., \"num_speculative_tokens\": ...}'",
    ),
    (
        "--num-speculative-tokens",
        "--speculative-config '{\"num_speculative_tokens\": ...}'",
    ),
    (
        "--ngram-prompt-lookup-max",
        "--speculative-config '{\"method\": \"ngram\", \"prompt_lookup_max\": ...}'",
    ),
    ("--worker-use-ray", "--distributed-executor-backend ray"),
    ("--override-pooler-config", "--pooler-config"),
    ("--disable-mm-preprocessor-cache", "--mm-processor-cache-gb 0"),
    (
        "--enable-multimodal-encoder-data-parallel",
        "--mm-encoder-tp-mode data",
    ),
    (
        "--scheduler-delay-factor",
        "leave it out: prompts are cut into chunks instead of being delayed",
    ),
];

/// Values of other planners and older versions, and vLLM's spelling.
const SPELLINGS: [(&str, &str, &str); 9] = [
    ("--dtype", "fp16", "float16"),
    ("--dtype", "bf16", "bfloat16"),
    ("--dtype", "fp32", "float32"),
    ("--kv-cache-dtype", "fp8_e4m3fn", "fp8_e4m3"),
    ("--kv-cache-dtype", "fp16", "float16"),
    ("--kv-cache-dtype", "bf16", "bfloat16"),
    ("--quantization", "int8", "int8_per_channel_weight_only"),
    (
        "--quantization",
        "nvfp4",
        "modelopt_fp4, or nvfp4_per_token to make it on load",
    ),
    ("--quantization", "none", "leave the flag out"),
];

/// What the parser would refuse, and what it would read differently than meant.
pub fn problems(table: &'static Table, parsed: &Parsed, version: Option<&str>) -> Vec<Finding> {
    let mut out = Vec::new();
    for problem in &parsed.problems {
        // What a shell puts in for a variable is not known here.
        if let Problem::BadValue { value: word, .. } | Problem::Stray { word } = problem
            && word.starts_with('$')
        {
            out.push(Finding {
                level: Level::Info,
                code: "variable",
                flag: None,
                message: format!("{word} is not looked into"),
                fix: None,
            });
            continue;
        }
        let (code, flag, fix) = match problem {
            Problem::Unknown { name, near } => (
                "unknown-flag",
                Some(name),
                near.first().map(|n| format!("write {n}")),
            ),
            Problem::Gone { name, .. } => {
                let plain = name.replace('_', "-");
                let instead = INSTEAD.iter().find(|(flag, _)| *flag == plain);
                (
                    "removed-flag",
                    Some(name),
                    instead.map(|(_, now)| (*now).to_owned()),
                )
            }
            Problem::BadValue { name, value, .. } => {
                let plain = name.replace('_', "-");
                let spelling = SPELLINGS.iter().find(|(flag, old, _)| {
                    table.get(&plain).is_some_and(|f| f.name() == *flag) && value.eq_ignore_ascii_case(old)
                });
                (
                    "bad-value",
                    Some(name),
                    spelling.map(|(_, _, new)| format!("write {new}")),
                )
            }
            Problem::Ambiguous { name, .. } => ("ambiguous-flag", Some(name), None),
            Problem::MissingValue { name } => ("missing-value", Some(name), None),
            Problem::SurplusValue { name, .. } => (
                "surplus-value",
                Some(name),
                Some("drop what follows the =".to_owned()),
            ),
            Problem::Joined { word } => {
                let fix = "make two list items of it, or put = between flag and value".to_owned();
                ("joined-words", Some(word), Some(fix))
            }
            Problem::OneWord { word } => {
                let fix = "make two words of it".to_owned();
                ("joined-words", Some(word), Some(fix))
            }
            Problem::Stray { .. } => ("stray-word", None, None),
            Problem::TooLong => ("too-long", None, None),
        };
        let mut message = problem.to_string();
        // A version that is named in an image may still have the flag.
        let mut level = Level::Error;
        if let (Problem::Gone { last, .. }, Some(version)) = (problem, version)
            && table
                .flags()
                .iter()
                .any(|f| f.last == Some(*last) && table.has(f, version))
        {
            level = Level::Warning;
            message = format!("{message}; {version} still has it");
        }
        out.push(Finding {
            level,
            code,
            flag: flag.cloned(),
            message,
            fix,
        });
    }
    for (i, given) in parsed.given.iter().enumerate() {
        let name = given.flag.name();
        if given.abbreviated {
            out.push(Finding::new(
                Level::Warning,
                "abbreviated",
                &given.written,
                format!(
                    "{} is read as {name}; a later version may have another flag that begins so",
                    given.written
                ),
                Some(format!("write {name}")),
            ));
        }
        let again = parsed.given[i + 1..]
            .iter()
            .any(|later| std::ptr::eq(later.flag, given.flag) && later.field == given.field);
        if again && name != "--middleware" {
            out.push(Finding::new(
                Level::Warning,
                "given-twice",
                &given.written,
                format!("{name} is given again later, and the last one counts"),
                Some("keep one of them".to_owned()),
            ));
        } else if given.field.is_none() && given.flag.is_default(&given.values, given.negated) {
            out.push(Finding::new(
                Level::Info,
                "redundant",
                &given.written,
                format!("{name} says what the default says"),
                Some("leave it out".to_owned()),
            ));
        }
        if let Some(version) = version
            && !table.has(given.flag, version)
        {
            out.push(Finding::new(
                Level::Warning,
                "newer-flag",
                &given.written,
                format!(
                    "{name} is not known to be in {version}: the first of the compared versions that has it is {}",
                    given.flag.first
                ),
                None,
            ));
        }
    }
    out
}

/// Values that are read but dangerous, and flags that contradict each other.
pub fn settings(found: &Found, table: &'static Table, parsed: &Parsed, model: Option<&str>) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut add = |level, code, flag: &str, message: String, fix: Option<&str>| {
        out.push(Finding::new(level, code, flag, message, fix.map(str::to_owned)));
    };
    let number = |name: &str| parsed.value(name).and_then(|v| v.trim().parse::<f64>().ok());
    if model.is_none() {
        let (level, flag, says) = match found.engine {
            "sglang" => (Level::Error, "--model-path", "no model is named"),
            "llamacpp" => (
                Level::Warning,
                "--model",
                "no model is named: the server would load whatever model a request asks for",
            ),
            _ => (
                Level::Error,
                "--model",
                "no model is named: the engine would serve its default, Qwen/Qwen3-0.6B",
            ),
        };
        add(level, "no-model", flag, says.to_owned(), Some("name the model"));
    }
    let share = if found.engine == "sglang" {
        "--mem-fraction-static"
    } else {
        "--gpu-memory-utilization"
    };
    if let Some(x) = number(share) {
        if !(x > 0.0 && x <= 1.0) {
            add(
                Level::Error,
                "bad-share",
                share,
                format!("{share} is {x}, and must lie between 0 and 1"),
                None,
            );
        } else if x > 0.95 {
            add(
                Level::Warning,
                "little-left",
                share,
                format!(
                    "{share} {x} leaves {:.1} % of the GPU to everything outside of the engine's budget",
                    (1.0 - x) * 100.0
                ),
                Some("0.95 at most, unless a log shows that more holds"),
            );
        }
    }
    match found.engine {
        "vllm" => vllm(found, parsed, &mut add),
        "llamacpp" => llamacpp::settings(parsed, &mut add),
        _ => {}
    }
    for (secret, instead) in [
        ("--api-key", "VLLM_API_KEY in the environment"),
        ("--hf-token", "HF_TOKEN in the environment"),
    ] {
        if parsed
            .last(secret)
            .is_some_and(|g| g.values.iter().any(|v| !v.starts_with('$')))
        {
            add(
                Level::Warning,
                "secret-in-command",
                secret,
                format!("{secret} is readable in the list of processes and in the manifest"),
                Some(instead),
            );
        }
    }
    if parsed.last("--trust-remote-code").is_some_and(|g| !g.negated) {
        add(
            Level::Warning,
            "remote-code",
            "--trust-remote-code",
            "runs code that comes with the model, with the server's rights".to_owned(),
            Some("leave it out where the engine knows the architecture, or pin --revision"),
        );
    }
    let _ = table;
    out
}

fn vllm(
    found: &Found,
    parsed: &Parsed,
    add: &mut impl FnMut(Level, &'static str, &str, String, Option<&str>),
) {
    let integer = |name: &str| parsed.value(name).and_then(|v| v.trim().parse::<i64>().ok());
    let has = |name: &str| parsed.last(name).is_some();
    if found.serve && has("--model") {
        add(
            Level::Warning,
            "model-flag",
            "--model",
            "vllm serve takes the model as its first word; --model is going to be removed there".to_owned(),
            Some("write vllm serve MODEL"),
        );
    }
    if let Some(n) = integer("--max-model-len").filter(|&n| n < 1 && n != -1) {
        add(
            Level::Error,
            "bad-length",
            "--max-model-len",
            format!(
                "--max-model-len is {n}; of the numbers below 1 only -1 means something, the longest that fits"
            ),
            Some("give a length, or auto"),
        );
    }
    for name in [
        "--tensor-parallel-size",
        "--pipeline-parallel-size",
        "--data-parallel-size",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--block-size",
    ] {
        if let Some(n) = integer(name).filter(|&n| n < 1) {
            add(
                Level::Error,
                "not-positive",
                name,
                format!("{name} is {n}, and must be at least 1"),
                None,
            );
        }
    }
    if has("--kv-cache-memory-bytes") && has("--gpu-memory-utilization") {
        add(
            Level::Warning,
            "ignored",
            "--gpu-memory-utilization",
            "--kv-cache-memory-bytes sets the KV cache by hand, so the utilisation is ignored".to_owned(),
            Some("keep one of the two"),
        );
    }
    if has("--num-gpu-blocks-override") {
        add(
            Level::Warning,
            "by-hand",
            "--num-gpu-blocks-override",
            "the number of blocks is taken as it is: too many run out of memory, too few waste it".to_owned(),
            Some("leave it out but for tests"),
        );
    }
    if parsed.last("--enforce-eager").is_some_and(|g| !g.negated) {
        add(
            Level::Warning,
            "slower",
            "--enforce-eager",
            "without CUDA graphs small batches decode markedly slower; the memory it frees is small"
                .to_owned(),
            Some("leave it out unless you are debugging"),
        );
    }
    if !has("--enable-lora") {
        for name in [
            "--max-loras",
            "--max-lora-rank",
            "--max-cpu-loras",
            "--lora-modules",
        ] {
            if has(name) {
                add(
                    Level::Warning,
                    "without-effect",
                    name,
                    format!("{name} does nothing without --enable-lora"),
                    Some("add --enable-lora, or leave it out"),
                );
            }
        }
    }
    if parsed.last("--skip-mm-profiling").is_some_and(|g| !g.negated) {
        add(
            Level::Warning,
            "unprofiled",
            "--skip-mm-profiling",
            "images take no part in the memory profile: a full batch of them may run out of memory"
                .to_owned(),
            None,
        );
    }
    let sequences = integer("--max-num-seqs");
    let tokens = integer("--max-num-batched-tokens");
    if let (Some(sequences), Some(tokens)) = (sequences, tokens)
        && tokens < sequences
    {
        add(
            Level::Error,
            "contradiction",
            "--max-num-batched-tokens",
            format!(
                "a step of {tokens} tokens cannot hold the {sequences} sequences of --max-num-seqs, and the engine refuses it"
            ),
            Some("raise the tokens or lower the sequences"),
        );
    }
}

/// Variables that the engine does not read.
pub fn environment(found: &Found) -> Vec<Finding> {
    if found.engine != "vllm" {
        return Vec::new();
    }
    let known = || VLLM_ENVIRONMENT.lines().filter(|l| !l.starts_with('#'));
    found
        .environment
        .iter()
        .filter(|(name, _)| name.starts_with("VLLM_") && !known().any(|k| k == name))
        .map(|(name, _)| {
            let fix = match name.as_str() {
                "VLLM_ATTENTION_BACKEND" => Some("write --attention-backend".to_owned()),
                "VLLM_USE_V1" => Some("leave it out: there is no other".to_owned()),
                _ => nearest(name, known(), 1).first().map(|n| format!("write {n}")),
            };
            Finding::new(
                Level::Warning,
                "unknown-variable",
                name,
                format!("{name} is no variable that vLLM 0.32.0 reads"),
                fix,
            )
        })
        .collect()
}

/// What a container lacks.
pub fn container(found: &Found, parsed: &Parsed) -> Vec<Finding> {
    let mut out = Vec::new();
    let size = |name: &str| {
        parsed
            .value(name)
            .and_then(|v| v.parse::<u64>().ok())
            .unwrap_or(1)
    };
    let all = match found.engine {
        // llama.cpp takes whatever GPUs it sees.
        "llamacpp" => return out,
        "sglang" => size("--tp-size").saturating_mul(size("--pp-size")),
        _ => size("--tensor-parallel-size")
            .saturating_mul(size("--pipeline-parallel-size"))
            .saturating_mul(size("--data-parallel-size")),
    };
    // Each of several machines has its share of the ranks.
    let ranks = all.div_ceil(size("--nnodes").max(1));
    let short = found
        .gpus
        .filter(|&gpus| gpus < ranks && !super::planned::by_ray(parsed));
    if let Some(gpus) = short {
        out.push(Finding::new(
            Level::Error,
            "too-few-gpus",
            "--tensor-parallel-size",
            format!("the parallel sizes need {ranks} GPUs, and {gpus} are given"),
            Some("give as many GPUs as ranks".to_owned()),
        ));
    } else if let Some(gpus) = found.gpus.filter(|&gpus| gpus > ranks) {
        out.push(Finding::new(
            Level::Warning,
            "idle-gpus",
            "--tensor-parallel-size",
            format!("{gpus} GPUs are given, and the parallel sizes use {ranks}"),
            None,
        ));
    }
    if ranks > 1 && found.shared_memory == Some(false) {
        out.push(Finding::new(
            Level::Warning,
            "shared-memory",
            "--shm-size",
            "several ranks talk through shared memory, and the container has the default of 64 MiB".to_owned(),
            Some("--shm-size or --ipc=host for docker, shm_size for Compose, an emptyDir in memory at /dev/shm for Kubernetes".to_owned()),
        ));
    }
    if let Some(image) = &found.image
        && found.version.is_none()
        && !image.contains('@')
    {
        out.push(Finding::new(
            Level::Warning,
            "floating-image",
            image,
            "the image names no version: flags and memory change between versions".to_owned(),
            Some("pin a tag like v0.32.0, or a digest".to_owned()),
        ));
    }
    out
}
