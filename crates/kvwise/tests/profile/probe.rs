use std::path::{Path, PathBuf};
use std::process::Command;

use kvwise_io::session::{Session, trace};
use kvwise_io::session::{probe, series};

/// The Python that runs the probe's own tests; the tests that need one say so and pass where there is none.
fn python() -> Option<PathBuf> {
    let name = std::env::var_os("KVWISE_TEST_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    Command::new(&name)
        .arg("--version")
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    Some(name)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `kvwise run` with a stand-in for vLLM (the same module, class and method names, a tiny block pool): what the probe
/// counted must be what the stand-in counted itself.
#[test]
fn run_records_what_a_stand_in_engine_did() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    let stand_in = repository().join("python/tests/stand_in");
    let output = Command::new(env!("CARGO_BIN_EXE_kvwise"))
        .args(["run", "-o"])
        .arg(&session)
        .arg("--")
        .arg(&python)
        .arg(stand_in.join("drive.py"))
        .env("PYTHONPATH", &stand_in)
        .env("KVWISE_PROBE_MIN_FREE_MB", "0")
        .output()
        .expect("kvwise starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let own: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("the stand-in prints its own counts");
    let mut opened = Session::open(&session).expect("opens");
    probe::ingest_all(&mut opened.db, &session).expect("ingested");
    let processes = series::processes(&opened.db).expect("processes");
    assert_eq!(processes.len(), 1);
    let totals = processes[0].totals;
    for (name, value) in [
        ("allocated", totals.allocated_blocks),
        ("evicted", totals.evicted_blocks),
        ("hit_tokens", totals.hit_tokens),
        ("query_tokens", totals.query_tokens),
        ("preemptions", totals.preemptions),
        ("finished", totals.finished_requests),
        ("steps", totals.steps),
    ] {
        assert_eq!(own[name].as_i64(), Some(value), "{name}: {own}");
    }
    assert_eq!((totals.errors, totals.lost_records), (0, 0));
    assert!(processes[0].ended);
    assert!(totals.hook_ns > 0 && totals.step_ns > 0, "{totals:?}");
    let made = trace::read(&opened.db).expect("a trace");
    assert_eq!(
        i64::try_from(made.requests.len()).expect("small"),
        totals.finished_requests
    );
    // the stand-in's requests share their first block
    let first: Vec<u64> = made.requests.iter().map(|r| r.hash_ids[0]).collect();
    assert!(first.windows(2).all(|w| w[0] == w[1]), "{first:?}");
}

/// An engine whose steps take microseconds: the probe must give way, and every answer must say that it did.
#[test]
fn a_probe_that_had_to_sample_says_so_in_report_and_export() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let session = folder.path().join("s");
    let stand_in = repository().join("python/tests/stand_in");
    let spin = "import time\n\
        from vllm.v1.core.sched.scheduler import Request, Scheduler\n\
        s = Scheduler(num_blocks=64)\n\
        n, until = 0, time.monotonic() + 60\n\
        while time.monotonic() < until and hasattr(Scheduler.schedule, '__wrapped__'):\n    \
            s.add_request(Request(n, [b'%d' % n], 6)); s.schedule(); n += 1\n";
    let kvwise = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_kvwise"))
            .args(args)
            .current_dir(folder.path())
            .env("PYTHONPATH", &stand_in)
            .env("KVWISE_PROBE_MIN_FREE_MB", "0")
            .output()
            .expect("kvwise starts")
    };
    let python = python.to_string_lossy().into_owned();
    let output = kvwise(&["run", "-o", "s", "--", &python, "-c", spin]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let opened = Session::open(&session).expect("opens");
    let process = series::processes(&opened.db).expect("processes").remove(0);
    let sampled = kvwise_io::session::sampling::of_process(&opened.db, process.id).expect("read");
    assert!(
        sampled.is_sampled() && sampled.has_blind_stretches(),
        "{sampled:?}"
    );
    assert_eq!(sampled.limit, Some(0.01));
    let report = kvwise(&["report", "s"]);
    let text = String::from_utf8_lossy(&report.stdout);
    assert!(text.contains("to stay below 1 % of step time"), "{text}");
    assert!(text.contains("the totals leave this out"), "{text}");
    let report = kvwise(&["report", "s", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert!(
        json["probes"][0]["probe_cost_ratio"].as_f64() > Some(0.01),
        "{json}"
    );
    assert!(json["probes"][0]["block_map"].is_null());
    let export = kvwise(&["export", "s", "--to", "trace", "-o", "."]);
    let said = String::from_utf8_lossy(&export.stderr);
    assert!(
        said.contains("the probe sampled") || said.contains("no finished request"),
        "{said}"
    );
    kvwise(&["export", "s", "--to", "csv", "-o", "csv"]);
    let summary = std::fs::read_to_string(folder.path().join("csv/kv_cache_summary.txt")).expect("a summary");
    assert!(summary.contains("Sampled to keep"), "{summary}");
}
