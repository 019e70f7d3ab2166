//! A model's parameters by kind of layer: what its bytes are summed over, for any number of parallel settings.
//!
//! A model has dozens of layers but few kinds of them. The modules' schemes depend on their paths, which is why ignore
//! lists are asked once for every layer; bytes depend only on shapes, schemes and ranks, so that they are computed once
//! for every kind.

mod roles;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::select::Refused;
use super::{CacheScales, Format, Mxfp4Padding, Quantization, Scheme};
use crate::arch::weight::Shard;
use crate::arch::{Layer, Model, Op, Parallel, Place, Role, Weight};
use crate::dtype::Dtype;
use crate::engine::vllm::Version;
use crate::{Error, ErrorKind, Result};

/// Kinds that a layer is compared with before it becomes one of its own.
const COMPARED: usize = 16;

/// Layers that hold the same parameters in the same schemes.
#[derive(Debug, PartialEq)]
struct Kind {
    /// The first of them.
    layer: usize,
    /// Schemes of its parameters, in their order.
    schemes: Vec<Option<Scheme>>,
}

/// A kind of layer on a pipeline stage, how many of them, and the number of the first.
struct Held<'a> {
    kind: &'a Kind,
    count: u64,
    first: u64,
}

/// The kinds of a model's layers. It belongs to the model that it was made from.
#[derive(Debug)]
pub(crate) struct Inventory {
    kinds: Vec<Kind>,
    /// Which of `kinds` each layer is.
    of_layer: Vec<usize>,
    /// Schemes of the parameters outside of the layers, in the order of `Model::outside`.
    outside: Vec<Vec<Option<Scheme>>>,
    /// The head of a model whose head is its embedding, where the engine builds one in the checkpoint's scheme.
    tied: Option<(Place, Weight, Scheme)>,
    quantization: Option<Quantization>,
    /// Why the engine would not load the checkpoint.
    refusal: Option<String>,
}

impl Inventory {
    /// Sorts the layers of a model.
    pub(crate) fn new(model: &Model, quantization: Option<Quantization>) -> Self {
        let mut kinds: Vec<Kind> = Vec::new();
        let mut path = String::new();
        let mut refusal = quantization
            .as_ref()
            .and_then(Quantization::refusal)
            .map(str::to_owned);
        let mut scheme = |prefix: &str, weight: &Weight| {
            let quantization = quantization.as_ref()?;
            path.clear();
            path.push_str(prefix);
            path.push_str(&weight.name);
            quantization
                .decide(&path, weight)
                .unwrap_or_else(|Refused(reason)| {
                    refusal.get_or_insert(reason);
                    None
                })
        };
        let alike = match &quantization {
            Some(quantization) => quantization.first_alike(model.layers.len()),
            None => vec![0; model.layers.len()],
        };
        // One of the layers with the same parameters that lists do not tell apart, and its kind.
        let mut asked: Vec<(usize, usize)> = Vec::new();
        let of_layer = model
            .layers
            .iter()
            .enumerate()
            .map(|(layer, Layer { weights, .. })| {
                let same = asked.iter().rev().take(COMPARED).find(|&&(other, _)| {
                    alike[other] == alike[layer] && model.layers[other].weights == *weights
                });
                if let Some(&(_, kind)) = same {
                    return kind;
                }
                let prefix = match &quantization {
                    Some(_) => format!("{}.{layer}.", model.layers_path),
                    None => String::new(),
                };
                let schemes: Vec<_> = weights.iter().map(|weight| scheme(&prefix, weight)).collect();
                let mut known = kinds.iter().enumerate().rev().take(COMPARED);
                let known = known.find(|(_, kind)| {
                    kind.schemes == schemes && model.layers[kind.layer].weights == *weights
                });
                let kind = known.map_or(kinds.len(), |(kind, _)| kind);
                if kind == kinds.len() {
                    kinds.push(Kind { layer, schemes });
                }
                asked.push((layer, kind));
                kind
            })
            .collect();
        let outside = model
            .outside
            .iter()
            .map(|part| part.weights.iter().map(|weight| scheme("", weight)).collect())
            .collect();
        let embeds = model
            .outside
            .iter()
            .zip(&outside)
            .any(|(part, schemes): (_, &Vec<Option<Scheme>>)| {
                let mut both = part.weights.iter().zip(schemes);
                both.any(|(weight, scheme)| {
                    weight.role == Role::Embedding
                        && matches!(weight.op, Op::Vocab { .. })
                        && scheme.is_some()
                })
            });
        let tied = tied_head(model).and_then(|(place, head)| {
            let scheme = scheme("", &head)?;
            Some((place, head, scheme))
        });
        if embeds && model.pooling.is_none() && !model.has_head() {
            // The engine puts the embedding's matrix into the head (vLLM 0.32.0, `tie_weights`).
            refusal.get_or_insert("'VocabParallelEmbedding' object has no attribute 'weight'".to_owned());
        }
        Self {
            kinds,
            of_layer,
            outside,
            tied,
            quantization,
            refusal,
        }
    }

    /// Why the engine would not load the checkpoint.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The same for GPUs of a compute capability, a number of ranks and an element type.
    pub(crate) fn refusal_on(
        &self,
        model: &Model,
        parallel: &Parallel,
        capability: (u32, u32),
        dtype: Dtype,
    ) -> Option<String> {
        self.refusal()
            .map(str::to_owned)
            .or_else(|| self.quantization()?.refusal_on(capability))
            .or_else(|| self.quantization()?.refusal_of(model, dtype))
            .or_else(|| self.indivisible_tower(model, parallel, dtype))
    }

    /// What the format does with experts' biases and with groups.
    fn format(&self) -> Format {
        self.quantization
            .as_ref()
            .map_or(Format::PLAIN, Quantization::format)
    }

    /// The method's name as the checkpoint or the user spells it.
    pub(crate) fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// Bytes of weights on one tensor-parallel rank of a pipeline stage, with `dtype` where the engine fixes no other
    /// element type and 4-bit experts padded as `padding` says.
    pub(crate) fn bytes(
        &self,
        model: &Model,
        stage: u64,
        parallel: &Parallel,
        (dtype, padding): (Dtype, Mxfp4Padding),
        towers: bool,
    ) -> Result<u64> {
        let overflow = || Error::overflow("the size of the weights");
        let range = parallel.stage_layers(stage, self.of_layer.len() as u64)?;
        let mut total = 0u64;
        for Held { kind, count, first } in self.held(stage, parallel)? {
            let mut one = 0u64;
            for (weight, scheme) in model.layers[kind.layer].weights.iter().zip(&kind.schemes) {
                let bytes = shard_bytes(weight, *scheme, parallel, dtype, (padding, self.format()))
                    .map_err(|e| e.at(format!("{}.{first}.{}", model.layers_path, weight.name)))?;
                one = one.checked_add(bytes).ok_or_else(overflow)?;
            }
            total = one
                .checked_mul(count)
                .and_then(|bytes| total.checked_add(bytes))
                .ok_or_else(overflow)?;
        }
        for (weight, scheme) in self.outside(model, stage, parallel, towers) {
            let bytes = shard_bytes(weight, scheme, parallel, dtype, (padding, self.format()))
                .map_err(|e| e.at(&weight.name))?;
            total = total.checked_add(bytes).ok_or_else(overflow)?;
        }
        if let Some((place, head, scheme)) = &self.tied
            && place.on(stage, parallel.pp)
        {
            let rest = scheme.bytes_beside_weight(&head.name, &head.shard(parallel)?, dtype)?;
            total = total.checked_add(rest).ok_or_else(overflow)?;
        }
        if let Some(quantization) = self
            .quantization
            .as_ref()
            .filter(|q| q.cache_scales != CacheScales::None)
        {
            let scales = quantization.cache_scales;
            let caches = (0u64..)
                .zip(&model.layers)
                .filter(|(layer, _)| range.contains(layer))
                .flat_map(|(i, layer)| layer.caches.iter().map(move |cache| (i, layer, cache)))
                .filter(|(_, layer, cache)| scales.are_beside(&cache.kind, layer))
                .map(|(i, _, cache)| (i, cache))
                .filter(|(i, cache)| {
                    quantization.scales_cache_at(|| format!("{}.{i}.{}", model.layers_path, cache.name))
                })
                .count() as u64;
            // Layers that read the cache of an earlier one have scales of their own.
            let sharing = (0u64..)
                .zip(&model.layers)
                .filter(|(layer, held)| range.contains(layer) && shares_a_cache(held))
                .filter(|(i, _)| {
                    quantization.scales_cache_at(|| format!("{}.{i}.self_attn.attn", model.layers_path))
                })
                .count() as u64;
            let caches = if caches > 0 { caches + sharing } else { 0 };
            total = scales
                .bytes(dtype, model.attention_scales)?
                .checked_mul(caches)
                .and_then(|bytes| total.checked_add(bytes))
                .ok_or_else(overflow)?;
        }
        Ok(total)
    }

    /// Why the ranks cannot divide a tower: the engine builds it before it leaves it out (vLLM 0.32.0, `_mark_tower_model` in
    /// `models/interfaces.py`), so that this stops a start without images too.
    fn indivisible_tower(&self, model: &Model, parallel: &Parallel, dtype: Dtype) -> Option<String> {
        let format = (Mxfp4Padding::NONE, self.format());
        (model.outside.iter().zip(&self.outside))
            .filter(|(part, _)| part.tower)
            .flat_map(|(part, schemes)| part.weights.iter().zip(schemes))
            .find_map(|(weight, scheme)| {
                shard_bytes(weight, *scheme, parallel, dtype, format)
                    .err()
                    .filter(|error| error.kind() == ErrorKind::Unsupported)
                    .map(|error| error.to_string())
            })
    }

    /// What PyTorch's allocator holds beyond the bytes of one rank's weights on a pipeline stage: a block whose rest is too
    /// small to be handed out again belongs to its tensor ([`allocator_rest`]).
    pub(crate) fn allocator_bytes(
        &self,
        model: &Model,
        stage: u64,
        parallel: &Parallel,
        (dtype, padding): (Dtype, Mxfp4Padding),
        towers: bool,
    ) -> Result<u64> {
        let rest = |weight: &Weight, scheme: Option<Scheme>| -> Result<u64> {
            let one = match (scheme, weight.shard(parallel)?) {
                (Some(_), _) => {
                    let bytes = shard_bytes(weight, scheme, parallel, dtype, (padding, self.format()))?;
                    allocator_rest(bytes / weight.count.max(1))
                }
                (None, shard) => {
                    let rest = |elements: u64| allocator_rest(elements.saturating_mul(dtype.bits() / 8));
                    match shard {
                        Shard::Experts {
                            experts,
                            hidden,
                            intermediate,
                            parts,
                            ..
                        } => {
                            let down = experts.saturating_mul(hidden).saturating_mul(intermediate);
                            rest(down.saturating_mul(parts)).saturating_add(rest(down))
                        }
                        Shard::Linear { inputs, outputs, .. } => {
                            let outputs = outputs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
                            rest(outputs.saturating_mul(inputs))
                        }
                        Shard::Vocab { rows, width, .. } => rest(rows.saturating_mul(width)),
                        Shard::Plain { elements } => rest(elements),
                    }
                }
            };
            Ok(one.saturating_mul(weight.count))
        };
        let mut total = 0u64;
        for Held { kind, count, .. } in self.held(stage, parallel)? {
            for (weight, scheme) in model.layers[kind.layer].weights.iter().zip(&kind.schemes) {
                total = total.saturating_add(rest(weight, *scheme)?.saturating_mul(count));
            }
        }
        for (weight, scheme) in self.outside(model, stage, parallel, towers) {
            total = total.saturating_add(rest(weight, scheme)?);
        }
        Ok(total)
    }

    /// The kinds of layers on a pipeline stage.
    fn held(&self, stage: u64, parallel: &Parallel) -> Result<impl Iterator<Item = Held<'_>>> {
        let range = parallel.stage_layers(stage, self.of_layer.len() as u64)?;
        let mut counts = vec![(0u64, 0u64); self.kinds.len()];
        for (layer, &kind) in (0u64..).zip(&self.of_layer) {
            if range.contains(&layer) {
                let (count, first) = &mut counts[kind];
                if *count == 0 {
                    *first = layer;
                }
                *count += 1;
            }
        }
        Ok(self
            .kinds
            .iter()
            .zip(counts)
            .filter(|(_, (count, _))| *count > 0)
            .map(|(kind, (count, first))| Held { kind, count, first }))
    }

    /// The parameters outside of the layers that a pipeline stage holds.
    fn outside<'a>(
        &'a self,
        model: &'a Model,
        stage: u64,
        parallel: &Parallel,
        towers: bool,
    ) -> impl Iterator<Item = (&'a Weight, Option<Scheme>)> {
        let pp = parallel.pp;
        let parts = model.outside.iter().zip(&self.outside);
        parts
            .filter(move |(part, _)| part.place.on(stage, pp) && (towers || !part.tower))
            .flat_map(|(part, schemes)| part.weights.iter().zip(schemes.iter().copied()))
    }

    /// As [`Model::params`].
    pub(crate) fn params(&self, model: &Model) -> Result<(u64, u64)> {
        let overflow = || Error::overflow("the number of parameters");
        let add = |(total, active): (u64, u64), weight: &Weight, count: u64| {
            let grown = |sum: u64, elements: u64| {
                elements
                    .checked_mul(count)
                    .and_then(|n| sum.checked_add(n))
                    .ok_or_else(overflow)
            };
            Ok::<_, Error>((
                grown(total, weight.elements()?)?,
                grown(active, weight.active_elements()?)?,
            ))
        };
        let mut counts = vec![0u64; self.kinds.len()];
        for &kind in &self.of_layer {
            counts[kind] += 1;
        }
        let mut sums = (0, 0);
        for (kind, count) in self.kinds.iter().zip(counts) {
            for weight in &model.layers[kind.layer].weights {
                sums = add(sums, weight, count)?;
            }
        }
        for weight in model.outside.iter().flat_map(|part| &part.weights) {
            sums = add(sums, weight, 1)?;
        }
        Ok(sums)
    }
}

/// Bytes that a tensor of this size keeps from PyTorch's allocator beyond its own (c10/cuda/CUDACachingAllocator.cpp of PyTorch
/// 2.x: sizes from 10 MiB on are rounded up to 2 MiB, and what is left over is handed out again if it is more than 1 MiB).
/// Smaller tensors share blocks of 20 and 2 MiB, of which less is lost than can be known.
const fn allocator_rest(bytes: u64) -> u64 {
    const LARGE: u64 = 10 << 20;
    const STEP: u64 = 2 << 20;
    const SMALL: u64 = 1 << 20;
    let rest = if bytes < LARGE {
        0
    } else {
        (STEP - bytes % STEP) % STEP
    };
    if rest > SMALL { 0 } else { rest }
}

/// Whether a layer attends without a cache of its own.
fn shares_a_cache(layer: &Layer) -> bool {
    layer.caches.is_empty() && layer.weights.iter().any(|weight| weight.role == Role::Attention)
}

/// The head of a model whose head is its embedding: the engine builds one in the checkpoint's scheme and puts the
/// embedding's weight into it, so that the rest of the scheme's parameters stay (vLLM 0.32.0, `tie_weights` in
/// `quantization/base_config.py`).
fn tied_head(model: &Model) -> Option<(Place, Weight)> {
    let vocab = |role: Role| {
        (model.outside.iter())
            .flat_map(|part| part.weights.iter().map(move |weight| (part.place, weight)))
            .find(|(_, weight)| weight.role == role && matches!(weight.op, Op::Vocab { .. }))
    };
    if model.pooling.is_some() || vocab(Role::Head).is_some() {
        return None;
    }
    let (place, embedding) = vocab(Role::Embedding).filter(|(_, weight)| weight.quantizable)?;
    let place = if place == Place::Every {
        Place::Every
    } else {
        Place::Last
    };
    Some((place, Weight::new("lm_head", Role::Head, embedding.op.clone())))
}

/// Bytes of all copies of a module on one rank.
pub(super) fn shard_bytes(
    weight: &Weight,
    scheme: Option<Scheme>,
    parallel: &Parallel,
    dtype: Dtype,
    (padding, format): (Mxfp4Padding, Format),
) -> Result<u64> {
    let Some(scheme) = scheme else {
        return weight.bytes(parallel, dtype);
    };
    scheme
        .bytes(&weight.name, &weight.shard(parallel)?, dtype, padding, format)?
        .checked_mul(weight.count)
        .ok_or_else(|| Error::overflow(format_args!("the size of {}", weight.name)))
}

/// Inventories of one model, made when they are first asked for and shared by all copies: a plan and its variants, and
/// plans of the same model on other hardware, read its ignore lists once.
#[derive(Debug, Clone, Default)]
pub struct Inventories(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    by_setting: Mutex<Vec<Entry>>,
    /// Elements of the rotary embedding's tables, by release.
    rotary_elements: Mutex<Vec<(Version, u64)>>,
}

/// What `--quantization` says, and the inventory under it.
type Entry = (Option<String>, Arc<Inventory>);

impl Inventories {
    /// The inventory under a value of `--quantization`; `make` is called if it is not there yet.
    pub(crate) fn get(
        &self,
        setting: Option<&str>,
        make: impl FnOnce() -> Result<Inventory>,
    ) -> Result<Arc<Inventory>> {
        let mut list = whole(&self.0.by_setting);
        if let Some((_, known)) = list.iter().find(|(own, _)| own.as_deref() == setting) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(make()?);
        list.push((setting.map(str::to_owned), Arc::clone(&made)));
        Ok(made)
    }

    /// Elements of the model's rotary tables under a release; `count` is called if they are not there yet.
    pub(crate) fn rotary_elements(
        &self,
        version: Version,
        count: impl FnOnce() -> Result<u64>,
    ) -> Result<u64> {
        let mut list = whole(&self.0.rotary_elements);
        if let Some((_, known)) = list.iter().find(|(own, _)| *own == version) {
            return Ok(*known);
        }
        let elements = count()?;
        list.push((version, elements));
        Ok(elements)
    }
}

/// The list: a thread that panicked while it held the lock left one that is whole.
fn whole<T>(list: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family;
    use crate::catalogue;
    use crate::quant::Mxfp4Padding;

    /// One parameter after the other.
    fn naive(
        model: &Model,
        stage: u64,
        parallel: &Parallel,
        quantization: Option<&Quantization>,
    ) -> Result<u64> {
        let dtype = Dtype::Bf16;
        let mut total = 0u64;
        for (path, weight) in model.stage_weights(stage, parallel, true)? {
            total += match quantization {
                None => weight.bytes(parallel, dtype)?,
                Some(quantization) => quantization.bytes(&path, weight, parallel, dtype)?,
            };
        }
        if let Some((place, head)) = tied_head(model)
            && place.on(stage, parallel.pp)
            && let Some(scheme) = quantization.and_then(|q| q.scheme("lm_head", &head))
        {
            total += scheme.bytes_beside_weight("lm_head", &head.shard(parallel)?, dtype)?;
        }
        let range = parallel.stage_layers(stage, model.layers.len() as u64)?;
        for (i, layer) in (0u64..).zip(&model.layers).filter(|(i, _)| range.contains(i)) {
            if let Some(quantization) = quantization
                && shares_a_cache(layer)
                && quantization.cache_scales != CacheScales::None
                && quantization.scales_cache_at(|| format!("{}.{i}.self_attn.attn", model.layers_path))
                && model
                    .layers
                    .iter()
                    .flat_map(|l| &l.caches)
                    .any(|c| quantization.cache_scales.are_beside(&c.kind, layer))
            {
                total += quantization.cache_scales.bytes(dtype, model.attention_scales)?;
            }
            for cache in &layer.caches {
                if let Some(quantization) = quantization
                    && quantization.cache_scales.are_beside(&cache.kind, layer)
                    && quantization.scales_cache_at(|| format!("{}.{i}.{}", model.layers_path, cache.name))
                {
                    total += quantization.cache_scales.bytes(dtype, model.attention_scales)?;
                }
            }
        }
        Ok(total)
    }

    #[test]
    fn kinds_of_layers_weigh_what_every_layer_on_its_own_does() {
        let mut weighed = 0;
        for entry in catalogue::all() {
            let config = entry.config().unwrap();
            let Ok(family::Reading::Model(model)) = family::read(entry.id, &config) else {
                continue;
            };
            let Ok(quantization) = Quantization::read(&config) else {
                continue;
            };
            let inventory = Inventory::new(&model, quantization.clone());
            assert_eq!(inventory.params(&model).ok(), model.params().ok(), "{}", entry.id);
            for (stage, pp, tp) in [(0, 1, 1), (0, 1, 8), (0, 2, 2), (1, 2, 2)] {
                let parallel = Parallel {
                    pp,
                    ..Parallel::tensor(tp)
                };
                let format = (Dtype::Bf16, Mxfp4Padding::NONE);
                let ours = inventory.bytes(&model, stage, &parallel, format, true);
                let twin = naive(&model, stage, &parallel, quantization.as_ref());
                assert_eq!(ours.ok(), twin.ok(), "{} tp {tp} pp {pp}", entry.id);
                weighed += 1;
            }
        }
        assert!(weighed > 400, "{weighed}");
    }
}
