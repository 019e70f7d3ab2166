//! What one engine says about itself in one scrape, in one vocabulary.
//!
//! Names are data: each row of [`GAUGES`], [`COUNTERS`] and [`HISTOGRAMS`] lists the families of each engine that
//! carry the same quantity, newest name first. Sources: vLLM 0.32.0 `vllm/v1/metrics/loggers.py` (and the names of
//! 0.9 to 0.12 that it replaced), SGLang 0.5.23 `srt/observability/metrics_collector.py`, llama.cpp server README
//! ("GET /metrics").

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::histogram::Histogram;
use super::text::{Page, Sample};

/// Which engine published a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
}

impl EngineKind {
    /// The name used in sessions and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::LlamaCpp => "llamacpp",
        }
    }

    /// The engine of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Vllm, Self::Sglang, Self::LlamaCpp]
            .into_iter()
            .find(|e| e.name() == name)
    }

    /// The engine that publishes families with this prefix.
    fn of(family: &str) -> Option<(Self, &str)> {
        let (prefix, rest) = family.split_once(':')?;
        let engine = match prefix {
            "vllm" => Self::Vllm,
            "sglang" => Self::Sglang,
            "llamacpp" => Self::LlamaCpp,
            _ => return None,
        };
        Some((engine, rest))
    }
}

/// One quantity and the families that carry it, without the engine's prefix.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name in sessions and reports (unit last).
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// vLLM families, newest first.
    pub vllm: &'static [&'static str],
    /// SGLang families.
    pub sglang: &'static [&'static str],
    /// llama.cpp families.
    pub llamacpp: &'static [&'static str],
}

impl Row {
    /// The families of `engine`, newest first; empty if that engine does not publish the quantity.
    pub fn families(&self, engine: EngineKind) -> &'static [&'static str] {
        match engine {
            EngineKind::Vllm => self.vllm,
            EngineKind::Sglang => self.sglang,
            EngineKind::LlamaCpp => self.llamacpp,
        }
    }
}

const fn row(
    name: &'static str,
    help: &'static str,
    vllm: &'static [&'static str],
    sglang: &'static [&'static str],
    llamacpp: &'static [&'static str],
) -> Row {
    Row {
        name,
        help,
        vllm,
        sglang,
        llamacpp,
    }
}

/// Number of gauges.
pub const NUM_GAUGES: usize = 6;
/// Number of counters.
pub const NUM_COUNTERS: usize = 12;

/// Index into [`GAUGES`]: share of the KV pool that running requests hold.
pub const USAGE: usize = 0;
/// Index into [`GAUGES`]: requests in the running batch.
pub const RUNNING: usize = 1;
/// Index into [`GAUGES`]: requests in the queue.
pub const WAITING: usize = 2;
/// Index into [`COUNTERS`]: preemptions.
pub const PREEMPTIONS: usize = 0;
/// Index into [`COUNTERS`]: tokens looked up in the prefix cache.
pub const PREFIX_QUERIES: usize = 1;
/// Index into [`COUNTERS`]: tokens found in the prefix cache.
pub const PREFIX_HITS: usize = 2;
/// Index into [`COUNTERS`]: prompt tokens.
pub const PROMPT_TOKENS: usize = 3;
/// Index into [`COUNTERS`]: generated tokens.
pub const GENERATION_TOKENS: usize = 4;
/// Index into [`COUNTERS`]: finished requests.
pub const FINISHED: usize = 5;

/// Gauges. SGLang rounds `token_usage` to two digits.
pub const GAUGES: [Row; NUM_GAUGES] = [
    row(
        "usage_ratio",
        "share of the KV pool held by requests, 0 to 1",
        &["kv_cache_usage_perc", "gpu_cache_usage_perc"],
        &["token_usage"],
        &["kv_cache_usage_ratio"],
    ),
    row(
        "running_requests",
        "requests in the running batch",
        &["num_requests_running"],
        &["num_running_reqs"],
        &["requests_processing"],
    ),
    row(
        "waiting_requests",
        "requests in the queue",
        &["num_requests_waiting"],
        &["num_queue_reqs"],
        &["requests_deferred"],
    ),
    row(
        "used_tokens",
        "tokens held by requests",
        &[],
        &["kv_used_tokens", "num_used_tokens"],
        &["kv_cache_tokens"],
    ),
    row(
        "evictable_tokens",
        "tokens cached but not in use",
        &[],
        &["kv_evictable_tokens"],
        &[],
    ),
    row(
        "capacity_tokens",
        "size of the KV pool",
        &[],
        &["max_total_num_tokens"],
        &[],
    ),
];

/// Counters; the `_total` suffix is left out.
pub const COUNTERS: [Row; NUM_COUNTERS] = [
    row(
        "preemptions",
        "requests thrown out of the batch for want of blocks",
        &["num_preemptions"],
        &["num_retracted_requests"],
        &[],
    ),
    row(
        "prefix_query_tokens",
        "tokens looked up in the prefix cache",
        &["prefix_cache_queries", "gpu_prefix_cache_queries"],
        &["prompt_tokens"],
        &[],
    ),
    row(
        "prefix_hit_tokens",
        "tokens found in the prefix cache",
        &["prefix_cache_hits", "gpu_prefix_cache_hits"],
        &["cached_tokens"],
        &[],
    ),
    row(
        "prompt_tokens",
        "prompt tokens processed",
        &["prompt_tokens"],
        &["prompt_tokens"],
        &["prompt_tokens"],
    ),
    row(
        "generation_tokens",
        "tokens generated",
        &["generation_tokens"],
        &["generation_tokens"],
        &["tokens_predicted"],
    ),
    row(
        "finished_requests",
        "requests finished, for whatever reason",
        &["request_success"],
        &["num_requests"],
        &[],
    ),
    row(
        "rejected_requests",
        "requests refused at admission",
        &["admission_rejections"],
        &["num_aborted_requests"],
        &[],
    ),
    row(
        "external_query_tokens",
        "tokens looked up in a KV connector",
        &["external_prefix_cache_queries"],
        &[],
        &[],
    ),
    row(
        "external_hit_tokens",
        "tokens found in a KV connector",
        &["external_prefix_cache_hits"],
        &["load_back_tokens"],
        &[],
    ),
    row(
        "evicted_tokens",
        "tokens evicted from the cache",
        &[],
        &["evicted_tokens"],
        &[],
    ),
    row(
        "estimated_flops",
        "estimated floating-point operations of one GPU",
        &["estimated_flops_per_gpu"],
        &["estimated_flops_per_gpu"],
        &[],
    ),
    row(
        "decode_steps",
        "calls of the model's decode",
        &[],
        &[],
        &["n_decode"],
    ),
];

/// Number of histograms.
pub const NUM_HISTOGRAMS: usize = 15;

/// Histograms; seconds and tokens.
pub const HISTOGRAMS: [Row; NUM_HISTOGRAMS] = [
    row(
        "ttft_s",
        "time to first token",
        &["time_to_first_token_seconds"],
        &["time_to_first_token_seconds"],
        &[],
    ),
    row(
        "itl_s",
        "time between tokens",
        &["inter_token_latency_seconds", "time_per_output_token_seconds"],
        &["inter_token_latency_seconds"],
        &[],
    ),
    row(
        "tpot_s",
        "mean time per output token of a request",
        &["request_time_per_output_token_seconds"],
        &["request_time_per_output_token_seconds"],
        &[],
    ),
    row(
        "e2e_s",
        "time from arrival to the last token",
        &["e2e_request_latency_seconds"],
        &["e2e_request_latency_seconds"],
        &[],
    ),
    row(
        "queue_s",
        "time in the queue",
        &["request_queue_time_seconds"],
        &["queue_time_seconds"],
        &[],
    ),
    row(
        "prefill_s",
        "time in prefill",
        &["request_prefill_time_seconds"],
        &[],
        &[],
    ),
    row(
        "decode_s",
        "time in decode",
        &["request_decode_time_seconds"],
        &[],
        &[],
    ),
    row(
        "request_prompt_tokens",
        "prompt length of finished requests",
        &["request_prompt_tokens"],
        &["prompt_tokens_histogram"],
        &[],
    ),
    row(
        "request_generation_tokens",
        "output length of finished requests",
        &["request_generation_tokens"],
        &["generation_tokens_histogram"],
        &[],
    ),
    row(
        "iteration_tokens",
        "tokens in one engine step",
        &["iteration_tokens_total"],
        &[],
        &[],
    ),
    row(
        "request_preemptions",
        "preemptions of a finished request",
        &["request_num_preemptions"],
        &[],
        &[],
    ),
    row(
        "prefill_computed_tokens",
        "prompt tokens that a finished request had to compute",
        &["request_prefill_kv_computed_tokens"],
        &["uncached_prompt_tokens_histogram"],
        &[],
    ),
    row(
        "block_lifetime_s",
        "time from a block's allocation to its reuse for other content",
        &["kv_block_lifetime_seconds"],
        &[],
        &[],
    ),
    row(
        "block_idle_s",
        "time from a block's last hit to its reuse for other content",
        &["kv_block_idle_before_evict_seconds"],
        &[],
        &[],
    ),
    row(
        "block_reuse_gap_s",
        "time between two hits of a block",
        &["kv_block_reuse_gap_seconds"],
        &[],
        &[],
    ),
];

/// Which engine instance a snapshot is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineKey {
    /// The engine.
    pub engine: EngineKind,
    /// Served model name; empty where the engine does not say.
    pub model: String,
    /// vLLM's engine index, SGLang's data-parallel rank; empty where there is one.
    pub rank: String,
}

/// What one engine instance said in one scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Which instance.
    pub key: EngineKey,
    /// By index into [`GAUGES`].
    pub gauges: [Option<f64>; NUM_GAUGES],
    /// Raw values by index into [`COUNTERS`]: since the server's start.
    pub counters: [Option<f64>; NUM_COUNTERS],
    /// Raw histograms by index into [`HISTOGRAMS`].
    pub histograms: Vec<Option<Histogram>>,
    /// vLLM's `cache_config_info` labels; SGLang's sizes.
    pub config: BTreeMap<String, String>,
    /// `process_start_time_seconds` of the page: a change is a restart.
    pub process_start_s: Option<f64>,
}

impl Snapshot {
    /// An empty snapshot of `key`.
    pub fn new(key: EngineKey) -> Self {
        Self {
            key,
            gauges: [None; NUM_GAUGES],
            counters: [None; NUM_COUNTERS],
            histograms: vec![None; NUM_HISTOGRAMS],
            config: BTreeMap::new(),
            process_start_s: None,
        }
    }

    /// Whether nothing was measured (a configuration may still be there).
    pub fn is_empty(&self) -> bool {
        self.gauges.iter().all(Option::is_none)
            && self.counters.iter().all(Option::is_none)
            && self.histograms.iter().all(Option::is_none)
    }

    /// Names of the quantities that this engine's versions publish but this page lacks.
    pub fn missing(&self) -> Vec<&'static str> {
        let engine = self.key.engine;
        let gauges = GAUGES.iter().zip(&self.gauges).map(|(r, v)| (r, v.is_none()));
        let counters = COUNTERS.iter().zip(&self.counters).map(|(r, v)| (r, v.is_none()));
        let histograms = HISTOGRAMS
            .iter()
            .zip(&self.histograms)
            .map(|(r, v)| (r, v.is_none()));
        gauges
            .chain(counters)
            .chain(histograms)
            .filter(|(r, absent)| *absent && !r.families(engine).is_empty())
            .map(|(r, _)| r.name)
            .collect()
    }

    /// Tokens that the KV pool holds, from what the server says of its configuration.
    pub fn capacity_tokens(&self) -> Option<f64> {
        self.gauges[5].or_else(|| {
            let number = |key: &str| self.config.get(key)?.parse::<f64>().ok().filter(|v| *v > 0.0);
            number("kv_cache_size_tokens").or_else(|| Some(number("num_gpu_blocks")? * number("block_size")?))
        })
    }
}

#[derive(Clone, Copy)]
enum Target {
    Gauge(usize, usize),
    Counter(usize, usize),
    Bucket(usize, usize),
    Sum(usize, usize),
    Count(usize, usize),
    Config,
}

/// Looks up families; build once, use for every scrape.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    targets: FxHashMap<(EngineKind, &'static str), (Part, usize, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Gauge,
    Counter,
    Histogram,
}

impl Default for Vocabulary {
    fn default() -> Self {
        let mut targets = FxHashMap::default();
        let mut add = |rows: &'static [Row], part: Part| {
            for (index, row) in rows.iter().enumerate() {
                for engine in [EngineKind::Vllm, EngineKind::Sglang, EngineKind::LlamaCpp] {
                    for (age, family) in row.families(engine).iter().enumerate() {
                        targets.entry((engine, *family)).or_insert((part, index, age));
                    }
                }
            }
        };
        add(&GAUGES, Part::Gauge);
        add(&COUNTERS, Part::Counter);
        add(&HISTOGRAMS, Part::Histogram);
        Self { targets }
    }
}

impl Vocabulary {
    fn target(&self, engine: EngineKind, rest: &str) -> Option<Target> {
        if rest == "cache_config_info" {
            return Some(Target::Config);
        }
        let find = |name: &str, part: Part| {
            self.targets
                .get(&(engine, name))
                .filter(|t| t.0 == part)
                .map(|t| (t.1, t.2))
        };
        if let Some((i, age)) = find(rest, Part::Gauge) {
            return Some(Target::Gauge(i, age));
        }
        if let Some(stem) = rest.strip_suffix("_bucket") {
            return find(stem, Part::Histogram).map(|(i, age)| Target::Bucket(i, age));
        }
        if let Some(stem) = rest.strip_suffix("_sum") {
            return find(stem, Part::Histogram).map(|(i, age)| Target::Sum(i, age));
        }
        if let Some(stem) = rest.strip_suffix("_count") {
            return find(stem, Part::Histogram).map(|(i, age)| Target::Count(i, age));
        }
        // a server behind an OpenMetrics proxy may drop the suffix; vLLM before 0.9 had counters without it
        let stem = rest.strip_suffix("_total").unwrap_or(rest);
        find(stem, Part::Counter).map(|(i, age)| Target::Counter(i, age))
    }

    /// What each engine instance of the page says, ordered by key. Empty if no known engine speaks.
    pub fn snapshots(&self, page: &Page<'_>) -> Vec<Snapshot> {
        // one entry an instance; lines of one family and instance stand together, so both are looked up once for many
        let mut buildings: Vec<Building> = Vec::new();
        let mut places: BTreeMap<EngineKey, usize> = BTreeMap::new();
        let mut start = None;
        let mut last_family: Option<(&str, Option<(EngineKind, Target)>)> = None;
        let mut last_key: Option<(EngineKind, &str, &str, usize)> = None;
        for sample in &page.samples {
            let known = match last_family {
                Some((name, known)) if name == sample.name => known,
                _ => {
                    if sample.name == "process_start_time_seconds" && sample.value.is_finite() {
                        start = Some(sample.value);
                        continue;
                    }
                    let known = EngineKind::of(sample.name)
                        .and_then(|(engine, rest)| Some((engine, self.target(engine, rest)?)));
                    last_family = Some((sample.name, known));
                    known
                }
            };
            let Some((engine, target)) = known else { continue };
            if !first_rank_of_a_group(page, sample) {
                continue;
            }
            let (model, rank) = raw_key(page, sample, engine);
            let place = match last_key {
                Some((e, m, r, place)) if e == engine && m == model && r == rank => place,
                _ => {
                    let key = EngineKey {
                        engine,
                        model: page.label(sample, "model_name").unwrap_or_default().into_owned(),
                        rank: rank.to_owned(),
                    };
                    let place = *places.entry(key).or_insert_with_key(|key| {
                        buildings.push(Building::new(key.clone()));
                        buildings.len() - 1
                    });
                    last_key = Some((engine, model, rank, place));
                    place
                }
            };
            buildings[place].take(page, sample, target);
        }
        let found: BTreeMap<EngineKey, Building> = buildings
            .into_iter()
            .map(|building| (building.snapshot.key.clone(), building))
            .collect();
        let mut snapshots: Vec<Snapshot> = merge_partial_keys(found)
            .into_values()
            .map(|b| b.finish(start))
            .collect();
        snapshots.retain(|s| !s.is_empty());
        snapshots
    }
}

fn raw_key<'a>(page: &Page<'a>, sample: &Sample<'a>, engine: EngineKind) -> (&'a str, &'a str) {
    let rank_label = if engine == EngineKind::Vllm {
        "engine"
    } else {
        "dp_rank"
    };
    let mut key = ("", "");
    for label in page.labels(sample) {
        if label.name == "model_name" {
            key.0 = label.raw_value();
        } else if label.name == rank_label {
            key.1 = label.raw_value();
        }
    }
    key
}

/// SGLang's tensor- and pipeline-parallel ranks all report the same scheduler: the first speaks for all.
fn first_rank_of_a_group<'a>(page: &Page<'a>, sample: &Sample<'a>) -> bool {
    page.labels(sample)
        .iter()
        .all(|l| !matches!(l.name, "tp_rank" | "pp_rank") || l.raw_value() == "0")
}

/// Series without a model or rank label belong to the instances that have one: vLLM's `cache_config_info` names no
/// model, SGLang's tokenizer process no rank. Where it is not clear to whom they belong, they stay on their own.
fn merge_partial_keys(mut found: BTreeMap<EngineKey, Building>) -> BTreeMap<EngineKey, Building> {
    let partial: Vec<EngineKey> = found
        .keys()
        .filter(|k| k.rank.is_empty() || k.model.is_empty())
        .cloned()
        .collect();
    for key in partial {
        let owners: Vec<EngineKey> = found
            .keys()
            .filter(|k| {
                **k != key
                    && k.engine == key.engine
                    && (key.rank.is_empty() || k.rank == key.rank)
                    && (key.model.is_empty() || k.model == key.model)
            })
            .cloned()
            .collect();
        let config_only = found.get(&key).is_some_and(|b| b.snapshot.is_empty());
        if (owners.len() == 1 || (config_only && !owners.is_empty()))
            && let Some(extra) = found.remove(&key)
        {
            for owner in owners {
                if let Some(into) = found.get_mut(&owner) {
                    into.absorb(&extra);
                }
            }
        }
    }
    found
}

/// A snapshot under construction, with the age of the family that filled each field: the newest name wins.
struct Building {
    snapshot: Snapshot,
    gauge_age: [usize; NUM_GAUGES],
    counter_age: [usize; NUM_COUNTERS],
    histogram_age: [usize; NUM_HISTOGRAMS],
}

impl Building {
    fn new(key: EngineKey) -> Self {
        Self {
            snapshot: Snapshot::new(key),
            gauge_age: [usize::MAX; NUM_GAUGES],
            counter_age: [usize::MAX; NUM_COUNTERS],
            histogram_age: [usize::MAX; NUM_HISTOGRAMS],
        }
    }

    fn take<'a>(&mut self, page: &Page<'a>, sample: &Sample<'a>, target: Target) {
        match target {
            Target::Config => {
                for label in page.labels(sample) {
                    if label.name != "engine" && label.name != "model_name" {
                        self.snapshot
                            .config
                            .insert(label.name.to_owned(), label.value().into_owned());
                    }
                }
            }
            Target::Gauge(i, age) if sample.value.is_finite() && age <= self.gauge_age[i] => {
                // several series of one gauge (a LoRA label, a reason) cannot be added without knowing them: the largest
                let old = self.snapshot.gauges[i].filter(|_| age == self.gauge_age[i]);
                self.snapshot.gauges[i] = Some(old.map_or(sample.value, |o| o.max(sample.value)));
                self.gauge_age[i] = age;
            }
            Target::Counter(i, age) if sample.value.is_finite() && age <= self.counter_age[i] => {
                let old = self.snapshot.counters[i].filter(|_| age == self.counter_age[i]);
                self.snapshot.counters[i] = Some(old.unwrap_or(0.0) + sample.value);
                self.counter_age[i] = age;
            }
            Target::Bucket(i, age) => {
                let bound = page.label(sample, "le").and_then(|le| parse_bound(&le));
                if let (Some(bound), Some(h)) = (bound, self.histogram(i, age)) {
                    match h.buckets.iter_mut().rev().find(|b| b.0.total_cmp(&bound).is_eq()) {
                        Some(bucket) => bucket.1 += sample.value,
                        None => h.buckets.push((bound, sample.value)),
                    }
                }
            }
            Target::Sum(i, age) => {
                if let Some(h) = self.histogram(i, age) {
                    h.sum += sample.value;
                }
            }
            Target::Count(i, age) => {
                if let Some(h) = self.histogram(i, age) {
                    h.count += sample.value;
                }
            }
            Target::Gauge(..) | Target::Counter(..) => {}
        }
    }

    fn histogram(&mut self, i: usize, age: usize) -> Option<&mut Histogram> {
        if age > self.histogram_age[i] {
            return None;
        }
        if age < self.histogram_age[i] {
            self.snapshot.histograms[i] = None;
            self.histogram_age[i] = age;
        }
        Some(self.snapshot.histograms[i].get_or_insert_default())
    }

    fn absorb(&mut self, other: &Self) {
        let mine = &mut self.snapshot;
        for (a, b) in mine.gauges.iter_mut().zip(&other.snapshot.gauges) {
            *a = a.or(*b);
        }
        for (a, b) in mine.counters.iter_mut().zip(&other.snapshot.counters) {
            *a = a.or(*b);
        }
        for (a, b) in mine.histograms.iter_mut().zip(&other.snapshot.histograms) {
            if a.is_none() {
                a.clone_from(b);
            }
        }
        for (k, v) in &other.snapshot.config {
            mine.config.entry(k.clone()).or_insert_with(|| v.clone());
        }
    }

    fn finish(mut self, start: Option<f64>) -> Snapshot {
        for h in self.snapshot.histograms.iter_mut().flatten() {
            h.normalise();
        }
        self.snapshot.process_start_s = start;
        self.snapshot
    }
}

fn parse_bound(le: &str) -> Option<f64> {
    match le {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        _ => le.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::text::parse;

    const VLLM: &str = include_str!("../../testdata/vllm_0.32.0_metrics.txt");

    fn snapshots(text: &str) -> Vec<Snapshot> {
        Vocabulary::default().snapshots(&parse(text).expect("a page"))
    }

    #[test]
    fn a_real_vllm_page_is_understood() {
        let all = snapshots(VLLM);
        assert_eq!(all.len(), 1);
        let s = &all[0];
        assert_eq!(s.key.engine, EngineKind::Vllm);
        assert_eq!((s.key.model.as_str(), s.key.rank.as_str()), ("tiny", "0"));
        assert_eq!(s.gauges[USAGE], Some(0.0));
        assert_eq!(s.counters[PREEMPTIONS], Some(6.0));
        assert_eq!(s.counters[PREFIX_QUERIES], Some(9889.0));
        assert_eq!(s.counters[PREFIX_HITS], Some(5056.0));
        assert_eq!(s.capacity_tokens(), Some(2080.0));
        assert_eq!(s.config.get("num_gpu_blocks").map(String::as_str), Some("65"));
        let lifetimes = s.histograms[12].as_ref().expect("kv_block_lifetime_seconds");
        assert!((lifetimes.count - 158.0).abs() < 1e-9);
        assert!(
            lifetimes
                .buckets
                .last()
                .is_some_and(|b| (b.1 - 158.0).abs() < 1e-9)
        );
        // llama.cpp's decode_steps and SGLang's evicted_tokens are not vLLM's to publish
        assert!(s.missing().is_empty(), "{:?}", s.missing());
    }

    #[test]
    fn cache_config_without_a_model_label_belongs_to_the_engine_of_its_rank() {
        // vLLM publishes cache_config_info with `engine` but without `model_name`
        let text = "vllm:cache_config_info{engine=\"0\",num_gpu_blocks=\"9\"} 1\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1\n";
        let all = snapshots(text);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].config.get("num_gpu_blocks").map(String::as_str), Some("9"));
    }

    #[test]
    fn several_engines_and_models_stay_apart_and_missing_families_are_named() {
        let text = "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 1\n\
                    vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 2\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 3\n\
                    llamacpp:requests_processing 4\n";
        let all = snapshots(text);
        let running: Vec<_> = all.iter().map(|s| s.gauges[RUNNING]).collect();
        assert_eq!(
            running,
            [Some(1.0), Some(2.0), Some(3.0), Some(4.0)].map(|v| v).to_vec()
        );
        assert!(all[0].missing().contains(&"usage_ratio"));
        assert!(all[0].missing().contains(&"preemptions"));
        assert!(
            !all[3].missing().contains(&"preemptions"),
            "llama.cpp never publishes it"
        );
    }

    #[test]
    fn the_newest_name_of_a_quantity_wins() {
        let text = "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.9\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n\
                    vllm:gpu_cache_usage_perc{engine=\"1\"} 0.25\n";
        let all = snapshots(text);
        assert_eq!(all[0].gauges[USAGE], Some(0.5));
        assert_eq!(all[1].gauges[USAGE], Some(0.25));
    }

    #[test]
    fn sglang_ranks_of_one_scheduler_count_once_and_sources_of_cached_tokens_add_up() {
        let text = "sglang:num_running_reqs{model_name=\"m\",tp_rank=\"0\",dp_rank=\"0\"} 7\n\
                    sglang:num_running_reqs{model_name=\"m\",tp_rank=\"1\",dp_rank=\"0\"} 7\n\
                    sglang:max_total_num_tokens{model_name=\"m\",tp_rank=\"0\",dp_rank=\"0\"} 1000\n\
                    sglang:prompt_tokens_total{model_name=\"m\"} 100\n\
                    sglang:cached_tokens_total{model_name=\"m\",cache_source=\"device\"} 30\n\
                    sglang:cached_tokens_total{model_name=\"m\",cache_source=\"host\"} 12\n";
        let all = snapshots(text);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].gauges[RUNNING], Some(7.0));
        assert_eq!(all[0].counters[PREFIX_QUERIES], Some(100.0));
        assert_eq!(all[0].counters[PREFIX_HITS], Some(42.0));
        assert_eq!(all[0].capacity_tokens(), Some(1000.0));
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        let all = snapshots(
            "vllm:kv_cache_usage_perc NaN\nvllm:num_requests_running +Inf\nvllm:num_preemptions_total 1\n",
        );
        assert_eq!(all[0].gauges, [None; NUM_GAUGES]);
        assert_eq!(all[0].counters[PREEMPTIONS], Some(1.0));
    }
}
