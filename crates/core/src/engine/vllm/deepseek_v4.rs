//! The several caches of one DeepSeek-V4 layer.

use super::kv_dtype::KvDtype;
use super::publish::latent;
use super::spec::{Spec, SpecKind, StrideAlignment};
use crate::{Error, Result};

/// The caches of one DeepSeek-V4 layer in the order of registration: the indexer's keys and compressor state
/// (ratio 4), the window, the compressed latents and their compressor state (ratio above 1).
///
/// Sources (vLLM 0.32.0): `models/deepseek_v4/attention.py`, `models/deepseek_v4/compressor.py`,
/// `v1/attention/backends/mla/sparse_swa.py`. An entry of the `fp8_ds_mla` format is 448 bytes without and 128 with
/// rotary embedding and 8 of scales.
pub(crate) fn deepseek_v4(
    ratio: u64,
    head_dim: u64,
    window: u64,
    index_head_dim: u64,
    block_size: u64,
    specs: &mut Vec<Spec>,
) -> Result<()> {
    const ENTRY_BYTES: u64 = 584;
    const ALIGNMENT_BYTES: u64 = 576;
    const WINDOW_BLOCK: u64 = 64;
    let mut push = |kind, block_size, width, content_bytes, tokens_per_state| -> Result<()> {
        let spec = Spec {
            tokens_per_state,
            page_alignment_bytes: ALIGNMENT_BYTES,
            stride: match kind {
                SpecKind::Latent { .. } => StrideAlignment::KernelBlock(256),
                _ => StrideAlignment::Any,
            },
            ..latent(kind, block_size, width, content_bytes, KvDtype::Fp8DsMla)
        };
        specs.push(spec.aligned()?);
        Ok(())
    };
    // Two overlapping windows of the compressor for ratio 4, one for 128; keys and scores in float32.
    let overlap = if ratio == 4 { 2 } else { 1 };
    let state = |dim: u64| {
        dim.checked_mul(2 * overlap)
            .filter(|&width| width < 1 << 40)
            .map(|width| (width, width * 4))
            .ok_or_else(|| Error::overflow("the compressor's state"))
    };
    let state_block = if ratio == 4 { 4 } else { 8 };
    let state_kind = SpecKind::SlidingLatent {
        window: overlap * ratio.max(1),
        extra: 0,
        replayed: false,
    };
    if ratio == 4 {
        let key_bytes = index_head_dim
            .checked_add(index_head_dim / 128 * 4)
            .ok_or_else(|| Error::overflow("the indexer's key"))?;
        push(
            SpecKind::Latent { indexer: true },
            block_size,
            key_bytes,
            key_bytes,
            ratio,
        )?;
        let (width, bytes) = state(index_head_dim)?;
        push(state_kind, state_block, width, bytes, 1)?;
    }
    push(
        SpecKind::SlidingLatent {
            window,
            extra: 0,
            replayed: false,
        },
        WINDOW_BLOCK,
        head_dim,
        ENTRY_BYTES,
        1,
    )?;
    if ratio > 1 {
        push(
            SpecKind::Latent { indexer: false },
            block_size,
            head_dim,
            ENTRY_BYTES,
            ratio,
        )?;
        let (width, bytes) = state(head_dim)?;
        push(state_kind, state_block, width, bytes, 1)?;
    }
    Ok(())
}
