//! What would help: settings worth changing, each with the number that recomputing the plan with it gives.

use serde_json::json;

use super::report::Plan;
use super::request::{Engine, Request};
use super::{answer, evaluate};
use crate::engine::vllm::{KvDtype, MaxModelLen};
use crate::units::grouped;

/// A changed setting.
struct Change {
    flag: &'static str,
    value: String,
}

/// Fills `recommended` and, if it does not fit, `fix`.
pub(super) fn advise(request: &Request, plan: &mut Plan) {
    let mut fixes = Vec::new();
    for (change, changed) in variants(request, plan) {
        // A variant that is itself an error (a size that does not divide) is no advice.
        let Ok(evaluation) = evaluate(&changed) else {
            continue;
        };
        let Ok(other) = answer(&changed, &evaluation) else {
            continue;
        };
        let Some(why) = gain(plan, &other) else { continue };
        if !plan.feasibility.fits && other.feasibility.fits {
            fixes.push(format!("{} {} would: {why}", change.flag, change.value));
        }
        if plan.feasibility.fits || other.feasibility.fits {
            plan.recommended
                .entry(change.flag.trim_start_matches("--").replace('-', "_"))
                .or_insert_with(|| json!({"value": change.value, "why": why}));
        }
    }
    plan.fix = fixes.into_iter().next();
    if plan.fix.is_none() && !plan.feasibility.fits {
        plan.fix = fallback(plan);
    }
}

/// Changes to try, the least invasive first.
fn variants<'a>(request: &Request<'a>, plan: &Plan) -> Vec<(Change, Request<'a>)> {
    let mut out = Vec::new();
    let mut push = |flag, value: String, changed: Request<'a>| out.push((Change { flag, value }, changed));
    let fits = plan.feasibility.fits;
    if let Engine::Vllm(settings) = &request.engine {
        let with = |change: &dyn Fn(&mut crate::engine::vllm::Settings)| {
            let mut settings = settings.clone();
            change(&mut settings);
            Request {
                engine: Engine::Vllm(settings),
                explain: false,
                ..request.clone()
            }
        };
        // The longest that fits, where the engine would otherwise refuse to start; never below an asked context.
        if !fits
            && settings.max_model_len != MaxModelLen::Auto
            && let Some(longest) = longest_that_starts(request)
            && request.load.contexts.iter().all(|&c| c <= longest)
        {
            push(
                "--max-model-len",
                longest.to_string(),
                with(&|s| s.max_model_len = MaxModelLen::Tokens(longest)),
            );
        }
        if settings.kv_cache_dtype == KvDtype::Auto {
            push(
                "--kv-cache-dtype",
                "fp8".to_owned(),
                with(&|s| s.kv_cache_dtype = KvDtype::Fp8),
            );
        }
        if !fits {
            for tp in [2, 4, 8, 16] {
                if tp > settings.tensor_parallel_size {
                    let mut changed = with(&|s| s.tensor_parallel_size = tp);
                    changed.hardware.gpus = changed.hardware.gpus.max(tp * settings.pipeline_parallel_size);
                    push("--tensor-parallel-size", tp.to_string(), changed);
                }
            }
        }
        if let (Some(context), Some(fitting)) = (
            plan.feasibility.context,
            plan.feasibility.max_concurrency_at_context,
        ) && fits
            && fitting > 0
        {
            // More running sequences than the pool holds at this length only cause preemptions.
            let wanted = fitting.min(1024);
            if settings.max_num_seqs.is_some_and(|n| n > wanted) {
                let _ = context;
                push(
                    "--max-num-seqs",
                    wanted.to_string(),
                    with(&|s| s.max_num_seqs = Some(wanted)),
                );
            }
        }
    }
    if let Engine::Generic(settings) = &request.engine {
        let with = |change: &dyn Fn(&mut super::Generic)| {
            let mut settings = settings.clone();
            change(&mut settings);
            Request {
                engine: Engine::Generic(settings),
                explain: false,
                ..request.clone()
            }
        };
        if settings.kv_element_bytes.is_none() {
            push(
                "--kv-cache-dtype",
                "fp8".to_owned(),
                with(&|s| s.kv_element_bytes = Some(1)),
            );
        }
        if !fits {
            for tp in [2, 4, 8] {
                if tp > settings.tensor_parallel_size {
                    let mut changed = with(&|s| s.tensor_parallel_size = tp);
                    changed.hardware.gpus = changed.hardware.gpus.max(tp * settings.pipeline_parallel_size);
                    push("--tensor-parallel-size", tp.to_string(), changed);
                }
            }
        }
    }
    out
}

/// What `--max-model-len auto` would settle on.
fn longest_that_starts(request: &Request) -> Option<u64> {
    let Engine::Vllm(settings) = &request.engine else {
        return None;
    };
    let mut settings = settings.clone();
    settings.max_model_len = MaxModelLen::Auto;
    let auto = Request {
        engine: Engine::Vllm(settings),
        explain: false,
        ..request.clone()
    };
    let evaluation = evaluate(&auto).ok()?;
    evaluation
        .refused
        .is_none()
        .then_some(evaluation.max_model_len)
        .flatten()
        .filter(|&n| n >= 16)
}

/// What the changed plan is better at, in words; `None` if nothing.
fn gain(plan: &Plan, other: &Plan) -> Option<String> {
    let context = other.feasibility.context?;
    let most = other.feasibility.max_concurrency_at_context?;
    if !plan.feasibility.fits {
        return other.feasibility.fits.then(|| {
            let (noun, verb) = if most == 1 {
                ("request", "fits")
            } else {
                ("requests", "fit")
            };
            format!(
                "{} {noun} of {} tokens then {verb}",
                grouped(most),
                grouped(context)
            )
        });
    }
    let before = plan.feasibility.max_concurrency_at_context?;
    (other.feasibility.fits && most > before).then(|| {
        format!(
            "{} instead of {} requests of {} tokens",
            grouped(most),
            grouped(before),
            grouped(context)
        )
    })
}

/// What can be said where no change of the list helps.
fn fallback(plan: &Plan) -> Option<String> {
    let most = plan.feasibility.max_concurrency_at_context?;
    let longest = plan.feasibility.max_context_at_concurrency?;
    let context = plan.feasibility.context?;
    if most > 0 {
        return Some(format!(
            "--concurrency {most} at {} tokens fits{}",
            grouped(context),
            if longest > 0 {
                format!(", or {} tokens at this concurrency", grouped(longest))
            } else {
                String::new()
            }
        ));
    }
    if longest > 0 {
        return Some(format!("a context of {} tokens fits", grouped(longest)));
    }
    Some("more or larger GPUs, or a quantised checkpoint of the model".to_owned())
}
