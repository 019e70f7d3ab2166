//! A pull scanner for the JSON of trace files.
//!
//! Parsing is most of the cost of reading a trace (a line of 25 ids costs more to parse than to replay), and trace
//! lines are almost only integers, so this scanner reads integers straight from bytes, without a tree of values.
//! It accepts exactly the JSON that `serde_json` accepts (a property test holds it to that), at most
//! [`MAX_DEPTH`] levels deep.

mod integers;

use std::borrow::Cow;
use std::fmt;

pub use integers::Repeat;

/// Deepest nesting that is accepted, as in `serde_json`.
pub const MAX_DEPTH: u32 = 127;

/// What is wrong with the JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    /// Byte offset in the scanned slice.
    pub offset: usize,
    /// What was expected or is not allowed.
    pub what: Cow<'static, str>,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {})", self.what, self.offset + 1)
    }
}

/// Shorthand of this module.
pub type Scan<T> = Result<T, JsonError>;

/// A position in a JSON text.
#[derive(Debug, Clone)]
pub struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            depth: 0,
        }
    }

    /// The byte offset reached.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// An error at this position.
    ///
    /// # Errors
    /// Always.
    pub fn fail<T>(&self, what: impl Into<Cow<'static, str>>) -> Scan<T> {
        Err(JsonError {
            offset: self.at,
            what: what.into(),
        })
    }

    /// The next byte that is not white space, without taking it.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Scan<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.fail(what)
    }

    /// Only white space may follow.
    ///
    /// # Errors
    /// If something else follows.
    pub fn end(&mut self) -> Scan<()> {
        if self.peek().is_none() {
            Ok(())
        } else {
            self.fail("unexpected text after the value")
        }
    }

    /// Reads an object, calling `field` with the scanner before each value; `field` must take the value.
    ///
    /// # Errors
    /// If no well-formed object is here, or `field` fails.
    pub fn object(&mut self, mut field: impl FnMut(&str, &mut Self) -> Scan<()>) -> Scan<()> {
        self.members(|s| {
            let key = s.string()?;
            s.colon()?;
            field(&key, s)
        })
    }

    /// As [`Scanner::object`] for keys that are compared with known ones: they come as bytes, which spares those of plain
    /// ASCII a check that they are UTF-8.
    ///
    /// # Errors
    /// As [`Scanner::object`].
    pub fn object_of(&mut self, mut field: impl FnMut(&[u8], &mut Self) -> Scan<()>) -> Scan<()> {
        self.members(|s| {
            let bytes = s.bytes;
            let start = s.at + 1;
            let end = start + integers::plain_text(bytes.get(start..).unwrap_or_default());
            if bytes.get(end) == Some(&b'"') {
                s.at = end + 1;
                s.colon()?;
                return field(&bytes[start..end], s);
            }
            let key = s.string()?;
            s.colon()?;
            field(key.as_bytes(), s)
        })
    }

    fn colon(&mut self) -> Scan<()> {
        self.expect(b':', "expected a colon after the key")?;
        self.peek();
        Ok(())
    }

    /// Reads an object, calling `member` at the opening quote of each key; it must take key and value.
    fn members(&mut self, mut member: impl FnMut(&mut Self) -> Scan<()>) -> Scan<()> {
        self.expect(b'{', "expected an object")?;
        self.enter()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                if self.peek() != Some(b'"') {
                    return self.fail("expected a key in quotes");
                }
                member(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b'}') => {
                        self.at += 1;
                        break;
                    }
                    _ => return self.fail("expected a comma or the end of the object"),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array, calling `item` with the scanner before each value; `item` must take the value.
    ///
    /// # Errors
    /// If no well-formed array is here, or `item` fails.
    pub fn array(&mut self, mut item: impl FnMut(&mut Self) -> Scan<()>) -> Scan<()> {
        self.expect(b'[', "expected an array")?;
        self.enter()?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                self.peek();
                item(self)?;
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => {
                        self.at += 1;
                        break;
                    }
                    _ => return self.fail("expected a comma or the end of the array"),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn enter(&mut self) -> Scan<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.fail("nested too deeply")
        } else {
            Ok(())
        }
    }

    /// Reads an integer from 0 to 2^64 - 1.
    ///
    /// # Errors
    /// If the value is anything else: negative, fractional, too large, quoted.
    #[inline]
    pub fn uint(&mut self) -> Scan<u64> {
        self.peek();
        if let Some(value) = self.short_uint() {
            return Ok(u64::from(value));
        }
        let start = self.at;
        let mut value = 0u64;
        let mut at = start;
        while let Some(digit) = self
            .bytes
            .get(at)
            .map(|b| b.wrapping_sub(b'0'))
            .filter(|&d| d <= 9)
        {
            // 19 digits always fit; the 20th is checked below
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        let digits = &self.bytes[start..at];
        if digits.is_empty() || matches!(self.bytes.get(at), Some(b'.' | b'e' | b'E')) {
            return self.fail("expected an integer of 0 or more");
        }
        if digits.len() > 1 && digits[0] == b'0' {
            return self.fail("a number may not start with 0");
        }
        if digits.len() > 19 {
            let text = std::str::from_utf8(digits).unwrap_or_default();
            match text.parse() {
                Ok(exact) => value = exact,
                Err(_) => {
                    return self.fail(format!(
                        "the number {} is larger than 64 bits hold",
                        shorten(text)
                    ));
                }
            }
        }
        self.at = at;
        Ok(value)
    }

    /// Reads an integer that fits `i64`.
    ///
    /// # Errors
    /// If the value is anything else.
    pub fn int(&mut self) -> Scan<i64> {
        let negative = self.peek() == Some(b'-');
        if negative {
            self.at += 1;
            if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.fail("expected digits after the minus sign");
            }
        }
        let size = self.uint()?;
        let value = if negative {
            0i64.checked_sub_unsigned(size)
        } else {
            i64::try_from(size).ok()
        };
        value.map_or_else(|| self.fail("the number is larger than 64 bits hold"), Ok)
    }

    /// Reads any JSON number.
    ///
    /// # Errors
    /// If no number is here. One beyond the range of `f64` is an error too.
    pub fn number(&mut self) -> Scan<f64> {
        self.peek();
        let start = self.at;
        if let Some(value) = self.short_uint() {
            return Ok(f64::from(value));
        }
        let text = self.number_text()?;
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(JsonError {
                offset: start,
                what: format!("the number {} is out of range", shorten(text)).into(),
            }),
        }
    }

    fn number_text(&mut self) -> Scan<&'a str> {
        let start = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.fail("expected a number"),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        if self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            return self.fail("a number may not start with 0");
        }
        Ok(std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default())
    }

    fn digits(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Scan<()> {
        if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            return self.fail("expected a digit");
        }
        self.digits();
        Ok(())
    }

    /// Reads a string.
    ///
    /// # Errors
    /// If no well-formed string is here.
    pub fn string(&mut self) -> Scan<Cow<'a, str>> {
        self.expect(b'"', "expected a string")?;
        let start = self.at;
        let mut owned: Option<Vec<u8>> = None;
        let mut copied = start;
        loop {
            self.at += integers::plain_text(&self.bytes[self.at..]);
            match self.bytes.get(self.at) {
                None => return self.fail("the string does not end"),
                Some(b'"') => break,
                Some(b'\\') => {
                    let text = owned.get_or_insert_with(Vec::new);
                    text.extend_from_slice(&self.bytes[copied..self.at]);
                    self.at += 1;
                    let mut buffer = [0; 4];
                    let c = self.escape()?;
                    text.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
                    copied = self.at;
                }
                Some(0..=0x1f) => return self.fail("a control character must be escaped in a string"),
                Some(_) => self.at += 1,
            }
        }
        let rest = &self.bytes[copied..self.at];
        let invalid = JsonError {
            offset: start,
            what: "the string is not UTF-8".into(),
        };
        self.at += 1;
        match owned {
            None => std::str::from_utf8(rest).map(Cow::Borrowed).map_err(|_| invalid),
            Some(mut text) => {
                text.extend_from_slice(rest);
                String::from_utf8(text).map(Cow::Owned).map_err(|_| invalid)
            }
        }
    }

    fn escape(&mut self) -> Scan<char> {
        let Some(&byte) = self.bytes.get(self.at) else {
            return self.fail("the string does not end");
        };
        self.at += 1;
        Ok(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex4()?;
                let code = match high {
                    0xD800..0xDC00 => {
                        if !self.bytes[self.at..].starts_with(b"\\u") {
                            return self.fail("a lone surrogate in a string");
                        }
                        self.at += 2;
                        let low = self.hex4()?;
                        if !(0xDC00..0xE000).contains(&low) {
                            return self.fail("a lone surrogate in a string");
                        }
                        0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                    }
                    code => code,
                };
                return char::from_u32(code).map_or_else(|| self.fail("a lone surrogate in a string"), Ok);
            }
            _ => return self.fail("unknown escape in a string"),
        })
    }

    fn hex4(&mut self) -> Scan<u32> {
        let digits = self
            .bytes
            .get(self.at..self.at + 4)
            .filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let Some(text) = digits.and_then(|d| std::str::from_utf8(d).ok()) else {
            return self.fail("expected four hexadecimal digits");
        };
        self.at += 4;
        u32::from_str_radix(text, 16).or_else(|_| self.fail("expected four hexadecimal digits"))
    }

    /// Takes `null` if it is here.
    ///
    /// # Errors
    /// If the value starts like `null` but is not.
    pub fn null(&mut self) -> Scan<bool> {
        if self.peek() != Some(b'n') {
            return Ok(false);
        }
        self.word(b"null")?;
        Ok(true)
    }

    fn word(&mut self, word: &[u8]) -> Scan<()> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        self.fail("expected a value")
    }

    /// Takes any value, checking that it is well-formed.
    ///
    /// # Errors
    /// If it is not.
    pub fn skip(&mut self) -> Scan<()> {
        match self.peek() {
            Some(b'{') => self.object(|_, s| s.skip()),
            Some(b'[') => self.array(Self::skip),
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            _ => self.fail("expected a value"),
        }
    }

    /// Takes an object or array by counting brackets outside of strings; faster than [`Scanner::skip`], but what is
    /// inside is not checked. For values that are read from a clone of the scanner anyway.
    ///
    /// # Errors
    /// If the brackets do not close.
    pub fn skip_fast(&mut self) -> Scan<()> {
        if !matches!(self.peek(), Some(b'{' | b'[')) {
            return self.skip();
        }
        let mut open = 0u64;
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                b'{' | b'[' => open += 1,
                b'}' | b']' => open -= 1,
                b'"' => {
                    self.string()?;
                    continue;
                }
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return Ok(());
            }
        }
        self.fail("a bracket is not closed")
    }

    /// Takes any value and answers its text.
    ///
    /// # Errors
    /// If it is not well-formed.
    pub fn raw(&mut self) -> Scan<&'a str> {
        self.peek();
        let start = self.at;
        self.skip()?;
        std::str::from_utf8(&self.bytes[start..self.at]).map_err(|_| JsonError {
            offset: start,
            what: "the value is not UTF-8".into(),
        })
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(24) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
