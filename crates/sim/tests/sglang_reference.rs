//! The radix cache against SGLang's own code, operation by operation and slot by slot.
//!
//! Random histories (chunked prefill, decoding, several requests at once, retraction, extra keys and salts, explicit
//! eviction) run through [`RadixCache`]; what SGLang 0.5.23 did with the same histories is in
//! `data/sglang_ops.jsonl`, made by `tests/reference/sglang_ops.py`. With a Python that has SGLang, hundreds of further
//! histories are compared directly:
//!
//! ```text
//! KVWISE_SGLANG_PYTHON=/path/to/python cargo test -p kvwise-sim --test sglang_reference -- --ignored
//! ```
//! (`KVWISE_SGLANG_CORE=python` takes SGLang's Python tree instead of its Rust one, `KVWISE_SGLANG_HISTORIES=2000`
//! more histories, `KVWISE_SGLANG_WRITE=1` rewrites the data file.)

mod asking;

use std::collections::BTreeMap;
use std::path::PathBuf;

use asking::Script;
use kvwise_cache::radix::{
    CacheEvent, EventLog, Namespaces, RadixCache, RadixCacheConfig, RequestKv, TreePolicy,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Map, Value, json};

/// Histories in the data file.
const GOLDEN: u64 = 24;

struct Live {
    kv: RequestKv,
    tokens: Vec<u32>,
    prompt_len: usize,
}

/// A history, and what our cache answered to each operation.
struct History {
    job: Value,
    answers: Vec<Value>,
}

fn policy(random: &mut Pcg64, seed: u64) -> (TreePolicy, Value) {
    let name = TreePolicy::NAMES[usize::try_from(seed % 8).unwrap()];
    match name.parse().unwrap() {
        TreePolicy::Slru { .. } => {
            let protected_threshold = random.random_range(1..4);
            (
                TreePolicy::Slru { protected_threshold },
                json!({ "protected_threshold": protected_threshold }),
            )
        }
        TreePolicy::Tlru { .. } => {
            let (threshold, next_prompt_estimate) = (random.random_range(0..30), random.random_range(0..6));
            (
                TreePolicy::Tlru {
                    threshold,
                    next_prompt_estimate,
                },
                json!({ "threshold": threshold, "next_prompt_estimate": next_prompt_estimate }),
            )
        }
        other => (other, Value::Null),
    }
}

/// Makes a history while performing it, so that every operation is one that SGLang's scheduler could do.
fn history(seed: u64, operations: usize) -> History {
    let mut random = Pcg64::seed_from_u64(seed);
    let page = [1, 1, 2, 3, 4, 7, 16][random.random_range(0..7)];
    let (policy, policy_config) = policy(&mut random, seed);
    let capacity = page * random.random_range(12..if page > 4 { 20 } else { 60 });
    let (rows, width) = (4, capacity.min(120));
    let config = RadixCacheConfig {
        capacity_tokens: capacity,
        page_size: page,
        policy,
        max_requests: rows,
        max_context_tokens: width,
        enabled: true,
    };
    let mut cache: RadixCache<u32, EventLog> =
        RadixCache::with_observer(config, EventLog::new(page)).unwrap();
    let mut names = Namespaces::default();
    let mut live: BTreeMap<u64, Live> = BTreeMap::new();
    let mut heard: Vec<Vec<u32>> = Vec::new();
    let (mut jobs, mut answers, mut next_id) = (Vec::new(), Vec::new(), 0u64);
    while jobs.len() < operations {
        let mut evicted: Vec<Value> = Vec::new();
        let mut on_evict = |run: &[u32]| evicted.push(json!([run.len(), run[0]]));
        let mut answer = Map::new();
        let some_id = live
            .keys()
            .nth(random.random_range(0..live.len().max(1)))
            .copied();
        let (id, op) = match (random.random_range(0..10), some_id) {
            (0..=2, _) | (_, None) if live.len() < rows => {
                let tokens = conversation(&mut random, &heard, page, width);
                heard.push(tokens.clone());
                let prompt_len = random.random_range(1..=tokens.len());
                let priority = random.random_range(-1..4);
                let extra_key = [None, None, None, Some(""), Some("a")][random.random_range(0..5)];
                let cache_salt = [None, None, None, Some(""), Some("s")][random.random_range(0..5)];
                next_id += 1;
                let namespace = names.intern(extra_key, cache_salt).unwrap();
                cache.observer_mut().describe(namespace, extra_key, cache_salt);
                let mut kv = cache.lookup(namespace, &tokens[..prompt_len], priority).unwrap();
                cache.start(&mut kv).unwrap();
                answer.insert("matched".to_owned(), json!(kv.prefix_len()));
                let op = json!({"op": "admit", "id": next_id, "tokens": tokens, "prompt_len": prompt_len,
                    "priority": priority, "extra_key": extra_key, "cache_salt": cache_salt});
                live.insert(
                    next_id,
                    Live {
                        kv,
                        tokens,
                        prompt_len,
                    },
                );
                (Some(next_id), op)
            }
            (0..=4, Some(id)) => {
                let request = live.get_mut(&id).unwrap();
                let from = request.kv.owned_len();
                if from == request.tokens.len() {
                    continue;
                }
                let to = random.random_range(from + 1..=request.tokens.len());
                if cache.extend(&mut request.kv, to, &mut on_evict).is_err() {
                    answer.insert("short".to_owned(), json!(true));
                }
                (Some(id), json!({"op": "extend", "id": id, "to": to}))
            }
            (5..=6, Some(id)) => {
                let Live {
                    kv,
                    tokens,
                    prompt_len,
                } = live.get_mut(&id).unwrap();
                let up_to = kv.owned_len();
                cache.checkpoint(kv, &tokens[..up_to], *prompt_len).unwrap();
                (Some(id), json!({"op": "checkpoint", "id": id, "up_to": up_to}))
            }
            (7, Some(id)) => {
                let Live {
                    kv,
                    tokens,
                    prompt_len,
                } = live.remove(&id).unwrap();
                let up_to = kv.owned_len();
                cache.finish(kv, &tokens[..up_to], prompt_len).unwrap();
                (None, json!({"op": "finish", "id": id, "up_to": up_to}))
            }
            (8, Some(id)) => {
                cache.retract(live.remove(&id).unwrap().kv).unwrap();
                (None, json!({"op": "retract", "id": id}))
            }
            _ => {
                let tokens = random.random_range(1..=capacity / 4);
                let before = cache.slots().available_tokens();
                // an explicit eviction frees whole nodes until the sum is reached
                while cache.slots().available_tokens() < before + tokens {
                    let room = cache.slots().available_tokens() + 1;
                    if !cache.make_room(room, &mut on_evict) {
                        break;
                    }
                }
                (None, json!({"op": "evict", "tokens": tokens}))
            }
        };
        if let Some(request) = id.and_then(|id| live.get(&id)) {
            let row = cache.rows().get(request.kv.row().unwrap()).unwrap();
            answer.insert("row".to_owned(), json!(&row[..request.kv.owned_len()]));
        }
        answer.insert("evicted".to_owned(), Value::Array(evicted));
        answer.insert("free".to_owned(), json!(cache.slots().available_tokens()));
        answer.insert("evictable".to_owned(), json!(cache.tree().evictable_tokens()));
        answer.insert("protected".to_owned(), json!(cache.tree().protected_tokens()));
        let events: Vec<Value> = cache.observer_mut().take().iter().map(event).collect();
        answer.insert("events".to_owned(), Value::Array(events));
        cache.tree().check_invariants().unwrap();
        jobs.push(op);
        answers.push(Value::Object(answer));
    }
    let job = json!({"capacity": capacity, "page": page, "policy": policy.name(), "policy_config": policy_config,
        "rows": rows, "width": width, "operations": jobs});
    History { job, answers }
}

fn event(event: &CacheEvent) -> Value {
    match event {
        CacheEvent::Stored {
            hashes,
            parent_hash,
            tokens,
            ..
        } => {
            json!(["stored", parent_hash, hashes, tokens.len()])
        }
        CacheEvent::Removed { hashes } => json!(["removed", hashes]),
        CacheEvent::Cleared => json!(["cleared"]),
    }
}

/// A new conversation or a variation of an earlier one, at most `width` tokens of a small vocabulary.
fn conversation(random: &mut Pcg64, heard: &[Vec<u32>], page: usize, width: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    if !heard.is_empty() && random.random_range(0..4) > 0 {
        let earlier = &heard[random.random_range(0..heard.len())];
        tokens.extend_from_slice(&earlier[..random.random_range(1..=earlier.len())]);
    }
    for _ in 0..random.random_range(1..8 * page.min(8)) {
        tokens.push(random.random_range(0..3));
    }
    tokens.truncate(width);
    tokens
}

fn data_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/sglang_ops.jsonl")
}

fn compare(seed: u64, ours: &History, theirs: &[Value]) {
    assert_eq!(ours.answers.len(), theirs.len(), "history {seed}");
    for (at, (own, their)) in ours.answers.iter().zip(theirs).enumerate() {
        let op = &ours.job["operations"][at];
        assert_eq!(
            own, their,
            "history {seed} ({}), operation {at}: {op}",
            ours.job["policy"]
        );
    }
}

#[test]
fn recorded_histories_of_sglang_are_reproduced_slot_by_slot() {
    let text = std::fs::read_to_string(data_file()).unwrap();
    assert_eq!(text.lines().count() as u64, GOLDEN);
    for (seed, line) in (0..).zip(text.lines()) {
        let theirs: Vec<Value> = serde_json::from_str(line).unwrap();
        compare(seed, &history(seed, 40), &theirs);
    }
}

#[test]
#[ignore = "needs KVWISE_SGLANG_PYTHON, a Python with SGLang 0.5.23"]
fn random_histories_agree_with_the_installed_sglang() {
    let core = std::env::var("KVWISE_SGLANG_CORE").unwrap_or_else(|_| "rust".to_owned());
    let histories = asking::number("KVWISE_SGLANG_HISTORIES", 300);
    let mut sglang = Script::start("KVWISE_SGLANG_PYTHON", "sglang_ops.py", &["--core", &core]);
    let mut golden = String::new();
    for seed in 0..GOLDEN + histories {
        let ours = history(seed, if seed < GOLDEN { 40 } else { 150 });
        let line = sglang.answer(&ours.job);
        compare(seed, &ours, &serde_json::from_str::<Vec<Value>>(&line).unwrap());
        if seed < GOLDEN {
            golden += &line;
            golden.push('\n');
        }
    }
    sglang.end();
    if std::env::var_os("KVWISE_SGLANG_WRITE").is_some() {
        std::fs::create_dir_all(data_file().parent().unwrap()).unwrap();
        std::fs::write(data_file(), golden).unwrap();
    }
}
