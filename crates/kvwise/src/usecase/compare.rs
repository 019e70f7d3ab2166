//! Comparing: a plan for every combination of model, GPU, engine and cache type.

use kvwise_core::plan::{self, Plan};
use kvwise_core::{Error, Result};
use rayon::prelude::*;

use super::deployment::Deployment;
use crate::report::compare::{Cell, Comparison, Row, SCHEMA, Scenario, View};

/// Most combinations that are planned.
const MAX_ROWS: usize = 100_000;

/// The GPU whose rules are taken where none matters: the bytes of a request do not depend on the memory.
const ANY_GPU: &str = "h100";

/// What to compare.
#[derive(Debug, Clone)]
pub struct Question {
    /// What every combination shares; its model, GPU, engine and cache type are replaced.
    pub base: Deployment,
    /// Models.
    pub models: Vec<String>,
    /// GPUs; empty for views that need none.
    pub gpus: Vec<String>,
    /// Engines.
    pub engines: Vec<String>,
    /// Types of the cache.
    pub kv_cache_dtypes: Vec<String>,
    /// Tokens of a request.
    pub contexts: Vec<u64>,
    /// Requests, tokens of each, tokens that are reserved for each.
    pub scenarios: Vec<(u64, u64, u64)>,
    /// What the table shows.
    pub view: View,
    /// Tensor-parallel sizes to try, the smallest that fits is taken.
    pub tensor_parallel_sizes: Vec<u64>,
}

/// Plans every combination.
///
/// # Errors
/// If a name is not known or a value cannot be used, for whichever combination comes first.
pub fn compare(question: &Question) -> Result<Comparison> {
    let any = vec![ANY_GPU.to_owned()];
    let gpus = if question.gpus.is_empty() {
        &any
    } else {
        &question.gpus
    };
    let mut combinations = Vec::new();
    for model in &question.models {
        for gpu in gpus {
            for engine in &question.engines {
                for kv in &question.kv_cache_dtypes {
                    combinations.push((model, gpu, engine, kv));
                }
            }
        }
    }
    if combinations.len() > MAX_ROWS {
        return Err(Error::input(format!(
            "{} combinations are more than the {MAX_ROWS} that are compared",
            combinations.len()
        )));
    }
    let rows = combinations
        .par_iter()
        .map(|(model, gpu, engine, kv)| {
            let deployment = Deployment {
                model: Some((*model).clone()),
                gpu: Some((*gpu).clone()),
                engine: Some((*engine).clone()),
                kv_cache_dtype: Some((*kv).clone()),
                ..question.base.clone()
            };
            row(question, deployment).map_err(|e| if question.models.len() > 1 { e.at(model) } else { e })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Comparison {
        schema: SCHEMA,
        view: question.view,
        contexts: question.contexts.clone(),
        rows,
    })
}

/// The smallest of the parallel sizes that fits, else the largest.
fn row(question: &Question, mut deployment: Deployment) -> Result<Row> {
    let mut lengths = question.contexts.clone();
    for &(_, tokens, reserved) in &question.scenarios {
        lengths.extend([tokens, reserved]);
    }
    // Two lengths at least, since a plan lists its loads only where there are several.
    if lengths.len() == 1 {
        lengths.push(lengths[0]);
    }
    deployment.context = lengths.iter().map(u64::to_string).collect();
    deployment.concurrency = vec![1];
    let mut last = None;
    for &tp in &question.tensor_parallel_sizes {
        set_gpus(&mut deployment, tp);
        let plan = match deployment.resolve().and_then(|r| plan::assess(&r.request(false))) {
            Ok(plan) => plan,
            // A size that the engine cannot use is no row of its own as long as another can.
            Err(e) if tp > 1 && last.is_some() => {
                let _ = e;
                continue;
            }
            Err(e) => return Err(e),
        };
        let fits = starts(&plan);
        last = Some((plan, fits));
        if fits {
            break;
        }
    }
    let Some((plan, fits)) = last else {
        return Err(Error::input("--tensor-parallel-size has no value"));
    };
    described(question, &plan, fits)
}

/// The deployment on so many GPUs, in its engine's way.
fn set_gpus(deployment: &mut Deployment, gpus: u64) {
    // llama.cpp gives layers to GPUs and knows no ranks.
    if deployment
        .engine
        .as_deref()
        .is_some_and(|e| e.starts_with("llama"))
    {
        deployment.gpus = Some(gpus);
    } else {
        deployment.tensor_parallel_size = Some(gpus);
    }
}

/// Whether the engine starts and holds a request of the first context.
fn starts(plan: &Plan) -> bool {
    plan.feasibility.refused.is_none()
        && plan.memory.headroom_bytes.0 >= 0
        && plan
            .grid
            .first()
            .is_none_or(|cell| cell.max_concurrency_at_context > 0)
}

fn described(question: &Question, plan: &Plan, fits: bool) -> Result<Row> {
    let max_model_len = plan
        .kv_cache
        .as_ref()
        .map(|kv| kv.max_model_len)
        .or(plan.model.max_model_len);
    let accepted = |context: u64| max_model_len.is_none_or(|most| context <= most);
    let contexts: Vec<Cell> = plan
        .grid
        .iter()
        .take(question.contexts.len())
        .map(|cell| Cell {
            context: cell.context,
            request_bytes_per_gpu: cell.kv_bytes,
            max_concurrency: cell.max_concurrency_at_context,
            accepted: accepted(cell.context),
        })
        .collect();
    let mut scenarios = Vec::new();
    let bytes_at = |tokens: u64| plan.grid.iter().find(|c| c.context == tokens).map(|c| c.kv_bytes);
    for &(requests, tokens, reserved_tokens) in &question.scenarios {
        let (Some(used), Some(reserved)) = (bytes_at(tokens), bytes_at(reserved_tokens)) else {
            continue;
        };
        let all = |bytes: u64| {
            bytes
                .checked_mul(requests)
                .and_then(|b| b.checked_mul(plan.gpu.count))
                .ok_or_else(|| Error::overflow(format_args!("the KV cache of {requests} requests")))
        };
        scenarios.push(Scenario {
            requests,
            tokens,
            reserved_tokens,
            reserved_bytes: all(reserved)?,
            paged_bytes: all(used)?,
        });
    }
    Ok(Row {
        model: plan.model.name.clone(),
        gpu: plan.gpu.name.clone(),
        gpus: plan.gpu.count,
        engine: plan.engine.name.to_owned(),
        engine_version: plan.engine.version.clone(),
        kv_cache_dtype: plan
            .kv_cache
            .as_ref()
            .map_or_else(|| "-".to_owned(), |kv| kv.dtype.clone()),
        params: plan.model.params,
        layers: plan.model.layers,
        weights_bytes_per_gpu: plan.weights.bytes_per_rank.iter().copied().max().unwrap_or(0),
        kv_bytes_per_token: plan.kv_cache.as_ref().map(|kv| kv.bytes_per_token),
        kv_cache_bytes_per_gpu: plan.kv_cache.as_ref().map(|kv| kv.available_bytes),
        capacity_tokens: plan.kv_cache.as_ref().map(|kv| kv.capacity_tokens),
        max_model_len,
        fits,
        why_not: (!fits).then(|| plan.verdict.clone()),
        contexts,
        scenarios,
    })
}
