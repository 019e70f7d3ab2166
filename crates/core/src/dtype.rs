//! Element types of weights, states and caches.

use std::fmt;

use crate::{Error, Result};

/// A number format, with the bits one element occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE 754 double precision, 64 bits.
    F64,
    /// IEEE 754 single precision, 32 bits.
    F32,
    /// IEEE 754 half precision, 16 bits.
    F16,
    /// bfloat16, 16 bits.
    Bf16,
    /// 8-bit float with 4 exponent bits (OCP FP8).
    F8E4m3,
    /// 8-bit float with 5 exponent bits (OCP FP8).
    F8E5m2,
    /// 8-bit power-of-two scale (OCP MX).
    F8E8m0,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer (also two packed 4-bit values).
    U8,
    /// 4-bit value, two in a byte.
    U4,
    /// Boolean, one byte.
    Bool,
}

impl Dtype {
    /// Bits of one element.
    pub const fn bits(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 64,
            Self::F32 | Self::I32 => 32,
            Self::F16 | Self::Bf16 | Self::I16 => 16,
            Self::F8E4m3 | Self::F8E5m2 | Self::F8E8m0 | Self::I8 | Self::U8 | Self::Bool => 8,
            Self::U4 => 4,
        }
    }

    /// Bytes of `count` elements, rounded up to a whole byte.
    ///
    /// # Errors
    /// If the product leaves 64 bits.
    pub fn bytes(self, count: u64) -> Result<u64> {
        count
            .checked_mul(self.bits())
            .map(|bits| bits.div_ceil(8))
            .ok_or_else(|| Error::overflow(format_args!("{count} elements of {self}")))
    }

    /// Parses the spellings of `PyTorch`, `transformers`, safetensors and the common short forms.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("torch.").unwrap_or(text).to_ascii_lowercase();
        Some(match name.as_str() {
            "float64" | "f64" | "double" => Self::F64,
            "float32" | "fp32" | "f32" | "float" => Self::F32,
            "float16" | "fp16" | "f16" | "half" => Self::F16,
            "bfloat16" | "bf16" => Self::Bf16,
            "float8_e4m3fn" | "float8_e4m3" | "fp8_e4m3fn" | "fp8_e4m3" | "f8_e4m3" => Self::F8E4m3,
            "float8_e5m2" | "fp8_e5m2" | "f8_e5m2" => Self::F8E5m2,
            "float8_e8m0fnu" | "f8_e8m0" => Self::F8E8m0,
            "int64" | "i64" => Self::I64,
            "int32" | "i32" => Self::I32,
            "int16" | "i16" => Self::I16,
            "int8" | "i8" => Self::I8,
            "uint8" | "u8" => Self::U8,
            "u4" | "f4" => Self::U4,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    /// The name that `PyTorch` uses (`bfloat16`, `float8_e4m3fn`, ...).
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "float64",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F8E4m3 => "float8_e4m3fn",
            Self::F8E5m2 => "float8_e5m2",
            Self::F8E8m0 => "float8_e8m0fnu",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::U4 => "uint4",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
