//! The plan: does this model fit on this hardware, how far does it reach, and where does the memory go.
//!
//! An engine's rules make an evaluation ([`generic`], `vllm`); this module turns it into the answer ([`report::Plan`]): the
//! ledger ([`ledger`]), the load ([`pool`]), the margins ([`policy`]), and what would help (`advise`).
//!
//! ```
//! use kvwise_core::plan::{Engine, Generic, Hardware, Load, Policy, Request, Subject, plan};
//! use kvwise_core::{arch, catalogue, hardware};
//!
//! let config = catalogue::find("Llama-2-7b")?.config()?;
//! let arch::family::Reading::Model(model) = arch::family::read("Llama-2-7b", &config)? else { unreachable!() };
//! let answer = plan(&Request {
//!     subject: Subject::of_model("Llama-2-7b", "catalogue", &model, &config),
//!     hardware: Hardware::of(hardware::find("rtx-4090")?, 1),
//!     engine: Engine::Generic(Generic::default()),
//!     load: Load { contexts: vec![4096], ..Load::default() },
//!     policy: Policy::generic(),
//!     explain: false,
//! })?;
//! assert!(answer.feasibility.fits);
//! # Ok::<(), kvwise_core::Error>(())
//! ```

mod advise;
pub mod budget;
pub mod calibration;
mod changed;
mod evaluation;
pub mod generic;
pub mod ledger;
mod llamacpp;
mod performance;
pub mod policy;
pub mod pool;
pub mod report;
pub mod request;
mod sglang;
pub mod size;
mod verdict;
mod vllm;

pub use calibration::{Correction, Observation, Site};
pub use generic::Quantization;
pub use ledger::{Basis, Signed, Step, Term};
pub use policy::{Factor, OomRisk, Policy};
pub use report::{KvCache, Performance, Plan, Range, Speed, SpeedBound};
pub use request::{
    CheckpointBytes, Engine, Generic, GgufFile, Hardware, LlamaCpp, Load, Mode, Request, Steps, Subject,
};

use serde_json::Map;

use crate::units::{gib, grouped, human_bytes};
use crate::{Error, Result};
use evaluation::Evaluation;
use report::{EnginePart, Feasibility, GpuPart, GridRow, Memory, ModelPart, SCHEMA, Weights};
use verdict::{Fit, Verdict, fit};

/// Answers a request.
///
/// # Errors
/// If a setting cannot be used, settings contradict each other, or a size leaves 64 bits. "It does not fit" and "the
/// engine would not start" are answers, not errors.
pub fn plan(request: &Request) -> Result<Plan> {
    let mut answer = assess(request)?;
    advise::advise(request, &mut answer);
    Ok(answer)
}

/// As [`plan`], without advice: `recommended` stays empty, and so does `fix` where other settings would help, which plan
/// variants of the request.
///
/// # Errors
/// As [`plan`].
pub fn assess(request: &Request) -> Result<Plan> {
    request.load.validate()?;
    let evaluation = evaluate(request)?;
    if evaluation.ranks > request.hardware.gpus {
        return Err(Error::input(format!(
            "the engine needs {} GPUs (tensor x pipeline x data parallel), but --gpus is {}",
            evaluation.ranks, request.hardware.gpus
        ))
        .hint("raise --gpus or lower a parallel size"));
    }
    answer(request, &evaluation)
}

/// The engine's rules on a request.
fn evaluate<'a>(request: &'a Request<'a>) -> Result<Evaluation<'a>> {
    match &request.engine {
        Engine::Generic(settings) => generic::evaluate(request, settings),
        Engine::Vllm(settings) => vllm::evaluate(request, settings),
        Engine::Sglang(settings) => sglang::evaluate(request, settings),
        Engine::LlamaCpp(engine) => llamacpp::evaluate(request, engine),
    }
}

fn answer(request: &Request, evaluation: &Evaluation) -> Result<Plan> {
    let contexts = match request.load.contexts.as_slice() {
        [] => evaluation.max_model_len.into_iter().collect(),
        given => given.to_vec(),
    };
    let mut fits = Vec::new();
    for &context in &contexts {
        for &concurrency in &request.load.concurrencies {
            fits.extend(fit(request, evaluation, context, concurrency)?);
        }
    }
    let first = fits.first();
    let concurrency = request.load.concurrencies.first().copied().unwrap_or(1);
    let kv_bytes = first.map_or(0, |f| f.kv_bytes);
    let headroom = first.map_or_else(
        || Signed(evaluation.left(evaluation.spread.bytes(), 0)),
        |f| f.headroom,
    );
    let verdict = Verdict::of(request, evaluation, &fits, headroom);
    let mut warnings = evaluation.warnings.clone();
    if !request.hardware.torch_known && matches!(request.engine, Engine::Vllm(_)) {
        warnings.push(format!(
            "no log tells how much of the {} PyTorch sees on this GPU; {} is estimated from the driver's figure",
            human_bytes(request.hardware.driver_bytes),
            human_bytes(request.hardware.torch_bytes)
        ));
    }
    if let Some(f) = first
        && evaluation.budget_bytes > 0
        && f.fits
        && f.kv_bytes > evaluation.budget_bytes / 2
    {
        let halves = match &request.engine {
            Engine::LlamaCpp(_) => "--cache-type-k q8_0 --cache-type-v q8_0 halve",
            _ => "--kv-cache-dtype fp8 halves",
        };
        warnings.push(format!(
            "the KV cache of the load takes {:.0} % of the usable memory; {halves} it",
            f.kv_bytes as f64 * 100.0 / evaluation.budget_bytes as f64
        ));
    }
    let grid = if fits.len() > 1 {
        fits.iter()
            .map(|f| GridRow {
                context: f.context,
                concurrency: f.concurrency,
                fits: f.fits,
                kv_bytes: f.kv_bytes,
                headroom_bytes: f.headroom,
                max_concurrency_at_context: f.max_concurrency,
                max_context_at_concurrency: f.max_context,
                speed: performance::performance(request, evaluation, (f.context, f.concurrency))
                    .map(|p| p.speed),
            })
            .collect()
    } else {
        Vec::new()
    };
    let model = request.subject.model.map(|(model, _)| model);
    Ok(Plan {
        schema: SCHEMA,
        verdict: verdict.sentence,
        fix: evaluation.fix.clone().filter(|_| evaluation.refused.is_some()),
        refused_for_memory: evaluation.refused_for_memory,
        inputs: request::echo(request),
        model: ModelPart {
            name: request.subject.name.to_owned(),
            architecture: model.map(|m| m.architecture.clone()),
            params: evaluation.params,
            params_active: evaluation.params_active,
            layers: model.map(|m| m.layers.len() as u64),
            max_model_len: model.and_then(|m| m.max_position),
            source: request.subject.source.clone(),
        },
        engine: match &request.engine {
            Engine::Vllm(settings) => EnginePart {
                name: "vllm",
                version: Some(settings.version.to_string()),
            },
            Engine::Sglang(_) => EnginePart {
                name: "sglang",
                version: Some(crate::engine::sglang::VERSION.to_owned()),
            },
            Engine::LlamaCpp(_) => EnginePart {
                name: "llamacpp",
                version: Some(crate::engine::llamacpp::VERSION.to_owned()),
            },
            Engine::Generic(_) => EnginePart {
                name: "generic",
                version: None,
            },
        },
        gpu: GpuPart {
            name: request.hardware.name.clone(),
            count: evaluation.ranks,
            memory_bytes: evaluation.gpu_bytes,
            driver_memory_bytes: request.hardware.driver_bytes,
        },
        weights: Weights {
            total_bytes: evaluation.weights_total,
            bytes_per_rank: evaluation.weights_per_rank.clone(),
            source: evaluation.weights_source,
        },
        kv_cache: evaluation.kv_cache.clone(),
        memory: Memory {
            gpu_bytes: evaluation.gpu_bytes,
            budget_bytes: evaluation.budget_bytes,
            components: components(evaluation),
            headroom_bytes: headroom,
        },
        feasibility: Feasibility {
            fits: verdict.fits,
            fit_probability: verdict.probability,
            oom_risk: verdict.risk,
            vram_total_gb: gib(evaluation.gpu_bytes),
            vram_target_alloc_gb: gib(evaluation.budget_bytes),
            weights_gb: gib(evaluation.weights.bytes),
            kv_cache_gb: gib(kv_bytes),
            overhead_gb: gib(evaluation.overhead_bytes()),
            headroom_gb: headroom.gib(),
            context: first.map(|f| f.context),
            concurrency,
            max_concurrency_at_context: first.map(|f| f.max_concurrency),
            max_context_at_concurrency: first.map(|f| f.max_context),
            refused: evaluation.refused.clone(),
            warnings,
        },
        recommended: Map::new(),
        performance: first
            .and_then(|f| performance::performance(request, evaluation, (f.context, f.concurrency))),
        grid,
        steps: steps(evaluation, first, concurrency),
        layout: evaluation.layout.clone(),
    })
}

/// The steps of `--explain`: the engine's, and how far the pool reaches.
fn steps(evaluation: &Evaluation, first: Option<&Fit>, concurrency: u64) -> Vec<Step> {
    let mut steps = evaluation.steps.clone();
    if let (Some(pool), Some(fit)) = (&evaluation.pool, first) {
        let usable = grouped(pool.usable_units);
        let margin = match pool.factor {
            Factor::ONE => String::new(),
            factor => format!(" x {factor}"),
        };
        let units = (pool.units)(fit.context).unwrap_or(u64::MAX);
        let context = grouped(fit.context);
        let times = match concurrency {
            1 => String::new(),
            n => format!(", {n} times,"),
        };
        // Bytes are units of one byte, which need no name.
        let (of, one) = match pool.unit_bytes {
            1 => (" B".to_owned(), " B".to_owned()),
            bytes => (format!(" units of {} B", grouped(bytes)), String::new()),
        };
        steps.add(|| {
            let how = if fit.context > pool.max_context {
                format!(
                    "longer than the {} tokens that the engine accepts",
                    grouped(pool.max_context)
                )
            } else {
                format!(
                    "{usable}{of} that requests can have // {}{one}{margin} of one request",
                    grouped(units)
                )
            };
            Step::new(
                format!("whole requests of {context} tokens at once"),
                how,
                grouped(fit.max_concurrency),
            )
        });
        steps.add(|| {
            Step::new(
                format!("longest context for {concurrency} at once"),
                format!(
                    "the longest of at most {} tokens whose need{times} is within {usable}{of}",
                    grouped(pool.max_context)
                ),
                format!("{} tokens", grouped(fit.max_context)),
            )
        });
    }
    steps.steps().to_vec()
}

/// The terms that add up to the memory of the GPU: what is used, what the engine leaves alone, what is free.
fn components(evaluation: &Evaluation) -> Vec<Term> {
    let mut terms = vec![evaluation.weights.clone()];
    terms.extend(evaluation.overhead.iter().cloned());
    let used = terms.iter().fold(0_u64, |sum, t| sum.saturating_add(t.bytes));
    let pool = evaluation.available_bytes;
    terms.push(if evaluation.keeps_nothing() {
        Term::exact("kv_cache", 0, "the model keeps nothing between tokens")
    } else if evaluation.pool_given {
        Term::exact("kv_cache", pool, "--kv-cache-memory-bytes")
    } else if evaluation.spread.is_exact() {
        Term::exact("kv_cache", pool, "what the budget leaves")
    } else {
        Term::estimated(
            "kv_cache",
            evaluation
                .overhead
                .iter()
                .map(|t| t.basis)
                .max()
                .unwrap_or(Basis::Assumed),
            pool,
            evaluation.available_interval(),
            format!(
                "{} budget - {} weights and overhead",
                human_bytes(evaluation.budget_bytes),
                human_bytes(evaluation.budget_bytes.saturating_sub(pool))
            ),
        )
    });
    let rest = evaluation.gpu_bytes.saturating_sub(used).saturating_sub(pool);
    terms.push(Term::exact(
        "unused",
        rest,
        format!(
            "{} - {} used - {} KV cache",
            human_bytes(evaluation.gpu_bytes),
            human_bytes(used),
            human_bytes(pool)
        ),
    ));
    terms
}
