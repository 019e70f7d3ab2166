//! AMD Quark's checkpoints: one scheme for all modules, others by name, and what is left out.

use super::alike::Told;
use super::glob::Glob;
use super::naming::Naming;
use super::select::{Ignore, Match, Refused};
use super::{CacheScales, InputScale, Kind, Mxfp4Padding, OddBlocks, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Schemes by module.
#[derive(Debug, Clone)]
pub(super) struct Modules {
    /// What `layer_quant_config` says, in the order of the file.
    named: Vec<(Pattern, Entry)>,
    /// What `global_quant_config` says.
    global: Entry,
    exclude: Ignore,
}

impl Modules {
    /// What its lists tell of layers; of names the first one that holds decides, so that each is a list of its own.
    pub(super) fn tell<'a>(&'a self, told: &mut Told<'a>) {
        self.exclude.tell(0, told);
        for (list, (pattern, _)) in (1..).zip(&self.named) {
            match pattern {
                Pattern::Glob(glob) => told.glob(list, glob),
                Pattern::Within(text) => told.part(list, text),
            }
        }
    }

    /// Whether the attention module at `path` is left out with what surrounds it.
    pub(super) fn leaves_out(&self, path: &str, naming: &Naming) -> bool {
        self.exclude.skips(path, naming)
    }

    /// The scheme of a module; embeddings and heads have none.
    pub(super) fn scheme(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<Scheme>, Refused> {
        let experts = kind == Kind::Experts;
        if !experts && kind != Kind::Linear
            || experts && self.exclude.names_below(path)
            || self.exclude.skips_whole(path, naming)?
        {
            return Ok(None);
        }
        let parts = naming.parts(path);
        let entry = match parts.first() {
            None => self.named(path),
            Some(first) => {
                let entry = self.named(first);
                if parts.iter().any(|part| self.named(part) != entry) {
                    return Err(Refused(format!(
                        "Found a different quantization configuration for the shards of {path}. vLLM requires all to use \
                         the same scheme."
                    )));
                }
                entry
            }
        };
        let choice = if experts { &entry.experts } else { &entry.linear };
        match choice {
            Ok(scheme) => Ok(Some(*scheme)),
            Err(reason) => Err(Refused(format!("{reason} ({path})"))),
        }
    }

    /// What a name says, or what is said of all.
    fn named(&self, path: &str) -> &Entry {
        let found = self.named.iter().find(|(pattern, _)| pattern.holds(path));
        found.map_or(&self.global, |(_, entry)| entry)
    }

    /// Least compute capability that runs its linear modules (vLLM 0.32.0, `get_min_capability` of the schemes).
    pub(super) fn capability(&self) -> u32 {
        let fp8 = |entry: &Entry| {
            matches!(
                entry.linear,
                Ok(Scheme::Fp8Tensor { .. } | Scheme::Fp8Channel { .. })
            )
        };
        if fp8(&self.global) { 89 } else { 70 }
    }
}

/// A key of `layer_quant_config`.
#[derive(Debug, Clone)]
enum Pattern {
    Glob(Glob),
    /// Text that holds the path (vLLM 0.32.0 asks it this way round).
    Within(String),
}

impl Pattern {
    fn new(key: &str) -> Self {
        if key.contains('*') {
            Self::Glob(Glob::new(key))
        } else {
            Self::Within(key.to_owned())
        }
    }

    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Glob(glob) => glob.is_match(path),
            Self::Within(text) => text.contains(path),
        }
    }
}

/// vLLM 0.32.0, `quark/quark.py`.
pub(super) fn read(q: &Config, naming: &Naming) -> Result<Quantization> {
    let missing = |key: &str| Error::input(format!("{} is missing from the configuration", q.name(key)));
    let export = q.sub("export")?.ok_or_else(|| missing("export"))?;
    let global = q
        .sub("global_quant_config")?
        .ok_or_else(|| missing("global_quant_config"))?;
    let packs = matches!(export.str("pack_method")?, Some("order" | "reorder"));
    let groups: Vec<Glob> = export
        .strs("kv_cache_group")?
        .unwrap_or_default()
        .iter()
        .map(|group| Glob::new(group))
        .collect();
    let mut named = Vec::new();
    if let Some(layers) = q.sub("layer_quant_config")? {
        for key in layers.map().keys() {
            if let Some(own) = layers.sub(key)? {
                // What these modules give out is the cache's numbers.
                let cached =
                    groups.iter().any(|group| group.is_match(key)) || !groups.is_empty() && key == "*q_proj";
                named.push((Pattern::new(&naming.rename(key)), entry(&own, packs, cached)?));
            }
        }
    }
    Ok(Quantization {
        rule: Rule::Quark(Modules {
            named,
            global: entry(&global, packs, false)?,
            exclude: Ignore::new(
                Match::Expression,
                &naming.rename_all(&super::names(q, &["exclude"])?),
            )?,
        }),
        ..Quantization::new(
            "quark",
            CacheScales::Four { latent: false },
            Mxfp4Padding::NONE,
            (!describes_cache(q, &export)?).then(|| NO_CACHE_SETTINGS.to_owned()),
        )
    })
}

/// What the engine says of a file that names layers for the cache's scales and does not describe them.
const NO_CACHE_SETTINGS: &str = "The Quark quantized model has the kv_cache_group parameter setting, but no kv_cache quantization \
    settings were found in the quantization configuration.";

/// Whether a file that names layers for the cache's scales describes such layers (vLLM 0.32.0, `QuarkConfig.from_config`).
fn describes_cache(q: &Config, export: &Config) -> Result<bool> {
    let groups = export.strs("kv_cache_group")?.unwrap_or_default();
    if groups.is_empty() {
        return Ok(true);
    }
    let layers = q.sub("layer_quant_config")?;
    let names: Vec<&String> = layers
        .as_ref()
        .map_or(Vec::new(), |map| map.map().keys().collect());
    Ok(groups.iter().all(|group| names.iter().any(|name| name == group))
        || groups
            .iter()
            .map(|group| Glob::new(group))
            .any(|group| names.iter().any(|name| group.is_match(name))))
}

/// A tensor's settings, which newer files wrap in a list.
fn tensor(config: &Config, key: &str) -> Result<Option<Vec<Config>>> {
    match config.get(key) {
        None => Ok(None),
        Some(serde_json::Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(i, entry)| match entry {
                serde_json::Value::Object(map) => Ok(config.child(&format!("{key}[{i}]"), map.clone())),
                _ => Err(Error::input(format!(
                    "{} holds something that is no object",
                    config.name(key)
                ))),
            })
            .collect::<Result<Vec<_>>>()
            .map(Some),
        Some(_) => Ok(config.sub(key)?.map(|one| vec![one])),
    }
}

/// What linear modules and experts have, or why the engine has nothing for them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    linear: Result<Scheme, String>,
    experts: Result<Scheme, String>,
}

/// Numbers of one tensor.
#[derive(Debug)]
struct Numbers {
    dtype: String,
    shape: String,
    group: Option<u64>,
    block: Vec<u64>,
    dynamic: bool,
    /// `true` or `false` where the file says so.
    symmetric: Option<bool>,
    power_scales: bool,
}

impl Numbers {
    fn read(config: &Config) -> Result<Self> {
        let text = |key: &str| Ok::<_, Error>(config.str(key)?.unwrap_or_default().to_owned());
        Ok(Self {
            dtype: text("dtype")?,
            shape: text("qscheme")?,
            group: match config.get("group_size") {
                None => None,
                Some(_) => Some(config.positive(&["group_size"])?),
            },
            block: config.u64s("block_size")?.unwrap_or_default(),
            dynamic: config.flag("is_dynamic", false)?,
            symmetric: match config.get("symmetric") {
                Some(serde_json::Value::Bool(symmetric)) => Some(*symmetric),
                _ => None,
            },
            power_scales: config.str("scale_format")? == Some("e8m0")
                || config.str("scale_type")? == Some("float8_e8m0fnu"),
        })
    }

    fn is(&self, dtype: &str, shape: &str) -> bool {
        self.dtype == dtype && self.shape == shape
    }
}

/// What `{weight, input_tensors}` means (vLLM 0.32.0, `QuarkConfig._get_scheme_cls_from_config` and
/// `QuarkMoEMethod.get_moe_method_target`).
fn entry(config: &Config, packs: bool, cached: bool) -> Result<Entry> {
    let read = |key: &str| -> Result<Vec<Numbers>> {
        tensor(config, key)?
            .unwrap_or_default()
            .iter()
            .map(Numbers::read)
            .collect()
    };
    let (weights, inputs) = (read("weight")?, read("input_tensors")?);
    let both = |scheme: Result<Scheme, String>| Entry {
        experts: scheme.clone(),
        linear: scheme,
    };
    let none = |what: &str| Err(format!("No quark compatible scheme was found: {what}"));
    if !cached && config.get("output_tensors").is_some() || config.get("bias").is_some() {
        return Ok(both(Err(
            "Currently, Quark models with output_tensors and bias quantized are not supported".to_owned(),
        )));
    }
    if weights.len() > 1 || inputs.len() > 1 {
        let nvfp4 = |numbers: &[Numbers], dynamic: bool| match numbers {
            [first, second] => {
                first.is("fp4", "per_group")
                    && first.group == Some(16)
                    && first.dynamic == dynamic
                    && second.is("fp8_e4m3", "per_tensor")
                    && !second.dynamic
            }
            _ => false,
        };
        return Ok(both(if nvfp4(&weights, false) && nvfp4(&inputs, true) {
            Ok(Scheme::Nvfp4(InputScale::F32))
        } else {
            none("weights or activations in two steps that are not NVFP4")
        }));
    }
    let Some(weight) = weights.first() else {
        return Ok(both(none("no numbers for weights")));
    };
    let input = inputs.first();
    if let Some(scheme) = fp8(weight, input) {
        return Ok(both(scheme));
    }
    let what = format!(
        "weights in {:?} {:?}, activations in {:?}",
        weight.dtype,
        weight.shape,
        input.map(|input| input.dtype.as_str()).unwrap_or_default()
    );
    if let Some(scheme) = int8(weight, input) {
        return Ok(both(Ok(scheme)));
    }
    if input.is_none() && matches!(weight.dtype.as_str(), "int4" | "uint4") && packs {
        let (Some(group), Some(_)) = (weight.group, weight.symmetric) else {
            return Err(Error::input(format!(
                "{} needs group_size and symmetric for 4-bit integers",
                config.name("weight")
            )));
        };
        return Ok(both(Ok(Scheme::Int4InWords { group })));
    }
    let Some(scheme) = microscaled(weight) else {
        return Ok(both(none(&what)));
    };
    let static_fp8 = input
        .filter(|input| !input.dynamic)
        .map(|input| input.is("fp8_e4m3", "per_tensor") && input.symmetric == Some(true));
    Ok(match static_fp8 {
        None => both(Ok(scheme)),
        Some(true) if scheme == Scheme::Mxfp4 => both(Ok(Scheme::Mxfp4StaticInput)),
        Some(_) => both(none(&what)),
    })
}

/// 8-bit floats on both sides (`_is_fp8_w8a8`).
fn fp8(weight: &Numbers, input: Option<&Numbers>) -> Option<Result<Scheme, String>> {
    if weight.shape == "per_block" && weight.block.is_empty() {
        return Some(Err(
            "Quark W8A8 FP8 per-block weight quantization requires `block_size` in the weight quantization config."
                .to_owned(),
        ));
    }
    let input = input?;
    if weight.dtype != "fp8_e4m3" || input.dtype != "fp8_e4m3" || weight.dynamic {
        return None;
    }
    if weight.shape == "per_block" {
        let fits = weight.block == [128, 128]
            && weight.symmetric == Some(true)
            && input.dynamic
            && input.shape == "per_group"
            && input.group == Some(128)
            && input.symmetric == Some(true);
        return fits.then_some(Ok(Scheme::Fp8Block {
            outputs: 128,
            inputs: 128,
            odd: OddBlocks::Refuse,
            scale: Dtype::F32,
        }));
    }
    if !input.dynamic && input.shape != "per_tensor" {
        return None;
    }
    let static_input = !input.dynamic;
    match weight.shape.as_str() {
        "per_tensor" => Some(Ok(Scheme::Fp8Tensor { static_input })),
        "per_channel" => Some(Ok(Scheme::Fp8Channel { static_input })),
        _ => None,
    }
}

/// 8-bit integers on both sides (`_is_w8a8_int8`).
fn int8(weight: &Numbers, input: Option<&Numbers>) -> Option<Scheme> {
    let input = input?;
    let static_input = input.shape == "per_tensor" && !input.dynamic;
    let fits = weight.dtype == "int8"
        && input.dtype == "int8"
        && matches!(weight.shape.as_str(), "per_tensor" | "per_channel")
        && weight.symmetric == Some(true)
        && (static_input && !weight.dynamic || input.shape == "per_channel" && input.dynamic);
    fits.then_some(Scheme::Int8WithZeros {
        per_channel: weight.shape == "per_channel",
        static_input,
    })
}

/// Numbers of the Open Compute Project with a scale for every 32 (`ocp_mx_weight_dtype_and_rows`).
fn microscaled(weight: &Numbers) -> Option<Scheme> {
    let groups = weight.shape == "per_group" && weight.group == Some(32) && weight.power_scales;
    let blocks = weight.shape == "per_block"
        && matches!(weight.block[..], [_, 32])
        && weight.power_scales
        && weight.symmetric == Some(true)
        && !weight.dynamic;
    match weight.dtype.as_str() {
        "fp4" if groups => Some(Scheme::Mxfp4),
        "fp8_e4m3" if groups || blocks => Some(Scheme::Mxfp8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quark(extra: &str) -> Quantization {
        let text = format!(
            r#"{{"quant_method": "quark", "export": {{"kv_cache_group": []}}, "global_quant_config": {{"weight":
            {{"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}, "input_tensors": {{"dtype": "fp8_e4m3", "qscheme": "per_tensor",
            "is_dynamic": false}}}}{extra}}}"#
        );
        read(&Config::parse(text.as_bytes()).unwrap(), &Naming::of_class("")).unwrap()
    }

    fn of(read: &Quantization, path: &str, is_experts: bool) -> Option<Scheme> {
        let Rule::Quark(modules) = &read.rule else {
            panic!("not Quark's rule");
        };
        let kind = match (path, is_experts) {
            ("lm_head", _) => Kind::Head,
            (_, true) => Kind::Experts,
            _ => Kind::Linear,
        };
        modules.scheme(path, kind, &Naming::of_class("")).unwrap()
    }

    #[test]
    fn named_modules_go_before_the_scheme_of_all() {
        let read = quark(
            r#", "layer_quant_config": {"*down_proj": {"weight": [{"dtype": "fp4", "qscheme": "per_group",
            "group_size": 32, "scale_format": "e8m0"}], "input_tensors": null}}"#,
        );
        assert_eq!(
            of(&read, "model.layers.0.mlp.down_proj", false),
            Some(Scheme::Mxfp4)
        );
        assert_eq!(
            of(&read, "model.layers.0.self_attn.o_proj", false),
            Some(Scheme::Fp8Tensor { static_input: true })
        );
        assert_eq!(of(&read, "lm_head", false), None);
    }

    #[test]
    fn experts_are_left_out_whole_when_one_of_them_is() {
        let read = quark(r#", "exclude": ["lm_head", "model.layers.3.mlp.experts.7.down_proj"]"#);
        assert_eq!(of(&read, "model.layers.3.mlp.experts", true), None);
        assert!(of(&read, "model.layers.4.mlp.experts", true).is_some());
    }

    #[test]
    fn layers_named_for_the_cache_have_to_be_described() {
        let says = |layers: &str| {
            let text = format!(
                r#"{{"quant_method": "quark", "export": {{"kv_cache_group": ["*k_proj", "*v_proj"]}}, "layer_quant_config":
                {{{layers}}}, "global_quant_config": {{"weight": {{"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}}}}}"#
            );
            let read = read(&Config::parse(text.as_bytes()).unwrap(), &Naming::of_class("")).unwrap();
            read.refusal().map(str::to_owned)
        };
        assert!(says("").unwrap().contains("kv_cache_group"));
        let scheme = r#"{"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}"#;
        assert_eq!(
            says(&format!("\"*k_proj\": {scheme}, \"*v_proj\": {scheme}")),
            None
        );
    }

    #[test]
    fn a_file_without_a_scheme_for_all_is_an_error_that_names_it() {
        let file = Config::parse(br#"{"quant_method": "quark", "export": {}}"#).unwrap();
        assert!(
            read(&file, &Naming::of_class(""))
                .unwrap_err()
                .to_string()
                .contains("global_quant_config")
        );
    }
}
