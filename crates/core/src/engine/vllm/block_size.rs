//! The block size: what the backends take, raised until a block holds a recurrent state.

use super::backend::{Backend, KernelBlock};
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::publish::{Alignment, Served};
use super::refusal::{Refusal, RefusalKind};
use super::spec::lcm;
use crate::{Error, Result};

/// Block sizes and pads of a model on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// `cache_config.block_size` in tokens.
    pub block_size: u64,
    /// Tokens of a recurrent state's block: the block size, or the model's length where states are not kept for
    /// prefix caching.
    pub state_block_size: u64,
    /// Page that recurrent states are padded to.
    pub state_page_bytes: Option<u64>,
    /// Page that sliding windows left out of quantisation are padded to.
    pub skip_page_bytes: Option<u64>,
}

/// vLLM's block size where the backends leave it open (`CacheConfig.DEFAULT_BLOCK_SIZE`).
pub const DEFAULT_BLOCK_SIZE: u64 = 16;

/// What the CPU platform sets instead (vLLM 0.32.0, `platforms/cpu.py`, `check_and_update_config`).
const CPU_BLOCK_SIZE: u64 = 128;

/// Settles all block sizes (vLLM 0.32.0, `platforms/interface.py`, `update_block_size_for_backend`).
///
/// # Errors
/// A [`Refusal`] where the backends share no block size; an error if a size overflows.
pub(crate) fn block_sizes(
    alignment: &Alignment,
    user: Option<u64>,
    gpu: Gpu,
) -> Result<Result<BlockSizes, Refusal>> {
    let kernels = distinct_kernels(alignment.served, gpu);
    let preferred = match user {
        // The CPU's latent kernel takes nothing else, whatever the user says.
        _ if gpu.is_cpu() && alignment.latent_width.is_some() => 16,
        Some(block_size) => block_size,
        None if gpu.is_cpu() => CPU_BLOCK_SIZE,
        None if alignment.platform_block.is_some() && alignment.state_bytes == 0 => {
            alignment.platform_block.unwrap_or(DEFAULT_BLOCK_SIZE)
        }
        None => match preferred_block_size(alignment.served, &kernels, gpu)? {
            Ok(block_size) => block_size,
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    let mut sizes = BlockSizes {
        block_size: preferred,
        state_block_size: if alignment.align_states {
            preferred
        } else {
            alignment.max_model_len
        },
        state_page_bytes: None,
        skip_page_bytes: None,
    };
    if let Some(&first) = kernels.first() {
        if alignment.state_bytes > 0 {
            align_to_state(alignment, &kernels, first, &mut sizes)?;
        }
        if alignment.skips {
            align_to_skipped(alignment, first, &mut sizes)?;
        }
        if sizes.block_size != preferred {
            let rejects = |served: &&Served| {
                !served
                    .backend
                    .supports_block_size(gpu, &served.demand, sizes.block_size)
            };
            if let Some(served) = alignment.served.iter().find(rejects) {
                return Ok(Err(Refusal::new(
                    RefusalKind::AttentionBackend,
                    format!(
                        "Aligned KV cache block size {} is not supported by attention backend(s): {}.",
                        sizes.block_size, served.backend
                    ),
                )));
            }
        }
    }
    Ok(Ok(sizes))
}

/// Kernel blocks of each distinct backend in layer order.
fn distinct_kernels(served: &[Served], gpu: Gpu) -> Vec<&'static [KernelBlock]> {
    let mut seen: Vec<(Backend, &'static [KernelBlock])> = Vec::new();
    for one in served {
        let kernels = one.backend.kernel_blocks(gpu, &one.demand);
        if !seen.contains(&(one.backend, kernels)) {
            seen.push((one.backend, kernels));
        }
    }
    seen.into_iter().map(|(_, kernels)| kernels).collect()
}

fn smallest(kernels: &[KernelBlock]) -> u64 {
    kernels.iter().map(|kernel| kernel.smallest()).min().unwrap_or(1)
}

fn preferred_block_size(
    served: &[Served],
    kernels: &[&'static [KernelBlock]],
    gpu: Gpu,
) -> Result<Result<u64, Refusal>> {
    let supports = |block_size: u64| {
        served
            .iter()
            .all(|one| one.backend.supports_block_size(gpu, &one.demand, block_size))
    };
    if served.is_empty() || supports(DEFAULT_BLOCK_SIZE) {
        return Ok(Ok(DEFAULT_BLOCK_SIZE));
    }
    if let [only] = kernels {
        return Ok(Ok(smallest(only)));
    }
    // Least common multiples of one size per backend, the smallest that all take.
    let mut candidates = vec![1_u64];
    for list in kernels {
        let mut next = Vec::new();
        for &candidate in &candidates {
            for kernel in *list {
                let multiple = lcm(candidate, kernel.smallest())?;
                if !next.contains(&multiple) {
                    next.push(multiple);
                }
            }
        }
        candidates = next;
    }
    candidates.sort_unstable();
    Ok(candidates
        .into_iter()
        .find(|&candidate| supports(candidate))
        .ok_or_else(|| {
            let names: Vec<&str> = served.iter().map(|one| one.backend.name()).collect();
            Refusal::new(
                RefusalKind::AttentionBackend,
                format!(
                    "The attention backends share no supported KV cache block size ({}).",
                    names.join("; ")
                ),
            )
        }))
}

/// Raises the block size until an attention page holds a state, and pads the state to it (`_align_hybrid_block_size`).
fn align_to_state(
    alignment: &Alignment,
    kernels: &[&'static [KernelBlock]],
    first: &[KernelBlock],
    sizes: &mut BlockSizes,
) -> Result<()> {
    let overflow = || Error::overflow("the block size that holds a recurrent state");
    let Some(page_of_token) = page_of_token(alignment)? else {
        return Ok(());
    };
    let mut unit = smallest(first).max(sizes.block_size);
    if alignment.latent_width.is_some() {
        // Latent kernels need whole multiples of 128 tokens.
        unit = unit.max(128);
    }
    let backends = kernels
        .iter()
        .try_fold(1, |multiple, list| lcm(multiple, smallest(list)))?;
    let per_unit = unit.checked_mul(page_of_token).ok_or_else(overflow)?.max(1);
    let needed = alignment
        .state_bytes
        .div_ceil(per_unit)
        .checked_mul(unit)
        .and_then(|tokens| tokens.checked_next_multiple_of(backends))
        .ok_or_else(overflow)?;
    sizes.block_size = sizes.block_size.max(needed);
    if alignment.align_states {
        sizes.state_block_size = sizes.block_size;
    }
    let page = sizes.block_size.checked_mul(page_of_token).ok_or_else(overflow)?;
    if page != alignment.state_bytes {
        sizes.state_page_bytes = Some(page);
    }
    Ok(())
}

/// Bytes that attention keeps of one token in one layer, as the alignment takes them.
fn page_of_token(alignment: &Alignment) -> Result<Option<u64>> {
    if let Some(width) = alignment.latent_width {
        let bytes = alignment.kv_dtype.element_bytes();
        return width
            .checked_mul(bytes)
            .map(Some)
            .ok_or_else(|| Error::overflow("the size of one latent"));
    }
    let Some((heads, head_size)) = alignment.attention else {
        return Ok(None);
    };
    let primary = token_bytes(alignment.kv_dtype, heads, head_size)?;
    if alignment.kv_dtype.is_packed() && alignment.skips {
        return Ok(Some(lcm(primary, token_bytes(KvDtype::Auto, heads, head_size)?)?));
    }
    Ok(Some(primary))
}

fn token_bytes(dtype: KvDtype, heads: u64, head_size: u64) -> Result<u64> {
    let entry = dtype.entry(heads, head_size, head_size)?;
    entry
        .slots
        .checked_mul(entry.content_bytes)
        .ok_or_else(|| Error::overflow("the size of one cached token"))
}

/// Raises the block size until a quantised page covers one of a layer left at 16 bits
/// (`_align_heterogeneous_kv_block_size`).
fn align_to_skipped(alignment: &Alignment, first: &[KernelBlock], sizes: &mut BlockSizes) -> Result<()> {
    let overflow = || Error::overflow("the block size that covers layers left out of quantisation");
    let Some((heads, head_size)) = alignment.attention else {
        return Ok(());
    };
    let primary = token_bytes(alignment.kv_dtype, heads, head_size)?.max(1);
    let skipped = token_bytes(KvDtype::Auto, heads, head_size)?;
    if skipped <= primary {
        return Ok(());
    }
    let kernel = smallest(first);
    let unit = kernel.max(sizes.block_size);
    let required = skipped
        .checked_mul(kernel)
        .ok_or_else(overflow)?
        .max(sizes.state_page_bytes.unwrap_or(0));
    let needed = required
        .div_ceil(unit.checked_mul(primary).ok_or_else(overflow)?)
        .checked_mul(unit)
        .ok_or_else(overflow)?;
    sizes.block_size = sizes.block_size.max(needed);
    let shared = sizes.block_size.checked_mul(primary).ok_or_else(overflow)?;
    sizes.skip_page_bytes = Some(shared);
    if sizes.state_page_bytes.is_some() {
        sizes.state_page_bytes = Some(shared);
    }
    Ok(())
}
