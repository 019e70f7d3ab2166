//! Which function reads which class: one row an architecture.
//!
//! Class names are those of vLLM 0.32.0 (`vllm/model_executor/models/registry.py`). Names on one row share a reader.

use super::dense::Decoder;
use super::text::Text;
use super::{llama, qwen};
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
