//! SGLang's scheduler step by step: which requests a prefill or decode batch holds, and what that does to the cache.
//!
//! Order of a step (SGLang 0.5.23, `sglang/srt/managers/scheduler.py`, `schedule_policy.py`, `schedule_batch.py`): a
//! prefill batch goes first whenever a request is waiting (or half way through its chunks) and the gate lets one in;
//! otherwise all running requests decode one token. The gate keeps the tokens to be computed, the output to come
//! (clipped at 4096) and one page strictly below what is free or evictable, less a share (the new-token ratio) of what
//! running requests still have to generate. The ratio falls with each decode step and is set anew after a retraction.
//! When decoding finds no room even after evicting, requests with the fewest outputs (then the longest prompts) are
//! retracted: they keep their outputs and wait at the end of the queue.
//!
//! Policies: `fcfs`, `lpm` (longest prefix match; as `fcfs` beyond 128 waiting requests or without the radix cache)
//! and `lof` (longest output first). Not modelled: prefixes shared inside the waiting queue (`lpm` puts the second of
//! two equal prompts back), mixed chunks, priorities between requests, host tiers, speculative decoding.

use std::collections::VecDeque;

use kvwise_cache::radix::{RadixCache, RadixCacheConfig, RequestKv, TreePolicy};
use kvwise_core::{Error, Result};

use super::feed::Feed;
use super::{CLIP_MAX_NEW_TOKENS, Request, of_cache};
use crate::trace::{Prompt, Trace};

/// Order of the waiting queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulePolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Longest prefix match first.
    Lpm,
    /// Longest output first.
    Lof,
}

/// Waiting requests beyond which `lpm` does not look prefixes up.
const LPM_LIMIT: usize = 128;
/// New-token ratio at the start, its least share, and the decode steps of its decay (`SGLANG_INIT_NEW_TOKEN_RATIO`,
/// `SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR`, `SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS`).
const INIT_RATIO: f64 = 0.7;
const MIN_RATIO_FACTOR: f64 = 0.14;
const DECAY_STEPS: f64 = 600.0;
/// Decode steps that a retraction makes room for (`SGLANG_RETRACT_DECODE_STEPS`).
const RETRACT_STEPS: usize = 20;
/// Tokens that an input must stay below the longest request (`validate_input_length`, scheduler.py).
const INPUT_MARGIN: usize = 5;

/// Sizes and policies of a [`SteppedScheduler`], by SGLang's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepConfig {
    /// Tokens of the KV pool (`max_total_num_tokens`).
    pub capacity_tokens: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// Which leaf of the tree is evicted first.
    pub eviction: TreePolicy,
    /// Requests that may run at once.
    pub max_running: usize,
    /// Longest prompt plus output, in tokens (`context_length`).
    pub max_context_tokens: usize,
    /// Tokens of one prefill batch (`chunked_prefill_size`); `None`: prompts are computed in one go.
    pub chunked_prefill_tokens: Option<usize>,
    /// Prompt tokens that a prefill batch may start (`max_prefill_tokens`).
    pub max_prefill_tokens: usize,
    /// Order of the waiting queue.
    pub schedule: SchedulePolicy,
    /// `--schedule-conservativeness`.
    pub conservativeness: f64,
    /// Whether prefixes are kept (`--disable-radix-cache` clears it).
    pub radix_cache: bool,
}

impl StepConfig {
    /// SGLang's defaults for a pool of this many tokens.
    pub fn new(capacity_tokens: usize) -> Self {
        Self {
            capacity_tokens,
            page_size: 1,
            eviction: TreePolicy::Lru,
            max_running: 2048,
            max_context_tokens: 131_072,
            chunked_prefill_tokens: Some(8192),
            max_prefill_tokens: 16_384,
            schedule: SchedulePolicy::default(),
            conservativeness: 1.0,
            radix_cache: true,
        }
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("the KV pool", self.capacity_tokens),
            ("--page-size", self.page_size),
            ("--max-running-requests", self.max_running),
            ("--context-length", self.max_context_tokens),
            ("--max-prefill-tokens", self.max_prefill_tokens),
            ("--chunked-prefill-size", self.chunked_prefill_tokens.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} is 0, expected a positive count")));
            }
        }
        if !(self.conservativeness.is_finite() && self.conservativeness > 0.0) {
            return Err(Error::input(format!(
                "--schedule-conservativeness is {}, expected a positive number",
                self.conservativeness
            )));
        }
        Ok(())
    }
}

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
}

impl StepOutcome {
    fn clear(&mut self) {
        self.admitted.clear();
        self.prefills.clear();
        self.first_tokens.clear();
        self.finished.clear();
        self.rejected.clear();
    }
}

/// A request waiting, being computed in chunks, or decoding.
struct Job {
    tag: u32,
    prompt: usize,
    /// Tokens to generate.
    output: usize,
    /// Tokens generated.
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

struct Active {
    job: Job,
    kv: RequestKv,
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
    chunked: Option<Active>,
    running: Vec<Active>,
    full: bool,
    ratio: f64,
    outcome: StepOutcome,
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
        let radix = config.radix_cache && known;
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
            max_requests: config.max_running.min(trace.len().max(1)).saturating_add(1),
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
            chunked: None,
            running: Vec::new(),
            full: false,
            outcome: StepOutcome::default(),
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
        self.waiting.push_back(Job {
            tag,
            prompt,
            output: output.min(longest - prompt),
            generated: 0,
            retractions: 0,
            content: None,
        });
        Ok(true)
    }

    /// Requests that hold KV.
    pub fn num_running(&self) -> usize {
        self.running.len() + usize::from(self.chunked.is_some())
    }

    /// Requests that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
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

    /// Cached tokens of all decoding requests together.
    pub fn decode_context_tokens(&self) -> u64 {
        self.running.iter().map(|a| a.kv.owned_len() as u64).sum()
    }

    /// The cache as it is now.
    pub fn cache(&self) -> &RadixCache<i64> {
        &self.cache
    }

    /// Coming steps in which everybody just decodes, unless a request arrives: until one ends or must evict.
    pub fn idle_steps(&self) -> u32 {
        if self.running.is_empty() || self.chunked.is_some() || (!self.full && !self.waiting.is_empty()) {
            return 0;
        }
        let last = self
            .running
            .iter()
            .map(|a| a.job.output - a.job.generated)
            .min()
            .unwrap_or(1)
            - 1;
        let page = self.config.page_size;
        let room = self.cache.slots().available_tokens() / (self.running.len() * page) * page;
        // A page of slack for each request, as pages fill at different times.
        u32::try_from(last.min(room.saturating_sub(page))).unwrap_or(u32::MAX)
    }

    /// Lets `steps` steps of pure decoding pass, at most [`SteppedScheduler::idle_steps`].
    ///
    /// # Errors
    /// If there is no room after all.
    pub fn skip(&mut self, steps: u32) -> Result<()> {
        for active in &mut self.running {
            active.job.generated += steps as usize;
            let end = active.kv.owned_len() + steps as usize;
            self.cache.extend(&mut active.kv, end, |_| {}).map_err(of_cache)?;
        }
        self.decay(f64::from(steps));
        Ok(())
    }

    /// Runs one step; returns what happened and how many requests decoded a token.
    ///
    /// # Errors
    /// If the cache refuses what the gate let in (it never does).
    pub fn step(&mut self) -> Result<(&StepOutcome, u64)> {
        self.outcome.clear();
        if self.running.is_empty() {
            self.full = false;
        }
        let decoding = if self.prefill()? { 0 } else { self.decode()? };
        Ok((&self.outcome, decoding))
    }

    fn decay(&mut self, steps: f64) {
        let first = (INIT_RATIO * self.config.conservativeness).min(1.0);
        let least = first * MIN_RATIO_FACTOR;
        self.ratio = (self.ratio - steps * (first - least) / DECAY_STEPS).max(least);
    }

    /// Composes and computes a prefill batch; `false` if there is none.
    fn prefill(&mut self) -> Result<bool> {
        if (self.full || self.waiting.is_empty()) && self.chunked.is_none() {
            return Ok(false);
        }
        let allocatable = self.config.max_running.saturating_sub(self.running.len());
        if allocatable == 0 && self.chunked.is_none() {
            self.full = true;
            return Ok(false);
        }
        self.sort_waiting()?;
        let page = self.config.page_size;
        let mut reserved: f64 = self
            .running
            .iter()
            .map(|a| a.job.to_come() as f64 * self.ratio)
            .sum();
        let mut chunk_left = self.config.chunked_prefill_tokens.unwrap_or(usize::MAX);
        let mut input_left = self.config.max_prefill_tokens;
        let mut batch: Vec<Active> = Vec::new();
        let mut next_chunked = None;
        if let Some(mut active) = self.chunked.take() {
            let missing = active.job.known() - active.kv.owned_len();
            let new = missing.min(chunk_left - chunk_left % page).max(1).min(missing);
            self.compute(&mut active, new)?;
            chunk_left = chunk_left.saturating_sub(new.next_multiple_of(page));
            input_left = input_left.saturating_sub(new);
            if new == missing {
                reserved += active.job.to_come() as f64;
                batch.push(active);
            } else {
                next_chunked = Some(active);
            }
        }
        while chunk_left > 0
            && input_left > 0
            && batch.len() + usize::from(next_chunked.is_some()) < allocatable
        {
            let Some(mut job) = self.waiting.pop_front() else {
                break;
            };
            fill(self.feed.as_mut(), &mut job)?;
            let kv = self.lookup(&job)?;
            let new = job.known() - kv.prefix_len();
            let need = (new + job.to_come() + page) as f64;
            let empty = batch.is_empty() && next_chunked.is_none();
            if need >= self.cache.obtainable_tokens() as f64 - reserved {
                self.cache.retract(kv).map_err(of_cache)?;
                if empty && self.running.is_empty() {
                    // Everything is free or evictable and it does not fit: it never will.
                    self.outcome.rejected.push(job.tag);
                    continue;
                }
                self.waiting.push_front(job);
                self.full = true;
                break;
            }
            if new >= input_left && !empty {
                self.cache.retract(kv).map_err(of_cache)?;
                self.waiting.push_front(job);
                break;
            }
            let now = if new <= chunk_left {
                new
            } else {
                chunk_left - chunk_left % page
            };
            if now == 0 {
                self.cache.retract(kv).map_err(of_cache)?;
                self.waiting.push_front(job);
                break;
            }
            let again = job.retractions > 0;
            let hit = kv.prefix_len();
            if !again {
                self.hit_tokens += hit as u64;
                self.query_tokens += job.known() as u64;
            }
            self.outcome.admitted.push((job.tag, small(hit), again));
            let mut active = Active { job, kv };
            self.cache.start(&mut active.kv).map_err(of_cache)?;
            self.compute(&mut active, now)?;
            let charged = now.next_multiple_of(page);
            chunk_left = chunk_left.saturating_sub(charged);
            input_left = input_left.saturating_sub(charged);
            if now == new {
                reserved += (active.job.to_come() + page) as f64;
                batch.push(active);
            } else {
                next_chunked = Some(active);
                break;
            }
        }
        let any = !batch.is_empty() || next_chunked.is_some();
        self.chunked = next_chunked;
        for mut active in batch {
            self.publish(&mut active)?;
            active.job.generated += 1;
            self.outcome.first_tokens.push(active.job.tag);
            self.settle(active)?;
        }
        if let Some(mut active) = self.chunked.take() {
            self.publish(&mut active)?;
            self.chunked = Some(active);
        }
        Ok(any)
    }

    fn sort_waiting(&mut self) -> Result<()> {
        match self.config.schedule {
            SchedulePolicy::Fcfs => {}
            SchedulePolicy::Lof => {
                self.waiting
                    .make_contiguous()
                    .sort_by_key(|j| std::cmp::Reverse(j.output));
            }
            SchedulePolicy::Lpm => {
                if self.feed.is_none() || self.waiting.len() > LPM_LIMIT {
                    return Ok(());
                }
                for job in &mut self.waiting {
                    fill(self.feed.as_mut(), job)?;
                }
                let tree = self.cache.tree();
                self.waiting.make_contiguous().sort_by_cached_key(|job| {
                    let matched = job.content.as_ref().map_or(0, |r| {
                        tree.peek_prefix(r.namespace, &r.tokens[..job.known().min(r.tokens.len())])
                    });
                    std::cmp::Reverse(matched)
                });
            }
        }
        Ok(())
    }

    fn lookup(&mut self, job: &Job) -> Result<RequestKv> {
        let known = job.known();
        match &job.content {
            Some(r) => self
                .cache
                .lookup(r.namespace, &r.tokens[..known.min(r.tokens.len())], r.priority),
            None => self
                .cache
                .lookup(kvwise_cache::radix::Namespace(0), &self.blank[..known], 0),
        }
        .map_err(of_cache)
    }

    /// Gives the next `new` tokens slots.
    fn compute(&mut self, active: &mut Active, new: usize) -> Result<()> {
        let past = active.kv.owned_len();
        self.cache
            .extend(&mut active.kv, past + new, |_| {})
            .map_err(of_cache)?;
        self.outcome
            .prefills
            .push((active.job.tag, small(new), small(past)));
        Ok(())
    }

    fn publish(&mut self, active: &mut Active) -> Result<()> {
        let owned = active.kv.owned_len();
        match &active.job.content {
            Some(r) => self
                .cache
                .checkpoint(&mut active.kv, &r.tokens[..owned], active.job.prompt.min(owned))
                .map_err(of_cache),
            None => Ok(()),
        }
    }

    /// Ends a request that has all its tokens, else keeps it running.
    fn settle(&mut self, active: Active) -> Result<()> {
        let Active { job, kv } = active;
        if job.generated < job.output {
            self.running.push(Active { job, kv });
            return Ok(());
        }
        self.full = false;
        self.outcome
            .finished
            .push((job.tag, small(job.generated), job.retractions));
        let owned = kv.owned_len();
        match &job.content {
            Some(r) => self.cache.finish(kv, &r.tokens[..owned], job.prompt.min(owned)),
            None => self.cache.retract(kv),
        }
        .map_err(of_cache)
    }

    /// Tokens that the coming decode step needs at most: a page for each request whose pages are full.
    fn demand(&self) -> usize {
        let page = self.config.page_size;
        page * self
            .running
            .iter()
            .filter(|a| a.kv.owned_len() % page == 0)
            .count()
    }

    fn decode(&mut self) -> Result<u64> {
        if self.running.is_empty() {
            return Ok(0);
        }
        let mut demand = self.demand();
        if self.cache.make_room(demand, |_| {}) {
            self.decay(1.0);
        } else {
            self.retract(&mut demand)?;
        }
        let decoding = self.running.len() as u64;
        for mut active in std::mem::take(&mut self.running) {
            let end = active.kv.owned_len() + 1;
            self.cache.extend(&mut active.kv, end, |_| {}).map_err(of_cache)?;
            active.job.generated += 1;
            self.settle(active)?;
        }
        Ok(decoding)
    }

    /// Takes requests out until the others can decode.
    fn retract(&mut self, demand: &mut usize) -> Result<()> {
        let mut first = true;
        while self.running.len() > 1 && (first || !self.cache.make_room(*demand, |_| {})) {
            first = false;
            let victim = (0..self.running.len())
                .max_by_key(|&i| {
                    let job = &self.running[i].job;
                    (std::cmp::Reverse(job.generated), job.prompt, i)
                })
                .unwrap_or(0);
            let Active { mut job, kv } = self.running.remove(victim);
            self.cache.retract(kv).map_err(of_cache)?;
            self.retractions += 1;
            job.retractions += 1;
            job.content = None;
            self.waiting.push_back(job);
            self.cache.make_room(self.running.len() * RETRACT_STEPS, |_| {});
            *demand = self.demand();
        }
        if !self.cache.make_room(*demand, |_| {})
            && let Some(Active { job, kv }) = self.running.pop()
        {
            // Not even the last one fits: SGLang aborts it.
            self.cache.retract(kv).map_err(of_cache)?;
            self.outcome.rejected.push(job.tag);
        }
        let decoded: usize = self.running.iter().map(|a| a.job.generated).sum();
        let asked: usize = self.running.iter().map(|a| a.job.output).sum();
        self.ratio = ((decoded + RETRACT_STEPS * self.running.len()) as f64 / (asked + 1) as f64).min(1.0);
        Ok(())
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
