//! Heads for speculative decoding that are published for models of the catalogue, each with source and date.
//!
//! One head a line (`data/drafters.jsonl`). How many of their drafts are accepted depends on the traffic, so that no row
//! says it.

use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::arch::Config;
use crate::{Error, Result};

const ROWS: &str = include_str!("../data/drafters.jsonl");

/// A published head.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Hub id.
    pub id: String,
    /// Hub ids of the catalogue's models that it drafts for.
    pub targets: Vec<String>,
    /// `method` of `--speculative-config`.
    pub method: String,
    /// Tokens that it is run with in its own instructions, or three.
    pub tokens: u64,
    /// Where the configuration is from.
    pub source: String,
    /// When it was collected, `YYYY-MM-DD`.
    pub date: String,
    config: Value,
}

impl Head {
    /// Its `config.json`.
    ///
    /// # Errors
    /// Never for the shipped rows, which a test reads.
    pub fn config(&self) -> Result<Config> {
        Config::parse(self.config.to_string().as_bytes())
    }
}

/// Every head.
///
/// # Errors
/// Never for the shipped rows, which a test reads.
pub fn all() -> Result<&'static [Head]> {
    static ALL: OnceLock<Vec<Head>> = OnceLock::new();
    if let Some(heads) = ALL.get() {
        return Ok(heads);
    }
    let heads = ROWS
        .lines()
        .map(|row| serde_json::from_str(row).map_err(|e| Error::input(format!("shipped heads: {e}"))))
        .collect::<Result<Vec<Head>>>()?;
    Ok(ALL.get_or_init(|| heads))
}

/// The head with this hub id.
///
/// # Errors
/// As [`all`].
pub fn find(id: &str) -> Result<Option<&'static Head>> {
    Ok(all()?.iter().find(|head| head.id.eq_ignore_ascii_case(id)))
}

/// The heads for a model, by its hub id in the catalogue.
///
/// # Errors
/// As [`all`].
pub fn of(target: &str) -> Result<Vec<&'static Head>> {
    Ok(all()?
        .iter()
        .filter(|head| head.targets.iter().any(|t| t == target))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{Eagle, Reading, read, read_eagle};
    use crate::catalogue;

    #[test]
    fn every_head_reads_as_a_drafter_of_each_of_its_targets() {
        assert!(all().unwrap().len() >= 4);
        for head in all().unwrap() {
            assert!(!head.source.is_empty() && head.date.len() == 10 && (1..=8).contains(&head.tokens));
            assert_eq!(head.method, "eagle3", "{}", head.id);
            for target in &head.targets {
                let entry = catalogue::find(target).unwrap();
                assert_eq!(entry.id, target);
                let Reading::Model(model) = read(entry.id, &entry.config().unwrap()).unwrap() else {
                    panic!("{target} is refused")
                };
                let drafter = read_eagle(&head.id, &head.config().unwrap(), Eagle::Three, model.vocab_size);
                let drafter = drafter.unwrap_or_else(|e| panic!("{}: {e}", head.id));
                assert_eq!(drafter.hidden_size, model.hidden_size, "{}", head.id);
            }
        }
        assert_eq!(
            of("Qwen/Qwen3-32B").unwrap()[0].id,
            "RedHatAI/Qwen3-32B-speculator.eagle3"
        );
        assert!(find("nobody/nothing").unwrap().is_none());
    }
}
