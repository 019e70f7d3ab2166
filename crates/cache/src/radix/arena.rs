//! Where the keys and values of all nodes live: two parallel arrays, one span a node.
//!
//! A node's key and its slots have the same length, so one `(start, len)` pair addresses both. Splitting a node
//! only divides its span, nothing is copied; removing a node leaves a hole; when the arrays are full and at
//! least half of them is holes, the live spans are moved together (cost O(live tokens), amortised O(1) an
//! inserted token). No allocation happens once the arrays hold twice the largest number of live tokens.

use crate::error::{Error, Result};

/// Parallel arrays of tokens and slots.
#[derive(Debug, Clone)]
pub(super) struct Arena<T> {
    tokens: Vec<T>,
    slots: Vec<u32>,
    live: usize,
}

impl<T: Copy> Arena<T> {
    /// Room for twice as many tokens: address space, of which only what is used is touched.
    pub(super) fn with_capacity(live_tokens: usize) -> Result<Self> {
        let room = live_tokens.saturating_mul(2);
        let mut arena = Self {
            tokens: Vec::new(),
            slots: Vec::new(),
            live: 0,
        };
        let tokens = arena.tokens.try_reserve_exact(room);
        tokens
            .and_then(|()| arena.slots.try_reserve_exact(room))
            .map_err(|_| {
                Error::exhausted(format!(
                    "this machine has no room for a tree of {live_tokens} tokens, lower the capacity"
                ))
            })?;
        Ok(arena)
    }

    /// Whether appending `len` tokens should be preceded by [`Self::compact`].
    pub(super) fn wants_compaction(&self, len: usize) -> bool {
        let dead = self.tokens.len() - self.live;
        let end = self.tokens.len() + len;
        dead > 0 && (dead >= self.live && end > self.tokens.capacity() || end > u32::MAX as usize)
    }

    /// Appends a span and returns where it starts. The caller keeps the live tokens below 2^31 and compacts
    /// when asked to, so that every start fits 32 bits.
    pub(super) fn append(&mut self, tokens: &[T], slots: &[u32]) -> u32 {
        debug_assert_eq!(tokens.len(), slots.len());
        let start = u32::try_from(self.tokens.len()).expect("compaction keeps the arena below 2^32 tokens");
        self.tokens.extend_from_slice(tokens);
        self.slots.extend_from_slice(slots);
        self.live += tokens.len();
        start
    }

    /// Turns a span into a hole.
    pub(super) fn release(&mut self, len: u32) {
        self.live -= len as usize;
    }

    /// Moves the given spans, sorted by start, to the front, telling `moved` the new start of each.
    pub(super) fn compact(&mut self, spans: &[(u32, u32, u32)], mut moved: impl FnMut(u32, u32)) {
        let mut end = 0usize;
        for &(start, len, node) in spans {
            let (start, len) = (start as usize, len as usize);
            self.tokens.copy_within(start..start + len, end);
            self.slots.copy_within(start..start + len, end);
            moved(node, end as u32);
            end += len;
        }
        debug_assert_eq!(end, self.live);
        self.tokens.truncate(end);
        self.slots.truncate(end);
    }

    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.slots.clear();
        self.live = 0;
    }

    #[inline]
    pub(super) fn tokens(&self, start: u32, len: u32) -> &[T] {
        &self.tokens[start as usize..(start + len) as usize]
    }

    #[inline]
    pub(super) fn slots(&self, start: u32, len: u32) -> &[u32] {
        &self.slots[start as usize..(start + len) as usize]
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }
}
