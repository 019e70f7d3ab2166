//! Arrays of integers: nearly all of a trace file.
//!
//! Budget: 2 ns for a number of up to eight digits (eight bytes are looked at together); arrays that begin like the one
//! before, as the requests of a conversation do, cost a comparison of memory for the part they repeat ([`Repeat`]).

use super::{JsonError, Scan, Scanner};

/// The array read before, to recognise what the next one repeats.
#[derive(Debug, Default)]
pub struct Repeat<'a> {
    /// Its text, from behind the opening bracket on.
    text: &'a [u8],
    /// Where each number's text ends in `text`, its comma (and a blank) included.
    ends: Vec<u32>,
    values: Vec<u64>,
}

impl Repeat<'_> {
    /// The numbers read last.
    pub fn values(&self) -> &[u64] {
        &self.values
    }
}

impl<'a> Scanner<'a> {
    /// Reads an array of integers from 0 to 2^64 - 1, appending to `out`.
    ///
    /// # Errors
    /// As [`Scanner::array`] and [`Scanner::uint`].
    pub fn uints(&mut self, out: &mut Vec<u64>) -> Scan<()> {
        if self.array_opens()? {
            self.integers(|value, _| {
                out.push(value);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads an array of integers from 0 to 2^32 - 1, appending to `out`.
    ///
    /// # Errors
    /// As [`Scanner::array`] and [`Scanner::uint`], and for larger numbers.
    pub fn uints32(&mut self, out: &mut Vec<u32>) -> Scan<()> {
        if self.array_opens()? {
            self.integers(|value, at| {
                let small = u32::try_from(value).map_err(|_| JsonError {
                    offset: at,
                    what: format!("the token id {value} is larger than 32 bits hold").into(),
                })?;
                out.push(small);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// As [`Scanner::uints`], but what the array has in common with the one that `repeat` holds is copied instead of
    /// read; `repeat` then holds this one. Answers how many numbers were copied.
    ///
    /// # Errors
    /// As [`Scanner::uints`]; `repeat` then holds nothing.
    pub fn uints_repeating(&mut self, repeat: &mut Repeat<'a>) -> Scan<usize> {
        let text = std::mem::take(&mut repeat.text);
        if !self.array_opens()? {
            repeat.values.clear();
            repeat.ends.clear();
            return Ok(0);
        }
        let from = self.at;
        let common = common_prefix(text, &self.bytes[from..]);
        // a number is the same only if what ends it is the same too
        let same = repeat.ends.partition_point(|&end| end as usize <= common);
        repeat.values.truncate(same);
        repeat.ends.truncate(same);
        self.at += repeat.ends.last().map_or(0, |&end| end as usize);
        let Repeat { ends, values, .. } = repeat;
        let read = self.integers(|value, at| {
            values.push(value);
            // where this number begins, the one before has ended; the last one copied has its end already
            if ends.len() + 1 < values.len() {
                ends.push(u32::try_from(at - from).unwrap_or(u32::MAX));
            }
            Ok(())
        });
        match read {
            Ok(()) => {
                repeat.text = &self.bytes[from..self.at];
                Ok(same)
            }
            Err(e) => {
                repeat.values.clear();
                repeat.ends.clear();
                Err(e)
            }
        }
    }

    /// Takes the opening bracket; `false` if the array is empty, which is then taken whole.
    fn array_opens(&mut self) -> Scan<bool> {
        self.expect(b'[', "expected an array")?;
        self.enter()?;
        if self.peek() == Some(b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes an integer of at most seven digits, if one stands here and is not the start of a longer number.
    #[inline]
    pub(super) fn short_uint(&mut self) -> Option<u32> {
        let (value, digits, _) = short_integer(self.bytes, self.at)?;
        if matches!(self.bytes.get(self.at + digits), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        self.at += digits;
        u32::try_from(value).ok()
    }

    /// Reads integers up to the closing bracket; `item` hears each value and where it begins.
    #[inline]
    fn integers(&mut self, mut item: impl FnMut(u64, usize) -> Scan<()>) -> Scan<()> {
        loop {
            while let Some((value, digits, next)) = short_integer(self.bytes, self.at) {
                let after = self.at + digits;
                // what most writers put between two numbers, seen without looking into memory again
                if next == u64::from(u16::from_le_bytes(*b", ")) {
                    item(value, self.at)?;
                    self.at = after + 2;
                    continue;
                }
                match self.bytes.get(after) {
                    Some(b',') => {
                        item(value, self.at)?;
                        let blank = self.bytes.get(after + 1) == Some(&b' ');
                        self.at = after + 1 + usize::from(blank);
                    }
                    Some(b']') => {
                        item(value, self.at)?;
                        self.at = after + 1;
                        self.depth -= 1;
                        return Ok(());
                    }
                    _ => break,
                }
            }
            // any other spelling: more digits, more white space, the end of the text, errors
            self.peek();
            let at = self.at;
            let value = self.uint()?;
            item(value, at)?;
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.peek();
                }
                Some(b']') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(());
                }
                _ => return self.fail("expected a comma or the end of the array"),
            }
        }
    }
}

/// How many bytes at the start of `text` are ASCII and neither end nor escape a JSON string, counted in whole words.
#[inline]
pub(super) fn plain_text(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, _) = text.as_chunks::<8>();
    let mut plain = 0;
    for &word in words {
        let word = u64::from_le_bytes(word);
        // the highest bit of bytes that are zero; above the first such byte other bytes may seem so too
        let zeros = |x: u64| x.wrapping_sub(ONES) & !x;
        let control = word.wrapping_sub(0x20 * ONES) & !word;
        let stops = (word
            | control
            | zeros(word ^ (u64::from(b'"') * ONES))
            | zeros(word ^ (u64::from(b'\\') * ONES)))
            & HIGH;
        if stops != 0 {
            return plain + stops.trailing_zeros() as usize / 8;
        }
        plain += 8;
    }
    plain
}

/// The integer of one to seven digits at `at`, how many digits it has, and up to two bytes that follow it (as a little
/// endian number; fewer behind more than six digits). `None` for everything else that may be there.
#[inline]
fn short_integer(bytes: &[u8], at: usize) -> Option<(u64, usize, u64)> {
    let chunk: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
    let word = u64::from_le_bytes(chunk);
    // digits become 0 to 9, everything else 10 or more
    let values = word ^ 0x3030_3030_3030_3030;
    // the highest bit of each byte that is 10 or more; a carry only reaches bytes behind the first of them
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
    let digits = others.trailing_zeros() / 8;
    if digits == 0 || digits == 8 || (digits > 1 && chunk[0] == b'0') {
        return None;
    }
    // zeros in front, so that eight digits are there
    let padded = values << (64 - 8 * digits);
    let pairs = padded.wrapping_mul(10).wrapping_add(padded >> 8);
    let quads = (pairs & 0x0000_00ff_0000_00ff)
        .wrapping_mul(0x000f_4240_0000_0064)
        .wrapping_add(((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001));
    Some((quads >> 32, digits as usize, (word >> (8 * digits)) & 0xffff))
}

/// How many bytes both start with.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 64;
    let whole = a
        .chunks_exact(STEP)
        .zip(b.chunks_exact(STEP))
        .take_while(|(x, y)| x == y)
        .count()
        * STEP;
    whole
        + a[whole..]
            .iter()
            .zip(&b[whole..])
            .take_while(|(x, y)| x == y)
            .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_ends_at_every_byte_that_a_string_may_not_hold_as_it_is() {
        for byte in 0..=255u8 {
            for at in 0..8 {
                let mut text = *b"ascii !~";
                text[at] = byte;
                let stops = !(0x20..0x80).contains(&byte) || matches!(byte, b'"' | b'\\');
                let expected = if stops { at } else { 8 };
                assert_eq!(plain_text(&text), expected, "{byte} at {at}");
            }
        }
        assert_eq!(plain_text(b"too few"), 0);
    }

    #[test]
    fn short_integers_have_their_value_and_length() {
        for (text, expected) in [
            ("0,......", Some((0, 1))),
            ("7]......", Some((7, 1))),
            ("1234567,", Some((1_234_567, 7))),
            ("9999999 ", Some((9_999_999, 7))),
            ("90,\u{ff}\u{ff}....", Some((90, 2))),
            ("12345678", None), // may go on
            ("01,.....", None), // not JSON
            (",1......", None),
            ("-1,.....", None),
            ("123,", None), // the end of the text is near
        ] {
            let found = short_integer(text.as_bytes(), 0).map(|(value, digits, _)| (value, digits));
            assert_eq!(found, expected, "{text}");
        }
    }

    proptest! {
        /// Property: arrays read one after the other, each beginning like the one before, have the values that serde_json
        /// gives them, whatever their white space and wherever they are damaged.
        #[test]
        fn repeating_arrays_have_the_values_of_serde_json(
            arrays in prop::collection::vec(
                (prop::collection::vec(prop_oneof![0u64..30, any::<u64>(), 999_990u64..100_000_010], 0..20), 0usize..20),
                1..6,
            ),
            separator in prop_oneof![Just(","), Just(", "), Just(" ,\t"), Just(",  ")],
            damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut before: Vec<u64> = Vec::new();
            let mut texts: Vec<Vec<u8>> = Vec::new();
            for (tail, keep) in arrays {
                before.truncate(keep);
                before.extend(tail);
                let numbers: Vec<String> = before.iter().map(u64::to_string).collect();
                texts.push(format!("[{}]", numbers.join(separator)).into_bytes());
            }
            if let (Some((at, byte)), Some(last)) = (damage, texts.last_mut()) {
                let at = at.index(last.len());
                last[at] = byte;
            }
            let mut repeat = Repeat::default();
            for text in &texts {
                let mut s = Scanner::new(text);
                let read = s
                    .uints_repeating(&mut repeat)
                    .ok()
                    .filter(|_| s.end().is_ok())
                    .map(|_| repeat.values().to_vec());
                let expected = serde_json::from_slice::<Vec<u64>>(text).ok();
                prop_assert_eq!(read, expected, "{}", String::from_utf8_lossy(text));
            }
        }
    }
}
