//! Reads the words of an engine's command by the rules of its argument parser.
//!
//! Both engines use Python's `argparse`; vLLM adds underscores for dashes, `--config.field value` for fields of JSON flags and
//! `-O3` (vLLM 0.32.0, `vllm/utils/argparse_utils.py`, `FlexibleArgumentParser`). llama.cpp's parser is simpler (b11549,
//! `common/arg.cpp`, `common_params_parse_ex`): whole names, underscores for dashes, and the next word is the value, whatever
//! it begins with.

use std::fmt;

use super::{Flag, Found, Table, Takes, value};

/// Most words that are read; a longer command is none.
pub const MAX_WORDS: usize = 10_000;

/// A flag that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The flag.
    pub flag: &'static Flag,
    /// As it was written.
    pub written: String,
    /// Whether it was the `--no-` form.
    pub negated: bool,
    /// Whether it was abbreviated.
    pub abbreviated: bool,
    /// Its words.
    pub values: Vec<String>,
    /// The field of a JSON flag (`--compilation-config.mode`), without the flag.
    pub field: Option<String>,
}

/// Why the parser would stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// There is no such flag.
    Unknown {
        /// As written.
        name: String,
        /// Names that are close.
        near: Vec<&'static str>,
    },
    /// The flag is gone.
    Gone {
        /// As written.
        name: String,
        /// Last compared version that had it.
        last: &'static str,
    },
    /// The beginning of several flags.
    Ambiguous {
        /// As written.
        name: String,
        /// Flags that begin so.
        several: Vec<&'static str>,
    },
    /// No word follows a flag that takes one.
    MissingValue {
        /// The flag.
        name: String,
    },
    /// A word is joined to a flag that takes none.
    SurplusValue {
        /// The flag.
        name: String,
        /// The word.
        value: String,
    },
    /// A word cannot be read.
    BadValue {
        /// The flag.
        name: String,
        /// The word.
        value: String,
        /// What the flag takes.
        expected: String,
    },
    /// A flag and its value stand in one word.
    Joined {
        /// The word.
        word: String,
    },
    /// A flag and its value stand in one word, and this engine takes two only.
    OneWord {
        /// The word.
        word: String,
    },
    /// A word that belongs to nothing.
    Stray {
        /// The word.
        word: String,
    },
    /// More words than any command has.
    TooLong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, near } => {
                write!(f, "{name} is not a flag of this engine")?;
                match near.first() {
                    Some(near) => write!(f, "; the nearest is {near}"),
                    None => Ok(()),
                }
            }
            Self::Gone { name, last } => {
                write!(
                    f,
                    "{name} is gone (the last of the compared versions that had it is {last})"
                )
            }
            Self::Ambiguous { name, several } => {
                write!(
                    f,
                    "{name} is the beginning of several flags: {}",
                    several.join(", ")
                )
            }
            Self::MissingValue { name } => write!(f, "{name} takes a value, and none follows"),
            Self::SurplusValue { name, value } => write!(f, "{name} takes no value, but has \"{value}\""),
            Self::BadValue {
                name,
                value,
                expected,
            } => write!(f, "{name} takes {expected}, not \"{value}\""),
            Self::Joined { word } => {
                write!(
                    f,
                    "\"{word}\" is one word; a flag and its value must be two, or joined by ="
                )
            }
            Self::OneWord { word } => {
                write!(f, "\"{word}\" is one word; a flag and its value must be two")
            }
            Self::Stray { word } => write!(f, "\"{word}\" belongs to no flag"),
            Self::TooLong => write!(f, "there are more than {MAX_WORDS} words"),
        }
    }
}

/// A command that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Words that belong to no flag; the first is the model of `vllm serve`.
    pub positionals: Vec<String>,
    /// Flags in the order given.
    pub given: Vec<Given>,
    /// Why the parser would stop, in the order found.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// The last value of a flag: the one that counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.last(name).and_then(|g| g.values.first()).map(String::as_str)
    }

    /// The last time that a flag was given as a whole.
    pub fn last(&self, name: &str) -> Option<&Given> {
        self.given
            .iter()
            .rev()
            .find(|g| g.field.is_none() && g.flag.names.contains(&name))
    }
}

/// Reads the words after the program's name and subcommand.
pub fn parse(table: &'static Table, words: &[String]) -> Parsed {
    let mut out = Parsed::default();
    if words.len() > MAX_WORDS {
        out.problems.push(Problem::TooLong);
        return out;
    }
    let mut i = 0;
    while let Some(word) = words.get(i) {
        i += 1;
        if table.engine == "llamacpp" {
            i += llamacpp(table, word, &words[i..], &mut out);
            continue;
        }
        if word == "--" {
            out.positionals.extend_from_slice(&words[i..]);
            break;
        }
        if !looks_like_flag(word) {
            out.positionals.push(word.clone());
            continue;
        }
        i += flag(table, word, &words[i..], &mut out);
    }
    // Both parsers know one word without a flag at most: the model.
    let allowed = usize::from(table.engine == "vllm");
    let stray = out
        .positionals
        .iter()
        .skip(allowed)
        .map(|word| Problem::Stray { word: word.clone() });
    out.problems.extend(stray);
    out
}

/// Whether `argparse` takes the word for a flag: a dash first, and no negative number.
fn looks_like_flag(word: &str) -> bool {
    let Some(rest) = word.strip_prefix('-') else {
        return false;
    };
    if rest.is_empty() {
        return false;
    }
    let (whole, decimals) = rest.split_once('.').unwrap_or((rest, "0"));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !(digits(whole)
        && digits(decimals)
        && !decimals.is_empty()
        && (!whole.is_empty() || rest.starts_with('.')))
}

/// Reads one flag; answers how many of the words after it belong to it.
fn flag(table: &'static Table, word: &str, after: &[String], out: &mut Parsed) -> usize {
    let vllm = table.engine == "vllm";
    if vllm && let Some(level) = word.strip_prefix("-O") {
        return optimisation_level(table, word, level.strip_prefix('=').unwrap_or(level), after, out);
    }
    let (written, joined) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let (name, field) = match written.split_once('.') {
        Some((name, field)) if vllm => (name, Some(field)),
        _ => (written, None),
    };
    let name = match name.strip_prefix("--") {
        Some(rest) if vllm => format!("--{}", rest.replace('_', "-")),
        _ => name.to_owned(),
    };
    let (flag, negated, abbreviated) = match table.find(&name) {
        Found::Flag {
            flag,
            negated,
            abbreviated,
        } => (flag, negated, abbreviated),
        Found::Gone(flag) => {
            out.problems.push(Problem::Gone {
                name: written.to_owned(),
                last: flag.last.unwrap_or_default(),
            });
            return skip_values(joined, after);
        }
        Found::Ambiguous(several) => {
            out.problems.push(Problem::Ambiguous {
                name: written.to_owned(),
                several,
            });
            return skip_values(joined, after);
        }
        Found::Unknown(near) => {
            let first = word.split_whitespace().next().unwrap_or_default();
            if first.len() < word.len() && matches!(table.find(first), Found::Flag { .. }) {
                out.problems.push(Problem::Joined {
                    word: word.to_owned(),
                });
                return 0;
            }
            out.problems.push(Problem::Unknown {
                name: written.to_owned(),
                near,
            });
            return skip_values(joined, after);
        }
    };
    let mut given = Given {
        flag,
        written: written.to_owned(),
        negated,
        abbreviated,
        values: joined.map(str::to_owned).into_iter().collect(),
        field: field.map(str::to_owned),
    };
    let mut used = 0;
    match flag.takes {
        Takes::Nothing | Takes::Either => {
            if let Some(value) = joined {
                out.problems.push(Problem::SurplusValue {
                    name: written.to_owned(),
                    value: value.to_owned(),
                });
            }
        }
        Takes::One | Takes::Optional if joined.is_none() => {
            match after.first().filter(|next| !looks_like_flag(next)) {
                Some(next) => {
                    given.values.push(next.clone());
                    used = 1;
                }
                None if flag.takes == Takes::One => out.problems.push(Problem::MissingValue {
                    name: written.to_owned(),
                }),
                None => {}
            }
        }
        Takes::Some | Takes::Any if joined.is_none() => {
            used = after.iter().take_while(|next| !looks_like_flag(next)).count();
            given.values.extend_from_slice(&after[..used]);
            if used == 0 && flag.takes == Takes::Some {
                out.problems.push(Problem::MissingValue {
                    name: written.to_owned(),
                });
            }
        }
        _ => {}
    }
    // A field of a JSON flag takes anything.
    if given.field.is_none() && !matches!(flag.takes, Takes::Nothing | Takes::Either) {
        for value in &given.values {
            if let Err(expected) = value::check(flag, value) {
                out.problems.push(Problem::BadValue {
                    name: written.to_owned(),
                    value: value.clone(),
                    expected,
                });
            }
        }
    }
    out.given.push(given);
    used
}

/// Reads one word of llama.cpp's command; answers how many of the words after it belong to it.
fn llamacpp(table: &'static Table, word: &str, after: &[String], out: &mut Parsed) -> usize {
    let name = match word.strip_prefix("--") {
        Some(rest) => format!("--{}", rest.replace('_', "-")),
        None => word.to_owned(),
    };
    if !looks_like_flag(word) {
        out.problems.push(Problem::Stray {
            word: word.to_owned(),
        });
        return 0;
    }
    let (flag, negated) = match table.find(&name) {
        Found::Flag { flag, negated, .. } => (flag, negated),
        Found::Unknown(near) => {
            let first = word.split(['=', ' ']).next().unwrap_or_default();
            if first.len() < word.len() && matches!(table.find(first), Found::Flag { .. }) {
                out.problems.push(Problem::OneWord {
                    word: word.to_owned(),
                });
                return 0;
            }
            out.problems.push(Problem::Unknown {
                name: word.to_owned(),
                near,
            });
            return skip_values(None, after);
        }
        Found::Gone(_) | Found::Ambiguous(_) => {
            out.problems.push(Problem::Unknown {
                name: word.to_owned(),
                near: Vec::new(),
            });
            return skip_values(None, after);
        }
    };
    let mut given = Given {
        flag,
        written: word.to_owned(),
        negated,
        abbreviated: false,
        values: Vec::new(),
        field: None,
    };
    if flag.takes == Takes::One {
        match after.first() {
            None => out.problems.push(Problem::MissingValue {
                name: word.to_owned(),
            }),
            Some(value) => {
                if let Err(expected) = value::check(flag, value) {
                    out.problems.push(Problem::BadValue {
                        name: word.to_owned(),
                        value: value.clone(),
                        expected,
                    });
                }
                given.values.push(value.clone());
            }
        }
    }
    let used = given.values.len();
    out.given.push(given);
    used
}

/// `-O3`, `-O=3` and `-O 3` of vLLM.
fn optimisation_level(
    table: &'static Table,
    word: &str,
    joined: &str,
    after: &[String],
    out: &mut Parsed,
) -> usize {
    let Some(flag) = table.get("--optimization-level") else {
        return 0;
    };
    let (value, used) = match (joined, after.first()) {
        ("", Some(next)) => (next.clone(), 1),
        ("", None) => {
            out.problems.push(Problem::MissingValue {
                name: word.to_owned(),
            });
            return 0;
        }
        (joined, _) => (joined.to_owned(), 0),
    };
    out.given.push(Given {
        flag,
        written: "-O".to_owned(),
        negated: false,
        abbreviated: false,
        values: vec![value],
        field: None,
    });
    used
}

/// After a flag that is not known, the words that do not look like flags are taken for its values, so that one mistake is one
/// problem.
fn skip_values(joined: Option<&str>, after: &[String]) -> usize {
    usize::from(joined.is_none() && after.first().is_some_and(|next| !looks_like_flag(next)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::flags::{self, sglang, vllm};

    fn read(words: &[&str]) -> Parsed {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        parse(vllm(), &words)
    }

    #[test]
    fn every_way_of_writing_a_flag_that_the_parser_knows_is_read() {
        let read = read(&[
            "org/model",
            "-tp",
            "2",
            "--max_model_len=32k",
            "--enable-prefix-caching",
            "--no-enforce-eager",
            "--compilation-config.mode",
            "3",
            "-O3",
            "--kv-cache-dtype-skip-layers",
            "0",
            "5",
            "--max-num-seqs",
            "64",
        ]);
        assert_eq!(read.problems, []);
        assert_eq!(read.positionals, ["org/model"]);
        assert_eq!(read.value("--tensor-parallel-size"), Some("2"));
        assert_eq!(read.value("--max-model-len"), Some("32k"));
        assert_eq!(read.value("--optimization-level"), Some("3"));
        assert_eq!(
            read.last("--kv-cache-dtype-skip-layers").unwrap().values,
            ["0", "5"]
        );
        assert!(read.last("--enforce-eager").unwrap().negated);
        assert!(
            read.last("--compilation-config").is_none(),
            "only a field of it was given"
        );
    }

    #[test]
    fn llama_cpps_parser_takes_the_next_word_whatever_it_is() {
        let read = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            parse(flags::llamacpp(), &words)
        };
        let good = read(&[
            "-m",
            "-odd.gguf",
            "--ctx_size",
            "8192",
            "-nkvo",
            "-np",
            "4",
            "-ctk",
            "q8_0",
        ]);
        assert_eq!(good.problems, []);
        assert_eq!(good.value("--model"), Some("-odd.gguf"));
        assert_eq!(good.value("--ctx-size"), Some("8192"));
        assert!(good.last("--kv-offload").unwrap().negated);
        // The engine reads 8k as 8, which nobody means.
        for (words, says) in [
            (vec!["-c", "8k"], "-c takes an integer"),
            (vec!["--ctx-size=8192"], "is one word"),
            (vec!["-ctk", "fp8"], "-ctk takes one of f32, f16"),
            (vec!["-m"], "takes a value, and none follows"),
            (vec!["model.gguf"], "belongs to no flag"),
            (vec!["--ctx-siz", "1"], "the nearest is --ctx-size"),
        ] {
            let problem = read(&words).problems[0].to_string();
            assert!(problem.contains(says), "{words:?}: {problem}");
        }
    }

    #[test]
    fn what_the_parser_refuses_is_named() {
        for (words, says) in [
            (
                vec!["m", "--dtype", "fp16"],
                "--dtype takes one of auto, bfloat16",
            ),
            (
                vec!["m", "--kv-cache-dtype", "fp8_e4m3fn"],
                "--kv-cache-dtype takes one of",
            ),
            (vec!["m", "--swap-space", "4"], "--swap-space is gone"),
            (vec!["m", "--max-modl-len", "4"], "the nearest is --max-model-len"),
            (vec!["m", "--dtype auto"], "is one word"),
            (vec!["m", "--max-model-len"], "takes a value, and none follows"),
            (
                vec!["m", "--max-model-len", "--dtype"],
                "takes a value, and none follows",
            ),
            (vec!["m", "--enforce-eager=yes"], "takes no value"),
            (vec!["m", "other"], "\"other\" belongs to no flag"),
            (vec!["m", "--speculative-config", "{method: mtp}"], "takes JSON"),
            (vec!["m", "--max-num", "4"], "beginning of several"),
            (
                vec!["m", "--quantization", "int8"],
                "--quantization takes one of awq",
            ),
        ] {
            let read = read(&words);
            let text: Vec<String> = read.problems.iter().map(ToString::to_string).collect();
            assert!(text.iter().any(|t| t.contains(says)), "{words:?}: {text:?}");
        }
    }

    #[test]
    fn one_mistake_is_one_problem() {
        assert_eq!(
            read(&["m", "--swap-space", "4", "--dtype", "auto"])
                .problems
                .len(),
            1
        );
        assert_eq!(read(&["m", "--no-such", "x"]).problems.len(), 1);
    }

    #[test]
    fn negative_numbers_are_values_and_not_flags() {
        assert_eq!(read(&["m", "--max-model-len", "-1"]).problems, []);
        for (word, is) in [
            ("-1", false),
            ("-.5", false),
            ("-1.5", false),
            ("-tp", true),
            ("-", false),
            ("-1a", true),
        ] {
            assert_eq!(looks_like_flag(word), is, "{word}");
        }
    }

    #[test]
    fn sglang_knows_no_word_without_a_flag() {
        let words = ["--model-path", "m", "--tp", "2", "stray"].map(str::to_owned);
        let read = parse(sglang(), &words);
        assert_eq!(read.value("--model-path"), Some("m"));
        assert!(
            read.problems.iter().any(|p| matches!(p, Problem::Stray { .. })),
            "{:?}",
            read.problems
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_words_make_the_reader_panic(words in proptest::collection::vec("(-{0,2})[a-z=._ \"{}-]{0,12}|.{0,6}", 0..8)) {
            let read = parse(vllm(), &words);
            prop_assert!(read.positionals.len() + read.given.len() <= words.len());
            parse(sglang(), &words);
        }
    }
}
