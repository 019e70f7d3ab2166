//! Class defaults: what a key that is missing from `config.json` means to the engine.
//!
//! Engines read a configuration through a class of its `model_type`; a key that the file leaves out takes the
//! class's default, and some keys have a second spelling. The table `data/model_types.tsv` holds both.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{agree, strict};
use crate::arch::Config;
use crate::{Error, Result};

/// One line a `model_type`, tab, one JSON object; the file's head says what the fields are and where from.
const TABLE: &str = include_str!("../../../data/model_types.tsv");

/// Nesting of configurations that is followed (published files use two levels).
const MAX_DEPTH: u32 = 8;

/// Nested configurations that a class does without where the file has none: `model_type` and key.
const OPTIONAL: [(&str, &str); 6] = [
    ("diffusion_gemma", "vision_config"),
    ("embedding_gemma2", "audio_config"),
    ("embedding_gemma2", "vision_config"),
    ("gemma4", "audio_config"),
    ("gemma4_unified", "audio_config"),
    ("gemma4_unified", "vision_config"),
];

/// What the class of one `model_type` says.
#[derive(Debug, Default, Deserialize)]
struct Class {
    /// Default value of each field.
    #[serde(default)]
    d: Map<String, Value>,
    /// Second spelling of a field, and the field.
    #[serde(default)]
    a: Map<String, Value>,
    /// Nested configurations and the `model_type` they have unless they say otherwise.
    #[serde(default)]
    s: Map<String, Value>,
    /// Class that generates text.
    #[serde(default)]
    c: Option<String>,
}

/// One line of the table, parsed when it is first needed.
struct Line {
    text: &'static str,
    class: OnceLock<Class>,
}

fn class(model_type: &str) -> Result<Option<&'static Class>> {
    static LINES: OnceLock<HashMap<&str, Line>> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        TABLE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('\t'))
            .map(|(model_type, text)| {
                let class = OnceLock::new();
                (model_type, Line { text, class })
            })
            .collect()
    });
    let Some(line) = lines.get(model_type) else {
        return Ok(None);
    };
    if let Some(class) = line.class.get() {
        return Ok(Some(class));
    }
    let parsed = serde_json::from_str(line.text).map_err(|e| {
        Error::input(format!(
            "the table of model types is damaged at {model_type}: {e}"
        ))
    })?;
    Ok(Some(line.class.get_or_init(|| parsed)))
}

/// The class that generates text for this `model_type` (transformers' causal-language-model mapping).
///
/// # Errors
/// If the built-in table is damaged.
pub(crate) fn text_class(model_type: &str) -> Result<Option<String>> {
    Ok(class(model_type)?.and_then(|c| c.c.clone()))
}

/// The configuration with every field that its class knows: second spellings resolved, defaults filled in,
/// nested configurations likewise. `fallback` is the `model_type` where the file names none.
///
/// # Errors
/// If a nested configuration is neither an object nor null, nesting is deeper than eight levels, or the class of a
/// `model_type` does not take what the file says (see [`strict`]).
pub(crate) fn fill(config: &Config, fallback: Option<&str>) -> Result<Config> {
    fill_level(config, fallback, Checks::All, 0)
}

/// The same of a file that does not agree with itself, for what it says all the same: each field is still of a kind that
/// its class takes.
///
/// # Errors
/// As [`fill`], but for what has to agree.
pub(crate) fn fill_disagreeing(config: &Config) -> Result<Config> {
    fill_level(config, None, Checks::Kinds, 0)
}

/// The same for a part of a configuration that was filled as a whole: the class around it decides what is checked.
///
/// # Errors
/// If a nested configuration is neither an object nor null, or nesting is deeper than eight levels.
pub(crate) fn fill_part(config: &Config) -> Result<Config> {
    fill_level(config, None, Checks::None, 0)
}

/// What is held to the configuration classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checks {
    /// The kinds of fields, and what has to agree.
    All,
    /// The kinds of fields alone.
    Kinds,
    /// Nothing.
    None,
}

/// What describes layers: all but how they are quantised, which is read of the file and may be most of it.
fn layers_part(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, _)| !matches!(key.as_str(), "quantization_config" | "compression_config"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn fill_level(config: &Config, fallback: Option<&str>, checks: Checks, depth: u32) -> Result<Config> {
    if depth > MAX_DEPTH {
        return Err(Error::input(format!(
            "{} is nested more than {MAX_DEPTH} configurations deep",
            config.name("text_config")
        )));
    }
    let model_type = config.str("model_type")?.or(fallback).unwrap_or_default();
    if checks != Checks::None {
        strict::check_kinds(model_type, config)?;
    }
    // A class that is the engine's own, or comes with the model, reads its parts in its own way.
    let own = checks != Checks::None && !strict::checks(model_type);
    if own && checks == Checks::All {
        agree::rotary_is_complete(config)?;
    }
    let checks = if own { Checks::None } else { checks };
    let mut map = layers_part(config.map());
    let Some(class) = class(model_type)? else {
        return Ok(config.with_map(map));
    };
    for (alias, field) in &class.a {
        if let (Some(value), Some(field)) = (map.get(alias).cloned(), field.as_str()) {
            map.insert(field.to_owned(), value);
        }
    }
    for (field, value) in &class.d {
        if !map.contains_key(field) {
            map.insert(field.clone(), value.clone());
        }
    }
    for (alias, field) in &class.a {
        if let Some(value) = field.as_str().and_then(|f| map.get(f)).cloned() {
            map.insert(alias.clone(), value);
        }
    }
    if !map.contains_key("model_type") {
        map.insert("model_type".to_owned(), Value::from(model_type));
    }
    // A configuration that carries its decoder's fields itself (published Qwen2-VL files) is its own text part.
    let flat = config.get("hidden_size").is_some();
    for (key, sub_type) in &class.s {
        let nested = config.sub(key)?;
        if nested.is_none() && key == "text_config" && flat {
            let own = config
                .with_map(layers_part(config.map()))
                .as_type(sub_type.as_str().unwrap_or_default());
            map.insert(
                key.clone(),
                Value::Object(fill_level(&own, None, checks, depth + 1)?.into_map()),
            );
            continue;
        }
        if nested.is_none() && OPTIONAL.contains(&(model_type, key.as_str())) {
            continue;
        }
        let nested = nested.unwrap_or_else(|| config.child(key, Map::new()));
        let nested = fill_level(&nested, sub_type.as_str(), checks, depth + 1)?;
        map.insert(key.clone(), Value::Object(nested.into_map()));
    }
    let filled = config.with_map(map);
    if checks == Checks::All {
        strict::check_agreement(model_type, &filled)?;
    }
    Ok(filled)
}
