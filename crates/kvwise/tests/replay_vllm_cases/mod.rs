//! Random cases for the comparison with a real vLLM: small pools, odd sizes, all kinds of layers, drafters.

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Groups as `--groups` takes them, and the least common multiple of their block sizes.
fn groups(random: &mut Random, block: u64, eagle: bool) -> (String, u64) {
    let mark = if eagle && random.one_in(2) { "+eagle" } else { "" };
    let window = random.pick(&[1, 2, 3]) * block + random.within(0, block);
    let count = random.within(1, 3);
    match random.within(0, 8) {
        0 | 1 => ("full:1".to_owned(), block),
        2 => (format!("full{mark}:1,swa{window}:{count}"), block),
        3 => (format!("full:1,swa{window}{mark}:{count}"), block),
        4 => (format!("swa{window}:1"), block),
        5 if !eagle => (
            format!("full:1,chunk{}:{count}", random.pick(&[1, 2, 4]) * block),
            block,
        ),
        5 | 6 => (
            format!("full@{}{mark}:1,swa{window}@{block}:{count}", 2 * block),
            2 * block,
        ),
        7 => (format!("full{mark}:1,mamba:{count}"), block),
        _ => {
            let times = random.within(1, 4);
            (
                format!("full@{block}{mark}:1,mamba@{}:{count}", times * block),
                times * block,
            )
        }
    }
}

/// Requests that share prefixes: each continues an earlier one, or begins as one, or is new.
fn rows(random: &mut Random, max_len: u64, timed: bool) -> Vec<Value> {
    let count = random.within(6, 30);
    let vocabulary = random.pick(&[2, 5, 1000]);
    let gap = random.pick(&[0, 1, 3]);
    let (mut prompts, mut arrival) = (Vec::<Vec<u64>>::new(), 0);
    (0..count)
        .map(|number| {
            let longest = max_len * 2 / 3;
            let length = usize::try_from(random.within(1, longest.max(1))).unwrap();
            let mut tokens: Vec<u64> = Vec::new();
            if !prompts.is_empty() && !random.one_in(4) {
                let at = usize::try_from(random.next()).unwrap_or(0) % prompts.len();
                let from = &prompts[at];
                let keep = if random.one_in(2) {
                    from.len()
                } else {
                    usize::try_from(random.within(0, from.len() as u64)).unwrap()
                };
                tokens.extend_from_slice(&from[..keep]);
                tokens.truncate(usize::try_from(longest.max(1)).unwrap());
            }
            let fresh = length
                .saturating_sub(tokens.len())
                .min(usize::try_from(longest).unwrap());
            tokens.extend((0..fresh).map(|_| random.next() % vocabulary));
            if tokens.is_empty() {
                tokens.push(0);
            }
            let room = max_len - tokens.len() as u64;
            let output_len = random.within(1, room.clamp(1, 40));
            arrival += random.within(0, gap);
            let mut row = Map::new();
            row.insert("id".to_owned(), json!(format!("r{number}")));
            let at = arrival as f64 * if timed { 0.07 } else { 1.0 };
            row.insert("arrival".to_owned(), json!(at));
            row.insert("output_len".to_owned(), json!(output_len));
            if random.one_in(3) {
                let ids: Vec<u64> = (0..output_len).map(|_| random.next() % vocabulary).collect();
                let mut whole = tokens.clone();
                whole.extend_from_slice(&ids);
                prompts.push(whole);
                row.insert("output_tokens".to_owned(), json!(ids));
            }
            row.insert("priority".to_owned(), json!(random.within(0, 3)));
            if random.one_in(12) {
                row.insert("cache_salt".to_owned(), json!("s"));
            }
            row.insert("tokens".to_owned(), json!(tokens));
            prompts.push(tokens);
            Value::Object(row)
        })
        .collect()
}

/// Case number `seed`: a line for the reference script.
pub fn case(seed: u64) -> Value {
    let mut random = Random::new(seed);
    let method = random.pick(&[
        "",
        "",
        "",
        "eagle",
        "eagle3",
        "mtp",
        "mtp",
        "draft_model",
        "ngram",
        "dflash",
        "dspark",
        "medusa",
    ]);
    let eagle = ["eagle", "eagle3", "mtp", "dflash", "dspark"].contains(&method);
    let parallel = ["dflash", "dspark"].contains(&method) || (!method.is_empty() && random.one_in(3));
    let block = random.pick(&[1, 2, 3, 4, 4, 8, 16, 16]);
    let (groups, unit) = groups(&mut random, block, eagle);
    let max_len = random.pick(&[4, 8, 16]) * unit + random.within(0, block);
    let count = groups
        .split(',')
        .filter_map(|g| g.rsplit(':').next()?.parse::<u64>().ok())
        .sum::<u64>();
    let drafts = if method.is_empty() { 0 } else { random.within(1, 5) };
    // from just enough for the longest request to plenty
    let least = (max_len.div_ceil(block) + 5 + drafts) * count + 2;
    let seqs = random.pick(&[1, 2, 4, 16, 64]);
    let mut budget = random.pick(&[unit, 2 * unit, 64, 256, 8192]).max(seqs);
    if method == "draft_model" || parallel {
        // a place for the prompt, and those of the drafter
        budget += drafts;
    }
    let sparse = groups.contains("swa") || groups.contains("mamba");
    let retention = match random.within(0, 3) {
        0 => "none".to_owned(),
        1 if sparse => (random.within(1, 3) * unit).to_string(),
        _ => "0".to_owned(),
    };
    let timed = random.one_in(3);
    let mut settings = json!({
        "num_blocks": least + random.pick(&[0, 1, 5, least, 4 * least]),
        "block_size": block,
        "max_model_len": max_len,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": budget,
        "groups": groups,
        "policy": random.pick(&["fcfs", "priority"]),
        "retention": retention,
        "caching": !random.one_in(10),
        "reserve_full_isl": !random.one_in(4),
        "watermark": random.pick(&[0.0, 0.0, 0.01, 0.05]),
    });
    if timed {
        settings["step_time"] = json!(random.pick(&[0.05, 0.1]));
    }
    if !method.is_empty() {
        settings["speculation"] = json!({
            "method": method,
            "draft_tokens": drafts,
            "accepted_per_mille": random.pick(&[0, 400, 1000, drafts * 500, drafts * 1000]).min(drafts * 1000),
        });
        if parallel {
            settings["speculation"]["parallel_drafting"] = json!(true);
        }
        if random.one_in(4) {
            let first = random.within(1, 4);
            settings["speculation"]["num_speculative_tokens_per_batch_size"] = json!([
                [1, first, random.within(0, drafts + 1)],
                [first + random.within(1, 2), 64, random.within(0, drafts)],
            ]);
        }
        if eagle && random.one_in(6) && !groups.contains("+eagle") {
            settings["speculation"]["disable_eagle_block_drop"] = json!(true);
        }
    }
    json!({"name": format!("case{seed}"), "settings": settings, "rows": rows(&mut random, max_len, timed)})
}
