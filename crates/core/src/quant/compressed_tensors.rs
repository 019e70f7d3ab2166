//! llm-compressor's `compressed-tensors`: schemes by target.

use super::fused::Fused;
use super::select::{Ignore, Match, Refused};
use super::{CacheScales, InputScale, Layout, Mxfp4Padding, Packed, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// Schemes in the order of `config_groups`, and what is left out.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    list: Vec<Group>,
    ignore: Ignore,
    /// Whether linear modules have 4-bit integers with 8-bit float activations.
    for_hopper: bool,
}

/// A scheme and what it is for.
#[derive(Debug, Clone)]
struct Group {
    targets: Vec<Target>,
    scheme: Scheme,
    /// Why experts cannot have it.
    not_for_experts: Option<&'static str>,
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
    /// Why a GPU of another compute capability than 9.0 would not run it (vLLM 0.32.0, `_is_fp8_w4a8_sm90`).
    pub(super) fn refusal_on(&self, capability: (u32, u32)) -> Option<&'static str> {
        (self.for_hopper && capability != (9, 0)).then_some(
            "No compressed-tensors compatible scheme was found: 4-bit integers with 8-bit float activations run on compute \
             capability 9.0 alone",
        )
    }

    /// The same for a class that fuses other modules.
    pub(super) fn fuse(&mut self, fused: Fused) {
        self.ignore.fuse(fused);
        for target in self.list.iter_mut().flat_map(|group| &mut group.targets) {
            if let Target::Module(names) = target {
                names.fuse(fused);
            }
        }
    }

    /// The scheme of a module; named targets go before the class of the module.
    pub(super) fn scheme(
        &self,
        path: &str,
        is_head: bool,
        is_experts: bool,
    ) -> Result<Option<Scheme>, Refused> {
        if self.ignore.skips_whole(path)? {
            return Ok(None);
        }
        // Experts are fused in the engine; files name the linear modules of single experts.
        let inside = format!("{path}.0.gate_proj");
        if is_experts && self.ignore.skips(&inside) {
            return Ok(None);
        }
        let named =
            |t: &Target| matches!(t, Target::Module(m) if m.skips(path) || is_experts && m.skips(&inside));
        let found = |wanted: &dyn Fn(&Target) -> bool| {
            self.list.iter().find(|group| group.targets.iter().any(wanted))
        };
        let group = found(&named).or_else(|| {
            if is_head {
                None
            } else {
                found(&|t| matches!(t, Target::Linear))
            }
        });
        match group.and_then(|group| group.not_for_experts.filter(|_| is_experts)) {
            Some(reason) => Err(Refused(format!("{reason} ({path})"))),
            None => Ok(group.map(|group| group.scheme)),
        }
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
    let mut list = Vec::new();
    let mut for_hopper = false;
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
        if let Some(input) = &input {
            let kinds = (
                weights.str("type")?.unwrap_or("int"),
                input.str("type")?.unwrap_or("int"),
            );
            for_hopper |= kinds == ("int", "float")
                && weights.u64("num_bits")? == Some(4)
                && targets.iter().any(|target| matches!(target, Target::Linear));
        }
        list.push(Group {
            targets,
            scheme: scheme(format, &weights, input.as_ref())?,
            not_for_experts: not_for_experts(&weights, input.as_ref())?,
        });
    }
    Ok(Quantization {
        name: "compressed-tensors".to_owned(),
        rule: Rule::Groups(Groups {
            list,
            ignore,
            for_hopper,
        }),
        cache_scales: CacheScales::ThreeWithZeros,
        padding: Mxfp4Padding::NONE,
        refusal,
    })
}

/// Why experts cannot have a scheme that other modules can (vLLM 0.32.0, `compressed_tensors_moe.py` and
/// `compressed_tensors_moe_w8a8_fp8.py`).
fn not_for_experts(weights: &Config, input: Option<&Config>) -> Result<Option<&'static str>> {
    let Some(input) = input else { return Ok(None) };
    let dynamic = match input.get("dynamic") {
        Some(serde_json::Value::String(_)) => true,
        _ => input.flag("dynamic", false)?,
    };
    let of = (
        weights.str("type")?.unwrap_or("int"),
        weights.positive(&["num_bits"])?,
        weights.str("strategy")?.unwrap_or("tensor"),
        input.str("strategy")?.unwrap_or("tensor"),
    );
    Ok(match of {
        ("int", 8, _, _) if !dynamic => {
            Some("Unsupported FusedMoe scheme: 8-bit integers with static scales for activations")
        }
        ("float", 8, "channel", "token") if !dynamic => Some(
            "For FP8 Fused MoE layer, we require either per tensor or channelwise, dynamic per token quantization.",
        ),
        ("float", 8, "tensor", "tensor")
        | ("float", 8, "channel", "token")
        | ("float", 8, "block" | "group", _) => None,
        ("float", 8, ..) => Some(
            "experts in FP8 have scales per tensor for weights and activations, or channelwise with dynamic ones per token",
        ),
        _ => None,
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
            asymmetric: !weights.flag("symmetric", true)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint with one group.
    fn checkpoint(group: &str) -> Quantization {
        let text = format!(
            r#"{{"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {{"group_0": {group}}}}}"#
        );
        read(&Config::parse(text.as_bytes()).unwrap()).unwrap()
    }

    fn groups(read: &Quantization) -> &Groups {
        match &read.rule {
            Rule::Groups(groups) => groups,
            _ => panic!("not llm-compressor's rule"),
        }
    }

    #[test]
    fn four_bit_integers_with_float_activations_are_for_hopper_alone() {
        let read = checkpoint(
            r#"{"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}}"#,
        );
        assert_eq!(groups(&read).refusal_on((9, 0)), None);
        assert!(groups(&read).refusal_on((8, 0)).is_some());
    }

    #[test]
    fn experts_in_fp8_need_scales_of_one_kind() {
        let of = |weights: &str, input: &str, dynamic: bool| {
            checkpoint(&format!(
                r#"{{"targets": ["Linear"], "weights": {{"num_bits": 8, "type": "float", "strategy": "{weights}"}},
                "input_activations": {{"num_bits": 8, "type": "float", "strategy": "{input}", "dynamic": {dynamic}}}}}"#
            ))
        };
        let scheme = |read: &Quantization, experts: bool| {
            groups(read).scheme("model.layers.0.mlp.experts", false, experts)
        };
        for (weights, input, dynamic, fine) in [
            ("channel", "token", true, true),
            ("tensor", "tensor", false, true),
            ("tensor", "token", true, false),
            ("channel", "token", false, false),
        ] {
            let read = of(weights, input, dynamic);
            assert_eq!(scheme(&read, true).is_ok(), fine, "{weights} {input}");
            assert!(scheme(&read, false).is_ok(), "{weights} {input}");
        }
    }
}
