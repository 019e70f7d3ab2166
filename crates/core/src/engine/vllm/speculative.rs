//! Speculative decoding: which caches and which weights a drafter adds.

use crate::arch::{Config, Layer, Model, Op, Parallel, Role, family};
use crate::dtype::Dtype;
use crate::quant::Quantization;
use crate::units::grouped;
use crate::{Error, Result};

use super::drafter_rules;
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
    pub draft: Option<Box<Draft>>,
}

/// A drafter that is a model of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Its layers and weights; an EAGLE head lists embedding and output head as the engine creates them.
    pub model: Model,
    /// Its configuration, which says how it is quantised.
    pub config: Config,
    /// Whether its checkpoint brings an embedding, where tensor names tell.
    pub has_embedding: Option<bool>,
    /// Whether its checkpoint brings an output head, where tensor names tell.
    pub has_head: Option<bool>,
}

/// Weights of a drafter on one tensor-parallel rank of the last pipeline stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrafterWeights {
    /// Bytes.
    pub bytes: u64,
    /// What was counted.
    pub formula: String,
    /// What could not be told, and what was taken instead.
    pub assumption: Option<&'static str>,
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
    pub const fn loads_model(self) -> bool {
        matches!(self, Self::Eagle | Self::Eagle3 | Self::DraftModel | Self::DFlash)
    }
}

impl Speculative {
    /// Layers that the drafter adds to the last pipeline stage, in the order the engine registers them.
    ///
    /// # Errors
    /// A [`Refusal`] where the target has no such layers, or the drafter's model is missing.
    pub fn layers(&self, target: &Model) -> Result<Vec<Layer>, Refusal> {
        let refuse = |reason: String| Err(Refusal::new(RefusalKind::Speculative, reason));
        if let Some(draft) = &self.draft
            && let Some(reason) = drafter_rules::refusal(target, draft, self.method, self.num_tokens)
        {
            return refuse(reason);
        }
        let built_in = match self.method {
            Method::Mtp if !self.has_assistant() => Some(target.mtp_modules()),
            Method::DSpark if self.draft.is_none() => Some(target.dspark_stages()),
            _ => None,
        };
        if let Some(layers) = built_in {
            let layers = match layers {
                Ok(layers) => layers,
                Err(error) => return refuse(format!("speculative method {}: {error}", self.method.name())),
            };
            let modules = layers.len() as u64;
            if self.method == Method::Mtp
                && self.num_tokens > modules
                && !self.num_tokens.is_multiple_of(modules)
            {
                return refuse(format!(
                    "num_speculative_tokens:{} must be divisible by n_predict={modules}",
                    self.num_tokens
                ));
            }
            if self.method == Method::Mtp {
                return Ok(target.mtp_modules_for(self.num_tokens).unwrap_or(layers));
            }
            return Ok(layers);
        }
        match (
            &self.draft,
            self.method.loads_model() || self.method == Method::DSpark || self.has_assistant(),
        ) {
            (Some(draft), true) => {
                if self.method == Method::DraftModel && draft.model.vocab_size != target.vocab_size {
                    return refuse(format!(
                        "Target and draft model should have the same vocabulary size. Target model vocab_size={}. Draft model vocab_size={}.",
                        target.vocab_size, draft.model.vocab_size
                    ));
                }
                Ok(draft.model.layers.clone())
            }
            (None, true) => refuse(format!(
                "speculative method {} needs a draft model, none was given",
                self.method.name()
            )),
            (_, false) => Ok(Vec::new()),
        }
    }

    /// Weights that the drafter adds to the last pipeline stage; `None` for methods without a network.
    ///
    /// An EAGLE head without an embedding of its own, or with a copy of the target's, reads the target's; the same holds
    /// for its output head, and several pipeline stages keep the embedding apart (vLLM 0.32.0,
    /// `v1/spec_decode/llm_base_proposer.py`, `_maybe_share_embeddings` and `_maybe_share_lm_head`). Where tensor names do
    /// not tell, an embedding of the target's shape is taken for the target's, and an EAGLE-3 head's output head for its own.
    ///
    /// # Errors
    /// If a dimension does not divide over the ranks, a size leaves 64 bits, or the modules are not known.
    pub fn weights(
        &self,
        target: &Model,
        parallel: &Parallel,
        dtype: Dtype,
        quantization: Option<&Quantization>,
    ) -> Result<Option<DrafterWeights>> {
        match (&self.draft, self.method) {
            (_, Method::Ngram | Method::NgramGpu | Method::Suffix) => Ok(None),
            (None, Method::Mtp) => {
                let modules = target.mtp_modules_for(self.num_tokens)?.len();
                let brings_embedding = target
                    .modules
                    .as_ref()
                    .is_some_and(|modules| modules.once.iter().any(|weight| weight.role == Role::Embedding));
                let shared = if brings_embedding {
                    "the embedding is their own, the head the target's"
                } else {
                    "embedding and head are the target's"
                };
                Ok(Some(DrafterWeights {
                    bytes: target.mtp_weight_bytes(self.num_tokens, parallel, dtype, quantization)?,
                    formula: format!("{modules} multi-token-prediction modules; {shared}"),
                    assumption: None,
                }))
            }
            (None, Method::DSpark) => Ok(Some(DrafterWeights {
                bytes: target.dspark_weight_bytes(parallel, dtype, quantization)?,
                formula: "DSpark stages of the target's checkpoint; embedding and head are the target's"
                    .to_owned(),
                assumption: Some(
                    "the DSpark drafter is taken to have the parts that DeepSeek-V4-Flash-0731's has where the configuration does not say",
                ),
            })),
            (Some(draft), method) => draft.weights(target, method, parallel, dtype).map(Some),
            (None, method) => Err(Error::unsupported(format!(
                "the weights of a drafter of method {} are not known",
                method.name()
            ))),
        }
    }

    /// Whether multi-token prediction is by a model of its own that keeps no cache (Gemma-4).
    fn has_assistant(&self) -> bool {
        self.method == Method::Mtp
            && self
                .draft
                .as_ref()
                .is_some_and(|draft| draft.model.architecture == "Gemma4MTPModel")
    }

    /// Tokens that sliding windows keep behind them: drafters of several modules re-read that many.
    pub fn extra_retained_tokens(&self, target: &Model) -> u64 {
        if self.method == Method::Mtp
            && !self.has_assistant()
            && target
                .mtp_modules()
                .map_or(0, |m| m.len() as u64)
                .min(self.num_tokens)
                > 1
        {
            self.num_tokens - 1
        } else {
            0
        }
    }
}

impl Draft {
    fn weights(
        &self,
        target: &Model,
        method: Method,
        parallel: &Parallel,
        dtype: Dtype,
    ) -> Result<DrafterWeights> {
        let quantization = Quantization::read(&self.config)?;
        let eagle = matches!(method, Method::Eagle | Method::Eagle3);
        let block = matches!(method, Method::DFlash | Method::DSpark);
        // The whole drafter runs on the last stage.
        let alone = Parallel { pp: 1, ..*parallel };
        let same_width = self.model.hidden_size == target.hidden_size;
        // A vocabulary beyond the target's needs rows of its own (`load_dspark_model`).
        let same_rows = !block || self.model.vocab_size <= target.vocab_size;
        let assistant = self.model.architecture == "Gemma4MTPModel";
        let shares_embedding = parallel.pp == 1
            && (assistant
                || (same_width && same_rows && (eagle || (block && self.has_embedding != Some(true)))));
        let shares_head =
            match method {
                Method::Eagle => self.has_head != Some(true),
                Method::Eagle3 => self.has_head == Some(false),
                // A head over another vocabulary cannot be the target's.
                Method::DFlash | Method::DSpark => self.has_head != Some(true)
                    && same_width
                    && self
                        .model
                        .outside
                        .iter()
                        .flat_map(|part| &part.weights)
                        .filter(|weight| weight.role == Role::Head)
                        .all(
                            |weight| matches!(weight.op, Op::Vocab { rows, .. } if rows == target.vocab_size),
                        ),
                _ => false,
            };
        let mut bytes = 0_u64;
        for (path, weight) in self.model.stage_weights(0, &alone, true)? {
            if (weight.role == Role::Embedding && shares_embedding)
                || (weight.role == Role::Head && shares_head)
            {
                continue;
            }
            let own = match &quantization {
                None => weight.bytes(&alone, dtype)?,
                Some(quantization) => quantization.bytes(&path, weight, &alone, dtype)?,
            };
            bytes = bytes
                .checked_add(own)
                .ok_or_else(|| Error::overflow("the weights of the drafter"))?;
        }
        let mut kept = 0_u64;
        for copy in family::context_copies(&self.model, quantization.is_some()) {
            kept = kept
                .checked_add(copy.bytes(&alone, dtype)?)
                .ok_or_else(|| Error::overflow("the weights of the drafter"))?;
        }
        bytes = bytes
            .checked_add(kept)
            .ok_or_else(|| Error::overflow("the weights of the drafter"))?;
        let copied = match kept {
            0 => String::new(),
            kept => format!("; {} B of them again, joined over its layers", grouped(kept)),
        };
        let shared = match (shares_embedding, shares_head) {
            (true, true) => "; embedding and head are the target's",
            (true, false) => "; the embedding is the target's",
            (false, true) => "; the head is the target's",
            (false, false) => "",
        };
        let (params, _) = self.model.params()?;
        Ok(DrafterWeights {
            bytes,
            formula: format!(
                "{}: {} parameters in {dtype}{shared}{copied}",
                self.model.name,
                grouped(params)
            ),
            assumption: (eagle && parallel.pp == 1 && self.has_embedding != Some(false)).then_some(
                "the drafter's embedding is taken to be the target's: a different one of its own would be kept besides",
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_engine_are_read_and_others_are_listed() {
        assert_eq!(Method::parse("deepseek_mtp").unwrap(), Method::Mtp);
        assert_eq!(Method::parse("EAGLE3").unwrap(), Method::Eagle3);
        assert!(Method::parse("eagel").unwrap_err().to_string().contains("eagle3"));
        for (name, method) in NAMES {
            assert_eq!((Method::parse(name).unwrap(), method.name()), (method, name));
        }
    }
}
