//! Recording servers from their metrics: one thread for each server scrapes, one writes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvwise_core::{Error, Result};
use kvwise_io::kv_events::content::{Content, ContentTotals, Removal};
use kvwise_io::kv_events::subscribe::{Arrival, Subscription};
use kvwise_io::prometheus::api::PrometheusServer;
use kvwise_io::prometheus::engine::{Snapshot, Vocabulary};
use kvwise_io::prometheus::scrape::Scraper;
use kvwise_io::prometheus::text;
use kvwise_io::session::Session;
use kvwise_io::session::record::Recorder;
use kvwise_io::session::store::{Clock, Metadata};

use crate::report::time;

/// Time between two commits: what a kill can lose.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two rounds of thinning out.
const THIN_OUT_INTERVAL: Duration = Duration::from_secs(60);
/// History asked of a Prometheus server in one query.
const HISTORY_WINDOW: Duration = Duration::from_secs(300);

/// What to record.
#[derive(Debug, Clone)]
pub struct Attach {
    /// Servers.
    pub urls: Vec<String>,
    /// How long; until stopped if absent.
    pub duration: Option<Duration>,
    /// Between two scrapes of a server.
    pub interval: Duration,
    /// How long a server may take to answer.
    pub timeout: Duration,
    /// Where to.
    pub folder: PathBuf,
    /// Endpoints of KV events, each with the endpoint for missed batches.
    pub kv_events: Vec<(String, Option<String>)>,
}

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Scrapes that brought something.
    pub scrapes: u64,
    /// Scrapes that failed.
    pub failures: u64,
    /// Engine instances seen.
    pub engines: usize,
}

/// A folder name made of the current time.
pub fn default_folder() -> PathBuf {
    PathBuf::from(format!("kvwise_{}", time::compact(Clock::default().now_us())))
}

/// One scrape: page, parsed, understood.
///
/// # Errors
/// If the server cannot be reached or its page is not an engine's metrics.
pub fn scrape(scraper: &Scraper, vocabulary: &Vocabulary) -> Result<Vec<Snapshot>> {
    let body = scraper.fetch()?;
    understand(&body, vocabulary).map_err(|e| e.at(scraper.url()))
}

fn understand(body: &str, vocabulary: &Vocabulary) -> Result<Vec<Snapshot>> {
    let page = text::parse(body)?;
    let snapshots = vocabulary.snapshots(&page);
    if snapshots.is_empty() {
        let first = page.samples.first().map_or("", |s| s.name);
        return Err(Error::input(format!(
            "{} samples, but none of vLLM, SGLang or llama.cpp (the first is {first})",
            page.samples.len()
        ))
        .hint("is this the port of the inference server itself?"));
    }
    Ok(snapshots)
}

/// Ends the sleep of every scraping thread at once, without polling.
#[derive(Default)]
pub(super) struct Done {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Done {
    pub(super) fn set(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Sleeps until `time`; true if it was set meanwhile.
    fn wait_until(&self, time: Instant) -> bool {
        let flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        let left = time.saturating_duration_since(Instant::now());
        let (flag, _) = self
            .changed
            .wait_timeout_while(flag, left, |set| !*set)
            .unwrap_or_else(PoisonError::into_inner);
        *flag
    }
}

enum Message {
    Scraped(usize, i64, Vec<Snapshot>),
    Failed(usize, i64, String),
    Content(usize, i64, usize, ContentTotals, Vec<Removal>),
    Event(usize, i64, &'static str, String),
}

/// Records until the duration is over or `stop` is set.
///
/// # Errors
/// If not a single server can be scraped at the start, or the recording cannot be written.
pub fn record(plan: &Attach, stop: &AtomicBool, warn: &mut dyn FnMut(&str)) -> Result<Summary> {
    let vocabulary = Vocabulary::default();
    let scrapers = plan
        .urls
        .iter()
        .map(|url| Scraper::new(url, plan.timeout))
        .collect::<Result<Vec<_>>>()?;
    let clock = Clock::default();
    // a typing error in a URL should be an error at once, not a recording of failures
    let mut first = Vec::new();
    let mut first_error = None;
    for (i, scraper) in scrapers.iter().enumerate() {
        match scrape(scraper, &vocabulary) {
            Ok(snapshots) => first.push(Message::Scraped(i, clock.now_us(), snapshots)),
            Err(e) => {
                first.push(Message::Failed(i, clock.now_us(), e.to_string()));
                first_error.get_or_insert(e);
            }
        }
    }
    if let (Some(error), true) = (
        first_error,
        first.iter().all(|m| matches!(m, Message::Failed(..))),
    ) {
        return Err(error);
    }
    for message in &first {
        if let Message::Failed(_, _, reason) = message {
            warn(reason);
        }
    }

    let subscriptions = plan
        .kv_events
        .iter()
        .map(|(endpoint, replay)| Subscription::new(endpoint, replay.as_deref()))
        .collect::<Result<Vec<_>>>()?;
    let mut names: Vec<String> = scrapers.iter().map(|s| s.url().to_owned()).collect();
    names.extend(plan.kv_events.iter().map(|e| e.0.clone()));
    let mut metadata = Metadata::new("attach", names.clone(), clock.now_us());
    metadata.interval_s = Some(plan.interval.as_secs_f64());
    let mut writer = Writer::new(Recorder::new(Session::create(&plan.folder, metadata)?), &names)?;
    let (send, receive) = channel();
    for message in first {
        writer.take(message)?;
    }
    let until = plan.duration.map(|d| Instant::now() + d);
    let over = || stop.load(Ordering::SeqCst) || until.is_some_and(|u| Instant::now() >= u);
    let done = Done::default();
    std::thread::scope(|scope| -> Result<()> {
        let mut failed = Ok(());
        let threads: Result<()> = scrapers.iter().enumerate().try_for_each(|(i, scraper)| {
            let (send, vocabulary, done) = (send.clone(), &vocabulary, &done);
            let work = move || scrape_loop(i, scraper, vocabulary, plan.interval, clock, done, &send);
            std::thread::Builder::new()
                .name(format!("scrape-{i}"))
                .stack_size(512 << 10)
                .spawn_scoped(scope, work)
                .map(|_| ())
                .map_err(|e| Error::io(format!("cannot start a thread for {}: {e}", scraper.url())))
        });
        let threads = threads.and_then(|()| {
            subscriptions
                .into_iter()
                .enumerate()
                .try_for_each(|(i, subscription)| {
                    let (send, done, index) = (send.clone(), &done, scrapers.len() + i);
                    std::thread::Builder::new()
                        .name(format!("kv-events-{i}"))
                        .spawn_scoped(scope, move || {
                            follow_loop(index, subscription, clock, done, &send);
                        })
                        .map(|_| ())
                        .map_err(|e| Error::io(format!("cannot start a thread for KV events: {e}")))
                })
        });
        drop(send);
        if threads.is_ok() {
            failed = write_loop(&mut writer, &receive, &over, clock);
        }
        done.set();
        // the threads may be in the middle of a scrape: what they bring in the end is still taken
        while let Ok(message) = receive.recv() {
            if failed.is_ok() {
                failed = writer.take(message);
            }
        }
        threads.and(failed)
    })?;
    writer.finish(clock.now_us())
}

fn scrape_loop(
    index: usize,
    scraper: &Scraper,
    vocabulary: &Vocabulary,
    interval: Duration,
    clock: Clock,
    done: &Done,
    send: &Sender<Message>,
) {
    ticks(Instant::now() + interval, interval, done, || {
        let message = match scrape(scraper, vocabulary) {
            Ok(snapshots) => Message::Scraped(index, clock.now_us(), snapshots),
            Err(e) => Message::Failed(index, clock.now_us(), e.to_string()),
        };
        send.send(message).is_ok()
    });
}

/// Does `work` at `next` and then again at every interval, until it says no or `done` is set.
pub(super) fn ticks(mut next: Instant, interval: Duration, done: &Done, mut work: impl FnMut() -> bool) {
    loop {
        if done.wait_until(next) || !work() {
            return;
        }
        next += interval;
        // slow work skips the ticks that it missed instead of hurrying after them
        while next < Instant::now() {
            next += interval;
        }
    }
}

/// Follows KV events; tells the state once a second.
fn follow_loop(
    index: usize,
    mut subscription: Subscription,
    clock: Clock,
    done: &Done,
    send: &Sender<Message>,
) {
    let mut content = Content::default();
    let mut removals = Vec::new();
    let mut told = Instant::now();
    let mut failing = false;
    loop {
        let arrival = subscription.poll();
        let trouble = match arrival {
            Ok(Arrival::Nothing) => None,
            Ok(Arrival::Batches(batches)) => {
                removals.extend(batches.iter().flat_map(|b| content.follow(b)));
                None
            }
            Ok(Arrival::AfterLoss(lost, batches)) => {
                content.lost(lost);
                removals.extend(batches.iter().flat_map(|b| content.follow(b)));
                Some(("kv_events_lost", format!("{lost} batches")))
            }
            Ok(Arrival::Restarted(batches)) => {
                content.lost(0);
                removals.extend(batches.iter().flat_map(|b| content.follow(b)));
                Some(("restart", "the publisher of KV events counts anew".to_owned()))
            }
            Err(e) => Some(("kv_events_failed", e.to_string())),
        };
        let mut pause = Duration::ZERO;
        if let Some((kind, detail)) = trouble {
            // a dead publisher is asked twice a second, and named once
            if kind == "kv_events_failed" {
                pause = Duration::from_millis(500);
            }
            if kind != "kv_events_failed" || !failing {
                let _ = send.send(Message::Event(index, clock.now_us(), kind, detail));
            }
            failing = kind == "kv_events_failed";
        } else if subscription.is_connected() {
            failing = false;
        }
        let over = done.wait_until(Instant::now() + pause);
        if over || told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            let state = Message::Content(
                index,
                clock.now_us(),
                content.cached(),
                content.totals,
                std::mem::take(&mut removals),
            );
            if send.send(state).is_err() || over {
                return;
            }
        }
    }
}

fn write_loop(
    writer: &mut Writer,
    receive: &std::sync::mpsc::Receiver<Message>,
    over: &dyn Fn() -> bool,
    clock: Clock,
) -> Result<()> {
    let mut committed = Instant::now();
    let mut thinned = Instant::now();
    while !over() {
        match receive.recv_timeout(Duration::from_millis(50)) {
            Ok(message) => writer.take(message)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if committed.elapsed() >= COMMIT_INTERVAL {
            writer.recorder.commit()?;
            committed = Instant::now();
        }
        if thinned.elapsed() >= THIN_OUT_INTERVAL {
            writer.recorder.thin_out(clock.now_us())?;
            thinned = Instant::now();
        }
    }
    Ok(())
}

struct Writer {
    recorder: Recorder,
    targets: Vec<i64>,
    summary: Summary,
    seen: std::collections::BTreeSet<(i64, kvwise_io::prometheus::engine::EngineKey)>,
}

impl Writer {
    fn new(mut recorder: Recorder, names: &[String]) -> Result<Self> {
        let targets = names.iter().map(|n| recorder.target(n)).collect::<Result<_>>()?;
        Ok(Self {
            recorder,
            targets,
            summary: Summary::default(),
            seen: std::collections::BTreeSet::new(),
        })
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Scraped(i, t_us, snapshots) => {
                self.summary.scrapes += 1;
                let Some(&target) = self.targets.get(i) else {
                    return Ok(());
                };
                for s in &snapshots {
                    self.seen.insert((target, s.key.clone()));
                }
                self.recorder.snapshots(target, t_us, &snapshots)
            }
            Message::Failed(i, t_us, reason) => {
                self.summary.failures += 1;
                let Some(&target) = self.targets.get(i) else {
                    return Ok(());
                };
                self.recorder.failure(target, t_us, &reason)
            }
            Message::Content(i, t_us, cached, totals, removals) => {
                let Some(&target) = self.targets.get(i) else {
                    return Ok(());
                };
                self.recorder.content(target, t_us, cached, &totals, &removals)
            }
            Message::Event(i, t_us, kind, detail) => {
                let Some(&target) = self.targets.get(i) else {
                    return Ok(());
                };
                self.recorder.event(target, t_us, kind, &detail)
            }
        }
    }

    fn finish(mut self, t_us: i64) -> Result<Summary> {
        self.summary.engines = self.seen.len();
        self.recorder.finish(t_us)?;
        Ok(self.summary)
    }
}

/// Makes a recording out of a Prometheus server's history: exactly the scrapes that it stored.
///
/// # Errors
/// If the server cannot be queried or holds no engine's metrics in that time.
pub fn from_prometheus(plan: &Attach, warn: &mut dyn FnMut(&str)) -> Result<Summary> {
    let vocabulary = Vocabulary::default();
    let [url] = plan.urls.as_slice() else {
        return Err(Error::input(
            "--prometheus: give one Prometheus server, not several URLs",
        ));
    };
    let server = PrometheusServer::new(url, plan.timeout.max(Duration::from_secs(30)))?;
    let end_s = Clock::default().now_us() as f64 / 1e6;
    let start_s = end_s - plan.duration.unwrap_or(Duration::from_secs(3600)).as_secs_f64();
    let mut writer: Option<Writer> = None;
    let mut names: Vec<String> = Vec::new();
    let mut from_s = start_s;
    let mut last_us = 0;
    let mut failures = 0;
    while from_s < end_s {
        let to_s = (from_s + HISTORY_WINDOW.as_secs_f64()).min(end_s);
        for stored in server.scrapes(to_s, Duration::from_secs_f64(to_s - from_s))? {
            let t_us = stored.time_unix_ms.saturating_mul(1000);
            // a target's page without engine metrics (only its process_start_time) is none of ours
            let Ok(snapshots) = understand(&stored.page, &vocabulary) else {
                failures += 1;
                continue;
            };
            if writer.is_none() {
                let metadata = Metadata::new("attach", vec![url.clone()], t_us);
                writer = Some(Writer::new(
                    Recorder::new(Session::create(&plan.folder, metadata)?),
                    &[],
                )?);
            }
            let Some(writer) = &mut writer else { continue };
            let index = if let Some(i) = names.iter().position(|n| *n == stored.instance) {
                i
            } else {
                let id = writer.recorder.target(&stored.instance)?;
                writer.targets.push(id);
                names.push(stored.instance.clone());
                names.len() - 1
            };
            last_us = last_us.max(t_us);
            writer.take(Message::Scraped(index, t_us, snapshots))?;
        }
        if let Some(writer) = &mut writer {
            writer.recorder.commit()?;
        }
        from_s = to_s;
    }
    let Some(writer) = writer else {
        return Err(Error::input(format!(
            "{url}: no metrics of vLLM, SGLang or llama.cpp in the last {:.0} s",
            end_s - start_s
        ))
        .hint("does this Prometheus scrape the inference servers? try a longer --duration"));
    };
    if failures > 0 {
        warn(&format!(
            "{failures} stored scrapes of other programs were left out"
        ));
    }
    writer.finish(last_us)
}
