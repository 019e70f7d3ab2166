//! How many requests a KV pool holds, by how their memory is reserved.

use kvwise_core::{Error, Result};

/// The pool and the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityQuestion {
    /// Bytes for K and V, all GPUs together.
    pub kv_memory_bytes: u64,
    /// Bytes of K and V of one token, all GPUs together.
    pub kv_bytes_per_token: u64,
    /// Longest sequence the server accepts: what a server without paging reserves for each request.
    pub max_model_len: u64,
    /// Tokens per block.
    pub block_size: u64,
    /// Tokens that a request really has, prompt and output, one row each.
    pub contexts: Vec<u64>,
}

/// Requests that fit at one context length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapacityRow {
    /// Tokens a request has.
    pub context_tokens: u64,
    /// Bytes of K and V it needs.
    pub request_bytes: u64,
    /// Requests if not a token were wasted: pool / context.
    pub ideal: u64,
    /// Each request reserves `max_model_len` tokens.
    pub reserve_max: u64,
    /// Each request reserves the next power of two of its length, at most `max_model_len`.
    pub reserve_power_of_two: u64,
    /// Blocks on demand: only a request's last block is partly empty.
    pub paged: u64,
    /// The tutorial's "without paging": half of the ideal.
    pub tutorial_unpaged: u64,
    /// The tutorial's "with paging": 95 % of the ideal.
    pub tutorial_paged: u64,
}

/// The pool in tokens and a row for each context length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityAnswer {
    /// Tokens the pool holds.
    pub capacity_tokens: u64,
    /// Whole blocks the pool holds.
    pub capacity_blocks: u64,
    /// One row for each context length asked for.
    pub rows: Vec<CapacityRow>,
}

/// Counts the requests.
///
/// # Errors
/// If a size is 0, a context exceeds `max_model_len`, or a product leaves 64 bits.
pub fn capacity(question: &CapacityQuestion) -> Result<CapacityAnswer> {
    let q = question;
    for (name, value) in [
        ("kv-memory-bytes", q.kv_memory_bytes),
        ("kv-bytes-per-token", q.kv_bytes_per_token),
        ("max-model-len", q.max_model_len),
        ("block-size", q.block_size),
    ] {
        if value == 0 {
            return Err(Error::input(format!("{name} is 0, expected a positive size")));
        }
    }
    let block_bytes = q
        .block_size
        .checked_mul(q.kv_bytes_per_token)
        .ok_or_else(|| Error::overflow("a block in bytes"))?;
    let capacity_tokens = q.kv_memory_bytes / q.kv_bytes_per_token;
    let capacity_blocks = q.kv_memory_bytes / block_bytes;
    let rows = q.contexts.iter().map(|&context| {
        if context == 0 || context > q.max_model_len {
            return Err(Error::input(format!(
                "context is {context} tokens, expected 1 to max-model-len ({})",
                q.max_model_len
            )));
        }
        let request_bytes = context
            .checked_mul(q.kv_bytes_per_token)
            .ok_or_else(|| Error::overflow("the bytes of one request"))?;
        let ideal = capacity_tokens / context;
        let power = context
            .checked_next_power_of_two()
            .unwrap_or(q.max_model_len)
            .min(q.max_model_len);
        Ok(CapacityRow {
            context_tokens: context,
            request_bytes,
            ideal,
            reserve_max: capacity_tokens / q.max_model_len,
            reserve_power_of_two: capacity_tokens / power,
            paged: capacity_blocks / context.div_ceil(q.block_size),
            tutorial_unpaged: ideal / 2,
            tutorial_paged: ideal - ideal.div_ceil(20),
        })
    });
    Ok(CapacityAnswer {
        capacity_tokens,
        capacity_blocks,
        rows: rows.collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama_70b() -> CapacityQuestion {
        CapacityQuestion {
            kv_memory_bytes: 480_000_000_000,
            kv_bytes_per_token: 327_680,
            max_model_len: 32_768,
            block_size: 16,
            contexts: vec![4096, 8192, 32_768, 5000],
        }
    }

    #[test]
    fn a_70b_model_on_480_gb_holds_fewer_requests_than_the_chapter_says() {
        // 480e9 / 327,680 = 1,464,843 tokens, 357 requests of 4K and 44 of 32K (the chapter: 375 and 47)
        let answer = capacity(&llama_70b()).unwrap();
        assert_eq!(
            (answer.capacity_tokens, answer.capacity_blocks),
            (1_464_843, 91_552)
        );
        let [short, _, long, odd] = answer.rows[..] else {
            unreachable!()
        };
        assert_eq!((short.ideal, short.paged, short.reserve_max), (357, 357, 44));
        assert_eq!((long.ideal, long.paged, long.reserve_max), (44, 44, 44));
        // 5000 tokens are 313 blocks, and reserve 8192 slots under powers of two
        assert_eq!((odd.ideal, odd.paged, odd.reserve_power_of_two), (292, 292, 178));
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert!(
            capacity(&CapacityQuestion {
                block_size: 0,
                ..llama_70b()
            })
            .is_err()
        );
        assert!(
            capacity(&CapacityQuestion {
                contexts: vec![40_000],
                ..llama_70b()
            })
            .is_err()
        );
        let huge = CapacityQuestion {
            kv_bytes_per_token: u64::MAX,
            ..llama_70b()
        };
        assert!(capacity(&huge).is_err());
    }
}
