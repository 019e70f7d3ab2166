//! The part of a configuration that describes the language model, with the sizes every family needs.

use serde_json::Value;

use super::defaults;
use crate::arch::{CacheKind, Config, Heads};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Most decoder layers that are read; the deepest published model known has 128.
pub const MAX_LAYERS: u64 = 10_000;

/// Where configurations keep the language model's part, in the order that is tried.
const TEXT_KEYS: [&str; 5] = [
    "thinker_config",
    "text_config",
    "llm_config",
    "language_config",
    "vlm_config",
];

/// Wrappers whose `tie_word_embeddings` is true where either they or their language model say so (transformers 5.19.0,
/// the configuration classes of these `model_type`s); the others' own value alone counts.
const TIED_BY_EITHER: [&str; 13] = [
    "fast_vlm",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "llava",
    "llava_next_video",
    "llava_onevision",
    "minimax_m3_vl",
    "paddleocr_vl",
    "perception_lm",
    "qwen2_5_vl",
    "qwen2_vl",
    "video_llama_3",
];

/// Wrappers whose language model's own `tie_word_embeddings` counts (vLLM 0.32.0, `idefics3.py`, which `SmolVLM` shares).
const TIED_BY_TEXT: [&str; 2] = ["idefics3", "smolvlm"];

/// A model's configuration as a family reads it: class defaults filled in, the language model's part found.
#[derive(Debug, Clone)]
pub struct Text {
    /// Class name from `architectures` that selects the family.
    pub class: String,
    /// The whole file.
    pub top: Config,
    /// The language model's part (the whole file where nothing is nested).
    pub config: Config,
    /// Wrappers that led from the file to this class; a file may name a wrapper as its own language model.
    pub(crate) wrappers: usize,
}

/// Which earlier tokens a layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attend {
    /// All of them.
    Full,
    /// The last so many.
    Sliding(u64),
    /// Those of the current chunk of so many.
    Chunked(u64),
}

impl Attend {
    /// The cache of a layer that attends so.
    pub fn cache(self, heads: Heads) -> CacheKind {
        match self {
            Self::Full => CacheKind::Full(heads),
            Self::Sliding(window) => CacheKind::Sliding { heads, window },
            Self::Chunked(chunk) => CacheKind::Chunked { heads, chunk },
        }
    }
}

impl Text {
    /// Finds the language model's part of a file and fills in class defaults.
    ///
    /// # Errors
    /// If a nested configuration is not an object.
    pub fn find(class: &str, file: &Config) -> Result<Self> {
        Self::within(class, defaults::fill(file, None)?)
    }

    /// The same where the file does not agree with itself (the engine would refuse it).
    ///
    /// # Errors
    /// If a nested configuration is not an object, or a field is of a kind that its class does not take.
    pub fn find_disagreeing(class: &str, file: &Config) -> Result<Self> {
        Self::within(class, defaults::fill_disagreeing(file)?)
    }

    /// The language model's part of a file that is filled in.
    fn within(class: &str, top: Config) -> Result<Self> {
        let found = |top, config| Self {
            class: class.to_owned(),
            top,
            config,
            wrappers: 0,
        };
        if matches!(class, "Moondream3ForCausalLM" | "HfMoondream") {
            let config = super::moondream::text(&top)?;
            return Ok(found(top, config));
        }
        if class == "ColModernVBertForRetrieval" {
            let config = super::embedder::modern_bert(&top)?;
            return Ok(found(top, config));
        }
        if let Some(config) = super::crossing::text(class, &top)? {
            return Ok(found(top, config));
        }
        let mut config = top.clone();
        // Thinkers nest twice (thinker_config.text_config).
        for _ in 0..3 {
            let mut inner = None;
            for key in TEXT_KEYS {
                if inner.is_none() {
                    inner = config.sub(key)?;
                }
            }
            match inner {
                Some(inner) => config = defaults::fill_part(&inner)?,
                None => break,
            }
        }
        Ok(found(top, config))
    }

    /// The language model inside of a wrapper, read as `class`. Embedding and head are tied as the wrapper says,
    /// whatever the inner part says (vLLM 0.32.0, `with_hf_config` in `vllm/config/vllm.py`).
    ///
    /// # Errors
    /// If `tie_word_embeddings` is not a boolean.
    pub fn inner(&self, class: &str) -> Result<Self> {
        let mut map = self.config.map().clone();
        let kind = self.top.str("model_type")?.unwrap_or_default();
        if let Some(tied) = self.top.bool("tie_word_embeddings")?
            && !TIED_BY_TEXT.contains(&kind)
        {
            let either = TIED_BY_EITHER.contains(&kind) && self.tied()?;
            map.insert("tie_word_embeddings".to_owned(), Value::from(tied || either));
        }
        Ok(Self {
            class: class.to_owned(),
            top: self.top.clone(),
            config: self.config.with_map(map),
            wrappers: self.wrappers + 1,
        })
    }

    /// The class that the file itself asks for, whatever its language model's is: some of the engine's rules look at
    /// nothing else. A class that pools is the one it is made of.
    ///
    /// # Errors
    /// If `architectures` is not a list of strings.
    pub fn file_class(&self) -> Result<String> {
        let listed = self.top.strs("architectures")?;
        let class = listed.and_then(|list| list.first().copied());
        Ok(super::pooling::resolve(class.unwrap_or(&self.class)).0)
    }

    /// `model_type` of the language model.
    ///
    /// # Errors
    /// If it is not a string.
    pub fn model_type(&self) -> Result<&str> {
        Ok(self.config.str("model_type")?.unwrap_or_default())
    }

    /// Width of the residual stream.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn hidden(&self) -> Result<u64> {
        self.first_dim(&["hidden_size", "n_embd", "d_model", "n_embed"])
    }

    /// Decoder layers.
    ///
    /// # Errors
    /// As [`Config::dim`], and above [`MAX_LAYERS`].
    pub fn layers(&self) -> Result<u64> {
        self.count_of_layers(&["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
    }

    /// A number of layers under one of several names.
    ///
    /// # Errors
    /// As [`Config::dim`], and above [`MAX_LAYERS`].
    pub fn count_of_layers(&self, keys: &[&str]) -> Result<u64> {
        let n = self.first_dim(keys)?;
        if n > MAX_LAYERS {
            let key = keys
                .iter()
                .find(|k| self.config.get(k).is_some())
                .unwrap_or(&keys[0]);
            return Err(Error::input(format!(
                "{} is {n}, more than the {MAX_LAYERS} layers that are read",
                self.config.name(key)
            )));
        }
        Ok(n)
    }

    /// Query heads.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn heads(&self) -> Result<u64> {
        self.first_dim(&["num_attention_heads", "n_head", "n_heads"])
    }

    /// Key/value heads (vLLM 0.32.0, `get_total_num_kv_heads` in `model_arch_config_convertor.py`).
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn kv_heads(&self) -> Result<u64> {
        let keys = [
            "n_head_kv",
            "num_kv_heads",
            "num_key_value_heads",
            "multi_query_group_num",
            "num_attention_groups",
        ];
        match keys.iter().find(|key| self.config.get(key).is_some()) {
            Some(key) => self.config.dim(key),
            None => self.heads(),
        }
    }

    /// Elements of a head: `head_dim`, where missing or 0 the floor of width by heads.
    ///
    /// # Errors
    /// As [`Config::dim`], and if there are more heads than elements.
    pub fn head_dim(&self) -> Result<u64> {
        match self.config.dim_or("head_dim", 0)? {
            0 => {}
            n => return Ok(n),
        }
        if self.config.get("hidden_size_per_head").is_some() {
            return self.config.dim("hidden_size_per_head");
        }
        match self.hidden()? / self.heads()? {
            0 => Err(Error::input(format!(
                "{} is larger than {}, which leaves heads without elements",
                self.config.name("num_attention_heads"),
                self.config.name("hidden_size")
            ))),
            n => Ok(n),
        }
    }

    /// Tokens in the vocabulary.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn vocab(&self) -> Result<u64> {
        self.first_dim(&["vocab_size", "padded_vocab_size"])
    }

    /// Width of the feed-forward part.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn intermediate(&self) -> Result<u64> {
        self.config.dim("intermediate_size")
    }

    /// Whether embedding and output head are one matrix.
    ///
    /// # Errors
    /// If the value is not a boolean.
    pub fn tied(&self) -> Result<bool> {
        self.config.flag("tie_word_embeddings", false)
    }

    /// The first of several spellings that is present, as a size.
    ///
    /// # Errors
    /// As [`Config::dim`].
    pub fn first_dim(&self, keys: &[&str]) -> Result<u64> {
        let key = keys.iter().find(|key| self.config.get(key).is_some());
        self.config.dim(key.unwrap_or(&keys[0]))
    }

    /// `layer_types` as the file has it, checked to name every layer.
    ///
    /// # Errors
    /// If it is not a list of strings or shorter than the model.
    pub fn layer_types(&self) -> Result<Option<Vec<&str>>> {
        let Some(types) = self.config.strs("layer_types")? else {
            return Ok(None);
        };
        let layers = self.layers()?;
        if (types.len() as u64) < layers {
            return Err(Error::input(format!(
                "{} names {} layers, but the model has {layers}",
                self.config.name("layer_types"),
                types.len()
            )));
        }
        Ok(Some(types))
    }

    /// The sliding window; 0 counts as none.
    ///
    /// # Errors
    /// As [`Config::dim_or`].
    pub fn window(&self) -> Result<Option<u64>> {
        Ok(Some(self.config.dim_or("sliding_window", 0)?).filter(|&w| w > 0))
    }

    /// What layers attend to whose class says nothing about windows: the file's window where it holds for the whole
    /// model, else everything (vLLM 0.32.0, `create_engine_config` in `engine/arg_utils.py`).
    ///
    /// # Errors
    /// If the window or the list of layer types is wrong.
    pub fn attend_of_all(&self) -> Result<Attend> {
        let mixed = self
            .layer_types()?
            .is_some_and(|types| types.iter().any(|kind| *kind != "sliding_attention"));
        Ok(match self.window()? {
            Some(window) if !mixed => Attend::Sliding(window),
            _ => Attend::Full,
        })
    }

    /// What each layer attends to where the class looks at `layer_types`: sliding layers have the window, others
    /// are full. Without the list, `full_every` tells which layers are full (layer `i` if `(i + 1) % n == 0`);
    /// without that either, one window holds for all layers (vLLM 0.32.0, `create_engine_config`).
    ///
    /// # Errors
    /// If a sliding layer has no window, or the list is wrong.
    pub fn attends(&self, full_every: Option<u64>) -> Result<Vec<Attend>> {
        let layers = self.layers()?;
        let window = self.window()?;
        let sliding = |i: u64| {
            window.map(Attend::Sliding).ok_or_else(|| {
                Error::input(format!(
                    "layer {i} has a sliding window, but {} is missing",
                    self.config.name("sliding_window")
                ))
            })
        };
        if let Some(types) = self.layer_types()? {
            return types
                .iter()
                .zip(0..layers)
                .map(|(kind, i)| match *kind {
                    // An explicit window of null or 0 switches windows off for the whole model.
                    "sliding_attention" if window.is_none() && self.config.has("sliding_window") => {
                        Ok(Attend::Full)
                    }
                    "sliding_attention" => sliding(i),
                    _ => Ok(Attend::Full),
                })
                .collect();
        }
        (0..layers)
            .map(|i| match (full_every, window) {
                (Some(n), _) if n > 0 && (i + 1).is_multiple_of(n) => Ok(Attend::Full),
                (_, None) => Ok(Attend::Full),
                (_, Some(w)) => Ok(Attend::Sliding(w)),
            })
            .collect()
    }

    /// What each layer attends to where `full` tells the full layers of a model without `layer_types`.
    ///
    /// # Errors
    /// If the number of layers or the window is wrong.
    pub fn attends_where(&self, full: impl Fn(u64) -> bool) -> Result<Vec<Attend>> {
        let window = self.window()?;
        Ok((0..self.layers()?)
            .map(|i| match window {
                Some(w) if !full(i) => Attend::Sliding(w),
                _ => Attend::Full,
            })
            .collect())
    }

    /// The element type that the configuration asks for (vLLM 0.32.0, `get_torch_dtype`).
    ///
    /// # Errors
    /// If it is there but not the name of an element type.
    pub fn dtype(&self) -> Result<Option<Dtype>> {
        for config in [&self.top, &self.config] {
            for key in ["dtype", "torch_dtype"] {
                if let Some(name) = config.str(key)? {
                    return Dtype::parse(name).map(Some).ok_or_else(|| {
                        Error::input(format!(
                            "{} is {name:?}, expected a type such as bfloat16, float16 or float32",
                            config.name(key)
                        ))
                    });
                }
            }
        }
        Ok(None)
    }

    /// Longest sequence that the engine derives (vLLM 0.32.0, `derive_max_model_len_and_key` and
    /// `_get_and_verify_max_len` in `vllm/config/model.py`); `None` where the file says nothing.
    ///
    /// # Errors
    /// If a length is not a positive number.
    pub fn max_length(&self) -> Result<Option<u64>> {
        const KEYS: [&str; 9] = [
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "seq_length",
            "model_max_length",
            "max_target_positions",
            "max_sequence_length",
            "max_seq_length",
            "seq_len",
        ];
        let mut longest: Option<u64> = None;
        for key in KEYS {
            if self.config.get(key).is_some() {
                let n = self.config.positive(&[key])?;
                longest = Some(longest.map_or(n, |l| l.min(n)));
            }
        }
        if let Some(n) = self.config.u64("model_max_length")?.filter(|&n| n > 0) {
            longest = Some(n);
        }
        let Some(length) = longest else {
            return Ok(None);
        };
        let rope = self.rope_parameters()?;
        if self.model_type()?.contains("gemma3") {
            return Ok(Some(length));
        }
        let mut factor = 1.0;
        for part in &rope {
            let kind = part.str("rope_type")?.or(part.str("type")?).unwrap_or("default");
            // The oldest files call it by the name of its paper's symbol.
            if matches!(kind, "longrope" | "su") {
                let original = self.config.u64("original_max_position_embeddings")?;
                return Ok(Some(original.unwrap_or(length)));
            }
            if !matches!(
                kind,
                "llama3" | "yarn" | "deepseek_yarn" | "deepseek_llama_scaling"
            ) {
                factor = part.f64("factor")?.unwrap_or(factor);
            }
        }
        scaled(length, factor, &self.config.name("rope_parameters")).map(Some)
    }

    /// The rotary embedding's settings, one object a kind of layer.
    fn rope_parameters(&self) -> Result<Vec<Config>> {
        let Some(rope) = self
            .config
            .sub("rope_parameters")?
            .or(self.config.sub("rope_scaling")?)
        else {
            return Ok(Vec::new());
        };
        let nested: Vec<Config> = rope
            .map()
            .iter()
            .filter_map(|(key, value)| match value {
                Value::Object(map) => Some(rope.child(key, map.clone())),
                _ => None,
            })
            .collect();
        Ok(if nested.is_empty() { vec![rope] } else { nested })
    }
}

/// A length times a scaling factor, rounded down.
fn scaled(length: u64, factor: f64, place: &str) -> Result<u64> {
    let product = length as f64 * factor;
    if !(1.0..9.0e15).contains(&product) {
        return Err(Error::input(format!(
            "{place}.factor is {factor}, which makes the longest sequence {product} tokens"
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: positive and below 2^53"
    )]
    Ok(product as u64)
}
