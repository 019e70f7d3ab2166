//! Scales that a format keeps beside each attention layer's cache.

use crate::Result;
use crate::arch::{AttentionScales, Cache, CacheKind, Layer};
use crate::dtype::Dtype;

/// Parameters that the engine registers with each attention layer (vLLM 0.32.0, `BaseKVCacheMethod` and
/// `CompressedTensorsKVCacheMethod`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheScales {
    None,
    /// Four scalars in the model's element type; `latent` says whether latent attention has them too.
    Four {
        latent: bool,
    },
    /// Three float32 scales and three zero points in the model's element type.
    ThreeWithZeros,
}

impl CacheScales {
    /// Bytes beside one layer's cache.
    pub(super) fn bytes(self, model: Dtype, layers: AttentionScales) -> Result<u64> {
        match (self, layers) {
            (Self::None, _) | (_, AttentionScales::None) => Ok(0),
            (Self::Four { .. }, _) => model.bytes(4),
            (Self::ThreeWithZeros, AttentionScales::Own) => Ok(Dtype::F32.bytes(3)? + model.bytes(3)?),
            (Self::ThreeWithZeros, AttentionScales::InModelType) => model.bytes(6),
        }
    }

    /// Whether the engine registers them beside a cache of this kind.
    pub(super) fn are_beside(self, kind: &CacheKind, layer: &Layer) -> bool {
        // Attention that an indexer chooses the tokens for is of a class of its own.
        let sparse = |cache: &Cache| {
            matches!(
                cache.kind,
                CacheKind::Indexer { .. } | CacheKind::PooledIndexer { .. }
            )
        };
        match kind {
            CacheKind::Full(_) if layer.caches.iter().any(sparse) => false,
            CacheKind::Full(_)
            | CacheKind::Sliding { .. }
            | CacheKind::Chunked { .. }
            | CacheKind::Cross(_) => true,
            CacheKind::Latent { .. } => matches!(self, Self::Four { latent: true }),
            _ => false,
        }
    }
}
