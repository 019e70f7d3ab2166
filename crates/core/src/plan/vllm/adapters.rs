//! Slots of `LoRA` adapters: each takes two matrices of low rank for every linear module of the language model, for every
//! expert, and in some classes for embedding and head (vLLM 0.32.0, `lora/layers`, `lora/utils.py`).

use super::super::ledger::{Basis, Term};
use crate::arch::weight::Shard;
use crate::arch::{CacheKind, Model, Parallel, Role};
use crate::engine::vllm::Settings;
use crate::units::grouped;
use crate::{Error, Result};

/// Classes whose embedding and head take adapters too (`embedding_modules` of the class).
const BOTH_ENDS: [&str; 42] = [
    "ApertusForCausalLM",
    "DeciLMForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "ExaoneForCausalLM",
    "ExaoneMoEForCausalLM",
    "ExaoneMoeForCausalLM",
    "FalconH1ForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "GraniteSWAForCausalLM",
    "HyperCLOVAXForCausalLM",
    "IQuestCoderForCausalLM",
    "InternLM3ForCausalLM",
    "JambaForCausalLM",
    "K2HorizonForCausalLM",
    "LLaMAForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "Llama4ForCausalLM",
    "LlamaForCausalLM",
    "MiniCPM3ForCausalLM",
    "MiniCPMForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "NemotronForCausalLM",
    "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM",
    "Param2MoEForCausalLM",
    "Phi3ForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen3ForCausalLM",
    "Rnj1ForCausalLM",
    "SolarForCausalLM",
    "TeleChat2ForCausalLM",
    "TeleChat3ForCausalLM",
    "TeleFLMForCausalLM",
    "XverseForCausalLM",
];

/// Classes of which the embedding alone does.
const EMBEDDING: [&str; 2] = ["CohereForCausalLM", "Cohere2ForCausalLM"];

/// Inputs and outputs of both matrices of one module on one rank, per unit of rank; 0 for modules without adapters.
fn width(shard: &Shard, role: Role) -> u64 {
    match shard {
        Shard::Linear { inputs, outputs, .. } => {
            // Each fused part has a pair of its own.
            let parts = outputs.len() as u64;
            outputs
                .iter()
                .fold(inputs.saturating_mul(parts), |sum, n| sum.saturating_add(*n))
        }
        Shard::Experts {
            experts,
            hidden,
            intermediate,
            parts,
            ..
        } => {
            // One pair for each part of the first projection and one for the second.
            let each = hidden.saturating_add(*intermediate).saturating_mul(parts + 1);
            each.saturating_mul(*experts)
        }
        Shard::Vocab { .. } | Shard::Plain { .. } => {
            debug_assert!(role != Role::Experts, "experts have a shape of their own");
            0
        }
    }
}

/// The slots of all adapters on one rank of the pipeline stage that holds most.
pub(super) fn lora(model: &Model, settings: &Settings, parallel: &Parallel) -> Result<Term> {
    let slots = settings.max_loras.unwrap_or(1);
    let rank = settings.max_lora_rank.unwrap_or(16);
    let roles = [
        Role::Attention,
        Role::Mlp,
        Role::Router,
        Role::Experts,
        Role::SharedExpert,
    ];
    let mut widest = 0_u64;
    for stage in 0..parallel.pp {
        let range = parallel.stage_layers(stage, model.layers.len() as u64)?;
        let layers = model
            .layers
            .iter()
            .zip(0_u64..)
            .filter(|(_, i)| range.contains(i));
        let weights = layers.flat_map(|(layer, _)| &layer.weights);
        let mut sum = 0_u64;
        for weight in weights.filter(|weight| roles.contains(&weight.role)) {
            if let Ok(shard) = weight.shard(parallel) {
                sum = sum.saturating_add(width(&shard, weight.role).saturating_mul(weight.count));
            }
        }
        // Rows of all ranks, unpadded.
        let end = model.vocab_size.saturating_add(model.hidden_size);
        let class = model.architecture.as_str();
        if stage == 0 && (BOTH_ENDS.contains(&class) || EMBEDDING.contains(&class)) {
            sum = sum.saturating_add(end);
        }
        if stage + 1 == parallel.pp && BOTH_ENDS.contains(&class) {
            sum = sum.saturating_add(end);
        }
        widest = widest.max(sum);
    }
    let bytes = slots
        .checked_mul(rank)
        .and_then(|n| n.checked_mul(widest))
        .and_then(|n| n.checked_mul(2))
        .ok_or_else(|| Error::overflow("the LoRA slots"))?;
    let formula = format!(
        "{slots} slots x rank {rank} x {} inputs and outputs x 2 B",
        grouped(widest)
    );
    Ok(if is_compared(model) {
        Term::exact("lora", bytes, formula)
    } else {
        let range = (bytes - bytes / 4, bytes.saturating_add(bytes / 2));
        Term::estimated("lora", Basis::Assumed, bytes, range, formula)
    })
}

/// Whether all modules are of the kinds that were compared with the engine's own layers: dense attention without towers.
fn is_compared(model: &Model) -> bool {
    let plain = [Role::Attention, Role::Mlp, Role::Norm];
    let layers_are_plain = model.layers.iter().all(|layer| {
        layer.weights.iter().all(|weight| plain.contains(&weight.role))
            && layer.caches.iter().all(|cache| {
                matches!(
                    cache.kind,
                    CacheKind::Full(_) | CacheKind::Sliding { .. } | CacheKind::Chunked { .. }
                )
            })
    });
    layers_are_plain
        && !model.outside.iter().any(|part| part.tower)
        && model.architecture.ends_with("ForCausalLM")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::arch::family::{Reading, read};

    fn slots(text: &str, (loras, rank, tp): (u64, u64, u64)) -> Term {
        let Reading::Model(model) = read("adapted", &Config::parse(text.as_bytes()).unwrap()).unwrap() else {
            panic!("refused")
        };
        let settings = Settings {
            enable_lora: true,
            max_loras: Some(loras),
            max_lora_rank: Some(rank),
            ..Settings::default()
        };
        lora(&model, &settings, &Parallel::tensor(tp)).unwrap()
    }

    /// Made by vLLM 0.32.0's own `create_lora_manager` on the meta device, with eight layers.
    #[test]
    fn slots_are_as_large_as_the_layers_that_the_engine_puts_around_its_modules() {
        let qwen3 = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
            "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "intermediate_size": 12288, "vocab_size": 151936}"#;
        let llama = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 14336, "vocab_size": 128256}"#;
        let gemma2 = r#"{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "intermediate_size": 9216, "vocab_size": 256000}"#;
        for (text, given, bytes) in [
            (qwen3, (8, 64, 1), 940_310_528),
            (llama, (8, 16, 2), 181_010_432),
            (gemma2, (8, 16, 1), 102_236_160),
        ] {
            let term = slots(text, given);
            assert_eq!(
                (term.bytes, term.basis),
                (bytes, Basis::Exact),
                "{}",
                term.formula
            );
        }
    }

    #[test]
    fn experts_take_a_pair_of_matrices_each() {
        let moe = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
            "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
            "decoder_sparse_step": 1, "vocab_size": 151936}"#;
        let term = slots(moe, (1, 16, 1));
        assert_eq!(term.basis, Basis::Assumed);
        let experts = 128 * 3 * (2048 + 768);
        let attention = 3 * 2048 + 4096 + 2 * 512 + 4096 + 2048;
        let router = 2048 + 128;
        assert_eq!(term.bytes, 16 * 2 * (experts + attention + router));
    }
}
