//! Numbers of drafts that change with the batch.
//!
//! Source: vLLM 0.32.0, `vllm/v1/spec_decode/dynamic/utils.py` and `vllm/v1/core/sched/scheduler.py`: a step that computed
//! something for so many requests is followed by as many drafts for each as the schedule says for that size. Sizes between
//! two ranges and above the last take the drafts of the range before; `num_speculative_tokens` is the most.

use kvwise_core::{Error, Result};

/// Drafts by the number of requests in a batch (`num_speculative_tokens_per_batch_size`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DraftCounts {
    /// First batch size and drafts, by batch size.
    from: Vec<(u32, u32)>,
}

impl DraftCounts {
    /// Of ranges `(first, last, drafts)`, both ends included, in any order. No range: the number never changes.
    ///
    /// # Errors
    /// What vLLM refuses: a range that is empty or begins below 1, overlapping ranges, a first range that does not begin
    /// at 1.
    pub fn new(ranges: &[(u32, u32, u32)]) -> Result<Self> {
        let bad = |what: String| {
            Error::input(format!("num_speculative_tokens_per_batch_size {what}"))
                .hint("write [[1, 16, 3], [17, 128, 1]]: first and last batch size, and the drafts for them")
        };
        let mut ranges = ranges.to_vec();
        ranges.sort_by_key(|&(first, ..)| first);
        let mut end = 0;
        for &(first, last, _) in &ranges {
            if first == 0 || first > last {
                return Err(bad(format!("has a range from {first} to {last}")));
            }
            if first <= end {
                return Err(bad(format!(
                    "has a range that begins at {first} where another ends at {end}"
                )));
            }
            end = last;
        }
        match ranges.first() {
            Some(&(first, ..)) if first != 1 => {
                Err(bad(format!("begins at {first}, but a batch may hold 1 request")))
            }
            _ => Ok(Self {
                from: ranges.iter().map(|&(first, _, drafts)| (first, drafts)).collect(),
            }),
        }
    }

    /// Whether the number of drafts changes at all.
    pub fn is_dynamic(&self) -> bool {
        !self.from.is_empty()
    }

    /// Drafts after a batch of `requests` requests, at most `most`.
    pub fn after(&self, requests: u32, most: u32) -> u32 {
        let ranges = self.from.partition_point(|&(first, _)| first <= requests);
        match ranges.checked_sub(1) {
            Some(at) => self.from[at].1.min(most),
            // Nothing was computed, or nothing is said: all of them.
            None => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_the_tail_take_the_drafts_of_the_range_before() {
        let counts = DraftCounts::new(&[(8, 9, 1), (1, 4, 3), (20, 20, 7)]).unwrap();
        let drafts: Vec<u32> = [1, 4, 5, 7, 8, 10, 19, 20, 500]
            .iter()
            .map(|&n| counts.after(n, 5))
            .collect();
        assert_eq!(drafts, [3, 3, 3, 3, 1, 1, 1, 5, 5]);
        assert!(counts.is_dynamic());
        let fixed = DraftCounts::new(&[]).unwrap();
        assert!(!fixed.is_dynamic());
        assert_eq!(fixed.after(3, 5), 5);
    }

    #[test]
    fn ranges_that_vllm_refuses_are_refused() {
        for (ranges, word) in [
            (&[(2, 4, 1)][..], "begins at 2"),
            (&[(0, 4, 1)], "from 0"),
            (&[(1, 4, 1), (4, 6, 1)], "another ends at 4"),
            (&[(5, 1, 1)], "from 5 to 1"),
        ] {
            let error = DraftCounts::new(ranges).unwrap_err().to_string();
            assert!(error.contains(word), "{ranges:?}: {error}");
        }
    }
}
