//! Cumulative histograms as servers publish them, and quantiles of what happened between two scrapes.

/// A cumulative histogram: `buckets[i]` counts the observations at most `bounds[i]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// `(upper bound, cumulative count)`, ascending; the last bound is infinite when the server sent `+Inf`.
    pub buckets: Vec<(f64, f64)>,
    /// Sum of all observations.
    pub sum: f64,
    /// Number of observations.
    pub count: f64,
}

impl Histogram {
    /// Sorts buckets and makes them cumulative where a page was torn: a count never falls with the bound.
    pub fn normalise(&mut self) {
        self.buckets
            .retain(|(bound, count)| !bound.is_nan() && count.is_finite());
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.buckets.dedup_by(|a, b| a.0.total_cmp(&b.0).is_eq());
        let mut highest = 0.0_f64;
        for (_, count) in &mut self.buckets {
            highest = highest.max(*count);
            *count = highest;
        }
        if !self.count.is_finite() {
            self.count = highest;
        }
    }

    /// What was observed between `earlier` and `self`; `None` if a count fell (a restart) or the bounds changed.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if self.buckets.len() != earlier.buckets.len() || self.count < earlier.count {
            return None;
        }
        let mut buckets = Vec::with_capacity(self.buckets.len());
        for (now, before) in self.buckets.iter().zip(&earlier.buckets) {
            if now.0.total_cmp(&before.0).is_ne() || now.1 < before.1 {
                return None;
            }
            buckets.push((now.0, now.1 - before.1));
        }
        Some(Self {
            buckets,
            sum: self.sum - earlier.sum,
            count: self.count - earlier.count,
        })
    }

    /// Adds another histogram with the same bounds; `false` (and nothing changed) if they differ.
    pub fn add(&mut self, other: &Self) -> bool {
        if self.buckets.is_empty() && self.count == 0.0 {
            *self = other.clone();
            return true;
        }
        let same = self.buckets.len() == other.buckets.len()
            && self
                .buckets
                .iter()
                .zip(&other.buckets)
                .all(|(a, b)| a.0.total_cmp(&b.0).is_eq());
        if !same {
            return false;
        }
        for (a, b) in self.buckets.iter_mut().zip(&other.buckets) {
            a.1 += b.1;
        }
        self.sum += other.sum;
        self.count += other.count;
        true
    }

    /// Mean of the observations.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// The bucket that holds quantile `q`: lower and upper bound. This is all that the server tells.
    pub fn quantile_bounds(&self, q: f64) -> Option<(f64, f64)> {
        let total = self.buckets.last()?.1;
        if total <= 0.0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * total;
        let mut lower = 0.0;
        for &(bound, count) in &self.buckets {
            if count >= rank && count > 0.0 {
                return Some((lower, bound));
            }
            lower = bound;
        }
        None
    }

    /// Quantile `q` with linear interpolation inside the bucket, as Prometheus' `histogram_quantile` computes it:
    /// in the infinite bucket the answer is the highest finite bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (lower, upper) = self.quantile_bounds(q)?;
        if upper.is_infinite() {
            return Some(lower);
        }
        let total = self.buckets.last()?.1;
        let rank = q.clamp(0.0, 1.0) * total;
        let below = self
            .buckets
            .iter()
            .take_while(|(bound, _)| *bound < upper)
            .last()
            .map_or(0.0, |b| b.1);
        let here = self
            .buckets
            .iter()
            .find(|(bound, _)| bound.total_cmp(&upper).is_eq())?
            .1
            - below;
        if here <= 0.0 {
            return Some(upper);
        }
        Some(lower + (upper - lower) * ((rank - below) / here).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h(buckets: &[(f64, f64)]) -> Histogram {
        Histogram {
            buckets: buckets.to_vec(),
            sum: 10.0,
            count: buckets.last().map_or(0.0, |b| b.1),
        }
    }

    #[test]
    fn quantiles_interpolate_inside_the_bucket_and_stop_at_the_last_finite_bound() {
        let x = h(&[(1.0, 10.0), (2.0, 30.0), (f64::INFINITY, 40.0)]);
        assert_eq!(x.quantile(0.5), Some(1.5));
        assert_eq!(x.quantile(0.25), Some(1.0));
        assert_eq!(x.quantile(0.99), Some(2.0));
        assert_eq!(x.quantile_bounds(0.5), Some((1.0, 2.0)));
        assert_eq!(h(&[(1.0, 0.0)]).quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_restart_is_no_difference() {
        let before = h(&[(1.0, 10.0), (f64::INFINITY, 12.0)]);
        let after = h(&[(1.0, 2.0), (f64::INFINITY, 2.0)]);
        assert_eq!(after.since(&before), None);
        let grown = h(&[(1.0, 11.0), (f64::INFINITY, 15.0)]);
        let delta = grown.since(&before).expect("grown");
        assert_eq!(delta.buckets, [(1.0, 1.0), (f64::INFINITY, 3.0)]);
        assert_eq!(grown.since(&h(&[(2.0, 10.0), (f64::INFINITY, 12.0)])), None);
    }

    #[test]
    fn torn_pages_become_monotone() {
        let mut x = h(&[(2.0, 3.0), (1.0, 5.0), (f64::NAN, 1.0), (f64::INFINITY, 4.0)]);
        x.normalise();
        assert_eq!(x.buckets, [(1.0, 5.0), (2.0, 5.0), (f64::INFINITY, 5.0)]);
    }
}
