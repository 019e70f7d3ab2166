//! The host tier against the scheduler's side of vLLM's own offloading connector, call by call.
//!
//! Requests with shared prefixes ask, load, compute, decode and end; what vLLM 0.32.0's `OffloadingConnectorScheduler` answered is
//! fingerprinted in `tests/data/vllm_offload_connector.txt`, made by `tests/reference/vllm_offload_connector.py`. With a Python that
//! has vLLM the same requests, and more of them, are compared anew:
//!
//! ```text
//! KVWISE_VLLM_PYTHON=/path/to/python cargo test -p kvwise-sim connector_tests -- --ignored
//! ```
//! (`KVWISE_VLLM_HISTORIES=2000` for more, `KVWISE_VLLM_WRITE=1` rewrites the data file.)

use std::path::PathBuf;

use kvwise_cache::manager::{GroupKind, GroupSpec};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

use super::asking::{self, Script};
use super::golden;
use super::store::Found;
use super::{LinkSpeed, TierConfig, TierPolicy, Tiers};
use crate::sched::vllm::{KvConnector, Load, Matched, Query};

/// Histories in the data file.
const GOLDEN: u64 = 200;
const BLOCK: u32 = 16;

/// Where a request is.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    Loading,
    Running,
}

struct Asked {
    tag: u32,
    chain: u32,
    prompt: u32,
    /// Known tokens at which it ends.
    limit: u32,
    known: u32,
    computed: u32,
    stage: Stage,
}

impl Asked {
    /// Names of the full blocks of what is known: the beginning is everybody's, then the chain's, then its own.
    fn keys(&self, shared: u32) -> Vec<u32> {
        let of_prompt = self.prompt / BLOCK;
        (0..self.known / BLOCK)
            .map(|i| {
                if i >= of_prompt {
                    100_000 + 1000 * self.tag + i
                } else if i < shared {
                    i
                } else {
                    100 * (self.chain + 1) + i
                }
            })
            .collect()
    }
}

/// A history, made while it is performed, and what our tier answered.
fn history(seed: u64) -> (Value, Vec<Value>) {
    let mut random = Pcg64::seed_from_u64(seed);
    let policy = [TierPolicy::Lru, TierPolicy::Arc][random.random_range(0..2)];
    let capacity_blocks: u32 = random.random_range(2..40);
    let (chains, shared) = (random.random_range(1..6_u32), random.random_range(0..4_u32));
    // What is on its way stays there until half a second has passed.
    let fast = LinkSpeed {
        bytes_per_s: 1e18,
        latency_s: 0.5,
    };
    let host = TierConfig {
        name: "host".to_owned(),
        capacity_blocks,
        bytes_per_block: 1,
        read: fast,
        write: fast,
        policy,
    };
    let group = GroupSpec {
        kind: GroupKind::Full,
        block_size: BLOCK,
        eagle: false,
    };
    let mut tiers = Tiers::new(&[host], &[group], BLOCK).unwrap();
    let (mut operations, mut answers) = (Vec::new(), Vec::new());
    let mut live: Vec<Asked> = Vec::new();
    let (mut next, mut now) = (0, 0.0);
    let universe: Vec<u32> = (0..shared)
        .chain((0..chains).flat_map(|c| (0..8).map(move |i| 100 * (c + 1) + i)))
        .collect();
    for _ in 0..random.random_range(20..120) {
        match random.random_range(0..6) {
            0 => {
                next += 1;
                let prompt = random.random_range(1..8 * BLOCK);
                let asked = Asked {
                    tag: next,
                    chain: random.random_range(0..chains),
                    prompt,
                    limit: prompt + random.random_range(1..40),
                    known: prompt,
                    computed: 0,
                    stage: Stage::Waiting,
                };
                operations.push(
                    json!({"op": "begin", "request": next, "keys": asked.keys(shared), "prompt": prompt}),
                );
                answers.push(json!(null));
                live.push(asked);
            }
            1 => {
                let waiting: Vec<usize> = (0..live.len())
                    .filter(|&i| live[i].stage == Stage::Waiting)
                    .collect();
                for i in waiting {
                    let asked = &live[i];
                    let keys = asked.keys(shared);
                    let local = BLOCK * random.random_range(0..=(asked.prompt - 1) / BLOCK);
                    let answer = tiers.matched(&Query {
                        tag: asked.tag,
                        keys: &keys,
                        local_tokens: local,
                        num_tokens: asked.prompt,
                        resumed: false,
                    });
                    operations.push(json!({"op": "ask", "request": asked.tag, "local": local}));
                    answers.push(match answer {
                        Matched::Tokens(n) => json!(n),
                        Matched::Later => json!(null),
                    });
                    let asked = &mut live[i];
                    match answer {
                        Matched::Later => {}
                        Matched::Tokens(0) => {
                            (asked.stage, asked.computed) = (Stage::Running, local);
                        }
                        Matched::Tokens(external_tokens) => {
                            tiers.load(&Load {
                                tag: asked.tag,
                                keys: &keys,
                                local_tokens: local,
                                external_tokens,
                                blocks: external_tokens.div_ceil(BLOCK),
                            });
                            operations
                                .push(json!({"op": "load", "request": asked.tag, "local": local, "tokens": external_tokens}));
                            answers.push(json!(null));
                            // The last token of a prompt is computed in any case.
                            asked.computed = (local + external_tokens).min(asked.prompt - 1);
                            asked.stage = Stage::Loading;
                        }
                    }
                }
            }
            2..=3 => {
                let mut scheduled = Vec::new();
                for asked in live.iter().filter(|a| a.stage == Stage::Running) {
                    let missing = asked.known - asked.computed;
                    let new = missing.min(random.random_range(1..3 * BLOCK));
                    scheduled.push((asked.tag, asked.computed, new, asked.keys(shared)));
                }
                let mut stored = Vec::new();
                for (tag, computed, new, keys) in &scheduled {
                    tiers.computed(*tag, keys, computed + new);
                    if let Some(asked) = live.iter_mut().find(|a| a.tag == *tag) {
                        asked.computed += new;
                        asked.known += u32::from(asked.computed == asked.known);
                    }
                }
                stored.extend(tiers.computed.iter().flatten().copied());
                stored.sort_unstable();
                operations.push(json!({"op": "step", "requests": scheduled}));
                answers.push(json!(stored));
                tiers.advance(now);
                let ended: Vec<usize> = (0..live.len())
                    .rev()
                    .filter(|&i| live[i].known >= live[i].limit)
                    .collect();
                for i in ended {
                    let asked = live.remove(i);
                    let keys = asked.keys(shared);
                    tiers.finished(asked.tag, &keys, asked.computed);
                    operations.push(
                        json!({"op": "finish", "request": asked.tag, "tokens": asked.known, "keys": keys}),
                    );
                    answers.push(json!([]));
                }
            }
            4 => {
                now += 1.0;
                tiers.advance(now);
                operations.push(json!({"op": "done"}));
                answers.push(json!(null));
                for asked in &mut live {
                    if tiers.arrived(asked.tag) {
                        asked.stage = Stage::Running;
                    }
                }
            }
            _ => {
                let found: String = universe
                    .iter()
                    .map(|&key| match tiers.stores[0].find(key.into()) {
                        Found::Ready => 'r',
                        Found::OnItsWay => 'w',
                        Found::Missing => '-',
                    })
                    .collect();
                operations.push(json!({"op": "look", "keys": universe}));
                answers.push(json!(found));
            }
        }
    }
    let policy = serde_json::to_value(policy).unwrap();
    (
        json!({"policy": policy, "capacity": capacity_blocks, "block": BLOCK, "operations": operations}),
        answers,
    )
}

fn fingerprint(answers: &[Value]) -> String {
    golden::fingerprint(answers.len(), serde_json::to_vec(answers).unwrap())
}

fn data_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/vllm_offload_connector.txt")
}

#[test]
fn what_is_found_and_stored_is_what_equalled_vllms_connector() {
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
fn random_histories_agree_with_the_connector_of_the_installed_vllm() {
    let count = asking::number("KVWISE_VLLM_HISTORIES", 300);
    let mut vllm = Script::start("KVWISE_VLLM_PYTHON", "vllm_offload_connector.py", &[]);
    let mut golden = String::new();
    for seed in 0..GOLDEN + count {
        let (job, ours) = history(seed);
        let theirs: Vec<Value> = serde_json::from_str(&vllm.answer(&job)).unwrap();
        for (n, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(
                our,
                their,
                "history {seed}, operation {n} of {} blocks {}: {}\nbefore it {:?}",
                job["capacity"],
                job["policy"],
                job["operations"][n],
                (n.saturating_sub(8)..n)
                    .map(|i| (&job["operations"][i], &ours[i]))
                    .collect::<Vec<_>>()
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
