//! Words inside of scripts and manifests, so that each stays one word whatever it holds.

use std::fmt::Write as _;

/// A word of a POSIX shell command.
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A double-quoted YAML string: JSON's escapes are YAML's, and what YAML does not print is escaped too.
pub fn yaml(word: &str) -> String {
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || ('\u{2028}'..='\u{2029}').contains(&c) || c == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A YAML string in a place where Compose replaces variables, or Kubernetes `$(NAME)`: every dollar is doubled, which both
/// read as one.
pub fn yaml_without_variables(word: &str) -> String {
    yaml(&word.replace('$', "$$"))
}

/// Text in a comment: one line, nothing that moves a terminal's cursor.
pub fn comment(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) {
                '?'
            } else {
                c
            }
        })
        .collect()
}

/// A field of `docker run --mount`, which is read as a line of CSV.
pub fn mount_field(key: &str, value: &str) -> String {
    let field = format!("{key}={value}");
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_that_need_no_quotes_get_none() {
        assert_eq!(shell("meta-llama/Llama-3.1-8B"), "meta-llama/Llama-3.1-8B");
        assert_eq!(shell(""), "''");
        assert_eq!(shell("it's $HOME"), "'it'\\''s $HOME'");
        assert_eq!(shell("~/x"), "'~/x'");
    }

    #[test]
    fn a_path_with_a_comma_is_one_field_of_a_mount() {
        assert_eq!(mount_field("source", "/a,b \"c\""), "\"source=/a,b \"\"c\"\"\"");
    }

    proptest! {
        #[test]
        fn a_yaml_reader_gives_every_word_back(word in any::<String>()) {
            let read: Vec<String> = serde_saphyr::from_str(&format!("- {}\n", yaml(&word))).unwrap();
            prop_assert_eq!(read, [word]);
        }

        #[test]
        fn comments_stay_on_their_line(text in any::<String>()) {
            let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            prop_assert_eq!(comment(&text).find(breaks), None);
        }
    }
}
