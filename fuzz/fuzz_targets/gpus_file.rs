//! Any text as a user's file of GPUs: `cargo +nightly fuzz run gpus_file`.
#![no_main]

use kvwise_core::hardware;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for gpu in hardware::read(text, "gpus.toml").unwrap_or_default() {
        let _ = gpu.torch_total();
    }
});
