//! Which capacities matter: where the curve bends.

use super::Curve;

/// Why a capacity is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KneeKind {
    /// The smallest capacity with this share of all possible hits, in per cent.
    ShareOfIdeal(u32),
    /// A bend: growing to here pays, growing further pays less.
    Bend,
}

/// A capacity worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knee {
    /// Blocks.
    pub capacity_blocks: u64,
    /// Why.
    pub kind: KneeKind,
}

/// Shares of the ideal that are named.
const SHARES: [u32; 5] = [50, 80, 90, 95, 99];
/// At most so many bends.
const MAX_BENDS: usize = 4;
/// A bend stands at least this far above the straight line between its neighbours, as a share of all hits.
const MIN_HEIGHT: f64 = 0.02;

/// The capacities at which shares of the ideal are reached, and up to four bends, by capacity.
///
/// Bends: the point furthest above the straight line from no cache to the full curve, then the same on both sides of
/// it, the highest first, as long as a point stands 2 % of all hits above its line.
pub fn knees(curve: &Curve) -> Vec<Knee> {
    let ideal = curve.ideal_hit_blocks();
    if ideal == 0 {
        return Vec::new();
    }
    let mut found: Vec<Knee> = SHARES
        .iter()
        .filter_map(|&share| {
            let needed = (u128::from(ideal) * u128::from(share)).div_ceil(100);
            let capacity_blocks = curve.capacity_for(u64::try_from(needed).ok()?)?;
            Some(Knee {
                capacity_blocks,
                kind: KneeKind::ShareOfIdeal(share),
            })
        })
        .collect();
    let steps: Vec<u64> = curve.steps().collect();
    let mut intervals = vec![(0, curve.capacity_needed())];
    for _ in 0..MAX_BENDS {
        let highest = intervals
            .iter()
            .enumerate()
            .filter_map(|(k, &(from, to))| {
                highest_point(curve, &steps, from, to).map(|(c, height)| (k, c, height))
            })
            .max_by(|a, b| a.2.total_cmp(&b.2));
        let Some((k, capacity_blocks, _)) = highest.filter(|h| h.2 >= MIN_HEIGHT * ideal as f64) else {
            break;
        };
        let (from, to) = intervals.swap_remove(k);
        intervals.extend([(from, capacity_blocks), (capacity_blocks, to)]);
        found.push(Knee {
            capacity_blocks,
            kind: KneeKind::Bend,
        });
    }
    found.sort_by_key(|knee| knee.capacity_blocks);
    found
}

/// The point furthest above the line between two capacities, and how far, in blocks. The line rises, so that point is one
/// of the `steps`, at which the hits change.
fn highest_point(curve: &Curve, steps: &[u64], from: u64, to: u64) -> Option<(u64, f64)> {
    let (low, high) = (curve.hit_blocks(from) as f64, curve.hit_blocks(to) as f64);
    let slope = (high - low) / (to - from).max(1) as f64;
    let inside = steps.partition_point(|&c| c <= from)..steps.partition_point(|&c| c < to);
    steps[inside]
        .iter()
        .map(|&c| (c, curve.hit_blocks(c) as f64 - low - slope * (c - from) as f64))
        .max_by(|a, b| a.1.total_cmp(&b.1))
}
