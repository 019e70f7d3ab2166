//! Which classes take `LoRA` adapters, and for which of their modules.
//!
//! `data/lora_classes.tsv` is what the classes say themselves in vLLM 0.32.0: whether they support adapters, whether embedding and
//! head take them, how checkpoints name the parts of fused modules, and how their experts are kept.

use super::refusal::{Refusal, RefusalKind};
use super::settings::Settings;
use super::version::Version;
use crate::arch::Model;

const CLASSES: &str = include_str!("../../../data/lora_classes.tsv");
/// The release that the list was read in.
const LISTED: Version = Version::new(0, 32, 0);
/// Rows of the largest vocabulary whose head takes adapters (`lora/layers/logits_processor.py`).
const LARGEST_VOCABULARY: u64 = 258_048;
/// What most classes say of fused modules, for those that are not listed.
const USUAL_PARTS: [(&str, u64); 2] = [("gate_up_proj", 2), ("qkv_proj", 3)];

/// How one class takes adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterClass {
    /// Whether the embedding takes them.
    pub embedding: bool,
    /// Whether the output head does.
    pub head: bool,
    /// Whether checkpoints hold the two first projections of an expert in one piece.
    pub fused_experts: bool,
    /// Whether experts have no gate.
    pub ungated_experts: bool,
    /// Whether it wraps a language model of another class.
    pub wraps: bool,
    /// Whether the generic Transformers backend serves it.
    pub generic: bool,
    parts: Vec<(&'static str, u64)>,
}

impl Default for AdapterClass {
    fn default() -> Self {
        Self {
            embedding: false,
            head: false,
            fused_experts: false,
            ungated_experts: false,
            wraps: false,
            generic: false,
            parts: USUAL_PARTS.to_vec(),
        }
    }
}

impl AdapterClass {
    /// The row of a class; `None` for one that takes no adapters.
    pub fn of(class: &str) -> Option<Self> {
        let mut rows = CLASSES
            .lines()
            .filter_map(|line| line.strip_prefix(class)?.strip_prefix('\t'));
        let mut cells = rows.next()?.split('\t');
        let mut cell = || cells.next().unwrap_or_default();
        let (ends, parts, flags) = (cell(), cell(), cell());
        let wraps = flags.contains('w');
        let mut parts: Vec<(&str, u64)> = parts
            .split(',')
            .filter_map(|part| part.split_once('='))
            .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
            .collect();
        if wraps {
            // The language model inside of it has its own.
            for usual in USUAL_PARTS {
                if !parts.iter().any(|(name, _)| *name == usual.0) {
                    parts.push(usual);
                }
            }
        }
        Some(Self {
            embedding: ends.contains('e'),
            head: ends.contains('h'),
            fused_experts: flags.contains('3'),
            ungated_experts: flags.contains('n'),
            wraps,
            generic: flags.contains('g'),
            parts,
        })
    }

    /// Parts of a fused module that checkpoints name, if the class lists it.
    pub fn parts(&self, module: &str) -> Option<u64> {
        self.parts
            .iter()
            .find(|(name, _)| *name == module)
            .map(|&(_, count)| count)
    }
}

/// Why the engine takes no adapters for a model.
pub(crate) fn refusal(model: &Model, settings: &Settings) -> Option<Refusal> {
    if !settings.enable_lora || settings.version < LISTED || model.architecture.is_empty() {
        return None;
    }
    let refuse = |reason: String| Some(Refusal::new(RefusalKind::Adapters, reason));
    let Some(class) = AdapterClass::of(&model.architecture) else {
        return refuse(format!("Model {} is not supported for LoRA.", model.architecture));
    };
    if class.head && model.vocab_size > LARGEST_VOCABULARY {
        return refuse(format!(
            "When using LoRA, vocab size must be <= {LARGEST_VOCABULARY}, and this model's is {}",
            model.vocab_size
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_say_which_of_their_modules_take_adapters() {
        let of = |class: &str| AdapterClass::of(class).unwrap();
        let qwen3 = of("Qwen3ForCausalLM");
        assert!(qwen3.embedding && qwen3.head && !qwen3.wraps);
        assert_eq!(
            (
                qwen3.parts("qkv_proj"),
                qwen3.parts("gate_up_proj"),
                qwen3.parts("o_proj")
            ),
            (Some(3), Some(2), None)
        );
        // Its checkpoints hold both fused modules in one piece.
        assert_eq!(of("Phi3ForCausalLM").parts("gate_up_proj"), Some(1));
        assert!(!of("MistralForCausalLM").embedding);
        assert!(of("CohereForCausalLM").embedding && !of("CohereForCausalLM").head);
        assert!(of("GptOssForCausalLM").fused_experts);
        assert!(of("NemotronHForCausalLM").ungated_experts);
        assert!(of("Qwen3VLForConditionalGeneration").wraps);
        assert_eq!(AdapterClass::of("MambaForCausalLM"), None);
        // A name that begins like another is another.
        assert_eq!(AdapterClass::of("Qwen3ForCausal"), None);
    }
}
