//! `ModelOpt` checkpoints: one algorithm, or one for each module.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::alike::Told;
use super::naming::Naming;
use super::select::{Ignore, Match, Refused};
use super::{BLOCK, CacheScales, InputScale, Kind, Mxfp4Padding, OddBlocks, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// An algorithm for each module that is quantised, by the module's path in the engine.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    schemes: IndexMap<String, Option<Scheme>>,
    /// Modules that hold listed ones (`mlp.experts` of `mlp.experts.0.gate_proj`), with the scheme of those.
    parents: IndexMap<String, Option<Scheme>>,
    ignore: Ignore,
}

impl Listed {
    /// What its lists tell of layers: those that name modules with different schemes are different ones.
    pub(super) fn tell<'a>(&'a self, told: &mut Told<'a>) {
        self.ignore.tell(0, told);
        let mut known: Vec<Option<Scheme>> = Vec::new();
        for (lists, names) in [&self.schemes, &self.parents].into_iter().enumerate() {
            for (name, scheme) in names {
                let which = known.iter().position(|k| k == scheme).unwrap_or_else(|| {
                    known.push(*scheme);
                    known.len() - 1
                });
                told.whole(1 + lists + 2 * which, name);
            }
        }
    }

    /// The scheme of a module, by its own name, its fused parts' or, for experts, that of a single expert.
    pub(super) fn scheme(&self, path: &str, kind: Kind, naming: &Naming) -> Result<Option<Scheme>, Refused> {
        if kind == Kind::Embedding || self.ignore.skips_whole(path, naming)? {
            return Ok(None);
        }
        let spellings = spellings(path);
        if let Some(scheme) = spellings.iter().find_map(|path| self.schemes.get(path)) {
            return Ok(*scheme);
        }
        let mut found = None;
        for part in spellings.iter().flat_map(|path| naming.parts(path)) {
            match (self.schemes.get(&part), found) {
                (Some(scheme), Some(other)) if *scheme != other => {
                    return Err(Refused(format!(
                        "Mixed quant_algo within fused layer {path}: All shards must use the same quantization."
                    )));
                }
                (Some(scheme), _) => found = Some(*scheme),
                (None, _) => {}
            }
        }
        if let Some(scheme) = found {
            return Ok(scheme);
        }
        let parent = path.strip_suffix(".experts");
        Ok(spellings
            .iter()
            .map(String::as_str)
            .chain(parent)
            .find_map(|path| self.parents.get(path))
            .copied()
            .flatten())
    }
}

/// The spellings in which `quantized_layers` may have a module (vLLM 0.32.0, `_quantized_layer_prefix_candidates`).
fn spellings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    if path.ends_with(".lm_head") {
        all.push("lm_head".to_owned());
    }
    if let Some(rest) = path.strip_prefix("language_model.model.") {
        all.push(format!("model.language_model.{rest}"));
    } else if let Some(rest) = path.strip_prefix("model.language_model.") {
        all.push(format!("language_model.model.{rest}"));
    }
    all
}

/// vLLM 0.32.0, `modelopt.py`.
pub(super) fn read(q: &Config, method: &str, naming: &Naming) -> Result<Quantization> {
    // The older form nests everything under `quantization` and calls the list by another name.
    let nested = q.sub("quantization")?;
    let (q, list) = match &nested {
        Some(inner) => (inner, super::names(inner, &["exclude_modules"])?),
        None if method == "mxfp8" && q.get("quant_algo").is_none() => {
            (q, super::names(q, &["ignored_layers"])?)
        }
        None => (q, super::names(q, &["ignore"])?),
    };
    // Where the class has a mapper, the engine splits `path*` in two first: the path, and what is below it.
    let split: Vec<String> = list
        .iter()
        .flat_map(
            |entry| match entry.strip_suffix('*').filter(|stem| !stem.ends_with('.')) {
                Some(stem) if naming.renames() && !stem.is_empty() => {
                    vec![stem.to_owned(), format!("{stem}.*")]
                }
                _ => vec![(*entry).to_owned()],
            },
        )
        .map(|entry| naming.rename(&entry).into_owned())
        .collect();
    let ignore = Ignore::new(Match::Wildcard, &split)?;
    let algo = match q.str("quant_algo")? {
        // Files that name no algorithm but the method are MXFP8 (MiniMax).
        None if method == "mxfp8" && nested.is_none() => "MXFP8".to_owned(),
        algo => algo.unwrap_or_default().to_ascii_uppercase(),
    };
    if algo == "MIXED_PRECISION" || algo.is_empty() && q.get("quantized_layers").is_some() {
        return mixed(q, nested.is_some(), ignore, naming);
    }
    let scheme = scheme(&algo).ok_or_else(|| {
        Error::unsupported(format!(
            "{} is {algo:?}, which vLLM 0.32.0 does not load",
            q.name("quant_algo")
        ))
    })?;
    let mut read = Quantization::uniform("modelopt", scheme, ignore, CacheScales::Four { latent: true });
    if let Rule::Uniform { head, experts, .. } = &mut read.rule {
        *head = true;
        // Experts have neither blocks nor channels: the engine reads them as plain FP8.
        *experts = algo
            .starts_with("FP8")
            .then_some(Scheme::Fp8Tensor { static_input: true });
    }
    Ok(read)
}

fn scheme(algo: &str) -> Option<Scheme> {
    Some(match algo {
        "FP8" => Scheme::Fp8Tensor { static_input: true },
        "FP8_PER_CHANNEL_PER_TOKEN" => Scheme::Fp8Channel { static_input: false },
        "FP8_PB_WO" => Scheme::Fp8Block {
            outputs: BLOCK.0,
            inputs: BLOCK.1,
            odd: OddBlocks::Take,
            scale: Dtype::F32,
        },
        "NVFP4" => Scheme::Nvfp4(InputScale::F32),
        "W4A16_NVFP4" => Scheme::Nvfp4(InputScale::Model),
        "MXFP8" => Scheme::Mxfp8,
        // The name that early files have for blocks; of experts alone.
        "FP8_BLOCK_SCALES" => Scheme::Fp8Block {
            outputs: BLOCK.0,
            inputs: BLOCK.1,
            odd: OddBlocks::Refine,
            scale: Dtype::F32,
        },
        _ => return None,
    })
}

fn mixed(q: &Config, nested: bool, ignore: Ignore, naming: &Naming) -> Result<Quantization> {
    let Some(layers) = q.sub("quantized_layers")? else {
        return Err(Error::input(format!(
            "{} is missing from the configuration",
            q.name("quantized_layers")
        )));
    };
    let mut schemes = IndexMap::new();
    let mut parents = IndexMap::new();
    for (key, entry) in layers.map() {
        // Files have hundreds; one that cannot be used is read again for its words.
        let text = match entry {
            Value::Null => continue,
            Value::Object(entry) => entry.get("quant_algo").and_then(Value::as_str),
            _ => None,
        };
        let Some(scheme) = text.and_then(|algo| scheme(&algo.to_ascii_uppercase())) else {
            let entry = layers.sub(key)?.unwrap_or_else(|| layers.child(key, Map::new()));
            let algo = entry.str("quant_algo")?.unwrap_or_default().to_ascii_uppercase();
            return Err(Error::unsupported(format!(
                "{} is {algo:?}, which vLLM 0.32.0 does not load",
                entry.name("quant_algo")
            )));
        };
        let path = naming.rename(key).into_owned();
        let mut rest = path.as_str();
        while let Some((parent, _)) = rest.rsplit_once('.') {
            // The first listed module below a parent decides, for all above it too.
            if parents.contains_key(parent) {
                break;
            }
            parents.insert(parent.to_owned(), Some(scheme));
            rest = parent;
        }
        schemes.insert(path, Some(scheme));
    }
    let has_cache = if nested {
        q.get("kv_cache_quant_algo").is_some()
    } else {
        match q.sub("kv_cache_scheme")? {
            Some(scheme) => scheme.str("type")? == Some("float") && scheme.u64("num_bits")? == Some(8),
            None => false,
        }
    };
    Ok(Quantization {
        rule: Rule::Listed(Listed {
            schemes,
            parents,
            ignore,
        }),
        ..Quantization::new(
            "modelopt",
            if has_cache {
                CacheScales::Four { latent: false }
            } else {
                CacheScales::None
            },
            Mxfp4Padding::NONE,
            None,
        )
    })
}
