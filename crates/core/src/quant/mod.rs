//! Quantised weights: what a checkpoint's `quantization_config` or `--quantization` makes of each module.
//!
//! [`Quantization::read`] understands the formats that vLLM 0.32.0 loads (`fp8`, `AWQ`, `GPTQ`,
//! `compressed-tensors`, `ModelOpt`, Quark, auto-round, `MXFP4`); [`Quantization::named`] those it makes on load. Each module asks
//! [`Quantization::scheme`] by its path and gets a [`Scheme`] that knows its bytes.

mod compressed_tensors;
mod fused;
mod glob;
mod inventory;
mod modelopt;
mod overrides;
mod quark;
mod scheme;
mod select;

pub use inventory::Inventories;
pub(crate) use inventory::Inventory;
pub use scheme::{InputScale, Layout, Mxfp4Padding, Packed, Scheme};

use crate::arch::{AttentionScales, Config, Model, Op, Parallel, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};
use fused::Fused;
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
        /// Scheme of routed experts where it is another one (DeepSeek-V4).
        experts: Option<Scheme>,
    },
    /// A scheme by target (llm-compressor).
    Groups(compressed_tensors::Groups),
    /// A scheme by module (`ModelOpt`'s mixed precision).
    Listed(modelopt::Listed),
    /// A scheme for all with others by name (Quark).
    Quark(quark::Modules),
    /// A scheme for all with exceptions (GPTQ's `dynamic`, auto-round).
    Overrides(overrides::Overrides),
}

impl Rule {
    /// The same for a class that fuses other modules.
    fn fuse(&mut self, fused: Fused) {
        match self {
            Self::Uniform { ignore, .. } => ignore.fuse(fused),
            Self::Groups(groups) => groups.fuse(fused),
            Self::Listed(listed) => listed.fuse(fused),
            Self::Quark(modules) => modules.fuse(fused),
            Self::Overrides(overrides) => overrides.fuse(fused),
        }
    }
}

/// Parameters that the engine registers with each attention layer (vLLM 0.32.0, `BaseKVCacheMethod` and
/// `CompressedTensorsKVCacheMethod`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheScales {
    None,
    /// Four scalars in the model's element type; `latent` says whether latent attention has them too.
    Four {
        latent: bool,
    },
    /// Three float32 scales and three zero points in the model's element type.
    ThreeWithZeros,
}

impl CacheScales {
    fn bytes(self, model: Dtype, layers: AttentionScales) -> Result<u64> {
        match (self, layers) {
            (Self::None, _) | (_, AttentionScales::None) => Ok(0),
            (Self::Four { .. }, _) => model.bytes(4),
            (Self::ThreeWithZeros, AttentionScales::Own) => Ok(Dtype::F32.bytes(3)? + model.bytes(3)?),
            (Self::ThreeWithZeros, AttentionScales::InModelType) => model.bytes(6),
        }
    }
}

/// Block size of fp8 checkpoints where none is given.
const BLOCK: (u64, u64) = (128, 128);

impl Quantization {
    /// What the configuration says, `None` without a `quantization_config`.
    ///
    /// # Errors
    /// If the method is not one that the engine knows, or one of its values cannot be used.
    pub fn read(file: &Config) -> Result<Option<Self>> {
        let mut found = None;
        for part in ["", "text_config", "llm_config", "language_config"] {
            let holder = if part.is_empty() {
                Some(file.clone())
            } else {
                file.sub(part)?
            };
            if let Some(holder) = holder {
                for key in ["quantization_config", "compression_config"] {
                    if found.is_none() {
                        found = holder.sub(key)?;
                    }
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
        let mut read = match method.as_str() {
            "fp8" if q.str("quant_algo")? == Some("MIXED_PRECISION") => modelopt::read(&q)?,
            "fp8" | "deepseek_v4_fp8" => deepseek_v4_experts(file, fp8(&q)?)?,
            "awq" | "awq_marlin" => packed(&q, Layout::Awq)?,
            "gptq" | "gptq_marlin" | "auto_gptq" => packed(&q, Layout::Gptq)?,
            "compressed-tensors" => compressed_tensors::read(&q)?,
            "modelopt" | "modelopt_fp4" | "modelopt_mixed" | "modelopt_mxfp8" | "mxfp8" => {
                modelopt::read(&q)?
            }
            "mxfp4" | "gpt_oss_mxfp4" => mxfp4(&q)?,
            "quark" => quark::read(&q)?,
            "auto-round" | "inc" => overrides::auto_round(&q)?,
            "experts_int8" => Self::named("experts_int8")?,
            "fbgemm_fp8" => fbgemm(&q)?,
            "bitsandbytes" => bitsandbytes(&q)?,
            "torchao" | "humming" | "online" | "fp_quant" => {
                return Err(Error::not_found(format!(
                    "{} is {method:?}, a format that vLLM loads and that is not described here yet",
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
            "" if producer == "modelopt" && q.get("quant_method").is_some() => modelopt::read(&q)?,
            "" => return Ok(None),
            other => {
                return Err(Error::unsupported(format!(
                    "{} is {other:?}, which vLLM 0.32.0 does not load",
                    q.name("quant_method")
                ))
                .hint("use a checkpoint in fp8, AWQ, GPTQ, compressed-tensors, ModelOpt or MXFP4 format"));
            }
        };
        read.rule.fuse(fused::of(file)?);
        Ok(Some(read))
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
                layout,
            })
        };
        let scheme = match name.to_ascii_lowercase().as_str() {
            "fp8" | "fp8_per_tensor" => Scheme::Fp8OnLoad,
            "fp8_per_channel" => Scheme::Fp8Channel { static_input: false },
            "fp8_per_block" => Scheme::Fp8Block {
                outputs: BLOCK.0,
                inputs: BLOCK.1,
            },
            "mxfp8" => Scheme::Mxfp8,
            "int8" | "int8_per_channel_weight_only" | "experts_int8" => Scheme::Int8 {
                per_channel: true,
                static_input: false,
                input_zero: false,
            },
            "nvfp4" | "nvfp4_per_token" | "modelopt_fp4" => Scheme::Nvfp4(InputScale::F32),
            "mxfp4" => Scheme::Mxfp4,
            "awq" | "awq_marlin" => group(Layout::Awq, true),
            "gptq" | "gptq_marlin" => group(Layout::Gptq, true),
            other => {
                return Err(Error::input(format!(
                    "--quantization is {other:?}, expected auto, none, fp8, fp8_per_block, fp8_per_channel, mxfp8, \
                     int8, nvfp4, mxfp4, awq or gptq"
                )));
            }
        };
        let mut read = Self::uniform(name, scheme, Ignore::new(Match::Exact, &[])?, CacheScales::None);
        if let Rule::Uniform { experts_only, .. } = &mut read.rule {
            *experts_only = name.eq_ignore_ascii_case("experts_int8");
        }
        Ok(read)
    }

    fn uniform(name: &str, scheme: Scheme, ignore: Ignore, cache_scales: CacheScales) -> Self {
        Self {
            name: name.to_owned(),
            rule: Rule::Uniform {
                scheme,
                ignore,
                head: false,
                experts_only: false,
                experts: None,
            },
            cache_scales,
            padding: Mxfp4Padding::NONE,
            refusal: None,
        }
    }

    /// Why vLLM 0.32.0 would not load the checkpoint although its sizes are known; older releases did load it.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Why a GPU of this compute capability would not run it.
    pub(crate) fn refusal_on(&self, capability: (u32, u32)) -> Option<&'static str> {
        match &self.rule {
            Rule::Groups(groups) => groups.refusal_on(capability),
            _ => None,
        }
    }

    fn refused(mut self, reason: impl Into<String>) -> Self {
        self.refusal = Some(reason.into());
        self
    }

    /// The method's name as the checkpoint or the user spells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with routed experts packed by bytes (`--quantization moe_wna16` for a GPTQ or AWQ checkpoint); `None` for
    /// other formats, which the engine refuses that for.
    #[must_use]
    pub(crate) fn with_experts_in_bytes(mut self) -> Option<Self> {
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
        let is_head = matches!(weight.op, Op::Vocab { .. });
        let is_experts = matches!(weight.op, Op::Experts { .. });
        // Published quantised checkpoints leave vision and audio towers in 16 bits, under names that their ignore
        // lists spell in many ways.
        if !weight.quantizable
            || weight.role == crate::arch::Role::Tower
            || matches!(weight.op, Op::Tensor { .. })
        {
            return Ok(None);
        }
        // Embeddings are looked up, not multiplied: only an output head can be quantised.
        if is_head && weight.role != crate::arch::Role::Head {
            return Ok(None);
        }
        let path = &*select::canonical(path);
        match &self.rule {
            Rule::Uniform {
                scheme,
                ignore,
                head,
                experts_only,
                experts,
            } => {
                let wanted = if is_head {
                    *head
                } else {
                    is_experts || !*experts_only
                };
                let scheme = experts.filter(|_| is_experts).unwrap_or(*scheme);
                Ok((wanted && !ignore.skips_whole(path)?).then_some(scheme))
            }
            Rule::Groups(groups) => groups.scheme(path, is_head, is_experts),
            Rule::Listed(listed) => listed.scheme(path, is_experts),
            Rule::Quark(modules) => modules.scheme(path, is_head, is_experts),
            Rule::Overrides(overrides) => Ok(overrides.scheme(path, is_head)),
        }
    }

    /// Whether a module's scheme depends on its path.
    fn reads_paths(&self) -> bool {
        match &self.rule {
            Rule::Uniform { ignore, .. } => !ignore.is_empty(),
            _ => true,
        }
    }

    /// Whether the attention module at `path` has the scales that the format brings for the cache.
    fn scales_cache_at(&self, path: impl FnOnce() -> String) -> bool {
        match &self.rule {
            Rule::Quark(modules) => !modules.leaves_out(&select::canonical(&path())),
            _ => true,
        }
    }

    /// Bytes of all copies of a module on one rank.
    ///
    /// # Errors
    /// As [`Weight::shard`] and [`Scheme::bytes`].
    pub fn bytes(&self, path: &str, weight: &Weight, parallel: &Parallel, model: Dtype) -> Result<u64> {
        inventory::shard_bytes(weight, self.scheme(path, weight), parallel, model, self.padding)
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

/// The names in the first of several keys that holds a list.
fn names<'a>(q: &'a Config, keys: &[&str]) -> Result<Vec<&'a str>> {
    for key in keys {
        if let Some(list) = q.strs(key)?.filter(|l| !l.is_empty()) {
            return Ok(list);
        }
    }
    Ok(Vec::new())
}

/// vLLM 0.32.0, `Fp8Config`.
fn fp8(q: &Config) -> Result<Quantization> {
    let static_input = match q.str("activation_scheme")?.unwrap_or("dynamic") {
        "dynamic" => false,
        "static" => true,
        other => {
            return Err(Error::input(format!(
                "{} is {other:?}, expected dynamic or static",
                q.name("activation_scheme")
            )));
        }
    };
    let scheme = match q.u64s("weight_block_size")? {
        None => Scheme::Fp8Tensor { static_input },
        Some(block) => match block[..] {
            [outputs, inputs] if outputs > 0 && inputs > 0 => Scheme::Fp8Block { outputs, inputs },
            _ => {
                return Err(Error::input(format!(
                    "{} is {block:?}, expected two positive integers",
                    q.name("weight_block_size")
                )));
            }
        },
    };
    let ignore = Ignore::new(
        Match::Exact,
        &names(q, &["ignored_layers", "modules_to_not_convert"])?,
    )?;
    Ok(Quantization::uniform(
        "fp8",
        scheme,
        ignore,
        CacheScales::Four { latent: false },
    ))
}

/// Bits of one integer.
fn bits(q: &Config, keys: &[&str], default: u64) -> Result<u64> {
    let bits = q.first_u64(keys)?.unwrap_or(default);
    if matches!(bits, 4 | 8) {
        return Ok(bits);
    }
    Err(Error::input(format!(
        "{} is {bits}, expected 4 or 8",
        q.name(keys[0])
    )))
}

/// AWQ and GPTQ (vLLM 0.32.0, `auto_awq.py` and `auto_gptq.py`).
fn packed(q: &Config, layout: Layout) -> Result<Quantization> {
    let gptq = layout == Layout::Gptq;
    // One scale an output for -1.
    let group = overrides::group_size(q, &["group_size", "q_group_size"], Some(128))?;
    let refusal = if !gptq {
        (bits(q, &["bits", "w_bit", "wbits"], 4)? != 4).then_some("Unsupported num_bits = 8. Supported: 4.")
    } else if !q.flag("sym", true)? {
        Some("Unsupported quantization config: sym=False.")
    } else if q.flag("desc_act", false)? && group.is_some() {
        Some(
            "GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static \
             activation ordering or desc_act=False.",
        )
    } else {
        None
    };
    let refusal = refusal.map(str::to_owned);
    let packed = Packed {
        bits: bits(q, &["bits", "w_bit", "wbits"], 4)?,
        group,
        // AWQ's modules have room for zero points whether the checkpoint has them or not.
        zeros: true,
        asymmetric: !gptq && q.flag("zero_point", true)?,
        layout,
    };
    let head = q.flag("lm_head", false)?;
    if gptq && let Some(overrides) = overrides::dynamic(q, packed, head)? {
        return Ok(Quantization {
            name: "gptq".to_owned(),
            rule: Rule::Overrides(overrides),
            cache_scales: CacheScales::None,
            padding: Mxfp4Padding::NONE,
            refusal,
        });
    }
    let (list, name) = if gptq {
        (Vec::new(), "gptq")
    } else {
        (names(q, &["modules_to_not_convert"])?, "awq")
    };
    let ignore = Ignore::new(Match::Part, &list)?;
    let mut read = Quantization::uniform(name, Scheme::Packed(packed), ignore, CacheScales::None);
    if let Rule::Uniform { head: own, .. } = &mut read.rule {
        *own = head;
    }
    read.refusal = refusal;
    Ok(read)
}

/// Checkpoints of FBGEMM (vLLM 0.32.0, `fbgemm_fp8.py`).
fn fbgemm(q: &Config) -> Result<Quantization> {
    let ignore = Ignore::new(Match::Exact, &names(q, &["modules_to_not_convert"])?)?;
    let read = Quantization::uniform("fbgemm_fp8", Scheme::Fp8Bounded, ignore, CacheScales::None);
    Ok(read.refused(
        "The quantization method fbgemm_fp8 is deprecated and will be removed in future versions of vLLM. To bypass, \
         set `--allow-deprecated-quantization`.",
    ))
}

/// Checkpoints of bitsandbytes, which vLLM has left out of 0.32.0: 4-bit floats in blocks of 64, or 8-bit integers.
fn bitsandbytes(q: &Config) -> Result<Quantization> {
    let scheme = if q.flag("load_in_8bit", false)? {
        Scheme::Int8 {
            per_channel: true,
            static_input: false,
            input_zero: false,
        }
    } else {
        Scheme::Bnb4
    };
    let ignore = Ignore::new(Match::Part, &names(q, &["llm_int8_skip_modules"])?)?;
    let read = Quantization::uniform("bitsandbytes", scheme, ignore, CacheScales::None);
    Ok(read.refused("Unknown quantization method: bitsandbytes, which vLLM 0.32.0 does not load"))
}

/// DeepSeek-V4's checkpoints keep routed experts in MXFP4 unless `expert_dtype` says fp8 (vLLM 0.32.0,
/// `models/deepseek_v4/quant_config.py`).
fn deepseek_v4_experts(file: &Config, mut read: Quantization) -> Result<Quantization> {
    if file.str("model_type")? == Some("deepseek_v4")
        && let Rule::Uniform { experts, .. } = &mut read.rule
    {
        match file.str("expert_dtype")?.unwrap_or("fp4") {
            "fp4" => *experts = Some(Scheme::Mxfp4),
            "fp8" => {}
            other => {
                return Err(Error::unsupported(format!(
                    "{} is {other:?}, vLLM 0.32.0 knows fp4 and fp8",
                    file.name("expert_dtype")
                )));
            }
        }
    }
    Ok(read)
}

/// gpt-oss (vLLM 0.32.0, `mxfp4.py`): experts alone.
fn mxfp4(q: &Config) -> Result<Quantization> {
    let ignore = Ignore::new(Match::Wildcard, &names(q, &["modules_to_not_convert"])?)?;
    let mut read = Quantization::uniform("mxfp4", Scheme::Mxfp4, ignore, CacheScales::None);
    if let Rule::Uniform { experts_only, .. } = &mut read.rule {
        *experts_only = true;
    }
    Ok(read)
}
