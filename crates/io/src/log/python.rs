//! Values as Python prints them: `{'model': 'x', 'max_model_len': 8192}`, `Namespace(model='x')`, `model='x', seed=0`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// Most pairs that are read from one line.
const MAX_PAIRS: usize = 1024;
/// Longest value that is kept, in bytes; longer ones (compilation settings) are dropped.
const MAX_VALUE_BYTES: usize = 16 << 10;

/// A printed value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a point.
    Float(f64),
    /// A quoted string, unquoted.
    Text(String),
    /// Anything else, as printed: lists, dictionaries, objects, `torch.bfloat16`.
    Other(String),
}

impl Value {
    /// Reads one printed value.
    pub fn read(text: &str) -> Self {
        let text = text.trim();
        match text {
            "None" | "null" => return Self::None,
            "True" | "true" => return Self::Bool(true),
            "False" | "false" => return Self::Bool(false),
            _ => {}
        }
        if let Some(quote) = text.chars().next().filter(|c| *c == '\'' || *c == '"')
            && text.len() >= 2
            && text.ends_with(quote)
        {
            return Self::Text(unescape(&text[1..text.len() - 1]));
        }
        if let Ok(n) = text.parse::<i64>() {
            return Self::Int(n);
        }
        if text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_digit() || b == b'-')
            && let Ok(x) = text.parse::<f64>()
            && x.is_finite()
        {
            return Self::Float(x);
        }
        Self::Other(text.to_owned())
    }

    /// The text of a string, or of anything else that is not `None`.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Bool(b) => Some(b.to_string()),
            Self::Int(n) => Some(n.to_string()),
            Self::Float(x) => Some(x.to_string()),
            Self::Text(s) | Self::Other(s) => Some(s.clone()),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            Self::Text(s) => s.parse().ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            Self::Text(s) => s.parse().ok(),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Int(n) => serializer.serialize_i64(*n),
            Self::Float(x) => serializer.serialize_f64(*x),
            Self::Text(s) | Self::Other(s) => serializer.serialize_str(s),
        }
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if escaped {
            out.push(match c {
                'n' => '\n',
                't' => '\t',
                other => other,
            });
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else {
            out.push(c);
        }
    }
    out
}

/// The pairs of a printed dictionary, call or list of `key=value`. `text` begins inside of the brackets, or with the
/// opening `{`; it ends at the closing bracket, or where the line was cut.
pub fn pairs(text: &str) -> BTreeMap<String, Value> {
    let text = text.trim_start();
    let text = text.strip_prefix('{').unwrap_or(text);
    let mut out = BTreeMap::new();
    let mut start = 0;
    let mut depth = 0_usize;
    let mut quote: Option<char> = None;
    let mut escaped = false;
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        if let Some(open) = quote {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == open {
                quote = None;
            }
            previous = c;
            continue;
        }
        match c {
            // An apostrophe inside of a word is none.
            '\'' | '"' if !previous.is_alphanumeric() => quote = Some(c),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => {
                add(&mut out, &text[start..at]);
                return out;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                add(&mut out, &text[start..at]);
                start = at + 1;
                if out.len() >= MAX_PAIRS {
                    return out;
                }
            }
            _ => {}
        }
        previous = c;
    }
    add(&mut out, &text[start..]);
    out
}

/// One `key=value` or `'key': value`.
fn add(out: &mut BTreeMap<String, Value>, text: &str) {
    let text = text.trim();
    let (key, value) = if text.starts_with(['\'', '"']) {
        match text[1..].find(['\'', '"']) {
            Some(end) => match text[end + 2..].trim_start().strip_prefix(':') {
                Some(value) => (&text[1..=end], value),
                None => return,
            },
            None => return,
        }
    } else {
        match text.split_once('=') {
            Some(pair) => pair,
            None => return,
        }
    };
    let key = key.trim();
    if key.is_empty()
        || key.len() > 80
        || value.len() > MAX_VALUE_BYTES
        || !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    {
        return;
    }
    out.insert(key.replace('-', "_"), Value::read(value));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dictionaries_namespaces_and_configurations_are_read() {
        let flags = pairs(
            "{'model': '/m/it\\'s', 'max_model_len': 8192, 'gpu_memory_utilization': 0.25, 'enforce_eager': True, \
             'served_model_name': ['a', 'b'], 'rope': {'x': 1, 'y': 2}, 'seed': None}",
        );
        assert_eq!(flags["model"], Value::Text("/m/it's".to_owned()));
        assert_eq!(flags["max_model_len"].count(), Some(8192));
        assert_eq!(flags["gpu_memory_utilization"].number(), Some(0.25));
        assert_eq!(flags["enforce_eager"].flag(), Some(true));
        assert_eq!(flags["served_model_name"], Value::Other("['a', 'b']".to_owned()));
        assert_eq!(flags["seed"], Value::None);
        let config =
            pairs("model='x', dtype=torch.bfloat16, spec=Spec(method='mtp', n=1), max_seq_len=65536, ");
        assert_eq!(config["dtype"].text().as_deref(), Some("torch.bfloat16"));
        assert_eq!(config["spec"].text().as_deref(), Some("Spec(method='mtp', n=1)"));
        assert_eq!(config["max_seq_len"].count(), Some(65536));
        let namespace = pairs("model_tag='a', port=8000, x=[Y(z=1)]) and more=1");
        assert_eq!(namespace.len(), 3);
    }

    #[test]
    fn a_cut_line_keeps_what_was_whole() {
        let flags = pairs("{'model': 'x', 'max_model_len': 81");
        assert_eq!(flags["model"].text().as_deref(), Some("x"));
        let flags = pairs("{'model': 'x', 'served_model_na");
        assert_eq!(flags.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[\\PC'\"{}()\\[\\]=:,\\\\]{0,200}") {
            prop_assert!(pairs(&text).len() <= MAX_PAIRS);
        }
    }
}
