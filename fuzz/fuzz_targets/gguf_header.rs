//! Any bytes as a GGUF file: `cargo +nightly fuzz run gguf_header`.
#![no_main]

use std::io::Cursor;

use kvwise_core::engine::llamacpp::{Hparams, Settings, Weights, caches};
use kvwise_io::model::gguf::read_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(header) = read_header(&mut Cursor::new(data), data.len() as u64) else {
        return;
    };
    let Ok(model) = Hparams::read(&header) else { return };
    let _ = Weights::of_file(&header, &model);
    let _ = caches(&model, &Settings::default());
});
