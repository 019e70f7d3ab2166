//! Where a class of the engine's registry stands: described, refused, a drafter for other models, or not described and
//! why not.

use super::{pooling, refusal, registry};

/// Where a class stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is read; the class whose layers it has.
    Described(String),
    /// The engine refuses it, with this reason.
    Refused(String),
    /// It drafts for another model: how a plan takes it into account, or why it does not.
    Drafter(&'static str),
    /// The engine serves it, and this program does not know its layers: why.
    Undescribed(&'static str),
    /// Nothing is known of it.
    Unknown,
}

const EAGLE: &str = "read as the model of --speculative-config";
const MODULES: &str =
    "counted with the target, whose checkpoint holds it: --speculative-config {\"method\": \"mtp\"}";

/// Classes that draft (vLLM 0.32.0, `_SPECULATIVE_DECODING_MODELS` in `vllm/model_executor/models/registry.py`).
const DRAFTERS: &[(&[&str], &str)] = &[
    (
        &[
            "DFlash2DraftModel",
            "DFlashDraftModel",
            "DFlashLagunaForCausalLM",
            "DFlashMuseGlimmerAssistantModel",
            "Eagle3LlamaForCausalLM",
            "Eagle3MiniMaxM2ForCausalLM",
            "Eagle3Qwen2_5vlForCausalLM",
            "Eagle3Qwen3ForCausalLM",
            "Eagle3Qwen3vlForCausalLM",
            "Eagle3DeepseekV2ForCausalLM",
            "Eagle3DeepseekV3ForCausalLM",
            "EagleCohereForCausalLM",
            "EagleDeepSeekMTPModel",
            "EagleLlama4ForCausalLM",
            "EagleMistralLarge3ForCausalLM",
            "Gemma4DSparkModel",
            "Gemma4MTPModel",
            "K3DSparkModel",
            "LiLiCorrDraftModel",
            "MuseGlimmerAssistantModel",
            "Qwen3DSparkModel",
            "Qwen3OmniDSparkModel",
            "EagleMiniCPMForCausalLM",
            "EagleMistralForCausalLM",
            "EagleLlamaForCausalLM",
            "LlamaForCausalLMEagle3",
            "MedusaModel",
            "PEagleDraftModel",
            "PeagleLlamaForCausalLM",
            "PeagleQwen3ForCausalLM",
        ],
        EAGLE,
    ),
    (
        &[
            "BailingMoeV25MTPModel",
            "BailingMoeV3MTPModel",
            "Dots3NoteMTPModel",
            "InklingMTPModel",
            "InternS2MobiusMTP",
            "KimiK3MTPModel",
            "ErnieMTPModel",
            "Glm5NextMTPModel",
            "GlmOcrMTPModel",
            "LongCatFlashMTPModel",
            "Qwen4ExpMTP",
            "DeepSeekMTPModel",
            "DeepSeekV4MTPModel",
            "DeepseekV32MTPModel",
            "Exaone4_5_MTP",
            "ExaoneMoeMTP",
            "Glm4MoeLiteMTPModel",
            "Glm4MoeMTPModel",
            "HYV3MTPModel",
            "HYV4MTPModel",
            "MiMoMTPModel",
            "MiMoV2MTPModel",
            "MiMoV2OmniMTPModel",
            "MiniMaxM3MTP",
            "NemotronHMTPModel",
            "OpenPanguMTPModel",
            "Qwen3NextMTP",
            "Qwen3_5MTP",
            "Qwen3_5MoeMTP",
            "Step3p5MTP",
        ],
        MODULES,
    ),
    (
        &["DSparkDraftModel", "DSparkV41DraftModel"],
        "counted with the target, whose checkpoint holds it: --speculative-config {\"method\": \"dspark\"}",
    ),
    (
        &["ExtractHiddenStatesModel"],
        "stores hidden states of the target instead of drafting",
    ),
];

/// Classes that the engine serves and whose layers are not known here, and why.
const UNDESCRIBED: &[(&[&str], &str)] = &[
    (
        &["Terratorch"],
        "its file names a model of the TerraTorch library and says nothing of layers",
    ),
    (
        &[
            "TransformersEmbeddingModel",
            "TransformersForCausalLM",
            "TransformersForSequenceClassification",
            "TransformersMoEEmbeddingModel",
            "TransformersMoEForCausalLM",
            "TransformersMoEForSequenceClassification",
            "TransformersMultiModalEmbeddingModel",
            "TransformersMultiModalForCausalLM",
            "TransformersMultiModalForSequenceClassification",
            "TransformersMultiModalMoEForCausalLM",
        ],
        "it names the engine's generic backend and not a model: put the model's own class there",
    ),
];

fn row(rows: &[(&[&str], &'static str)], class: &str) -> Option<&'static str> {
    rows.iter()
        .find(|(classes, _)| classes.contains(&class))
        .map(|&(_, words)| words)
}

/// Where a class stands.
pub fn standing(class: &str) -> Standing {
    let (built, _) = pooling::resolve(class);
    if registry::reader(&built).is_some() {
        return Standing::Described(built);
    }
    if let Some(how) = row(DRAFTERS, class) {
        return Standing::Drafter(how);
    }
    if let Some(why) = row(UNDESCRIBED, class) {
        return Standing::Undescribed(why);
    }
    refusal::reason(class).map_or(Standing::Unknown, Standing::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_stands_at_one_place() {
        for rows in [DRAFTERS, UNDESCRIBED] {
            for class in rows.iter().flat_map(|(classes, _)| classes.iter()) {
                assert!(registry::reader(class).is_none(), "{class} is described");
                assert_eq!(refusal::reason(class), None, "{class} is refused");
            }
        }
        assert_eq!(
            standing("MistralModel"),
            Standing::Described("LlamaForCausalLM".to_owned())
        );
        assert!(matches!(standing("MptForCausalLM"), Standing::Refused(_)));
        assert_eq!(standing("NoSuchModel"), Standing::Unknown);
    }
}
