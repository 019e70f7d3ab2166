//! Where reserved KV memory goes, by reservation policy: the experiment of the PagedAttention paper's figure 2.
//!
//! A saturated server: the queue is never empty, requests are admitted first come, first served whenever their
//! reservation finds room, and all running requests gain a token a step. After a warm-up the pool is looked at
//! after every step, and every slot is in one of four states, as the paper names them (Kwon et al., SOSP 2023,
//! arXiv 2309.06180, figure 2 and section 3.1):
//!
//! - *token states*: holds K and V;
//! - *reservation*: will hold a token of its request later;
//! - *internal fragmentation*: reserved for a request that ends before using it;
//! - *external fragmentation*: everything else (rounding of a chunk by the buddy allocator, free chunks too small
//!   for the next request).
//!
//! The policies: *Orca (Max)* reserves the longest sequence; *Orca (Pow2)* the prompt and the next power of two
//! of the output; *Orca (Oracle)* exactly what will be used; all three in one chunk from a buddy allocator, as the
//! paper assumes. *Paged* takes a block when a token needs it, and when there is none takes back the blocks of the
//! request admitted last, which starts over (recomputation). Its free blocks count as external here.
//!
//! The paper measured real servers at a load below saturation with real traces, of which it gives mean
//! lengths; with a distribution of the same means the shares come close, not equal: [`PAPER`] stands beside.

use std::collections::VecDeque;

use kvwise_core::{Error, Result};
use rand::SeedableRng;
use rand_distr::{Distribution, LogNormal};
use rand_pcg::Pcg64;

use super::buddy::BuddyAllocator;

/// How memory is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservation {
    /// The longest sequence for everybody.
    Max,
    /// Prompt and the next power of two of the output.
    PowerOfTwo,
    /// Prompt and output as they will be.
    Oracle,
    /// Blocks on demand.
    Paged,
}

impl Reservation {
    /// All four, in the paper's order.
    pub const ALL: [Self; 4] = [Self::Max, Self::PowerOfTwo, Self::Oracle, Self::Paged];
}

/// Shares of the pool in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Slots that hold K and V.
    pub token_states: f64,
    /// Slots that their request will use later.
    pub reservation: f64,
    /// Reserved slots that will never be used.
    pub internal: f64,
    /// All other slots.
    pub external: f64,
}

/// The paper's figure 2, in the order of [`Reservation::ALL`]; the split of the waste of `Paged` is not given.
pub const PAPER: [Shares; 4] = [
    Shares {
        token_states: 20.4,
        reservation: 13.3,
        internal: 57.3,
        external: 8.9,
    },
    Shares {
        token_states: 26.8,
        reservation: 17.9,
        internal: 13.6,
        external: 41.6,
    },
    Shares {
        token_states: 38.2,
        reservation: 25.2,
        internal: 0.0,
        external: 36.6,
    },
    Shares {
        token_states: 96.3,
        reservation: 0.0,
        internal: 3.7,
        external: 0.0,
    },
];

/// Prompt and output lengths of the requests, drawn from two log-normal distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Mean prompt in tokens.
    pub input_mean: f64,
    /// Mean output in tokens.
    pub output_mean: f64,
    /// Standard deviation of the logarithm of both; 0 makes all requests equal.
    pub sigma: f64,
}

impl Lengths {
    /// ShareGPT: the means that the paper gives (its figure 11), and a spread of one.
    pub const SHAREGPT: Self = Self {
        input_mean: 161.31,
        output_mean: 337.99,
        sigma: 1.0,
    };
    /// Alpaca: the means that the paper gives.
    pub const ALPACA: Self = Self {
        input_mean: 19.31,
        output_mean: 58.45,
        sigma: 1.0,
    };
}

/// The experiment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FragmentationQuestion {
    /// Slots of the pool (15,700 for OPT-13B on one 40 GB A100: the paper's table 1).
    pub pool_tokens: u64,
    /// Longest sequence in tokens (2048 for OPT); longer draws are cut.
    pub max_model_len: u64,
    /// Tokens per block under paging.
    pub block_size: u64,
    /// Lengths of the requests.
    pub lengths: Lengths,
    /// Steps that are looked at, after as many of warm-up.
    pub steps: u64,
    /// Seed of the lengths.
    pub seed: u64,
}

impl Default for FragmentationQuestion {
    fn default() -> Self {
        Self {
            pool_tokens: 15_700,
            max_model_len: 2048,
            block_size: 16,
            lengths: Lengths::SHAREGPT,
            steps: 20_000,
            seed: 0,
        }
    }
}

/// What one policy did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FragmentationAnswer {
    /// The policy.
    pub reservation: Reservation,
    /// Where the pool's slots were, on average.
    pub shares: Shares,
    /// Requests running, on average.
    pub mean_running: f64,
    /// Requests that lost their blocks and started over.
    pub preemptions: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sequence {
    input: u64,
    output: u64,
    /// Tokens with K and V.
    filled: u64,
    /// Slots reserved (in blocks under paging).
    reserved: u64,
    /// Where its chunk starts.
    start: u64,
}

/// Runs the experiment for one policy.
///
/// # Errors
/// If a size is 0 or absurdly large, a mean or spread is no positive number, or the pool cannot hold one sequence.
pub fn fragmentation(
    question: &FragmentationQuestion,
    reservation: Reservation,
) -> Result<FragmentationAnswer> {
    let q = question;
    if q.max_model_len < 2 || q.max_model_len > 1 << 24 {
        return Err(Error::input(format!(
            "max-model-len is {}, expected 2 to 16777216",
            q.max_model_len
        )));
    }
    let largest = q.max_model_len.next_power_of_two();
    if q.pool_tokens < largest || q.pool_tokens > 1 << 32 {
        return Err(Error::input(format!(
            "pool is {} tokens, expected {largest} (one sequence of max-model-len, rounded to a power of two) to 2^32",
            q.pool_tokens
        )));
    }
    if q.block_size == 0 || q.block_size > q.max_model_len {
        return Err(Error::input(format!(
            "block-size is {}, expected 1 to max-model-len",
            q.block_size
        )));
    }
    if q.steps == 0 || q.steps > 10_000_000 {
        return Err(Error::input(format!(
            "steps is {}, expected 1 to 10000000",
            q.steps
        )));
    }
    let (inputs, outputs) = (
        log_normal("input-mean", q.lengths.input_mean, q.lengths.sigma)?,
        log_normal("output-mean", q.lengths.output_mean, q.lengths.sigma)?,
    );
    let mut random = Pcg64::seed_from_u64(q.seed);
    let mut draw = || {
        let input = length(inputs.sample(&mut random), q.max_model_len - 1);
        let output = length(outputs.sample(&mut random), q.max_model_len - input);
        (input, output)
    };
    let mut server = Server::new(q, reservation);
    let mut sums = [0u64; 4];
    let (mut running, mut preemptions) = (0u64, 0u64);
    for step in 0..2 * q.steps {
        server.admit(&mut draw);
        let preempted = server.decode();
        if step >= q.steps {
            for (sum, slots) in sums.iter_mut().zip(server.census()) {
                *sum += slots;
            }
            running += server.running.len() as u64;
            preemptions += preempted;
        }
    }
    let share = |sum: u64| 100.0 * sum as f64 / (q.pool_tokens as f64 * q.steps as f64);
    Ok(FragmentationAnswer {
        reservation,
        shares: Shares {
            token_states: share(sums[0]),
            reservation: share(sums[1]),
            internal: share(sums[2]),
            external: share(sums[3]),
        },
        mean_running: running as f64 / q.steps as f64,
        preemptions,
    })
}

fn log_normal(name: &str, mean: f64, sigma: f64) -> Result<LogNormal<f64>> {
    if !(1.0..=1e9).contains(&mean) {
        return Err(Error::input(format!(
            "{name} is {mean}, expected a number from 1 to 1e9"
        )));
    }
    if !(0.0..=4.0).contains(&sigma) {
        return Err(Error::input(format!(
            "sigma is {sigma}, expected a number from 0 to 4"
        )));
    }
    // the mean of a log-normal distribution is exp(mu + sigma^2 / 2)
    LogNormal::new(mean.ln() - sigma * sigma / 2.0, sigma)
        .map_err(|e| Error::input(format!("no log-normal distribution with mean {mean}: {e}")))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to a small range first"
)]
fn length(drawn: f64, max: u64) -> u64 {
    drawn.round().clamp(1.0, max as f64) as u64
}

struct Server<'a> {
    question: &'a FragmentationQuestion,
    reservation: Reservation,
    buddy: BuddyAllocator,
    free_blocks: u64,
    running: Vec<Sequence>,
    /// Drawn or preempted requests, first come, first served.
    waiting: VecDeque<(u64, u64)>,
}

impl<'a> Server<'a> {
    fn new(question: &'a FragmentationQuestion, reservation: Reservation) -> Self {
        Self {
            question,
            reservation,
            buddy: BuddyAllocator::new(question.pool_tokens, question.max_model_len.next_power_of_two()),
            free_blocks: question.pool_tokens / question.block_size,
            running: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    fn is_paged(&self) -> bool {
        self.reservation == Reservation::Paged
    }

    fn blocks(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.question.block_size)
    }

    /// Admits from the head of the queue as long as there is room.
    fn admit(&mut self, draw: &mut impl FnMut() -> (u64, u64)) {
        loop {
            if self.waiting.is_empty() {
                self.waiting.push_back(draw());
            }
            let (input, output) = self.waiting[0];
            let (reserved, start) = if self.is_paged() {
                let blocks = self.blocks(input);
                if blocks > self.free_blocks {
                    return;
                }
                self.free_blocks -= blocks;
                (blocks * self.question.block_size, 0)
            } else {
                let max = self.question.max_model_len;
                let slots = match self.reservation {
                    Reservation::Max => max,
                    Reservation::PowerOfTwo => (input + output.next_power_of_two()).min(max),
                    Reservation::Oracle | Reservation::Paged => input + output,
                };
                let Some(start) = self.buddy.alloc(slots) else {
                    return;
                };
                (slots, start)
            };
            self.waiting.pop_front();
            self.running.push(Sequence {
                input,
                output,
                filled: input,
                reserved,
                start,
            });
        }
    }

    /// Every running request gains a token, or leaves if it has all. Returns how many were preempted.
    fn decode(&mut self) -> u64 {
        let mut preempted = 0;
        let mut at = 0;
        while at < self.running.len() {
            let sequence = self.running[at];
            if sequence.filled == sequence.input + sequence.output {
                self.release(&sequence);
                self.running.remove(at);
                continue;
            }
            if self.is_paged() && sequence.filled == sequence.reserved {
                if self.free_blocks == 0 {
                    // the request admitted last gives its blocks back and waits at the head of the queue
                    if let Some(last) = self.running.pop() {
                        self.release(&last);
                        self.waiting.push_front((last.input, last.output));
                        preempted += 1;
                    }
                    continue;
                }
                self.free_blocks -= 1;
                self.running[at].reserved += self.question.block_size;
            }
            self.running[at].filled += 1;
            at += 1;
        }
        preempted
    }

    fn release(&mut self, sequence: &Sequence) {
        if self.is_paged() {
            self.free_blocks += sequence.reserved / self.question.block_size;
        } else {
            self.buddy.free(sequence.start, sequence.reserved);
        }
    }

    /// Slots in each state: token states, reservation, internal, external.
    fn census(&self) -> [u64; 4] {
        let mut states = [0u64; 4];
        for sequence in &self.running {
            let total = sequence.input + sequence.output;
            states[0] += sequence.filled;
            states[1] += total.min(sequence.reserved) - sequence.filled;
            states[2] += sequence.reserved.saturating_sub(total);
        }
        states[3] = self.question.pool_tokens - states.iter().sum::<u64>();
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(reservation: Reservation) -> Shares {
        let question = FragmentationQuestion {
            steps: 6000,
            ..FragmentationQuestion::default()
        };
        fragmentation(&question, reservation).unwrap().shares
    }

    #[test]
    fn shares_add_up_and_come_close_to_the_papers_figure() {
        for (reservation, paper) in Reservation::ALL.into_iter().zip(PAPER) {
            let s = shares(reservation);
            let sum = s.token_states + s.reservation + s.internal + s.external;
            assert!((sum - 100.0).abs() < 1e-9, "{reservation:?}: {sum}");
            let off = (s.token_states - paper.token_states).abs();
            assert!(off < 8.0, "{reservation:?}: {s:?}, the paper has {paper:?}");
        }
    }

    #[test]
    fn equal_requests_that_fill_their_reservation_waste_only_what_is_not_yet_generated() {
        let question = FragmentationQuestion {
            pool_tokens: 4096,
            max_model_len: 1024,
            lengths: Lengths {
                input_mean: 512.0,
                output_mean: 512.0,
                sigma: 0.0,
            },
            steps: 4096,
            ..FragmentationQuestion::default()
        };
        let s = fragmentation(&question, Reservation::Max).unwrap().shares;
        assert!(s.internal == 0.0 && s.external < 0.5, "{s:?}");
        // half prompt, and the output half there on average
        assert!((s.token_states - 75.0).abs() < 1.0, "{s:?}");
    }

    #[test]
    fn impossible_experiments_are_refused() {
        let good = FragmentationQuestion::default();
        for bad in [
            FragmentationQuestion {
                pool_tokens: 100,
                ..good
            },
            FragmentationQuestion {
                block_size: 0,
                ..good
            },
            FragmentationQuestion {
                max_model_len: 0,
                ..good
            },
            FragmentationQuestion { steps: 0, ..good },
            FragmentationQuestion {
                lengths: Lengths {
                    sigma: f64::NAN,
                    ..Lengths::ALPACA
                },
                ..good
            },
            FragmentationQuestion {
                lengths: Lengths {
                    input_mean: 0.0,
                    ..Lengths::ALPACA
                },
                ..good
            },
        ] {
            assert!(fragmentation(&bad, Reservation::Max).is_err(), "{bad:?}");
        }
    }
}
