//! Which classes leave embedding, head and final norm on every pipeline stage.

use super::dense::Decoder;
use super::text::Text;
use crate::arch::{Place, Role};

/// Classes that build embedding, head and final norm on every stage instead of a placeholder
/// (vLLM 0.32.0: model files that never make a `PPMissingLayer` for them).
const EVERYTHING_EVERYWHERE: &[&str] = &[
    "BloomForCausalLM",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "Cohere2ForCausalLM",
    "Cohere2MoeForCausalLM",
    "CohereForCausalLM",
    "DbrxForCausalLM",
    "FalconForCausalLM",
    "GLM4VForCausalLM",
    "GPT2LMHeadModel",
    "GPTJForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma4ForCausalLM",
    "GemmaForCausalLM",
    "GptOssForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "HYV3ForCausalLM",
    "InklingForCausalLM",
    "InklingForConditionalGeneration",
    "InternLM2ForCausalLM",
    "JambaForCausalLM",
    "K2HorizonForCausalLM",
    "FalconMambaForCausalLM",
    "MambaForCausalLM",
    "Mamba2ForCausalLM",
    "MiniCPM3ForCausalLM",
    "MiniCPMForCausalLM",
    "MixtralForCausalLM",
    "Molmo2ForConditionalGeneration",
    "MolmoForCausalLM",
    "HfMoondream",
    "Moondream3ForCausalLM",
    "MuseGlimmerForCausalLM",
    "MuseGlimmerForConditionalGeneration",
    "NemotronHForCausalLM",
    "OPTForCausalLM",
    "OlmoHybridForCausalLM",
    "OlmoeForCausalLM",
    "OrionForCausalLM",
    "PhiMoEForCausalLM",
    "Plamo3ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Rnj1ForCausalLM",
    "StableLmForCausalLM",
];

/// Classes that build some of these parts on every stage.
const SOME_EVERYWHERE: &[(&str, &[Role])] = &[
    ("CohereCompassForConditionalGeneration", &[Role::Norm]),
    ("ColQwen3_5", &[Role::Embedding]),
    ("Lfm2ForCausalLM", &[Role::Embedding]),
    ("Lfm2MoeForCausalLM", &[Role::Embedding]),
    ("MiniCPMV4_6ForConditionalGeneration", &[Role::Embedding]),
    ("MiniCPMV4_7ForConditionalGeneration", &[Role::Embedding]),
    ("Qwen3NextForCausalLM", &[Role::Embedding, Role::Head]),
    ("Qwen3_5ForCausalLM", &[Role::Embedding]),
    ("Qwen4ExpForCausalLM", &[Role::Embedding, Role::Head]),
    ("Qwen4ExpForConditionalGeneration", &[Role::Embedding, Role::Head]),
    ("Qwen3_5ForConditionalGeneration", &[Role::Embedding]),
    ("InternS2MobiusForConditionalGeneration", &[Role::Embedding]),
    ("InternS2PreviewForConditionalGeneration", &[Role::Embedding]),
    ("Qwen3_5MoeForCausalLM", &[Role::Embedding]),
    ("Qwen3_5MoeForConditionalGeneration", &[Role::Embedding]),
];

/// Classes whose last stage has the embedding too where the file says that the head is tied to it, although they build a
/// head of its own.
const EMBEDDING_BESIDE_HEAD: &[&str] = &[
    "MiMoV2FlashForCausalLM",
    "MiMoV2ForCausalLM",
    "Step3TextForCausalLM",
    "Step3VLForConditionalGeneration",
    "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
];

/// Classes that the engine does not divide over pipeline stages (vLLM 0.32.0: they do not implement `SupportsPP`).
const WITHOUT_STAGES: &[&str] = &[
    "AriaForConditionalGeneration",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertSpladeSparseEmbeddingModel",
    "BgeM3EmbeddingModel",
    "CLIPModel",
    "ColBERTJinaRobertaModel",
    "ColBERTLfm2Model",
    "ColBERTModernBertModel",
    "ColModernVBertForRetrieval",
    "CohereAsrForConditionalGeneration",
    "DiffusionGemmaForBlockDiffusion",
    "EmbeddingGemma2Model",
    "FireRedASR2ForConditionalGeneration",
    "FunASRForConditionalGeneration",
    "GPT2ForSequenceClassification",
    "Gemma3TextModel",
    "Gemma3nForCausalLM",
    "Gemma3nForConditionalGeneration",
    "GteModel",
    "GteNewForSequenceClassification",
    "GteNewModel",
    "HF_ColBERT",
    "HrmTextForCausalLM",
    "IQuestLoopCoderForCausalLM",
    "Idefics3ForConditionalGeneration",
    "JinaForRanking",
    "LlamaBidirectionalForSequenceClassification",
    "LlamaBidirectionalModel",
    "Mamba2ForCausalLM",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "ModernBertModel",
    "NemotronH_Nano_Omni_Reasoning_V3",
    "NemotronH_Nano_VL_V2",
    "NemotronH_Omni_Reasoning_V3",
    "NemotronH_Super_Omni_Reasoning_V3",
    "NemotronParseForConditionalGeneration",
    "NomicBertModel",
    "OpenAIPrivacyFilterForTokenClassification",
    "PaddleOCRVLForConditionalGeneration",
    "Phi4MMForCausalLM",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
    "RobertaModel",
    "SiglipModel",
    "SmolVLMForConditionalGeneration",
    "VoyageQwen3BidirectionalEmbedModel",
    "WhisperForConditionalGeneration",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForTokenClassification",
    "XLMRobertaModel",
    "Zamba2ForCausalLM",
];

/// Classes that put the embedding's matrix into the head on stages that have none (vLLM 0.32.0, `ernie45_moe.py`,
/// `ernie45_vl_moe.py`).
const TIES_EVERYWHERE: &[&str] = &[
    "Ernie4_5_MoeForCausalLM",
    "Ernie4_5_VLMoeForConditionalGeneration",
];

/// Whether a class fails on pipeline stages where its head is its embedding.
pub(crate) fn fails_tied(class: &str) -> bool {
    TIES_EVERYWHERE.contains(&class)
}

/// Whether the engine divides a class over pipeline stages.
pub(crate) fn divides(class: &str) -> bool {
    !WITHOUT_STAGES.contains(&class)
}

/// The same for the generic Transformers backend: what comes before the layers is on the last stage too where the head is the
/// embedding (vLLM 0.32.0, `pipeline_parallel` in `models/transformers/base.py`).
pub(crate) fn place_generic(decoder: &mut Decoder) {
    let tied = decoder
        .outside
        .iter()
        .any(|part| part.place == Place::FirstAndLast);
    for part in &mut decoder.outside {
        if tied && part.place == Place::First {
            part.place = Place::FirstAndLast;
        }
    }
}

/// Puts the ends of a decoder where its class builds them.
pub(crate) fn place(text: &Text, decoder: &mut Decoder) {
    let class = text.class.as_str();
    let beside = EMBEDDING_BESIDE_HEAD.contains(&class)
        && text.config.get("tie_word_embeddings") == Some(&serde_json::Value::Bool(true));
    let all = EVERYTHING_EVERYWHERE.contains(&class);
    let some = SOME_EVERYWHERE
        .iter()
        .find(|(name, _)| *name == class)
        .map_or(&[][..], |(_, roles)| *roles);
    for part in decoder.outside.iter_mut().filter(|part| !part.tower) {
        if all || part.weights.iter().any(|w| some.contains(&w.role)) {
            part.place = Place::Every;
        } else if beside && part.weights.iter().any(|w| w.role == Role::Embedding) {
            part.place = Place::FirstAndLast;
        }
    }
}
