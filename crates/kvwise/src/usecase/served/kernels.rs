//! Kernels for a deployment: whose measurements, which formats, how far to trust them.

use kvwise_core::arch::Config;
use kvwise_core::engine::vllm;
use kvwise_core::plan::Hardware;
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{Calibration, GpuSpec, Precision};
use serde_json::Value;

use super::Confidence;

/// Width of the error on served points, by what the deployment has in common with them (see the accuracy page).
pub(super) fn confidence(calibration: &Calibration, model: &str, sglang: bool) -> Confidence {
    let known = ["Llama-3.1-70B", "gpt-oss-120b"]
        .iter()
        .any(|m| model.contains(m));
    let (factor, basis) = if calibration.borrowed {
        (
            1.6,
            "assumed: no kernels were measured on this GPU, efficiencies of a relative on its datasheet",
        )
    } else if known && !sglang {
        (
            1.15,
            "fitted: kernels measured on this GPU, and this model served by vLLM within 14 % in 95 of 100 points",
        )
    } else {
        (
            1.3,
            "fitted: kernels measured on this GPU; three other models served on such GPUs came out within 29 % in 95 of 100 points",
        )
    };
    Confidence {
        factor,
        basis: basis.to_owned(),
    }
}

pub(super) fn calibration(hardware: &Hardware) -> Result<Calibration> {
    let capability = hardware
        .compute_capability
        .map_or(90, |(major, minor)| major * 10 + minor);
    let spec = match (hardware.bandwidth_bytes_per_s, hardware.flops) {
        (Some(bw), Some(f16)) => Some(GpuSpec {
            bw,
            f16,
            f8: (capability >= 89).then_some(2.0 * f16),
            f4: (capability >= 100).then_some(4.0 * f16),
            link: if hardware.pcie_only { 3.2e10 } else { 4.5e11 },
            sms: 132.0,
        }),
        _ => {
            return Err(Error::unsupported(format!(
                "bandwidth and compute rate of {} are not known, so its steps cannot be timed",
                hardware.name
            ))
            .hint("give --gpu a catalogue name (see `kvwise gpus`)"));
        }
    };
    Calibration::for_gpu(&hardware.name, capability, spec)
}

/// Formats of linear layers and experts, by the checkpoint's `quantization_config` or `--quantization`.
pub(super) fn precisions(
    config: &Config,
    settings: &vllm::Settings,
    hardware: &Hardware,
) -> Result<(Precision, Precision)> {
    let quantization = config.sub("quantization_config")?;
    let declared = match &quantization {
        Some(q) => q.str("quant_method")?.map(str::to_ascii_lowercase),
        None => None,
    };
    let method = settings.quantization.clone().or(declared);
    // Where another format is assumed, what the checkpoint says was taken away.
    let has = |key: &str| quantization.as_ref().is_some_and(|q| q.get(key).is_some());
    let text = quantization
        .as_ref()
        .map(|q| Value::Object(q.map().clone()).to_string())
        .unwrap_or_default();
    let blackwell = hardware.compute_capability.is_some_and(|(major, _)| major == 10);
    Ok(match method.as_deref() {
        None | Some("none") => (Precision::Bf16, Precision::Bf16),
        Some("mxfp4") => (
            Precision::Bf16,
            if blackwell {
                Precision::Mxfp4A8
            } else {
                Precision::Mxfp4A16
            },
        ),
        Some(m) if m.contains("fp4") || text.contains("NVFP4") => (Precision::Nvfp4, Precision::Nvfp4),
        Some("compressed-tensors") if text.contains("\"num_bits\":4") => {
            if text.contains("\"type\":\"float\"") {
                (Precision::Nvfp4, Precision::Nvfp4)
            } else {
                (Precision::Int4A16, Precision::Int4A16)
            }
        }
        Some(m)
            if m.contains("awq")
                || m.contains("gptq")
                || m.contains("int4")
                || m.contains("bitsandbytes") =>
        {
            (Precision::Int4A16, Precision::Int4A16)
        }
        Some(_) if has("weight_block_size") => (Precision::Fp8Block, Precision::Fp8Block),
        Some(_) => (Precision::Fp8, Precision::Fp8),
    })
}
