//! vLLM 0.32's block pool, one request after the other, at one capacity.
//!
//! Models `BlockPool` and `KVCacheManager` of vLLM 0.32.0 (`vllm/v1/core/block_pool.py`, `kv_cache_manager.py`) for a
//! single full-attention group when requests never overlap: lookup up to `(len - 1) / block` full blocks, touch,
//! allocation from the head of the free list, release in reverse order with unhashed blocks to the head and hashed
//! ones to the tail, two copies of a block computed twice. Does not model the null block (capacities are usable
//! blocks), overlap, generated tokens.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::pool_blocks;
use crate::trace::BlockPaths;

/// What one run counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SerialRun {
    /// Blocks hit.
    pub hit_blocks: u64,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Sum over requests of the share of the prompt that was hit.
    pub request_shares: f64,
    /// Requests with more blocks than the pool.
    pub refused: u64,
}

/// No block, no node.
const NONE: u32 = u32::MAX;

struct Pool {
    /// Links of the free list by block; entry `capacity` is both ends. `next[b] == NONE`: in use.
    next: Vec<u32>,
    prev: Vec<u32>,
    /// The node whose content a block holds under a hash.
    node: Vec<u32>,
    /// The oldest copy of each node.
    copy: Vec<u32>,
    /// Younger copies of the few nodes that have several, oldest first.
    younger: FxHashMap<u32, VecDeque<u32>>,
    ends: u32,
}

impl Pool {
    fn new(capacity: u32, nodes: usize) -> Self {
        let ends = capacity;
        // the ring ends, 0, 1, ..., capacity - 1, ends
        let next = (0..=capacity)
            .map(|b| if b == ends { 0 } else { b + 1 })
            .collect();
        let prev = (0..=capacity)
            .map(|b| if b == 0 { ends } else { b - 1 })
            .collect();
        let node = vec![NONE; capacity as usize];
        Self {
            next,
            prev,
            node,
            copy: vec![NONE; nodes],
            younger: FxHashMap::default(),
            ends,
        }
    }

    fn unlink(&mut self, block: u32) {
        let (p, n) = (self.prev[block as usize], self.next[block as usize]);
        self.next[p as usize] = n;
        self.prev[n as usize] = p;
        self.next[block as usize] = NONE;
    }

    fn link_after(&mut self, place: u32, block: u32) {
        let n = self.next[place as usize];
        self.next[place as usize] = block;
        self.prev[block as usize] = place;
        self.next[block as usize] = n;
        self.prev[n as usize] = block;
    }

    /// Takes the head of the free list and forgets what it held.
    fn take(&mut self) -> u32 {
        let block = self.next[self.ends as usize];
        self.unlink(block);
        let node = std::mem::replace(&mut self.node[block as usize], NONE);
        if node != NONE {
            match self.younger.get_mut(&node) {
                None => self.copy[node as usize] = NONE,
                Some(others) => {
                    if self.copy[node as usize] == block {
                        self.copy[node as usize] = others.pop_front().unwrap_or(NONE);
                    } else {
                        others.retain(|&b| b != block);
                    }
                    if others.is_empty() {
                        self.younger.remove(&node);
                    }
                }
            }
        }
        block
    }

    fn register(&mut self, block: u32, node: u32) {
        self.node[block as usize] = node;
        if self.copy[node as usize] == NONE {
            self.copy[node as usize] = block;
        } else {
            self.younger.entry(node).or_default().push_back(block);
        }
    }
}

/// Runs all requests through a pool of `capacity_blocks` usable blocks.
pub fn vllm_serial_run(paths: &BlockPaths, input_lens: &[u32], capacity_blocks: u64) -> SerialRun {
    let block_tokens = paths.block_tokens();
    // a pool larger than all that ever runs behaves like one of exactly that size
    let most = paths.block_accesses() + paths.len() as u64 + 1;
    let capacity = u32::try_from(capacity_blocks.min(most)).unwrap_or(u32::MAX - 1);
    let mut pool = Pool::new(capacity, paths.unique_blocks() as usize);
    let mut run = SerialRun::default();
    let mut held: Vec<u32> = Vec::new();
    for (index, &len) in input_lens.iter().enumerate() {
        let (total, full) = pool_blocks(len, block_tokens);
        if u64::from(total) > capacity_blocks {
            run.refused += 1;
            continue;
        }
        held.clear();
        let most_hits = ((len - 1) / block_tokens) as usize;
        let mut nodes = paths.get(index).iter().take(full as usize).peekable();
        while let Some(&node) = nodes.peek() {
            let block = pool.copy[node as usize];
            if held.len() == most_hits || block == NONE {
                break;
            }
            held.push(block);
            nodes.next();
        }
        for &block in &held {
            pool.unlink(block);
        }
        let hits = held.len() as u64;
        run.hit_blocks += hits;
        run.hit_tokens += hits * u64::from(block_tokens);
        run.request_shares += (hits * u64::from(block_tokens)) as f64 / f64::from(len);
        for _ in held.len()..total as usize {
            let block = pool.take();
            held.push(block);
        }
        for (&block, node) in held[usize::try_from(hits).expect("hits are counted in memory")..]
            .iter()
            .zip(nodes)
        {
            pool.register(block, node);
        }
        // released in reverse: the deepest first; unhashed blocks to the head, the others to the tail
        for &block in held.iter().rev() {
            let place = if pool.node[block as usize] == NONE {
                pool.ends
            } else {
                pool.prev[pool.ends as usize]
            };
            pool.link_after(place, block);
        }
    }
    run
}
