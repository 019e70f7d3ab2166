//! From a cache of the model to its part on one rank: divided heads, stored types, and the backend that serves it.

use super::{Publisher, full_attention};
use crate::Result;
use crate::arch::{Cache, CacheKind, Heads};
use crate::engine::vllm::backend::{Backend, Demand, Sight};
use crate::engine::vllm::deepseek_v41::SharedLayer;
use crate::engine::vllm::kv_dtype::KvDtype;
use crate::engine::vllm::refusal::{Refusal, RefusalKind};
use crate::engine::vllm::spec::SpecKind;
use crate::engine::vllm::state::StateShape;

/// An attention cache on one rank before block sizes are known, or a recurrent state.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Attention {
        heads: Heads,
        kind: SpecKind,
        served: usize,
        kv_dtype: KvDtype,
        skipped: bool,
    },
    Latent {
        width: u64,
        served: usize,
        kv_dtype: KvDtype,
    },
    SlidingLatent {
        width: u64,
        window: u64,
        served: usize,
        kv_dtype: KvDtype,
    },
    Indexer {
        bytes: u64,
        pool: u64,
        /// `None` where no kernel asks for anything.
        served: Option<usize>,
    },
    Ring {
        vectors: u64,
        width: u64,
        tokens: u64,
        sharded: bool,
    },
    Compressed {
        ratio: u64,
        head_dim: u64,
        window: u64,
        index_head_dim: u64,
    },
    SharedCompressed(SharedLayer),
    ConvWindow {
        heads: Heads,
        window: u64,
    },
    State(StateShape),
}

impl Publisher<'_> {
    pub(super) fn dense(&mut self, heads: Heads, kind: SpecKind, layer: u64) -> Result<Part, Refusal> {
        let heads = self.shard(heads)?;
        let skipped = heads.follows_kv_dtype && self.skips(layer, matches!(kind, SpecKind::Sliding { .. }));
        let kv_dtype = if skipped || !heads.follows_kv_dtype {
            KvDtype::Auto
        } else {
            self.requested
        };
        let served = self.serve(Demand {
            latent: false,
            sparse: false,
            head_size: heads.head_dim,
            nope: 0,
            rope: 0,
            query_heads: self.query_heads,
            kv_heads: heads.kv_heads,
            sees: match kind {
                SpecKind::Cross => Sight::Encoder,
                _ => self.sees,
            },
            kv_dtype,
            block_size: self.settings.block_size,
            dcp: self.settings.decode_context_parallel_size,
            pool: 1,
        })?;
        Ok(Part::Attention {
            heads,
            kind,
            served,
            kv_dtype,
            skipped,
        })
    }

    /// The part that one of the model's caches is on this rank, in decoder layer `layer`.
    pub(super) fn part(&mut self, cache: &Cache, layer: u64) -> Result<Result<Part, Refusal>> {
        let full = full_attention();
        Ok(match &cache.kind {
            CacheKind::Full(heads) => self.dense(*heads, full, layer),
            CacheKind::Sliding { heads, window } => self.dense(
                *heads,
                SpecKind::Sliding {
                    window: *window,
                    extra: 0,
                },
                layer,
            ),
            CacheKind::Chunked { heads, chunk } => {
                self.dense(*heads, SpecKind::Chunked { chunk: *chunk }, layer)
            }
            CacheKind::Cross(heads) => self.dense(*heads, SpecKind::Cross, layer),
            CacheKind::Latent {
                width,
                nope,
                rope,
                sparse,
            } => {
                let requested = if self.skips(layer, false) {
                    KvDtype::Auto
                } else {
                    self.requested
                };
                let demand = Demand {
                    latent: true,
                    sparse: *sparse,
                    head_size: *width,
                    nope: *nope,
                    rope: *rope,
                    query_heads: self.query_heads,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype: requested,
                    block_size: self.settings.block_size,
                    dcp: self.settings.decode_context_parallel_size,
                    pool: 1,
                };
                self.serve(demand).map(|served| {
                    let kv_dtype = self.served[served].backend.stored_kv_dtype(requested);
                    if requested == self.requested {
                        self.stored = kv_dtype;
                    }
                    Part::Latent {
                        width: *width,
                        served,
                        kv_dtype,
                    }
                })
            }
            CacheKind::Indexer {
                bytes_per_token,
                kernel_block,
            } => {
                let backend = if *kernel_block == 128 {
                    Backend::MinimaxIndexer
                } else {
                    Backend::Indexer
                };
                let demand = Demand {
                    latent: true,
                    sparse: false,
                    head_size: *bytes_per_token,
                    nope: 0,
                    rope: 0,
                    query_heads: 1,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype: KvDtype::Auto,
                    block_size: None,
                    dcp: 1,
                    pool: 1,
                };
                Ok(Part::Indexer {
                    bytes: *bytes_per_token,
                    pool: 1,
                    served: Some(self.fixed(demand, backend)),
                })
            }
            CacheKind::SlidingLatent { width, window } => {
                // The class brings a backend of its own, made of Triton's; `fp8_ds_mla` is plain fp8 to it.
                let kv_dtype = match self.requested {
                    KvDtype::Fp8DsMla => KvDtype::Fp8,
                    other => other,
                };
                let demand = Demand {
                    latent: true,
                    sparse: false,
                    head_size: *width,
                    nope: 0,
                    rope: 0,
                    query_heads: self.query_heads,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype,
                    block_size: self.settings.block_size,
                    dcp: self.settings.decode_context_parallel_size,
                    pool: 1,
                };
                Ok(Part::SlidingLatent {
                    width: *width,
                    window: *window,
                    served: self.fixed(demand, Backend::TritonMla),
                    kv_dtype,
                })
            }
            CacheKind::PooledIndexer {
                bytes_per_entry,
                pool,
                paged,
            } => {
                let demand = Demand {
                    latent: true,
                    sparse: false,
                    head_size: *bytes_per_entry,
                    nope: 0,
                    rope: 0,
                    query_heads: 1,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype: KvDtype::Auto,
                    block_size: None,
                    dcp: 1,
                    pool: *pool,
                };
                Ok(Part::Indexer {
                    bytes: *bytes_per_entry,
                    pool: *pool,
                    served: paged.then(|| self.fixed(demand, Backend::PooledIndexer)),
                })
            }
            CacheKind::Ring {
                vectors,
                width,
                pool,
                doubling,
            } => Ok(Part::Ring {
                vectors: *vectors,
                width: *width,
                tokens: ring_tokens(*pool, self.settings.speculative_tokens(), *doubling)?,
                sharded: !doubling,
            }),
            CacheKind::Compressed {
                ratio,
                head_dim,
                window,
                index_head_dim,
            } => {
                if !(self.requested == KvDtype::Auto || self.requested.is_fp8_per_tensor()) {
                    return Ok(Err(Refusal::new(
                        RefusalKind::AttentionBackend,
                        format!(
                            "DeepseekV4 fp8_ds_mla layout only supports fp8 kv-cache, got {}",
                            self.requested
                        ),
                    )));
                }
                if *ratio > 1 && ![4, 128].contains(ratio) {
                    return Ok(Err(Refusal::new(
                        RefusalKind::AttentionBackend,
                        format!("Unsupported DeepseekV4 compress_ratio={ratio}; expected 1, 4, or 128."),
                    )));
                }
                self.stored = KvDtype::Fp8DsMla;
                let demand = Demand {
                    latent: true,
                    sparse: true,
                    head_size: *head_dim,
                    nope: 0,
                    rope: 0,
                    query_heads: self.query_heads,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype: KvDtype::Fp8DsMla,
                    block_size: self.settings.block_size,
                    dcp: self.settings.decode_context_parallel_size,
                    pool: 1,
                };
                self.fixed(demand, Backend::DeepseekV4);
                Ok(Part::Compressed {
                    ratio: *ratio,
                    head_dim: *head_dim,
                    window: *window,
                    index_head_dim: *index_head_dim,
                })
            }
            CacheKind::SharedCompressed {
                ratio,
                behind,
                head_dim,
                window,
                index_head_dim,
                output_groups,
            } => {
                let blackwell = self.gpu.major == 10;
                // One kernel for all of attention takes eight heads of each of the output projection's groups.
                let (heads, groups, tp) = (self.query_heads, *output_groups, self.tp);
                let mega = blackwell
                    && self.settings.attention_backend.is_none()
                    && groups.is_multiple_of(tp)
                    && groups.checked_div(tp).and_then(|groups| groups.checked_mul(8)) == Some(heads);
                let kv_dtype = match self.requested {
                    KvDtype::Auto | KvDtype::Fp8 if mega => KvDtype::Nvfp4DsMla,
                    KvDtype::Auto | KvDtype::Fp8 | KvDtype::Fp8DsMla => KvDtype::Fp8DsMla,
                    KvDtype::Nvfp4DsMla if blackwell => KvDtype::Nvfp4DsMla,
                    KvDtype::Nvfp4DsMla => {
                        return Ok(Err(Refusal::new(
                            RefusalKind::AttentionBackend,
                            "nvfp4_ds_mla needs the V4.1 KV records, which FlashMLA decodes only on SM100.",
                        )));
                    }
                    other => {
                        return Ok(Err(Refusal::new(
                            RefusalKind::AttentionBackend,
                            format!("DeepseekV4 packed KV layouts only support fp8 kv-cache, got {other}"),
                        )));
                    }
                };
                self.stored = kv_dtype;
                let demand = Demand {
                    latent: true,
                    sparse: true,
                    head_size: *head_dim,
                    nope: 0,
                    rope: 0,
                    query_heads: self.query_heads,
                    kv_heads: 1,
                    sees: Sight::Earlier,
                    kv_dtype,
                    block_size: self.settings.block_size,
                    dcp: self.settings.decode_context_parallel_size,
                    pool: 1,
                };
                self.fixed(
                    demand,
                    if mega {
                        Backend::DeepseekV41Mega
                    } else {
                        Backend::DeepseekV41
                    },
                );
                Ok(Part::SharedCompressed(SharedLayer {
                    stores: (*ratio > 0 && *behind == 0).then_some(*ratio),
                    head_dim: *head_dim,
                    window: *window,
                    index_head_dim: *index_head_dim,
                    kv_dtype,
                    blackwell,
                    replayed: self.replays_windows,
                    draft_tokens: self.settings.speculative_tokens(),
                }))
            }
            CacheKind::ConvWindow { heads, window } => self.shard(*heads).map(|heads| Part::ConvWindow {
                heads,
                window: *window,
            }),
            CacheKind::State(state) => StateShape::of(state, &self.state_context())?.map(Part::State),
        })
    }
}

/// Tokens of a ring: whole pools that hold one pool and the draft tokens behind it (vLLM 0.32.0, `Glm5NextTailCache` in
/// `models/glm5next/common/attention.py`, `QSAKeyStateCache` in `models/qwen4_exp/common/qsa_cache.py`).
fn ring_tokens(pool: u64, draft_tokens: u64, doubling: bool) -> Result<u64> {
    let overflow = || crate::Error::overflow("the tokens of an indexer's ring");
    let pools = pool
        .checked_add(draft_tokens)
        .map(|span| span.div_ceil(pool.max(1)))
        .ok_or_else(overflow)?;
    let pools = if doubling {
        pools.checked_next_power_of_two().ok_or_else(overflow)?
    } else {
        pools
    };
    pool.checked_mul(pools).ok_or_else(overflow)
}
