//! Classes that embed, classify or score instead of generating text.
//!
//! Most are made of a class that generates: its output head goes, and where something is classified a small one in
//! float32 comes (vLLM 0.32.0, `models/adapters.py` and `_normalize_arch` in `models/registry.py`). A few have model
//! files of their own.

use super::dense::{Decoder, part};
use super::embedder::joint_schema_head;
use super::registry;
use super::text::Text;
use crate::arch::{CacheKind, Config, Place, Pooling, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Names under which the registry has classes that generate text all the same.
const SYNONYMS: &[(&str, &str)] = &[
    ("MistralModel", "LlamaForCausalLM"),
    ("Qwen2Model", "Qwen2ForCausalLM"),
    ("Gemma2Model", "Gemma2ForCausalLM"),
    ("DeepseekV3BidirectionalModel", "DeepseekV3ForCausalLM"),
];

/// What stands in the place of the output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// Nothing: hidden states are the answer.
    None,
    /// One matrix from hidden states to labels (`score`).
    Labels,
    /// Two layers from hidden states to so many scores (Qwen-2's reward models).
    Reward(u64),
    /// One matrix to one value (InternLM-2's reward model).
    Value,
    /// Two matrices without biases down to 512 elements (Jina's reranker).
    Projector,
    /// One matrix to the labels in the model's own element type (Voyage).
    Linear,
    /// What the class's own reader put there.
    Read,
    /// One matrix with a bias to labels.
    BiasedLabels,
    /// One matrix down to the elements of an embedding of each token (late interaction).
    Tokens,
    /// The same with a bias, and 128 elements where the file names no width (ColQwen-3.5).
    BiasedTokens,
    /// The same of a `ColBERT` made of a decoder: the file's keys in their order, nothing where there are none.
    Late,
    /// Layers that answer a list of questions (Clef-Omni).
    JointSchema,
    /// One matrix to the times that a forced aligner tells apart, in the model's own element type.
    Times,
}

/// Classes with model files of their own: name, the class whose layers they have, head.
const OWN: &[(&str, &str, Head)] = &[
    (
        "ColPaliForRetrieval",
        "PaliGemmaForConditionalGeneration",
        Head::Tokens,
    ),
    ("ColBERTLfm2Model", "Lfm2ForCausalLM", Head::Late),
    ("ColQwen3", "Qwen3VLForConditionalGeneration", Head::Tokens),
    (
        "ColQwen3_5",
        "Qwen3_5ForConditionalGeneration",
        Head::BiasedTokens,
    ),
    (
        "ClefOmniForJointSchema",
        "Qwen3OmniMoeForConditionalGeneration",
        Head::JointSchema,
    ),
    ("Gemma3TextModel", "Gemma3ForCausalLM", Head::None),
    ("GPT2ForSequenceClassification", "GPT2LMHeadModel", Head::Labels),
    ("InternLM2ForRewardModel", "InternLM2ForCausalLM", Head::Value),
    ("JambaForSequenceClassification", "JambaForCausalLM", Head::Labels),
    ("JinaEmbeddingsV5Model", "Qwen3ForCausalLM", Head::None),
    ("JinaForRanking", "Qwen3ForCausalLM", Head::Projector),
    (
        "LlamaBidirectionalForSequenceClassification",
        "LlamaForCausalLM",
        Head::Labels,
    ),
    (
        "JinaVLForRanking",
        "Qwen2VLForConditionalGeneration",
        Head::Reward(1),
    ),
    ("LlamaBidirectionalModel", "LlamaForCausalLM", Head::None),
    (
        "OpenAIPrivacyFilterForTokenClassification",
        "GptOssForCausalLM",
        Head::BiasedLabels,
    ),
    (
        "OpsColQwen3Model",
        "Qwen3VLForConditionalGeneration",
        Head::Tokens,
    ),
    (
        "Qwen3VLNemotronEmbedModel",
        "Qwen3VLForConditionalGeneration",
        Head::Tokens,
    ),
    (
        "Qwen3ASRForcedAlignerForTokenClassification",
        "Qwen3ASRForConditionalGeneration",
        Head::Times,
    ),
    ("Qwen2ForProcessRewardModel", "Qwen2ForCausalLM", Head::Reward(2)),
    ("Qwen2ForRewardModel", "Qwen2ForCausalLM", Head::Reward(1)),
    (
        "VoyageQwen3BidirectionalEmbedModel",
        "Qwen3ForCausalLM",
        Head::Linear,
    ),
];

/// Encoders: every token sees every other, and the class's own reader puts its head there.
const ENCODERS: &[&str] = &[
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertSpladeSparseEmbeddingModel",
    "BgeM3EmbeddingModel",
    "CLIPModel",
    "ColBERTJinaRobertaModel",
    "ColBERTModernBertModel",
    "ColModernVBertForRetrieval",
    "EmbeddingGemma2Model",
    "GteModel",
    "GteNewForSequenceClassification",
    "GteNewModel",
    "HF_ColBERT",
    "LlamaNemotronVLForSequenceClassification",
    "LlamaNemotronVLModel",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
    "NomicBertModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaModel",
    "SiglipModel",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForTokenClassification",
    "XLMRobertaModel",
];

/// Classes that keep the output head although nothing reads it.
const KEEPS_HEAD: &[&str] = &[
    "ColPaliForRetrieval",
    "ColQwen3",
    "ColQwen3_5",
    "ClefOmniForJointSchema",
    "JambaForSequenceClassification",
    "JinaVLForRanking",
    "OpsColQwen3Model",
    "Qwen3VLNemotronEmbedModel",
];

/// Names of the width of a token's embedding, in the order in which late-interaction classes look them up.
const TOKEN_WIDTHS: [&str; 6] = [
    "embedding_dim",
    "embed_dim",
    "dims",
    "dim",
    "projection_dim",
    "colbert_dim",
];

/// The same for `ColBERT`.
pub(super) const LATE_WIDTHS: [&str; 3] = ["colbert_dim", "dim", "projection_dim"];

/// Endings of class names in the engine's order, and what a class that ends so is turned into
/// (`_SUFFIX_TO_DEFAULTS` in `vllm/config/model.py`); the first four generate text.
const ENDINGS: &[(&str, Head)] = &[
    ("ForCausalLM", Head::None),
    ("ForConditionalGeneration", Head::None),
    ("ChatModel", Head::None),
    ("LMHeadModel", Head::None),
    ("ForTextEncoding", Head::None),
    ("EmbeddingModel", Head::None),
    ("ForSequenceClassification", Head::Labels),
    ("ForTokenClassification", Head::Labels),
    ("ForAudioClassification", Head::Labels),
    ("ForImageClassification", Head::Labels),
    ("ForVideoClassification", Head::Labels),
    ("ClassificationModel", Head::Labels),
    ("ForRewardModeling", Head::None),
    ("RewardModel", Head::None),
    ("Model", Head::None),
];

/// Endings of classes that generate text.
const GENERATE: usize = 4;

/// Longest list of labels that is read.
const MAX_LABELS: u64 = 1 << 26;

/// Model types that do not run in float16 (`_FLOAT16_NOT_SUPPORTED_MODELS` in `vllm/config/model.py`).
const NO_FLOAT16: [&str; 4] = ["gemma2", "gemma3", "gemma3_text", "glm4"];

/// A class that does not generate text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pooled {
    class: String,
    head: Head,
}

/// The class whose layers a file's class has, and what is pooled of them; `None` for classes that generate text.
pub(crate) fn resolve(class: &str) -> (String, Option<Pooled>) {
    let pooled = |base: &str, head: Head| {
        let pooled = Pooled {
            class: class.to_owned(),
            head,
        };
        (base.to_owned(), Some(pooled))
    };
    if let Some((_, base)) = SYNONYMS.iter().find(|(name, _)| *name == class) {
        return ((*base).to_owned(), None);
    }
    if ENCODERS.contains(&class) {
        return pooled(class, Head::Read);
    }
    if let Some(&(_, base, head)) = OWN.iter().find(|(name, ..)| *name == class) {
        return pooled(base, head);
    }
    if registry::reader(class).is_none()
        && super::refusal::reason(class).is_none()
        && let Some(i) = ENDINGS.iter().position(|(ending, _)| class.ends_with(ending))
        && i >= GENERATE
    {
        let (ending, head) = ENDINGS[i];
        let stem = class.strip_suffix(ending).unwrap_or_default();
        let bases = ENDINGS.iter().map(|(other, _)| format!("{stem}{other}"));
        if let Some(base) = bases.into_iter().find(|base| registry::reader(base).is_some()) {
            return pooled(&base, head);
        }
    }
    (class.to_owned(), None)
}

impl Pooled {
    /// Takes the output head off a decoder and puts this class's in its place.
    ///
    /// # Errors
    /// If the file's labels cannot be counted.
    pub(crate) fn finish(&self, t: &Text, decoder: &mut Decoder) -> Result<Pooling> {
        if self.head != Head::Read && !KEEPS_HEAD.contains(&self.class.as_str()) {
            for part in decoder.outside.iter_mut().filter(|part| !part.tower) {
                // A tied embedding stays on the last stage too, where nothing reads it.
                part.weights.retain(|w| w.role != Role::Head);
            }
            decoder.outside.retain(|part| !part.weights.is_empty());
        }
        let head = self.head_weights(t)?;
        if !head.is_empty() {
            decoder.outside.push(part(Place::Every, head));
        }
        let both_ways = self.attends_both_ways(t)?;
        if both_ways {
            // Encoder layers keep nothing between steps.
            for layer in &mut decoder.layers {
                layer.caches.clear();
            }
        }
        if self.declared_both_ways(t)? {
            for layer in &mut decoder.layers {
                layer.caches.retain(|cache| match &cache.kind {
                    CacheKind::Full(heads) => {
                        decoder.encoder_heads.get_or_insert(*heads);
                        false
                    }
                    _ => true,
                });
            }
        }
        // Pooling that needs a whole prompt at once: the first token's, a mean, or at steps.
        let whole = matches!(self.head, Head::Tokens | Head::BiasedTokens | Head::Late)
            || self.class == "Qwen2ForProcessRewardModel";
        Ok(Pooling {
            splits_prompts: !both_ways && !whole,
        })
    }

    fn head_weights(&self, t: &Text) -> Result<Vec<Weight>> {
        let hidden = t.hidden()?;
        let f32 = Dtype::F32;
        Ok(match self.head {
            Head::None | Head::Read => Vec::new(),
            Head::BiasedLabels => {
                let score = Weight::replicated("score", Role::Head, hidden, &[labels(t)?]);
                vec![score.bias(true).of(f32)]
            }
            Head::Tokens => match TOKEN_WIDTHS.iter().find(|key| t.top.get(key).is_some()) {
                Some(key) => {
                    let width = t.top.dim(key)?;
                    vec![Weight::replicated("custom_text_proj", Role::Head, hidden, &[width]).of(f32)]
                }
                // Its width comes with the checkpoint then.
                None => Vec::new(),
            },
            Head::BiasedTokens => {
                let width = given(&t.top, &TOKEN_WIDTHS[1..])?.unwrap_or(128);
                let proj = Weight::replicated("custom_text_proj", Role::Head, hidden, &[width]);
                vec![proj.bias(true).of(f32).unquantized()]
            }
            Head::Late => match given(&t.config, &LATE_WIDTHS)? {
                Some(width) => {
                    let linear = Weight::replicated("colbert_linear", Role::Head, hidden, &[width]);
                    vec![linear.of(f32).unquantized()]
                }
                None => Vec::new(),
            },
            Head::JointSchema => joint_schema_head(&t.top)?,
            Head::Labels => {
                let bias = t.config.flag("score_bias", false)? && KEEPS_HEAD.contains(&self.class.as_str());
                let score = Weight::replicated("score", Role::Head, hidden, &[labels(t)?]);
                vec![score.bias(bias).of(f32)]
            }
            Head::Reward(scores) => vec![
                Weight::column("score.0", Role::Head, hidden, &[hidden])
                    .bias(true)
                    .of(f32),
                Weight::row("score.2", Role::Head, hidden, scores)
                    .bias(true)
                    .of(f32),
            ],
            Head::Value => vec![Weight::row("v_head", Role::Head, hidden, 1).of(f32)],
            Head::Projector => vec![
                Weight::replicated("projector.0", Role::Head, hidden, &[hidden / 2]).unquantized(),
                Weight::replicated("projector.2", Role::Head, hidden / 2, &[512]).unquantized(),
            ],
            Head::Times => {
                let thinker = t.top.sub("thinker_config")?.unwrap_or_else(|| t.top.clone());
                let times = thinker.dim("classify_num")?;
                vec![Weight::replicated("classifier", Role::Head, hidden, &[times]).unquantized()]
            }
            Head::Linear => {
                vec![Weight::replicated("linear", Role::Head, hidden, &[labels(t)?]).unquantized()]
            }
        })
    }

    /// Whether only the attention of a hybrid sees both ways, as the file declares (`ColQwen3_5Config` in
    /// `model_executor/models/config.py`).
    fn declared_both_ways(&self, t: &Text) -> Result<bool> {
        if self.head != Head::BiasedTokens {
            return Ok(false);
        }
        let key = "retrieval_attention_contract";
        let mut declared = None;
        for config in [&t.top, &t.config] {
            if let Some(contract) = config.str(key)? {
                if !["causal", "bidirectional"].contains(&contract)
                    || declared.is_some_and(|other| other != contract)
                {
                    return Err(Error::unsupported(format!(
                        "unsupported or conflicting ColQwen3.5 {key} declarations: {contract:?}"
                    )));
                }
                declared = Some(contract);
            }
        }
        match declared {
            Some(contract) => Ok(contract == "bidirectional"),
            None => Err(Error::unsupported(format!(
                "ColQwen3.5 checkpoints must declare {key} as 'causal' or 'bidirectional'"
            ))),
        }
    }

    /// Whether every token sees every other, for which the engine builds encoder layers.
    fn attends_both_ways(&self, t: &Text) -> Result<bool> {
        Ok(match self.class.as_str() {
            "Gemma3TextModel" => t.config.flag("use_bidirectional_attention", false)?,
            "JinaEmbeddingsV5Model" => !t.config.flag("is_decoder", true)?,
            "VoyageQwen3BidirectionalEmbedModel" | "OpenAIPrivacyFilterForTokenClassification" => true,
            "CLIPModel" => false,
            _ if self.head == Head::Read => true,
            name => name.starts_with("LlamaBidirectional"),
        })
    }
}

/// The first of the keys that has a value other than 0, as such a class looks a width up.
pub(super) fn given(config: &Config, keys: &[&str]) -> Result<Option<u64>> {
    for key in keys {
        match config.dim_or(key, 0)? {
            0 => {}
            width => return Ok(Some(width)),
        }
    }
    Ok(None)
}

/// Labels of a classifier (`num_labels` of transformers' configurations): entries of `id2label`, else `num_labels`,
/// else 2; of a wrapper the file's own where they are not 2 (`_resolve_num_labels`).
pub(super) fn labels(t: &Text) -> Result<u64> {
    let of = |config: &Config| -> Result<u64> {
        if let Some(names) = config.sub("id2label")? {
            return Ok(names.map().len() as u64);
        }
        match config.u64("num_labels")? {
            Some(n) if n <= MAX_LABELS => Ok(n),
            Some(n) => Err(Error::input(format!(
                "{} is {n}, expected at most {MAX_LABELS} labels",
                config.name("num_labels")
            ))),
            None => Ok(2),
        }
    };
    let top = of(&t.top)?;
    if top == 2 { of(&t.config) } else { Ok(top) }
}

/// The element type that a pooling model runs in: float32 becomes float16 where the model runs in it.
pub(crate) fn dtype(t: &Text) -> Result<Option<Dtype>> {
    Ok(match t.dtype()? {
        None | Some(Dtype::F32) if NO_FLOAT16.contains(&t.model_type()?) => Some(Dtype::Bf16),
        None | Some(Dtype::F32) => Some(Dtype::F16),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_made_of_the_one_that_generates_under_the_same_stem() {
        for (class, base, head) in [
            ("Qwen3ForSequenceClassification", "Qwen3ForCausalLM", Head::Labels),
            ("GPTNeoXModel", "GPTNeoXForCausalLM", Head::None),
            ("LlamaForRewardModeling", "LlamaForCausalLM", Head::None),
            ("Qwen2VLModel", "Qwen2VLForConditionalGeneration", Head::None),
        ] {
            let (found, pooled) = resolve(class);
            assert_eq!(
                (found.as_str(), pooled.map(|p| p.head)),
                (base, Some(head)),
                "{class}"
            );
        }
    }

    #[test]
    fn classes_that_generate_and_unknown_ones_stay_as_they_are() {
        for class in [
            "LlamaForCausalLM",
            "LlamaModel",
            "NoSuchModel",
            "Qwen2_5OmniModel",
        ] {
            assert_eq!(resolve(class), (class.to_owned(), None));
        }
        assert_eq!(resolve("Qwen2Model"), ("Qwen2ForCausalLM".to_owned(), None));
    }

    #[test]
    fn labels_are_counted_or_two() {
        let count = |file: &str| labels(&Text::find("X", &Config::parse(file.as_bytes()).unwrap()).unwrap());
        assert_eq!(
            count(r#"{"id2label": {"0": "a", "1": "b", "2": "c"}}"#).unwrap(),
            3
        );
        assert_eq!(count(r#"{"num_labels": 1}"#).unwrap(), 1);
        assert_eq!(count("{}").unwrap(), 2);
        assert!(count(r#"{"num_labels": 99999999999}"#).is_err());
    }
}
