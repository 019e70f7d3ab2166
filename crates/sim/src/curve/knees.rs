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
    let bends: Vec<(u64, u64)> = curve.bends().collect();
    let end = (curve.capacity_needed(), ideal);
    let mut highest: Vec<Bend> = highest_point(&bends, (0, 0), end).into_iter().collect();
    for _ in 0..MAX_BENDS {
        let tallest = (0..highest.len()).max_by(|&a, &b| highest[a].height.total_cmp(&highest[b].height));
        let Some(k) = tallest.filter(|&k| highest[k].height >= MIN_HEIGHT * ideal as f64) else {
            break;
        };
        let Bend { from, at, to, .. } = highest.swap_remove(k);
        highest.extend(highest_point(&bends, from, at));
        highest.extend(highest_point(&bends, at, to));
        found.push(Knee {
            capacity_blocks: at.0,
            kind: KneeKind::Bend,
        });
    }
    found.sort_by_key(|knee| knee.capacity_blocks);
    found
}

/// The point of a stretch of the curve that stands furthest above the straight line between its ends; points are
/// (capacity, blocks hit).
struct Bend {
    from: (u64, u64),
    at: (u64, u64),
    to: (u64, u64),
    /// How far, in blocks hit.
    height: f64,
}

/// The highest bend between two points; the curve is straight between bends, so no other point is higher.
fn highest_point(bends: &[(u64, u64)], from: (u64, u64), to: (u64, u64)) -> Option<Bend> {
    let slope = (to.1 as f64 - from.1 as f64) / (to.0 - from.0).max(1) as f64;
    let inside = bends.partition_point(|b| b.0 <= from.0)..bends.partition_point(|b| b.0 < to.0);
    bends
        .get(inside)?
        .iter()
        .map(|&at| {
            let line = from.1 as f64 + slope * (at.0 - from.0) as f64;
            Bend {
                from,
                at,
                to,
                height: at.1 as f64 - line,
            }
        })
        .max_by(|a, b| a.height.total_cmp(&b.height))
}
