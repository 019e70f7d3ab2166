//! The trace scanner accepts exactly what serde_json accepts, whichever way it reads keys, numbers and lists.
#![no_main]

use kvwise_io::trace::json::Scanner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut scanner = Scanner::new(bytes);
    let accepted = scanner.skip().and_then(|()| scanner.end()).is_ok();
    assert_eq!(accepted, serde_json::from_slice::<serde_json::Value>(bytes).is_ok());
    let (mut text, mut known) = (Scanner::new(bytes), Scanner::new(bytes));
    let (mut keys, mut seen) = (Vec::new(), Vec::new());
    let a = text.object(|key, s| {
        keys.push(key.as_bytes().to_vec());
        s.skip()
    });
    let b = known.object_of(|key, s| {
        seen.push(key.to_vec());
        s.skip()
    });
    assert_eq!((a.is_ok(), keys), (b.is_ok(), seen));
    let mut list = Vec::new();
    let mut scanner = Scanner::new(bytes);
    let read = scanner.uints(&mut list).and_then(|()| scanner.end()).is_ok().then_some(list);
    assert_eq!(read, serde_json::from_slice::<Vec<u64>>(bytes).ok());
});
