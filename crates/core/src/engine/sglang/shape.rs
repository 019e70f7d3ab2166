//! What the pools of SGLang hold for one token and one request, on one rank of each pipeline stage.

use super::compressed::{self, Compressed};
use super::context;
use super::element::{element, model_dtype};
use super::memory::{Card, Traits, defaults};
use super::rows::{Pool, Rows};
use super::served;
use super::settings::Settings;
use super::speculative::{DraftLayers, Drafter, Steps};
use super::state;
use super::tower;
use crate::arch::{CacheKind, Config, Heads, Model, State};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Default share of the full pool's tokens that the sliding-window pool has.
const SWA_FULL_TOKENS_RATIO: f64 = 0.8;
/// Running requests beside a drafter where nothing is said (`srt/arg_groups/speculative_hook.py`).
const SPECULATIVE_RUNNING: u64 = 48;

/// Recurrent states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States {
    /// Layers that keep one, of the whole model.
    pub layers: u64,
    /// Bytes that one slot takes on the fullest stage.
    pub bytes_per_slot: u64,
    /// Slots that one running request may need at once.
    pub slots_per_request: u64,
}

/// One pipeline stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Layers in the full pool (every attention layer where there is only one pool).
    pub full_layers: u64,
    /// Layers in the sliding-window pool.
    pub swa_layers: u64,
    /// Bytes that a token takes in all full layers, indexers included.
    pub full_bytes: u64,
    /// Bytes that a token takes in all sliding-window layers.
    pub swa_bytes: u64,
    /// Bytes that the drafter adds to a token of the full (or only) pool.
    pub draft_full_bytes: u64,
    /// Bytes that the drafter adds to a token of the sliding-window pool.
    pub draft_swa_bytes: u64,
    /// Layers of DeepSeek-V4's attention, which has a rule of its own.
    pub compressed: Option<Compressed>,
}

/// What decides the pools.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Facts for the memory rule.
    pub traits: Traits,
    /// `cuda_ipc` features and their cache, MiB that are set aside after loading.
    pub multimodal_mib: f64,
    /// Attention backend.
    pub backend: String,
    /// Tokens in a page.
    pub page_size: u64,
    /// Element type of the pool; bytes where one holds two 4-bit elements.
    pub element: Dtype,
    /// What the pool's type is called in reports.
    pub kv_dtype: &'static str,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// Whether there are two pools.
    pub two_pools: bool,
    /// Window of the sliding layers, where there are two pools.
    pub window: Option<u64>,
    /// Share of the full pool's tokens that the sliding-window pool has.
    pub swa_ratio: f64,
    /// Speculative decoding's steps.
    pub steps: Option<Steps>,
    /// Running requests where nothing is said, for the classes and drafters that set them.
    pub default_running: Option<u64>,
    /// Why the engine would not take these settings for this model and card.
    pub refused: Option<String>,
    /// Recurrent states, if any layer has one.
    pub states: Option<States>,
    /// Prompt tokens of one step, where prompts are chunked.
    pub chunk_tokens: Option<u64>,
    /// Longest request (`--context-length`, else the configuration's).
    pub context_len: u64,
    /// What one should know.
    pub warnings: Vec<String>,
}

/// Reads a model the way SGLang's configurators do.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where SGLang's pool for a kind of attention is not known
/// here, and for sizes that leave 64 bits.
pub fn shape(model: &Model, config: &Config, settings: &Settings, card: &Card) -> Result<Shape> {
    let class = model.architecture.as_str();
    let kinds = || {
        model
            .layers
            .iter()
            .flat_map(|layer| &layer.caches)
            .map(|c| &c.kind)
    };
    if let Some(kind) = kinds().find_map(|kind| not_planned(class, kind)) {
        return Err(
            Error::unsupported(format!("{class}: SGLang's pool for {kind} is not planned"))
                .hint("--engine vllm plans this model"),
        );
    }
    let mla = kinds().any(|k| matches!(k, CacheKind::Latent { .. }));
    let text = text_config(config)?;
    let compressed = served::is_compressed(model);
    let two = served::two_pools(class) && kinds().any(is_windowed) || compressed;
    let uneven = kinds().any(|k| heads(k).is_some_and(|h| h.head_dim != h.head_dim_v));
    let backend = served::attention_backend(model, settings, card, mla, uneven);
    let page_size = served::page_size(model, settings, card, &backend, mla);
    let sparse = kinds().any(|k| matches!(k, CacheKind::Latent { sparse: true, .. }));
    let model_dtype = model_dtype(model, settings, card);
    let (element, kv_dtype) = element(config, settings, card, model_dtype, sparse, compressed)?;
    let vision = tower::vision(class, config, settings)?;
    let kda = kinds().any(|k| matches!(k, CacheKind::State(State::Kda { .. })));
    let states = states(model, &text, settings)?;
    let longest = context::derived(model, config, &text)?;
    let refused = served::refuses_kv_dtype(model, settings, card, &backend, mla)
        .or_else(|| {
            let drafts = settings.speculative.as_ref()?;
            drafts.refused(class, &backend, page_size, settings.attention_dp())
        })
        .or_else(|| {
            context::refused(
                settings.context_length.filter(|_| !settings.longer_context),
                longest,
            )
        });
    let rows = Rows::of(
        model,
        &text,
        settings,
        &Pool {
            element,
            card,
            backend: &backend,
            two,
            mla,
        },
    )?;
    let drafter = match &settings.speculative {
        Some(speculative) => speculative.layers(model)?,
        None => None,
    };
    // A configuration that counts no modules is charged for none, though there is nothing to draft with.
    let none = text.u64("num_nextn_predict_layers")? == Some(0)
        && drafter.is_some()
        && settings
            .speculative
            .as_ref()
            .is_some_and(|s| !matches!(s.drafter, Drafter::Model(_)));
    let drafter = drafter.filter(|_| !none);
    let mut stages = Vec::new();
    let layers = model.layers.len() as u64;
    let with_buffers = served::layers_with_buffers(class, config)?;
    let layer_kinds = layer_kinds(model, &text, two, states.is_some());
    for stage in 0..settings.pp() {
        let (first, end) = stage_layers(layers, stage, settings.pp())?;
        let range = usize::try_from(first).unwrap_or(0)..usize::try_from(end).unwrap_or(0);
        let count = |wanted: Place| {
            layer_kinds[range.clone()]
                .iter()
                .filter(|&&p| p == wanted)
                .count() as u64
        };
        let (full_layers, swa_layers) = (with_buffers.unwrap_or(count(Place::Full)), count(Place::Window));
        let too_large = || Error::overflow("the KV cache of one token");
        let mut full_bytes = rows
            .full
            .checked_mul(full_layers)
            .and_then(|bytes| bytes.checked_add(if full_layers > 0 { rows.shared } else { 0 }))
            .ok_or_else(too_large)?;
        if rows.indexer > 0 {
            let indexers = model.layers[range.clone()]
                .iter()
                .filter(|l| {
                    l.caches
                        .iter()
                        .any(|c| matches!(c.kind, CacheKind::Indexer { .. }))
                })
                .count() as u64;
            full_bytes = rows
                .indexer
                .checked_mul(indexers)
                .and_then(|b| b.checked_add(full_bytes))
                .ok_or_else(too_large)?;
        }
        let mut stage = Stage {
            full_layers,
            swa_layers,
            full_bytes,
            swa_bytes: rows.window.checked_mul(swa_layers).ok_or_else(too_large)?,
            draft_full_bytes: 0,
            draft_swa_bytes: 0,
            compressed: None,
        };
        if compressed {
            stage.set_compressed(&model.layers[range], settings.speculative.is_some())?;
        } else if let Some(drafter) = drafter {
            stage.add_drafter(&rows, drafter, two, sparse)?;
        }
        stages.push(stage);
    }
    let hopper_qwen_vl = card.capability.0 == 9
        && card.memory_mib >= 60.0 * 1024.0
        && ["qwen3_vl", "qwen3_vl_moe"].contains(&model.model_type.as_str())
        && vision.is_some();
    let multimodal_mib = match vision {
        None => 0.0,
        // Large Hopper cards turn the embedding cache off and keep features on the GPU.
        Some(_) if hopper_qwen_vl => {
            if settings.max_running_requests.is_some_and(|n| n >= 400) {
                3072.0
            } else {
                1024.0
            }
        }
        Some(_) => 100.0,
    };
    let hears = vision.is_none()
        && served::hears(class)
        && !settings.language_model_only
        && config.sub("vision_config")?.is_none();
    let multimodal_mib = if hears { 100.0 } else { multimodal_mib };
    let traits = Traits {
        mla,
        prefill_graphs: served::prefill_graphs(class, vision.is_some() || hears, kda),
        llama_2: model.name.to_ascii_lowercase().contains("llama-2"),
        vision,
        grows_with_running: hopper_qwen_vl,
    };
    let mut warnings = Vec::new();
    if none {
        warnings.push(
            "the configuration counts no prediction modules (num_nextn_predict_layers is 0): SGLang will not find a drafter in \
             this checkpoint"
                .to_owned(),
        );
    }
    if let Some(given) = settings.page_size
        && given != page_size
    {
        warnings.push(format!(
            "--page-size {given} is not what {backend} takes on this card: SGLang changes it to {page_size}"
        ));
    }
    Ok(Shape {
        traits,
        multimodal_mib,
        backend,
        page_size,
        element,
        kv_dtype,
        stages,
        two_pools: two,
        window: two.then(|| kinds().find_map(window)).flatten(),
        swa_ratio: settings.swa_full_tokens_ratio.unwrap_or(if compressed {
            compressed::WINDOW_RATIO
        } else {
            SWA_FULL_TOKENS_RATIO
        }),
        steps: settings.speculative.as_ref().map(|s| s.steps(class)),
        default_running: if compressed {
            Some(compressed::RUNNING)
        } else {
            settings.speculative.as_ref().map(|_| SPECULATIVE_RUNNING)
        },
        refused,
        states,
        chunk_tokens: defaults(settings, card, &traits).chunked_prefill_size,
        context_len: settings.context_length.unwrap_or(longest),
        warnings,
    })
}

/// Which pool a layer's cache is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Full,
    Window,
    Neither,
}

/// The pool of every layer. With one pool all layers are charged, also those that share an earlier layer's cache or keep
/// nothing; beside recurrent layers only the attention layers are; with two pools `layer_types` decides where the
/// configuration has it.
fn layer_kinds(model: &Model, text: &Config, two: bool, hybrid: bool) -> Vec<Place> {
    let types = if two {
        text.strs("layer_types").unwrap_or_default()
    } else {
        None
    };
    let types = types.filter(|t| t.len() >= model.layers.len());
    model
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            if let Some(types) = &types {
                return match types[i] {
                    "sliding_attention" => Place::Window,
                    "full_attention" => Place::Full,
                    _ => Place::Neither,
                };
            }
            let attends = layer.caches.iter().any(|c| row_kind(&c.kind));
            let windowed = layer.caches.iter().any(|c| is_windowed(&c.kind));
            match (two, hybrid) {
                (true, _) if windowed => Place::Window,
                (true, _) | (false, true) if !attends => Place::Neither,
                _ => Place::Full,
            }
        })
        .collect()
}

pub(super) fn is_windowed(kind: &CacheKind) -> bool {
    matches!(kind, CacheKind::Sliding { .. } | CacheKind::Chunked { .. })
}

fn row_kind(kind: &CacheKind) -> bool {
    heads(kind).is_some() || matches!(kind, CacheKind::Latent { .. })
}

pub(super) fn heads(kind: &CacheKind) -> Option<Heads> {
    match kind {
        CacheKind::Full(heads) | CacheKind::Sliding { heads, .. } | CacheKind::Chunked { heads, .. } => {
            Some(*heads)
        }
        _ => None,
    }
}

fn window(kind: &CacheKind) -> Option<u64> {
    match kind {
        CacheKind::Sliding { window, .. }
        | CacheKind::Compressed { window, .. }
        | CacheKind::SharedCompressed { window, .. } => Some(*window),
        CacheKind::Chunked { chunk, .. } => Some(*chunk),
        _ => None,
    }
}

fn not_planned(class: &str, kind: &CacheKind) -> Option<&'static str> {
    match kind {
        // What a decoder attends to across is written to the slots of its own tokens.
        CacheKind::Cross(_) if served::crosses_in_one_pool(class) => None,
        CacheKind::ConvWindow { .. } => Some("windows of convolutions"),
        CacheKind::SlidingLatent { .. } => Some("windows of latents"),
        CacheKind::SharedCompressed { .. } => Some("compressed states that layers share"),
        CacheKind::PooledIndexer { .. } | CacheKind::Ring { .. } => Some("indexers over pools of tokens"),
        CacheKind::Cross(_) => Some("cross attention"),
        _ => None,
    }
}

impl Stage {
    /// DeepSeek-V4's layers; the bytes are for reports, the pool is sized by the layers.
    fn set_compressed(&mut self, layers: &[crate::arch::Layer], speculative: bool) -> Result<()> {
        let mut all = Compressed::default();
        for cache in layers.iter().flat_map(|layer| &layer.caches) {
            if let CacheKind::Compressed {
                ratio,
                head_dim,
                index_head_dim,
                ..
            } = &cache.kind
            {
                all.add(*ratio, *head_dim, *index_head_dim)?;
            }
        }
        let cells = all.cells(speculative);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few thousand bytes, rounded up"
        )]
        let whole = |x: f64| x.ceil() as u64;
        self.full_layers = all.fours + all.hundreds;
        self.swa_layers = all.layers;
        self.full_bytes = whole(cells.full);
        self.swa_bytes = whole(cells.window);
        self.compressed = Some(all);
        Ok(())
    }

    /// The drafter's layers, charged as the target's.
    fn add_drafter(&mut self, rows: &Rows, drafter: DraftLayers, two: bool, sparse: bool) -> Result<()> {
        let too_large = || Error::overflow("the drafter's cache of one token");
        let times = |a: u64, b: u64| a.checked_mul(b).ok_or_else(too_large);
        if two {
            let full = drafter.layers.saturating_sub(drafter.window_layers);
            self.draft_full_bytes = times(rows.full, full)?;
            self.draft_swa_bytes = times(rows.window, drafter.window_layers)?;
        } else if self.full_layers > 0 {
            let target = self.full_bytes;
            let of = |bytes: u64| -> Result<u64> {
                // `int(bytes * layers / target layers)`.
                Ok(times(bytes, drafter.layers)? / self.full_layers)
            };
            self.draft_full_bytes = if sparse {
                // Modules hold an indexer each, also where the target's layers share one.
                let latents = times(rows.full, self.full_layers)?;
                of(latents)?
                    .checked_add(times(rows.indexer, drafter.layers)?)
                    .ok_or_else(too_large)?
            } else {
                of(target)?
            };
        }
        Ok(())
    }
}

/// The layers `[first, end)` of a stage; a remainder goes to the last stages (0.5.23, `srt/distributed/utils.py`).
fn stage_layers(layers: u64, stage: u64, stages: u64) -> Result<(u64, u64)> {
    if stages > layers.max(1) {
        return Err(Error::unsupported(format!(
            "{layers} layers cannot be divided over {stages} pipeline stages"
        ))
        .hint("use at most one pipeline stage a layer"));
    }
    let (even, rest) = (layers / stages, layers % stages);
    let before = |s: u64| s * even + s.saturating_sub(stages - rest);
    Ok((before(stage), before(stage + 1)))
}

fn states(model: &Model, text: &Config, settings: &Settings) -> Result<Option<States>> {
    let ssm = match text.str("mamba_ssm_dtype").unwrap_or_default() {
        Some("bfloat16") => Dtype::Bf16,
        Some("float16") => Dtype::F16,
        _ => Dtype::F32,
    };
    // Models of recurrent layers alone divide their states by all ranks (`srt/configs/mamba.py`, `mamba2.py`).
    let ranks = if served::recurrent_alone(&model.architecture) {
        settings.tp()
    } else {
        settings.attention_tp()
    };
    let mut layers = Vec::new();
    let mut bytes = 0;
    for (i, layer) in model.layers.iter().enumerate() {
        for cache in &layer.caches {
            if let CacheKind::State(one) = &cache.kind {
                bytes = state::bytes(one, ranks, ssm)?.max(bytes);
                layers.push(i as u64);
            }
        }
    }
    if layers.is_empty() {
        return Ok(None);
    }
    // Every rank charges the largest stage's share, so that all come to the same number of slots.
    let mut fullest = 0;
    for stage in 0..settings.pp() {
        let (first, end) = stage_layers(model.layers.len() as u64, stage, settings.pp())?;
        fullest = layers
            .iter()
            .filter(|&&i| i >= first && i < end)
            .count()
            .max(fullest);
    }
    let extra = served::extra_buffer(&model.architecture, settings);
    let slots_per_request = match (settings.disable_radix_cache, extra) {
        (true, _) => 1,
        (false, false) => 3,
        // Two tracking slots, or one where steps do not overlap.
        (false, true) if settings.in_order() => 4,
        (false, true) => 5,
    };
    Ok(Some(States {
        layers: layers.len() as u64,
        bytes_per_slot: stage_share(bytes, layers.len() as u64, fullest as u64)?,
        slots_per_request,
    }))
}

/// Bytes of one slot on the fullest stage: the whole model's times the share of its layers, in the engine's floats.
fn stage_share(bytes: u64, layers: u64, fullest: u64) -> Result<u64> {
    let all = bytes
        .checked_mul(layers)
        .ok_or_else(|| Error::overflow("the recurrent states of one request"))?;
    if fullest == layers {
        return Ok(all);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a part of a byte count"
    )]
    let share = (all as f64 * (fullest as f64 / layers as f64)) as u64;
    Ok(share)
}

/// The configuration of the language model.
fn text_config(config: &Config) -> Result<Config> {
    for key in ["text_config", "llm_config", "language_config"] {
        if let Some(inner) = config.sub(key)? {
            return Ok(inner);
        }
    }
    Ok(config.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remainder_of_layers_goes_to_the_last_stages() {
        // get_pp_indices of 0.5.23 gives these.
        let all = |layers, stages| -> Vec<u64> {
            (0..stages)
                .map(|s| stage_layers(layers, s, stages).map(|(a, b)| b - a).unwrap())
                .collect()
        };
        assert_eq!(all(61, 4), [15, 15, 15, 16]);
        assert_eq!(all(62, 4), [15, 15, 16, 16]);
        assert_eq!(all(80, 8), [10; 8]);
        assert!(stage_layers(3, 0, 4).is_err());
    }
}
