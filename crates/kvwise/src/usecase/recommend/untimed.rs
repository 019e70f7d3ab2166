//! Engines whose steps are not timed: where a model starts is planned, whether objectives hold is not known, and the answer
//! says so. That is llama.cpp.

use kvwise_core::Result;
use kvwise_core::plan;
use kvwise_sim::trace::Trace;
use rayon::prelude::*;

use super::super::deployment::Deployment;
use super::Question;
use super::answer::{objective, workload};
use crate::report::recommend::{PlannedOnly, Recommendation, SCHEMA, Searched};

/// GPUs of one machine, over which llama.cpp spreads a model.
const GPUS: [u64; 4] = [1, 2, 4, 8];
/// Mixes of the converter that are planned: the usual small one, eight bits, the checkpoint's own sixteen.
const FORMATS: [&str; 3] = ["q4_k_m", "q8_0", "f16"];

/// Whether the simulator has this engine's steps.
pub(super) fn is_timed(engine: &str) -> bool {
    engine != "llamacpp"
}

/// The cheapest machine of each kind of GPU on which llama.cpp holds the traffic's requests at once, by format; where there is
/// none at all, the reason of the last that was tried.
pub(super) fn plans(
    base: &Deployment,
    gpus: &[String],
    question: &Question,
    concurrency: Option<u64>,
) -> Result<(Vec<PlannedOnly>, Option<String>)> {
    let mut asked = Vec::new();
    for gpu in gpus {
        for format in FORMATS {
            asked.push((gpu, format, question.prices.of(gpu)?));
        }
    }
    let requests = concurrency.unwrap_or(1);
    let tried: Vec<Result<PlannedOnly, String>> = asked
        .par_iter()
        .map(|&(gpu, format, usd_per_hour)| {
            let mut why = "a single GPU exceeds --budget".to_owned();
            for n in GPUS.into_iter().filter(|&n| n <= question.max_gpus) {
                let usd_per_hour = usd_per_hour * n as f64;
                if question.budget_usd_per_hour.is_some_and(|b| usd_per_hour > b) {
                    break;
                }
                let deployment = Deployment {
                    engine: Some("llamacpp".to_owned()),
                    gpu: Some(gpu.clone()),
                    gpus: Some(n),
                    quantization: Some(format.to_owned()),
                    concurrency: vec![requests],
                    max_model_len: None,
                    ..base.clone()
                };
                match deployment
                    .resolve()
                    .and_then(|resolved| plan::assess(&resolved.request(false)))
                {
                    Ok(plan) if plan.feasibility.fits => {
                        return Ok(PlannedOnly {
                            engine: "llamacpp",
                            gpu: gpu.clone(),
                            gpus: n,
                            usd_per_hour,
                            quantization: format.to_owned(),
                            verdict: plan.verdict,
                        });
                    }
                    Ok(plan) => why = format!("{n} x {gpu} with {format}: {}", plan.verdict),
                    Err(e) => why = e.to_string(),
                }
            }
            Err(why)
        })
        .collect();
    let why = tried.iter().rev().find_map(|row| row.as_ref().err().cloned());
    let mut rows: Vec<PlannedOnly> = tried.into_iter().filter_map(Result::ok).collect();
    rows.sort_by(|a, b| a.usd_per_hour.total_cmp(&b.usd_per_hour));
    Ok((rows, why))
}

/// The answer where no engine that was asked for is timed: none, and where the model starts.
pub(super) fn report(
    q: &Question,
    trace: &Trace,
    planned_only: Vec<PlannedOnly>,
    why: Option<&str>,
) -> Recommendation {
    Recommendation {
        schema: SCHEMA,
        model: q.base.model.clone().unwrap_or_default(),
        objective: objective(q),
        explanation: vec![
            "Steps of llama.cpp are not timed here, so that nothing is known of its latencies and nothing can be recommended."
                .to_owned(),
            match planned_only.first() {
                Some(row) => format!(
                    "The cheapest machine on which the traffic's requests fit is {} x {} with {}: {}.",
                    row.gpus, row.gpu, row.quantization, row.verdict
                ),
                None => format!(
                    "They start on no machine that the limits allow: {}.",
                    why.unwrap_or("none is allowed")
                ),
            },
        ],
        workload: workload(q, trace),
        slo_ttft_ms: q.objectives.slo.ttft_ms,
        slo_tpot_ms: q.objectives.slo.tpot_ms,
        slo_percentile: q.objectives.percentile,
        recommended: None,
        holds_factor: None,
        alternatives: Vec::new(),
        planned_only,
        prices_source: q.prices.source.clone(),
        prices_date: q.prices.date.clone(),
        searched: Searched {
            candidates: 0,
            simulations: 0,
        },
    }
}
