//! Belady's bound: the most hits that any eviction rule can have at one capacity.
//!
//! The blocks of all requests, in order, are one stream of accesses. Evicting the block whose next use lies furthest
//! in the future is optimal for it (Belady 1966); a block that is used again later than all cached ones is not
//! admitted. A request that uses a block uses all blocks before it, so a parent is never used again later than its
//! child, and the optimum keeps whole prefixes (ties evict the deeper block): the bound holds for prefix caches too.

use std::collections::BinaryHeap;

use crate::trace::BlockPaths;

/// Never used again.
const NEVER: u64 = u64::MAX;

/// The most blocks that can be hit with room for `capacity_blocks`. Takes about 100 ns a block access.
pub fn belady_hit_blocks(paths: &BlockPaths, capacity_blocks: u64) -> u64 {
    let nodes = paths.unique_blocks() as usize;
    // next use of each access: the request number; walking backwards
    let requests = paths.len();
    let mut next_request = vec![NEVER; nodes];
    let total = usize::try_from(paths.block_accesses()).expect("accesses of a trace in memory");
    let mut next_use = vec![0u64; total];
    let mut at = total;
    for index in (0..requests).rev() {
        let path = paths.get(index);
        let start = at - path.len();
        for (offset, node) in path.iter().enumerate() {
            next_use[start + offset] = next_request[node as usize];
            next_request[node as usize] = index as u64;
        }
        at = start;
    }
    // Cached blocks by next use, furthest first; entries of blocks used since are stale and skipped. The depth breaks
    // ties between blocks of the same next request: deeper goes first.
    let mut cached: Vec<u64> = vec![0; nodes]; // next use + 1 of a cached block, 0 if not cached
    let mut heap: BinaryHeap<(u64, u32, u32)> = BinaryHeap::new();
    let (mut size, mut hits) = (0u64, 0u64);
    let mut access = 0;
    for index in 0..requests {
        for (depth, node) in (0u32..).zip(paths.get(index).iter()) {
            let next = next_use[access];
            access += 1;
            let slot = node as usize;
            if cached[slot] != 0 {
                hits += 1;
                cached[slot] = 0;
                size -= 1;
            }
            if next == NEVER {
                continue; // no reason to keep it
            }
            cached[slot] = next + 1;
            size += 1;
            heap.push((next, depth, node));
            while size > capacity_blocks {
                let Some((use_at, _, victim)) = heap.pop() else {
                    break;
                };
                if cached[victim as usize] == use_at + 1 {
                    cached[victim as usize] = 0;
                    size -= 1;
                }
            }
        }
    }
    hits
}
