//! Speculative decoding: which caches a drafter adds.

use crate::arch::{CacheKind, Layer, Model};
use crate::{Error, Result};

use super::refusal::{Refusal, RefusalKind};

/// `method` of `--speculative-config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the engine's own name")]
pub enum Method {
    Ngram,
    NgramGpu,
    Eagle,
    Eagle3,
    Mtp,
    DraftModel,
    Medusa,
    MlpSpeculator,
    Suffix,
    DFlash,
    DSpark,
}

/// Speculative decoding as `--speculative-config` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Speculative {
    /// How drafts are made.
    pub method: Method,
    /// `num_speculative_tokens`.
    pub num_tokens: u64,
    /// The drafter's own model, for methods that load one.
    pub draft: Option<Box<Model>>,
}

const NAMES: [(&str, Method); 11] = [
    ("ngram", Method::Ngram),
    ("ngram_gpu", Method::NgramGpu),
    ("eagle", Method::Eagle),
    ("eagle3", Method::Eagle3),
    ("mtp", Method::Mtp),
    ("draft_model", Method::DraftModel),
    ("medusa", Method::Medusa),
    ("mlp_speculator", Method::MlpSpeculator),
    ("suffix", Method::Suffix),
    ("dflash", Method::DFlash),
    ("dspark", Method::DSpark),
];

impl Method {
    /// Parses the engine's name; the model-specific spellings (`deepseek_mtp`, `qwen3_next_mtp`, ...) are `mtp`.
    ///
    /// # Errors
    /// If there is no such method.
    pub fn parse(text: &str) -> Result<Self> {
        let name = text.trim().to_ascii_lowercase();
        if name.ends_with("_mtp") {
            return Ok(Self::Mtp);
        }
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, method)| method)
            .ok_or_else(|| {
                let known: Vec<&str> = NAMES.iter().map(|&(known, _)| known).collect();
                Error::input(format!(
                    "--speculative-config method {text} is not one of {}",
                    known.join(", ")
                ))
            })
    }

    /// The engine's name.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|&&(_, method)| method == self)
            .map_or("", |&(name, _)| name)
    }

    /// Whether asynchronous scheduling works with it (vLLM 0.32.0, `config/vllm.py`).
    pub const fn supports_async(self) -> bool {
        !matches!(
            self,
            Self::Ngram | Self::Medusa | Self::MlpSpeculator | Self::Suffix
        )
    }

    /// Whether model runner V2 works with it (`_get_v2_model_runner_unsupported_features`).
    pub const fn supports_v2_runner(self) -> bool {
        !matches!(self, Self::Medusa | Self::MlpSpeculator | Self::Suffix)
    }

    /// Whether drafts are made from the target's hidden states (`use_eagle`).
    pub const fn uses_hidden_states(self) -> bool {
        matches!(
            self,
            Self::Eagle | Self::Eagle3 | Self::Mtp | Self::DFlash | Self::DSpark
        )
    }

    /// Whether a model of its own with a cache is loaded.
    const fn loads_model(self) -> bool {
        matches!(
            self,
            Self::Eagle | Self::Eagle3 | Self::DraftModel | Self::DFlash | Self::DSpark
        )
    }
}

impl Speculative {
    /// Layers that the drafter adds to the last pipeline stage, in the order the engine registers them.
    ///
    /// A multi-token-prediction module repeats the target's decoder layer with attention over all tokens, so its
    /// caches are those of the last such layer.
    ///
    /// # Errors
    /// A [`Refusal`] where the target has no such layers, or the drafter's model is missing.
    pub fn layers(&self, target: &Model) -> Result<Vec<Layer>, Refusal> {
        let refuse = |reason: String| Err(Refusal::new(RefusalKind::Speculative, reason));
        if self.method == Method::Mtp {
            if target.mtp_layers == 0 {
                return refuse(format!(
                    "speculative method mtp: {} has no multi-token-prediction layers (num_nextn_predict_layers)",
                    target.name
                ));
            }
            let whole = |layer: &&Layer| {
                layer.caches.iter().any(|cache| {
                    matches!(
                        cache.kind,
                        CacheKind::Full(_) | CacheKind::Latent { .. } | CacheKind::Compressed { .. }
                    )
                })
            };
            let Some(last) = target.layers.iter().rev().find(whole) else {
                return refuse(format!(
                    "speculative method mtp: {} has no attention layer to repeat",
                    target.name
                ));
            };
            let mut module = last.clone();
            module
                .caches
                .retain(|cache| !matches!(cache.kind, CacheKind::State(_)));
            let count = usize::try_from(target.mtp_layers.min(1 << 10)).unwrap_or(1);
            return Ok(vec![module; count]);
        }
        match (&self.draft, self.method.loads_model()) {
            (Some(draft), true) => Ok(draft.layers.clone()),
            (None, true) => refuse(format!(
                "speculative method {} needs a draft model, none was given",
                self.method.name()
            )),
            (_, false) => Ok(Vec::new()),
        }
    }

    /// Tokens that sliding windows keep behind them: drafters of several modules re-read that many.
    pub fn extra_retained_tokens(&self, target: &Model) -> u64 {
        if self.method == Method::Mtp && target.mtp_layers.min(self.num_tokens) > 1 {
            self.num_tokens - 1
        } else {
            0
        }
    }
}
