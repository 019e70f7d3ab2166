//! What people put around a GPU's name: how many there are (`8xH200`), and how much memory it has (`RTX 4090 24GB`).

use super::Gpu;
use crate::units::GIB;

/// Nobody has more in one deployment; a larger number is a part of the name.
const MOST_GPUS: u32 = 4096;

/// The signs that stand between a number and what it counts.
const TIMES: [char; 4] = ['x', 'X', '×', '*'];

/// The number before a name and the name: `8xH200` and `8 x H200` are 8 and `H200`.
pub(super) fn counted_before(name: &str) -> Option<(u32, &str)> {
    let name = name.trim();
    let rest = name.trim_start_matches(|c: char| c.is_ascii_digit());
    let count = count(&name[..name.len() - rest.len()])?;
    let rest = rest.trim_start().strip_prefix(TIMES)?.trim_start();
    (!rest.is_empty()).then_some((count, rest))
}

/// The number after a name and the name: `H200x8` and `H200 x 8` are 8 and `H200`. Names of GPUs may end so by
/// themselves (`rtx 4090` is not 4090 times `rt`), so that the name has to be known.
pub(super) fn counted_after(name: &str) -> Option<(u32, &str)> {
    let name = name.trim();
    let rest = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let count = count(&name[rest.len()..])?;
    let rest = rest.trim_end().strip_suffix(TIMES)?.trim_end();
    (!rest.is_empty()).then_some((count, rest))
}

fn count(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|n| (1..=MOST_GPUS).contains(n))
}

/// The name and the gigabytes after it: `RTX 4090 24GB` is `RTX 4090` and 24.
pub(super) fn with_memory(name: &str) -> Option<(&str, u32)> {
    let lower = name.trim().to_ascii_lowercase();
    let unit = ["gib", "gb", "g"]
        .into_iter()
        .find(|unit| lower.ends_with(unit))?;
    let name = name.trim();
    let figure = name[..name.len() - unit.len()].trim_end();
    let rest = figure.trim_end_matches(|c: char| c.is_ascii_digit());
    let gigabytes = figure[rest.len()..].parse().ok()?;
    let rest = rest.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '_' | '(' | ','));
    (!rest.is_empty()).then_some((rest, gigabytes))
}

/// Whether a card sold with so many gigabytes can be this one. The driver reports less than the box says: error
/// correction takes a sixteenth on cards without HBM, firmware up to 7 % (B300: 268.6 GiB of 288).
pub(super) fn is_sold_with(gpu: &Gpu, gigabytes: u32) -> bool {
    let gib = gpu.memory_bytes as f64 / GIB as f64;
    let sold = f64::from(gigabytes);
    sold >= gib.floor() && sold <= gib * 1.08 + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_before_and_after_names_are_told_from_the_names() {
        for name in ["8xH200", "8 x H200", " 8X H200", "8×H200", "8 * H200"] {
            assert_eq!(counted_before(name), Some((8, "H200")), "{name}");
        }
        for name in ["H200x8", "H200 x 8", "H200 ×8"] {
            assert_eq!(counted_after(name), Some((8, "H200")), "{name}");
        }
        for name in ["H200", "4090", "0xH200", "8x", "99999xH200", "xH200", ""] {
            assert_eq!(counted_before(name), None, "{name}");
        }
        for name in ["mi300x", "H200x0", "x8", ""] {
            assert_eq!(counted_after(name), None, "{name}");
        }
    }

    #[test]
    fn memory_after_a_name_is_told_from_the_name() {
        for name in [
            "RTX 4090 24GB",
            "RTX 4090 24 GB",
            "RTX 4090-24gb",
            "RTX 4090 24GiB",
            "RTX 4090 (24G",
        ] {
            assert_eq!(with_memory(name), Some(("RTX 4090", 24)), "{name}");
        }
        for name in ["RTX 4090", "24GB", "GB", "RTX GB", "", "é", "x99999999999999GB"] {
            assert_eq!(with_memory(name), None, "{name}");
        }
    }
}
