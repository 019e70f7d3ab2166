//! What classes do with a checkpoint's quantisation: parts that they build without it (vLLM 0.32.0: model files that
//! hand no `quant_config` to them), and modules in one piece.

use super::dense::Decoder;
use crate::arch::{AttentionScales, Role};

/// Classes whose output head stays in the model's element type.
const HEAD: &[&str] = &[
    "BloomForCausalLM",
    "DeepseekV41ForCausalLM",
    "DeepseekV4ForCausalLM",
    "DeepseekV4ForConditionalGeneration",
    "FalconH1ForCausalLM",
    "FalconMambaForCausalLM",
    "GptOssForCausalLM",
    "JambaForCausalLM",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "OPTForCausalLM",
    "PhiMoEForCausalLM",
    "Plamo3ForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen4ExpForCausalLM",
    "Qwen4ExpForConditionalGeneration",
    "Step3TextForCausalLM",
    "Step3VLForConditionalGeneration",
    "Zamba2ForCausalLM",
];

/// Classes that compute logits with their embedding and build no head beside it.
const HEADLESS: &[&str] = &[
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "Cohere2MoeForCausalLM",
    "Gemma2ForCausalLM",
];

/// Classes whose attention layers know nothing of it.
const ATTENTION: &[&str] = &[
    "BailingMoeForCausalLM",
    "BailingMoeV2ForCausalLM",
    "InklingForCausalLM",
    "InklingForConditionalGeneration",
    "JambaForCausalLM",
    "KimiLinearForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "Plamo3ForCausalLM",
    "SarvamMoEForCausalLM",
    "Step3TextForCausalLM",
    "Step3VLForConditionalGeneration",
    "Zamba2ForCausalLM",
];

/// Modules that the engine has in one piece although they are several matrices to the model.
const IN_ONE: &[(&str, &[&str])] = &[
    ("GlmForCausalLM", &["mlp.gate_up_proj"]),
    ("MiniMaxM3VLForCausalLM", &["mlp.shared_experts.gate_up_proj"]),
    ("ModernBertDecoderForCausalLM", &["mlp.gate_up_proj"]),
    ("MoshiForCausalLM", &["mlp.gate_up_proj"]),
    (
        "Qwen3NextForCausalLM",
        &["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"],
    ),
    ("Step3TextForCausalLM", &["self_attn.qkv_proj"]),
    ("Step3VLForConditionalGeneration", &["self_attn.qkv_proj"]),
];

/// Marks these parts.
pub(crate) fn apply(class: &str, decoder: &mut Decoder) {
    if let Some((_, names)) = IN_ONE.iter().find(|(name, _)| *name == class) {
        for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
            weight.in_one |= names.contains(&weight.name.as_str());
        }
    }
    if HEAD.contains(&class) {
        let heads = (decoder.outside.iter_mut())
            .flat_map(|part| &mut part.weights)
            .filter(|weight| weight.role == Role::Head);
        for head in heads {
            head.quantizable = false;
        }
    }
    if HEAD.contains(&class) || HEADLESS.contains(&class) {
        let embeddings = (decoder.outside.iter_mut())
            .flat_map(|part| &mut part.weights)
            .filter(|weight| weight.role == Role::Embedding);
        for embedding in embeddings {
            embedding.quantizable = false;
        }
    }
    if ATTENTION.contains(&class) {
        decoder.attention_scales = AttentionScales::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::registry;

    #[test]
    fn every_class_in_the_lists_is_one_that_is_read() {
        let pieces = IN_ONE.iter().map(|(class, _)| class);
        for class in HEAD.iter().chain(HEADLESS).chain(ATTENTION).chain(pieces) {
            assert!(registry::reader(class).is_some(), "{class}");
        }
    }
}
