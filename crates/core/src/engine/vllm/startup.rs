//! The start-up check: does the memory hold one request, and if not, how long a one would it hold.

use std::ops::Range;

use super::group::Grouping;
use super::refusal::{Refusal, RefusalKind};
use super::request::RequestContext;
use crate::{Error, Result};

/// The block pool of one pipeline stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) stage: usize,
    pub(crate) kv_layers: u64,
    pub(crate) bytes_per_block: u64,
    /// As given by the caller.
    pub(crate) available_bytes: u64,
    /// As planned with: the caller's, or what `--num-gpu-blocks-override` makes of it.
    pub(crate) planned_bytes: u64,
    pub(crate) num_blocks: u64,
}

/// Sizes each stage's pool (vLLM 0.32.0, `v1/core/kv_cache_utils.py`, `get_kv_cache_configs`).
pub(crate) fn pools(
    grouping: &Grouping,
    layers: &[u64],
    stages: &[Range<u64>],
    available_bytes: &[u64],
    blocks_override: Option<u64>,
) -> Result<Vec<Pool>> {
    stages
        .iter()
        .enumerate()
        .map(|(stage, range)| {
            let available = available_bytes
                .get(stage)
                .or(available_bytes.first())
                .copied()
                .unwrap_or(0);
            let bytes_per_block = grouping.bytes_per_block(|cache| range.contains(&layers[cache]))?;
            let num_blocks = match (blocks_override, bytes_per_block) {
                (Some(blocks), _) => blocks,
                (None, 0) => 0,
                (None, bytes) => available / bytes,
            };
            let planned_bytes = match blocks_override {
                Some(blocks) => blocks
                    .checked_mul(bytes_per_block)
                    .ok_or_else(|| Error::overflow("the bytes of --num-gpu-blocks-override blocks"))?,
                None => available,
            };
            Ok(Pool {
                stage,
                kv_layers: layers.iter().filter(|layer| range.contains(layer)).count() as u64,
                bytes_per_block,
                available_bytes: available,
                planned_bytes,
                num_blocks,
            })
        })
        .collect()
}

/// Bytes that the check may use: without the null block, negative if not even that fits.
fn usable(pool: &Pool, reserves_null_block: bool) -> i128 {
    let null = if reserves_null_block {
        pool.bytes_per_block
    } else {
        0
    };
    i128::from(pool.planned_bytes) - i128::from(null)
}

/// Longest length up to `most` for which `fits` holds, 0 if not even 1 does; `fits` must not become true again.
///
/// # Errors
/// Whatever `fits` returns.
pub(crate) fn longest(most: u64, fits: impl Fn(u64) -> Result<bool>) -> Result<u64> {
    if most == 0 || !fits(1)? {
        return Ok(0);
    }
    let (mut left, mut right, mut result) = (1, most, 1);
    while left <= right {
        let middle = left + (right - left) / 2;
        if fits(middle)? {
            result = middle;
            left = middle + 1;
        } else {
            right = middle - 1;
        }
    }
    Ok(result)
}

fn needed(grouping: &Grouping, context: &RequestContext, pool: &Pool) -> Result<i128> {
    Ok(i128::from(pool.bytes_per_block) * i128::from(grouping.request_blocks(context)?))
}

fn longest_in(grouping: &Grouping, context: &RequestContext, pool: &Pool, usable: i128) -> Result<u64> {
    longest(context.max_model_len, |max_model_len| {
        let context = RequestContext {
            max_model_len,
            ..*context
        };
        Ok(needed(grouping, &context, pool)? <= usable)
    })
}

/// `--max-model-len auto`: the longest length that fits every stage (`_auto_fit_max_model_len`).
pub(crate) fn auto_length(
    grouping: &Grouping,
    context: &RequestContext,
    pools: &[Pool],
    reserve: bool,
) -> Result<Result<u64, Refusal>> {
    let mut length = context.max_model_len;
    for pool in pools {
        length = length.min(longest_in(grouping, context, pool, usable(pool, reserve))?);
    }
    Ok(if length == 0 {
        Err(Refusal::new(
            RefusalKind::Memory,
            "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token.",
        ))
    } else {
        Ok(length)
    })
}

/// Whether every stage holds one request of the context's length (`_check_enough_kv_cache_memory`).
pub(crate) fn check(
    grouping: &Grouping,
    context: &RequestContext,
    pools: &[Pool],
    reserve: bool,
) -> Result<Result<(), Refusal>> {
    for pool in pools {
        let usable = usable(pool, reserve);
        if usable <= 0 {
            return Ok(Err(Refusal {
                kind: RefusalKind::Memory,
                reason: "No available memory for the cache blocks.".to_owned(),
                estimated_max_model_len: None,
            }));
        }
        let needed = needed(grouping, context, pool)?;
        if needed > usable {
            let estimated = longest_in(grouping, context, pool, usable)?;
            let estimate = if estimated > 0 {
                format!(" Based on the available memory, the estimated maximum model length is {estimated}.")
            } else {
                String::new()
            };
            return Ok(Err(Refusal {
                kind: RefusalKind::Memory,
                reason: format!(
                    "To serve at least one request with the model's max seq len ({}), {} GiB KV cache is needed, which is larger than the available KV cache memory ({} GiB).{estimate}",
                    context.max_model_len,
                    gib(needed),
                    gib(usable)
                ),
                estimated_max_model_len: (estimated > 0).then_some(estimated),
            }));
        }
    }
    Ok(Ok(()))
}

/// Bytes in GiB with two decimals.
fn gib(bytes: i128) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_length_is_the_last_that_fits() {
        assert_eq!(longest(100, |n| Ok(n <= 37)).unwrap(), 37);
        assert_eq!(longest(100, |_| Ok(true)).unwrap(), 100);
        assert_eq!(longest(100, |_| Ok(false)).unwrap(), 0);
        assert_eq!(longest(u64::MAX, |n| Ok(n < 5)).unwrap(), 4);
        assert_eq!(longest(0, |_| Ok(true)).unwrap(), 0);
    }
}
