//! Each figure that SGLang or llama.cpp logs beside the planned one.

use kvwise_core::engine::llamacpp::{self, Outputs, caches, compute, convert};
use kvwise_core::engine::sglang::{Card, Pools, Settings, Static, pools, shape};
use kvwise_core::plan::{Basis, LlamaCpp, Term};
use kvwise_core::units::GIB;
use kvwise_core::{Error, Result};
use kvwise_io::log::Value;

use super::Case;
use super::terms::{exactly, of_figure, of_term};
use crate::report::verify::{Row, Unit};

/// Compute capability whose rules are taken where the card's is not known, as in the planner.
const FALLBACK_CAPABILITY: (u32, u32) = (9, 0);
/// Entries of the table of requests beside each context (`SGLang` 0.5.23, `srt/mem_cache/kv_cache_configurator.py`).
const EXTRA_CONTEXT: u64 = 4;
/// What else is allocated between the measurement and the pools' end: tables, rounding of allocations. 0.15 GiB in the
/// log of a 32B model on four L4.
const BESIDE_POOLS_BYTES: f64 = 512.0 * 1024.0 * 1024.0;

fn component<'a>(case: &'a Case, name: &str) -> Option<&'a Term> {
    case.plan.memory.components.iter().find(|term| term.name == name)
}

/// SGLang: what was free, what the weights took, the pools, and what is left beside them.
///
/// # Errors
/// If a size leaves 64 bits.
pub(super) fn sglang(case: &Case, settings: &Settings, rows: &mut Vec<Row>) -> Result<()> {
    let (plan, boot) = (case.plan, case.boot);
    let gpu_bytes = plan.memory.gpu_bytes;
    let mut add = |name, unit, basis, predicted, actual: Option<(f64, f64, f64)>| {
        if actual.is_some() {
            rows.push(Row::new(name, unit, basis, predicted, actual, gpu_bytes));
        }
    };
    let all = gpu_bytes as f64;
    if let Some(context) = component(case, "cuda_context") {
        let (best, low, high) = of_term(context);
        add(
            "free_before_load",
            Unit::Bytes,
            context.basis,
            Some((all - best, all - high, all - low)),
            boot.smallest(|rank| rank.free_at_start).map(of_figure),
        );
    }
    let weights = component(case, "weights");
    add(
        "weights",
        Unit::Bytes,
        weights.map_or(Basis::Assumed, |term| term.basis),
        weights.map(of_term),
        boot.largest(|rank| rank.model_load).map(of_figure),
    );
    let kv = component(case, "kv_cache");
    // What is left is no better known than the weights that were taken off.
    let basis = match (kv.map(|term| term.basis), weights.map(|term| term.basis)) {
        (Some(Basis::Exact), Some(of_weights)) => of_weights,
        (Some(basis), _) => basis,
        (None, _) => Basis::Assumed,
    };
    let logged = boot.kv_bytes.map(|kv| {
        let (x, low, high) = of_figure(kv);
        let (y, least, most) = boot.state_bytes.map_or((0.0, 0.0, 0.0), of_figure);
        (x + y, low + least, high + most)
    });
    add("available_kv", Unit::Bytes, basis, kv.map(of_term), logged);
    if let Some(planned) = &plan.kv_cache {
        // One pool: its bytes are those of the tokens and of one page for padding.
        if let (Some(bytes), Some(tokens), None) =
            (boot.kv_bytes, boot.tokens.filter(|n| *n > 0), boot.swa_tokens)
        {
            let (mid, low, high) = of_figure(bytes);
            let n = tokens as f64;
            add(
                "kv_bytes_per_token",
                Unit::Bytes,
                Basis::Exact,
                Some(exactly(planned.bytes_per_token)),
                Some((mid / n, low / (n + planned.block_size as f64), high / n)),
            );
        }
        let share = kv.map_or((1.0, 1.0), |term| {
            let bytes = term.bytes.max(1) as f64;
            (term.low_bytes as f64 / bytes, term.high_bytes as f64 / bytes)
        });
        let n = planned.capacity_tokens as f64;
        add(
            "kv_tokens",
            Unit::Tokens,
            basis,
            Some((n, n * share.0, n * share.1)),
            boot.tokens.map(exactly),
        );
    }
    if let Some(made) = pools_of_log(case, settings)? {
        let of = |read: &dyn Fn(&Pools) -> u64| {
            let values = [read(&made[0]), read(&made[1]), read(&made[2])].map(|n| n as f64);
            (
                values[0],
                values.iter().copied().fold(f64::INFINITY, f64::min),
                values.iter().copied().fold(0.0, f64::max),
            )
        };
        let mut exact = |name, predicted, actual: Option<u64>| {
            add(
                name,
                Unit::Tokens,
                Basis::Exact,
                Some(predicted),
                actual.map(exactly),
            );
        };
        exact(
            "kv_tokens_of_logged_memory",
            of(&|p| p.max_total_num_tokens),
            boot.tokens,
        );
        if made[0].swa_tokens.is_some() {
            exact("swa_tokens", of(&|p| p.swa_tokens.unwrap_or(0)), boot.swa_tokens);
        }
        if made[0].state_slots.is_some() {
            exact(
                "state_slots",
                of(&|p| p.state_slots.unwrap_or(0)),
                boot.state_slots,
            );
        }
    }
    let running = boot.setting("max_running_requests").and_then(Value::count);
    if let (Some(reserve), Some(running), Some(context)) =
        (component(case, "runtime_reserve"), running, boot.max_model_len)
    {
        let table = request_table_bytes(running, context)? as f64;
        let (best, low, high) = of_term(reserve);
        let slack = BESIDE_POOLS_BYTES;
        add(
            "free_after_pools",
            Unit::Bytes,
            Basis::Assumed,
            Some((best - table, low - table - slack, high - table + slack / 4.0)),
            boot.smallest(|rank| rank.free_after_pools).map(of_figure),
        );
    }
    add(
        "cuda_graphs",
        Unit::Bytes,
        Basis::Assumed,
        None,
        boot.largest(|rank| rank.graphs).map(of_figure),
    );
    Ok(())
}

/// The table of slots of each request: 4 B for each token of the longest context.
fn request_table_bytes(running: u64, context: u64) -> Result<u64> {
    running
        .checked_add(1)
        .zip(context.checked_add(EXTRA_CONTEXT))
        .and_then(|(requests, tokens)| requests.checked_mul(tokens)?.checked_mul(4))
        .ok_or_else(|| Error::overflow("the table of running requests"))
}

/// SGLang's own rules for the free memory that the log shows: the best value, the least and the most that the rounding
/// allows. None where the log does not show it, where it decides nothing, or where stages have memory of their own.
fn pools_of_log(case: &Case, settings: &Settings) -> Result<Option<[Pools; 3]>> {
    let boot = case.boot;
    let given = settings.kv_cache_memory_bytes.is_some();
    let drafter = boot
        .setting("speculative_algorithm")
        .is_some_and(|value| value.text().is_some());
    let (Some(before), Some(after), Some(fraction), Some((model, config))) = (
        boot.smallest(|rank| rank.free_at_start),
        boot.smallest(|rank| rank.free_after_load),
        settings.mem_fraction_static,
        case.resolved.described(),
    ) else {
        return Ok(None);
    };
    if given || drafter || settings.pp() > 1 {
        return Ok(None);
    }
    let hardware = case.resolved.hardware();
    let card = Card::of(
        hardware.driver_bytes,
        hardware.compute_capability.unwrap_or(FALLBACK_CAPABILITY),
    );
    let shape = shape(model, config, settings, &card)?;
    let (before, after) = (of_figure(before), of_figure(after));
    let mut made = Vec::with_capacity(3);
    // More was free before: more is kept for the rest.
    for (before, after) in [(before.0, after.0), (before.2, after.1), (before.1, after.2)] {
        let measured = Static {
            before_gib: before / GIB as f64,
            after_gib: after / GIB as f64,
            fraction,
        };
        match pools(&shape, settings, &[measured])? {
            Ok(found) => made.push(found),
            Err(_) => return Ok(None),
        }
    }
    Ok(made.try_into().ok())
}

/// For which tokens the build of the log reserved logits.
fn outputs(case: &Case) -> Outputs {
    let config = &case.boot.config;
    let per_sequence = config.get("n_outputs_max").and_then(Value::count);
    let apart = config.get("reserves_apart").and_then(Value::flag);
    match (per_sequence, apart) {
        (Some(n), _)
            if n < case
                .boot
                .config
                .get("n_ubatch")
                .and_then(Value::count)
                .unwrap_or(512) =>
        {
            Outputs::Sequences
        }
        (Some(_), _) | (None, Some(false)) => Outputs::Tokens,
        (None, _) => Outputs::Unknown,
    }
}

/// llama.cpp: weights on the GPUs, the caches it allocates, and its compute buffer.
///
/// # Errors
/// If a size leaves 64 bits.
pub(super) fn llamacpp(case: &Case, engine: &LlamaCpp, rows: &mut Vec<Row>) -> Result<()> {
    let (plan, boot) = (case.plan, case.boot);
    let gpu_bytes = plan.memory.gpu_bytes;
    let mut add = |name, unit, basis, predicted, actual: Option<(f64, f64, f64)>| {
        if actual.is_some() {
            rows.push(Row::new(name, unit, basis, predicted, actual, gpu_bytes));
        }
    };
    let loads: Vec<(f64, f64, f64)> = boot
        .ranks
        .iter()
        .filter_map(|rank| rank.model_load)
        .map(of_figure)
        .collect();
    if let (Some(term), false) = (component(case, "weights"), loads.is_empty()) {
        // How layers are spread over several GPUs depends on what was free; their sum does not.
        let sum = plan
            .weights
            .bytes_per_rank
            .iter()
            .try_fold(0_u64, |sum, n| sum.checked_add(*n))
            .ok_or_else(|| Error::overflow("the weights of all GPUs"))? as f64;
        let (best, low, high) = of_term(term);
        let of = |end: f64| sum * end / best.max(1.0);
        add(
            "weights",
            Unit::Bytes,
            term.basis,
            Some((sum, of(low), of(high))),
            Some(
                loads
                    .iter()
                    .fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2)),
            ),
        );
    }
    let hparams = match (&engine.file, case.resolved.model()) {
        (Some(file), _) => Some(file.hparams.clone()),
        (None, Some(model)) => Some(convert::hparams(model)?),
        (None, None) => None,
    };
    if let Some(hparams) = hparams.filter(|_| engine.settings.ctx_size.is_some()) {
        let placement = llamacpp::place(hparams.layers.len() as u64, &engine.settings);
        let asked = engine
            .settings
            .clone()
            .with_flash_attention_resolved(&hparams, &placement);
        let made = caches(&hparams, &asked)?;
        // One GPU that holds all: with several, each has a part of the graph.
        if loads.len() == 1 {
            let settings = llamacpp::Settings {
                outputs: outputs(case),
                ..asked
            };
            let buffer = compute(&hparams, &settings, &made, settings.gpu_layers.is_none());
            let mut of = [buffer.bytes, buffer.low_bytes, buffer.high_bytes].map(|n| n as f64);
            // Today's builds place the graph as it is placed here; the interval is that of older ones.
            let placed = engine
                .file
                .as_ref()
                .filter(|_| settings.outputs == Outputs::Sequences)
                .and_then(|file| llamacpp::buffers(&hparams, &file.weights, &settings, &made, &placement))
                .and_then(|buffers| buffers.gpus.first().copied());
            if let Some(placed) = placed {
                let placed = placed as f64;
                of = [placed, of[1].min(placed), of[2].max(placed)];
            }
            add(
                "compute_buffer",
                Unit::Bytes,
                Basis::Fitted,
                Some((of[0], of[1], of[2])),
                boot.compute_bytes.map(of_figure),
            );
        }
        let sum = |lists: &[&[u64]]| {
            lists
                .iter()
                .flat_map(|list| list.iter())
                .try_fold(0_u64, |sum, n| sum.checked_add(*n))
                .ok_or_else(|| Error::overflow("the caches of all layers"))
        };
        add(
            "kv_cache",
            Unit::Bytes,
            Basis::Exact,
            Some(exactly(sum(&[&made.key_bytes, &made.value_bytes])?)),
            boot.kv_bytes.map(of_figure),
        );
        add(
            "kv_cells",
            Unit::Tokens,
            Basis::Exact,
            Some(exactly(made.cells)),
            boot.tokens.map(exactly),
        );
        add(
            "state_cache",
            Unit::Bytes,
            Basis::Exact,
            Some(exactly(sum(&[&made.state_bytes])?)),
            boot.state_bytes.map(of_figure),
        );
    }
    Ok(())
}
