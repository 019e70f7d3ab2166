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

/// Case number `seed` for SGLang's scheduler: a job for `sglang_scheduler.py`, with the rows of the trace in `rows` and the
/// flags of the same replay in `flags`.
pub fn batch_case(seed: u64) -> Value {
    let mut random = Random::new(seed ^ 0x5ca1_ab1e);
    let page = random.pick(&[1, 1, 1, 4, 16, 64]);
    let context = random.within(80, 400).max(3 * page);
    // From pools that hardly hold one request to pools that hold them all.
    let capacity = (random.within(context + 2 * page + 8, 6 * context) / page + 1) * page;
    let mixed = random.one_in(3);
    let max_running = random.within(1, 12);
    // Chunks are rarely multiples of pages.
    let chunk = if !mixed && random.one_in(4) {
        None
    } else {
        let least = if mixed { max_running + page } else { page };
        Some(least + random.within(0, 130))
    };
    let schedule = random.pick(&[
        "fcfs",
        "fcfs",
        "lof",
        "lpm",
        "dfs-weight",
        "hrrn",
        "shortest-prefill-first",
    ]);
    let priorities = (matches!(schedule, "fcfs" | "lof") && random.one_in(2)).then(|| {
        let threshold = (!random.one_in(4)).then(|| random.within(0, 3));
        json!({"low_first": random.one_in(3), "threshold": threshold})
    });
    let retraction = if priorities.is_some() && random.one_in(2) {
        "priority"
    } else {
        "length"
    };
    let eviction = random.pick(&[
        "lru", "lru", "lfu", "slru", "priority", "tlru", "fifo", "mru", "filo",
    ]);
    let eviction_config = match eviction {
        "slru" => json!({"protected_threshold": random.within(1, 3)}),
        "tlru" => json!({"threshold": random.within(0, 30), "next_prompt_estimate": random.within(0, 6)}),
        _ => Value::Null,
    };
    let radix = schedule == "shortest-prefill-first" || !random.one_in(6);
    let spread = random.pick(&[1, 3, 20, 60, 300]);
    let longest_own = context / random.pick(&[2, 2, 8]);
    let longest_output = random.pick(&[20, 90, context]);
    let vocabulary = random.pick(&[2, 5, 1000]);
    let mut earlier: Vec<Vec<u64>> = Vec::new();
    let (mut requests, mut rows) = (Vec::new(), Vec::new());
    let mut step = 0;
    for number in 0..random.within(3, 40) {
        // Now and then too long to be taken.
        let (own, most) = if random.one_in(20) {
            (context, context - random.within(3, 8))
        } else {
            (random.within(1, longest_own), context - 12)
        };
        let mut prompt = conversation(&mut random, &earlier, own, vocabulary);
        prompt.truncate(usize::try_from(most).unwrap());
        step += random.within(0, spread);
        let output = random.within(0, longest_output);
        let mut request = Map::new();
        request.insert("id".to_owned(), json!(format!("r{number}")));
        request.insert(
            "priority".to_owned(),
            json!(i64::try_from(random.within(0, 8)).unwrap() - 3),
        );
        for (name, values) in [("extra_key", ["a", "b"]), ("cache_salt", ["a", "s"])] {
            if random.one_in(8) {
                request.insert(name.to_owned(), json!(random.pick(&values)));
            }
        }
        if output > 0 && random.one_in(2) {
            let given: Vec<u64> = (0..output).map(|_| random.within(0, vocabulary)).collect();
            request.insert("output_tokens".to_owned(), json!(given));
            earlier.push(prompt.iter().chain(&given).copied().collect());
        }
        let mut row = request.clone();
        row.insert("arrival".to_owned(), json!(step));
        row.insert("tokens".to_owned(), json!(prompt));
        row.insert("output_length".to_owned(), json!(output));
        rows.push(Value::Object(row));
        request.insert("step".to_owned(), json!(step));
        request.insert("prompt".to_owned(), json!(prompt));
        request.insert("output".to_owned(), json!(output));
        requests.push(Value::Object(request));
        earlier.push(prompt);
    }
    let conservativeness = random.pick(&["0.05", "0.2", "0.5", "1.0", "1.4"]);
    let overlap = random.one_in(2);
    let recv_interval = if random.one_in(3) {
        random.pick(&[2, 5, 13, 2500])
    } else {
        1
    };
    let max_prefill = random.within(16, 400);
    let prefill_max_requests = random.one_in(5).then(|| random.within(1, 4));
    let mut flags: Vec<String> = vec!["--scheduler".to_owned(), "batch".to_owned()];
    let mut flag = |name: &str, value: String| flags.extend([format!("--{name}"), value]);
    flag("capacity", capacity.to_string());
    flag("page", page.to_string());
    flag("policy", eviction.to_owned());
    if !eviction_config.is_null() {
        flag("policy-config", eviction_config.to_string());
    }
    flag("max-context", context.to_string());
    flag(
        "chunked-prefill-size",
        chunk.map_or("-1".to_owned(), |c| c.to_string()),
    );
    flag("max-prefill-tokens", max_prefill.to_string());
    flag("max-running-requests", max_running.to_string());
    flag("schedule-policy", schedule.to_owned());
    flag("schedule-conservativeness", conservativeness.to_owned());
    flag("scheduler-recv-interval", recv_interval.to_string());
    if let Some(most) = prefill_max_requests {
        flag("prefill-max-requests", most.to_string());
    }
    if retraction == "priority" {
        flag("retraction-policy", retraction.to_owned());
    }
    if let Some(given) = priorities.as_ref().and_then(|p| p["threshold"].as_u64()) {
        flag("priority-scheduling-preemption-threshold", given.to_string());
    }
    for (given, name) in [
        (priorities.is_some(), "--enable-priority-scheduling"),
        (
            priorities.as_ref().is_some_and(|p| p["low_first"] == true),
            "--schedule-low-priority-values-first",
        ),
        (
            priorities.as_ref().is_some_and(|p| p["threshold"].is_null()),
            "--disable-priority-preemption",
        ),
        (mixed, "--enable-mixed-chunk"),
        (!overlap, "--disable-overlap-schedule"),
        (!radix, "--disable-radix-cache"),
    ] {
        if given {
            flags.push(name.to_owned());
        }
    }
    json!({
        "capacity": capacity, "page": page, "schedule": schedule, "conservativeness": conservativeness.parse::<f64>().unwrap(),
        "chunk": chunk, "max_prefill": max_prefill, "max_running": max_running, "context": context, "radix": radix,
        "overlap": overlap, "recv_interval": recv_interval, "eviction": eviction, "eviction_config": eviction_config,
        "mixed": mixed, "prefill_max_requests": prefill_max_requests, "retraction": retraction, "priorities": priorities,
        "steps": 40_000, "events": true, "requests": requests, "rows": rows, "flags": flags,
    })
}
