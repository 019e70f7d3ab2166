//! vLLM's scheduler: which requests compute how many tokens in a step, and what that does to the blocks.
//!
//! Order of a step (vLLM 0.32.0, `vllm/v1/core/sched/scheduler.py`): running requests first, in the order of their
//! admission; when one finds no block, the last running one (or the least important) is preempted and starts over
//! later, with its full blocks still cached. In a step without preemption waiting requests are admitted until the
//! first that does not fit. A prompt longer than the step's budget is computed in chunks. At the end of the step every
//! request whose known tokens are all computed has one more token.
//!
//! # Cost
//! A decoding request changes nothing in the tables but at block and window boundaries, so it is only looked at when
//! [`KvCacheManager::next_decode_event`] says so; the steps between cost one comparison a request (vectorised), and
//! [`Scheduler::idle_steps`] lets the driver skip steps in which nobody is due. Budget: 100 ns a step, 40 ns a due
//! request, and what the manager does per block (about 15 ns allocated, named, evicted and freed).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "requests, tokens and ticks are u32 by the configuration's checks"
)]

mod config;
mod connector;
mod draft_counts;
mod events;
mod loads;
mod mamba;
mod queue;
mod speculation;
mod step;

use kvwise_cache::manager::{Allocation, GroupKind, Hit, KvCacheManager, SimKvCache, Slot};
use kvwise_cache::pool::{BlockId, DenseIndex, PoolObserver};
use kvwise_core::{Error, Result};
use rustc_hash::FxHashMap;

pub use config::{Junctions, Policy, SchedulerConfig};
pub use connector::{KvConnector, Load, Matched, NoConnector, Query};
pub use draft_counts::DraftCounts;
pub use events::{
    Admission, BlockTables, ContentKeys, NewRequest, Rejection, SchedulerEvents, StepWork, Totals,
};
pub use speculation::{Drafter, Speculation};

use config::MambaAlign;
use queue::Waiting;

/// Collects evicted blocks while somebody wants to know.
#[derive(Debug, Clone, Default)]
struct Evictions {
    wanted: bool,
    blocks: Vec<BlockId>,
}

impl PoolObserver<u32> for Evictions {
    #[inline]
    fn evicted(&mut self, block: BlockId) {
        if self.wanted {
            self.blocks.push(block);
        }
    }
}

type Manager = KvCacheManager<DenseIndex, Evictions>;

#[derive(Debug, Clone)]
struct Request {
    tag: u32,
    prompt: u32,
    /// Known tokens at which it ends.
    limit: u32,
    /// Computed tokens; of a decoding request `tick` plus `offset` instead.
    computed: u32,
    /// Known tokens; of a decoding request one more than computed.
    known: u32,
    offset: i64,
    decoding: bool,
    /// Under speculation, where nobody is `decoding`: has a token sampled, so it gets drafts.
    drafting: bool,
    /// Drafts made for its next step.
    drafts: u32,
    /// Its drafts of this step only fill up the batch.
    padded: bool,
    /// Steps in which its drafts were verified.
    verifications: u32,
    scheduled: u32,
    priority: i64,
    arrival: u32,
    lora: u32,
    preemptions: u32,
    boundary: u32,
    /// Tokens found in the pool when a load began.
    local: u32,
    /// Whether what it loads is there.
    arrived: bool,
    /// Its place in the manager; from its first try on, so that what waits takes no memory there.
    slot: Option<Slot>,
    /// Names of its blocks; from its first try on.
    keys: Vec<u32>,
    state: State,
}

impl Request {
    /// The place of a request that was tried.
    #[inline]
    fn slot(&self) -> Slot {
        self.slot.expect("a request has a place from its first try on")
    }
}

/// Why a request that must fit whole was refused, as far as that can be told again without looking it up: blocks that
/// nobody else holds have to come from the free queue.
#[derive(Debug, Clone, Copy)]
struct Shortage {
    request: u32,
    /// Blocks of its known tokens that no other request held.
    needed: u64,
    /// [`kvwise_cache::pool::BlockPool::num_gained`] then.
    gained: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Its blocks are reserved, their contents come from elsewhere.
    Loading,
    Running,
    Done,
}

/// vLLM's scheduler and its cache manager; see the [module](self).
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    manager: Manager,
    mamba: Option<MambaAlign>,
    requests: Vec<Request>,
    unused: Vec<u32>,
    /// Lists of names for the next requests that are tried, the one in the caches last.
    spare_keys: Vec<Vec<u32>>,
    waiting: Waiting,
    /// Running requests in the order of admission.
    running: Vec<u32>,
    /// When each running request has to be looked at next.
    due: Vec<u32>,
    /// Running requests that are not decoding; under speculation all.
    num_prefilling: u32,
    /// Whether running requests were given tokens in this step, and whether one of them still computes its prompt.
    batch_runs: bool,
    batch_prefills: bool,
    tick: u32,
    arrivals: u32,
    /// The first waiting request was refused at this pool version, with this budget.
    refused: Option<(u32, u64, u32)>,
    /// What the first waiting request lacked when it was refused.
    shortage: Option<Shortage>,
    /// Requests whose keys and values come from elsewhere, in the order in which their loads began.
    loading: Vec<u32>,
    /// Requests that their connector told to ask again, in the queue's order.
    deferred: Vec<u32>,
    /// Blocks of finished requests that are kept for others to read, by tag.
    held: FxHashMap<u32, Slot>,
    /// Whether a connector has news since the last step.
    woken: bool,
    hit: Hit,
    copies: Vec<(BlockId, BlockId)>,
    totals: Totals,
}

impl Scheduler {
    /// Bytes that a waiting request takes: in an overloaded engine that may be most of a trace.
    pub const WAITING_BYTES: u64 = (std::mem::size_of::<Request>() + 2 * std::mem::size_of::<u32>()) as u64;

    /// A scheduler with nothing to do. `num_keys` is how many content keys to expect, if known.
    ///
    /// # Errors
    /// If vLLM would not start with this configuration.
    pub fn new(config: SchedulerConfig, num_keys: usize) -> Result<Self> {
        config.check()?;
        let groups =
            u32::try_from(config.groups.len()).map_err(|_| Error::overflow("the number of groups"))?;
        let index = DenseIndex::new(if config.prefix_caching { num_keys } else { 0 }, groups);
        let manager = SimKvCache::new(&config.manager(), index, Evictions::default())
            .map_err(|e| Error::input(format!("the cache cannot be built: {e}")))?;
        Ok(Self {
            mamba: config.mamba_align(),
            manager,
            requests: Vec::new(),
            unused: Vec::new(),
            spare_keys: Vec::new(),
            waiting: Waiting::new(config.policy),
            running: Vec::new(),
            due: Vec::new(),
            num_prefilling: 0,
            batch_runs: false,
            batch_prefills: false,
            tick: 0,
            arrivals: 0,
            refused: None,
            shortage: None,
            loading: Vec::new(),
            deferred: Vec::new(),
            held: FxHashMap::default(),
            woken: false,
            hit: Hit::default(),
            copies: Vec::new(),
            totals: Totals::default(),
            config,
        })
    }

    /// Tokens between two content keys.
    pub fn hash_block_size(&self) -> u32 {
        self.manager.hash_block_size()
    }

    /// Whether a request runs or waits.
    pub fn has_unfinished(&self) -> bool {
        !self.running.is_empty() || self.num_waiting() > 0
    }

    /// Running requests.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Waiting requests, those among them whose keys and values are on their way included.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len() + self.loading.len() + self.deferred.len()
    }

    /// Counters so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Blocks handed out and evicted so far, blocks free now.
    pub fn pool_counts(&self) -> (u64, u64, u32) {
        let pool = self.manager.pool();
        (pool.num_allocated(), pool.num_evicted(), pool.num_free())
    }

    /// Share of usable blocks that requests hold, 0 to 1.
    pub fn usage(&self) -> f64 {
        self.manager.pool().usage()
    }

    /// A request arrives. One that can never run is reported and forgotten.
    pub fn add<E: SchedulerEvents>(&mut self, step: u64, new: NewRequest, events: &mut E) {
        if let Some(reason) = self.refusal(new.prompt_tokens) {
            self.totals.rejected += 1;
            events.rejected(step, new.tag, reason);
            return;
        }
        let arrival = self.arrivals;
        self.arrivals = self.arrivals.wrapping_add(1);
        let end = new
            .prompt_tokens
            .saturating_add(new.max_tokens.max(1))
            .min(self.config.max_model_len);
        let fresh = Request {
            tag: new.tag,
            prompt: new.prompt_tokens,
            limit: end,
            computed: 0,
            known: new.prompt_tokens,
            offset: 0,
            decoding: false,
            drafting: false,
            drafts: 0,
            padded: false,
            verifications: 0,
            scheduled: 0,
            priority: new.priority,
            arrival,
            lora: new.lora,
            preemptions: 0,
            boundary: 0,
            local: 0,
            arrived: false,
            slot: None,
            keys: Vec::new(),
            state: State::Waiting,
        };
        let r = if let Some(r) = self.unused.pop() {
            self.requests[r as usize] = fresh;
            r
        } else {
            self.requests.push(fresh);
            (self.requests.len() - 1) as u32
        };
        self.waiting.add(r, new.priority, arrival);
    }

    /// Whether a prompt of this length can never run.
    fn refusal(&self, prompt_tokens: u32) -> Option<Rejection> {
        if prompt_tokens > self.config.max_model_len {
            return Some(Rejection::TooLong);
        }
        // Groups of full attention hold every block of the prompt at once.
        let blocks: u64 = self
            .config
            .groups
            .iter()
            .filter(|g| g.kind == GroupKind::Full)
            .map(|g| u64::from(prompt_tokens.div_ceil(g.block_size)))
            .sum();
        (blocks > u64::from(self.config.num_blocks - 1)).then_some(Rejection::TooManyBlocks)
    }

    /// Coming steps in which nothing but decoding happens and no table changes, unless a request arrives.
    pub fn idle_steps(&self) -> u32 {
        let running = self.running.len();
        if running == 0 || self.num_prefilling > 0 || running > self.config.max_num_batched_tokens as usize {
            return 0;
        }
        let full = running >= self.config.max_num_seqs as usize
            || running == self.config.max_num_batched_tokens as usize;
        if !full && self.woken && self.waits_for_connector() {
            return 0;
        }
        if !full && let Some(first) = self.next_candidate() {
            let budget = self.config.max_num_batched_tokens - running as u32;
            if self.refused != Some((first, self.manager.pool().version(), budget)) {
                return 0;
            }
        }
        self.due.iter().copied().min().unwrap_or(self.tick) - self.tick
    }

    /// Cached tokens of all decoding requests together: what decode attention reads in the coming step.
    pub fn decode_context_tokens(&self) -> u64 {
        self.running
            .iter()
            .filter(|&&r| self.requests[r as usize].decoding)
            .map(|&r| u64::from(self.computed(r)))
            .sum()
    }

    /// Lets `steps` steps pass, at most [`Scheduler::idle_steps`].
    pub fn skip(&mut self, steps: u32) {
        self.tick += steps;
    }

    /// Runs one step; `step` is its number in events.
    pub fn step<C: ContentKeys, E: SchedulerEvents>(
        &mut self,
        step: u64,
        content: &mut C,
        events: &mut E,
    ) -> StepWork {
        self.step_with(step, content, events, &mut NoConnector)
    }

    /// As [`Scheduler::step`], with keys and values that come from and go elsewhere. Groups with Mamba states are not
    /// loaded: the caller refuses such models.
    pub fn step_with<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) -> StepWork {
        self.woken = false;
        self.manager.pool_mut().observer_mut().wanted = E::EVICTIONS;
        self.manager.begin_step();
        let mut budget = self.config.max_num_batched_tokens;
        let preempted = self.schedule_running(step, &mut budget, content, events);
        if !preempted {
            self.admit_waiting(step, &mut budget, content, events, connector);
        }
        if self.mamba.is_some() {
            self.manager.take_copies(&mut self.copies);
        }
        self.settle(step + 1, content, events, connector)
    }

    /// Notes what a refused request lacks, where one group of full attention makes that a simple count.
    fn note_shortage(&mut self, r: u32) {
        let simple = self.config.reserve_full_isl
            && matches!(self.config.groups[..], [group] if group.kind == GroupKind::Full);
        self.shortage = simple.then(|| {
            let pool = self.manager.pool();
            let known = self.requests[r as usize].known.min(self.config.max_model_len);
            let total = known.div_ceil(self.config.groups[0].block_size);
            let held = self.hit.blocks.first().map_or(0, |blocks| {
                blocks.iter().filter(|&&b| pool.ref_count(b) > 0).count()
            });
            Shortage {
                request: r,
                needed: u64::from(total).saturating_sub(held as u64),
                gained: pool.num_gained(),
            }
        });
    }

    /// Whether waiting request `r` surely still does not fit, whatever a lookup would find.
    fn still_short(&self, r: u32) -> bool {
        let pool = self.manager.pool();
        self.shortage.is_some_and(|shortage| {
            let found = pool.num_gained() - shortage.gained;
            shortage.request == r && shortage.needed > found + u64::from(pool.num_free())
        })
    }

    fn computed(&self, r: u32) -> u32 {
        let request = &self.requests[r as usize];
        if request.decoding {
            (i64::from(self.tick) + request.offset) as u32
        } else {
            request.computed
        }
    }

    /// Tokens a running request computes next, within the budget.
    fn wanted_tokens(&self, r: u32, budget: u32) -> u32 {
        let request = &self.requests[r as usize];
        if request.decoding {
            return 1;
        }
        let computed = request.computed;
        // One position is left for the token to be sampled.
        let room = self.config.max_model_len.saturating_sub(computed + 1);
        let tokens = (request.known - computed + self.drafts(r)).min(budget).min(room);
        match &self.mamba {
            Some(align) => self.mamba_chunk(align, request, computed, tokens, budget),
            None => tokens,
        }
    }

    fn allocate_running<C: ContentKeys>(&mut self, r: u32, tokens: u32, content: &mut C) -> bool {
        let computed = self.computed(r);
        let lookahead_tokens = self.lookahead_tokens();
        let request = &mut self.requests[r as usize];
        if request.decoding {
            request.computed = computed;
            request.known = computed + 1;
        }
        if self.config.prefix_caching {
            content.extend(request.tag, request.known, &mut request.keys);
        }
        self.manager.allocate(
            request.slot(),
            &Allocation {
                num_prompt_tokens: request.prompt,
                shared_prefix_boundary: self.config.retained_junction(request.boundary),
                lookahead_tokens,
                ..Allocation::new(&request.keys, computed, tokens, request.known)
            },
            None,
        )
    }

    /// Position of the request to preempt.
    fn victim(&self) -> usize {
        match self.config.policy {
            Policy::Fcfs => self.running.len() - 1,
            Policy::Priority => {
                let key = |&r: &u32| {
                    let request = &self.requests[r as usize];
                    (request.priority, request.arrival)
                };
                (0..self.running.len())
                    .max_by_key(|&i| key(&self.running[i]))
                    .unwrap_or(0)
            }
        }
    }

    fn preempt<E: SchedulerEvents>(&mut self, step: u64, r: u32, events: &mut E) {
        let computed = self.computed(r);
        let request = &self.requests[r as usize];
        let tables = BlockTables {
            manager: &self.manager,
            slot: request.slot(),
        };
        events.preempted(step, request.tag, computed, &tables);
        self.totals.preemptions += 1;
        self.manager.release(request.slot());
        let request = &mut self.requests[r as usize];
        if request.decoding {
            request.known = computed + 1;
            request.decoding = false;
        } else {
            self.num_prefilling -= 1;
        }
        request.computed = 0;
        request.scheduled = 0;
        request.drafting = false;
        request.preemptions += 1;
        request.state = State::Waiting;
        self.waiting.put_back(r, request.priority, request.arrival);
    }

    fn finish<C: ContentKeys, E: SchedulerEvents, K: KvConnector>(
        &mut self,
        step: u64,
        r: u32,
        content: &mut C,
        events: &mut E,
        connector: &mut K,
    ) {
        let request = &mut self.requests[r as usize];
        request.state = State::Done;
        let generated = request.known - request.prompt;
        self.totals.finished += 1;
        self.totals.generated_tokens += u64::from(generated);
        let request = &self.requests[r as usize];
        let tables = BlockTables {
            manager: &self.manager,
            slot: request.slot(),
        };
        events.finished(step, request.tag, generated, request.preemptions, &tables);
        if K::ENABLED {
            let request = &mut self.requests[r as usize];
            if connector.finished(request.tag, &request.keys, request.computed)
                && let Some(slot) = request.slot.take()
            {
                self.held.insert(request.tag, slot);
                let mut keys = std::mem::take(&mut request.keys);
                keys.clear();
                self.spare_keys.push(keys);
            }
        }
        self.retire(r, content);
    }

    /// Gives blocks, slot and keys of a request back.
    fn retire<C: ContentKeys>(&mut self, r: u32, content: &mut C) {
        let request = &mut self.requests[r as usize];
        if let Some(slot) = request.slot.take() {
            self.manager.close(slot);
            let mut keys = std::mem::take(&mut request.keys);
            keys.clear();
            self.spare_keys.push(keys);
        }
        content.finish(request.tag);
    }

    fn forget<C: ContentKeys, E: SchedulerEvents>(
        &mut self,
        step: u64,
        r: u32,
        reason: Rejection,
        content: &mut C,
        events: &mut E,
    ) {
        self.totals.rejected += 1;
        events.rejected(step, self.requests[r as usize].tag, reason);
        self.requests[r as usize].state = State::Done;
        self.shortage = None;
        self.retire(r, content);
        self.unused.push(r);
    }

    fn report_evictions<E: SchedulerEvents>(&mut self, step: u64, events: &mut E) {
        if E::EVICTIONS {
            let log = self.manager.pool_mut().observer_mut();
            for &block in &log.blocks {
                events.evicted(step, block);
            }
            log.blocks.clear();
        }
    }
}
