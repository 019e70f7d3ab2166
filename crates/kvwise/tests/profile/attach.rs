use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kvwise::usecase::attach::{Attach, record};
use kvwise_io::prometheus::engine::GENERATION_TOKENS;
use kvwise_io::session::{Session, seed_files, series};

use crate::fake_engine::FakeEngine;

pub fn plan(urls: Vec<String>, folder: &std::path::Path, millis: u64) -> Attach {
    Attach {
        urls,
        duration: Some(Duration::from_millis(millis)),
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        folder: folder.to_path_buf(),
        kv_events: Vec::new(),
    }
}

#[test]
fn a_hundred_failures_and_three_restarts_are_gaps_and_events_but_never_peaks() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    let script = engine.clone();
    let stop = AtomicBool::new(false);
    let recording = Attach {
        duration: None,
        interval: Duration::from_millis(2),
        ..plan(vec![engine.url.clone()], &session, 0)
    };
    let summary = std::thread::scope(|scope| {
        let recorder = scope.spawn(|| record(&recording, &stop, &mut |_| {}));
        for round in 0..80_u32 {
            let is_broken = round % 2 == 1;
            script.set(|s| {
                s.broken = is_broken;
                s.generation_tokens += 10;
                if round % 20 == 19 && round < 79 {
                    // a restart: a start time after every earlier scrape, and counting from zero
                    s.start_s = 4e9 + f64::from(round);
                    s.generation_tokens = 5;
                }
            });
            // a broken server is asked several times before it recovers, on a slow machine too
            let asked = script.asked();
            let begin = std::time::Instant::now();
            while script.asked() < asked + 4 && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        recorder.join().expect("no panic").expect("a recording")
    });
    assert!(summary.failures >= 100, "{summary:?}");
    assert!(summary.scrapes >= 60, "{summary:?}");

    let opened = Session::open(&session).expect("opens");
    assert!(opened.metadata.end_unix_us.is_some());
    let engines = series::engines(&opened.db).expect("engines");
    assert_eq!(engines.len(), 1);
    assert_eq!(
        engines[0].config.get("num_gpu_blocks").map(String::as_str),
        Some("101")
    );
    let points = series::points(&opened.db, engines[0].id, i64::MIN, i64::MAX).expect("points");
    let totals: Vec<f64> = points
        .iter()
        .filter_map(|p| p.counters[GENERATION_TOKENS])
        .collect();
    assert!(totals.windows(2).all(|w| w[0] <= w[1]), "totals never fall");
    let steps = totals.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
    assert!(
        steps <= 30.0,
        "no step is larger than what a round and its neighbours made: {steps}"
    );
    let last = *totals.last().expect("a total");
    // every round makes ten tokens; what a restart took away before it was scraped is lost: at most two rounds each
    assert!((1700.0..=1800.0).contains(&last), "{last}");
    assert!(!series::gaps(&opened.db).expect("gaps").is_empty());
    let events = series::events(&opened.db).expect("events");
    let restarts = events.iter().filter(|e| e.kind == "restart").count();
    assert_eq!(restarts, 3, "{events:?}");
    assert!(
        events
            .iter()
            .any(|e| e.kind == "not_published" && e.detail.contains("preemptions"))
    );
}

#[test]
fn one_of_two_servers_may_be_down_but_not_both() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    let nobody = "http://127.0.0.1:9".to_owned();
    let mut warnings = Vec::new();
    let urls = vec![nobody.clone(), engine.url.clone()];
    let summary = record(&plan(urls, &session, 100), &AtomicBool::new(false), &mut |w| {
        warnings.push(w.to_owned());
    })
    .expect("a recording");
    assert_eq!(summary.engines, 1);
    assert_eq!(warnings.len(), 1);
    let error = record(
        &plan(vec![nobody], &folder.path().join("t"), 100),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .expect_err("nobody answers");
    assert!(error.to_string().contains("127.0.0.1:9"));
    assert!(!folder.path().join("t").exists(), "nothing is left behind");
}

#[test]
fn a_folder_is_never_recorded_over_and_a_foreign_one_never_opened() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    let go = || {
        record(
            &plan(vec![engine.url.clone()], &session, 30),
            &AtomicBool::new(false),
            &mut |_| {},
        )
    };
    go().expect("a recording");
    assert!(
        go().expect_err("must refuse")
            .to_string()
            .contains("holds a recording already")
    );
    assert!(
        Session::open(folder.path())
            .expect_err("none here")
            .to_string()
            .contains("no recording")
    );
    assert!(
        Session::open(&folder.path().join("no"))
            .expect_err("none here")
            .to_string()
            .contains("no such folder")
    );
    std::fs::write(
        session.join("session.sqlite"),
        b"this is no database at all, but long enough for a header........",
    )
    .expect("write");
    let _ = std::fs::remove_file(session.join("session.sqlite-wal"));
    assert!(Session::open(&session).is_err());
}

#[test]
fn a_recording_of_a_newer_version_is_refused_by_name() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    record(
        &plan(vec![engine.url.clone()], &session, 30),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .expect("a recording");
    let opened = Session::open(&session).expect("opens");
    opened.db.pragma_update(None, "user_version", 99).expect("set");
    drop(opened);
    let error = Session::open(&session).expect_err("must refuse");
    assert!(error.to_string().contains("newer kvwise"), "{error}");
}

#[test]
fn the_guides_files_have_exactly_their_columns() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    record(
        &plan(vec![engine.url.clone()], &session, 50),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .expect("a recording");
    let opened = Session::open(&session).expect("opens");
    let out = folder.path().join("csv");
    seed_files::write(&opened, &out).expect("written");
    let head = |name: &str| {
        let text = std::fs::read_to_string(out.join(name)).expect(name);
        text.split("\r\n").next().expect("a line").to_owned()
    };
    assert_eq!(
        head("kv_cache_usage.csv"),
        "timestamp_sec,usage_pct,num_blocks,total_blocks"
    );
    assert_eq!(
        head("cuda_graph_captures.csv"),
        "runtime_mode,num_tokens,num_reqs,uniform,has_lora,capture_time_sec"
    );
    assert_eq!(
        head("cuda_graph_usage.csv"),
        "runtime_mode,num_tokens,num_reqs,uniform,has_lora,replay_count"
    );
    assert_eq!(
        head("cuda_graph_timeline.csv"),
        "timestamp_sec,descriptor,duration_ms"
    );
    assert!(
        !out.join("kv_cache_evictions.csv").exists(),
        "only if an eviction was recorded"
    );
    let usage = std::fs::read_to_string(out.join("kv_cache_usage.csv")).expect("usage");
    let row = usage.split("\r\n").nth(1).expect("a row");
    assert!(row.ends_with(",50.00,50,100"), "{row}");
    let summary = std::fs::read_to_string(out.join("kv_cache_summary.txt")).expect("summary");
    assert!(summary.starts_with(&format!(
        "KV Cache Statistics\n{}\n\nTotal blocks available: 100\n",
        "=".repeat(50)
    )));
}
