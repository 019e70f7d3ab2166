//! Which layers the names in a checkpoint's lists tell apart.
//!
//! A list names hundreds of modules, mostly the same ones of every layer. Two layers get the same schemes if nothing in the
//! lists distinguishes their numbers: then one of them is asked for both.

use std::ops::Range;

use super::glob::Glob;

/// Layers that one is compared with before it is taken for another.
const COMPARED: usize = 16;

/// What the lists say of each layer by its number.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// Whether some pattern may take any two numbers for different ones.
    every: bool,
    layers: Vec<Vec<Named<'a>>>,
}

/// A text with the number of a layer in it.
#[derive(Debug)]
struct Named<'a> {
    /// Which list it is in.
    list: usize,
    pieces: &'a [String],
    /// The piece with the number, and where that is.
    piece: usize,
    number: Range<usize>,
}

impl<'a> Named<'a> {
    /// All of it but the number; first what differs most.
    fn rest(&self) -> (&'a str, usize, &'a str, &'a [String], &'a [String]) {
        let text = self.pieces[self.piece].as_str();
        (
            &text[self.number.end..],
            self.list,
            &text[..self.number.start],
            &self.pieces[..self.piece],
            &self.pieces[self.piece + 1..],
        )
    }
}

impl PartialEq for Named<'_> {
    /// Whether both are the same beside the number.
    fn eq(&self, other: &Self) -> bool {
        self.rest() == other.rest()
    }
}

impl<'a> Told<'a> {
    /// Nothing said of any of a model's layers.
    pub(super) fn nothing(layers: usize) -> Self {
        Self {
            every: false,
            layers: std::iter::repeat_with(Vec::new).take(layers).collect(),
        }
    }

    /// Takes all layers for different.
    pub(super) fn every(&mut self) {
        self.every = true;
    }

    /// Adds a name that is compared with a whole path.
    pub(super) fn whole(&mut self, list: usize, name: &'a String) {
        self.piece(list, std::slice::from_ref(name), 0, true);
    }

    /// Adds a name that is compared with a part of a path.
    pub(super) fn part(&mut self, list: usize, name: &'a String) {
        self.piece(list, std::slice::from_ref(name), 0, false);
    }

    /// Adds a pattern.
    pub(super) fn glob(&mut self, list: usize, glob: &'a Glob) {
        for piece in 0..glob.pieces().len() {
            self.piece(list, glob.pieces(), piece, false);
        }
    }

    /// A path holds a layer's number between two dots: digits beside anything else are none, and digits at the end of a text
    /// that is compared with a part of a path may be the beginning of one, and those at its start the end.
    fn piece(&mut self, list: usize, pieces: &'a [String], piece: usize, whole: bool) {
        let bytes = pieces[piece].as_bytes();
        let mut at = 0;
        while let Some(ahead) = bytes[at..].iter().position(u8::is_ascii_digit) {
            let start = at + ahead;
            let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
            let end = start + digits;
            at = end;
            let before = start.checked_sub(1).map(|i| bytes[i]);
            let after = bytes.get(end).copied();
            if [before, after].iter().flatten().any(|&b| b != b'.') {
                continue;
            }
            if !whole && before.is_none() {
                self.every = true;
                return;
            }
            let Ok(number) = pieces[piece][start..end].parse::<usize>() else {
                continue;
            };
            // Numbers that begin so: itself, then ten of one digit more, and so on.
            let (mut first, mut last) = (number, number);
            loop {
                for layer in self.layers.iter_mut().take(last.saturating_add(1)).skip(first) {
                    layer.push(Named {
                        list,
                        pieces,
                        piece,
                        number: start..end,
                    });
                }
                if whole || after.is_some() || first == 0 || first >= self.layers.len() {
                    break;
                }
                (first, last) = (
                    first.saturating_mul(10),
                    last.saturating_mul(10).saturating_add(9),
                );
            }
        }
    }

    /// Adds an expression: one of letters, escaped dots, groups and repetitions of these takes all digits for the same.
    pub(super) fn expression(&mut self, text: &str) {
        let mut before = None;
        let mut chars = text.bytes();
        while let Some(b) = chars.next() {
            let same = match b {
                b'\\' => chars.next() == Some(b'.'),
                // Behind a letter they are no number.
                b'0'..=b'9' => {
                    self.every |= !before.is_some_and(|b: u8| b.is_ascii_alphabetic() || b == b'_');
                    continue;
                }
                b'.' | b'*' | b'+' | b'?' | b'(' | b')' | b'|' | b':' | b'^' | b'$' | b'_' | b'-' => true,
                b => b.is_ascii_alphabetic(),
            };
            self.every |= !same;
            before = Some(b);
        }
    }

    /// The first layer that each is like.
    pub(super) fn first_alike(mut self) -> Vec<usize> {
        for names in &mut self.layers {
            names.sort_unstable_by(|a, b| a.rest().cmp(&b.rest()));
        }
        // A pattern may count the digits.
        let digits = |layer: usize| layer.max(1).ilog10();
        let alike = |a: usize, b: usize| digits(a) == digits(b) && self.layers[a] == self.layers[b];
        let mut firsts: Vec<usize> = Vec::new();
        (0..self.layers.len())
            .map(|layer| {
                let known = firsts
                    .iter()
                    .rev()
                    .take(COMPARED)
                    .copied()
                    .find(|&first| alike(first, layer));
                match known {
                    Some(first) if !self.every => first,
                    _ => {
                        firsts.push(layer);
                        layer
                    }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::naming::Naming;
    use super::super::select::{Ignore, Match};
    use super::*;

    const LAYERS: usize = 25;

    fn first_alike(mode: Match, entries: &[&str]) -> Vec<usize> {
        let ignore = Ignore::new(mode, entries).unwrap();
        let mut told = Told::nothing(LAYERS);
        ignore.tell(0, &mut told);
        told.first_alike()
    }

    /// How many layers are asked.
    fn asked(mode: Match, entries: &[&str]) -> usize {
        let alike = first_alike(mode, entries);
        (0..LAYERS).filter(|&layer| alike[layer] == layer).count()
    }

    #[test]
    fn layers_of_which_a_list_says_the_same_are_asked_once_for_each_number_of_digits() {
        assert_eq!(asked(Match::Wildcard, &["lm_head", "*mlp.gate", "*conv1d*"]), 2);
        assert_eq!(
            asked(Match::Expression, &[r"re:.*mlp\.(gate|w1)$", "re:.*self_attn.*"]),
            2
        );
        let of_each: Vec<String> = (0..LAYERS)
            .map(|i| format!("model.layers.{i}.mlp.gate"))
            .collect();
        let of_each: Vec<&str> = of_each.iter().map(String::as_str).collect();
        for mode in [Match::Exact, Match::Part, Match::Wildcard, Match::Expression] {
            assert_eq!(asked(mode, &of_each), 2, "{mode:?}");
        }
        // In another order for one layer.
        let pair = |i: usize, names: [&str; 2]| names.map(|name| format!("a.{i}.{name}"));
        let mixed = [pair(3, ["x", "y"]), pair(4, ["y", "x"])].concat();
        let mixed: Vec<&str> = mixed.iter().map(String::as_str).collect();
        assert_eq!(first_alike(Match::Exact, &mixed)[3..5], [3, 3]);
    }

    #[test]
    fn a_layer_that_a_list_names_is_asked_itself() {
        assert_eq!(
            first_alike(Match::Wildcard, &["model.layers.3.mlp*"])[3..6],
            [3, 0, 0]
        );
        // What begins with a 1, and what an expression may take for a number.
        let begun = first_alike(Match::Wildcard, &["model.layers.1*"]);
        assert_eq!((begun[1], begun[9], begun[11], begun[20]), (1, 0, 10, 20));
        assert_eq!(
            asked(Match::Expression, &[r"re:model\.layers\.[0-4]\..*"]),
            LAYERS
        );
        assert_eq!(asked(Match::Part, &["3.mlp"]), LAYERS);
    }

    proptest::proptest! {
        #[test]
        fn layers_that_are_alike_get_the_same_answer(
            entries in proptest::collection::vec(
                "(a|\\*)?\\.?(0|1|1\\*|2|12|20|\\*|b1)?\\.?(x|y|x1|qkv_proj|q_proj|[xy]\\.1)?\\*?",
                1..6,
            ),
            expressions in proptest::collection::vec("re:(a|\\.\\*)?(\\\\\\.|\\.)?(1|\\.|1\\.|\\.\\.)?(\\\\\\.)?(x|x1|\\.\\*)?\\$?", 0..3),
        ) {
            let naming = Naming::of_class("");
            for mode in [Match::Exact, Match::Part, Match::End, Match::Wildcard, Match::Expression] {
                let mut entries: Vec<&str> = entries.iter().map(String::as_str).collect();
                if mode == Match::Expression {
                    entries.extend(expressions.iter().map(String::as_str));
                }
                let ignore = Ignore::new(mode, &entries).unwrap();
                let alike = first_alike(mode, &entries);
                for (layer, first) in alike.into_iter().enumerate() {
                    for below in ["x", "y", "x1", "x.1", "b1.x", "qkv_proj", "x.experts"] {
                        let answer = |layer: usize| ignore.skips_whole(&format!("a.{layer}.{below}"), &naming).map_err(drop);
                        proptest::prop_assert_eq!(
                            answer(layer), answer(first), "{:?} {:?}: {} as {}, {}", mode, &entries, layer, first, below
                        );
                    }
                }
            }
        }
    }
}
