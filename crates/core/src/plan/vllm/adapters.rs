//! Slots of `LoRA` adapters: each takes two matrices of low rank for every linear module of the language model, for every
//! expert, and in some classes for embedding and head (vLLM 0.32.0, `lora/layers`, `lora/utils.py`).

use super::super::ledger::{Basis, Term};
use crate::arch::weight::{Op, Shard};
use crate::arch::{CacheKind, Model, Parallel, Role, Weight};
use crate::engine::vllm::{AdapterClass, Settings};
use crate::units::grouped;
use crate::{Error, Result};

/// Wrappers whose language model gives adapters to embedding and head: that is said by a class inside of them.
const WITH_ENDS: [&str; 6] = [
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
];

/// Inputs and outputs of the matrices of one module on one rank, per unit of rank; 0 for modules without adapters.
///
/// A fused module has a pair of matrices for each part that checkpoints name; where they hold it in one piece it has one pair,
/// and of two parts that a class does not list none (`can_replace_layer` in `lora/layers/column_parallel_linear.py`).
fn width(weight: &Weight, shard: &Shard, class: &AdapterClass) -> u64 {
    let name = weight.name.rsplit('.').next().unwrap_or_default();
    let all = |outputs: &[u64]| outputs.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
    match (shard, &weight.op) {
        (Shard::Linear { inputs, outputs, .. }, Op::Qkv { .. }) => match class.parts(name) {
            Some(1) => inputs.saturating_add(all(outputs)),
            Some(3) => inputs.saturating_mul(3).saturating_add(all(outputs)),
            // The generic backend divides what is one matrix to the model as one matrix.
            None if class.generic => inputs.saturating_add(all(outputs)),
            _ => 0,
        },
        (Shard::Linear { inputs, outputs, .. }, _) => {
            let pairs = match (outputs.len() as u64, class.parts(name)) {
                // The convolution of a gated delta net is one matrix; that of Mamba-2 has the parts of its input.
                (_, None) if weight.name.starts_with("linear_attn.conv") => 1,
                (2, Some(1)) => 1,
                (2, None) => return 0,
                (parts, _) => parts,
            };
            inputs.saturating_mul(pairs).saturating_add(all(outputs))
        }
        (
            Shard::Experts {
                experts,
                hidden,
                intermediate,
                parts,
                ..
            },
            _,
        ) => {
            // A pair for each part of the first projection, or one for all of it where checkpoints fuse them, and one for the
            // second.
            let pairs = if class.fused_experts { 1 } else { *parts };
            let first = hidden
                .saturating_mul(pairs)
                .saturating_add(intermediate.saturating_mul(*parts));
            let each = first.saturating_add(*hidden).saturating_add(*intermediate);
            each.saturating_mul(*experts)
        }
        (Shard::Vocab { .. } | Shard::Plain { .. }, _) => 0,
    }
}

/// The slots of all adapters on one rank of the pipeline stage that holds most.
pub(super) fn lora(model: &Model, settings: &Settings, parallel: &Parallel) -> Result<Term> {
    let slots = settings.max_loras.unwrap_or(1);
    let rank = settings.max_lora_rank.unwrap_or(16);
    let class = AdapterClass::of(&model.architecture).unwrap_or_default();
    let mut roles = vec![
        Role::Attention,
        Role::Mlp,
        Role::Experts,
        Role::SharedExpert,
        Role::State,
    ];
    // Routers of experts without a gate take none (`_create_lora_modules` in `lora/model_manager.py`).
    if !class.ungated_experts {
        roles.push(Role::Router);
    }
    let inside = WITH_ENDS.contains(&model.architecture.as_str());
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
                let one = width(weight, &shard, &class);
                sum = sum.saturating_add(one.saturating_mul(weight.count));
            }
        }
        // Rows of all ranks, unpadded.
        let end = model.vocab_size.saturating_add(model.hidden_size);
        if stage == 0 && (class.embedding || inside) {
            sum = sum.saturating_add(end);
        }
        if stage + 1 == parallel.pp && (class.head || inside) {
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
    Ok(if is_compared(model, &class) {
        Term::exact("lora", bytes, formula)
    } else {
        let range = (bytes - bytes / 4, bytes.saturating_add(bytes / 2));
        Term::estimated("lora", Basis::Assumed, bytes, range, formula)
    })
}

/// Classes of which all kinds of modules were compared with the engine's own layers (`tests/data/lora_slots.jsonl`), beside dense
/// models.
const COMPARED: &[&str] = &[
    "ApertusForCausalLM",
    "ChatGLMModel",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "DeciLMForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GptOssForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "HunYuanMoEV1ForCausalLM",
    "InternLM2ForCausalLM",
    "JambaForCausalLM",
    "Lfm2ForCausalLM",
    "Lfm2MoeForCausalLM",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LongcatFlashForCausalLM",
    "MiMoForCausalLM",
    "Mistral3ForConditionalGeneration",
    "MixtralForCausalLM",
    "NemotronHForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "Phi3ForCausalLM",
    "PhiMoEForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "Starcoder2ForCausalLM",
];

/// Whether all modules are of the kinds that were compared: those of a listed class, or dense attention without towers.
fn is_compared(model: &Model, class: &AdapterClass) -> bool {
    if COMPARED.contains(&model.architecture.as_str()) {
        return true;
    }
    let plain = [Role::Attention, Role::Mlp, Role::Norm];
    let dense = model.layers.iter().all(|layer| {
        layer.weights.iter().all(|weight| plain.contains(&weight.role))
            && layer.caches.iter().all(|cache| {
                matches!(
                    cache.kind,
                    CacheKind::Full(_) | CacheKind::Sliding { .. } | CacheKind::Chunked { .. }
                )
            })
    });
    dense && !class.wraps && !class.generic && !model.outside.iter().any(|part| part.tower)
}

#[cfg(test)]
#[path = "../../../tests/conformance/layers.rs"]
mod layers;

#[cfg(test)]
mod tests {
    use super::layers::cut;
    use super::*;
    use crate::arch::Config;
    use crate::arch::family::{Reading, read};
    use crate::engine::vllm::{Gpu, layout};

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
        assert_eq!(term.basis, Basis::Exact);
        let experts = 128 * 3 * (2048 + 768);
        let attention = 3 * 2048 + 4096 + 2 * 512 + 4096 + 2048;
        let router = 2048 + 128;
        let ends = 2 * (151_936 + 2048);
        assert_eq!(term.bytes, 16 * 2 * (experts + attention + router + ends));
    }

    /// Made by vLLM 0.32.0's own `create_lora_manager` on the meta device, with stand-ins for the kernels of experts.
    const ROWS: &str = include_str!("../../../tests/data/lora_slots.jsonl");

    /// Bytes of a row's slots by this program, and whether it says that they are exact.
    fn slots_of(row: &serde_json::Value) -> Term {
        let number = |key: &str| row[key].as_u64().unwrap();
        let id = row["model"].as_str().unwrap();
        let mut config = crate::catalogue::find(id).unwrap().config().unwrap().into_map();
        if let Some(layers) = row["layers"].as_u64() {
            config = cut(config, layers);
        }
        let Reading::Model(model) = read(id, &Config::from_map(config)).unwrap() else {
            panic!("{id} is refused")
        };
        let settings = Settings {
            enable_lora: true,
            max_loras: Some(number("loras")),
            max_lora_rank: Some(number("rank")),
            ..Settings::default()
        };
        lora(&model, &settings, &Parallel::tensor(number("tp"))).unwrap()
    }

    #[test]
    fn slots_of_models_of_the_catalogue_are_those_of_the_engine() {
        let mut rows = 0;
        let mut different = Vec::new();
        for line in ROWS.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let term = slots_of(&row);
            let name = format!("{} at {}", row["model"], row["tp"]);
            if term.bytes != row["bytes"].as_u64().unwrap() || term.basis != Basis::Exact {
                different.push(format!(
                    "{name}: the engine has {}, {:?} {}",
                    row["bytes"], term.basis, term.formula
                ));
            }
            rows += 1;
        }
        assert!(rows > 50, "only {rows} rows were compared");
        assert!(different.is_empty(), "{}", different.join("\n"));
    }

    #[test]
    fn classes_that_take_no_adapters_are_refused() {
        let refused = |id: &str| {
            let config = crate::catalogue::find(id).unwrap().config().unwrap();
            let Reading::Model(model) = read(id, &config).unwrap() else {
                panic!("{id} is refused")
            };
            let settings = Settings {
                enable_lora: true,
                ..Settings::default()
            };
            let gpu = Gpu::new("h100", 9, 0, 80 << 30);
            let outcome = layout(&model, &settings, gpu, &[60 << 30]).unwrap();
            outcome.refused.map(|refusal| refusal.reason)
        };
        assert_eq!(
            refused("state-spaces/mamba-2.8b-hf").as_deref(),
            Some("Model MambaForCausalLM is not supported for LoRA.")
        );
        let large = refused("tiiuae/Falcon-H1-34B-Instruct").unwrap();
        assert!(large.contains("vocab size must be <= 258048"), "{large}");
        assert_eq!(refused("Qwen/Qwen3-8B"), None);
    }
}
