//! How far a KV pool reaches: the questions of concurrency and context, for any engine.

use super::policy::Factor;
use crate::{Error, Result};

/// A pool that hands out equal units (an engine's blocks, or bytes) to requests.
pub struct Pool<'a> {
    /// Bytes of one unit on one GPU.
    pub unit_bytes: u64,
    /// Units that requests can have.
    pub usable_units: u64,
    /// Units of one request of that many tokens; never falls with the length.
    pub units: Box<dyn Fn(u64) -> Result<u64> + 'a>,
    /// Longest request the engine accepts.
    pub max_context: u64,
    /// Margin on every need.
    pub factor: Factor,
}

impl Pool<'_> {
    /// Units of the whole load, with the margin.
    ///
    /// # Errors
    /// If they leave 64 bits.
    pub fn load_units(&self, context: u64, concurrency: u64) -> Result<u64> {
        let all = (self.units)(context)?.checked_mul(concurrency).ok_or_else(|| {
            Error::overflow(format_args!(
                "the KV cache of {concurrency} requests of {context} tokens"
            ))
        })?;
        self.factor.of(all)
    }

    /// Bytes of the whole load on one GPU, with the margin.
    ///
    /// # Errors
    /// If they leave 64 bits.
    pub fn load_bytes(&self, context: u64, concurrency: u64) -> Result<u64> {
        self.load_units(context, concurrency)?
            .checked_mul(self.unit_bytes)
            .ok_or_else(|| {
                Error::overflow(format_args!(
                    "the KV cache of {concurrency} requests of {context} tokens"
                ))
            })
    }

    /// Most requests of `context` tokens at once; 0 for a context that the engine does not accept.
    ///
    /// # Errors
    /// If a size leaves 64 bits.
    pub fn max_concurrency(&self, context: u64) -> Result<u64> {
        if context > self.max_context {
            return Ok(0);
        }
        let fits = |n: u64| Ok(self.load_units(context, n)? <= self.usable_units);
        let one = (self.units)(context)?.max(1);
        // Without the margin this many fit; with it, at most as many.
        last_true(self.usable_units / one, fits)
    }

    /// Longest context that `concurrency` requests can all have, up to the engine's maximum.
    ///
    /// # Errors
    /// If a size leaves 64 bits.
    pub fn max_context(&self, concurrency: u64) -> Result<u64> {
        last_true(self.max_context, |context| {
            // A length whose need cannot even be computed does not fit.
            Ok(self
                .load_units(context, concurrency)
                .is_ok_and(|units| units <= self.usable_units))
        })
    }
}

/// The largest `n` up to `most` for which `holds` (which never turns true again) is true; 0 if none is.
fn last_true(most: u64, holds: impl Fn(u64) -> Result<bool>) -> Result<u64> {
    let (mut yes, mut no) = (0, most.saturating_add(1));
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if holds(middle)? {
            yes = middle;
        } else {
            no = middle;
        }
    }
    Ok(yes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(usable: u64, block: u64, factor: Factor) -> Pool<'static> {
        Pool {
            unit_bytes: 100,
            usable_units: usable,
            units: Box::new(move |context: u64| Ok(context.div_ceil(block))),
            max_context: 10_000,
            factor,
        }
    }

    #[test]
    fn sixty_three_usable_blocks_of_sixteen_hold_1008_tokens() {
        let pool = pool(63, 16, Factor::ONE);
        assert_eq!(pool.max_context(1).unwrap(), 1008);
        assert_eq!(pool.max_concurrency(1008).unwrap(), 1);
        assert_eq!(pool.max_concurrency(1009).unwrap(), 0);
        assert_eq!(pool.max_concurrency(20_000).unwrap(), 0);
    }

    #[test]
    fn a_load_beyond_64_bits_is_an_error_and_not_a_wrap() {
        assert!(pool(63, 1, Factor::ONE).load_bytes(10_000, u64::MAX).is_err());
        assert_eq!(pool(63, 1, Factor::ONE).max_context(u64::MAX).unwrap(), 0);
    }

    proptest! {
        #[test]
        fn both_answers_agree_with_counting_up(
            usable in 0_u64..500, block in 1_u64..40, context in 1_u64..600, concurrency in 1_u64..20, margin in 1000_u64..2000
        ) {
            let factor = Factor::parse(&format!("{}.{:03}", margin / 1000, margin % 1000)).unwrap();
            let pool = pool(usable, block, factor);
            let fits = |c: u64, n: u64| pool.load_units(c, n).unwrap() <= usable;
            let most = (1..=usable + 1).take_while(|&n| fits(context, n)).last().unwrap_or(0);
            prop_assert_eq!(pool.max_concurrency(context).unwrap(), most);
            let longest = (1..=10_000).take_while(|&c| fits(c, concurrency)).last().unwrap_or(0);
            prop_assert_eq!(pool.max_context(concurrency).unwrap(), longest);
        }
    }
}
