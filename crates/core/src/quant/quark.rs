//! AMD Quark's checkpoints: one scheme for all modules, others by name, and what is left out.

use super::fused::Fused;
use super::glob::Glob;
use super::select::{Ignore, Match, Refused};
use super::{BLOCK, CacheScales, InputScale, Layout, Mxfp4Padding, Packed, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// Schemes by module.
#[derive(Debug, Clone)]
pub(super) struct Modules {
    /// What `layer_quant_config` says, in the order of the file.
    named: Vec<(Ignore, Option<Scheme>)>,
    /// What `global_quant_config` says.
    global: Option<Scheme>,
    exclude: Ignore,
}

impl Modules {
    /// Whether the attention module at `path` is left out with what surrounds it.
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        self.exclude.skips(path)
    }

    /// The same for a class that fuses other modules.
    pub(super) fn fuse(&mut self, fused: Fused) {
        self.exclude.fuse(fused);
        for (names, _) in &mut self.named {
            names.fuse(fused);
        }
    }

    /// The scheme of a module; embeddings and heads have none.
    pub(super) fn scheme(
        &self,
        path: &str,
        is_head: bool,
        is_experts: bool,
    ) -> Result<Option<Scheme>, Refused> {
        if is_head || self.exclude.skips_whole(path)? || is_experts && self.exclude.names_below(path) {
            return Ok(None);
        }
        let found = self.named.iter().find(|(pattern, _)| pattern.skips(path));
        Ok(found.map_or(self.global, |(_, scheme)| *scheme))
    }
}

/// vLLM 0.32.0, `quark/quark.py`.
pub(super) fn read(q: &Config) -> Result<Quantization> {
    let missing = |key: &str| Error::input(format!("{} is missing from the configuration", q.name(key)));
    let export = q.sub("export")?.ok_or_else(|| missing("export"))?;
    let global = q
        .sub("global_quant_config")?
        .ok_or_else(|| missing("global_quant_config"))?;
    let mut named = Vec::new();
    if let Some(layers) = q.sub("layer_quant_config")? {
        for key in layers.map().keys() {
            if let Some(entry) = layers.sub(key)? {
                named.push((Ignore::new(Match::Wildcard, &[key])?, scheme(&entry)?));
            }
        }
    }
    Ok(Quantization {
        name: "quark".to_owned(),
        rule: Rule::Quark(Modules {
            named,
            global: scheme(&global)?,
            exclude: Ignore::new(Match::Expression, &super::names(q, &["exclude"])?)?,
        }),
        cache_scales: CacheScales::Four { latent: false },
        padding: Mxfp4Padding::NONE,
        refusal: (!describes_cache(q, &export)?).then(|| NO_CACHE_SETTINGS.to_owned()),
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

/// The scheme of `{weight, input_tensors}`; `None` where weights stay as they are.
fn scheme(config: &Config) -> Result<Option<Scheme>> {
    let Some(weights) = tensor(config, "weight")?.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let inputs = tensor(config, "input_tensors")?.unwrap_or_default();
    let weight = &weights[0];
    let (dtype, shape) = (
        weight.str("dtype")?.unwrap_or_default(),
        weight.str("qscheme")?.unwrap_or_default(),
    );
    let static_input = match inputs.first() {
        Some(input) => !input.flag("is_dynamic", false)?,
        None => false,
    };
    let group = match weight.get("group_size") {
        None => None,
        Some(_) => Some(weight.positive(&["group_size"])?),
    };
    let symmetric = weight.get("symmetric") == Some(&serde_json::Value::Bool(true));
    Ok(Some(match (dtype, shape, group) {
        ("fp4", "per_group", Some(16)) if weights.len() == 2 => Scheme::Nvfp4(InputScale::F32),
        ("fp4", "per_group", Some(32)) => Scheme::Mxfp4,
        ("fp8_e4m3", "per_group", Some(32)) => Scheme::Mxfp8,
        ("fp8_e4m3", "per_block", _) => Scheme::Fp8Block {
            outputs: BLOCK.0,
            inputs: BLOCK.1,
        },
        ("fp8_e4m3", "per_channel", _) => Scheme::Fp8Channel { static_input },
        ("fp8_e4m3", "per_tensor", _) if weights.len() == 1 => Scheme::Fp8Tensor { static_input },
        ("int4" | "uint4", _, Some(group)) => Scheme::Packed(Packed {
            bits: 4,
            group: Some(group),
            zeros: !symmetric,
            asymmetric: !symmetric,
            layout: Layout::Awq,
        }),
        _ => {
            return Err(Error::unsupported(format!(
                "{} is {dtype:?} {shape:?}: no Quark scheme of vLLM 0.32.0 that this program describes",
                weight.name("dtype")
            )));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quark(extra: &str) -> Quantization {
        let text = format!(
            r#"{{"quant_method": "quark", "export": {{"kv_cache_group": []}}, "global_quant_config": {{"weight":
            {{"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}, "input_tensors": {{"is_dynamic": false}}}}{extra}}}"#
        );
        read(&Config::parse(text.as_bytes()).unwrap()).unwrap()
    }

    fn of(read: &Quantization, path: &str, is_experts: bool) -> Option<Scheme> {
        let Rule::Quark(modules) = &read.rule else {
            panic!("not Quark's rule");
        };
        modules.scheme(path, path == "lm_head", is_experts).unwrap()
    }

    #[test]
    fn named_modules_go_before_the_scheme_of_all() {
        let read = quark(
            r#", "layer_quant_config": {"*down_proj": {"weight": [{"dtype": "fp4", "qscheme": "per_group",
            "group_size": 32}], "input_tensors": null}}"#,
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
            let read = read(&Config::parse(text.as_bytes()).unwrap()).unwrap();
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
            read(&file)
                .unwrap_err()
                .to_string()
                .contains("global_quant_config")
        );
    }
}
