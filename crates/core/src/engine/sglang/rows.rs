//! Bytes of one token in one layer of SGLang's pools.

use super::memory::Card;
use super::served;
use super::settings::{KvDtype, Settings};
use super::shape::{heads, is_windowed};
use crate::arch::{CacheKind, Config, Model};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// What the bytes of a layer depend on besides the layer.
pub(super) struct Pool<'a> {
    pub(super) element: Dtype,
    pub(super) card: &'a Card,
    pub(super) backend: &'a str,
    pub(super) two: bool,
    pub(super) mla: bool,
}

/// Bytes of one token in one layer.
pub(super) struct Rows {
    pub(super) full: u64,
    pub(super) window: u64,
    pub(super) indexer: u64,
    /// Bytes of one token beside all layers: the workspace of a 4-bit cache.
    pub(super) shared: u64,
}

impl Rows {
    pub(super) fn of(model: &Model, text: &Config, settings: &Settings, pool: &Pool) -> Result<Self> {
        let mut rows = Self {
            full: 0,
            window: 0,
            indexer: 0,
            shared: 0,
        };
        let too_large = || Error::overflow("the KV cache of one token in one layer");
        let (element, card) = (pool.element, pool.card);
        let bytes = element.bits() / 8;
        for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
            match &cache.kind {
                CacheKind::Latent {
                    width, rope, sparse, ..
                } => {
                    let lora = width.saturating_sub(*rope);
                    let row = if *sparse
                        && element == Dtype::F8E4m3
                        && !served::raw_sparse_latents(&model.architecture, card)
                    {
                        // Latents in fp8 with a float32 scale every 128, rotary part in 16 bits.
                        rope.checked_mul(2)
                            .and_then(|r| r.checked_add(lora + lora / 128 * 4))
                    } else if settings.kv_cache_dtype.is_fp4() {
                        Some(width / 2 + width / 16)
                    } else {
                        width.checked_mul(bytes)
                    };
                    rows.full = rows.full.max(row.ok_or_else(too_large)?);
                }
                CacheKind::Indexer {
                    bytes_per_token,
                    kernel_block,
                } => {
                    let row = if *kernel_block == 64 {
                        *bytes_per_token
                    } else {
                        minimax_index(*bytes_per_token, text, settings, pool)?
                    };
                    rows.indexer = rows.indexer.max(row);
                }
                kind => {
                    let Some(h) = heads(kind) else { continue };
                    // With more ranks than heads each rank keeps one.
                    let kv_heads = (h.kv_heads / settings.attention_tp()).max(1);
                    let elements = kv_heads
                        .checked_mul(h.head_dim.checked_add(h.head_dim_v).ok_or_else(too_large)?)
                        .ok_or_else(too_large)?;
                    let mut row = elements.checked_mul(bytes).ok_or_else(too_large)?;
                    if settings.kv_cache_dtype == KvDtype::Mxfp8 && !pool.mla {
                        row = row.checked_add(elements / 32).ok_or_else(too_large)?;
                    }
                    // Two pools are sized as if 4-bit elements had 8 and no scales.
                    if settings.kv_cache_dtype.is_fp4() && !pool.two {
                        (row, rows.shared) = four_bit_row(kv_heads, h.head_dim, settings, pool);
                    }
                    if is_windowed(kind) {
                        rows.window = rows.window.max(row);
                    } else {
                        rows.full = rows.full.max(row);
                    }
                }
            }
        }
        // A model whose layers are all windowed has one shape, whichever pool it is in.
        if rows.full == 0 {
            rows.full = rows.window;
        }
        if rows.full == 0 && model.layers.iter().all(|layer| layer.caches.is_empty()) {
            rows.full = uncached(text, settings, element)?;
        }
        Ok(rows)
    }
}

/// Encoders keep nothing, but their pool is made as if they did: the heads that the configuration names.
fn uncached(text: &Config, settings: &Settings, element: Dtype) -> Result<u64> {
    let Some(heads) = text.u64("num_attention_heads")?.filter(|&n| n > 0) else {
        return Ok(0);
    };
    let head_dim = match text.u64("head_dim")? {
        Some(given) => given,
        None => text.u64("hidden_size")?.unwrap_or(0) / heads,
    };
    let kv_heads = text.u64("num_key_value_heads")?.unwrap_or(heads);
    (kv_heads / settings.attention_tp())
        .max(1)
        .checked_mul(head_dim)
        .and_then(|n| n.checked_mul(2 * element.bits() / 8))
        .ok_or_else(|| Error::overflow("the KV cache of one token in one layer"))
}

/// Bytes of a token in one layer of a 4-bit cache, and in the workspace that all layers share
/// (`srt/layers/quantization/fp4_kv_cache_quant_method.py`, `compute_cell_size`; the heads of values are taken to be as
/// wide as those of keys, as there).
fn four_bit_row(kv_heads: u64, head_dim: u64, settings: &Settings, pool: &Pool) -> (u64, u64) {
    let values = kv_heads * (head_dim / 2) * 2;
    if settings.kv_cache_dtype == KvDtype::Fp4MxBlock16 {
        return (values + kv_heads * head_dim / 16 * 2, 0);
    }
    let scales = kv_heads * (head_dim / 16) * 2;
    // Prefill through an fp8 workspace reads scales in the order of tokens; TensorRT-LLM's decoding on compute capability
    // 10 has a layout of its own.
    let workspace = pool.backend == "flashinfer";
    let native = pool.card.capability.0 == 10;
    let layouts = u64::from(workspace || !native) + u64::from(native);
    (
        values + scales * layouts,
        if workspace { kv_heads * head_dim * 2 } else { 0 },
    )
}

/// Bytes of `MiniMax`'s index keys (`get_minimax_sparse_index_dtype`), with values where the layers keep them.
fn minimax_index(bytes_16_bit: u64, text: &Config, settings: &Settings, pool: &Pool) -> Result<u64> {
    let major = pool.card.capability.0;
    let eight_bits = pool.element == Dtype::F8E4m3
        && settings.kv_cache_dtype == KvDtype::Fp8E4m3
        && (major == 9 || major == 10 && pool.backend == "trtllm_mha");
    let keys = if eight_bits {
        bytes_16_bit / 2
    } else {
        bytes_16_bit
    };
    let Some(index) = text.sub("sparse_attention_config")? else {
        return Ok(keys);
    };
    let (sparse, off) = (
        index.u64s("sparse_attention_freq")?,
        index.u64s("sparse_disable_index_value")?,
    );
    let off = off.unwrap_or_default();
    let keeps_values = sparse
        .unwrap_or_default()
        .iter()
        .enumerate()
        .any(|(i, &sparse)| sparse != 0 && off.get(i).is_none_or(|&flag| flag == 0));
    if keeps_values {
        return Err(Error::unsupported(
            "SGLang's pool for MiniMax's index values (sparse_disable_index_value of 0) is not planned",
        ));
    }
    Ok(keys)
}
