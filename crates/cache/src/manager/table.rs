//! The block table of one request in one group.

use crate::pool::{BlockId, NULL_BLOCK};

/// Blocks of a request in a group, and what the group's rules remember about it.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// Block of each position, null where it was given back or never needed.
    pub(super) blocks: Vec<BlockId>,
    /// Blocks at the start that need not be named any more.
    pub(super) num_cached: u32,
    /// Whether prefix hits were adopted or blocks named: from then on the request gets no hits.
    pub(super) tracked: bool,
    /// A hit that ended inside a block: its position and the shared block to copy from.
    pub(super) partial_hit: Option<(u32, BlockId)>,
    /// State of a Mamba group.
    pub(super) mamba: MambaTable,
}

/// What a Mamba group remembers about a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MambaTable {
    /// Whether blocks were allocated for it already.
    pub(super) allocated: bool,
    /// Position of the block that held the running state before the last allocation.
    pub(super) last_state: Option<u32>,
    /// Positions before this one were given back.
    pub(super) num_retired: u32,
    /// Token position and block position of a state written inside of a chunk.
    pub(super) checkpoint: Option<(u32, u32)>,
}

impl Table {
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.num_cached = 0;
        self.tracked = false;
        self.partial_hit = None;
        self.mamba = MambaTable::default();
    }

    /// Nulls positions `..end` backwards until one that is null already, handing each block to `freed` first.
    #[inline]
    pub(super) fn null_until(&mut self, end: u32) -> impl Iterator<Item = BlockId> + '_ {
        let end = (end as usize).min(self.blocks.len());
        self.blocks[..end]
            .iter_mut()
            .rev()
            .take_while(|b| **b != NULL_BLOCK)
            .map(|b| std::mem::replace(b, NULL_BLOCK))
    }
}
