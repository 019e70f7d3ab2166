//! Groups over pages of different sizes that lie side by side in a block (DeepSeek-V4).

use super::group::Group;
use super::spec::{Spec, SpecKind, is_uniform_type};
use crate::{Error, Result};

/// Caches of one uniform type, their pages by size in order of appearance.
struct Bucket {
    layers: Vec<usize>,
    pages: Vec<(u64, Vec<usize>)>,
    /// Whether there are equally many layers of each page size.
    balanced: bool,
}

impl Bucket {
    /// Most layers that share a page size.
    fn repeats(&self) -> u64 {
        self.pages
            .iter()
            .map(|(_, layers)| layers.len() as u64)
            .max()
            .unwrap_or(0)
    }

    /// Bytes of the widest of `groups` parts.
    fn widest_bytes(&self, groups: u64) -> Result<u64> {
        self.pages.iter().try_fold(0_u64, |sum, (page, layers)| {
            (layers.len() as u64)
                .div_ceil(groups.max(1))
                .checked_mul(*page)
                .and_then(|bytes| sum.checked_add(bytes))
                .ok_or_else(|| Error::overflow("the bytes of one block"))
        })
    }
}

/// Packed groups, or `None` where all pages are of one size (vLLM 0.32.0, `v1/core/kv_cache_utils.py`,
/// `_get_packed_kv_cache_groups`).
pub(crate) fn packed_groups(specs: &[Spec]) -> Result<Option<Vec<Group>>> {
    let first = specs.first().map(Spec::page_bytes).transpose()?;
    let mut mixed = false;
    for spec in specs {
        mixed |= Some(spec.page_bytes()?) != first;
    }
    if !mixed {
        return Ok(None);
    }
    let buckets = buckets(specs)?;
    let min_repeats = buckets
        .iter()
        .filter(|bucket| bucket.balanced && bucket.pages.len() > 1)
        .map(Bucket::repeats)
        .max()
        .unwrap_or(0);
    let repeats_per_group = (min_repeats > 0).then(|| {
        let counts: Vec<u64> = buckets
            .iter()
            .filter(|bucket| bucket.balanced)
            .map(Bucket::repeats)
            .collect();
        least_padding(&counts, min_repeats)
    });
    let parts = |bucket: &Bucket| match repeats_per_group {
        Some(repeats) if bucket.balanced => bucket.repeats().div_ceil(repeats),
        _ => 1,
    };
    // States can be divided down to one a group; everything else decides how wide a block is.
    let is_state = |bucket: &Bucket| {
        let spec = &specs[bucket.layers[0]];
        spec.is_state() || spec.kind == SpecKind::Ring || (repeats_per_group.is_none() && spec.is_sliding())
    };
    let mut anchor_bytes = 0;
    for bucket in &buckets {
        let groups = if is_state(bucket) {
            bucket.layers.len() as u64
        } else {
            parts(bucket)
        };
        anchor_bytes = anchor_bytes.max(bucket.widest_bytes(groups)?);
    }
    let mut groups = Vec::new();
    for bucket in &buckets {
        let mut count = parts(bucket);
        if anchor_bytes > 0 && is_state(bucket) {
            let page = specs[bucket.layers[0]].page_bytes()?.max(1);
            let fitting = (anchor_bytes / page).max(1);
            count = count.max((bucket.layers.len() as u64).div_ceil(fitting));
        }
        let make = |layers: Vec<usize>| Group {
            spec: specs[layers[0]],
            layers,
            uniform_type: true,
        };
        if count == 1 {
            groups.push(make(bucket.layers.clone()));
            continue;
        }
        // One layer of each page size is a repeat of the pattern; repeats go round robin.
        let repeats = bucket
            .pages
            .iter()
            .map(|(_, layers)| layers.len())
            .min()
            .unwrap_or(0);
        let count = usize::try_from(count).map_err(|_| Error::overflow("the number of groups"))?;
        for start in 0..count {
            let layers: Vec<usize> = (start..repeats)
                .step_by(count)
                .flat_map(|repeat| bucket.pages.iter().map(move |(_, layers)| layers[repeat]))
                .collect();
            if !layers.is_empty() {
                groups.push(make(layers));
            }
        }
    }
    Ok(Some(groups))
}

fn buckets(specs: &[Spec]) -> Result<Vec<Bucket>> {
    let mut found: Vec<Vec<usize>> = Vec::new();
    'spec: for (index, spec) in specs.iter().enumerate() {
        for bucket in &mut found {
            // Uniformity with the first member is uniformity with all, but for windows, whose order matters.
            if is_uniform_type(bucket.iter().map(|&i| &specs[i]).take(1).chain([spec]))?
                && !mixes_window_types(&specs[bucket[0]], spec)
            {
                bucket.push(index);
                continue 'spec;
            }
        }
        found.push(vec![index]);
    }
    found
        .into_iter()
        .map(|layers| {
            let mut pages: Vec<(u64, Vec<usize>)> = Vec::new();
            for &layer in &layers {
                let page = specs[layer].page_bytes()?;
                match pages.iter_mut().find(|(known, _)| *known == page) {
                    Some((_, members)) => members.push(layer),
                    None => pages.push((page, vec![layer])),
                }
            }
            let balanced = pages.iter().all(|(_, members)| members.len() == pages[0].1.len());
            Ok(Bucket {
                layers,
                pages,
                balanced,
            })
        })
        .collect()
}

/// A latent window may join ordinary windows (it is a kind of them), never the reverse.
fn mixes_window_types(first: &Spec, other: &Spec) -> bool {
    matches!(first.kind, SpecKind::SlidingLatent { .. }) && matches!(other.kind, SpecKind::Sliding { .. })
}

/// The chunk size from `least` up that pads `counts` least; the larger of equals (`_approximate_gcd`).
fn least_padding(counts: &[u64], least: u64) -> u64 {
    let largest = counts.iter().copied().max().unwrap_or(1);
    let mut best = (u64::MAX, least);
    for size in least.max(1)..=largest {
        let padding: u64 = counts.iter().map(|&n| n.next_multiple_of(size) - n).sum();
        if padding <= best.0 {
            best = (padding, size);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_with_the_least_padding_is_taken_and_the_larger_of_equals() {
        assert_eq!(least_padding(&[20, 21, 40], 20), 21);
        assert_eq!(least_padding(&[4, 8, 12], 1), 4);
        assert_eq!(least_padding(&[5], 2), 5);
    }
}
