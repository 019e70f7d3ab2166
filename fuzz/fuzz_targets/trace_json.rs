//! The trace scanner accepts exactly what serde_json accepts.
#![no_main]

use kvwise_io::trace::json::Scanner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut scanner = Scanner::new(bytes);
    let accepted = scanner.skip().and_then(|()| scanner.end()).is_ok();
    assert_eq!(accepted, serde_json::from_slice::<serde_json::Value>(bytes).is_ok());
});
