//! Making caches of different page sizes fit one pool.

use super::refusal::{Refusal, RefusalKind};
use super::spec::{Spec, SpecKind, is_uniform_type};
use crate::Result;

use super::group::merge_all;

/// Gives all caches the largest page: recurrent states are padded, attention whose page divides the largest gets
/// larger blocks, other attention but latent is padded. `false` if a latent cache does not divide
/// (vLLM 0.32.0, `v1/core/kv_cache_utils.py`, `unify_kv_cache_spec_page_size`).
pub(crate) fn unify_pages(specs: &mut [Spec]) -> Result<bool> {
    let mut largest = 0;
    for spec in &*specs {
        largest = largest.max(spec.page_bytes()?);
    }
    for spec in specs {
        let page = spec.page_bytes()?;
        if page == largest {
            continue;
        }
        let divides = page > 0 && largest.is_multiple_of(page);
        *spec = if spec.is_state() {
            spec.padded_to(largest)
        } else if divides {
            let block_size = spec
                .block_size
                .checked_mul(largest / page)
                .ok_or_else(|| crate::Error::overflow("the tokens of one block"))?;
            let scaled = spec.with_block_size(block_size);
            // A page that was already padded stays as it is, which the engine takes for a bug.
            if scaled.page_bytes()? != largest {
                return Ok(false);
            }
            scaled
        } else if matches!(spec.kind, SpecKind::Latent { .. }) {
            return Ok(false);
        } else {
            spec.padded_to(largest)
        };
    }
    Ok(true)
}

/// Turns windows and chunks into full attention that holds all tokens, where both kinds are there
/// (`unify_hybrid_kv_cache_specs` and `_promote_local_kv_cache_specs`). Caches that decode context parallelism
/// does not shard are promoted apart from the others.
pub(crate) fn promote_local(specs: &mut [Spec]) -> Result<Result<(), Refusal>> {
    for sharded in [true, false] {
        let attention = |spec: &Spec| spec.is_state() || spec.dcp_sharded;
        let members: Vec<usize> = (0..specs.len())
            .filter(|&i| attention(&specs[i]) == sharded)
            .collect();
        let mut part: Vec<Spec> = members.iter().map(|&i| specs[i]).collect();
        if !promote_part(&mut part)? {
            return Ok(Err(Refusal::new(
                RefusalKind::Pages,
                "Failed to promote local KV cache specs to one unified type (the hybrid KV cache manager is disabled)",
            )));
        }
        for (index, spec) in members.into_iter().zip(part) {
            specs[index] = spec;
        }
    }
    Ok(Ok(()))
}

/// Allocates windows as full attention where their pages cannot be unified with latent ones
/// (`_try_get_full_allocation_fallback_groups`); `false` if that does not help.
pub(crate) fn full_allocation_fallback(specs: &mut [Spec]) -> Result<bool> {
    let local = |spec: &Spec| {
        matches!(
            spec.kind,
            SpecKind::SlidingLatent { .. } | SpecKind::Chunked { .. }
        )
    };
    let latent = specs
        .iter()
        .any(|spec| matches!(spec.kind, SpecKind::Latent { .. }));
    let window = specs
        .iter()
        .any(|spec| matches!(spec.kind, SpecKind::Sliding { .. }));
    if specs.iter().any(local) || !latent || !window {
        return Ok(false);
    }
    Ok(promote_part(specs)? && is_uniform_type(specs.iter())?)
}

/// Whether the engine fails on full attention with several windows or chunks (`merge_window_sizes` raises).
pub(crate) fn windows_clash(specs: &[Spec]) -> bool {
    let mut first: (Option<u64>, Option<u64>) = (None, None);
    let mut clash = false;
    for spec in specs {
        let SpecKind::Full { window, chunk } = spec.kind else {
            return false;
        };
        clash |= window.is_some_and(|tokens| tokens != *first.0.get_or_insert(tokens));
        clash |= chunk.is_some_and(|tokens| tokens != *first.1.get_or_insert(tokens));
    }
    clash
}

fn is_one_type(specs: &[Spec]) -> Result<bool> {
    if windows_clash(specs) {
        return Ok(false);
    }
    Ok(specs.is_empty() || merge_all(specs).is_some() || is_uniform_type(specs.iter())?)
}

fn promote_part(specs: &mut [Spec]) -> Result<bool> {
    if is_one_type(specs)? {
        return Ok(true);
    }
    let is_local = |spec: &Spec| spec.is_sliding() || matches!(spec.kind, SpecKind::Chunked { .. });
    let mut full = specs.iter().filter(|spec| spec.is_full_type());
    if let Some(first) = full.next()
        && specs.iter().any(is_local)
    {
        // The engine cannot rebuild a latent window as a latent that keeps all tokens.
        if specs
            .iter()
            .any(|spec| matches!(spec.kind, SpecKind::SlidingLatent { .. }))
        {
            return Ok(false);
        }
        let shared = specs
            .iter()
            .filter(|spec| spec.is_full_type())
            .all(|spec| spec.block_size == first.block_size)
            .then_some(first.block_size);
        for spec in specs.iter_mut().filter(|spec| is_local(spec)) {
            let kind = match spec.kind {
                SpecKind::Sliding { window, .. } => SpecKind::Full {
                    window: Some(window),
                    chunk: None,
                },
                SpecKind::Chunked { chunk } => SpecKind::Full {
                    window: None,
                    chunk: Some(chunk),
                },
                _ => SpecKind::Latent { indexer: false },
            };
            let promoted = Spec {
                kind,
                ..spec.with_block_size(shared.unwrap_or(spec.block_size))
            };
            let padded_page_bytes = match spec.padded_page_bytes {
                None => None,
                Some(padded) => Some(padded.max(promoted.unpadded_page_bytes()?)),
            };
            *spec = Spec {
                padded_page_bytes,
                ..promoted
            };
        }
    }
    is_one_type(specs)
}
