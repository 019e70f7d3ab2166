//! Which of a request's full blocks are named: the sparse retention of sliding-window and Mamba groups.
//!
//! Source: vLLM 0.32.0, `vllm/v1/core/single_type_kv_cache_manager.py` (`reachable_block_mask`) and
//! `kv_cache_coordinator.py` (`replay_boundaries`).

use super::config::{GroupKind, GroupSpec, Retention};

/// The positions where a later request can resume this one's prompt, and a prefix seen to be shared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Boundaries {
    tokens: [u32; 3],
    len: usize,
}

impl Boundaries {
    /// Of a prompt of `num_prompt_tokens`; `junction` is 0 if no shared prefix was detected.
    ///
    /// A resend of the prompt may use all but its last token, a longer prompt all of it; a drafter drops one block.
    pub(super) fn new(num_prompt_tokens: u32, scheduler_block_size: u32, eagle: bool, junction: u32) -> Self {
        let mut b = Self {
            tokens: [0; 3],
            len: 0,
        };
        if eagle {
            let floor = |tokens: u32| {
                (tokens / scheduler_block_size * scheduler_block_size).saturating_sub(scheduler_block_size)
            };
            b.push(floor(num_prompt_tokens.saturating_sub(1)));
            b.push(floor(num_prompt_tokens));
        } else {
            b.push(num_prompt_tokens.saturating_sub(1));
        }
        if junction != 0 {
            b.push(junction);
        }
        b
    }

    fn push(&mut self, tokens: u32) {
        self.tokens[self.len] = tokens;
        self.len += 1;
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.tokens[..self.len].iter().copied()
    }
}

/// A predicate over block positions of one group.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mask {
    /// Every block is named.
    All,
    /// Blocks in segment tails or in one of the ranges.
    Sparse {
        /// (blocks a segment, blocks of its tail, shift), if there are segments.
        segments: Option<(u32, u32, u32)>,
        /// Half-open ranges of blocks that end on a boundary.
        tails: [(u32, u32); 3],
    },
}

impl Mask {
    /// The rule for `spec`, whose hits end on multiples of `alignment` tokens.
    pub(super) fn new(
        spec: &GroupSpec,
        alignment: u32,
        eagle: bool,
        retention: Retention,
        boundaries: &Boundaries,
    ) -> Self {
        match spec.kind {
            GroupKind::Full | GroupKind::ChunkedLocal { .. } => Self::All,
            GroupKind::SlidingWindow { window_tokens } => {
                let need = contiguous_blocks(window_tokens, spec.block_size, eagle);
                Self::sliding_window(need, spec.block_size, alignment, eagle, retention, boundaries)
            }
            GroupKind::MambaAlign { .. } => Self::mamba(spec.block_size, alignment, retention, boundaries),
        }
    }

    fn sliding_window(
        need: u32,
        block_size: u32,
        alignment: u32,
        eagle: bool,
        retention: Retention,
        boundaries: &Boundaries,
    ) -> Self {
        if !alignment.is_multiple_of(block_size) {
            return Self::All;
        }
        let shift = u32::from(eagle);
        let segment_tokens = match retention {
            Retention::Dense => Some(alignment),
            Retention::ReplayOnly => None,
            Retention::Every(tokens) => Some(tokens),
        };
        let mut segments = None;
        if let Some(tokens) = segment_tokens {
            let per_segment = tokens / block_size;
            if need >= per_segment {
                return Self::All;
            }
            segments = Some((per_segment, need, shift));
        }
        let mut tails = [(0, 0); 3];
        if retention != Retention::Dense {
            for (tail, boundary) in tails.iter_mut().zip(boundaries.iter()) {
                let end = boundary / alignment * alignment / block_size + shift;
                *tail = (end.saturating_sub(need), end);
            }
        }
        Self::Sparse { segments, tails }
    }

    fn mamba(block_size: u32, alignment: u32, retention: Retention, boundaries: &Boundaries) -> Self {
        let segments = match retention {
            Retention::Dense => return Self::All,
            Retention::ReplayOnly => None,
            Retention::Every(tokens) => match tokens / block_size {
                0 | 1 => return Self::All,
                per_segment => Some((per_segment, 1, 0)),
            },
        };
        let mut tails = [(0, 0); 3];
        for (tail, boundary) in tails.iter_mut().zip(boundaries.iter()) {
            let end = boundary / alignment * alignment / block_size;
            *tail = (end.saturating_sub(1), end);
        }
        Self::Sparse { segments, tails }
    }

    /// Whether all blocks are named.
    #[inline]
    pub(super) fn keeps_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether block `i` of the request is named.
    #[inline]
    pub(super) fn keeps(&self, i: u32) -> bool {
        match self {
            Self::All => true,
            Self::Sparse { segments, tails } => {
                let in_segment = segments.is_some_and(|(per_segment, need, shift)| {
                    i >= shift && (i - shift) % per_segment >= per_segment - need
                });
                in_segment || tails.iter().any(|&(start, end)| start <= i && i < end)
            }
        }
    }
}

/// Blocks in a row that a hit needs in a sliding-window group; a drafter drops the last of one more.
pub(super) fn contiguous_blocks(window_tokens: u32, block_size: u32, eagle: bool) -> u32 {
    (window_tokens - 1).div_ceil(block_size) + u32::from(eagle)
}
