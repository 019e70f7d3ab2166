//! How large a trace is, in the quantities that memory depends on.
//!
//! A [`TraceSize`] is what reading and computing cost in memory as a function of a few counts, so that the same rules serve
//! a trace that is there, one that is being read, and one that only a sample is known of. Each structure that grows with
//! the trace says beside itself how many bytes it takes: [`TraceSize::held_bytes`] the trace,
//! [`crate::curve::working_bytes`] the hit-rate curve, [`crate::tree::working_bytes`] the prefix tree,
//! [`crate::replay::vllm::working_bytes`] and [`crate::sched::sglang::working_bytes`] the replays.

use super::{Content, Run, Span, Trace, TraceBuilder};

/// Counts of a trace. All are sums over its requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceSize {
    /// Requests.
    pub requests: u64,
    /// Bytes of all columns but the prompts: lengths, times, ids, given outputs.
    pub column_bytes: u64,
    /// Prompt tokens, whether their ids are known or not.
    pub input_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
    /// Prompt token ids that are kept; 0 unless the prompts are tokens.
    pub token_ids: u64,
    /// Tokens of a block of the counts below; 0 where nothing is known of prompts.
    pub block_tokens: u32,
    /// Blocks of all prompts.
    pub block_accesses: u64,
    /// Distinct blocks.
    pub distinct_blocks: u64,
    /// Runs of the prompts' paths ([`Run`]).
    pub runs: u64,
    /// Whether prompts are kept as blocks (else as tokens, or not at all).
    pub has_block_ids: bool,
    /// Whether salts, extra keys or adapters keep prefixes apart.
    pub isolated: bool,
}

/// Bytes of one `T`.
pub(crate) const fn size_of_u64<T>() -> u64 {
    std::mem::size_of::<T>() as u64
}

/// Bytes of a hash table of `entries` entries of `entry_bytes` bytes, as `hashbrown` makes it: a power of two of buckets,
/// at most seven eighths full, and a byte beside each.
pub fn table_bytes(entries: u64, entry_bytes: u64) -> u64 {
    if entries == 0 {
        return 0;
    }
    let buckets = (entries.saturating_mul(8) / 7 + 1)
        .checked_next_power_of_two()
        .unwrap_or(u64::MAX);
    buckets.saturating_mul(entry_bytes + 1)
}

impl TraceSize {
    /// Bytes that the trace holds in memory once it is read.
    pub fn held_bytes(&self) -> u64 {
        let content = if self.has_block_ids {
            self.path_bytes()
        } else if self.token_ids > 0 {
            4 * self.token_ids + size_of_u64::<Span>() * self.requests
        } else {
            0
        };
        self.column_bytes.saturating_add(content)
    }

    /// Bytes of the prompts as paths in a prefix tree: parent and id of each distinct block, runs, a span a request.
    pub fn path_bytes(&self) -> u64 {
        (4 + 8) * self.distinct_blocks
            + size_of_u64::<Run>() * self.runs
            + size_of_u64::<Span>() * self.requests
    }

    /// Bytes that making paths takes where the trace does not keep them: 0 for block ids without salts or adapters
    /// ([`Trace::to_blocks`] borrows those), else the paths, and for tokens the table that tells their blocks apart.
    pub fn to_blocks_bytes(&self) -> u64 {
        if self.has_block_ids {
            return if self.isolated { self.path_bytes() } else { 0 };
        }
        if self.token_ids == 0 {
            return 0;
        }
        // the table's entry: scope and slice of tokens, and the number they got
        self.path_bytes() + table_bytes(self.distinct_blocks, size_of_u64::<((u32, &[u32]), u64)>())
    }

    /// The size of a part, or a multiple, of a trace that is alike throughout; distinct blocks grow by the power
    /// `growth` (1: each part has blocks of its own, 0: all parts have the same).
    #[must_use]
    pub fn scaled(&self, factor: f64, growth: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast saturates, counts are positive"
        )]
        let times = |count: u64, factor: f64| (count as f64 * factor).round() as u64;
        let all = |count: u64| times(count, factor);
        Self {
            requests: all(self.requests),
            column_bytes: all(self.column_bytes),
            input_tokens: all(self.input_tokens),
            output_tokens: all(self.output_tokens),
            token_ids: all(self.token_ids),
            block_accesses: all(self.block_accesses),
            distinct_blocks: times(self.distinct_blocks, factor.powf(growth)).min(all(self.block_accesses)),
            runs: all(self.runs),
            ..*self
        }
    }

    /// The counts of two parts together that share no block.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            column_bytes: self.column_bytes + other.column_bytes,
            input_tokens: self.input_tokens + other.input_tokens,
            output_tokens: self.output_tokens + other.output_tokens,
            token_ids: self.token_ids + other.token_ids,
            block_tokens: self.block_tokens.max(other.block_tokens),
            block_accesses: self.block_accesses + other.block_accesses,
            distinct_blocks: self.distinct_blocks + other.distinct_blocks,
            runs: self.runs + other.runs,
            has_block_ids: self.has_block_ids || other.has_block_ids,
            isolated: self.isolated || other.isolated,
        }
    }
}

impl Trace {
    /// The trace's counts. Those of blocks are 0 for tokens: they depend on the block.
    pub fn size(&self) -> TraceSize {
        let total = |lens: &[u32]| lens.iter().map(|&len| u64::from(len)).sum();
        let mut size = self.columns_size();
        size.input_tokens = total(&self.input_lens);
        size.output_tokens = total(&self.output_lens);
        if let Content::Blocks(paths) = &self.content {
            size.block_accesses = paths.block_accesses();
        }
        size
    }

    /// As [`Trace::size`] without the sums over requests: takes no time.
    pub(super) fn columns_size(&self) -> TraceSize {
        let lengths = |count: usize, bytes: u64| count as u64 * bytes;
        let column_bytes = lengths(self.input_lens.len() + self.output_lens.len(), 4)
            + lengths(self.arrivals.len() + self.priorities.len(), 8)
            + lengths(self.sessions.len(), 4)
            + lengths(
                self.cache_salts.numbers.len() + self.extra_keys.numbers.len() + self.loras.numbers.len(),
                4,
            )
            + lengths(self.outputs.tokens.len(), 4)
            + lengths(self.outputs.spans.len(), size_of_u64::<Span>() + 1)
            + self.ids.memory_bytes();
        let mut size = TraceSize {
            requests: self.len() as u64,
            column_bytes,
            isolated: self.has_isolation_keys(),
            ..TraceSize::default()
        };
        match &self.content {
            Content::None => {}
            Content::Tokens(pool) => size.token_ids = pool.tokens.len() as u64,
            Content::Blocks(paths) => {
                size.has_block_ids = true;
                size.block_tokens = paths.block_tokens;
                size.distinct_blocks = paths.parents.len() as u64;
                size.runs = paths.runs.len() as u64;
            }
        }
        size
    }
}

impl TraceBuilder {
    /// The counts so far, without those that need a sum over all requests (tokens of requests, block accesses).
    pub fn size(&self) -> TraceSize {
        TraceSize {
            distinct_blocks: self.distinct_blocks(),
            ..self.trace.columns_size()
        }
    }

    /// Bytes held so far while reading: the trace, and the table that finds the blocks seen.
    pub fn reading_bytes(&self) -> u64 {
        self.size().held_bytes() + self.table_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{IdMeaning, NewRequest, PromptIds};

    fn blocks(requests: u64) -> Trace {
        let mut builder = TraceBuilder::new("t", 16, IdMeaning::Prefix);
        for request in 0..requests {
            let ids = [0, 2 * request + 1, 2 * request + 2];
            let new = NewRequest {
                arrival: Some(0.0),
                prompt: PromptIds::Blocks(&ids),
                output_len: Some(3),
                id_json: Some("7"),
                ..NewRequest::default()
            };
            builder.push(&new).unwrap();
        }
        assert_eq!(builder.size().distinct_blocks, 2 * requests + 1);
        assert!(builder.reading_bytes() > builder.size().held_bytes());
        builder.finish()
    }

    #[test]
    fn a_trace_counts_what_it_holds() {
        let size = blocks(100).size();
        let expected = TraceSize {
            requests: 100,
            // two lengths, a time, an id of one byte and where it ends
            column_bytes: 100 * (4 + 4 + 8 + 1 + 8),
            input_tokens: 100 * 48,
            output_tokens: 300,
            block_tokens: 16,
            block_accesses: 300,
            distinct_blocks: 201,
            runs: 199, // the first request is one run
            has_block_ids: true,
            ..TraceSize::default()
        };
        assert_eq!(size, expected);
        assert_eq!(size.held_bytes(), 2500 + 201 * 12 + 199 * 8 + 100 * 16);
        assert_eq!(size.to_blocks_bytes(), 0);
    }

    #[test]
    fn a_trace_that_is_alike_throughout_is_scaled_from_its_part() {
        let (part, whole) = (blocks(100).size(), blocks(1000).size());
        let scaled = part.scaled(10.0, 1.0);
        assert_eq!((scaled.requests, scaled.block_accesses), (1000, 3000));
        assert!(scaled.distinct_blocks.abs_diff(whole.distinct_blocks) <= 10);
        assert!(scaled.held_bytes().abs_diff(whole.held_bytes()) < whole.held_bytes() / 50);
        // the same blocks again and again
        assert_eq!(part.scaled(10.0, 0.0).distinct_blocks, part.distinct_blocks);
        let both = part.plus(&whole);
        assert_eq!((both.requests, both.runs), (1100, 199 + 1999));
    }

    #[test]
    fn tables_are_a_power_of_two_and_at_most_seven_eighths_full() {
        assert_eq!(table_bytes(0, 16), 0);
        assert_eq!(table_bytes(7, 16), 16 * 17);
        assert_eq!(table_bytes(6, 16), 8 * 17);
        assert_eq!(table_bytes(u64::MAX, 16), u64::MAX);
    }
}
