//! A tier's blocks against vLLM's own manager, call by call.
//!
//! Random requests store, load and end; what vLLM 0.32.0's `CPUOffloadingManager` answered is fingerprinted in
//! `tests/data/vllm_offload.txt`, made by `tests/reference/vllm_offload.py`. With a Python that has vLLM the same requests, and
//! more of them, are compared anew:
//!
//! ```text
//! KVWISE_VLLM_PYTHON=/path/to/python cargo test -p kvwise-sim offload -- --ignored
//! ```
//! (`KVWISE_VLLM_HISTORIES=2000` for more, `KVWISE_VLLM_WRITE=1` rewrites the data file.)

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

use super::asking::{self, Script};
use super::golden;
use super::store::{Found, Store, TierPolicy, Used};

/// Histories in the data file.
const GOLDEN: u64 = 200;

/// A history, made while it is performed, and what our store answered.
fn history(seed: u64) -> (Value, Vec<Value>) {
    let mut random = Pcg64::seed_from_u64(seed);
    let policy = [TierPolicy::Lru, TierPolicy::Arc][random.random_range(0..2)];
    let capacity: u32 = random.random_range(1..24);
    let universe: u64 = random.random_range(4..60);
    let groups: u32 = random.random_range(1..3);
    let mut store = Store::new(capacity, policy).unwrap();
    let (mut operations, mut answers) = (Vec::new(), Vec::new());
    // Blocks of each live request, and what is on its way.
    let mut live: BTreeMap<u32, Vec<Used>> = BTreeMap::new();
    let mut writing: Vec<(u32, Vec<u64>)> = Vec::new();
    let mut reading: Vec<(u32, Vec<u64>)> = Vec::new();
    let mut next = 0;
    let plain = |blocks: &[Used]| blocks.iter().map(|u| u.block).collect::<Vec<_>>();
    for _ in 0..random.random_range(20..200) {
        let some = live
            .keys()
            .nth(random.random_range(0..live.len().max(1)))
            .copied();
        match (random.random_range(0..9), some) {
            (0..=1, _) | (_, None) => {
                next += 1;
                let mut blocks = Vec::new();
                for group in 0..groups {
                    // Even blocks and odd blocks, so that groups share none.
                    let first = random.random_range(0..universe);
                    for i in 0..random.random_range(1..8_u32) {
                        let block = (first + u64::from(i)) * u64::from(groups) + u64::from(group);
                        let end_token = 16 * (i + 1);
                        blocks.push(Used {
                            block,
                            group,
                            end_token,
                        });
                    }
                }
                let with_ends: Vec<Value> = blocks
                    .iter()
                    .map(|u| json!([u.group, u.block, u.end_token]))
                    .collect();
                operations.push(json!({"op": "begin", "request": next, "blocks": with_ends}));
                answers.push(json!(null));
                live.insert(next, blocks);
            }
            (2..=4, Some(tag)) => {
                let mine = &live[&tag];
                let from = random.random_range(0..mine.len());
                let to = random.random_range(from + 1..=mine.len());
                let offer = &mine[from..to];
                operations.push(json!({"op": "store", "request": tag, "blocks": plain(offer)}));
                let before = store.blocks();
                let stored = store.store(Some(tag), offer);
                let after = store.blocks();
                let evicted: Vec<u64> = before
                    .into_iter()
                    .filter(|b| after.binary_search(b).is_err())
                    .collect();
                answers.push(match &stored {
                    Some(blocks) => json!([blocks, evicted]),
                    None => json!(null),
                });
                if let Some(blocks) = stored
                    && !blocks.is_empty()
                {
                    writing.push((tag, blocks));
                }
            }
            (5, _) if !writing.is_empty() => {
                let (tag, blocks) = writing.remove(random.random_range(0..writing.len()));
                operations.push(json!({"op": "stored", "request": tag, "blocks": blocks}));
                store.written(&blocks);
                answers.push(json!(null));
            }
            (6, _) if !reading.is_empty() => {
                let (tag, blocks) = reading.remove(random.random_range(0..reading.len()));
                operations.push(json!({"op": "loaded", "request": tag, "blocks": blocks}));
                for &block in &blocks {
                    store.unpin(block);
                }
                answers.push(json!(null));
            }
            (7, Some(tag)) => {
                let ready: Vec<Used> = live[&tag]
                    .iter()
                    .copied()
                    .filter(|u| store.find(u.block) == Found::Ready)
                    .collect();
                if !ready.is_empty() {
                    operations.push(json!({"op": "load", "request": tag, "blocks": plain(&ready)}));
                    store.used(tag, &ready);
                    for u in &ready {
                        store.pin(u.block);
                    }
                    answers.push(json!(null));
                    reading.push((tag, plain(&ready)));
                }
            }
            (8, Some(tag)) => {
                operations.push(json!({"op": "end", "request": tag}));
                store.ended(tag);
                answers.push(json!(null));
                live.remove(&tag);
            }
            _ => {
                let blocks: Vec<u64> = (0..universe * u64::from(groups)).collect();
                operations.push(json!({"op": "look", "blocks": blocks}));
                let found: String = blocks
                    .iter()
                    .map(|&b| match store.find(b) {
                        Found::Ready => 'r',
                        Found::OnItsWay => 'w',
                        Found::Missing => '-',
                    })
                    .collect();
                answers.push(json!(found));
            }
        }
    }
    let policy = serde_json::to_value(policy).unwrap();
    (
        json!({"policy": policy, "capacity": capacity, "operations": operations}),
        answers,
    )
}

fn fingerprint(answers: &[Value]) -> String {
    golden::fingerprint(answers.len(), serde_json::to_vec(answers).unwrap())
}

fn data_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/vllm_offload.txt")
}

#[test]
fn offloaded_blocks_are_those_that_equalled_vllms() {
    let text = std::fs::read_to_string(data_file()).unwrap();
    assert_eq!(text.lines().count() as u64, GOLDEN);
    for (seed, line) in (0..).zip(text.lines()) {
        assert_eq!(
            fingerprint(&history(seed).1),
            line,
            "history {seed}: compare with vLLM"
        );
    }
}

#[test]
#[ignore = "needs KVWISE_VLLM_PYTHON, a Python with vLLM 0.32.0"]
fn random_offloads_agree_with_the_installed_vllm() {
    let count = asking::number("KVWISE_VLLM_HISTORIES", 300);
    let mut vllm = Script::start("KVWISE_VLLM_PYTHON", "vllm_offload.py", &[]);
    let mut golden = String::new();
    for seed in 0..GOLDEN + count {
        let (job, ours) = history(seed);
        let theirs: Vec<Value> = serde_json::from_str(&vllm.answer(&job)).unwrap();
        for (n, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(
                our, their,
                "history {seed}, operation {n}: {}",
                job["operations"][n]
            );
        }
        assert_eq!(ours.len(), theirs.len());
        if seed < GOLDEN {
            golden += &fingerprint(&theirs);
            golden.push('\n');
        }
    }
    vllm.end();
    if std::env::var_os("KVWISE_VLLM_WRITE").is_some() {
        std::fs::write(data_file(), golden).unwrap();
    }
}
