//! One description of each architecture: from its configuration to a [`Model`].
//!
//! A row of the registry names the classes and the function that reads them. [`Text`] finds the language model's
//! part of a file and fills in class defaults, [`Dense`](dense::Dense) makes the decoder that most models share.

mod agree;
mod assistant;
mod crossing;
mod deepseek;
mod deepseek_v4;
mod deepseek_v41;
pub(crate) mod defaults;
mod delta;
pub mod dense;
mod dflash;
mod dots3;
mod dspark;
mod eagle;
mod embedder;
mod encoder;
mod ernie_vl;
mod gemma;
mod generic;
mod generic_moe;
mod glm5_next;
mod gpt;
mod hy_v4;
mod hybrid;
mod inkling;
mod k2_horizon;
mod kimi;
mod lilicorr;
mod llama;
mod llama4;
mod mamba;
mod medusa;
mod mimo_v2;
mod minicpm;
mod minimax;
mod mixtral;
pub mod mla;
pub mod moe;
mod molmo;
mod moondream;
mod names;
mod nemotron_h;
mod pangu;
mod phi4_multimodal;
mod pooling;
mod quirks;
mod qwen;
mod qwen4;
mod refusal;
mod registry;
mod rotary;
mod shared_moe;
mod special;
mod speculators;
pub(crate) mod stages;
mod standing;
mod step;
mod strict;
pub mod text;
mod tower;
mod unquantized;
mod whisper;
mod zamba;

pub use assistant::read_assistant;
pub use dense::Decoder;
pub use dflash::{Block, context_copies, read_block_drafter};
pub use eagle::{Eagle, read_eagle};
pub use medusa::read_medusa;
pub use refusal::Refusal;
pub use rotary::rotary_elements;
pub use standing::{Standing, standing};
pub use text::Text;

use super::{AttentionScales, CacheKind, Config, Layer, Model, Role, drafter};
use crate::{Error, ErrorKind, Result};
use registry::Reader;

/// Wrappers that are followed from a file to its language model.
const MAX_WRAPPERS: usize = 4;

/// What a configuration turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// A model that the engine serves.
    Model(Box<Model>),
    /// A model that the engine would refuse.
    Refused(Refusal),
}

/// Every class that [`read`] knows.
pub fn classes() -> impl Iterator<Item = &'static str> {
    registry::classes()
}

/// The part of a configuration (`vision_config`, `audio_config`) that describes a tower whose weights
/// [`read`] does not count, so that a plan without `--language-model-only` can say so.
///
/// # Errors
/// As [`read`], if the class cannot be told.
pub fn unread_tower(config: &Config) -> Result<Option<&'static str>> {
    let (class, _) = pooling::resolve(&class_of(config)?);
    Ok(tower::unread(&class, config))
}

/// Why the engine finds no configuration class for a file, which it looks up by `model_type`, by the code beside the file,
/// or for two classes by their names (vLLM 0.32.0, `transformers_utils/config.py`); `None` if it finds one.
pub fn unrecognised(config: &Config) -> Option<&'static str> {
    let class = class_of(config).unwrap_or_default();
    let found = config.get("model_type").is_some()
        || config.get("speculators_config").is_some()
        || config
            .get("auto_map")
            .is_some_and(|code| code.get("AutoConfig").is_some())
        || matches!(
            class.as_str(),
            "LongcatFlashForCausalLM" | "LongcatFlashNgramForCausalLM"
        );
    (!found).then_some(
        "Unrecognized model: the configuration has no model_type, by which the engine finds its class",
    )
}

/// What to change in a file that is [`unrecognised`].
pub const NAME_THE_TYPE: &str = "add \"model_type\" to the file, as the model's page has it";

/// Reads a model from its configuration, as vLLM 0.32.0 would build it. `name` is what the user called it.
///
/// # Errors
/// If a value in the configuration cannot be used: it says which field, its value and what was expected.
pub fn read(name: &str, config: &Config) -> Result<Reading> {
    match read_with(name, config, true) {
        Ok(model) => Ok(Reading::Model(Box::new(model))),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let architecture = class_of(config)?;
            let (built, _) = pooling::resolve(&architecture);
            Ok(Reading::Refused(Refusal {
                reason: error.to_string(),
                of_file: registry::reader(&built).is_some(),
                fix: error.hints().first().cloned(),
                model: read_with(name, config, false).ok().map(Box::new),
                architecture,
            }))
        }
        Err(error) => Err(error),
    }
}

/// Reads a model; without `agreeing` also one that the engine refuses because its file does not agree with itself.
fn read_with(name: &str, config: &Config, agreeing: bool) -> Result<Model> {
    let class = class_of(config)?;
    let (built, pooled) = pooling::resolve(&class);
    let text = if agreeing {
        Text::find(&built, config)?
    } else {
        Text::find_disagreeing(&built, config)?
    };
    let mut decoder = decoder(&text)?;
    let pooling = match &pooled {
        Some(pooled) => Some(pooled.finish(&text, &mut decoder)?),
        None => None,
    };
    Layer::share_all(&mut decoder.layers);
    decoder.outside.extend(tower::read(&built, &text)?);
    let encoder_decoder = match encodes_and_decodes(&text, &decoder) {
        Err(error) if !agreeing && error.kind() == ErrorKind::Unsupported => false,
        answer => answer?,
    };
    let optional = |read: Result<u64>, keys: &[&str]| {
        if keys.iter().any(|key| text.config.get(key).is_some()) {
            read
        } else {
            Ok(0)
        }
    };
    let heads = optional(text.heads(), &["num_attention_heads", "n_head", "n_heads"])?;
    Ok(Model {
        name: name.to_owned(),
        model_type: text.top.str("model_type")?.unwrap_or_default().to_owned(),
        dtype: if pooled.is_some() {
            pooling::dtype(&text)?
        } else {
            text.dtype()?
        },
        max_position: text.max_length()?,
        num_attention_heads: heads,
        num_kv_heads: match decoder.kv_heads {
            Some(n) => n,
            None if heads == 0 => 0,
            None => text.kv_heads()?,
        },
        hidden_size: text.hidden()?,
        vocab_size: text.vocab()?,
        layers_path: decoder.layers_path,
        layers: decoder.layers,
        outside: decoder.outside,
        mtp_layers: match decoder.mtp_layers {
            0 => drafter::modules(&class, &text.config)?,
            counted => counted,
        },
        modules: decoder.modules,
        pooling,
        attention_scales: decoder.attention_scales,
        sized_for: decoder.sized_for,
        encoder_heads: decoder.encoder_heads,
        sees_whole_images: sees_whole_images(&text)?,
        encoder_decoder,
        architecture: class,
    })
}

/// Whether the engine schedules a model as encoder and decoder, which a file may ask for: it then takes prompts in one step
/// and caches no prefix. A class without a tower does not start that way, as the scheduler looks for its encoder's input
/// (vLLM 0.32.0, `v1/core/sched/scheduler.py`).
fn encodes_and_decodes(text: &Text, decoder: &Decoder) -> Result<bool> {
    let Some(key) = strict::encoder_decoder_key(&text.top, &text.config)? else {
        return Ok(false);
    };
    let crosses = (decoder.layers.iter().flat_map(|layer| &layer.caches))
        .any(|cache| matches!(cache.kind, CacheKind::Cross(_)));
    if crosses || decoder.outside.iter().any(|part| part.tower) {
        return Ok(true);
    }
    Err(Error::unsupported(format!(
        "{key} is true, and Encoder-decoder models are expected to implement the multimodal interface with at most one \
         modality, which {} does not",
        text.class
    ))
    .hint(format!("leave {key} out, or set it to false: {} decodes alone", text.class)))
}

/// Kinds of models whose image tokens see each other whatever their file says (vLLM 0.32.0, `is_mm_prefix_lm` in
/// `transformers_utils/model_arch_config_convertor.py`).
const SEE_WHOLE_IMAGES: [&str; 5] = ["bagel", "gemma3", "molmo2", "moondream3", "paligemma"];

/// Whether the tokens of an image see each other.
fn sees_whole_images(text: &Text) -> Result<bool> {
    let kind = text.top.str("model_type")?.unwrap_or_default();
    if kind.starts_with("gemma4") || kind.starts_with("diffusion_gemma") {
        // A boolean elsewhere.
        let both_ways = text.config.get("use_bidirectional_attention");
        return Ok(both_ways.and_then(serde_json::Value::as_str) == Some("vision"));
    }
    text.top.flag("is_mm_prefix_lm", SEE_WHOLE_IMAGES.contains(&kind))
}

/// The class that a file asks for: the first of `architectures`, else the model of its `model_type` without a head,
/// which embeds.
fn class_of(config: &Config) -> Result<String> {
    if let Some(class) = config
        .strs("architectures")?
        .and_then(|list| list.first().copied())
    {
        return Ok(class.to_owned());
    }
    let model_type = config.str("model_type")?.unwrap_or_default();
    strict::base_class(model_type).map(str::to_owned).ok_or_else(|| {
        Error::input(format!(
            "{} is missing from the configuration, and model_type {model_type:?} does not tell the class",
            config.name("architectures")
        ))
        .hint("add \"architectures\": [\"LlamaForCausalLM\"] or the class the model's page names")
    })
}

/// The decoder of `text.class`, through wrappers.
fn decoder(text: &Text) -> Result<Decoder> {
    if text.wrappers > MAX_WRAPPERS {
        return Err(Error::input(format!(
            "{} is {}, which leads to itself: its own language model has that class again",
            text.config.name("architectures"),
            text.class
        ))
        .hint("name the class of the language model there"));
    }
    match registry::reader(&text.class) {
        Some(Reader::Own(read)) => {
            let seen = quirks::seen_by_class(text);
            let mut decoder = read(seen.as_ref().unwrap_or(text))?;
            stages::place(text, &mut decoder);
            unquantized::apply(&text.class, &mut decoder);
            names::apply(&text.class, &mut decoder);
            encoder::turn(text, &mut decoder)?;
            Ok(decoder)
        }
        Some(Reader::Generic(read)) => {
            let mut decoder = read(text)?;
            decoder.attention_scales = AttentionScales::InModelType;
            // That backend divides shared experts whatever becomes of tokens (`models/transformers/moe.py`).
            for weight in decoder.layers.iter_mut().flat_map(|layer| &mut layer.weights) {
                if weight.role == Role::SharedExpert {
                    weight.whole_where_tokens_spread = Some(false);
                }
            }
            stages::place_generic(&mut decoder);
            unquantized::apply(&text.class, &mut decoder);
            names::apply(&text.class, &mut decoder);
            Ok(decoder)
        }
        Some(Reader::Inner(fixed)) => {
            let inner = match fixed {
                Some(class) => class.to_owned(),
                None => inner_class(text)?,
            };
            decoder(&text.inner(&inner)?)
        }
        None => Err(undescribed(&text.class)),
    }
}

/// Why a class has no description. Only the engine's own refusals count as such: it may well serve what this program
/// cannot describe.
fn undescribed(class: &str) -> Error {
    let unknown = match standing(class) {
        Standing::Refused(reason) => return Error::unsupported(reason),
        Standing::Drafter(how) => {
            return Error::not_found(format!(
                "{class} drafts for another model and serves no text alone: {how}"
            ))
            .hint("plan the model it drafts for, and name this one in --speculative-config");
        }
        Standing::Undescribed(why) => {
            Error::not_found(format!("the architecture {class} is not described here: {why}"))
        }
        Standing::Described(_) | Standing::Unknown => {
            Error::not_found(format!("the architecture {class} is not described here yet"))
        }
    };
    unknown
        .hint("--engine generic with --params-b plans without knowing the layers")
        .hint("CONTRIBUTING.md shows how to describe one")
}

/// The decoder of a wrapper's language model, for wrappers that add something to it.
pub(crate) fn language_model(text: &Text) -> Result<Decoder> {
    decoder(&text.inner(&inner_class(text)?)?)
}

/// The decoder of a class that may pool, as a part of another class.
pub(crate) fn pooled_decoder(text: &Text) -> Result<Decoder> {
    let (built, pooled) = pooling::resolve(&text.class);
    let mut decoder = decoder(&Text {
        class: built,
        ..text.clone()
    })?;
    if let Some(pooled) = pooled {
        pooled.finish(text, &mut decoder)?;
    }
    Ok(decoder)
}

/// The class of a wrapper's language model (vLLM 0.32.0, `with_hf_config` in `vllm/config/vllm.py`).
fn inner_class(text: &Text) -> Result<String> {
    if let Some(class) = text
        .config
        .strs("architectures")?
        .and_then(|list| list.first().copied())
    {
        return Ok(class.to_owned());
    }
    let model_type = text.model_type()?;
    defaults::text_class(model_type)?.ok_or_else(|| {
        Error::input(format!(
            "{} is {model_type:?}, which does not tell the class of the language model",
            text.config.name("model_type")
        ))
    })
}
