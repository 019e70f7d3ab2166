//! SGLang's rules on a request: the share it keeps for itself, the weights, and the pools that the rest becomes.

use super::budget::Spread;
use super::calibration::Correction;
use super::evaluation::Evaluation;
use super::ledger::{Basis, Derivation, Step, Term};
use super::pool::Pool;
use super::report::{GroupPart, KvCache};
use super::request::Request;
use crate::arch::{Parallel, family};
use crate::dtype::Dtype;
use crate::engine::sglang::pool::pools_of_bytes;
use crate::engine::sglang::{self, Card, Pools, Settings, Shape, Static, defaults, pools, served, shape};
use crate::engine::vllm;
use crate::units::{GIB, MIB, gib, grouped, human_bytes};
use crate::{Error, Result};

mod beside_vllm;
mod weights;

use beside_vllm::beside_vllm;
use weights::{RankWeights, rank_weights};

/// CUDA context and libraries of one rank, which are there before the free memory is measured, with its interval: the
/// published logs below leave 0.27 GiB (L4) to 0.5 GiB (H100, H200) beside the communication.
const CONTEXT_BYTES: (u64, u64, u64) = (450 * MIB, 250 * MIB, 700 * MIB);
/// Communication buffers of more than one rank over `NVLink`, with their interval: NCCL's channels to every peer and
/// `NVLS`, and 24 MiB of the engine's own all-reduce. "Init torch distributed ends. mem usage" of published logs: 1.25 GiB
/// on eight H100 (2025-09), 1.77 to 2.01 on eight H200 (SGLang pull request 11716); two GPUs of 80 GB had 77.18 GiB left
/// (2024-11).
const NVLINK_BYTES: (u64, u64, u64) = (1500 * MIB, 500 * MIB, 2250 * MIB);
/// The same over `PCIe`, where the engine's own all-reduce is off for more than two GPUs and NCCL has few channels: 0.13 GiB
/// on four L4 (2025-03), 0.26 on two RTX 4090 (SGLang issue 16920), 0.39 on four RTX PRO 6000 (SGLang issue 40558).
const PCIE_BYTES: (u64, u64, u64) = (256 * MIB, 100 * MIB, 450 * MIB);
/// The same between AMD's accelerators: 3.4 to 3.8 GiB on eight MI355X (2026-02).
const INFINITY_FABRIC_BYTES: (u64, u64, u64) = (3700 * MIB, 1500 * MIB, 4500 * MIB);
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
        return Err(request.subject.undescribed("the architecture is not known"));
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
    let mut steps = Derivation::wanted(request.explain);

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
    let RankWeights {
        bytes: per_rank,
        total,
        how,
        indivisible,
        drafter,
        params: own_params,
    } = rank_weights(
        &request.subject,
        (model, config),
        settings,
        &gpu,
        &parallel,
        dtype,
    )?;
    let fullest = per_rank.iter().copied().max().unwrap_or(0);
    if let Some(assumption) = drafter.as_ref().and_then(|d| d.assumption) {
        warnings.push(assumption.to_owned());
    }
    let drafter_bytes = drafter.as_ref().map_or(0, |d| d.bytes);
    let (params, params_active) = match request.subject.params {
        Some(given) => (given, given),
        None => own_params,
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
    let mut weights_term = Term::estimated(
        "weights",
        Basis::Assumed,
        fullest,
        (fullest - fullest / 100, fullest.saturating_add(fullest / 33)),
        &formula,
    );
    // Logs of this deployment say what all of it took, not which part: the difference goes to the weights.
    let (per_rank, fullest, site_spread) = match request.policy.site {
        Some(
            correction @ Correction::Deployment {
                offset_bytes,
                spread_bytes,
                ..
            },
        ) => {
            let own = (weights_term.low_bytes, weights_term.high_bytes);
            let _sum = correction.apply(std::slice::from_mut(&mut weights_term), Spread::exact(fullest));
            weights_term.low_bytes = weights_term.low_bytes.min(own.0);
            weights_term.high_bytes = weights_term.high_bytes.max(own.1);
            let moved = per_rank
                .iter()
                .map(|bytes| bytes.saturating_add_signed(offset_bytes))
                .collect();
            (moved, weights_term.bytes, Some(spread_bytes))
        }
        _ => (per_rank, fullest, None),
    };
    steps.add(|| Step::new("weights per GPU", &formula, human_bytes(fullest)));

    // The drafter is loaded before the pools are made, on every rank.
    let drafter_term = drafter.map(|d| {
        let term = Term::estimated(
            "drafter",
            Basis::Assumed,
            d.bytes,
            (d.bytes - d.bytes / 100, d.bytes.saturating_add(d.bytes / 33)),
            d.formula,
        );
        steps.add(|| Step::new("drafter", &term.formula, human_bytes(term.bytes)));
        term
    });

    // What is free before loading, the share that is static, and what stays free for activations and graphs.
    let whole = hardware.torch_bytes;
    let context = if let Some(bytes) = request.policy.overhead_bytes {
        Term::exact("cuda_context", bytes, "--overhead")
    } else {
        let (link, between) = match (ranks > 1, hardware.pcie_only) {
            (false, _) => ((0, 0, 0), ""),
            (true, true) => (PCIE_BYTES, " and NCCL's buffers over PCIe"),
            (true, false) if hardware.name.starts_with("mi") => {
                (INFINITY_FABRIC_BYTES, " and RCCL's buffers over Infinity Fabric")
            }
            (true, false) => (NVLINK_BYTES, " and NCCL's buffers over NVLink"),
        };
        let best = CONTEXT_BYTES.0 + link.0;
        Term::estimated(
            "cuda_context",
            Basis::Assumed,
            best,
            (CONTEXT_BYTES.1 + link.1, CONTEXT_BYTES.2 + link.2),
            format!("context of one process{between}"),
        )
    };
    let before = whole.saturating_sub(context.bytes);
    steps.add(|| {
        let source = "context read off SGLang's published start-up logs: docs/src/guides/read-a-log.md, reference/accuracy.md";
        Step::new(
            "free before loading",
            format!("{} - {} context", human_bytes(whole), human_bytes(context.bytes)),
            human_bytes(before),
        )
        .of_any((context.basis != Basis::Exact).then_some(source))
    });
    let fraction = found.mem_fraction_static;
    steps.add(||
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
        let used = fullest
            .saturating_add(drafter_bytes)
            .saturating_add(context.bytes);
        steps.add(|| {
            Step::new(
                "memory for the KV cache",
                "--kv-cache-memory-bytes: nothing is measured",
                human_bytes(given),
            )
        });
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
                after_gib: gib(before.saturating_sub(weights.saturating_add(drafter_bytes))),
                fraction,
            })
            .collect();
        let used = fullest
            .saturating_add(drafter_bytes)
            .saturating_add(context.bytes)
            .saturating_add(reserve);
        steps.add(|| {
            Step::new(
                "left for states and KV cache",
                format!(
                    "{} free - {} weights{} - {} reserve",
                    human_bytes(before),
                    human_bytes(fullest),
                    if drafter_bytes > 0 {
                        format!(" - {} drafter", human_bytes(drafter_bytes))
                    } else {
                        String::new()
                    },
                    human_bytes(reserve)
                ),
                human_bytes(whole.saturating_sub(used)),
            )
            .of(POOL_SOURCE)
        });
        (
            vec![context, reserve_term],
            pools(&shape, settings, &measured)?,
            whole.saturating_sub(used),
            used.saturating_sub(whole),
        )
    };
    let overhead: Vec<Term> = drafter_term.into_iter().chain(overhead).collect();
    let pool_given = settings.kv_cache_memory_bytes.is_some();
    let spread = Spread::beside(fullest, &weights_term, &overhead, site_spread);
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
        host_computes: false,
        start_bytes: 0,
        missing_bytes: missing,
        max_model_len: None,
        ranks,
        kv_cache: None,
        pool: None,
        layout: None,
        refused: request
            .subject
            .refused
            .clone()
            .or(family::unrecognised(config).map(str::to_owned))
            .or(shape.refused.clone())
            .or(indivisible),
        refused_for_memory: false,
        fix: (request.subject.fix.clone())
            .or(family::unrecognised(config).map(|_| family::NAME_THE_TYPE.to_owned())),
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
        max_running_requests: Some(pools.max_running_requests),
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
    steps.add(|| {
        Step::new(
            "page size",
            format!("attention backend {}", shape.backend),
            format!(
                "{} token{}",
                shape.page_size,
                if shape.page_size == 1 { "" } else { "s" }
            ),
        )
        .of("SGLang 0.5.23, srt/arg_groups/overrides.py")
    });
    if let (Some(states), Some(slots)) = (shape.states, pools.state_slots) {
        steps.add(|| {
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
            .of(POOL_SOURCE)
        });
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
        steps.add(|| {
            Step::new(format!("one token{place}"), how, format!("{} B", grouped(bytes))).of(POOL_SOURCE)
        });
    }
    steps.add(|| {
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
        .of(POOL_SOURCE)
    });
    steps.add(|| {
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
        .of(POOL_SOURCE)
    });
}
