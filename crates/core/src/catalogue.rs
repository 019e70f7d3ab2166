//! The built-in catalogue of models: published configurations under their hub ids, each with source and date.
//!
//! One model a line (`data/models.jsonl`); a look-up reads only the heads of the lines, and a configuration is parsed
//! when it is asked for.

use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::arch::Config;
use crate::names::{nearest, normalise};
use crate::{Error, Result};

const ROWS: &str = include_str!("../data/models.jsonl");

/// One model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Hub id, e.g. `Qwen/Qwen3-32B`.
    pub id: &'static str,
    /// Other hub ids with the same configuration.
    pub aliases: Vec<&'static str>,
    row: &'static str,
}

/// Where a row of the catalogue comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Source of the configuration.
    pub source: &'static str,
    /// When it was collected, `YYYY-MM-DD`.
    pub date: &'static str,
    /// What the reader should know about it.
    pub note: Option<&'static str>,
}

#[derive(Deserialize)]
struct Row {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read from the head of the line; here for the test")
    )]
    id: &'static str,
    #[serde(default, borrow)]
    #[cfg_attr(not(test), expect(dead_code, reason = "as the id"))]
    aliases: Vec<&'static str>,
    source: &'static str,
    date: &'static str,
    note: Option<&'static str>,
    #[serde(borrow)]
    config: &'static RawValue,
}

impl Entry {
    /// The `config.json`, parsed.
    ///
    /// # Errors
    /// Never for the shipped rows (a test parses them all).
    pub fn config(&self) -> Result<Config> {
        Config::parse(self.config_text()?.as_bytes())
    }

    /// The `config.json` as text.
    ///
    /// # Errors
    /// Never for the shipped rows.
    pub fn config_text(&self) -> Result<&'static str> {
        self.read().map(|row| row.config.get())
    }

    /// Source and date of the row.
    ///
    /// # Errors
    /// Never for the shipped rows.
    pub fn provenance(&self) -> Result<Provenance> {
        self.read().map(|row| Provenance {
            source: row.source,
            date: row.date,
            note: row.note,
        })
    }

    /// Every name of the model: the id, then the aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        std::iter::once(self.id).chain(self.aliases.iter().copied())
    }

    fn read(&self) -> Result<Row> {
        serde_json::from_str(self.row).map_err(|e| Error::input(format!("catalogue row {}: {e}", self.id)))
    }
}

/// Every model, sorted by id.
pub fn all() -> impl Iterator<Item = Entry> {
    let ends = memchr::memchr_iter(b'\n', ROWS.as_bytes());
    let head_end = memmem::Finder::new(",\"source\":");
    ends.scan(0, |start, end| {
        let row = &ROWS[*start..end];
        *start = end + 1;
        Some(row)
    })
    .filter_map(move |row| {
        // Only the head is looked at: {"id":"...","aliases":["...",...]; ids hold no quotes, so the strings are
        // every second piece between quotes. A test compares this with a whole parse.
        let head = &row[..head_end.find(row.as_bytes())?];
        let mut strings = head.split('"').skip(1).step_by(2);
        let ("id", id) = (strings.next()?, strings.next()?) else {
            return None;
        };
        Some(Entry {
            id,
            aliases: strings.skip(1).collect(),
            row,
        })
    })
}

/// The model with this hub id, alias, or name without organisation; case and punctuation do not matter.
///
/// # Errors
/// If no model, or more than one, has this name; the nearest names are hints.
pub fn find(name: &str) -> Result<Entry> {
    let exact = |entry: &Entry| entry.names().any(|n| n.eq_ignore_ascii_case(name));
    if let Some(entry) = all().find(exact) {
        return Ok(entry);
    }
    let entries: Vec<Entry> = all().collect();
    let wanted = normalise(name);
    let short = |id: &str| normalise(id.rsplit('/').next().unwrap_or(id));
    let same: Vec<&Entry> = entries
        .iter()
        .filter(|entry| {
            !wanted.is_empty()
                && entry
                    .names()
                    .any(|n| short(n) == wanted || normalise(n) == wanted)
        })
        .collect();
    match same.as_slice() {
        [entry] => return Ok((*entry).clone()),
        [] => {}
        several => {
            let ids: Vec<&str> = several.iter().map(|entry| entry.id).collect();
            return Err(
                Error::not_found(format!("\"{name}\" is the name of several models"))
                    .hint(format!("write one of: {}", ids.join(", "))),
            );
        }
    }
    let error = Error::not_found(format!(
        "the model \"{name}\" is neither a file or folder here nor in the catalogue"
    ));
    let near = nearest(name, entries.iter().flat_map(Entry::names), 4);
    let error = if near.is_empty() {
        error
    } else {
        error.hint(format!("did you mean {}?", near.join(", ")))
    };
    Err(error.hint("`kvwise models` lists the catalogue; a folder with config.json, or the file itself, works for any model"))
}

/// The models whose id or aliases contain every word of the query, in any case.
pub fn search(query: &str) -> impl Iterator<Item = Entry> {
    let words: Vec<String> = query.split_whitespace().map(str::to_ascii_lowercase).collect();
    all().filter(move |entry| {
        let names = entry.names().map(str::to_ascii_lowercase).collect::<Vec<_>>();
        words
            .iter()
            .all(|word| names.iter().any(|name| name.contains(word)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_parses_and_has_source_and_date() {
        assert_eq!(
            all().count(),
            ROWS.lines().count(),
            "a row's head could not be read"
        );
        assert!(all().count() >= 100);
        for entry in all() {
            let row = entry.read().unwrap();
            assert_eq!((row.id, &row.aliases), (entry.id, &entry.aliases));
            let p = entry.provenance().unwrap();
            assert!(p.source.len() > 10 && p.date.len() == 10, "{}", entry.id);
            let config = entry.config().unwrap();
            assert!(config.get("architectures").is_some(), "{}", entry.id);
        }
    }

    #[test]
    fn names_are_unique_and_sorted() {
        let mut seen = HashSet::new();
        for name in all().flat_map(|e| e.names().collect::<Vec<_>>()) {
            assert!(seen.insert(name.to_ascii_lowercase()), "{name} twice");
        }
        let ids: Vec<String> = all().map(|e| e.id.to_ascii_lowercase()).collect();
        assert!(ids.is_sorted());
    }

    #[test]
    fn names_are_found_in_any_case_and_without_the_organisation() {
        for name in [
            "meta-llama/Llama-3.1-8B",
            "META-LLAMA/meta-llama-3.1-8b",
            "llama-3.1-8b",
            "Llama 3.1 8B",
        ] {
            assert_eq!(find(name).unwrap().id, "meta-llama/Meta-Llama-3.1-8B", "{name}");
        }
    }

    #[test]
    fn an_unknown_name_gets_suggestions_and_never_a_guess() {
        let e = find("llama-3.1-8").unwrap_err();
        assert!(e.hints()[0].contains("Llama-3.1-8B"), "{e:?}");
        for name in ["", "a", "8b", "llama"] {
            assert!(find(name).is_err(), "{name}");
        }
    }

    #[test]
    fn search_wants_every_word() {
        let ids: Vec<&str> = search("qwen3 fp8").map(|e| e.id).collect();
        assert!(
            ids.contains(&"Qwen/Qwen3-32B-FP8") && !ids.contains(&"Qwen/Qwen3-32B"),
            "{ids:?}"
        );
    }
}
