//! From a cache on one rank, with its block sizes settled, to its spec.

use super::part::Part;
use super::{Publisher, Served};
use crate::Result;
use crate::engine::vllm::block_size::BlockSizes;
use crate::engine::vllm::deepseek_v4::deepseek_v4;
use crate::engine::vllm::deepseek_v41::deepseek_v41;
use crate::engine::vllm::kernel_fit::{stride, window_block_size};
use crate::engine::vllm::kv_dtype::KvDtype;
use crate::engine::vllm::spec::{Spec, SpecKind, StrideAlignment};

impl Publisher<'_> {
    /// Adds the specs of a part.
    pub(super) fn push(&self, part: Part, sizes: &BlockSizes, specs: &mut Vec<Spec>) -> Result<()> {
        let block_size = sizes.block_size;
        match part {
            Part::Attention {
                heads,
                kind,
                served,
                kv_dtype,
                skipped,
            } => {
                let Served { demand, backend } = &self.served[served];
                let kernels = backend.kernel_blocks(self.gpu, demand);
                let entry = kv_dtype.entry(heads.kv_heads, heads.head_dim, heads.head_dim_v)?;
                let spec = Spec {
                    kind,
                    block_size,
                    kv_heads: heads.kv_heads,
                    head_size: heads.head_dim,
                    head_size_v: heads.head_dim_v,
                    slots: entry.slots,
                    content_bytes: entry.content_bytes,
                    tokens_per_state: 1,
                    kv_dtype,
                    padded_page_bytes: None,
                    page_alignment_bytes: 1,
                    stride: stride(*backend, kernels, entry.content_bytes, kv_dtype, self.gpu),
                    dcp_sharded: true,
                };
                specs.push(if matches!(kind, SpecKind::Sliding { .. }) {
                    let shared = skipped.then_some(sizes.skip_page_bytes).flatten();
                    let per_token = spec.with_block_size(1).page_bytes()?.max(1);
                    let block_size = window_block_size(kernels, per_token, shared, block_size)?;
                    let sized = spec.with_block_size(block_size);
                    shared.map_or(sized, |bytes| sized.padded_to(bytes))
                } else {
                    spec
                });
            }
            Part::Latent {
                width,
                served,
                kv_dtype,
            } => {
                let Served { demand, backend } = &self.served[served];
                let kernels = backend.kernel_blocks(self.gpu, demand);
                let content = kv_dtype.latent_bytes(width)?;
                let mut spec = latent(
                    SpecKind::Latent { indexer: false },
                    block_size,
                    width,
                    content,
                    kv_dtype,
                );
                spec.stride = stride(*backend, kernels, content, kv_dtype, self.gpu);
                specs.push(spec);
            }
            Part::SlidingLatent {
                width,
                window,
                served,
                kv_dtype,
            } => {
                let Served { demand, backend } = &self.served[served];
                let kernels = backend.kernel_blocks(self.gpu, demand);
                let content = kv_dtype.latent_bytes(width)?;
                let kind = SpecKind::SlidingLatent {
                    window,
                    extra: 0,
                    replayed: false,
                };
                let mut spec = latent(kind, block_size, width, content, kv_dtype);
                spec.stride = stride(*backend, kernels, content, kv_dtype, self.gpu);
                specs.push(spec);
            }
            Part::Indexer { bytes, pool, served } => {
                let mut spec = latent(
                    SpecKind::Latent { indexer: true },
                    block_size,
                    bytes,
                    bytes,
                    KvDtype::Auto,
                );
                spec.tokens_per_state = pool;
                if let Some(served) = served {
                    let Served { demand, backend } = &self.served[served];
                    let kernels = backend.kernel_blocks(self.gpu, demand);
                    spec.stride = stride(*backend, kernels, bytes, KvDtype::Auto, self.gpu);
                }
                specs.push(spec);
            }
            Part::Ring {
                vectors,
                width,
                tokens,
                sharded,
            } => specs.push(Spec {
                slots: vectors,
                kv_heads: vectors,
                dcp_sharded: sharded,
                ..latent(
                    SpecKind::Ring,
                    tokens,
                    width,
                    KvDtype::Auto.latent_bytes(width)?,
                    KvDtype::Auto,
                )
            }),
            Part::Compressed {
                ratio,
                head_dim,
                window,
                index_head_dim,
            } => {
                deepseek_v4(ratio, head_dim, window, index_head_dim, block_size, specs)?;
            }
            Part::SharedCompressed(layer) => deepseek_v41(&layer, block_size, specs)?,
            Part::ConvWindow { heads, window } => specs.push(Spec {
                kind: SpecKind::Sliding { window, extra: 0 },
                block_size: window,
                kv_heads: heads.kv_heads,
                head_size: heads.head_dim,
                head_size_v: heads.head_dim_v,
                slots: heads.kv_heads,
                content_bytes: KvDtype::Auto
                    .entry(heads.kv_heads, heads.head_dim, heads.head_dim_v)?
                    .content_bytes,
                tokens_per_state: 1,
                kv_dtype: KvDtype::Auto,
                padded_page_bytes: None,
                page_alignment_bytes: 1,
                stride: StrideAlignment::Any,
                dcp_sharded: true,
            }),
            Part::State(shape) => specs.push(Spec {
                kind: SpecKind::State {
                    shape,
                    speculative_blocks: self.settings.speculative_tokens(),
                },
                block_size: sizes.state_block_size,
                kv_heads: 1,
                head_size: 0,
                head_size_v: 0,
                slots: 1,
                content_bytes: shape.bytes()?,
                tokens_per_state: 1,
                kv_dtype: KvDtype::Auto,
                padded_page_bytes: sizes.state_page_bytes,
                page_alignment_bytes: 1,
                stride: StrideAlignment::Any,
                dcp_sharded: false,
            }),
        }
        Ok(())
    }
}

/// A spec of one latent a token.
pub(crate) fn latent(
    kind: SpecKind,
    block_size: u64,
    width: u64,
    content_bytes: u64,
    kv_dtype: KvDtype,
) -> Spec {
    Spec {
        kind,
        block_size,
        kv_heads: 1,
        head_size: width,
        head_size_v: 0,
        slots: 1,
        content_bytes,
        tokens_per_state: 1,
        kv_dtype,
        padded_page_bytes: None,
        page_alignment_bytes: 1,
        stride: StrideAlignment::Any,
        dcp_sharded: true,
    }
}
