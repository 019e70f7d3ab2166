//! Intel's auto-round (vLLM 0.32.0, `quantization/inc`): one scheme, with exceptions by name, in the layouts of GPTQ,
//! AWQ or llm-compressor.

use regex_lite::Regex;

use super::naming::Naming;
use super::overrides::{group_size, pattern};
use super::select::Refused;
use super::{CacheScales, Kind, Layout, Mxfp4Padding, OddBlocks, Packed, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// A scheme for all, with exceptions.
#[derive(Debug, Clone)]
pub(super) struct Rounded {
    format: Format,
    all: Setting,
    /// What `extra_config` says of single modules.
    named: Vec<(String, Extra)>,
    patterns: Vec<(Regex, Extra)>,
    /// Beginnings of the modules that are quantised, where the file lists them.
    blocks: Option<Vec<String>>,
}

/// What a module has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    bits: u64,
    group: Option<u64>,
    symmetric: bool,
}

/// What an exception changes.
#[derive(Debug, Clone, Copy, Default)]
struct Extra {
    bits: Option<u64>,
    group: Group,
    symmetric: Option<bool>,
}

/// The group that an exception names.
#[derive(Debug, Clone, Copy, Default)]
enum Group {
    /// None, so that of all modules holds.
    #[default]
    Unsaid,
    /// This many inputs, or all of them.
    Of(Option<u64>),
}

impl Extra {
    fn over(self, base: Setting) -> Setting {
        Setting {
            bits: self.bits.unwrap_or(base.bits),
            group: match self.group {
                Group::Unsaid => base.group,
                Group::Of(inputs) => inputs,
            },
            symmetric: self.symmetric.unwrap_or(base.symmetric),
        }
    }
}

/// How quantised weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Integers(Layout),
    /// 4- or 8-bit floats with a scale for every 32.
    Microscaled,
    Fp8Block {
        outputs: u64,
        inputs: u64,
    },
}

/// Bits from which a module stays as it is.
const UNQUANTIZED_BITS: u64 = 16;

impl Rounded {
    /// The scheme of a module (vLLM 0.32.0, `INCConfigParser._resolve_raw`).
    pub(super) fn scheme(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<Scheme>, Refused> {
        if !matches!(kind, Kind::Linear | Kind::Head | Kind::Experts) {
            return Ok(None);
        }
        let within = format!("model.{path}");
        let left = |(name, extra): &(String, Extra)| {
            (*name == path || *name == within) && extra.bits.unwrap_or(UNQUANTIZED_BITS) >= UNQUANTIZED_BITS
        };
        if self.named.iter().any(left) {
            return Ok(None);
        }
        let setting = self.setting(path, kind, naming)?;
        if setting.bits >= UNQUANTIZED_BITS {
            return Ok(None);
        }
        let refused = |why: &str| {
            Err(Refused(format!(
                "INC quantization with bits={}, sym={} is not supported ({path}): {why}",
                setting.bits, setting.symmetric
            )))
        };
        match self.format {
            Format::Integers(layout) => {
                if !matches!(setting.bits, 4 | 8) {
                    return refused(
                        "other widths run on the Humming kernels, which are a package of their own",
                    );
                }
                if layout == Layout::Gptq && !setting.symmetric && kind != Kind::Experts {
                    return refused(
                        "Only 4-bit and 8-bit symmetric quantization is supported with Marlin kernels.",
                    );
                }
                if layout == Layout::Awq && setting.bits != 4 && kind != Kind::Experts {
                    return refused("Unsupported num_bits = 8. Supported: 4.");
                }
                Ok(Some(Scheme::Packed(Packed {
                    bits: setting.bits,
                    group: setting.group,
                    zeros: true,
                    asymmetric: !setting.symmetric,
                    pads_tiles: false,
                    layout,
                })))
            }
            Format::Microscaled if setting.bits == 4 => Ok(Some(Scheme::Mxfp4)),
            Format::Microscaled if setting.bits == 8 => Ok(Some(Scheme::Mxfp8)),
            Format::Fp8Block { outputs, inputs } if setting.bits == 8 => Ok(Some(Scheme::Fp8Block {
                outputs,
                inputs,
                odd: OddBlocks::Refine,
                scale: Dtype::F32,
            })),
            _ => refused("No INC scheme found for layer config"),
        }
    }

    fn setting(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Setting, Refused> {
        let exact = |path: &str| self.named.iter().find(|(name, _)| name == path);
        let ends = |(name, _): &&(String, Extra)| {
            path.strip_suffix(name.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
        };
        if let Some((_, extra)) = exact(path).or_else(|| self.named.iter().find(ends)) {
            return Ok(extra.over(self.all));
        }
        let quantized = match &self.blocks {
            Some(blocks) => blocks.iter().any(|block| path.starts_with(block.as_str())),
            None => kind != Kind::Head,
        };
        let rest = if quantized {
            self.all
        } else {
            Setting {
                bits: UNQUANTIZED_BITS,
                group: None,
                symmetric: true,
            }
        };
        let matched = |path: &str| self.patterns.iter().find(|(pattern, _)| pattern.is_match(path));
        let extra = |path: &str| {
            exact(path)
                .map(|(_, extra)| *extra)
                .or_else(|| matched(path).map(|(_, extra)| *extra))
        };
        let known = !self.named.is_empty() || !self.patterns.is_empty();
        for (fused, parts) in naming.fused() {
            if !known || path.matches(fused).count() != 1 {
                continue;
            }
            let parts: Vec<String> = parts.iter().map(|part| path.replace(fused, part)).collect();
            if parts.iter().all(|part| extra(part).is_none()) {
                continue;
            }
            let mut settings = parts
                .iter()
                .map(|part| extra(part).unwrap_or_default().over(rest));
            let Some(first) = settings.next() else { continue };
            if settings.all(|other| other == first) {
                return Ok(first);
            }
            return Err(Refused(format!(
                "Fused module '{path}' requires consistent quant config for {parts:?}"
            )));
        }
        Ok(extra(path).unwrap_or_default().over(rest))
    }
}

/// Reads `quant_method` `auto-round` and `inc`.
pub(super) fn read(q: &Config, naming: &Naming) -> Result<Quantization> {
    let kind = q.str("data_type")?.unwrap_or("int");
    let backend = q.str("backend")?.or(q.str("vllm_backend")?).unwrap_or("auto");
    let format = q.str("packing_format")?;
    let mut refusal = None;
    let mut assert = |holds: bool, why: &str| {
        if !holds && refusal.is_none() {
            refusal = Some(why.to_owned());
        }
    };
    let bits = q.first_u64(&["bits"])?.unwrap_or(4);
    let symmetric = q.flag("sym", true)?;
    let (storage, group) = if kind.contains("mx_fp") {
        assert(matches!(bits, 4 | 8), "INC MXFP only supports bits=4 or bits=8.");
        assert(
            q.u64("group_size")? == Some(32),
            "INC MXFP only supports group_size=32.",
        );
        assert(symmetric, "INC MXFP only supports symmetric weights.");
        assert(
            format.is_none_or(|format| format == "auto_round:llm_compressor"),
            "INC MXFP only supports packing_format='auto_round:llm_compressor'.",
        );
        assert(backend == "auto", "INC MXFP only supports backend='auto'.");
        if bits == 8 {
            assert(
                q.u64("act_bits")?.is_none_or(|bits| bits == 8),
                "INC MXFP8 only supports act_bits=8.",
            );
        }
        (Format::Microscaled, Some(32))
    } else if matches!(kind, "fp" | "fp8") {
        let block = match q.get("group_size") {
            Some(serde_json::Value::Array(_)) => q.u64s("group_size")?.unwrap_or_default(),
            _ => Vec::new(),
        };
        match block[..] {
            [outputs, inputs] if outputs > 0 && inputs > 0 => (Format::Fp8Block { outputs, inputs }, None),
            _ => {
                assert(false, "INC block-wise FP8 requires a 2-D group_size.");
                (
                    Format::Fp8Block {
                        outputs: super::BLOCK.0,
                        inputs: super::BLOCK.1,
                    },
                    None,
                )
            }
        }
    } else if kind == "int" {
        let format = format.unwrap_or("auto_round:auto_gptq");
        assert(
            matches!(format, "auto_round:auto_gptq" | "auto_round:auto_awq"),
            "INC int quantization only supports packing_format in ['auto_round:auto_awq', 'auto_round:auto_gptq'].",
        );
        // The layout of GPTQ goes first where both names are there.
        let gptq = format.contains("gptq") || backend.contains("gptq");
        let layout = if gptq { Layout::Gptq } else { Layout::Awq };
        (
            Format::Integers(layout),
            group_size(q, &["group_size"], Some(128))?,
        )
    } else {
        return Err(Error::unsupported(format!(
            "{} is {kind:?}: Unsupported data_type, currently only support int, mx_fp and fp",
            q.name("data_type")
        ))
        .hint("--quantization none plans the model without its quantisation"));
    };
    if !(2..=8).contains(&bits) {
        return Err(Error::input(format!(
            "{} is {bits}, expected 2 to 8",
            q.name("bits")
        )));
    }
    let (named, patterns) = exceptions(q, naming)?;
    let blocks = match q.get("block_name_to_quantize").or(q.get("to_quant_block_names")) {
        None => None,
        Some(serde_json::Value::String(text)) => Some(text.split(',').map(str::to_owned).collect()),
        Some(_) => super::optional_names(q, &["block_name_to_quantize", "to_quant_block_names"])?,
    };
    Ok(Quantization {
        rule: Rule::Rounded(Rounded {
            format: storage,
            all: Setting {
                bits,
                group,
                symmetric,
            },
            named,
            patterns,
            blocks: blocks.map(|list: Vec<String>| {
                list.iter()
                    .map(|block| naming.rename(block).into_owned())
                    .collect()
            }),
        }),
        ..Quantization::new("auto-round", CacheScales::None, Mxfp4Padding::NONE, refusal)
    })
}

/// `extra_config`: modules by name, and by pattern.
#[allow(clippy::type_complexity, reason = "two lists that are unpacked at once")]
fn exceptions(q: &Config, naming: &Naming) -> Result<(Vec<(String, Extra)>, Vec<(Regex, Extra)>)> {
    let (mut named, mut patterns) = (Vec::new(), Vec::new());
    let Some(extra) = q.sub("extra_config")? else {
        return Ok((named, patterns));
    };
    let key = q.name("extra_config");
    for name in extra.map().keys() {
        let Some(own) = extra.sub(name)? else {
            continue;
        };
        let change = Extra {
            bits: own.u64("bits")?,
            group: match own.get("group_size") {
                None => Group::Unsaid,
                Some(_) => Group::Of(group_size(&own, &["group_size"], None)?),
            },
            symmetric: match own.get("sym") {
                None => None,
                Some(_) => Some(own.flag("sym", true)?),
            },
        };
        let name = naming.rename(name).into_owned();
        if name.contains(['*', '+', '?', '^', '$', '(', ')', '[', ']', '{', '}', '|', '\\']) {
            patterns.push((pattern(&name, false, &key)?, change));
        }
        named.push((name, change));
    }
    Ok((named, patterns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text.as_bytes()).unwrap()
    }

    fn rounded(text: &str) -> Rounded {
        match read(&config(text), &Naming::of_class("")).unwrap().rule {
            Rule::Rounded(rounded) => rounded,
            _ => panic!("not auto-round's rule"),
        }
    }

    #[test]
    fn modules_of_sixteen_bits_stay_as_they_are() {
        let rules = rounded(
            r#"{"bits": 4, "group_size": 32, "extra_config": {"model.layers.1.self_attn.q_proj": {"bits": 16},
            "model.layers.1.self_attn.k_proj": {"bits": 16}, "model.layers.1.self_attn.v_proj": {"bits": 16},
            "model.layers.2.self_attn.q_proj": {"bits": 16}, ".*\\.mlp\\.gate$": {"bits": 16}, "lm_head": {"bits": 8}}}"#,
        );
        let of = |path: &str, kind: Kind| rules.scheme(path, kind, &Naming::of_class(""));
        assert_eq!(of("model.layers.1.self_attn.qkv_proj", Kind::Linear), Ok(None));
        assert_eq!(of("model.layers.2.mlp.gate", Kind::Linear), Ok(None));
        assert!(
            of("model.layers.2.mlp.gate_up_proj", Kind::Linear)
                .unwrap()
                .is_some()
        );
        assert!(of("lm_head", Kind::Head).unwrap().is_some());
        // One of three parts is no answer for the module that is made of them.
        assert!(of("model.layers.2.self_attn.qkv_proj", Kind::Linear).is_err());
    }

    #[test]
    fn only_listed_blocks_are_quantised() {
        let rules = rounded(r#"{"bits": 4, "group_size": 128, "block_name_to_quantize": "model.layers"}"#);
        let of = |path: &str| rules.scheme(path, Kind::Linear, &Naming::of_class("")).unwrap();
        assert!(of("model.layers.0.mlp.down_proj").is_some());
        assert!(of("visual.blocks.0.attn.qkv").is_none());
    }

    #[test]
    fn floats_in_blocks_of_32_are_known_and_others_are_refused() {
        let text = r#"{"bits": 4, "data_type": "mx_fp", "group_size": 32}"#;
        let of = |rules: &Rounded| rules.scheme("a", Kind::Linear, &Naming::of_class(""));
        assert_eq!(of(&rounded(text)), Ok(Some(Scheme::Mxfp4)));
        let other = read(
            &config(r#"{"bits": 4, "data_type": "mx_fp", "group_size": 16}"#),
            &Naming::default(),
        );
        assert!(other.unwrap().refusal().unwrap().contains("group_size=32"));
        assert!(
            read(
                &config(r#"{"bits": 4, "data_type": "nv_fp"}"#),
                &Naming::default()
            )
            .is_err()
        );
    }
}
