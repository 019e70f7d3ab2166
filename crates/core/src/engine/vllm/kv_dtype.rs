//! `--kv-cache-dtype`: spellings, and the bytes that one head's entry of one token takes.

use std::fmt;

use serde_json::Value;

use crate::arch::Config;
use crate::{Error, Result};

/// A value of `--kv-cache-dtype` (vLLM 0.32.0, `config/cache.py`, `CacheDType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum KvDtype {
    /// The model's own type (always 16 bits in vLLM's caches).
    #[default]
    Auto,
    /// IEEE half precision.
    Float16,
    /// bfloat16.
    Bfloat16,
    /// 8-bit float with one scale a tensor; the engine's default 8-bit format (e4m3).
    Fp8,
    /// 8-bit float, 4 exponent bits.
    Fp8E4m3,
    /// 8-bit float, 5 exponent bits.
    Fp8E5m2,
    /// The packed 656-byte latent entry of `FlashMLA` sparse attention.
    Fp8DsMla,
    /// The packed 352-byte latent entry with 4-bit floats.
    Nvfp4DsMla,
    /// Packed keys in 8 and values in 4 bits.
    TurboquantK8v4,
    /// Packed keys and values in 4 bits.
    Turboquant4bitNc,
    /// Packed keys in 3 and values in 4 bits.
    TurboquantK3v4Nc,
    /// Packed keys and values in 3 bits.
    Turboquant3bitNc,
    /// 4-bit floats with a scale each 32 values (AMD only).
    Ultraquant4bit,
    /// 4-bit integers with a scale each token and head.
    Int4PerTokenHead,
    /// 8-bit integers with a scale each token and head.
    Int8PerTokenHead,
    /// 8-bit floats with a scale each token and head.
    Fp8PerTokenHead,
    /// 4-bit floats with an 8-bit scale each 16 values.
    Nvfp4,
    /// The same layout as [`Self::Nvfp4`] with scales chosen from two candidates.
    Nvfp4FourOverSix,
}

/// Bytes a layer keeps of one token: `slots` entries of `content_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Entries a token (the page's head dimension).
    pub slots: u64,
    /// Bytes of one entry.
    pub content_bytes: u64,
}

const NAMES: [(&str, KvDtype); 18] = [
    ("auto", KvDtype::Auto),
    ("float16", KvDtype::Float16),
    ("bfloat16", KvDtype::Bfloat16),
    ("fp8", KvDtype::Fp8),
    ("fp8_e4m3", KvDtype::Fp8E4m3),
    ("fp8_e5m2", KvDtype::Fp8E5m2),
    ("fp8_ds_mla", KvDtype::Fp8DsMla),
    ("nvfp4_ds_mla", KvDtype::Nvfp4DsMla),
    ("turboquant_k8v4", KvDtype::TurboquantK8v4),
    ("turboquant_4bit_nc", KvDtype::Turboquant4bitNc),
    ("turboquant_k3v4_nc", KvDtype::TurboquantK3v4Nc),
    ("turboquant_3bit_nc", KvDtype::Turboquant3bitNc),
    ("ultraquant_4bit", KvDtype::Ultraquant4bit),
    ("int4_per_token_head", KvDtype::Int4PerTokenHead),
    ("int8_per_token_head", KvDtype::Int8PerTokenHead),
    ("fp8_per_token_head", KvDtype::Fp8PerTokenHead),
    ("nvfp4", KvDtype::Nvfp4),
    ("nvfp4_4over6", KvDtype::Nvfp4FourOverSix),
];

impl KvDtype {
    /// Every value, in the engine's order.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|&(_, dtype)| dtype)
    }

    /// Parses the engine's spelling, or one that other tools use for the same thing (`fp16`, `bf16`, `fp8_e4m3fn`).
    ///
    /// # Errors
    /// If no value is spelled that way.
    pub fn parse(text: &str) -> Result<Self> {
        let name = text.trim().to_ascii_lowercase();
        let alias = match name.as_str() {
            "fp16" | "f16" | "half" => "float16",
            "bf16" => "bfloat16",
            "fp8_e4m3fn" | "float8_e4m3fn" | "f8_e4m3" => "fp8_e4m3",
            "float8_e5m2" | "f8_e5m2" => "fp8_e5m2",
            other => other,
        };
        NAMES
            .iter()
            .find(|(known, _)| *known == alias)
            .map(|&(_, dtype)| dtype)
            .ok_or_else(|| {
                let known: Vec<&str> = NAMES.iter().map(|&(known, _)| known).collect();
                Error::input(format!(
                    "--kv-cache-dtype {text} is not one of {}",
                    known.join(", ")
                ))
            })
    }

    /// The engine's spelling.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|&&(_, dtype)| dtype == self)
            .map_or("auto", |&(name, _)| name)
    }

    /// Whether entries are kept at the model's precision.
    pub const fn is_16_bit(self) -> bool {
        matches!(self, Self::Auto | Self::Float16 | Self::Bfloat16)
    }

    /// Whether the cache is 8-bit float with one scale a tensor.
    pub const fn is_fp8_per_tensor(self) -> bool {
        matches!(self, Self::Fp8 | Self::Fp8E4m3 | Self::Fp8E5m2 | Self::Fp8DsMla)
    }

    /// Whether keys and values are packed into one slot by a rotation codec (`turboquant_*`, `ultraquant_4bit`).
    pub const fn is_packed(self) -> bool {
        matches!(
            self,
            Self::TurboquantK8v4
                | Self::Turboquant4bitNc
                | Self::TurboquantK3v4Nc
                | Self::Turboquant3bitNc
                | Self::Ultraquant4bit
        )
    }

    /// Whether this is a 4-bit float with block scales for ordinary attention.
    pub const fn is_nvfp4(self) -> bool {
        matches!(self, Self::Nvfp4 | Self::Nvfp4FourOverSix)
    }

    /// Whether there is a scale for each token and head.
    pub const fn is_per_token_head(self) -> bool {
        matches!(
            self,
            Self::Int4PerTokenHead | Self::Int8PerTokenHead | Self::Fp8PerTokenHead
        )
    }

    /// Bytes of one element where entries are not packed.
    pub const fn element_bytes(self) -> u64 {
        if self.is_16_bit() { 2 } else { 1 }
    }

    /// The entry of one token in an ordinary attention layer with `heads` key/value heads.
    ///
    /// Sources (vLLM 0.32.0): `v1/kv_cache_interface.py` `AttentionSpec.state_content_size_bytes`,
    /// `triton_attn.py`, `flashinfer.py`, `turboquant_attn.py`, `ultraquant_attn.py` `customize_spec`.
    ///
    /// # Errors
    /// If a size overflows, or the format cannot hold these head sizes.
    pub fn entry(self, heads: u64, head_size: u64, head_size_v: u64) -> Result<Entry> {
        let both = head_size
            .checked_add(head_size_v)
            .filter(|&both| both < 1 << 40)
            .ok_or_else(|| Error::overflow("the size of one cached head"))?;
        let turbo = |key_bits: u64, value_bits: u64| {
            let key = if key_bits == 8 {
                head_size
            } else {
                (head_size * key_bits).div_ceil(8) + 2
            };
            let slot = key + (head_size * value_bits).div_ceil(8) + 4;
            slot + slot % 2
        };
        let content_bytes = match self {
            Self::Auto | Self::Float16 | Self::Bfloat16 => both * 2,
            Self::Fp8 | Self::Fp8E4m3 | Self::Fp8E5m2 => both,
            Self::Int8PerTokenHead | Self::Fp8PerTokenHead => both + 8,
            Self::Int4PerTokenHead => head_size / 2 + head_size_v / 2 + 8,
            Self::Nvfp4 | Self::Nvfp4FourOverSix => {
                if head_size / 2 + head_size / 16 != head_size_v / 2 + head_size_v / 16 {
                    return Err(Error::unsupported(format!(
                        "--kv-cache-dtype {self} needs keys and values of one size, but this layer has {head_size} and {head_size_v}"
                    )));
                }
                let slots = heads
                    .checked_mul(2)
                    .ok_or_else(|| Error::overflow("the number of cached heads"))?;
                return Ok(Entry {
                    slots,
                    content_bytes: head_size / 2 + head_size / 16,
                });
            }
            Self::TurboquantK8v4 => turbo(8, 4),
            Self::Turboquant4bitNc => turbo(4, 4),
            Self::TurboquantK3v4Nc => turbo(3, 4),
            Self::Turboquant3bitNc => turbo(3, 3),
            Self::Ultraquant4bit => head_size / 2 * 2 + 2 * (head_size / 32),
            Self::Fp8DsMla | Self::Nvfp4DsMla => {
                return Err(Error::unsupported(format!(
                    "--kv-cache-dtype {self} is a format for latent (MLA) attention, which this layer has not"
                )));
            }
        };
        Ok(Entry {
            slots: heads,
            content_bytes,
        })
    }

    /// Bytes of one token's latent of `width` elements (`model_executor/layers/attention/mla_attention.py`,
    /// `get_kv_cache_spec`).
    ///
    /// # Errors
    /// If the size overflows.
    pub fn latent_bytes(self, width: u64) -> Result<u64> {
        match self {
            Self::Fp8DsMla => Ok(656),
            Self::Nvfp4DsMla => Ok(352),
            other => width
                .checked_mul(other.element_bytes())
                .ok_or_else(|| Error::overflow("the size of one latent")),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The cache type that a checkpoint's `quantization_config` asks for, which `auto` follows:
/// `modelopt`'s `kv_cache_quant_algo`/`kv_cache_scheme` and llm-compressor's `kv_cache_scheme`.
///
/// Sources (vLLM 0.32.0): `utils/torch_utils.py` `get_kv_cache_quant_algo_string`,
/// `model_executor/layers/attention/attention.py`.
///
/// # Errors
/// If `quantization_config` is there but not an object.
pub fn declared_by_checkpoint(config: &Config) -> Result<Option<KvDtype>> {
    let Some(quant) = config.map().get("quantization_config").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let Some(quant) = quant.as_object() else {
        return Err(Error::input(format!(
            "{} is not an object",
            config.name("quantization_config")
        )));
    };
    let method = quant.get("quant_method").and_then(Value::as_str).unwrap_or("");
    if !method.starts_with("modelopt") {
        let scheme = quant.get("kv_cache_scheme").filter(|v| !v.is_null());
        return Ok((method == "compressed-tensors" && scheme.is_some()).then_some(KvDtype::Fp8));
    }
    let inner = quant
        .get("quantization")
        .and_then(Value::as_object)
        .unwrap_or(quant);
    let given = ["kv_cache_scheme", "kv_cache_quant_algo"]
        .iter()
        .find_map(|&key| {
            [inner, quant]
                .iter()
                .find_map(|map| map.get(key).filter(|v| !v.is_null()))
        });
    Ok(match given {
        Some(Value::String(name)) => match name.to_ascii_lowercase().as_str() {
            "fp8" => Some(KvDtype::Fp8E4m3),
            "nvfp4" => Some(KvDtype::Nvfp4),
            _ => None,
        },
        Some(Value::Object(scheme)) => {
            let float = scheme.get("type").and_then(Value::as_str) == Some("float");
            let dynamic = scheme.get("dynamic").and_then(Value::as_bool);
            match scheme.get("num_bits").and_then(Value::as_u64) {
                Some(8) if float && dynamic == Some(false) => Some(KvDtype::Fp8E4m3),
                Some(4) if float => Some(KvDtype::Nvfp4),
                _ => None,
            }
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_all_values_parse_back() {
        for dtype in KvDtype::all() {
            assert_eq!(KvDtype::parse(dtype.name()).unwrap(), dtype);
        }
        assert_eq!(KvDtype::parse("fp16").unwrap(), KvDtype::Float16);
        assert_eq!(KvDtype::parse("FP8_E4M3FN").unwrap(), KvDtype::Fp8E4m3);
        assert!(KvDtype::parse("int3").unwrap_err().to_string().contains("nvfp4"));
    }

    #[test]
    fn packed_slots_have_the_sizes_that_the_codecs_document() {
        // turboquant/config.py slot_size_aligned; ops/ultraquant/format.py states 136 and 272 bytes.
        let content = |dtype: KvDtype, size| dtype.entry(1, size, size).unwrap().content_bytes;
        assert_eq!(content(KvDtype::TurboquantK8v4, 128), 128 + 64 + 4);
        assert_eq!(content(KvDtype::Turboquant4bitNc, 128), 64 + 2 + 64 + 4);
        assert_eq!(content(KvDtype::Turboquant3bitNc, 128), 48 + 2 + 48 + 4);
        assert_eq!(content(KvDtype::Ultraquant4bit, 128), 136);
        assert_eq!(content(KvDtype::Ultraquant4bit, 256), 272);
        let nvfp4 = KvDtype::Nvfp4.entry(8, 128, 128).unwrap();
        assert_eq!((nvfp4.slots, nvfp4.content_bytes), (16, 72));
        assert!(KvDtype::Nvfp4.entry(8, 192, 128).is_err());
    }

    #[test]
    fn a_checkpoint_can_ask_for_an_eight_bit_cache() {
        let declared = |text: &str| declared_by_checkpoint(&Config::parse(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(declared("{}"), None);
        let modelopt = r#"{"quantization_config":{"quant_method":"modelopt","kv_cache_quant_algo":"FP8"}}"#;
        assert_eq!(declared(modelopt), Some(KvDtype::Fp8E4m3));
        let scheme = r#"{"quantization_config":{"quant_method":"compressed-tensors","kv_cache_scheme":{"num_bits":8}}}"#;
        assert_eq!(declared(scheme), Some(KvDtype::Fp8));
        let none = r#"{"quantization_config":{"quant_method":"compressed-tensors","kv_cache_scheme":null}}"#;
        assert_eq!(declared(none), None);
    }
}
