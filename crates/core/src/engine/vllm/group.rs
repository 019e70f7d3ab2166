//! Groups of caches that share one block table.

use super::packed;
use super::refusal::{Refusal, RefusalKind};
use super::request::{RequestContext, blocks_per_request};
use super::spec::{Spec, SpecKind, is_uniform_type, lcm};
use super::unify::{full_allocation_fallback, promote_local, unify_pages};
use crate::{Error, Result};

/// A group: indices into the list of caches, and the spec they share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Caches of the group, as indices in registration order.
    pub layers: Vec<usize>,
    /// The merged spec; of a uniform-type group, the first cache's.
    pub spec: Spec,
    /// Whether pages differ between the caches (`UniformTypeKVCacheSpecs`); each has its own spec then.
    pub uniform_type: bool,
}

/// How the caches lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryOrder {
    /// Layer by layer.
    LayerOutermost,
    /// Block by block, all layers' pages of a block side by side (DeepSeek-V4, Dots3, GLM-5-Next, Qwen4-Exp).
    BlockOutermost,
}

/// Caches and the groups over them; grouping may have changed block sizes and pads of the specs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// One spec a cache, in registration order.
    pub specs: Vec<Spec>,
    /// Groups in the engine's order.
    pub groups: Vec<Group>,
    /// Memory order.
    pub order: MemoryOrder,
}

/// Divides the caches into groups (vLLM 0.32.0, `v1/core/kv_cache_utils.py`, `get_kv_cache_groups`).
///
/// # Errors
/// A [`Refusal`] where the caches cannot share a pool; an error if a size overflows.
pub fn group(
    mut specs: Vec<Spec>,
    order: MemoryOrder,
    disable_hybrid: bool,
) -> Result<Result<Grouping, Refusal>> {
    if disable_hybrid && let Err(refusal) = promote_local(&mut specs)? {
        return Ok(Err(refusal));
    }
    if specs.is_empty() {
        return Ok(Ok(Grouping {
            specs,
            groups: Vec::new(),
            order,
        }));
    }
    if let Some(merged) = merge_all(&specs) {
        let groups = vec![Group {
            layers: (0..specs.len()).collect(),
            spec: merged,
            uniform_type: false,
        }];
        return Ok(Ok(Grouping { specs, groups, order }));
    }
    if is_uniform_type(specs.iter())? {
        let groups = vec![Group {
            layers: (0..specs.len()).collect(),
            spec: specs[0],
            uniform_type: true,
        }];
        return Ok(Ok(Grouping { specs, groups, order }));
    }
    if order == MemoryOrder::BlockOutermost
        && let Some(groups) = packed::packed_groups(&specs)?
    {
        return Ok(Ok(Grouping { specs, groups, order }));
    }
    let mut unified = specs.clone();
    if !unify_pages(&mut unified)? {
        let mut promoted = specs;
        return Ok(if full_allocation_fallback(&mut promoted)? {
            let groups = vec![Group {
                layers: (0..promoted.len()).collect(),
                spec: promoted[0],
                uniform_type: true,
            }];
            Ok(Grouping {
                specs: promoted,
                groups,
                order,
            })
        } else {
            Err(Refusal::new(
                RefusalKind::Pages,
                "page size is not divisible by the maximum page size and cannot be padded: padding is only supported for non-MLA attention layers",
            ))
        });
    }
    let groups = uniform_page_groups(&unified);
    Ok(Ok(Grouping {
        specs: unified,
        groups,
        order,
    }))
}

/// The merge of all specs, if they are mergeable (`is_kv_cache_spec_uniform`).
pub(crate) fn merge_all(specs: &[Spec]) -> Option<Spec> {
    let (&first, rest) = specs.split_first()?;
    rest.iter().try_fold(first, |merged, &spec| merged.merge(spec))
}

/// Groups of equal size over caches with one page size (`_get_kv_cache_groups_uniform_page_size`).
fn uniform_page_groups(specs: &[Spec]) -> Vec<Group> {
    // Buckets of mergeable specs, in order of first appearance. As in the engine, caches with equal specs are
    // collected first, and the collections are then merged where possible.
    let mut collections: Vec<(Spec, Vec<usize>)> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        match collections.iter_mut().find(|(known, _)| known == spec) {
            Some((_, layers)) => layers.push(index),
            None => collections.push((*spec, vec![index])),
        }
    }
    let mut buckets: Vec<(Spec, Vec<usize>)> = Vec::new();
    'collection: for (spec, layers) in collections {
        for (merged, members) in &mut buckets {
            if let Some(both) = merged.merge(spec) {
                *merged = both;
                members.extend(layers);
                continue 'collection;
            }
        }
        buckets.push((spec, layers));
    }
    let sizes = || buckets.iter().map(|(_, layers)| layers.len());
    let smallest = sizes().min().unwrap_or(1).max(1);
    let largest = sizes().max().unwrap_or(1);
    // Up to half as many layers again are padded rather than split (gpt-oss with a drafter: 12 and 13).
    let group_size = if largest * 2 < smallest * 3 {
        largest
    } else {
        smallest
    };
    let mut groups = Vec::new();
    for (_, layers) in &buckets {
        let count = layers.len().div_ceil(group_size);
        for start in 0..count {
            // Round robin, so that every pipeline stage has a part of every group.
            let members: Vec<usize> = layers.iter().copied().skip(start).step_by(count).collect();
            let spec = members.iter().skip(1).fold(specs[members[0]], |merged, &index| {
                merged.merge(specs[index]).unwrap_or(merged)
            });
            groups.push(Group {
                layers: members,
                spec,
                uniform_type: false,
            });
        }
    }
    groups
}

impl Grouping {
    /// The spec of one cache of a group as memory is allocated for it.
    fn layer_spec<'a>(&'a self, group: &'a Group, layer: usize) -> &'a Spec {
        if group.uniform_type {
            &self.specs[layer]
        } else {
            &group.spec
        }
    }

    /// Bytes of one block of the pool that holds the caches selected by `on_stage`: the largest group's
    /// (`_get_kv_cache_bytes_per_block`).
    ///
    /// # Errors
    /// If they overflow.
    pub fn bytes_per_block(&self, on_stage: impl Fn(usize) -> bool) -> Result<u64> {
        let overflow = || Error::overflow("the bytes of one block");
        let mut largest = 0;
        let mut alignment = 1;
        for group in &self.groups {
            let mut bytes = 0_u64;
            // Most groups repeat one page; it is computed once.
            let shared = match self.order {
                MemoryOrder::LayerOutermost => group.spec.block_stride_bytes()?,
                MemoryOrder::BlockOutermost => group.spec.page_bytes()?,
            };
            for &layer in group.layers.iter().filter(|&&layer| on_stage(layer)) {
                let page = if group.uniform_type {
                    match self.order {
                        MemoryOrder::LayerOutermost => self.specs[layer].block_stride_bytes()?,
                        MemoryOrder::BlockOutermost => self.specs[layer].page_bytes()?,
                    }
                } else {
                    shared
                };
                bytes = bytes.checked_add(page).ok_or_else(overflow)?;
                if self.order == MemoryOrder::BlockOutermost {
                    alignment = lcm(alignment, self.layer_spec(group, layer).stride_alignment_bytes()?)?;
                }
            }
            largest = largest.max(bytes);
        }
        match self.order {
            MemoryOrder::LayerOutermost => Ok(largest),
            MemoryOrder::BlockOutermost => largest.checked_next_multiple_of(alignment).ok_or_else(overflow),
        }
    }

    /// Blocks of one request from one group.
    pub fn group_blocks(&self, group: &Group, context: &RequestContext) -> u64 {
        if group.uniform_type {
            group
                .layers
                .iter()
                .map(|&layer| blocks_per_request(&self.specs[layer], context))
                .max()
                .unwrap_or(0)
        } else {
            blocks_per_request(&group.spec, context)
        }
    }

    /// Blocks of one request from all groups.
    ///
    /// # Errors
    /// If their sum overflows.
    pub fn request_blocks(&self, context: &RequestContext) -> Result<u64> {
        self.groups.iter().try_fold(0_u64, |sum, group| {
            sum.checked_add(self.group_blocks(group, context))
                .ok_or_else(|| Error::overflow("the blocks of one request"))
        })
    }

    /// Least common multiple and hash unit of the groups' block sizes (`resolve_kv_cache_block_sizes`):
    /// `(scheduler_block_size, hash_block_size)`.
    ///
    /// # Errors
    /// If the multiple overflows.
    pub fn block_sizes(
        &self,
        block_size: u64,
        dcp: u64,
        prefix_caching: bool,
        align_states: bool,
    ) -> Result<(u64, u64)> {
        let spanned = |spec: &Spec| {
            let ranks = if spec.dcp_sharded { dcp } else { 1 };
            spec.block_size
                .checked_mul(ranks)
                .ok_or_else(|| Error::overflow("the tokens of one block over all ranks"))
        };
        if self.groups.len() <= 1 {
            let ranks = match self.groups.first() {
                Some(group) if !group.spec.dcp_sharded => 1,
                _ => dcp,
            };
            let size = block_size
                .checked_mul(ranks)
                .ok_or_else(|| Error::overflow("the tokens of one block over all ranks"))?;
            return Ok((size, size));
        }
        let mut scheduler = 1;
        let mut hash = 0;
        for group in &self.groups {
            let size = spanned(&group.spec)?;
            scheduler = lcm(scheduler, size)?;
            if group.spec.is_found_again() {
                hash = super::spec::gcd(hash, size);
            }
        }
        let states = self.groups.iter().any(|group| group.spec.is_state());
        if !prefix_caching || (states && !align_states) {
            return Ok((scheduler, scheduler));
        }
        Ok((scheduler, hash))
    }

    /// Caches a group would have room for but has not: padding of the shorter groups.
    pub fn padding_layers(&self) -> usize {
        let size = self
            .groups
            .iter()
            .map(|group| group.layers.len())
            .max()
            .unwrap_or(0);
        if self.order == MemoryOrder::BlockOutermost || self.groups.iter().any(|group| group.uniform_type) {
            return 0;
        }
        self.groups.iter().map(|group| size - group.layers.len()).sum()
    }
}

/// Marks every sliding window with the tokens kept behind it (several-module drafters).
pub(crate) fn retain_behind_windows(specs: &mut [Spec], extra_tokens: u64) {
    for spec in specs {
        match &mut spec.kind {
            SpecKind::Sliding { extra, .. } | SpecKind::SlidingLatent { extra, .. } => *extra = extra_tokens,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::{FULL, spec};
    use super::*;

    const WINDOW: SpecKind = SpecKind::Sliding {
        window: 1024,
        extra: 0,
    };

    fn sizes(specs: Vec<Spec>) -> (Vec<usize>, u64) {
        let grouping = group(specs, MemoryOrder::LayerOutermost, false).unwrap().unwrap();
        let bytes = grouping.bytes_per_block(|_| true).unwrap();
        (
            grouping.groups.iter().map(|group| group.layers.len()).collect(),
            bytes,
        )
    }

    #[test]
    fn gemma3_27b_has_six_groups_of_windows_and_one_of_full_layers() {
        let specs = (0..62)
            .map(|i| spec(if (i + 1) % 6 == 0 { FULL } else { WINDOW }, 16))
            .collect();
        assert_eq!(sizes(specs), (vec![9, 9, 9, 9, 8, 8, 10], 1_310_720));
    }

    #[test]
    fn nearly_equal_counts_are_padded_to_the_larger() {
        // 12 full and 13 windowed layers of 8 heads with 64 elements: vLLM makes groups of 12 and 13.
        let small = |kind| Spec {
            head_size: 64,
            head_size_v: 64,
            content_bytes: 256,
            ..spec(kind, 8)
        };
        let specs = (0..25)
            .map(|i| small(if i % 2 == 1 { FULL } else { WINDOW }))
            .collect();
        assert_eq!(sizes(specs), (vec![13, 12], 425_984));
    }

    #[test]
    fn different_heads_of_one_type_make_one_group_with_the_sum_of_pages() {
        assert_eq!(sizes(vec![spec(FULL, 8), spec(FULL, 4)]), (vec![2], 98_304));
    }

    #[test]
    fn windows_with_a_page_that_divides_get_larger_blocks_and_others_are_padded() {
        let grouping = group(
            vec![spec(FULL, 8), spec(WINDOW, 4)],
            MemoryOrder::LayerOutermost,
            false,
        )
        .unwrap()
        .unwrap();
        assert_eq!(grouping.specs[1].block_size, 32);
        let grouping = group(
            vec![spec(FULL, 8), spec(WINDOW, 3)],
            MemoryOrder::LayerOutermost,
            false,
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            (grouping.specs[1].block_size, grouping.specs[1].padded_page_bytes),
            (16, Some(65_536))
        );
    }

    #[test]
    fn without_the_hybrid_manager_windows_hold_all_tokens() {
        let specs = (0..62)
            .map(|i| spec(if (i + 1) % 6 == 0 { FULL } else { WINDOW }, 16))
            .collect();
        let grouping = group(specs, MemoryOrder::LayerOutermost, true).unwrap().unwrap();
        assert_eq!(grouping.groups.len(), 1);
        assert_eq!(grouping.bytes_per_block(|_| true).unwrap(), 8_126_464);
    }
}
