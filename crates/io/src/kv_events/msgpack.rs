//! Reads msgpack values (<https://github.com/msgpack/msgpack/blob/master/spec.md>), borrowed, with limits.

use kvwise_core::{Error, Result};

/// Deepest nesting that is read.
const MAX_DEPTH: u32 = 32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `nil`.
    Nil,
    /// A boolean.
    Bool(bool),
    /// An integer of any width and sign.
    Int(i128),
    /// A float of any width.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes; text that is not UTF-8; the payload of an extension.
    Bytes(&'a [u8]),
    /// An array.
    Array(Vec<Value<'a>>),
    /// A map, in its order.
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// An integer.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// A number as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(f) => Some(*f),
            Self::Int(i) => Some(*i as f64),
            _ => None,
        }
    }

    /// The value of a key of a map.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        match self {
            Self::Map(pairs) => pairs
                .iter()
                .find(|(k, _)| k.as_str() == Some(key))
                .map(|(_, v)| v),
            _ => None,
        }
    }
}

/// Reads one value that fills `bytes`.
///
/// # Errors
/// If the bytes end early, go on after the value, or nest too deeply.
pub fn read(bytes: &[u8]) -> Result<Value<'_>> {
    let mut reader = Reader { rest: bytes };
    let value = reader.value(0)?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(Error::input(format!(
            "msgpack: {} bytes after the value",
            reader.rest.len()
        )))
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(Error::input("msgpack: the data ends in the middle of a value"));
        };
        self.rest = tail;
        Ok(head)
    }

    fn unsigned(&mut self, bytes: usize) -> Result<u64> {
        Ok(self.take(bytes)?.iter().fold(0, |v, b| v << 8 | u64::from(*b)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize> {
        let n = self.unsigned(bytes)?;
        usize::try_from(n).map_err(|_| Error::overflow("msgpack: a length"))
    }

    fn signed(&mut self, bytes: usize) -> Result<i128> {
        let shift = 64 - 8 * u32::try_from(bytes).unwrap_or(8);
        Ok(i128::from(
            (self.unsigned(bytes)? << shift).cast_signed() >> shift,
        ))
    }

    fn value(&mut self, depth: u32) -> Result<Value<'a>> {
        if depth > MAX_DEPTH {
            return Err(Error::input("msgpack: values nested too deeply"));
        }
        let tag = self.unsigned(1)?;
        Ok(match tag {
            0x00..=0x7f => Value::Int(i128::from(tag)),
            0x80..=0x8f => self.map(usize::try_from(tag & 0x0f).unwrap_or(0), depth)?,
            0x90..=0x9f => self.array(usize::try_from(tag & 0x0f).unwrap_or(0), depth)?,
            0xa0..=0xbf => self.text(usize::try_from(tag & 0x1f).unwrap_or(0))?,
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let n = self.length(1 << (tag - 0xc4))?;
                Value::Bytes(self.take(n)?)
            }
            0xc7..=0xc9 => {
                let n = self.length(1 << (tag - 0xc7))?;
                self.take(1)?;
                Value::Bytes(self.take(n)?)
            }
            0xca => {
                let bits = u32::try_from(self.unsigned(4)?).unwrap_or(0);
                Value::Float(f64::from(f32::from_bits(bits)))
            }
            0xcb => Value::Float(f64::from_bits(self.unsigned(8)?)),
            0xcc..=0xcf => Value::Int(i128::from(self.unsigned(1 << (tag - 0xcc))?)),
            0xd0..=0xd3 => Value::Int(self.signed(1 << (tag - 0xd0))?),
            0xd4..=0xd8 => {
                self.take(1)?;
                Value::Bytes(self.take(1 << (tag - 0xd4))?)
            }
            0xd9..=0xdb => {
                let n = self.length(1 << (tag - 0xd9))?;
                self.text(n)?
            }
            0xdc | 0xdd => {
                let n = self.length(if tag == 0xdc { 2 } else { 4 })?;
                self.array(n, depth)?
            }
            0xde | 0xdf => {
                let n = self.length(if tag == 0xde { 2 } else { 4 })?;
                self.map(n, depth)?
            }
            0xe0..=0xff => Value::Int(i128::from(tag) - 256),
            _ => return Err(Error::input(format!("msgpack: unknown tag {tag:#x}"))),
        })
    }

    fn text(&mut self, n: usize) -> Result<Value<'a>> {
        let bytes = self.take(n)?;
        Ok(std::str::from_utf8(bytes).map_or(Value::Bytes(bytes), Value::Str))
    }

    fn array(&mut self, n: usize, depth: u32) -> Result<Value<'a>> {
        // an element is a byte at least: a length beyond the data must not allocate
        let mut items = Vec::with_capacity(n.min(self.rest.len()));
        for _ in 0..n {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, n: usize, depth: u32) -> Result<Value<'a>> {
        let mut pairs = Vec::with_capacity(n.min(self.rest.len()));
        for _ in 0..n {
            pairs.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(Value::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_value_is_read() {
        // python: msgpack.packb([1, -1, 200, -200, 70000, 2**63, -2**63, 1.5, "a", b"b", None, True, {"k": [2]}])
        let bytes = b"\x9d\x01\xff\xcc\xc8\xd1\xff\x38\xce\x00\x01\x11\x70\xcf\x80\x00\x00\x00\x00\x00\x00\x00\
                      \xd3\x80\x00\x00\x00\x00\x00\x00\x00\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xa1a\xc4\x01b\xc0\xc3\
                      \x81\xa1k\x91\x02";
        let value = read(bytes).expect("valid");
        let items = value.as_array().expect("an array");
        let ints: Vec<i128> = items.iter().take(7).filter_map(Value::as_int).collect();
        assert_eq!(ints, [1, -1, 200, -200, 70_000, 1 << 63, -(1_i128 << 63)]);
        assert_eq!(items[7], Value::Float(1.5));
        assert_eq!(items[8], Value::Str("a"));
        assert_eq!(items[9], Value::Bytes(b"b"));
        assert_eq!(items[10], Value::Nil);
        assert_eq!(items[11], Value::Bool(true));
        assert_eq!(items[12].get("k"), Some(&Value::Array(vec![Value::Int(2)])));
    }

    #[test]
    fn huge_lengths_and_deep_nesting_are_refused_without_allocating() {
        assert!(read(b"\xdd\xff\xff\xff\xff").is_err());
        assert!(read(b"\xc6\xff\xff\xff\xff").is_err());
        assert!(read(&[0x91; 100]).is_err());
        assert!(read(b"\x01\x01").is_err());
        assert!(read(b"").is_err());
        assert!(read(b"\xc1").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
