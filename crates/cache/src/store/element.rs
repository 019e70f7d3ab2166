//! Number formats of cached keys and values, converted to and from `f32` without a table or a dependency.

use std::str::FromStr;

use crate::error::{Error, Result};

/// How one number of K or V is stored.
///
/// ```
/// use kvwise_cache::store::KvDtype;
/// let dtype: KvDtype = "fp8_e4m3".parse()?;
/// let mut byte = [0u8; 1];
/// dtype.encode(0.3, &mut byte);
/// assert_eq!(dtype.decode(&byte), 0.3125); // three bits of fraction
/// dtype.encode(1000.0, &mut byte);
/// assert_eq!(dtype.decode(&byte), 448.0); // fp8 saturates
/// # Ok::<(), kvwise_cache::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of binary32.
    Bf16,
    /// OCP FP8 E4M3 ("e4m3fn"): no infinities, largest value 448.
    Fp8E4m3,
    /// OCP FP8 E5M2: largest finite value 57344.
    Fp8E5m2,
}

/// Bits of a small float below its sign.
#[derive(Clone, Copy)]
struct Shape {
    exponent: u32,
    mantissa: u32,
    /// Whether the highest exponent means infinity and NaN (IEEE), or only its last code means NaN (e4m3fn).
    ieee: bool,
    /// Whether values too large become the largest finite one instead of infinity.
    saturate: bool,
}

impl KvDtype {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Fp8E4m3, Self::Fp8E5m2];

    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8E4m3 | Self::Fp8E5m2 => 1,
        }
    }

    fn shape(self) -> Option<Shape> {
        let (exponent, mantissa, ieee, saturate) = match self {
            Self::F32 => return None,
            Self::F16 => (5, 10, true, false),
            Self::Bf16 => (8, 7, true, false),
            Self::Fp8E4m3 => (4, 3, false, true),
            Self::Fp8E5m2 => (5, 2, true, true),
        };
        Some(Shape {
            exponent,
            mantissa,
            ieee,
            saturate,
        })
    }

    /// Writes `value`, rounded to the nearest number of this format (ties to even), little-endian. Beyond the
    /// range f16 and bf16 become infinite; the fp8 formats saturate, as the engines' cache kernels do.
    ///
    /// # Panics
    /// If `out` is not exactly [`KvDtype::bytes`] long.
    pub fn encode(self, value: f32, out: &mut [u8]) {
        let Some(shape) = self.shape() else {
            out.copy_from_slice(&value.to_le_bytes());
            return;
        };
        let code = shape.encode(value).to_le_bytes();
        out.copy_from_slice(&code[..self.bytes()]);
    }

    /// Reads a number.
    ///
    /// # Panics
    /// If `bytes` is not exactly [`KvDtype::bytes`] long.
    pub fn decode(self, bytes: &[u8]) -> f32 {
        match (self.shape(), bytes) {
            (None, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Some(shape), &[a, b]) if self.bytes() == 2 => shape.decode(u16::from_le_bytes([a, b])),
            (Some(shape), &[a]) if self.bytes() == 1 => shape.decode(u16::from(a)),
            _ => panic!("{self:?} numbers are {} bytes, not {}", self.bytes(), bytes.len()),
        }
    }
}

impl FromStr for KvDtype {
    type Err = Error;

    /// The engines' spellings: `float32 float16 bfloat16 fp8 fp8_e4m3 fp8_e5m2` and the short `f32 fp16 bf16`.
    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "f32" | "fp32" | "float32" => Self::F32,
            "f16" | "fp16" | "float16" | "half" => Self::F16,
            "bf16" | "bfloat16" => Self::Bf16,
            "fp8" | "fp8_e4m3" | "fp8_e4m3fn" => Self::Fp8E4m3,
            "fp8_e5m2" => Self::Fp8E5m2,
            _ => {
                return Err(Error::invalid(format!(
                    "KV dtype \"{name}\" is not known, expected float32, float16, bfloat16, fp8_e4m3 or fp8_e5m2"
                )));
            }
        })
    }
}

impl Shape {
    /// Code without sign of the largest finite value.
    fn largest(self) -> u16 {
        let top = (1u16 << (self.exponent + self.mantissa)) - 1;
        if self.ieee {
            top - (1 << self.mantissa)
        } else {
            top - 1
        }
    }

    fn encode(self, value: f32) -> u16 {
        let bits = value.to_bits();
        let negative = bits >> 31 != 0;
        let magnitude = bits & 0x7fff_ffff;
        let sign = u16::from(negative) << (self.exponent + self.mantissa);
        let infinity = self.largest() + 1; // IEEE: infinity; e4m3fn: NaN
        let nan = if self.ieee {
            infinity | 1 << (self.mantissa - 1)
        } else {
            infinity
        };
        if magnitude > 0x7f80_0000 {
            return sign | nan;
        }
        // value = 1.fraction * 2^(exponent - 127); both formats seen as an integer times a power of two
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let exponent = (magnitude >> 23).cast_signed() - 127 + bias;
        let dropped = 23 - self.mantissa;
        let code = if magnitude >= 0x7f80_0000 {
            u32::MAX
        } else if exponent >= 1 {
            // normal: rebias, then round away the dropped bits; a carry moves on to the next exponent by itself
            let rebased = (exponent.cast_unsigned() << 23) | (magnitude & 0x007f_ffff);
            round(rebased, dropped)
        } else if magnitude >> 23 == 0 && bias == 127 {
            // subnormal in both formats (bf16)
            round(magnitude, dropped)
        } else {
            // subnormal here: shift the full significand further down
            let significand = (magnitude & 0x007f_ffff) | 0x0080_0000;
            let shift = dropped + (1 - exponent).cast_unsigned();
            if shift > 25 { 0 } else { round(significand, shift) }
        };
        let largest = u32::from(self.largest());
        if code <= largest {
            // the shift in `round` left at most the format's own bits
            return sign | (code & 0xffff) as u16;
        }
        sign | if self.saturate { self.largest() } else { infinity }
    }

    fn decode(self, code: u16) -> f32 {
        let width = self.exponent + self.mantissa;
        let magnitude = u32::from(code) & ((1 << width) - 1);
        let sign = (u32::from(code) >> width & 1) << 31;
        let largest = u32::from(self.largest());
        if magnitude > largest {
            let is_infinite = self.ieee && magnitude == largest + 1;
            return f32::from_bits(sign | if is_infinite { 0x7f80_0000 } else { 0x7fc0_0000 });
        }
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let (exponent, fraction) = (magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1));
        if bias == 127 {
            return f32::from_bits(sign | magnitude << (23 - self.mantissa));
        }
        if exponent == 0 {
            // fraction * 2^(1 - bias - mantissa), exact: few bits, and f32 reaches far lower
            let unit = f32::from_bits(((1 - bias - self.mantissa.cast_signed() + 127).cast_unsigned()) << 23);
            let value = fraction as f32 * unit;
            return f32::from_bits(sign | value.to_bits());
        }
        let rebased = (exponent.cast_signed() - bias + 127).cast_unsigned();
        f32::from_bits(sign | rebased << 23 | fraction << (23 - self.mantissa))
    }
}

/// `bits >> shift`, rounded to nearest, ties to even.
fn round(bits: u32, shift: u32) -> u32 {
    let half = 1u32 << (shift - 1);
    let rest = bits & ((half << 1) - 1);
    let kept = bits >> shift;
    kept + u32::from(rest > half || (rest == half && kept & 1 == 1))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "conversions are exact")]
mod tests {
    use super::*;

    fn code(dtype: KvDtype, value: f32) -> u16 {
        let mut bytes = [0u8; 2];
        dtype.encode(value, &mut bytes[..dtype.bytes()]);
        u16::from_le_bytes(bytes)
    }

    fn value(dtype: KvDtype, code: u16) -> f32 {
        dtype.decode(&code.to_le_bytes()[..dtype.bytes()])
    }

    const SMALL: [KvDtype; 4] = [KvDtype::F16, KvDtype::Bf16, KvDtype::Fp8E4m3, KvDtype::Fp8E5m2];

    #[test]
    fn every_code_survives_the_way_through_f32() {
        for dtype in SMALL {
            let codes = if dtype.bytes() == 2 { 0..=u16::MAX } else { 0..=255 };
            for c in codes {
                let v = value(dtype, c);
                if v.is_nan() {
                    assert!(value(dtype, code(dtype, v)).is_nan());
                } else if v.is_infinite() && dtype == KvDtype::Fp8E5m2 {
                    assert_eq!(value(dtype, code(dtype, v)), 57344f32.copysign(v));
                } else {
                    assert_eq!(code(dtype, v), c, "{dtype:?} {v}");
                }
            }
        }
    }

    #[test]
    fn between_two_codes_the_nearer_wins_and_a_tie_goes_to_the_even_one() {
        for dtype in SMALL {
            let width = if dtype.bytes() == 2 { 15 } else { 7 };
            for low in 0..(1u16 << width) - 1 {
                let (a, b) = (value(dtype, low), value(dtype, low + 1));
                if !a.is_finite() || !b.is_finite() {
                    continue;
                }
                let middle = f64::midpoint(f64::from(a), f64::from(b));
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "the midpoint of two short floats is exact"
                )]
                let middle = middle as f32;
                if middle > a && middle < b {
                    assert_eq!(
                        code(dtype, middle),
                        low + low % 2,
                        "{dtype:?} between {a} and {b}"
                    );
                    assert_eq!(code(dtype, middle.next_down()), low);
                    assert_eq!(code(dtype, middle.next_up()), low + 1);
                }
            }
        }
    }

    #[test]
    fn known_values_have_their_standard_codes() {
        // OCP 8-bit floating point specification 1.0, table 2; IEEE 754 binary16
        assert_eq!(code(KvDtype::Fp8E4m3, 448.0), 0x7e);
        assert_eq!(code(KvDtype::Fp8E4m3, -1.0), 0xb8);
        assert_eq!(value(KvDtype::Fp8E4m3, 0x01), 2f32.powi(-9));
        assert!(value(KvDtype::Fp8E4m3, 0x7f).is_nan());
        assert_eq!(code(KvDtype::Fp8E5m2, 57344.0), 0x7b);
        assert_eq!(value(KvDtype::Fp8E5m2, 0x01), 2f32.powi(-16));
        assert_eq!(code(KvDtype::Fp8E5m2, 1e9), 0x7b);
        assert_eq!(code(KvDtype::F16, 65504.0), 0x7bff);
        assert_eq!(code(KvDtype::F16, 65520.0), 0x7c00);
        assert_eq!(code(KvDtype::F16, 1.0), 0x3c00);
        assert_eq!(code(KvDtype::Bf16, 1.0), 0x3f80);
        assert_eq!(code(KvDtype::Bf16, f32::MAX), 0x7f80);
    }
}
