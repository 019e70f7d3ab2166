//! Which modules a checkpoint leaves unquantised.

use regex_lite::Regex;

use crate::{Error, Result};

/// Longest pattern that is compiled; published ones stay below a hundred characters.
const MAX_PATTERN_BYTES: usize = 4096;

/// Names under which checkpoints store the parts of a fused module (vLLM 0.32.0, `packed_modules_mapping` of its
/// model classes).
const FUSED: &[(&str, &[&str])] = &[
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("fused_qkv_a_proj", &["q_a_proj", "kv_a_proj_with_mqa"]),
    ("in_proj_qkvz", &["in_proj_qkv", "in_proj_z"]),
    ("in_proj_ba", &["in_proj_b", "in_proj_a"]),
];

/// The names a module has in a checkpoint: its own, or those of its fused parts.
pub(crate) fn shards(path: &str) -> Vec<String> {
    let (parent, name) = path.rsplit_once('.').map_or(("", path), |(p, n)| (p, n));
    match FUSED.iter().find(|(fused, _)| *fused == name) {
        Some((_, parts)) => parts.iter().map(|part| format!("{parent}.{part}")).collect(),
        None => vec![path.to_owned()],
    }
}

/// A module's path without the prefixes that wrappers put before the language model, in files and in the engine.
pub(crate) fn canonical(path: &str) -> String {
    for (prefix, instead) in [
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.", ""),
        ("model.visual.", "visual."),
    ] {
        if let Some(rest) = path.strip_prefix(prefix) {
            return format!("{instead}{rest}");
        }
    }
    path.to_owned()
}

/// How the entries of an ignore list are compared with a module's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// The whole path (fp8 checkpoints).
    Exact,
    /// Any part of the path (AWQ).
    Part,
    /// Any part of the path, or a pattern with `*` (`ModelOpt`).
    Wildcard,
    /// The whole path, its last name, or a regular expression behind `re:` (llm-compressor).
    Expression,
}

/// A pattern whose only special character is `*`, for any run of characters. A checkpoint lists hundreds of them and a
/// model has thousands of modules, so they are compared as text and not as expressions.
#[derive(Debug, Clone)]
struct Glob {
    /// The texts between the stars; two at least.
    pieces: Vec<String>,
}

impl Glob {
    fn new(pattern: &str) -> Self {
        Self {
            pieces: pattern.split('*').map(str::to_owned).collect(),
        }
    }

    fn is_match(&self, path: &str) -> bool {
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

/// A compiled ignore list.
#[derive(Debug, Clone)]
pub(crate) struct Ignore {
    mode: Match,
    names: Vec<String>,
    globs: Vec<Glob>,
    expressions: Vec<Regex>,
}

impl Ignore {
    /// Compiles a list of names as the checkpoint's tool writes it.
    pub(crate) fn new(mode: Match, entries: &[&str]) -> Result<Self> {
        let mut names = Vec::new();
        let mut globs = Vec::new();
        let mut expressions = Vec::new();
        for entry in entries {
            if entry.len() > MAX_PATTERN_BYTES {
                return Err(Error::input(format!(
                    "an entry of quantization_config's ignore list has {} characters, more than {MAX_PATTERN_BYTES}",
                    entry.len()
                )));
            }
            match (mode, entry.strip_prefix("re:")) {
                // Python's re.match starts at the beginning and need not reach the end.
                (Match::Expression, Some(text)) => expressions.push(compile(&format!("^(?:{text})"), entry)?),
                (Match::Wildcard, _) if entry.contains('*') => {
                    // A trailing star after a name also means what is below that name.
                    let pattern = canonical(entry);
                    globs.push(Glob::new(&pattern));
                    if let Some(stem) = pattern.strip_suffix('*').filter(|s| !s.ends_with('.')) {
                        names.push(stem.to_owned());
                    }
                }
                _ => names.push(canonical(entry)),
            }
        }
        Ok(Self {
            mode,
            names,
            globs,
            expressions,
        })
    }

    /// Whether a module (by its canonical path) stays unquantised.
    pub(crate) fn skips(&self, path: &str) -> bool {
        if self.names.is_empty() && self.globs.is_empty() && self.expressions.is_empty() {
            return false;
        }
        let parts = shards(path);
        let all_exact =
            self.names.iter().any(|n| n == path) || parts.iter().all(|part| self.names.contains(part));
        if all_exact {
            return true;
        }
        match self.mode {
            // Experts are skipped by any entry below them.
            Match::Exact => path.ends_with(".experts") && self.names.iter().any(|n| n.contains(path)),
            Match::Part => self.names.iter().any(|n| path.contains(n.as_str())),
            Match::Wildcard => {
                self.names.iter().any(|n| path.contains(n.as_str()))
                    || self.globs.iter().any(|g| g.is_match(path))
            }
            Match::Expression => {
                let hit = |p: &str| {
                    self.names.iter().any(|n| n == p) || self.expressions.iter().any(|e| e.is_match(p))
                };
                hit(path) || parts.iter().all(|p| hit(p))
            }
        }
    }
}

fn compile(text: &str, entry: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| {
        Error::input(format!(
            "quantization_config: {entry:?} in the ignore list is no valid pattern: {e}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_from_the_start_as_in_python() {
        let list = [
            "lm_head",
            "re:.*self_attn.*",
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
        ];
        let ignore = Ignore::new(Match::Expression, &list).unwrap();
        assert!(ignore.skips("lm_head"));
        assert!(ignore.skips("model.layers.3.self_attn.kv_b_proj"));
        assert!(ignore.skips("model.layers.0.mlp.gate_up_proj"));
        assert!(!ignore.skips("model.layers.3.mlp.experts"));
    }

    #[test]
    fn a_fused_module_is_skipped_when_all_its_parts_are() {
        let list = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.0.self_attn.v_proj",
        ];
        let ignore = Ignore::new(Match::Exact, &list).unwrap();
        assert!(ignore.skips("model.layers.0.self_attn.qkv_proj"));
        assert!(!ignore.skips("model.layers.1.self_attn.qkv_proj"));
        // A short name is no exact match: fp8 checkpoints that list "gate" skip nothing by it.
        assert!(
            !Ignore::new(Match::Exact, &["gate"])
                .unwrap()
                .skips("model.layers.0.mlp.gate")
        );
    }

    #[test]
    fn wildcards_ignore_the_wrapper_prefix() {
        let list = ["model.language_model.layers.0.self_attn*", "lm_head"];
        let ignore = Ignore::new(Match::Wildcard, &list).unwrap();
        assert!(ignore.skips("model.layers.0.self_attn.qkv_proj"));
        assert!(!ignore.skips("model.layers.10.self_attn.qkv_proj"));
    }

    proptest::proptest! {
        #[test]
        fn stars_match_as_the_expression_that_they_abbreviate(pattern in "[ab.]{0,4}(\\*[ab.]{0,3}){1,4}", path in "[ab.]{0,12}") {
            let escaped: Vec<String> = pattern.split('*').map(regex_lite::escape).collect();
            let expression = Regex::new(&format!("^{}$", escaped.join(".*"))).unwrap();
            proptest::prop_assert_eq!(Glob::new(&pattern).is_match(&path), expression.is_match(&path));
        }
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        assert!(Ignore::new(Match::Expression, &["re:("]).is_err());
        assert!(Ignore::new(Match::Expression, &["re:".to_owned().as_str(), &"x".repeat(5000)]).is_err());
    }
}
