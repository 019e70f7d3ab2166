//! The description of one model that everything else is computed from.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::{Cache, Heads, Op, Parallel, Role, State, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// A model as its configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What the user called it (hub id, folder or file).
    pub name: String,
    /// Class name from `architectures`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// `model_type` of the outermost configuration.
    pub model_type: String,
    /// `torch_dtype`/`dtype` of the configuration; engines turn float32 into a 16-bit type.
    pub dtype: Option<Dtype>,
    /// Longest sequence in tokens that the configuration allows (the engine's derived maximum).
    pub max_position: Option<u64>,
    /// Query heads; tensor parallelism must divide them.
    pub num_attention_heads: u64,
    /// Key/value heads as the engine's configuration reports them (before tensor parallelism).
    pub num_kv_heads: u64,
    /// Width of the residual stream.
    pub hidden_size: u64,
    /// Tokens in the vocabulary, unpadded.
    pub vocab_size: u64,
    /// Module path of the decoder layers in the engine (`model.layers`); layer 3's query projection is
    /// `model.layers.3.self_attn.qkv_proj`.
    pub layers_path: String,
    /// Decoder layers in order; pipeline stages are contiguous runs of these.
    pub layers: Vec<Layer>,
    /// Everything outside of the layers.
    pub outside: Vec<Outside>,
    /// Layers of a built-in multi-token-prediction drafter (`num_nextn_predict_layers`), 0 if none.
    pub mtp_layers: u64,
    /// Its multi-token prediction where the modules are unlike its own layers.
    pub modules: Option<Box<Modules>>,
    /// How it is served where it generates no text.
    pub pooling: Option<Pooling>,
    /// What its attention layers hold of a quantised checkpoint's scales.
    pub attention_scales: AttentionScales,
    /// A state for which the engine sizes its pages whether a layer keeps one or not (Qwen4-Exp).
    pub sized_for: Option<State>,
    /// Whether the tokens of an image see each other, unless it is served without images.
    pub sees_whole_images: bool,
    /// Whether the engine schedules it as encoder and decoder: prompts in one step, no prefix cached.
    pub encoder_decoder: bool,
    /// Attention that keeps nothing between steps and is aligned with the states beside it all the same (hybrids that
    /// see both ways).
    pub encoder_heads: Option<Heads>,
}

/// Modules of multi-token prediction that are unlike the layers of their model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Modules {
    /// One layer a module, with what joins it to the target.
    pub layers: Vec<Layer>,
    /// Parameters that are there once for all modules.
    pub once: Vec<Weight>,
    /// Whether only as many are built as tokens are drafted.
    pub as_many_as_tokens: bool,
}

/// Whether a class gives its attention layers the checkpoint's quantisation, and in which type these keep the scales
/// that a checkpoint brings for the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionScales {
    /// They are built with it (most classes).
    #[default]
    Own,
    /// They are built with it while the model's element type is the default, which float32 scales become too (the
    /// generic Transformers backend).
    InModelType,
    /// They are built without: no scales, and a cache type that only the checkpoint asks for does not reach them.
    None,
}

/// How an engine serves a model that embeds, classifies or scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// Whether a prompt may be split over steps and its prefix cached: only what later tokens do not change can be
    /// (vLLM 0.32.0, `is_chunked_prefill_supported` in `vllm/config/model.py`).
    pub splits_prompts: bool,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layer {
    /// What it keeps between tokens; empty for layers that share an earlier layer's cache or keep nothing.
    pub caches: Vec<Cache>,
    /// Its parameters.
    pub weights: Weights,
}

/// Layers that one is compared with before it keeps parameters of its own.
const COMPARED: usize = 16;

impl Layer {
    /// Takes the parameters of one of the last of `others` that has the same.
    pub(crate) fn share(&mut self, others: &[Self]) {
        let last = || others.iter().rev().take(COMPARED);
        if last().any(|other| other.weights.is(&self.weights)) {
            return;
        }
        if let Some(same) = last().find(|other| other.weights == self.weights) {
            self.weights = same.weights.clone();
        }
    }

    /// The same for each of a model's layers.
    pub(crate) fn share_all(layers: &mut [Self]) {
        for at in 1..layers.len() {
            let (before, rest) = layers.split_at_mut(at);
            if let Some(layer) = rest.first_mut() {
                layer.share(before);
            }
        }
    }
}

/// A layer's parameters. Layers of one kind share them, which makes copies and comparisons of equal layers cheap; a
/// layer that is changed gets its own. Everything that works on a `Vec<Weight>` works on this.
#[derive(Debug, Clone, Default)]
pub struct Weights(Arc<Vec<Weight>>);

impl Deref for Weights {
    type Target = Vec<Weight>;

    fn deref(&self) -> &Vec<Weight> {
        &self.0
    }
}

impl DerefMut for Weights {
    fn deref_mut(&mut self) -> &mut Vec<Weight> {
        Arc::make_mut(&mut self.0)
    }
}

impl PartialEq for Weights {
    fn eq(&self, other: &Self) -> bool {
        self.is(other) || self.0 == other.0
    }
}

impl Weights {
    /// Whether both are the same in memory, as those of layers of one kind mostly are.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<Vec<Weight>> for Weights {
    fn from(weights: Vec<Weight>) -> Self {
        Self(Arc::new(weights))
    }
}

impl FromIterator<Weight> for Weights {
    fn from_iter<I: IntoIterator<Item = Weight>>(weights: I) -> Self {
        Vec::from_iter(weights).into()
    }
}

/// Parameters of the kinds of layers that a model has, each made once.
#[derive(Debug)]
pub(crate) struct Kinds<K>(Vec<(K, Weights)>);

impl<K> Default for Kinds<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq> Kinds<K> {
    /// The parameters of a kind; `make` is called for the first layer of it.
    pub(crate) fn of(&mut self, kind: K, make: impl FnOnce() -> Vec<Weight>) -> Weights {
        if let Some((_, weights)) = self.0.iter().find(|(known, _)| *known == kind) {
            return weights.clone();
        }
        let weights = Weights::from(make());
        self.0.push((kind, weights.clone()));
        weights
    }
}

impl<'a> IntoIterator for &'a Weights {
    type Item = &'a Weight;
    type IntoIter = std::slice::Iter<'a, Weight>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Weights {
    type Item = &'a mut Weight;
    type IntoIter = std::slice::IterMut<'a, Weight>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// Weights outside of the decoder layers and the pipeline stages that hold them.
#[derive(Debug, Clone, PartialEq)]
pub struct Outside {
    /// Which pipeline stages hold it.
    pub place: Place,
    /// Whether it belongs to a vision or audio tower, which `--language-model-only` leaves out.
    pub tower: bool,
    /// The parameters, with full module paths as names.
    pub weights: Vec<Weight>,
}

/// Which pipeline stages hold a part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first stage only (token embedding).
    First,
    /// The last stage only (final norm, untied head).
    Last,
    /// The first and the last stage, once if they are the same (tied embedding).
    FirstAndLast,
    /// Every stage.
    Every,
}

impl Place {
    /// Whether stage `stage` of `stages` holds this part.
    pub fn on(self, stage: u64, stages: u64) -> bool {
        match self {
            Self::First => stage == 0,
            Self::Last => stage + 1 == stages,
            Self::FirstAndLast => stage == 0 || stage + 1 == stages,
            Self::Every => true,
        }
    }
}

impl Model {
    /// Whether it has an output head beside its embedding.
    pub(crate) fn has_head(&self) -> bool {
        (self.outside.iter())
            .flat_map(|part| &part.weights)
            .any(|weight| weight.role == Role::Head && matches!(weight.op, Op::Vocab { .. }))
    }

    /// Every parameter of one pipeline stage with its full module path, in the order of the layers.
    /// `towers` is false under `--language-model-only`.
    ///
    /// # Errors
    /// If the stage does not exist or there are more stages than layers.
    pub fn stage_weights(
        &self,
        stage: u64,
        parallel: &Parallel,
        towers: bool,
    ) -> Result<impl Iterator<Item = (String, &Weight)>> {
        let range = parallel.stage_layers(stage, self.layers.len() as u64)?;
        let stages = parallel.pp;
        let inside = self
            .layers
            .iter()
            .enumerate()
            .filter(move |(i, _)| range.contains(&(*i as u64)))
            .flat_map(move |(i, layer)| {
                layer
                    .weights
                    .iter()
                    .map(move |w| (format!("{}.{i}.{}", self.layers_path, w.name), w))
            });
        let outside = self
            .outside
            .iter()
            .filter(move |part| part.place.on(stage, stages) && (towers || !part.tower))
            .flat_map(|part| part.weights.iter().map(|w| (w.name.clone(), w)));
        Ok(inside.chain(outside))
    }

    /// Bytes of weights on one tensor-parallel rank of a pipeline stage, unquantised, with `dtype` where the
    /// engine fixes no other element type. `towers` is false under `--language-model-only`.
    ///
    /// # Errors
    /// If a dimension does not divide over the ranks, the stage does not exist, or a size leaves 64 bits.
    pub fn weight_bytes(&self, stage: u64, parallel: &Parallel, dtype: Dtype, towers: bool) -> Result<u64> {
        self.stage_weights(stage, parallel, towers)?
            .try_fold(0u64, |total, (name, weight)| {
                let bytes = weight.bytes(parallel, dtype).map_err(|e| e.at(&name))?;
                total
                    .checked_add(bytes)
                    .ok_or_else(|| Error::overflow("the size of the weights"))
            })
    }

    /// Parameters of the whole model: total, and those that one token uses (of the routed experts only the
    /// chosen ones). Padding is not counted.
    ///
    /// # Errors
    /// If a count leaves 64 bits.
    pub fn params(&self) -> Result<(u64, u64)> {
        let weights = self
            .layers
            .iter()
            .flat_map(|layer| &layer.weights)
            .chain(self.outside.iter().flat_map(|part| &part.weights));
        let mut total = 0u64;
        let mut active = 0u64;
        for weight in weights {
            let overflow = || Error::overflow("the number of parameters");
            total = total.checked_add(weight.elements()?).ok_or_else(overflow)?;
            active = active
                .checked_add(weight.active_elements()?)
                .ok_or_else(overflow)?;
        }
        Ok((total, active))
    }
}
