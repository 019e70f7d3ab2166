//! How a layer's blocks fit the kernels of its backend: alignment of strides, block size of windows.

use super::backend::{Backend, KernelBlock};
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::spec::StrideAlignment;
use crate::{Error, Result};

/// Alignment of block strides that a backend asks for (`customize_spec` of the sparse backends, and
/// `v1/worker/utils.py` `customize_attention_spec` for those with fixed kernel blocks).
pub(crate) fn stride(
    backend: Backend,
    kernels: &[KernelBlock],
    content_bytes: u64,
    kv_dtype: KvDtype,
    gpu: Gpu,
) -> StrideAlignment {
    match backend {
        Backend::FlashMlaSparse if !kv_dtype.is_16_bit() && gpu.major != 10 => {
            return StrideAlignment::KernelBlock(64);
        }
        Backend::FlashMlaSparse | Backend::FlashAttnMlaSparse | Backend::FlashInferMlaSparseSm90 => {
            return StrideAlignment::Bytes(content_bytes);
        }
        Backend::FlashInferMlaSparse => return StrideAlignment::Bytes(content_bytes.saturating_mul(32)),
        Backend::FlashInferMlaSparseSm120 => return StrideAlignment::Bytes(content_bytes.saturating_mul(64)),
        _ => {}
    }
    let mut largest = 0;
    for kernel in kernels {
        match kernel {
            KernelBlock::Exactly(tokens) => largest = largest.max(*tokens),
            KernelBlock::MultipleOf(_) => return StrideAlignment::Any,
        }
    }
    StrideAlignment::KernelBlock(largest)
}

/// Block size of a sliding-window layer: the largest kernel block whose page fits the primary page, or the shared
/// one of layers left out of quantisation (`layers/attention/attention.py`, `_largest_kernel_block_within`).
pub(crate) fn window_block_size(
    kernels: &[KernelBlock],
    per_token_bytes: u64,
    shared: Option<u64>,
    block_size: u64,
) -> Result<u64> {
    let budget = match shared {
        Some(bytes) => bytes,
        None => per_token_bytes
            .checked_mul(block_size)
            .ok_or_else(|| Error::overflow("the bytes of one layer's block"))?,
    };
    let most = budget / per_token_bytes;
    let candidates = kernels.iter().map(|kernel| match kernel {
        KernelBlock::Exactly(tokens) => *tokens,
        KernelBlock::MultipleOf(base) => (*base).max(most / base * base),
    });
    let smallest = candidates.clone().min().unwrap_or(block_size);
    Ok(candidates
        .filter(|&tokens| tokens <= most)
        .max()
        .unwrap_or(smallest))
}
