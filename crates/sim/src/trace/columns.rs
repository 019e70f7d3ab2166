//! Columns of names (interned) and of texts.

use rustc_hash::FxHashMap;

/// Names by number: 0 is "none", the others count from 1 as they first appear.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NameTable {
    names: Vec<String>,
    numbers: FxHashMap<String, u32>,
}

impl NameTable {
    /// The number of `name`, given on first sight.
    ///
    /// # Panics
    /// At 2^32 different names.
    pub fn intern(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        self.names.push(name.to_owned());
        let number = u32::try_from(self.names.len()).expect("fewer than 2^32 names");
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The name behind a number; `None` for 0 and unknown numbers.
    pub fn name(&self, number: u32) -> Option<&str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.names.get(index).map(String::as_str)
    }

    /// How many names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// One optional name a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NameColumn {
    pub(crate) table: NameTable,
    /// Empty if no request has a name.
    pub(crate) numbers: Vec<u32>,
}

impl NameColumn {
    /// The name of entry `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.table.name(self.number(index))
    }

    /// The number of the name of entry `index`; 0 for none.
    pub fn number(&self, index: usize) -> u32 {
        self.numbers.get(index).copied().unwrap_or(0)
    }

    /// Whether no entry has a name.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The names by number.
    pub fn table(&self) -> &NameTable {
        &self.table
    }

    /// Appends the entry number `index` (all before it exist or have no name).
    pub(crate) fn push(&mut self, index: usize, name: Option<&str>) {
        match name {
            None if self.numbers.is_empty() => {}
            None => self.numbers.push(0),
            Some(name) => {
                let number = self.table.intern(name);
                self.numbers.resize(index, 0);
                self.numbers.push(number);
            }
        }
    }
}

/// Short texts in one string.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextColumn {
    text: String,
    ends: Vec<usize>,
}

impl TextColumn {
    /// The text of entry `index`; `None` past the end.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.text[start..end])
    }

    /// How many texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of the texts and of where each ends.
    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.text.len() + std::mem::size_of::<usize>() * self.ends.len()) as u64
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    pub(crate) fn select(&self, order: &[u32]) -> Self {
        let mut picked = Self::default();
        if !self.is_empty() {
            for &index in order {
                picked.push(self.get(index as usize).unwrap_or_default());
            }
        }
        picked
    }
}

/// Undoes the JSON escapes of a string's inside; a broken escape stays as it is.
pub(crate) fn unescape(inner: &str) -> String {
    if !inner.contains('\\') {
        return inner.to_owned();
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let (decoded, used) = match tail.as_bytes().first() {
            Some(b'n') => (Some('\n'), 1),
            Some(b't') => (Some('\t'), 1),
            Some(b'r') => (Some('\r'), 1),
            Some(b'b') => (Some('\u{8}'), 1),
            Some(b'f') => (Some('\u{c}'), 1),
            Some(b'u') => unicode_escape(&tail[1..]),
            Some(&c @ (b'"' | b'\\' | b'/')) => (Some(char::from(c)), 1),
            _ => (None, 0),
        };
        out.push(decoded.unwrap_or('\\'));
        rest = &tail[if decoded.is_some() { used } else { 0 }..];
    }
    out.push_str(rest);
    out
}

/// The character of `XXXX` or `XXXX\uYYYY` (surrogates), and how many bytes after the backslash were used.
fn unicode_escape(digits: &str) -> (Option<char>, usize) {
    let unit = |text: &str| text.get(..4).and_then(|d| u32::from_str_radix(d, 16).ok());
    let Some(high) = unit(digits) else {
        return (None, 0);
    };
    if !(0xD800..0xDC00).contains(&high) {
        return (char::from_u32(high), 5);
    }
    let low = digits.get(4..).and_then(|t| t.strip_prefix("\\u")).and_then(unit);
    match low {
        Some(low) if (0xDC00..0xE000).contains(&low) => (
            char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)),
            11,
        ),
        _ => (None, 0),
    }
}
