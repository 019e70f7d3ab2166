//! What SGLang 0.5.23 knows by class name: which models get which pools, backends and graphs.

use super::memory::Card;
use super::settings::{KvDtype, Settings};
use crate::arch::{CacheKind, Model};

/// Classes whose sliding-window layers have a pool of their own (`srt/configs/model_config.py`,
/// `is_hybrid_swa_model`); elsewhere a window only masks, and its layers keep every token.
const TWO_POOLS: [&str; 15] = [
    "Llama4ForConditionalGeneration",
    "GptOssForCausalLM",
    "GraniteSWAForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "IQuestQ1ForCausalLM",
    "MiMoV2ForCausalLM",
    "MiMoV2FlashForCausalLM",
    "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "DiffusionGemmaForBlockDiffusion",
    "LagunaForCausalLM",
    "MellumForCausalLM",
];

/// Classes that are served as text models although their files describe a tower.
const TEXT_ONLY: [&str; 4] = [
    "Gemma3ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "Step3VLForConditionalGeneration",
    "InklingForConditionalGeneration",
];

/// Multimodal classes whose prefill graphs stay on.
const MULTIMODAL_GRAPHS: [&str; 12] = [
    "MiniMaxM3SparseForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM",
    "Cohere2VisionForConditionalGeneration",
    "Glm5NextForConditionalGeneration",
    "InternS2MobiusForConditionalGeneration",
    "PaddleOCRVLForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen4ExpForConditionalGeneration",
    "MuseGlimmerForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
];

/// Classes whose recurrent states can be tracked beside the running ones (`_MAMBA_EXTRA_BUFFER_ARCHS`).
const EXTRA_BUFFER: [&str; 15] = [
    "KimiLinearForCausalLM",
    "KimiK3ForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3NextForCausalLM",
    "InternS2PreviewForConditionalGeneration",
    "BailingMoeV2_5ForCausalLM",
    "BailingMoeV3ForCausalLM",
    "FalconH1ForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "Glm5NextForConditionalGeneration",
    "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM",
];

/// Classes of the DeepSeek-V3 family, which take TensorRT-LLM's latent attention on Blackwell.
const DEEPSEEK_V3: [&str; 6] = [
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "KimiK25ForConditionalGeneration",
    "MistralLarge3ForCausalLM",
    "GlmMoeDsaForCausalLM",
    "Glm5NextForConditionalGeneration",
];

/// Classes with attention sinks or chunked attention, which FlashInfer's kernels do not have.
const SINKS_OR_CHUNKS: [&str; 6] = [
    "GptOssForCausalLM",
    "GraniteSWAForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "MiMoV2ForCausalLM",
    "MiMoV2FlashForCausalLM",
    "Llama4ForConditionalGeneration",
];

/// Whether the version has a class of its own for a model (`EntryClass` of `srt/models/*.py`).
pub fn has_class(class: &str) -> bool {
    include_str!("../../../data/sglang_classes.txt")
        .lines()
        .any(|line| line == class)
}

/// Whether sliding-window layers have a pool of their own.
pub fn two_pools(class: &str) -> bool {
    TWO_POOLS.contains(&class)
}

/// Whether the class is served as a multimodal model, given that its files describe a vision tower.
pub fn multimodal(class: &str) -> bool {
    !TEXT_ONLY.contains(&class) && !class.ends_with("ForCausalLM")
}

/// Whether prefill graphs stay on for a class.
pub fn prefill_graphs(class: &str, multimodal: bool, kda: bool) -> bool {
    (!multimodal || MULTIMODAL_GRAPHS.contains(&class))
        && (!kda || class == "Glm5NextForConditionalGeneration")
}

/// Whether recurrent states of a class are tracked in an extra buffer where nothing is said.
pub fn extra_buffer(class: &str, settings: &Settings) -> bool {
    settings.mamba_extra_buffer.unwrap_or_else(|| {
        let wants = !settings.disable_overlap_schedule || settings.page_size.is_some_and(|n| n > 1);
        wants && EXTRA_BUFFER.contains(&class)
    })
}

/// Whether the latents of a sparse (DSA) model stay raw on this card, as TensorRT-LLM's kernels want them in fp8.
pub fn raw_sparse_latents(card: &Card) -> bool {
    card.capability.0 == 10
}

/// The attention backend, as set or by default (`get_default_attn_backend` and the overrides of each class).
pub fn attention_backend(
    model: &Model,
    settings: &Settings,
    card: &Card,
    mla: bool,
    uneven_heads: bool,
) -> String {
    if let Some(given) = &settings.attention_backend {
        return given.to_ascii_lowercase();
    }
    let class = model.architecture.as_str();
    let hopper = card.capability.0 == 9;
    let blackwell = card.capability.0 == 10;
    if is_sparse(model) {
        return "dsa".to_owned();
    }
    let name = if mla {
        if hopper {
            "fa3"
        } else if blackwell && DEEPSEEK_V3.contains(&class) {
            "trtllm_mla"
        } else if blackwell {
            "flashinfer"
        } else {
            "triton"
        }
    } else if blackwell {
        match class {
            "MiMoV2ForCausalLM" | "MiMoV2FlashForCausalLM" => "fa4",
            "Qwen3NextForCausalLM"
            | "Qwen3_5ForConditionalGeneration"
            | "Qwen3_5MoeForConditionalGeneration" => hybrid_qwen(settings),
            "FalconH1ForCausalLM" => "triton",
            "GraniteMoeHybridForCausalLM" if has_state(model) => "flashinfer",
            "Lfm2ForCausalLM" | "Lfm2MoeForCausalLM" => "flashinfer",
            _ if uneven_heads => "fa4",
            _ => "trtllm_mha",
        }
    } else if class.starts_with("Gemma4") {
        "triton"
    } else if hopper && settings.kv_cache_dtype != KvDtype::Fp8E5m2 {
        "fa3"
    } else if hopper || SINKS_OR_CHUNKS.contains(&class) {
        "triton"
    } else {
        "flashinfer"
    };
    name.to_owned()
}

/// Blackwell's backend for the gated-delta hybrids: the paged kernels only where states are not kept per page.
fn hybrid_qwen(settings: &Settings) -> &'static str {
    if settings.mamba_extra_buffer == Some(true) || settings.disable_radix_cache {
        "trtllm_mha"
    } else {
        "triton"
    }
}

/// Tokens in a page: as set, corrected to what the backend takes
/// (`_mla_backend_page_constraints`, `_fa4_page_constraint`, `_page_size_default`).
pub fn page_size(model: &Model, settings: &Settings, card: &Card, backend: &str, mla: bool) -> u64 {
    if let Some(pool) = sparse_pooling(model) {
        return 64 * pool;
    }
    let given = settings.page_size;
    match backend {
        "flashmla" | "hpc_ops" => 64,
        "trtllm_mla" | "cutedsl_mla" => given.filter(|n| [32, 64].contains(n)).unwrap_or(64),
        "trtllm_mha" => given.filter(|n| [16, 32, 64, 128].contains(n)).unwrap_or(64),
        "fa4" if !mla && card.capability.0 == 10 => 128,
        _ => given.unwrap_or(1),
    }
}

fn is_sparse(model: &Model) -> bool {
    sparse_pooling(model).is_some()
}

/// Positions that one indexer key stands for, where the model has an indexer.
fn sparse_pooling(model: &Model) -> Option<u64> {
    model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::Latent { sparse: true, .. }))
        .then_some(1)
}

fn has_state(model: &Model) -> bool {
    model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::State(_)))
}
