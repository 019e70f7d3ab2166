//! The free queue: an intrusive doubly linked list in eviction order.

use super::BlockId;

/// Blocks without owner, the next one to be handed out first.
///
/// Links live in one array indexed by block, so that every operation is O(1) and nothing is ever allocated.
/// Index `num_blocks` is the sentinel that closes the ring. What else the pool knows of a block stands beside its links:
/// a block that is handed out or given back costs one cache line.
///
/// Source of the order: vLLM 0.32.0, `vllm/v1/core/kv_cache_utils.py` (`FreeKVCacheBlockQueue`).
#[derive(Debug, Clone, Default)]
pub(crate) struct FreeList {
    links: Vec<Node>,
    len: u32,
}

/// A block's place in the queue and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    prev: u32,
    next: u32,
    /// Owners.
    pub(crate) refs: u32,
    /// Prefix tokens that the block's primary name covers, 0 if the block has no name, and [`SHARED`].
    name: u32,
}

/// Bit of [`Node::name`]: other entries may have a name of this block, too.
const SHARED: u32 = 1 << 31;

/// Most tokens that a name covers.
pub(super) const MAX_TOKENS: u32 = SHARED - 1;

impl Node {
    /// Prefix tokens that the block's primary name covers; 0: the block has no name.
    #[inline]
    pub(crate) fn hash_tokens(&self) -> u32 {
        self.name & !SHARED
    }

    /// The block gets its primary name, or loses all (0).
    #[inline]
    pub(crate) fn set_hash_tokens(&mut self, tokens: u32) {
        debug_assert_eq!(tokens & SHARED, 0, "a name covers less than 2^31 tokens");
        self.name = tokens;
    }

    /// Another entry has a name of this block, too.
    #[inline]
    pub(crate) fn set_shared(&mut self) {
        self.name |= SHARED;
    }

    /// Takes the name off: whether there was one, and whether it may be shared.
    #[inline]
    pub(crate) fn take_name(&mut self) -> (bool, bool) {
        let name = std::mem::take(&mut self.name);
        (name != 0, name & SHARED != 0)
    }
}

/// Where a block goes that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not in the queue: it has other owners.
    Nowhere,
    /// Handed out last.
    Tail,
    /// Handed out first.
    Head,
}

/// Both links of a block that is not in the queue.
const OUT: u32 = u32::MAX;

impl FreeList {
    /// All blocks `1..num_blocks` in ascending order; block 0 stays out.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let n = num_blocks as usize;
        let mut links: Vec<Node> = (0..=num_blocks)
            .map(|i| Node {
                prev: i.wrapping_sub(1),
                next: i + 1,
                refs: 0,
                name: 0,
            })
            .collect();
        (links[0].prev, links[0].next) = (OUT, OUT);
        if num_blocks > 1 {
            links[1].prev = num_blocks;
            (links[n].prev, links[n].next) = (num_blocks - 1, 1);
        } else {
            (links[n].prev, links[n].next) = (num_blocks, num_blocks);
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

    /// Blocks of the pool, the null block included.
    #[inline]
    pub(crate) fn num_blocks(&self) -> u32 {
        self.sentinel()
    }

    /// The state of a block.
    #[inline]
    pub(crate) fn node(&self, block: BlockId) -> &Node {
        &self.links[block as usize]
    }

    /// The state of a block, to change.
    #[inline]
    pub(crate) fn node_mut(&mut self, block: BlockId) -> &mut Node {
        &mut self.links[block as usize]
    }

    /// No block has a name any more.
    pub(crate) fn forget_names(&mut self) {
        for node in &mut self.links {
            node.set_hash_tokens(0);
        }
    }

    #[inline]
    fn sentinel(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    /// Takes `n` blocks off the head and calls `visit` with each and its state, in order. `n` must not exceed `len`.
    #[inline]
    pub(crate) fn pop_n(&mut self, n: u32, mut visit: impl FnMut(BlockId, &mut Node)) {
        debug_assert!(n <= self.len, "popped more blocks than are free");
        let s = self.sentinel();
        let mut at = self.links[s as usize].next;
        for _ in 0..n {
            let link = &mut self.links[at as usize];
            let next = link.next;
            (link.prev, link.next) = (OUT, OUT);
            visit(at, link);
            at = next;
        }
        self.links[s as usize].next = at;
        self.links[at as usize].prev = s;
        self.len -= n;
    }

    /// Takes `block` out of the middle.
    #[inline]
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Node { prev, next, .. } = self.links[block as usize];
        debug_assert!(
            prev != OUT && next != OUT,
            "block {block} is not in the free queue"
        );
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        let node = &mut self.links[block as usize];
        (node.prev, node.next) = (OUT, OUT);
        self.len -= 1;
    }

    /// Puts blocks where `place` says, in order: at the tail, or at the head behind those that went there before them.
    #[inline]
    pub(crate) fn put_back(
        &mut self,
        blocks: impl IntoIterator<Item = BlockId>,
        mut place: impl FnMut(BlockId, &mut Node) -> Place,
    ) {
        let s = self.sentinel();
        let (mut tail, mut last_at_head, mut count) = (self.links[s as usize].prev, None, 0);
        for block in blocks {
            let node = &mut self.links[block as usize];
            match place(block, node) {
                Place::Nowhere => {}
                Place::Tail => {
                    debug_assert_eq!(node.prev, OUT, "block {block} is in the queue already");
                    node.prev = tail;
                    // the ring is closed behind the last one only
                    self.links[tail as usize].next = block;
                    tail = block;
                    count += 1;
                }
                Place::Head => {
                    self.links[tail as usize].next = s;
                    self.links[s as usize].prev = tail;
                    self.insert_after(block, last_at_head);
                    last_at_head = Some(block);
                    tail = self.links[s as usize].prev;
                }
            }
        }
        self.links[tail as usize].next = s;
        self.links[s as usize].prev = tail;
        self.len += count;
    }

    /// Inserts `block` right behind `prev`, or at the head if `prev` is `None`.
    #[inline]
    fn insert_after(&mut self, block: BlockId, prev: Option<BlockId>) {
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
        let node = &mut self.links[block as usize];
        (node.prev, node.next) = (prev, next);
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
