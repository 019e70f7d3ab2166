//! Element type of SGLang's pool (0.5.23, `srt/mem_cache/kv_cache_dtype.py`).

use serde_json::{Map, Value};

use super::memory::Card;
use super::settings::{KvDtype, Settings};
use crate::arch::{Config, Model};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// float32 becomes a 16-bit type, and cards without bfloat16 take float16.
pub(super) fn model_dtype(model: &Model, settings: &Settings, card: &Card) -> Dtype {
    match (settings.dtype, model.dtype) {
        (Some(given), _) => given,
        (None, Some(Dtype::F16)) => Dtype::F16,
        (None, _) if card.capability >= (8, 0) => Dtype::Bf16,
        (None, _) => Dtype::F16,
    }
}

/// Element type of the pool: sparse models default to fp8 on Blackwell, others to fp8 only where the checkpoint says so (0.5.23, `srt/mem_cache/kv_cache_dtype.py` and `_dsa_kv_cache_dtype_default`).
pub(super) fn element(
    config: &Config,
    settings: &Settings,
    card: &Card,
    model: Dtype,
    sparse: bool,
    compressed: bool,
) -> Result<(Dtype, &'static str)> {
    Ok(match settings.kv_cache_dtype {
        KvDtype::Bfloat16 => (Dtype::Bf16, "bfloat16"),
        KvDtype::Fp8E4m3 => (Dtype::F8E4m3, "fp8_e4m3"),
        KvDtype::Fp8E5m2 => (Dtype::F8E5m2, "fp8_e5m2"),
        KvDtype::Mxfp8 => (Dtype::F8E4m3, "mxfp8"),
        KvDtype::Nvfp4 => (Dtype::U8, "nvfp4"),
        KvDtype::Fp4MxBlock16 => (Dtype::U8, "fp4_mx_block16"),
        // DeepSeek-V4's latents are in 8 bits, whatever is said.
        KvDtype::Auto if compressed => (Dtype::F8E4m3, "fp8_e4m3"),
        KvDtype::Auto if sparse && card.capability.0 >= 10 => (Dtype::F8E4m3, "fp8_e4m3"),
        KvDtype::Auto if sparse => (Dtype::Bf16, "bfloat16"),
        KvDtype::Auto => {
            let none = settings.quantization.as_deref() == Some("none");
            if !none && declares_fp8(config)? {
                (Dtype::F8E4m3, "fp8_e4m3")
            } else {
                (model, model.name())
            }
        }
    })
}

/// Whether the checkpoint's quantisation asks for 8-bit floats in the cache: the `kv_cache_quant_algo` that the engine's
/// classes read of it (`srt/layers/quantization/modelopt_quant.py`, `fp8.py`, `compressed_tensors/compressed_tensors.py`).
fn declares_fp8(config: &Config) -> Result<bool> {
    let Some(quant) = config.map().get("quantization_config").filter(|v| !v.is_null()) else {
        return Ok(false);
    };
    let Some(quant) = quant.as_object() else {
        return Err(Error::input(format!(
            "{} is not an object",
            config.name("quantization_config")
        )));
    };
    let named = |map: &Map<String, Value>| {
        map.get("kv_cache_quant_algo")
            .and_then(Value::as_str)
            .is_some_and(|algo| algo.eq_ignore_ascii_case("fp8"))
    };
    let method = quant.get("quant_method").and_then(Value::as_str).unwrap_or("");
    Ok(match (method, quant.get("kv_cache_scheme")) {
        // A static scale for each tensor is the only scheme that its pool has.
        ("compressed-tensors", Some(Value::Object(scheme))) => {
            eight_bit_float(scheme)
                && scheme.get("strategy").and_then(Value::as_str) == Some("tensor")
                && scheme.get("dynamic").and_then(Value::as_bool) != Some(true)
                && scheme.get("symmetric").and_then(Value::as_bool) != Some(false)
        }
        ("" | "modelopt" | "modelopt_fp4" | "modelopt_fp8" | "modelopt_mixed", scheme) => {
            match (quant.get("quantization"), quant.get("quant_algo"), scheme) {
                (_, Some(_), Some(Value::Object(scheme))) => eight_bit_float(scheme),
                (_, Some(Value::String(algo)), Some(Value::String(scheme))) => {
                    algo != "FP8" && ["FP8", "FLOAT8"].contains(&scheme.trim().to_ascii_uppercase().as_str())
                        || algo == "FP8" && named(quant)
                }
                (_, Some(_), _) => named(quant),
                (Some(Value::Object(inner)), None, _) => named(inner),
                _ => false,
            }
        }
        ("fp8", _) => named(quant),
        _ => false,
    })
}

fn eight_bit_float(scheme: &Map<String, Value>) -> bool {
    scheme.get("type").and_then(Value::as_str) == Some("float")
        && scheme.get("num_bits").and_then(Value::as_u64) == Some(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declares(quant: &Value) -> bool {
        let Value::Object(map) = json!({ "quantization_config": quant }) else {
            unreachable!()
        };
        declares_fp8(&Config::from_map(map)).unwrap()
    }

    #[test]
    fn a_checkpoint_asks_for_an_8_bit_cache_in_the_words_of_its_method() {
        // What `from_config` of 0.5.23's classes makes of these as `kv_cache_quant_algo`.
        let float8 = json!({"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": false, "symmetric": true});
        for (quant, asks) in [
            (
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": float8}),
                true,
            ),
            (
                json!({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}),
                true,
            ),
            (
                json!({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": null}}),
                false,
            ),
            (
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": "fp8"}),
                true,
            ),
            (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), false),
            (json!({"quant_method": "fp8", "kv_cache_quant_algo": "FP8"}), true),
            (json!({"quant_method": "fp8", "kv_cache_scheme": float8}), false),
            (
                json!({"quant_method": "compressed-tensors", "kv_cache_scheme": float8}),
                true,
            ),
            (
                json!({"quant_method": "compressed-tensors", "kv_cache_scheme": null}),
                false,
            ),
            (json!({"quant_method": "awq", "kv_cache_scheme": float8}), false),
        ] {
            assert_eq!(declares(&quant), asks, "{quant}");
        }
    }
}
