use std::process::{Command, Stdio};
use std::time::Duration;

use kvwise_io::session::{Session, series};

use crate::fake_engine::FakeEngine;

/// The recorder is killed (SIGKILL: no handler, no clean-up) at many moments, from before the folder exists to long
/// after the first commit: whatever is there opens, and holds the seconds before the last commit.
#[test]
fn a_recording_killed_at_any_moment_opens() {
    let engine = FakeEngine::start();
    let folder = tempfile::tempdir().expect("folder");
    let mut opened = 0;
    for round in 0..24u64 {
        let session = folder.path().join(format!("s{round}"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvwise"))
            .args(["attach", &engine.url, "--interval", "5ms", "--quiet", "-o"])
            .arg(&session)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kvwise starts");
        // 2 ms to 1.1 s, irregular
        std::thread::sleep(Duration::from_millis(2 + (round * round * 97) % 1100));
        child.kill().expect("killed");
        child.wait().expect("gone");
        if !session.join("session.sqlite").exists() {
            continue; // killed before it made the database
        }
        let recording = Session::open(&session).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let check: String = recording
            .db
            .query_row("PRAGMA integrity_check", [], |r| r.get(0))
            .expect("a check");
        assert_eq!(check, "ok", "round {round}");
        series::engines(&recording.db).expect("readable");
        assert!(
            recording.metadata.end_unix_us.is_none(),
            "it did not end by itself"
        );
        opened += 1;
    }
    assert!(opened >= 12, "most rounds must have begun to record: {opened}");
}
