//! A request with one thing changed, and its whole plan: what the advice and the search for a size ask for.

use super::report::Plan;
use super::request::{Engine, Generic, LlamaCpp, Request};
use super::{answer, evaluate};
use crate::engine::sglang;
use crate::engine::vllm::Settings;

/// The whole plan of a changed request; `None` if the change is an error.
pub(super) fn replan(request: &Request) -> Option<Plan> {
    let evaluation = evaluate(request).ok()?;
    answer(request, &evaluation).ok()
}

/// The request with vLLM's settings changed; `None` for other engines.
pub(super) fn with_vllm<'a>(
    request: &Request<'a>,
    change: impl FnOnce(&mut Settings),
) -> Option<Request<'a>> {
    let Engine::Vllm(settings) = &request.engine else {
        return None;
    };
    let mut settings = settings.clone();
    change(&mut settings);
    let ranks = settings
        .tensor_parallel_size
        .saturating_mul(settings.pipeline_parallel_size)
        .saturating_mul(settings.data_parallel_size);
    let mut changed = Request {
        engine: Engine::Vllm(settings),
        explain: false,
        ..request.clone()
    };
    changed.hardware.gpus = changed.hardware.gpus.max(ranks);
    Some(changed)
}

/// The request with SGLang's settings changed; `None` for other engines.
pub(super) fn with_sglang<'a>(
    request: &Request<'a>,
    change: impl FnOnce(&mut sglang::Settings),
) -> Option<Request<'a>> {
    let Engine::Sglang(settings) = &request.engine else {
        return None;
    };
    let mut settings = settings.clone();
    change(&mut settings);
    let ranks = settings.tp().saturating_mul(settings.pp());
    let mut changed = Request {
        engine: Engine::Sglang(settings),
        explain: false,
        ..request.clone()
    };
    changed.hardware.gpus = changed.hardware.gpus.max(ranks);
    Some(changed)
}

/// The request with llama.cpp's settings or mix changed; `None` for other engines.
pub(super) fn with_llamacpp<'a>(
    request: &Request<'a>,
    change: impl FnOnce(&mut LlamaCpp),
) -> Option<Request<'a>> {
    let Engine::LlamaCpp(engine) = &request.engine else {
        return None;
    };
    let mut engine = engine.clone();
    change(&mut engine);
    let gpus = engine.settings.gpus;
    let mut changed = Request {
        engine: Engine::LlamaCpp(engine),
        explain: false,
        ..request.clone()
    };
    changed.hardware.gpus = changed.hardware.gpus.max(gpus);
    Some(changed)
}

/// The request with the generic engine's settings changed; `None` for other engines.
pub(super) fn with_generic<'a>(
    request: &Request<'a>,
    change: impl FnOnce(&mut Generic),
) -> Option<Request<'a>> {
    let Engine::Generic(settings) = &request.engine else {
        return None;
    };
    let mut settings = settings.clone();
    change(&mut settings);
    let ranks = settings
        .tensor_parallel_size
        .saturating_mul(settings.pipeline_parallel_size);
    let mut changed = Request {
        engine: Engine::Generic(settings),
        explain: false,
        ..request.clone()
    };
    changed.hardware.gpus = changed.hardware.gpus.max(ranks);
    Some(changed)
}
