//! Single capacities of a curve, and tiers as cuts of it.

use kvwise_core::Result;

use super::{Curve, Semantics, check_capacity, vllm_serial_run};
use crate::trace::BlockPaths;

/// How a point was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Read off the one pass, which is exact here.
    OnePass,
    /// By a run at this capacity, because the one pass is not exact here.
    Run,
}

/// The hits at one capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Usable blocks.
    pub capacity_blocks: u64,
    /// Blocks hit.
    pub hit_blocks: u64,
    /// Tokens hit.
    pub hit_tokens: u64,
    /// Mean over requests of the share of the prompt hit.
    pub hit_rate_mean_of_requests: f64,
    /// Requests that are refused because they are longer than the pool (vLLM).
    pub refused_requests: u64,
    /// How it was computed.
    pub source: Source,
}

impl Curve {
    /// The exact hits at one capacity: from the one pass where it is exact, else by a run.
    ///
    /// `paths` and `input_lens` are those that the curve was made of.
    ///
    /// # Errors
    /// If the capacity is 0.
    pub fn point(&self, paths: &BlockPaths, input_lens: &[u32], capacity_blocks: u64) -> Result<Point> {
        check_capacity(capacity_blocks)?;
        if capacity_blocks >= self.exact_from() || self.semantics == Semantics::PrefixLru {
            return Ok(Point {
                capacity_blocks,
                hit_blocks: self.hit_blocks(capacity_blocks),
                hit_tokens: self.hit_tokens(capacity_blocks),
                hit_rate_mean_of_requests: self.mean_request_hit_rate(capacity_blocks),
                refused_requests: 0,
                source: Source::OnePass,
            });
        }
        let run = vllm_serial_run(paths, input_lens, capacity_blocks);
        Ok(Point {
            capacity_blocks,
            hit_blocks: run.hit_blocks,
            hit_tokens: run.hit_tokens,
            hit_rate_mean_of_requests: run.request_shares / (self.requests.max(1)) as f64,
            refused_requests: run.refused,
            source: Source::Run,
        })
    }
}

/// Hits that one tier of a hierarchy serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierHit {
    /// Blocks of this tier and all faster ones.
    pub cumulative_blocks: u64,
    /// Blocks hit in this tier.
    pub hit_blocks: u64,
    /// Tokens hit in this tier.
    pub hit_tokens: u64,
}

/// The hits of each tier, fastest first, when a block falls to the next tier as it is evicted and rises when it is
/// used: together the tiers then hold the first blocks of one order, so they are cuts of the curve.
pub fn tier_hits(curve: &Curve, tier_blocks: &[u64]) -> Vec<TierHit> {
    let mut cumulative_blocks = 0u64;
    tier_blocks
        .iter()
        .map(|&blocks| {
            let before = cumulative_blocks;
            cumulative_blocks = before.saturating_add(blocks);
            TierHit {
                cumulative_blocks,
                hit_blocks: curve.hit_blocks(cumulative_blocks) - curve.hit_blocks(before),
                hit_tokens: curve.hit_tokens(cumulative_blocks) - curve.hit_tokens(before),
            }
        })
        .collect()
}

/// Capacities from 1 to `last`, evenly spread on a logarithmic scale: 1, 2, 5 and so on where `per_decade` is 3.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::maybe_infinite_iter,
    reason = "between 1 and `last`, which the growing numbers pass"
)]
pub fn log_capacities(last: u64, per_decade: u32) -> Vec<u64> {
    let mut capacities: Vec<u64> = (0..)
        .map(|k| 10f64.powf(f64::from(k) / f64::from(per_decade.max(1))).round() as u64)
        .take_while(|&c| c < last)
        .collect();
    capacities.push(last.max(1));
    capacities.dedup();
    capacities
}
