//! Any lines as what the probe wrote: they are taken in and counted as bad or good, and all that reads a recording reads
//! this one.
#![no_main]

use kvwise_io::session::{Session, probe, series, trace};
use libfuzzer_sys::fuzz_target;

/// What the probe writes first, so that most inputs get as far as records.
const HEADER: &[u8] = b"{\"kvwise_probe\":\"2\",\"pid\":1,\"unix_ns\":1700000000000000000,\"mono_ns\":1000}\n";

fuzz_target!(|input: (bool, Vec<u8>)| {
    let (with_header, lines) = input;
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    std::fs::create_dir(folder.path().join("probe")).expect("a folder");
    let mut bytes = if with_header { HEADER.to_vec() } else { Vec::new() };
    bytes.extend_from_slice(&lines);
    std::fs::write(folder.path().join("probe/1.jsonl"), &bytes).expect("written");
    let mut session = Session::open(folder.path()).expect("opens");
    // a header of another version is the only thing that is refused
    let _ = probe::ingest_all(&mut session.db, folder.path());
    for process in series::processes(&session.db).expect("read") {
        series::steps(&session.db, process.id).expect("read");
        series::evictions(&session.db, process.id, 100).expect("read");
        series::request_lengths(&session.db, process.id, "prompt_tokens").expect("read");
        series::graph_replays(&session.db, process.id).expect("read");
    }
    series::memory(&session.db).expect("read");
    series::notes(&session.db).expect("read");
    if let Ok(made) = trace::read(&session.db) {
        let _ = trace::to_jsonl(&made);
    }
});
