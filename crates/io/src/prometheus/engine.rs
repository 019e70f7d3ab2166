//! What one engine says about itself in one scrape, in one vocabulary.
//!
//! Names are data: each row of [`GAUGES`], [`COUNTERS`] and [`HISTOGRAMS`] lists the families of each engine that
//! carry the same quantity, newest name first. Sources: vLLM 0.32.0 `vllm/v1/metrics/loggers.py` (and the names of
//! 0.9 to 0.12 that it replaced), SGLang 0.5.23 `srt/observability/metrics_collector.py`, llama.cpp server README
//! ("GET /metrics") and the pages of a server b11549.

mod families;

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::histogram::Histogram;
use super::text::{Page, Sample};

pub use families::{
    COUNTERS, FINISHED, GAUGES, GENERATION_TOKENS, HISTOGRAMS, NUM_COUNTERS, NUM_GAUGES, NUM_HISTOGRAMS,
    PREEMPTIONS, PREFIX_HITS, PREFIX_QUERIES, PROMPT_TOKENS, RUNNING, Row, USAGE, WAITING,
};

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
        let counters = &mut self.snapshot.counters;
        // llama.cpp counts computed and reused prompt tokens apart (b11434, tools/server/server-task.cpp); servers that only
        // publish the first, as those of 2025 do, leave the second unknown
        if self.snapshot.key.engine == EngineKind::LlamaCpp
            && let (Some(computed), Some(reused)) = (counters[PROMPT_TOKENS], counters[PREFIX_HITS])
        {
            counters[PROMPT_TOKENS] = Some(computed + reused);
            counters[PREFIX_QUERIES] = Some(computed + reused);
        }
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
mod tests;
