//! vLLM's rules on a request: weights of each stage, the memory it allows itself, the overhead, and the KV cache.
//!
//! Order and arithmetic are those of the start-up (vLLM 0.32.0, `vllm/v1/worker/gpu_worker.py`,
//! `determine_available_memory`, and `vllm/v1/worker/utils.py`, `request_memory`).

mod adapters;
mod explain;
mod inputs;
mod states;
pub(super) mod weights;

use super::budget::{self, Spread};
use super::evaluation::Evaluation;
use super::ledger::{Basis, Derivation, Step, Term};
use super::pool::Pool;
use super::request::{Request, Subject};
use crate::arch::{Config, Model, Parallel, family};
use crate::dtype::Dtype;
use crate::engine::vllm::{self, Settings, Version};
use crate::units::{grouped, human_bytes};
use crate::{Error, ErrorKind, Result};
use explain::{explain_layout, kv_cache};
use inputs::inputs;
use weights::Stages;

/// Compute capability whose rules are taken where the card's is not known.
const FALLBACK_CAPABILITY: (u32, u32) = (9, 0);
/// Resident size of an idle CPU worker of vLLM 0.32.0 with a tiny model: 0.7 to 0.95 GiB.
const HOST_PROCESS_BYTES: u64 = 900 << 20;

/// What is settled before the model is looked at.
struct Setting<'a> {
    settings: &'a Settings,
    parallel: Parallel,
    ranks: u64,
    gpu: vllm::Gpu,
    rules: vllm::Rules,
    total: u64,
    /// Whether it is an AMD GPU.
    amd: bool,
    /// Whether the GPU shares the host's memory.
    unified: bool,
    utilization: f64,
}

/// Evaluates a request by vLLM's rules.
///
/// # Errors
/// If a setting can mean nothing or a size leaves 64 bits.
pub(super) fn evaluate<'a>(request: &'a Request<'a>, settings: &Settings) -> Result<Evaluation<'a>> {
    settings.validate()?;
    let parallel = parallel(settings);
    let ranks = parallel
        .tp
        .checked_mul(parallel.pp)
        .and_then(|n| n.checked_mul(parallel.dp))
        .ok_or_else(|| Error::overflow("the number of ranks"))?;
    let hardware = &request.hardware;
    let total = hardware.torch_bytes;
    let mut warnings = Vec::new();
    let (major, minor) = hardware.compute_capability.unwrap_or_else(|| {
        warnings.push(format!(
            "{}: attention backends and block size are those of compute capability {}.{}",
            if hardware.name == "custom" {
                "a custom GPU"
            } else {
                "not a CUDA device"
            },
            FALLBACK_CAPABILITY.0,
            FALLBACK_CAPABILITY.1
        ));
        FALLBACK_CAPABILITY
    });
    let gpu = vllm::Gpu::new(&hardware.name, major, minor, total);
    let rules = vllm::Rules::on(settings.version, &gpu);
    let amd = hardware.is_amd();
    let setting = Setting {
        settings,
        parallel,
        ranks,
        gpu,
        rules,
        amd,
        total,
        unified: hardware.unified,
        utilization: settings
            .gpu_memory_utilization
            .unwrap_or(rules.gpu_memory_utilization),
    };
    let Some((model, config)) = request.subject.model else {
        return unserved(request, &setting, None, warnings);
    };
    let dtype = model_dtype(model, settings, (major, minor));
    let (stages, indivisible) =
        match stages(&request.subject, (model, config), &setting, dtype, &mut warnings)? {
            Ok(stages) => stages,
            Err(reason) => return unserved(request, &setting, Some(reason), warnings),
        };
    serve(
        request,
        &setting,
        (model, config, dtype),
        stages,
        indivisible,
        warnings,
    )
}

/// What to change in a file whose query heads its key/value heads do not divide, whatever the ranks.
fn uneven_heads(model: &Model, refusal: Option<&vllm::Refusal>) -> Option<String> {
    let (heads, kv) = (model.num_attention_heads, model.num_kv_heads);
    let uneven = kv > 0 && !heads.is_multiple_of(kv);
    refusal.filter(|refusal| uneven && refusal.kind == vllm::RefusalKind::TensorParallel)?;
    Some(format!(
        "correct num_attention_heads ({heads}) or num_key_value_heads ({kv}) in the file, of which the first has to be a multiple \
         of the second"
    ))
}

/// The release whose refusals of quantised checkpoints are known; earlier ones took some that it does not.
const LOADS_LESS: Version = Version::new(0, 32, 0);

/// Weights of all stages, or why there are none to show; with the engine's refusal where ranks do not divide the model.
fn stages(
    subject: &Subject,
    described: (&Model, &Config),
    setting: &Setting,
    dtype: Dtype,
    warnings: &mut Vec<String>,
) -> Result<Result<(Stages, Option<String>), String>> {
    let Setting {
        settings,
        parallel,
        gpu,
        ..
    } = setting;
    match weights::weights(subject, described, settings, gpu, parallel, dtype) {
        Ok(mut stages) => {
            let mut refusal = stages.refusal.take();
            if settings.version < LOADS_LESS
                && let Some(reason) = refusal.take()
            {
                warnings.push(format!(
                    "vLLM {LOADS_LESS} says of this checkpoint: {reason} When that came is not known; {} may load it",
                    settings.version
                ));
            }
            Ok(Ok((stages, refusal)))
        }
        // Sizes that the ranks do not divide are the engine's refusal; the numbers are shown as even shares.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let whole = match weights::weights(subject, described, settings, gpu, &Parallel::default(), dtype)
            {
                Ok(whole) => whole,
                Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(Err(error.to_string())),
                Err(error) => return Err(error),
            };
            let share = whole
                .total
                .div_ceil(parallel.tp.saturating_mul(parallel.pp).max(1));
            warnings.push("the ranks do not divide the model: weights are shown as even shares".to_owned());
            let shares = Stages {
                bytes: vec![share; usize::try_from(parallel.pp).unwrap_or(1)],
                beside: Vec::new(),
                ..whole
            };
            Ok(Ok((shares, Some(error.to_string()))))
        }
        Err(error) => Err(error),
    }
}

/// What a term beside the weights rests on: the engine's files, or the data that its constants were fitted to.
fn ground(term: &Term) -> Option<&'static str> {
    match term.name {
        "buffers" => Some(
            "vLLM 0.32.0, model_executor/layers/rotary_embedding; blocks of PyTorch's CUDA allocator, sized as its sources do",
        ),
        "lora" => Some("vLLM 0.32.0, lora/layers, lora/utils.py"),
        "activation" | "cuda_graphs" | "non_torch" if term.basis == Basis::Fitted => Some(
            "fitted to published start-up logs, data/measurements/vllm_boots.csv; errors: docs/src/reference/accuracy.md",
        ),
        "overhead" if term.basis == Basis::Assumed => {
            Some("an idle CPU worker of vLLM 0.32.0 with a tiny model, 0.7 to 0.95 GiB when measured")
        }
        _ => None,
    }
}

/// The evaluation of a model whose weights are known.
fn serve<'a>(
    request: &'a Request<'a>,
    setting: &Setting,
    (model, config, dtype): (&'a Model, &'a Config, Dtype),
    stages: Stages,
    indivisible: Option<String>,
    mut warnings: Vec<String>,
) -> Result<Evaluation<'a>> {
    let Setting {
        settings,
        parallel,
        ranks,
        gpu,
        total,
        utilization,
        ..
    } = *setting;
    warnings.extend(weights::assumed_checkpoint(config, settings)?);
    if settings.enable_prefix_caching == Some(true) && vllm::keeps_states_only(model) {
        warnings.push(
            "planned with --enable-prefix-caching, which vLLM leaves off for models without attention unless asked; \
             --no-enable-prefix-caching plans its default"
                .to_owned(),
        );
    }
    let mut steps = Derivation::wanted(request.explain);
    let (params, params_active) = match request.subject.params {
        Some(given) => (given, given),
        None => stages.params,
    };
    let (weights_total, weights_source) = checkpoint(request, stages.total, &mut warnings);
    // The drafter runs on the last stage; the tightest rank is the one that holds most.
    let last = stages.bytes.len().saturating_sub(1);
    let drafter_bytes = stages.drafter.as_ref().map_or(0, |drafter| drafter.bytes);
    if let Some(assumption) = stages.drafter.as_ref().and_then(|drafter| drafter.assumption) {
        warnings.push(assumption.to_owned());
    }
    let held: Vec<u64> = stages
        .bytes
        .iter()
        .enumerate()
        .map(|(stage, &bytes)| bytes.saturating_add(if stage == last { drafter_bytes } else { 0 }))
        .collect();
    let tight = (0..held.len()).max_by_key(|&stage| held[stage]).unwrap_or(0);
    let fullest = held.get(tight).copied().unwrap_or(0);
    let weights_formula = format!(
        "{} parameters as vLLM's modules hold them{}{}",
        grouped(params),
        stages.how,
        if ranks > 1 {
            format!(
                ", fullest rank of {} x {} (tensor x pipeline)",
                parallel.tp, parallel.pp
            )
        } else {
            String::new()
        }
    );
    let weights = Term::exact(
        "weights",
        stages.bytes.get(tight).copied().unwrap_or(0),
        weights_formula,
    );
    steps.add(|| {
        Step::new("weights per GPU", &weights.formula, human_bytes(weights.bytes))
            .of("vLLM 0.32.0, the parameters that its model classes create on one rank")
    });
    if request.explain && indivisible.is_none() {
        let here = (&parallel, tight);
        let parts = weights::parts(
            &request.subject,
            (model, config),
            settings,
            &gpu,
            here,
            (dtype, weights.bytes),
        )?;
        steps.add(|| Step::new("weights by part", parts, format!("{} B", grouped(weights.bytes))));
    }

    let mut overhead = Vec::new();
    let mut known = 0_u64;
    if let Some(beside) = stages.beside.get(tight).filter(|_| !gpu.is_cpu()) {
        known = known.saturating_add(beside.bytes());
        overhead.push(beside.term());
    }
    if let Some(drafter) = stages.drafter.as_ref().filter(|_| tight == last) {
        let term = Term::exact("drafter", drafter.bytes, &drafter.formula);
        steps.add(|| {
            Step::new("drafter", &term.formula, human_bytes(term.bytes))
                .of("vLLM 0.32.0, the parameters of its drafter classes that are not the target's")
        });
        overhead.push(term);
    }
    let mut spread = if let Some(bytes) = request.policy.overhead_bytes {
        overhead.push(Term::exact("overhead", bytes, "--overhead"));
        Spread::exact(bytes)
    } else {
        let mut terms = vec![host_process()];
        let mut sum = Spread::between(terms[0].bytes, (terms[0].low_bytes, terms[0].high_bytes));
        if !gpu.is_cpu() {
            let estimated = budget::overhead(&inputs((model, config), setting, dtype)?);
            terms = estimated.terms().into_iter().cloned().collect();
            sum = estimated.budgeted();
        }
        if let Some(correction) = request.policy.site {
            sum = correction.apply(&mut terms, sum);
        }
        overhead.extend(terms);
        sum
    };
    if settings.enable_lora {
        let term = adapters::lora(model, settings, &parallel)?;
        known = known.saturating_add(term.bytes);
        overhead.push(term);
    }
    spread = spread.plus(known);
    for term in overhead.iter().filter(|term| term.name != "drafter") {
        steps.add(|| {
            Step::new(
                format!("{} ({})", term.name, term.basis.name()),
                &term.formula,
                term.human(),
            )
            .of_any(ground(term))
        });
    }

    // Everything but the KV cache of the fullest rank; what is missing is missing before any cache.
    let (budget_bytes, available, room_bytes);
    if let Some(given) = settings.kv_cache_memory_bytes {
        steps.add(|| {
            Step::new(
                "memory for the KV cache",
                "--kv-cache-memory-bytes: the memory profile is skipped, the utilisation ignored",
                human_bytes(given),
            )
            .of("vLLM 0.32.0, v1/worker/gpu_worker.py")
        });
        budget_bytes = total;
        available = vec![given; held.len()];
        room_bytes = i128::from(total) - i128::from(fullest) - i128::from(given);
    } else {
        budget_bytes = requested(total, utilization)?;
        room_bytes = i128::from(budget_bytes) - i128::from(fullest);
        steps.add(|| {
            Step::new(
                "memory the engine allows itself",
                format!("ceil({} B x {utilization})", grouped(total)),
                format!("{} B = {}", grouped(budget_bytes), human_bytes(budget_bytes)),
            )
            .of("vLLM 0.32.0, v1/worker/utils.py, request_memory")
        });
        available = held
            .iter()
            .map(|&stage| budget_bytes.saturating_sub(stage).saturating_sub(spread.bytes()))
            .collect();
        steps.add(|| {
            Step::new(
                "left for the KV cache",
                format!(
                    "{} - {} weights{} - {} overhead",
                    human_bytes(budget_bytes),
                    human_bytes(fullest),
                    if drafter_bytes > 0 { " and drafter" } else { "" },
                    human_bytes(spread.bytes())
                ),
                human_bytes(available.get(tight).copied().unwrap_or(0)),
            )
            .of("vLLM 0.32.0, v1/worker/gpu_worker.py, determine_available_memory")
        });
    }
    let tightest = available.iter().copied().min().unwrap_or(0);
    let missing_bytes = missing(room_bytes, spread.bytes());

    let outcome = vllm::layout(model, settings, gpu, &available)?;
    warnings.extend(outcome.warnings);
    let unrecognised = family::unrecognised(config);
    let refused = request
        .subject
        .refused
        .clone()
        .or(unrecognised.map(str::to_owned))
        .or(outcome.refused.as_ref().map(|refusal| refusal.reason.clone()))
        .or(indivisible);
    let refused_for_memory = request.subject.refused.is_none()
        && unrecognised.is_none()
        && outcome
            .refused
            .as_ref()
            .is_some_and(|refusal| refusal.kind == vllm::RefusalKind::Memory);
    let fix = (request.subject.fix.clone())
        .or(unrecognised.map(|_| family::NAME_THE_TYPE.to_owned()))
        .or(uneven_heads(model, outcome.refused.as_ref()));
    let mut evaluation = Evaluation {
        params,
        params_active,
        weights_total,
        weights_per_rank: stages.bytes,
        weights_source,
        weights,
        overhead,
        gpu_bytes: total,
        budget_bytes,
        available_bytes: tightest,
        room_bytes,
        spread,
        pool_given: settings.kv_cache_memory_bytes.is_some(),
        host_computes: false,
        start_bytes: 0,
        missing_bytes,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        layout: None,
        refused,
        refused_for_memory,
        fix,
        warnings,
        steps,
    };
    let Some(layout) = outcome.layout else {
        return Ok(evaluation);
    };
    explain_layout(&layout, &mut evaluation.steps);
    if evaluation.refused.is_none() {
        evaluation
            .warnings
            .extend(states::too_few_blocks(model, settings, &layout));
    }
    evaluation.max_model_len = Some(layout.max_model_len);
    let unit_bytes = layout.stages.iter().map(|s| s.bytes_per_block).max().unwrap_or(0);
    if unit_bytes == 0 {
        // Encoders: the engine asks for no memory and keeps the one block that a pool has to have (v1/engine/core.py).
        evaluation.available_bytes = 0;
    }
    evaluation.kv_cache = Some(kv_cache(&layout, evaluation.available_bytes, dtype));
    if unit_bytes > 0 {
        // One request of the longest length, and the null block; a length that adapts needs nothing in particular.
        if settings.max_model_len != vllm::MaxModelLen::Auto {
            evaluation.start_bytes = layout
                .stages
                .iter()
                .map(|stage| stage.needed_bytes.saturating_add(stage.bytes_per_block))
                .max()
                .unwrap_or(0);
        }
        let layout = std::sync::Arc::new(layout);
        let sized = std::sync::Arc::clone(&layout);
        evaluation.pool = Some(Pool {
            unit_bytes,
            // The null block is never handed out.
            usable_units: layout.num_blocks.saturating_sub(1),
            max_context: layout.max_model_len,
            units: Box::new(move |tokens| sized.request_blocks_at(tokens)),
            factor: request.policy.fragmentation,
        });
        evaluation.layout = Some(layout);
    }
    Ok(evaluation)
}

/// Bytes that the overhead needs beyond the room that weights leave.
fn missing(room_bytes: i128, overhead_bytes: u64) -> u64 {
    u64::try_from((i128::from(overhead_bytes) - room_bytes).max(0)).unwrap_or(u64::MAX)
}

/// Bytes of the checkpoint and where they come from.
fn checkpoint(request: &Request, unsharded: u64, warnings: &mut Vec<String>) -> (u64, &'static str) {
    match request.subject.checkpoint {
        Some(checkpoint) => {
            let (a, b) = (checkpoint.total_bytes, unsharded);
            if a.abs_diff(b) > a / 50 {
                warnings.push(format!(
                    "the checkpoint's tensors are {}, the engine's modules {}: parts are not loaded, or are converted on load",
                    human_bytes(a),
                    human_bytes(b)
                ));
            }
            (checkpoint.total_bytes, checkpoint.source)
        }
        None if request.subject.source.starts_with("catalogue") => (unsharded, "catalogue"),
        None => (unsharded, "config"),
    }
}

/// The engine's own sizes in the planner's terms.
pub(super) fn parallel(settings: &Settings) -> Parallel {
    Parallel {
        tp: settings.tensor_parallel_size,
        pp: settings.pipeline_parallel_size,
        dp: settings.data_parallel_size,
        dcp: settings.decode_context_parallel_size,
        expert_parallel: settings.enable_expert_parallel,
    }
}

/// `math.ceil(total * utilization)`, in floats as the engine computes it.
fn requested(total: u64, utilization: f64) -> Result<u64> {
    let product = (total as f64 * utilization).ceil();
    if !(0.0..9_007_199_254_740_992.0).contains(&product) {
        return Err(Error::overflow("the memory the engine allows itself"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: whole and within 2^53"
    )]
    Ok((product as u64).min(total))
}

/// The type the engine serves in: as set, else the checkpoint's, where float32 becomes a 16-bit type and a card without
/// bfloat16 takes float16 (vLLM 0.32.0, config/model.py, `_resolve_auto_dtype`).
fn model_dtype(model: &Model, settings: &Settings, capability: (u32, u32)) -> Dtype {
    let preferred = if capability >= (8, 0) || capability == (0, 0) {
        Dtype::Bf16
    } else {
        Dtype::F16
    };
    match (settings.dtype, model.dtype) {
        (Some(given), _) => given,
        (None, Some(Dtype::F16)) => Dtype::F16,
        (None, _) => preferred,
    }
}

/// What a CPU worker holds besides weights and cache: the interpreter with its libraries, and what the warm-up left. The
/// engine takes its resident size off (vLLM 0.32.0, `v1/worker/cpu_worker.py`), so it counts like an overhead.
fn host_process() -> Term {
    Term::estimated(
        "overhead",
        Basis::Assumed,
        HOST_PROCESS_BYTES,
        (HOST_PROCESS_BYTES / 2, HOST_PROCESS_BYTES.saturating_mul(3)),
        "resident size of the worker process without weights and cache",
    )
}

/// A model whose class the engine does not serve: only the checkpoint's size is known, if at all.
fn unserved<'a>(
    request: &'a Request<'a>,
    setting: &Setting,
    reason: Option<String>,
    mut warnings: Vec<String>,
) -> Result<Evaluation<'a>> {
    let stages = setting.parallel.pp.max(1);
    let checkpoint = request.subject.checkpoint.map_or(0, |c| c.total_bytes);
    let per_rank = checkpoint.div_ceil(setting.ranks.max(1));
    if checkpoint == 0 {
        warnings.push("weights and KV cache are not known for this architecture".to_owned());
    }
    let budget_bytes = requested(setting.total, setting.utilization)?;
    let (weights, spread) = if checkpoint == 0 {
        let any = (0, budget_bytes);
        let weights = Term::estimated(
            "weights",
            Basis::Assumed,
            0,
            any,
            "not known: neither layers nor tensors are",
        );
        (weights, Spread::between(0, any))
    } else {
        let weights = Term::exact("weights", per_rank, "bytes of the checkpoint / ranks");
        (weights, Spread::exact(0))
    };
    let room_bytes = i128::from(budget_bytes) - i128::from(per_rank);
    Ok(Evaluation {
        params: request.subject.params.unwrap_or(0),
        params_active: request.subject.params.unwrap_or(0),
        weights_total: checkpoint,
        weights_per_rank: vec![per_rank; usize::try_from(stages).unwrap_or(1)],
        weights_source: request.subject.checkpoint.map_or("config", |c| c.source),
        weights,
        overhead: Vec::new(),
        gpu_bytes: setting.total,
        budget_bytes,
        available_bytes: budget_bytes.saturating_sub(per_rank),
        room_bytes,
        spread,
        pool_given: false,
        host_computes: false,
        start_bytes: 0,
        missing_bytes: 0,
        max_model_len: None,
        ranks: setting.ranks,
        kv_cache: None,
        pool: None,
        layout: None,
        refused: Some(
            request
                .subject
                .refused
                .clone()
                .or(reason)
                .unwrap_or_else(|| "the architecture is not known".to_owned()),
        ),
        refused_for_memory: false,
        fix: request.subject.fix.clone(),
        warnings,
        steps: Derivation::wanted(false),
    })
}
