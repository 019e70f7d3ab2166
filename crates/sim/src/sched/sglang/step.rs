//! SGLang's scheduler step by step: which requests a prefill or decode batch holds, and what that does to the cache.
//!
//! Order of a step (SGLang 0.5.23, `sglang/srt/managers/scheduler.py`, `schedule_policy.py`, `schedule_batch.py`): what
//! was computed last joins the running requests; a prefill batch goes first whenever a request is waiting (or half way
//! through its chunks) and the gate (`gate.rs`) lets one in; otherwise all running requests decode one token
//! (`decode.rs`). With overlap, as SGLang runs unless told otherwise, a batch is composed before the results of the one
//! before are known: tokens, publications and releases show one step later, and requests whose next token is their last
//! leave the batch on their own. The order of the waiting queue, and what looking at it does to the cache, is `queue.rs`.
//!
//! Held to SGLang's own scheduler step by step (`tests/sglang_scheduler.rs`). Two things differ on purpose: a request that
//! the gate would never let in, because it and a page do not fit the empty pool, is rejected where SGLang's queue would
//! stand still; and requests are taken to have no fixed length (`ignore_eos` is off), so that the gate counts on a share of
//! what they may still generate. Prompts may be computed apart (`apart.rs`). Not modelled: mixed chunks, priorities between
//! requests, host tiers, speculative decoding.

mod apart;
mod config;
mod decode;
mod gate;
mod inbox;
mod queue;
mod results;

use std::collections::VecDeque;

use kvwise_cache::radix::{RadixCache, RadixCacheConfig, RequestKv};
use kvwise_core::Result;

use apart::Apart;
use inbox::{Inbox, Launched};

pub use config::{RESERVED_DECODE_TOKENS, SchedulePolicy, Side, StepConfig};
pub use inbox::MAX_RECV_INTERVAL;

use super::feed::Feed;
use super::{CLIP_MAX_NEW_TOKENS, Request, of_cache};
use crate::trace::{Prompt, Trace};

/// New-token ratio at the start, its least share, and the decode steps of its decay (`SGLANG_INIT_NEW_TOKEN_RATIO`,
/// `SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR`, `SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS`).
const INIT_RATIO: f64 = 0.7;
const MIN_RATIO_FACTOR: f64 = 0.14;
const DECAY_STEPS: f64 = 600.0;
/// Tokens that an input must stay below the longest request (`validate_input_length`, scheduler.py).
const INPUT_MARGIN: usize = 5;

/// What a step did.
#[derive(Debug, Default)]
pub struct StepOutcome {
    /// Request, prompt tokens found in the cache, whether it had been retracted.
    pub admitted: Vec<(u32, u32, bool)>,
    /// Request, tokens computed, tokens before them.
    pub prefills: Vec<(u32, u32, u32)>,
    /// Requests that have their first token.
    pub first_tokens: Vec<u32>,
    /// Request, generated tokens, retractions.
    pub finished: Vec<(u32, u32, u32)>,
    /// Requests that can never run.
    pub rejected: Vec<u32>,
    /// Of a decode engine with overlap, in place of `finished`: requests whose last token came with the step before.
    pub ended: Vec<(u32, u32, u32)>,
    /// Of a prefill engine: request, tokens of its prompt that are ready to be read, whether they are all.
    pub sent: Vec<(u32, u32, bool)>,
    /// Of a decode engine: requests that have room for their prompt.
    pub placed: Vec<u32>,
    /// Of a decode engine: requests whose prompt came, and which join the batch with their first token: request, cached
    /// tokens, whether that token was all (and they left).
    pub joined: Vec<(u32, u32, bool)>,
}

impl StepOutcome {
    /// Whether nothing was computed and nobody turned away.
    pub fn is_empty(&self) -> bool {
        self.prefills.is_empty()
            && self.finished.is_empty()
            && self.rejected.is_empty()
            && self.placed.is_empty()
            && self.joined.is_empty()
            && self.ended.is_empty()
    }

    fn clear(&mut self) {
        self.admitted.clear();
        self.prefills.clear();
        self.first_tokens.clear();
        self.finished.clear();
        self.rejected.clear();
        self.sent.clear();
        self.placed.clear();
        self.joined.clear();
        self.ended.clear();
    }
}

/// A request: what it asks for and how far it is.
struct Job {
    tag: u32,
    prompt: usize,
    /// Tokens to generate.
    output: usize,
    /// Tokens generated, as far as results are known.
    generated: usize,
    retractions: u32,
    /// Its tokens, from its first look at the cache until it ends or is retracted: a long queue holds none.
    content: Option<Request>,
}

impl Job {
    /// Known tokens: prompt and generated ones.
    fn known(&self) -> usize {
        self.prompt + self.generated
    }

    fn to_come(&self) -> usize {
        (self.output - self.generated).min(CLIP_MAX_NEW_TOKENS)
    }
}

/// A request that holds memory.
struct Active {
    job: Job,
    /// Its row, slots and lock, until they are given back.
    kv: Option<RequestKv>,
    /// Names this admission: a place may be taken again while results of the one before are under way.
    serial: u64,
    /// Tokens that have been given to a prefill batch.
    computed: usize,
    /// Tokens published by a chunk.
    published: usize,
    /// Chunks under way that are not the last.
    middle_chunks: u32,
    /// Tokens being computed whose results are not known.
    in_flight: usize,
    /// Whether its last token is computed, though perhaps not known to be.
    done: bool,
    /// Whether it is among the running requests or those of the last prefill batch.
    listed: bool,
}

impl Active {
    /// Tokens that have a slot.
    fn owned_len(&self) -> usize {
        self.kv.as_ref().map_or(0, RequestKv::owned_len)
    }
}

/// A batch whose results are not known yet.
struct Pending {
    prefill: bool,
    /// Places and serials.
    batch: Vec<(usize, u64)>,
}

/// The last prefill batch, until it joins the running requests.
struct LastPrefill {
    places: Vec<usize>,
    chunked: Option<usize>,
}

/// SGLang's scheduler over a trace; see the [module](self).
pub struct SteppedScheduler<'a> {
    config: StepConfig,
    feed: Option<Feed<'a>>,
    trace: &'a Trace,
    /// Stands for any content where no prefix can match.
    blank: Vec<i64>,
    cache: RadixCache<i64>,
    waiting: VecDeque<Job>,
    /// Requests that the loop has not looked for yet.
    inbox: Inbox,
    launched: Launched,
    /// Requests that hold memory, by place; `None` where a place is free.
    active: Vec<Option<Active>>,
    vacant: Vec<usize>,
    /// Places of decoding requests, in SGLang's order.
    running: Vec<usize>,
    chunked: Option<usize>,
    last_prefill: Option<LastPrefill>,
    pending: Option<Pending>,
    full: bool,
    ratio: f64,
    outcome: StepOutcome,
    /// Requests that decode in the last step.
    decoding: u64,
    refreshes: u64,
    admissions: u64,
    apart: Apart,
    /// Places whose last token is computed.
    done: usize,
    /// Places that hold a row.
    rows: usize,
    retractions: u64,
    hit_tokens: u64,
    query_tokens: u64,
}

impl<'a> SteppedScheduler<'a> {
    /// An engine with nothing to do, for the requests of `trace`.
    ///
    /// # Errors
    /// If a size is 0, contradicts another or is too large.
    pub fn new(trace: &'a Trace, config: StepConfig) -> Result<Self> {
        config.check()?;
        let known = !trace.is_empty() && !matches!(trace.prompt(0), Prompt::Unknown);
        // A decode engine keeps no prefixes unless told to (`pd_disaggregation_hook.py`).
        let decodes = matches!(config.side, Side::Decode { .. });
        let radix = config.radix_cache && known && !decodes;
        let feed = radix.then(|| Feed::new(trace)).transpose()?;
        let longest = (0..trace.len())
            .map(|i| trace.input_len(i) as usize + trace.output_len(i) as usize + 1)
            .max()
            .unwrap_or(1)
            .min(config.max_context_tokens);
        let capacity_tokens = config.capacity_tokens - config.capacity_tokens % config.page_size;
        let cache = RadixCache::new(RadixCacheConfig {
            capacity_tokens,
            page_size: config.page_size,
            policy: config.eviction,
            max_requests: config.max_rows().min(trace.len().max(1)).saturating_add(1),
            max_context_tokens: longest,
            enabled: radix,
        })
        .map_err(of_cache)?;
        Ok(Self {
            ratio: (INIT_RATIO * config.conservativeness).min(1.0),
            config,
            feed,
            trace,
            blank: if radix { Vec::new() } else { vec![0; longest] },
            cache,
            waiting: VecDeque::new(),
            inbox: Inbox::new(config.recv_interval),
            launched: Launched::Nothing,
            active: Vec::new(),
            vacant: Vec::new(),
            running: Vec::new(),
            chunked: None,
            last_prefill: None,
            pending: None,
            full: false,
            outcome: StepOutcome::default(),
            decoding: 0,
            refreshes: 0,
            admissions: 0,
            apart: Apart::default(),
            done: 0,
            rows: 0,
            retractions: 0,
            hit_tokens: 0,
            query_tokens: 0,
        })
    }

    /// A request arrives; `false` if it can never run.
    ///
    /// # Errors
    /// If its block ids are too large to be told apart.
    pub fn add(&mut self, tag: u32) -> Result<bool> {
        let index = tag as usize;
        let prompt = self
            .feed
            .as_ref()
            .map_or(self.trace.input_len(index) as usize, |f| f.prompt_len(index));
        let output = (self.trace.output_len(index) as usize).max(1);
        let longest = self
            .config
            .max_context_tokens
            .min(self.cache.slots().capacity_tokens())
            .saturating_sub(1);
        if prompt + INPUT_MARGIN > longest {
            return Ok(false);
        }
        let job = Job {
            tag,
            prompt,
            output: match self.config.side {
                Side::Prefill => 1,
                _ => output.min(longest - prompt),
            },
            generated: 0,
            retractions: 0,
            content: None,
        };
        if self.config.recv_interval > 1 {
            self.inbox.add(job);
        } else {
            self.arrive().push_back(job);
        }
        Ok(true)
    }

    /// Requests that hold KV and have tokens to come.
    pub fn num_running(&self) -> usize {
        self.active.len() - self.vacant.len() - self.done - self.apart.num_placed()
    }

    /// Requests that wait, those among them that the loop has not seen yet.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len() + self.inbox.len() + self.apart.num_waiting()
    }

    /// Whether requests have arrived that the loop has not looked for yet.
    pub fn has_unseen(&self) -> bool {
        self.inbox.len() > 0
    }

    /// Whether any request has tokens to come.
    pub fn has_unfinished(&self) -> bool {
        self.num_running() + self.num_waiting() > 0
    }

    /// Whether a step is due though no request has tokens to come in it: results are not known, memory not released.
    pub fn has_pending(&self) -> bool {
        self.pending.is_some() || self.last_prefill.is_some()
    }

    /// Requests that wait, first in line first.
    pub fn waiting(&self) -> impl Iterator<Item = u32> + '_ {
        self.waiting.iter().map(|job| job.tag)
    }

    /// Share of what running requests may still generate that the gate counts on.
    pub fn new_token_ratio(&self) -> f64 {
        self.ratio
    }

    /// Share of the pool that is neither free nor evictable.
    pub fn usage(&self) -> f64 {
        let all = self.cache.slots().capacity_tokens();
        1.0 - self.cache.obtainable_tokens() as f64 / all as f64
    }

    /// Times a request was retracted.
    pub fn retractions(&self) -> u64 {
        self.retractions
    }

    /// Tokens found in the cache and tokens looked up, at first admissions.
    pub fn hits(&self) -> (u64, u64) {
        (self.hit_tokens, self.query_tokens)
    }

    /// Cached tokens of all decoding requests together, those of the last prefill batch among them.
    pub fn decode_context_tokens(&self) -> u64 {
        let fresh = self.last_prefill.iter().flat_map(|last| {
            last.places
                .iter()
                .copied()
                .filter(|&p| Some(p) != self.chunked && Some(p) != last.chunked)
        });
        self.running
            .iter()
            .copied()
            .chain(fresh)
            .filter_map(|place| self.active[place].as_ref())
            .filter(|a| !a.done)
            .map(|a| a.owned_len() as u64)
            .sum()
    }

    /// The cache as it is now.
    pub fn cache(&self) -> &RadixCache<i64> {
        &self.cache
    }

    /// Coming steps in which everybody just decodes, unless a request arrives: until one ends or must evict.
    pub fn idle_steps(&self) -> u32 {
        if self.running.is_empty()
            || self.chunked.is_some()
            || self.last_prefill.is_some()
            || self.running.len() + self.apart.num_placed() != self.rows
            || !self.apart.is_quiet(self.running.len() < self.config.max_running)
            || (!self.full && !self.waiting.is_empty())
        {
            return 0;
        }
        if self.config.overlap
            && !self
                .pending
                .as_ref()
                .is_some_and(|p| !p.prefill && p.batch.len() == self.running.len())
        {
            return 0;
        }
        let mut left = usize::MAX;
        for a in self
            .running
            .iter()
            .filter_map(|&place| self.active[place].as_ref())
        {
            if a.done {
                return 0;
            }
            left = left.min(a.job.output.saturating_sub(a.job.generated + a.in_flight));
        }
        if left == 0 {
            return 0;
        }
        let page = self.config.page_size;
        let room = self.cache.slots().available_tokens() / (self.running.len() * page) * page;
        // A page of slack for each request, as pages fill at different times.
        let quiet = u32::try_from((left - 1).min(room.saturating_sub(page))).unwrap_or(u32::MAX);
        quiet.min(self.inbox.unseen_turns())
    }

    /// Lets `steps` steps of pure decoding pass, at most [`SteppedScheduler::idle_steps`].
    ///
    /// # Errors
    /// If there is no room after all.
    pub fn skip(&mut self, steps: u32) -> Result<()> {
        for &place in &self.running {
            if let Some(a) = &mut self.active[place] {
                a.job.generated += steps as usize;
                let end = a.owned_len() + steps as usize;
                if let Some(kv) = &mut a.kv {
                    self.cache.grow(kv, end).map_err(of_cache)?;
                }
            }
        }
        self.decay(f64::from(steps));
        self.inbox.skip(steps);
        Ok(())
    }

    /// Runs one step; returns what it computes and how many requests decode a token.
    ///
    /// # Errors
    /// If the cache refuses what the gate let in (it never does).
    pub fn step(&mut self) -> Result<(&StepOutcome, u64)> {
        self.outcome.clear();
        self.look_for_requests();
        self.begin_apart()?;
        self.merge()?;
        let (batch, decoding) = if let Some(batch) = self.prefill()? {
            (Some(batch), 0)
        } else {
            let batch = self.decode()?;
            let decoding = batch.as_ref().map_or(0, |b| b.batch.len() as u64);
            (batch, decoding)
        };
        self.launched = match &batch {
            None => Launched::Nothing,
            Some(b) if b.prefill => Launched::Prefill,
            Some(_) => Launched::Decode,
        };
        if self.config.overlap {
            let before = std::mem::replace(&mut self.pending, batch);
            if let Some(before) = before {
                self.process(before)?;
            }
        } else if let Some(batch) = batch {
            self.process(batch)?;
        }
        self.let_go()?;
        self.decoding = decoding;
        Ok(self.last_step())
    }

    /// What the last step computed and how many requests decoded a token.
    pub fn last_step(&self) -> (&StepOutcome, u64) {
        (&self.outcome, self.decoding)
    }

    /// Lets all results be known and all that ended leave, as SGLang's idle loop does.
    ///
    /// # Errors
    /// If the cache refuses what it gave (it never does).
    pub fn settle(&mut self) -> Result<()> {
        if let Some(before) = self.pending.take() {
            self.process(before)?;
        }
        self.merge()
    }

    /// What was computed last joins the running requests, and what has ended leaves.
    fn merge(&mut self) -> Result<()> {
        if let Some(place) = self.chunked {
            self.publish_chunk(place)?;
        }
        if self.config.side == Side::Prefill {
            // Nobody runs here after the prompt.
            self.last_prefill = None;
            self.full = false;
            return Ok(());
        }
        if let Some(last) = self.last_prefill.take() {
            let before = last.places.len();
            let mut kept = Vec::with_capacity(before);
            for place in last.places {
                if Some(place) == self.chunked || Some(place) == last.chunked {
                    continue;
                }
                if self.has_ended(place) {
                    self.vacate(place);
                } else {
                    kept.push(place);
                }
            }
            if kept.len() < before {
                self.full = false;
            }
            if self.running.is_empty() && !kept.is_empty() {
                // The batch takes the place of the empty one, and was never full itself.
                self.full = false;
            }
            self.running.append(&mut kept);
        }
        let before = self.running.len();
        for place in std::mem::take(&mut self.running) {
            if self.has_ended(place) {
                self.vacate(place);
            } else {
                self.running.push(place);
            }
        }
        if self.running.len() < before {
            self.full = false;
        }
        Ok(())
    }

    /// Whether the request is known to have all its tokens.
    fn has_ended(&self, place: usize) -> bool {
        self.active[place]
            .as_ref()
            .is_none_or(|a| a.job.generated >= a.job.output)
    }

    fn occupy(&mut self, active: Active) -> usize {
        if let Some(place) = self.vacant.pop() {
            self.active[place] = Some(active);
            place
        } else {
            self.active.push(Some(active));
            self.active.len() - 1
        }
    }

    /// Frees a place whose memory is released.
    fn vacate(&mut self, place: usize) -> Option<Active> {
        let active = self.active[place].take();
        if let Some(a) = &active {
            self.vacant.push(place);
            self.done -= usize::from(a.done);
        }
        active
    }

    fn decay(&mut self, steps: f64) {
        let first = (INIT_RATIO * self.config.conservativeness).min(1.0);
        let least = first * MIN_RATIO_FACTOR;
        self.ratio = (self.ratio - steps * (first - least) / DECAY_STEPS).max(least);
    }
}

/// Makes the tokens of a request that looks at the cache.
fn fill(feed: Option<&mut Feed<'_>>, job: &mut Job) -> Result<()> {
    if let (Some(feed), None) = (feed, &job.content) {
        job.content = Some(feed.request(job.tag as usize)?);
    }
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths of a trace are u32, and contexts are checked against them"
)]
fn small(n: usize) -> u32 {
    n as u32
}
