//! Element types of ggml: how many elements a block has and how many bytes it takes.
//!
//! The figures are those of llama.cpp 0c1e570, `ggml/src/ggml-common.h` and `gguf-py/gguf/constants.py`.

use crate::names::nearest;
use crate::{Error, Result};

/// One type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    /// Number in files.
    pub id: u32,
    /// Lower-case name.
    pub name: &'static str,
    /// Elements of one block.
    pub block: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

const fn row(id: u32, name: &'static str, block: u64, block_bytes: u64) -> GgmlType {
    GgmlType {
        id,
        name,
        block,
        block_bytes,
    }
}

/// Every type that a file can hold.
pub const TYPES: [GgmlType; 34] = [
    row(0, "f32", 1, 4),
    row(1, "f16", 1, 2),
    row(2, "q4_0", 32, 18),
    row(3, "q4_1", 32, 20),
    row(6, "q5_0", 32, 22),
    row(7, "q5_1", 32, 24),
    row(8, "q8_0", 32, 34),
    row(9, "q8_1", 32, 36),
    row(10, "q2_k", 256, 84),
    row(11, "q3_k", 256, 110),
    row(12, "q4_k", 256, 144),
    row(13, "q5_k", 256, 176),
    row(14, "q6_k", 256, 210),
    row(15, "q8_k", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(28, "f64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(30, "bf16", 1, 2),
    row(34, "tq1_0", 256, 54),
    row(35, "tq2_0", 256, 66),
    row(39, "mxfp4", 32, 17),
    row(40, "nvfp4", 64, 36),
    row(41, "q1_0", 128, 18),
];

/// Types that `--cache-type-k` and `--cache-type-v` take.
pub const CACHE_TYPES: [&str; 9] = [
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
];

impl GgmlType {
    /// 16-bit floats, the default of the caches.
    pub const F16: Self = TYPES[1];
    /// 32-bit floats, the type of recurrent states.
    pub const F32: Self = TYPES[0];

    /// The type with this number.
    pub fn by_id(id: u32) -> Option<Self> {
        TYPES.into_iter().find(|t| t.id == id)
    }

    /// The type with this name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        TYPES.into_iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// A type of the caches.
    ///
    /// # Errors
    /// If llama.cpp does not take it for a cache; `flag` is named.
    pub fn cache(flag: &str, text: &str) -> Result<Self> {
        let wanted = text.to_ascii_lowercase();
        if CACHE_TYPES.contains(&wanted.as_str())
            && let Some(found) = Self::by_name(&wanted)
        {
            return Ok(found);
        }
        let error = Error::input(format!(
            "{flag} is \"{text}\", which llama.cpp does not take for a cache"
        ))
        .hint(format!("write one of {}", CACHE_TYPES.join(", ")));
        Err(match nearest(&wanted, CACHE_TYPES, 1).first() {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        })
    }

    /// Bytes of a row of `elements`, which must be whole blocks; `None` if they are not or the size leaves 64 bits.
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block) {
            return None;
        }
        (elements / self.block).checked_mul(self.block_bytes)
    }

    /// Whether values are quantised in blocks.
    pub fn quantized(self) -> bool {
        self.block > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks_and_never_wrap() {
        let q8 = GgmlType::by_name("Q8_0").unwrap();
        assert_eq!(q8.row_bytes(1024), Some(1088));
        assert_eq!(q8.row_bytes(1000), None);
        assert_eq!(GgmlType::F32.row_bytes(u64::MAX), None);
        assert_eq!(GgmlType::by_id(1), Some(GgmlType::F16));
        assert_eq!(GgmlType::by_id(4), None, "q4_2 was removed");
    }

    #[test]
    fn a_type_that_no_cache_takes_is_refused_with_the_list() {
        assert!(format!("{:?}", GgmlType::cache("--cache-type-k", "q6_k").unwrap_err()).contains("q5_1"));
        assert!(format!("{:?}", GgmlType::cache("--cache-type-k", "q8").unwrap_err()).contains("q8_0"));
        assert_eq!(GgmlType::cache("", "BF16").unwrap().id, 30);
    }
}
