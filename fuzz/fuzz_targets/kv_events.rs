//! Any bytes as the payload of a KV-event message: an error or a batch that can be followed, never a panic.
#![no_main]

use std::hash::{BuildHasherDefault, DefaultHasher};

use kvwise_io::kv_events::batch::read;
use kvwise_io::kv_events::content::Content;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let key = BuildHasherDefault::<DefaultHasher>::default();
    let Ok(batch) = read(payload, &key) else { return };
    let mut content = Content::default();
    let _ = content.follow(&batch);
    let _ = content.follow(&batch);
    let _ = content.cached();
});
