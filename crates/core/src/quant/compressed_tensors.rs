//! llm-compressor's `compressed-tensors`: schemes by target.

mod schemes;

use super::alike::Told;
use super::naming::Naming;
use super::select::{Ignore, Match, Refused};
use super::{CacheScales, Kind, Mxfp4Padding, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};
use schemes::Args;

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
    /// What each kind of module has, or why it cannot have it.
    linear: Choice,
    experts: Choice,
    embedding: Choice,
}

/// A scheme, or why the engine has none.
type Choice = Result<Scheme, String>;

/// What a group is applied to.
#[derive(Debug, Clone)]
enum Target {
    /// Modules whose class is called so, in lower case (`linear`).
    Class(String),
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

    /// What its lists tell of layers.
    pub(super) fn tell<'a>(&'a self, told: &mut Told<'a>) {
        self.ignore.tell(0, told);
        for (list, group) in (1..).zip(&self.list) {
            for target in &group.targets {
                if let Target::Module(names) = target {
                    names.tell(list, told);
                }
            }
        }
    }

    /// The scheme of a module: named targets go before those of its fused parts, and these before its class.
    pub(super) fn scheme(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<Scheme>, Refused> {
        let found = if kind == Kind::Experts {
            // Experts are fused in the engine; files name the linear modules of single experts.
            let [gate, up, down] = naming.of_expert(path);
            let found = self.group(&down, kind, naming)?;
            for other in [&gate, &up] {
                if self.group(other, kind, naming)?.map(std::ptr::from_ref) != found.map(std::ptr::from_ref) {
                    return Err(Refused(format!(
                        "All MoE projections need to have same quantization scheme but found multiple ({path})"
                    )));
                }
            }
            found
        } else {
            self.group(path, kind, naming)?
        };
        let Some(group) = found else { return Ok(None) };
        let choice = match kind {
            Kind::Linear | Kind::Head => &group.linear,
            Kind::Experts => &group.experts,
            Kind::Embedding => &group.embedding,
        };
        match choice {
            Ok(scheme) => Ok(Some(*scheme)),
            Err(reason) => Err(Refused(format!("{reason} ({path})"))),
        }
    }

    /// The group that a module belongs to.
    fn group(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<&Group>, Refused> {
        if self.ignore.skips_whole(path, naming)? {
            return Ok(None);
        }
        let find = |wanted: &dyn Fn(&Target) -> bool| {
            self.list.iter().find(|group| group.targets.iter().any(wanted))
        };
        let named = |t: &Target| matches!(t, Target::Module(names) if names.names(path));
        let by_parts = |t: &Target| matches!(t, Target::Module(names) if names.skips(path, naming));
        let class = |t: &Target| {
            !(kind == Kind::Experts && naming.experts_apart())
                && matches!(t, Target::Class(class) if kind.is(class))
        };
        Ok(find(&named).or_else(|| find(&by_parts)).or_else(|| find(&class)))
    }
}

/// vLLM 0.32.0, `CompressedTensorsConfig`.
pub(super) fn read(q: &Config, naming: &Naming) -> Result<Quantization> {
    let renamed = |name: &str| {
        if name.contains('.') && !name.starts_with("re:") {
            naming.rename(name).into_owned()
        } else {
            name.to_owned()
        }
    };
    let ignore: Vec<String> = super::names(q, &["ignore"])?.into_iter().map(renamed).collect();
    let ignore = Ignore::new(Match::Expression, &ignore)?;
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
        let format = group.str("format")?.unwrap_or(format);
        let output = group.sub("output_activations")?;
        let args = Args::read(&weights)?;
        let input = group
            .sub("input_activations")?
            .map(|input| Args::read(&input))
            .transpose()?;
        let targets = group
            .strs("targets")?
            .unwrap_or_else(|| vec!["Linear"])
            .into_iter()
            .map(|target| {
                if Kind::ALL.iter().any(|kind| kind.is(&target.to_ascii_lowercase())) {
                    return Ok(Target::Class(target.to_ascii_lowercase()));
                }
                let names = Ignore::new(Match::Expression, &[renamed(target)])?;
                Ok(Target::Module(Box::new(names)))
            })
            .collect::<Result<Vec<_>>>()?;
        for_hopper |= input
            .as_ref()
            .is_some_and(|input| schemes::four_bits_with_fp8(&args, input))
            && targets
                .iter()
                .any(|target| matches!(target, Target::Class(class) if Kind::Linear.is(class)));
        list.push(Group {
            targets,
            linear: match output {
                Some(_) => Err("static scales for outputs are not described here".to_owned()),
                None => schemes::linear(&args, input.as_ref(), format),
            },
            experts: schemes::experts(&args, input.as_ref(), format),
            embedding: schemes::embedding(&args, input.as_ref()),
        });
    }
    check_cache(q, &mut refusal)?;
    Ok(Quantization {
        rule: Rule::Groups(Groups {
            list,
            ignore,
            for_hopper,
        }),
        ..Quantization::new(
            "compressed-tensors",
            CacheScales::ThreeWithZeros,
            Mxfp4Padding::NONE,
            refusal,
        )
    })
}

/// Whether the cache's scales are of a kind that the engine takes (vLLM 0.32.0, `CompressedTensorsKVCacheMethod`); those of
/// every head (`attn_head`) are counted as one.
fn check_cache(q: &Config, refusal: &mut Option<String>) -> Result<()> {
    let Some(scheme) = q.sub("kv_cache_scheme")? else {
        return Ok(());
    };
    let mut refuse = |why: String| {
        refusal.get_or_insert(why);
    };
    let (kind, bits) = (scheme.str("type")?.unwrap_or_default(), scheme.u64("num_bits")?);
    if kind != "float" || bits != Some(8) {
        refuse(format!(
            "Currently supported kv cache quantization is num_bits=8, type=float, however received num_bits={}, type={kind}",
            bits.map_or_else(|| "None".to_owned(), |bits| bits.to_string())
        ));
    }
    if !scheme.flag("symmetric", false)? {
        refuse("Only support symmetric scaling factor for compressed-tensors KV cache.".to_owned());
    }
    let strategy = scheme.str("strategy")?.unwrap_or_default();
    if !matches!(strategy, "tensor" | "attn_head") {
        refuse(format!(
            "Invalid strategy for compressed-tensors KV cache: {strategy:?}. Expected tensor or attn_head."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint with one group.
    fn checkpoint(format: &str, group: &str) -> Quantization {
        let text = format!(
            r#"{{"quant_method": "compressed-tensors", "format": "{format}", "ignore": ["lm_head"],
            "config_groups": {{"group_0": {group}}}}}"#
        );
        read(&Config::parse(text.as_bytes()).unwrap(), &Naming::of_class("")).unwrap()
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
            "pack-quantized",
            r#"{"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}}"#,
        );
        assert_eq!(groups(&read).refusal_on((9, 0)), None);
        assert!(groups(&read).refusal_on((8, 0)).is_some());
    }

    #[test]
    fn experts_in_fp8_need_scales_of_one_kind() {
        let of = |weights: &str, input: &str, dynamic: bool| {
            let group = format!(
                r#"{{"targets": ["Linear"], "weights": {{"num_bits": 8, "type": "float", "strategy": "{weights}"}},
                "input_activations": {{"num_bits": 8, "type": "float", "strategy": "{input}", "dynamic": {dynamic}}}}}"#
            );
            checkpoint("float-quantized", &group)
        };
        let scheme = |read: &Quantization, experts: bool| {
            let kind = if experts { Kind::Experts } else { Kind::Linear };
            groups(read).scheme("model.layers.0.mlp.experts", kind, &Naming::of_class(""))
        };
        for (weights, input, dynamic, linear, experts) in [
            ("channel", "token", true, true, true),
            ("tensor", "tensor", false, true, true),
            ("tensor", "token", true, true, false),
            ("channel", "token", false, true, false),
        ] {
            let read = of(weights, input, dynamic);
            assert_eq!(scheme(&read, true).is_ok(), experts, "{weights} {input}");
            assert_eq!(scheme(&read, false).is_ok(), linear, "{weights} {input}");
        }
    }
}
