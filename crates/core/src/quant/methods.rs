//! Methods whose `quantization_config` is one scheme for all modules but those it names: FP8, AWQ, GPTQ, FBGEMM, bitsandbytes,
//! MXFP4 of gpt-oss and DeepSeek-V4, FP-Quant.

use super::naming::Naming;
use super::scheme::{Layout, Mxfp4Padding, OddBlocks, Packed, Scheme};
use super::select::{Ignore, Match};
use super::{CacheScales, InputScale, Quantization, Rule, names, overrides};
use crate::arch::Config;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// vLLM 0.32.0, `Fp8Config`.
pub(super) fn fp8(q: &Config, naming: &Naming) -> Result<Quantization> {
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
            [outputs, inputs] if outputs > 0 && inputs > 0 => Scheme::Fp8Block {
                outputs,
                inputs,
                odd: OddBlocks::Refine,
                scale: Dtype::F32,
            },
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
        &naming.rename_all(&names(q, &["ignored_layers", "modules_to_not_convert"])?),
    )?;
    Ok(Quantization::uniform(
        "fp8",
        scheme,
        ignore,
        CacheScales::Four { latent: false },
    ))
}

/// Bits of one integer.
pub(super) fn bits(q: &Config, keys: &[&str], default: u64) -> Result<u64> {
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
pub(super) fn packed(q: &Config, layout: Layout, naming: &Naming) -> Result<Quantization> {
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
        pads_tiles: true,
        layout,
    };
    let head = q.flag("lm_head", false)?;
    if gptq {
        return Ok(Quantization {
            rule: Rule::Overrides(overrides::dynamic(q, packed, head, naming)?),
            ..Quantization::new("gptq", CacheScales::None, Mxfp4Padding::NONE, refusal)
        });
    }
    let list = names(q, &["modules_to_not_convert"])?;
    let ignore = Ignore::new(Match::Part, &naming.rename_all(&list))?;
    let mut read = Quantization::uniform("awq", Scheme::Packed(packed), ignore, CacheScales::None);
    if let Rule::Uniform { head: own, .. } = &mut read.rule {
        *own = head;
    }
    read.refusal = refusal;
    Ok(read)
}

/// Checkpoints of FBGEMM (vLLM 0.32.0, `fbgemm_fp8.py`).
pub(super) fn fbgemm(q: &Config) -> Result<Quantization> {
    let ignore = Ignore::new(Match::Exact, &names(q, &["modules_to_not_convert"])?)?;
    let read = Quantization::uniform("fbgemm_fp8", Scheme::Fp8Bounded, ignore, CacheScales::None);
    Ok(read.refused(
        "The quantization method fbgemm_fp8 is deprecated and will be removed in future versions of vLLM. To bypass, \
         set `--allow-deprecated-quantization`.",
    ))
}

/// Checkpoints of bitsandbytes, which vLLM has left out of 0.32.0: 4-bit floats in blocks of 64, or 8-bit integers.
pub(super) fn bitsandbytes(q: &Config) -> Result<Quantization> {
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
/// `models/deepseek_v4/quant_config.py`). V4.1's say it beside the method, too, and with blocks of 32 by 32 their linear modules are
/// MXFP8, with a scale for each 32 inputs of every output (`models/deepseek_v41/quant_config.py`).
pub(super) fn deepseek_v4_experts(file: &Config, q: &Config, mut read: Quantization) -> Result<Quantization> {
    let shares = match file.str("model_type")? {
        Some("deepseek_v4") => false,
        Some("deepseek_v41") => true,
        _ => return Ok(read),
    };
    let Rule::Uniform { scheme, experts, .. } = &mut read.rule else {
        return Ok(read);
    };
    let text = file.sub("text_config")?.filter(|_| shares);
    let beside = shares.then(|| q.str("expert_dtype")).transpose()?.flatten();
    let inside = text
        .as_ref()
        .map(|text| text.str("expert_dtype"))
        .transpose()?
        .flatten();
    match file.str("expert_dtype")?.or(inside).or(beside).unwrap_or("fp4") {
        "fp4" => {
            let algo = q.str("moe_quant_algo")?.unwrap_or_default();
            *experts = Some(if !shares && algo.eq_ignore_ascii_case("nvfp4") {
                Scheme::Nvfp4(InputScale::F32)
            } else {
                Scheme::Mxfp4
            });
            if let Scheme::Fp8Block { scale, .. } = scheme {
                *scale = Dtype::U8;
            }
            if shares && q.u64s("weight_block_size")?.as_deref() == Some(&[32, 32]) {
                *scheme = Scheme::Mxfp8;
            }
        }
        "fp8" => {}
        other => {
            return Err(Error::unsupported(format!(
                "{} is {other:?}, vLLM 0.32.0 knows fp4 and fp8",
                file.name("expert_dtype")
            )));
        }
    }
    Ok(read)
}

/// gpt-oss (vLLM 0.32.0, `mxfp4.py`): experts alone, whatever the file leaves out.
pub(super) fn mxfp4() -> Quantization {
    let mut read = Quantization::uniform(
        "mxfp4",
        Scheme::Mxfp4,
        Ignore::none(Match::Exact),
        CacheScales::None,
    );
    if let Rule::Uniform { experts_only, .. } = &mut read.rule {
        *experts_only = true;
    }
    read
}

/// Checkpoints of FP-Quant (vLLM 0.32.0, `fp_quant.py`): linear modules alone.
pub(super) fn fp_quant(q: &Config) -> Result<Quantization> {
    let group = match q.str("forward_dtype")? {
        Some("mxfp4") => 32,
        Some("nvfp4") => 16,
        other => {
            return Err(Error::input(format!(
                "{} is {:?}, expected mxfp4 or nvfp4",
                q.name("forward_dtype"),
                other.unwrap_or_default()
            )));
        }
    };
    let scheme = Scheme::Rotated {
        group,
        hadamard: q.dim("hadamard_group_size")?,
    };
    let ignore = Ignore::new(Match::End, &names(q, &["modules_to_not_convert"])?)?;
    let mut read = Quantization::uniform("fp_quant", scheme, ignore, CacheScales::None);
    if let Rule::Uniform { linear_only, .. } = &mut read.rule {
        *linear_only = true;
    }
    Ok(read.refused(
        "The quantization method fp_quant is deprecated and will be removed in future versions of vLLM. To bypass, set \
         `--allow-deprecated-quantization`.",
    ))
}
