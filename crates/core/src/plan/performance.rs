//! Rough speed bounds from peak rates: a roofline, not a measurement.

use super::evaluation::Evaluation;
use super::report::{Performance, Range};
use super::request::{Engine, Request};

/// Share of the peak bandwidth that decoding reaches, and of the peak rate that a prompt reaches: kernels published with
/// measurements lie between these.
const DECODE_SHARE: (f64, f64) = (0.35, 0.85);
const PREFILL_SHARE: (f64, f64) = (0.25, 0.7);

/// Share of the ranks' summed rate that tensor parallelism leaves, over NVLink and over `PCIe` (the factors of an earlier
/// planner, vllm-wizard 0.2.0, `perf.py`; 0.8 there where the link is not known).
const LINK_SHARE: (f64, f64) = (0.90, 0.75);

/// Bounds for the load of the verdict; `None` where the hardware's rates are not known.
pub(super) fn performance(
    request: &Request,
    evaluation: &Evaluation,
    load: Option<(u64, u64)>,
) -> Option<Performance> {
    let bandwidth = request.hardware.bandwidth_bytes_per_s?;
    let flops = request.hardware.flops?;
    let (context, concurrency) = load?;
    let pool = evaluation.pool.as_ref()?;
    // One decode step reads the weights that its tokens use and the KV cache of every request. With more tokens more of
    // the experts are read; all of them is the slow bound.
    let link = match (&request.engine, request.hardware.pcie_only) {
        (engine, _) if tensor_parallel(engine) == 1 => 1.0,
        (_, false) => LINK_SHARE.0,
        (_, true) => LINK_SHARE.1,
    };
    let share = evaluation.params_active as f64 / evaluation.params.max(1) as f64;
    let weights = evaluation.weights.bytes as f64;
    let kv = pool.load_bytes(context, concurrency).ok()? as f64;
    let step = |weights: f64, efficiency: f64| (weights + kv) / (bandwidth * efficiency * link);
    let used = (weights * share * concurrency as f64).min(weights);
    let decode = Range {
        low: concurrency as f64 / step(weights, DECODE_SHARE.0),
        high: concurrency as f64 / step(used, DECODE_SHARE.1),
    };
    let prompt = request.load.prompt_tokens.unwrap_or(context).max(1) as f64;
    let ranks = evaluation.ranks.max(1) as f64;
    let per_token = 2.0 * evaluation.params_active as f64;
    let prefill = Range {
        low: flops * PREFILL_SHARE.0 * ranks * link / per_token,
        high: flops * PREFILL_SHARE.1 * ranks * link / per_token,
    };
    Some(Performance {
        prefill_tokens_per_s: prefill,
        decode_tokens_per_s: decode,
        ttft_ms: Range {
            low: prompt / prefill.high * 1e3,
            high: prompt / prefill.low * 1e3,
        },
        basis: "assumed: roofline at 35-85 % of the peak bandwidth and 25-70 % of the peak 16-bit rate, 90 % of it over NVLink and 75 % over PCIe with tensor parallelism; attention's own operations and queueing are left out",
    })
}

/// Ranks that share each layer.
fn tensor_parallel(engine: &Engine) -> u64 {
    match engine {
        Engine::Vllm(settings) => settings.tensor_parallel_size,
        Engine::Sglang(settings) => settings.tp(),
        Engine::LlamaCpp(_) => 1,
        Engine::Generic(settings) => settings.tensor_parallel_size,
    }
}
