//! What the scheduler may do in one step, after the version's defaults.

use super::Planner;
use crate::arch::{CacheKind, Model};
use crate::engine::vllm::gpu::Gpu;
use crate::engine::vllm::refusal::RefusalKind;
use crate::engine::vllm::settings::{MaxModelLen, Settings};
use crate::engine::vllm::version::{Rules, StateCaching};
use crate::{Error, Result};

/// Tokens and sequences of one step, as set or by the version's defaults for this model and GPU.
///
/// # Errors
/// If a product leaves 64 bits.
pub fn step_limits(model: &Model, settings: &Settings, gpu: Gpu) -> Result<(u64, u64)> {
    let limits = Planner::new(model, settings, gpu).limits(&Kinds::of(model))?;
    Ok((limits.batched_tokens, limits.seqs))
}

/// Scheduler limits after defaults.
pub(super) struct Limits {
    pub(super) max_model_len: u64,
    pub(super) batched_tokens: u64,
    pub(super) seqs: u64,
    pub(super) in_flight_tokens: u64,
    pub(super) prefix_caching: bool,
}

/// What kinds of caches a model has.
pub(super) struct Kinds {
    pub(super) attention: bool,
    pub(super) state: bool,
    pub(super) cross: bool,
    pub(super) latent: bool,
    pub(super) compressed: bool,
    /// Whether pages of several sizes lie side by side in a block.
    pub(super) packed: bool,
    pub(super) chunked: bool,
}

impl Kinds {
    pub(super) fn of(model: &Model) -> Self {
        let mut kinds = Self {
            attention: false,
            state: false,
            cross: false,
            latent: false,
            compressed: false,
            packed: false,
            chunked: false,
        };
        for cache in model.layers.iter().flat_map(|layer| &layer.caches) {
            match cache.kind {
                CacheKind::State(_) => kinds.state = true,
                CacheKind::Cross(_) => kinds.cross = true,
                CacheKind::Latent { .. } => (kinds.attention, kinds.latent) = (true, true),
                CacheKind::Compressed { .. } | CacheKind::SharedCompressed { .. } => {
                    (kinds.attention, kinds.latent, kinds.compressed) = (true, true, true);
                }
                CacheKind::Chunked { .. } => (kinds.attention, kinds.chunked) = (true, true),
                CacheKind::Ring { .. } => kinds.packed = true,
                CacheKind::SlidingLatent { .. } => {
                    (kinds.attention, kinds.latent, kinds.packed) = (true, true, true);
                }
                CacheKind::Full(_)
                | CacheKind::Sliding { .. }
                | CacheKind::Indexer { .. }
                | CacheKind::PooledIndexer { .. }
                | CacheKind::ConvWindow { .. } => kinds.attention = true,
            }
        }
        kinds
    }
}

/// Whether prompts of a model are taken in one step: encoder-decoders, and what pools over all tokens.
fn whole_prompts(model: &Model, kinds: &Kinds) -> bool {
    kinds.cross || model.encoder_decoder || model.pooling.is_some_and(|pooling| !pooling.splits_prompts)
}

/// Whether prefixes are cached where the user `asked` for it, forbade it or said nothing (vLLM 0.32.0,
/// `is_prefix_caching_supported` in `config/model.py`; what releases do with recurrent states is in
/// [`version`](super::super::version)).
fn caching(model: &Model, kinds: &Kinds, rules: &Rules, asked: Option<bool>) -> bool {
    let default = rules.caches_prefixes_by_default && kinds.attention && !whole_prompts(model, kinds);
    match rules.state_caching {
        StateCaching::Never if kinds.state => false,
        StateCaching::OnRequest if kinds.state => asked.unwrap_or(false),
        _ => asked.unwrap_or(default),
    }
}

/// Whether all that a model keeps are recurrent states; the engine caches their prefixes on request alone (vLLM 0.32.0,
/// `is_prefix_caching_supported` in `config/model.py`).
pub fn keeps_states_only(model: &Model) -> bool {
    let kinds = Kinds::of(model);
    kinds.state && !kinds.attention
}

impl Planner<'_> {
    /// The limits, and refusals of those that contradict each other.
    pub(super) fn limits(&mut self, kinds: &Kinds) -> Result<Limits> {
        let derived = self.model.max_position.unwrap_or(2048).max(1);
        let max_model_len = match self.settings.max_model_len {
            MaxModelLen::Derived => derived,
            MaxModelLen::Auto => {
                if !self.rules.fits_length {
                    self.refuse(
                        RefusalKind::MaxModelLen,
                        format!(
                            "--max-model-len auto is not known to vLLM {}; it came with 0.14.0",
                            self.settings.version
                        ),
                    );
                }
                derived
            }
            MaxModelLen::Tokens(tokens) => {
                if tokens > derived {
                    self.refuse(
                        RefusalKind::MaxModelLen,
                        format!(
                            "User-specified max_model_len ({tokens}) is greater than the derived max_model_len ({derived}, from the model's config.json)"
                        ),
                    );
                }
                tokens
            }
        };
        let ranks = (self.settings.tensor_parallel_size).saturating_mul(self.settings.pipeline_parallel_size);
        let defaults = (self.rules.batch_defaults(&self.gpu, max_model_len)).of_ranks(&self.gpu, ranks);
        let seqs = self.settings.max_num_seqs.unwrap_or(defaults.max_num_seqs);
        let pooling = self.model.pooling;
        let whole_prompts = whole_prompts(self.model, kinds);
        let batched_tokens = self.settings.max_num_batched_tokens.unwrap_or_else(|| {
            // A model that does not split prompts takes a whole one a step.
            let default = defaults.max_num_batched_tokens;
            let whole = if whole_prompts {
                default.max(max_model_len)
            } else {
                default
            };
            whole.min(seqs.saturating_mul(max_model_len))
        });
        let seqs = if self.settings.max_num_seqs.is_some() {
            seqs
        } else {
            seqs.min(batched_tokens)
        };
        if batched_tokens < seqs {
            self.refuse(
                RefusalKind::Scheduler,
                format!(
                    "max_num_batched_tokens ({batched_tokens}) must be greater than or equal to max_num_seqs ({seqs})."
                ),
            );
        }
        if whole_prompts && batched_tokens < max_model_len {
            self.refuse(
                RefusalKind::Scheduler,
                format!(
                    "max_num_batched_tokens ({batched_tokens}) is smaller than max_model_len ({max_model_len}), and this model's prompts are not split."
                ),
            );
        }
        let batches = if self.rules.charges_in_flight_batches {
            self.settings.max_concurrent_batches(pooling.is_some())
        } else {
            1
        };
        Ok(Limits {
            max_model_len,
            batched_tokens,
            seqs,
            in_flight_tokens: batched_tokens
                .checked_mul(batches)
                .ok_or_else(|| Error::overflow("the tokens in flight"))?,
            prefix_caching: caching(
                self.model,
                kinds,
                &self.rules,
                self.settings.enable_prefix_caching,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::arch::family::{Reading, read};
    use crate::catalogue;
    use crate::engine::vllm::Version;
    use crate::engine::vllm::layout;

    fn model(name: &str) -> Model {
        let config = catalogue::find(name).unwrap().config().unwrap();
        match read(name, &config).unwrap() {
            Reading::Model(model) => *model,
            Reading::Refused(refusal) => panic!("{}", refusal.reason),
        }
    }

    #[test]
    fn prefixes_of_models_with_states_are_cached_as_each_release_does_it() {
        let hybrid = model("Qwen/Qwen3-Next-80B-A3B-Instruct");
        let cached = |minor, asked| {
            let settings = Settings {
                version: Version::new(0, minor, 0),
                max_model_len: MaxModelLen::Tokens(8192),
                tensor_parallel_size: 4,
                enable_prefix_caching: asked,
                ..Settings::default()
            };
            let gpu = Gpu::new("h100", 9, 0, 80 << 30);
            let held = layout(&hybrid, &settings, gpu, &[30 << 30])
                .unwrap()
                .layout
                .unwrap();
            (held.prefix_caching, held.mamba_block_size == Some(8192))
        };
        // Without it a state's block is as long as a request.
        assert_eq!(cached(11, None), (false, true));
        assert_eq!(cached(11, Some(true)), (false, true));
        assert_eq!(cached(20, None), (false, true));
        assert_eq!(cached(20, Some(true)), (true, false));
        assert_eq!(cached(28, None), (true, false));
        assert_eq!(cached(32, Some(false)), (false, true));
    }

    #[test]
    fn other_models_cache_prefixes_since_the_v1_engine_unless_they_cannot() {
        let cached = |name: &str, minor, asked| {
            let model = model(name);
            let rules = Rules::of(Version::new(0, minor, 0));
            caching(&model, &Kinds::of(&model), &rules, asked)
        };
        assert!(!cached("Qwen/Qwen3-8B", 7, None));
        assert!(cached("Qwen/Qwen3-8B", 8, None) && cached("Qwen/Qwen3-8B", 32, None));
        assert!(!cached("openai/whisper-large-v3", 32, None));
        let text = r#"{"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 2, "state_size": 16, "conv_kernel": 4, "time_step_rank": 4,
            "vocab_size": 256}"#;
        let Reading::Model(states) = read("states", &Config::parse(text.as_bytes()).unwrap()).unwrap() else {
            panic!("refused")
        };
        let rules = Rules::of(Version::new(0, 32, 0));
        let of_states = |asked| caching(&states, &Kinds::of(&states), &rules, asked);
        assert!(keeps_states_only(&states) && !of_states(None) && of_states(Some(true)));
    }
}
