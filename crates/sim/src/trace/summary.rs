//! Figures that describe a trace.

use super::{Content, Trace};

/// A distribution by its quantiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distribution {
    /// The smallest value.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The median (a value that occurs).
    pub p50: f64,
    /// Nine tenths are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest value.
    pub max: f64,
}

impl Distribution {
    /// The distribution of `values`; `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        // nearest rank: the smallest value that at least q per cent do not exceed
        let at = |q: usize| values[(values.len() * q).div_ceil(100).saturating_sub(1)];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self {
            min,
            mean,
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max,
        })
    }
}

/// A distribution of counts in bins of powers of two: `counts[k]` values lie in `2^k ..= 2^(k + 1) - 1` (0 counts
/// with 1).
pub fn log2_bins(values: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut counts = Vec::new();
    for value in values {
        let bin = value.max(1).ilog2() as usize;
        if counts.len() <= bin {
            counts.resize(bin + 1, 0);
        }
        counts[bin] += 1;
    }
    counts
}

/// What a trace is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Prompt tokens of all requests.
    pub input_tokens: u64,
    /// Generated tokens of all requests.
    pub output_tokens: u64,
    /// Prompt lengths.
    pub input_len: Distribution,
    /// Output lengths.
    pub output_len: Distribution,
    /// Seconds from the first to the last arrival, if there are times.
    pub span_s: Option<f64>,
    /// Seconds between arrivals (at least two requests).
    pub gap_s: Option<Distribution>,
    /// Standard deviation of the gaps over their mean: 1 for a Poisson process, more for bursts.
    pub gap_cv: Option<f64>,
    /// Requests by conversation, if known.
    pub requests_per_session: Option<Distribution>,
    /// Conversations, if known.
    pub sessions: Option<u64>,
    /// `tokens`, `blocks` or `none`.
    pub content: &'static str,
}

impl Summary {
    /// Describes `trace`; `None` if it is empty.
    pub fn of(trace: &Trace) -> Option<Self> {
        let lengths = |lens: &[u32]| Distribution::of(lens.iter().map(|&l| f64::from(l)).collect());
        let total = |lens: &[u32]| lens.iter().map(|&l| u64::from(l)).sum();
        let order = trace.arrival_order();
        let times: Vec<f64> = order
            .iter()
            .flatten()
            .filter_map(|&i| trace.arrival(i as usize))
            .collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let gap_s = Distribution::of(gaps.clone());
        let gap_cv = gap_s.filter(|d| d.mean > 0.0).map(|d| {
            let variance = gaps.iter().map(|g| (g - d.mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            variance.sqrt() / d.mean
        });
        let mut per_session: Vec<f64> = Vec::new();
        for index in 0..trace.len() {
            if let Some(session) = trace.session(index) {
                let session = session as usize;
                if per_session.len() <= session {
                    per_session.resize(session + 1, 0.0);
                }
                per_session[session] += 1.0;
            }
        }
        per_session.retain(|&n| n > 0.0);
        Some(Self {
            input_tokens: total(trace.input_lens()),
            output_tokens: total(trace.output_lens()),
            input_len: lengths(trace.input_lens())?,
            output_len: lengths(trace.output_lens())?,
            span_s: times.first().zip(times.last()).map(|(first, last)| last - first),
            gap_s,
            gap_cv,
            sessions: (!per_session.is_empty()).then_some(per_session.len() as u64),
            requests_per_session: Distribution::of(per_session),
            content: match trace.content() {
                Content::None => "none",
                Content::Tokens(_) => "tokens",
                Content::Blocks(_) => "blocks",
            },
        })
    }
}

/// Requests in service at once, mean and peak, if each takes `first_token_s` and `per_token_s` for every generated
/// token and none waits; `None` without times.
pub fn concurrency(trace: &Trace, first_token_s: f64, per_token_s: f64) -> Option<(f64, u64)> {
    let order = trace.arrival_order()?;
    let mut events: Vec<(f64, i64)> = Vec::with_capacity(order.len() * 2);
    let mut busy = 0.0;
    for &index in &order {
        let start = trace.arrival(index as usize)?;
        let service = first_token_s + per_token_s * f64::from(trace.output_len(index as usize));
        busy += service;
        events.extend([(start, 1), (start + service, -1)]);
    }
    // at equal times those who leave go first
    events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut peak) = (0i64, 0i64);
    for &(_, step) in &events {
        now += step;
        peak = peak.max(now);
    }
    let span = events.last()?.0 - events.first()?.0;
    let mean = if span > 0.0 { busy / span } else { peak as f64 };
    Some((mean, u64::try_from(peak).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{IdMeaning, NewRequest, TraceBuilder};

    fn trace(rows: &[(f64, u64, u64)]) -> Trace {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
        for &(at, input, output) in rows {
            builder
                .push(&NewRequest {
                    arrival: Some(at),
                    input_len: Some(input),
                    output_len: Some(output),
                    ..NewRequest::default()
                })
                .unwrap();
        }
        builder.finish()
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let d = Distribution::of((1..=200).map(f64::from).collect()).unwrap();
        assert_eq!(
            (d.min, d.mean, d.p50, d.p90, d.p99, d.max),
            (1.0, 100.5, 100.0, 180.0, 198.0, 200.0)
        );
        assert_eq!(Distribution::of(Vec::new()), None);
    }

    #[test]
    fn evenly_spaced_arrivals_have_no_variation() {
        let summary = Summary::of(&trace(&[(0.0, 10, 1), (2.0, 20, 2), (4.0, 30, 3)])).unwrap();
        assert_eq!(
            (summary.input_tokens, summary.output_tokens, summary.span_s),
            (60, 6, Some(4.0))
        );
        assert_eq!((summary.gap_cv, summary.gap_s.unwrap().mean), (Some(0.0), 2.0));
        assert_eq!((summary.sessions, summary.content), (None, "none"));
    }

    #[test]
    fn concurrency_counts_overlapping_requests() {
        // services of 1 s each: [0, 1], [0.5, 1.5], [1.5, 2.5]
        let trace = trace(&[(0.0, 1, 10), (0.5, 1, 10), (1.5, 1, 10)]);
        let (mean, peak) = concurrency(&trace, 0.0, 0.1).unwrap();
        assert_eq!(peak, 2);
        assert!((mean - 3.0 / 2.5).abs() < 1e-12, "{mean}");
    }

    #[test]
    fn bins_are_powers_of_two() {
        assert_eq!(
            log2_bins([0, 1, 2, 3, 4, 1000].into_iter()),
            [2, 2, 1, 0, 0, 0, 0, 0, 0, 1]
        );
    }
}
