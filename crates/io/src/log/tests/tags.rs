//! What each release prints about memory, by its tag: `tags.tsv` has a line for each wording, the first and the last release
//! that has it (read in the sources of 34 releases from 0.6.0 to 0.33.0), the file, and what must be read from it.

use super::read_text;
use crate::log::{Boot, EngineKind, Figure, Rank, Refusal, Value, vllm};

const TAGS: &str = include_str!("tags.tsv");
/// The same of `SGLang`, read in the wheels of twelve releases from 0.2.15 to 0.5.23; a release between two of them is written
/// where the wording changed by a published log. Lines that follow each other are divided by `\\n`.
const SGLANG_TAGS: &str = include_str!("sglang_tags.tsv");

struct Tag<'a> {
    releases: [&'a str; 2],
    line: &'a str,
    read: &'a str,
}

fn tags() -> Vec<Tag<'static>> {
    tags_of(TAGS)
}

fn tags_of(text: &'static str) -> Vec<Tag<'static>> {
    let mut rows = text.lines();
    assert_eq!(rows.next(), Some("first\tlast\tfile\tline\tread"));
    rows.map(|row| {
        let fields: Vec<&str> = row.split('\t').collect();
        let [first, last, file, line, read] = fields[..] else {
            panic!("{row}");
        };
        assert!(file.contains(".py"), "{row}");
        Tag {
            releases: [first, last],
            line,
            read,
        }
    })
    .collect()
}

fn gibs(figure: Option<Figure>) -> String {
    let Some(figure) = figure else {
        return "nothing".to_owned();
    };
    let text = format!("{:.4}", figure.bytes as f64 / f64::from(1 << 30));
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The field of a boot with one worker, as the table spells it.
fn field(boot: &Boot, name: &str) -> String {
    let empty = Rank::default();
    let rank = boot.ranks.first().unwrap_or(&empty);
    let number = |n: Option<u64>| n.map_or("nothing".to_owned(), |n| n.to_string());
    match name {
        "load" => gibs(rank.model_load),
        "available" => gibs(rank.available_kv),
        "activation" => gibs(rank.activation),
        "non_torch" => gibs(rank.non_torch),
        "consumed" => gibs(rank.consumed),
        "graphs" => gibs(rank.graphs),
        "estimate" => gibs(rank.graphs_estimate),
        "total" => gibs(rank.total),
        "free" | "before" => gibs(rank.free_at_start),
        "requested" => gibs(rank.requested),
        "given" => gibs(boot.kv_given),
        "tokens" => number(boot.tokens),
        "blocks" => number(boot.num_blocks),
        "length" => number(boot.max_model_len),
        "after" => gibs(rank.free_after_load),
        "pools" => gibs(rank.free_after_pools),
        "kv" => gibs(boot.kv_bytes),
        "state" => gibs(boot.state_bytes),
        "slots" => number(boot.state_slots),
        "swa" => number(boot.swa_tokens),
        "chunk" => number(boot.max_num_batched_tokens),
        "running" => number(boot.setting("max_running_requests").and_then(Value::count)),
        "concurrency" => boot
            .concurrency
            .map_or("nothing".to_owned(), |(x, _)| x.to_string()),
        "utilization" => boot.utilization.map_or("nothing".to_owned(), |x| x.to_string()),
        "refusal" => match &boot.refusal {
            None => "nothing",
            Some(Refusal::FreeMemory { .. }) => "free_memory",
            Some(Refusal::NoMemory) => "no_memory",
            Some(Refusal::TooLong { .. }) => "too_long",
            Some(Refusal::StateBlocks { .. }) => "state_blocks",
            Some(Refusal::OutOfMemory { .. }) => "out_of_memory",
        }
        .to_owned(),
        "needed" | "estimated" | "pool" => match &boot.refusal {
            Some(Refusal::TooLong {
                needed,
                estimated,
                pool_tokens,
                ..
            }) => match name {
                "needed" => gibs(*needed),
                "estimated" => number(*estimated),
                _ => number(*pool_tokens),
            },
            _ => "nothing".to_owned(),
        },
        "remark" => (boot.evidence.iter().map(|e| e.what).collect::<Vec<_>>()).join(","),
        other => panic!("no field {other}"),
    }
}

#[test]
fn every_wording_of_every_release_says_what_it_says() {
    for tag in tags() {
        for release in tag.releases {
            let text = format!(
                "INFO 01-02 03:04:05 [api_server.py:1] vLLM API server version {release}\n\
                 (EngineCore pid=7) INFO 01-02 03:04:06 [core.py:1] {}\n",
                tag.line
            );
            let log = read_text(&text).unwrap_or_else(|error| panic!("{release}: {error}: {}", tag.line));
            for expected in tag.read.split(';') {
                let (name, value) = expected.split_once('=').unwrap();
                assert_eq!(
                    field(&log.boots[0], name),
                    value,
                    "{release}: {name} of {}",
                    tag.line
                );
            }
        }
    }
}

#[test]
fn every_wording_about_memory_stands_in_the_table_of_releases() {
    for wording in vllm::WORDINGS.iter().copied().flatten() {
        let about_memory = ["GiB", "memory", "KV", "blocks", "CUDA graph"]
            .iter()
            .any(|word| wording.phrase.contains(word));
        // Terms that 0.6.4 prints one a line in some builds, what PyTorch prints, and lines between releases.
        let elsewhere = [
            "PyTorch activation peak memory ",
            "non_torch_memory ",
            "available_kv_cache_memory ",
            "] total_gpu_memory ",
            "] gpu_memory_utilization ",
            "CUDA out of memory. Tried to allocate ",
        ]
        .contains(&wording.phrase);
        assert!(
            !about_memory || elsewhere || tags().iter().any(|tag| tag.line.contains(wording.phrase)),
            "{:?} is in no line of tags.tsv",
            wording.phrase
        );
    }
}

#[test]
fn every_wording_of_sglangs_releases_says_what_it_says_on_one_gpu_and_on_several() {
    for tag in tags_of(SGLANG_TAGS) {
        for prefix in [
            "[2026-09-12 00:22:48]",
            "[00:22:48 TP0]",
            "[2026-09-12 00:22:48 DP0 TP0 EP0]",
        ] {
            let lines: Vec<String> = tag
                .line
                .split("\\n")
                .map(|line| format!("{prefix} {line}\n"))
                .collect();
            let text = format!(
                "[2026-09-12 00:22:11] server_args=ServerArgs(model_path='a/b', tp_size=1)\n{}",
                lines.concat()
            );
            let log = read_text(&text).unwrap_or_else(|error| panic!("{error}: {}", tag.line));
            let boot = log.boots.last().unwrap();
            assert_eq!(boot.engine, Some(EngineKind::Sglang), "{}", tag.line);
            for expected in tag.read.split(';') {
                let (name, value) = expected.split_once('=').unwrap();
                assert_eq!(
                    field(boot, name),
                    value,
                    "{} to {}: {name} of {prefix} {}",
                    tag.releases[0],
                    tag.releases[1],
                    tag.line
                );
            }
        }
    }
}
