//! What would help: settings worth changing, each with the number that recomputing the plan with it gives.

use serde_json::json;

use super::changed::{replan, with_generic, with_llamacpp, with_sglang, with_vllm};
use super::evaluate;
use super::report::Plan;
use super::request::{Engine, Mode, Request, Steps};
use crate::engine::vllm::{KvDtype, MaxModelLen};
use crate::engine::{llamacpp, sglang};
use crate::units::grouped;

/// A changed setting.
struct Change<'a> {
    flag: &'static str,
    value: String,
    request: Request<'a>,
    /// Why, where it is not the number of requests that the change raises.
    reason: Option<String>,
}

/// Fills `recommended` and, if it does not fit, `fix`.
pub(super) fn advise(request: &Request, plan: &mut Plan) {
    let mut fixes = Vec::new();
    let mut changes = variants(request, plan);
    changes.extend(for_mode(request, plan));
    changes.extend(for_link(request, plan));
    for change in changes {
        // A variant that is itself an error (a size that does not divide) is no advice.
        let Some(other) = replan(&change.request) else {
            continue;
        };
        let why = match &change.reason {
            Some(reason) if other.feasibility.fits => reason.clone(),
            Some(_) => continue,
            None => match gain(plan, &other) {
                Some(why) => why,
                None => continue,
            },
        };
        if !plan.feasibility.fits && other.feasibility.fits {
            fixes.push(format!("{} {} would: {why}", change.flag, change.value));
        }
        if plan.feasibility.fits || other.feasibility.fits {
            plan.recommended
                .entry(change.flag.trim_start_matches("--").replace('-', "_"))
                .or_insert_with(|| json!({"value": change.value, "why": why}));
        }
    }
    if let Some(fix) = fixes.into_iter().next() {
        plan.fix = Some(fix);
    }
    // Another load does not help against a refusal that has nothing to do with memory.
    let short = plan.feasibility.refused.is_none() || plan.refused_for_memory;
    if plan.fix.is_none() && !plan.feasibility.fits && short {
        plan.fix = fallback(plan);
    }
}

/// Changes to try, the least invasive first.
fn variants<'a>(request: &Request<'a>, plan: &Plan) -> Vec<Change<'a>> {
    let mut out = Vec::new();
    let mut push = |flag, value: String, changed: Option<Request<'a>>| {
        out.extend(changed.map(|request| Change {
            flag,
            value,
            request,
            reason: None,
        }));
    };
    let fits = plan.feasibility.fits;
    if let Engine::Vllm(settings) = &request.engine {
        // The longest that fits, where the engine would otherwise refuse to start; never below an asked context.
        if !fits
            && settings.max_model_len != MaxModelLen::Auto
            && let Some(longest) = longest_that_starts(request)
            && request.load.contexts.iter().all(|&c| c <= longest)
        {
            push(
                "--max-model-len",
                longest.to_string(),
                with_vllm(request, |s| s.max_model_len = MaxModelLen::Tokens(longest)),
            );
        }
        if settings.kv_cache_dtype == KvDtype::Auto {
            push(
                "--kv-cache-dtype",
                "fp8".to_owned(),
                with_vllm(request, |s| s.kv_cache_dtype = KvDtype::Fp8),
            );
        }
        if plan.feasibility.refused.is_some() && !plan.refused_for_memory {
            // Ranks that do not divide the model: fewer may.
            let fewer = (1..settings.tensor_parallel_size.min(64)).rev();
            for tp in fewer.filter(|tp| settings.tensor_parallel_size.is_multiple_of(*tp)) {
                push(
                    "--tensor-parallel-size",
                    tp.to_string(),
                    with_vllm(request, |s| s.tensor_parallel_size = tp),
                );
            }
        }
        if !fits {
            // Stages talk once a layer boundary, tensor-parallel ranks twice a layer: over PCIe stages come first.
            let stages = [2, 4, 8].map(|pp| {
                (
                    "--pipeline-parallel-size",
                    pp,
                    (pp > settings.pipeline_parallel_size)
                        .then(|| with_vllm(request, |s| s.pipeline_parallel_size = pp))
                        .flatten(),
                )
            });
            let ranks = [2, 4, 8, 16].map(|tp| {
                (
                    "--tensor-parallel-size",
                    tp,
                    (tp > settings.tensor_parallel_size)
                        .then(|| with_vllm(request, |s| s.tensor_parallel_size = tp))
                        .flatten(),
                )
            });
            let over_pcie = request.hardware.pcie_only && request.hardware.link_given;
            let first: Vec<_> = if over_pcie {
                stages.into_iter().chain(ranks).collect()
            } else {
                ranks.into_iter().collect()
            };
            for (flag, n, changed) in first {
                push(flag, n.to_string(), changed);
            }
        }
        if let (Some(_), Some(fitting)) = (
            plan.feasibility.context,
            plan.feasibility.max_concurrency_at_context,
        ) && fits
            && fitting > 0
        {
            // More running sequences than the pool holds at this length only cause preemptions.
            let wanted = fitting.min(1024);
            if settings.max_num_seqs.is_some_and(|n| n > wanted) {
                push(
                    "--max-num-seqs",
                    wanted.to_string(),
                    with_vllm(request, |s| s.max_num_seqs = Some(wanted)),
                );
            }
        }
    }
    if let Engine::Sglang(settings) = &request.engine {
        let with = |change: &dyn Fn(&mut sglang::Settings)| with_sglang(request, change);
        if settings.kv_cache_dtype == sglang::KvDtype::Auto {
            push(
                "--kv-cache-dtype",
                "fp8_e4m3".to_owned(),
                with(&|s| s.kv_cache_dtype = sglang::KvDtype::Fp8E4m3),
            );
        }
        if !fits {
            for fraction in [0.9, 0.93] {
                if settings.mem_fraction_static.is_none_or(|f| f < fraction) {
                    push(
                        "--mem-fraction-static",
                        fraction.to_string(),
                        with(&|s| s.mem_fraction_static = Some(fraction)),
                    );
                }
            }
            for tp in [2, 4, 8, 16] {
                if tp > settings.tp() {
                    push(
                        "--tensor-parallel-size",
                        tp.to_string(),
                        with(&|s| s.tensor_parallel_size = tp),
                    );
                }
            }
        }
    }
    if let Engine::LlamaCpp(engine) = &request.engine {
        let with = |change: &dyn Fn(&mut llamacpp::Settings)| {
            with_llamacpp(request, |engine| change(&mut engine.settings))
        };
        let q8 = llamacpp::GgmlType::by_name("q8_0");
        if let Some(q8) = q8.filter(|q8| engine.settings.cache_type_k.block_bytes * q8.block > q8.block_bytes)
        {
            push(
                "--cache-type-k",
                "q8_0 --cache-type-v q8_0".to_owned(),
                with(&|s| (s.cache_type_k, s.cache_type_v) = (q8, q8)),
            );
        }
        if engine.settings.split_mode == llamacpp::SplitMode::Row {
            push(
                "--split-mode",
                "layer".to_owned(),
                with(&|s| s.split_mode = llamacpp::SplitMode::Layer),
            );
        }
        if !fits && let Some(layers) = fewest_with_host(request, engine) {
            push(
                "--n-cpu-moe",
                layers.to_string(),
                with(&|s| s.cpu_moe_layers = layers),
            );
        }
        if !fits && let Some(layers) = most_layers(request, engine) {
            push(
                "--n-gpu-layers",
                layers.to_string(),
                with(&|s| s.gpu_layers = Some(layers)),
            );
        }
    }
    if let Engine::Generic(settings) = &request.engine {
        if settings.kv_element_bytes.is_none() {
            push(
                "--kv-cache-dtype",
                "fp8".to_owned(),
                with_generic(request, |s| s.kv_element_bytes = Some(1)),
            );
        }
        if !fits {
            for tp in [2, 4, 8] {
                if tp > settings.tensor_parallel_size {
                    push(
                        "--tensor-parallel-size",
                        tp.to_string(),
                        with_generic(request, |s| s.tensor_parallel_size = tp),
                    );
                }
            }
        }
    }
    out
}

fn layers_of(request: &Request, engine: &super::LlamaCpp) -> Option<u64> {
    match (&engine.file, request.subject.model) {
        (Some(file), _) => Some(file.hparams.layers.len() as u64),
        (None, Some((model, _))) => Some(model.layers.len() as u64),
        (None, None) => None,
    }
}

/// Fewest layers whose experts have to stay with the host, if that is enough.
fn fewest_with_host(request: &Request, engine: &super::LlamaCpp) -> Option<u64> {
    let layers = layers_of(request, engine)?;
    let fits = |n: u64| {
        with_llamacpp(request, |engine| engine.settings.cpu_moe_layers = n)
            .as_ref()
            .and_then(replan)
            .is_some_and(|other| other.feasibility.fits)
    };
    // More experts with the host leave more of a GPU; without experts nothing changes.
    let (mut no, mut yes) = (engine.settings.cpu_moe_layers, layers);
    if no >= layers || !fits(layers) {
        return None;
    }
    while yes - no > 1 {
        let middle = no + (yes - no) / 2;
        if fits(middle) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    Some(yes)
}

/// Most layers that fit on the GPUs, if any do.
fn most_layers(request: &Request, engine: &super::LlamaCpp) -> Option<u64> {
    let layers = layers_of(request, engine)?;
    let fits = |n: u64| {
        with_llamacpp(request, |engine| engine.settings.gpu_layers = Some(n))
            .as_ref()
            .and_then(replan)
            .is_some_and(|other| other.feasibility.fits)
    };
    // Fewer layers never need more of a GPU.
    let (mut yes, mut no) = (0, layers + 1);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if fits(middle) {
            yes = middle;
        } else {
            no = middle;
        }
    }
    (yes > 0).then_some(yes)
}

/// Steps of the scheduler for what the deployment is for ([`Mode::steps`]), within what the memory allows.
fn for_mode<'a>(request: &Request<'a>, plan: &Plan) -> Vec<Change<'a>> {
    let Some(mode) = request.load.mode else {
        return Vec::new();
    };
    let (Some(context), true) = (plan.feasibility.context, plan.feasibility.fits) else {
        return Vec::new();
    };
    let concurrency = plan.feasibility.concurrency;
    let what = match mode {
        Mode::Throughput => {
            "throughput: some more requests than asked for, and steps that take prompts of several"
        }
        Mode::Latency => "latency: no more requests than asked for, so that none waits for others' steps",
        Mode::Balanced => "balanced: two more requests than asked for",
    };
    let Steps {
        sequences,
        tokens: wanted,
        most_tokens: cap,
        percent,
    } = mode.steps(context, concurrency, plan.gpu.memory_bytes);
    let tokens_why = |less: bool| {
        format!(
            "{}: {percent} % of the load's {} tokens in a step, at least 8192 and at most {}{}",
            mode.name(),
            grouped(context.saturating_mul(concurrency)),
            grouped(cap),
            if less {
                ", less because the activations would not leave room for the load"
            } else {
                ""
            }
        )
    };
    let mut out = Vec::new();
    let mut push = |flag, value: u64, request: Request<'a>, reason: String| {
        out.push(Change {
            flag,
            value: value.to_string(),
            request,
            reason: Some(reason),
        });
    };
    let Engine::Vllm(settings) = &request.engine else {
        // Without an engine's activations the steps change nothing else.
        push("--max-num-seqs", sequences, request.clone(), what.to_owned());
        push(
            "--max-num-batched-tokens",
            wanted,
            request.clone(),
            tokens_why(false),
        );
        return out;
    };
    if settings.max_num_seqs.is_none()
        && let Some(changed) = with_vllm(request, |s| s.max_num_seqs = Some(sequences))
    {
        push("--max-num-seqs", sequences, changed, what.to_owned());
    }
    if settings.max_num_batched_tokens.is_none() {
        // A step of that size raises the peak of the activations: it is halved until the load still fits.
        let mut tokens = wanted;
        while tokens >= 2048 {
            let changed = with_vllm(request, |s| {
                s.max_num_batched_tokens = Some(tokens);
                s.max_num_seqs = s.max_num_seqs.or(Some(sequences));
            });
            let Some(changed) = changed else { break };
            if replan(&changed).is_some_and(|other| other.feasibility.fits) {
                push(
                    "--max-num-batched-tokens",
                    tokens,
                    changed,
                    tokens_why(tokens < wanted),
                );
                break;
            }
            tokens /= 2;
        }
    }
    out
}

/// Over `PCIe` every layer's two reductions are slow: fewer tensor-parallel ranks, if the load fits there too.
fn for_link<'a>(request: &Request<'a>, plan: &Plan) -> Vec<Change<'a>> {
    let Engine::Vllm(settings) = &request.engine else {
        return Vec::new();
    };
    let tp = settings.tensor_parallel_size;
    if !(request.hardware.pcie_only && plan.feasibility.fits && tp > 1) {
        return Vec::new();
    }
    let mut best = None;
    let mut fewer = tp / 2;
    while fewer >= 1 {
        let changed = with_vllm(request, |s| s.tensor_parallel_size = fewer);
        let fits = changed
            .as_ref()
            .and_then(replan)
            .is_some_and(|other| other.feasibility.fits);
        if !fits {
            break;
        }
        best = changed.map(|changed| (fewer, changed));
        fewer /= 2;
    }
    best.into_iter()
        .map(|(fewer, request)| Change {
            flag: "--tensor-parallel-size",
            value: fewer.to_string(),
            request,
            reason: Some(format!(
                "the ranks talk over PCIe, twice a layer; the load fits {fewer} as well, and {} such replicas serve more than one of {tp}",
                tp / fewer
            )),
        })
        .collect()
}

/// What `--max-model-len auto` would settle on.
pub(super) fn longest_that_starts(request: &Request) -> Option<u64> {
    let auto = with_vllm(request, |s| s.max_model_len = MaxModelLen::Auto)?;
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
    // Where the load has room, something else stands against it, and no other load helps.
    if plan.feasibility.refused.is_some() && most >= plan.feasibility.concurrency {
        return None;
    }
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
