//! Simulating: plan the deployment, turn its layout into a scheduler, run the traffic through it.

use kvwise_cache::manager::GroupSpec;
use kvwise_core::arch::Config;
use kvwise_core::engine::vllm;
use kvwise_core::engine::vllm::spec::SpecKind;
use kvwise_core::plan::{self, Engine, Hardware, Plan};
use kvwise_core::{Error, Result};
use kvwise_sim::cost::{self, Calibration, GpuSpec, Precision, StepModel, StepOptions};
use kvwise_sim::replay::vllm::Isolation;
use kvwise_sim::sched::vllm::SchedulerConfig;
use kvwise_sim::simulate::{
    Arrivals, Deployment as Served, HostTimes, Run, Slo, StepClock, Summary, run, summarize,
};
use kvwise_sim::trace::Trace;
use serde_json::Value;

use super::deployment::{Deployment, Resolved};

/// A simulated deployment.
#[derive(Debug)]
pub struct Outcome {
    /// The plan that it rests on.
    pub plan: Plan,
    /// Why nothing could be simulated; then there is no run.
    pub refused: Option<String>,
    /// Whether the kernel times were fitted on this very GPU.
    pub fitted_on_this_gpu: bool,
    /// What happened.
    pub run: Run,
    /// Its figures.
    pub summary: Summary,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Runs `trace` on the deployment.
///
/// # Errors
/// If a name or value cannot be used, or the deployment has a part that is not simulated.
pub fn simulate(deployment: &Deployment, trace: &Trace, arrivals: Arrivals, slo: Slo) -> Result<Outcome> {
    let resolved = deployment.resolve()?;
    let plan = plan::plan(&resolved.request(false))?;
    let mut warnings = resolved.warnings.clone();
    let refusal = plan.feasibility.refused.clone().or_else(|| {
        (plan.memory.headroom_bytes.0 < 0)
            .then(|| "the weights and overhead leave no memory for the KV cache".to_owned())
    });
    if let Some(reason) = refusal {
        return Ok(Outcome {
            plan,
            refused: Some(reason),
            fitted_on_this_gpu: false,
            run: Run::default(),
            summary: Summary::default(),
            warnings,
        });
    }
    let (Engine::Vllm(settings), Some((model, config))) = (resolved.engine(), resolved.described()) else {
        return Err(
            Error::unsupported("only vLLM is simulated, and only models whose layers are known")
                .hint("leave out --engine, and give --model a catalogue name or a config.json"),
        );
    };
    check_supported(settings)?;
    let hardware = resolved.hardware();
    let scheduler = scheduler(&resolved, &plan, settings)?;
    let calibration = calibration(hardware)?;
    let (linear, experts) = precisions(config, settings, hardware)?;
    let tp = settings.tensor_parallel_size;
    let options = StepOptions {
        engine: cost::Engine::Vllm,
        tp,
        ep: if settings.enable_expert_parallel { tp } else { 1 },
        linear,
        experts,
        kv_fp8: plan.kv_cache.as_ref().is_some_and(|kv| kv.dtype.contains("fp8")),
    };
    if calibration.borrowed {
        warnings.push(format!(
            "no kernel measurements of this GPU: efficiencies of {} on its datasheet; expect a wider error",
            calibration.gpu
        ));
    }
    if settings.speculative.is_some() {
        warnings.push("speculative decoding is planned for memory but not simulated in time".to_owned());
    }
    let step = StepModel::new(model, &calibration, options)?;
    let served = Served {
        scheduler,
        clock: StepClock::Model(&step),
        host: HostTimes::default(),
        isolation: Isolation::default(),
    };
    let (result, ()) = run(trace, &served, arrivals, ())?;
    let summary = summarize(&result, served.host, slo);
    if summary.rejected > 0 {
        warnings.push(format!(
            "{} of {} requests can never run: longer than --max-model-len or larger than the pool",
            summary.rejected,
            trace.len()
        ));
    }
    Ok(Outcome {
        fitted_on_this_gpu: !calibration.borrowed,
        plan,
        refused: None,
        run: result,
        summary,
        warnings,
    })
}

fn check_supported(settings: &vllm::Settings) -> Result<()> {
    for (flag, value) in [
        ("--pipeline-parallel-size", settings.pipeline_parallel_size),
        ("--data-parallel-size", settings.data_parallel_size),
        (
            "--decode-context-parallel-size",
            settings.decode_context_parallel_size,
        ),
    ] {
        if value > 1 {
            return Err(Error::unsupported(format!(
                "{flag} {value} is planned but not simulated by this version"
            ))
            .hint("simulate one replica with tensor parallelism, and give it its share of the traffic"));
        }
    }
    Ok(())
}

fn small(what: &str, n: u64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::input(format!("{what} is {n}, more than is simulated (2^32)")))
}

fn scheduler(resolved: &Resolved, plan: &Plan, settings: &vllm::Settings) -> Result<SchedulerConfig> {
    let (Some(kv), Some((model, _))) = (&plan.kv_cache, resolved.described()) else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to simulate",
        ));
    };
    let hardware = resolved.hardware();
    let (major, minor) = hardware.compute_capability.unwrap_or((9, 0));
    let gpu = vllm::Gpu::new(&hardware.name, major, minor, hardware.torch_bytes);
    let outcome = vllm::layout(model, settings, gpu, &[kv.available_bytes])?;
    let Some(layout) = outcome.layout else {
        return Err(Error::unsupported(
            "the engine would not lay out this cache, so there is nothing to simulate",
        ));
    };
    let groups = layout
        .groups
        .iter()
        .map(|group| {
            let block = small("the block size", group.block_size)?;
            Ok(match &group.spec.kind {
                SpecKind::Sliding { window, .. } | SpecKind::SlidingLatent { window, .. } => {
                    GroupSpec::sliding_window(block, small("the window", *window)?)
                }
                SpecKind::Chunked { chunk } => GroupSpec::chunked_local(block, small("the chunk", *chunk)?),
                SpecKind::State { .. } => GroupSpec::mamba_align(block),
                _ => GroupSpec::full(block),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let concurrent_batches = if settings.async_scheduling == Some(false) {
        1
    } else {
        2
    };
    Ok(SchedulerConfig {
        num_blocks: small("the number of blocks", kv.num_blocks)?,
        groups,
        max_model_len: small("--max-model-len", layout.max_model_len)?,
        max_num_seqs: small(
            "--max-num-seqs",
            layout.max_num_seqs.min(layout.max_num_batched_tokens),
        )?,
        max_num_batched_tokens: small("--max-num-batched-tokens", layout.max_num_batched_tokens)?,
        concurrent_batches,
        prefix_caching: layout.prefix_caching,
        ..SchedulerConfig::new(2, 16)
    })
}

fn calibration(hardware: &Hardware) -> Result<Calibration> {
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
fn precisions(
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

/// The deployment with the flags of `changes` (`kv-cache-dtype=fp8,tp=2`) set.
///
/// # Errors
/// If a flag is not known or its value has the wrong type.
pub fn changed(deployment: &Deployment, changes: &str) -> Result<Deployment> {
    let broken = |e: &dyn std::fmt::Display| Error::input(format!("--compare \"{changes}\": {e}"));
    let mut value = serde_json::to_value(deployment).map_err(|e| broken(&e))?;
    let Some(fields) = value.as_object_mut() else {
        return Err(broken(&"no fields"));
    };
    for change in changes.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        let (flag, text) = change.split_once('=').unwrap_or((change, "true"));
        let key = match flag.trim_start_matches('-') {
            "tp" => "tensor_parallel_size".to_owned(),
            "pp" => "pipeline_parallel_size".to_owned(),
            "dp" => "data_parallel_size".to_owned(),
            "dcp" => "decode_context_parallel_size".to_owned(),
            other => other.replace('-', "_"),
        };
        if !fields.contains_key(&key) {
            let known: Vec<String> = fields.keys().map(|k| k.replace('_', "-")).collect();
            let near = kvwise_core::names::nearest(flag, known.iter().map(String::as_str), 1);
            let error = broken(&format!("there is no flag {flag}"));
            return Err(match near.first() {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            });
        }
        // A field takes text, a number or a switch: the one that it accepts is right.
        let candidates = [
            Value::String(text.to_owned()),
            text.parse::<u64>().map_or(Value::Null, Value::from),
            text.parse::<f64>().map_or(Value::Null, Value::from),
            text.parse::<bool>().map_or(Value::Null, Value::from),
        ];
        let before = fields.clone();
        let mut taken = false;
        for candidate in candidates.into_iter().filter(|c| !c.is_null()) {
            fields.insert(key.clone(), candidate);
            if serde_json::from_value::<Deployment>(Value::Object(fields.clone())).is_ok() {
                taken = true;
                break;
            }
        }
        if !taken {
            *fields = before;
            return Err(broken(&format!("{flag} does not take the value \"{text}\"")));
        }
    }
    serde_json::from_value(value).map_err(|e| broken(&e))
}
