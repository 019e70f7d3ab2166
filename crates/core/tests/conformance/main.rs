//! vLLM 0.32.0's own answers against ours: every golden row is equal, or a known difference with its reason.
//!
//! `golden/vllm_rows.jsonl` holds what vLLM's own code computed for `golden/vllm_configs.jsonl`, the files `towers_*` the
//! same for wrappers with towers (see `golden/README.md`). `golden/combined_rows.jsonl` has several settings at a time, on models cut to a
//! few layers. `golden/known_differences.tsv` lists what is not equal and why. With
//! `KVWISE_WRITE_CONFORMANCE=1` the table of the documentation is written anew.

mod compare;
mod known;
mod layers;
mod page;
mod settings;
mod tally;

const PAGE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/src/reference/conformance.md"
);

#[test]
fn every_golden_row_equals_vllm_or_is_a_known_difference() {
    let report = tally::report();
    if std::env::var_os("KVWISE_WRITE_CONFORMANCE").is_some() {
        let path = std::path::Path::new(PAGE);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, page::page(&report)).unwrap();
    }
    assert!(report.rows >= 1000, "golden rows have been lost: {}", report.rows);
    assert!(
        report.unexpected.is_empty(),
        "{} inequalities ({} of {} rows are exact in the cache, {} in the weights):\n{}",
        report.unexpected.len(),
        report.exact_kv,
        report.rows,
        report.exact_weights,
        report.unexpected.join("\n")
    );
    assert!(
        report.unread.is_empty(),
        "not read:\n{}",
        report.unread.keys().cloned().collect::<Vec<_>>().join("\n")
    );
    assert!(
        report.stale.is_empty(),
        "known differences that are equal now, take them off the list:\n{}",
        report.stale.join("\n")
    );
}
