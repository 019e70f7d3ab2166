//! SGLang's scheduler as simulated against SGLang's own, step by step.
//!
//! Random workloads (shared prefixes, chunked prompts, small pools, retraction, all three orders of the queue, pages of
//! several sizes, with and without prefix cache and overlap) run through [`SteppedScheduler`] and, driven by
//! `tests/reference/sglang_scheduler.py`, through SGLang 0.5.23's `Scheduler.get_next_batch_to_run`. Fingerprints of schedules
//! that were equal step by step are in `data/sglang_schedules.txt`. With a Python that has SGLang, the workloads are compared
//! anew:
//!
//! ```text
//! KVWISE_SGLANG_PYTHON=/path/to/python cargo test -p kvwise-sim --test sglang_scheduler -- --ignored
//! ```
//! (`KVWISE_SGLANG_SCHEDULES=1000` for more, `KVWISE_SGLANG_WRITE=1` rewrites the data file.)

mod asking;
mod golden;

use std::path::PathBuf;

use asking::Script;
use kvwise_sim::sched::sglang::step::{SchedulePolicy, StepConfig, SteppedScheduler};
use kvwise_sim::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

/// Workloads in the data file.
const GOLDEN: u64 = 100;
/// Steps after which a workload is given up: none takes as many.
const STEPS: u64 = 4000;

/// A workload in both languages.
struct Workload {
    job: Value,
    trace: Trace,
    /// Before which step each request arrives.
    arrivals: Vec<u64>,
    config: StepConfig,
}

fn workload(seed: u64) -> Workload {
    let mut random = Pcg64::seed_from_u64(seed);
    let page = [1, 1, 1, 2, 4, 16][random.random_range(0..6)];
    let context: usize = random.random_range(80..300);
    // From pools that hardly hold one request to pools that hold them all.
    let capacity = (random.random_range(context + 2 * page + 8..6 * context) / page) * page;
    let chunk = match random.random_range(0..4) {
        0 => None,
        _ => Some(page * random.random_range(1..=(120 / page).max(1))),
    };
    let schedule =
        [SchedulePolicy::Fcfs, SchedulePolicy::Lpm, SchedulePolicy::Lof][random.random_range(0..3)];
    let max_prefill = random.random_range(16..400);
    let max_running = random.random_range(1..12);
    let radix = random.random_range(0..4) > 0;
    let conservativeness = [0.2, 0.5, 1.0, 1.4][random.random_range(0..4)];
    let overlap = seed % 2 == 1;
    // A stream of its own, so that the workloads that were compared before stay what they were.
    let recv_interval = match seed % 4 {
        2 | 3 => [1, 2, 5, 13, 30, 2500][Pcg64::seed_from_u64(seed ^ 0x5ec_71e7).random_range(0..6)],
        _ => 1,
    };
    let (mut requests, mut arrivals) = (Vec::new(), Vec::new());
    let mut builder = TraceBuilder::new("random", 1, IdMeaning::Content);
    let spread = random.random_range(1..120);
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
        let step = random.random_range(0..spread);
        requests.push(json!({"prompt": prompt, "output": output, "step": step}));
        arrivals.push(step);
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
        schedule,
        conservativeness,
        radix_cache: radix,
        overlap,
        recv_interval,
        ..StepConfig::new(capacity)
    };
    let schedule = serde_json::to_value(schedule).unwrap();
    let job = json!({"capacity": capacity, "page": page, "schedule": schedule, "conservativeness": conservativeness,
        "chunk": chunk, "max_prefill": max_prefill, "max_running": max_running, "context": context, "radix": radix,
        "overlap": overlap, "recv_interval": recv_interval, "steps": STEPS, "requests": requests});
    Workload {
        job,
        trace: builder.finish(),
        arrivals,
        config,
    }
}

/// What our scheduler does, in the words of the reference.
fn ours(w: &Workload) -> Vec<Value> {
    let mut scheduler = SteppedScheduler::new(&w.trace, w.config).unwrap();
    let mut order: Vec<usize> = (0..w.arrivals.len()).collect();
    order.sort_by_key(|&i| (w.arrivals[i], i));
    let mut waiting = order.into_iter().peekable();
    let mut steps = Vec::new();
    for step in 0..STEPS {
        while let Some(i) = waiting.next_if(|&i| w.arrivals[i] <= step) {
            assert!(
                scheduler.add(u32::try_from(i).unwrap()).unwrap(),
                "every request fits the pool"
            );
        }
        let before = scheduler.retractions();
        let (outcome, decoding) = scheduler.step().unwrap();
        let prefills: Vec<(u32, u32, u32)> = outcome.prefills.clone();
        let finished: Vec<u32> = outcome.finished.iter().map(|f| f.0).collect();
        let rejected = outcome.rejected.clone();
        let retracted = scheduler.retractions() - before;
        let kind = if prefills.is_empty() {
            if decoding > 0 { "decode" } else { "none" }
        } else {
            "prefill"
        };
        if kind != "none" || !rejected.is_empty() || retracted > 0 {
            let cache = scheduler.cache();
            let free = cache.slots().available_tokens();
            steps.push(json!({"step": step, "kind": kind, "batch": prefills, "decoding": decoding, "finished": finished,
                "retracted": retracted, "aborted": rejected, "ratio": scheduler.new_token_ratio(), "free": free,
                "evictable": cache.obtainable_tokens() - free, "waiting": scheduler.waiting().collect::<Vec<_>>()}));
        }
        if waiting.peek().is_none() && !scheduler.has_unfinished() {
            break;
        }
    }
    steps
}

fn compare(seed: u64, w: &Workload, theirs: &[Value]) {
    let ours = ours(w);
    let job = |n: usize| {
        format!("workload {seed}, step record {n}, {}", {
            let mut job = w.job.clone();
            job.as_object_mut().unwrap().remove("requests");
            job
        })
    };
    // With overlap SGLang knows one step after the last token that it was the last.
    let (mut our_finished, mut their_finished) = (Vec::new(), Vec::new());
    for (n, (our, their)) in ours.iter().zip(theirs).enumerate() {
        our_finished.extend(our["finished"].as_array().unwrap().clone());
        their_finished.extend(their["finished"].as_array().unwrap().clone());
        let known = their_finished.len().min(our_finished.len());
        let late = our_finished.len() - known;
        assert!(
            our_finished[..known] == their_finished[..] && (late == 0 || w.config.overlap),
            "finished: {}\nours   {our}\ntheirs {their}",
            job(n)
        );
        for field in ["step", "kind", "aborted", "free", "evictable", "waiting"] {
            assert_eq!(
                our[field],
                their[field],
                "{field}: {}\nours   {our}\ntheirs {their}",
                job(n)
            );
        }
        let batch = their["batch"].as_array().unwrap();
        if our["kind"] == "prefill" {
            assert_eq!(our["batch"], their["batch"], "batch: {}", job(n));
        } else {
            assert_eq!(
                our["decoding"].as_u64().unwrap(),
                batch.len() as u64,
                "decoding: {}",
                job(n)
            );
        }
        assert_eq!(
            our["retracted"].as_u64().unwrap(),
            their["retracted"].as_array().unwrap().len() as u64,
            "retracted: {}",
            job(n)
        );
        let (a, b) = (our["ratio"].as_f64().unwrap(), their["ratio"].as_f64().unwrap());
        assert!(
            (a - b).abs() < 1e-9,
            "new-token ratio {a}, theirs {b}: {}",
            job(n)
        );
    }
    assert_eq!(ours.len(), theirs.len(), "number of steps: {}", job(0));
}

fn data_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/sglang_schedules.txt")
}

/// Of the steps of a schedule.
fn fingerprint(steps: &[Value]) -> String {
    let text = steps.iter().flat_map(|step| {
        let mut step = step.clone();
        let ratio = step["ratio"].as_f64().unwrap();
        step["ratio"] = json!(format!("{ratio:.6}"));
        step.to_string().into_bytes()
    });
    golden::fingerprint(steps.len(), text)
}

#[test]
fn schedules_are_those_that_equalled_sglangs_step_by_step() {
    let text = std::fs::read_to_string(data_file()).unwrap();
    assert_eq!(text.lines().count() as u64, GOLDEN);
    for (seed, line) in (0..).zip(text.lines()) {
        let w = workload(seed);
        assert_eq!(
            fingerprint(&ours(&w)),
            line,
            "workload {seed} is scheduled differently now: compare with SGLang (see the top of this file)"
        );
    }
}

#[test]
#[ignore = "needs KVWISE_SGLANG_PYTHON, a Python with SGLang 0.5.23"]
fn random_schedules_agree_with_the_installed_sglang() {
    let count = asking::number("KVWISE_SGLANG_SCHEDULES", 100);
    let mut sglang = Script::start("KVWISE_SGLANG_PYTHON", "sglang_scheduler.py", &[]);
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
