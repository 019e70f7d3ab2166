//! The command lines of the engines: which flags there are, what they take, and in which versions.
//!
//! The rows are data, written from the engines' own argument parsers by `tests/reference/engine_flags.py`
//! (`data/flags_vllm.tsv` from vLLM 0.32.0, with the flags of four older releases; `data/flags_sglang.tsv` from SGLang
//! 0.5.23) and `tests/reference/llamacpp_flags.py` (`data/flags_llamacpp.tsv` from llama.cpp b11549).
//! [`parse`](parse::parse) reads a command by the parsers' rules and says what they would refuse.
//!
//! ```
//! use kvwise_core::engine::flags::{self, parse::parse};
//! let words = ["Qwen/Qwen3-8B", "--tensor-parallel-size", "two"].map(str::to_owned);
//! let read = parse(flags::vllm(), &words);
//! assert_eq!(read.positionals, ["Qwen/Qwen3-8B"]);
//! assert_eq!(read.problems[0].to_string(), "--tensor-parallel-size takes an integer, not \"two\"");
//! ```

pub mod meaning;
pub mod parse;
mod value;

use std::collections::HashMap;
use std::sync::OnceLock;

pub use value::ValueKind;

use crate::names::nearest;
use crate::{Error, Result};

/// How many words a flag takes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// None: a switch.
    Nothing,
    /// None: a switch with an opposite, `--no-...`.
    Either,
    /// One.
    One,
    /// One or none.
    Optional,
    /// At least one.
    Some,
    /// Any number.
    Any,
}

/// One flag of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Spellings, the usual long one first.
    pub names: Vec<&'static str>,
    /// Spellings of the opposite besides `--no-` and the first name.
    pub opposites: Vec<&'static str>,
    /// Words that follow.
    pub takes: Takes,
    /// What a word must be.
    pub value: ValueKind,
    /// Words that are allowed; empty for any.
    pub choices: Vec<&'static str>,
    /// The parser's default as text; empty where there is none, or the engine works it out later.
    pub default: &'static str,
    /// First of the compared versions that has it.
    pub first: &'static str,
    /// Last of the compared versions that had it; `None` if it is still there.
    pub last: Option<&'static str>,
}

impl Flag {
    /// The usual spelling.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Whether these words say no more than the default does.
    pub fn is_default(&self, values: &[String], negated: bool) -> bool {
        match (self.takes, values) {
            (Takes::Nothing, _) => false,
            (Takes::Either, _) => self.default == if negated { "False" } else { "True" },
            (_, [one]) if !self.default.is_empty() => {
                one == self.default
                    || matches!((one.parse::<f64>(), self.default.parse::<f64>()), (Ok(a), Ok(b)) if a.total_cmp(&b).is_eq())
            }
            _ => false,
        }
    }
}

/// The command line of an engine.
#[derive(Debug)]
pub struct Table {
    /// `vllm`, `sglang` or `llamacpp`.
    pub engine: &'static str,
    /// Version whose parser was read.
    pub version: &'static str,
    /// All versions compared, oldest first.
    pub compared: Vec<&'static str>,
    flags: Vec<Flag>,
    index: HashMap<&'static str, usize>,
}

/// What a spelling means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This flag; `negated` for `--no-...`.
    Flag {
        /// The flag.
        flag: &'static Flag,
        /// Whether it is the `--no-` form.
        negated: bool,
        /// Whether it was abbreviated.
        abbreviated: bool,
    },
    /// An earlier version had it.
    Gone(&'static Flag),
    /// The abbreviation of several.
    Ambiguous(Vec<&'static str>),
    /// Nothing; names that are close.
    Unknown(Vec<&'static str>),
}

impl Table {
    /// Every flag, also those that are gone.
    pub fn flags(&'static self) -> &'static [Flag] {
        &self.flags
    }

    /// The flag with exactly this spelling that the newest version has.
    pub fn get(&'static self, name: &str) -> Option<&'static Flag> {
        self.index
            .get(name)
            .map(|&i| &self.flags[i])
            .filter(|f| f.last.is_none())
    }

    /// Looks a spelling up as the parser does: exactly, its `--no-` form, or as a unique beginning.
    pub fn find(&'static self, name: &str) -> Found {
        let exact = |name: &str| self.index.get(name).map(|&i| &self.flags[i]);
        if let Some(flag) = exact(name) {
            return match flag.last {
                None => Found::Flag {
                    flag,
                    negated: false,
                    abbreviated: false,
                },
                Some(_) => Found::Gone(flag),
            };
        }
        if let Some(positive) = name.strip_prefix("--no-")
            && let Some(flag) = exact(&format!("--{positive}"))
            && flag.takes == Takes::Either
        {
            return Found::Flag {
                flag,
                negated: true,
                abbreviated: false,
            };
        }
        let here = || self.flags.iter().filter(|f| f.last.is_none());
        if let Some(flag) = here().find(|f| f.opposites.contains(&name)) {
            return Found::Flag {
                flag,
                negated: true,
                abbreviated: false,
            };
        }
        // llama.cpp's parser knows no abbreviations.
        if name.len() > 2 && name.starts_with("--") && self.engine != "llamacpp" {
            let mut matches: Vec<(&'static Flag, bool)> = here()
                .filter(|f| f.names.iter().any(|n| n.starts_with(name)))
                .map(|f| (f, false))
                .collect();
            if let Some(positive) = name.strip_prefix("--no-") {
                matches.extend(
                    here()
                        .filter(|f| f.takes == Takes::Either && f.name()[2..].starts_with(positive))
                        .map(|f| (f, true)),
                );
            }
            match matches.as_slice() {
                [] => {}
                [(flag, negated)] => {
                    return Found::Flag {
                        flag,
                        negated: *negated,
                        abbreviated: true,
                    };
                }
                several => return Found::Ambiguous(several.iter().map(|(f, _)| f.name()).collect()),
            }
        }
        let all = here()
            .flat_map(|f| f.names.iter().copied())
            .filter(|n| n.starts_with("--"));
        Found::Unknown(nearest(name.trim_start_matches('-'), all, 3))
    }

    /// Whether `version` surely has the flag: it is not older than the first compared version that has it.
    pub fn has(&self, flag: &Flag, version: &str) -> bool {
        key(version) >= key(flag.first) && flag.last.is_none_or(|last| key(version) <= key(last))
    }
}

/// Whether a version comes before another, by their numbers: `0.9.2` before `0.19.0`.
pub fn older(version: &str, than: &str) -> bool {
    key(version) < key(than)
}

/// The numbers of a version, for comparison.
fn key(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    let parts = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty());
    for (slot, part) in numbers.iter_mut().zip(parts) {
        *slot = part.parse().unwrap_or(u32::MAX);
    }
    numbers
}

/// vLLM's command line (`vllm serve`).
///
/// # Panics
/// Never for the shipped rows, which a test reads.
pub fn vllm() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        read("vllm", include_str!("../../../data/flags_vllm.tsv")).expect("shipped rows are checked by tests")
    })
}

/// SGLang's command line (`python3 -m sglang.launch_server`).
///
/// # Panics
/// Never for the shipped rows, which a test reads.
pub fn sglang() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        read("sglang", include_str!("../../../data/flags_sglang.tsv"))
            .expect("shipped rows are checked by tests")
    })
}

/// llama.cpp's command line (`llama-server`).
///
/// # Panics
/// Never for the shipped rows, which a test reads.
pub fn llamacpp() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        read("llamacpp", include_str!("../../../data/flags_llamacpp.tsv"))
            .expect("shipped rows are checked by tests")
    })
}

/// The command line of an engine by its name: `vllm`, `sglang` or `llamacpp`.
pub fn of(engine: &str) -> Option<&'static Table> {
    match engine {
        "vllm" => Some(vllm()),
        "sglang" => Some(sglang()),
        "llamacpp" => Some(llamacpp()),
        _ => None,
    }
}

fn read(engine: &'static str, text: &'static str) -> Result<Table> {
    let mut compared = Vec::new();
    let mut flags = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let broken = |what: &str| Error::input(format!("flags of {engine}, line {}: {what}", number + 1));
        if let Some(comment) = line.strip_prefix('#') {
            if let Some(list) = comment.trim().strip_prefix("versions compared:") {
                compared = list.split_whitespace().collect();
            }
            continue;
        }
        let cells: Vec<&'static str> = line.split('\t').collect();
        let [names, takes, value, choices, default, first, last] = cells[..] else {
            return Err(broken("expected seven columns"));
        };
        let takes = match takes {
            "0" => Takes::Nothing,
            "b" => Takes::Either,
            "1" | "a" => Takes::One,
            "?" => Takes::Optional,
            "+" => Takes::Some,
            "*" => Takes::Any,
            other => return Err(broken(&format!("takes is \"{other}\""))),
        };
        let value = ValueKind::named(value).ok_or_else(|| broken(&format!("type is \"{value}\"")))?;
        flags.push(Flag {
            names: names.split(',').filter(|n| !n.starts_with('!')).collect(),
            opposites: names.split(',').filter_map(|n| n.strip_prefix('!')).collect(),
            takes,
            value,
            choices: choices.split('|').filter(|c| !c.is_empty()).collect(),
            default,
            first,
            last: Some(last).filter(|v| !v.is_empty()),
        });
    }
    let mut index = HashMap::new();
    for (i, flag) in flags.iter().enumerate() {
        for &name in &flag.names {
            if index.insert(name, i).is_some() {
                return Err(Error::input(format!("flags of {engine}: {name} is there twice")));
            }
        }
    }
    let version = compared.last().copied().unwrap_or_default();
    Ok(Table {
        engine,
        version,
        compared,
        flags,
        index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_tables_read_and_know_the_flags_that_matter_for_memory() {
        assert_eq!((vllm().version, sglang().version), ("0.32.0", "0.5.23"));
        for name in [
            "--tensor-parallel-size",
            "-tp",
            "--max-model-len",
            "--gpu-memory-utilization",
            "--kv-cache-dtype",
            "--max-num-seqs",
            "--quantization",
        ] {
            assert!(vllm().get(name).is_some(), "{name}");
        }
        for name in [
            "--model-path",
            "--mem-fraction-static",
            "--page-size",
            "--tp-size",
            "--context-length",
        ] {
            assert!(sglang().get(name).is_some(), "{name}");
        }
        for name in [
            "--model",
            "-hf",
            "--ctx-size",
            "-np",
            "--n-gpu-layers",
            "-ctk",
            "-ctv",
            "-fa",
            "-b",
            "-ub",
            "--kv-unified",
            "--tensor-split",
            "--host",
            "--port",
            "--alias",
        ] {
            assert!(llamacpp().get(name).is_some(), "{name}");
        }
        assert!(vllm().flags().len() > 350 && sglang().flags().len() > 500 && llamacpp().flags().len() > 200);
        for table in [vllm(), sglang(), llamacpp()] {
            assert!(std::ptr::eq(of(table.engine).unwrap(), table));
        }
    }

    #[test]
    fn llama_cpp_has_short_opposites_and_no_abbreviations() {
        let Found::Flag { flag, negated, .. } = llamacpp().find("-nkvo") else {
            panic!()
        };
        assert_eq!((flag.name(), negated), ("--kv-offload", true));
        assert!(matches!(
            llamacpp().find("--no-kv-offload"),
            Found::Flag { negated: true, .. }
        ));
        assert!(matches!(llamacpp().find("--ctx-siz"), Found::Unknown(_)));
    }

    #[test]
    fn a_flag_that_went_away_is_told_from_one_that_never_was() {
        let Found::Gone(flag) = vllm().find("--swap-space") else {
            panic!()
        };
        assert_eq!(flag.last, Some("0.12.0"));
        assert!(vllm().has(flag, "0.8.5") && !vllm().has(flag, "0.32.0"));
        let Found::Unknown(near) = vllm().find("--gpu-memory-utilisation") else {
            panic!()
        };
        assert_eq!(near[0], "--gpu-memory-utilization");
        assert!(matches!(vllm().find("--completely-made-up"), Found::Unknown(near) if near.is_empty()));
    }

    #[test]
    fn opposites_and_unique_beginnings_are_found_as_the_parser_finds_them() {
        let found = |name: &str| match vllm().find(name) {
            Found::Flag {
                flag,
                negated,
                abbreviated,
            } => (flag.name(), negated, abbreviated),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(
            found("--no-enable-prefix-caching"),
            ("--enable-prefix-caching", true, false)
        );
        assert_eq!(found("--tensor-par"), ("--tensor-parallel-size", false, true));
        assert!(matches!(vllm().find("--max-num"), Found::Ambiguous(several) if several.len() > 2));
    }

    #[test]
    fn defaults_are_recognised_in_any_spelling_of_the_number() {
        let flag = vllm().get("--gpu-memory-utilization").unwrap();
        assert!(flag.is_default(&["0.920".to_owned()], false));
        assert!(!flag.is_default(&["0.9".to_owned()], false));
        let caching = vllm().get("--enforce-eager").unwrap();
        assert!(caching.is_default(&[], true) && !caching.is_default(&[], false));
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(key("0.10.2") > key("0.8.5") && key("v0.32.0") == key("0.32"));
    }
}
