//! Yes, no, or unless: the load against the pool, and how sure that is.

use super::evaluation::Evaluation;
use super::ledger::Signed;
use super::policy::{self, OomRisk};
use super::request::{Engine, Request};
use crate::Result;
use crate::units::{grouped, human_bytes};

/// From this probability on a verdict is said without reservation.
const SURE: f64 = 0.95;
/// Below this one the load counts as likely to run out of memory.
const EVEN: f64 = 0.5;
/// From this one on the risk counts as low.
const SAFE: f64 = 0.9;

/// One load against a pool.
pub(super) struct Fit {
    pub(super) context: u64,
    pub(super) concurrency: u64,
    pub(super) kv_bytes: u64,
    pub(super) headroom: Signed,
    pub(super) fits: bool,
    /// Probability that the memory suffices; 0 where it is not memory that stands against it.
    pub(super) probability: f64,
    pub(super) max_concurrency: u64,
    pub(super) max_context: u64,
}

/// A load of `concurrency` requests of `context` tokens; `None` without a pool.
pub(super) fn fit(
    request: &Request,
    evaluation: &Evaluation,
    context: u64,
    concurrency: u64,
) -> Result<Option<Fit>> {
    let Some(pool) = &evaluation.pool else {
        return Ok(None);
    };
    let kv_bytes = pool.load_bytes(context, concurrency)?;
    let headroom = Signed(evaluation.left(evaluation.spread.bytes(), kv_bytes));
    let units = pool.load_units(context, concurrency)?;
    // Blocks are whole, and one is never handed out; the engine does not start without room for its longest request.
    let whole = if matches!(request.engine, Engine::Generic(_)) {
        kv_bytes
    } else {
        kv_bytes.saturating_add(pool.unit_bytes)
    };
    let needed = whole
        .saturating_add(request.policy.headroom_bytes)
        .max(evaluation.start_bytes);
    let memory_alone = evaluation.refused.is_none() || evaluation.refused_for_memory;
    // A pool of a given number of blocks does not grow with the memory.
    let given_units = evaluation.pool_given && units > pool.usable_units;
    let possible = memory_alone && context <= pool.max_context && !given_units;
    Ok(Some(Fit {
        context,
        concurrency,
        kv_bytes,
        headroom,
        fits: evaluation.refused.is_none()
            && evaluation.deficit() == 0
            && context <= pool.max_context
            && units <= pool.usable_units
            && headroom.0 >= i128::from(request.policy.headroom_bytes),
        probability: if possible {
            evaluation.probability_of(needed)
        } else {
            0.0
        },
        max_concurrency: pool.max_concurrency(context)?,
        max_context: pool.max_context(concurrency)?,
    }))
}

/// The answer to all loads together.
pub(super) struct Verdict {
    pub(super) fits: bool,
    /// Probability that all loads fit, two decimals; `None` where nothing was estimated.
    pub(super) probability: Option<f64>,
    pub(super) risk: OomRisk,
    pub(super) sentence: String,
}

impl Verdict {
    pub(super) fn of(request: &Request, evaluation: &Evaluation, fits: &[Fit], headroom: Signed) -> Self {
        let yes = if fits.is_empty() {
            evaluation.refused.is_none() && headroom.0 >= i128::from(request.policy.headroom_bytes)
        } else {
            fits.iter().all(|f| f.fits)
        };
        let probability = (!evaluation.spread.is_exact() && evaluation.pool.is_some()).then(|| {
            let least = fits.iter().map(|f| f.probability).fold(1.0, f64::min);
            (least * 100.0).round() / 100.0
        });
        let worst = evaluation.left(
            evaluation.spread.interval().1,
            fits.first().map_or(0, |f| f.kv_bytes),
        );
        let risk = match (probability, &request.engine) {
            (_, Engine::Generic(_)) | (None, _) => {
                if evaluation.refused.is_some() && headroom.0 < 0 {
                    OomRisk::High
                } else {
                    policy::oom_risk(headroom.0, worst)
                }
            }
            (Some(p), _) if p >= SAFE => OomRisk::Low,
            (Some(p), _) if p >= EVEN => OomRisk::Medium,
            (Some(_), _) => OomRisk::High,
        };
        let mut sentence = sentence(request, evaluation, fits, yes, headroom);
        if let Some(p) = probability.filter(|_| !matches!(request.engine, Engine::Generic(_))) {
            if yes && p < SURE {
                sentence.push_str(&unless(evaluation, fits, p));
            } else if !yes && p > 1.0 - SURE {
                sentence.push_str(&format!(
                    "; the overhead is an estimate, and it may be small enough after all (probability {:.0} %)",
                    p * 100.0
                ));
            }
        }
        Self {
            fits: yes,
            probability,
            risk,
            sentence,
        }
    }
}

/// What would have to be larger than estimated for the load not to fit.
fn unless(evaluation: &Evaluation, fits: &[Fit], p: f64) -> String {
    let need = fits
        .iter()
        .map(|f| f.kv_bytes)
        .max()
        .unwrap_or(0)
        .max(evaluation.start_bytes);
    let room = if evaluation.pool_given {
        evaluation.room_bytes
    } else {
        evaluation.room_bytes - i128::from(need)
    };
    format!(
        ", unless activations and what lies outside PyTorch take more than {} where {} are estimated (probability that it fits: {:.0} %)",
        human_bytes(u64::try_from(room.max(0)).unwrap_or(u64::MAX)),
        human_bytes(evaluation.spread.bytes()),
        p * 100.0
    )
}

fn requests(n: u64) -> String {
    if n == 1 {
        "1 request".to_owned()
    } else {
        format!("{} requests", grouped(n))
    }
}

/// One sentence: yes or no, and by how much.
fn sentence(request: &Request, evaluation: &Evaluation, all: &[Fit], fits: bool, headroom: Signed) -> String {
    if evaluation.deficit() > 0 {
        return format!(
            "does not fit: weights and overhead need {} more than {} of {} allows",
            human_bytes(u64::try_from(evaluation.deficit()).unwrap_or(u64::MAX)),
            human_bytes(evaluation.budget_bytes),
            human_bytes(evaluation.gpu_bytes)
        );
    }
    if let Some(reason) = &evaluation.refused {
        return format!("does not start: {}", reason.trim_end_matches('.'));
    }
    let Some(first) = all.first() else {
        return if fits && evaluation.keeps_nothing() {
            "the weights fit; the model keeps nothing between tokens and has no KV cache".to_owned()
        } else if fits {
            format!(
                "the weights fit: {} are left for the KV cache",
                human_bytes(evaluation.available_bytes)
            )
        } else {
            format!("does not fit: {} are missing", Signed(-headroom.0).human())
        };
    };
    if fits {
        let more = if all.len() > 1 {
            format!("all {} loads fit; the first: ", all.len())
        } else {
            "fits: ".to_owned()
        };
        return format!(
            "{more}{} of {} tokens {} {} of {} KV cache per GPU; up to {} would",
            requests(first.concurrency),
            grouped(first.context),
            if first.concurrency == 1 { "takes" } else { "take" },
            human_bytes(first.kv_bytes),
            human_bytes(evaluation.available_bytes),
            grouped(first.max_concurrency)
        );
    }
    let Some(failing) = all.iter().find(|f| !f.fits) else {
        return "does not fit".to_owned();
    };
    let load = format!(
        "{} of {} tokens",
        requests(failing.concurrency),
        grouped(failing.context)
    );
    if let Some(pool) = &evaluation.pool
        && failing.context > pool.max_context
    {
        return format!(
            "does not fit: a request of {} tokens is longer than the {} the engine accepts",
            grouped(failing.context),
            grouped(pool.max_context)
        );
    }
    if failing.headroom.0 >= 0 {
        return format!(
            "does not fit with the headroom asked for: {load} would leave {} of {}",
            failing.headroom.human(),
            human_bytes(request.policy.headroom_bytes)
        );
    }
    format!(
        "does not fit: {} short for {load}",
        Signed(-failing.headroom.0).human()
    )
}
