//! Which function reads which class: one row an architecture.
//!
//! Class names are those of vLLM 0.32.0 (`vllm/model_executor/models/registry.py`). Names on one row share a reader.

use super::dense::Decoder;
use super::text::Text;
use super::{deepseek, llama, llama4, mimo_v2, minimax, mixtral, qwen, shared_moe, step};
use crate::Result;

/// How the classes of a row are read.
#[derive(Clone, Copy)]
pub(crate) enum Reader {
    /// By a function that makes the decoder.
    Own(fn(&Text) -> Result<Decoder>),
    /// As the class of the nested language model; its name where the wrapper fixes one.
    Inner(Option<&'static str>),
}

use Reader::{Inner, Own};

/// All architectures that are read.
const ROWS: &[(&[&str], Reader)] = &[
    (
        &[
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "InternLM3ForCausalLM",
            "IQuestCoderForCausalLM",
            "TeleChat3ForCausalLM",
            "LlamaModel",
        ],
        Own(llama::llama),
    ),
    (
        &["MistralForCausalLM", "Ministral3ForCausalLM"],
        Own(llama::llama),
    ),
    (&["Qwen2ForCausalLM"], Own(qwen::qwen2)),
    (&["Qwen3ForCausalLM"], Own(qwen::qwen3)),
    (
        &[
            "LlavaForConditionalGeneration",
            "LlavaNextForConditionalGeneration",
            "LlavaNextVideoForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
        ],
        Inner(None),
    ),
    (
        &["Qwen2_5_VLForConditionalGeneration"],
        Inner(Some("Qwen2ForCausalLM")),
    ),
    (&["MixtralForCausalLM"], Own(mixtral::mixtral)),
    (
        &[
            "GraniteMoeForCausalLM",
            "GraniteMoeSharedForCausalLM",
            "GraniteMoeSWAForCausalLM",
        ],
        Own(mixtral::granite),
    ),
    (&["PhiMoEForCausalLM"], Own(mixtral::phimoe)),
    (&["OlmoeForCausalLM"], Own(mixtral::olmoe)),
    (&["DbrxForCausalLM"], Own(mixtral::dbrx)),
    (&["GptOssForCausalLM"], Own(mixtral::gpt_oss)),
    (&["Qwen2MoeForCausalLM"], Own(mixtral::qwen2_moe)),
    (&["Qwen3MoeForCausalLM"], Own(mixtral::qwen3_moe)),
    (&["Glm4MoeForCausalLM"], Own(shared_moe::glm4)),
    (&["SolarOpenForCausalLM"], Own(shared_moe::solar_open)),
    (&["Ernie4_5_MoeForCausalLM"], Own(shared_moe::ernie)),
    (&["AfmoeForCausalLM"], Own(shared_moe::afmoe)),
    (
        &[
            "BailingMoeForCausalLM",
            "BailingMoeV2ForCausalLM",
            "SarvamMoEForCausalLM",
        ],
        Own(shared_moe::bailing),
    ),
    (&["Param2MoEForCausalLM"], Own(shared_moe::param2)),
    (&["HYV3ForCausalLM"], Own(shared_moe::hy_v3)),
    (
        &["ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"],
        Own(shared_moe::exaone_moe),
    ),
    (&["LagunaForCausalLM"], Own(shared_moe::laguna)),
    (
        &["AriaForConditionalGeneration", "AriaTextForCausalLM"],
        Own(shared_moe::aria),
    ),
    (&["MiniMaxM2ForCausalLM"], Own(minimax::m2)),
    (
        &[
            "MiniMaxM3SparseForCausalLM",
            "MiniMaxM3SparseForConditionalGeneration",
        ],
        Own(minimax::m3),
    ),
    (
        &["MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"],
        Own(mimo_v2::flash),
    ),
    (
        &["Step3TextForCausalLM", "Step3VLForConditionalGeneration"],
        Own(step::step3),
    ),
    (
        &["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"],
        Own(step::step3p5),
    ),
    (
        &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
        Own(llama4::llama4),
    ),
    (
        &[
            "DeepseekForCausalLM",
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "DeepseekV32ForCausalLM",
            "DeepseekOCRForCausalLM",
            "DeepseekOCR2ForCausalLM",
            "UnlimitedOCRForCausalLM",
            "GlmMoeDsaForCausalLM",
            "KimiVLForConditionalGeneration",
            "KimiK25ForConditionalGeneration",
            "MistralLarge3ForCausalLM",
        ],
        Own(deepseek::v2),
    ),
    (&["DeepseekVLV2ForCausalLM"], Own(deepseek::vl2)),
    (
        &["Qwen3VLForConditionalGeneration"],
        Inner(Some("Qwen3ForCausalLM")),
    ),
    (
        &["Qwen3VLMoeForConditionalGeneration"],
        Inner(Some("Qwen3MoeForCausalLM")),
    ),
    (&["AXK1ForCausalLM"], Own(deepseek::axk1)),
    (&["Glm4MoeLiteForCausalLM"], Own(deepseek::glm4_lite)),
    (&["PanguUltraMoEForCausalLM"], Own(deepseek::pangu_ultra)),
    (&["SarvamMLAForCausalLM"], Own(deepseek::sarvam)),
    (&["YoutuForCausalLM"], Own(deepseek::dense_latent)),
    (
        &["Mistral4ForCausalLM", "AXK2ForCausalLM"],
        Own(deepseek::generic_latent),
    ),
    (&["LongcatFlashForCausalLM"], Own(deepseek::longcat)),
];

/// The reader of a class.
pub(crate) fn reader(class: &str) -> Option<Reader> {
    ROWS.iter()
        .find(|(classes, _)| classes.contains(&class))
        .map(|&(_, reader)| reader)
}

/// Every class that is read, in the order of the rows.
pub(crate) fn classes() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|(classes, _)| classes.iter().copied())
}
