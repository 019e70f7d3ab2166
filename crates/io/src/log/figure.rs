//! Numbers as logs print them: rounded, with thousands separators, in GiB that some engines call GB.

use serde::Serialize;

/// A size that a log prints: its bytes, and how coarsely it was rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// The printed number in bytes, rounded down; may be negative (vLLM prints differences).
    pub bytes: i64,
    /// One unit of the last printed digit, in bytes, rounded up; 1 where the number is exact.
    pub step_bytes: u64,
}

impl Figure {
    /// A number of bytes that is known exactly.
    pub const fn exact(bytes: i64) -> Self {
        Self { bytes, step_bytes: 1 }
    }

    /// Smallest number of bytes that prints like this (half a step below), never negative.
    pub fn low_bytes(self) -> u64 {
        self.shifted(-self.half())
    }

    /// Largest number of bytes that prints like this (half a step above), never negative.
    pub fn high_bytes(self) -> u64 {
        self.shifted(self.half())
    }

    /// The bytes, zero if the log prints a negative number.
    pub fn at_least_zero(self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(0)
    }

    /// Difference of two figures; the coarser rounding of both is kept, added up.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            step_bytes: self.step_bytes.saturating_add(other.step_bytes),
        }
    }

    fn half(self) -> i64 {
        if self.step_bytes <= 1 {
            0
        } else {
            i64::try_from(self.step_bytes.div_ceil(2)).unwrap_or(i64::MAX)
        }
    }

    fn shifted(self, by: i64) -> u64 {
        u64::try_from(self.bytes.saturating_add(by)).unwrap_or(0)
    }
}

/// The text behind a phrase, if the line has it.
pub fn after<'a>(text: &'a str, phrase: &str) -> Option<&'a str> {
    text.find(phrase).map(|at| &text[at + phrase.len()..])
}

/// A decimal number at the beginning of the text (after blanks and opening brackets), and what follows it.
///
/// At most nine decimals are kept. The number is `mantissa / 10^decimals`.
pub fn decimal(text: &str) -> Option<(i128, u32, &str)> {
    let text = text.trim_start_matches([' ', '\t', '(', ':', '=']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let bytes = digits.as_bytes();
    let (mut mantissa, mut decimals, mut seen, mut at, mut point) = (0_i128, 0_u32, 0_u32, 0, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'0'..=b'9' => {
                seen += 1;
                if seen > 25 {
                    return None;
                }
                if point && decimals == 9 {
                    at += 1;
                    continue;
                }
                mantissa = mantissa * 10 + i128::from(byte - b'0');
                decimals += u32::from(point);
            }
            // A separator or point counts only between digits; a full stop ends the sentence.
            b',' if !point && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) && seen > 0 => {}
            b'.' if !point && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) && seen > 0 => point = true,
            _ => break,
        }
        at += 1;
    }
    (seen > 0).then(|| {
        (
            if negative { -mantissa } else { mantissa },
            decimals,
            &digits[at..],
        )
    })
}

/// A whole number (`1,952`, `65536`) and what follows it.
pub fn count(text: &str) -> Option<(u64, &str)> {
    let (mantissa, decimals, rest) = decimal(text)?;
    if decimals > 0 {
        return None;
    }
    Some((u64::try_from(mantissa).ok()?, rest))
}

/// A plain number like a utilisation or a concurrency, and what follows it.
pub fn number(text: &str) -> Option<(f64, &str)> {
    let (mantissa, decimals, rest) = decimal(text)?;
    // As decimal text, so that 0.92 becomes the same float as the engine's.
    let sign = if mantissa < 0 { "-" } else { "" };
    let digits = mantissa.unsigned_abs().to_string();
    let places = usize::try_from(decimals).ok()?;
    let padded = format!("{digits:0>width$}", width = places + 1);
    let (whole, fraction) = padded.split_at(padded.len() - places);
    let value: f64 = format!("{sign}{whole}.{fraction}0").parse().ok()?;
    Some((value, rest))
}

/// A size: a number, perhaps with a unit behind it (`GiB`, `GB` and `MiB`, `MB` are all powers of two in these logs);
/// without one it is taken in `unit_bytes`.
pub fn size(text: &str, unit_bytes: u64) -> Option<(Figure, &str)> {
    let (mantissa, decimals, rest) = decimal(text)?;
    let trimmed = rest.trim_start();
    let (unit, rest) = [
        ("GiB", 1_u64 << 30),
        ("GB", 1 << 30),
        ("MiB", 1 << 20),
        ("MB", 1 << 20),
        ("KiB", 1 << 10),
        ("kB", 1 << 10),
        ("bytes", 1),
    ]
    .iter()
    .find_map(|&(name, bytes)| trimmed.strip_prefix(name).map(|rest| (bytes, rest)))
    .unwrap_or((unit_bytes, rest));
    let scale = 10_i128.checked_pow(decimals)?;
    let bytes = mantissa.checked_mul(i128::from(unit))?.div_euclid(scale);
    let step = i128::from(unit).div_euclid(scale).max(1);
    Some((
        Figure {
            bytes: i64::try_from(bytes).ok()?,
            step_bytes: u64::try_from(step).ok()?,
        },
        rest,
    ))
}

/// A size in GiB where the log names no unit.
pub fn gib(text: &str) -> Option<(Figure, &str)> {
    size(text, 1 << 30)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rounded_size_knows_what_it_may_have_been() {
        let (figure, rest) = gib(" 14.99 GiB and 3.5 seconds").unwrap();
        assert_eq!(figure.bytes, 16_095_389_941);
        assert_eq!(figure.step_bytes, 10_737_418);
        assert!(figure.low_bytes() < 16_095_389_941 && figure.high_bytes() > 16_095_389_941);
        assert_eq!(rest, " and 3.5 seconds");
        assert_eq!(gib("14.9888 GB").unwrap().0.step_bytes, 107_374);
        assert_eq!(gib("-3.58 GiB").unwrap().0.at_least_zero(), 0);
    }

    #[test]
    fn separators_count_only_between_digits() {
        assert_eq!(count("2,925,232 tokens").unwrap(), (2_925_232, " tokens"));
        assert_eq!(count("1,952, # CPU blocks").unwrap(), (1952, ", # CPU blocks"));
        assert!((number("37696). Try").unwrap().0 - 37696.0).abs() < 1e-9);
        let (share, rest) = number("0.9826.").unwrap();
        assert!((share - 0.9826).abs() < 1e-12 && rest == ".");
        assert!(count("1.5").is_none());
        assert!(count("tokens").is_none());
    }

    #[test]
    fn absurd_numbers_are_not_read_instead_of_wrapping() {
        assert!(count(&"9".repeat(30)).is_none());
        assert!(gib("99999999999999999999").is_none());
        assert!(count("99999999999999999999").is_none());
    }

    proptest! {
        #[test]
        fn a_printed_size_contains_what_was_printed(bytes in 0_u64..1 << 42, places in 0_usize..5) {
            let text = format!("{:.places$} GiB", bytes as f64 / 1_073_741_824.0);
            let (figure, _) = gib(&text).unwrap();
            prop_assert!(figure.low_bytes() <= bytes + 1 && bytes <= figure.high_bytes() + 1, "{text} {figure:?}");
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,60}") {
            let _ = (decimal(&text), count(&text), number(&text), gib(&text));
        }
    }
}
