//! SGLang's scheduler step by step: which requests a prefill or decode batch holds, and what that does to the cache.
//!
//! Order of a step (SGLang 0.5.23, `sglang/srt/managers/scheduler.py`, `schedule_policy.py`, `schedule_batch.py`): what
//! was computed last joins the running requests; a prefill batch goes first whenever a request is waiting (or half way
//! through its chunks) and the gate (`gate.rs`) lets one in; otherwise all running requests decode one token
//! (`decode.rs`). With overlap, as SGLang runs unless told otherwise, a batch is composed before the results of the one
//! before are known: tokens, publications and releases show one step later, and requests whose next token is their last
//! leave the batch on their own. The order of the waiting queue, and what looking at it does to the cache, is `queue.rs`.
//!
//! Requests that matter more may take the memory of others (`preempt.rs`), and with mixed chunks running requests decode in the
//! batches that prefill others.
//!
//! Held to SGLang's own scheduler step by step (`tests/sglang_scheduler.rs`) and event for event, slots included (`kvwise replay`).
//! Three things differ on purpose: a request that the gate would never let in, because it and a page do not fit the empty pool,
//! is rejected where SGLang's queue would stand still; one whose prompt is too long is rejected as it arrives, where SGLang
//! answers after a prefill of one token; and requests are taken to have no fixed length (`ignore_eos` is off), so that the gate
//! counts on a share of what they may still generate. Prompts may be computed apart (`apart.rs`). Not modelled: host tiers, speculative decoding, LoRA limits.

mod apart;
mod config;
mod decode;
mod events;
mod gate;
mod inbox;
mod job;
mod preempt;
mod queue;
mod results;

use std::collections::VecDeque;

use kvwise_cache::radix::{RadixCache, RadixCacheConfig};
use kvwise_core::Result;

use apart::Apart;
use events::EventLog;
use inbox::{Inbox, Launched};
use job::{Active, Job, LastPrefill, Pending};

pub use config::{
    PriorityScheduling, RESERVED_DECODE_TOKENS, RetractionPolicy, SchedulePolicy, Side, StepConfig,
};
pub use events::{SlotRun, StepEvent, StepOutcome};
pub use inbox::MAX_RECV_INTERVAL;

use super::feed::Feed;
use super::of_cache;
use crate::trace::{Prompt, Trace};

/// New-token ratio at the start, its least share, and the decode steps of its decay (`SGLANG_INIT_NEW_TOKEN_RATIO`,
/// `SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR`, `SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS`).
const INIT_RATIO: f64 = 0.7;
const MIN_RATIO_FACTOR: f64 = 0.14;
const DECAY_STEPS: f64 = 600.0;
/// Tokens by which a prompt must stay below the longest request (`tp_worker.py`, `max_req_input_len`).
const INPUT_MARGIN: usize = 5;

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
    log: EventLog,
    /// Turns of the loop before the present one.
    turn: u64,
    /// Turns up to the last one that launched a batch or learned its results.
    busy_turns: u64,
    /// Requests that decode in the last step.
    decoding: u64,
    refreshes: u64,
    admissions: u64,
    apart: Apart,
    /// Places whose last token is computed.
    done: usize,
    /// Places that hold a row.
    rows: usize,
    /// Entries into the queue.
    entries: u64,
    /// Tokens of all prefill batches.
    prefilled_tokens: u64,
    generated_tokens: u64,
    retractions: u64,
    preemptions: u64,
    aborted: u64,
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
            ratio: first_ratio(&config),
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
            log: EventLog::default(),
            turn: 0,
            busy_turns: 0,
            decoding: 0,
            refreshes: 0,
            admissions: 0,
            apart: Apart::default(),
            done: 0,
            rows: 0,
            entries: 0,
            prefilled_tokens: 0,
            generated_tokens: 0,
            retractions: 0,
            preemptions: 0,
            aborted: 0,
            hit_tokens: 0,
            query_tokens: 0,
        })
    }

    /// A request arrives; `false` if its prompt is too long to run, whatever else happens.
    ///
    /// It gets no more tokens than the context and the empty pool have room for, as SGLang cuts it (`scheduler.py`,
    /// `init_req_max_new_tokens`; `mem_cache/allocator/base.py`, `max_new_tokens_for_memory`).
    ///
    /// # Errors
    /// If its block ids are too large to be told apart.
    pub fn add(&mut self, tag: u32) -> Result<bool> {
        let index = tag as usize;
        let prompt = self
            .feed
            .as_ref()
            .map_or(self.trace.input_len(index) as usize, |f| f.prompt_len(index));
        let (capacity, page) = (self.cache.slots().capacity_tokens(), self.config.page_size);
        let longest = self.config.max_context_tokens.min(capacity).saturating_sub(1);
        if prompt + INPUT_MARGIN >= longest {
            self.log
                .note(self.turn, || StepEvent::Rejected { tag, too_long: true });
            return Ok(false);
        }
        let room = capacity.saturating_sub(prompt.next_multiple_of(page) + page + 1);
        let output = match self.config.side {
            Side::Prefill => 1,
            _ => self.trace.output_len(index) as usize,
        };
        let job = Job {
            tag,
            prompt,
            asked: output.min(longest - prompt - 1).min(room),
            priority: self.trace.priority(index),
            ..Job::default()
        };
        if self.config.recv_interval > 1 {
            self.inbox.add(job);
        } else {
            self.arrive(job);
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

    /// Times a more important request took the place of another.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Requests that ran out of memory with nobody left to retract.
    pub fn aborted(&self) -> u64 {
        self.aborted
    }

    /// Tokens generated by requests that have ended.
    pub fn generated_tokens(&self) -> u64 {
        self.generated_tokens
    }

    /// Nodes evicted so far, and their tokens.
    pub fn evicted(&self) -> (u64, u64) {
        (self.log.evicted_nodes, self.log.evicted_tokens)
    }

    /// Turns of the loop so far.
    pub fn turns(&self) -> u64 {
        self.turn
    }

    /// Turns of the loop until it last launched a batch or learned the results of one.
    pub fn busy_turns(&self) -> u64 {
        self.busy_turns
    }

    /// From now on keeps what happens for [`SteppedScheduler::take_events`], and lets no steps be skipped: a request that
    /// decodes several tokens at once would get other slots.
    pub fn keep_events(&mut self) {
        self.log.kept = true;
    }

    /// What has happened since the last call, each with its turn.
    pub fn take_events(&mut self) -> impl Iterator<Item = (u64, StepEvent)> + '_ {
        self.log.events.drain(..)
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
        if self.log.kept
            || self.running.is_empty()
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
            left = left.min(a.job.output().saturating_sub(a.job.generated + a.in_flight));
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
        self.inbox.skip(steps.into());
        self.turn += u64::from(steps);
        self.busy_turns = self.turn;
        Ok(())
    }

    /// Runs one step, which is one turn of SGLang's loop; returns what it computes and how many requests decode a token.
    ///
    /// # Errors
    /// If SGLang itself would stop, for want of memory for a chunk.
    pub fn step(&mut self) -> Result<(&StepOutcome, u64)> {
        self.outcome.clear();
        self.look_for_requests();
        self.begin_apart()?;
        self.merge()?;
        let batch = match self.prefill()? {
            Some(batch) => Some(batch),
            None => self.decode()?,
        };
        self.decoding = batch.as_ref().map_or(0, |b| b.decoding() as u64);
        self.launched = match &batch {
            None => Launched::Nothing,
            Some(b) if b.prefill => Launched::Prefill,
            Some(_) => Launched::Decode,
        };
        let nothing = batch.is_none();
        if !nothing || self.pending.is_some() {
            self.busy_turns = self.turn + 1;
        }
        if self.config.overlap {
            let before = std::mem::replace(&mut self.pending, batch);
            match before {
                Some(before) => self.process(before)?,
                None if nothing => self.rest(),
                None => {}
            }
        } else if let Some(batch) = batch {
            self.process(batch)?;
        } else {
            self.rest();
        }
        self.let_go()?;
        self.turn += 1;
        Ok(self.last_step())
    }

    /// Turns the loop until something is computed, or until there is nothing more to learn and nobody left to see: a turn in
    /// which only results become known takes no time, nor do the turns of an idle loop until it looks for new requests.
    ///
    /// # Errors
    /// As [`SteppedScheduler::step`].
    pub fn advance(&mut self) -> Result<(&StepOutcome, u64)> {
        while self.step()?.1 == 0 && self.outcome.is_empty() && (self.has_pending() || self.has_unseen()) {}
        Ok(self.last_step())
    }

    /// The loop has nothing to do: the new-token ratio starts anew (`scheduler.py`, `on_idle`). The loops of engines that do one
    /// side only are left as they were compared.
    fn rest(&mut self) {
        let idle = self.running.is_empty() && self.waiting.is_empty() && self.chunked.is_none();
        if idle && self.config.side == Side::Whole {
            self.ratio = first_ratio(&self.config);
        }
    }

    /// Lets `turns` turns of an idle loop pass.
    ///
    /// # Errors
    /// As [`SteppedScheduler::step`].
    pub fn idle(&mut self, turns: u64) -> Result<()> {
        debug_assert!(!self.has_unfinished() && !self.has_pending());
        if turns > 0 {
            // The first of them looks at what the one before launched.
            self.step()?;
            self.inbox.skip(turns - 1);
            self.turn += turns - 1;
        }
        Ok(())
    }

    /// What the last step computed and how many requests decoded a token.
    pub fn last_step(&self) -> (&StepOutcome, u64) {
        (&self.outcome, self.decoding)
    }

    /// Turns the loop until all results are known and all that ended have left, and once more.
    ///
    /// # Errors
    /// As [`SteppedScheduler::step`].
    pub fn settle(&mut self) -> Result<()> {
        while self.has_pending() {
            self.step()?;
        }
        self.merge()?;
        self.rest();
        Ok(())
    }

    fn decay(&mut self, steps: f64) {
        let first = first_ratio(&self.config);
        let least = first * MIN_RATIO_FACTOR;
        self.ratio = (self.ratio - steps * (first - least) / DECAY_STEPS).max(least);
    }
}

/// The new-token ratio of a scheduler that has done nothing yet.
fn first_ratio(config: &StepConfig) -> f64 {
    (INIT_RATIO * config.conservativeness).min(1.0)
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
