//! What the engine's configuration classes accept: a file with a field of another JSON kind, or with sizes that
//! disagree, stops the engine before any layer is made.
//!
//! The classes check themselves (transformers 5.19.0, `configuration_utils.py` and `modeling_rope_utils.py`, with the
//! types of their fields as `huggingface_hub.dataclasses.strict` reads them); `data/field_types.tsv` holds the types.
//! vLLM's own classes (`vllm/transformers_utils/configs`) check nothing and have no types there.

use std::sync::OnceLock;

use serde_json::Value;

use super::agree;
use crate::Result;
use crate::arch::Config;

/// Lines of `model_type`, base model, rules and fields, parted by tabs; the file's head says what they mean.
const TABLE: &str = include_str!("../../../data/field_types.tsv");

/// What one configuration class says.
#[derive(Debug, Clone, Copy)]
struct Class {
    /// Class of the model without a head, or `-`.
    base: &'static str,
    /// Letters of the rules that hold.
    rules: &'static str,
    /// Groups of fields: the kinds they take, an equals sign, names parted by commas.
    fields: &'static str,
}

impl Class {
    /// Names of fields with the letters of the kinds they take.
    fn fields(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.fields
            .split(' ')
            .filter_map(|group| group.split_once('='))
            .flat_map(|(kinds, names)| names.split(',').map(move |name| (name, kinds)))
    }
}

/// The row of a model type; the lines are in the order of their first column.
fn class(model_type: &str) -> Option<Class> {
    static LINES: OnceLock<Vec<(&str, &str)>> = OnceLock::new();
    let lines = LINES.get_or_init(|| TABLE.lines().filter_map(|line| line.split_once('\t')).collect());
    let found = lines.binary_search_by(|(own, _)| (*own).cmp(model_type)).ok()?;
    let mut columns = lines[found].1.split('\t');
    let (base, rules, fields) = (columns.next()?, columns.next()?, columns.next()?);
    Some(Class { base, rules, fields })
}

/// The class that the engine takes for a file that names none: the model without a head, which embeds instead of
/// generating (vLLM 0.32.0, `get_config` in `transformers_utils/config.py`).
pub(crate) fn base_class(model_type: &str) -> Option<&'static str> {
    class(model_type).map(|c| c.base).filter(|base| *base != "-")
}

/// Whether the class of a `model_type` checks what it is given.
pub(crate) fn checks(model_type: &str) -> bool {
    class(model_type).is_some_and(|c| !c.fields.is_empty())
}

/// Checks the kinds of a configuration's own fields, before defaults are filled in.
///
/// # Errors
/// If the class of this `model_type` does not take a field's value.
pub(crate) fn check_kinds(model_type: &str, config: &Config) -> Result<()> {
    let Some(class) = class(model_type) else {
        return Ok(());
    };
    for (name, kinds) in class.fields() {
        let Some(value) = config.map().get(name) else {
            continue;
        };
        if !kinds.contains(kind(value)) {
            let hint = format!(
                "the engine's configuration class of {model_type} takes nothing else and stops the server"
            );
            return Err(config.wrong(name, value, &described(kinds)).hint(hint));
        }
    }
    if class.rules.contains('r') {
        check_rotary_base(config)?;
    }
    Ok(())
}

/// Checks what has to agree inside of a configuration whose defaults are filled in.
///
/// # Errors
/// With the engine's reason ([`ErrorKind::Unsupported`](crate::ErrorKind)) if it would refuse the file, and as
/// [`Config::u64`].
pub(crate) fn check_agreement(model_type: &str, filled: &Config) -> Result<()> {
    let Some(class) = class(model_type) else {
        return Ok(());
    };
    if class.rules.contains('h') {
        agree::heads_divide_width(filled)?;
    }
    if class.rules.contains('l') {
        agree::layer_types_fit(filled)?;
    }
    if class.rules.contains('r') {
        agree::rotary_is_complete(filled)?;
    }
    agree::of_class(model_type, filled)
}

/// The letter of a value's kind, as Python's JSON reader makes it: numbers with a point or an exponent are fractions.
fn kind(value: &Value) -> char {
    match value {
        Value::Null => 'z',
        Value::Bool(_) => 'b',
        Value::Number(n) if n.is_u64() || n.is_i64() => 'i',
        Value::Number(_) => 'f',
        // What the file writes without quotes (see `Config::parse`).
        Value::String(word) if matches!(word.as_str(), "NaN" | "Infinity" | "-Infinity") => 'f',
        Value::String(_) => 's',
        Value::Array(_) => 'l',
        Value::Object(_) => 'd',
    }
}

/// Kinds for people.
fn described(kinds: &str) -> String {
    let one = |letter| match letter {
        'i' => "an integer",
        // An integer is none of its values.
        'f' if !kinds.contains('i') => "a number with a decimal point",
        'f' => "a number",
        'b' => "true or false",
        's' => "a string",
        'l' => "a list",
        'd' => "an object",
        _ => "null",
    };
    let words: Vec<&str> = kinds
        .chars()
        .filter(|letter| *letter != 'i' || !kinds.contains('f'))
        .map(one)
        .collect();
    words.join(" or ")
}

/// The base of rotary embeddings stands outside of their object in most files, where no class declares it.
fn check_rotary_base(config: &Config) -> Result<()> {
    let inside = ["rope_scaling", "rope_parameters"].iter().any(|key| {
        config
            .get(key)
            .is_some_and(|rope| rope.get("rope_theta").is_some())
    });
    match config.map().get("rope_theta") {
        Some(value) if !inside && !value.as_f64().is_some_and(|base| base > 0.0) => {
            Err(config.wrong("rope_theta", value, "a positive number"))
        }
        _ => Ok(()),
    }
}

/// The switch that makes the engine schedule encoder and decoder (vLLM 0.32.0, `is_encoder_decoder` in
/// `transformers_utils/config.py`): its full name where the file or its language model's part sets it.
///
/// # Errors
/// If it is neither true nor false.
pub(crate) fn encoder_decoder_key(file: &Config, text: &Config) -> Result<Option<String>> {
    const KEY: &str = "is_encoder_decoder";
    for config in [file, text] {
        match config.map().get(KEY) {
            None | Some(Value::Bool(false)) => {}
            // Python takes one for true and nought for false.
            Some(value) if value.as_u64() == Some(0) => {}
            Some(value) if value.as_bool() == Some(true) || value.as_u64() == Some(1) => {
                return Ok(Some(config.name(KEY)));
            }
            Some(value) => return Err(config.wrong(KEY, value, "true or false")),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama(field: &str, value: Value) -> Config {
        let mut map = serde_json::Map::new();
        map.insert(field.to_owned(), value);
        Config::from_map(map)
    }

    #[test]
    fn a_field_of_another_kind_is_named_with_what_its_class_takes() {
        for (field, value, says) in [
            (
                "hidden_size",
                json!(null),
                "hidden_size is null, expected an integer",
            ),
            (
                "hidden_size",
                json!(true),
                "hidden_size is true, expected an integer",
            ),
            (
                "hidden_size",
                json!(4096.0),
                "hidden_size is 4096.0, expected an integer",
            ),
            (
                "head_dim",
                json!("128"),
                "head_dim is \"128\", expected an integer or null",
            ),
            (
                "tie_word_embeddings",
                json!(null),
                "tie_word_embeddings is null, expected true or false",
            ),
            (
                "rms_norm_eps",
                json!(1),
                "rms_norm_eps is 1, expected a number with a decimal point",
            ),
            ("rms_norm_eps", json!("NaN"), ""),
            ("head_dim", json!(null), ""),
            (
                "rope_parameters",
                json!([]),
                "rope_parameters is [], expected an object or null",
            ),
            (
                "rope_theta",
                json!(null),
                "rope_theta is null, expected a positive number",
            ),
            (
                "rope_theta",
                json!(0),
                "rope_theta is 0, expected a positive number",
            ),
            ("no_field_of_the_class", json!([]), ""),
        ] {
            let checked = check_kinds("llama", &llama(field, value)).map_err(|e| e.to_string());
            let expected = if says.is_empty() {
                Ok(())
            } else {
                Err(says.to_owned())
            };
            assert_eq!(checked, expected, "{field}");
        }
        assert!(check_kinds("no_such_type", &llama("hidden_size", json!(null))).is_ok());
    }

    #[test]
    fn every_line_of_the_table_is_found_and_has_its_columns_and_known_letters() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 300);
        assert!(lines.is_sorted_by_key(|line| line.split('\t').next()));
        for missing in ["", "aaaa", "llam", "llamaa", "zzzz", "#"] {
            assert!(class(missing).is_none(), "{missing}");
        }
        for line in lines {
            let model_type = line.split('\t').next().unwrap();
            let class = class(model_type).unwrap_or_else(|| panic!("{model_type} has too few columns"));
            assert!(class.rules.chars().all(|c| "hlr-".contains(c)), "{model_type}");
            for (name, kinds) in class.fields() {
                assert!(
                    !name.is_empty() && kinds.chars().all(|c| "ifbsldz".contains(c)),
                    "{model_type}.{name}"
                );
            }
        }
    }

    #[test]
    fn a_model_type_has_the_base_class_that_the_engine_falls_back_to() {
        assert_eq!(base_class("llama"), Some("LlamaModel"));
        assert_eq!(base_class("deepseek_v3"), Some("DeepseekV3Model"));
        assert_eq!(base_class("no_such_type"), None);
    }
}
