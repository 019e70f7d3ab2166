//! Kernels for a deployment: whose measurements, which formats, how far to trust them.

use kvwise_core::Result;
use kvwise_core::arch::{Config, Model, Op};
use kvwise_core::plan::Hardware;
use kvwise_sim::cost::{Calibration, Engine, Graphs, Precision, StepOptions};
use serde_json::{Map, Value};

use super::Confidence;

/// What decides which kernels a deployment runs.
pub(in super::super) struct Kernels<'a> {
    /// The model, and the configuration that names its format.
    pub(in super::super) described: (&'a Model, &'a Config),
    /// Format asked for besides the checkpoint's own.
    pub(in super::super) quantization: Option<&'a str>,
    /// The GPU.
    pub(in super::super) hardware: &'a Hardware,
    /// Whose kernels.
    pub(in super::super) engine: Engine,
    /// Ranks that share each layer.
    pub(in super::super) tp: u64,
    /// Pipeline stages.
    pub(in super::super) pp: u64,
    /// Data-parallel ranks that share experts and step together.
    pub(in super::super) ranks: u32,
    /// Whether experts are whole on a rank.
    pub(in super::super) whole_experts: bool,
    /// Type of the cache as the plan names it.
    pub(in super::super) kv_dtype: &'a str,
    /// Tokens of one step of a stage.
    pub(in super::super) max_batched_tokens: u64,
    /// Which steps replay a CUDA graph.
    pub(in super::super) graphs: Graphs,
}

impl Kernels<'_> {
    /// Measured coefficients and how the model is spread over them, on one machine and without drafts.
    ///
    /// # Errors
    /// If the hardware's rates are not known, or the checkpoint's format cannot be read.
    pub(in super::super) fn options(&self) -> Result<(Calibration, StepOptions)> {
        let calibration = Calibration::of(self.hardware)?;
        let (linear, experts) = precisions(self.described.1, self.quantization, self.hardware);
        let options = StepOptions {
            ep: if self.whole_experts { self.tp } else { 1 },
            expert_dp: self.ranks.into(),
            pp: self.pp,
            max_batched_tokens: self.max_batched_tokens,
            linear,
            experts,
            kv_fp8: self.kv_dtype.contains("fp8"),
            graphs: self.graphs,
            ..StepOptions::new(self.engine, self.tp)
        };
        Ok((calibration, options))
    }
}

/// Which steps replay a graph where the engine is told to launch every kernel (`eager`), or not.
pub(in super::super) fn graphs(eager: bool) -> Graphs {
    if eager { Graphs::None } else { Graphs::All }
}

/// Whether tokens choose among experts.
pub(in super::super) fn has_experts(model: &Model) -> bool {
    model
        .layers
        .iter()
        .any(|l| l.weights.iter().any(|w| matches!(w.op, Op::Experts { .. })))
}

/// Width of the error on served points, by what the deployment has in common with them (see the accuracy page).
pub(in super::super) fn confidence(calibration: &Calibration, model: &str, sglang: bool) -> Confidence {
    let known = ["Llama-3.1-70B", "gpt-oss-120b"]
        .iter()
        .any(|m| model.contains(m));
    let (factor, basis) = if calibration.slowdown.is_some() {
        (
            1.8,
            "assumed: no kernels were measured on AMD's GPUs, efficiencies of an NVIDIA GPU on the datasheet and 2.4 times the time, as served points on MI300X took",
        )
    } else if calibration.borrowed {
        (
            1.6,
            "assumed: no kernels were measured on this GPU, efficiencies of a relative on its datasheet",
        )
    } else if known && !sglang {
        (
            1.15,
            "fitted: kernels measured on this GPU, and this model served by vLLM within 14 % in 95 of 100 points",
        )
    } else if sglang {
        (
            1.5,
            "fitted: kernels measured on this GPU; 90 of 99 points served by SGLang lay in such a range, those with tuned flags within 20 % of the middle",
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

/// Whether a field of the object, or of one inside it, is so.
fn any(map: &Map<String, Value>, is: &dyn Fn(&str, &Value) -> bool) -> bool {
    fn below(key: &str, value: &Value, is: &dyn Fn(&str, &Value) -> bool) -> bool {
        is(key, value)
            || match value {
                Value::Object(map) => any(map, is),
                Value::Array(list) => list.iter().any(|value| below(key, value, is)),
                _ => false,
            }
    }
    map.iter().any(|(key, value)| below(key, value, is))
}

/// Formats of linear layers and experts, by the checkpoint's `quantization_config` or `--quantization`.
pub(super) fn precisions(
    config: &Config,
    asked: Option<&str>,
    hardware: &Hardware,
) -> (Precision, Precision) {
    let quantization = config.get("quantization_config").and_then(Value::as_object);
    let declared = quantization
        .and_then(|q| q.get("quant_method")?.as_str())
        .map(str::to_ascii_lowercase);
    let method = asked.map(str::to_owned).or(declared);
    // Where another format is assumed, what the checkpoint says was taken away.
    let has = |key: &str| quantization.is_some_and(|q| q.get(key).is_some_and(|value| !value.is_null()));
    let anywhere = |is: &dyn Fn(&str, &Value) -> bool| quantization.is_some_and(|q| any(q, is));
    let blackwell = hardware.compute_capability.is_some_and(|(major, _)| major == 10);
    match method.as_deref() {
        None | Some("none") => (Precision::Bf16, Precision::Bf16),
        Some("mxfp4") => (
            Precision::Bf16,
            if blackwell {
                Precision::Mxfp4A8
            } else {
                Precision::Mxfp4A16
            },
        ),
        Some(m)
            if m.contains("fp4")
                || anywhere(&|_, value| value.as_str().is_some_and(|text| text.contains("NVFP4"))) =>
        {
            (Precision::Nvfp4, Precision::Nvfp4)
        }
        Some("compressed-tensors")
            if anywhere(&|key, value| key == "num_bits" && value.as_u64() == Some(4)) =>
        {
            if anywhere(&|key, value| key == "type" && value.as_str() == Some("float")) {
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
    }
}
