//! What SGLang 0.5.23 knows by class name: which models get which pools, backends and graphs.

use super::memory::Card;
use super::settings::{KvDtype, Settings};
use crate::Result;
use crate::arch::{CacheKind, Config, Model};

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

/// Classes of the DeepSeek-V3 family, which take `TensorRT-LLM`'s latent attention on Blackwell.
const DEEPSEEK_V3: [&str; 11] = [
    "DeepseekV3ForCausalLM",
    "Dots3NoteForCausalLM",
    "HYV4ForCausalLM",
    "KimiK3ForConditionalGeneration",
    "LongcatFlashForCausalLM",
    "PixtralForConditionalGeneration",
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

/// Whether the class is served as a multimodal model although its files describe no vision tower.
pub fn hears(class: &str) -> bool {
    class.ends_with("ForConditionalGeneration") && !TEXT_ONLY.contains(&class)
}

/// Whether the class is served as a multimodal model, given that its files describe a vision tower.
pub fn multimodal(class: &str) -> bool {
    !TEXT_ONLY.contains(&class) && !class.ends_with("ForCausalLM")
}

/// Whether prefill graphs stay on for a class.
pub fn prefill_graphs(class: &str, multimodal: bool, kda: bool) -> bool {
    // DeepSeek-V4's attention cannot be captured for prompts.
    !class.starts_with("DeepseekV4")
        && (!multimodal || MULTIMODAL_GRAPHS.contains(&class))
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
///
/// GLM's take kernels of their own on compute capability 12.
pub fn raw_sparse_latents(class: &str, card: &Card) -> bool {
    let major = card.capability.0;
    major >= 10 && !(major == 12 && class == "GlmMoeDsaForCausalLM")
}

/// The attention backend, as set or by default (`get_default_attn_backend` and the overrides of each class).
pub fn attention_backend(
    model: &Model,
    settings: &Settings,
    card: &Card,
    mla: bool,
    uneven_heads: bool,
) -> String {
    if is_compressed(model) {
        // Set by the class, whatever is given.
        return "dsv4".to_owned();
    }
    if let Some(given) = &settings.attention_backend {
        return given.to_ascii_lowercase();
    }
    let class = model.architecture.as_str();
    if class == WHISPER {
        // For graphs over cross attention.
        return "flashinfer".to_owned();
    }
    let hopper = card.capability.0 == 9;
    let blackwell = card.capability.0 == 10;
    if is_sparse(model) {
        return "dsa".to_owned();
    }
    let name = if mla {
        if hopper && settings.kv_cache_dtype != KvDtype::Fp8E5m2 {
            "fa3"
        } else if blackwell && DEEPSEEK_V3.contains(&class) {
            "trtllm_mla"
        } else if blackwell {
            "flashinfer"
        } else {
            "triton"
        }
    } else if class == "GptOssForCausalLM" || class == "Llama4ForConditionalGeneration" {
        // These classes choose by the card alone.
        if blackwell {
            "trtllm_mha"
        } else if hopper && settings.kv_cache_dtype != KvDtype::Fp8E5m2 {
            "fa3"
        } else {
            "triton"
        }
    } else if masks_windows(model) {
        if blackwell {
            "trtllm_mha"
        } else if card.capability >= (8, 0) && settings.kv_cache_dtype != KvDtype::Fp8E5m2 {
            "fa3"
        } else {
            "triton"
        }
    } else if blackwell {
        match class {
            "MiMoV2ForCausalLM" | "MiMoV2FlashForCausalLM" => "fa4",
            _ if is_minimax_sparse(class) => {
                if settings.kv_cache_dtype == KvDtype::Fp8E4m3 {
                    "trtllm_mha"
                } else {
                    "fa4"
                }
            }
            "Qwen3NextForCausalLM"
            | "Qwen3_5ForConditionalGeneration"
            | "Qwen3_5MoeForConditionalGeneration" => hybrid_qwen(settings),
            "FalconH1ForCausalLM" => "triton",
            "GraniteMoeHybridForCausalLM" if has_state(model) => "flashinfer",
            "Lfm2ForCausalLM" | "Lfm2MoeForCausalLM" => "flashinfer",
            _ if !paged_kernels(settings) => without_own_kernels(class),
            _ if uneven_heads => "fa4",
            _ => "trtllm_mha",
        }
    } else if class.starts_with("Gemma4") || hopper && settings.kv_cache_dtype == KvDtype::Fp8E5m2 {
        "triton"
    } else if hopper && (chain_or_none(settings) || is_minimax_sparse(class)) {
        "fa3"
    } else {
        without_own_kernels(class)
    };
    name.to_owned()
}

/// The encoder-decoder that hears.
const WHISPER: &str = "WhisperForConditionalGeneration";

/// Whether what a class attends to across lies in the pool of its own tokens.
pub fn crosses_in_one_pool(class: &str) -> bool {
    [WHISPER, "MllamaForConditionalGeneration"].contains(&class)
}

/// Layers that the pool is made for where they are more than the model's: those of Whisper's encoder and, for attention
/// across, its decoder's once more, which keep nothing (`srt/configs/model_config.py`, `num_attention_layers`).
pub(super) fn layers_with_buffers(class: &str, config: &Config) -> Result<Option<u64>> {
    if class != WHISPER {
        return Ok(None);
    }
    let (encoder, decoder) = (config.u64("encoder_layers")?, config.u64("decoder_layers")?);
    Ok(encoder
        .zip(decoder)
        .and_then(|(encoder, decoder)| decoder.checked_mul(2)?.checked_add(encoder)))
}

/// Classes whose windows only mask, with a backend chosen by the card alone (`model_overrides/olmo2.py`, `exaone.py`).
fn masks_windows(model: &Model) -> bool {
    match model.architecture.as_str() {
        "Olmo2ForCausalLM" => true,
        "Exaone4ForCausalLM" | "ExaoneMoEForCausalLM" | "ExaoneMoeForCausalLM" => model
            .layers
            .iter()
            .flat_map(|layer| &layer.caches)
            .any(|cache| matches!(cache.kind, CacheKind::Sliding { .. })),
        _ => false,
    }
}

/// Whether a class has recurrent layers only.
pub fn recurrent_alone(class: &str) -> bool {
    ["MambaForCausalLM", "FalconMambaForCausalLM", "Mamba2ForCausalLM"].contains(&class)
}

/// Whether a class has `MiniMax`'s sparse attention (`is_minimax_sparse`).
pub fn is_minimax_sparse(class: &str) -> bool {
    [
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
    ]
    .contains(&class)
}

fn without_own_kernels(class: &str) -> &'static str {
    if SINKS_OR_CHUNKS.contains(&class) {
        "triton"
    } else {
        "flashinfer"
    }
}

/// `is_no_spec_infer_or_topk_one`, asked before defaults of the drafter are filled in.
fn chain_or_none(settings: &Settings) -> bool {
    match settings.speculative.as_ref().and_then(|s| s.eagle_topk) {
        None => true,
        Some(1) => settings.page_size.is_none_or(|n| n == 1),
        Some(_) => false,
    }
}

/// Whether Blackwell's paged kernels may be taken: not beside a drafter whose tree is chosen later.
fn paged_kernels(settings: &Settings) -> bool {
    chain_or_none(settings)
        && settings
            .speculative
            .as_ref()
            .is_none_or(|s| s.eagle_topk.is_some())
}

/// Blackwell's backend for the gated-delta hybrids: the paged kernels only where states are not kept per page.
fn hybrid_qwen(settings: &Settings) -> &'static str {
    let whole_pages = settings.mamba_extra_buffer == Some(true)
        || settings.disable_radix_cache
        || settings.speculative.is_some();
    if whole_pages && paged_kernels(settings) {
        "trtllm_mha"
    } else {
        "triton"
    }
}

/// Why this card or backend does not take the type of the cache, in the engine's sense
/// (`srt/arg_groups/kv_cache_hook.py`, `_mla_kv_cache_dtype_checks` and `_dsa_kv_cache_dtype_default`).
pub fn refuses_kv_dtype(
    model: &Model,
    settings: &Settings,
    card: &Card,
    backend: &str,
    mla: bool,
) -> Option<String> {
    let dtype = settings.kv_cache_dtype;
    let name = dtype.name();
    if !matches!(dtype, KvDtype::Mxfp8 | KvDtype::Nvfp4 | KvDtype::Fp4MxBlock16) {
        return ((is_sparse(model) || is_compressed(model)) && dtype == KvDtype::Fp8E5m2).then(|| {
            "SGLang's sparse latent attention takes a KV cache of bfloat16 or fp8_e4m3, not fp8_e5m2"
                .to_owned()
        });
    }
    let major = card.capability.0;
    if is_sparse(model) || is_compressed(model) {
        return Some(format!(
            "SGLang's sparse latent attention takes a KV cache of bfloat16 or fp8_e4m3, not {name}"
        ));
    }
    if ["trtllm_mla", "cutedsl_mla"].contains(&backend) {
        return Some(format!(
            "{backend} takes a KV cache of bf16 or fp8_e4m3, not {name}; --attention-backend flashinfer takes it"
        ));
    }
    match dtype {
        KvDtype::Mxfp8 if major < 10 => {
            Some("SGLang's mxfp8 KV cache needs a Blackwell GPU (compute capability 10 or 12)".to_owned())
        }
        KvDtype::Nvfp4 if ![10, 12].contains(&major) => Some(
            "SGLang's nvfp4 KV cache needs a Blackwell GPU (compute capability 10 or 12); fp4_mx_block16 does not"
                .to_owned(),
        ),
        KvDtype::Nvfp4 if !["flashinfer", "trtllm_mha"].contains(&backend) => Some(format!(
            "SGLang's nvfp4 KV cache is read by flashinfer and trtllm_mha, not by {backend}"
        )),
        KvDtype::Nvfp4 if backend == "trtllm_mha" && major != 10 => Some(
            "native nvfp4 prefill needs compute capability 10; --attention-backend flashinfer takes it".to_owned(),
        ),
        KvDtype::Fp4MxBlock16 => {
            let takes: &[&str] = if mla {
                &["flashinfer"]
            } else {
                &["triton", "torch_native", "flex_attention", "trtllm_mha"]
            };
            (!takes.contains(&backend)).then(|| {
                format!(
                    "SGLang's fp4_mx_block16 KV cache is read by {}, not by {backend}; give --attention-backend",
                    takes.join(", ")
                )
            })
        }
        _ => None,
    }
}

/// Tokens in a page: as set, corrected to what the backend takes
/// (`_mla_backend_page_constraints`, `_fa4_page_constraint`, `_page_size_default`).
pub fn page_size(model: &Model, settings: &Settings, card: &Card, backend: &str, mla: bool) -> u64 {
    if is_compressed(model) {
        return 256;
    }
    if let Some(pool) = sparse_pooling(model) {
        return 64 * pool;
    }
    let class = model.architecture.as_str();
    let given = settings.page_size.or_else(|| {
        let wide = match card.capability.0 {
            10 => ["fa4", "trtllm_mha"].contains(&backend),
            9 => backend == "fa3" || settings.attention_backend.is_none(),
            _ => false,
        };
        (is_minimax_sparse(class) && wide).then_some(128)
    });
    let paged = |given: Option<u64>| given.filter(|n| [16, 32, 64, 128].contains(n)).unwrap_or(64);
    match backend {
        "flashmla" | "hpc_ops" => 64,
        "trtllm_mla" | "cutedsl_mla" => given.filter(|n| [32, 64].contains(n)).unwrap_or(64),
        "trtllm_mha" => paged(given),
        // Decoding is TensorRT-LLM's.
        _ if settings.kv_cache_dtype == KvDtype::Nvfp4 => paged(given),
        "fa4" if !mla && card.capability.0 == 10 => 128,
        _ => given.unwrap_or(1),
    }
}

/// Whether attention is DeepSeek-V4's.
pub fn is_compressed(model: &Model) -> bool {
    model
        .layers
        .iter()
        .flat_map(|layer| &layer.caches)
        .any(|cache| matches!(cache.kind, CacheKind::Compressed { .. }))
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
