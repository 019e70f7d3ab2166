//! Keys that some classes of vLLM 0.32.0 do not look at, whatever a file says.
//!
//! A class's model file either reads a key or it does not; these lists name the classes whose file never mentions it.

use serde_json::Value;

use super::text::Text;

/// Classes that always build an output head of its own (their model file never ties it).
const NEVER_TIED: &[&str] = &[
    "AXK1ForCausalLM",
    "AfmoeForCausalLM",
    "AriaForConditionalGeneration",
    "BailingMoeV2_5ForCausalLM",
    "BailingMoeV3ForCausalLM",
    "DeepseekForCausalLM",
    "DeepseekOCR2ForCausalLM",
    "DeepseekOCRForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "DeepseekV41ForCausalLM",
    "DeepseekV4ForCausalLM",
    "DeepseekVLV2ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Glm5NextForCausalLM",
    "Glm5NextForConditionalGeneration",
    "GlmMoeDsaForCausalLM",
    "GptOssForCausalLM",
    "JambaForCausalLM",
    "KimiK25ForConditionalGeneration",
    "KimiLinearForCausalLM",
    "KimiVLForConditionalGeneration",
    "LongcatFlashForCausalLM",
    "LongcatFlashNgramForCausalLM",
    "MiMoV2FlashForCausalLM",
    "MiMoV2ForCausalLM",
    "MiniMaxM2ForCausalLM",
    "MiniMaxM3SparseForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration",
    "MistralLarge3ForCausalLM",
    "Molmo2ForConditionalGeneration",
    "MuseGlimmerForCausalLM",
    "MuseGlimmerForConditionalGeneration",
    "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM",
    "OlmoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen4ExpForCausalLM",
    "Qwen4ExpForConditionalGeneration",
    "Step3TextForCausalLM",
    "Step3VLForConditionalGeneration",
    "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
    "UnlimitedOCRForCausalLM",
];

/// Classes that never build one: they multiply by the embedding.
const ALWAYS_TIED: &[&str] = &["Gemma2ForCausalLM", "Gemma3nForCausalLM"];

/// Classes whose heads are the width by the number of heads (`head_dim` is not in their model file).
const WITHOUT_HEAD_DIM: &[&str] = &[
    "BloomForCausalLM",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "DbrxForCausalLM",
    "DeepseekForCausalLM",
    "FalconForCausalLM",
    "GLM4VForCausalLM",
    "GPT2LMHeadModel",
    "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "IQuestLoopCoderForCausalLM",
    "InternLM2ForCausalLM",
    "JambaForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "MiMoForCausalLM",
    "MiniCPMForCausalLM",
    "OPTForCausalLM",
    "OlmoHybridForCausalLM",
    "OlmoeForCausalLM",
    "OrionForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "StableLmForCausalLM",
    "Step1ForCausalLM",
];

/// The same file as its class sees it; `None` where the class sees all of it.
pub(crate) fn seen_by_class(t: &Text) -> Option<Text> {
    let class = t.class.as_str();
    let tied = if NEVER_TIED.contains(&class) {
        Some(false)
    } else if ALWAYS_TIED.contains(&class) {
        Some(true)
    } else {
        None
    };
    let says = |tied: bool| t.config.get("tie_word_embeddings") != Some(&Value::from(tied));
    let settle = tied.filter(|&tied| says(tied));
    let drop_head_dim = WITHOUT_HEAD_DIM.contains(&class) && t.config.get("head_dim").is_some();
    if settle.is_none() && !drop_head_dim {
        return None;
    }
    let mut map = t.config.map().clone();
    if let Some(tied) = settle {
        map.insert("tie_word_embeddings".to_owned(), Value::from(tied));
    }
    if drop_head_dim {
        map.remove("head_dim");
    }
    Some(Text {
        config: t.config.with_map(map),
        ..t.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;

    fn text(class: &str, file: &str) -> Text {
        Text::find(class, &Config::parse(file.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_key_that_the_class_does_not_read_has_no_effect() {
        let file =
            r#"{"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "tie_word_embeddings": true}"#;
        let seen = seen_by_class(&text("OlmoeForCausalLM", file)).unwrap();
        assert_eq!(seen.head_dim().unwrap(), 16);
        assert!(!seen.tied().unwrap());
        assert!(seen_by_class(&text("LlamaForCausalLM", file)).is_none());
    }
}
