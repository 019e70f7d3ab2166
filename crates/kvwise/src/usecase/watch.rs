//! The live state of several servers: what `kvwise watch` shows.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvwise_core::Result;
use kvwise_io::prometheus::engine::{
    EngineKey, EngineKind, GENERATION_TOKENS, HISTOGRAMS, NUM_COUNTERS, PREEMPTIONS, PREFIX_HITS,
    PREFIX_QUERIES, PROMPT_TOKENS, RUNNING, Snapshot, USAGE, Vocabulary, WAITING,
};
use kvwise_io::prometheus::histogram::Histogram;
use kvwise_io::prometheus::scrape::Scraper;
use kvwise_io::session::Session;
use kvwise_io::session::counters::{Finding, Totals};
use kvwise_io::session::series;

use super::attach::scrape;

/// Points of history kept of each engine.
pub const HISTORY: usize = 600;
/// Seconds of the window for rates and quantiles.
pub const WINDOW_S: f64 = 60.0;

/// One moment of one engine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moment {
    /// Seconds since 1970.
    pub t_s: f64,
    /// Share of the pool held by requests.
    pub usage: Option<f64>,
    /// Requests in the batch.
    pub running: Option<f64>,
    /// Requests in the queue.
    pub waiting: Option<f64>,
    /// Totals that only grow.
    pub totals: [Option<f64>; NUM_COUNTERS],
}

/// One engine over the last minutes.
#[derive(Debug, Clone, Default)]
pub struct EngineState {
    /// Name to show.
    pub name: String,
    /// Tokens that the pool holds.
    pub capacity_tokens: Option<f64>,
    /// The last moments, oldest first.
    pub history: VecDeque<Moment>,
    /// Restarts of the server that were noticed.
    pub restarts: u64,
    totals: Totals<NUM_COUNTERS>,
    histograms: VecDeque<(f64, Vec<Option<Histogram>>)>,
}

impl EngineState {
    /// The last moment.
    pub fn now(&self) -> Moment {
        self.history.back().copied().unwrap_or_default()
    }

    fn window_start(&self, seconds: f64) -> Option<&Moment> {
        let now = self.history.back()?.t_s;
        self.history.iter().find(|m| m.t_s >= now - seconds)
    }

    fn grown(&self, counter: usize, seconds: f64) -> Option<f64> {
        Some(self.history.back()?.totals[counter]? - self.window_start(seconds)?.totals[counter]?)
    }

    /// Increase a second of a counter in the window.
    pub fn rate(&self, counter: usize) -> Option<f64> {
        let seconds = self.history.back()?.t_s - self.window_start(WINDOW_S)?.t_s;
        (seconds > 0.0)
            .then(|| self.grown(counter, WINDOW_S))
            .flatten()
            .map(|g| g / seconds)
    }

    /// Prefix hit rate in the window; `None` if nothing was looked up.
    pub fn hit_rate(&self) -> Option<f64> {
        self.hit_rate_over(WINDOW_S)
    }

    /// Prefix hit rate of the last seconds (or since it is watched, if shorter); `None` if nothing was looked up.
    pub fn hit_rate_over(&self, seconds: f64) -> Option<f64> {
        let queries = self.grown(PREFIX_QUERIES, seconds)?;
        (queries > 0.0)
            .then(|| Some(self.grown(PREFIX_HITS, seconds)? / queries))
            .flatten()
    }

    /// Highest usage of the last seconds (or since it is watched, if shorter).
    pub fn peak_usage(&self, seconds: f64) -> Option<f64> {
        let now = self.history.back()?.t_s;
        let recent = self.history.iter().rev().take_while(|m| m.t_s >= now - seconds);
        recent.filter_map(|m| m.usage).reduce(f64::max)
    }

    /// Preemptions in the window.
    pub fn preemptions(&self) -> Option<f64> {
        self.grown(PREEMPTIONS, WINDOW_S)
    }

    /// Quantile of a histogram over the window (or since it is watched, if shorter), in the histogram's unit.
    pub fn quantile(&self, name: &str, q: f64) -> Option<f64> {
        let index = HISTOGRAMS.iter().position(|h| h.name == name)?;
        let now = self.history.back()?.t_s;
        let last = self.histograms.back()?.1.get(index)?.as_ref()?;
        let first = self
            .histograms
            .iter()
            .find(|(t, _)| *t >= now - WINDOW_S)?
            .1
            .get(index)?
            .as_ref()?;
        last.since(first).filter(|h| h.count > 0.0)?.quantile(q)
    }

    /// What is wrong now, in sentences.
    pub fn troubles(&self) -> Vec<String> {
        self.live_rules()
            .into_iter()
            .filter_map(|(_, found)| found)
            .collect()
    }

    /// Every rule that is looked at live, and what it finds now.
    pub fn live_rules(&self) -> [(&'static str, Option<String>); 3] {
        let now = self.now();
        let waiting = now.waiting.unwrap_or(0.0);
        let is_full = now.usage.unwrap_or(0.0) > 0.9;
        let waits = waiting >= 1.0;
        [
            (
                "preemptions",
                self.preemptions().filter(|p| *p > 0.0).map(|p| {
                    format!("{p:.0} preemptions in the last minute: the KV pool is too small for this load")
                }),
            ),
            (
                "pool_full",
                (waits && is_full).then(|| format!("{waiting:.0} requests wait for KV blocks")),
            ),
            (
                "queueing",
                (waits && !is_full).then(|| {
                    format!(
                        "{waiting:.0} requests wait although blocks are free: batch size or token budget is the limit"
                    )
                }),
            ),
        ]
    }

    /// Takes in one scrape.
    pub(super) fn take(&mut self, t_s: f64, s: &Snapshot) {
        let (totals, noticed) = self.totals.update(t_s, s.process_start_s, &s.counters);
        self.restarts += noticed.iter().filter(|f| matches!(f, Finding::Restart)).count() as u64;
        self.capacity_tokens = s.capacity_tokens().or(self.capacity_tokens);
        self.history.push_back(Moment {
            t_s,
            usage: s.gauges[USAGE],
            running: s.gauges[RUNNING],
            waiting: s.gauges[WAITING],
            totals,
        });
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        let due = self.histograms.back().is_none_or(|(t, _)| t_s - t >= 1.0);
        if due {
            self.histograms.push_back((t_s, s.histograms.clone()));
            while self
                .histograms
                .front()
                .is_some_and(|(t, _)| *t < t_s - 2.0 * WINDOW_S)
            {
                self.histograms.pop_front();
            }
        }
    }
}

/// A server or recording that is watched.
#[derive(Debug)]
pub struct Target {
    /// As given.
    pub name: String,
    /// Its engines.
    pub engines: BTreeMap<EngineKey, EngineState>,
    /// Why the last look failed.
    pub error: Option<String>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Server(Box<Scraper>),
    Folder(PathBuf),
}

impl Target {
    /// A target by URL or folder.
    ///
    /// # Errors
    /// If it is neither.
    pub fn new(name: &str, timeout: Duration) -> Result<Self> {
        let path = Path::new(name);
        let source = if path.is_dir() {
            Session::open(path)?;
            Source::Folder(path.to_path_buf())
        } else {
            Source::Server(Box::new(Scraper::new(name, timeout)?))
        };
        Ok(Self {
            name: name.to_owned(),
            engines: BTreeMap::new(),
            error: None,
            source,
        })
    }

    /// Looks once; a failure is kept in `error` and the old figures stay.
    pub fn look(&mut self, t_s: f64, vocabulary: &Vocabulary) {
        let result = match &self.source {
            Source::Server(scraper) => scrape(scraper, vocabulary).map(|snapshots| {
                for s in &snapshots {
                    let engine = self.engines.entry(s.key.clone()).or_default();
                    engine.name = engine_name(&s.key);
                    engine.take(t_s, s);
                }
            }),
            Source::Folder(folder) => from_folder(folder).map(|engines| self.engines = engines),
        };
        self.error = result.err().map(|e| e.to_string());
    }
}

fn engine_name(key: &EngineKey) -> String {
    let mut name = key.engine.name().to_owned();
    for part in [&key.model, &key.rank] {
        if !part.is_empty() {
            name.push(' ');
            name.push_str(part);
        }
    }
    name
}

/// The last minutes of a recording, from its samples, or from the probe's steps where there are none.
fn from_folder(folder: &Path) -> Result<BTreeMap<EngineKey, EngineState>> {
    let session = Session::open(folder)?;
    let db = &session.db;
    let mut found = BTreeMap::new();
    for engine in series::engines(db)? {
        let points = series::points(db, engine.id, i64::MIN, i64::MAX)?;
        let key = EngineKey {
            engine: EngineKind::from_name(&engine.engine).unwrap_or(EngineKind::Vllm),
            model: engine.model.clone(),
            rank: engine.rank.clone(),
        };
        let start = points.len().saturating_sub(HISTORY);
        let state = EngineState {
            name: engine_name(&key),
            capacity_tokens: engine
                .config
                .get("kv_cache_size_tokens")
                .and_then(|v| v.parse().ok()),
            history: points
                .iter()
                .skip(start)
                .map(|p| Moment {
                    t_s: p.t_us as f64 / 1e6,
                    usage: p.gauges[USAGE],
                    running: p.gauges[RUNNING],
                    waiting: p.gauges[WAITING],
                    totals: p.counters,
                })
                .collect(),
            ..EngineState::default()
        };
        found.insert(key, state);
    }
    for process in series::processes(db)? {
        let steps = series::steps(db, process.id)?;
        let usable = (process.num_blocks - 1).max(1) as f64;
        let start = steps.len().saturating_sub(HISTORY);
        let key = EngineKey {
            engine: EngineKind::Vllm,
            model: format!("process {}", process.pid),
            rank: String::new(),
        };
        let state = EngineState {
            name: format!("vLLM {} process {}", process.vllm, process.pid),
            history: steps
                .iter()
                .skip(start)
                .map(|s| Moment {
                    t_s: s.t_us as f64 / 1e6,
                    usage: Some(s.used_blocks / usable),
                    running: Some(s.running),
                    waiting: Some(s.waiting),
                    totals: [None; NUM_COUNTERS],
                })
                .collect(),
            ..EngineState::default()
        };
        found.insert(key, state);
    }
    Ok(found)
}

/// Rate of generated tokens, for the renderers.
pub fn generated(e: &EngineState) -> Option<f64> {
    e.rate(GENERATION_TOKENS)
}

/// Rate of prompt tokens, for the renderers.
pub fn prompted(e: &EngineState) -> Option<f64> {
    e.rate(PROMPT_TOKENS)
}
