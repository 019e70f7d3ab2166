//! `ModelOpt` checkpoints: one algorithm, or one for each module.

use std::collections::HashMap;

use super::fused::{self, Fused};
use super::select::{self, Ignore, Match, Refused};
use super::{BLOCK, CacheScales, InputScale, Mxfp4Padding, Quantization, Rule, Scheme};
use crate::arch::Config;
use crate::{Error, Result};

/// An algorithm for each module that is quantised, by the module's canonical path.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    schemes: HashMap<String, Scheme>,
    /// Modules that hold listed ones (`mlp.experts` of `mlp.experts.0.gate_proj`), with the scheme of those.
    parents: HashMap<String, Scheme>,
    ignore: Ignore,
    fused: Fused,
}

impl Listed {
    /// The same for a class that fuses other modules.
    pub(super) fn fuse(&mut self, fused: Fused) {
        self.ignore.fuse(fused);
        self.fused = fused;
    }

    /// The scheme of a module, by its own name, its fused parts' or, for experts, that of a single expert.
    pub(super) fn scheme(&self, path: &str, is_experts: bool) -> Result<Option<Scheme>, Refused> {
        if self.ignore.skips_whole(path)? {
            return Ok(None);
        }
        if let Some(scheme) = self.schemes.get(path) {
            return Ok(Some(*scheme));
        }
        if let Some(scheme) = fused::parts(path, self.fused)
            .iter()
            .find_map(|part| self.schemes.get(part))
        {
            return Ok(Some(*scheme));
        }
        if !is_experts {
            return Ok(None);
        }
        let parent = path.strip_suffix(".experts").unwrap_or(path);
        Ok(self
            .parents
            .get(path)
            .or_else(|| self.parents.get(parent))
            .copied())
    }
}

/// vLLM 0.32.0, `modelopt.py`.
pub(super) fn read(q: &Config) -> Result<Quantization> {
    // The older form nests everything under `quantization` and calls the list by another name.
    let nested = q.sub("quantization")?;
    let (q, list) = match &nested {
        Some(inner) => (inner, super::names(inner, &["exclude_modules"])?),
        None => (q, super::names(q, &["ignore"])?),
    };
    let ignore = Ignore::new(Match::Wildcard, &list)?;
    let algo = q.str("quant_algo")?.unwrap_or_default().to_ascii_uppercase();
    if algo == "MIXED_PRECISION" || algo.is_empty() && q.get("quantized_layers").is_some() {
        return mixed(q, ignore);
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
        // Experts have no blocks: the engine reads them as plain FP8.
        *experts = (algo == "FP8_PB_WO").then_some(Scheme::Fp8Tensor { static_input: true });
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
        },
        "NVFP4" => Scheme::Nvfp4(InputScale::F32),
        "W4A16_NVFP4" => Scheme::Nvfp4(InputScale::Model),
        "MXFP8" => Scheme::Mxfp8,
        _ => return None,
    })
}

fn mixed(q: &Config, ignore: Ignore) -> Result<Quantization> {
    let Some(layers) = q.sub("quantized_layers")? else {
        return Err(Error::input(format!(
            "{} is missing from the configuration",
            q.name("quantized_layers")
        )));
    };
    let mut schemes = HashMap::new();
    let mut parents = HashMap::new();
    for key in layers.map().keys() {
        let Some(entry) = layers.sub(key)? else {
            continue;
        };
        let algo = entry.str("quant_algo")?.unwrap_or_default().to_ascii_uppercase();
        let Some(scheme) = scheme(&algo) else {
            return Err(Error::unsupported(format!(
                "{} is {algo:?}, which vLLM 0.32.0 does not load",
                entry.name("quant_algo")
            )));
        };
        let path = select::canonical(key).into_owned();
        let mut rest = path.as_str();
        while let Some((parent, _)) = rest.rsplit_once('.') {
            // The first listed module below a parent decides.
            parents.entry(parent.to_owned()).or_insert(scheme);
            rest = parent;
        }
        schemes.insert(path, scheme);
    }
    let has_cache = q.get("kv_cache_quant_algo").is_some() || q.get("kv_cache_scheme").is_some();
    Ok(Quantization {
        name: "modelopt".to_owned(),
        rule: Rule::Listed(Listed {
            schemes,
            parents,
            ignore,
            fused: fused::USUAL,
        }),
        cache_scales: if has_cache {
            CacheScales::Four { latent: false }
        } else {
            CacheScales::None
        },
        padding: Mxfp4Padding::NONE,
        refusal: None,
    })
}
