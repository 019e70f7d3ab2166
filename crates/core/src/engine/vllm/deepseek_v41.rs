//! The several caches of one DeepSeek-V4.1 layer.

use super::kv_dtype::KvDtype;
use super::publish::latent;
use super::spec::{Spec, SpecKind, StrideAlignment};
use crate::{Error, Result};

/// What one layer keeps on one rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedLayer {
    /// Tokens per state, of a layer that stores states.
    pub(crate) stores: Option<u64>,
    /// Elements of a latent.
    pub(crate) head_dim: u64,
    /// Tokens in the window.
    pub(crate) window: u64,
    /// Elements of an index key beside each state, 0 without.
    pub(crate) index_head_dim: u64,
    /// Format of the states.
    pub(crate) kv_dtype: KvDtype,
    /// Whether entries are those of compute capability 10.
    pub(crate) blackwell: bool,
    /// Whether the window is computed again behind a cached prefix.
    pub(crate) replayed: bool,
    /// Tokens drafted a step.
    pub(crate) draft_tokens: u64,
}

/// Adds the caches of one layer in the order of registration: states and index keys of a layer that stores them, the
/// window, and the ring of the states that are not full yet.
///
/// Sources (vLLM 0.32.0): `models/deepseek_v41/attention.py`, `models/deepseek_v41/compressor.py`,
/// `v1/attention/backends/mla/sparse_swa.py`. An entry is 448 bytes without and 128 with rotary embedding and 8 of scales;
/// on Blackwell 512 bytes and 16 of scales, or 256 and 32 in 4 bits.
pub(crate) fn deepseek_v41(layer: &SharedLayer, block_size: u64, specs: &mut Vec<Spec>) -> Result<()> {
    const WINDOW_BLOCK: u64 = 32;
    let (entry_bytes, alignment_bytes, kernel_block) = if layer.blackwell {
        (528, 512, 128)
    } else {
        (584, 576, 64)
    };
    let state_bytes = match layer.kv_dtype {
        KvDtype::Nvfp4DsMla => 288,
        _ => entry_bytes,
    };
    let mut push = |kind, block_size, width, content_bytes, tokens_per_state| -> Result<()> {
        let spec = Spec {
            tokens_per_state,
            page_alignment_bytes: alignment_bytes,
            stride: match kind {
                SpecKind::Latent { .. } => StrideAlignment::KernelBlock(kernel_block),
                _ => StrideAlignment::Any,
            },
            ..latent(kind, block_size, width, content_bytes, layer.kv_dtype)
        };
        specs.push(spec.aligned()?);
        Ok(())
    };
    if let Some(ratio) = layer.stores {
        let states = SpecKind::Latent { indexer: false };
        push(states, block_size, layer.head_dim, state_bytes, ratio)?;
        if layer.index_head_dim > 0 {
            let key_bytes = layer
                .index_head_dim
                .checked_add(layer.index_head_dim / 128 * 4)
                .ok_or_else(|| Error::overflow("the indexer's key"))?;
            let keys = SpecKind::Latent { indexer: true };
            push(keys, block_size, key_bytes, key_bytes, ratio)?;
        }
    }
    let window = SpecKind::SlidingLatent {
        window: layer.window,
        extra: 0,
        replayed: layer.replayed,
    };
    push(window, WINDOW_BLOCK, layer.head_dim, entry_bytes, 1)?;
    if layer.stores.is_some_and(|ratio| ratio > 1) {
        // Keys and scores in float32, of the tokens of a step and of the one before.
        let overflow = || Error::overflow("the ring of open states");
        let tokens = layer
            .draft_tokens
            .checked_add(2)
            .and_then(u64::checked_next_power_of_two);
        let width = layer.head_dim.checked_mul(2).filter(|&width| width < 1 << 40);
        let width = width.ok_or_else(overflow)?;
        specs.push(latent(
            SpecKind::Ring,
            tokens.ok_or_else(overflow)?.max(8),
            width,
            width * 4,
            KvDtype::Auto,
        ));
    }
    Ok(())
}
