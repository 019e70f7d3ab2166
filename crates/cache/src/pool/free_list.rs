//! The free queue: an intrusive doubly linked list in eviction order.

use super::BlockId;

/// Blocks without owner, the next one to be handed out first.
///
/// Links live in one array indexed by block, so that every operation is O(1) and nothing is ever allocated.
/// Index `num_blocks` is the sentinel that closes the ring.
///
/// Source of the order: vLLM 0.32.0, `vllm/v1/core/kv_cache_utils.py` (`FreeKVCacheBlockQueue`).
#[derive(Debug, Clone, Default)]
pub(crate) struct FreeList {
    links: Vec<Link>,
    len: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    prev: u32,
    next: u32,
}

/// Both links of a block that is not in the queue.
const OUT: u32 = u32::MAX;

impl FreeList {
    /// All blocks `1..num_blocks` in ascending order; block 0 stays out.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let n = num_blocks as usize;
        let mut links: Vec<Link> = (0..=num_blocks)
            .map(|i| Link {
                prev: i.wrapping_sub(1),
                next: i + 1,
            })
            .collect();
        links[0] = Link { prev: OUT, next: OUT };
        if num_blocks > 1 {
            links[1].prev = num_blocks;
            links[n] = Link {
                prev: num_blocks - 1,
                next: 1,
            };
        } else {
            links[n] = Link {
                prev: num_blocks,
                next: num_blocks,
            };
        }
        Self {
            links,
            len: num_blocks.saturating_sub(1),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    fn sentinel(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    /// Takes `n` blocks off the head and calls `visit` with each, in order. `n` must not exceed `len`.
    #[inline]
    pub(crate) fn pop_n(&mut self, n: u32, mut visit: impl FnMut(BlockId)) {
        debug_assert!(n <= self.len, "popped more blocks than are free");
        let s = self.sentinel();
        let mut at = self.links[s as usize].next;
        for _ in 0..n {
            let link = &mut self.links[at as usize];
            let next = link.next;
            *link = Link { prev: OUT, next: OUT };
            visit(at);
            at = next;
        }
        self.links[s as usize].next = at;
        self.links[at as usize].prev = s;
        self.len -= n;
    }

    /// Takes `block` out of the middle.
    #[inline]
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Link { prev, next } = self.links[block as usize];
        debug_assert!(
            prev != OUT && next != OUT,
            "block {block} is not in the free queue"
        );
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block as usize] = Link { prev: OUT, next: OUT };
        self.len -= 1;
    }

    /// Appends at the tail: evicted last.
    #[inline]
    pub(crate) fn push_back(&mut self, block: BlockId) {
        let s = self.sentinel();
        let last = self.links[s as usize].prev;
        self.insert_between(block, last, s);
    }

    /// Inserts `block` right behind `prev`, or at the head if `prev` is `None`.
    #[inline]
    pub(crate) fn insert_after(&mut self, block: BlockId, prev: Option<BlockId>) {
        let prev = prev.unwrap_or_else(|| self.sentinel());
        let next = self.links[prev as usize].next;
        self.insert_between(block, prev, next);
    }

    #[inline]
    fn insert_between(&mut self, block: BlockId, prev: u32, next: u32) {
        debug_assert_eq!(
            self.links[block as usize].prev, OUT,
            "block {block} is in the queue already"
        );
        self.links[block as usize] = Link { prev, next };
        self.links[prev as usize].next = block;
        self.links[next as usize].prev = block;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.links[block as usize].next != OUT
    }

    /// Eviction order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let s = self.sentinel();
        let mut at = self.links[s as usize].next;
        std::iter::from_fn(move || {
            (at != s).then(|| {
                let here = at;
                at = self.links[here as usize].next;
                here
            })
        })
    }
}
