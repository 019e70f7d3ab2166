//! Checkpoints that override their scheme for single modules: GPTQ's `dynamic` and auto-round's `extra_config`.

use regex_lite::Regex;

use super::fused::{self, Fused};
use super::select::MAX_PATTERN_BYTES;
use super::{CacheScales, Layout, Mxfp4Padding, Packed, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// A scheme and its exceptions in the order of the file.
#[derive(Debug, Clone)]
pub(super) struct Overrides {
    base: Scheme,
    /// Whether the output head has the scheme too where no exception is about it.
    head: bool,
    /// Whether an exception for a fused module's parts is one for the module.
    by_parts: bool,
    exceptions: Vec<(Names, Option<Scheme>)>,
    fused: Fused,
}

/// The modules that an exception is about.
#[derive(Debug, Clone)]
enum Names {
    /// A path, or the end of one behind a dot.
    End(String),
    Pattern(Regex),
}

impl Names {
    fn hold(&self, path: &str) -> bool {
        match self {
            Self::End(name) => path
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

impl Overrides {
    /// The same for a class that fuses other modules.
    pub(super) fn fuse(&mut self, fused: Fused) {
        self.fused = fused;
    }

    /// The scheme of a module.
    pub(super) fn scheme(&self, path: &str, is_head: bool) -> Option<Scheme> {
        let found = |path: &str| self.exceptions.iter().find(|(names, _)| names.hold(path));
        let part = || {
            self.by_parts
                .then(|| fused::parts(path, self.fused))
                .into_iter()
                .flatten()
                .find_map(|p| found(&p))
        };
        match found(path).or_else(part) {
            Some((_, scheme)) => *scheme,
            None => (!is_head || self.head).then_some(self.base),
        }
    }
}

/// Compiles a pattern; `at_start` for those that have to match from a path's beginning.
fn pattern(text: &str, at_start: bool, key: &str) -> Result<Regex> {
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
pub(super) fn dynamic(q: &Config, base: Packed, head: bool) -> Result<Option<Overrides>> {
    let Some(rules) = q.sub("dynamic")?.filter(|rules| !rules.map().is_empty()) else {
        return Ok(None);
    };
    let key = q.name("dynamic");
    let mut exceptions = Vec::new();
    for text in rules.map().keys() {
        if let Some(skipped) = text.strip_prefix("-:") {
            exceptions.push((Names::Pattern(pattern(skipped, true, &key)?), None));
            continue;
        }
        let own = rules
            .sub(text)?
            .unwrap_or_else(|| rules.with_map(serde_json::Map::new()));
        let text = text.strip_prefix("+:").unwrap_or(text);
        let changed = Packed {
            bits: super::bits(&own, &["bits"], base.bits)?,
            group: group_size(&own, &["group_size"], base.group)?,
            ..base
        };
        exceptions.push((
            Names::Pattern(pattern(text, true, &key)?),
            Some(Scheme::Packed(changed)),
        ));
    }
    Ok(Some(Overrides {
        base: Scheme::Packed(base),
        head,
        by_parts: false,
        exceptions,
        fused: fused::USUAL,
    }))
}

/// Intel's auto-round (vLLM 0.32.0, `inc/inc.py`): integers in the layout of GPTQ or AWQ.
pub(super) fn auto_round(q: &Config) -> Result<Quantization> {
    let kind = q.str("data_type")?.unwrap_or("int");
    let format = q.str("packing_format")?.unwrap_or("auto_round:auto_gptq");
    let backend = q.str("backend")?.unwrap_or("auto");
    if kind != "int" {
        return Err(Error::not_found(format!(
            "{} is {kind:?}: of auto-round's formats only int is described here",
            q.name("data_type")
        ))
        .hint("--quantization none plans the model without its quantisation"));
    }
    let base = Packed {
        bits: super::bits(q, &["bits"], 4)?,
        group: group_size(q, &["group_size"], Some(128))?,
        zeros: true,
        asymmetric: !q.flag("sym", true)?,
        layout: if format.contains("awq") || backend.contains("awq") {
            Layout::Awq
        } else {
            Layout::Gptq
        },
    };
    let mut exceptions = Vec::new();
    if let Some(extra) = q.sub("extra_config")? {
        let key = q.name("extra_config");
        for name in extra.map().keys() {
            let Some(own) = extra.sub(name)? else {
                continue;
            };
            let bits = own.u64("bits")?.unwrap_or(base.bits);
            let scheme = if bits >= 16 {
                None
            } else {
                Some(Scheme::Packed(Packed {
                    bits: super::bits(&own, &["bits"], base.bits)?,
                    group: group_size(&own, &["group_size"], base.group)?,
                    ..base
                }))
            };
            let names = if name.contains(['*', '+', '?', '^', '$', '(', '[', '{', '|', '\\']) {
                Names::Pattern(pattern(name, false, &key)?)
            } else {
                Names::End(super::select::canonical(name).into_owned())
            };
            exceptions.push((names, scheme));
        }
    }
    Ok(Quantization {
        name: "auto-round".to_owned(),
        rule: Rule::Overrides(Overrides {
            base: Scheme::Packed(base),
            head: false,
            by_parts: true,
            exceptions,
            fused: fused::USUAL,
        }),
        cache_scales: CacheScales::None,
        padding: Mxfp4Padding::NONE,
        refusal: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text.as_bytes()).unwrap()
    }

    const BASE: Packed = Packed {
        bits: 4,
        group: Some(128),
        zeros: true,
        asymmetric: false,
        layout: Layout::Gptq,
    };

    #[test]
    fn the_first_rule_that_matches_from_the_start_of_a_path_decides() {
        let q =
            config(r#"{"dynamic": {"-:.*mlp\\.gate$": {}, "+:.*down_proj": {"bits": 8, "group_size": -1}}}"#);
        let rules = dynamic(&q, BASE, false).unwrap().unwrap();
        assert_eq!(rules.scheme("model.layers.0.mlp.gate", false), None);
        let eight = Packed {
            bits: 8,
            group: None,
            ..BASE
        };
        assert_eq!(
            rules.scheme("model.layers.0.mlp.down_proj", false),
            Some(Scheme::Packed(eight))
        );
        assert_eq!(
            rules.scheme("model.layers.0.self_attn.qkv_proj", false),
            Some(Scheme::Packed(BASE))
        );
        assert_eq!(rules.scheme("lm_head", true), None);
        assert!(dynamic(&config("{}"), BASE, false).unwrap().is_none());
        assert!(dynamic(&config(r#"{"dynamic": {"-:(": {}}}"#), BASE, false).is_err());
    }

    #[test]
    fn auto_round_leaves_modules_of_sixteen_bits_as_they_are() {
        let q = config(
            r#"{"bits": 4, "group_size": 32, "extra_config": {"model.layers.1.self_attn.q_proj": {"bits": 16},
            ".*\\.mlp\\.gate$": {"bits": 16}, "lm_head": {"bits": 8}}}"#,
        );
        let Rule::Overrides(rules) = auto_round(&q).unwrap().rule else {
            panic!("not a rule with exceptions");
        };
        assert_eq!(rules.scheme("model.layers.1.self_attn.qkv_proj", false), None);
        assert_eq!(rules.scheme("model.layers.2.mlp.gate", false), None);
        assert!(rules.scheme("model.layers.2.mlp.gate_up_proj", false).is_some());
        assert!(rules.scheme("lm_head", true).is_some());
        assert!(auto_round(&config(r#"{"bits": 4, "data_type": "mx_fp"}"#)).is_err());
    }
}
