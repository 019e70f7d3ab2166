//! Prefill apart from decode, and memory behind the pool.

use super::*;

const APART: [&str; 15] = [
    "simulate",
    "--model",
    "llama-3.1-8b",
    "--gpu",
    "h100",
    "--input-len",
    "2000",
    "--output-len",
    "50",
    "--rate",
    "8",
    "--requests",
    "40",
    "--disaggregate",
    "prefill=2,decode=1",
];

/// Conversations that need more than their pool.
const SESSIONS: [&str; 23] = [
    "simulate",
    "--model",
    "llama-3.1-8b",
    "--gpu",
    "h100",
    "--input-len",
    "500",
    "--output-len",
    "50",
    "--concurrency",
    "8",
    "--turns",
    "5",
    "--think-time",
    "5",
    "--requests",
    "16",
    "--max-model-len",
    "4096",
    "--kv-cache-memory-bytes",
    "1GiB",
    "--format",
    "json",
];

#[test]
fn prefill_and_decode_apart_for_people() {
    let output = kvwise(&[&APART[..], &["--format", "table"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    insta::assert_snapshot!("apart", text(&output.stdout));
}

#[test]
fn prefill_and_decode_apart_move_each_prompt_once_and_a_slow_link_shows() {
    let fast = json(&[&APART[..], &["--format", "json"]].concat());
    let slow = json(&[&APART[..], &["--format", "json", "--transfer-bandwidth", "1GB/s"]].concat());
    let d = &fast["disaggregation"];
    assert_eq!(
        (d["prefill_gpus"].as_u64(), d["decode_gpus"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(fast["gpus"].as_u64(), Some(3));
    // 40 prompts of 125 blocks of 2 MiB.
    assert_eq!(d["blocks"].as_u64(), Some(40 * 125));
    assert_eq!(d["bytes"].as_u64(), Some(40 * 125 * (2 << 20)));
    let handed = |a: &Value| a["disaggregation"]["transfer_ms"]["p50"].as_f64().unwrap();
    assert!(
        handed(&slow) > handed(&fast) + 200.0,
        "{} {}",
        handed(&slow),
        handed(&fast)
    );
    assert_ne!(fast["inputs_hash"], slow["inputs_hash"]);
}

#[test]
fn sglang_s_sides_push_pages_while_they_compute_and_nothing_is_computed_twice() {
    let ask = |more: &[&str]| json(&[&APART[..], &["--engine", "sglang", "--format", "json"], more].concat());
    let fast = ask(&[]);
    let d = &fast["disaggregation"];
    // 40 prompts of 2000 tokens, pages of one token.
    assert_eq!(d["blocks"].as_u64(), Some(40 * 2000));
    assert_eq!(d["bytes"].as_u64(), Some(40 * 2000 * (2 << 16)));
    assert_eq!(fast["preemptions"].as_u64(), Some(0));
    let slow = ask(&["--transfer-bandwidth", "1GB/s"]);
    assert!(slow["ttft_ms"]["p50"].as_f64() > fast["ttft_ms"]["p50"].as_f64());
    // A decode pool that holds three prompts makes the others wait before they are computed.
    let tight = ask(&["--decode-flags", "max-total-tokens=8000"]);
    assert!(tight["queue_ms"]["p99"].as_f64().unwrap() > fast["queue_ms"]["p99"].as_f64().unwrap() + 50.0);
    assert_eq!(
        tight["requests"]["finished"].as_u64(),
        fast["requests"]["finished"].as_u64()
    );
}

#[test]
fn tiers_find_what_a_small_pool_lost() {
    let without = json(&SESSIONS);
    let with = json(&[&SESSIONS[..], &["--tiers", "host=2GiB,disk=50GiB"]].concat());
    assert!(without.get("tiers").is_none());
    let found = |i: usize| with["tiers"][i]["hit_tokens"].as_u64().unwrap();
    assert!(found(0) > 0 && found(1) > 0, "{}", with["tiers"]);
    assert!(with["ttft_ms"]["mean"].as_f64() < without["ttft_ms"]["mean"].as_f64());
}

#[test]
fn tiers_behind_prefill_engines_find_what_their_pool_lost_and_drafts_speed_the_decode_side_up() {
    let ask =
        |more: &[&str]| json(&[&SESSIONS[..], &["--disaggregate", "prefill=1,decode=1"], more].concat());
    let number = |a: &Value, path: &str| a.pointer(path).and_then(Value::as_f64).unwrap();
    let plain = ask(&[]);
    let tiers = ask(&["--tiers", "host=20GiB"]);
    assert!(number(&tiers, "/tiers/0/hit_tokens") > 0.0);
    assert!(number(&tiers, "/ttft_ms/mean") < number(&plain, "/ttft_ms/mean"));
    let drafts = ask(&[
        "--speculative-config",
        "{\"method\":\"ngram\",\"num_speculative_tokens\":3}",
        "--acceptance-rate",
        "0.7",
    ]);
    assert!(number(&drafts, "/tpot_ms/mean") < 0.8 * number(&plain, "/tpot_ms/mean"));
}

#[test]
fn what_cannot_be_apart_or_behind_the_pool_is_refused_in_one_sentence() {
    for (more, word) in [
        (&["--disaggregate", "prefill=2"][..], "both sides"),
        (
            &["--disaggregate", "prefill=1,decode=1", "--replicas", "2"],
            "--replicas",
        ),
        (
            &[
                "--disaggregate",
                "prefill=1,decode=1",
                "--num-reserved-decode-tokens",
                "64",
            ],
            "--engine sglang",
        ),
        (
            &[
                "--engine",
                "sglang",
                "--disaggregate",
                "prefill=1,decode=1",
                "--prefill-flags",
                "page-size=16",
            ],
            "--page-size",
        ),
        (
            &[
                "--engine",
                "sglang",
                "--disaggregate",
                "prefill=1,decode=1",
                "--tiers",
                "host=5GiB",
            ],
            "vLLM only",
        ),
        (
            &[
                "--disaggregate",
                "prefill=1,decode=1",
                "--decode-flags",
                "engine=sglang",
            ],
            "neither reads the other's cache",
        ),
        (
            &[
                "--disaggregate",
                "prefill=1,decode=1",
                "--decode-flags",
                "kv-cache-dtype=fp8",
            ],
            "blocks cannot move",
        ),
        (
            &["--disaggregate", "prefill=1,decode=1", "--prefill-flags", "tpp=2"],
            "tpp",
        ),
        (
            &[
                "--disaggregate",
                "prefill=1,decode=1",
                "--tiers",
                "host=5GiB",
                "--prefill-flags",
                "no-enable-prefix-caching",
            ],
            "prefix caching",
        ),
        (
            &["--disaggregate", "prefill=1,decode=1", "--acceptance-rate", "0.5"],
            "--acceptance-rate",
        ),
        (&["--scheduler-recv-interval", "10"], "--engine sglang"),
        (&["--max-prefill-tokens", "10k"], "--engine sglang"),
        (
            &["--engine", "sglang", "--scheduler-recv-interval", "0"],
            "--scheduler-recv-interval is 0",
        ),
        (
            &["--engine", "sglang", "--max-prefill-tokens", "0"],
            "--max-prefill-tokens is 0",
        ),
        (&["--tiers", "gpu=50GiB"], "gpu"),
        (&["--tiers", "attic=50GiB"], "attic"),
        (&["--tiers", "host=1GiB,host=2GiB"], "twice"),
        (
            &["--tiers", "host=50GiB", "--no-enable-prefix-caching"],
            "prefix caching",
        ),
        (
            &["--tiers", "host=50GiB", "--tier-bandwidth", "disk=4GB/s"],
            "--tier-bandwidth",
        ),
        (&["--tiers", "host=50GiB", "--engine", "sglang"], "vLLM only"),
    ] {
        let output = kvwise(&with(&[&["--concurrency", "2"], more].concat()));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains(word), "{more:?}: {said}");
    }
}
