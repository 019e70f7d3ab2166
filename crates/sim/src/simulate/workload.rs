//! Descriptions of traffic, turned into traces.

use kvwise_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, Gamma};
use rand_pcg::Pcg64;

use crate::trace::{IdMeaning, NewRequest, PromptIds, Trace, TraceBuilder};

/// Most requests that a description may ask for.
pub const MAX_REQUESTS: u32 = 10_000_000;

/// When requests arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// At the times of the trace, in seconds, divided by `speed`.
    Trace {
        /// 2 means twice as fast as recorded.
        speed: f64,
    },
    /// So many are under way at any time; the next arrives when one ends.
    Closed {
        /// Requests under way.
        concurrency: u32,
    },
    /// So many sessions are open at any time; the next turn of one arrives when the previous answer is there and its
    /// reader has thought, for an exponentially distributed time.
    Sessions {
        /// Sessions open at once.
        concurrency: u32,
        /// Mean time between an answer and the next turn, seconds.
        think_s: f64,
        /// Seed of the thinking times.
        seed: u64,
    },
}

/// Lengths drawn uniformly between `ratio * n` and `n`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Longest prompt, in tokens.
    pub input_tokens: u32,
    /// Longest answer, in tokens.
    pub output_tokens: u32,
    /// Share of the longest length that the shortest has, in 0..=1.
    pub ratio: f64,
}

impl Lengths {
    fn check(self) -> Result<()> {
        if self.input_tokens == 0 || self.output_tokens == 0 {
            return Err(Error::input("input and output lengths must be at least 1 token"));
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(Error::input(format!(
                "--length-ratio is {}, expected a number from 0 to 1",
                self.ratio
            )));
        }
        Ok(())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a u32 is a u32"
    )]
    fn draw(self, random: &mut Pcg64) -> (u32, u32) {
        let mut one = |longest: u32| {
            let shortest = ((f64::from(longest) * self.ratio) as u32).clamp(1, longest);
            random.random_range(shortest..=longest)
        };
        (one(self.input_tokens), one(self.output_tokens))
    }
}

fn check_requests(requests: u32) -> Result<()> {
    if requests == 0 || requests > MAX_REQUESTS {
        return Err(Error::input(format!(
            "--requests is {requests}, expected 1 to {MAX_REQUESTS}"
        )));
    }
    Ok(())
}

/// Requests without arrival times, for a closed loop.
///
/// # Errors
/// If a length or the number of requests is 0 or too large.
pub fn closed_loop(lengths: Lengths, requests: u32, seed: u64) -> Result<Trace> {
    generate(lengths, requests, seed, |_| None)
}

/// Requests that arrive at random, `rate_per_s` on average; `shape` 1 is a Poisson process, smaller is burstier
/// (gaps follow a Gamma distribution with this shape).
///
/// # Errors
/// If a length, the number of requests, the rate or the shape is not positive.
pub fn open_loop(lengths: Lengths, requests: u32, rate_per_s: f64, shape: f64, seed: u64) -> Result<Trace> {
    if !(rate_per_s.is_finite() && rate_per_s > 0.0) {
        return Err(Error::input(format!(
            "--rate is {rate_per_s}, expected a positive number of requests a second"
        )));
    }
    if !(shape.is_finite() && shape > 0.0) {
        return Err(Error::input(format!(
            "--burstiness is {shape}, expected a positive number"
        )));
    }
    let bad = |e: &dyn std::fmt::Display| Error::input(format!("the arrival process cannot be made: {e}"));
    let exponential = Exp::new(rate_per_s).map_err(|e| bad(&e))?;
    let gamma = Gamma::new(shape, 1.0 / (rate_per_s * shape)).map_err(|e| bad(&e))?;
    let mut now = 0.0_f64;
    generate(lengths, requests, seed, |random| {
        let at = now;
        now += if (shape - 1.0).abs() < 1e-12 {
            exponential.sample(random)
        } else {
            gamma.sample(random)
        };
        Some(at)
    })
}

fn generate(
    lengths: Lengths,
    requests: u32,
    seed: u64,
    mut arrival: impl FnMut(&mut Pcg64) -> Option<f64>,
) -> Result<Trace> {
    lengths.check()?;
    check_requests(requests)?;
    let mut random = Pcg64::seed_from_u64(seed);
    let mut builder = TraceBuilder::new("workload", 16, IdMeaning::Prefix);
    for _ in 0..requests {
        let (input, output) = lengths.draw(&mut random);
        let at = arrival(&mut random);
        builder.push(&NewRequest {
            arrival: at,
            input_len: Some(input.into()),
            output_len: Some(output.into()),
            prompt: PromptIds::Unknown,
            ..NewRequest::default()
        })?;
    }
    Ok(builder.finish())
}

/// Sessions of `turns` turns each for [`Arrivals::Sessions`]: every prompt is the session so far and
/// `lengths.input_tokens` more (drawn like the answers), so that all but the new tokens can be found in the cache.
///
/// # Errors
/// If a length, the number of sessions or turns is 0, or they are more tokens than a trace holds in memory (2^31).
pub fn sessions(lengths: Lengths, sessions: u32, turns: u32, seed: u64) -> Result<Trace> {
    lengths.check()?;
    check_requests(sessions)?;
    if turns == 0 {
        return Err(Error::input("--turns is 0, expected at least 1"));
    }
    let per_turn = u64::from(lengths.input_tokens) + u64::from(lengths.output_tokens);
    let total = u64::from(turns)
        .checked_mul(u64::from(turns) + 1)
        .map(|n| n / 2)
        .and_then(|n| n.checked_mul(per_turn))
        .and_then(|n| n.checked_mul(u64::from(sessions)));
    if total.is_none_or(|n| n > 1 << 31) {
        return Err(Error::input(format!(
            "{sessions} sessions of {turns} turns are more than 2^31 prompt tokens in all"
        ))
        .hint("lower --requests, --turns or the lengths"));
    }
    let mut random = Pcg64::seed_from_u64(seed);
    let mut builder = TraceBuilder::new("sessions", 16, IdMeaning::Content);
    let mut fresh = 0_u32;
    for session in 0..sessions {
        let mut context: Vec<u32> = Vec::new();
        for _ in 0..turns {
            let (input, output) = lengths.draw(&mut random);
            let mut next = |count: u32| {
                let from = fresh;
                fresh = fresh.wrapping_add(count);
                (0..count).map(move |i| from.wrapping_add(i))
            };
            context.extend(next(input));
            let answer: Vec<u32> = next(output).collect();
            builder.push(&NewRequest {
                output_len: Some(output.into()),
                prompt: PromptIds::Tokens(&context),
                output_tokens: Some(&answer),
                session: Some(session),
                ..NewRequest::default()
            })?;
            context.extend(answer);
        }
    }
    Ok(builder.finish())
}
