//! Headers of safetensors files: names, types and shapes of the tensors, never the tensors themselves.
//!
//! A file is eight bytes of little-endian header length, the header (a JSON object: tensor name to `dtype`, `shape`
//! and `data_offsets`, and free text under `__metadata__`), then the tensors back to back. The rules checked here are
//! those of the safetensors format 0.8: a header of at most 100,000,000 bytes that begins with `{`, offsets that cover
//! the rest of the file without a hole or an overlap, and as many bytes as type and shape ask for.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use kvwise_core::dtype::Dtype;
use kvwise_core::{Error, Result};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

/// Largest header the format allows, in bytes.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions that are taken; PyTorch itself stops at 64.
const MAX_DIMENSIONS: usize = 64;

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the checkpoint, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// Stored bytes.
    pub bytes: u64,
}

/// Reads the header of one file.
///
/// # Errors
/// If the file cannot be read or breaks a rule of the format; the message names file and tensor.
pub fn read(path: &Path) -> Result<Vec<Tensor>> {
    let io = |e: std::io::Error| Error::io(format!("{}: cannot read: {e}", path.display()));
    let mut file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    read_header(&mut file, file_bytes).map_err(|e| e.at(path.display()))
}

/// Reads a header from `source`, which is `file_bytes` long in all.
///
/// # Errors
/// As [`read`], without the file's name.
pub fn read_header(source: &mut impl Read, file_bytes: u64) -> Result<Vec<Tensor>> {
    let mut length = [0_u8; 8];
    source.read_exact(&mut length).map_err(|_| {
        Error::input("not a safetensors file: it is shorter than the 8 bytes of the header length")
    })?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(Error::input(format!(
            "not a safetensors file: it claims a header of {header_bytes} bytes, the format allows {MAX_HEADER_BYTES}"
        )));
    }
    if header_bytes > file_bytes.saturating_sub(8) {
        return Err(Error::input(format!(
            "the file is cut off: its header has {header_bytes} bytes, but only {} follow",
            file_bytes.saturating_sub(8)
        )));
    }
    let mut header = Vec::new();
    source
        .take(header_bytes)
        .read_to_end(&mut header)
        .map_err(|e| Error::io(format!("cannot read the header: {e}")))?;
    if header.len() as u64 != header_bytes || header.first() != Some(&b'{') {
        return Err(Error::input(
            "not a safetensors file: the header does not begin with {",
        ));
    }
    let entries: Entries = serde_json::from_slice(&header)
        .map_err(|e| Error::input(format!("the safetensors header cannot be read: {e}")))?;
    check(entries.0, file_bytes - 8 - header_bytes)
}

fn check(mut entries: Vec<(String, Entry)>, data_bytes: u64) -> Result<Vec<Tensor>> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let wrong = |why: String| Error::input(format!("tensor \"{name}\": {why}"));
        let (from, to) = entry.data_offsets;
        if from != end || to < from || to > data_bytes {
            return Err(wrong(format!(
                "its bytes {from}..{to} do not follow on byte {end} within the file's {data_bytes} bytes of data"
            )));
        }
        let dtype = Dtype::parse(&entry.dtype)
            .or(match entry.dtype.as_str() {
                "U16" => Some(Dtype::I16),
                "U32" => Some(Dtype::I32),
                "U64" | "C64" => Some(Dtype::I64),
                _ => None,
            })
            .ok_or_else(|| wrong(format!("its type \"{}\" is not known", entry.dtype)))?;
        if entry.shape.len() > MAX_DIMENSIONS {
            return Err(wrong(format!("it has {} dimensions", entry.shape.len())));
        }
        let bytes = entry
            .shape
            .iter()
            .try_fold(1_u64, |product, &n| product.checked_mul(n))
            .and_then(|elements| dtype.bytes(elements).ok())
            .ok_or_else(|| wrong("its shape is too large to compute".to_owned()))?;
        if bytes != to - from {
            return Err(wrong(format!(
                "type and shape need {bytes} bytes, but it has {}",
                to - from
            )));
        }
        end = to;
        tensors.push(Tensor {
            name,
            dtype,
            shape: entry.shape,
            bytes,
        });
    }
    if end != data_bytes {
        return Err(Error::input(format!(
            "the tensors end at byte {end} of {data_bytes}: the file is cut off or has bytes that no tensor owns"
        )));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's members in order, refusing a name that comes twice.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut names = rustc_hash::FxHashSet::default();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!(
                            "tensor \"{name}\" is there twice"
                        )));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A whole file: length, header, `data` zero bytes.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(std::iter::repeat_n(0, data));
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Vec<Tensor>> {
        read_header(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn tensors_come_with_type_shape_and_bytes() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[12,16]},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let tensors = parse(&file(header, 16)).unwrap();
        assert_eq!(tensors.len(), 2);
        assert_eq!(
            (tensors[0].name.as_str(), tensors[0].dtype, tensors[0].bytes),
            ("a", Dtype::Bf16, 12)
        );
        assert_eq!(tensors[1].shape, [4]);
    }

    #[test]
    fn a_header_that_lies_is_refused_and_the_message_says_how() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (bytes, says) in [
            (b"short".to_vec(), "shorter than the 8 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "claims a header"),
            (99_u64.to_le_bytes().to_vec(), "cut off"),
            (file("[]", 0), "does not begin with {"),
            (file("{\"w\":", 0), "cannot be read"),
            (file(&one("BF16", "[8]", "[0,16]"), 8), "do not follow"),
            (
                file(&one("BF16", "[4]", "[0,16]"), 16),
                "need 8 bytes, but it has 16",
            ),
            (file(&one("BF16", "[4]", "[8,0]"), 16), "do not follow"),
            (file(&one("BF16", "[-4]", "[0,8]"), 8), "cannot be read"),
            (file(&one("BF17", "[4]", "[0,8]"), 8), "\"BF17\" is not known"),
            (file(&one("BF16", "[4]", "[0,8]"), 9), "no tensor owns"),
            (
                file(&one("BF16", "[18446744073709551615,2]", "[0,8]"), 8),
                "too large",
            ),
            (
                file(
                    r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                ),
                "twice",
            ),
        ] {
            let e = parse(&bytes).unwrap_err().to_string();
            assert!(e.contains(says), "expected \"{says}\" in: {e}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_in_a_tensor_and_skipped_without_recursion_in_the_metadata() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&file(&format!("{{\"w\":{nested}}}"), 0)).is_err());
        assert!(parse(&file(&format!("{{\"__metadata__\":{nested}}}"), 0)).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_header_text_makes_the_reader_panic(text in ".{0,200}", data in 0_usize..64) {
            let _ = parse(&file(&format!("{{{text}"), data));
        }

        #[test]
        fn what_was_written_is_read_back(shapes in proptest::collection::vec(proptest::collection::vec(0_u64..5, 0..4), 0..8)) {
            let mut at = 0;
            let mut members = Vec::new();
            for (i, shape) in shapes.iter().enumerate() {
                let bytes = shape.iter().product::<u64>() * 2;
                members.push(format!(r#""t{i}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{at},{}]}}"#, at + bytes));
                at += bytes;
            }
            let tensors = parse(&file(&format!("{{{}}}", members.join(",")), usize::try_from(at).unwrap())).unwrap();
            prop_assert_eq!(tensors.iter().map(|t| t.bytes).sum::<u64>(), at);
            prop_assert_eq!(tensors.len(), shapes.len());
        }
    }
}
