//! llama.cpp's rules on a request: where the layers go, the caches it allocates at start, and the buffers beside them.

mod parts;

use super::budget::Spread;
use super::calibration::Correction;
use super::evaluation::Evaluation;
use super::ledger::{Basis, Derivation, Step, Term};
use super::pool::Pool;
use super::report::KvCache;
use super::request::{LlamaCpp, Request};
use crate::engine::llamacpp::convert::{self, Mix};
use crate::engine::llamacpp::{
    Buffers, Caches, Hparams, Outputs, Placement, Settings, SplitMode, Weights, buffers, caches, compute,
    place,
};
use crate::units::{MIB, grouped, human_bytes};
use crate::{Error, Result};

/// CUDA context and libraries of one process on each GPU.
const CONTEXT_BYTES: u64 = 350 * MIB;

const CACHE_SOURCE: &str = "llama.cpp 0c1e570, src/llama-kv-cache.cpp, src/llama-context.cpp";
const PLACE_SOURCE: &str = "llama.cpp 0c1e570, src/llama-model.cpp, load_tensors";
const GRAPH_SOURCE: &str = "llama.cpp 0c1e570, src/models, ggml/src/ggml-alloc.c; compared in docs/src/reference/conformance-llamacpp.md";
const ESTIMATE_SOURCE: &str =
    "how far it may be off: docs/src/guides/llama-cpp.md, docs/src/reference/accuracy.md";

/// Mix taken for a configuration where nothing is said.
const DEFAULT_MIX: &str = "q4_k_m";

/// What one device holds.
struct Device {
    weights: u64,
    cache: u64,
    /// What closes the caches' tensors, a part of `cache`.
    padding: u64,
    layers: u64,
}

/// Evaluates a request by llama.cpp's rules.
///
/// # Errors
/// If a setting can mean nothing, or a size leaves 64 bits.
pub(super) fn evaluate<'a>(request: &'a Request<'a>, engine: &'a LlamaCpp) -> Result<Evaluation<'a>> {
    let hardware = &request.hardware;
    let mut warnings = Vec::new();
    let mut steps = Derivation::wanted(request.explain);
    let (model, weights, basis, how, source) = subject(request, engine)?;
    let settings = resolved(request, engine, &model, &mut steps)?;
    settings.validate()?;
    if !settings.overrides.is_empty() && weights.tensors.is_empty() {
        return Err(Error::unsupported(
            "--override-tensor asks for the names of tensors, and a configuration has none",
        )
        .hint("give a GGUF file, or a repository of the hub that holds one"));
    }
    let refused = settings.refusal(&model).or(request.subject.refused.clone());
    let (settings, said) = settings.on_used_devices();
    warnings.extend(said);
    let placement = place(model.layers.len() as u64, &settings);
    let wanted = settings.flash_attn;
    let settings = settings.with_flash_attention_resolved(&model, &placement);
    if wanted && !settings.flash_attn {
        warnings.push(format!(
            "flash attention stays off: llama.cpp's CUDA backend has no kernel for heads of {} elements of keys and {} of values",
            model.head_widths.0, model.head_widths.1
        ));
    }
    if settings.cpu_moe_layers > 0 && model.experts.0 == 0 {
        warnings.push("--cpu-moe and --n-cpu-moe change nothing: the model has no routed experts".to_owned());
    }
    let caches = caches(&model, &settings)?;
    let mut devices = (0..settings.gpus)
        .map(|gpu| on_device(Some(gpu), &placement, &weights, &caches, &settings))
        .collect::<Result<Vec<_>>>()?;
    let mut host = on_device(None, &placement, &weights, &caches, &settings)?;
    let mut moved = 0;
    if !settings.overrides.is_empty() {
        let placed = weights.placed(&placement, &settings)?;
        for (device, bytes) in devices.iter_mut().zip(&placed.gpus) {
            device.weights = *bytes;
        }
        (host.weights, moved) = (placed.host, placed.moved);
    }
    // Older builds reserve other buffers, so only what is known to be today's is exact.
    let reserved = (settings.outputs == Outputs::Sequences)
        .then(|| buffers(&model, &weights, &settings, &caches, &placement))
        .flatten();
    // The GPU with least left decides.
    let (tightest, device) = devices
        .iter()
        .enumerate()
        .max_by_key(|(gpu, d)| {
            let buffer = reserved.as_ref().and_then(|r| r.gpus.get(*gpu)).copied();
            d.weights
                .saturating_add(d.cache)
                .saturating_add(buffer.unwrap_or(0))
        })
        .ok_or_else(|| Error::input("--gpus is 0"))?;
    let all = model.layers.len() as u64 + 1;
    let offloaded = placement.offloaded();
    steps.add(||
        Step::new(
            "layers on GPUs",
            if settings.gpus > 1 {
                format!(
                    "the last {offloaded} of {all} (the output counts as one), {} on each GPU",
                    devices.iter().map(|d| d.layers.to_string()).collect::<Vec<_>>().join(", ")
                )
            } else {
                format!("the last {offloaded} of {all} (the output counts as one); the token embedding stays with the host")
            },
            human_bytes(device.weights),
        )
        .of(PLACE_SOURCE),
    );
    let host_bytes = host.weights.saturating_add(host.cache);
    let kept = (0..model.layers.len())
        .filter(|&layer| placement.devices.get(layer).is_some_and(Option::is_some))
        .map(|layer| weights.experts_with_host(layer, &settings))
        .fold(0_u64, u64::saturating_add);
    if moved > 0 {
        warnings.push(format!(
            "tensors of layers on GPUs stay with the host by their names: {} of weights in its memory, at its speed",
            human_bytes(moved)
        ));
    } else if kept > 0 && settings.overrides.is_empty() {
        warnings.push(format!(
            "the experts of {} layers stay with the host: {} of weights in its memory, at its speed",
            settings.cpu_moe_layers.min(model.layers.len() as u64),
            human_bytes(kept)
        ));
    }
    if offloaded < all {
        warnings.push(format!(
            "{} of {all} layers stay with the host: {} of weights and {} of cache in its memory, at its speed",
            all - offloaded,
            human_bytes(host.weights),
            human_bytes(host.cache)
        ));
    }
    steps.add(|| {
        Step::new(
            "memory of the host",
            format!(
                "{} weights + {} caches",
                human_bytes(host.weights),
                human_bytes(host.cache)
            ),
            human_bytes(host_bytes),
        )
    });

    // Nothing of the host's is copied for large batches.
    let all_there = offloaded == all && settings.cpu_moe_layers == 0 && moved == 0;
    let mut site_spread = None;
    let overhead = match request.policy.overhead_bytes {
        Some(bytes) => vec![Term::exact("overhead", bytes, "--overhead")],
        // No device is used at all; with one, large batches are computed there even if no layer is.
        None if settings.split_mode == SplitMode::None && settings.main_gpu < 0 => Vec::new(),
        None => {
            let mut terms = vec![
                Term::estimated(
                    "cuda_context",
                    Basis::Assumed,
                    CONTEXT_BYTES,
                    (CONTEXT_BYTES / 2, CONTEXT_BYTES * 2),
                    "context of one process",
                ),
                match &reserved {
                    Some(made) => {
                        reserved_buffer(made, tightest, &settings, engine.file.is_some() || all_there)
                    }
                    // Placed by name, weights are copied between devices in ways that the estimate does not know.
                    None => estimated_buffer(
                        &model,
                        &settings,
                        &caches,
                        all_there && settings.overrides.is_empty(),
                    ),
                },
            ];
            if let Some(correction @ Correction::Deployment { spread_bytes, .. }) = request.policy.site {
                // The last one takes the difference that the logs show; they give the sum, so the parts stay as sure as
                // they were.
                let own: Vec<_> = terms.iter().map(|t| (t.low_bytes, t.high_bytes)).collect();
                let _sum = correction.apply(&mut terms, Spread::exact(0));
                for (term, (low, high)) in terms.iter_mut().zip(own) {
                    term.low_bytes = term.low_bytes.min(low);
                    term.high_bytes = term.high_bytes.max(high);
                }
                site_spread = Some(spread_bytes);
            }
            terms
        }
    };
    for term in &overhead {
        steps.add(|| {
            let source = match (term.name, term.basis) {
                ("compute_buffer", Basis::Exact) => Some(GRAPH_SOURCE),
                ("compute_buffer" | "cuda_context", Basis::Fitted | Basis::Assumed) => Some(ESTIMATE_SOURCE),
                _ => None,
            };
            Step::new(
                format!("{} ({})", term.name, term.basis.name()),
                &term.formula,
                term.human(),
            )
            .of_any(source)
        });
    }
    let formula = format!(
        "{how}{}",
        if settings.gpus > 1 {
            format!(", GPU {} of {}", tightest + 1, settings.gpus)
        } else {
            String::new()
        }
    );
    let weights_term = match basis {
        Basis::Exact => Term::exact("weights", device.weights, formula),
        basis => Term::estimated(
            "weights",
            basis,
            device.weights,
            (
                device.weights - device.weights / 20,
                device.weights.saturating_add(device.weights / 12),
            ),
            formula,
        ),
    };
    let spread = Spread::beside(device.weights, &weights_term, &overhead, site_spread);
    let total = hardware.driver_bytes;
    let used = device.weights.saturating_add(spread.bytes());
    let available = total.saturating_sub(used);
    parts::explain(&mut steps, &model, &settings, &caches, device.cache);
    let longest = caches.ctx_per_sequence;
    let per_token = per_token(&model, &settings, &placement, tightest as u64)?;
    let mut evaluation = Evaluation {
        params: weights.params.0,
        params_active: weights.params.1,
        weights_total: weights.file,
        weights_per_rank: devices.iter().map(|d| d.weights).collect(),
        weights_source: source,
        weights: weights_term,
        overhead,
        gpu_bytes: total,
        budget_bytes: total,
        available_bytes: available,
        room_bytes: i128::from(total) - i128::from(device.weights),
        spread,
        pool_given: false,
        host_computes: !all_there,
        start_bytes: 0,
        missing_bytes: used.saturating_sub(total),
        max_model_len: Some(longest),
        ranks: settings.gpus,
        kv_cache: Some(KvCache {
            dtype: if settings.cache_type_k == settings.cache_type_v {
                settings.cache_type_k.name.to_owned()
            } else {
                format!("{}/{}", settings.cache_type_k.name, settings.cache_type_v.name)
            },
            block_size: 1,
            bytes_per_block: vec![per_token],
            num_blocks: caches.cells.saturating_mul(caches.streams),
            capacity_tokens: caches.ctx,
            max_concurrency: if settings.kv_unified {
                1.0
            } else {
                settings.parallel as f64
            },
            available_bytes: available,
            bytes_per_token: per_token,
            max_model_len: longest,
            max_running_requests: None,
            groups: parts::groups(&model, &caches),
        }),
        pool: None,
        layout: None,
        refused,
        refused_for_memory: false,
        fix: request.subject.fix.clone(),
        warnings,
        steps,
    };
    if evaluation.refused.is_none() && device.cache > available && engine.settings.ctx_size.is_some() {
        evaluation.refused_for_memory = true;
        evaluation.refused = Some(format!(
            "the caches of {} tokens take {} of the GPU at start, but {} are left",
            grouped(caches.ctx),
            human_bytes(device.cache),
            human_bytes(available)
        ));
    }
    // Every sequence takes as much as a context of its own.
    let given = engine.settings.ctx_size.is_some_and(|n| n > 0);
    // What closes a tensor is there once, however many sequences share it.
    let usable = if given {
        device.cache.min(available)
    } else {
        available
    }
    .saturating_sub(device.padding);
    let max_context = if given {
        longest
    } else {
        model.context_length.max(longest)
    };
    let gpu = tightest as u64;
    evaluation.pool = Some(Pool {
        unit_bytes: 1,
        usable_units: usable,
        units: Box::new(move |context| sequence_bytes(&model, &settings, &placement, gpu, context)),
        max_context,
        factor: request.policy.fragmentation,
    });
    Ok(evaluation)
}

/// Model, weights with their basis, formula and source.
type SubjectParts = (Hparams, Weights, Basis, String, &'static str);

fn subject(request: &Request, engine: &LlamaCpp) -> Result<SubjectParts> {
    if let Some(file) = &engine.file {
        return Ok((
            file.hparams.clone(),
            file.weights.clone(),
            Basis::Exact,
            "sum of the tensors of the file on this GPU".to_owned(),
            "gguf",
        ));
    }
    let Some((model, _)) = request.subject.model else {
        return Err((request.subject).undescribed("the architecture is not known, so neither are its caches"));
    };
    let name = engine.mix.as_deref().unwrap_or(DEFAULT_MIX);
    let mix = Mix::by_name(name).ok_or_else(|| {
        Error::input(format!(
            "--quantization is \"{name}\", which is no mix of llama.cpp's"
        ))
        .hint(format!("write one of {}", convert::mix_names().join(", ")))
    })?;
    let weights = convert::weights(model, mix)?;
    let basis = if ["f32", "f16", "bf16"].contains(&mix.name) {
        Basis::Fitted
    } else {
        Basis::Assumed
    };
    let how = format!(
        "{} parameters x {} bits ({}, as Llama-3.1-8B takes)",
        grouped(weights.params.0),
        mix.millibits as f64 / 1000.0,
        mix.name
    );
    Ok((convert::hparams(model)?, weights, basis, how, "config"))
}

/// The settings, with context and sequences taken from the load where they are not given.
fn resolved(
    request: &Request,
    engine: &LlamaCpp,
    model: &Hparams,
    steps: &mut Derivation,
) -> Result<Settings> {
    let mut settings = engine.settings.clone();
    if settings.ctx_size.is_none() {
        let parallel = request.load.concurrencies.first().copied().unwrap_or(1);
        if let Some(&context) = request.load.contexts.first() {
            settings.parallel = settings.parallel.max(parallel);
            settings.ctx_size = Some(
                context
                    .checked_mul(settings.parallel)
                    .ok_or_else(|| Error::overflow("--context times --concurrency"))?,
            );
            steps.add(|| {
                Step::new(
                    "context",
                    format!(
                        "--ctx-size is not given: {} x {} tokens",
                        settings.parallel,
                        grouped(context)
                    ),
                    format!(
                        "--ctx-size {} --parallel {}",
                        settings.ctx_size.unwrap_or(0),
                        settings.parallel
                    ),
                )
            });
        } else if model.context_length == 0 {
            return Err(
                Error::input("the model does not say its context").hint("give --ctx-size or --context")
            );
        }
    }
    Ok(settings)
}

fn on_device(
    device: Option<u64>,
    placement: &Placement,
    weights: &Weights,
    caches: &Caches,
    settings: &Settings,
) -> Result<Device> {
    let too_large = || Error::overflow("the weights and caches of one device");
    let mut out = Device {
        weights: match device {
            None => weights.input,
            Some(gpu) if placement.copies_factors(weights, gpu) => weights.rotations,
            Some(_) => 0,
        },
        cache: 0,
        padding: 0,
        layers: 0,
    };
    let add = |slot: u64, bytes: u64| slot.checked_add(bytes).ok_or_else(too_large);
    let count = placement.devices.len().saturating_sub(1);
    for (layer, &at) in placement.devices.iter().enumerate() {
        if at == device {
            out.layers += 1;
            // A tied embedding is copied for the output only where that is not with the host already.
            let padding = match device {
                Some(_) => weights.padding.get(layer).copied().unwrap_or(0),
                None => 0,
            };
            let bytes = match weights.layers.get(layer) {
                Some(&bytes) => bytes,
                None if device.is_none() => weights.file.saturating_sub(
                    weights
                        .layers
                        .iter()
                        .fold(weights.input.saturating_add(weights.unread), |sum, &b| {
                            sum.saturating_add(b)
                        }),
                ),
                None => weights.output,
            };
            out.weights = add(add(out.weights, bytes)?, padding)?;
            if device.is_some() {
                out.weights = out
                    .weights
                    .saturating_sub(weights.experts_with_host(layer, settings));
            }
        } else if device.is_none() {
            out.weights = add(out.weights, weights.experts_with_host(layer, settings))?;
        }
        let cache_at = if settings.no_kv_offload { None } else { at };
        if layer < count && cache_at == device {
            let padding = match device {
                Some(_) => caches.padding.get(layer).copied().unwrap_or(0),
                None => 0,
            };
            out.padding = add(out.padding, padding)?;
            out.cache = add(add(out.cache, caches.layer_bytes(layer))?, padding)?;
        }
    }
    Ok(out)
}

/// Bytes on one GPU of the caches of one sequence with a context of its own.
fn sequence_bytes(
    model: &Hparams,
    settings: &Settings,
    placement: &Placement,
    gpu: u64,
    context: u64,
) -> Result<u64> {
    let one = Settings {
        ctx_size: Some(context.max(1)),
        parallel: 1,
        ..settings.clone()
    };
    let caches = caches(model, &one)?;
    Ok(
        on_device(Some(gpu), placement, &Weights::default(), &caches, settings)
            .map_or(u64::MAX, |d| d.cache - d.padding),
    )
}

/// Bytes that one more token of a long context takes on a GPU.
fn per_token(model: &Hparams, settings: &Settings, placement: &Placement, gpu: u64) -> Result<u64> {
    let long = model
        .sliding
        .map_or(0, |s| s.tokens)
        .saturating_add(settings.ubatch_size)
        .saturating_add(4096)
        .next_multiple_of(256);
    let at = |n| sequence_bytes(model, settings, placement, gpu, n);
    Ok(at(long + 256)?.saturating_sub(at(long)?) / 256)
}

/// The buffer for intermediate results that the tightest GPU reserves. Without a file the sizes of weights that are copied from
/// the host are not exact.
fn reserved_buffer(made: &Buffers, gpu: usize, settings: &Settings, exact: bool) -> Term {
    let bytes = made.gpus.get(gpu).copied().unwrap_or(0);
    let formula = format!(
        "the graph of {} tokens, placed as llama.cpp's allocator places it (CUDA); {} with the host",
        settings.ubatch_size.min(settings.batch_size),
        human_bytes(made.host)
    );
    if exact {
        return Term::exact("compute_buffer", bytes, formula);
    }
    Term::estimated(
        "compute_buffer",
        Basis::Fitted,
        bytes,
        (bytes - bytes / 5, bytes.saturating_add(bytes / 3)),
        formula,
    )
}

/// The buffer for intermediate results where the graph is not built here.
fn estimated_buffer(model: &Hparams, settings: &Settings, caches: &Caches, offloaded_all: bool) -> Term {
    let made = compute(model, settings, caches, offloaded_all);
    Term::estimated(
        "compute_buffer",
        Basis::Fitted,
        made.bytes,
        (made.low_bytes, made.high_bytes),
        made.formula,
    )
}
