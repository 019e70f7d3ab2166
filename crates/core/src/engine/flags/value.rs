//! What one word after a flag must look like, by Python's rules where the engines use Python's readers.

use super::Flag;

/// Type of a flag's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// Any text.
    Text,
    /// Python's `int`.
    Int,
    /// Python's `float`.
    Float,
    /// An integer that may end in k, m, g, t (powers of 1000) or K, M, G, T (powers of 1024).
    Count,
    /// The same, or `auto`, or -1.
    CountOrAuto,
    /// JSON.
    Json,
    /// JSON if it stands in braces, else any text.
    JsonOrText,
}

impl ValueKind {
    /// By the word of the data files.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "str" => Self::Text,
            "int" => Self::Int,
            "float" => Self::Float,
            "count" => Self::Count,
            "count_or_auto" => Self::CountOrAuto,
            "json" => Self::Json,
            "json_or_str" => Self::JsonOrText,
            _ => return None,
        })
    }

    /// What is expected, for a message.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "an integer",
            Self::Float => "a number",
            Self::Count => "an integer, or one with k, m, g or K, M, G",
            Self::CountOrAuto => "an integer (k, m, g or K, M, G allowed), auto or -1",
            Self::Json | Self::JsonOrText => "JSON",
        }
    }

    /// Whether a word can be read as this.
    pub fn accepts(self, word: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Int => is_int(word),
            Self::Float => is_float(word),
            Self::Count => is_count(word),
            Self::CountOrAuto => {
                let word = word.trim();
                word == "-1" || word.eq_ignore_ascii_case("auto") || is_count(word)
            }
            // Optional values take `None` and nothing at all as no value.
            Self::Json => word.is_empty() || word == "None" || is_json(word),
            Self::JsonOrText => {
                let trimmed = word.trim();
                !(trimmed.starts_with('{') && trimmed.ends_with('}')) || is_json(trimmed)
            }
        }
    }
}

/// Whether a flag takes this word, or what it says instead.
pub(super) fn check(flag: &Flag, word: &str) -> Result<(), String> {
    // Values without a list of choices that read as nothing are "not given" to the engines' optional types.
    if !flag.value.accepts(word) && !(flag.default.is_empty() && (word.is_empty() || word == "None")) {
        return Err(flag.value.expected().to_owned());
    }
    if !flag.choices.is_empty() {
        // The backend flags are compared in lower case with underscores, attention backends in upper case.
        let folded = |text: &str| text.to_ascii_lowercase().replace('-', "_");
        let folds = flag.name().ends_with("-backend");
        let allowed = flag
            .choices
            .iter()
            .any(|c| *c == word || (folds && folded(c) == folded(word)));
        if !allowed {
            let mut list = flag
                .choices
                .iter()
                .take(12)
                .copied()
                .collect::<Vec<_>>()
                .join(", ");
            if flag.choices.len() > 12 {
                list.push_str(", ...");
            }
            return Err(format!("one of {list}"));
        }
    }
    Ok(())
}

fn digits(text: &str) -> bool {
    // Python allows single underscores between digits.
    !text.is_empty()
        && text
            .split('_')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

fn is_int(word: &str) -> bool {
    let word = word.trim();
    digits(word.strip_prefix(['+', '-']).unwrap_or(word))
}

fn is_float(word: &str) -> bool {
    let word = word.trim();
    // Rust and Python read the same spellings once underscores between digits are gone.
    let plain: String = word.chars().filter(|c| *c != '_').collect();
    plain.parse::<f64>().is_ok() && !word.starts_with('_') && !word.ends_with('_')
}

fn is_count(word: &str) -> bool {
    let word = word.trim();
    let Some(suffix) = word.chars().last().filter(char::is_ascii_alphabetic) else {
        return is_int(word);
    };
    let number = &word[..word.len() - 1];
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match number.split_once('.') {
        None => plain(number) && "kKmMgGtT".contains(suffix),
        Some((whole, decimals)) => plain(whole) && plain(decimals) && "kmgt".contains(suffix),
    }
}

fn is_json(word: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (kind, yes, no) in [
            (
                ValueKind::Int,
                vec!["1", "-1", "+3", "1_000", " 7 "],
                vec!["", "1.0", "k", "1__0", "_1", "1k"],
            ),
            (
                ValueKind::Float,
                vec!["0.9", "1e-3", "inf", "nan", ".5", "1_0.5"],
                vec!["", "0,9", "abc"],
            ),
            (
                ValueKind::Count,
                vec!["8192", "8k", "8K", "25.6k", "2M"],
                vec!["1.5K", "k", "8kb", "", "8 k b"],
            ),
            (
                ValueKind::CountOrAuto,
                vec!["auto", "AUTO", "-1", "32k"],
                vec!["-2.5", "full", "1.5K"],
            ),
            (
                ValueKind::Json,
                vec!["{\"a\":1}", "[]", "None", ""],
                vec!["{a:1}", "{'a': 1}", "{"],
            ),
            (ValueKind::JsonOrText, vec!["cpu", "{\"a\":1}", "{"], vec!["{a}"]),
        ] {
            for word in yes {
                assert!(kind.accepts(word), "{kind:?} {word:?}");
            }
            for word in no {
                assert!(!kind.accepts(word), "{kind:?} {word:?}");
            }
        }
    }
}
