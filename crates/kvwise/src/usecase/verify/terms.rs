//! Each logged figure beside the planned one.

use kvwise_core::Result;
use kvwise_core::engine::vllm::version::TokensRule;
use kvwise_core::engine::vllm::{self, Gpu, Settings};
use kvwise_core::plan::{Basis, Engine, Term};
use kvwise_io::log::{Boot, EngineKind, Figure};

use super::{Case, terms_others};
use crate::report::verify::{Row, Unit};

/// What a loader's own measurement may differ from the planned weights and buffers by: converted weights and small tensors.
/// Logged loads of plain checkpoints in the public logs were 0.0 to 0.5 % above both.
const LOAD_PERCENT: u64 = 1;
/// The same for small models.
const LOAD_BYTES: u64 = 64 << 20;
/// Releases before this one, and the V0 engine, logged the concurrency as blocks x block size / length.
const CONCURRENCY_OF_REQUESTS: (u32, u32) = (0, 10);

/// The prediction and its interval as numbers of a row.
pub(super) fn of_term(term: &Term) -> (f64, f64, f64) {
    (term.bytes as f64, term.low_bytes as f64, term.high_bytes as f64)
}

pub(super) fn of_figure(figure: Figure) -> (f64, f64, f64) {
    let half = if figure.step_bytes > 1 {
        figure.step_bytes.div_ceil(2) as f64
    } else {
        0.0
    };
    let bytes = figure.bytes as f64;
    (bytes, bytes - half, bytes + half)
}

pub(super) fn exactly(n: u64) -> (f64, f64, f64) {
    (n as f64, n as f64, n as f64)
}

/// A number that was printed with two decimals.
fn two_decimals(x: f64) -> (f64, f64, f64) {
    (x, x - 0.005_000_1, x + 0.005_000_1)
}

/// Compares everything that the log tells.
///
/// # Errors
/// If a size leaves 64 bits.
pub(super) fn terms(case: &Case) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    match (case.boot.engine, case.resolved.engine()) {
        (Some(EngineKind::Sglang), Engine::Sglang(settings)) => {
            terms_others::sglang(case, settings, &mut rows)?;
        }
        (Some(EngineKind::Llamacpp), Engine::LlamaCpp(engine)) => {
            terms_others::llamacpp(case, engine, &mut rows)?;
        }
        (Some(EngineKind::Vllm) | None, Engine::Vllm(settings)) => {
            memory(case, &mut rows);
            vllm_pool(case, settings, &mut rows)?;
        }
        // Planned for another engine than the one that wrote the log: what both call the same.
        _ => memory(case, &mut rows),
    }
    Ok(rows)
}

/// The budget and what is taken off it.
fn memory(case: &Case, rows: &mut Vec<Row>) {
    let (plan, boot) = (case.plan, case.boot);
    let gpu_bytes = plan.memory.gpu_bytes;
    let component = |name: &str| plan.memory.components.iter().find(|term| term.name == name);
    let mut add = |name, basis, predicted, actual: Option<Figure>| {
        if actual.is_some() {
            rows.push(Row::new(
                name,
                Unit::Bytes,
                basis,
                predicted,
                actual.map(of_figure),
                gpu_bytes,
            ));
        }
    };
    if !boot.ranks.iter().any(|rank| rank.total.is_none()) || boot.largest(|r| r.total).is_some() {
        add(
            "gpu_memory",
            Basis::Exact,
            Some(exactly(gpu_bytes)),
            boot.largest(|rank| rank.total),
        );
    }
    let explicit = case.settings.is_some_and(|s| s.kv_cache_memory_bytes.is_some());
    if !explicit {
        // The log rounds the total, so the product is known to the same rounding.
        let half = boot
            .largest(|rank| rank.total)
            .map_or(0.0, |total| total.step_bytes as f64);
        let budget = plan.memory.budget_bytes as f64;
        add(
            "budget",
            Basis::Exact,
            Some((budget, budget - half, budget + half)),
            boot.largest(|rank| rank.requested),
        );
    }
    if let Some(weights) = component("weights") {
        // What the engine calls the model's load: parameters, and what is allocated with them.
        let load = weights
            .bytes
            .saturating_add(component("buffers").map_or(0, |buffers| buffers.bytes));
        let slack = (load / 100 * LOAD_PERCENT).max(LOAD_BYTES) as f64;
        let bytes = load as f64;
        add(
            "weights",
            Basis::Exact,
            Some((bytes, bytes - slack, bytes + slack)),
            boot.largest(|rank| rank.model_load),
        );
    }
    add(
        "activation",
        Basis::Fitted,
        component("activation").map(of_term),
        boot.largest(|rank| rank.activation),
    );
    add(
        "non_torch",
        Basis::Fitted,
        component("non_torch").map(of_term),
        boot.largest(|rank| rank.non_torch),
    );
    let graphs = component("cuda_graphs");
    let captured = boot.largest(|rank| rank.graphs);
    add(
        "cuda_graphs",
        graphs.map_or(Basis::Fitted, |t| t.basis),
        graphs.map(of_term),
        captured.filter(|f| f.bytes != 0 || graphs.is_some_and(|t| t.bytes > 0)),
    );
}

/// Range of the KV memory that the workers logged; the smallest rank decides.
pub(super) fn logged_memory(boot: &Boot) -> Option<(u64, u64)> {
    let figure = boot.smallest(|rank| rank.available_kv)?;
    Some((figure.low_bytes(), figure.high_bytes()))
}

/// The engine's rules for a given memory.
pub(super) fn layout(case: &Case, settings: &Settings, bytes: u64) -> Result<Option<vllm::Outcome>> {
    let Some(model) = case.resolved.model() else {
        return Ok(None);
    };
    let hardware = case.resolved.hardware();
    // As in the planner: Hopper's rules where the card's are not known.
    let (major, minor) = hardware.compute_capability.unwrap_or((9, 0));
    let gpu = Gpu::new(&hardware.name, major, minor, hardware.torch_bytes);
    vllm::layout(model, settings, gpu, &[bytes]).map(Some)
}

/// Blocks, tokens and concurrency: from the plan's own memory, and from the memory that the log shows.
fn vllm_pool(case: &Case, settings: &Settings, rows: &mut Vec<Row>) -> Result<()> {
    let (plan, boot) = (case.plan, case.boot);
    let gpu_bytes = plan.memory.gpu_bytes;
    let Some(kv) = plan.memory.components.iter().find(|term| term.name == "kv_cache") else {
        return Ok(());
    };
    let given = settings.kv_cache_memory_bytes.is_some();
    let sized = given || settings.num_gpu_blocks_override.is_some();
    if let Some(actual) = boot.smallest(|rank| rank.available_kv) {
        // A plan that does not fit is short of memory by as much as the log's figure is negative.
        let short = super::save::shortfall(plan);
        let predicted = if short > 0.0 {
            // The largest estimated term is about as uncertain as their sum.
            let around = |difference: fn(&Term) -> u64| {
                (plan.memory.components.iter())
                    .filter(|term| term.basis == Basis::Fitted && term.name != "kv_cache")
                    .map(difference)
                    .max()
                    .unwrap_or(0) as f64
            };
            (
                -short,
                -short - around(|term| term.high_bytes.saturating_sub(term.bytes)),
                -short + around(|term| term.bytes.saturating_sub(term.low_bytes)),
            )
        } else {
            of_term(kv)
        };
        rows.push(Row::new(
            "available_kv",
            Unit::Bytes,
            if given { Basis::Exact } else { kv.basis },
            Some(predicted),
            Some(of_figure(actual)),
            gpu_bytes,
        ));
    }
    if let (Some(logged), Some(planned)) = (boot.block_size, &plan.kv_cache) {
        rows.push(Row::new(
            "block_size",
            Unit::Tokens,
            Basis::Exact,
            Some(exactly(planned.block_size)),
            Some(exactly(logged)),
            gpu_bytes,
        ));
    }
    if boot.refusal.is_some() {
        // The pool was never made; the refusal's own figures are compared.
        return Ok(());
    }
    let predicted = pool(case, settings, (kv.bytes, kv.low_bytes, kv.high_bytes))?;
    let basis = if sized { Basis::Exact } else { kv.basis };
    if let Some(pool) = &predicted {
        push_pool(
            boot,
            rows,
            ["kv_blocks", "kv_tokens", "max_concurrency"],
            basis,
            pool,
            gpu_bytes,
        );
        if let Some((_, length)) = boot.concurrency {
            rows.push(Row::new(
                "max_model_len",
                Unit::Tokens,
                if settings.max_model_len == vllm::MaxModelLen::Auto {
                    basis
                } else {
                    Basis::Exact
                },
                Some(pool.length),
                Some(exactly(length)),
                gpu_bytes,
            ));
        }
    }
    if !sized
        && let Some((low, high)) = logged_memory(boot)
        && let Some(pool) = pool(case, settings, (low + (high - low) / 2, low, high))?
    {
        push_pool(
            boot,
            rows,
            [
                "kv_blocks_of_logged_memory",
                "kv_tokens_of_logged_memory",
                "max_concurrency_of_logged_memory",
            ],
            Basis::Exact,
            &pool,
            gpu_bytes,
        );
    }
    Ok(())
}

/// Figures of a pool, for a memory and its range.
struct Pool {
    blocks: (f64, f64, f64),
    tokens: (f64, f64, f64),
    concurrency: (f64, f64, f64),
    length: (f64, f64, f64),
}

fn pool(case: &Case, settings: &Settings, memory: (u64, u64, u64)) -> Result<Option<Pool>> {
    let mut layouts = Vec::with_capacity(3);
    for bytes in [memory.0, memory.1, memory.2] {
        let Some(layout) = layout(case, settings, bytes)?.and_then(|outcome| outcome.layout) else {
            return Ok(None);
        };
        layouts.push(layout);
    }
    let old = case.boot.v0
        || (settings.version.major, settings.version.minor) < CONCURRENCY_OF_REQUESTS
            && vllm::Rules::of(settings.version).tokens == TokensRule::BlocksOverGroups;
    let of = |read: &dyn Fn(&vllm::Layout) -> f64| {
        let values: Vec<f64> = layouts.iter().map(read).collect();
        (
            values[0],
            values.iter().copied().fold(f64::INFINITY, f64::min),
            values.iter().copied().fold(0.0, f64::max),
        )
    };
    Ok(Some(Pool {
        blocks: of(&|l| l.num_blocks as f64),
        tokens: of(&|l| l.capacity_tokens.unwrap_or(0) as f64),
        concurrency: of(&|l| {
            if old {
                l.num_blocks as f64 * l.block_size as f64 / l.max_model_len.max(1) as f64
            } else {
                l.max_concurrency.unwrap_or(0.0)
            }
        }),
        length: of(&|l| l.max_model_len as f64),
    }))
}

fn push_pool(
    boot: &Boot,
    rows: &mut Vec<Row>,
    names: [&'static str; 3],
    basis: Basis,
    pool: &Pool,
    gpu_bytes: u64,
) {
    let mut add = |name, unit, predicted, actual: Option<(f64, f64, f64)>| {
        if actual.is_some() {
            rows.push(Row::new(name, unit, basis, Some(predicted), actual, gpu_bytes));
        }
    };
    add(names[0], Unit::Blocks, pool.blocks, boot.num_blocks.map(exactly));
    add(names[1], Unit::Tokens, pool.tokens, boot.tokens.map(exactly));
    add(
        names[2],
        Unit::Requests,
        pool.concurrency,
        boot.concurrency.map(|(x, _)| two_decimals(x)),
    );
}
