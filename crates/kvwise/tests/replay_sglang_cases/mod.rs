//! Random cases for the comparison with a real SGLang: small pools, all policies and pages, outputs that run out of memory.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// A new conversation, or one that begins as an earlier one.
fn conversation(random: &mut Random, earlier: &[Vec<u64>], own: u64, vocabulary: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    if !earlier.is_empty() && !random.one_in(4) {
        let from = &earlier[usize::try_from(random.within(0, earlier.len() as u64 - 1)).unwrap()];
        let keep = random.within(0, from.len() as u64);
        ids.extend_from_slice(&from[..usize::try_from(keep).unwrap()]);
    }
    ids.extend((0..own).map(|_| random.within(0, vocabulary)));
    if ids.is_empty() {
        ids.push(random.within(0, vocabulary));
    }
    ids
}

fn rows(random: &mut Random, capacity: u64, hash_block: u64) -> Vec<Value> {
    let as_blocks = random.one_in(3);
    let vocabulary = if as_blocks { 40 } else { random.pick(&[2, 5, 1000]) };
    let unit = if as_blocks { hash_block } else { 1 };
    let longest_output = random.pick(&[4, 30, capacity / 2, capacity]).max(1);
    let mut earlier: Vec<Vec<u64>> = Vec::new();
    (0..random.within(5, 60))
        .map(|number| {
            let own = random.within(0, (capacity / unit / 3).max(1));
            let mut ids = conversation(random, &earlier, own, vocabulary);
            let most = (capacity * random.pick(&[3, 6, 9]) / 10 / unit).max(1);
            ids.truncate(usize::try_from(most).unwrap());
            let output = random.within(1, longest_output);
            let mut row = Map::new();
            row.insert("id".to_owned(), json!(format!("r{number}")));
            if as_blocks {
                let input = ids.len() as u64 * unit - random.within(0, unit - 1);
                row.insert("hash_ids".to_owned(), json!(ids));
                row.insert("input_length".to_owned(), json!(input));
                row.insert("output_length".to_owned(), json!(output));
            } else {
                row.insert("tokens".to_owned(), json!(ids));
                row.insert("output_length".to_owned(), json!(output));
                if random.one_in(3) {
                    let given: Vec<u64> = (0..output).map(|_| random.within(0, vocabulary)).collect();
                    let mut whole = ids.clone();
                    whole.extend_from_slice(&given);
                    earlier.push(whole);
                    row.insert("output_tokens".to_owned(), json!(given));
                }
            }
            earlier.push(ids);
            if random.one_in(3) {
                let priority = i64::try_from(random.within(0, 5)).unwrap() - 2;
                row.insert("priority".to_owned(), json!(priority));
            }
            for (name, values) in [("extra_key", ["a", "b"]), ("cache_salt", ["a", "s"])] {
                if random.one_in(8) {
                    row.insert(name.to_owned(), json!(random.pick(&values)));
                }
            }
            Value::Object(row)
        })
        .collect()
}

/// Case number `seed`: a line for the reference script.
pub fn case(seed: u64) -> Value {
    let mut random = Random::new(seed);
    let page = random.pick(&[1, 1, 1, 2, 3, 4, 16, 64]);
    let capacity = page * random.pick(&[8, 20, 50, 200]);
    let policy = random.pick(&["lru", "lfu", "slru", "priority", "tlru", "fifo", "mru", "filo"]);
    let policy_config = match policy {
        "slru" => json!({"protected_threshold": random.within(1, 3)}),
        "tlru" => json!({"threshold": random.within(0, 30), "next_prompt_estimate": random.within(0, 6)}),
        _ => Value::Null,
    };
    let hash_block = random.pick(&[3, 16, 64]);
    let max_context = if random.one_in(5) { capacity } else { 1_000_000 };
    let settings = json!({
        "capacity": capacity, "page": page, "policy": policy, "policy_config": policy_config,
        "running": random.pick(&[1, 1, 2, 4, 8]), "hash_block": hash_block, "max_context": max_context,
    });
    json!({"name": format!("case{seed}"), "settings": settings, "rows": rows(&mut random, capacity, hash_block)})
}
