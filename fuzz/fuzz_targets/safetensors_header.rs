//! A safetensors header that may lie about its length: an error or tensors that lie within the file, never a panic.
#![no_main]

use kvwise_io::model::safetensors::read_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tensors) = read_header(&mut &bytes[..], bytes.len() as u64) {
        let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        assert!(total <= bytes.len() as u64);
    }
});
