//! From bytes to token slots, in the engine's own arithmetic
//! (0.5.23, `srt/mem_cache/kv_cache_configurator.py` and `srt/model_executor/pool_configurator.py`).

use super::settings::{Chunk, Settings};
use super::shape::{Shape, Stage};
use super::speculative::Steps;
use crate::units::gib;
use crate::{Error, Result};

/// Tokens that a window's slots are kept beyond it before they are freed (`SGLANG_SWA_EVICTION_INTERVAL`).
const SWA_EVICTION_INTERVAL: u64 = 128;

/// Default ratio of recurrent states to KV cache.
const MAMBA_FULL_MEMORY_RATIO: f64 = 0.9;

/// Bytes in a GiB, as the engine divides.
const GIB: f64 = 1_073_741_824.0;

/// The memory that is measured at start, in GiB of the tightest rank of a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Static {
    /// Free before the weights are loaded.
    pub before_gib: f64,
    /// Free after.
    pub after_gib: f64,
    /// `mem_fraction_static`.
    pub fraction: f64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Pools {
    /// `max_total_num_tokens`: slots of the full pool, or of the only one.
    pub max_total_num_tokens: u64,
    /// Slots of the sliding-window pool, where there are two.
    pub swa_tokens: Option<u64>,
    /// Slots for recurrent states (`max_mamba_cache_size`), one for padding not counted.
    pub state_slots: Option<u64>,
    /// `max_running_requests` of one attention group.
    pub max_running_requests: u64,
    /// Bytes that the KV pools could take on the tightest stage, states taken off.
    pub kv_bytes: u64,
}

/// Why the engine would not start.
pub type Refusal = String;

/// Makes the pools of all stages; the tightest decides.
///
/// # Errors
/// If a size leaves its range. A start that the engine refuses is the inner `Err`.
pub fn pools(
    shape: &Shape,
    settings: &Settings,
    memory: &[Static],
) -> Result<std::result::Result<Pools, Refusal>> {
    if memory.len() != shape.stages.len() {
        return Err(Error::input(format!(
            "{} stages have {} memory measurements",
            shape.stages.len(),
            memory.len()
        )));
    }
    let mut sized = Vec::new();
    let mut state_slots = None;
    for (stage, measured) in shape.stages.iter().zip(memory) {
        let rest = measured.after_gib
            - measured.before_gib * (1.0 - measured.fraction)
            - shape.multimodal_mib / 1024.0;
        let (rest, slots) = match states(shape, settings, rest) {
            Ok(done) => done,
            Err(refusal) => return Ok(Err(refusal)),
        };
        state_slots = slots;
        if rest <= 0.0 {
            let least = 1.0 - measured.after_gib / measured.before_gib;
            return Ok(Err(format!(
                "the weights leave no memory for the KV cache under mem_fraction_static {}; more than {:.3} is needed",
                measured.fraction,
                (least * 1000.0).ceil() / 1000.0
            )));
        }
        let bytes = whole(rest * GIB)?;
        let pair = match stage_tokens(shape, stage, settings, bytes)? {
            Ok(pair) => pair,
            Err(refusal) => return Ok(Err(refusal)),
        };
        sized.push((bytes, pair));
    }
    Ok(finish(shape, settings, &sized, state_slots))
}

/// The same with the bytes of the KV pools given, all recurrent states outside of them left at none.
///
/// # Errors
/// If a size leaves its range.
pub fn pools_of_bytes(
    shape: &Shape,
    settings: &Settings,
    bytes: u64,
) -> Result<std::result::Result<Pools, Refusal>> {
    let (rest, state_slots) = match states(shape, settings, gib(bytes)) {
        Ok(done) => done,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let left = if shape.states.is_some() {
        whole((rest * GIB).max(0.0))?
    } else {
        bytes
    };
    let mut sized = Vec::new();
    for stage in &shape.stages {
        match stage_tokens(shape, stage, settings, left)? {
            Ok(pair) => sized.push((left, pair)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(finish(shape, settings, &sized, state_slots))
}

/// Tokens of the full (or only) pool, and of the sliding-window pool.
type Tokens = (u64, Option<u64>);

fn finish(
    shape: &Shape,
    settings: &Settings,
    sized: &[(u64, Tokens)],
    state_slots: Option<u64>,
) -> std::result::Result<Pools, Refusal> {
    let page = shape.page_size;
    let tightest = sized
        .iter()
        .min_by_key(|(_, (tokens, _))| *tokens)
        .copied()
        .unwrap_or((0, (0, None)));
    let (mut tokens, mut swa) = tightest.1;
    let profiled = tokens;
    if let Some(cap) = settings.max_total_tokens {
        tokens = tokens.min(cap);
    }
    if tokens != profiled {
        tokens = tokens / page * page;
        swa = match swa {
            None => None,
            Some(_) if request_cap_applies(shape, settings) => Some(
                request_cap(shape, settings)
                    .unwrap_or(0)
                    .min(settings.max_total_tokens.unwrap_or(tokens)),
            ),
            Some(_) => {
                let swa = scaled(tokens, shape.swa_ratio) / page * page;
                check_window(shape, swa)?;
                Some(swa)
            }
        };
    }
    if tokens == 0 {
        return Err(
            "not enough memory for a single page of the KV cache; raise --mem-fraction-static".to_owned(),
        );
    }
    let mut running = match settings.max_running_requests.or(shape.default_running) {
        Some(given) => (given / settings.attention_dp()).max(1),
        None => estimated_requests(tokens, shape.context_len),
    }
    .min(tokens / 2);
    if let (Some(states), Some(slots)) = (shape.states, state_slots) {
        running = running.min(slots / states.slots_per_request);
        if running == 0 {
            return Err(format!(
                "{slots} slots for recurrent states do not serve a single request, which needs {}",
                states.slots_per_request
            ));
        }
    }
    Ok(Pools {
        max_total_num_tokens: tokens,
        swa_tokens: swa,
        state_slots,
        max_running_requests: running,
        kv_bytes: tightest.0,
    })
}

/// `clamp(int(tokens / context * 512), 2048, 4096)`.
fn estimated_requests(tokens: u64, context_len: u64) -> u64 {
    let estimate = tokens as f64 / context_len.max(1) as f64 * 512.0;
    scaled_whole(estimate).clamp(2048, 4096)
}

/// Takes the recurrent states off: GiB left, and slots. Beside a drafter each running request also keeps a state for every
/// token of a verification.
fn states(shape: &Shape, settings: &Settings, rest: f64) -> std::result::Result<(f64, Option<u64>), Refusal> {
    let Some(states) = shape.states else {
        return Ok((rest, None));
    };
    let each = states.bytes_per_slot as f64;
    let running = settings.max_running_requests.or(shape.default_running);
    let running = running.map(|n| (n / settings.attention_dp()).max(1));
    // Verification tokens, and the requests whose states they are kept for.
    let verified = |slots: u64| {
        shape.steps.as_ref().map(|steps| {
            let served = running.unwrap_or(u64::MAX).min(slots / states.slots_per_request);
            (steps.num_draft_tokens, served)
        })
    };
    let (slots, verified) = if let Some(given) = settings.max_mamba_cache_size {
        let slots = given / settings.attention_dp();
        (slots, verified(slots))
    } else if let (true, Some(running)) = (settings.disable_radix_cache, running) {
        (
            running,
            shape
                .steps
                .as_ref()
                .map(|steps| (steps.num_draft_tokens, running)),
        )
    } else {
        let ratio = settings
            .mamba_full_memory_ratio
            .unwrap_or(MAMBA_FULL_MEMORY_RATIO);
        let budget = rest * ratio / (1.0 + ratio) * GIB;
        // One slot is padding.
        let slots = match &shape.steps {
            None => floor_div(budget - each, each),
            Some(steps) => {
                let tokens = steps.num_draft_tokens as f64;
                floor_div(
                    budget - each * (1.0 + tokens),
                    each * (1.0 + tokens / states.slots_per_request as f64),
                )
            }
        };
        if slots <= 0.0 {
            return Err(format!(
                "not enough memory for recurrent states: {rest:.2} GiB are left, one request's states take {:.1} MiB",
                each / 1_048_576.0
            ));
        }
        let slots = scaled_whole(slots);
        (slots, verified(slots))
    };
    let mut rest = rest;
    if let Some((tokens, served)) = verified {
        let kept = u128::from(states.bytes_per_slot) * (u128::from(served) + 1) * u128::from(tokens);
        rest -= kept as f64 / GIB;
    }
    let taken = (slots.saturating_add(1)).saturating_mul(states.bytes_per_slot) as f64 / GIB;
    Ok((rest - taken, Some(slots)))
}

/// Whether the sliding-window pool is sized by the number of requests: only with an explicit limit, chunked prompts and
/// no prefix cache, and only beside a full pool.
fn request_cap_applies(shape: &Shape, settings: &Settings) -> bool {
    shape.two_pools
        && settings.max_running_requests.or(shape.default_running).is_some()
        && settings.disable_radix_cache
        && settings.chunked_prefill_size != Some(Chunk::Whole)
        && shape.stages.iter().all(|s| s.compressed.is_none())
        && shape.stages.iter().any(|s| s.full_layers > 0)
}

/// Slots of the sliding-window pool that so many requests hold at most (`compute_swa_request_cap`), whole pages.
fn request_cap(shape: &Shape, settings: &Settings) -> Option<u64> {
    let page = shape.page_size;
    let window = shape.window?;
    let chunk = shape.chunk_tokens?;
    let (drafts, ahead) = match &shape.steps {
        None => (1, page),
        Some(steps) => (steps.num_draft_tokens, ahead(steps, page, settings.in_order())?),
    };
    let each = window
        .checked_add(SWA_EVICTION_INTERVAL.checked_mul(drafts)?)?
        .checked_add(page)?
        .checked_add(ahead)?;
    let running = settings.max_running_requests.or(shape.default_running)?;
    let requests = (running / settings.attention_dp()).max(1);
    let chunks = if settings.in_order() { 1 } else { 2 };
    each.checked_mul(requests)?
        .checked_add(chunk.checked_mul(chunks)?)?
        .checked_add(page)?
        .checked_next_multiple_of(page)
}

/// Slots that one request's next step may take beside a drafter (`spec_decode_alloc_len_per_request` where steps do not
/// overlap, else twice `get_alloc_len_per_decode`).
fn ahead(steps: &Steps, page: u64, in_order: bool) -> Option<u64> {
    let Steps {
        num_steps,
        eagle_topk,
        num_draft_tokens,
    } = *steps;
    if in_order {
        let whole = |n: u64| n.checked_next_multiple_of(page);
        let branch = if eagle_topk > 1 && page > 1 {
            whole(num_steps.checked_add(page)?)?
        } else {
            whole(num_steps)?
        };
        return Some(branch.checked_mul(eagle_topk)?.max(whole(num_draft_tokens)?));
    }
    let branch = if page == 1 || eagle_topk == 1 {
        num_steps
    } else {
        (num_steps.checked_add(2 * (page - 1))? / page).checked_mul(page)?
    };
    branch
        .checked_mul(eagle_topk)?
        .max(num_draft_tokens)
        .checked_mul(2)
}

fn check_window(shape: &Shape, swa: u64) -> std::result::Result<(), Refusal> {
    match shape.window {
        Some(window) if window.saturating_add(shape.page_size) >= swa => Err(format!(
            "the sliding-window pool of {swa} tokens cannot hold one request (window {window} + page {}); raise \
             --swa-full-tokens-ratio or --mem-fraction-static",
            shape.page_size
        )),
        _ => Ok(()),
    }
}

fn stage_tokens(
    shape: &Shape,
    stage: &Stage,
    settings: &Settings,
    bytes: u64,
) -> Result<std::result::Result<Tokens, Refusal>> {
    let page = shape.page_size;
    let down = |n: u64| n / page * page;
    let sum = |a: u64, b: u64| {
        a.checked_add(b)
            .ok_or_else(|| Error::overflow("the KV cache of one token"))
    };
    let full_bytes = sum(stage.full_bytes, stage.draft_full_bytes)?;
    let swa_bytes = sum(stage.swa_bytes, stage.draft_swa_bytes)?;
    if let Some(layers) = &stage.compressed {
        let running = settings
            .max_running_requests
            .or(shape.default_running)
            .unwrap_or(1);
        let running = (running / settings.attention_dp()).max(1);
        return Ok(layers
            .tokens(bytes, running, shape.swa_ratio, shape.steps.is_some())?
            .and_then(|(full, swa)| check_window(shape, swa).map(|()| (full, Some(swa)))));
    }
    if !shape.two_pools {
        // A stage without attention layers has room for as many tokens as anyone asks for.
        let tokens = match bytes.checked_div(full_bytes) {
            Some(tokens) => tokens,
            None => settings.max_total_tokens.unwrap_or(shape.context_len),
        };
        return Ok(Ok((down(tokens), None)));
    }
    if stage.full_layers == 0 {
        let tokens = bytes
            .checked_div(sum(swa_bytes, stage.draft_full_bytes)?)
            .unwrap_or(0);
        return Ok(Ok((down(tokens), Some(down(tokens)))));
    }
    if request_cap_applies(shape, settings) {
        let swa = request_cap(shape, settings).ok_or_else(|| Error::overflow("the sliding-window pool"))?;
        let fixed = swa
            .checked_mul(swa_bytes)
            .ok_or_else(|| Error::overflow("the sliding-window pool"))?;
        let full = down(bytes.saturating_sub(fixed) / full_bytes.max(1));
        if full == 0 {
            return Ok(Err(format!(
                "the sliding-window pool for {} requests leaves no room for the full pool; lower --max-running-requests",
                settings
                    .max_running_requests
                    .or(shape.default_running)
                    .unwrap_or(0)
            )));
        }
        return Ok(Ok((full, Some(swa))));
    }
    let ratio = shape.swa_ratio;
    let cell = full_bytes as f64 + ratio * swa_bytes as f64;
    let full = down(scaled_whole(floor_div(bytes as f64, cell)));
    let swa = down(scaled(full, ratio));
    Ok(check_window(shape, swa).map(|()| (full, Some(swa))))
}

/// `int(n * ratio)`.
fn scaled(n: u64, ratio: f64) -> u64 {
    scaled_whole(n as f64 * ratio)
}

/// `int(x)` of a non-negative float; saturates.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating, and negative values are zero tokens"
)]
fn scaled_whole(x: f64) -> u64 {
    x as u64
}

/// `int(x)` of a byte count.
fn whole(x: f64) -> Result<u64> {
    if (0.0..9_007_199_254_740_992.0).contains(&x) {
        Ok(scaled_whole(x))
    } else {
        Err(Error::overflow("the memory for the KV cache"))
    }
}

/// Python's `a // b` for floats: exact remainder first, then the quotient rounded to the nearest whole.
fn floor_div(a: f64, b: f64) -> f64 {
    if b == 0.0 {
        return 0.0;
    }
    let remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder != 0.0 && (b < 0.0) != (remainder < 0.0) {
        quotient -= 1.0;
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 {
        floor + 1.0
    } else {
        floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_division_is_pythons() {
        // The values that CPython 3.11 gives.
        for (a, b, q) in [
            (7.0, 2.0, 3.0),
            (-7.0, 2.0, -4.0),
            (1.0, 0.1, 9.0),
            (0.3, 0.1, 2.0),
            (6.0, 0.1, 59.0),
            (53_687_091_200.0, 98_304.8, 546_128.0),
        ] {
            assert!((floor_div(a, b) - q).abs() < f64::EPSILON, "{a} // {b}");
        }
    }

    #[test]
    fn requests_follow_the_context_between_two_and_four_thousand() {
        assert_eq!(estimated_requests(100_000, 131_072), 2048);
        assert_eq!(estimated_requests(384_960, 40_960), 4096);
        assert_eq!(estimated_requests(666_624, 131_072), 2604);
    }
}
