//! From the model's caches to the specs that its layers publish on one rank.

mod specs;

pub(crate) use specs::latent;

use super::backend::{Backend, Demand, Sight, select};
use super::block_size::{BlockSizes, block_sizes};
use super::class_backend;
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::refusal::{Refusal, RefusalKind};
use super::settings::Settings;
use super::spec::{Spec, SpecKind};
use super::state::{StateContext, StateShape};
use super::version::Rules;
use crate::Result;
use crate::arch::{AttentionScales, Cache, CacheKind, Heads, Layer, Model};
use crate::dtype::Dtype;

/// Caches of a model on one tensor-parallel rank, in the order the engine registers them.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// One spec a cache.
    pub specs: Vec<Spec>,
    /// Decoder layer of each cache; layers of a drafter follow the model's.
    pub layers: Vec<u64>,
    /// Backends of the attention layers, without repetition.
    pub backends: Vec<Backend>,
    /// Block sizes and pads.
    pub sizes: BlockSizes,
    /// What `--kv-cache-dtype` became.
    pub kv_dtype: KvDtype,
    /// What the engine would refuse, though the specs can be made.
    pub refusal: Option<Refusal>,
}

/// One kind of attention layer with the backend that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) demand: Demand,
    pub(crate) backend: Backend,
}

/// An attention cache on one rank before block sizes are known, or a recurrent state.
#[derive(Debug, Clone, Copy)]
enum Part {
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
    ConvWindow {
        heads: Heads,
        window: u64,
    },
    State(StateShape),
}

/// Sizes that block sizes are aligned to.
pub(crate) struct Alignment<'a> {
    pub(crate) served: &'a [Served],
    /// Head shape of the first attention layer on this rank: key/value heads and elements of a key.
    pub(crate) attention: Option<(u64, u64)>,
    /// Width of the latent, for latent attention.
    pub(crate) latent_width: Option<u64>,
    /// Largest state in bytes.
    pub(crate) state_bytes: u64,
    pub(crate) kv_dtype: KvDtype,
    /// Block size that the platform forces on latent attention.
    pub(crate) platform_block: Option<u64>,
    /// Whether some layers stay at 16 bits beside quantised ones.
    pub(crate) skips: bool,
    pub(crate) align_states: bool,
    pub(crate) max_model_len: u64,
}

/// Publishes all caches of `model` and its drafter's `extra` layers.
///
/// # Errors
/// A [`Refusal`] where the engine cannot make the specs, an error if a size overflows.
pub(crate) fn publish(
    model: &Model,
    extra: &[Layer],
    settings: &Settings,
    gpu: Gpu,
    align_states: bool,
    max_model_len: u64,
) -> Result<Result<Published, Refusal>> {
    let mut publisher = Publisher::new(model, settings, gpu);
    let mut parts = Vec::with_capacity(model.layers.len() + 8);
    for (index, layer) in model.layers.iter().chain(extra).enumerate() {
        let index = index as u64;
        for cache in &layer.caches {
            match publisher.part(cache, index)? {
                Ok(part) => parts.push((index, part)),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }
    let encoder = model
        .encoder_heads
        .map(|heads| publisher.dense(heads, full_attention(), 0));
    let encoder = match encoder {
        Some(Ok(Part::Attention { heads, .. })) => Some((heads.kv_heads, heads.head_dim)),
        Some(Err(refusal)) => return Ok(Err(refusal)),
        None | Some(Ok(_)) => None,
    };
    let mut alignment = publisher.alignment(&parts, align_states, max_model_len)?;
    alignment.attention = alignment.attention.or(encoder);
    if let Some(state) = &model.sized_for {
        match StateShape::of(state, &publisher.state_context())? {
            Ok(shape) => alignment.state_bytes = alignment.state_bytes.max(shape.bytes()?),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    let sizes = match block_sizes(&alignment, settings.block_size, gpu)? {
        Ok(sizes) => sizes,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut specs = Vec::with_capacity(parts.len());
    let mut layers = Vec::with_capacity(parts.len());
    for (index, part) in parts {
        publisher.push(part, &sizes, &mut specs)?;
        layers.resize(specs.len(), index);
    }
    let sharded = settings.decode_context_parallel_size > 1;
    if sharded && specs.iter().any(|spec| spec.is_sliding() && spec.dcp_sharded) {
        return Ok(Err(Refusal::new(
            RefusalKind::DecodeContextParallel,
            "DCP not support sliding window.",
        )));
    }
    let mut backends = Vec::new();
    for served in &publisher.served {
        if !backends.contains(&served.backend) {
            backends.push(served.backend);
        }
    }
    Ok(Ok(Published {
        specs,
        layers,
        backends,
        sizes,
        kv_dtype: publisher.stored,
        refusal: publisher.refusal,
    }))
}

struct Publisher<'a> {
    settings: &'a Settings,
    /// The backend of all layers, where the user or the model's class names one.
    forced: Option<Backend>,
    /// What its layers attend to.
    sees: Sight,
    gpu: Gpu,
    tp: u64,
    query_heads: u64,
    requested: KvDtype,
    stored: KvDtype,
    skip_boundary: Option<(u64, u64)>,
    model_dtype: Dtype,
    served: Vec<Served>,
    refusal: Option<Refusal>,
}

impl<'a> Publisher<'a> {
    fn new(model: &Model, settings: &'a Settings, gpu: Gpu) -> Self {
        let mut requested = settings.resolved_kv_cache_dtype();
        let dense = |kind: &CacheKind| {
            matches!(
                kind,
                CacheKind::Full(_)
                    | CacheKind::Sliding { .. }
                    | CacheKind::Chunked { .. }
                    | CacheKind::Cross(_)
            )
        };
        let mut caches = model.layers.iter().flat_map(|layer| &layer.caches);
        if settings.declared_to_layers()
            && (model.attention_scales == AttentionScales::None || !caches.any(|cache| dense(&cache.kind)))
        {
            // Latent attention does not look it up either.
            requested = KvDtype::Auto;
        }
        // GLM's sparse attention defaults to 8 bits on Blackwell (model_executor/models/config.py).
        if requested == KvDtype::Auto && gpu.major == 10 && model.architecture == "GlmMoeDsaForCausalLM" {
            requested = KvDtype::Fp8E4m3;
        }
        let states = |layer: &Layer| {
            layer
                .caches
                .iter()
                .any(|cache| matches!(cache.kind, CacheKind::State(_)))
        };
        // Packed formats leave the first and last two layers of models without states at 16 bits
        // (layers/quantization/turboquant/config.py get_boundary_skip_layers).
        let count = model.layers.len() as u64;
        let boundary = 2.min(count / 2);
        let skip_boundary = (requested.is_packed() && !model.layers.iter().any(states))
            .then_some((boundary, count - boundary));
        let rules = Rules::of(settings.version);
        Self {
            settings,
            forced: settings
                .attention_backend
                .or_else(|| class_backend::forced(model, gpu, rules.wide_heads, requested)),
            sees: class_backend::sight(model, settings, rules.images),
            gpu,
            tp: settings.tensor_parallel_size,
            query_heads: (model.num_attention_heads / settings.tensor_parallel_size).max(1),
            requested,
            stored: requested,
            skip_boundary,
            model_dtype: sixteen_bit(settings.dtype.or(model.dtype)),
            served: Vec::new(),
            refusal: None,
        }
    }

    fn skips(&self, layer: u64, sliding: bool) -> bool {
        let named = &self.settings.kv_cache_dtype_skip_layers;
        self.skip_boundary
            .is_some_and(|(first, last)| layer < first || layer >= last)
            || named.layers.contains(&layer)
            || (sliding && named.sliding_window)
    }

    /// Index of the demand among those served, selecting its backend if it is new.
    fn serve(&mut self, demand: Demand) -> Result<usize, Refusal> {
        if let Some(known) = self.served.iter().position(|served| served.demand == demand) {
            return Ok(known);
        }
        let forced = self.forced;
        let backend = match select(self.gpu, &demand, forced) {
            Ok(backend) => backend,
            Err(reason) => {
                // The engine refuses. The numbers are still worth showing: with the backend that was named if it is
                // made for this kind of layer, else with the one the engine would take by itself.
                let refusal = Refusal::new(RefusalKind::AttentionBackend, reason);
                let kin = forced
                    .filter(|named| named.is_latent() == demand.latent && named.is_sparse() == demand.sparse);
                let any_block = Demand {
                    block_size: None,
                    ..demand
                };
                let backend = match kin {
                    Some(named) => named,
                    None => select(self.gpu, &demand, None)
                        .or_else(|_| select(self.gpu, &any_block, None))
                        .map_err(|_| refusal.clone())?,
                };
                self.refusal.get_or_insert(refusal);
                backend
            }
        };
        self.served.push(Served { demand, backend });
        Ok(self.served.len() - 1)
    }

    /// Heads of a layer on this rank: divided, or one replicated head.
    fn shard(&self, heads: Heads) -> Result<Heads, Refusal> {
        let total = heads.kv_heads;
        let refuse = |reason: String| Err(Refusal::new(RefusalKind::TensorParallel, reason));
        if total == 0 {
            return refuse("a layer has no key/value heads".to_owned());
        }
        if total >= self.tp {
            if !total.is_multiple_of(self.tp) {
                return refuse(format!(
                    "{total} is not divisible by {} (key/value heads over tensor-parallel ranks)",
                    self.tp
                ));
            }
            return Ok(Heads {
                kv_heads: total / self.tp,
                ..heads
            });
        }
        if !self.tp.is_multiple_of(total) {
            return refuse(format!(
                "{} is not divisible by {total} (tensor-parallel ranks over key/value heads that are replicated)",
                self.tp
            ));
        }
        Ok(Heads { kv_heads: 1, ..heads })
    }

    fn dense(&mut self, heads: Heads, kind: SpecKind, layer: u64) -> Result<Part, Refusal> {
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

    fn part(&mut self, cache: &Cache, layer: u64) -> Result<Result<Part, Refusal>> {
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
            CacheKind::ConvWindow { heads, window } => self.shard(*heads).map(|heads| Part::ConvWindow {
                heads,
                window: *window,
            }),
            CacheKind::State(state) => StateShape::of(state, &self.state_context())?.map(Part::State),
        })
    }

    fn state_context(&self) -> StateContext {
        StateContext {
            tp: self.tp,
            speculative_tokens: self.settings.speculative_tokens(),
            model_dtype: self.model_dtype,
            cache_dtype: self.settings.mamba_cache_dtype,
            ssm_dtype: self.settings.mamba_ssm_cache_dtype,
            gpu_major: self.gpu.major,
        }
    }

    /// Registers a demand whose backend is the model's own.
    fn fixed(&mut self, demand: Demand, backend: Backend) -> usize {
        let served = Served { demand, backend };
        self.served
            .iter()
            .position(|known| *known == served)
            .unwrap_or_else(|| {
                self.served.push(served);
                self.served.len() - 1
            })
    }

    fn alignment(
        &self,
        parts: &[(u64, Part)],
        align_states: bool,
        max_model_len: u64,
    ) -> Result<Alignment<'_>> {
        let mut alignment = Alignment {
            served: &self.served,
            attention: None,
            latent_width: None,
            state_bytes: 0,
            kv_dtype: self.stored,
            platform_block: class_backend::platform_block(
                Rules::of(self.settings.version).latent_blocks,
                self.gpu,
                &self.served,
            ),
            skips: false,
            align_states,
            max_model_len,
        };
        for (_, part) in parts {
            match part {
                Part::Attention { heads, skipped, .. } => {
                    alignment
                        .attention
                        .get_or_insert((heads.kv_heads, heads.head_dim));
                    alignment.skips |= skipped;
                }
                Part::Latent { width, .. } => {
                    alignment.latent_width.get_or_insert(*width);
                }
                Part::State(shape) => alignment.state_bytes = alignment.state_bytes.max(shape.bytes()?),
                Part::Indexer { .. }
                | Part::Ring { .. }
                | Part::SlidingLatent { .. }
                | Part::Compressed { .. }
                | Part::ConvWindow { .. } => {}
            }
        }
        Ok(alignment)
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

/// Attention over all tokens.
const fn full_attention() -> SpecKind {
    SpecKind::Full {
        window: None,
        chunk: None,
    }
}

/// The model's element type as the engine runs it: 32-bit floats become 16-bit ones.
fn sixteen_bit(dtype: Option<Dtype>) -> Dtype {
    match dtype {
        Some(Dtype::F16) => Dtype::F16,
        _ => Dtype::Bf16,
    }
}
