//! Derived metrics of a fleet: servers are scraped at an interval, and one page tells how their KV caches do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvwise_core::{Error, Result};
use kvwise_io::prometheus::engine::{EngineKey, Snapshot, Vocabulary};
use kvwise_io::prometheus::scrape::Scraper;
use kvwise_io::session::store::Clock;

use super::attach::{Done, scrape, ticks};
use super::watch::EngineState;
use crate::report::exporter;

/// Answers given at once; more are turned away, so that slow readers cannot pile up.
const MAX_CONNECTIONS: usize = 16;
/// How long a reader may take to ask and to read.
const READER_PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is read, in bytes.
const MAX_REQUEST_BYTES: u64 = 16 << 10;

/// What to export.
#[derive(Debug, Clone)]
pub struct Export {
    /// Servers.
    pub urls: Vec<String>,
    /// Address to listen on, `HOST:PORT`; port 0 takes a free one.
    pub listen: String,
    /// How long; until stopped if absent.
    pub duration: Option<Duration>,
    /// Between two scrapes of a server.
    pub interval: Duration,
    /// How long a server may take to answer.
    pub timeout: Duration,
}

/// A scraped server.
#[derive(Debug, Default)]
pub struct Server {
    /// Address of its metrics.
    pub url: String,
    /// Whether the last scrape brought something.
    pub is_up: bool,
    /// Scrapes tried.
    pub scrapes: u64,
    /// Scrapes that failed.
    pub failures: u64,
    /// How long the last one took, in seconds.
    pub last_scrape_s: f64,
    /// Its engines.
    pub engines: BTreeMap<EngineKey, EngineState>,
}

impl Server {
    fn take(&mut self, t_s: f64, took_s: f64, result: Result<Vec<Snapshot>>) {
        self.scrapes += 1;
        self.last_scrape_s = took_s;
        self.is_up = result.is_ok();
        let Ok(snapshots) = result else {
            self.failures += 1;
            return;
        };
        for s in &snapshots {
            self.engines.entry(s.key.clone()).or_default().take(t_s, s);
        }
    }
}

/// Scrapes and answers until the duration is over or `stop` is set. `ready` is told the address listened on.
///
/// # Errors
/// If a URL cannot be used or the address cannot be listened on.
pub fn run(plan: &Export, stop: &AtomicBool, ready: &mut dyn FnMut(&str)) -> Result<()> {
    let vocabulary = Vocabulary::default();
    let scrapers = plan
        .urls
        .iter()
        .map(|url| Scraper::new(url, plan.timeout))
        .collect::<Result<Vec<_>>>()?;
    let servers: Vec<Mutex<Server>> = scrapers
        .iter()
        .map(|s| {
            Mutex::new(Server {
                url: s.url().to_owned(),
                ..Server::default()
            })
        })
        .collect();
    let failed = |e: std::io::Error| {
        Error::io(format!("--export {}: cannot listen: {e}", plan.listen))
            .hint("write HOST:PORT, like 127.0.0.1:9464, with a free port")
    };
    let listener = TcpListener::bind(&plan.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    ready(&listener.local_addr().map_err(failed)?.to_string());
    let clock = Clock::default();
    let until = plan.duration.map(|d| Instant::now() + d);
    let done = Done::default();
    let connections = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        for (i, (scraper, server)) in scrapers.iter().zip(&servers).enumerate() {
            let (vocabulary, done) = (&vocabulary, &done);
            // the servers are asked one after the other within the interval, not all at once
            let count = u32::try_from(scrapers.len()).unwrap_or(u32::MAX);
            let offset = plan.interval / count * u32::try_from(i).unwrap_or(0);
            let work = move || {
                ticks(Instant::now() + offset, plan.interval, done, || {
                    let begin = Instant::now();
                    let result = scrape(scraper, vocabulary);
                    let (took, t_s) = (begin.elapsed().as_secs_f64(), clock.now_us() as f64 / 1e6);
                    lock(server).take(t_s, took, result);
                    true
                });
            };
            std::thread::Builder::new()
                .name(format!("scrape-{i}"))
                .stack_size(512 << 10)
                .spawn_scoped(scope, work)
                .map_err(|e| {
                    done.set();
                    Error::io(format!("cannot start a thread for {}: {e}", scraper.url()))
                })?;
        }
        while !stop.load(Ordering::SeqCst) && until.is_none_or(|u| Instant::now() < u) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            if connections.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
                connections.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (servers, connections) = (&servers, &connections);
            scope.spawn(move || {
                // a reader that goes away has nothing to be told
                let _ = answer(stream, servers);
                connections.fetch_sub(1, Ordering::SeqCst);
            });
        }
        done.set();
        Ok(())
    })
}

fn lock(server: &Mutex<Server>) -> std::sync::MutexGuard<'_, Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: TcpStream, servers: &[Mutex<Server>]) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(READER_PATIENCE))?;
    stream.set_write_timeout(Some(READER_PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(MAX_REQUEST_BYTES));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => {
            let page = exporter::page(servers.iter().map(lock));
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page)
        }
        ("GET" | "HEAD", "/" | "/healthz") => ("200 OK", "text/plain", "kvwise: see /metrics\n".to_owned()),
        ("GET" | "HEAD", _) => (
            "404 Not Found",
            "text/plain",
            "only /metrics is here\n".to_owned(),
        ),
        _ => (
            "405 Method Not Allowed",
            "text/plain",
            "only GET is answered\n".to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if method != "HEAD" {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}
