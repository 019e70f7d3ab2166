//! llm-compressor's `compressed-tensors`: schemes by target.

use super::select::{Ignore, Match};
use super::{CacheScales, InputScale, Layout, Mxfp4Padding, Packed, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// Schemes in the order of `config_groups`, and what is left out.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    groups: Vec<(Vec<Target>, Scheme)>,
    ignore: Ignore,
}

/// What a group is applied to.
#[derive(Debug, Clone)]
enum Target {
    /// Every linear module (`Linear`).
    Linear,
    /// Modules that a name or pattern selects.
    Module(Box<Ignore>),
}

impl Groups {
    /// The scheme of a module; named targets go before the class of the module.
    pub(super) fn scheme(&self, path: &str, is_head: bool, is_experts: bool) -> Option<Scheme> {
        if self.ignore.skips(path) {
            return None;
        }
        // Experts are fused in the engine; files name the linear modules of single experts.
        let inside = format!("{path}.0.gate_proj");
        if is_experts && self.ignore.skips(&inside) {
            return None;
        }
        let named =
            |t: &Target| matches!(t, Target::Module(m) if m.skips(path) || is_experts && m.skips(&inside));
        let found = |wanted: &dyn Fn(&Target) -> bool| {
            self.groups
                .iter()
                .find(|(targets, _)| targets.iter().any(wanted))
                .map(|(_, scheme)| *scheme)
        };
        found(&named).or_else(|| {
            if is_head {
                None
            } else {
                found(&|t| matches!(t, Target::Linear))
            }
        })
    }
}

/// vLLM 0.32.0, `CompressedTensorsConfig`.
pub(super) fn read(q: &Config) -> Result<Quantization> {
    let ignore = Ignore::new(Match::Expression, &super::names(q, &["ignore"])?)?;
    let Some(config_groups) = q.sub("config_groups")? else {
        return Err(Error::input(format!(
            "{} is missing from the configuration",
            q.name("config_groups")
        )));
    };
    let format = q.str("format")?.unwrap_or_default();
    let mut groups = Vec::new();
    let mut refusal = None;
    for key in config_groups.map().keys() {
        let Some(group) = config_groups.sub(key)? else {
            continue;
        };
        let Some(weights) = group.sub("weights")? else {
            continue;
        };
        if let Some(order @ ("group" | "dynamic")) = weights.str("actorder")? {
            refusal = Some(format!(
                "Compressed-tensors group/dynamic activation ordering (actorder={order:?}) is no longer supported."
            ));
        }
        let input = group.sub("input_activations")?;
        let format = group.str("format")?.unwrap_or(format);
        let targets = group
            .strs("targets")?
            .unwrap_or_else(|| vec!["Linear"])
            .into_iter()
            .map(|t| match t {
                "Linear" => Ok(Target::Linear),
                other => {
                    Ignore::new(Match::Expression, &[other]).map(|names| Target::Module(Box::new(names)))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        groups.push((targets, scheme(format, &weights, input.as_ref())?));
    }
    Ok(Quantization {
        name: "compressed-tensors".to_owned(),
        rule: Rule::Groups(Groups { groups, ignore }),
        cache_scales: CacheScales::ThreeWithZeros,
        padding: Mxfp4Padding::NONE,
        refusal,
    })
}

fn scheme(format: &str, weights: &Config, input: Option<&Config>) -> Result<Scheme> {
    let bits = weights.positive(&["num_bits"])?;
    let kind = weights.str("type")?.unwrap_or("int");
    let strategy = weights.str("strategy")?.unwrap_or("tensor");
    let group = match weights.get("group_size").map(serde_json::Value::as_i64) {
        None | Some(Some(-1)) => None,
        Some(_) => Some(weights.positive(&["group_size"])?),
    };
    let static_input = match input {
        None => false,
        Some(i) => match i.get("dynamic") {
            // "local" computes group scales on the fly under a scale from the checkpoint.
            Some(serde_json::Value::String(_)) => true,
            _ => !i.flag("dynamic", false)?,
        },
    };
    Ok(match (kind, bits, strategy) {
        ("float", 4, _) if format.contains("mxfp4") || group == Some(32) => Scheme::Mxfp4,
        ("float", 4, _) => Scheme::Nvfp4(if input.is_some() {
            InputScale::F32
        } else {
            InputScale::None
        }),
        ("float", 8, _) if format.contains("mxfp8") || group == Some(32) => Scheme::Mxfp8,
        ("float", 8, "block") => {
            let block = weights.u64s("block_structure")?.unwrap_or_default();
            match block[..] {
                [outputs, inputs] if outputs > 0 && inputs > 0 => Scheme::Fp8Block { outputs, inputs },
                _ => {
                    return Err(Error::input(format!(
                        "{} is {block:?}, expected two positive integers",
                        weights.name("block_structure")
                    )));
                }
            }
        }
        ("float", 8, "channel") => Scheme::Fp8Channel { static_input },
        ("float", 8, _) => Scheme::Fp8Tensor { static_input },
        ("int", 8, _) if input.is_some() => Scheme::Int8 {
            per_channel: strategy == "channel",
            static_input,
            input_zero: match input {
                Some(input) => !input.flag("symmetric", true)?,
                None => false,
            },
        },
        ("int", 4 | 8, _) => Scheme::Packed(Packed {
            bits,
            group: if strategy == "channel" { None } else { group },
            zeros: !weights.flag("symmetric", true)?,
            layout: Layout::CompressedTensors,
        }),
        _ => {
            return Err(Error::unsupported(format!(
                "{} is a {bits}-bit {kind} scheme, which is not supported",
                weights.name("type")
            )));
        }
    })
}
