//! Parsing of a real vLLM page: `cargo bench -p kvwise-io --bench prometheus`.
//!
//! The promise is 200 MB/s for `parse`; `snapshots` is what a scrape does in all.

use divan::Bencher;
use divan::counter::BytesCount;
use kvwise_io::prometheus::engine::Vocabulary;
use kvwise_io::prometheus::text;

const PAGE: &str = include_str!("../testdata/vllm_0.32.0_metrics.txt");

fn main() {
    divan::main();
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::of_str(PAGE))
        .bench(|| text::parse(divan::black_box(PAGE)).expect("a page").samples.len());
}

#[divan::bench]
fn snapshots(bencher: Bencher<'_, '_>) {
    let vocabulary = Vocabulary::default();
    bencher.counter(BytesCount::of_str(PAGE)).bench(|| {
        let page = text::parse(divan::black_box(PAGE)).expect("a page");
        vocabulary.snapshots(&page).len()
    });
}
