//! How far settings reach: most requests of a context, longest context of a number of requests.

use super::Need;
use crate::engine::llamacpp::MAX_SEQUENCES;
use crate::plan::changed::replan;
use crate::plan::report::Plan;
use crate::plan::request::{Engine, LlamaCpp, Request};

/// Most requests of the context of the need, and longest context of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) most_requests: u64,
    pub(super) longest_context: u64,
}

/// What the pool of `plan`, the plan of `request`, reaches.
///
/// llama.cpp allocates the contexts it is told to and nothing more. Where no `--ctx-size` is given they are those of the
/// load, so that the pool always holds just the load: then loads are planned until one does not fit.
pub(super) fn reach(request: &Request, need: &Need, plan: &Plan) -> Reach {
    if let Engine::LlamaCpp(engine) = &request.engine
        && engine.settings.ctx_size.is_none()
    {
        return by_planning(request, engine, need);
    }
    Reach {
        most_requests: plan.feasibility.max_concurrency_at_context.unwrap_or(0),
        longest_context: plan.feasibility.max_context_at_concurrency.unwrap_or(0),
    }
}

fn by_planning(request: &Request, engine: &LlamaCpp, need: &Need) -> Reach {
    let fits = |context: u64, concurrency: u64| {
        let mut other = request.clone();
        other.load.contexts = vec![context];
        other.load.concurrencies = vec![concurrency];
        replan(&other).is_some_and(|plan| plan.feasibility.fits)
    };
    // A request can be no longer than the model's, unless the need itself is.
    let model = match &engine.file {
        Some(file) => Some(file.hparams.context_length).filter(|&n| n > 0),
        None => request.subject.model.and_then(|(model, _)| model.max_position),
    };
    Reach {
        most_requests: last(MAX_SEQUENCES, |n| fits(need.context, n)),
        longest_context: last(model.unwrap_or(need.context).max(need.context), |n| {
            fits(n, need.concurrency)
        }),
    }
}

/// The largest number up to `most` that holds; what holds for a number holds for every smaller one.
fn last(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut yes, mut no) = (0, most.saturating_add(1));
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
