use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kvwise::usecase::attach::record;
use kvwise_io::session::{Session, series};

use crate::attach::plan;
use crate::fake_engine::FakeEngine;

/// A file system of 400 KiB is full after a few hundred scrapes: the recorder says so and stops, what it had committed is
/// read, by `report` on the same full disk too. Needs a mount namespace of one's own; passes where the kernel gives none.
#[test]
fn a_full_disk_ends_a_recording_that_still_opens() {
    let folder = tempfile::tempdir().expect("folder");
    let script = r#"
        mount -t tmpfs -o size=400k none "$1" || exit 77
        "$2" attach "$3" --interval 1ms --duration 60s --quiet -o "$1/s"
        echo "attach: $?"
        "$2" report "$1/s" --format json
        echo "report: $?"
    "#;
    let engine = FakeEngine::start();
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .args([env!("CARGO_BIN_EXE_kvwise"), &engine.url])
        .output();
    let Ok(output) = output else { return };
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !stdout.contains("attach:") {
        return; // no such namespace here
    }
    assert!(
        stdout.contains("attach: 2") && stdout.contains("report: 0"),
        "{stdout}\n{stderr}"
    );
    assert!(
        stderr.contains("disk is full") && stderr.contains("free some space"),
        "{stderr}"
    );
    assert!(stdout.contains("\"complete\": false"), "{stdout}");
}

fn recording(folder: &Path) {
    let engine = FakeEngine::start();
    record(
        &plan(vec![engine.url.clone()], folder, 60),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .expect("a recording");
}

/// A copy that was cut off, a file system that lost the end: whatever the length of each file, the folder opens or says
/// in one sentence what is wrong, and nothing that reads it fails in another way.
#[test]
fn a_half_written_folder_opens_or_says_what_is_wrong() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = folder.path().join("whole");
    recording(&whole);
    std::thread::sleep(Duration::from_millis(1));
    let files =
        ["metadata.json", "session.sqlite"].map(|name| (name, fs::read(whole.join(name)).expect("a file")));
    let (mut opened, mut refused) = (0, 0);
    for (name, bytes) in &files {
        for part in 0..12 {
            let cut = bytes.len() * part / 12;
            let half = folder.path().join(format!("{name}-{part}"));
            fs::create_dir(&half).expect("a folder");
            for (other, bytes) in &files {
                let end = if other == name { cut } else { bytes.len() };
                fs::write(half.join(other), &bytes[..end]).expect("written");
            }
            match Session::open(&half).and_then(|session| series::engines(&session.db).map(|_| ())) {
                Ok(()) => opened += 1,
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        text.contains(name) || text.contains(&*half.to_string_lossy()),
                        "{text}"
                    );
                    refused += 1;
                }
            }
        }
        // the other file alone
        let alone = folder.path().join(format!("without-{name}"));
        fs::create_dir(&alone).expect("a folder");
        for (other, bytes) in files.iter().filter(|(other, _)| other != name) {
            fs::write(alone.join(other), bytes).expect("written");
        }
        let found = Session::open(&alone);
        assert_eq!(found.is_ok(), *name == "metadata.json", "{name}: {found:?}");
    }
    assert!(opened >= 12 && refused > 0, "{opened} opened, {refused} refused");
}
