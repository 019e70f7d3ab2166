//! GPTQ checkpoints that override their scheme for single modules.

use regex_lite::Regex;

use super::naming::Naming;
use super::select::{MAX_PATTERN_BYTES, Refused};
use super::{Kind, Packed, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// A scheme and its exceptions in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct Overrides {
    base: Packed,
    /// Whether the output head has the scheme too where no exception is about it.
    head: bool,
    exceptions: Vec<(Regex, Change)>,
    /// Whether experts are packed by bytes (`--quantization moe_wna16`).
    pub(super) experts_in_bytes: bool,
    /// Modules that are quantised, as parts of their paths, where the file lists them.
    listed: Option<Vec<String>>,
}

/// What an exception says.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// The module stays as it is.
    Skip,
    /// It has other bits or groups.
    To { packed: Packed, symmetric: bool },
}

impl Overrides {
    /// The scheme of a module.
    pub(super) fn scheme(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<Scheme>, Refused> {
        let wanted = match kind {
            Kind::Linear | Kind::Experts => true,
            Kind::Head => self.head,
            Kind::Embedding => false,
        };
        if !wanted || kind != Kind::Experts && !self.lists(path, naming)? {
            return Ok(None);
        }
        if kind == Kind::Experts && self.experts_in_bytes {
            return Ok(Some(Scheme::Packed(Packed {
                layout: super::Layout::Bytes,
                ..self.base
            })));
        }
        match self.exceptions.iter().find(|(pattern, _)| pattern.is_match(path)) {
            None => Ok(Some(Scheme::Packed(self.base))),
            Some((_, Change::Skip)) => Ok(None),
            Some((_, Change::To { symmetric: false, .. })) => Err(Refused(format!(
                "Unsupported quantization config: sym=False ({path})."
            ))),
            Some((_, Change::To { packed, .. })) => Ok(Some(Scheme::Packed(*packed))),
        }
    }

    /// Whether the file lists a module as quantised (vLLM 0.32.0, `is_layer_gptq_quantized`).
    fn lists(&self, path: &str, naming: &Naming) -> Result<bool, Refused> {
        let Some(listed) = &self.listed else {
            return Ok(true);
        };
        let holds = |path: &str| listed.iter().any(|part| path.contains(part.as_str()));
        let parts = naming.parts(path);
        let hits = parts.iter().filter(|part| holds(part)).count();
        match (parts.len(), hits) {
            (0, _) => Ok(holds(path)),
            (all, hits) if hits == all => Ok(true),
            (_, 0) => Ok(false),
            _ => Err(Refused(format!(
                "Detected some but not all shards of {path} are quantized. All shards of fused layers to have the \
                 same precision."
            ))),
        }
    }
}

/// Compiles a pattern; `at_start` for those that have to match from a path's beginning.
pub(super) fn pattern(text: &str, at_start: bool, key: &str) -> Result<Regex> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(Error::input(format!(
            "a pattern in {key} has {} characters, more than {MAX_PATTERN_BYTES}",
            text.len()
        )));
    }
    let whole = if at_start {
        format!("^(?:{text})")
    } else {
        text.to_owned()
    };
    Regex::new(&whole).map_err(|e| Error::input(format!("{key}: {text:?} is no valid pattern: {e}")))
}

/// Inputs that share a scale; `None` for -1, one scale an output.
pub(super) fn group_size(q: &Config, keys: &[&str], default: Option<u64>) -> Result<Option<u64>> {
    match keys.iter().find_map(|key| q.get(key)) {
        None => Ok(default),
        Some(v) if v.as_i64() == Some(-1) => Ok(None),
        Some(_) => Ok(Some(q.positive(keys)?)),
    }
}

/// Adds GPTQ's `dynamic` to what the rest of the file says (vLLM 0.32.0, `utils/gptq_utils.py`): `-:` leaves modules as
/// they are, anything else changes bits or groups.
pub(super) fn dynamic(q: &Config, base: Packed, head: bool, naming: &Naming) -> Result<Overrides> {
    let key = q.name("dynamic");
    let mut exceptions = Vec::new();
    if let Some(rules) = q.sub("dynamic")? {
        for text in rules.map().keys() {
            if let Some(skipped) = text.strip_prefix("-:") {
                exceptions.push((pattern(skipped, true, &key)?, Change::Skip));
                continue;
            }
            let own = rules
                .sub(text)?
                .unwrap_or_else(|| rules.with_map(serde_json::Map::new()));
            let text = text.strip_prefix("+:").unwrap_or(text);
            let packed = Packed {
                bits: super::methods::bits(&own, &["bits"], base.bits)?,
                group: group_size(&own, &["group_size"], base.group)?,
                ..base
            };
            let symmetric = own.flag("sym", true)?;
            exceptions.push((pattern(text, true, &key)?, Change::To { packed, symmetric }));
        }
    }
    let listed = listed(q)?.map(|list| list.iter().map(|name| naming.rename(name).into_owned()).collect());
    Ok(Overrides {
        base,
        head,
        exceptions,
        experts_in_bytes: false,
        listed,
    })
}

/// `modules_in_block_to_quantize`, which is a list of names or one of such lists.
fn listed(q: &Config) -> Result<Option<Vec<String>>> {
    let key = "modules_in_block_to_quantize";
    let Some(serde_json::Value::Array(list)) = q.get(key) else {
        return match q.get(key) {
            None => Ok(None),
            Some(_) => Err(Error::input(format!("{} is no list of names", q.name(key)))),
        };
    };
    let mut names = Vec::new();
    for entry in list {
        let inner = match entry {
            serde_json::Value::Array(inner) => inner.as_slice(),
            other => std::slice::from_ref(other),
        };
        for name in inner {
            match name.as_str() {
                Some(name) => names.push(name.to_owned()),
                None => {
                    return Err(Error::input(format!(
                        "{} holds {name}, expected names of modules",
                        q.name(key)
                    )));
                }
            }
        }
    }
    Ok((!names.is_empty()).then_some(names))
}

#[cfg(test)]
mod tests {
    use super::super::Layout;
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text.as_bytes()).unwrap()
    }

    const BASE: Packed = Packed {
        bits: 4,
        group: Some(128),
        zeros: true,
        asymmetric: false,
        pads_tiles: true,
        layout: Layout::Gptq,
    };

    fn read(text: &str) -> Result<Overrides> {
        dynamic(&config(text), BASE, false, &Naming::of_class(""))
    }

    #[test]
    fn the_first_rule_that_matches_from_the_start_of_a_path_decides() {
        let rules = read(
            r#"{"dynamic": {"-:.*mlp\\.gate$": {}, "+:.*down_proj": {"bits": 8, "group_size": -1},
            "+:.*o_proj": {"sym": false}}}"#,
        )
        .unwrap();
        let of = |path: &str, kind: Kind| rules.scheme(path, kind, &Naming::of_class(""));
        assert_eq!(of("model.layers.0.mlp.gate", Kind::Linear), Ok(None));
        let eight = Packed {
            bits: 8,
            group: None,
            ..BASE
        };
        assert_eq!(
            of("model.layers.0.mlp.down_proj", Kind::Linear),
            Ok(Some(Scheme::Packed(eight)))
        );
        assert_eq!(
            of("model.layers.0.self_attn.qkv_proj", Kind::Linear),
            Ok(Some(Scheme::Packed(BASE)))
        );
        assert!(of("model.layers.0.self_attn.o_proj", Kind::Linear).is_err());
        assert_eq!(of("lm_head", Kind::Head), Ok(None));
        assert!(read(r#"{"dynamic": {"-:(": {}}}"#).is_err());
    }

    #[test]
    fn only_listed_modules_are_quantised() {
        let rules = read(
            r#"{"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["mlp.down_proj", "mlp.up_proj"]]}"#,
        )
        .unwrap();
        let of = |path: &str| rules.scheme(path, Kind::Linear, &Naming::of_class(""));
        assert!(of("model.layers.0.self_attn.qkv_proj").unwrap().is_some());
        assert!(of("model.layers.0.self_attn.o_proj").unwrap().is_none());
        assert!(of("model.layers.0.mlp.gate_up_proj").is_err());
        assert!(read(r#"{"modules_in_block_to_quantize": [3]}"#).is_err());
    }
}
