//! The longest cached prefix, per kind of group and across groups.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/single_type_kv_cache_manager.py` (`find_longest_cache_hit` of each manager) and
//! `kv_cache_coordinator.py` (the fixed point over groups).

use crate::pool::{BlockId, BlockPool, NULL_BLOCK, PoolObserver, PrefixIndex};

use super::config::{GroupKind, GroupSpec, Resolved};
use super::retention::contiguous_blocks;

/// Most distinct specifications a manager takes.
pub(super) const MAX_SPEC_GROUPS: usize = 64;

/// Groups of the same specification, looked up together: a block counts only if all of them hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpecGroup {
    pub(super) spec: GroupSpec,
    pub(super) group_ids: Vec<u32>,
    pub(super) eagle: bool,
}

impl SpecGroup {
    /// Merges equal specifications; full attention comes first, since it bounds the others.
    pub(super) fn of(groups: &[GroupSpec], eagle_groups: &[bool]) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::new();
        for (i, group) in groups.iter().enumerate() {
            let spec = GroupSpec {
                eagle: false,
                ..*group
            };
            match merged.iter_mut().find(|m| m.spec == spec) {
                Some(m) => {
                    m.group_ids.push(i as u32);
                    m.eagle |= eagle_groups[i];
                }
                None => merged.push(Self {
                    spec,
                    group_ids: vec![i as u32],
                    eagle: eagle_groups[i],
                }),
            }
        }
        merged.sort_by_key(|m| m.spec.kind != GroupKind::Full);
        merged
    }
}

/// The result of a lookup; keep one and pass it again, its vectors are reused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hit {
    /// Tokens that need not be computed.
    pub num_tokens: u32,
    /// Where a prefix shared with another request ends that some sparse group has not cached yet, 0 if none; pass it
    /// to the allocations of this request, so that the next one finds it.
    pub shared_prefix_boundary: u32,
    /// The hit blocks of each group, null where a group no longer needs the block.
    pub blocks: Vec<Vec<BlockId>>,
}

impl Hit {
    pub(super) fn clear(&mut self, num_groups: usize) {
        self.num_tokens = 0;
        self.shared_prefix_boundary = 0;
        self.blocks.resize_with(num_groups, Vec::new);
        for blocks in &mut self.blocks {
            blocks.clear();
        }
    }

    /// Whether no group has a block.
    pub fn is_empty(&self) -> bool {
        self.blocks.iter().all(Vec::is_empty)
    }
}

/// One lookup: the pool, the request's keys, and how far it may go.
struct Search<'a, I: PrefixIndex, O> {
    pool: &'a BlockPool<I, O>,
    keys: &'a [I::Key],
    hash_block_size: u32,
    alignment: u32,
}

impl<I: PrefixIndex, O: PoolObserver<I::Key>> Search<'_, I, O> {
    /// Whether every group holds `key`; their blocks replace or extend the lists by `put`.
    #[inline]
    fn cached_in_all(
        &self,
        group_ids: &[u32],
        key: I::Key,
        blocks: &mut [Vec<BlockId>],
        mut put: impl FnMut(&mut Vec<BlockId>, BlockId),
    ) -> bool {
        if let [only] = group_ids {
            return match self.pool.cached(*only, key) {
                Some(block) => {
                    put(&mut blocks[*only as usize], block);
                    true
                }
                None => false,
            };
        }
        if group_ids.iter().any(|&g| self.pool.cached(g, key).is_none()) {
            return false;
        }
        for &g in group_ids {
            if let Some(block) = self.pool.cached(g, key) {
                put(&mut blocks[g as usize], block);
            }
        }
        true
    }

    /// Key of block `i` of `block_size` tokens: the chain at its end.
    #[inline]
    fn block_key(&self, i: u32, block_size: u32) -> I::Key {
        self.keys[((i + 1) * (block_size / self.hash_block_size) - 1) as usize]
    }

    fn find(
        &self,
        group: &SpecGroup,
        max_tokens: u32,
        drop_eagle_block: bool,
        blocks: &mut [Vec<BlockId>],
    ) -> u32 {
        for &g in &group.group_ids {
            blocks[g as usize].clear();
        }
        match group.spec.kind {
            GroupKind::Full => self.full(group, max_tokens, drop_eagle_block, blocks),
            GroupKind::SlidingWindow { window_tokens } => {
                self.sliding_window(group, window_tokens, max_tokens, drop_eagle_block, blocks)
            }
            GroupKind::ChunkedLocal { chunk_tokens } => {
                self.chunked_local(group, chunk_tokens, max_tokens, blocks)
            }
            GroupKind::MambaAlign { .. } => self.mamba(group, max_tokens, blocks),
        }
    }

    /// Left to right until the first miss; then, where hits may end inside a block, the longest cached part of it.
    fn full(
        &self,
        group: &SpecGroup,
        max_tokens: u32,
        drop_eagle_block: bool,
        blocks: &mut [Vec<BlockId>],
    ) -> u32 {
        let block_size = group.spec.block_size;
        let scale = block_size / self.hash_block_size;
        let limit = (max_tokens / block_size).min(self.keys.len() as u32 / scale);
        let mut n = 0;
        while n < limit
            && self.cached_in_all(&group.group_ids, self.block_key(n, block_size), blocks, Vec::push)
        {
            n += 1;
        }
        let mut hit = n * block_size;
        if self.alignment < block_size {
            let parts = block_size / self.alignment;
            let first = n * parts;
            let last = (first + parts - 1)
                .min(max_tokens / self.alignment)
                .min(self.keys.len() as u32);
            for part in (first..last).rev() {
                if self.cached_in_all(&group.group_ids, self.keys[part as usize], blocks, Vec::push) {
                    hit = (part + 1) * self.alignment;
                    break;
                }
            }
        }
        if drop_eagle_block && hit > 0 {
            hit -= self.alignment.min(block_size);
        }
        hit -= hit % self.alignment;
        for &g in &group.group_ids {
            blocks[g as usize].truncate(hit.div_ceil(block_size) as usize);
        }
        hit
    }

    /// Right to left for a window of blocks in a row; failing that, the run at the very start.
    fn sliding_window(
        &self,
        group: &SpecGroup,
        window_tokens: u32,
        max_tokens: u32,
        drop_eagle_block: bool,
        blocks: &mut [Vec<BlockId>],
    ) -> u32 {
        let block_size = group.spec.block_size;
        let need = contiguous_blocks(window_tokens, block_size, drop_eagle_block);
        let max_blocks = max_tokens / block_size;
        for &g in &group.group_ids {
            blocks[g as usize].resize(max_blocks as usize, NULL_BLOCK);
        }
        let aligned = |n: u32| (n * block_size).is_multiple_of(self.alignment);
        let mut run = 0;
        let mut len = None;
        for i in (0..max_blocks).rev() {
            let key = self.block_key(i, block_size);
            let cached = group
                .group_ids
                .iter()
                .all(|&g| self.pool.cached(g, key).is_some());
            if !cached {
                run = 0;
                continue;
            }
            if run == 0 && !aligned(if drop_eagle_block { i } else { i + 1 }) {
                continue;
            }
            self.cached_in_all(&group.group_ids, key, blocks, |list, block| {
                list[i as usize] = block;
            });
            run += 1;
            if run >= need {
                len = Some(i + run);
                break;
            }
        }
        let mut len = len.unwrap_or_else(|| {
            let mut len = run;
            while !aligned(len) {
                len -= 1;
            }
            len
        });
        if drop_eagle_block && len > 0 {
            len -= 1;
            while !aligned(len) {
                len -= 1;
            }
        }
        for &g in &group.group_ids {
            blocks[g as usize].truncate(len as usize);
        }
        len * block_size
    }

    /// Blocks before the current chunk count without being looked at, then left to right.
    fn chunked_local(
        &self,
        group: &SpecGroup,
        chunk_tokens: u32,
        max_tokens: u32,
        blocks: &mut [Vec<BlockId>],
    ) -> u32 {
        let block_size = group.spec.block_size;
        let max_blocks = max_tokens / block_size;
        let start = max_tokens / chunk_tokens * chunk_tokens / block_size;
        for &g in &group.group_ids {
            blocks[g as usize].resize(start as usize, NULL_BLOCK);
        }
        let mut n = start;
        while n < max_blocks
            && self.cached_in_all(&group.group_ids, self.block_key(n, block_size), blocks, Vec::push)
        {
            n += 1;
        }
        n * block_size
    }

    /// Right to left for the last cached state; what lies before it is not needed.
    fn mamba(&self, group: &SpecGroup, max_tokens: u32, blocks: &mut [Vec<BlockId>]) -> u32 {
        let block_size = group.spec.block_size;
        let (step, units) = if self.alignment < block_size {
            (
                self.alignment,
                (max_tokens / self.alignment).min(self.keys.len() as u32),
            )
        } else {
            (block_size, max_tokens / block_size)
        };
        for unit in (0..units).rev() {
            let tokens = (unit + 1) * step;
            let key = self.keys[(tokens / self.hash_block_size - 1) as usize];
            if !group
                .group_ids
                .iter()
                .all(|&g| self.pool.cached(g, key).is_some())
            {
                continue;
            }
            if step == block_size && tokens % self.alignment != 0 {
                continue;
            }
            let before = (tokens.div_ceil(block_size) - 1) as usize;
            self.cached_in_all(&group.group_ids, key, blocks, |list, block| {
                list.resize(before, NULL_BLOCK);
                list.push(block);
            });
            return tokens;
        }
        0
    }
}

/// What the coordinator knows about a lookup besides the pool.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    pub(super) spec_groups: Vec<SpecGroup>,
    pub(super) sizes: Resolved,
    pub(super) num_groups: usize,
}

impl Lookup {
    /// Finds the longest prefix of at most `max_tokens` tokens that all groups can resume from.
    pub(super) fn run<I: PrefixIndex, O: PoolObserver<I::Key>>(
        &self,
        pool: &BlockPool<I, O>,
        keys: &[I::Key],
        max_tokens: u32,
        hit: &mut Hit,
    ) {
        hit.clear(self.num_groups);
        let search = Search {
            pool,
            keys,
            hash_block_size: self.sizes.hash_block_size,
            alignment: self.sizes.alignment,
        };
        if self.num_groups == 1 {
            let group = &self.spec_groups[0];
            hit.num_tokens = search.find(group, max_tokens, group.eagle, &mut hit.blocks);
            return;
        }
        let (tokens, longest) = self.fixed_point(&search, max_tokens, hit);
        hit.num_tokens = tokens;
        // The junction is where the longest single group ends; below the common hit there is nothing to note.
        hit.shared_prefix_boundary = if longest > tokens { longest } else { 0 };
    }

    /// Each kind accepts the candidate length or shortens it, until none does.
    fn fixed_point<I: PrefixIndex, O: PoolObserver<I::Key>>(
        &self,
        search: &Search<'_, I, O>,
        max_tokens: u32,
        hit: &mut Hit,
    ) -> (u32, u32) {
        let mut candidate = max_tokens;
        let mut longest = 0;
        // Lengths of the full-attention groups, once known: they only have to be looked up once.
        let mut full_tokens = [u32::MAX; MAX_SPEC_GROUPS];
        let mut verified = 0_u64;
        let simple = self.spec_groups.len() == 2 && self.spec_groups[0].spec.kind == GroupKind::Full;
        loop {
            let mut current = candidate;
            for (i, group) in self.spec_groups.iter().enumerate() {
                let full = group.spec.kind == GroupKind::Full;
                if full && full_tokens[i] != u32::MAX {
                    current = current.min(full_tokens[i]);
                    continue;
                }
                let drop = group.eagle && verified & (1 << i) == 0;
                let mut limit = current;
                if drop && !matches!(group.spec.kind, GroupKind::MambaAlign { .. }) {
                    let fine = self.sizes.partial_hits && group.spec.fine_grained();
                    let margin = if fine && group.spec.block_size > self.sizes.hash_block_size {
                        self.sizes.hash_block_size
                    } else {
                        group.spec.block_size
                    };
                    limit = (current + margin).min(search.keys.len() as u32 * self.sizes.hash_block_size);
                }
                let tokens = search.find(group, limit, drop, &mut hit.blocks);
                if drop {
                    verified |= 1 << i;
                } else if tokens < current {
                    verified = 0;
                }
                current = tokens;
                if full {
                    full_tokens[i] = tokens;
                }
                longest = longest.max(current);
            }
            if current >= candidate {
                break;
            }
            candidate = current;
            if simple {
                break;
            }
        }
        for group in &self.spec_groups {
            if group.spec.kind == GroupKind::Full {
                for &g in &group.group_ids {
                    hit.blocks[g as usize].truncate(candidate.div_ceil(group.spec.block_size) as usize);
                }
            }
        }
        (candidate, longest)
    }
}
