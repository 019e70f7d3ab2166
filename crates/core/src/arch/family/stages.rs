//! Which classes leave embedding, head and final norm on every pipeline stage.

use super::dense::Decoder;
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
    "MuseGlimmerForCausalLM",
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
    ("Lfm2ForCausalLM", &[Role::Embedding]),
    ("Lfm2MoeForCausalLM", &[Role::Embedding]),
    ("Qwen3NextForCausalLM", &[Role::Embedding, Role::Head]),
    ("Qwen3_5ForCausalLM", &[Role::Embedding]),
    ("Qwen3_5ForConditionalGeneration", &[Role::Embedding]),
    ("InternS2MobiusForConditionalGeneration", &[Role::Embedding]),
    ("InternS2PreviewForConditionalGeneration", &[Role::Embedding]),
    ("Qwen3_5MoeForCausalLM", &[Role::Embedding]),
    ("Qwen3_5MoeForConditionalGeneration", &[Role::Embedding]),
];

/// Puts the ends of a decoder where its class builds them.
pub(crate) fn place(class: &str, decoder: &mut Decoder) {
    let all = EVERYTHING_EVERYWHERE.contains(&class);
    let some = SOME_EVERYWHERE
        .iter()
        .find(|(name, _)| *name == class)
        .map_or(&[][..], |(_, roles)| *roles);
    for part in decoder.outside.iter_mut().filter(|part| !part.tower) {
        if all || part.weights.iter().any(|w| some.contains(&w.role)) {
            part.place = Place::Every;
        }
    }
}
