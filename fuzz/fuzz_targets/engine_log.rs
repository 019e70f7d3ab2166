#![no_main]
//! Any bytes as an engine's log.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut source = bytes;
    if let Ok(log) = kvwise_io::log::read("fuzz", &mut source) {
        assert!(!log.boots.is_empty() && log.boots.len() <= kvwise_io::log::MAX_BOOTS + 1);
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = kvwise_io::log::python::pairs(&text);
    let _ = kvwise_io::settings::parse(&text);
});
