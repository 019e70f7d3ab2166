//! Divisions over ranks and stages that the engine checks before it builds the model.

use super::refusal::{Refusal, RefusalKind};
use super::settings::Settings;
use super::version::Version;
use crate::arch::family::stages;
use crate::arch::{CacheKind, Model};

/// The release that the list of classes without pipeline stages was read in.
const DIVIDES_AS_LISTED: Version = Version::new(0, 32, 0);

/// Divisibility rules that the engine checks before it builds the model (`config/model.py`,
/// `verify_with_parallel_config`; `config/parallel.py`).
pub(crate) fn check(model: &Model, settings: &Settings, latent: bool) -> Option<Refusal> {
    let tp = settings.tensor_parallel_size;
    let dcp = settings.decode_context_parallel_size;
    if !tp.is_multiple_of(dcp) {
        return Some(Refusal::new(
            RefusalKind::DecodeContextParallel,
            format!("tp_size={tp} must be divisible by dcp_size={dcp}."),
        ));
    }
    let heads = model.num_attention_heads;
    if !heads.is_multiple_of(tp) {
        return Some(Refusal::new(
            RefusalKind::TensorParallel,
            format!(
                "Total number of attention heads ({heads}) must be divisible by tensor parallel size ({tp})."
            ),
        ));
    }
    let kv_heads = model.num_kv_heads;
    let kv_per_rank = (kv_heads / tp).max(1);
    if shares_heads(model) && !(heads / tp).is_multiple_of(kv_per_rank) {
        return Some(Refusal::new(
            RefusalKind::TensorParallel,
            format!(
                "num_heads ({}) is not divisible by num_kv_heads ({kv_per_rank})",
                heads / tp
            ),
        ));
    }
    if dcp > 1 && !latent && kv_heads > 0 {
        if tp <= kv_heads {
            return Some(Refusal::new(
                RefusalKind::DecodeContextParallel,
                format!(
                    "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tp}) to be greater than the model's total number of KV heads ({kv_heads})."
                ),
            ));
        } else if dcp > tp / kv_heads {
            return Some(Refusal::new(
                RefusalKind::DecodeContextParallel,
                format!(
                    "`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value ({}) for `--tensor-parallel-size` ({tp}) and {kv_heads} model KV heads.",
                    tp / kv_heads
                ),
            ));
        } else if !(heads / kv_heads).is_multiple_of(dcp) {
            return Some(Refusal::new(
                RefusalKind::DecodeContextParallel,
                format!(
                    "The model's number of query heads per KV head ({}) must be divisible by `--decode-context-parallel-size` ({dcp}) for GQA/MQA.",
                    heads / kv_heads
                ),
            ));
        }
    }
    let stages = settings.pipeline_parallel_size;
    if stages > model.layers.len() as u64 {
        return Some(Refusal::new(
            RefusalKind::PipelineParallel,
            format!(
                "{} layers cannot be divided over {stages} pipeline stages",
                model.layers.len()
            ),
        ));
    }
    // Which classes earlier releases divided is not known.
    if stages > 1 && settings.version >= DIVIDES_AS_LISTED && !stages::divides(&model.architecture) {
        return Some(Refusal::new(
            RefusalKind::PipelineParallel,
            "Pipeline parallelism is not supported for this model. Supported models implement the `SupportsPP` interface.",
        ));
    }
    if stages > 1
        && settings.version >= DIVIDES_AS_LISTED
        && stages::fails_tied(&model.architecture)
        && !model.has_head()
    {
        return Some(Refusal::new(
            RefusalKind::PipelineParallel,
            "'PPMissingLayer' object has no attribute 'tie_weights': a head that is the embedding cannot be divided in this class",
        ));
    }
    if let Some(speculative) = &settings.speculative
        && settings.async_scheduling == Some(true)
        && !speculative.method.supports_async()
    {
        return Some(Refusal::new(
            RefusalKind::Speculative,
            "Currently, async scheduling is only supported with EAGLE/MTP/Draft Model/NGram GPU/DSpark/DFlash kind of speculative decoding".to_owned(),
        ));
    }
    None
}

/// Whether a layer's query heads are those of the whole model over its key/value heads, which the engine's attention
/// layer asserts to divide (`model_executor/layers/attention/attention.py`).
fn shares_heads(model: &Model) -> bool {
    let mut caches = model.layers.iter().flat_map(|layer| &layer.caches);
    caches.any(|cache| match &cache.kind {
        CacheKind::Full(heads) | CacheKind::Sliding { heads, .. } | CacheKind::Chunked { heads, .. } => {
            heads.kv_heads == model.num_kv_heads
        }
        _ => false,
    })
}
