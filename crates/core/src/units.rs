//! Sizes and counts as people write them, without ever passing through a float.
//!
//! Decimal (`GB` = 10^9) and binary (`GiB` = 2^30) units are different units here; a bare `G` is refused for sizes,
//! because the two readings differ by 7 %, more than the headroom that people ask about.

use crate::{Error, Result};

/// Bytes in one KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;

/// Parses a size with its unit: `24GiB`, `80 GB`, `512MiB`, `1.5TiB`, `4096B`.
///
/// ```
/// use kvwise_core::units::parse_bytes;
/// assert_eq!(parse_bytes("1.5GiB").unwrap(), 1_610_612_736);
/// assert_eq!(parse_bytes("80 GB").unwrap(), 80_000_000_000);
/// assert!(parse_bytes("24").is_err());
/// assert!(parse_bytes("-1GiB").is_err());
/// ```
///
/// # Errors
/// If there is no number, no unit, an unknown or ambiguous unit, or the size leaves 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let (number, unit) = split(text);
    let bad = |why: &str| Error::input(format!("\"{text}\" is not a size: {why}"));
    if number.is_empty() {
        return Err(bad("it must start with a number, like 24GiB"));
    }
    let scale = match unit.to_ascii_lowercase().as_str() {
        "b" | "bytes" => 1,
        "kib" => KIB,
        "mib" => MIB,
        "gib" => GIB,
        "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "" => return Err(bad("the unit is missing; write GiB (2^30) or GB (10^9)")),
        "k" | "m" | "g" | "t" => return Err(bad("the unit is ambiguous; write GiB (2^30) or GB (10^9)")),
        _ => {
            return Err(bad(
                "the unit is not known; write B, KiB, MiB, GiB, TiB or kB, MB, GB, TB",
            ));
        }
    };
    scaled(number, scale).ok_or_else(|| bad("the number cannot be read or is too large"))
}

/// Parses a count with vLLM's own suffixes: `k`, `m`, `g`, `t` are decimal, `K`, `M`, `G`, `T` binary; `25.6k` is 25,600.
///
/// The rule is `human_readable_int` of vLLM 0.32.0, `vllm/engine/arg_utils.py`; as there, a fraction needs a decimal suffix.
///
/// ```
/// use kvwise_core::units::parse_count;
/// assert_eq!(parse_count("32k").unwrap(), 32_000);
/// assert_eq!(parse_count("32K").unwrap(), 32_768);
/// assert_eq!(parse_count("131072").unwrap(), 131_072);
/// assert!(parse_count("1.5K").is_err());
/// ```
///
/// # Errors
/// If the text is not such a count or leaves 64 bits.
pub fn parse_count(text: &str) -> Result<u64> {
    let (number, unit) = split(text);
    let bad = || {
        Error::input(format!(
            "\"{text}\" is not a count: write an integer, or one with k, m, g (powers of 1000) or K, M, G (powers of 1024)"
        ))
    };
    let (scale, decimal) = match unit {
        "" => (1, false),
        "k" => (1000, true),
        "m" => (1_000_000, true),
        "g" => (1_000_000_000, true),
        "t" => (1_000_000_000_000, true),
        "K" => (KIB, false),
        "M" => (MIB, false),
        "G" => (GIB, false),
        "T" => (1 << 40, false),
        _ => return Err(bad()),
    };
    if !decimal && number.contains('.') {
        return Err(bad());
    }
    scaled(number, scale).ok_or_else(bad)
}

/// A byte count for people: `1.50 GiB`, `512.0 MiB`, `17 B`.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => {
            let tenths = rounded(bytes, 10, KIB);
            format!("{}.{} KiB", tenths / 10, tenths % 10)
        }
        MIB..GIB => {
            let tenths = rounded(bytes, 10, MIB);
            format!("{}.{} MiB", tenths / 10, tenths % 10)
        }
        _ => {
            let hundredths = rounded(bytes, 100, GIB);
            format!("{}.{:02} GiB", hundredths / 100, hundredths % 100)
        }
    }
}

/// `bytes * parts / unit`, halves to even, as decimal formatting of the quotient rounds it: in integers, which takes a
/// tenth of the time and is right above 2^53 bytes too.
fn rounded(bytes: u64, parts: u64, unit: u64) -> u128 {
    let (scaled, unit) = (u128::from(bytes) * u128::from(parts), u128::from(unit));
    let (whole, twice) = (scaled / unit, scaled % unit * 2);
    let up = twice > unit || (twice == unit && !whole.is_multiple_of(2));
    whole + u128::from(up)
}

/// A byte count in GiB, for fields and tables that are in that unit.
#[expect(clippy::cast_precision_loss, reason = "for display")]
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

/// An integer with thousands separators: `1,048,576`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The number and the unit behind it, both trimmed.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// `number * scale`, rounded down, in integers; at most nine decimals are read.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let number: String = number.chars().filter(|&c| c != '_').collect();
    let (whole, fraction) = number.split_once('.').unwrap_or((number.as_str(), ""));
    if whole.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let numerator = whole
        .checked_mul(denominator)?
        .checked_add(fraction)?
        .checked_mul(u128::from(scale))?;
    u64::try_from(numerator / denominator).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn binary_and_decimal_units_are_told_apart() {
        assert_eq!(parse_bytes("24GiB").unwrap(), 25_769_803_776);
        assert_eq!(parse_bytes("24gb").unwrap(), 24_000_000_000);
        assert!(parse_bytes("24G").unwrap_err().to_string().contains("ambiguous"));
    }

    proptest! {
        #[test]
        fn sizes_for_people_round_as_decimal_formatting_does(bytes in 0_u64..1 << 53, step in 0_u32..40) {
            // Also numbers with few bits, among which the halves are.
            for bytes in [bytes, bytes >> step << step] {
                #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
                let exact = bytes as f64;
                #[expect(clippy::cast_precision_loss, reason = "a power of two")]
                let expected = match bytes {
                    0..KIB => format!("{bytes} B"),
                    KIB..MIB => format!("{:.1} KiB", exact / KIB as f64),
                    MIB..GIB => format!("{:.1} MiB", exact / MIB as f64),
                    _ => format!("{:.2} GiB", exact / GIB as f64),
                };
                prop_assert_eq!(human_bytes(bytes), expected);
            }
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_text_in_the_message() {
        for text in [
            "",
            "GiB",
            "1..5GiB",
            ".5GiB",
            "1e9B",
            "99999999999999999999GiB",
            "NaNGiB",
            "1 potato",
        ] {
            let e = parse_bytes(text).unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        }
        for text in ["", "-1", "1.5", "1.5K", "k", "18446744073709551616", "1x"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    proptest! {
        #[test]
        fn whole_numbers_survive_every_unit(n in 0_u64..1_000_000) {
            prop_assert_eq!(parse_bytes(&format!("{n}GiB")).unwrap(), n * GIB);
            prop_assert_eq!(parse_count(&n.to_string()).unwrap(), n);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,24}") {
            let _ = parse_bytes(&text);
            let _ = parse_count(&text);
        }
    }
}
