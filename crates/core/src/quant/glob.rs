//! Patterns whose only special character is `*`, for any run of characters.
//!
//! They are compared as text, which costs a tenth of an expression; most expressions that checkpoints list are such
//! patterns in other words ([`of_expression`]).

/// Most patterns that one expression is written out to.
const MAX_ALTERNATIVES: usize = 64;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob {
    /// The texts between the stars.
    pieces: Vec<String>,
}

impl Glob {
    pub(super) fn new(pattern: &str) -> Self {
        Self {
            pieces: pattern.split('*').map(str::to_owned).collect(),
        }
    }

    /// The texts that a path must hold, in this order.
    pub(super) fn pieces(&self) -> &[String] {
        &self.pieces
    }

    pub(super) fn is_match(&self, path: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            return self.pieces.first().is_some_and(|only| only == path);
        };
        let Some(mut rest) = path
            .strip_prefix(first.as_str())
            .and_then(|p| p.strip_suffix(last.as_str()))
        else {
            return false;
        };
        // Each piece at its first place leaves most for those behind it.
        middle.iter().all(|piece| match rest.find(piece.as_str()) {
            Some(at) => {
                rest = &rest[at + piece.len()..];
                true
            }
            None => false,
        })
    }
}

/// The patterns that match what `expression` does from the beginning of a path (as Python's `re.match`, which need not
/// reach the end); `None` for an expression with more than letters, digits, `_`, `-`, `\\.`, `.*`, groups of
/// alternatives, and `$` at the end.
pub(super) fn of_expression(expression: &str) -> Option<Vec<Glob>> {
    let (body, open_end) = match expression.strip_suffix('$') {
        Some(body) if !body.ends_with('\\') => (body, false),
        _ => (expression, true),
    };
    let mut patterns = vec![String::new()];
    let mut rest = body;
    while let Some(first) = rest.chars().next() {
        let (alternatives, behind): (Vec<String>, &str) = if let Some(behind) = rest.strip_prefix(".*") {
            (vec!["*".to_owned()], behind)
        } else if let Some(behind) = rest.strip_prefix("\\.") {
            (vec![".".to_owned()], behind)
        } else if let Some(inside) = rest.strip_prefix("(?:").or_else(|| rest.strip_prefix('(')) {
            let (inside, behind) = inside.split_once(')')?;
            let alternatives = inside.split('|').map(literal).collect::<Option<Vec<_>>>()?;
            (alternatives, behind)
        } else {
            (
                vec![literal(rest.get(..first.len_utf8())?)?],
                &rest[first.len_utf8()..],
            )
        };
        // A repetition of what was just read is more than a pattern can say.
        if behind.starts_with(['*', '+', '?', '{']) {
            return None;
        }
        if patterns.len() * alternatives.len() > MAX_ALTERNATIVES {
            return None;
        }
        patterns = patterns
            .iter()
            .flat_map(|before| alternatives.iter().map(move |next| format!("{before}{next}")))
            .collect();
        rest = behind;
    }
    Some(
        patterns
            .iter()
            .map(|pattern| {
                Glob::new(&if open_end {
                    format!("{pattern}*")
                } else {
                    pattern.clone()
                })
            })
            .collect(),
    )
}

/// The text that an expression of plain characters and escaped dots stands for.
fn literal(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next() == Some('.') => out.push('.'),
            c if c.is_ascii_alphanumeric() || c == '_' || c == '-' => out.push(c),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use regex_lite::Regex;

    use super::*;

    proptest::proptest! {
        #[test]
        fn stars_match_as_the_expression_that_they_abbreviate(pattern in "[ab.]{0,4}(\\*[ab.]{0,3}){1,4}", path in "[ab.]{0,12}") {
            let escaped: Vec<String> = pattern.split('*').map(regex_lite::escape).collect();
            let expression = Regex::new(&format!("^{}$", escaped.join(".*"))).unwrap();
            proptest::prop_assert_eq!(Glob::new(&pattern).is_match(&path), expression.is_match(&path));
        }

        #[test]
        fn an_expression_that_is_written_out_matches_the_same(
            text in "((a|b|\\\\\\.|\\.\\*|\\(a\\|ab\\)|\\(\\?:b\\|a\\\\\\.\\)|\\.|\\+|\\?)){0,5}\\$?",
            path in "[ab.]{0,10}",
        ) {
            if let (Some(globs), Ok(expression)) = (of_expression(&text), Regex::new(&format!("^(?:{text})"))) {
                proptest::prop_assert_eq!(
                    globs.iter().any(|glob| glob.is_match(&path)),
                    expression.is_match(&path),
                    "{} as {:?}", text, globs
                );
            }
        }
    }

    #[test]
    fn the_expressions_of_published_checkpoints_are_written_out() {
        for (text, path) in [
            (".*self_attn.*", "model.layers.3.self_attn.kv_b_proj"),
            (
                r".*mlp\.(gate|up|gate_up|down)_proj.*",
                "model.layers.0.mlp.gate_up_proj",
            ),
            (r"model\.layers\.0\.mlp$", "model.layers.0.mlp"),
        ] {
            let globs = of_expression(text).unwrap_or_else(|| panic!("{text} is not written out"));
            assert!(globs.iter().any(|glob| glob.is_match(path)), "{text}: {globs:?}");
        }
        for text in [
            r"model.layers",
            r"a\d",
            "a+",
            "a.*?b",
            "(a|(b|c))",
            "[ab]",
            "^a",
            "a|b",
        ] {
            assert_eq!(of_expression(text), None, "{text}");
        }
    }
}
