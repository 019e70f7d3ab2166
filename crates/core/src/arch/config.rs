//! Typed, forgiving-in-spelling, strict-in-value access to a model's `config.json`.

use std::sync::Arc;

use serde_json::{Map, Value};
use yoke::Yoke;

use crate::{Error, Result};

/// Largest `config.json` that is read, in bytes (the largest published one known is 3.1 MB).
pub const MAX_CONFIG_BYTES: usize = 64 << 20;

/// Largest width, vocabulary or count that is accepted; products of two stay far inside of 64 bits.
pub const MAX_DIMENSION: u64 = 1 << 26;

/// A (sub-)configuration: a JSON object with the path that leads to it, for error messages.
#[derive(Debug, Clone)]
pub struct Config {
    path: String,
    /// Shared: wrappers, towers and rules each hold the part that they read, and few change it.
    map: Yoke<&'static Fields, Arc<Fields>>,
}

/// The fields of an object.
type Fields = Map<String, Value>;

fn shared(fields: Fields) -> Yoke<&'static Fields, Arc<Fields>> {
    Yoke::attach_to_cart(Arc::new(fields), |fields| fields)
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.map() == other.map()
    }
}

impl Config {
    /// Parses a whole `config.json`.
    ///
    /// # Errors
    /// If it is too large, not UTF-8, not JSON, nested deeper than 128 levels, or not an object.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(Error::input(format!(
                "the configuration has {} bytes, more than the {MAX_CONFIG_BYTES} that are read",
                bytes.len()
            )));
        }
        let parsed = match serde_json::from_slice(bytes) {
            Err(first) => match without_non_finite(bytes) {
                Some(cleaned) => serde_json::from_slice(&cleaned).map_err(|_| first),
                None => Err(first),
            },
            parsed => parsed,
        };
        match parsed {
            Ok(Value::Object(map)) => Ok(Self {
                path: String::new(),
                map: shared(map),
            }),
            Ok(_) => Err(Error::input("the configuration is JSON but not an object")),
            Err(e) => Err(Error::input(format!("the configuration is not valid JSON: {e}"))),
        }
    }

    /// A configuration made of an object that is already parsed.
    pub fn from_map(map: Map<String, Value>) -> Self {
        Self {
            path: String::new(),
            map: shared(map),
        }
    }

    /// The same place in the file with other fields.
    #[must_use]
    pub fn with_map(&self, map: Map<String, Value>) -> Self {
        Self {
            path: self.path.clone(),
            map: shared(map),
        }
    }

    /// A configuration at the place of `key` below this one.
    #[must_use]
    pub fn child(&self, key: &str, map: Map<String, Value>) -> Self {
        Self {
            path: self.name(key),
            map: shared(map),
        }
    }

    /// The same configuration under another `model_type`.
    #[must_use]
    pub fn as_type(self, model_type: &str) -> Self {
        let path = self.path.clone();
        let mut fields = self.into_map();
        fields.insert("model_type".to_owned(), Value::from(model_type));
        Self {
            path,
            map: shared(fields),
        }
    }

    /// The fields.
    pub fn into_map(self) -> Map<String, Value> {
        if std::ptr::eq(*self.map.get(), &raw const **self.map.backing_cart()) {
            Arc::unwrap_or_clone(self.map.into_backing_cart())
        } else {
            self.map().clone()
        }
    }

    /// The raw value; null counts as missing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map().get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is present, even as null (a null overrides a class default).
    pub fn has(&self, key: &str) -> bool {
        self.map().contains_key(key)
    }

    /// A nested object, or `None` if missing or null.
    ///
    /// # Errors
    /// If the value is there but not an object.
    pub fn sub(&self, key: &str) -> Result<Option<Self>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let map = self.map.try_map_project_cloned(|map, _| match map.get(key) {
            Some(Value::Object(own)) => Ok(own),
            _ => Err(self.wrong(key, value, "an object")),
        })?;
        Ok(Some(Self {
            path: self.name(key),
            map,
        }))
    }

    /// A non-negative integer; 3.0 counts as 3.
    ///
    /// # Errors
    /// If the value is there but negative, fractional, out of range or not a number.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.get(key).map(|v| self.as_u64(key, v)).transpose()
    }

    /// The first of several spellings that is present.
    ///
    /// # Errors
    /// As [`Config::u64`].
    pub fn first_u64(&self, keys: &[&str]) -> Result<Option<u64>> {
        for key in keys {
            if let Some(n) = self.u64(key)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    /// An integer that must be there (under one of the spellings) and be positive.
    ///
    /// # Errors
    /// If it is missing, zero or not a non-negative integer.
    pub fn positive(&self, keys: &[&str]) -> Result<u64> {
        for key in keys {
            match self.u64(key)? {
                None => {}
                Some(0) => {
                    return Err(Error::input(format!(
                        "{} is 0, expected a positive integer",
                        self.name(key)
                    )));
                }
                Some(n) => return Ok(n),
            }
        }
        Err(Error::input(format!(
            "{} is missing from the configuration",
            keys.first().map_or_else(String::new, |key| self.name(key))
        )))
    }

    /// A size (width, count of heads, layers or rows): an integer from 1 to [`MAX_DIMENSION`] that must be there.
    ///
    /// # Errors
    /// If it is missing, zero, larger than [`MAX_DIMENSION`] or not a non-negative integer.
    pub fn dim(&self, key: &str) -> Result<u64> {
        self.positive(&[key])?;
        self.dim_or(key, 0)
    }

    /// A size as [`Config::dim`] reads it, but 0 is allowed, and `default` stands for a missing one.
    ///
    /// # Errors
    /// If it is larger than [`MAX_DIMENSION`] or not a non-negative integer.
    pub fn dim_or(&self, key: &str, default: u64) -> Result<u64> {
        match self.u64(key)? {
            None => Ok(default),
            Some(n) if n <= MAX_DIMENSION => Ok(n),
            Some(n) => Err(Error::input(format!(
                "{} is {n}, more than the largest size {MAX_DIMENSION} that a model can have",
                self.name(key)
            ))),
        }
    }

    /// A boolean with the default of a key that is missing; null is what Python takes it for: false.
    ///
    /// # Errors
    /// If the value is there but neither a boolean nor null.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let missing = default && !self.has(key);
        Ok(self.bool(key)?.unwrap_or(missing))
    }

    /// A boolean.
    ///
    /// # Errors
    /// If the value is there but not a boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// If the value is there but not a string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// If the value is there but not a finite number.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(Some(x)),
                _ => Err(self.wrong(key, v, "a finite number")),
            },
        }
    }

    /// An array.
    ///
    /// # Errors
    /// If the value is there but not an array.
    pub fn array(&self, key: &str) -> Result<Option<&[Value]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => Err(self.wrong(key, other, "a list")),
        }
    }

    /// An array of non-negative integers.
    ///
    /// # Errors
    /// If the value is there but anything else.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.array(key)?
            .map(|a| a.iter().map(|v| self.as_u64(key, v)).collect())
            .transpose()
    }

    /// An array of strings.
    ///
    /// # Errors
    /// If the value is there but anything else.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(list) = self.array(key)? else {
            return Ok(None);
        };
        list.iter()
            .map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "a string")))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// The full dotted name of a key, for messages.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The underlying object.
    pub fn map(&self) -> &Map<String, Value> {
        self.map.get()
    }

    fn as_u64(&self, key: &str, value: &Value) -> Result<u64> {
        if let Some(n) = value.as_u64() {
            return Ok(n);
        }
        // Some exporters write integers as floats; only exact ones below 2^53 are taken.
        match value.as_f64() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked: whole and in range"
            )]
            Some(x) if x >= 0.0 && x.fract() == 0.0 && x < 9_007_199_254_740_992.0 => Ok(x as u64),
            _ => Err(self.wrong(key, value, "a non-negative integer")),
        }
    }

    pub(crate) fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        let mut shown = value.to_string();
        if shown.len() > 60 {
            let cut = (0..=57).rev().find(|&i| shown.is_char_boundary(i)).unwrap_or(0);
            shown.truncate(cut);
            shown.push_str("...");
        }
        Error::input(format!("{} is {shown}, expected {expected}", self.name(key)))
    }
}

/// The text with Python's `NaN`, `Infinity` and `-Infinity` outside of strings put into quotes, as published files of
/// state-space models have them (`time_step_limit`); `None` if there are none. A field that is read then says what it
/// holds instead of counting as missing.
fn without_non_finite(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut cleaned = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    let (mut in_string, mut replaced) = (false, false);
    while let Some((&byte, after)) = rest.split_first() {
        let word = [b"-Infinity".as_slice(), b"Infinity", b"NaN"]
            .into_iter()
            .find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            cleaned.push(b'"');
            cleaned.extend_from_slice(word);
            cleaned.push(b'"');
            rest = &rest[word.len()..];
            replaced = true;
            continue;
        }
        cleaned.push(byte);
        rest = after;
        if in_string && byte == b'\\' {
            if let Some((&escaped, after)) = rest.split_first() {
                cleaned.push(escaped);
                rest = after;
            }
        } else if byte == b'"' {
            in_string = !in_string;
        }
    }
    replaced.then_some(cleaned)
}

#[cfg(test)]
mod non_finite {
    use super::Config;

    #[test]
    fn infinity_as_python_writes_it_is_no_number_where_one_is_read() {
        let text = r#"{"time_step_limit": [0.0, Infinity], "x": -Infinity, "y": NaN, "name": "Infinity \" NaN", "n": 3}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        assert!(
            config
                .f64("x")
                .unwrap_err()
                .to_string()
                .contains("x is \"-Infinity\"")
        );
        assert!(config.u64("y").unwrap_err().to_string().contains("y is \"NaN\""));
        assert_eq!(config.str("name").unwrap(), Some("Infinity \" NaN"));
        assert_eq!(config.u64("n").unwrap(), Some(3));
        assert!(Config::parse(b"{\"a\": Infinit}").is_err());
    }
}
