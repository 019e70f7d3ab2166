//! The worked example as a test: attention through the paged store equals a dense cache bit for bit.

#[path = "../examples/paged_attention.rs"]
#[expect(dead_code, reason = "the example's main is not called")]
mod example;

use kvwise_cache::store::{KvDtype, KvLayout};

#[test]
fn attention_through_the_paged_store_equals_a_dense_cache_bit_for_bit() {
    for dtype in KvDtype::ALL {
        for (layout, page_size) in [(KvLayout::Nhd, 1), (KvLayout::Hnd, 4)] {
            let report = example::run(dtype, layout, page_size, 40).unwrap();
            assert_eq!(report.requests, 40);
            assert!(
                report.shared_tokens > 100,
                "{dtype:?}: nothing was shared: {report:?}"
            );
            assert!(
                report.evictions > 10,
                "{dtype:?}: nothing was evicted: {report:?}"
            );
        }
    }
}
