//! Speed from peak rates, where no model of the kernels answers: a roofline, not a measurement.

use super::evaluation::Evaluation;
use super::report::{Performance, Range, Speed, SpeedBound};
use super::request::{Engine, Request};

/// Share of the peak bandwidth that decoding reaches, and of the peak rate that a prompt reaches: kernels published with
/// measurements lie between these.
const DECODE_SHARE: (f64, f64) = (0.35, 0.85);
const PREFILL_SHARE: (f64, f64) = (0.25, 0.7);

/// Share of the ranks' summed rate that tensor parallelism leaves, over NVLink and over `PCIe` (the factors of an earlier
/// planner, vllm-wizard 0.2.0, `perf.py`; 0.8 there where the link is not known).
const LINK_SHARE: (f64, f64) = (0.90, 0.75);

/// Speed under a load of `concurrency` requests of `context` tokens; `None` where the hardware's rates are not known, or the
/// host's speed decides.
pub(super) fn performance(
    request: &Request,
    evaluation: &Evaluation,
    (context, concurrency): (u64, u64),
) -> Option<Performance> {
    let bandwidth = request.hardware.bandwidth_bytes_per_s?;
    let flops = request.hardware.flops?;
    let pool = evaluation.pool.as_ref().filter(|_| !evaluation.host_computes)?;
    let link = match (&request.engine, request.hardware.pcie_only) {
        (engine, _) if tensor_parallel(engine) == 1 => 1.0,
        (_, false) => LINK_SHARE.0,
        (_, true) => LINK_SHARE.1,
    };
    let share = evaluation.params_active as f64 / evaluation.params.max(1) as f64;
    let weights = evaluation.weights.bytes as f64;
    let kv = pool.load_bytes(context, concurrency).ok()? as f64;
    let requests = concurrency as f64;
    let prompt_tokens = request.load.prompt_tokens.unwrap_or(context).max(1);
    let prompt = prompt_tokens as f64;
    let ranks = evaluation.ranks.max(1) as f64;
    let prompt_flops = 2.0 * evaluation.params_active as f64 / ranks;
    // One decode step reads the weights that its tokens use and the KV cache of every request. With more tokens more of
    // the experts are read: those that a uniform router would choose at least, all of them at most.
    let used = weights * (1.0 - (1.0 - share).powf(requests));
    let step_ms = |weights: f64, share: f64| (weights + kv) / (bandwidth * share) * 1e3;
    let tpot = Range::between(
        step_ms(used, DECODE_SHARE.1 * link),
        step_ms(weights, DECODE_SHARE.0 * link),
    );
    let prompt_rate = |share: f64| flops * share / prompt_flops;
    let prefill = Range::between(
        prompt_rate(PREFILL_SHARE.0 * link),
        prompt_rate(PREFILL_SHARE.1 * link),
    );
    Some(Performance {
        context,
        concurrency,
        prompt_tokens,
        speed: Speed {
            prefill_tokens_per_s: prefill,
            decode_tokens_per_s: tpot.map(|ms| requests / ms * 1e3),
            ttft_ms: prefill.map(|rate| prompt / rate * 1e3),
            tpot_ms: tpot,
        },
        roofline: SpeedBound {
            prefill_tokens_per_s: prompt_rate(1.0),
            decode_tokens_per_s: requests / step_ms(used, 1.0) * 1e3,
            ttft_ms: prompt / prompt_rate(1.0) * 1e3,
            tpot_ms: step_ms(used, 1.0),
        },
        basis: "assumed: 35-85 % of the peak bandwidth and 25-70 % of the peak 16-bit rate, 90 % of it over NVLink and 75 % over PCIe with tensor parallelism; attention's own operations and queueing are left out".to_owned(),
        source: "the GPU's datasheet".to_owned(),
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
