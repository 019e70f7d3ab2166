//! vLLM's rules on a request: weights of each stage, the memory it allows itself, the overhead, and the KV cache.
//!
//! Order and arithmetic are those of the start-up (vLLM 0.32.0, `vllm/v1/worker/gpu_worker.py`,
//! `determine_available_memory`, and `vllm/v1/worker/utils.py`, `request_memory`).

use super::budget::{self, Inputs};
use super::evaluation::Evaluation;
use super::ledger::{Basis, Step, Term};
use super::pool::Pool;
use super::report::{GroupPart, KvCache};
use super::request::Request;
use crate::arch::weight::Shard;
use crate::arch::{Config, Model, Op, Parallel, Role};
use crate::dtype::Dtype;
use crate::engine::vllm::{self, Settings};
use crate::names::normalise;
use crate::quant::Quantization;
use crate::units::{grouped, human_bytes};
use crate::{Error, ErrorKind, Result};

/// Compute capability whose rules are taken where the card's is not known.
const FALLBACK_CAPABILITY: (u32, u32) = (9, 0);

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
    let rules = vllm::Rules::of(settings.version);
    let utilization = settings
        .gpu_memory_utilization
        .unwrap_or(rules.gpu_memory_utilization);
    let mut warnings = Vec::new();
    let mut steps = Vec::new();
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

    let Some((model, config)) = request.subject.model else {
        return unserved(request, settings, total, utilization, ranks, None, warnings);
    };
    let dtype = model_dtype(model, settings, (major, minor));
    let (stages, indivisible) = match weights(model, config, settings, &parallel, dtype) {
        Ok(stages) => (stages, None),
        // Sizes that the ranks do not divide are the engine's refusal; the numbers are shown as even shares.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let whole = match weights(model, config, settings, &Parallel::default(), dtype) {
                Ok(whole) => whole,
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return unserved(
                        request,
                        settings,
                        total,
                        utilization,
                        ranks,
                        Some(error.to_string()),
                        warnings,
                    );
                }
                Err(error) => return Err(error),
            };
            let share = whole
                .total
                .div_ceil(parallel.tp.saturating_mul(parallel.pp).max(1));
            warnings.push("the ranks do not divide the model: weights are shown as even shares".to_owned());
            let stages = Stages {
                bytes: vec![share; usize::try_from(parallel.pp).unwrap_or(1)],
                ..whole
            };
            (stages, Some(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    let per_rank = stages.bytes;
    let fullest = per_rank.iter().copied().max().unwrap_or(0);
    let (params, params_active) = match request.subject.params {
        Some(given) => (given, given),
        None => model.params()?,
    };
    let unsharded = stages.total;
    let (weights_total, weights_source) = match request.subject.checkpoint {
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
    };
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
    steps.push(
        Step::new("weights per GPU", &weights_formula, human_bytes(fullest))
            .of("vLLM 0.32.0, the parameters that its model classes create on one rank"),
    );

    let outcome_limits = limits(settings, &gpu);
    let inputs = Inputs {
        max_num_batched_tokens: outcome_limits.0,
        max_num_seqs: outcome_limits.1,
        hidden_size: model.hidden_size,
        widest_projection: widest_projection(model, &parallel),
        vocab_size: model.vocab_size,
        layers: (model.layers.len() as u64).div_ceil(parallel.pp.max(1)),
        element_bytes: dtype.bits() / 8,
        tensor_parallel_size: parallel.tp,
        pipeline_parallel_size: parallel.pp,
        enforce_eager: settings.enforce_eager,
        unified_memory: hardware.unified,
        sampler_decibytes_per_logit: rules.sampler_decibytes_per_logit,
        graphs_in_budget: rules.subtracts_cuda_graph_estimate,
    };
    let (mut overhead, mut taken) = if let Some(bytes) = request.policy.overhead_bytes {
        (vec![Term::exact("overhead", bytes, "--overhead")], (bytes, bytes))
    } else {
        let estimated = budget::overhead(&inputs);
        let (best, _, high) = estimated.budgeted();
        (
            estimated.terms().into_iter().cloned().collect::<Vec<_>>(),
            (best, high),
        )
    };
    if settings.enable_lora {
        let term = lora(model, settings, &parallel)?;
        taken = (
            taken.0.saturating_add(term.bytes),
            taken.1.saturating_add(term.high_bytes),
        );
        overhead.push(term);
    }
    for term in &overhead {
        steps.push(Step::new(
            format!("{} ({})", term.name, term.basis.name()),
            &term.formula,
            term.human(),
        ));
    }

    // Everything but the KV cache of the fullest rank; what is missing is missing before any cache.
    let used = fullest.saturating_add(taken.0);
    let used_high = fullest.saturating_add(taken.1);
    let (budget_bytes, available, available_low, missing, missing_worst);
    if let Some(given) = settings.kv_cache_memory_bytes {
        steps.push(
            Step::new(
                "memory for the KV cache",
                "--kv-cache-memory-bytes: the memory profile is skipped, the utilisation ignored",
                human_bytes(given),
            )
            .of("vLLM 0.32.0, v1/worker/gpu_worker.py"),
        );
        budget_bytes = total;
        available = vec![given; per_rank.len()];
        available_low = given;
        missing = used.saturating_add(given).saturating_sub(total);
        missing_worst = used_high.saturating_add(given).saturating_sub(total);
    } else {
        budget_bytes = requested(total, utilization)?;
        steps.push(
            Step::new(
                "memory the engine allows itself",
                format!("ceil({} B x {utilization})", grouped(total)),
                format!("{} B = {}", grouped(budget_bytes), human_bytes(budget_bytes)),
            )
            .of("vLLM 0.32.0, v1/worker/utils.py, request_memory"),
        );
        available = per_rank
            .iter()
            .map(|&stage| budget_bytes.saturating_sub(stage).saturating_sub(taken.0))
            .collect();
        available_low = budget_bytes.saturating_sub(used_high);
        missing = used.saturating_sub(budget_bytes);
        missing_worst = used_high.saturating_sub(budget_bytes);
        steps.push(
            Step::new(
                "left for the KV cache",
                format!(
                    "{} - {} weights - {} overhead",
                    human_bytes(budget_bytes),
                    human_bytes(fullest),
                    human_bytes(taken.0)
                ),
                human_bytes(budget_bytes.saturating_sub(used)),
            )
            .of("vLLM 0.32.0, v1/worker/gpu_worker.py, determine_available_memory"),
        );
    }
    let tightest = available.iter().copied().min().unwrap_or(0);

    let outcome = vllm::layout(model, settings, gpu, &available)?;
    warnings.extend(outcome.warnings);
    let refused = request
        .subject
        .refused
        .clone()
        .or(outcome.refused.as_ref().map(|refusal| refusal.reason.clone()))
        .or(indivisible);
    let mut evaluation = Evaluation {
        params,
        params_active,
        weights_total,
        weights_per_rank: per_rank,
        weights_source,
        weights: Term::exact("weights", fullest, weights_formula),
        overhead,
        gpu_bytes: total,
        budget_bytes,
        available_bytes: tightest,
        available_low,
        pool_given: settings.kv_cache_memory_bytes.is_some(),
        missing_bytes: missing,
        missing_bytes_worst: missing_worst,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        refused,
        warnings,
        steps,
    };
    let Some(layout) = outcome.layout else {
        return Ok(evaluation);
    };
    explain_layout(&layout, &mut evaluation.steps);
    evaluation.max_model_len = Some(layout.max_model_len);
    evaluation.kv_cache = Some(kv_cache(&layout, tightest, dtype));
    if let Some(unit_bytes) = layout
        .stages
        .iter()
        .map(|s| s.bytes_per_block)
        .max()
        .filter(|&b| b > 0)
    {
        evaluation.pool = Some(Pool {
            unit_bytes,
            // The null block is never handed out.
            usable_units: layout.num_blocks.saturating_sub(1),
            max_context: layout.max_model_len,
            units: Box::new(move |tokens| layout.request_blocks_at(tokens)),
            factor: request.policy.fragmentation,
        });
    }
    Ok(evaluation)
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

/// Tokens and sequences of one step: as set, else the engine's defaults for this card.
fn limits(settings: &Settings, gpu: &vllm::Gpu) -> (u64, u64) {
    let defaults = gpu.batch_defaults();
    (
        settings
            .max_num_batched_tokens
            .unwrap_or(defaults.max_num_batched_tokens),
        settings.max_num_seqs.unwrap_or(defaults.max_num_seqs),
    )
}

/// The type the engine serves in: as set, else the checkpoint's, where float32 becomes a 16-bit type and a card without
/// bfloat16 takes float16 (vLLM 0.32.0, config/model.py, `_resolve_auto_dtype`).
fn model_dtype(model: &Model, settings: &Settings, capability: (u32, u32)) -> Dtype {
    let preferred = if capability >= (8, 0) {
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

/// Weights of one tensor-parallel rank of each stage.
struct Stages {
    bytes: Vec<u64>,
    /// The same without parallelism: all of the model.
    total: u64,
    /// Quantisation, for the formula.
    how: String,
}

fn weights(
    model: &Model,
    config: &Config,
    settings: &Settings,
    parallel: &Parallel,
    dtype: Dtype,
) -> Result<Stages> {
    let towers = !settings.language_model_only;
    let quantization = quantization(config, settings)?;
    let bytes = |stage: u64, parallel: &Parallel| match &quantization {
        None => model.weight_bytes(stage, parallel, dtype, towers),
        Some(q) => model.quantized_weight_bytes(stage, parallel, dtype, towers, q),
    };
    Ok(Stages {
        bytes: (0..parallel.pp)
            .map(|stage| bytes(stage, parallel))
            .collect::<Result<Vec<_>>>()?,
        total: bytes(0, &Parallel::default())?,
        how: match &quantization {
            None => format!(" in {dtype}"),
            Some(q) => format!(" in {dtype}, quantised by {}", q.name()),
        },
    })
}

/// What the checkpoint says, or `--quantization` where it says nothing.
fn quantization(config: &Config, settings: &Settings) -> Result<Option<Quantization>> {
    match settings.quantization.as_deref() {
        Some("none") => Ok(None),
        None => Quantization::read(config),
        Some(name) => match Quantization::read(config)? {
            None => Quantization::named(name).map(Some),
            // `awq_marlin` for an AWQ checkpoint names a kernel, not another format.
            Some(own)
                if normalise(name).contains(&normalise(own.name()))
                    || normalise(own.name()).contains(&normalise(name)) =>
            {
                Ok(Some(own))
            }
            Some(own) => Err(Error::input(format!(
                "--quantization is {name}, but the checkpoint is quantised by {}",
                own.name()
            ))
            .hint("leave --quantization out, or write none to ignore the checkpoint's")),
        },
    }
}

/// Elements that the widest feed-forward output of one token has on one rank; routed experts count once for every
/// expert that the token uses.
fn widest_projection(model: &Model, parallel: &Parallel) -> u64 {
    let mut widest = 0;
    for weight in model.layers.iter().flat_map(|layer| &layer.weights) {
        if !matches!(weight.role, Role::Mlp | Role::Experts | Role::SharedExpert) {
            continue;
        }
        // What cannot be divided is refused elsewhere, in the engine's terms.
        let Ok(shard) = weight.shard(parallel) else {
            continue;
        };
        let elements = match (&shard, &weight.op) {
            (Shard::Linear { outputs, .. }, _) => {
                outputs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n))
            }
            (
                Shard::Experts {
                    hidden,
                    intermediate,
                    parts,
                    ..
                },
                Op::Experts { top_k, .. },
            ) => parts
                .saturating_mul(*intermediate)
                .saturating_add(*hidden)
                .saturating_mul(*top_k),
            _ => 0,
        };
        widest = widest.max(elements);
    }
    widest
}

/// Adapter slots: two low-rank matrices for every linear module of the language model, in 16 bits.
fn lora(model: &Model, settings: &Settings, parallel: &Parallel) -> Result<Term> {
    let slots = settings.max_loras.unwrap_or(1);
    let rank = settings.max_lora_rank.unwrap_or(16);
    let mut width = 0_u64;
    for weight in model.layers.iter().flat_map(|layer| &layer.weights) {
        if !matches!(weight.role, Role::Attention | Role::Mlp) {
            continue;
        }
        if let Ok(Shard::Linear { inputs, outputs, .. }) = weight.shard(parallel) {
            // Each fused part has its own pair.
            let parts = outputs.len() as u64;
            width = width
                .saturating_add(inputs.saturating_mul(parts))
                .saturating_add(outputs.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)));
        }
    }
    let bytes = slots
        .checked_mul(rank)
        .and_then(|n| n.checked_mul(width))
        .and_then(|n| n.checked_mul(2))
        .ok_or_else(|| Error::overflow("the LoRA slots"))?;
    Ok(Term::estimated(
        "lora",
        Basis::Assumed,
        bytes,
        (bytes / 2, bytes.saturating_mul(2)),
        format!(
            "{slots} slots x rank {rank} x {} inputs and outputs x 2 B",
            grouped(width)
        ),
    ))
}

/// A model whose class the engine does not serve: only the checkpoint's size is known, if at all.
fn unserved<'a>(
    request: &'a Request<'a>,
    settings: &Settings,
    total: u64,
    utilization: f64,
    ranks: u64,
    reason: Option<String>,
    mut warnings: Vec<String>,
) -> Result<Evaluation<'a>> {
    let stages = settings.pipeline_parallel_size.max(1);
    let checkpoint = request.subject.checkpoint.map_or(0, |c| c.total_bytes);
    let per_rank = checkpoint.div_ceil(ranks.max(1));
    if checkpoint == 0 {
        warnings.push("weights and KV cache are not known for this architecture".to_owned());
    }
    let budget_bytes = requested(total, utilization)?;
    Ok(Evaluation {
        params: request.subject.params.unwrap_or(0),
        params_active: request.subject.params.unwrap_or(0),
        weights_total: checkpoint,
        weights_per_rank: vec![per_rank; usize::try_from(stages).unwrap_or(1)],
        weights_source: request.subject.checkpoint.map_or("config", |c| c.source),
        weights: Term::exact("weights", per_rank, "bytes of the checkpoint / ranks"),
        overhead: Vec::new(),
        gpu_bytes: total,
        budget_bytes,
        available_bytes: budget_bytes.saturating_sub(per_rank),
        available_low: budget_bytes.saturating_sub(per_rank),
        pool_given: false,
        missing_bytes: 0,
        missing_bytes_worst: 0,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        refused: Some(
            request
                .subject
                .refused
                .clone()
                .or(reason)
                .unwrap_or_else(|| "the architecture is not known".to_owned()),
        ),
        warnings,
        steps: Vec::new(),
    })
}

fn kv_cache(layout: &vllm::Layout, available: u64, dtype: Dtype) -> KvCache {
    KvCache {
        dtype: match layout.kv_cache_dtype {
            vllm::KvDtype::Auto => dtype.name(),
            given => given.name(),
        }
        .to_owned(),
        block_size: layout.block_size,
        bytes_per_block: layout.stages.iter().map(|stage| stage.bytes_per_block).collect(),
        num_blocks: layout.num_blocks,
        capacity_tokens: layout.capacity_tokens.unwrap_or(0),
        max_concurrency: layout.max_concurrency.unwrap_or(0.0),
        available_bytes: available,
        bytes_per_token: layout.bytes_per_token(),
        max_model_len: layout.max_model_len,
        groups: layout
            .groups
            .iter()
            .map(|group| GroupPart {
                kind: group.kind.to_owned(),
                layers: group.layers,
                block_size: group.block_size,
                page_bytes: group.page_bytes,
                blocks_per_request: group.blocks_per_request,
            })
            .collect(),
    }
}

fn explain_layout(layout: &vllm::Layout, steps: &mut Vec<Step>) {
    let backends: Vec<&str> = layout.backends.iter().map(|b| b.name()).collect();
    steps.push(
        Step::new(
            "block size",
            if backends.is_empty() {
                "no attention layer".to_owned()
            } else {
                format!(
                    "smallest that the kernels of {} take, aligned to any recurrent state",
                    backends.join(", ")
                )
            },
            format!("{} tokens", layout.block_size),
        )
        .of("vLLM 0.32.0, v1/attention/backends, config/vllm.py"),
    );
    for (i, group) in layout.groups.iter().enumerate() {
        steps.push(
            Step::new(
                format!("group {} of {}: {}", i + 1, layout.groups.len(), group.kind),
                format!(
                    "{} layers, a page of {} B for {} tokens",
                    group.layers,
                    grouped(group.page_bytes),
                    group.block_size
                ),
                format!(
                    "{} blocks for a request of {} tokens",
                    grouped(group.blocks_per_request),
                    grouped(layout.max_model_len)
                ),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, v1/kv_cache_interface.py"),
        );
    }
    for (i, stage) in layout.stages.iter().enumerate() {
        let place = if layout.stages.len() > 1 {
            format!(" on stage {}", i + 1)
        } else {
            String::new()
        };
        steps.push(
            Step::new(
                format!("blocks{place}"),
                format!(
                    "{} B available // {} B a block (the largest group's pages)",
                    grouped(stage.available_bytes),
                    grouped(stage.bytes_per_block)
                ),
                format!("{} in the pool of every rank", grouped(layout.num_blocks)),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, get_kv_cache_configs"),
        );
    }
    if let (Some(concurrency), Some(tokens)) = (layout.max_concurrency, layout.capacity_tokens) {
        steps.push(
            Step::new(
                "maximum concurrency, as logged",
                format!(
                    "{} blocks / {} blocks of a request of {} tokens",
                    grouped(layout.num_blocks),
                    grouped(layout.blocks_per_request),
                    grouped(layout.max_model_len)
                ),
                format!("{concurrency:.2}x"),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py, get_max_concurrency_for_kv_cache_config"),
        );
        steps.push(
            Step::new(
                "KV cache size, as logged",
                format!("int({concurrency:.4} x {})", layout.max_model_len),
                format!("{} tokens", grouped(tokens)),
            )
            .of("vLLM 0.32.0, v1/core/kv_cache_utils.py"),
        );
    }
}
