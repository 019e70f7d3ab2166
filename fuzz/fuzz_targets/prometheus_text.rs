//! Any bytes as a metrics page: `cargo +nightly fuzz run prometheus_text`.
#![no_main]

use kvwise_io::prometheus::engine::Vocabulary;
use kvwise_io::prometheus::text::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(page) = parse(text) else { return };
    for sample in &page.samples {
        for label in page.labels(sample) {
            let _ = label.value();
        }
    }
    for snapshot in Vocabulary::default().snapshots(&page) {
        let _ = snapshot.missing();
        for histogram in snapshot.histograms.iter().flatten() {
            let _ = histogram.quantile(0.99);
        }
    }
});
