//! From the model's caches to the specs that its layers publish on one rank.

mod part;
mod specs;

pub(crate) use specs::latent;

use part::Part;

use super::backend::{Backend, Demand, Sight, select};
use super::block_size::{BlockSizes, block_sizes};
use super::class_backend;
use super::gpu::Gpu;
use super::kv_dtype::KvDtype;
use super::refusal::{Refusal, RefusalKind};
use super::runner::{Circumstances, Runner};
use super::settings::Settings;
use super::spec::{Spec, SpecKind};
use super::state::{StateContext, StateShape};
use super::version::Rules;
use crate::Result;
use crate::arch::{AttentionScales, CacheKind, Heads, Layer, Model};
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
    /// Whether windows may be computed again behind a cached prefix, which the second model runner can.
    replays_windows: bool,
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
            replays_windows: Runner::of(
                model,
                &Circumstances {
                    version: settings.version,
                    quantized: false,
                    amd: false,
                    drafts: settings
                        .speculative
                        .as_ref()
                        .map(|speculative| speculative.method),
                },
            )
            .is_second(),
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
                | Part::SharedCompressed(_)
                | Part::ConvWindow { .. } => {}
            }
        }
        Ok(alignment)
    }
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
