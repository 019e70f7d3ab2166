//! SGLang's rules on a request: the share it keeps for itself, the weights, and the pools that the rest becomes.

use super::budget::Spread;
use super::evaluation::Evaluation;
use super::ledger::{Basis, Step, Term};
use super::pool::Pool;
use super::report::{GroupPart, KvCache};
use super::request::{Request, Subject};
use super::vllm::weights::weights;
use crate::arch::{Config, Model, Parallel};
use crate::dtype::Dtype;
use crate::engine::sglang::pool::pools_of_bytes;
use crate::engine::sglang::{self, Card, Pools, Settings, Shape, Static, defaults, pools, served, shape};
use crate::engine::vllm;
use crate::units::{GIB, MIB, gib, grouped, human_bytes};
use crate::{Error, ErrorKind, Result};

/// CUDA context and libraries of one rank, which are there before the free memory is measured: a published log of an
/// H200 shows 139.81 GiB in all and about 139.3 free before the process groups.
const CONTEXT_BYTES: u64 = 550 * MIB;
/// Communication buffers of more than one rank (1.8 to 2.0 GiB on eight H200, SGLang pull request 11716; less with fewer).
const COMMUNICATION_BYTES: u64 = 1500 * MIB;
/// Compute capability whose rules are taken where the card's is not known.
const FALLBACK_CAPABILITY: (u32, u32) = (9, 0);

const MEMORY_SOURCE: &str = "SGLang 0.5.23, srt/arg_groups/memory_hook.py";
const POOL_SOURCE: &str =
    "SGLang 0.5.23, srt/model_executor/pool_configurator.py, srt/mem_cache/kv_cache_configurator.py";

/// Evaluates a request by SGLang's rules.
///
/// # Errors
/// If a setting can mean nothing or a size leaves 64 bits.
pub(super) fn evaluate<'a>(request: &'a Request<'a>, settings: &Settings) -> Result<Evaluation<'a>> {
    settings.validate()?;
    let hardware = &request.hardware;
    let ranks = settings
        .tp()
        .checked_mul(settings.pp())
        .ok_or_else(|| Error::overflow("the number of ranks"))?;
    let Some((model, config)) = request.subject.model else {
        return Err(Error::unsupported(
            request
                .subject
                .refused
                .clone()
                .unwrap_or_else(|| "the architecture is not known".to_owned()),
        ));
    };
    let mut warnings = Vec::new();
    let capability = hardware.compute_capability.unwrap_or_else(|| {
        warnings.push(format!(
            "attention backend and page size are those of compute capability {}.{}",
            FALLBACK_CAPABILITY.0, FALLBACK_CAPABILITY.1
        ));
        FALLBACK_CAPABILITY
    });
    let card = Card::of(hardware.driver_bytes, capability);
    if !served::has_class(&model.architecture) {
        warnings.push(format!(
            "SGLang {} has no class {} of its own: it would run Transformers' code, whose memory may differ",
            sglang::VERSION,
            model.architecture
        ));
    }
    let shape = shape(model, config, settings, &card)?;
    warnings.extend(shape.warnings.iter().cloned());
    let found = defaults(settings, &card, &shape.traits);
    let mut steps = Vec::new();

    // Weights, as vLLM's modules shard them: SGLang's layers descend from the same.
    let parallel = Parallel {
        tp: settings.attention_tp(),
        pp: settings.pp(),
        dp: settings.attention_dp(),
        dcp: 1,
        expert_parallel: settings.expert_parallel,
    };
    let dtype = if shape.element.bits() == 16 {
        shape.element
    } else {
        Dtype::Bf16
    };
    let gpu = vllm::Gpu::new(&hardware.name, capability.0, capability.1, hardware.torch_bytes);
    let held = rank_weights(
        &request.subject,
        (model, config),
        settings,
        &gpu,
        &parallel,
        dtype,
    )?;
    let Held {
        per_rank,
        total,
        how,
        indivisible,
        ..
    } = held;
    let fullest = per_rank.iter().copied().max().unwrap_or(0);
    let (params, params_active) = match request.subject.params {
        Some(given) => (given, given),
        None => held.params,
    };
    let (weights_total, weights_source) = match request.subject.checkpoint {
        Some(c) => (c.total_bytes, c.source),
        None if request.subject.source.starts_with("catalogue") => (total, "catalogue"),
        None => (total, "config"),
    };
    let formula = format!(
        "{} parameters{how}{}",
        grouped(params),
        if ranks > 1 {
            format!(", fullest of {ranks} ranks")
        } else {
            String::new()
        }
    );
    let weights_term = Term::estimated(
        "weights",
        Basis::Assumed,
        fullest,
        (fullest - fullest / 100, fullest.saturating_add(fullest / 33)),
        &formula,
    );
    steps.push(Step::new("weights per GPU", &formula, human_bytes(fullest)));

    // What is free before loading, the share that is static, and what stays free for activations and graphs.
    let whole = hardware.torch_bytes;
    let context = if let Some(bytes) = request.policy.overhead_bytes {
        Term::exact("cuda_context", bytes, "--overhead")
    } else {
        let link = if ranks > 1 { COMMUNICATION_BYTES } else { 0 };
        Term::estimated(
            "cuda_context",
            Basis::Assumed,
            CONTEXT_BYTES + link,
            (
                CONTEXT_BYTES * 2 / 3 + link / 3,
                CONTEXT_BYTES * 3 / 2 + link * 3 / 2,
            ),
            if link > 0 {
                "context of one process and its communication buffers"
            } else {
                "context of one process"
            },
        )
    };
    let before = whole.saturating_sub(context.bytes);
    steps.push(Step::new(
        "free before loading",
        format!("{} - {} context", human_bytes(whole), human_bytes(context.bytes)),
        human_bytes(before),
    ));
    let fraction = found.mem_fraction_static;
    steps.push(
        Step::new(
            "static share (mem_fraction_static)",
            if settings.mem_fraction_static.is_some() {
                "--mem-fraction-static".to_owned()
            } else {
                format!(
                    "round(({:.0} - {:.0} MiB reserved) / {:.0}, 3){}: chunks of {}, decode graphs to {}, {} prefill graphs",
                    card.memory_mib,
                    found.reserved_mib,
                    card.memory_mib,
                    if shape.traits.vision.is_some() { " x the share left by the vision tower" } else { "" },
                    found
                        .chunked_prefill_size
                        .map_or("whole prompts".to_owned(), |n| format!("{n} tokens")),
                    found.decode_max_batch,
                    found.prefill_graphs
                )
            },
            format!("{fraction:.3}"),
        )
        .of(MEMORY_SOURCE),
    );
    let reserve = bytes_of(gib(before) * (1.0 - fraction) + shape.multimodal_mib / 1024.0)?;
    let reserve_term = Term::exact(
        "runtime_reserve",
        reserve,
        format!(
            "{} free before loading x (1 - {fraction:.3}){}: activations, graphs, sampling",
            human_bytes(before),
            if shape.multimodal_mib > 0.0 {
                format!(" + {:.0} MiB for images", shape.multimodal_mib)
            } else {
                String::new()
            }
        ),
    );
    let (overhead, outcome, available, missing) = if let Some(given) = settings.kv_cache_memory_bytes {
        let used = fullest.saturating_add(context.bytes);
        steps.push(Step::new(
            "memory for the KV cache",
            "--kv-cache-memory-bytes: nothing is measured",
            human_bytes(given),
        ));
        (
            vec![context],
            pools_of_bytes(&shape, settings, given)?,
            given,
            used.saturating_add(given).saturating_sub(whole),
        )
    } else {
        let measured: Vec<Static> = per_rank
            .iter()
            .map(|&weights| Static {
                before_gib: gib(before),
                after_gib: gib(before.saturating_sub(weights)),
                fraction,
            })
            .collect();
        let used = fullest.saturating_add(context.bytes).saturating_add(reserve);
        steps.push(
            Step::new(
                "left for states and KV cache",
                format!(
                    "{} free - {} weights - {} reserve",
                    human_bytes(before),
                    human_bytes(fullest),
                    human_bytes(reserve)
                ),
                human_bytes(whole.saturating_sub(used)),
            )
            .of(POOL_SOURCE),
        );
        (
            vec![context, reserve_term],
            pools(&shape, settings, &measured)?,
            whole.saturating_sub(used),
            used.saturating_sub(whole),
        )
    };
    let pool_given = settings.kv_cache_memory_bytes.is_some();
    // The weights' own uncertainty is part of what is taken beside the best value of the weights.
    let sum = |pick: &dyn Fn(&Term) -> u64| {
        overhead
            .iter()
            .fold(pick(&weights_term).saturating_sub(fullest), |sum, t| {
                sum.saturating_add(pick(t))
            })
    };
    let spread = Spread::between(sum(&|t| t.bytes), (sum(&|t| t.low_bytes), sum(&|t| t.high_bytes)));
    let room_bytes =
        i128::from(whole) - i128::from(fullest) - if pool_given { i128::from(available) } else { 0 };
    let mut evaluation = Evaluation {
        params,
        params_active,
        weights_total,
        weights_per_rank: per_rank,
        weights_source,
        weights: weights_term,
        overhead,
        gpu_bytes: whole,
        budget_bytes: whole,
        available_bytes: available,
        room_bytes,
        spread,
        pool_given,
        start_bytes: 0,
        missing_bytes: missing,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        layout: None,
        refused: request.subject.refused.clone().or(indivisible),
        refused_for_memory: false,
        warnings,
        steps,
    };
    match outcome {
        Err(refusal) => {
            evaluation.refused_for_memory = evaluation.refused.is_none();
            evaluation.refused = evaluation.refused.or(Some(refusal));
        }
        Ok(pools) => lay_out(&mut evaluation, request, settings, &shape, &pools),
    }
    if request.explain {
        beside_vllm(&mut evaluation, request, settings, reserve);
    }
    Ok(evaluation)
}

/// The same deployment by vLLM's rules, as steps of the derivation. Where vLLM refuses it, that is all there is to say.
fn beside_vllm(evaluation: &mut Evaluation, request: &Request, settings: &Settings, reserve: u64) {
    let as_vllm = vllm::Settings {
        tensor_parallel_size: settings.attention_tp(),
        data_parallel_size: settings.attention_dp(),
        pipeline_parallel_size: settings.pp(),
        enable_expert_parallel: settings.expert_parallel,
        dtype: settings.dtype,
        quantization: settings.quantization.clone(),
        kv_cache_dtype: match settings.kv_cache_dtype {
            sglang::KvDtype::Auto => vllm::KvDtype::Auto,
            sglang::KvDtype::Bfloat16 => vllm::KvDtype::Bfloat16,
            sglang::KvDtype::Fp8E4m3 => vllm::KvDtype::Fp8,
            sglang::KvDtype::Fp8E5m2 => vllm::KvDtype::Fp8E5m2,
        },
        language_model_only: settings.language_model_only,
        ..vllm::Settings::default()
    };
    let source = "vLLM 0.32.0, as --engine vllm plans it";
    let other = match super::vllm::evaluate(request, &as_vllm) {
        Ok(other) => other,
        Err(error) => {
            evaluation
                .steps
                .push(Step::new("vLLM on the same GPU", error.to_string(), "not planned").of(source));
            return;
        }
    };
    let tokens = |e: &Evaluation| e.kv_cache.as_ref().map_or(0, |kv| kv.capacity_tokens);
    let (ours, theirs) = (tokens(evaluation), tokens(&other));
    evaluation.steps.push(
        Step::new(
            "vLLM on the same GPU",
            format!(
                "{} of {} - {} weights - {} measured for activations, graphs and context",
                human_bytes(other.budget_bytes),
                human_bytes(other.gpu_bytes),
                human_bytes(other.weights.bytes),
                human_bytes(other.overhead_bytes())
            ),
            other.refused.clone().unwrap_or_else(|| {
                format!(
                    "{} of KV cache, {} tokens",
                    human_bytes(other.available_bytes),
                    grouped(theirs)
                )
            }),
        )
        .of(source),
    );
    if other.refused.is_some() || evaluation.refused.is_some() {
        return;
    }
    let (more, fewer) = (ours.max(theirs), ours.min(theirs));
    evaluation.steps.push(Step::new(
        "difference",
        format!(
            "SGLang keeps {} free by rule, vLLM {} ({} outside of its budget and what it measures){}",
            human_bytes(reserve),
            human_bytes(
                (other.gpu_bytes - other.budget_bytes.min(other.gpu_bytes))
                    .saturating_add(other.overhead_bytes())
            ),
            human_bytes(other.gpu_bytes - other.budget_bytes.min(other.gpu_bytes)),
            if evaluation.kv_cache.as_ref().is_some_and(|kv| kv.groups.len() > 1) {
                "; vLLM's tokens count requests of the full length, SGLang's are slots of the full pool"
            } else {
                ""
            }
        ),
        format!(
            "SGLang holds {} tokens {}",
            grouped(more - fewer),
            if ours >= theirs { "more" } else { "fewer" }
        ),
    ));
}

/// Weights of a model over SGLang's ranks.
struct Held {
    /// Bytes of each stage's rank.
    per_rank: Vec<u64>,
    /// Bytes of the whole model.
    total: u64,
    /// Parameters: all, and those that one token uses.
    params: (u64, u64),
    /// Type and quantisation, for the formula.
    how: String,
    /// Why they cannot be divided, if so; the bytes are then even shares.
    indivisible: Option<String>,
}

fn rank_weights(
    subject: &Subject,
    described: (&Model, &Config),
    settings: &Settings,
    gpu: &vllm::Gpu,
    parallel: &Parallel,
    dtype: Dtype,
) -> Result<Held> {
    let as_vllm = vllm::Settings {
        tensor_parallel_size: parallel.tp,
        pipeline_parallel_size: parallel.pp,
        data_parallel_size: parallel.dp,
        enable_expert_parallel: settings.expert_parallel,
        dtype: settings.dtype,
        quantization: settings.quantization.clone(),
        language_model_only: settings.language_model_only,
        ..vllm::Settings::default()
    };
    match weights(subject, described, &as_vllm, gpu, parallel, dtype) {
        Ok(stages) => Ok(Held {
            per_rank: stages.bytes,
            total: stages.total,
            params: stages.params,
            how: stages.how,
            indivisible: None,
        }),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let one = weights(subject, described, &as_vllm, gpu, &Parallel::default(), dtype)?;
            let share = one
                .total
                .div_ceil(settings.tp().saturating_mul(settings.pp()).max(1));
            Ok(Held {
                per_rank: vec![share; usize::try_from(settings.pp()).unwrap_or(1)],
                total: one.total,
                params: one.params,
                how: format!("{} as even shares", one.how),
                indivisible: Some(error.to_string()),
            })
        }
        Err(error) => Err(error),
    }
}

/// `int(x GiB)`, negative as 0.
fn bytes_of(x: f64) -> Result<u64> {
    let bytes = (x * GIB as f64).floor().max(0.0);
    if bytes >= 9_007_199_254_740_992.0 {
        return Err(Error::overflow("the memory that stays free"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: not negative and within 2^53"
    )]
    Ok(bytes as u64)
}

/// Fills the KV cache's part and the pool of the load.
fn lay_out<'a>(
    evaluation: &mut Evaluation<'a>,
    request: &'a Request<'a>,
    settings: &Settings,
    shape: &Shape,
    pools: &Pools,
) {
    let page = shape.page_size;
    let tokens = pools.max_total_num_tokens;
    let swa = pools.swa_tokens;
    let stage = shape
        .stages
        .iter()
        .max_by_key(|s| s.full_bytes)
        .copied()
        .unwrap_or(shape.stages[0]);
    let state_bytes = shape.states.map_or(0, |s| {
        s.bytes_per_slot
            .saturating_mul(pools.state_slots.unwrap_or(0).saturating_add(1))
    });
    explain(evaluation, shape, pools, state_bytes);
    let longest = shape.context_len.min(tokens.saturating_sub(1));
    let pages = move |n: u64| n.div_ceil(page);
    let per_page = stage.full_bytes.saturating_mul(page);
    let mut groups = Vec::new();
    if let Some(page_bytes) = per_page.checked_div(stage.full_layers) {
        groups.push(GroupPart {
            kind: if shape.traits.mla {
                "latent".to_owned()
            } else {
                "full".to_owned()
            },
            layers: shape.stages[0].full_layers,
            block_size: page,
            page_bytes,
            blocks_per_request: pages(longest),
        });
    }
    if let Some(page_bytes) = stage.swa_bytes.saturating_mul(page).checked_div(stage.swa_layers) {
        let window = shape.window.unwrap_or(longest);
        groups.push(GroupPart {
            kind: format!("sliding {window}"),
            layers: shape.stages[0].swa_layers,
            block_size: page,
            page_bytes,
            blocks_per_request: pages(longest.min(window.saturating_add(page))),
        });
    }
    if let Some(states) = shape.states {
        groups.push(GroupPart {
            kind: "state".to_owned(),
            layers: states.layers,
            block_size: 1,
            page_bytes: states.bytes_per_slot / states.layers.max(1),
            blocks_per_request: states.slots_per_request,
        });
    }
    let per_token = |s: &sglang::shape::Stage| {
        if s.full_layers == 0 {
            s.swa_bytes
        } else {
            s.full_bytes
        }
    };
    evaluation.kv_cache = Some(KvCache {
        dtype: shape.kv_dtype.to_owned(),
        block_size: page,
        bytes_per_block: shape
            .stages
            .iter()
            .map(|s| s.full_bytes.saturating_add(s.swa_bytes).saturating_mul(page))
            .collect(),
        num_blocks: tokens / page,
        capacity_tokens: tokens,
        max_concurrency: tokens as f64 / longest.max(1) as f64,
        available_bytes: evaluation.available_bytes,
        bytes_per_token: per_token(&stage),
        max_model_len: longest,
        groups,
    });
    evaluation.max_model_len = Some(longest);
    if let Some(max) = settings.max_running_requests
        && pools.max_running_requests < max / settings.attention_dp()
    {
        evaluation.warnings.push(format!(
            "--max-running-requests {max} becomes {} by what the pools hold",
            pools.max_running_requests
        ));
    }
    // A request is pages of the full pool; a sliding window and a state are counted by the pages that they are worth.
    let unit_bytes = (evaluation.available_bytes.saturating_sub(state_bytes))
        .checked_div(tokens / page)
        .unwrap_or(per_page)
        .max(1);
    let usable = tokens / page;
    let running = pools.max_running_requests;
    let window = shape.window;
    let least = usable.div_ceil(running.max(1));
    let units = move |context: u64| -> Result<u64> {
        let full = pages(context);
        let windowed = match (swa, window) {
            (Some(slots), Some(window)) if slots > 0 => {
                let held = context.min(window.saturating_add(page)).saturating_add(page);
                let share = u128::from(held) * u128::from(usable) / u128::from(slots.max(1));
                u64::try_from(share).unwrap_or(u64::MAX)
            }
            _ => 0,
        };
        // No more than the limit of running requests, whatever their length.
        Ok(full.max(windowed).max(least))
    };
    evaluation.pool = Some(Pool {
        unit_bytes,
        usable_units: usable,
        units: Box::new(units),
        max_context: longest,
        factor: request.policy.fragmentation,
    });
}

fn explain(evaluation: &mut Evaluation, shape: &Shape, pools: &Pools, state_bytes: u64) {
    let steps = &mut evaluation.steps;
    steps.push(
        Step::new(
            "page size",
            format!("attention backend {}", shape.backend),
            format!(
                "{} token{}",
                shape.page_size,
                if shape.page_size == 1 { "" } else { "s" }
            ),
        )
        .of("SGLang 0.5.23, srt/arg_groups/overrides.py"),
    );
    if let (Some(states), Some(slots)) = (shape.states, pools.state_slots) {
        steps.push(
            Step::new(
                "slots for recurrent states",
                format!(
                    "{} slots (one more for padding) x {} of {} layers; a running request may need {}",
                    grouped(slots),
                    human_bytes(states.bytes_per_slot),
                    states.layers,
                    states.slots_per_request
                ),
                human_bytes(state_bytes),
            )
            .of(POOL_SOURCE),
        );
    }
    for (i, stage) in shape.stages.iter().enumerate() {
        let place = if shape.stages.len() > 1 {
            format!(" on stage {}", i + 1)
        } else {
            String::new()
        };
        let how = if shape.two_pools && stage.full_layers > 0 {
            format!(
                "{} B in {} full layers + ratio x {} B in {} sliding layers",
                grouped(stage.full_bytes),
                stage.full_layers,
                grouped(stage.swa_bytes),
                stage.swa_layers
            )
        } else {
            format!(
                "{} layers in {}",
                stage.full_layers.max(stage.swa_layers),
                shape.kv_dtype
            )
        };
        let bytes = if stage.full_layers > 0 {
            stage.full_bytes
        } else {
            stage.swa_bytes
        };
        steps.push(
            Step::new(format!("one token{place}"), how, format!("{} B", grouped(bytes))).of(POOL_SOURCE),
        );
    }
    steps.push(
        Step::new(
            "max_total_num_tokens, as logged",
            format!(
                "{} B for the KV pools, whole pages of {}",
                grouped(pools.kv_bytes),
                shape.page_size
            ),
            match pools.swa_tokens {
                Some(swa) => format!(
                    "{} tokens, {} in the sliding-window pool",
                    grouped(pools.max_total_num_tokens),
                    grouped(swa)
                ),
                None => format!("{} tokens", grouped(pools.max_total_num_tokens)),
            },
        )
        .of(POOL_SOURCE),
    );
    steps.push(
        Step::new(
            "max_running_requests",
            format!(
                "clamp({} tokens / {} context x 512, 2048, 4096), at most half the tokens{}",
                grouped(pools.max_total_num_tokens),
                grouped(shape.context_len),
                if shape.states.is_some() {
                    " and what the state slots serve"
                } else {
                    ""
                }
            ),
            grouped(pools.max_running_requests),
        )
        .of(POOL_SOURCE),
    );
}
