//! Words from outside: the shape of a model, and the command line of each engine; reading them never panics.
#![no_main]

use kvwise_core::arch::family::read;
use kvwise_core::arch::shape;
use kvwise_core::engine::flags::{self, parse::parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = shape::config(text) {
        let _ = read("fuzz", &config);
    }
    let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for table in [flags::vllm(), flags::sglang(), flags::llamacpp()] {
        let _ = parse(table, &words);
    }
});
