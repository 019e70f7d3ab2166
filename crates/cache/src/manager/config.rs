//! What a manager is built from: groups of layers, sizes, retention.

use crate::error::{Error, Result};
use crate::pool::ReleaseOrder;

/// How the layers of a group look back, hence which blocks they need and which they may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// Every token attends to all tokens before it (also MLA).
    Full,
    /// Every token attends to the last `window_tokens` tokens, itself included.
    SlidingWindow {
        /// Window, in tokens.
        window_tokens: u32,
    },
    /// Every token attends to the tokens of its own chunk before it.
    ChunkedLocal {
        /// Chunk, in tokens.
        chunk_tokens: u32,
    },
    /// State-space layers whose state is kept at block boundaries (vLLM's mamba cache mode "align"); where prefixes are
    /// not cached, one state a request ("none").
    MambaAlign {
        /// Extra state blocks for speculative tokens.
        speculative_blocks: u32,
        /// If the kernel can write one state inside of a chunk: the token alignment it needs for that.
        checkpoint_alignment: Option<u32>,
    },
}

/// One group of layers that share a block table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// How its layers look back.
    pub kind: GroupKind,
    /// Tokens a block holds.
    pub block_size: u32,
    /// Whether it belongs to a speculative drafter, whose last matched block has to be computed again.
    pub eagle: bool,
}

impl GroupSpec {
    /// A group of ordinary attention layers.
    pub fn full(block_size: u32) -> Self {
        Self {
            kind: GroupKind::Full,
            block_size,
            eagle: false,
        }
    }

    /// A group of sliding-window layers.
    pub fn sliding_window(block_size: u32, window_tokens: u32) -> Self {
        Self {
            kind: GroupKind::SlidingWindow { window_tokens },
            block_size,
            eagle: false,
        }
    }

    /// A group of chunked-local layers.
    pub fn chunked_local(block_size: u32, chunk_tokens: u32) -> Self {
        Self {
            kind: GroupKind::ChunkedLocal { chunk_tokens },
            block_size,
            eagle: false,
        }
    }

    /// A group of state-space layers without speculation.
    pub fn mamba_align(block_size: u32) -> Self {
        Self {
            kind: GroupKind::MambaAlign {
                speculative_blocks: 0,
                checkpoint_alignment: None,
            },
            block_size,
            eagle: false,
        }
    }

    /// Whether its blocks are found by any finer boundary than their own size.
    pub(super) fn fine_grained(&self) -> bool {
        matches!(self.kind, GroupKind::Full | GroupKind::MambaAlign { .. })
    }

    /// Blocks for `num_tokens` tokens. State-space layers come here only where nothing is cached: vLLM then keeps one
    /// state a request, and one a draft (its mamba cache mode "none").
    pub(super) fn blocks_for(&self, num_tokens: u32) -> u32 {
        match self.kind {
            GroupKind::MambaAlign {
                speculative_blocks, ..
            } => u32::from(num_tokens > 0) + speculative_blocks,
            _ => num_tokens.div_ceil(self.block_size),
        }
    }

    /// Blocks a request of this group never exceeds, for kinds that recycle blocks while they go.
    pub(super) fn admission_cap(&self, max_in_flight_tokens: u32, max_model_len: u32) -> Option<u32> {
        let cap = |keep: u32, extra: u32| {
            let tokens = keep.saturating_add(max_in_flight_tokens).min(max_model_len);
            Some(tokens.div_ceil(self.block_size) + extra)
        };
        match self.kind {
            GroupKind::SlidingWindow { window_tokens } => cap(window_tokens - 1, 1),
            GroupKind::ChunkedLocal { chunk_tokens } => cap(chunk_tokens, 0),
            GroupKind::Full | GroupKind::MambaAlign { .. } => None,
        }
    }

    /// Tokens at the start that a request with `computed` tokens no longer attends to.
    #[inline]
    pub(super) fn skipped_tokens(&self, computed: u32) -> u32 {
        match self.kind {
            GroupKind::Full => 0,
            GroupKind::SlidingWindow { window_tokens } => (computed + 1).saturating_sub(window_tokens),
            GroupKind::ChunkedLocal { chunk_tokens } => computed / chunk_tokens * chunk_tokens,
            GroupKind::MambaAlign { .. } => computed.saturating_sub(1),
        }
    }
}

/// Which blocks of sliding-window and Mamba groups are worth a name (vLLM's `prefix_cache_retention_interval`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// Every block (the rule before retention existed; the flag's value `None`).
    Dense,
    /// Only what a replay of the prompt, or a prefix seen to be shared, needs: the default, flag value 0.
    #[default]
    ReplayOnly,
    /// As [`Retention::ReplayOnly`], and one window once per so many tokens.
    Every(u32),
}

/// Sizes and rules of a [`KvCacheManager`](super::KvCacheManager).
#[derive(Debug, Clone, PartialEq)]
pub struct ManagerConfig {
    /// Blocks in the pool, the null block included.
    pub num_blocks: u32,
    /// The groups, in the engine's order; all take their blocks from the one pool.
    pub groups: Vec<GroupSpec>,
    /// Longest sequence, in tokens.
    pub max_model_len: u32,
    /// Tokens that may be scheduled and not yet settled: `max_num_batched_tokens` times concurrent batches.
    pub max_in_flight_tokens: u32,
    /// Whether prefixes are shared.
    pub caching: bool,
    /// Which blocks of sparse groups are named.
    pub retention: Retention,
    /// Share of the pool kept free when a waiting request is admitted beside running ones.
    pub watermark: f64,
    /// Tokens between two keys of a request; `None`: the greatest common divisor of the groups' block sizes.
    pub hash_block_size: Option<u32>,
    /// Whether speculative drafting drops the last matched block of every group, or of the flagged ones.
    pub use_eagle: bool,
    /// Where released blocks go.
    pub release_order: ReleaseOrder,
}

impl ManagerConfig {
    /// One group of ordinary attention with prefix caching: what most models use.
    pub fn full_attention(num_blocks: u32, block_size: u32) -> Self {
        Self::new(num_blocks, vec![GroupSpec::full(block_size)])
    }

    /// Defaults of vLLM 0.32.0 for the given groups: caching, retention 0, no watermark, 8192 tokens a step.
    pub fn new(num_blocks: u32, groups: Vec<GroupSpec>) -> Self {
        Self {
            num_blocks,
            groups,
            max_model_len: 32_768,
            max_in_flight_tokens: 8192,
            caching: true,
            retention: Retention::default(),
            watermark: 0.0,
            hash_block_size: None,
            use_eagle: false,
            release_order: ReleaseOrder::default(),
        }
    }

    /// Sizes that follow from the groups.
    ///
    /// # Errors
    /// What vLLM refuses too: no group, a size of 0, sizes that do not divide, a retention interval off the grid.
    pub(super) fn resolve(&self) -> Result<Resolved> {
        if self.groups.is_empty() {
            return Err(Error::invalid(
                "groups is empty, a manager needs at least one group",
            ));
        }
        if self.max_model_len == 0 || self.max_model_len > u32::MAX / 4 {
            return Err(Error::invalid(format!(
                "max_model_len is {}, expected 1 to {}",
                self.max_model_len,
                u32::MAX / 4
            )));
        }
        if !self.watermark.is_finite() || self.watermark < 0.0 {
            return Err(Error::invalid(format!(
                "watermark is {}, expected a share of the pool that is not negative",
                self.watermark
            )));
        }
        let mut lcm = 1_u32;
        let mut gcd = 0_u32;
        for (i, group) in self.groups.iter().enumerate() {
            group.check(i)?;
            gcd = greatest_common_divisor(gcd, group.block_size);
            lcm = least_common_multiple(lcm, group.block_size).ok_or_else(|| {
                Error::overflow("the groups' block sizes have no common multiple below 2^32")
            })?;
        }
        let single = self.groups.len() == 1;
        let hash_block_size = match self.hash_block_size {
            // Nothing is named without caching; the finest unit fits every group.
            _ if !self.caching => gcd,
            None if single => lcm,
            None => gcd,
            Some(h) if single && h != lcm => {
                return Err(Error::invalid(format!(
                    "hash_block_size is {h}, with one group it must be the block size {lcm}"
                )));
            }
            Some(h) => h,
        };
        if hash_block_size == 0 || self.groups.iter().any(|g| g.block_size % hash_block_size != 0) {
            return Err(Error::invalid(format!(
                "hash_block_size is {hash_block_size}, it must divide every group's block size"
            )));
        }
        self.check_retention(lcm)?;
        let finer_mamba = self
            .groups
            .iter()
            .any(|g| matches!(g.kind, GroupKind::MambaAlign { .. }) && g.block_size > hash_block_size);
        let all_fine = self
            .groups
            .iter()
            .all(|g| g.fine_grained() || g.block_size == hash_block_size);
        let partial_hits = self.caching && !single && finer_mamba && all_fine;
        let alignment = if partial_hits { hash_block_size } else { lcm };
        for (i, group) in self.groups.iter().enumerate() {
            if matches!(group.kind, GroupKind::ChunkedLocal { .. })
                && self.caching
                && group.block_size != alignment
            {
                return Err(Error::invalid(format!(
                    "groups[{i}] is chunked local attention with blocks of {} tokens, prefix hits need the common size {alignment}",
                    group.block_size
                )));
            }
        }
        Ok(Resolved {
            scheduler_block_size: lcm,
            hash_block_size,
            alignment,
            partial_hits,
        })
    }

    fn check_retention(&self, scheduler_block_size: u32) -> Result<()> {
        let Retention::Every(tokens) = self.retention else {
            return Ok(());
        };
        let sparse = self.groups.iter().any(|g| {
            matches!(
                g.kind,
                GroupKind::SlidingWindow { .. } | GroupKind::MambaAlign { .. }
            )
        });
        if !sparse {
            return Err(Error::invalid(format!(
                "retention is every {tokens} tokens, but there is no sliding-window or Mamba group it could act on; use 0"
            )));
        }
        if tokens == 0 || tokens % scheduler_block_size != 0 {
            return Err(Error::invalid(format!(
                "retention is every {tokens} tokens, expected a positive multiple of {scheduler_block_size}"
            )));
        }
        Ok(())
    }
}

impl GroupSpec {
    fn check(&self, i: usize) -> Result<()> {
        if self.block_size == 0 || self.block_size > u32::MAX / 4 {
            return Err(Error::invalid(format!(
                "groups[{i}] has a block size of {}, expected 1 to {}",
                self.block_size,
                u32::MAX / 4
            )));
        }
        match self.kind {
            GroupKind::SlidingWindow { window_tokens: 0 } => {
                Err(Error::invalid(format!("groups[{i}] has a window of 0 tokens")))
            }
            GroupKind::ChunkedLocal { chunk_tokens: 0 } => {
                Err(Error::invalid(format!("groups[{i}] has a chunk of 0 tokens")))
            }
            GroupKind::ChunkedLocal { .. } if self.eagle => Err(Error::invalid(format!(
                "groups[{i}] is a drafter's group of chunked local attention, which has no prefix hits"
            ))),
            GroupKind::MambaAlign {
                checkpoint_alignment: Some(0),
                ..
            } => Err(Error::invalid(format!(
                "groups[{i}] has a checkpoint alignment of 0 tokens"
            ))),
            _ => Ok(()),
        }
    }
}

/// Sizes a [`ManagerConfig`] leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Least common multiple of the block sizes: prefix hits end on its multiples.
    pub(super) scheduler_block_size: u32,
    /// Tokens between two keys.
    pub(super) hash_block_size: u32,
    /// Tokens between two possible hit lengths.
    pub(super) alignment: u32,
    /// Whether hits may end inside a block.
    pub(super) partial_hits: bool,
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

fn least_common_multiple(a: u32, b: u32) -> Option<u32> {
    (a / greatest_common_divisor(a, b)).checked_mul(b)
}
