//! Requests through SGLang's radix cache: admission, allocation, checkpoints, release, eviction.
//!
//! Modelled, in the order of SGLang 0.5.23's scheduler (`sglang/srt/managers/schedule_policy.py`,
//! `schedule_batch.py`, `mem_cache/allocation.py`, `mem_cache/unified_radix_cache.py`): the prefix match and its
//! lock, the admission gate (new tokens, output clipped to 4096 and one page must stay *below* what is free or
//! evictable), slots for the prompt, publication of the prompt while the request decodes, slots for the output
//! page by page, publication and release at the end, and retraction when decoding finds no room (the last request
//! left is aborted).
//!
//! Simplified: requests are served first come, first served, at most `max_running` at once, and finish in the
//! order of their arrival; a request decodes all of its output when it finishes. There is no chunked prefill
//! (a prompt is computed in one go), no new-token ratio, no host tier, no speculative decoding.
//!
//! ```
//! use kvwise_sim::sched::sglang::{Outcome, Replay, ReplayConfig, Request};
//! let mut replay = Replay::new(ReplayConfig { capacity_tokens: 64, ..ReplayConfig::default() })?;
//! let chat = |tokens: &[i64]| Request { tokens: tokens.to_vec(), prompt_len: tokens.len(), ..Request::default() };
//! replay.submit(chat(&[1, 2, 3, 4]), |_| {})?;
//! replay.submit(chat(&[1, 2, 3, 9]), |outcome| {
//!     let Outcome::Admitted(admitted) = outcome else { unreachable!() };
//!     assert_eq!(admitted.matched, 3);
//! })?;
//! # Ok::<(), kvwise_core::Error>(())
//! ```

mod feed;
pub mod step;

use std::collections::VecDeque;

use kvwise_cache::radix::{Namespace, RadixCache, RadixCacheConfig, RequestKv, TreePolicy};
use kvwise_core::{Error, ErrorKind, Result};

use crate::trace::TraceSize;

pub use feed::Feed;

/// Output tokens the admission gate counts at most (`CLIP_MAX_NEW_TOKENS` in SGLang).
pub const CLIP_MAX_NEW_TOKENS: usize = 4096;

/// Decode steps of each remaining request that a retraction makes room for (`SGLANG_RETRACT_DECODE_STEPS`).
const RETRACT_DECODE_STEPS: usize = 20;

/// Sizes and policy of a replay.
#[derive(Debug, Clone, Copy)]
pub struct ReplayConfig {
    /// Tokens of the KV pool (`max_total_num_tokens`), a multiple of the page size.
    pub capacity_tokens: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Eviction policy of the tree.
    pub policy: TreePolicy,
    /// Requests held at once.
    pub max_running: usize,
    /// Longest prompt plus output in tokens; longer requests are refused.
    pub max_context_tokens: usize,
    /// Longest prompt plus output that will be submitted, if known: rows are made no longer than that.
    pub longest_request_tokens: Option<usize>,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            capacity_tokens: 1 << 16,
            page_size: 1,
            policy: TreePolicy::Lru,
            max_running: 1,
            max_context_tokens: 131_072,
            longest_request_tokens: None,
        }
    }
}

/// Bytes that a replay holds beside the trace, for a trace of `size` in a pool of `capacity_tokens` tokens.
///
/// The tree keeps keys and slots of up to twice the pool's tokens (holes are closed when half of its arrays is holes), the
/// allocator a word a page; running requests have their tokens and a row of slots. No more than the trace has tokens is
/// ever touched.
pub fn working_bytes(size: &TraceSize, capacity_tokens: u64, page_size: u64, max_running: u64) -> u64 {
    let tokens = size.input_tokens + size.output_tokens;
    let tree = capacity_tokens
        .saturating_mul(2)
        .min(tokens)
        .saturating_mul(8 + 4);
    let pages = 4 * capacity_tokens / page_size.max(1);
    // requests differ in length: twice the mean, and one far longer (of agents' prompts the longest is seven times the mean)
    let mean = tokens / size.requests.max(1);
    let running = max_running
        .saturating_add(1)
        .min(size.requests)
        .saturating_mul(2)
        .saturating_add(8)
        .saturating_mul((8 + 4) * mean);
    tree.saturating_add(pages)
        .saturating_add(running)
        .saturating_add(4 * size.requests)
}

/// One request: its tokens are the prompt followed by the output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// The caller's number of this request, repeated in outcomes.
    pub number: usize,
    /// Prompt and output tokens.
    pub tokens: Vec<i64>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
    /// Namespace of its cached prefixes.
    pub namespace: Namespace,
    /// Priority, for the policy of that name.
    pub priority: i64,
}

impl Request {
    fn output_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that have KV at the end: the last output token's is never computed.
    fn kv_len(&self) -> usize {
        self.prompt_len + self.output_len().saturating_sub(1)
    }
}

/// One evicted node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// Its tokens.
    pub tokens: usize,
    /// The slot of its first token.
    pub first_slot: u32,
}

/// An admitted request and the state right after its turn.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    /// The request's number.
    pub number: usize,
    /// Prompt tokens.
    pub input: usize,
    /// Prompt tokens found in the cache.
    pub matched: usize,
    /// Nodes evicted during this turn, in order.
    pub evicted: &'a [Eviction],
    /// Free tokens.
    pub free: usize,
    /// Tokens of unlocked nodes.
    pub evictable: usize,
    /// Tokens of locked nodes.
    pub protected: usize,
    /// Whether the request had been retracted before.
    pub again: bool,
}

/// What happened to a request.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It runs (or has run already, with one request at a time).
    Admitted(Admitted<'a>),
    /// The pool can never hold it.
    Refused {
        /// The request's number.
        number: usize,
    },
    /// It lost its place to a decoding request and is admitted again afterwards.
    Retracted {
        /// The request's number.
        number: usize,
    },
    /// It ran out of memory while it decoded, with nobody left to retract: its output is longer than the gate counts.
    Aborted {
        /// The request's number.
        number: usize,
    },
}

/// Totals of a replay, in the reference's terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests submitted.
    pub requests: u64,
    /// Requests that the pool can never hold.
    pub refused: u64,
    /// Prompt tokens of the others.
    pub input: u64,
    /// Prompt tokens found in the cache.
    pub matched: u64,
    /// Tokens evicted.
    pub evicted: u64,
    /// Nodes evicted.
    pub evicted_nodes: u64,
    /// Times a request was retracted.
    pub retracted: u64,
    /// Requests whose output did not fit the pool.
    pub aborted: u64,
}

struct Running {
    request: Request,
    kv: RequestKv,
}

/// The state of a replay; feed it requests in order of arrival.
pub struct Replay {
    config: ReplayConfig,
    cache: RadixCache<i64>,
    live: VecDeque<Running>,
    /// Retracted requests waiting to be admitted again, in the order of their retraction.
    waiting: VecDeque<Request>,
    log: Vec<Eviction>,
    totals: Totals,
}

impl Replay {
    /// An empty engine.
    ///
    /// # Errors
    /// If a size is 0, contradicts another or is too large.
    pub fn new(config: ReplayConfig) -> Result<Self> {
        for (name, value) in [
            ("capacity", config.capacity_tokens),
            ("page", config.page_size),
            ("running", config.max_running),
            ("max-context", config.max_context_tokens),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} is 0, expected a positive count")));
            }
        }
        let longest = config.longest_request_tokens.unwrap_or(config.max_context_tokens);
        let cache = RadixCache::new(RadixCacheConfig {
            capacity_tokens: config.capacity_tokens,
            page_size: config.page_size,
            policy: config.policy,
            // one more than may run: the next one is looked up before the oldest has finished
            max_requests: config.max_running.saturating_add(1),
            max_context_tokens: config.max_context_tokens.min(longest),
            enabled: true,
        })
        .map_err(of_cache)?;
        Ok(Self {
            config,
            cache,
            live: VecDeque::new(),
            waiting: VecDeque::new(),
            log: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Totals so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The cache as it is now.
    pub fn cache(&self) -> &RadixCache<i64> {
        &self.cache
    }

    /// One request's turn: the oldest finish until it fits, then it is admitted.
    ///
    /// # Errors
    /// If the cache's limits (2^31 tokens) are passed.
    pub fn submit(&mut self, request: Request, mut outcome: impl FnMut(Outcome<'_>)) -> Result<()> {
        self.totals.requests += 1;
        self.log.clear();
        self.turn(request, false, &mut outcome)?;
        while let Some(retracted) = self.waiting.pop_front() {
            self.log.clear();
            self.turn(retracted, true, &mut outcome)?;
        }
        Ok(())
    }

    /// Lets all running requests finish and returns the totals.
    ///
    /// # Errors
    /// As [`Replay::submit`].
    pub fn finish(&mut self, mut outcome: impl FnMut(Outcome<'_>)) -> Result<Totals> {
        loop {
            while !self.live.is_empty() {
                self.finish_oldest(&mut outcome)?;
            }
            let Some(retracted) = self.waiting.pop_front() else {
                return Ok(self.totals);
            };
            self.log.clear();
            self.turn(retracted, true, &mut outcome)?;
        }
    }

    fn turn(&mut self, request: Request, again: bool, outcome: &mut impl FnMut(Outcome<'_>)) -> Result<()> {
        let (number, input) = (request.number, request.prompt_len);
        while self.live.len() >= self.config.max_running {
            self.finish_oldest(outcome)?;
        }
        let mut admitted = self.admit(&request)?;
        while admitted.is_none() && !self.live.is_empty() {
            self.finish_oldest(outcome)?;
            admitted = self.admit(&request)?;
        }
        let Some(kv) = admitted else {
            self.totals.refused += 1;
            outcome(Outcome::Refused { number });
            return Ok(());
        };
        let matched = kv.prefix_len();
        self.live.push_back(Running { request, kv });
        if self.config.max_running == 1 {
            self.finish_oldest(outcome)?;
        }
        let totals = &mut self.totals;
        if !again {
            totals.input += input as u64;
            totals.matched += matched as u64;
        }
        totals.evicted += self.log.iter().map(|e| e.tokens as u64).sum::<u64>();
        totals.evicted_nodes += self.log.len() as u64;
        outcome(Outcome::Admitted(Admitted {
            number,
            input,
            matched,
            evicted: &self.log,
            free: self.cache.slots().available_tokens(),
            evictable: self.cache.tree().evictable_tokens(),
            protected: self.cache.tree().protected_tokens(),
            again,
        }));
        Ok(())
    }

    /// Looks the request up and, if the gate lets it in, gives its prompt slots.
    fn admit(&mut self, request: &Request) -> Result<Option<RequestKv>> {
        let (prompt, output) = (request.prompt_len, request.output_len());
        let mut kv = self
            .cache
            .lookup(request.namespace, &request.tokens[..prompt], request.priority)
            .map_err(of_cache)?;
        let need = prompt - kv.prefix_len() + output.min(CLIP_MAX_NEW_TOKENS) + self.config.page_size;
        if need >= self.cache.obtainable_tokens() || request.tokens.len() > self.config.max_context_tokens {
            self.cache.retract(kv).map_err(of_cache)?;
            return Ok(None);
        }
        self.cache.start(&mut kv).map_err(of_cache)?;
        let log = &mut self.log;
        self.cache
            .extend(&mut kv, prompt, |slots| log.push(eviction(slots)))
            .map_err(of_cache)?;
        if output > 1 {
            self.cache
                .checkpoint(&mut kv, &request.tokens[..prompt], prompt)
                .map_err(of_cache)?;
        }
        Ok(Some(kv))
    }

    /// The oldest running request decodes its output and leaves.
    fn finish_oldest(&mut self, outcome: &mut impl FnMut(Outcome<'_>)) -> Result<()> {
        let Some(Running { request, mut kv }) = self.live.pop_front() else {
            return Ok(());
        };
        let (page, total) = (self.config.page_size, request.kv_len());
        let mut at = request.prompt_len;
        while at < total {
            let step = if page > 1 {
                (page - at % page).min(total - at)
            } else {
                total - at
            };
            let log = &mut self.log;
            match self
                .cache
                .extend(&mut kv, at + step, |slots| log.push(eviction(slots)))
            {
                Ok(_) => at += step,
                Err(error) => {
                    if self.retract(outcome)? {
                        continue;
                    }
                    if error.kind() != kvwise_cache::ErrorKind::Exhausted {
                        return Err(of_cache(error));
                    }
                    self.cache.retract(kv).map_err(of_cache)?;
                    self.totals.aborted += 1;
                    outcome(Outcome::Aborted {
                        number: request.number,
                    });
                    return Ok(());
                }
            }
        }
        self.cache
            .finish(kv, &request.tokens[..total], request.prompt_len)
            .map_err(of_cache)
    }

    /// Takes one of the other running requests out; `false` if there is none.
    ///
    /// SGLang chooses the one with the fewest outputs, then the longest prompt; those here have not begun to decode. Of
    /// equals the last goes. What it published stays in the tree, less what the next steps of the others need
    /// (`schedule_batch.py`, `_get_decode_retraction_order` and `release_req`).
    fn retract(&mut self, outcome: &mut impl FnMut(Outcome<'_>)) -> Result<bool> {
        let longest = self
            .live
            .iter()
            .enumerate()
            .max_by_key(|(_, running)| running.request.prompt_len)
            .map(|(index, _)| index);
        let Some(Running { request, kv }) = longest.and_then(|index| self.live.remove(index)) else {
            return Ok(false);
        };
        self.cache.retract(kv).map_err(of_cache)?;
        let remaining = self.live.len() + 1;
        let log = &mut self.log;
        self.cache.make_room(remaining * RETRACT_DECODE_STEPS, |slots| {
            log.push(eviction(slots));
        });
        self.totals.retracted += 1;
        outcome(Outcome::Retracted {
            number: request.number,
        });
        self.waiting.push_back(request);
        Ok(true)
    }
}

fn eviction(slots: &[u32]) -> Eviction {
    Eviction {
        tokens: slots.len(),
        first_slot: slots[0],
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn of_cache(error: kvwise_cache::Error) -> Error {
    let kind = match error.kind() {
        kvwise_cache::ErrorKind::Overflow => ErrorKind::Overflow,
        _ => ErrorKind::Input,
    };
    Error::new(kind, error.to_string())
}
