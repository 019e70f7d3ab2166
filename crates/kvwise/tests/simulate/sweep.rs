//! `kvwise sweep`.

use super::*;

#[test]
fn a_sweep_for_people_and_for_spreadsheets() {
    let table = swept(&["--format", "table", "--slo-tpot-ms", "10"]);
    assert_eq!(table.status.code(), Some(0), "{}", text(&table.stderr));
    insta::assert_snapshot!("sweep", text(&table.stdout));
    let csv = text(&swept(&["--format", "csv"]).stdout);
    assert_eq!(csv.lines().count(), 5);
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    assert!(csv.lines().all(|l| l.split(',').count() == header.len()), "{csv}");
}

#[test]
fn a_sweep_goes_on_where_it_stopped_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let file = results.to_str().unwrap();
    let whole = swept(&["--format", "json", "--results", file]);
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(lines(&results), 4);
    // The last result was cut off in the middle, as by a loss of power.
    let full = std::fs::read_to_string(&results).unwrap();
    std::fs::write(&results, &full[..full.len() - 40]).unwrap();
    let again = swept(&["--format", "json", "--results", file]);
    assert_eq!(text(&whole.stdout), text(&again.stdout));
    assert_eq!(again.status.code(), Some(0));
    let third = swept(&["--format", "json", "--results", file]);
    assert_eq!(text(&whole.stdout), text(&third.stdout));
    // What is no result is not written over.
    std::fs::write(&results, "not a result\n{}\n").unwrap();
    let refused = swept(&["--format", "json", "--results", file]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("line 1"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn a_sweep_that_was_killed_goes_on_and_says_the_same() {
    stopped_and_resumed(None);
}

/// As Ctrl-C does.
#[cfg(unix)]
#[test]
fn a_sweep_that_was_interrupted_goes_on_and_says_the_same() {
    stopped_and_resumed(Some("-INT"));
}

fn stopped_and_resumed(signal: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let file = results.to_str().unwrap();
    let asked = |results: &[&str]| {
        let mut arguments = vec![
            "sweep",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "--format",
            "json",
        ];
        arguments.extend(["--input-len", "256", "--output-len", "64", "--requests", "400"]);
        arguments.extend(["--concurrency", "1,2,3,4,5,6,7,8,9,10,11,12"]);
        arguments.extend(results);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvwise"));
        command.args(arguments);
        command
    };
    let lines = || std::fs::read_to_string(&results).map_or(0, |t| t.lines().count());
    let mut child = asked(&["--results", file])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Killed as soon as there is something to go on from; a machine that was faster than this has nothing left to do, and
    // the answers must be the same all the more.
    while lines() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    match signal {
        None => child.kill().unwrap(),
        Some(name) => {
            let pid = child.id().to_string();
            Command::new("kill").args([name, &pid]).status().unwrap();
        }
    }
    child.wait().unwrap();
    let before = lines();
    assert!(before >= 1, "the first result was written before the kill");
    let resumed = asked(&["--results", file]).output().unwrap();
    let whole = asked(&[]).output().unwrap();
    assert_eq!(text(&resumed.stdout), text(&whole.stdout));
    assert_eq!(resumed.status.code(), Some(0));
    assert_eq!(lines(), 12);
}

#[test]
fn a_sweep_becomes_a_page_by_its_format_or_its_files_name() {
    let page = text(&swept(&["--format", "html"]).stdout);
    assert!(
        page.starts_with("<!doctype html>") && page.contains("<svg"),
        "{page}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.html");
    assert!(swept(&["-o", file.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), page);
    // Builds without Parquet say so and leave no file; no build writes it to the standard output.
    let table = folder.path().join("sweep.parquet");
    let output = swept(&["-o", table.to_str().unwrap()]);
    if cfg!(feature = "parquet") {
        assert_eq!(&std::fs::read(&table).unwrap()[..4], b"PAR1");
    } else {
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains("does not write Parquet"),
            "{}",
            text(&output.stderr)
        );
        assert!(!table.exists());
    }
    assert_eq!(swept(&["--format", "parquet"]).status.code(), Some(2));
}

/// Needs the feature `parquet`: `cargo test -p kvwise --features parquet --test simulate parquet`.
#[cfg(feature = "parquet")]
#[test]
fn a_sweep_read_back_from_parquet_is_the_sweep_in_json() {
    use kvwise_io::parquet_table::{Cells, read};

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.parquet");
    let output = swept(&["-o", file.to_str().unwrap(), "--slo-tpot-ms", "10"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let columns = read(&file).unwrap();
    let answer: Value =
        serde_json::from_slice(&swept(&["--format", "json", "--slo-tpot-ms", "10"]).stdout).unwrap();
    let points = answer["points"].as_array().unwrap();
    let column = |name: &str| {
        &columns
            .iter()
            .find(|(n, _)| n == name)
            .unwrap_or_else(|| panic!("{name}: {columns:?}"))
            .1
    };
    for (name, pointer) in [
        ("ttft_p99_ms", "/ttft_ms/p99"),
        ("tpot_p50_ms", "/tpot_ms/p50"),
        ("output_tokens_per_s", "/output_tokens_per_s"),
        ("kv_usage_peak", "/kv_usage_peak"),
    ] {
        let Cells::Reals(cells) = column(name) else {
            panic!("{name} is not a column of numbers");
        };
        let expected: Vec<Option<f64>> = points
            .iter()
            .map(|p| p.pointer(pointer).unwrap().as_f64())
            .collect();
        assert_eq!(cells, &expected, "{name}");
    }
    let Cells::Integers(gpus) = column("gpus") else {
        panic!("gpus is not a column of whole numbers");
    };
    assert_eq!(
        gpus,
        &points.iter().map(|p| p["gpus"].as_i64()).collect::<Vec<_>>()
    );
}

#[test]
fn a_sweep_whose_points_all_miss_says_which_comes_nearest() {
    let output = swept(&["--format", "json", "--slo-ttft-ms", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["best"].is_null());
    let nearest = usize::try_from(answer["nearest"].as_u64().unwrap()).unwrap();
    let ttft = |i: usize| answer["points"][i]["ttft_ms"]["p99"].as_f64().unwrap();
    assert!((0..4).all(|i| ttft(nearest) <= ttft(i)));
}
