//! Which backend is taken: the order of preference of each generation of GPUs.

use super::{Backend, Demand, Sight};
use crate::engine::vllm::gpu::Gpu;
use crate::engine::vllm::version::ImageRule;

/// Backends in the order of preference (`platforms/cuda.py`, `_get_backend_priorities`, vLLM 0.32.0).
fn priorities(gpu: Gpu, demand: &Demand) -> &'static [Backend] {
    use Backend::{
        CutlassMla, FlashAttn, FlashAttnMla, FlashAttnMlaSparse, FlashInfer, FlashInferMla,
        FlashInferMlaSparse, FlashInferMlaSparseSm90, FlashInferMlaSparseSm120, FlashMla, FlashMlaSparse,
        FlexAttention, TokenspeedMla, TritonAttn, TritonFlashAttn, TritonFlashInfer, TritonMla, TurboQuant,
    };
    match (demand.latent, demand.sparse, gpu.major) {
        // Without AMX tiles (platforms/cpu.py, get_attn_backend_cls).
        (false, _, 0) => &[Backend::CpuAttn],
        (true, _, 0) => &[Backend::CpuMla],
        (false, _, 9) if demand.sees == Sight::WholeImages(ImageRule::Pair) => &[
            TritonFlashAttn,
            FlashAttn,
            FlashInfer,
            TritonAttn,
            FlexAttention,
            TurboQuant,
        ],
        (false, _, 10) if demand.sees == Sight::WholeImages(ImageRule::Pair) => &[
            TritonFlashInfer,
            FlashInfer,
            FlashAttn,
            TritonAttn,
            FlexAttention,
            TurboQuant,
        ],
        (false, _, 10) => &[FlashInfer, FlashAttn, TritonAttn, FlexAttention, TurboQuant],
        (false, _, _) => &[FlashAttn, FlashInfer, TritonAttn, FlexAttention, TurboQuant],
        (true, false, 10) => &[
            FlashInferMla,
            TokenspeedMla,
            CutlassMla,
            FlashAttnMla,
            FlashMla,
            TritonMla,
        ],
        (true, false, 12) => &[TritonMla],
        (true, false, _) => &[FlashAttnMla, FlashMla, FlashInferMla, TritonMla],
        (true, true, 10) if !demand.kv_dtype.is_16_bit() || demand.query_heads <= 16 => {
            &[FlashInferMlaSparse, FlashMlaSparse]
        }
        (true, true, 10) => &[FlashMlaSparse, FlashInferMlaSparse],
        (true, true, 12) => &[FlashInferMlaSparseSm120],
        (true, true, _) if demand.head_size == 512 => {
            &[FlashInferMlaSparseSm90, FlashAttnMlaSparse, FlashMlaSparse]
        }
        (true, true, _) => &[FlashAttnMlaSparse, FlashMlaSparse, FlashInferMlaSparseSm90],
    }
}

/// The backend vLLM takes for a kind of layer, or why it has none.
///
/// # Errors
/// The reason in the engine's words, where no backend, or not the `forced` one, supports the combination.
pub fn select(gpu: Gpu, demand: &Demand, forced: Option<Backend>) -> Result<Backend, String> {
    if let Some(backend) = forced {
        return match backend.invalid_reason(gpu, demand) {
            None => Ok(backend),
            Some(reason) => Err(format!(
                "Selected backend {backend} is not valid for this configuration. Reason: ['{reason}']"
            )),
        };
    }
    let mut reasons = Vec::new();
    for &backend in priorities(gpu, demand) {
        match backend.invalid_reason(gpu, demand) {
            None => return Ok(backend),
            Some(reason) => reasons.push(format!("{backend}: [{reason}]")),
        }
    }
    Err(format!(
        "No valid attention backend found for compute capability {}.{} with head_size={}, kv_cache_dtype={}, use_mla={}, use_sparse={}. Reasons: {{{}}}",
        gpu.major,
        gpu.minor,
        demand.head_size,
        demand.kv_dtype,
        demand.latent,
        demand.sparse,
        reasons.join(", ")
    ))
}
