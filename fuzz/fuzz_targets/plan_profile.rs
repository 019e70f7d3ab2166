//! A YAML profile from outside: an error or a profile, never a panic.
#![no_main]

use kvwise_io::plan_profile::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = parse(text);
});
