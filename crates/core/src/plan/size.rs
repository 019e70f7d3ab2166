//! The plan the other way round: given a need, the least that meets it, and the change that helps most.
//!
//! Every answer comes from whole plans of changed requests, so that it holds what the plan of those settings says.

use serde::Serialize;
use serde_json::{Map, Value};

use super::changed::{replan, with_generic, with_llamacpp, with_sglang, with_vllm};
use super::report::Plan;
use super::request::{Engine, Request, echo};
use super::{Load, Quantization};
use crate::engine::vllm::{MaxModelLen, Rules};
use crate::units::grouped;
use crate::{Error, Result};

mod candidates;
mod reach;
#[cfg(test)]
mod twin;

use candidates::candidates;
use reach::{Reach, reach};

/// Version of the JSON shape.
pub const SCHEMA: &str = "kvwise.size/1";

/// Utilisations that are tried, in hundredths.
const UTILIZATION_STEPS: std::ops::RangeInclusive<u64> = 1..=99;

/// What has to be met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// Tokens of each request, prompt and output together.
    pub context: u64,
    /// Requests at once.
    pub concurrency: u64,
    /// Probability with which it has to fit; 0.5 asks for the best value only.
    pub probability: f64,
    /// Most GPUs that may be used.
    pub max_gpus: u64,
}

impl Need {
    /// Checks the ranges.
    ///
    /// # Errors
    /// If a number is zero, absurd or not a number.
    pub fn validate(&self) -> Result<()> {
        if !(self.probability > 0.0 && self.probability <= 0.99) {
            return Err(Error::input(format!(
                "--probability is {}, expected more than 0 and at most 0.99",
                self.probability
            ))
            .hint("0.5 asks for the best value, 0.9 for a safe margin"));
        }
        if self.max_gpus == 0 || self.max_gpus > 1 << 10 {
            return Err(Error::input(format!(
                "--max-gpus is {}, expected 1 to 1024",
                self.max_gpus
            )));
        }
        Ok(())
    }

    fn met_by(&self, plan: &Plan) -> bool {
        plan.feasibility.fits
            && plan
                .feasibility
                .fit_probability
                .is_none_or(|p| p + 1e-9 >= self.probability)
    }
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sizing {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The answer in one sentence.
    pub verdict: String,
    /// Whether the settings as given meet the need.
    pub met: bool,
    /// Whether they or one of the answers do.
    pub satisfiable: bool,
    /// Settings, as the plan used them.
    pub inputs: Map<String, Value>,
    /// Tokens of each request of the need.
    pub context: u64,
    /// Requests of the need.
    pub concurrency: u64,
    /// Probability asked for.
    pub probability: f64,
    /// Fewest GPUs that meet the need; `null` if none up to the limit do.
    pub fewest_gpus: Option<Gpus>,
    /// The flag of the engine that says which share of the memory it takes; `null` where there is none.
    pub utilization_flag: Option<&'static str>,
    /// Smallest such share that meets it, the other settings as given; `null` if none does.
    pub smallest_utilization: Option<f64>,
    /// Longest context of the asked number of requests at once, with the settings as given.
    pub longest_context: u64,
    /// Most requests of the asked context at once, with the settings as given.
    pub most_requests: u64,
    /// The weight format with the most bits that meets it; `null` if none does or the checkpoint is quantised already.
    pub widest_weights: Option<WeightFormat>,
    /// Single changes, the one that helps most first.
    pub changes: Vec<Helps>,
    /// What else one should know of the settings as given.
    pub warnings: Vec<String>,
}

/// A number of GPUs and how they are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpus {
    /// How many.
    pub count: u64,
    /// `--tensor-parallel-size`; 1 for llama.cpp, which spreads layers.
    pub tensor_parallel_size: u64,
    /// `--pipeline-parallel-size`; 1 for llama.cpp.
    pub pipeline_parallel_size: u64,
    /// Most requests of the asked context at once.
    pub most_requests: u64,
}

/// A weight format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightFormat {
    /// `none` (as the checkpoint is) or the value of `--quantization`.
    pub quantization: String,
    /// Weights on one GPU, bytes.
    pub weights_bytes: u64,
    /// Most requests of the asked context at once.
    pub most_requests: u64,
}

/// What one changed setting gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Helps {
    /// The flag.
    pub flag: String,
    /// Its value; empty for a flag without one.
    pub value: String,
    /// Whether the need is met with it.
    pub meets: bool,
    /// Requests of the asked context at once, before and with it.
    pub most_requests_before: u64,
    /// With it.
    pub most_requests: u64,
    /// Longest context of the asked number of requests, before and with it.
    pub longest_context_before: u64,
    /// With it.
    pub longest_context: u64,
    /// What it costs.
    pub price: &'static str,
}

/// Answers the inverse questions about a need.
///
/// # Errors
/// If a setting cannot be used, as for [`plan`](super::plan). "Nothing meets it" is an answer.
pub fn size(request: &Request, need: &Need) -> Result<Sizing> {
    need.validate()?;
    let asked = Request {
        load: Load {
            contexts: vec![need.context],
            concurrencies: vec![need.concurrency],
            ..request.load.clone()
        },
        explain: false,
        ..request.clone()
    };
    asked.load.validate()?;
    // Errors of the settings themselves are errors here too; those of changed settings are not.
    let given = super::plan(&asked)?;
    let base = roomy(&asked, need).unwrap_or_else(|| asked.clone());
    let plan = replan(&base).unwrap_or_else(|| given.clone());
    let met = need.met_by(&given);
    let fewest_gpus = fewest(&base, need);
    let smallest_utilization = smallest_utilization(&base, need);
    let widest_weights = widest_weights(&base, need, &plan);
    let changes = changes(&base, need, &plan);
    let satisfiable = met
        || fewest_gpus.is_some()
        || smallest_utilization.is_some()
        || widest_weights.is_some()
        || changes.iter().any(|change| change.meets);
    let Reach {
        most_requests,
        longest_context,
    } = reach(&base, need, &plan);
    let mut sizing = Sizing {
        schema: SCHEMA,
        verdict: String::new(),
        met,
        satisfiable,
        inputs: echo(&asked),
        context: need.context,
        concurrency: need.concurrency,
        probability: need.probability,
        fewest_gpus,
        utilization_flag: utilization_flag(&request.engine),
        smallest_utilization,
        longest_context,
        most_requests,
        widest_weights,
        changes,
        warnings: given.feasibility.warnings.clone(),
    };
    sizing.verdict = verdict(&sizing, &given, request);
    Ok(sizing)
}

/// The request with the longest length that fits, where the user names none: the model's own longest request must not
/// hide what the memory holds. Releases without `auto` take the asked context.
fn roomy<'a>(request: &Request<'a>, need: &Need) -> Option<Request<'a>> {
    let Engine::Vllm(settings) = &request.engine else {
        return None;
    };
    let length = if Rules::of(settings.version).fits_length {
        MaxModelLen::Auto
    } else {
        MaxModelLen::Tokens(need.context)
    };
    (settings.max_model_len == MaxModelLen::Derived)
        .then(|| with_vllm(request, |s| s.max_model_len = length))
        .flatten()
}

/// Numbers of ranks and stages that are tried, fewest GPUs first.
///
/// llama.cpp spreads layers over any number of GPUs. Of the others' GPUs the powers of two are tried, each in every way to
/// share it out: heads may not divide by as many ranks as layers divide by stages.
fn shapes(engine: &Engine, max_gpus: u64) -> Vec<(u64, u64)> {
    if matches!(engine, Engine::LlamaCpp(_)) {
        return (1..=max_gpus).map(|gpus| (gpus, 1)).collect();
    }
    let powers = |most: u64| (0..=most.ilog2()).map(|power| 1_u64 << power);
    powers(max_gpus)
        .flat_map(|gpus| {
            let mut ranks: Vec<u64> = powers(gpus).collect();
            // Ranks within one machine of eight, then tensor parallelism alone, then ever more stages.
            ranks.sort_by_key(|&tp| (tp != gpus.min(8), tp != gpus, std::cmp::Reverse(tp)));
            ranks.into_iter().map(move |tp| (tp, gpus / tp))
        })
        .collect()
}

fn fewest(request: &Request, need: &Need) -> Option<Gpus> {
    shapes(&request.engine, need.max_gpus)
        .into_iter()
        .find_map(|(tp, pp)| {
            let changed = with_vllm(request, |s| {
                s.tensor_parallel_size = tp;
                s.pipeline_parallel_size = pp;
            })
            .or_else(|| {
                with_generic(request, |s| {
                    s.tensor_parallel_size = tp;
                    s.pipeline_parallel_size = pp;
                })
            })
            .or_else(|| {
                with_sglang(request, |s| {
                    s.tensor_parallel_size = tp;
                    s.pipeline_parallel_size = pp;
                })
            })
            .or_else(|| {
                with_llamacpp(request, |engine| {
                    engine.settings.gpus = tp * pp;
                    engine.settings.tensor_split.clear();
                })
            })?;
            let plan = replan(&changed)?;
            let spread = matches!(request.engine, Engine::LlamaCpp(_));
            // Replicas of the engine need as many GPUs again.
            let count = plan.gpu.count;
            (count <= need.max_gpus && need.met_by(&plan)).then(|| Gpus {
                count,
                tensor_parallel_size: if spread { 1 } else { tp },
                pipeline_parallel_size: if spread { 1 } else { pp },
                most_requests: reach(&changed, need, &plan).most_requests,
            })
        })
}

fn utilization_flag(engine: &Engine) -> Option<&'static str> {
    match engine {
        Engine::Vllm(_) | Engine::Generic(_) => Some("--gpu-memory-utilization"),
        Engine::Sglang(_) => Some("--mem-fraction-static"),
        Engine::LlamaCpp(_) => None,
    }
}

fn smallest_utilization(request: &Request, need: &Need) -> Option<f64> {
    if let Engine::Vllm(settings) = &request.engine
        && settings.kv_cache_memory_bytes.is_some()
    {
        // The engine ignores the utilisation then.
        return None;
    }
    let share = |percent: u64| percent as f64 / 100.0;
    let meets = |percent: u64| {
        let changed = with_vllm(request, |s| s.gpu_memory_utilization = Some(share(percent)))
            .or_else(|| with_generic(request, |s| s.gpu_memory_utilization = share(percent)))
            .or_else(|| with_sglang(request, |s| s.mem_fraction_static = Some(share(percent))));
        changed
            .as_ref()
            .and_then(replan)
            .is_some_and(|plan| need.met_by(&plan))
    };
    // Not bisected: an engine that asks for more than is free at start is refused at the upper end.
    UTILIZATION_STEPS
        .into_iter()
        .find(|&percent| meets(percent))
        .map(share)
}

/// Formats made on load or assumed, the widest first.
const FORMATS: [&str; 4] = ["none", "fp8", "nvfp4", "mxfp4"];

fn widest_weights(request: &Request, need: &Need, plan: &Plan) -> Option<WeightFormat> {
    // A checkpoint that is quantised already has the format it has.
    let (_, config) = request.subject.model?;
    if config.get("quantization_config").is_some_and(|q| !q.is_null()) {
        return None;
    }
    FORMATS.into_iter().find_map(|name| {
        let own = name == "none";
        let changed = if own {
            None
        } else {
            Some(
                with_vllm(request, |s| s.quantization = Some(name.to_owned()))
                    .or_else(|| with_generic(request, |s| s.quantization = Quantization::parse(name)))
                    .or_else(|| {
                        // Made on load by SGLang: 8 bits alone.
                        with_sglang(request, |s| s.quantization = Some(name.to_owned()))
                            .filter(|_| name == "fp8")
                    })?,
            )
        };
        let (changed, other) = match changed {
            None => (request.clone(), plan.clone()),
            Some(changed) => {
                let other = replan(&changed)?;
                (changed, other)
            }
        };
        need.met_by(&other).then(|| WeightFormat {
            quantization: name.to_owned(),
            weights_bytes: other.weights.bytes_per_rank.iter().copied().max().unwrap_or(0),
            most_requests: reach(&changed, need, &other).most_requests,
        })
    })
}

fn changes(request: &Request, need: &Need, plan: &Plan) -> Vec<Helps> {
    let before = reach(request, need, plan);
    let mut helps: Vec<Helps> = candidates(request)
        .into_iter()
        .filter_map(|(flag, value, changed, price)| {
            let changed = changed?;
            let other = replan(&changed)?;
            if other.feasibility.refused.is_some() && !other.feasibility.fits {
                return None;
            }
            let after = reach(&changed, need, &other);
            let meets = need.met_by(&other);
            let helps = after.most_requests > before.most_requests
                || after.longest_context > before.longest_context
                || (meets && !need.met_by(plan));
            helps.then(|| Helps {
                flag: flag.to_owned(),
                value,
                meets,
                most_requests_before: before.most_requests,
                most_requests: after.most_requests,
                longest_context_before: before.longest_context,
                longest_context: after.longest_context,
                price,
            })
        })
        .collect();
    helps.sort_by_key(|h| {
        (
            std::cmp::Reverse(h.meets),
            std::cmp::Reverse(h.most_requests),
            std::cmp::Reverse(h.longest_context),
        )
    });
    helps
}

fn verdict(sizing: &Sizing, given: &Plan, request: &Request) -> String {
    let need = format!(
        "{} request{} of {} tokens",
        grouped(sizing.concurrency),
        if sizing.concurrency == 1 { "" } else { "s" },
        grouped(sizing.context)
    );
    let gpus = |g: &Gpus| {
        if matches!(request.engine, Engine::LlamaCpp(_)) {
            // Layers are spread over the GPUs: there are neither ranks nor stages to name.
            return format!("{} x {}", g.count, request.hardware.name);
        }
        format!(
            "{} x {} ({}{})",
            g.count,
            request.hardware.name,
            if g.tensor_parallel_size > 1 {
                format!("--tensor-parallel-size {}", g.tensor_parallel_size)
            } else {
                "one rank".to_owned()
            },
            if g.pipeline_parallel_size > 1 {
                format!(" --pipeline-parallel-size {}", g.pipeline_parallel_size)
            } else {
                String::new()
            }
        )
    };
    match (&sizing.fewest_gpus, sizing.met) {
        (Some(fewest), _) => format!("{need} need {} at least", gpus(fewest)),
        (None, true) => format!("{need} fit on {} x {}", given.gpu.count, request.hardware.name),
        (None, false) => match sizing.changes.iter().find(|change| change.meets) {
            Some(change) => format!("{need} fit with {} {}", change.flag, change.value)
                .trim_end()
                .to_owned(),
            None => format!(
                "nothing tried meets {need}: {}",
                given
                    .feasibility
                    .refused
                    .clone()
                    .unwrap_or_else(|| given.verdict.clone())
            ),
        },
    }
}
