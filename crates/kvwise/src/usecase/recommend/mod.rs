//! Recommending: the deployments that start, simulated under the traffic, and the best that holds the objectives.

mod answer;
pub mod bench;
pub mod drafters;
pub mod prices;
pub mod search;
pub mod space;
mod untimed;

use std::path::PathBuf;

use kvwise_core::plan::Mode;
use kvwise_core::{Error, Result, hardware};
use kvwise_io::answers::Answers;
use kvwise_sim::trace::{Content, Trace};

use answer::Answer;
use bench::{Load, Objectives, Simulated};
use drafters::Drafter;
use prices::Prices;
use rayon::prelude::*;
pub use search::Objective;
use search::{Bench, Limits, Size, Solution, equals, search};
use space::Choice;

use super::deployment::Deployment;
use super::served::network::NetworkAsked;
use crate::report::recommend::Recommendation;

/// Most requests that are simulated; the first ones of a longer trace.
const MAX_REQUESTS: usize = 2000;
/// Lengths are rounded up to this many tokens.
const LENGTH_STEP: u64 = 256;
/// Solutions as good as the best of which the one with the most room is taken.
const MOST_EQUALS: usize = 12;
/// Multiples of the traffic that are tried for the sensitivity: up to about 16.
const SENSITIVITY_STEPS: u32 = 57;

/// The question.
#[derive(Debug)]
pub struct Question {
    /// What every deployment shares: the model, and how names are looked up.
    pub base: Deployment,
    /// The traffic.
    pub trace: Trace,
    /// How it arrives.
    pub load: Load,
    /// Limits on latency.
    pub objectives: Objectives,
    /// What is best.
    pub objective: Objective,
    /// Kinds of GPU; empty for all with a price.
    pub gpus_from: Vec<String>,
    /// Prices.
    pub prices: Prices,
    /// GPUs in all.
    pub max_gpus: u64,
    /// Dollars an hour in all.
    pub budget_usd_per_hour: Option<f64>,
    /// Whether 8-bit weights and caches may be made.
    pub allow_fp8: bool,
    /// What the traffic is served for, by the names of an earlier planner.
    pub mode: Option<Mode>,
    /// Every combination of settings instead of one change at a time.
    pub thorough: bool,
    /// Probability that a drafted token is accepted, for drafters that say no other; `None` for what is assumed.
    pub acceptance: Option<f64>,
    /// What may draft tokens besides the model's own modules and the heads that are known for it.
    pub drafters: Vec<Drafter>,
    /// Engines to choose from: `vllm`, `sglang`, `llamacpp`.
    pub engines: Vec<&'static str>,
    /// What joins the machines of one replica.
    pub network: NetworkAsked,
    /// File of answers of an earlier search, to which new ones are added.
    pub resume: Option<PathBuf>,
}

/// Searches, confirms and explains.
///
/// # Errors
/// If a name is not known, the traffic is empty, or the model does not accept its lengths.
pub fn recommend(question: &Question) -> Result<Recommendation> {
    if question.trace.is_empty() {
        return Err(Error::input(format!(
            "{}: the traffic has no requests",
            question.trace.name()
        )));
    }
    if question.load == Load::Open && !question.trace.has_arrivals() {
        return Err(Error::input(format!(
            "{}: the trace has no arrival times",
            question.trace.name()
        ))
        .hint("give the load as well: --workload TRACE --concurrency N"));
    }
    let trace = first(&question.trace);
    let lengths = trace.input_lens().iter().zip(trace.output_lens());
    let longest = lengths
        .map(|(&input, &output)| u64::from(input) + u64::from(output))
        .max()
        .unwrap_or(1);
    let gpus = match question.gpus_from.as_slice() {
        [] => question.prices.usd_per_hour.keys().cloned().collect(),
        given => given
            .iter()
            .map(|name| hardware::find(name).map(|gpu| gpu.name.clone()))
            .collect::<Result<Vec<_>>>()?,
    };
    let mut base = question.base.clone();
    base.context = vec![longest.to_string()];
    base.concurrency = vec![1];
    base.max_model_len = Some(model_len(&base, &gpus, longest)?.to_string());
    let timed: Vec<&'static str> = question
        .engines
        .iter()
        .copied()
        .filter(|engine| untimed::is_timed(engine))
        .collect();
    let concurrency = match question.load {
        Load::Closed(n) => Some(u64::from(n)),
        Load::Open => None,
    };
    let (planned_only, why_not) = if question.engines.len() > timed.len() {
        untimed::plans(&base, &gpus, question, concurrency)?
    } else {
        (Vec::new(), None)
    };
    if timed.is_empty() {
        return Ok(untimed::report(
            question,
            &trace,
            planned_only,
            why_not.as_deref(),
        ));
    }
    let choice = Choice {
        drafters: drafters(question, &base, &gpus)?,
        engines: timed,
        acceptance: question.acceptance,
        gpus_per_machine: question.network.gpus_per_machine,
        base,
        gpus,
        max_gpus: question.max_gpus,
        allow_fp8: question.allow_fp8,
        longest,
        concurrency,
        shared_prefixes: !matches!(trace.content(), Content::None),
        mode: question.mode,
        thorough: question.thorough,
    };
    let (candidates, unfit) = space::candidates(&choice)?;
    let sizes = candidates
        .iter()
        .map(|c| {
            Ok(Size {
                gpus: c.gpus,
                usd_per_hour: question.prices.of(&c.gpu)? * c.gpus as f64,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let limits = Limits {
        gpus: question.max_gpus,
        usd_per_hour: question.budget_usd_per_hour.unwrap_or(f64::INFINITY),
    };
    // A word that names no network is wrong, whether or not a replica spans machines.
    question.network.between(0)?;
    let mut bench = Simulated::new(
        &candidates,
        &trace,
        question.load,
        question.objectives,
        question.network.clone(),
    );
    if let Some(path) = &question.resume {
        let about = bench::about(&trace, question.load, question.objectives, &question.network);
        bench = bench.with_answers(Answers::open(path, &about)?);
    }
    let (fates, best) = search(question.objective, limits, &sizes, &bench);
    let best = best.map(|best| {
        let mut equals = equals(question.objective, &sizes, &fates, &best, MOST_EQUALS);
        // What rests on an assumed rate of acceptance is not taken where something as good does not.
        let sure = |s: &Solution| candidates[s.candidate].drafter.as_ref().is_none_or(|d| d.given);
        if equals.iter().any(|s| sure(s) && confirmed(s, &bench)) {
            equals.retain(sure);
        }
        roomiest(&equals, &bench)
    });
    Ok(Answer {
        question,
        trace: &trace,
        candidates: &candidates,
        sizes: &sizes,
        fates: &fates,
        bench: &bench,
        unfit,
        planned_only,
    }
    .report(best))
}

/// What may draft besides the model's own modules: what the user names, and the heads that are known for the model.
fn drafters(question: &Question, base: &Deployment, gpus: &[String]) -> Result<Vec<Drafter>> {
    let mut all = question.drafters.clone();
    let probe = Deployment {
        gpu: gpus.first().cloned(),
        ..base.clone()
    };
    let resolved = probe.resolve()?;
    if let Some(model) = resolved.model() {
        for head in kvwise_core::drafters::of(&model.name)? {
            if all.iter().all(|drafter| drafter.model != head.id) {
                all.push(Drafter::head(head, question.acceptance));
            }
        }
    }
    Ok(all)
}

/// The first requests of a long trace, in the order of their times.
fn first(trace: &Trace) -> Trace {
    let order = trace
        .arrival_order()
        .unwrap_or_else(|| (0..trace.request_count()).collect());
    trace.select(&order[..order.len().min(MAX_REQUESTS)])
}

/// The longest request, rounded up, but no longer than the model accepts.
fn model_len(base: &Deployment, gpus: &[String], longest: u64) -> Result<u64> {
    let probe = Deployment {
        gpu: gpus.first().cloned(),
        ..base.clone()
    };
    let resolved = probe.resolve()?;
    let rounded = longest.next_multiple_of(LENGTH_STEP);
    Ok(match resolved.model().and_then(|m| m.max_position) {
        Some(most) if longest <= most => rounded.min(most),
        _ => rounded,
    })
}

/// Whether a solution holds on all requests, too.
fn confirmed(s: &Solution, bench: &Simulated) -> bool {
    bench.holds_for_sure(s.candidate, s.factor / s.replicas as f64)
}

/// Of solutions that are equally good, the one that holds the largest multiple of the traffic; among these the first, which
/// changes the fewest settings.
fn roomiest(equals: &[Solution], bench: &Simulated) -> Solution {
    let room: Vec<u32> = equals
        .par_iter()
        .map(|s| {
            let share = |step: u32| s.factor * growth(step) / s.replicas as f64;
            if !bench.holds_for_sure(s.candidate, share(0)) {
                return 0;
            }
            1 + largest(|step| bench.holds(s.candidate, share(step)))
        })
        .collect();
    let most = room.iter().copied().max().unwrap_or(0);
    let first = room.iter().position(|&r| r == most).unwrap_or(0);
    equals[first]
}

/// The multiple of a step of 5 %.
fn growth(step: u32) -> f64 {
    1.05_f64.powi(i32::try_from(step).unwrap_or(i32::MAX))
}

/// The largest step that holds, 0 if none does.
fn largest(holds: impl Fn(u32) -> bool) -> u32 {
    let (mut yes, mut no) = (0, SENSITIVITY_STEPS);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if holds(middle) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    yes
}

#[cfg(test)]
mod tests;
