//! SGLang's prefill and decode servers as simulated against SGLang's own, turn by turn.
//!
//! Random workloads run through [`SteppedScheduler`] as one side and, driven by `tests/reference/sglang_apart.py`, through the
//! queues of SGLang 0.5.23's `disaggregation/prefill.py` and `decode.py`. Fingerprints of schedules that were equal turn by
//! turn are in `data/sglang_apart.txt`. With a Python that has SGLang, the workloads are compared anew:
//!
//! ```text
//! KVWISE_SGLANG_PYTHON=/path/to/python cargo test -p kvwise-sim --test sglang_apart -- --ignored
//! ```
//! (`KVWISE_SGLANG_SCHEDULES=1000` for more, `KVWISE_SGLANG_WRITE=1` rewrites the data file.)

mod asking;
mod golden;

use std::collections::BTreeMap;
use std::path::PathBuf;

use asking::Script;
use kvwise_sim::sched::sglang::step::{SchedulePolicy, Side, StepConfig, SteppedScheduler};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

/// Workloads in the data file.
const GOLDEN: u64 = 100;
/// Turns after which a workload is given up: none takes as many.
const TURNS: u64 = 4000;

/// A workload in both languages.
struct Workload {
    job: Value,
    trace: Trace,
    /// Before which turn each request arrives, and how long its prompt is under way.
    arrivals: Vec<(u64, u64)>,
    config: StepConfig,
}

fn workload(seed: u64) -> Workload {
    let mut random = Pcg64::seed_from_u64(seed);
    let page = [1, 1, 4, 16][random.random_range(0..4)];
    let context: usize = random.random_range(80..300);
    let reserved = random.random_range(0..40);
    // Every request fits an empty engine: SGLang would wait for ever where none does.
    let least = context + 2 * page + 8 + reserved;
    let capacity = (random.random_range(least..least + 5 * context) / page + 1) * page;
    let chunk = match random.random_range(0..4) {
        0 => None,
        _ => Some(page * random.random_range(1..=(120 / page).max(1))),
    };
    let decode = seed % 2 == 1;
    let overlap = seed % 4 > 1;
    let max_running = random.random_range(1..10);
    let extra_rows = random.random_range(0..5);
    let radix = !decode && random.random_range(0..4) > 0;
    let max_prefill = random.random_range(16..400);
    let spread = random.random_range(1..120);
    let mut builder = TraceBuilder::new("random", 1, IdMeaning::Content);
    let (mut requests, mut arrivals): (Vec<Value>, Vec<(u64, u64)>) = (Vec::new(), Vec::new());
    let mut heard: Vec<Vec<u32>> = Vec::new();
    for _ in 0..random.random_range(4..40) {
        let mut prompt: Vec<u32> = match heard.len() {
            n if n > 0 && random.random_range(0..3) > 0 => {
                let other = &heard[random.random_range(0..n)];
                other[..random.random_range(0..=other.len())].to_vec()
            }
            _ => Vec::new(),
        };
        let own = random.random_range(1..context / 2);
        prompt.extend((0..own).map(|_| random.random_range(0..1_000_000)));
        prompt.truncate(context - 12);
        heard.push(prompt.clone());
        let output = random.random_range(1..=(context - prompt.len() - 2).min(90));
        let (step, way) = (random.random_range(0..spread), random.random_range(1..12));
        requests.push(json!({"prompt": prompt, "output": output, "step": step, "way": way}));
        arrivals.push((step, way));
        builder
            .push(&NewRequest {
                prompt: PromptIds::Tokens(&prompt),
                output_len: Some(output as u64),
                ..NewRequest::default()
            })
            .unwrap();
    }
    let config = StepConfig {
        page_size: page,
        max_running,
        max_context_tokens: context,
        chunked_prefill_tokens: chunk,
        max_prefill_tokens: max_prefill,
        schedule: SchedulePolicy::Fcfs,
        radix_cache: radix,
        overlap,
        side: if decode {
            Side::Decode {
                reserved_tokens: reserved,
                extra_rows,
            }
        } else {
            Side::Prefill
        },
        ..StepConfig::new(capacity)
    };
    let job = json!({"capacity": capacity, "page": page, "schedule": "fcfs", "conservativeness": 1.0, "chunk": chunk,
        "max_prefill": max_prefill, "max_running": max_running, "context": context, "radix": radix, "overlap": overlap,
        "side": if decode { "decode" } else { "prefill" }, "reserved": reserved, "extra_rows": extra_rows, "steps": TURNS,
        "requests": requests});
    Workload {
        job,
        trace: builder.finish(),
        arrivals,
        config,
    }
}

/// What our scheduler does, in the words of the reference; what is sent is listed by the turn in which SGLang knows of it.
fn ours(w: &Workload) -> (Vec<Value>, Vec<Value>) {
    let mut scheduler = SteppedScheduler::new(&w.trace, w.config).unwrap();
    let decode = w.config.side != Side::Prefill;
    let mut order: Vec<usize> = (0..w.arrivals.len()).collect();
    order.sort_by_key(|&i| (w.arrivals[i].0, i));
    let mut waiting = order.into_iter().peekable();
    let mut events: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let (mut steps, mut sent) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        while let Some(i) = waiting.next_if(|&i| w.arrivals[i].0 <= turn) {
            assert!(scheduler.add(u32::try_from(i).unwrap()).unwrap());
        }
        for tag in events.remove(&turn).unwrap_or_default() {
            if decode {
                scheduler.receive(tag);
            } else {
                scheduler.release(tag);
            }
        }
        let before = scheduler.retractions();
        let (outcome, decoding) = scheduler.step().unwrap();
        let known = turn + u64::from(w.config.overlap);
        for &(tag, tokens, all) in &outcome.sent {
            // Without overlap SGLang sends a chunk when it composes the next one.
            sent.push(json!([
                if all || w.config.overlap { known } else { turn + 1 },
                tag,
                tokens,
                all
            ]));
            if all {
                events
                    .entry(known + w.arrivals[tag as usize].1)
                    .or_default()
                    .push(tag);
            }
        }
        for &tag in &outcome.placed {
            events
                .entry(turn + w.arrivals[tag as usize].1)
                .or_default()
                .push(tag);
        }
        let (prefills, placed) = (outcome.prefills.clone(), outcome.placed.clone());
        let joined: Vec<Value> = outcome
            .joined
            .iter()
            .map(|&(tag, _, ended)| json!([tag, ended]))
            .collect();
        let rejected = outcome.rejected.clone();
        let retracted = scheduler.retractions() - before;
        let cache = scheduler.cache();
        let free = cache.slots().available_tokens();
        if decoding > 0 || !prefills.is_empty() || !placed.is_empty() || !joined.is_empty() || retracted > 0 {
            steps.push(json!({"step": turn, "batch": prefills, "decoding": decoding, "placed": placed, "joined": joined,
                "retracted": retracted, "aborted": rejected, "free": free,
                "evictable": cache.obtainable_tokens() - free}));
        }
        if waiting.peek().is_none()
            && !scheduler.has_unfinished()
            && events.is_empty()
            && !scheduler.has_pending()
        {
            break;
        }
    }
    sent.sort_by_key(|s| (s[0].as_u64(), s[1].as_u64(), s[2].as_u64()));
    (steps, sent)
}

fn compare(seed: u64, w: &Workload, theirs: &[Value]) {
    let (ours, our_sent) = ours(w);
    let mut job = w.job.clone();
    job.as_object_mut().unwrap().remove("requests");
    let mut sent: Vec<Value> = theirs
        .iter()
        .flat_map(|step| {
            step["sent"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| json!([step["step"], s[0], s[1], s[2]]))
        })
        .collect();
    sent.sort_by_key(|s| (s[0].as_u64(), s[1].as_u64(), s[2].as_u64()));
    assert_eq!(our_sent, sent, "sent: workload {seed}, {job}");
    // A turn in which nothing but sending happened is in our list of what was sent only.
    let empty = |v: &Value| v.as_array().unwrap().is_empty();
    let theirs: Vec<&Value> = theirs
        .iter()
        .filter(|s| {
            ["batch", "placed", "joined", "retracted", "aborted"]
                .iter()
                .any(|f| !empty(&s[*f]))
        })
        .collect();
    for (n, (our, their)) in ours.iter().zip(&theirs).enumerate() {
        for field in ["step", "placed", "joined", "aborted", "free", "evictable"] {
            assert_eq!(
                our[field], their[field],
                "{field}: workload {seed}, record {n}, {job}\nours   {our}\ntheirs {their}"
            );
        }
        let batch = their["batch"].as_array().unwrap();
        if w.config.side == Side::Prefill {
            assert_eq!(our["batch"], their["batch"], "workload {seed}, record {n}, {job}");
        } else {
            assert_eq!(
                our["decoding"],
                json!(batch.len()),
                "workload {seed}, record {n}, {job}\nours   {our}\ntheirs {their}"
            );
        }
        assert_eq!(
            our["retracted"],
            json!(their["retracted"].as_array().unwrap().len()),
            "workload {seed}, record {n}, {job}"
        );
    }
    assert_eq!(
        ours.len(),
        theirs.len(),
        "number of turns: workload {seed}, {job}"
    );
}

fn data_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/sglang_apart.txt")
}

/// Of the turns of a schedule and what was sent.
fn fingerprint((steps, sent): &(Vec<Value>, Vec<Value>)) -> String {
    let text = steps.iter().chain(sent).flat_map(|s| s.to_string().into_bytes());
    golden::fingerprint(steps.len(), text)
}

#[test]
fn sides_are_scheduled_as_those_that_equalled_sglangs_turn_by_turn() {
    let text = std::fs::read_to_string(data_file()).unwrap();
    assert_eq!(text.lines().count() as u64, GOLDEN);
    for (seed, line) in (0..).zip(text.lines()) {
        assert_eq!(
            fingerprint(&ours(&workload(seed))),
            line,
            "workload {seed} is scheduled differently now: compare with SGLang (see the top of this file)"
        );
    }
}

#[test]
#[ignore = "needs KVWISE_SGLANG_PYTHON, a Python with SGLang 0.5.23"]
fn random_sides_agree_with_the_installed_sglang() {
    let count = asking::number("KVWISE_SGLANG_SCHEDULES", 100);
    let mut sglang = Script::start("KVWISE_SGLANG_PYTHON", "sglang_apart.py", &[]);
    let mut golden = String::new();
    for seed in 0..GOLDEN + count {
        let w = workload(seed);
        let line = sglang.answer(&w.job);
        compare(seed, &w, &serde_json::from_str::<Vec<Value>>(&line).unwrap());
        if seed < GOLDEN {
            golden += &fingerprint(&ours(&w));
            golden.push('\n');
        }
    }
    sglang.end();
    if std::env::var_os("KVWISE_SGLANG_WRITE").is_some() {
        std::fs::write(data_file(), golden).unwrap();
    }
}
