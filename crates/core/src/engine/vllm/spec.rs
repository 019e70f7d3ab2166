//! What one cache publishes to vLLM's cache manager: its kind, block size and page.

use super::kv_dtype::KvDtype;
use super::state::StateShape;
use crate::units::grouped;
use crate::{Error, Result};

/// The rule by which a cache takes blocks (vLLM 0.32.0, the spec classes of `v1/kv_cache_interface.py`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecKind {
    /// All tokens (`FullAttentionSpec`). A window or chunk that is only computed, not used to free blocks, is kept.
    Full {
        /// Window of a promoted sliding-window layer, in tokens.
        window: Option<u64>,
        /// Chunk of a promoted chunked-local layer, in tokens.
        chunk: Option<u64>,
    },
    /// All tokens, one latent each (`MLAAttentionSpec`); indexers are of this kind too.
    Latent {
        /// Whether this is an indexer's key cache.
        indexer: bool,
    },
    /// The last `window` tokens (`SlidingWindowSpec`).
    Sliding {
        /// Tokens in the window.
        window: u64,
        /// Tokens kept behind the window for drafters of several modules.
        extra: u64,
    },
    /// The last `window` tokens, one latent each (`SlidingWindowMLASpec`).
    SlidingLatent {
        /// Tokens in the window.
        window: u64,
        /// Tokens kept behind the window for drafters of several modules.
        extra: u64,
        /// Whether it is computed again behind a cached prefix instead of being cached with it (DeepSeek-V4.1).
        replayed: bool,
    },
    /// The current chunk (`ChunkedLocalAttentionSpec`).
    Chunked {
        /// Tokens in a chunk.
        chunk: u64,
    },
    /// A constant number of blocks (`MambaSpec`).
    State {
        /// The tensors.
        shape: StateShape,
        /// Blocks held for draft tokens.
        speculative_blocks: u64,
    },
    /// The encoder's output (`CrossAttentionSpec`).
    Cross,
    /// One block a request, overwritten in a circle (`CircularBufferSpec`).
    Ring,
}

/// Required alignment of the distance between two blocks of one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StrideAlignment {
    /// None.
    Any,
    /// A number of bytes.
    Bytes(u64),
    /// Whole kernel blocks of up to this many tokens, if the block is split into such.
    KernelBlock(u64),
}

/// The published spec of one cache on one rank.
///
/// Two caches can share a group's block table if and only if their specs are equal (up to the window kept in
/// [`SpecKind::Full`]), so every property the engine compares is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Kind and its parameters.
    pub kind: SpecKind,
    /// Tokens in a block.
    pub block_size: u64,
    /// Key/value heads on this rank.
    pub kv_heads: u64,
    /// Elements of a key.
    pub head_size: u64,
    /// Elements of a value, 0 for latents.
    pub head_size_v: u64,
    /// Entries a token.
    pub slots: u64,
    /// Bytes of one entry; of the whole state for recurrent layers.
    pub content_bytes: u64,
    /// Tokens that one stored entry covers.
    pub tokens_per_state: u64,
    /// Element format.
    pub kv_dtype: KvDtype,
    /// Page size that replaces the natural one.
    pub padded_page_bytes: Option<u64>,
    /// Page sizes are rounded up to a multiple of this at creation (DeepSeek-V4), 1 otherwise.
    pub page_alignment_bytes: u64,
    /// Alignment of block strides.
    pub stride: StrideAlignment,
    /// Whether decode context parallelism spreads its tokens over ranks.
    pub dcp_sharded: bool,
}

impl Spec {
    /// Natural page: entries × states × bytes of one.
    ///
    /// # Errors
    /// If it overflows.
    pub fn unpadded_page_bytes(&self) -> Result<u64> {
        if matches!(self.kind, SpecKind::State { .. }) {
            return Ok(self.content_bytes);
        }
        let states = self.block_size / self.tokens_per_state.max(1);
        self.slots
            .checked_mul(states)
            .and_then(|entries| entries.checked_mul(self.content_bytes))
            .ok_or_else(|| Error::overflow("the bytes of one layer's block"))
    }

    /// Page in bytes: one layer's part of one block.
    ///
    /// # Errors
    /// If it overflows.
    pub fn page_bytes(&self) -> Result<u64> {
        match self.padded_page_bytes {
            Some(padded) => Ok(padded),
            None => self.unpadded_page_bytes(),
        }
    }

    /// How [`Self::page_bytes`] comes about, with its numbers.
    pub fn page_formula(&self) -> String {
        let natural = if let SpecKind::State { shape, .. } = self.kind {
            shape.formula()
        } else {
            let tokens = match self.tokens_per_state {
                0 | 1 => format!("{} tokens", self.block_size),
                n => format!("{} tokens / {n} a state", self.block_size),
            };
            let heads = match self.slots {
                1 if self.head_size_v == 0 => String::new(),
                1 => " x 1 head".to_owned(),
                n => format!(" x {n} heads"),
            };
            let entry = match (self.kind, self.head_size_v) {
                (SpecKind::Latent { indexer: true }, _) => "an index key".to_owned(),
                (_, 0) => format!("one vector of {} elements", self.head_size),
                (_, v) => format!("a key of {} and a value of {v} elements", self.head_size),
            };
            format!("{tokens}{heads} x {} B ({entry})", grouped(self.content_bytes))
        };
        match self.padded_page_bytes {
            Some(padded) => format!("{natural}, padded to {} B", grouped(padded)),
            None => natural,
        }
    }

    /// The same cache with another block size.
    #[must_use]
    pub const fn with_block_size(mut self, block_size: u64) -> Self {
        self.block_size = block_size;
        self
    }

    /// The same cache with a page padded to `bytes`.
    #[must_use]
    pub const fn padded_to(mut self, bytes: u64) -> Self {
        self.padded_page_bytes = Some(bytes);
        self
    }

    /// Applies [`Self::page_alignment_bytes`], as the spec's constructor does.
    ///
    /// # Errors
    /// If the page overflows.
    pub fn aligned(self) -> Result<Self> {
        let natural = self.unpadded_page_bytes()?;
        let rounded = natural
            .checked_next_multiple_of(self.page_alignment_bytes.max(1))
            .ok_or_else(|| Error::overflow("the bytes of one layer's block"))?;
        Ok(if rounded == natural {
            self
        } else {
            self.padded_to(rounded)
        })
    }

    /// Bytes that the distance between two blocks must be a multiple of (`get_block_stride_alignment`).
    ///
    /// # Errors
    /// If the page of a kernel block overflows.
    pub fn stride_alignment_bytes(&self) -> Result<u64> {
        match self.stride {
            StrideAlignment::Any => Ok(1),
            StrideAlignment::Bytes(bytes) => Ok(bytes.max(1)),
            StrideAlignment::KernelBlock(tokens) => {
                let kernel = gcd(tokens, self.block_size);
                if kernel == self.block_size {
                    Ok(1)
                } else if self.page_alignment_bytes > 1 {
                    // The smaller block is a spec of its own, and filled up by itself.
                    let own = Self {
                        padded_page_bytes: None,
                        ..*self
                    };
                    Ok(own.with_block_size(kernel).aligned()?.page_bytes()?.max(1))
                } else {
                    Ok(self.with_block_size(kernel).page_bytes()?.max(1))
                }
            }
        }
    }

    /// Distance between two blocks of this cache where layers lie one after the other.
    ///
    /// # Errors
    /// If it overflows.
    pub fn block_stride_bytes(&self) -> Result<u64> {
        self.page_bytes()?
            .checked_next_multiple_of(self.stride_alignment_bytes()?)
            .ok_or_else(|| Error::overflow("the bytes of one layer's block"))
    }

    /// Whether the cache keeps all tokens and is of the full-attention base type.
    pub const fn is_full_type(&self) -> bool {
        matches!(self.kind, SpecKind::Full { .. } | SpecKind::Latent { .. })
    }

    /// Whether this is a recurrent state.
    pub const fn is_state(&self) -> bool {
        matches!(self.kind, SpecKind::State { .. })
    }

    /// Whether this is a sliding window of either type.
    pub const fn is_sliding(&self) -> bool {
        matches!(
            self.kind,
            SpecKind::Sliding { .. } | SpecKind::SlidingLatent { .. }
        )
    }

    /// Whether its blocks are looked for when a prefix is (`prefix_cacheable`): not where they are overwritten in a circle,
    /// or computed again.
    pub const fn is_found_again(&self) -> bool {
        !matches!(
            self.kind,
            SpecKind::Ring | SpecKind::SlidingLatent { replayed: true, .. }
        )
    }

    /// Name of the kind as reports show it.
    pub const fn kind_name(&self) -> &'static str {
        match self.kind {
            SpecKind::Full { .. } => "full_attention",
            SpecKind::Latent { indexer: false } => "mla_attention",
            SpecKind::Latent { indexer: true } => "indexer",
            SpecKind::Sliding { .. } => "sliding_window",
            SpecKind::SlidingLatent { .. } => "sliding_window_mla",
            SpecKind::Chunked { .. } => "chunked_local_attention",
            SpecKind::State { .. } => "mamba",
            SpecKind::Cross => "cross_attention",
            SpecKind::Ring => "circular_buffer",
        }
    }

    /// Merges two specs that can share a group, `None` if they cannot (the `merge` class methods).
    pub fn merge(self, other: Self) -> Option<Self> {
        if self == other {
            return Some(self);
        }
        let (
            SpecKind::Full { window, chunk },
            SpecKind::Full {
                window: window2,
                chunk: chunk2,
            },
        ) = (self.kind, other.kind)
        else {
            return None;
        };
        let agree = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        };
        let (window, chunk) = (agree(window, window2)?, agree(chunk, chunk2)?);
        if window.is_some() && chunk.is_some() {
            return None;
        }
        let merged = Self {
            kind: SpecKind::Full { window, chunk },
            ..self
        };
        (merged
            == Self {
                kind: merged.kind,
                ..other
            })
        .then_some(merged)
    }
}

/// Greatest common divisor; `gcd(0, n)` is `n`.
pub(crate) const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Least common multiple.
///
/// # Errors
/// If it overflows.
pub(crate) fn lcm(a: u64, b: u64) -> Result<u64> {
    if a == 0 || b == 0 {
        return Ok(0);
    }
    (a / gcd(a, b))
        .checked_mul(b)
        .ok_or_else(|| Error::overflow("the least common multiple of the block sizes"))
}

/// Whether all specs are of one uniform type: same block size and base type, pages may differ
/// (`UniformTypeKVCacheSpecs.is_uniform_type`).
pub(crate) fn is_uniform_type<'a>(mut specs: impl Iterator<Item = &'a Spec>) -> Result<bool> {
    let Some(first) = specs.next() else {
        return Ok(true);
    };
    let page = first.page_bytes()?;
    for spec in specs {
        let same = spec.block_size == first.block_size
            && spec.dcp_sharded == first.dcp_sharded
            && match (first.kind, spec.kind) {
                (
                    SpecKind::Sliding { window, .. },
                    SpecKind::Sliding { window: other, .. } | SpecKind::SlidingLatent { window: other, .. },
                )
                | (SpecKind::SlidingLatent { window, .. }, SpecKind::SlidingLatent { window: other, .. }) => {
                    window == other && first.is_found_again() == spec.is_found_again()
                }
                (SpecKind::Chunked { chunk }, SpecKind::Chunked { chunk: other }) => chunk == other,
                (
                    SpecKind::State {
                        shape,
                        speculative_blocks,
                    },
                    SpecKind::State {
                        shape: shape2,
                        speculative_blocks: blocks2,
                    },
                ) => {
                    speculative_blocks == blocks2
                        && shape.checkpoint_blocks == shape2.checkpoint_blocks
                        && spec.page_bytes()? == page
                }
                (SpecKind::Cross, SpecKind::Cross) | (SpecKind::Ring, SpecKind::Ring) => true,
                _ => first.is_full_type() && spec.is_full_type(),
            };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A 16-bit attention spec with `heads` heads of 128 elements and blocks of 16 tokens.
    pub(crate) fn spec(kind: SpecKind, heads: u64) -> Spec {
        Spec {
            kind,
            block_size: 16,
            kv_heads: heads,
            head_size: 128,
            head_size_v: 128,
            slots: heads,
            content_bytes: 512,
            tokens_per_state: 1,
            kv_dtype: KvDtype::Auto,
            padded_page_bytes: None,
            page_alignment_bytes: 1,
            stride: StrideAlignment::Any,
            dcp_sharded: true,
        }
    }

    pub(crate) const FULL: SpecKind = SpecKind::Full {
        window: None,
        chunk: None,
    };

    #[test]
    fn pages_have_the_sizes_that_the_engine_computes() {
        // Values computed by vLLM 0.32.0's own spec objects.
        assert_eq!(spec(FULL, 8).page_bytes().unwrap(), 65_536);
        let asymmetric = Spec {
            content_bytes: (192 + 128) * 2,
            ..spec(FULL, 4)
        };
        assert_eq!(asymmetric.page_bytes().unwrap(), 40_960);
        let latent = Spec {
            content_bytes: 1152,
            block_size: 64,
            ..spec(SpecKind::Latent { indexer: false }, 1)
        };
        assert_eq!(latent.page_bytes().unwrap(), 73_728);
        let indexer = Spec {
            content_bytes: 132,
            ..latent
        };
        assert_eq!(indexer.page_bytes().unwrap(), 8448);
        let v4 = |tokens_per_state| {
            Spec {
                content_bytes: 584,
                block_size: 256,
                tokens_per_state,
                page_alignment_bytes: 576,
                ..latent
            }
            .aligned()
            .unwrap()
            .page_bytes()
            .unwrap()
        };
        assert_eq!((v4(4), v4(128)), (37_440, 1728));
    }

    #[test]
    fn a_page_says_how_it_comes_about() {
        assert_eq!(
            spec(FULL, 8).page_formula(),
            "16 tokens x 8 heads x 512 B (a key of 128 and a value of 128 elements)"
        );
        let latent = Spec {
            content_bytes: 584,
            block_size: 256,
            head_size: 512,
            head_size_v: 0,
            tokens_per_state: 4,
            page_alignment_bytes: 576,
            ..spec(SpecKind::Latent { indexer: false }, 1)
        };
        assert_eq!(
            latent.aligned().unwrap().page_formula(),
            "256 tokens / 4 a state x 584 B (one vector of 512 elements), padded to 37,440 B"
        );
    }

    #[test]
    fn promoted_windows_merge_with_full_attention_but_not_with_another_window() {
        let full = spec(FULL, 8);
        let windowed = spec(
            SpecKind::Full {
                window: Some(1024),
                chunk: None,
            },
            8,
        );
        let other = spec(
            SpecKind::Full {
                window: Some(512),
                chunk: None,
            },
            8,
        );
        assert_eq!(full.merge(windowed), Some(windowed));
        assert_eq!(windowed.merge(other), None);
        assert_eq!(full.merge(spec(FULL, 4)), None);
        assert_eq!(
            windowed.merge(spec(
                SpecKind::Full {
                    window: None,
                    chunk: Some(8192)
                },
                8
            )),
            None
        );
    }

    #[test]
    fn a_page_that_leaves_64_bits_is_an_error() {
        let huge = Spec {
            block_size: u64::MAX,
            ..spec(FULL, 8)
        };
        assert!(huge.page_bytes().is_err());
    }
}
