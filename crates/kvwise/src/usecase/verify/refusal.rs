//! A server that did not start: would the plan have said so, and by the same numbers?

use kvwise_core::Result;
use kvwise_core::plan::Basis;
use kvwise_core::units::human_bytes;
use kvwise_io::log::Refusal;

use super::Case;
use super::terms::{layout, logged_memory};
use crate::report::verify::{RefusalPart, Row, Unit};

/// Compares the refusal of the log with the plan's, and adds the figures of its message to the rows.
///
/// # Errors
/// If a size leaves 64 bits.
pub(super) fn compare(case: &Case, rows: &mut Vec<Row>) -> Result<Option<RefusalPart>> {
    let plan = case.plan;
    let missing = plan.kv_cache.is_none() && plan.memory.headroom_bytes.0 < 0;
    let predicted = plan
        .feasibility
        .refused
        .clone()
        .or_else(|| (missing || super::save::shortfall(plan) > 0.0).then(|| plan.verdict.clone()));
    let Some(actual) = &case.boot.refusal else {
        if predicted.is_none() || !(case.boot.is_up || case.boot.tokens.is_some()) {
            return Ok(None);
        }
        return Ok(Some(RefusalPart {
            actual: None,
            comment: format!(
                "the plan says it would not start ({}), but it did",
                predicted.as_deref().unwrap_or_default()
            ),
            predicted,
            agrees: Some(false),
        }));
    };
    if let Refusal::TooLong {
        needed, estimated, ..
    } = actual
    {
        figures(case, rows, *needed, *estimated)?;
    }
    let (agrees, comment) = match actual {
        Refusal::FreeMemory {
            free,
            total,
            utilization,
            requested,
        } => {
            let others = total.minus(*free).at_least_zero();
            let most = free.bytes as f64 / total.bytes.max(1) as f64;
            (
                None,
                format!(
                    "{} of {} were in use before the engine started, so {} (utilisation {utilization}) were not free; what other processes hold is no part of a plan. --gpu-memory-utilization {:.2} would have started, or freeing {}",
                    human_bytes(others),
                    human_bytes(total.at_least_zero()),
                    human_bytes(requested.at_least_zero()),
                    (most * 100.0).floor() / 100.0,
                    human_bytes(requested.minus(*free).at_least_zero())
                ),
            )
        }
        Refusal::OutOfMemory { tried, others } => (
            predicted.as_ref().map(|_| true),
            format!(
                "the engine ran out of memory while starting{}{}; {}",
                tried
                    .map(|t| format!(", asking for {} more", human_bytes(t.at_least_zero())))
                    .unwrap_or_default(),
                others
                    .map(|o| format!(", while another process held {}", human_bytes(o.at_least_zero())))
                    .unwrap_or_default(),
                match &predicted {
                    Some(why) => format!("the plan says the same: {why}"),
                    None =>
                        "the plan says that it fits, and knows nothing of what happens outside of the budget"
                            .to_owned(),
                }
            ),
        ),
        Refusal::StateBlocks { max_num_seqs, blocks } => (
            case.plan
                .kv_cache
                .as_ref()
                .map(|cache| cache.num_blocks < *max_num_seqs),
            format!(
                "the pool has {blocks} blocks and graphs of recurrent models need one for each of the {max_num_seqs} sequences: --max-num-seqs {blocks}, more memory, or --enforce-eager"
            ),
        ),
        Refusal::NoMemory | Refusal::TooLong { .. } => {
            let possible = refused_at_the_lower_end(case)?;
            match (&predicted, possible) {
                (Some(why), _) => (Some(true), format!("refused, as planned: {why}")),
                (None, true) => (
                    Some(true),
                    "refused, which the plan's interval allows: at its lower end the cache is too small"
                        .to_owned(),
                ),
                (None, false) => (
                    Some(false),
                    "the engine refused to start, but the plan says that it would".to_owned(),
                ),
            }
        }
    };
    Ok(Some(RefusalPart {
        actual: Some(actual.clone()),
        predicted,
        agrees,
        comment,
    }))
}

/// The figures of "To serve at least one request ..." from the memory that the log shows.
fn figures(
    case: &Case,
    rows: &mut Vec<Row>,
    needed: Option<kvwise_io::log::Figure>,
    estimated: Option<u64>,
) -> Result<()> {
    let Some(settings) = case.settings else {
        return Ok(());
    };
    let gpu_bytes = case.plan.memory.gpu_bytes;
    let Some((low, high)) = logged_memory(case.boot) else {
        return Ok(());
    };
    let outcomes = [layout(case, settings, low)?, layout(case, settings, high)?];
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    if let (Some(actual), Some(layout)) = (needed, outcomes.first().and_then(|o| o.layout.as_ref())) {
        let bytes = layout.stages.iter().map(|s| s.needed_bytes).max().unwrap_or(0) as f64;
        let half = actual.step_bytes.div_ceil(2) as f64;
        rows.push(Row::new(
            "kv_bytes_of_a_request",
            Unit::Bytes,
            Basis::Exact,
            Some((bytes, bytes, bytes)),
            Some((
                actual.bytes as f64,
                actual.bytes as f64 - half,
                actual.bytes as f64 + half,
            )),
            gpu_bytes,
        ));
    }
    if let Some(actual) = estimated {
        let lengths: Vec<f64> = outcomes
            .iter()
            .filter_map(|o| o.refused.as_ref()?.estimated_max_model_len)
            .map(|n| n as f64)
            .collect();
        if let (Some(first), Some(last)) = (lengths.first(), lengths.last()) {
            let n = actual as f64;
            rows.push(Row::new(
                "estimated_max_model_len",
                Unit::Tokens,
                Basis::Exact,
                Some((first.midpoint(*last).floor(), *first, *last)),
                Some((n, n, n)),
                gpu_bytes,
            ));
        }
    }
    Ok(())
}

/// Whether the engine would refuse with the least KV memory that the plan allows for.
fn refused_at_the_lower_end(case: &Case) -> Result<bool> {
    let Some(settings) = case.settings else {
        return Ok(false);
    };
    let kv = case
        .plan
        .memory
        .components
        .iter()
        .find(|term| term.name == "kv_cache");
    let Some(kv) = kv else { return Ok(false) };
    Ok(layout(case, settings, kv.low_bytes)?.is_some_and(|outcome| outcome.refused.is_some()))
}
