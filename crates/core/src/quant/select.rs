//! Which modules a checkpoint leaves unquantised.

use std::collections::BTreeMap;

use indexmap::IndexSet;
use regex_lite::Regex;

use super::alike::Told;
use super::glob::{self, Glob};
use super::naming::Naming;
use crate::{Error, Result};

/// Longest pattern that is compiled; published ones stay below a hundred characters.
pub(super) const MAX_PATTERN_BYTES: usize = 4096;

/// How the entries of an ignore list are compared with a module's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// The whole path (fp8 checkpoints).
    Exact,
    /// Any part of the path (AWQ).
    Part,
    /// The end of the path (FP-Quant).
    End,
    /// Any part of the path, or a pattern with `*` (`ModelOpt`).
    Wildcard,
    /// The whole path, its last name, or a regular expression behind `re:` (llm-compressor).
    Expression,
}

/// An ignore list, sorted for look-ups: a checkpoint lists hundreds of names, and a model has thousands of modules.
#[derive(Debug, Clone)]
pub(crate) struct Ignore {
    mode: Match,
    /// Names that a whole path is compared with.
    exact: IndexSet<String>,
    /// Names that a part of a path is compared with.
    parts: ByLayer<String>,
    /// Names that hold a list of experts ([`Match::Exact`] and [`Match::Wildcard`]).
    experts: Vec<String>,
    globs: ByLayer<Glob>,
    expressions: Vec<Regex>,
}

impl Ignore {
    /// Compiles a list of names as the engine renamed them ([`Naming::rename`]).
    ///
    /// # Errors
    /// If an entry is too long, or no valid pattern.
    pub(crate) fn new(mode: Match, entries: &[impl AsRef<str>]) -> Result<Self> {
        let mut own = Self::none(mode);
        for entry in entries {
            let entry = entry.as_ref();
            if entry.len() > MAX_PATTERN_BYTES {
                return Err(Error::input(format!(
                    "an entry of quantization_config's ignore list has {} characters, more than {MAX_PATTERN_BYTES}",
                    entry.len()
                )));
            }
            match (mode, entry.strip_prefix("re:")) {
                (Match::Expression, Some(text)) => match glob::of_expression(text) {
                    Some(globs) => globs.into_iter().for_each(|glob| own.glob(glob)),
                    // Python's re.match starts at the beginning and need not reach the end.
                    None => own.expressions.push(compile(&format!("^(?:{text})"), entry)?),
                },
                (Match::Wildcard, _) if entry.contains('*') => own.glob(Glob::new(entry)),
                _ => own.name(entry),
            }
        }
        Ok(own)
    }

    /// A list that names nothing.
    pub(super) fn none(mode: Match) -> Self {
        Self {
            mode,
            exact: IndexSet::new(),
            parts: ByLayer::default(),
            experts: Vec::new(),
            globs: ByLayer::default(),
            expressions: Vec::new(),
        }
    }

    /// Whether an entry is about this path, whatever it is fused of.
    pub(super) fn names(&self, path: &str) -> bool {
        self.exact.contains(path)
            || self.globs.any(path, |g| g.is_match(path))
            || self.expressions.iter().any(|e| e.is_match(path))
    }

    fn name(&mut self, name: &str) {
        if matches!(self.mode, Match::Part | Match::Wildcard) {
            self.parts.add(layer_in(name), name.to_owned());
        }
        if matches!(self.mode, Match::Exact | Match::Wildcard) && name.contains(EXPERTS) {
            self.experts.push(name.to_owned());
        }
        self.exact.insert(name.to_owned());
    }

    fn glob(&mut self, glob: Glob) {
        let layer = glob.pieces().iter().find_map(|piece| layer_in(piece));
        self.globs.add(layer, glob);
    }

    /// Whether a name in the list is that of a module below `path`.
    pub(super) fn names_below(&self, path: &str) -> bool {
        self.exact
            .iter()
            .any(|name| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Whether a module (by the engine's path) stays unquantised.
    pub(super) fn skips(&self, path: &str, naming: &Naming) -> bool {
        self.answer(path, naming) == Skip::Whole
    }

    /// The same where the list has to say the same of all parts of a fused module.
    ///
    /// # Errors
    /// [`Refused`] if it names some of them alone.
    pub(super) fn skips_whole(&self, path: &str, naming: &Naming) -> Result<bool, Refused> {
        match self.answer(path, naming) {
            Skip::None => Ok(false),
            Skip::Whole => Ok(true),
            // vLLM 0.32.0, `is_layer_skipped` in quantization/utils/quant_utils.py.
            Skip::Some => Err(Refused(format!(
                "Detected some but not all shards of {path} are quantized. All shards of fused layers to have the \
                 same precision."
            ))),
        }
    }

    /// What it tells of layers, as the list of this number.
    pub(super) fn tell<'a>(&'a self, list: usize, told: &mut Told<'a>) {
        for name in &self.exact {
            match self.mode {
                Match::Exact | Match::Expression => told.whole(list, name),
                Match::Part | Match::End | Match::Wildcard => told.part(list, name),
            }
        }
        self.globs.all().for_each(|glob| told.glob(list, glob));
        self.expressions.iter().for_each(|e| told.expression(e.as_str()));
    }

    /// Whether it names nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.globs.is_empty() && self.expressions.is_empty()
    }

    fn answer(&self, path: &str, naming: &Naming) -> Skip {
        if self.is_empty() {
            return Skip::None;
        }
        if self.exact.contains(path) {
            return Skip::Whole;
        }
        let of_parts = |hit: &dyn Fn(&str) -> bool| {
            let (mut hits, mut all) = (0, 0);
            naming.each_part(path, |part| {
                hits += usize::from(hit(part));
                all += 1;
            });
            match hits {
                0 => Skip::None,
                _ if hits == all => Skip::Whole,
                _ => Skip::Some,
            }
        };
        let whole = |hit: bool, parts: Skip| if hit { Skip::Whole } else { parts };
        let named = |path: &str| self.parts.any(path, |n| holds(path, n));
        match self.mode {
            // Experts, and what is called so, are skipped by any entry below them.
            Match::Exact if !naming.fuses(path) && path.contains(EXPERTS) => {
                whole(self.experts.iter().any(|n| n.contains(path)), Skip::None)
            }
            Match::Exact => of_parts(&|part| self.exact.contains(part)),
            Match::End => whole(
                self.exact.iter().any(|end| path.ends_with(end.as_str())),
                Skip::None,
            ),
            Match::Part if named(path) => Skip::Whole,
            Match::Part => of_parts(&named),
            // Names of parts first, as whole names; what a wildcard or a part of a name matches, it matches whole.
            Match::Wildcard => match of_parts(&|part| self.exact.contains(part)) {
                Skip::None => whole(
                    named(path)
                        || self.globs.any(path, |g| g.is_match(path))
                        || path.strip_prefix("language_model.").is_some_and(named)
                        || !naming.fuses(path)
                            && path.contains(EXPERTS)
                            && self.experts.iter().any(|n| n.contains(path)),
                    Skip::None,
                ),
                answer => answer,
            },
            Match::Expression => {
                let hit = |path: &str| self.names(path);
                if hit(path) { Skip::Whole } else { of_parts(&hit) }
            }
        }
    }
}

/// What a list says of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Skip {
    /// Nothing.
    None,
    /// Some of the parts that it is fused of are in the list, others are not.
    Some,
    /// It is in the list.
    Whole,
}

/// Why the engine would not build a module in the checkpoint's scheme, in its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

/// What the path of fused routed experts holds.
const EXPERTS: &str = "experts";

/// Patterns by the number of the layer that they are about, so that a path meets only those of its own layer.
#[derive(Debug, Clone)]
struct ByLayer<T> {
    /// Patterns that name no layer.
    general: Vec<T>,
    /// Patterns whose text holds the number between two dots.
    layers: BTreeMap<u64, Vec<T>>,
}

impl<T> Default for ByLayer<T> {
    fn default() -> Self {
        Self {
            general: Vec::new(),
            layers: BTreeMap::new(),
        }
    }
}

impl<T> ByLayer<T> {
    fn add(&mut self, layer: Option<u64>, pattern: T) {
        match layer {
            None => self.general.push(pattern),
            Some(layer) => self.layers.entry(layer).or_default().push(pattern),
        }
    }

    fn is_empty(&self) -> bool {
        self.general.is_empty() && self.layers.is_empty()
    }

    /// All patterns; those of a layer in their order.
    fn all(&self) -> impl Iterator<Item = &T> {
        self.general.iter().chain(self.layers.values().flatten())
    }

    /// Whether a pattern that can match `path` does.
    fn any(&self, path: &str, matches: impl Fn(&T) -> bool) -> bool {
        self.general.iter().any(&matches)
            || !self.layers.is_empty()
                && numbers(path)
                    .filter_map(|number| self.layers.get(&number))
                    .any(|own| own.iter().any(&matches))
    }
}

/// The numbers between two dots; those of more digits than 64 bits hold are one.
fn numbers(text: &str) -> impl Iterator<Item = u64> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(dot) = bytes[at..].iter().position(|&b| b == b'.') {
            at += dot + 1;
            let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            if digits > 0 && bytes.get(at + digits) == Some(&b'.') {
                let number = &bytes[at..at + digits];
                at += digits;
                return Some(number.iter().fold(0_u64, |n, b| {
                    n.saturating_mul(10).saturating_add(u64::from(b - b'0'))
                }));
            }
        }
        None
    })
}

/// The first number between two dots: a path that holds `text` holds it too, between dots.
fn layer_in(text: &str) -> Option<u64> {
    numbers(text).next()
}

/// Whether `path` contains `name`: both are short, so that preparing a search costs more than it saves.
fn holds(path: &str, name: &str) -> bool {
    let (path, name) = (path.as_bytes(), name.as_bytes());
    match name.first() {
        None => true,
        Some(first) => path
            .windows(name.len())
            .any(|window| window[0] == *first && window == name),
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

    fn usual() -> Naming {
        Naming::of_class("")
    }

    #[test]
    fn expressions_match_from_the_start_as_in_python() {
        let list = [
            "lm_head",
            "re:.*self_attn.*",
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
        ];
        let ignore = Ignore::new(Match::Expression, &list).unwrap();
        assert!(ignore.skips("lm_head", &usual()));
        assert!(ignore.skips("model.layers.3.self_attn.kv_b_proj", &usual()));
        assert!(ignore.skips("model.layers.0.mlp.gate_up_proj", &usual()));
        assert!(!ignore.skips("model.layers.3.mlp.experts", &usual()));
    }

    #[test]
    fn a_fused_module_is_skipped_when_all_its_parts_are() {
        let list = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.0.self_attn.v_proj",
        ];
        let ignore = Ignore::new(Match::Exact, &list).unwrap();
        assert!(ignore.skips("model.layers.0.self_attn.qkv_proj", &usual()));
        assert!(!ignore.skips("model.layers.1.self_attn.qkv_proj", &usual()));
        let some = Ignore::new(Match::Exact, &list[..2]).unwrap();
        assert!(
            some.skips_whole("model.layers.0.self_attn.qkv_proj", &usual())
                .is_err()
        );
        assert_eq!(
            some.skips_whole("model.layers.1.self_attn.qkv_proj", &usual()),
            Ok(false)
        );
        // A short name is no exact match: fp8 checkpoints that list "gate" skip nothing by it.
        assert!(
            !Ignore::new(Match::Exact, &["gate"])
                .unwrap()
                .skips("model.layers.0.mlp.gate", &usual())
        );
    }

    #[test]
    fn a_wildcard_matches_a_whole_path_and_a_name_any_part_of_one() {
        let list = ["model.layers.0.self_attn*", "lm_head"];
        let ignore = Ignore::new(Match::Wildcard, &list).unwrap();
        assert!(ignore.skips("model.layers.0.self_attn.qkv_proj", &usual()));
        assert!(!ignore.skips("language_model.model.layers.0.self_attn.qkv_proj", &usual()));
        assert!(!ignore.skips("model.layers.10.self_attn.qkv_proj", &usual()));
        assert!(ignore.skips("language_model.lm_head", &usual()));
    }

    proptest::proptest! {
        #[test]
        fn numbers_between_dots_are_those_of_a_split(text in "[a.1]{0,12}(\\.00?[12]\\.)?[b.2]{0,6}") {
            let pieces: Vec<&str> = text.split('.').collect();
            let inner = pieces.get(1..pieces.len().saturating_sub(1)).unwrap_or_default();
            let naive: Vec<u64> = inner.iter().filter_map(|piece| piece.parse().ok()).collect();
            proptest::prop_assert_eq!(numbers(&text).collect::<Vec<_>>(), naive);
        }

        #[test]
        fn a_path_holds_what_it_contains(path in "[ab.]{0,8}", name in "[ab.]{0,4}") {
            proptest::prop_assert_eq!(holds(&path, &name), path.contains(&name));
        }

        #[test]
        fn sorting_by_layer_changes_no_answer(
            entries in proptest::collection::vec("(a|model|\\*)?(\\.(b|1|12|2|\\*)){0,4}\\*?", 1..6),
            path in "(a|model)(\\.(b|1|12|2)){0,5}",
        ) {
            let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
            for mode in [Match::Part, Match::Wildcard] {
                let naive = entries.iter().any(|entry| {
                    match mode {
                        Match::Wildcard if entry.contains('*') => Glob::new(entry).is_match(&path),
                        _ => path.contains(entry),
                    }
                });
                proptest::prop_assert_eq!(Ignore::new(mode, &entries).unwrap().skips(&path, &usual()), naive, "{:?}", mode);
            }
        }
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        assert!(Ignore::new(Match::Expression, &["re:("]).is_err());
        assert!(Ignore::new(Match::Expression, &["re:".to_owned(), "x".repeat(5000)]).is_err());
    }
}
