//! Quantised weights: what a checkpoint's `quantization_config` or `--quantization` makes of each module.
//!
//! [`Quantization::read`] understands the formats that vLLM 0.32.0 loads (`fp8`, `AWQ`, `GPTQ`,
//! `compressed-tensors`, `ModelOpt`, Quark, auto-round, `MXFP4`); [`Quantization::named`] those it makes on load. Each module asks
//! [`Quantization::scheme`] by its path and gets a [`Scheme`] that knows its bytes.

mod alike;
mod auto_round;
mod cache_scales;
mod compressed_tensors;
mod glob;
mod inventory;
mod kind;
mod methods;
mod modelopt;
mod naming;
mod overrides;
mod quark;
mod scheme;
mod select;

pub use inventory::Inventories;
pub(crate) use inventory::Inventory;
pub use scheme::{ExpertBiases, Format, InputScale, Layout, Mxfp4Padding, OddBlocks, Packed, Scheme};

use std::borrow::Cow;
use std::sync::Arc;

use crate::arch::{AttentionScales, Config, Model, Parallel, Weight};
use crate::dtype::Dtype;
use crate::names::normalise;
use crate::{Error, Result};
use alike::Told;
use cache_scales::CacheScales;
use kind::Kind;
use naming::Naming;
use select::{Ignore, Match, Refused};

/// How a model's weights are quantised.
#[derive(Debug, Clone)]
pub struct Quantization {
    name: String,
    rule: Rule,
    /// Scales that the engine keeps beside each attention layer's cache.
    cache_scales: CacheScales,
    padding: Mxfp4Padding,
    /// Why vLLM 0.32.0 would not load it, in its words.
    refusal: Option<String>,
    /// Whether the engine makes it of 16-bit weights.
    on_load: bool,
    /// Whether it is AWQ without a list, that the language model's part of the file says.
    in_text: bool,
    /// What the class calls its modules.
    naming: Arc<Naming>,
}

/// Which scheme a module gets.
#[derive(Debug, Clone)]
enum Rule {
    /// One scheme for all that is not ignored.
    Uniform {
        scheme: Scheme,
        ignore: Ignore,
        head: bool,
        experts_only: bool,
        linear_only: bool,
        /// Scheme of routed experts where it is another one (DeepSeek-V4).
        experts: Option<Scheme>,
    },
    /// A scheme by target (llm-compressor).
    Groups(compressed_tensors::Groups),
    /// A scheme by module (`ModelOpt`'s mixed precision).
    Listed(modelopt::Listed),
    /// A scheme for all with others by name (Quark).
    Quark(quark::Modules),
    /// A scheme for all with exceptions (GPTQ's `dynamic`).
    Overrides(overrides::Overrides),
    /// A scheme for all with exceptions (auto-round).
    Rounded(auto_round::Rounded),
}

/// Block size of fp8 checkpoints where none is given.
const BLOCK: (u64, u64) = (128, 128);

impl Quantization {
    /// What the checkpoint says, or `--quantization` where it says nothing; `None` for weights as they are.
    ///
    /// # Errors
    /// As [`Quantization::read`] and [`Quantization::named`], and if the two contradict each other.
    pub fn resolve(config: &Config, setting: Option<&str>) -> Result<Option<Self>> {
        match setting {
            Some("none") => Ok(None),
            None => Self::read(config),
            Some(name) => match Self::read(config)? {
                None => Ok(Some(Self {
                    naming: Arc::new(Naming::of(config)?),
                    ..Self::named(name)?
                })),
                // Other kernels for the experts of a GPTQ or AWQ checkpoint.
                Some(own) if name.eq_ignore_ascii_case("moe_wna16") => match own.with_experts_in_bytes() {
                    Some(own) => Ok(Some(own)),
                    None => Err(Error::unsupported("moe_wna16 only support gptq and awq.")),
                },
                // `awq_marlin` for an AWQ checkpoint names a kernel, not another format.
                Some(own)
                    if normalise(name).contains(&normalise(own.name()))
                        || normalise(own.name()).contains(&normalise(name)) =>
                {
                    Ok(Some(own))
                }
                Some(own) => Err(Error::input(format!(
                    "--quantization is {name}, but the checkpoint is quantised by {}",
                    own.name()
                ))
                .hint("leave --quantization out, or write none to ignore the checkpoint's")),
            },
        }
    }

    /// What the configuration says, `None` without a `quantization_config`.
    ///
    /// # Errors
    /// If the method is not one that the engine knows, or one of its values cannot be used.
    pub fn read(file: &Config) -> Result<Option<Self>> {
        let mut found = None;
        let mut within = "";
        for part in ["", "text_config", "llm_config", "language_config"] {
            let holder = if part.is_empty() {
                Some(file.clone())
            } else {
                file.sub(part)?
            };
            let Some(holder) = holder else { continue };
            for key in ["quantization_config", "compression_config"] {
                if found.is_none() {
                    found = holder.sub(key)?;
                    within = part;
                }
            }
        }
        let Some(q) = found else {
            return Ok(None);
        };
        let method = q.str("quant_method")?.unwrap_or_default().to_ascii_lowercase();
        let producer = match q.sub("producer")? {
            Some(p) => p.str("name")?.unwrap_or_default().to_owned(),
            None => String::new(),
        };
        let naming = Arc::new(Naming::of(file)?);
        let read = match method.as_str() {
            // DeepSeek-V4's own method takes every file in FP8, whatever else it says of its modules.
            "fp8"
                if q.str("quant_algo")? == Some("MIXED_PRECISION")
                    && file.str("model_type")? != Some("deepseek_v4") =>
            {
                modelopt::read(&q, &method, &naming)?
            }
            "fp8" | "deepseek_v4_fp8" => methods::deepseek_v4_experts(file, &q, methods::fp8(&q, &naming)?)?,
            "awq" | "awq_marlin" => methods::packed(&q, Layout::Awq, &naming)?,
            "gptq" | "gptq_marlin" | "auto_gptq" => methods::packed(&q, Layout::Gptq, &naming)?,
            "compressed-tensors" => compressed_tensors::read(&q, &naming)?,
            "modelopt" | "modelopt_fp4" | "modelopt_mixed" | "modelopt_mxfp8" | "mxfp8" => {
                modelopt::read(&q, &method, &naming)?
            }
            "mxfp4" | "gpt_oss_mxfp4" => methods::mxfp4(),
            "quark" => quark::read(&q, &naming)?,
            "auto-round" | "inc" => auto_round::read(&q, &naming)?,
            "experts_int8" => Self::named("experts_int8")?,
            "fbgemm_fp8" => methods::fbgemm(&q)?,
            "bitsandbytes" => methods::bitsandbytes(&q)?,
            "fp_quant" => methods::fp_quant(&q)?,
            "torchao" | "humming" | "online" => {
                return Err(Error::not_found(format!(
                    "{} is {method:?}, a format whose tensors another package makes, so that their sizes are not known here",
                    q.name("quant_method")
                ))
                .hint("--quantization none plans the model without its quantisation, a format's name with that one"));
            }
            "moe_wna16" => {
                return Err(Error::unsupported(format!(
                    "{} is \"moe_wna16\": moe_wna16 only support gptq and awq.",
                    q.name("quant_method")
                ))
                .hint("--quantization moe_wna16 takes its kernels for a GPTQ or AWQ checkpoint"));
            }
            // The engine takes files without a method by their producer; without that they are not quantised.
            "" if producer == "modelopt" && q.get("quant_method").is_some() => {
                modelopt::read(&q, &method, &naming)?
            }
            "" => return Ok(None),
            other => {
                return Err(Error::unsupported(format!(
                    "{} is {other:?}, which vLLM 0.32.0 does not load",
                    q.name("quant_method")
                ))
                .hint("use a checkpoint in fp8, AWQ, GPTQ, compressed-tensors, ModelOpt or MXFP4 format"));
            }
        };
        let in_text =
            !within.is_empty() && read.name == "awq" && names(&q, &["modules_to_not_convert"])?.is_empty();
        Ok(Some(Self {
            in_text,
            naming,
            ..read
        }))
    }

    /// A format made on load or assumed for a configuration without one: the engine's names `fp8_per_tensor`,
    /// `fp8_per_block`, `fp8_per_channel`, `mxfp8`, `int8_per_channel_weight_only`, and the plain `fp8`, `nvfp4`,
    /// `mxfp4`, `awq`, `gptq`, `int8`.
    ///
    /// # Errors
    /// If the name is none of these.
    pub fn named(name: &str) -> Result<Self> {
        let group = |layout, zeros| {
            Scheme::Packed(Packed {
                bits: 4,
                group: Some(128),
                zeros,
                asymmetric: layout == Layout::Awq,
                pads_tiles: true,
                layout,
            })
        };
        let name = name.to_ascii_lowercase();
        let scheme = match name.as_str() {
            "fp8" | "fp8_per_tensor" => Scheme::Fp8OnLoad,
            "fp8_per_channel" => Scheme::Fp8Channel { static_input: false },
            "fp8_per_block" => Scheme::Fp8Block {
                outputs: BLOCK.0,
                inputs: BLOCK.1,
                odd: OddBlocks::Pad,
                scale: Dtype::F32,
            },
            "mxfp8" => Scheme::Mxfp8,
            "int8" | "int8_per_channel_weight_only" | "experts_int8" => Scheme::Int8 {
                per_channel: true,
                static_input: false,
                input_zero: false,
            },
            "nvfp4" | "modelopt_fp4" => Scheme::Nvfp4(InputScale::F32),
            "nvfp4_per_token" => Scheme::Nvfp4OnLoad,
            "mxfp4" => Scheme::Mxfp4,
            "awq" | "awq_marlin" | "auto_awq" => group(Layout::Awq, true),
            "gptq" | "gptq_marlin" | "auto_gptq" => group(Layout::Gptq, true),
            other => {
                return Err(Error::input(format!(
                    "--quantization is {other:?}, expected auto, none, fp8, fp8_per_tensor, fp8_per_block, fp8_per_channel, \
                     mxfp8, int8, int8_per_channel_weight_only, nvfp4, nvfp4_per_token, mxfp4, awq or gptq"
                )));
            }
        };
        let mut read = Self::uniform(&name, scheme, Ignore::none(Match::Exact), CacheScales::None);
        if let Rule::Uniform { experts_only, .. } = &mut read.rule {
            // The engine makes these on load for experts alone.
            *experts_only = matches!(
                name.as_str(),
                "experts_int8" | "int8_per_channel_weight_only" | "nvfp4_per_token"
            );
        }
        read.on_load = true;
        Ok(read)
    }

    fn uniform(name: &str, scheme: Scheme, ignore: Ignore, cache_scales: CacheScales) -> Self {
        Self {
            rule: Rule::Uniform {
                scheme,
                ignore,
                head: false,
                experts_only: false,
                linear_only: false,
                experts: None,
            },
            ..Self::new(name, cache_scales, Mxfp4Padding::NONE, None)
        }
    }

    /// One that quantises nothing yet.
    fn new(name: &str, cache_scales: CacheScales, padding: Mxfp4Padding, refusal: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            rule: Rule::Uniform {
                scheme: Scheme::Fp8OnLoad,
                ignore: Ignore::none(Match::Exact),
                head: false,
                experts_only: true,
                linear_only: false,
                experts: None,
            },
            cache_scales,
            padding,
            refusal,
            on_load: false,
            in_text: false,
            naming: Arc::default(),
        }
    }

    /// Why vLLM 0.32.0 would not load the checkpoint although its sizes are known; older releases did load it.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Why a GPU of this compute capability would not run it.
    pub(crate) fn refusal_on(&self, capability: (u32, u32)) -> Option<String> {
        let current = capability.0.saturating_mul(10).saturating_add(capability.1);
        let least = self.capability();
        if current < least {
            return Some(format!(
                "The quantization method {} is not supported for the current GPU. Minimum capability: {least}. Current \
                 capability: {current}.",
                self.name
            ));
        }
        match &self.rule {
            Rule::Groups(groups) => groups.refusal_on(capability).map(str::to_owned),
            _ => None,
        }
    }

    /// Why the model's class, or its element type, would not do with it.
    pub(crate) fn refusal_of(&self, model: &Model, dtype: Dtype) -> Option<String> {
        let mxfp4 = self.name == "mxfp4" && !self.on_load;
        if mxfp4 && model.attention_scales == AttentionScales::InModelType {
            return Some("Transformers modeling backend does not support MXFP4 quantization yet.".to_owned());
        }
        let mxfp8 = matches!(
            &self.rule,
            Rule::Uniform {
                scheme: Scheme::Mxfp8,
                ..
            }
        ) && self.name == "modelopt";
        (dtype == Dtype::F16 && (mxfp4 || mxfp8 || self.name == "fp_quant")).then(|| {
            format!(
                "torch.float16 is not supported for quantization method {}. Supported dtypes: [torch.bfloat16]",
                self.name
            )
        })
    }

    fn refused(mut self, reason: impl Into<String>) -> Self {
        self.refusal = Some(reason.into());
        self
    }

    /// Whether experts have room for the biases that the model's have (vLLM 0.32.0, `create_weights` of the methods for
    /// experts).
    fn expert_biases(&self) -> ExpertBiases {
        match &self.rule {
            Rule::Quark(_) => ExpertBiases::F32,
            Rule::Listed(_) => ExpertBiases::None,
            Rule::Uniform { .. } if self.name == "modelopt" => ExpertBiases::None,
            _ => ExpertBiases::Model,
        }
    }

    /// What the format does with experts' biases and with groups.
    pub(crate) fn format(&self) -> Format {
        Format {
            expert_biases: self.expert_biases(),
            whole_groups: matches!(self.rule, Rule::Groups(_)),
        }
    }

    /// Least compute capability, ten times the major version and the minor one (vLLM 0.32.0, `get_min_capability`).
    fn capability(&self) -> u32 {
        match (&self.rule, self.name.as_str()) {
            (Rule::Groups(_), _) => 70,
            (Rule::Quark(modules), _) => modules.capability(),
            (_, "gptq" | "auto-round") => 60,
            (_, "mxfp4" | "experts_int8" | "fbgemm_fp8") => 80,
            (Rule::Uniform { scheme, .. }, "modelopt") if !matches!(scheme, Scheme::Nvfp4(_)) => 80,
            (_, "fp_quant") => 100,
            _ => 75,
        }
    }

    /// The method's name as the checkpoint or the user spells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with routed experts packed by bytes (`--quantization moe_wna16` for a GPTQ or AWQ checkpoint); `None` for
    /// other formats, which the engine refuses that for.
    #[must_use]
    pub(crate) fn with_experts_in_bytes(mut self) -> Option<Self> {
        if let Rule::Overrides(overrides) = &mut self.rule {
            overrides.experts_in_bytes = true;
            return Some(self);
        }
        let Rule::Uniform {
            scheme: Scheme::Packed(packed),
            experts,
            ..
        } = &mut self.rule
        else {
            return None;
        };
        *experts = Some(Scheme::Packed(Packed {
            layout: Layout::Bytes,
            ..*packed
        }));
        Some(self)
    }

    /// The same with the padding of the kernel that runs 4-bit block-scaled experts on the GPU at hand.
    #[must_use]
    pub fn with_mxfp4_padding(mut self, padding: Mxfp4Padding) -> Self {
        self.padding = padding;
        self
    }

    /// The scheme of the module at `path` (as [`Model::stage_weights`] names it), `None` where it stays in its own
    /// element type.
    pub fn scheme(&self, path: &str, weight: &Weight) -> Option<Scheme> {
        self.decide(path, weight).unwrap_or(None)
    }

    /// The same.
    ///
    /// # Errors
    /// [`Refused`] if the engine would not build the module.
    fn decide(&self, path: &str, weight: &Weight) -> Result<Option<Scheme>, Refused> {
        let Some(kind) = Kind::of(weight) else {
            return Ok(None);
        };
        let naming = &*self.naming;
        let path = if weight.role == crate::arch::Role::Tower {
            if naming.plain_tower(&self.name) || self.in_text && naming.plain_tower("awq-text") {
                return Ok(None);
            }
            match naming.tower(path) {
                Some(path) => Cow::Borrowed(path),
                None => return Ok(None),
            }
        } else {
            let path = match kind {
                Kind::Embedding => naming.embedding().map(Cow::Borrowed),
                _ => naming.path(path),
            };
            match path {
                Some(path) => path,
                None => return Ok(None),
            }
        };
        let path = &*path;
        // Names of towers that old ModelOpt files forget to leave out (vLLM 0.32.0, `ModelOptQuantConfigBase`).
        let forgotten = ["vision_tower", "vision_model", "vit_large_projector"];
        if self.name == "modelopt"
            && matches!(self.rule, Rule::Uniform { .. })
            && forgotten.iter().any(|name| path.contains(name))
        {
            return Ok(None);
        }
        match &self.rule {
            Rule::Uniform {
                scheme,
                ignore,
                head,
                experts_only,
                linear_only,
                experts,
            } => {
                let wanted = match kind {
                    Kind::Linear => !*experts_only,
                    Kind::Head => *head,
                    Kind::Experts => !*linear_only,
                    Kind::Embedding => false,
                };
                let scheme = experts.filter(|_| kind == Kind::Experts).unwrap_or(*scheme);
                Ok((wanted && !ignore.skips_whole(path, naming)?).then_some(scheme))
            }
            Rule::Groups(groups) => groups.scheme(path, kind, naming),
            Rule::Listed(listed) => listed.scheme(path, kind, naming),
            Rule::Quark(modules) => modules.scheme(path, kind, naming),
            Rule::Overrides(overrides) => overrides.scheme(path, kind, naming),
            Rule::Rounded(rounded) => rounded.scheme(path, kind, naming),
        }
    }

    /// The first of a number of layers that each gets the schemes of, if it has the same modules.
    fn first_alike(&self, layers: usize) -> Vec<usize> {
        let mut told = Told::nothing(layers);
        match &self.rule {
            Rule::Uniform { ignore, .. } => ignore.tell(0, &mut told),
            Rule::Groups(groups) => groups.tell(&mut told),
            Rule::Listed(listed) => listed.tell(&mut told),
            Rule::Quark(modules) => modules.tell(&mut told),
            Rule::Overrides(_) | Rule::Rounded(_) => told.every(),
        }
        told.first_alike()
    }

    /// Whether the attention module at `path` has the scales that the format brings for the cache.
    fn scales_cache_at(&self, path: impl FnOnce() -> String) -> bool {
        match &self.rule {
            Rule::Quark(modules) => {
                let path = path();
                let path = self.naming.path(&path).unwrap_or(Cow::Borrowed(&path));
                !modules.leaves_out(&path, &self.naming)
            }
            _ => true,
        }
    }

    /// Bytes of all copies of a module on one rank.
    ///
    /// # Errors
    /// As [`Weight::shard`] and [`Scheme::bytes`].
    pub fn bytes(&self, path: &str, weight: &Weight, parallel: &Parallel, model: Dtype) -> Result<u64> {
        inventory::shard_bytes(
            weight,
            self.scheme(path, weight),
            parallel,
            model,
            (self.padding, self.format()),
        )
    }
}

impl Model {
    /// Bytes of weights on one tensor-parallel rank of a pipeline stage, quantised; otherwise as
    /// [`Model::weight_bytes`].
    ///
    /// # Errors
    /// As [`Model::weight_bytes`], and if the quantisation cannot cut a module as the engine would.
    pub fn quantized_weight_bytes(
        &self,
        stage: u64,
        parallel: &Parallel,
        dtype: Dtype,
        towers: bool,
        quantization: &Quantization,
    ) -> Result<u64> {
        Inventory::new(self, Some(quantization.clone())).bytes(
            self,
            stage,
            parallel,
            (dtype, quantization.padding),
            towers,
        )
    }
}

impl Model {
    /// Why vLLM 0.32.0 would not build the model from this checkpoint on GPUs of this compute capability with weights in
    /// this element type where they are not quantised.
    pub fn quantization_refusal(
        &self,
        quantization: &Quantization,
        parallel: &Parallel,
        capability: (u32, u32),
        dtype: Dtype,
    ) -> Option<String> {
        Inventory::new(self, Some(quantization.clone())).refusal_on(self, parallel, capability, dtype)
    }
}

/// The same as [`names`], `None` where no key holds a list.
fn optional_names(q: &Config, keys: &[&str]) -> Result<Option<Vec<String>>> {
    let list = names(q, keys)?;
    Ok((!list.is_empty()).then(|| list.into_iter().map(str::to_owned).collect()))
}

/// The names in the first of several keys that holds a list.
fn names<'a>(q: &'a Config, keys: &[&str]) -> Result<Vec<&'a str>> {
    for key in keys {
        if let Some(list) = q.strs(key)?.filter(|l| !l.is_empty()) {
            return Ok(list);
        }
    }
    Ok(Vec::new())
}
